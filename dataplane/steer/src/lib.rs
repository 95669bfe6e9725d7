//! The contract between control and dataplane: what may be steered, and how it is written down.
//!
//! Owns the [`Snapshot`], the [`Delta`] from one to the next, and the messages that carry them: JSON,
//! one message a line. It does no I/O. A dataplane dials control, says [`Said::Hello`] and obeys each
//! [`Order`]; a snapshot is adopted whole or not at all (invariant 5), and each is answered.
#![forbid(unsafe_code)]

mod delta;
mod key;
mod lines;
mod message;
pub mod satellite;
mod sessions;
pub mod signature;
mod snapshot;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use delta::{Delta, Step};
pub use key::{NODE_KEY_PREFIX, NodeKey, PeerKey};
pub use lines::{Lines, TooLong};
pub use message::{Order, Said};
pub use sessions::{CLIENT_PATIENCE_MS, QUEUE_BYTES_MIN, SessionLimits, Sessions};
pub use snapshot::{Admission, Certificate, SecretPem, Snapshot};

/// What both sides of a connection speak; another number is answered by [`Order::Goodbye`].
pub const PROTOCOL: u32 = 2;

/// Longest line that control writes, in bytes: a snapshot at all of its bounds fits.
pub const LINE_BYTES_MAX: usize = 32 << 20;
/// Longest line that a dataplane writes, in bytes.
pub const SAID_BYTES_MAX: usize = 16 << 10;
/// Longest reason in a message, in bytes; what is longer is cut.
pub const WHY_BYTES_MAX: usize = 1024;

/// Between two [`Said::Report`], the dataplane's sign of life.
pub const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Between two [`Order::Current`], control's sign of life.
pub const CURRENT_EVERY: Duration = Duration::from_secs(5);
/// Either side hangs up on one that sent nothing for so long.
pub const SILENCE: Duration = Duration::from_secs(20);

/// Longest name of a client, peer, certificate or node, in bytes: that of a DNS label.
pub const NAME_BYTES_MAX: usize = 63;
/// Most DERP clients of a snapshot.
pub const CLIENTS_MAX: usize = 100_000;
/// Most WireGuard peers of a snapshot: what the relay holds.
pub const PEERS_MAX: usize = 4096;
/// Most WireGuard links of a snapshot: what the relay holds.
pub const LINKS_MAX: usize = 4096;
/// Most certificates of a snapshot.
pub const CERTIFICATES_MAX: usize = 64;
/// Longest PEM text of a certificate's chain, and of its private key, in bytes.
pub const PEM_BYTES_MAX: usize = 64 << 10;

/// Bytes of punctuation, prefix and key text that an entry of a table adds to its name.
const ENTRY_BYTES_MAX: usize = 80;
const _: () = assert!(
    CLIENTS_MAX * (NAME_BYTES_MAX + ENTRY_BYTES_MAX)
        + PEERS_MAX * (NAME_BYTES_MAX + ENTRY_BYTES_MAX)
        + LINKS_MAX * (2 * NAME_BYTES_MAX + ENTRY_BYTES_MAX)
        // Nothing in PEM but its line ends is longer in JSON, and no more than twice.
        + CERTIFICATES_MAX * (4 * PEM_BYTES_MAX + NAME_BYTES_MAX + ENTRY_BYTES_MAX)
        + (4 << 10)
        <= LINE_BYTES_MAX,
    "a snapshot at its bounds is a line"
);

/// Numbers the states of a store in their order; 0 is before the first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a line or a snapshot is refused. The words hold no value of a secret field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not the JSON of what it should be.
    #[error("malformed: {0}")]
    Malformed(String),
    /// It is older than the one in force.
    #[error("revision {offered} is below {in_force}, which is in force")]
    Stale {
        /// Its own number.
        offered: Revision,
        /// The number of the one in force.
        in_force: Revision,
    },
    /// It begins at another snapshot than the one in force.
    #[error("a delta from revision {from} does not fit {in_force}, which is in force")]
    Gap {
        /// Where the delta begins.
        from: Revision,
        /// The number of the one in force.
        in_force: Revision,
    },
    /// A value is out of bounds, or two contradict each other.
    #[error("{0}")]
    Bounds(String),
}

impl Refusal {
    /// What the parser says, without the values it met: they may be secret.
    fn malformed(error: &serde_json::Error) -> Self {
        let words = error.to_string();
        let words = words.split([':', '\n']).next().unwrap_or_default();
        let words = words.split(" at line ").next().unwrap_or_default();
        Self::Malformed(format!("{} at byte {}", cut(words, WHY_BYTES_MAX / 2), error.column()))
    }

    fn bounds(why: impl fmt::Display) -> Self {
        Self::Bounds(why.to_string())
    }
}

/// As much of `text` as fits in `bytes_max` bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// Whether `name` may name a client, peer, certificate or node: 1 to [`NAME_BYTES_MAX`] letters,
/// digits, dots, hyphens and underscores of ASCII.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests;
