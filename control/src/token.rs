//! API tokens: made, taken apart, and known again by a keyed hash.
//!
//! Owns the shape `perigee_PREFIX_SECRET`: the prefix (12 hexadecimal digits) finds the record, the
//! secret has 256 random bits. It never keeps or prints a secret beyond [`Minted`], which is shown
//! once. The hash is HMAC-SHA256 under the store's own key, compared in constant time, so that
//! neither time nor the database tells anything of a token.

use std::fmt;

use aws_lc_rs::{constant_time, digest, hmac};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::store::TokenMark;

/// What a token of ours begins with; scanners for leaked secrets look for such words.
const START: &str = "perigee_";
/// Random bytes of a token's prefix.
const PREFIX_LEN: usize = 6;
/// Random bytes of a token's secret.
const SECRET_LEN: usize = 32;
/// Characters of a token: its start, the prefix in hexadecimal, a line, the secret in base64.
const TOKEN_LEN: usize = START.len() + 2 * PREFIX_LEN + 1 + (SECRET_LEN * 4).div_ceil(3);

/// A new token, which exists in the clear here alone.
pub struct Minted {
    text: String,
    mark: TokenMark,
}

impl fmt::Debug for Minted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Minted({})", self.mark.prefix)
    }
}

impl Minted {
    /// A token that a store with this secret will know.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        let prefix = hex(&random::<PREFIX_LEN>());
        let secret = BASE64_URL_SAFE_NO_PAD.encode(random::<SECRET_LEN>());
        let text = format!("{START}{prefix}_{secret}");
        let mark = TokenMark { prefix, hash: hash(key, &text) };
        Self { text, mark }
    }

    /// How the store knows it.
    #[must_use]
    pub fn mark(&self) -> TokenMark {
        self.mark.clone()
    }

    /// The token, to be shown once.
    #[must_use]
    pub fn reveal(self) -> String {
        self.text
    }
}

/// The prefix of `text` if it has the shape of a token.
#[must_use]
pub fn prefix(text: &str) -> Option<&str> {
    let rest = text.strip_prefix(START).filter(|_| text.len() == TOKEN_LEN)?;
    let (prefix, _) = rest.split_once('_')?;
    (prefix.len() == 2 * PREFIX_LEN && prefix.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then_some(prefix)
}

/// Whether `text` is the token that `hash` was made of.
#[must_use]
pub fn is_known(key: &[u8; 32], text: &str, known: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(&hash(key, text), known).is_ok()
}

fn hash(key: &[u8; 32], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

/// Random bytes of the kernel, which are there at once: the generator of aws-lc first measures the
/// processor's jitter for 40 ms, half of a start.
///
/// # Panics
/// When the system has none, in which case nothing safe can be done.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    // getrandom(2): up to 256 bytes come whole.
    const { assert!(N <= 256, "more may come in parts") };
    let mut bytes = [0; N];
    let read = getrandom(&mut bytes, GetRandomFlags::empty());
    assert_eq!(read, Ok(N), "Linux has random bytes once it has booted");
    bytes
}

/// A new id for a record.
#[must_use]
pub fn new_id() -> String {
    hex(&random::<16>())
}

/// SHA-256 in hexadecimal.
#[must_use]
pub fn digest_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_own_store_alone() {
        let minted = Minted::new(&[1; 32]);
        assert!(format!("{minted:?}").len() < 24, "the secret stays out of it");
        let mark = minted.mark();
        let text = minted.reveal();
        assert_eq!(text.len(), TOKEN_LEN);
        assert_eq!(prefix(&text), Some(mark.prefix.as_str()));
        assert!(is_known(&[1; 32], &text, &mark.hash));
        assert!(!is_known(&[2; 32], &text, &mark.hash));
        assert!(!is_known(&[1; 32], &text[1..], &mark.hash));
        assert!(!is_known(&[1; 32], &text, &mark.hash[1..]));
    }

    #[test]
    fn what_is_no_token_has_no_prefix() {
        let text = Minted::new(&[1; 32]).reveal();
        for end in 0..text.len() {
            assert_eq!(prefix(&text[..end]), None);
        }
        assert_eq!(prefix(&text.replace("perigee", "Perigee")), None);
        assert_eq!(prefix(&format!("{START}{}", "ä".repeat(28))), None);
    }

    #[test]
    fn digests_are_those_of_the_standard() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_hex(b"abc"), abc);
    }
}
