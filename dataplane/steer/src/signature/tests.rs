//! Signatures: the vectors of the standard, what is refused, and what another program signs.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, ParsedPublicKey};

use super::*;

const NOW: i64 = 1_700_000_000;
const NONCE: &str = "b3k2pp5k7z";
/// RFC 9421, appendix B.1.4: the private key of `test-key-ed25519` as PKCS#8, without armour.
const TEST_KEY: &str = "MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF";

fn test_key() -> Ed25519KeyPair {
    let der = BASE64_STANDARD.decode(TEST_KEY).expect("the vector is base64");
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).expect("the vector is a key")
}

fn sha256(content: &[u8]) -> [u8; DIGEST_LEN] {
    digest(&SHA256, content).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn request(content_sha256: &[u8; DIGEST_LEN]) -> Request<'_> {
    Request {
        method: "POST",
        authority: "primary.example",
        path: "/api/private/satellites/me",
        query: "",
        content_sha256,
    }
}

fn signed(content: &[u8]) -> ([u8; DIGEST_LEN], Fields) {
    let (key, digest) = (test_key(), sha256(content));
    let primitive = |base: &[u8]| key.sign(base).as_ref().try_into().expect("64 bytes");
    let signer = Signer { keyid: "k", sign: &primitive };
    let fields = sign(&request(&digest), &[signer], NOW, NONCE);
    (digest, fields)
}

fn holds(signature: &Signature) -> bool {
    let key = ParsedPublicKey::new(&ED25519, test_key().public_key().as_ref()).expect("a key");
    key.verify_sig(signature.base.as_bytes(), &signature.bytes).is_ok()
}

