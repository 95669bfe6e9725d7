//! Rare commands to a worker, with a bell that is only rung while the worker sleeps.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_channel::{Receiver, Sender, unbounded};
use proto::derp::Framing;
use proto::ws::Decoder;
use wire::key::Key;

use super::Tuning;
use crate::io::Wake;
use crate::tls::{Rx, Tx};
use crate::udp::Errand;

/// A connection that has introduced itself, on its way from the front to a relay core.
#[derive(Debug)]
pub struct Newcomer<S> {
    /// The connection.
    pub socket: S,
    /// Both directions of TLS, or `None` in clear.
    pub tls: Option<(Rx, Tx)>,
    /// How frames lie in the stream.
    pub framing: Framing,
    /// The client's public key, proved by its box.
    pub key: Key,
    /// The whole `ServerInfo` frame, sent before anything else.
    pub greeting: Vec<u8>,
    /// Bytes of the stream that were read already, in order.
    pub early: Stream,
    /// The WebSocket framing as far as it was read; present exactly under [`Framing::WebSocket`].
    pub decoder: Option<Box<Decoder>>,
    /// The client was sent here although another node is its ideal one.
    pub not_ideal: bool,
}

/// Bytes read ahead of the hand-over.
#[derive(Debug, Default)]
pub struct Stream {
    /// Plaintext behind the greeting.
    pub plain: Vec<u8>,
    /// Ciphertext behind that, perhaps with a record cut short at its end. Empty in clear.
    pub sealed: Vec<u8>,
}

/// What a worker can be asked to do.
#[derive(Debug)]
pub enum Command<S> {
    /// Serve this connection from now on.
    Adopt(Box<Newcomer<S>>),
    /// Tell every client, and those still on their way, that the relay restarts, and answer STUN no
    /// longer.
    Drain {
        /// When to come back, in milliseconds.
        reconnect_in_ms: u32,
        /// How long to try, in milliseconds.
        try_for_ms: u32,
    },
    /// Answer STUN again: the relay goes on.
    Resume,
    /// Go by these bounds and times of sessions.
    Tune(Tuning),
    /// Something for the UDP side.
    Udp(Errand),
    /// End every session and return from the loop.
    Stop,
}

/// See the module. The queue is bounded by the number of sessions that may exist, and by what the
/// UDP sides let wait for each other.
#[derive(Debug)]
pub(crate) struct Mailbox<S> {
    sender: Sender<Command<S>>,
    receiver: Receiver<Command<S>>,
    asleep: AtomicBool,
    bell: OnceLock<Bell>,
}

struct Bell(Arc<dyn Wake>);

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bell")
    }
}

impl<S> Default for Mailbox<S> {
    fn default() -> Self {
        let (sender, receiver) = unbounded();
        Self { sender, receiver, asleep: AtomicBool::new(true), bell: OnceLock::new() }
    }
}

impl<S> Mailbox<S> {
    pub(crate) fn post(&self, command: Command<S>) {
        // The receiver lives as long as the sender does, beside it.
        let _ = self.sender.send(command);
        self.nudge();
    }

    /// Wakes the worker if it sleeps, so that it makes another round.
    pub(crate) fn nudge(&self) {
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(bell) = self.bell.get()
        {
            bell.0.wake();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.receiver.len()
    }

    pub(crate) fn hang_bell(&self, bell: Arc<dyn Wake>) {
        // A worker hangs its bell once, when it is made.
        let _ = self.bell.set(Bell(bell));
    }

    pub(crate) fn take(&self) -> Option<Command<S>> {
        self.receiver.try_recv().ok()
    }

    /// Announces sleep; false if a command has come meanwhile and the worker must not block.
    pub(crate) fn may_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let may = self.receiver.is_empty();
        if !may {
            self.asleep.store(false, Ordering::SeqCst);
        }
        may
    }

    pub(crate) fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }
}
