//! The WireGuard side of one core: its flow table, and on core 0 the relay behind all of them.
//!
//! Owns what [`proto::wireguard`] knows and carries its verdicts out. Data of known flows never
//! leaves the core; everything else goes to core 0, and what the relay learns comes back to every
//! core. Datagrams that wait for core 0 are bounded and counted. The ports of the core call it.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use proto::tick::Tick;
use proto::wireguard::{
    Counters, Effects, FlowChange, FlowKey, FlowTarget, Flows, Limits, LinkId, Place, PortId,
    Registrations, Relay, Session, Verdict,
};
use wire::drop::DropReason;
use wire::key::Key;
use wire::wireguard::data_receiver;

use super::departures::Gate;
use super::local::Locals;
use super::report::{Report, Reporter};
use super::runs::Kind;
use super::socket::{Course, RUN_LEN_MAX};
use super::{Round, UdpPort};
use crate::config::wireguard::Wireguard;
use crate::observe::{CoreCounters, LinkCells, Links, PacketKind, WireguardEvent};

/// The core whose worker owns the relay.
pub const RELAY_CORE: usize = 0;
/// Handshake messages that may wait for core 0, of all cores together.
pub(super) const WAITING_MAX: usize = 1024;
/// Data of unknown flows that may wait for core 0: less, so that junk keeps no handshake out.
pub(super) const WAITING_DATA_MAX: usize = WAITING_MAX / 2;

/// What one core asks of another's UDP side.
#[derive(Debug)]
pub enum Errand {
    /// Of core 0: judge this datagram, which came to another core.
    Judge(Box<Rare>),
    /// Know these flows.
    Learn(Arc<[FlowChange]>),
    /// Of core 0: go by these peers and links.
    Register(Box<Roster>),
}

/// Peers and links on their way to the relay.
#[derive(Debug)]
pub struct Roster {
    registrations: Registrations,
    /// What links are called, by their peers, the smaller key first.
    names: HashMap<[Key; 2], String>,
    /// Sessions of a predecessor to go on with.
    resumed: Vec<Session>,
}

impl From<&Wireguard> for Roster {
    fn from(wireguard: &Wireguard) -> Self {
        let names = wireguard.links.iter().map(|link| {
            let [a, b] = link.peers.map(|peer| wireguard.peers[peer].key);
            ([a.min(b), a.max(b)], wireguard.link_name(link))
        });
        Self {
            names: names.collect(),
            registrations: wireguard.registrations.clone(),
            resumed: Vec::new(),
        }
    }
}

impl Roster {
    /// The same, with the `sessions` of a predecessor to go on with.
    #[must_use]
    pub fn resuming(self, sessions: Vec<Session>) -> Self {
        Self { resumed: sessions, ..self }
    }
}

/// A datagram on its way to the relay.
#[derive(Debug)]
pub struct Rare {
    from: Place,
    datagram: Box<[u8]>,
}

/// What the UDP sides of all cores share.
#[derive(Debug)]
pub struct Shared {
    pub(super) locals: Locals,
    /// Datagrams in mailboxes on their way to core 0, at most [`WAITING_MAX`].
    waiting: AtomicUsize,
    links: Arc<Links>,
    /// Who wants to know of flows.
    reporter: Option<Reporter>,
}

impl Shared {
    /// What cores share that each have sockets bound to these addresses, where they count links, and
    /// who is told of flows.
    #[must_use]
    pub fn new(bound: &[SocketAddr], links: Arc<Links>, reporter: Option<Reporter>) -> Arc<Self> {
        let locals = Locals::new(bound);
        Arc::new(Self { locals, waiting: AtomicUsize::new(0), links, reporter })
    }

    /// The address and port of ours that `port` stands for; unspecified where a socket is bound to
    /// every address and it was not noted which one was reached.
    #[must_use]
    pub fn address(&self, port: PortId) -> Option<SocketAddr> {
        self.locals.address(port)
    }

