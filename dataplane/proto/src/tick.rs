//! The one notion of time in `proto`: nanoseconds since the process started.
//!
//! Owns [`Tick`] and its saturating arithmetic. It never reads a clock (invariant 1): the loop
//! reads one per round and every state machine takes the result as its argument `now`.

use core::time::Duration;

/// A moment, in nanoseconds since process start. 64 bits last 584 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Tick(pub u64);

const _: () = assert!(size_of::<Tick>() == 8);

impl Tick {
    /// Process start.
    pub const ZERO: Self = Self(0);
    /// The latest moment there is, as a deadline that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// Time from `earlier` to `self`, zero if `earlier` is in fact later.
    #[inline]
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The moment `after` later, [`Tick::NEVER`] if that is beyond it.
    #[inline]
    #[must_use]
    pub const fn plus(self, after: Duration) -> Self {
        let nanos = after.as_nanos();
        if nanos > u64::MAX as u128 {
            Self::NEVER
        } else {
            Self(self.0.saturating_add(nanos as u64))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_never_go_below_zero() {
        assert_eq!(Tick(5).saturating_since(Tick(3)), Duration::from_nanos(2));
        assert_eq!(Tick(3).saturating_since(Tick(5)), Duration::ZERO);
        assert_eq!(Tick::NEVER.saturating_since(Tick::ZERO), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn sums_stop_at_never() {
        assert_eq!(Tick(1).plus(Duration::from_secs(1)), Tick(1_000_000_001));
        assert_eq!(Tick(2).plus(Duration::from_nanos(u64::MAX)), Tick::NEVER);
        assert_eq!(Tick::ZERO.plus(Duration::MAX), Tick::NEVER);
    }
}
