//! Certificates: what is accepted, and the one line that says why not.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::fault::ExitCode;
use crate::testing::Scratch;

pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// A moment inside the validity of what [`issue`] makes, and of nothing that depends on today.
pub(super) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + 20_000 * DAY
}

/// Writes a certificate for `names`, valid from 10 days before [`now`] to 10 days after.
pub(super) fn issue(scratch: &Scratch, stem: &str, names: &[&str]) -> CertFiles {
    issue_until(scratch, stem, names, now() + 10 * DAY)
}

/// The same, valid from 20 days before `end`.
pub(super) fn issue_until(
    scratch: &Scratch,
    stem: &str,
    names: &[&str],
    end: SystemTime,
) -> CertFiles {
    let (chain, key) = make(names, end);
    CertFiles {
        cert_file: scratch.write(&format!("{stem}.crt"), chain),
        key_file: scratch.write(&format!("{stem}.key"), key),
    }
}

/// A certificate for `names`, valid from 20 days before `end`, and its key, as PEM.
pub(super) fn make(names: &[&str], end: SystemTime) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("test names are good");
    params.not_before = (end - 20 * DAY).into();
    params.not_after = end.into();
    let key = KeyPair::generate().expect("keys can be made");
    let made = params.self_signed(&key).expect("certificates can be made");
    (made.pem(), key.serialize_pem())
}

fn host(text: &str) -> HostName {
    text.parse().expect("test host names are good")
}

/// The message of a load that must fail, without the scratch directory.
fn refusal(scratch: &Scratch, files: CertFiles, hostname: Option<&str>, at: SystemTime) -> String {
    let hostname = hostname.map(host);
    let fault =
        Source::Files(vec![files]).load(hostname.as_ref(), at).expect_err("the load must fail");
    assert_eq!(fault.code(), ExitCode::Config, "{fault}");
    scratch.strip(&fault.to_string())
}

#[test]
fn a_good_pair_is_read_with_its_names_and_expiry() {
    let scratch = Scratch::new();
    let files = issue(
        &scratch,
        "good",
        &["relay.example.com", "*.derp.example.com", "192.0.2.1", "2001:db8::1"],
    );
    let loaded = Source::Files(vec![files])
        .load(Some(&host("a.derp.example.com")), now())
        .expect("a good pair");
    assert_eq!(
        loaded[0].names(),
        ["relay.example.com", "*.derp.example.com", "192.0.2.1", "2001:db8::1"]
    );
    assert_eq!(loaded[0].expiry_unix_s(), 20_010 * 24 * 3600);
}

#[test]
fn bad_files_are_named_with_the_fix() {
    let scratch = Scratch::new();
    let (one, other) =
        (issue(&scratch, "one", &["a.example"]), issue(&scratch, "other", &["b.example"]));
    let pair = |cert: &std::path::Path, key: &std::path::Path| CertFiles {
        cert_file: cert.into(),
        key_file: key.into(),
    };
    let garbage = scratch.write("garbage.pem", "no PEM here");
    let broken = scratch
        .write("broken.pem", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n");
    let hollow = scratch
        .write("hollow.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    for (files, message) in [
        (
            pair(&scratch.path("none.crt"), &one.key_file),
            "none.crt: no such file or directory; the certificate must be a readable PEM file",
        ),
        (
            pair(&one.cert_file, &scratch.path("none.key")),
            "none.key: no such file or directory; the certificate's key must be a readable PEM file",
        ),
        (
            pair(&garbage, &one.key_file),
            "garbage.pem: holds no certificate; it must hold the certificate and its intermediates as PEM",
        ),
        (
            pair(&broken, &one.key_file),
            "broken.pem: is not well-formed PEM; it must hold the certificate and its intermediates as PEM",
        ),
        (
            pair(&hollow, &one.key_file),
            "hollow.pem: the first certificate is malformed; get it issued again as X.509 version 3",
        ),
        (
            pair(&one.cert_file, &garbage),
            "garbage.pem: holds no private key; it must hold the certificate's private key as PEM without a passphrase",
        ),
        (
            pair(&one.cert_file, &other.key_file),
            "other.key: is not the key of the certificate in one.crt; give the key it was issued for",
        ),
    ] {
        assert_eq!(refusal(&scratch, files, None, now()), message);
    }
}

#[test]
fn a_certificate_out_of_its_validity_is_refused() {
    let scratch = Scratch::new();
    let files = issue(&scratch, "relay", &["a.example"]);
    assert_eq!(
        refusal(&scratch, files.clone(), None, now() + 11 * DAY),
        "relay.crt: expired on 2024-10-14; renew the certificate"
    );
    assert_eq!(
        refusal(&scratch, files, None, now() - 11 * DAY),
        "relay.crt: is not valid before 2024-09-24; set the clock right or use the previous certificate"
    );
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let scratch = Scratch::new();
    let files = issue(&scratch, "relay", &["a.example", "192.0.2.1"]);
    assert_eq!(
        refusal(&scratch, files, Some("b.example"), now()),
        "hostname: no certificate is for b.example (they are for a.example, 192.0.2.1); change hostname or add its certificate"
    );
}

#[test]
fn a_self_signed_certificate_is_for_its_host_and_for_trying_it_here() {
    for name in [
        "relay.example.com",
        "192.0.2.7",
        "2001:db8::7",
        "127.0.0.1",
        &"a".repeat(60),
        &format!("{}.example", "b".repeat(60)),
    ] {
        let hostname = host(name);
        let made =
            Source::SelfSigned.load(Some(&hostname), SystemTime::now()).expect("it can be made");
        for name in [name, "localhost", "127.0.0.1", "::1"] {
            assert!(made[0].is_for(&host(name)), "{hostname} {name}");
        }
        assert!(!made[0].is_for(&host("elsewhere.example")));
        let pin = made[0].pin().expect("one certificate has a pin");
        assert_eq!(pin.len(), "sha256-raw:".len() + 64);
        let lifetime = made[0].expiry_unix_s()
            - SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("past 1970").as_secs()
                as i64;
        assert!((364 * 24 * 3600..=365 * 24 * 3600).contains(&lifetime), "{lifetime}");
    }
}

#[test]
fn a_directory_holds_the_pair_named_after_the_host() {
    let scratch = Scratch::new();
    issue(&scratch, "relay.example.com", &["relay.example.com"]);
    let source = Source::Directory(scratch.path(""));
    assert!(source.load(Some(&host("relay.example.com")), now()).is_ok());
    let missing = source.load(Some(&host("other.example.com")), now()).expect_err("no such pair");
    assert_eq!(
        scratch.strip(&missing.to_string()),
        "other.example.com.crt: no such file or directory; the certificate must be a readable PEM file"
    );
}

#[test]
fn an_address_without_files_gets_a_pair_that_is_kept() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let source = Source::Directory(scratch.path("certs"));
    let pin = |name: &str| {
        source.load(Some(&host(name)), SystemTime::now()).expect("it can be made")[0].pin()
    };
    let (first, six) = (pin("192.0.2.7"), pin("2001:db8::7"));
    assert_eq!(pin("192.0.2.7"), first);
    assert_eq!(pin("2001:db8::7"), six);
    let mode = |name: &str| {
        std::fs::metadata(scratch.path(name)).expect("it was written").permissions().mode() & 0o777
    };
    assert_eq!(mode("certs/192.0.2.7.key"), 0o600);
    assert_eq!(mode("certs/2001db87.key"), 0o600);
    assert!(scratch.path("certs/2001db87.crt").exists(), "derper leaves the colons out");
}

