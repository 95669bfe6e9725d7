//! The loop of the keeper's thread, and which map entry a flow becomes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use std::{fmt, io};

use crossbeam_channel::Receiver;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use proto::bucket::Rate;
use proto::wireguard::{FlowChange, FlowKey, FlowTarget, LinkId, Session};
use wire::maps::{
    self, Address, Config, Hop, Kept, KeptKey, NEAR_MAX, PORTS_MAX, Pace, exit, feature,
};

use super::Orders;
use super::look::{Look, Looking};
use super::next_hop::Neighbourhood;
use super::sessions::{boot_time, keep, resume};
use super::table::{Entry, Table};
use crate::observe::{Attachment, Registry, SocketReason};
use crate::udp::{Report, Shared};
use crate::xdp::{FastPath, Mode, XdpFault};

/// Rung by the relay and by the process.
pub(super) const WAKE: Token = Token(0);
/// News of routes, neighbours, links and addresses.
const NEWS: Token = Token(1);
/// How often the programs' counters are read.
const CENSUS: Duration = Duration::from_secs(1);
/// For so long the programs take this process to be there, unless they hear of it anew with the next
/// census: a client that asks a relay with no process behind it must get no answer.
const LEASE: Duration = Duration::from_secs(5);
/// How soon after one look at all routes and neighbours the next may follow. News come in flocks.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);
/// So many times as long as a look took is waited before the next: one twentieth of a core at most.
const REFRESH_SHARE: u32 = 20;
/// How long one flow goes through the sockets to have the kernel ask for its next hop.
const PROBE_TIME: Duration = Duration::from_secs(1);
/// After so long everything is looked at, news or none.
const REFRESH_MAX: Duration = Duration::from_secs(30);
/// How often the ring buffer of traced packets is emptied.
const TRACE_PAUSE: Duration = Duration::from_millis(20);
/// Reports taken at a time, so that the clock is looked at in between.
const REPORTS_AT_ONCE: usize = 64;

/// An interface with a program.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) mode: Mode,
    /// Its place among the programs' exits, where there are several.
    pub(super) slot: u32,
    /// Whether it was seen to be no more.
    pub(super) gone: bool,
}

/// What the sockets serve, and the programs with them.
#[derive(Clone, Debug)]
pub struct Served {
    /// Addresses listened on; unspecified for all of one family, or of both.
    pub bound: Vec<SocketAddr>,
    /// STUN answers for one source prefix and core.
    pub stun_rate: Rate,
}

/// See the module.
pub(super) struct Keeper {
    fast_path: FastPath,
    hood: Neighbourhood,
    interfaces: Vec<Interface>,
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    served: Served,
    table: Table,
    /// Looks at all flows so far.
    looks: usize,
    /// Whether a flow has gone since this was last asked.
    removed: bool,
    /// Sessions as they stand in the map for a successor.
    kept: HashMap<LinkId, HashMap<KeptKey, Kept>>,
    /// What each link's cell had counted at the last look.
    counted: HashMap<LinkId, maps::Tally>,
    /// What the outcomes had counted at the last look.
    outcomes: [maps::Tally; maps::Outcome::ALL.len()],
    /// Whether the relay has told everything once. Before, the map is a predecessor's.
    told: bool,
    shed: bool,
    pinned: bool,
    looking: Option<Looking>,
    /// Faults since the last look at everything; of several only the first is logged.
    faults: u32,
}

