//! The WireGuard side of one core: its flow table, and on core 0 the relay behind all of them.
//!
//! Owns what [`proto::wireguard`] knows and carries its verdicts out. Data of known flows never
//! leaves the core; everything else goes to core 0, and what the relay learns comes back to every
//! core. Datagrams that wait for core 0 are bounded and counted. The ports of the core call it.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use proto::tick::Tick;
use proto::wireguard::{
    Counters, Effects, FlowChange, FlowTarget, Flows, Limits, LinkId, Place, PortId, Registrations,
    Relay, Session, Verdict,
};
use quinn_udp::RecvMeta;
use tracing::warn;
use wire::drop::DropReason;
use wire::key::Key;
use wire::wireguard::{Kind, Message};

use super::departures::Gate;
use super::local::{LOCALS_MAX, Locals};
use super::report::{Report, Reporter};
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
    Register(Box<Peering>),
}

/// Peers and links on their way to the relay.
#[derive(Debug)]
pub struct Peering {
    registrations: Registrations,
    /// What links are called, by their peers, the smaller key first.
    names: HashMap<[Key; 2], String>,
    /// Sessions of a predecessor to go on with.
    resumed: Vec<Session>,
}

impl From<&Wireguard> for Peering {
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

impl Peering {
    /// The same, with the `sessions` of a predecessor to go on with.
    #[must_use]
    pub fn resuming(self, sessions: Vec<Session>) -> Self {
        Self { resumed: sessions, ..self }
    }
}

/// A datagram on its way to the relay.
#[derive(Debug)]
pub struct Rare {
    source: Source,
    datagram: Box<[u8]>,
}

/// Where a datagram came from, and what it came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// By its place among the ports.
    pub(super) socket: usize,
    /// Our address, where the socket is bound to all of them.
    local: Option<IpAddr>,
    remote: SocketAddr,
}

impl Source {
    /// Where a datagram came from that the socket in the place `socket` received; with `any` if that
    /// is bound to all our addresses.
    #[inline]
    pub(super) fn new(socket: usize, meta: &RecvMeta, any: bool) -> Self {
        let local = meta.dst_ip.filter(|_| any).map(|ip| ip.to_canonical());
        Self { socket, local, remote: meta.addr }
    }
}

/// What the UDP sides of all cores share.
#[derive(Debug)]
pub struct Shared {
    pub(super) locals: Locals,
    /// Datagrams in mailboxes on their way to core 0, at most [`WAITING_MAX`].
    waiting: AtomicUsize,
    /// Whether it was logged that there are no more numbers in `locals`.
    locals_lacking: AtomicBool,
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
        let (waiting, locals_lacking) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Self { locals, waiting, locals_lacking, links, reporter })
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
    /// Links that ended meanwhile, whose numbers others may have by now.
    forgotten: BTreeSet<LinkId>,
}

