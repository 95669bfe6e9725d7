//! What a latency is worth: the bands of Coder's documents and dashboard, and their requirements.
//!
//! The tables, the status page and `netcheck` colour and judge by these and nothing else.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Below this many milliseconds a latency is good: green.
pub const GOOD_BELOW_MS: u32 = 150;
/// Above this many milliseconds a latency is bad: red.
pub const BAD_ABOVE_MS: u32 = 300;
/// What is required of a round trip: less than this many milliseconds (Coder, networking docs).
pub const ROUND_TRIP_BELOW_MS: u32 = 400;
/// What is required of a path: less loss than this, in tenths of a per cent (Coder, networking docs).
pub const LOSS_BELOW_PER_MILLE: u32 = 5;

/// How good a latency is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Band {
    /// Green.
    Good,
    /// Yellow.
    Fair,
    /// Red.
    Bad,
}

impl Band {
    /// The band of a latency in milliseconds.
    #[must_use]
    pub fn of(ms: f64) -> Self {
        if ms < f64::from(GOOD_BELOW_MS) {
            Self::Good
        } else if ms <= f64::from(BAD_ABOVE_MS) {
            Self::Fair
        } else {
            Self::Bad
        }
    }
}

/// How long a visit's questions took to be answered, in milliseconds. What was not asked, or not
/// answered, is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Latencies {
    /// STUN over IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stun_v4: Option<f64>,
    /// STUN over IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stun_v6: Option<f64>,
    /// A latency check over an open connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https: Option<f64>,
    /// A ping in an open DERP session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derp: Option<f64>,
}

impl Latencies {
    /// The one to show where there is room for one: that of what the target is there for.
    #[must_use]
    pub fn shown(&self) -> Option<f64> {
        self.derp.or(self.https).or(self.stun())
    }

    /// STUN, over the faster family.
    #[must_use]
    pub fn stun(&self) -> Option<f64> {
        least(self.stun_v4, self.stun_v6)
    }

    /// The least of both, question by question.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self {
            stun_v4: least(self.stun_v4, other.stun_v4),
            stun_v6: least(self.stun_v6, other.stun_v6),
            https: least(self.https, other.https),
            derp: least(self.derp, other.derp),
        }
    }
}

fn least(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// A duration in milliseconds, to the microsecond: finer than any network is steady.
#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    u32::try_from(time.as_micros()).map_or(f64::INFINITY, |micros| f64::from(micros) / 1000.0)
}

/// A latency for people: a decimal below ten milliseconds, none above.
#[must_use]
pub fn words(ms: f64) -> String {
    match ms < 9.95 {
        true => format!("{ms:.1} ms"),
        false => format!("{ms:.0} ms"),
    }
}

/// Whether a round trip is as required.
#[must_use]
pub fn is_short_enough(ms: f64) -> bool {
    ms < f64::from(ROUND_TRIP_BELOW_MS)
}

/// Whether so few of `sent` packets were lost as is required.
#[must_use]
pub fn is_whole_enough(sent: u32, lost: u32) -> bool {
    sent > 0 && u64::from(lost) * 1000 < u64::from(sent) * u64::from(LOSS_BELOW_PER_MILLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_begin_where_the_documents_say() {
        for (ms, band) in [
            (0.0, Band::Good),
            (149.9, Band::Good),
            (150.0, Band::Fair),
            (300.0, Band::Fair),
            (300.1, Band::Bad),
            (f64::INFINITY, Band::Bad),
        ] {
            assert_eq!(Band::of(ms), band, "{ms}");
        }
        assert!(is_short_enough(399.9) && !is_short_enough(400.0));
    }

    #[test]
    fn one_lost_of_two_hundred_is_one_too_many() {
        assert!(is_whole_enough(200, 0) && is_whole_enough(1000, 4));
        assert!(!is_whole_enough(200, 1) && !is_whole_enough(1000, 5) && !is_whole_enough(0, 0));
    }

    #[test]
    fn people_read_as_many_digits_as_mean_something() {
        let shown = [0.04, 3.12, 9.96, 12.4, 1234.5].map(words);
        assert_eq!(shown, ["0.0 ms", "3.1 ms", "10 ms", "12 ms", "1234 ms"]);
    }
}
