//! One client's sending side, shared by every worker.
//!
//! Any worker may push under the short queue lock. Whoever takes a flight off holds the baton: the
//! cipher lock is then its own until the flight lands. The receiving side lives in `session`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use proto::derp::{Outbox, SessionId};
use wire::key::Key;

use crate::io::Socket;
use crate::observe::CloseReason;
use crate::tls::Tx;

/// See the module.
#[derive(Debug)]
pub struct Peer<S> {
    /// The client's public key.
    pub key: Key,
    /// The session that this is the sending side of.
    pub id: SessionId,
    outbox: Mutex<Outbox>,
    egress: Mutex<Egress<S>>,
    /// Whether packets for `key` go here; kept by the directory, read by the owning session.
    active: AtomicBool,
    /// The expanded sending key is held, and some worker has it on its list to cool.
    warm: AtomicBool,
    /// Why the relay itself ended the connection, first reason first.
    cut: OnceLock<CloseReason>,
}

/// What only the holder of the baton uses.
#[derive(Debug)]
pub(crate) struct Egress<S> {
    /// `None` once the session has ended, so that no route keeps a descriptor open.
    pub(crate) socket: Option<S>,
    /// `None` without TLS.
    pub(crate) tls: Option<Tx>,
    /// The connection ends when the outbox runs empty.
    pub(crate) end_when_empty: bool,
}

impl<S: Socket> Peer<S> {
    pub(crate) fn new(key: Key, id: SessionId, outbox: Outbox, socket: S, tls: Option<Tx>) -> Self {
        Self {
            key,
            id,
            outbox: Mutex::new(outbox),
            egress: Mutex::new(Egress { socket: Some(socket), tls, end_when_empty: false }),
            active: AtomicBool::new(true),
            warm: AtomicBool::new(false),
            cut: OnceLock::new(),
        }
    }

    #[inline]
    pub(crate) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(crate) fn egress(&self) -> MutexGuard<'_, Egress<S>> {
        self.egress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection: both directions fail from here on, on every worker.
    pub(crate) fn shutdown(&self) {
        if let Some(socket) = &self.egress().socket {
            socket.shutdown();
        }
    }

    /// Ends the connection; its own worker counts it under `why`.
    pub(crate) fn cut(&self, why: CloseReason) {
        // An earlier reason stays.
        let _ = self.cut.set(why);
        self.shutdown();
    }

    /// Why [`Peer::cut`] ended the connection, if it did.
    pub(crate) fn cut_reason(&self) -> Option<CloseReason> {
        self.cut.get().copied()
    }

    /// Lets go of socket and cipher: the session has ended, though routes may still lead here.
    pub(crate) fn release(&self) {
        let mut egress = self.egress();
        if let Some(socket) = egress.socket.take() {
            socket.shutdown();
        }
        egress.tls = None;
    }

    /// Whether this is the active session of its key.
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    pub(crate) fn set_active(&self, active: bool) {
        self.active.store(active, Ordering::Relaxed);
    }

    /// Marks the sending key as in use; true if it was not.
    #[inline]
    pub(crate) fn warm_up(&self) -> bool {
        !self.warm.load(Ordering::Relaxed) && !self.warm.swap(true, Ordering::Relaxed)
    }

    /// Lets the sending key's expanded form go. It must be called by the worker that saw
    /// [`Peer::warm_up`] return true.
    pub(crate) fn cool_down(&self) {
        self.warm.store(false, Ordering::Relaxed);
        if let Some(tls) = &mut self.egress().tls {
            tls.cool();
        }
    }
}
