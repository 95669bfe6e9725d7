//! Public keys as texts: a satellite's Ed25519 key, a WireGuard peer's X25519 key and a client's.
//!
//! Each has 32 bytes and one form here: base64 with padding, but for a client's, which is written as
//! Tailscale writes it. A satellite's may also come as PEM (SubjectPublicKeyInfo, RFC 8410), as
//! `openssl pkey -pubout` writes it.

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};

use super::FieldFault;

/// What stands before the 32 bytes of an Ed25519 key in its DER form (RFC 8410, section 4).
const ED25519_DER: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// What stands before a node key's digits (tailscale.com/types/key).
const NODE_KEY: &str = "nodekey:";
/// Longest text that may be a key, in bytes; a PEM of ours has about 120.
const TEXT_LEN_MAX: usize = 1024;

/// The one form of a satellite's public key.
///
/// # Errors
/// When `text` is neither base64 of 32 bytes nor a PEM of an Ed25519 key.
pub fn satellite_key(text: &str) -> Result<String, FieldFault> {
    let fault = || {
        FieldFault::new(
            "public_key",
            "is no Ed25519 key; give base64 of its 32 bytes, or PEM as openssl pkey -pubout writes",
        )
    };
    if text.len() > TEXT_LEN_MAX {
        return Err(fault());
    }
    if !text.trim_start().starts_with("-----") {
        return bytes(text).map(|key| BASE64_STANDARD.encode(key)).ok_or_else(fault);
    }
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('-'));
    let der = BASE64_STANDARD.decode(lines.collect::<String>()).map_err(|_| fault())?;
    let key = der.strip_prefix(&ED25519_DER).filter(|key| key.len() == 32).ok_or_else(fault)?;
    Ok(BASE64_STANDARD.encode(key))
}

/// The one form of a WireGuard public key.
pub(super) fn wireguard_key(text: &str) -> Result<String, FieldFault> {
    match bytes(text) {
        Some(key) if key != [0; 32] => Ok(BASE64_STANDARD.encode(key)),
        Some(_) | None => Err(FieldFault::new(
            "public_key",
            "is no WireGuard key; give what wg pubkey prints, base64 of 32 bytes",
        )),
    }
}

/// The one form of a client's node key: `nodekey:` and 64 hexadecimal digits, small letters.
///
/// # Errors
/// When `text` is nothing like it, or the key is zero, which stands for none.
pub fn node_key(text: &str) -> Result<String, FieldFault> {
    let digits = text.trim().strip_prefix(NODE_KEY);
    let fits = |digits: &&str| {
        digits.len() == 64
            && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
            && digits.bytes().any(|digit| digit != b'0')
    };
    match digits.filter(fits) {
        Some(digits) => Ok(format!("{NODE_KEY}{}", digits.to_ascii_lowercase())),
        None => Err(FieldFault::new(
            "node_key",
            "is no node key; give nodekey: and 64 hexadecimal digits, as tailscale status --json has",
        )),
    }
}

/// The fingerprint of a satellite's key in its one form: `SHA256:` and the unpadded base64 of the
/// SHA-256 of its DER, which `openssl pkey -pubin -outform DER | openssl dgst -sha256` computes, too.
#[must_use]
pub fn fingerprint(key: &str) -> String {
    let mut der = ED25519_DER.to_vec();
    der.extend(bytes(key).unwrap_or_default());
    let digest = digest::digest(&digest::SHA256, &der);
    format!("SHA256:{}", BASE64_STANDARD_NO_PAD.encode(digest.as_ref()))
}

fn bytes(text: &str) -> Option<[u8; 32]> {
    let text = text.trim();
    (text.len() <= TEXT_LEN_MAX).then_some(())?;
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}
