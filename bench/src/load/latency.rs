//! Latencies of one window, as a whole and slice by slice.
//!
//! A kernel thread that takes a core for some milliseconds twice a second owns the 99th percentile of a
//! whole window, whoever is measured. The median over short slices says what a typical moment is like; it
//! hides what happens in fewer than half of the slices, so both are told.

use anyhow::Result;
use hdrhistogram::Histogram;

/// Longest latency that is told apart from others, in nanoseconds.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Length of a slice in nanoseconds.
const SLICE_NS: u64 = 100_000_000;

/// See the module.
pub(crate) struct Latency {
    whole: Histogram<u64>,
    slice: Histogram<u64>,
    /// When the current slice is over, in nanoseconds since the run's start.
    slice_end: u64,
    /// The 99th percentile of every slice so far, in nanoseconds.
    slices_p99: Vec<u64>,
}

impl Latency {
    /// Nothing recorded; slices are counted from the run's start.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            whole: Histogram::new_with_max(LATENCY_NS_MAX, 3)?,
            slice: Histogram::new_with_max(LATENCY_NS_MAX, 3)?,
            slice_end: SLICE_NS,
            slices_p99: Vec::new(),
        })
    }

    /// Records a frame that was due at `scheduled` and came at `now`.
    #[inline]
    pub(crate) fn record(&mut self, scheduled: u64, now: u64) {
        if now >= self.slice_end {
            self.end_slice();
            self.slice_end = now - now % SLICE_NS + SLICE_NS;
        }
        self.slice.saturating_record(now.saturating_sub(scheduled));
    }

    /// Ends the current slice. Figures cover what was recorded before.
    pub(crate) fn end_slice(&mut self) {
        if !self.slice.is_empty() {
            self.slices_p99.push(self.slice.value_at_quantile(0.99));
            // Both have the same bounds.
            let _ = self.whole.add(&self.slice);
            self.slice.reset();
        }
    }

    /// Of the whole window, in microseconds.
    pub(crate) fn quantile_us(&self, at: f64) -> f64 {
        self.whole.value_at_quantile(at) as f64 / 1e3
    }

    /// The longest of the window, in microseconds.
    pub(crate) fn max_us(&self) -> f64 {
        self.whole.max() as f64 / 1e3
    }

    /// The median of the slices' 99th percentiles, in microseconds.
    pub(crate) fn typical_p99_us(&self) -> f64 {
        let mut slices = self.slices_p99.clone();
        slices.sort_unstable();
        slices.get(slices.len() / 2).map_or(0.0, |p99| *p99 as f64 / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_slice_is_in_the_whole_but_not_typical() {
        let mut latency = Latency::new().expect("bounds");
        for frame in 0..10_000_u64 {
            let due = frame * 100_000;
            let late = if due / SLICE_NS == 3 { 5_000_000 } else { 20_000 };
            latency.record(due, due + late);
        }
        latency.end_slice();
        assert!(latency.typical_p99_us() < 21.0);
        assert!(latency.quantile_us(0.99) > 4_900.0 && latency.max_us() > 4_900.0);
        assert!(latency.quantile_us(0.5) < 21.0);
    }

    #[test]
    fn a_silent_run_has_no_latency() {
        let mut latency = Latency::new().expect("bounds");
        latency.end_slice();
        assert_eq!((latency.typical_p99_us(), latency.max_us()), (0.0, 0.0));
    }
}
