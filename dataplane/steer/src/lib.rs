//! The contract between control and dataplane: what may be steered, and how it is written down.
//!
//! Owns the [`Snapshot`] and its text form. It does no I/O and holds no secret. The dataplane builds
//! one from its configuration and relays by it; control will send others, each with a higher
//! revision. A snapshot is adopted whole or not at all (invariant 5).
#![forbid(unsafe_code)]

pub mod satellite;
pub mod signature;

use serde::{Deserialize, Serialize};
use wire::derp::{PACKET_LEN_MAX, RECV_HEAD_LEN};

/// Numbers snapshots in the order they were made; a dataplane never goes back.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// Smallest bound of one client's queue in bytes: the largest frame.
pub const QUEUE_BYTES_MIN: u64 = (PACKET_LEN_MAX + RECV_HEAD_LEN) as u64;
/// A stock client gives up after this long without a frame, in milliseconds.
pub const CLIENT_PATIENCE_MS: u64 = 120_000;

/// Everything that relay cores go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Its number.
    pub revision: Revision,
    /// Bounds and times of every session.
    pub sessions: Sessions,
}

/// Bounds and times of every session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// Bytes that may wait in each lane of a client's queue.
    pub queue_bytes_max: u64,
    /// Packets that may wait in each lane of a client's queue.
    pub queue_packets_max: u32,
    /// Bytes that may wait in all queues together.
    pub queued_bytes_max: u64,
    /// A send that moves no byte for so long ends its session, in milliseconds; 0: never.
    pub write_timeout_ms: u64,
    /// Between two keepalives of a session, jitter excluded, in milliseconds.
    pub keepalive_ms: u64,
    /// Most that a session's own jitter adds to that, in milliseconds.
    pub keepalive_jitter_ms: u64,
}

/// As stock derper has it, but for the queue: a prober's thirty packets of 64 KiB must fit.
impl Default for Sessions {
    fn default() -> Self {
        Self {
            queue_bytes_max: 2 << 20,
            queue_packets_max: 512,
            queued_bytes_max: 256 << 20,
            write_timeout_ms: 2_000,
            keepalive_ms: 60_000,
            keepalive_jitter_ms: 5_000,
        }
    }
}

/// Why a snapshot is not adopted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not the JSON of a snapshot.
    #[error("not a snapshot: {0}")]
    Malformed(String),
    /// It is not newer than the one in force.
    #[error("revision {offered} is not above {in_force}")]
    Stale {
        /// Its own number.
        offered: u64,
        /// The number of the one in force.
        in_force: u64,
    },
    /// A value is out of bounds.
    #[error("{0}")]
    Bounds(&'static str),
}

impl Snapshot {
    /// Reads the text form and judges it as a successor of the one numbered `in_force`.
    ///
    /// # Errors
    /// [`Refusal`]; the snapshot in force stays so.
    pub fn read(text: &str, in_force: Revision) -> Result<Self, Refusal> {
        let snapshot: Self =
            serde_json::from_str(text).map_err(|error| Refusal::Malformed(error.to_string()))?;
        if snapshot.revision <= in_force {
            let (offered, in_force) = (snapshot.revision.0, in_force.0);
            return Err(Refusal::Stale { offered, in_force });
        }
        snapshot.check()?;
        Ok(snapshot)
    }

    /// Judges the values.
    ///
    /// # Errors
    /// [`Refusal::Bounds`], in words.
    pub fn check(&self) -> Result<(), Refusal> {
        let sessions = &self.sessions;
        let faults = [
            (sessions.queue_bytes_max < QUEUE_BYTES_MIN, "queue_bytes_max holds no whole packet"),
            (sessions.queue_packets_max == 0, "queue_packets_max is zero"),
            (
                sessions.queued_bytes_max < sessions.queue_bytes_max,
                "queued_bytes_max is below queue_bytes_max",
            ),
            (
                sessions.keepalive_ms == 0
                    || sessions.keepalive_ms.saturating_add(sessions.keepalive_jitter_ms)
                        >= CLIENT_PATIENCE_MS,
                "keepalive_ms and its jitter must stay between zero and the 120 s of stock clients",
            ),
        ];
        match faults.iter().find(|(is_fault, _)| *is_fault) {
            Some((_, why)) => Err(Refusal::Bounds(why)),
            None => Ok(()),
        }
    }

    /// The text form: one line of JSON.
    #[must_use]
    pub fn to_text(&self) -> String {
        // Numbers under fixed names always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(revision: u64) -> Snapshot {
        Snapshot { revision: Revision(revision), sessions: Sessions::default() }
    }

    #[test]
    fn the_text_form_round_trips() {
        let text = snapshot(7).to_text();
        assert_eq!(Snapshot::read(&text, Revision(6)), Ok(snapshot(7)));
    }

    #[test]
    fn revisions_only_grow() {
        let text = snapshot(7).to_text();
        let stale = Refusal::Stale { offered: 7, in_force: 7 };
        assert_eq!(Snapshot::read(&text, Revision(7)), Err(stale));
    }

    #[test]
    fn nothing_is_adopted_in_part() {
        let cut = snapshot(1).to_text();
        for len in 0..cut.len() {
            assert!(Snapshot::read(&cut[..len], Revision(0)).is_err(), "cut at {len}");
        }
        let unknown = cut.replace("queue_packets_max", "queue_packets");
        assert!(matches!(Snapshot::read(&unknown, Revision(0)), Err(Refusal::Malformed(_))));
    }

    #[test]
    fn values_out_of_bounds_are_refused_in_words() {
        let refused = |change: fn(&mut Sessions)| {
            let mut snapshot = snapshot(1);
            change(&mut snapshot.sessions);
            snapshot.check().expect_err("out of bounds").to_string()
        };
        assert!(refused(|s| s.queue_bytes_max = 65_000).contains("queue_bytes_max"));
        assert!(refused(|s| s.queue_packets_max = 0).contains("queue_packets_max"));
        assert!(refused(|s| s.queued_bytes_max = 1 << 20).contains("queued_bytes_max"));
        assert!(refused(|s| s.keepalive_ms = 119_000).contains("120 s"));
    }
}