impl Keeper {
    pub(super) fn new(
        mut fast_path: FastPath,
        mut interfaces: Vec<Interface>,
        pinned: bool,
        shared: Arc<Shared>,
        registry: Arc<Registry>,
        served: Served,
    ) -> io::Result<Self> {
        let hood = Neighbourhood::open()?;
        let outcomes = fast_path.outcomes().map_err(io::Error::other)?;
        if interfaces.len() > 1 {
            let indices: Vec<_> = interfaces.iter().map(|it| it.index).collect();
            let slots = slots(&fast_path.exits().map_err(io::Error::other)?, &indices);
            for (interface, slot) in interfaces.iter_mut().zip(slots) {
                interface.slot = slot;
                fast_path.set_exit(slot, interface.index).map_err(io::Error::other)?;
            }
        }
        let mut keeper = Self {
            fast_path,
            hood,
            interfaces,
            shared,
            registry,
            served,
            table: Table::default(),
            looks: 0,
            removed: false,
            kept: HashMap::new(),
            counted: HashMap::new(),
            outcomes,
            told: false,
            shed: false,
            pinned,
            looking: None,
            faults: 0,
        };
        keeper.fast_path.renew(LEASE).map_err(io::Error::other)?;
        keeper.configure().map_err(io::Error::other)?;
        Ok(keeper)
    }

    /// The sessions that a predecessor left in the maps.
    pub(super) fn predecessors(&mut self) -> Vec<Session> {
        if !self.pinned {
            return Vec::new();
        }
        let now = boot_time();
        match self.fast_path.kept() {
            Ok(kept) => kept.iter().filter_map(|it| resume(it, &self.shared, now)).collect(),
            Err(fault) => {
                self.note(&fault);
                Vec::new()
            }
        }
    }

    /// Works until it is told to stop.
    pub(super) fn run(
        mut self,
        mut poll: Poll,
        reports: &Receiver<Report>,
        looks: &Receiver<Look>,
        orders: &Orders,
    ) {
        let fd = self.hood.news_fd();
        if let Err(error) = poll.registry().register(&mut SourceFd(&fd), NEWS, Interest::READABLE) {
            tracing::warn!(%error, "no news of routes; they are looked at every {REFRESH_MAX:?}");
        }
        let mut events = Events::with_capacity(8);
        let (mut census, mut refreshed) = (Instant::now(), Instant::now());
        let (mut stale, mut pause) = (false, REFRESH_PAUSE);
        while !orders.stop.load(Relaxed) {
            let due = match () {
                () if stale => pause,
                () if self.table.any(SocketReason::Probing) => pause.max(PROBE_TIME),
                () => REFRESH_MAX,
            };
            let now = Instant::now();
            let next = (census + CENSUS).min(refreshed + due).saturating_duration_since(now);
            let next = next.min(self.look_wait(now));
            // Interrupted or not, everything is looked at.
            let _ = poll
                .poll(&mut events, Some(if reports.is_empty() { next } else { Duration::ZERO }));
            stale |= self.hood.take_news();
            for report in reports.try_iter().take(REPORTS_AT_ONCE) {
                self.take(report);
            }
            // The second of two that want one entry waits for the first to go.
            stale |= self.table.any(SocketReason::Twin) && self.removed;
            self.removed = false;
            let shed = orders.shed.load(Relaxed);
            if std::mem::replace(&mut self.shed, shed) != shed {
                self.configure().unwrap_or_else(|fault| self.note(&fault));
            }
            self.look(looks);
            let now = Instant::now();
            if now >= refreshed + due {
                self.refresh();
                stale = false;
                refreshed = Instant::now();
                pause = REFRESH_PAUSE.max((refreshed - now) * REFRESH_SHARE);
            }
            if now >= census + CENSUS {
                census = now;
                self.fast_path.lines();
                self.take_census();
            }
        }
        self.stop();
    }

    /// How long the look being taken can be left alone.
    fn look_wait(&self, now: Instant) -> Duration {
        match &self.looking {
            Some(looking) if looking.traces() => TRACE_PAUSE,
            Some(looking) => looking.until().saturating_duration_since(now),
            None => Duration::MAX,
        }
    }

    /// Goes on with the look being taken, or begins the next.
    fn look(&mut self, looks: &Receiver<Look>) {
        if let Some(looking) = self.looking.take() {
            self.looking = looking.go_on(&mut self.fast_path);
        }
        if self.looking.is_none() {
            let next = looks.try_recv().ok();
            self.looking = next.and_then(|look| Looking::begin(look, &mut self.fast_path));
        }
    }

