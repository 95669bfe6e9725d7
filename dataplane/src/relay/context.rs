//! What the parts of a worker share in a round: the fabric, counters, buffers and whom to flush.
//!
//! Owns no session and no driver, so that sessions and their policy need not know the worker that
//! calls them.

use std::sync::Arc;

use proto::derp::{Pool, Pushed};
use proto::tick::Tick;

use super::{Fabric, Peer};
use crate::io::Socket;
use crate::observe::CoreCounters;

/// What acting on a frame needs besides the session.
#[derive(Debug)]
pub(crate) struct Context<S> {
    pub(crate) fabric: Arc<Fabric<S>>,
    pub(crate) counters: Arc<CoreCounters>,
    pub(crate) pool: Pool,
    /// Peers to flush at the end of the round.
    pub(crate) dirty: Vec<Arc<Peer<S>>>,
    /// When the last wait was over. What a wait brings is still judged by the time before it.
    pub(crate) now: Tick,
}

impl<S: Socket> Context<S> {
    /// Queues a frame of ours for `peer`.
    pub(crate) fn push_control(&mut self, peer: &Arc<Peer<S>>, frame: &[u8]) -> Pushed {
        let pushed = peer.outbox().push_control(frame, &mut self.pool);
        if pushed == Pushed::Schedule {
            self.dirty.push(Arc::clone(peer));
        }
        pushed
    }
}

impl<S> AsMut<Pool> for Context<S> {
    #[inline]
    fn as_mut(&mut self) -> &mut Pool {
        &mut self.pool
    }
}
