//! Curve25519 public keys as DERP names peers with them, and their lower-case hex form.
//!
//! A [`Key`] is public: comparing and printing it is fine. Secrets live elsewhere (invariant 7).

use core::fmt;

/// Length of a public key in bytes.
pub const KEY_LEN: usize = 32;

/// A peer's public key: the WireGuard node key of a client, or the relay's own key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Key(pub [u8; KEY_LEN]);

const _: () = assert!(size_of::<Key>() == KEY_LEN);

impl Key {
    /// The first 32 bytes of `bytes`, or `None` if there are fewer.
    #[inline]
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(|key| Self(*key))
    }

    /// Whether every byte is zero. Such a key has no private half and is refused before any crypto.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0 == [0; KEY_LEN]
    }

    /// The key written as 64 lower-case hex digits.
    #[must_use]
    pub fn to_hex(self) -> [u8; KEY_LEN * 2] {
        let mut hex = [0; KEY_LEN * 2];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.0) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 0xf)];
        }
        hex
    }

    /// Reads 64 hex digits of either case; `None` for anything else.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let text: &[u8; KEY_LEN * 2] = text.as_bytes().try_into().ok()?;
        let mut key = [0; KEY_LEN];
        for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Self(key))
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Shortened, as logs show keys: the first four bytes in hex.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "[{a:02x}{b:02x}{c:02x}{d:02x}]")
    }
}

/// In full, as 64 lower-case hex digits.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::string::ToString;

    #[test]
    fn hex_round_trips_and_refuses_other_text() {
        let key = Key(core::array::from_fn(|i| i as u8 * 7));
        let hex = key.to_hex();
        let text = core::str::from_utf8(&hex).expect("hex is ASCII");
        assert_eq!(Key::from_hex(text), Some(key));
        assert_eq!(key.to_string(), text);
        assert_eq!(Key::from_hex(&text[1..]), None);
        assert_eq!(Key::from_hex(&text.replace('0', "g")), None);
    }
}
