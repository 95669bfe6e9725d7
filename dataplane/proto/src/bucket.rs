//! An integer token bucket.
//!
//! Owns the count of tokens and the moment up to which they are counted. The rate is an argument,
//! so a table of buckets costs 16 bytes each and a new rate binds at once. It never grants more
//! than `burst` plus `per_second` times the time that passed. The STUN responder calls it; so does
//! whatever else has to be slowed down per source.

use crate::tick::Tick;

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// How fast a bucket fills and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens gained per second. Above 10^9 a token takes less than the clock's step, which costs
    /// accuracy and nothing else.
    pub per_second: u32,
    /// Tokens held at most.
    pub burst: u32,
}

/// Tokens, and the moment up to which time has been turned into them.
/// The default is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// At most `burst` after every [`Bucket::take`] with that rate.
    tokens: u32,
    /// Never later than the latest `now` seen; time between it and `now` is less than one token's
    /// worth, or has not been asked about.
    last: Tick,
}

const _: () = assert!(size_of::<Bucket>() == 16);

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub const fn full(rate: Rate, now: Tick) -> Self {
        Self { tokens: rate.burst, last: now }
    }

    /// Takes `n` tokens if there are as many, and says whether it did. A `now` before the previous
    /// one counts as no time passed.
    #[inline]
    pub fn take(&mut self, n: u32, now: Tick, rate: Rate) -> bool {
        self.fill(now, rate);
        debug_assert!(self.tokens <= rate.burst);
        match self.tokens.checked_sub(n) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }

    /// How many tokens there are to be taken.
    #[inline]
    pub fn tokens(&mut self, now: Tick, rate: Rate) -> u32 {
        self.fill(now, rate);
        self.tokens.min(rate.burst)
    }

    #[inline]
    fn fill(&mut self, now: Tick, rate: Rate) {
        // A product that saturates stands for 1.8 * 10^10 tokens, more than any burst.
        let elapsed = now.0.saturating_sub(self.last.0);
        let gained = elapsed.saturating_mul(u64::from(rate.per_second)) / SECOND;
        let tokens = u64::from(self.tokens).saturating_add(gained);
        if tokens >= u64::from(rate.burst) {
            self.tokens = rate.burst;
            self.last = self.last.max(now);
        } else if gained > 0 {
            // The fraction of a token stays in `last`. Rounding up keeps the promise of the header:
            // the bucket may run slow by under a nanosecond per call, never fast.
            self.tokens = tokens as u32;
            self.last = Tick(self.last.0 + (gained * SECOND).div_ceil(u64::from(rate.per_second)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: Rate = Rate { per_second: 1000, burst: 2000 };

    #[test]
    fn starts_full_and_refills_at_its_rate() {
        let mut bucket = Bucket::full(RATE, Tick::ZERO);
        assert!(bucket.take(2000, Tick::ZERO, RATE));
        assert!(!bucket.take(1, Tick(999_999), RATE));
        assert!(bucket.take(1, Tick(1_000_000), RATE));
        assert!(!bucket.take(1, Tick(1_999_999), RATE));
        assert_eq!(bucket.tokens(Tick(SECOND + 1_000_000), RATE), 1000);
        assert!(bucket.take(1000, Tick(SECOND + 1_000_000), RATE));
        assert_eq!(bucket.tokens(Tick(SECOND + 1_000_000), RATE), 0);
        assert!(!bucket.take(1, Tick(SECOND + 1_000_000), RATE));
    }

    #[test]
    fn keeps_fractions_of_a_token_between_calls() {
        let rate = Rate { per_second: 3, burst: 1 };
        let mut bucket = Bucket::full(rate, Tick::ZERO);
        assert!(bucket.take(1, Tick::ZERO, rate));
        assert!(!bucket.take(1, Tick(200_000_000), rate));
        assert!(bucket.take(1, Tick(333_333_334), rate));
    }

    #[test]
    fn holds_no_more_than_its_burst_however_long_it_waits() {
        let mut bucket = Bucket::full(RATE, Tick::ZERO);
        assert!(!bucket.take(2001, Tick::NEVER, RATE));
        assert!(bucket.take(2000, Tick::NEVER, RATE));
        assert!(!bucket.take(1, Tick::NEVER, RATE));
    }

    #[test]
    fn a_lower_rate_binds_at_once_and_zero_never_fills() {
        let mut bucket = Bucket::full(RATE, Tick::ZERO);
        let none = Rate { per_second: 0, burst: 1 };
        assert!(!bucket.take(2, Tick::ZERO, none));
        assert!(bucket.take(1, Tick::ZERO, none));
        assert!(!bucket.take(1, Tick::NEVER, none));
    }

    proptest! {
        #[test]
        fn never_grants_more_than_burst_and_rate_allow(
            per_second in 0..=u32::MAX,
            burst in 0..=100_000_u32,
            calls in prop::collection::vec((0..=50_000_u32, 0..=3 * SECOND), 0..200),
        ) {
            let rate = Rate { per_second, burst };
            let mut bucket = Bucket::full(rate, Tick::ZERO);
            let (mut now, mut granted) = (0, 0_u128);
            for (n, pause) in calls {
                now += pause;
                granted += u128::from(if bucket.take(n, Tick(now), rate) { n } else { 0 });
                let allowed = u128::from(now) * u128::from(per_second) / u128::from(SECOND);
                prop_assert!(granted <= u128::from(burst) + allowed);
            }
        }

        #[test]
        fn any_order_of_moments_is_safe(
            per_second in any::<u32>(),
            burst in any::<u32>(),
            calls in prop::collection::vec((any::<u32>(), any::<u64>()), 0..50),
        ) {
            let rate = Rate { per_second, burst };
            let mut bucket = Bucket::full(rate, Tick::ZERO);
            for (n, now) in calls {
                bucket.take(n, Tick(now), rate);
                prop_assert!(bucket.tokens <= burst);
            }
        }
    }
}
