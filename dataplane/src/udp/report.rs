//! What core 0 tells the keeper of the fast path: the flows that the relay has made or ended.
//!
//! Owns the way there, which is bounded and never waits: what finds it full is left out, and the
//! keeper gets the whole truth at the next tick instead. The switch of core 0 writes it.

use std::sync::Arc;

use crossbeam_channel::Sender;
use mio::Waker;
use proto::wireguard::{FlowChange, FlowKey, FlowTarget, LinkId, Session};

/// Reports that may wait for the keeper.
pub const REPORTS_MAX: usize = 1024;

/// News for the keeper.
#[derive(Debug)]
pub enum Report {
    /// These changes, in order, and all sessions that each link they touch has now.
    Changed {
        /// As every core got them.
        changes: Arc<[FlowChange]>,
        /// Empty unless [`Reporter::sessions`].
        sessions: Vec<(LinkId, Vec<Session>)>,
    },
    /// All there is.
    Everything {
        /// Every flow.
        flows: Vec<(FlowKey, FlowTarget)>,
        /// Every session by its link. Empty unless [`Reporter::sessions`].
        sessions: Vec<(LinkId, Vec<Session>)>,
    },
}

/// Core 0's end.
#[derive(Debug)]
pub struct Reporter {
    reports: Sender<Report>,
    bell: Arc<Waker>,
    /// Whether the keeper wants sessions, too.
    pub(super) sessions: bool,
}

impl Reporter {
    /// Writes to `reports` and rings `bell`; with `sessions` if the keeper is to know them.
    #[must_use]
    pub const fn new(reports: Sender<Report>, bell: Arc<Waker>, sessions: bool) -> Self {
        Self { reports, bell, sessions }
    }

    /// Sends a report. `false` if too many wait, or nobody reads them.
    pub(super) fn send(&self, report: Report) -> bool {
        let sent = self.reports.try_send(report).is_ok();
        // A bell that fails to ring is looked after by the keeper's own clock.
        let _ = self.bell.wake();
        sent
    }
}