    fn stop(mut self) {
        self.take_census();
        if self.pinned {
            // As when its lease is over, but at once.
            let features = feature::RELAY;
            let silenced = self.fast_path.configure(&Config { features, ..self.config() });
            silenced.unwrap_or_else(|fault| self.note(&fault));
        }
    }

    /// Counts a fault, and tells of the first between two looks at everything.
    fn note(&mut self, fault: &dyn fmt::Display) {
        self.registry.fast_path.faults.increment();
        if self.faults == 0 {
            tracing::warn!(%fault, "the fast path is not in step; flows may go through the sockets");
        }
        self.faults = self.faults.saturating_add(1);
    }

    /// Says so if everything has worked since the last look, and did not before.
    fn note_success(&mut self, faults_before: u32) {
        if self.faults == 0 && faults_before > 0 {
            tracing::info!("the fast path is in step again");
        }
    }

    fn config(&self) -> Config {
        let mut ports = [0; PORTS_MAX];
        for (place, port) in ports.iter_mut().zip(self.served.ports()) {
            *place = port.to_be();
        }
        let mut near = [Address::NONE; NEAR_MAX];
        let locals = self.stun_addresses();
        let attached = self.interfaces.iter().flat_map(|it| self.hood.addresses_of(it.index));
        let attached = attached.filter(|ip| locals.contains(ip)).copied();
        for (place, ip) in near.iter_mut().zip(attached) {
            *place = ip.into();
        }
        let Rate { per_second, burst } = self.served.stun_rate;
        let shed = if self.shed { feature::SHED } else { 0 };
        Config {
            ports,
            features: feature::STUN | feature::RELAY | shed,
            pace: Pace::new(per_second, burst),
            near,
            ..Config::default()
        }
    }

    fn stun_addresses(&self) -> BTreeSet<IpAddr> {
        let attached: Vec<_> = self.interfaces.iter().map(|it| it.index).collect();
        self.served.stun_addresses(&self.hood.addresses_without_vlans(&attached))
    }

    /// Tells the programs whom they answer, and what.
    fn configure(&mut self) -> Result<(), XdpFault> {
        let locals: Vec<_> = self.stun_addresses().into_iter().collect();
        let max = maps::LOCALS_MAX as usize;
        // The sockets answer for the rest.
        self.fast_path.set_locals(locals.get(..max).unwrap_or(&locals))?;
        let config = self.config();
        self.fast_path.configure(&config)
    }

    fn take(&mut self, report: Report) {
        match report {
            // Before the relay has told everything, the map is a predecessor's.
            Report::Changed { .. } if !self.told => {}
            Report::Changed { changes, sessions } => {
                changes.iter().for_each(|change| self.change(change));
                self.remember(sessions);
            }
            Report::Everything { forgotten, flows, sessions } => {
                forgotten.into_iter().for_each(|link| self.end_count(link));
                self.take_everything(flows);
                self.forget_all_but(&sessions);
                self.remember(sessions);
            }
        }
    }

    /// Keeps these sessions, all that their links have, for a successor.
    fn remember(&mut self, sessions: Vec<(LinkId, Vec<Session>)>) {
        let now = boot_time();
        for (link, sessions) in sessions {
            let kept = sessions.iter().filter_map(|it| keep(it, &self.shared, now));
            let kept: HashMap<_, _> = kept.map(|it| (it.key(), it)).collect();
            let before = self.kept.remove(&link).unwrap_or_default();
            for key in before.keys().filter(|key| !kept.contains_key(*key)) {
                self.forget(key);
            }
            for (key, session) in &kept {
                let same = |old: &Kept| (old.forth, old.back) == (session.forth, session.back);
                if !before.get(key).is_some_and(same)
                    && let Err(fault) = self.fast_path.keep(session)
                {
                    self.note(&fault);
                }
            }
            if !kept.is_empty() {
                self.kept.insert(link, kept);
            }
        }
    }

