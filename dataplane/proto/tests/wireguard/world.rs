//! Peers, the relay, and the wires between them.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use proto::tick::Tick;
use proto::wireguard::{
    Effects, FlowChange, Flows, Index, Limits, LinkId, Place, PortId, Registrations, Relay,
    Verdict, mac1,
};
use wire::drop::DropReason;
use wire::key::Key;
use wire::wireguard::{INITIATION_COVERED_LEN, INITIATION_LEN, RESPONSE_COVERED_LEN, RESPONSE_LEN};

/// Where peers are by default, all of them on our first socket. One has IPv6.
const HOMES: [&str; 4] =
    ["198.51.100.1:51820", "203.0.113.2:40000", "[2001:db8::3]:51820", "203.0.113.4:4"];

/// Whom peers see their datagrams come from.
const RELAY: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A place on our first socket.
pub(crate) fn place(remote: &str) -> Place {
    Place::new(PortId(0), remote.parse().expect("an address"))
}

/// The public key of the peer with that number.
pub(crate) fn key(peer: usize) -> Key {
    Key(*PublicKey::from(&secret(peer)).as_bytes())
}

fn secret(peer: usize) -> StaticSecret {
    StaticSecret::from([peer as u8 + 1; 32])
}

/// A stock peer: one key, one socket, a tunnel for each other peer it is configured with.
pub(crate) struct Node {
    pub(crate) place: Place,
    peer: usize,
    tunnels: Vec<(usize, Tunn)>,
    /// What came out of its tunnels: from whom, and the number in the packet.
    pub(crate) inbox: Vec<(usize, u8)>,
    /// Next index of a tunnel; they differ over all nodes and restarts.
    starts: u32,
}

impl Node {
    fn new(peer: usize, place: Place) -> Self {
        Self { place, peer, tunnels: Vec::new(), inbox: Vec::new(), starts: 0 }
    }

    fn tunnel(&mut self, other: usize) -> &mut Tunn {
        let at = self.tunnels.iter().position(|(it, _)| *it == other);
        let at = at.expect("the two are configured with each other");
        &mut self.tunnels[at].1
    }

    fn configure(&mut self, other: usize, handshakes_per_second: u64) {
        self.tunnels.retain(|(it, _)| *it != other);
        let limiter = RateLimiter::new(&PublicKey::from(&secret(self.peer)), handshakes_per_second);
        self.starts += 1;
        let tunnel = Tunn::new(
            secret(self.peer),
            PublicKey::from(&secret(other)),
            None,
            None,
            (self.peer as u32) << 16 | (other as u32) << 8 | self.starts,
            Some(Arc::new(limiter)),
        );
        self.tunnels.push((other, tunnel));
    }

    /// Takes a datagram in and returns what it makes the peer send.
    fn receive(&mut self, datagram: &[u8]) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        for (other, tunnel) in &mut self.tunnels {
            let mut input = datagram;
            let mut buffer = [0; 2048];
            loop {
                match tunnel.decapsulate(Some(RELAY), input, &mut buffer) {
                    TunnResult::WriteToNetwork(bytes) => sent.push(bytes.to_vec()),
                    TunnResult::WriteToTunnelV4(packet, _) => {
                        self.inbox.push((*other, packet[20]));
                        break;
                    }
                    TunnResult::WriteToTunnelV6(..) | TunnResult::Done | TunnResult::Err(_) => {
                        break;
                    }
                }
                // Asks for what was waiting for the handshake.
                input = &[];
            }
        }
        sent
    }
}

/// What became of one datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// By the data table.
    Forwarded(Place),
    /// By the relay.
    Sent(Vec<Place>),
    Dropped(DropReason),
}

/// What went over a link, both ways together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkStats {
    /// Transport messages.
    pub(crate) packets: u64,
    /// Their bytes, as UDP payload.
    pub(crate) bytes: u64,
}

pub(crate) struct World {
    pub(crate) relay: Relay,
    pub(crate) flows: Flows,
    stats: BTreeMap<LinkId, LinkStats>,
    pub(crate) now: Tick,
    pub(crate) nodes: Vec<Node>,
    effects: Effects,
    /// On their way to the relay.
    wire: VecDeque<(Place, Vec<u8>)>,
    /// Everything that reached the relay, in order, with its outcome.
    pub(crate) seen: Vec<(Place, Vec<u8>, Outcome)>,
    /// Bytes that came in and bytes that left.
    traffic: (usize, usize),
}

impl World {
    /// Peers that are configured with each other, all of them, and linked as said.
    pub(crate) fn new(peers: usize, links: &[(usize, usize)]) -> Self {
        Self::with_limits(peers, links, Limits::DEFAULT)
    }

    pub(crate) fn with_limits(peers: usize, links: &[(usize, usize)], limits: Limits) -> Self {
        let nodes = (0..peers).map(|peer| Node::new(peer, place(HOMES[peer]))).collect();
        let mut world = Self {
            relay: Relay::new(limits),
            flows: Flows::new(&limits),
            stats: BTreeMap::new(),
            now: Tick(1_000_000_000),
            nodes,
            effects: Effects::default(),
            wire: VecDeque::new(),
            seen: Vec::new(),
            traffic: (0, 0),
        };
        for peer in 0..peers {
            world.restart(peer, 1000);
        }
        world.register(0..peers, links);
        world
    }

