//! One core's loop: poll, obey, tick, flush.
//!
//! A [`Worker`] owns a driver and a [`Core`]. The core turns events into queued frames and never
//! touches the driver while events are told; the flush at the end of the round is what sends.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use proto::derp::{Outbox, Pool, SessionId};
use wire::derp;
use wire::drop::DropReason;

use super::context::Context;
use super::flush::InFlight;
use super::forward::count_dropped;
use super::session::Session;
use super::timers::Timers;
use super::{Command, Fabric, Newcomer, Peer, Tuning};
use crate::io::slab::Slab;
use crate::io::{Driver, Event, Socket, Token};
use crate::observe::CloseReason;
use crate::udp::{Errand, Round, Udp};

/// Marks tokens of datagram ports; session tokens stay below.
const UDP_TOKEN: u64 = 1 << 63;
/// Commands obeyed per round. The dearest is an adoption: some microseconds, and what the newcomer
/// has sent already. The rest waits for the next round, which then does not sleep before it.
const COMMANDS_MAX: usize = 128;
/// How long a stopping worker waits for its sessions to end, in milliseconds.
const STOP_MS: u64 = 1_000;

/// See the module.
#[derive(Debug)]
pub struct Worker<D: Driver> {
    driver: D,
    core: Core<D::Socket>,
}

/// Everything of a worker but its driver.
#[derive(Debug)]
pub(crate) struct Core<S> {
    id: usize,
    pub(crate) sessions: Slab<Session<S>>,
    pub(crate) flights: Slab<InFlight<S>>,
    pub(crate) timers: Timers<S>,
    pub(crate) cx: Context<S>,
    /// Peers and sessions that hold an expanded key.
    pub(crate) warm_peers: VecDeque<Arc<Peer<S>>>,
    pub(crate) warm_sessions: VecDeque<u64>,
    pub(crate) udp: Udp,
    jitter: RandomState,
    pub(crate) tuning: Tuning,
    /// What newcomers are told, too, while the relay drains.
    restarting: Option<[u8; derp::HEADER_LEN + 8]>,
    pub(crate) stopping: bool,
}

impl<D: Driver> Worker<D> {
    /// The worker of core `id` of `fabric`, serving `udp` too.
    ///
    /// # Errors
    /// The kernel's, if a port cannot be watched.
    pub fn new(
        id: usize,
        fabric: Arc<Fabric<D::Socket>>,
        mut driver: D,
        udp: Udp,
    ) -> io::Result<Self> {
        fabric.mailbox(id).hang_bell(driver.waker());
        for (at, port) in udp.ports().enumerate() {
            driver.watch(port.as_fd(), Token(UDP_TOKEN | at as u64))?;
        }
        let counters = Arc::clone(fabric.counters(id));
        let tuning = fabric.tuning;
        let cx = Context {
            fabric,
            counters,
            pool: Pool::default(),
            dirty: Vec::new(),
            now: driver.now(),
        };
        let core = Core {
            id,
            sessions: Slab::default(),
            flights: Slab::default(),
            timers: Timers::new(),
            cx,
            warm_peers: VecDeque::new(),
            warm_sessions: VecDeque::new(),
            udp,
            jitter: RandomState::new(),
            tuning,
            restarting: None,
            stopping: false,
        };
        Ok(Self { driver, core })
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    /// The kernel's, where the driver cannot go on.
    pub fn run(mut self) -> io::Result<()> {
        while !self.core.stopping {
            self.round()?;
        }
        let give_up = self.driver.now().plus(Duration::from_millis(STOP_MS));
        while self.core.sessions.len() > 0 && self.driver.now() < give_up {
            self.round()?;
        }
        Ok(())
    }

    /// One round: what the simulation calls step by step.
    ///
    /// # Errors
    /// The kernel's, where the driver cannot go on.
    pub fn round(&mut self) -> io::Result<()> {
        let Self { driver, core } = self;
        let mailbox_empty = core.cx.fabric.mailbox(core.id).may_sleep();
        let wait = if mailbox_empty { core.patience() } else { Some(Duration::ZERO) };
        driver.poll(wait, &mut |event| core.on_event(event))?;
        core.cx.fabric.mailbox(core.id).awake();
        core.cx.now = driver.now();
        core.cx.counters.rounds.increment();
        core.cx.counters.enobufs.set(driver.starved());
        core.obey(driver);
        core.serve_udp();
        core.tick(driver);
        core.flush(driver);
        Ok(())
    }

    /// Verifies the invariants of everything this worker owns.
    pub fn check(&self) {
        let core = &self.core;
        for (_, session) in core.sessions.iter() {
            session.peer().outbox().check();
        }
        assert_eq!(core.cx.counters.sessions.value(), core.sessions.len() as u64);
    }

    /// Packets of this worker's sessions that wait or are in flight.
    #[must_use]
    pub fn waiting_packets(&self) -> u64 {
        let queued =
            self.core.sessions.iter().map(|(_, session)| session.peer().outbox().queued_packets());
        queued.sum::<u64>()
            + self.core.flights.iter().map(|(_, flight)| flight.packets()).sum::<u64>()
    }

    /// Bytes of buffer that this worker's sessions hold.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let held = |session: &Session<D::Socket>| {
            session.held_bytes() + session.peer().outbox().held_bytes()
        };
        self.core.sessions.iter().map(|(_, session)| held(session)).sum()
    }

    /// The driver, for tests that inspect it.
    pub fn driver(&self) -> &D {
        &self.driver
    }
}