    /// Forgets the sessions of other links, and of a predecessor, that are not among these.
    fn forget_all_but(&mut self, sessions: &[(LinkId, Vec<Session>)]) {
        if !self.pinned {
            return;
        }
        let now = boot_time();
        let current = sessions.iter().flat_map(|(_, sessions)| sessions);
        let current = current.filter_map(|it| keep(it, &self.shared, now).map(|it| it.key()));
        let current: HashSet<_> = current.collect();
        let found = self.fast_path.kept();
        let found = found.inspect_err(|fault| self.note(fault)).unwrap_or_default();
        for key in found.iter().map(Kept::key).filter(|key| !current.contains(key)) {
            self.forget(&key);
        }
        self.kept.clear();
    }

    fn forget(&mut self, key: &KeptKey) {
        if let Err(fault) = self.fast_path.forget(key) {
            self.note(&fault);
        }
    }

    fn change(&mut self, change: &FlowChange) {
        match *change {
            FlowChange::Add(key, target) => self.place(key, target),
            FlowChange::Remove(key) => {
                self.removed = true;
                let removed = self.table.remove(&key, &mut self.fast_path);
                removed.unwrap_or_else(|fault| self.note(&fault));
            }
            FlowChange::Forget(link) => self.end_count(link),
        }
    }

    /// Brings map and memory to exactly these flows. Those that are right are not touched.
    fn take_everything(&mut self, flows: Vec<(FlowKey, FlowTarget)>) {
        self.told = true;
        let mut wanted = HashMap::new();
        for (key, target) in &flows {
            wanted.extend(self.entry(key, target).ok());
        }
        // Also what a predecessor left.
        if let Err(fault) = self.fast_path.set_flows(&wanted) {
            self.note(&fault);
        }
        self.table.clear();
        for (key, target) in flows {
            self.place(key, target);
        }
    }

    /// Gives a flow its place in the map, or leaves it to the sockets.
    fn place(&mut self, key: FlowKey, target: FlowTarget) {
        self.begin_count(target.link);
        let entry = self.entry(&key, &target);
        let placed = self.table.place(key, target, entry, &mut self.fast_path);
        placed.unwrap_or_else(|fault| self.note(&fault));
    }

    /// What the map has for a flow, or why only sockets can serve it.
    fn entry(&mut self, key: &FlowKey, target: &FlowTarget) -> Entry {
        let ends = self.shared.address(key.from.port()).zip(self.shared.address(target.to.port()));
        let (local, from) = ends.ok_or(SocketReason::Address)?;
        let to = target.to.remote();
        let unknown = local.ip().is_unspecified() || from.ip().is_unspecified();
        if unknown || scoped(to) || scoped(key.from.remote()) {
            return Err(SocketReason::Address);
        }
        let hop = Hop::back(local, from, to, target.link.0).ok_or(SocketReason::Family)?;
        let next = self.hood.next_hop(from, to).unwrap_or_else(|error| {
            self.note(&error);
            Err(SocketReason::Fault)
        })?;
        let exit = self.exit(next.interface)?;
        let entry = maps::FlowKey::new(key.from.remote(), local, key.receiver.0);
        Ok((entry, hop.by(exit, next.to, next.from)))
    }

    /// How the program sends by the interface with this index, if whatever came in by another one
    /// fits through it.
    fn exit(&self, index: u32) -> Result<u32, SocketReason> {
        let interface = self.interfaces.iter().find(|it| it.index == index);
        let slot = interface.ok_or(SocketReason::Interface)?.slot;
        let widest = self.interfaces.iter().map(|it| self.hood.mtu(it.index)).max();
        match self.interfaces.len() {
            1 => Ok(exit::TURN),
            _ if Some(self.hood.mtu(index)) < widest => Err(SocketReason::Mtu),
            _ => Ok(exit::OUT + slot),
        }
    }