    pub(crate) fn register(
        &mut self,
        peers: impl IntoIterator<Item = usize>,
        links: &[(usize, usize)],
    ) {
        let links = links.iter().map(|(a, b)| [key(*a), key(*b)]);
        let peers = peers.into_iter().map(key);
        let made = Registrations::new(peers, links, &Limits::DEFAULT).expect("valid");
        self.relay.register(&made, self.now, &mut self.effects);
        self.follow();
    }

    /// A relay that takes over from the one there is, with another data table.
    pub(crate) fn succeed(&mut self, peers: usize, links: &[(usize, usize)]) {
        let sessions: Vec<_> = self.relay.sessions(self.now).collect();
        self.relay = Relay::new(Limits::DEFAULT);
        self.flows = Flows::new(&Limits::DEFAULT);
        self.register(0..peers, links);
        self.relay.resume(sessions, self.now, &mut self.effects);
        self.follow();
    }

    /// A peer forgets all its sessions; it takes so many handshakes per second from each other.
    pub(crate) fn restart(&mut self, peer: usize, handshakes_per_second: u64) {
        for other in (0..self.nodes.len()).filter(|other| *other != peer) {
            self.nodes[peer].configure(other, handshakes_per_second);
        }
    }

    /// Lets time pass, with the relay's ticks in it.
    pub(crate) fn pass(&mut self, time: Duration) {
        for _ in 0..time.as_secs() {
            self.now = self.now.plus(Duration::from_secs(1));
            self.relay.tick(self.now, &mut self.effects);
            self.follow();
        }
    }

    /// A peer begins a handshake, as stock ones do when their data is unanswered, when a key is two
    /// minutes old, or when there is data and no key. Not delivered yet.
    pub(crate) fn initiate(&mut self, peer: usize, other: usize) {
        let mut buffer = [0; 2048];
        let node = &mut self.nodes[peer];
        match node.tunnel(other).format_handshake_initiation(&mut buffer, true) {
            TunnResult::WriteToNetwork(bytes) => self.wire.push_back((node.place, bytes.to_vec())),
            other => panic!("no initiation but {other:?}"),
        }
    }

    /// A peer sends a packet with a number in it, or begins a handshake if it has no key. Not
    /// delivered yet.
    pub(crate) fn talk(&mut self, peer: usize, other: usize, number: u8) {
        let mut packet = [0; 21];
        (packet[0], packet[3], packet[20]) = (0x45, 21, number);
        let mut buffer = [0; 2048];
        let node = &mut self.nodes[peer];
        match node.tunnel(other).encapsulate(&packet, &mut buffer) {
            TunnResult::WriteToNetwork(bytes) => self.wire.push_back((node.place, bytes.to_vec())),
            TunnResult::Done => {}
            other => panic!("no packet but {other:?}"),
        }
    }

    /// Delivers everything, and what that makes peers send, until all is quiet.
    pub(crate) fn deliver(&mut self) {
        while let Some((from, datagram)) = self.wire.pop_front() {
            let places = match self.judge(from, &datagram) {
                Outcome::Forwarded(to) => vec![to],
                Outcome::Sent(copies) => copies,
                Outcome::Dropped(_) => Vec::new(),
            };
            for node in &mut self.nodes {
                if places.contains(&node.place) {
                    let answers = node.receive(&datagram);
                    self.wire.extend(answers.into_iter().map(|it| (node.place, it)));
                }
            }
        }
    }

    /// Puts a datagram on its way to the relay.
    pub(crate) fn send(&mut self, from: Place, datagram: &[u8]) {
        self.wire.push_back((from, datagram.to_vec()));
    }

    /// Takes off the wire what was sent last.
    pub(crate) fn take(&mut self) -> (Place, Vec<u8>) {
        self.wire.pop_back().expect("something is on its way")
    }

    /// Hands a datagram to a peer as if the relay had sent it.
    pub(crate) fn receive(&mut self, peer: usize, datagram: &[u8]) {
        let node = &mut self.nodes[peer];
        let answers = node.receive(datagram);
        self.wire.extend(answers.into_iter().map(|it| (node.place, it)));
    }

    /// Lets the relay judge a datagram, and delivers it to nobody.
    pub(crate) fn judge(&mut self, from: Place, datagram: &[u8]) -> Outcome {
        self.traffic.0 += datagram.len();
        let outcome = match self.flows.forward(datagram, from) {
            Some(target) => {
                self.count(target.link, datagram);
                Outcome::Forwarded(target.to)
            }
            None => {
                let verdict = self.relay.step(datagram, from, self.now, &mut self.effects);
                if let Some(link) = self.effects.link {
                    self.count(link, datagram);
                }
                match verdict {
                    Verdict::Sent => Outcome::Sent(self.effects.copies.clone()),
                    Verdict::Drop(reason) => Outcome::Dropped(reason),
                }
            }
        };
        self.follow();
        self.traffic.1 += datagram.len()
            * match &outcome {
                Outcome::Forwarded(_) => 1,
                Outcome::Sent(copies) => copies.len(),
                Outcome::Dropped(_) => 0,
            };
        assert!(self.traffic.1 <= self.traffic.0, "more went out than came in");
        self.seen.push((from, datagram.to_vec(), outcome.clone()));
        outcome
    }

