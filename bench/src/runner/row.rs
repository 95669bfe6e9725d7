//! One row of a table: which figure of which experiment, against whom, and what is asked of it.
//!
//! Owns the words, not the rows: each comparison has its own. A row without a goal is there to be read.

use super::Subject;

/// Which way is better, and what a row must and should reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// At least so much.
    AtLeast(f64, f64),
    /// At most so much.
    AtMost(f64, f64),
    /// Nothing is asked.
    Told,
}

/// One row for each subject of ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// What it says.
    pub(crate) what: &'static str,
    /// Whose samples.
    pub(crate) experiment: &'static str,
    /// Which figure of them.
    pub(crate) figure: &'static str,
    /// What the same is over the whole window, if the figure is the median of its slices.
    pub(crate) window: Option<&'static str>,
    /// Which of ours it is about; each of them if `None`.
    pub(crate) of: Option<Subject>,
    /// Whose same figure of the same round it is divided by; by nothing if `None`.
    pub(crate) against: Option<Subject>,
    /// What is asked.
    pub(crate) goal: Goal,
}

/// A row about each of ours.
pub(crate) const fn row(
    what: &'static str,
    experiment: &'static str,
    figure: &'static str,
    against: Option<Subject>,
    goal: Goal,
) -> Row {
    Row { what, experiment, figure, window: None, of: None, against, goal }
}

impl Row {
    /// This row, with `figure` of the whole window printed beside it.
    pub(crate) const fn beside(self, figure: &'static str) -> Self {
        Self { window: Some(figure), ..self }
    }

    /// This row, about `subject` alone.
    pub(crate) const fn of(self, subject: Subject) -> Self {
        Self { of: Some(subject), ..self }
    }
}