    /// Looks at routes, neighbours and addresses anew, and goes through all flows.
    fn refresh(&mut self) {
        let faults_before = std::mem::take(&mut self.faults);
        if let Err(error) = self.hood.refresh() {
            return self.note(&error);
        }
        self.miss_interfaces();
        if let Err(fault) = self.configure() {
            self.note(&fault);
        }
        let all: Vec<_> = self.table.flows().map(|(key, target)| (*key, *target)).collect();
        for (key, target) in &all {
            self.place(*key, *target);
        }
        self.probe(&all);
        self.note_success(faults_before);
    }

    /// Says which interfaces are gone: their programs went with them, and come back with a restart
    /// only, as the privileges to attach are given up.
    fn miss_interfaces(&mut self) {
        for interface in &mut self.interfaces {
            if !self.hood.exists(interface.index) && !interface.gone {
                interface.gone = true;
                tracing::error!(
                    interface = interface.name,
                    "the interface is gone, and its program with it; restart to attach again"
                );
            }
        }
        self.registry.fast_path.attach(attachments(&self.interfaces));
    }

    /// Takes one flow of each next hop that the kernel has not heard of for a while out of the map,
    /// another one at each look: what the sockets send is what makes the kernel ask for the hop.
    /// Were all of them left in the map, a gateway that changed its station would swallow them.
    fn probe(&mut self, flows: &[(FlowKey, FlowTarget)]) {
        self.looks = self.looks.wrapping_add(1);
        let mut by_hop = HashMap::<_, Vec<FlowKey>>::new();
        for (key, target) in flows {
            let Some(from) = self.shared.address(target.to.port()) else { continue };
            if let Some(hop) = self.hood.stale_neighbour(from, target.to.remote()) {
                by_hop.entry(hop).or_default().push(*key);
            }
        }
        for keys in by_hop.into_values() {
            let Some(key) = keys.get(self.looks % keys.len()) else { continue };
            let taken = self.table.suspend(key, SocketReason::Probing, &mut self.fast_path);
            taken.unwrap_or_else(|fault| self.note(&fault));
        }
    }

    fn count_flows(&self) {
        let cells = &self.registry.fast_path;
        let (placed, by_sockets) = self.table.counts();
        cells.flows.set(placed);
        for (cell, count) in cells.by_sockets.iter().zip(by_sockets) {
            cell.set(count);
        }
    }

    /// Counts what the programs did since the last look.
    fn take_census(&mut self) {
        self.fast_path.renew(LEASE).unwrap_or_else(|fault| self.note(&fault));
        self.count_flows();
        match self.fast_path.outcomes() {
            Ok(outcomes) => {
                let cells = &self.registry.fast_path.outcomes;
                for ((cell, now), last) in cells.iter().zip(outcomes).zip(&mut self.outcomes) {
                    cell.add(
                        now.packets.wrapping_sub(last.packets),
                        now.bytes.wrapping_sub(last.bytes),
                    );
                    *last = now;
                }
            }
            Err(fault) => self.note(&fault),
        }
        let links: Vec<_> = self.counted.keys().copied().collect();
        for link in links {
            self.count_link(link);
        }
    }

    /// From now on the link is looked at. What its cell counted for others before is not its own.
    fn begin_count(&mut self, link: LinkId) {
        if self.counted.contains_key(&link) {
            return;
        }
        match self.fast_path.statistics(link.0) {
            Ok(now) => _ = self.counted.insert(link, now),
            Err(fault) => self.note(&fault),
        }
    }

    /// The link is no more: what its cell counts from now on is another's.
    fn end_count(&mut self, link: LinkId) {
        self.count_link(link);
        self.counted.remove(&link);
        self.registry.links.fast_path().clear(link);
    }

    fn count_link(&mut self, link: LinkId) {
        let now = match self.fast_path.statistics(link.0) {
            Ok(now) => now,
            Err(fault) => return self.note(&fault),
        };
        let Some(last) = self.counted.get_mut(&link) else { return };
        let packets = now.packets.wrapping_sub(last.packets);
        let bytes = now.bytes.wrapping_sub(last.bytes);
        *last = now;
        self.registry.links.fast_path().count(link, packets, bytes);
        self.registry.fast_path.wireguard_bytes.add(bytes);
    }
}

