//! What a measurement met besides its figures: wrong frames, closed connections, a generator at its limit.
//!
//! Owns the list and its words. A figure with a mark is still a figure. Each comparison says what of it is
//! expected of whom, `report` prints the marks.

use serde::Serialize;

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
    /// Packets went another way than the subject's.
    pub(crate) strayed: bool,
}

impl Faults {
    /// Both of `self` and `other`.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            wrong_frames: self.wrong_frames + other.wrong_frames,
            closed: self.closed + other.closed,
            lost_frames: self.lost_frames + other.lost_frames,
            failed_connects: self.failed_connects + other.failed_connects,
            generator_busy: self.generator_busy || other.generator_busy,
            strayed: self.strayed || other.strayed,
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
        if self.strayed {
            marks.push("not all packets went this way".to_owned());
        }
        marks
    }
}