    /// The number of the address and port `local`; `None` if no socket is reached by it.
    #[must_use]
    pub fn port(&self, local: SocketAddr) -> Option<PortId> {
        self.locals.port(local)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Switch {
    pub(super) shared: Arc<Shared>,
    flows: Flows,
    /// On core 0.
    relay: Option<Box<Owned>>,
    /// What this core counts of each link.
    links: Arc<LinkCells>,
    scratch: Box<[u8]>,
}

#[derive(Debug)]
struct Owned {
    relay: Relay,
    /// Empty between two steps.
    effects: Effects,
    next_tick: Tick,
    /// Whether the keeper of the fast path lacks something, and has to be told everything.
    keeper_lacks: bool,
}

impl Switch {
    pub(super) fn new(core: usize, shared: Arc<Shared>) -> Self {
        let owned = || {
            let relay = Relay::new(Limits::DEFAULT);
            let effects = Effects::default();
            Box::new(Owned { relay, effects, next_tick: Tick::ZERO, keeper_lacks: false })
        };
        Self {
            links: Arc::clone(shared.links.core(core)),
            shared,
            flows: Flows::new(&Limits::DEFAULT),
            relay: (core == RELAY_CORE).then(owned),
            scratch: vec![0; RUN_LEN_MAX].into(),
        }
    }

    /// Where data of a known flow goes.
    #[inline]
    pub(super) fn find(&mut self, datagram: &[u8], from: Place) -> Option<FlowTarget> {
        let receiver = data_receiver(datagram)?;
        self.flows.target(&FlowKey { from, receiver })
    }

    pub(super) fn gate<'a>(&'a mut self, ports: &'a mut [UdpPort]) -> Gate<'a> {
        Gate { ports, locals: &self.shared.locals, scratch: &mut self.scratch, links: &self.links }
    }

    /// When the relay wants to look at the clock.
    pub(super) fn next_tick(&self) -> Option<Tick> {
        self.relay.as_ref().map(|owned| owned.next_tick)
    }

    pub(super) fn tick(&mut self, round: &Round<'_>) {
        let Some(owned) = &mut self.relay else { return };
        if round.now >= owned.next_tick {
            owned.next_tick = round.now.plus(Relay::TICK_INTERVAL);
            owned.relay.tick(round.now, &mut owned.effects);
            export(&owned.relay.counters(), round.counters);
            self.spread(round);
            self.report_lacking(round.now);
            round.counters.wireguard_flows.set(self.flows.len() as u64);
        }
    }

    /// Has the relay judge a message that no flow of this core knows.
    #[cold]
    pub(super) fn judge(
        &mut self,
        datagram: &[u8],
        from: Place,
        ports: &mut [UdpPort],
        round: &Round<'_>,
    ) {
        let Some(owned) = &mut self.relay else {
            return self.hand_over(datagram, from, round);
        };
        round.counters.wireguard_received.add(1, datagram.len() as u64);
        let verdict = owned.relay.step(datagram, from, round.now, &mut owned.effects);
        let mut left = 0;
        for to in owned.effects.copies.drain(..) {
            left += u64::from(send_copy(datagram, to, &self.shared.locals, ports));
        }
        let bytes = datagram.len() as u64;
        match verdict {
            Verdict::Sent if left > 0 => {
                round.counters.wireguard_forwarded.add(1, bytes);
                round.counters.wireguard_copies.add(left - 1);
                if let Some(link) = owned.effects.link {
                    self.links.count(link, 1, bytes);
                }
            }
            Verdict::Sent => {
                round.counters.count_drop(DropReason::SendFailed, PacketKind::Other, bytes);
            }
            Verdict::Drop(reason) => {
                round.counters.count_drop(reason, PacketKind::Other, bytes);
            }
        }
        self.spread(round);
    }

    /// Gives a message to core 0, which counts it, if not too many wait there already.
    fn hand_over(&self, datagram: &[u8], from: Place, round: &Round<'_>) {
        let limit = match Kind::of(datagram) {
            Kind::Data => WAITING_DATA_MAX,
            Kind::Handshake | Kind::Other => WAITING_MAX,
        };
        if self.shared.waiting.fetch_add(1, Relaxed) >= limit {
            self.shared.waiting.fetch_sub(1, Relaxed);
            let bytes = datagram.len() as u64;
            round.counters.wireguard_received.add(1, bytes);
            return round.counters.count_drop(DropReason::QueueTail, PacketKind::Other, bytes);
        }
        round.counters.wireguard_handed_over.increment();
        (round.post)(RELAY_CORE, Errand::Judge(Box::new(Rare { from, datagram: datagram.into() })));
    }

    /// Does what another core, or the process, asks.
    pub(super) fn obey(&mut self, errand: Errand, ports: &mut [UdpPort], round: &Round<'_>) {
        match errand {
            Errand::Judge(rare) => {
                self.shared.waiting.fetch_sub(1, Relaxed);
                self.judge(&rare.datagram, rare.from, ports, round);
            }
            Errand::Learn(changes) => self.learn(&changes),
            Errand::Register(roster) => self.register(*roster, round),
        }
    }

    fn register(&mut self, roster: Roster, round: &Round<'_>) {
        let Some(owned) = &mut self.relay else { return };
        owned.relay.register(&roster.registrations, round.now, &mut owned.effects);
        let links = owned.relay.links();
        let named = links.filter_map(|it| Some((it.link, roster.names.get(&it.peers)?.clone())));
        let named: Vec<(LinkId, String)> = named.collect();
        // First the old numbers are cleared, then they get new names.
        self.spread(round);
        self.shared.links.rename(named);
        let Some(owned) = &mut self.relay else { return };
        owned.relay.resume(roster.resumed, round.now, &mut owned.effects);
        owned.keeper_lacks = true;
        self.spread(round);
        self.report_lacking(round.now);
    }

    fn learn(&mut self, changes: &[FlowChange]) {
        for change in changes {
            self.flows.apply(change);
            match change {
                FlowChange::Add(..) | FlowChange::Remove(_) => {}
                FlowChange::Forget(link) => self.links.clear(*link),
            }
        }
    }

    /// Tells every core what the relay has learnt.
    fn spread(&mut self, round: &Round<'_>) {
        let Some(owned) = &mut self.relay else { return };
        debug_assert!(owned.effects.copies.is_empty(), "copies are sent at once");
        if owned.effects.flows.is_empty() {
            return;
        }
        let changes: Arc<[FlowChange]> = owned.effects.flows.drain(..).collect();
        for core in (0..self.shared.links.cores()).filter(|core| *core != RELAY_CORE) {
            (round.post)(core, Errand::Learn(Arc::clone(&changes)));
        }
        self.report(&changes, round.now);
        self.learn(&changes);
    }

    /// Tells the keeper of the fast path of `changes`, before this core has learnt them.
    fn report(&mut self, changes: &Arc<[FlowChange]>, now: Tick) {
        let (Some(owned), Some(reporter)) = (&mut self.relay, &self.shared.reporter) else {
            return;
        };
        // What is to be told everything needs no parts.
        if owned.keeper_lacks {
            return;
        }
        let mut sessions = Vec::new();
        if reporter.sessions {
            let touched = changes.iter().filter_map(|change| match change {
                FlowChange::Add(_, target) => Some(target.link),
                FlowChange::Remove(key) => self.flows.target(key).map(|target| target.link),
                FlowChange::Forget(link) => Some(*link),
            });
            let touched: BTreeSet<_> = touched.collect();
            let of = |link| (link, owned.relay.sessions_of(link, now).collect());
            sessions = touched.into_iter().map(of).collect();
        }
        let report = Report::Changed { changes: Arc::clone(changes), sessions };
        owned.keeper_lacks = !reporter.send(report);
    }

    /// Tells the keeper everything, if it lacks something.
    fn report_lacking(&mut self, now: Tick) {
        let (Some(owned), Some(reporter)) = (&mut self.relay, &self.shared.reporter) else {
            return;
        };
        if !owned.keeper_lacks {
            return;
        }
        let flows = self.flows.iter().map(|(key, target)| (*key, *target)).collect();
        let mut sessions = Vec::new();
        if reporter.sessions {
            let links = owned.relay.links().map(|status| status.link);
            sessions =
                links.map(|link| (link, owned.relay.sessions_of(link, now).collect())).collect();
        }
        owned.keeper_lacks = !reporter.send(Report::Everything { flows, sessions });
    }
}

/// Copies what the relay counts to where the metrics page reads it.
fn export(relay: &Counters, counters: &CoreCounters) {
    for (event, count) in [
        (WireguardEvent::Completed, relay.completed),
        (WireguardEvent::Moved, relay.moved),
        (WireguardEvent::HandshakeEvicted, relay.handshakes_evicted),
        (WireguardEvent::AskerEvicted, relay.askers_evicted),
        (WireguardEvent::SessionEvicted, relay.sessions_evicted),
        (WireguardEvent::StrikeUnrecorded, relay.strikes_unrecorded),
    ] {
        counters.wireguard_events[event.index()].set(count);
    }
    counters.wireguard_handshakes.set(relay.handshakes);
    counters.wireguard_watched.set(relay.watched);
}

fn send_copy(datagram: &[u8], to: Place, locals: &Locals, ports: &[UdpPort]) -> bool {
    let Some(local) = locals.find(to.port()) else { return false };
    let course = Course { to: to.remote(), from: local.ip, ecn: None };
    ports.get(local.socket).is_some_and(|port| port.socket.send(&course, datagram).is_ok())
}
