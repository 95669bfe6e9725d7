//! Bounds and times of DERP sessions: those in force, and those that control says.

use serde::{Deserialize, Serialize};
use wire::derp::{PACKET_LEN_MAX, RECV_HEAD_LEN};

use crate::Refusal;

/// Smallest bound of one client's queue in bytes: the largest frame.
pub const QUEUE_BYTES_MIN: u64 = (PACKET_LEN_MAX + RECV_HEAD_LEN) as u64;
/// A stock client gives up after this long without a frame, in milliseconds.
pub const CLIENT_PATIENCE_MS: u64 = 120_000;

/// Bounds and times of every session, as relay cores go by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl Sessions {
    /// Judges the values.
    ///
    /// # Errors
    /// [`Refusal::Bounds`], in words.
    pub fn check(&self) -> Result<(), Refusal> {
        let faults = [
            (self.queue_bytes_max < QUEUE_BYTES_MIN, "queue_bytes_max holds no whole packet"),
            (self.queue_packets_max == 0, "queue_packets_max is zero"),
            (
                self.queued_bytes_max < self.queue_bytes_max,
                "queued_bytes_max is below queue_bytes_max",
            ),
            (
                self.keepalive_ms == 0
                    || self.keepalive_ms.saturating_add(self.keepalive_jitter_ms)
                        >= CLIENT_PATIENCE_MS,
                "keepalive_ms and its jitter must stay between zero and the 120 s of stock clients",
            ),
        ];
        match faults.iter().find(|(is_fault, _)| *is_fault) {
            Some((_, why)) => Err(Refusal::bounds(why)),
            None => Ok(()),
        }
    }
}

/// Those that control says; what it leaves out stays as the dataplane's own configuration has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionLimits {
    /// See [`Sessions::queue_bytes_max`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_bytes_max: Option<u64>,
    /// See [`Sessions::queue_packets_max`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_packets_max: Option<u32>,
    /// See [`Sessions::queued_bytes_max`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_bytes_max: Option<u64>,
    /// See [`Sessions::write_timeout_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_timeout_ms: Option<u64>,
    /// See [`Sessions::keepalive_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive_ms: Option<u64>,
    /// See [`Sessions::keepalive_jitter_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive_jitter_ms: Option<u64>,
}

impl SessionLimits {
    /// What a dataplane goes by whose own configuration says `own`. Where a value of either does not
    /// go with one of the other, the tighter bound holds: so that of values that are right by
    /// themselves none is ever refused.
    #[must_use]
    pub fn over(&self, own: &Sessions) -> Sessions {
        let mut both = self.merged(own);
        both.queue_bytes_max = both.queue_bytes_max.min(both.queued_bytes_max);
        let most = CLIENT_PATIENCE_MS - 1;
        if self.keepalive_ms.is_some() {
            both.keepalive_jitter_ms =
                both.keepalive_jitter_ms.min(most.saturating_sub(both.keepalive_ms));
        } else {
            both.keepalive_ms =
                both.keepalive_ms.min(most.saturating_sub(both.keepalive_jitter_ms));
        }
        both
    }

    fn merged(&self, own: &Sessions) -> Sessions {
        Sessions {
            queue_bytes_max: self.queue_bytes_max.unwrap_or(own.queue_bytes_max),
            queue_packets_max: self.queue_packets_max.unwrap_or(own.queue_packets_max),
            queued_bytes_max: self.queued_bytes_max.unwrap_or(own.queued_bytes_max),
            write_timeout_ms: self.write_timeout_ms.unwrap_or(own.write_timeout_ms),
            keepalive_ms: self.keepalive_ms.unwrap_or(own.keepalive_ms),
            keepalive_jitter_ms: self.keepalive_jitter_ms.unwrap_or(own.keepalive_jitter_ms),
        }
    }