/// RFC 9421, appendix B.2.6: base and signature.
#[test]
fn the_base_is_that_of_the_standard() {
    let field = |name: &str| {
        let value = match name {
            "date" => "Tue, 20 Apr 2021 02:07:55 GMT",
            "@method" => "POST",
            "@path" => "/foo",
            "@authority" => "example.com",
            "content-type" => "application/json",
            "content-length" => "18",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let input = "sig-b26=(\"date\" \"@method\" \"@path\" \"@authority\" \"content-type\" \
                 \"content-length\");created=1618884473;keyid=\"test-key-ed25519\"";
    let parsed = dictionary(input, "").expect("the vector parses");
    let Some(ListEntry::InnerList(list)) = parsed.get("sig-b26") else { panic!("it is a list") };
    let names = list.items.iter().map(|item| text(&item.bare_item).expect("names are texts"));
    let base = base(names, field, &serialized(list)).expect("every field is there");
    let last = "\"@signature-params\": (\"date\" \"@method\" \"@path\" \"@authority\" \
                \"content-type\" \"content-length\");created=1618884473;keyid=\"test-key-ed25519\"";
    assert_eq!(base.lines().last(), Some(last));
    assert_eq!(base.lines().next(), Some("\"date\": Tue, 20 Apr 2021 02:07:55 GMT"));
    let signature = BASE64_STANDARD.encode(test_key().sign(base.as_bytes()).as_ref());
    assert_eq!(
        signature,
        "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
    );
}

/// RFC 9530, appendix B.1 has this digest of this content.
#[test]
fn the_digest_is_that_of_the_standard() {
    let digest = sha256(b"{\"hello\": \"world\"}\n");
    let said = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:";
    assert_eq!(content_digest(&digest), said);
    let other = format!("sha-512=:AAAA:, {said}");
    assert_eq!(check_content(&request(&digest), &other), Ok(()));
}

#[test]
fn what_was_signed_is_known_again() {
    let (digest, fields) = signed(b"content");
    let found = read(&request(&digest), &fields).expect("it is ours");
    assert_eq!(found.len(), 1);
    let Signature { keyid, created, expires, nonce, .. } = &found[0];
    assert_eq!((keyid.as_str(), nonce.as_str()), ("k", NONCE));
    assert_eq!((*created, *expires), (NOW, NOW + VALID_S));
    assert!(holds(&found[0]));
}

#[test]
fn whatever_is_covered_cannot_be_altered() {
    let (digest, fields) = signed(b"content");
    let other = sha256(b"other content");
    assert_eq!(read(&request(&other), &fields), Err(Refusal::Altered));
    let good = request(&digest);
    for altered in [
        Request { method: "PUT", ..good },
        Request { authority: "other.example", ..good },
        Request { path: "/api/private/satellites", ..good },
        Request { query: "a=b", ..good },
    ] {
        let found = read(&altered, &fields).expect("its form is good");
        assert!(!holds(&found[0]), "{altered:?}");
    }
    let upper = Request { authority: "Primary.Example", ..good };
    assert!(holds(&read(&upper, &fields).expect("good")[0]), "hosts have no capitals");
    let longer = fields.signature_input.replace("expires=1700000060", "expires=1700000059");
    let fields = Fields { signature_input: longer, ..fields };
    assert!(!holds(&read(&good, &fields).expect("its form is good")[0]));
}

#[test]
fn times_count_within_the_skew() {
    let (digest, fields) = signed(b"");
    let one = read(&request(&digest), &fields).expect("it is ours").remove(0);
    for now in [NOW - SKEW_S, NOW, NOW + VALID_S + SKEW_S] {
        assert_eq!(one.check_time(now), Ok(()), "{now}");
    }
    assert_eq!(one.check_time(NOW - SKEW_S - 1), Err(Refusal::Early { by_s: 1 }));
    assert_eq!(one.check_time(NOW + VALID_S + SKEW_S + 1), Err(Refusal::Late { by_s: 1 }));
    assert_eq!(one.check_time(NOW + 3600), Err(Refusal::Late { by_s: 3600 - 90 }));
    assert!(one.check_time(i64::MAX).is_err() && one.check_time(i64::MIN).is_err());
}

#[test]
fn signatures_of_others_are_passed_over_and_several_of_ours_are_read() {
    let (key, digest) = (test_key(), sha256(b""));
    let primitive = |base: &[u8]| key.sign(base).as_ref().try_into().expect("64 bytes");
    let signers = ["old", "new"].map(|keyid| Signer { keyid, sign: &primitive });
    let mut fields = sign(&request(&digest), &signers, NOW, NONCE);
    fields.signature_input += ", proxy=(\"forwarded\");created=1;keyid=\"x\"";
    fields.signature += ", proxy=:AAAA:";
    let found = read(&request(&digest), &fields).expect("two are ours");
    assert_eq!(found.iter().map(|one| one.keyid.as_str()).collect::<Vec<_>>(), ["old", "new"]);
    assert!(found.iter().all(holds));
}

#[test]
fn what_is_not_of_the_profile_is_refused() {
    let (digest, good) = signed(b"");
    let request = request(&digest);
    for (from, to) in [
        ("\"@query\" ", ""),
        ("\"@query\"", "\"@query-param\";name=\"a\""),
        ("\"@query\"", "\"date\""),
        ("\"@query\"", "\"@path\""),
        ("\"@query\"", "\"@query\";req"),
        ("\"@query\"", "\"@query\" \"date\""),
        ("created=1700000000;", ""),
        ("created=1700000000;", "created=\"now\";"),
        ("expires=1700000060;", ""),
        ("expires=1700000060", "expires=1700000061"),
        ("expires=1700000060", "expires=1699999999"),
        ("nonce=\"b3k2pp5k7z\"", "nonce=\"\""),
        ("nonce=\"b3k2pp5k7z\";", ""),
        ("keyid=\"k\"", "keyid=k"),
        ("alg=\"ed25519\"", "alg=\"hmac-sha256\""),
        ("tag=\"perigee-satellite\"", "tag=\"other\""),
        ("sig0=", "sig1="),
    ] {
        let signature_input = good.signature_input.replacen(from, to, 1);
        let bad = Fields { signature_input, ..good.clone() };
        let refused = read(&request, &bad);
        assert!(matches!(refused, Err(Refusal::Malformed(_))), "{to}: {refused:?}");
    }
    let many: Vec<_> = (0..=SIGNATURES_MAX)
        .map(|at| good.signature_input.replace("sig0", &format!("s{at}")))
        .collect();
    let sigs: Vec<_> =
        (0..=SIGNATURES_MAX).map(|at| good.signature.replace("sig0", &format!("s{at}"))).collect();
    let many =
        Fields { signature_input: many.join(", "), signature: sigs.join(", "), ..good.clone() };
    assert_eq!(read(&request, &many), Err(Refusal::Malformed("it has too many signatures")));
    let long = " ".repeat(FIELD_LEN_MAX + 1);
    assert!(read(&request, &Fields { signature: long, ..good.clone() }).is_err());
    for end in 0..good.signature_input.len() {
        let cut = good.signature_input[..end].to_owned();
        let cut = Fields { signature_input: cut, ..good.clone() };
        let refused = read(&request, &cut).map(|found| holds(&found[0]));
        assert!(refused != Ok(true), "cut at {end}");
    }
    for end in 0..good.signature.len() {
        let cut = Fields { signature: good.signature[..end].to_owned(), ..good.clone() };
        assert!(read(&request, &cut).is_err(), "cut at {end}");
    }
}

/// What the Python package http-message-signatures 3.0.0 makes of the same key, request and times.
#[test]
fn what_another_implementation_signed_is_read() {
    let fields = Fields {
        content_digest: "sha-256=:qlvGH0TV9jOTXQTLzPJlTFaAb8kksAg6bLa3VFNprWQ=:".into(),
        signature_input: "pyhms=(\"@method\" \"@authority\" \"@path\" \"@query\" \
            \"content-digest\");created=1700000000;\
            keyid=\"SHA256:NFcWBst6DXG+N35nHdzMrioWntdzNZghQSkjHNMMSjw\";alg=\"ed25519\";\
            expires=1700000060;nonce=\"word.n1\";tag=\"perigee-satellite\""
            .into(),
        signature: "pyhms=:KB6mRx2M3AoDFoWg99Zkz8fFRuoJkuIJ33gC10bQOUKo0PpF+90U2ONJMdN1pfHqEsxsKJ\
            mHd7L4dbdyWBaMDA==:"
            .into(),
    };
    let digest = sha256(br#"{"version":"1"}"#);
    let found = read(&request(&digest), &fields).expect("it is of our profile");
    assert_eq!((found[0].nonce.as_str(), found[0].created), ("word.n1", NOW));
    assert!(holds(&found[0]));
}
