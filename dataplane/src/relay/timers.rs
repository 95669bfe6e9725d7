//! What happens by the clock: keepalives, write time-outs, cooling of idle keys, farewells.
//!
//! Every sweep has a budget, so that a crowd of sessions costs many short rounds, not a long one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proto::tick::Tick;
use wire::derp::{self, GoneReason};
use wire::key::Key;

use super::Peer;
use super::worker::Core;
use crate::io::{Driver, Socket, Token};
use crate::observe::CloseReason;

/// Between two looks at pending flights and warm keys, in milliseconds.
const SWEEP_MS: u64 = 100;
/// Warm keys cooled per sweep, in each direction.
const COOLED_MAX: usize = 512;
/// Peers told of a departure per round.
const FAREWELLS_MAX: usize = 64;
/// Keepalives sent per round.
const KEEPALIVES_MAX: usize = 256;
/// Free send buffers of each size kept when nothing was sent between two sweeps.
const KEPT_BUFFERS: usize = 32;

/// The clockwork of one worker.
#[derive(Debug, Default)]
pub(crate) struct Timers<S> {
    keepalives: BinaryHeap<Reverse<(Tick, u64)>>,
    next_sweep: Tick,
    /// Flushes counted at the last sweep.
    flushes: u64,
    farewells: VecDeque<(Key, Vec<Arc<Peer<S>>>)>,
}

impl<S> Timers<S> {
    pub(crate) fn new() -> Self {
        Self {
            keepalives: BinaryHeap::new(),
            next_sweep: Tick::ZERO,
            flushes: 0,
            farewells: VecDeque::new(),
        }
    }

    pub(crate) fn keep_alive(&mut self, session: u64, at: Tick) {
        self.keepalives.push(Reverse((at, session)));
    }

    pub(crate) fn farewell(&mut self, key: Key, listeners: Vec<Arc<Peer<S>>>) {
        if !listeners.is_empty() {
            self.farewells.push_back((key, listeners));
        }
    }
}

impl<S: Socket> Core<S> {
    /// How long the driver may wait for something to happen.
    pub(crate) fn patience(&self) -> Option<Duration> {
        if !self.timers.farewells.is_empty() || !self.cx.dirty.is_empty() || self.udp.waits() {
            return Some(Duration::ZERO);
        }
        if self.stopping {
            return Some(Duration::from_millis(SWEEP_MS));
        }
        let sweeps = self.flights.len() + self.warm_peers.len() + self.warm_sessions.len() > 0;
        let sweep = sweeps.then_some(self.timers.next_sweep);
        let keepalive = self.timers.keepalives.peek().map(|Reverse((at, _))| *at);
        let next = [sweep, keepalive, self.udp.next_tick()].into_iter().flatten().min()?;
        Some(next.saturating_since(self.cx.now))
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, driver: &impl Driver<Socket = S>) {
        self.send_farewells();
        self.send_keepalives();
        if self.cx.now >= self.timers.next_sweep {
            self.timers.next_sweep = self.cx.now.plus(Duration::from_millis(SWEEP_MS));
            self.cut_stalled(driver);
            self.cool();
        }
    }

    fn send_farewells(&mut self) {
        for _ in 0..FAREWELLS_MAX {
            let Some((key, listeners)) = self.timers.farewells.front_mut() else { return };
            let key = *key;
            // The peer is back: who has not heard that it was gone need not hear it any more.
            let listener =
                if self.cx.fabric.find(&key).1.is_some() { None } else { listeners.pop() };
            match listener {
                Some(listener) => {
                    self.cx.counters.peer_gone_disconnected.increment();
                    let gone = derp::peer_gone(&key, GoneReason::Disconnected);
                    self.cx.push_control(&listener, &gone);
                }
                None => drop(self.timers.farewells.pop_front()),
            }
        }
    }

    fn send_keepalives(&mut self) {
        for _ in 0..KEEPALIVES_MAX {
            let now = self.cx.now;
            let Some(Reverse((at, token))) = self.timers.keepalives.peek().copied() else { return };
            if at > now {
                return;
            }
            self.timers.keepalives.pop();
            let Some(session) = self.sessions.get_mut(token) else { continue };
            session.actor().routes.sweep();
            let peer = Arc::clone(session.peer());
            self.cx.counters.keepalives.increment();
            self.cx.push_control(&peer, &derp::KEEP_ALIVE);
            let next = now.plus(self.keepalive_after(peer.id));
            self.timers.keep_alive(token, next);
        }
    }

    /// Ends the sessions whose clients let a send stand still for too long.
    fn cut_stalled(&mut self, driver: &impl Driver<Socket = S>) {
        let limit = self.tuning.write_timeout_ms;
        let now_ms = self.cx.now.0 / 1_000_000;
        if limit == 0 || self.flights.len() == 0 || now_ms < limit {
            return;
        }
        let mut stalled = Vec::new();
        driver.stalled(Tick((now_ms - limit) * 1_000_000), &mut stalled);
        for Token(flight) in stalled {
            if let Some(flight) = self.flights.get_mut(flight)
                && !flight.peer.outbox().is_closed()
            {
                self.cx.counters.write_timeouts.increment();
                flight.peer.cut(CloseReason::WriteTimeout);
            }
        }
    }

    fn cool(&mut self) {
        for _ in 0..self.warm_peers.len().min(COOLED_MAX) {
            if let Some(peer) = self.warm_peers.pop_front() {
                peer.cool_down();
            }
        }
        for _ in 0..self.warm_sessions.len().min(COOLED_MAX) {
            let Some(token) = self.warm_sessions.pop_front() else { break };
            if let Some(session) = self.sessions.get_mut(token) {
                session.cool_down();
            }
        }
        let flushes = self.cx.counters.flushes.value();
        if std::mem::replace(&mut self.timers.flushes, flushes) == flushes {
            self.cx.pool.trim(KEPT_BUFFERS);
        }
    }
}
