//! What core 0 tells the keeper of the fast path: the flows that the relay has made or ended.
//!
//! Owns the way there, which is bounded and never waits: what finds it full is left out, and the
//! keeper gets the whole truth at the next tick instead. The switch of core 0 writes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crossbeam_channel::{Sender, TrySendError};
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
        /// Empty unless the keeper asked for them.
        sessions: Vec<(LinkId, Vec<Session>)>,
    },
    /// All there is.
    Everything {
        /// Links that have ended since the last report, whose numbers others may have by now.
        forgotten: Vec<LinkId>,
        /// Every flow.
        flows: Vec<(FlowKey, FlowTarget)>,
        /// Every session by its link. Empty unless the keeper asked for them.
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
    /// Whether the keeper has ended, and nobody will read again.
    gone: AtomicBool,
}

impl Reporter {
    /// Writes to `reports` and rings `bell`; with `sessions` if the keeper is to know them.
    #[must_use]
    pub const fn new(reports: Sender<Report>, bell: Arc<Waker>, sessions: bool) -> Self {
        Self { reports, bell, sessions, gone: AtomicBool::new(false) }
    }

    /// Whether a report would be taken now. Asked before one is made, which may take a while.
    pub(super) fn has_room(&self) -> bool {
        !self.reports.is_full() && !self.gone.load(Relaxed)
    }

    /// Sends a report. `false` if too many wait, or nobody reads them.
    pub(super) fn send(&self, report: Report) -> bool {
        match self.reports.try_send(report) {
            Ok(()) => {
                // A bell that fails to ring is looked after by the keeper's own clock.
                let _ = self.bell.wake();
                true
            }
            Err(TrySendError::Full(_)) => false,
            Err(TrySendError::Disconnected(_)) => {
                self.gone.store(true, Relaxed);
                tracing::error!(
                    "the keeper of the fast path has ended; new flows go by the sockets"
                );
                false
            }
        }
    }
}