impl<S: Socket> Core<S> {
    #[inline]
    fn on_event(&mut self, event: Event<'_, S>) {
        match event {
            Event::Received(Token(token), bytes) => {
                let Some(session) = self.sessions.get_mut(token) else { return };
                session.receive(bytes, &mut self.cx);
                if session.warm_up() {
                    self.warm_sessions.push_back(token);
                }
            }
            Event::Landed(landed) => self.land(landed),
            Event::Ready(Token(token)) => {
                self.udp.wake((token & !UDP_TOKEN) as usize);
            }
            Event::Ended(Token(token), result) => {
                let reason = if result.is_ok() { CloseReason::Eof } else { CloseReason::IoError };
                self.end(token, reason);
            }
            // The front accepts; a worker's driver is given no listener.
            Event::Accepted(_, socket) => socket.shutdown(),
        }
    }

    fn obey(&mut self, driver: &mut impl Driver<Socket = S>) {
        for _ in 0..COMMANDS_MAX {
            let Some(command) = self.cx.fabric.mailbox(self.id).take() else { return };
            match command {
                Command::Adopt(newcomer) => self.adopt(*newcomer, driver),
                Command::Drain { reconnect_in_ms, try_for_ms } => {
                    let frame = derp::restarting(reconnect_in_ms, try_for_ms);
                    for (_, session) in self.sessions.iter() {
                        self.cx.push_control(session.peer(), &frame);
                    }
                    self.restarting = Some(frame);
                    self.udp.shed(true);
                }
                Command::Resume => {
                    self.restarting = None;
                    self.udp.shed(false);
                }
                Command::Tune(tuning) => self.tuning = tuning,
                Command::Udp(errand) => self.lend_round(|udp, round| udp.obey(errand, round)),
                Command::Stop => {
                    self.stopping = true;
                    for (_, session) in self.sessions.iter_mut() {
                        session.ending.get_or_insert(CloseReason::Shutdown);
                        // What waits goes out first: at least the word of the restart.
                        session.peer().egress().end_when_empty = true;
                        if session.peer().outbox().is_idle() {
                            session.peer().shutdown();
                        }
                    }
                }
            }
        }
    }

    fn adopt(&mut self, newcomer: Newcomer<S>, driver: &mut impl Driver<Socket = S>) {
        let Newcomer { socket, tls, framing, key, greeting, mut early, decoder, not_ideal } =
            newcomer;
        let (rx, tx) = tls.unzip();
        let id = self.cx.fabric.new_session();
        let outbox =
            Outbox::new(tx.as_ref().map(crate::tls::Tx::protocol), framing, self.tuning.queue);
        let peer = Arc::new(Peer::new(key, id, outbox, socket.clone(), tx));
        // Before the key can be found by others, so that the greeting is the first frame.
        self.cx.push_control(&peer, &greeting);
        if let Some(frame) = &self.restarting {
            // The front let it in before the drain began.
            self.cx.push_control(&peer, frame);
        }
        let mut session = Session::new(Arc::clone(&peer), rx, decoder, self.cx.now);
        session.actor().not_ideal = not_ideal;
        let token = self.sessions.insert(session);
        self.cx.counters.sessions_opened.increment();
        self.cx.counters.sessions.increment();
        self.cx.counters.notideal_sessions.add(u64::from(not_ideal));
        self.cx.fabric.arrive(&peer);
        if !self.cx.fabric.admits(&key) {
            // Revoked since the front let it in; who revoked it may not have seen it yet.
            return self.end(token, CloseReason::Revoked);
        }
        if driver.adopt(&socket, Token(token)).is_err() {
            return self.end(token, CloseReason::IoError);
        }
        self.timers.keep_alive(token, self.cx.now.plus(self.keepalive_after(id)));
        if let Some(session) = self.sessions.get_mut(token) {
            session.receive_early(&mut early, &mut self.cx);
            if !early.sealed.is_empty() && session.warm_up() {
                self.warm_sessions.push_back(token);
            }
        }
    }

    /// The connection of `token` is over.
    fn end(&mut self, token: u64, reason: CloseReason) {
        let Some(session) = self.sessions.remove(token) else { return };
        let reason = session.ending.or(session.peer().cut_reason()).unwrap_or(reason);
        let actor = session.into_actor();
        let counters = &self.cx.counters;
        counters.sessions.decrement();
        counters.sessions_closed[reason.index()].increment();
        if actor.home == Some(true) {
            counters.home_sessions.decrement();
        }
        if actor.not_ideal {
            counters.notideal_sessions.decrement();
        }
        let peer = actor.peer;
        let listeners = self.cx.fabric.depart(&peer, actor.routes.into_heard());
        let waiting = peer.outbox().close(&mut self.cx.pool, &self.cx.fabric.budget);
        count_dropped(&self.cx.counters, DropReason::GoneDisconnected, &waiting);
        peer.release();
        self.timers.farewell(peer.key, listeners);
    }

    /// Time from now to a session's next keepalive, with a jitter that is the session's own.
    pub(crate) fn keepalive_after(&self, id: SessionId) -> Duration {
        let tuning = &self.tuning;
        let jitter = self.jitter.hash_one(id) % (tuning.keepalive_jitter_ms * 1000).max(1);
        Duration::from_millis(tuning.keepalive_ms) + Duration::from_micros(jitter)
    }

    fn serve_udp(&mut self) {
        let due = self.udp.next_tick().is_some_and(|tick| tick <= self.cx.now);
        if due || self.udp.waits() {
            self.lend_round(Udp::serve);
        }
    }

    fn lend_round(&mut self, work: impl FnOnce(&mut Udp, &Round<'_>)) {
        let Context { fabric, counters, now, .. } = &self.cx;
        let post = |core, errand: Errand| fabric.post(core, Command::Udp(errand));
        work(&mut self.udp, &Round { core: self.id, now: *now, counters, post: &post });
    }
}