impl Switch {
    pub(super) fn new(core: usize, shared: Arc<Shared>) -> Self {
        let owned = || {
            let relay = Relay::new(Limits::DEFAULT);
            let effects = Effects::default();
            let forgotten = BTreeSet::new();
            Box::new(Owned {
                relay,
                effects,
                next_tick: Tick::ZERO,
                keeper_lacks: false,
                forgotten,
            })
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
    pub(super) fn find(&mut self, datagram: &[u8], source: &Source) -> Option<FlowTarget> {
        let target = self.flows.forward(datagram, self.place(source)?)?;
        // A flow from ourselves could only run in circles.
        let ours = self.shared.locals.is_ours(source.remote, source.local);
        (!ours).then_some(target)
    }

    /// Where it came from, if it came to an address of ours that has a number.
    #[inline]
    fn place(&self, source: &Source) -> Option<Place> {
        let port = self.shared.locals.known(source.socket, source.local)?;
        Some(Place::new(port, source.remote))
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

    /// Has the relay judge a message that no flow of this core knows. Returns how many keys that
    /// took here.
    #[cold]
    pub(super) fn judge(
        &mut self,
        datagram: &[u8],
        source: &Source,
        ports: &mut [UdpPort],
        round: &Round<'_>,
    ) -> usize {
        let refused = match Message::parse(datagram) {
            Err(_) => Some(DropReason::BadWireguard),
            Ok(_) if self.shared.locals.is_ours(source.remote, source.local) => {
                Some(DropReason::OwnAddress)
            }
            Ok(_) => None,
        };
        if let Some(reason) = refused {
            refuse(datagram, reason, round);
        } else if self.relay.is_none() {
            self.hand_over(datagram, source, round);
        } else if let Some(from) = self.place(source) {
            return self.step(datagram, from, ports, round).1;
        } else {
            return self.meet(datagram, source, ports, round);
        }
        0
    }

    /// Judges a message that came to an address of ours which has no number yet. It gets one if the
    /// relay makes something of an initiation; all else refers to what came there before.
    fn meet(
        &mut self,
        datagram: &[u8],
        source: &Source,
        ports: &mut [UdpPort],
        round: &Round<'_>,
    ) -> usize {
        let local = source.local.filter(|ip| is_unicast(*ip));
        let Some(local) = local.filter(|_| Kind::of(datagram) == Some(Kind::Initiation)) else {
            refuse(datagram, DropReason::UnknownIndex, round);
            return 0;
        };
        let shared = Arc::clone(&self.shared);
        let Some(offer) = shared.locals.offer(source.socket, local) else {
            if !shared.locals_lacking.swap(true, Relaxed) {
                warn!(
                    max = LOCALS_MAX,
                    "peers reach more of this host's addresses than the relay can tell apart; \
                     answers may leave from another one than was asked"
                );
            }
            round.counters.wireguard_unnumbered.increment();
            // Every socket has the number of its own place; the kernel chooses the address.
            let from = Place::new(PortId(source.socket as u8), source.remote);
            return self.step(datagram, from, ports, round).1;
        };
        let from = Place::new(offer.port(), source.remote);
        let (verdict, tried) = self.step(datagram, from, ports, round);
        match verdict {
            Verdict::Sent | Verdict::Drop(DropReason::NoEndpoint) => {
                offer.keep();
            }
            Verdict::Drop(_) => {}
        }
        tried
    }

    /// Has the relay of this core judge a message, and sends it on. Returns how many keys that took.
    fn step(
        &mut self,
        datagram: &[u8],
        from: Place,
        ports: &mut [UdpPort],
        round: &Round<'_>,
    ) -> (Verdict, usize) {
        let Some(owned) = &mut self.relay else {
            debug_assert!(false, "the caller saw it");
            return (Verdict::Drop(DropReason::RelayBusy), 0);
        };
        let verdict = owned.relay.step(datagram, from, round.now, &mut owned.effects);
        let tried = owned.effects.tried;
        let mut left = 0;
        for to in owned.effects.copies.drain(..) {
            left += u64::from(send_copy(datagram, to, &self.shared.locals, ports));
        }
        let bytes = datagram.len() as u64;
        match verdict {
            Verdict::Sent if left > 0 => {
                round.counters.wireguard_received.add(1, bytes);
                round.counters.wireguard_forwarded.add(1, bytes);
                round.counters.wireguard_copies.add(left - 1);
                if let Some(link) = owned.effects.link {
                    self.links.count(link, 1, bytes);
                }
            }
            Verdict::Sent => refuse(datagram, DropReason::SendFailed, round),
            Verdict::Drop(reason) => refuse(datagram, reason, round),
        }
        self.spread(round);
        (verdict, tried)
    }

    /// Gives a message to core 0, which counts it, if not too many wait there already.
    fn hand_over(&self, datagram: &[u8], source: &Source, round: &Round<'_>) {
        let limit = match Kind::of(datagram) {
            Some(Kind::Data) => WAITING_DATA_MAX,
            Some(Kind::Initiation | Kind::Response | Kind::Cookie) | None => WAITING_MAX,
        };
        if self.shared.waiting.fetch_add(1, Relaxed) >= limit {
            self.shared.waiting.fetch_sub(1, Relaxed);
            return refuse(datagram, DropReason::RelayBusy, round);
        }
        round.counters.wireguard_handed_over.increment();
        let rare = Rare { source: *source, datagram: datagram.into() };
        (round.post)(RELAY_CORE, Errand::Judge(Box::new(rare)));
    }

    /// Does what another core, or the process, asks.
    pub(super) fn obey(&mut self, errand: Errand, ports: &mut [UdpPort], round: &Round<'_>) {
        match errand {
            Errand::Judge(rare) => {
                self.shared.waiting.fetch_sub(1, Relaxed);
                self.judge(&rare.datagram, &rare.source, ports, round);
            }
            Errand::Learn(changes) => self.learn(&changes),
            Errand::Register(peering) => self.register(*peering, round),
        }
    }

    fn register(&mut self, peering: Peering, round: &Round<'_>) {
        let Some(owned) = &mut self.relay else { return };
        owned.relay.register(&peering.registrations, round.now, &mut owned.effects);
        let links = owned.relay.links();
        let named = links.filter_map(|it| Some((it.link, peering.names.get(&it.peers)?.clone())));
        let named: Vec<(LinkId, String)> = named.collect();
        // First the old numbers are cleared, then they get new names.
        self.spread(round);
        self.shared.links.rename(named);
        let Some(owned) = &mut self.relay else { return };
        let Peering { mut resumed, .. } = peering;
        let ours = |place: Place| self.shared.locals.is_ours(place.remote(), None);
        resumed.retain(|it| !ours(it.forth.from) && !ours(it.back.from));
        owned.relay.resume(resumed, round.now, &mut owned.effects);
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
        let forgotten = changes.iter().filter_map(|change| match change {
            FlowChange::Forget(link) => Some(*link),
            FlowChange::Add(..) | FlowChange::Remove(_) => None,
        });
        owned.keeper_lacks |= !reporter.has_room();
        if owned.keeper_lacks {
            owned.forgotten.extend(forgotten);
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
        if !owned.keeper_lacks || !reporter.has_room() {
            return;
        }
        let flows = self.flows.iter().map(|(key, target)| (*key, *target)).collect();
        let mut sessions = Vec::new();
        if reporter.sessions {
            let links = owned.relay.links().map(|status| status.link);
            sessions =
                links.map(|link| (link, owned.relay.sessions_of(link, now).collect())).collect();
        }
        let forgotten = std::mem::take(&mut owned.forgotten).into_iter().collect();
        owned.keeper_lacks = !reporter.send(Report::Everything { forgotten, flows, sessions });
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

/// Counts a datagram that goes nowhere.
fn refuse(datagram: &[u8], reason: DropReason, round: &Round<'_>) {
    let bytes = datagram.len() as u64;
    round.counters.wireguard_received.add(1, bytes);
    round.counters.count_drop(reason, PacketKind::Other, bytes);
}

fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_multicast(),
    }
}

fn send_copy(datagram: &[u8], to: Place, locals: &Locals, ports: &mut [UdpPort]) -> bool {
    let Some(local) = locals.find(to.port()) else { return false };
    let course = Course { to: to.remote(), from: local.ip, ecn: None };
    ports.get_mut(local.socket).is_some_and(|port| port.socket.answer(&course, datagram).is_ok())
}
