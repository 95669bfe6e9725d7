//! mac1: for whom a handshake message is.
//!
//! mac1 is keyed by the public key of whoever shall read the message. It proves that the sender
//! knows that key and nothing more, so neither it nor its key is a secret (invariant 7).

use core::fmt;

use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use wire::key::Key;
use wire::wireguard::MAC_LEN;

/// What the key of mac1 is derived with (WireGuard paper, section 5.4.4).
const LABEL: [u8; 8] = *b"mac1----";

/// The bytes that mac1 covers, and mac1.
pub(super) type Mac1<'a> = (&'a [u8], &'a [u8; MAC_LEN]);

/// The state of mac1 for one reader, ready to take a message.
#[derive(Clone)]
pub(super) struct MacKey(Blake2sMac<U16>);

impl MacKey {
    pub(super) fn new(reader: &Key) -> Self {
        let key = Blake2s256::new().chain_update(LABEL).chain_update(reader.0).finalize();
        Self(
            <Blake2sMac<U16> as KeyInit>::new_from_slice(&key).expect("BLAKE2s keys have 32 bytes"),
        )
    }

    /// Whether `mac1` is that of `covered` for this reader.
    pub(super) fn fits(&self, (covered, mac1): Mac1<'_>) -> bool {
        self.mac(covered) == *mac1
    }

    fn mac(&self, covered: &[u8]) -> [u8; MAC_LEN] {
        self.0.clone().chain_update(covered).finalize().into_bytes().into()
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey(..)")
    }
}

/// mac1 of a message for `reader`, over the bytes before mac1. For those who make messages: tests
/// and load generators.
#[must_use]
pub fn mac1(reader: &Key, covered: &[u8]) -> [u8; MAC_LEN] {
    MacKey::new(reader).mac(covered)
}
