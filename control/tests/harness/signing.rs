//! A satellite as control hears it: a key, and requests that are signed with it.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;
use steer::satellite::ALIVE_PATH;
use steer::signature::{Fields, Request, Signer, sign};

use super::{Answer, Control};

/// What a sign of life says.
pub(crate) const BODY: &str = r#"{"version": "1.2.3", "access_url": "https://sydney.example/"}"#;

/// One who has a key.
pub(crate) struct Signing {
    pair: Ed25519KeyPair,
}

/// A signed request, as it goes over the wire.
#[derive(Clone)]
pub(crate) struct Signed {
    pub(crate) fields: Fields,
    pub(crate) body: String,
}

impl Signing {
    pub(crate) fn new() -> Self {
        Self { pair: Ed25519KeyPair::generate().expect("the system has random bytes") }
    }

    pub(crate) fn public(&self) -> String {
        BASE64_STANDARD.encode(self.pair.public_key().as_ref())
    }

    pub(crate) fn fingerprint(&self) -> String {
        control::resource::fingerprint(&self.public())
    }

    /// A sign of life that says `body`, made at `created` for the process called `instance`.
    pub(crate) fn sign(&self, body: &str, instance: &str, created: i64) -> Signed {
        let bytes = control::token::random::<8>();
        let nonce = format!("{instance}.{:016x}", u64::from_le_bytes(bytes));
        let content = digest(&SHA256, body.as_bytes());
        let request = Request {
            method: "POST",
            authority: "control",
            path: ALIVE_PATH,
            query: "",
            content_sha256: content.as_ref().try_into().expect("32 bytes"),
        };
        let primitive = |base: &[u8]| self.pair.sign(base).as_ref().try_into().expect("64 bytes");
        let signer = Signer { keyid: &self.fingerprint(), sign: &primitive };
        Signed { fields: sign(&request, &[signer], created, &nonce), body: body.to_owned() }
    }

    /// Registers it by the v1 command line's request, which tells no address.
    pub(crate) fn register(&self, control: &Control, token: &str, name: &str) -> Answer {
        let body = json!({"name": name, "public_key": self.public()}).to_string();
        control.ask("POST", "/api/private/satellites", &[("session-token", token)], &body)
    }
}

/// The right time, in seconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    since.as_secs().try_into().expect("a clock before the end")
}

/// Sends what was signed.
pub(crate) fn send(control: &Control, signed: &Signed) -> Answer {
    let Fields { content_digest, signature_input, signature } = &signed.fields;
    let headers = [
        ("content-type", "application/json"),
        ("content-digest", content_digest.as_str()),
        ("signature-input", signature_input),
        ("signature", signature),
    ];
    control.ask("POST", ALIVE_PATH, &headers, &signed.body)
}

/// The word of the running process.
pub(crate) fn instance(control: &Control) -> String {
    let answer = control.ask("POST", ALIVE_PATH, &[], "");
    assert_eq!((answer.status, answer.code()), (401, "signature_rejected".into()));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    answer.header("perigee-instance").expect("every answer has it").to_owned()
}