/// The slots for these interfaces, given what `exits` has in each. Those that it has keep theirs: until
/// the relay has spoken, the flows of a predecessor name them. The others get empty ones, and such as
/// nobody asks for when there are none left.
fn slots(exits: &[u32], indices: &[u32]) -> Vec<u32> {
    let slot_of = |index: &u32| (0..).zip(exits).find(|(_, it)| *it == index).map(|(slot, _)| slot);
    let (empty, others): (Vec<_>, Vec<_>) =
        (0..).zip(exits).filter(|(_, it)| !indices.contains(it)).partition(|(_, it)| **it == 0);
    let mut free = empty.into_iter().chain(others).map(|(slot, _)| slot);
    // There are as many slots as interfaces at most; without one it leaves by none.
    indices.iter().filter_map(|index| slot_of(index).or_else(|| free.next())).collect()
}

/// As the metrics page shows them: those that are there.
pub(super) fn attachments(interfaces: &[Interface]) -> Vec<Attachment> {
    let there = interfaces.iter().filter(|it| !it.gone);
    let shown =
        there.map(|it| Attachment { interface: it.name.clone(), mode: it.mode.to_string() });
    shown.collect()
}

/// Whether the address means something on one link only.
fn scoped(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(it) if it.scope_id() != 0)
}

impl Served {
    /// Ports served, as numbers.
    fn ports(&self) -> BTreeSet<u16> {
        self.bound.iter().map(SocketAddr::port).collect()
    }

    /// Own addresses at which a socket answers on every port that is served on any: the programs
    /// know addresses and ports, but no pairs.
    fn stun_addresses(&self, own: &HashSet<IpAddr>) -> BTreeSet<IpAddr> {
        let ports = self.ports();
        let answers = |ip: IpAddr, port: u16| {
            self.bound.iter().any(|bound| {
                let any = bound.ip().is_unspecified() && (bound.is_ipv6() || ip.is_ipv4());
                bound.port() == port && (any || bound.ip() == ip)
            })
        };
        let served = |ip: &IpAddr| ports.iter().all(|port| answers(*ip, *port));
        own.iter().copied().filter(served).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(bound: &[&str]) -> Served {
        let bound = bound.iter().map(|it| it.parse().expect("an address")).collect();
        Served { bound, stun_rate: Rate { per_second: 1, burst: 1 } }
    }

    fn own(ips: &[&str]) -> HashSet<IpAddr> {
        ips.iter().map(|ip| ip.parse().expect("an address")).collect()
    }

    #[test]
    fn interfaces_keep_the_slots_of_a_predecessor() {
        assert_eq!(slots(&[0; 4], &[7, 8]), [0, 1]);
        assert_eq!(slots(&[7, 8, 0, 0], &[8, 7]), [1, 0]);
        assert_eq!(slots(&[7, 8, 0, 0], &[9, 8]), [2, 1], "flows of 7 do not leave by 9");
        assert_eq!(slots(&[0, 8, 0, 0], &[9, 8, 6]), [0, 1, 2]);
        assert_eq!(slots(&[7, 8], &[9, 8]), [0, 1], "there is no other");
    }

    #[test]
    fn stun_is_answered_where_a_socket_would() {
        let own = own(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        let answered = |bound: &[&str]| {
            let answered = served(bound).stun_addresses(&own);
            answered.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(answered(&["[::]:3478"]), ["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        assert_eq!(answered(&["0.0.0.0:3478"]), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(
            answered(&["192.0.2.1:3478", "[2001:db8::1]:3478"]),
            ["192.0.2.1", "2001:db8::1"]
        );
        // The program would answer on both ports.
        assert_eq!(answered(&["192.0.2.1:3478", "192.0.2.2:3479"]), [""; 0]);
        assert_eq!(answered(&["192.0.2.1:1", "0.0.0.0:2"]), ["192.0.2.1"]);
        assert_eq!(answered(&["198.51.100.1:3478"]), [""; 0]);
    }
}
