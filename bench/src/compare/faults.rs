//! What a measurement met besides its figures: wrong frames, closed connections, a generator at its limit.
//!
//! Owns what of that is expected of whom and what is not. A figure with a mark is still a figure; what a
//! server must never do fails the run. `experiment` asks it about each sample, `report` prints the marks.

use super::experiment::Shape;
use crate::runner::faults::Faults;
use crate::runner::{Figures, Subject};

/// Share of its time an open loop's generator may be busy before the figures are its own.
const BUSY_MAX: f64 = 0.9;

/// What `figures` of `subject` under `shape` tell.
pub(crate) fn of(shape: &Shape, subject: Subject, figures: &Figures) -> Faults {
    let expected_closes = subject == Subject::Derper
        && matches!(shape, Shape::Overload | Shape::StoppedReader | Shape::Storm { .. });
    let overload = matches!(shape, Shape::Overload);
    let unless = |expected: bool, count: u64| if expected { 0 } else { count };
    let busy = |name: &&str| figures.get(*name).is_some_and(|busy| *busy > BUSY_MAX);
    Faults {
        wrong_frames: total(figures, "errors"),
        closed: unless(expected_closes, total(figures, "closed")),
        lost_frames: unless(overload, total(figures, "lost") + total(figures, "missing")),
        failed_connects: total(figures, "failed"),
        generator_busy: open_loops(shape).iter().any(busy),
        strayed: false,
    }
}

/// The sum of a count over all runs of one sample: `closed`, `calm_closed` and so on.
fn total(figures: &Figures, count: &str) -> u64 {
    let own = |name: &str| {
        name.strip_suffix(count).is_some_and(|run| run.is_empty() || run.ends_with('_'))
    };
    figures.iter().filter(|(name, _)| own(name)).map(|(_, figure)| *figure as u64).sum()
}

/// How busy the generator was in the open loops of `shape`; a closed loop is meant to keep it busy.
fn open_loops(shape: &Shape) -> &'static [&'static str] {
    match shape {
        Shape::Sparse { .. } => &["generator_busy"],
        // Twice the peak is more than it can send, too: the row is marked and stands.
        Shape::Overload => &["over_generator_busy"],
        Shape::StoppedReader | Shape::Storm { .. } => &["generator_busy", "calm_generator_busy"],
        Shape::Saturated { .. }
        | Shape::Plain
        | Shape::Idle { .. }
        | Shape::TlsOnly
        | Shape::Connects
        | Shape::TwoCores => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(shape: &Shape, subject: Subject, figures: &[(&str, f64)]) -> Faults {
        let figures = figures.iter().map(|(name, figure)| ((*name).to_owned(), *figure));
        of(shape, subject, &figures.collect())
    }

    #[test]
    fn counts_of_every_run_are_summed() {
        let figures = [("errors", 1.0), ("over_errors", 2.0), ("over_closed", 3.0), ("lost", 9.0)];
        let faults = faults(&Shape::Overload, Subject::Epoll, &figures);
        assert_eq!((faults.wrong_frames, faults.closed, faults.lost_frames), (3, 3, 0));
        assert!(faults.are_fatal());
        assert_eq!(faults.marks(), ["3 wrong frames", "3 connections closed"]);
    }

    #[test]
    fn derper_may_close_under_the_loads_that_make_it() {
        let closed = [("closed", 2.0)];
        assert!(!faults(&Shape::StoppedReader, Subject::Derper, &closed).are_fatal());
        assert!(faults(&Shape::StoppedReader, Subject::Uring, &closed).are_fatal());
        let saturated = Shape::Saturated { size: 64, pairs: 4 };
        assert_eq!(faults(&saturated, Subject::Derper, &closed).marks(), ["2 connections closed"]);
    }

    #[test]
    fn a_busy_generator_counts_in_open_loops_only() {
        let busy = [("generator_busy", 0.99)];
        assert!(faults(&Shape::Storm { rate: 1.0 }, Subject::Uring, &busy).generator_busy);
        assert!(!faults(&Shape::Overload, Subject::Uring, &busy).generator_busy);
        assert!(
            faults(&Shape::Overload, Subject::Uring, &[("over_generator_busy", 1.0)])
                .generator_busy
        );
        assert!(!faults(&Shape::TwoCores, Subject::Uring, &busy).generator_busy);
    }
}
