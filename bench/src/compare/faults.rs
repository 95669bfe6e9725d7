//! What a measurement met besides its figures: wrong frames, closed connections, a generator at its limit.
//!
//! Owns what of that is expected of whom and what is not. A figure with a mark is still a figure; what a
//! server must never do fails the run. `experiment` asks it about each sample, `report` prints the marks.

use super::experiment::{Figures, Shape};
use super::server::Subject;
use serde::Serialize;

/// Share of its time an open loop's generator may be busy before the figures are its own.
const BUSY_MAX: f64 = 0.9;

/// What one sample met; all zero when nothing has to be said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Faults {
    /// Frames out of order, from a wrong source or with wrong content.
    pub(crate) wrong_frames: u64,
    /// Connections the server ended, but for those that the load makes derper end.
    pub(crate) closed: u64,
    /// Frames that never came where nothing has to be dropped.
    pub(crate) lost_frames: u64,
    /// Connects that did not go all the way.
    pub(crate) failed_connects: u64,
    /// The generator was the bottleneck of an open loop.
    pub(crate) generator_busy: bool,
}

impl Faults {
    /// What `figures` of `subject` under `shape` tell.
    pub(crate) fn of(shape: &Shape, subject: Subject, figures: &Figures) -> Self {
        let expected_closes = subject == Subject::Derper
            && matches!(shape, Shape::Overload | Shape::StoppedReader | Shape::Storm { .. });
        let overload = matches!(shape, Shape::Overload);
        let unless = |expected: bool, count: u64| if expected { 0 } else { count };
        let busy = |name: &&str| figures.get(*name).is_some_and(|busy| *busy > BUSY_MAX);
        Self {
            wrong_frames: total(figures, "errors"),
            closed: unless(expected_closes, total(figures, "closed")),
            lost_frames: unless(overload, total(figures, "lost") + total(figures, "missing")),
            failed_connects: total(figures, "failed"),
            generator_busy: open_loops(shape).iter().any(busy),
        }
    }

    /// Both of `self` and `other`.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            wrong_frames: self.wrong_frames + other.wrong_frames,
            closed: self.closed + other.closed,
            lost_frames: self.lost_frames + other.lost_frames,
            failed_connects: self.failed_connects + other.failed_connects,
            generator_busy: self.generator_busy || other.generator_busy,
        }
    }

    /// Whether our server may never be measured like this: it spoiled a frame or ended a connection.
    pub(crate) fn are_fatal(self) -> bool {
        self.wrong_frames > 0 || self.closed > 0
    }

    /// What there is to say, for people.
    pub(crate) fn marks(self) -> Vec<String> {
        let counted = [
            (self.wrong_frames, "wrong frames"),
            (self.closed, "connections closed"),
            (self.lost_frames, "frames lost"),
            (self.failed_connects, "connects failed"),
        ];
        let counted = counted.iter().filter(|(count, _)| *count > 0);
        let mut marks: Vec<_> = counted.map(|(count, what)| format!("{count} {what}")).collect();
        if self.generator_busy {
            marks.push("generator busy".to_owned());
        }
        marks
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

    fn of(shape: &Shape, subject: Subject, figures: &[(&str, f64)]) -> Faults {
        let figures = figures.iter().map(|(name, figure)| ((*name).to_owned(), *figure));
        Faults::of(shape, subject, &figures.collect())
    }

    #[test]
    fn counts_of_every_run_are_summed() {
        let figures = [("errors", 1.0), ("over_errors", 2.0), ("over_closed", 3.0), ("lost", 9.0)];
        let faults = of(&Shape::Overload, Subject::Epoll, &figures);
        assert_eq!((faults.wrong_frames, faults.closed, faults.lost_frames), (3, 3, 0));
        assert!(faults.are_fatal());
        assert_eq!(faults.marks(), ["3 wrong frames", "3 connections closed"]);
    }

    #[test]
    fn derper_may_close_under_the_loads_that_make_it() {
        let closed = [("closed", 2.0)];
        assert!(!of(&Shape::StoppedReader, Subject::Derper, &closed).are_fatal());
        assert!(of(&Shape::StoppedReader, Subject::Uring, &closed).are_fatal());
        let saturated = Shape::Saturated { size: 64, pairs: 4 };
        assert_eq!(of(&saturated, Subject::Derper, &closed).marks(), ["2 connections closed"]);
    }

    #[test]
    fn a_busy_generator_counts_in_open_loops_only() {
        let busy = [("generator_busy", 0.99)];
        assert!(of(&Shape::Storm { rate: 1.0 }, Subject::Uring, &busy).generator_busy);
        assert!(!of(&Shape::Overload, Subject::Uring, &busy).generator_busy);
        assert!(
            of(&Shape::Overload, Subject::Uring, &[("over_generator_busy", 1.0)]).generator_busy
        );
        assert!(!of(&Shape::TwoCores, Subject::Uring, &busy).generator_busy);
    }
}