#[test]
fn half_a_pair_of_our_own_is_made_anew_and_a_foreign_one_is_not() {
    let scratch = Scratch::new();
    let source = Source::Directory(scratch.path(""));
    let address = host("192.0.2.7");
    let load = || source.load(Some(&address), SystemTime::now());
    assert!(source.would_make(Some(&address)));
    load().expect("it can be made");
    assert!(!source.would_make(Some(&address)));
    std::fs::remove_file(scratch.path("192.0.2.7.key")).expect("it was written");
    assert!(source.would_make(Some(&address)));
    let again = load().expect("the half does not stand in the way")[0].pin();
    assert_eq!(load().expect("a whole pair")[0].pin(), again);
    std::fs::remove_file(scratch.path("192.0.2.7.crt")).expect("it was written");
    assert!(!source.would_make(Some(&address)));
    load().expect_err("a key alone may be the operator's");
    let foreign = issue(&scratch, "192.0.2.7", &["192.0.2.7"]);
    std::fs::remove_file(foreign.key_file).expect("it was written");
    assert!(!source.would_make(Some(&address)));
}

#[test]
fn host_names_are_names_or_addresses() {
    for (text, shown) in [
        ("Relay.Example.COM.", "relay.example.com"),
        ("localhost", "localhost"),
        ("192.0.2.1", "192.0.2.1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ] {
        assert_eq!(host(text).to_string(), shown);
    }
    for text in [
        "",
        ".",
        "a b",
        "192.0.2.256",
        "192.0.2",
        "https://relay.example",
        "relay.example:443",
        "-a.example",
    ] {
        assert_eq!(text.parse::<HostName>(), Err(NotAHostName), "{text}");
    }
}

#[test]
fn the_map_node_says_what_differs_from_the_defaults() {
    let addresses = |texts: &[&str]| {
        texts.iter().map(|text| text.parse().expect("an address")).collect::<Vec<_>>()
    };
    let reach = Reach {
        derp: addresses(&["[::]:8443"]),
        stun: addresses(&["[::]:3478"]),
        http: Vec::new(),
    };
    let node = DerpNode::new(&HostName::LOOPBACK, &reach, Some("sha256-raw:00".into()));
    assert_eq!(
        node.json(),
        r#"{"Name":"custom","RegionID":900,"HostName":"127.0.0.1","CertName":"sha256-raw:00","IPv4":"127.0.0.1","IPv6":"::1","DERPPort":8443}"#
    );
    let reach = Reach {
        derp: addresses(&["0.0.0.0:443"]),
        stun: Vec::new(),
        http: addresses(&["0.0.0.0:80"]),
    };
    assert_eq!(
        DerpNode::new(&host("relay.example.com"), &reach, None).json(),
        r#"{"Name":"custom","RegionID":900,"HostName":"relay.example.com","STUNPort":-1,"CanPort80":true}"#
    );
}