    fn count(&mut self, link: LinkId, datagram: &[u8]) {
        let stats = self.stats.entry(link).or_default();
        stats.packets += 1;
        stats.bytes += datagram.len() as u64;
    }

    /// What the loop does after every call of the relay.
    fn follow(&mut self) {
        self.relay.check();
        assert!(self.effects.flows.len() <= 8 || self.effects.copies.is_empty());
        for change in &self.effects.flows {
            self.flows.apply(change);
            if let FlowChange::Forget(link) = change {
                self.stats.remove(link);
            }
        }
        self.effects.flows.clear();
        let sessions: usize = self.relay.links().map(|link| link.sessions).sum();
        assert_eq!(self.flows.len(), 2 * sessions, "the data table is a replica");
    }

    /// A handshake from one peer to another that must succeed at once.
    pub(crate) fn connect(&mut self, peer: usize, other: usize) {
        let before = self.relay.counters().completed;
        self.initiate(peer, other);
        self.deliver();
        assert_eq!(self.relay.counters().completed, before + 1, "{:?}", self.outcomes());
    }

    /// From nothing known to a session of the two.
    pub(crate) fn cold_start(&mut self, peer: usize, other: usize) {
        self.initiate(peer, other);
        self.deliver();
        self.initiate(other, peer);
        self.deliver();
        self.assert_talking(peer, other);
    }

    /// Packets go both ways, by the data table alone.
    #[track_caller]
    pub(crate) fn assert_talking(&mut self, peer: usize, other: usize) {
        for (from, to) in [(peer, other), (other, peer)] {
            self.nodes[to].inbox.clear();
            let seen = self.seen.len();
            self.talk(from, to, 77);
            self.deliver();
            assert_eq!(self.nodes[to].inbox, [(from, 77)], "{:?}", self.outcomes());
            let forwarded = Outcome::Forwarded(self.nodes[to].place);
            assert!(self.seen[seen..].iter().all(|(_, _, outcome)| *outcome == forwarded));
        }
    }

    pub(crate) fn endpoint(&self, peer: usize) -> Option<Place> {
        self.relay.peers().find(|it| it.key == key(peer)).and_then(|it| it.endpoint)
    }

    pub(crate) fn link(&self, a: usize, b: usize) -> LinkId {
        let peers = [key(a).min(key(b)), key(a).max(key(b))];
        self.relay.links().find(|it| it.peers == peers).expect("linked").link
    }

    pub(crate) fn stats(&self, link: LinkId) -> LinkStats {
        self.stats.get(&link).copied().unwrap_or_default()
    }

    /// The last datagram of a kind that the relay saw.
    pub(crate) fn last(&self, kind: u8) -> (Place, Vec<u8>) {
        let found = self.seen.iter().rev().find(|(_, it, _)| it.first() == Some(&kind));
        let (from, datagram, _) = found.expect("one was sent");
        (*from, datagram.clone())
    }

    /// The newest outcomes, for messages.
    pub(crate) fn outcomes(&self) -> Vec<(u8, &Outcome)> {
        self.seen.iter().rev().take(6).map(|(_, it, outcome)| (it[0], outcome)).collect()
    }
}

/// An initiation that says nothing true but for whom it is.
pub(crate) fn forged_initiation(to: &Key, sender: u32) -> Vec<u8> {
    let mut bytes = vec![0x5a; INITIATION_LEN];
    bytes[..4].copy_from_slice(&[1, 0, 0, 0]);
    bytes[4..8].copy_from_slice(&sender.to_le_bytes());
    let mac = mac1(to, &bytes[..INITIATION_COVERED_LEN]);
    bytes[INITIATION_COVERED_LEN..][..16].copy_from_slice(&mac);
    bytes
}

/// A response that says nothing true but for whom it is.
pub(crate) fn forged_response(to: &Key, sender: u32, receiver: Index) -> Vec<u8> {
    let mut bytes = vec![0xa5; RESPONSE_LEN];
    bytes[..4].copy_from_slice(&[2, 0, 0, 0]);
    bytes[4..8].copy_from_slice(&sender.to_le_bytes());
    bytes[8..12].copy_from_slice(&receiver.0.to_le_bytes());
    let mac = mac1(to, &bytes[..RESPONSE_COVERED_LEN]);
    bytes[RESPONSE_COVERED_LEN..][..16].copy_from_slice(&mac);
    bytes
}

/// A keepalive that opens for nobody.
pub(crate) fn forged_data(receiver: u32) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[0] = 4;
    bytes[4..8].copy_from_slice(&receiver.to_le_bytes());
    bytes
}
