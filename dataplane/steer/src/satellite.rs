//! What a satellite and its primary side say to each other: where, and in which words.
//!
//! Owns paths, bounds and bodies of the key's document and of the sign of life. Requests of a
//! satellite are signed as [`crate::signature`] says; its key goes by the [`fingerprint`].

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::signature::DIGEST_LEN;

/// Where a satellite tells its public key, to anybody: the v1 command line's path.
pub const KEY_PATH: &str = "/api/private/satellites/key";
/// Where the primary side hears that a satellite is there.
pub const ALIVE_PATH: &str = "/api/private/satellites/me";
/// The header by which the primary side says who it is: each process of it has another word. The nonce
/// of a signed request is that word, a dot, and letters and digits that no other request has, so that
/// nothing can be replayed to another process, or to this one after a restart.
pub const INSTANCE: &str = "perigee-instance";
/// Bytes of an [`Alive`] as JSON, at most.
pub const ALIVE_BYTES_MAX: usize = 4096;
/// Between two signs of life, in seconds.
pub const ALIVE_EVERY_S: u64 = 30;

/// A satellite's public key, as [`KEY_PATH`] shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDocument {
    /// The key: PEM of a SubjectPublicKeyInfo (RFC 8410).
    pub key: String,
    /// Its fingerprint.
    pub fingerprint: String,
}

/// A sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// The satellite's version.
    pub version: String,
    /// Where users reach it, if it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_url: Option<String>,
}

/// What the primary side answers to an [`Alive`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The name it is registered by.
    pub name: String,
    /// The fingerprint of the key that is registered: during a rotation not always the one that
    /// signed.
    pub fingerprint: String,
}

/// The name of a key: `SHA256:` and the unpadded base64 of the SHA-256 of its SubjectPublicKeyInfo.
#[must_use]
pub fn fingerprint(spki_sha256: &[u8; DIGEST_LEN]) -> String {
    format!("SHA256:{}", BASE64_STANDARD_NO_PAD.encode(spki_sha256))
}
