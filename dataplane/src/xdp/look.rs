//! A closer look at the programs: some packets traced, the time in them measured, for a while.
//!
//! Owns the clocks that the programs go by, and the drawing up of what the kernel tells. It never
//! sees a payload. The loader has the maps; whoever watches calls it.

use std::time::Duration;

use rustix::time::{ClockId, clock_getres, clock_gettime};
use wire::maps::{ROWS, Watching, feature};

/// Which looks are taken from now on, in place of those before. All of them end by themselves, in
/// the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Of so many packets to served ports one is told of, at random; 0 for none.
    pub trace_one_in: u32,
    /// How long packets are traced.
    pub trace_for: Duration,
    /// How long the time is measured that the programs take for each packet; zero for not at all.
    pub time_for: Duration,
}

impl Watch {
    /// As the map has it, and the features that make the programs look into it.
    pub(super) fn begin(&self) -> (Watching, u32) {
        let mut watching = Watching::default();
        let mut features = 0;
        if self.trace_one_in > 0 && !self.trace_for.is_zero() {
            watching.trace_until_ns = until_ns(self.trace_for);
            watching.chance = Watching::one_in(self.trace_one_in);
            features |= feature::TRACE;
        }
        if !self.time_for.is_zero() {
            watching.time_until_ns = until_ns(self.time_for);
            features |= feature::TIME;
        }
        (watching, features)
    }
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// The moment on the kernel's clock that is `span` from now.
fn until_ns(span: Duration) -> u64 {
    now_ns().saturating_add(nanoseconds(span))
}

/// What lies between two ticks of the kernel, by which the programs go where a clock costs too much:
/// the coarse clock moves with them.
pub(super) fn tick_ns() -> u64 {
    let tick = clock_getres(ClockId::MonotonicCoarse);
    nanoseconds(Duration::new(tick.tv_sec as u64, tick.tv_nsec as u32))
}

/// The kernel's count of ticks, in nanoseconds. It goes as its monotonic clock does, from another
/// beginning, which only programs can tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks {
    /// By how much the count is ahead of the clock; it wraps.
    ahead_ns: u64,
}

impl Ticks {
    /// The count, which was `ticks_ns` just now.
    pub(super) fn new(ticks_ns: u64) -> Self {
        Self { ahead_ns: ticks_ns.wrapping_sub(now_ns()) }
    }

    /// What it will be in `span`.
    pub(super) fn until_ns(self, span: Duration) -> u64 {
        now_ns().wrapping_add(self.ahead_ns).saturating_add(nanoseconds(span))
    }
}

/// The clock that looks go by.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    nanoseconds(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
}

/// How long the programs took for packets to served ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// Row `n` counts those of 2^n to 2^(n + 1) - 1 ns, the first 0 too, the last all beyond.
    pub rows: [u64; ROWS as usize],
}

impl Durations {
    /// What has come since `before`.
    pub(super) fn since(mut self, before: &Self) -> Self {
        for (row, before) in self.rows.iter_mut().zip(before.rows) {
            *row = row.wrapping_sub(before);
        }
        self
    }

    /// Packets measured.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.rows.iter().sum()
    }

    /// Where a row ends: its durations are below so many nanoseconds. The last has no end.
    #[must_use]
    pub const fn end_ns(row: u32) -> Option<u64> {
        if row + 1 < ROWS { Some(1 << (row + 1)) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_asked_is_nothing_looked_at() {
        assert_eq!(Watch::default().begin(), (Watching::default(), 0));
        let unending = Watch { trace_one_in: 5, ..Watch::default() };
        assert_eq!(unending.begin().1, 0);
    }

    #[test]
    fn a_look_has_an_end() {
        let span = Duration::from_secs(60);
        let (watching, features) =
            Watch { trace_one_in: 1, trace_for: span, time_for: Duration::MAX }.begin();
        assert_eq!(features, feature::TRACE | feature::TIME);
        assert_eq!(watching.chance, u32::MAX);
        let left = watching.trace_until_ns.abs_diff(now_ns());
        assert!(left <= nanoseconds(span), "{left}");
        assert_eq!(watching.time_until_ns, u64::MAX);
    }

    #[test]
    fn the_kernel_ticks_between_100_and_1000_times_a_second() {
        assert!((1_000_000..=10_000_000).contains(&tick_ns()), "{}", tick_ns());
    }

    #[test]
    fn ticks_go_as_the_clock_does() {
        // Far ahead, as they begin 5 minutes before they wrap in 32 bits, or behind.
        for start in [u64::from(u32::MAX) * 4_000_000, 5] {
            let ticks = Ticks::new(start);
            let soon = ticks.until_ns(Duration::from_secs(5)) - start;
            assert!((5_000_000_000..60_000_000_000).contains(&soon), "{soon}");
            assert_eq!(ticks.until_ns(Duration::MAX), u64::MAX);
        }
    }

    #[test]
    fn rows_end_where_the_next_begin() {
        assert_eq!(Durations::end_ns(0), Some(2));
        assert_eq!(Durations::end_ns(9), Some(1024));
        assert_eq!(Durations::end_ns(ROWS - 1), None);
    }
}
