//! Identity: agreement against RFC 7748, derper's file format, its access bits and its faults.

use super::*;
use crate::testing::Scratch;

/// RFC 7748 section 6.1: Bob's pair, Alice's public key and the point they share.
const BOB_PRIVATE: &str = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";
const BOB_PUBLIC: &str = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
const ALICE_PUBLIC: &str = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
const SHARED: &str = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742";

fn key(hex: &str) -> Key {
    Key::from_hex(hex).expect("vectors are hex")
}

fn load(text: &str) -> Result<Identity, String> {
    let scratch = Scratch::new();
    let path = scratch.write("relay.key", text);
    Identity::load_or_create(&path).map_err(|fault| scratch.strip(&fault.to_string()))
}

#[test]
fn agrees_as_rfc_7748_says() {
    let bob =
        load(&format!(r#"{{"PrivateKey":"privkey:{BOB_PRIVATE}"}}"#)).expect("the file is good");
    assert_eq!(bob.public(), key(BOB_PUBLIC));
    assert_eq!(*bob.agree(&key(ALICE_PUBLIC)).expect("Alice's key is good"), key(SHARED).0);
}

#[test]
fn refuses_keys_of_low_order() {
    let identity = Identity::fresh().expect("entropy is there");
    let one = format!("01{}", "00".repeat(31));
    let order_eight = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800";
    for hex in [&"00".repeat(32), &one, order_eight] {
        assert!(identity.agree(&key(hex)).is_none(), "{hex}");
    }
}

#[test]
fn a_created_file_is_derpers_and_gives_the_same_identity_again() {
    let scratch = Scratch::new();
    let path = scratch.path("deep/er/relay.key");
    let created = Identity::load_or_create(&path).expect("the directory is ours");
    let text = fs::read_to_string(&path).expect("the file is there");
    assert!(
        text.starts_with("{\n\t\"PrivateKey\": \"privkey:") && text.ends_with("\"\n}"),
        "{text}"
    );
    assert_eq!(text.len(), "{\n\t\"PrivateKey\": \"privkey:\"\n}".len() + 64);
    assert_eq!(fs::metadata(&path).expect("the file is there").permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(scratch.path("deep/er")).expect("the directory is there").count(), 1);
    let again = Identity::load_or_create(&path).expect("the file is good");
    assert_eq!(created.public(), again.public());
}

#[test]
fn two_fresh_identities_agree_on_one_point_and_show_no_secret() {
    let (one, other) = (Identity::fresh().expect("entropy"), Identity::fresh().expect("entropy"));
    assert_ne!(one.public(), other.public());
    assert_eq!(
        *one.agree(&other.public()).expect("good key"),
        *other.agree(&one.public()).expect("good key")
    );
    assert_eq!(format!("{one:?}"), format!("Identity {{ public: {:?} }}", one.public()));
}

#[test]
fn a_bad_key_file_is_named_with_the_fix() {
    let fix = r#"key_file must hold {"PrivateKey":"privkey:<64 hex digits>"}, or name no file to have one made"#;
    for (text, what) in [
        ("", "is not a relay key file"),
        ("not json", "is not a relay key file"),
        (r#"{"PrivateKey":"nodekey:00"}"#, "the key has the wrong prefix"),
        (r#"{"PrivateKey":"privkey:0123"}"#, "the key is not 64 hex digits"),
        (
            &format!(r#"{{"PrivateKey":"privkey:{}"}}"#, "+1".repeat(32)),
            "the key is not 64 hex digits",
        ),
        (&format!(r#"{{"PrivateKey":"privkey:{}"}}"#, "0".repeat(64)), "the key is zero"),
    ] {
        assert_eq!(load(text).expect_err(what), format!("relay.key: {what}; {fix}"));
    }
}

#[test]
fn an_unreadable_key_file_is_a_fault_and_not_a_new_identity() {
    let scratch = Scratch::new();
    let fault =
        Identity::load_or_create(&scratch.path("")).expect_err("a directory is not a key file");
    assert_eq!(fault.code(), ExitCode::Config);
    assert!(
        fault.to_string().ends_with("is a directory; key_file must name a readable key file"),
        "{fault}"
    );
}