    /// Judges what can be judged without a dataplane: each value against the others, and against
    /// stock values where there are none.
    ///
    /// # Errors
    /// [`Refusal::Bounds`], in words.
    pub fn check(&self) -> Result<(), Refusal> {
        // What the dataplane itself may say: bounds that leave room for any single value.
        let mut own = Sessions { queued_bytes_max: u64::MAX, ..Sessions::default() };
        if self.queued_bytes_max.is_some() {
            own.queue_bytes_max = QUEUE_BYTES_MIN;
        }
        if self.keepalive_jitter_ms.is_some() {
            own.keepalive_ms = 1;
        } else {
            own.keepalive_jitter_ms = 0;
        }
        self.merged(&own).check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_bounds_are_refused_in_words() {
        let refused = |change: fn(&mut Sessions)| {
            let mut sessions = Sessions::default();
            change(&mut sessions);
            sessions.check().expect_err("out of bounds").to_string()
        };
        assert!(refused(|s| s.queue_bytes_max = 65_000).contains("queue_bytes_max"));
        assert!(refused(|s| s.queue_packets_max = 0).contains("queue_packets_max"));
        assert!(refused(|s| s.queued_bytes_max = 1 << 20).contains("queued_bytes_max"));
        assert!(refused(|s| s.keepalive_ms = 119_000).contains("120 s"));
        assert!(refused(|s| s.keepalive_ms = u64::MAX).contains("120 s"));
        assert_eq!(Sessions::default().check(), Ok(()));
    }

    #[test]
    fn limits_override_single_values() {
        let own = Sessions { queue_packets_max: 7, ..Sessions::default() };
        assert_eq!(SessionLimits::default().over(&own), own);
        let limits = SessionLimits { keepalive_ms: Some(30_000), ..SessionLimits::default() };
        assert_eq!(limits.over(&own), Sessions { keepalive_ms: 30_000, ..own });
    }

    #[test]
    fn limits_that_are_right_go_over_any_own_ones_that_are() {
        let none = SessionLimits::default();
        let own =
            Sessions { queued_bytes_max: 4 << 20, keepalive_ms: 100_000, ..Sessions::default() };
        let over = |limits: SessionLimits| {
            assert_eq!(limits.check(), Ok(()));
            let both = limits.over(&own);
            assert_eq!(both.check(), Ok(()), "{both:?}");
            both
        };
        let wide = over(SessionLimits { queue_bytes_max: Some(1 << 40), ..none });
        assert_eq!((wide.queue_bytes_max, wide.queued_bytes_max), (4 << 20, 4 << 20));
        let narrow = over(SessionLimits { queued_bytes_max: Some(1 << 20), ..none });
        assert_eq!((narrow.queue_bytes_max, narrow.queued_bytes_max), (1 << 20, 1 << 20));
        let late = over(SessionLimits { keepalive_ms: Some(119_999), ..none });
        assert_eq!((late.keepalive_ms, late.keepalive_jitter_ms), (119_999, 0));
        let jittery = over(SessionLimits { keepalive_jitter_ms: Some(119_998), ..none });
        assert_eq!((jittery.keepalive_ms, jittery.keepalive_jitter_ms), (1, 119_998));
    }

    #[test]
    fn limits_are_refused_only_where_no_dataplane_could_take_them() {
        let none = SessionLimits::default();
        let good = [
            SessionLimits { queue_bytes_max: Some(1 << 40), ..none },
            SessionLimits { queued_bytes_max: Some(1 << 20), ..none },
            SessionLimits { keepalive_ms: Some(119_999), ..none },
            SessionLimits { keepalive_jitter_ms: Some(119_998), ..none },
            SessionLimits { write_timeout_ms: Some(0), ..none },
        ];
        assert!(good.iter().all(|limits| limits.check().is_ok()));
        let bad = [
            SessionLimits { queue_bytes_max: Some(1), ..none },
            SessionLimits { queued_bytes_max: Some(1), ..none },
            SessionLimits {
                queue_bytes_max: Some(1 << 21),
                queued_bytes_max: Some(1 << 20),
                ..none
            },
            SessionLimits { keepalive_ms: Some(0), ..none },
            SessionLimits { keepalive_jitter_ms: Some(119_999), ..none },
            SessionLimits { keepalive_ms: Some(60_000), keepalive_jitter_ms: Some(60_000), ..none },
        ];
        assert!(bad.iter().all(|limits| limits.check().is_err()));
    }
}
