//! Stock WireGuard peers (boringtun) over real sockets, driven by whoever waits for something.
//!
//! Owns the tunnels, what came out of them, and counts of what went in. A peer is given its socket,
//! connected to the relay, and so may live in any network namespace. Nothing runs between two calls.
//! The tests of the WireGuard relay call it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use base64::{Engine, prelude::BASE64_STANDARD};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use steer::PeerKey;
use wire::key::Key;

use crate::process::PATIENCE;

/// Longest datagram there is.
const DATAGRAM_LEN_MAX: usize = 1 << 16;
/// Between two looks of a peer at its timers.
const TIMERS: Duration = Duration::from_millis(100);
/// Between two tries to reach a peer.
const AGAIN: Duration = Duration::from_millis(200);
/// Bytes of an IPv4 header.
const HEADER_LEN: usize = 20;
/// Bytes of a UDP header.
const UDP_LEN: usize = 8;
/// Protocol number of UDP.
const UDP: u8 = 17;
/// First byte of a data message.
const DATA: u8 = 4;
/// Packets of one burst: fewer than a default socket buffer holds, even where each takes a page.
const BURST: u64 = 32;

/// A peer's name and key pair, the same in every test.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// What the operator calls it.
    pub name: &'static str,
    seed: u8,
}

/// The first of the usual two.
pub const ALICE: Identity = Identity { name: "alice", seed: 1 };
/// The second of them.
pub const BOB: Identity = Identity { name: "bob", seed: 2 };
/// Somebody else.
pub const CAROL: Identity = Identity { name: "carol", seed: 3 };

impl Identity {
    fn secret(self) -> StaticSecret {
        StaticSecret::from([self.seed; 32])
    }

    fn public(self) -> PublicKey {
        PublicKey::from(&self.secret())
    }

    /// Its public key, as control names it.
    #[must_use]
    pub fn peer_key(self) -> PeerKey {
        PeerKey(Key(*self.public().as_bytes()))
    }

    /// Its table in a configuration file.
    #[must_use]
    pub fn table(self) -> String {
        let key = BASE64_STANDARD.encode(self.public().as_bytes());
        format!("[[wireguard.peer]]\nname = \"{}\"\npublic_key = \"{key}\"\n", self.name)
    }
}

/// A configuration file that listens on `listen`, a TOML list's inside, with these peers and links.
#[must_use]
pub fn configuration(listen: &str, peers: &[Identity], links: &[[Identity; 2]]) -> String {
    let peers: String = peers.iter().map(|peer| peer.table()).collect();
    let links = links.iter().map(|[one, other]| {
        format!("[[wireguard.link]]\npeers = [\"{}\", \"{}\"]\n", one.name, other.name)
    });
    format!("[udp]\nlisten = [{listen}]\n{peers}{}", links.collect::<String>())
}

/// A peer that talks to one other.
pub struct Peer {
    own: Identity,
    other: Identity,
    tunnel: Box<Tunn>,
    socket: UdpSocket,
    /// What came out of the tunnel, without the IP header.
    pub inbox: Vec<Vec<u8>>,
    /// Datagrams that came from the relay.
    pub heard: usize,
    /// Bytes in them.
    pub heard_bytes: usize,
    /// Handshake messages sent.
    pub handshakes: usize,
    /// Data messages sent, keepalives among them.
    pub data: u64,
    /// Bytes in them.
    pub data_bytes: u64,
    /// Those of them that XDP cannot tell from ones with a checksum left to the network card, so
    /// that they go through the sockets: one in 65,536.
    pub doubtful: u64,
    /// The newest message sent of each kind, by its first byte.
    pub newest: BTreeMap<u8, Vec<u8>>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Peer {
    /// A peer behind `socket`, which is connected to the relay and does not block.
    #[must_use]
    pub fn new(own: Identity, other: Identity, socket: UdpSocket) -> Self {
        Self {
            own,
            other,
            tunnel: tunnel(own, other),
            socket,
            inbox: Vec::new(),
            heard: 0,
            heard_bytes: 0,
            handshakes: 0,
            data: 0,
            data_bytes: 0,
            doubtful: 0,
            newest: BTreeMap::new(),
        }
    }

    /// The same peer as `other` knows it, behind the same socket: what comes is whose that looks first.
    ///
    /// # Panics
    /// When the system gives no second descriptor.
    #[must_use]
    pub fn beside(&self, other: Identity) -> Self {
        let socket = self.socket.try_clone().expect("a free descriptor");
        Self::new(self.own, other, socket)
    }

    /// Forgets every session, as a restart does, and goes on behind `socket`.
    pub fn restart(&mut self, socket: UdpSocket) {
        self.tunnel = tunnel(self.own, self.other);
        self.socket = socket;
    }

    /// Goes on from another place.
    pub fn move_to(&mut self, socket: UdpSocket) {
        self.socket = socket;
    }

    /// Where it is.
    ///
    /// # Panics
    /// Never: its socket is bound.
    #[must_use]
    pub fn place(&self) -> SocketAddr {
        self.socket.local_addr().expect("a connected socket is bound")
    }

    /// Sends a packet through the tunnel, or begins a handshake and keeps the packet.
    ///
    /// # Panics
    /// When the tunnel refuses it.
    pub fn send(&mut self, payload: &[u8]) {
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        let packet = ipv4(payload);
        match self.tunnel.encapsulate(&packet, &mut buffer) {
            TunnResult::WriteToNetwork(datagram) => self.emit(datagram),
            TunnResult::Done => {}
            other => panic!("{}: {other:?}", self.own.name),
        }
    }

    /// Begins a handshake although there may be a session.
    ///
    /// # Panics
    /// When the tunnel refuses to.
    pub fn begin(&mut self) {
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        match self.tunnel.format_handshake_initiation(&mut buffer, true) {
            TunnResult::WriteToNetwork(datagram) => self.emit(datagram),
            other => panic!("{}: {other:?}", self.own.name),
        }
    }

    /// Sends bytes past the tunnel.
    ///
    /// # Panics
    /// When the kernel does not take them.
    pub fn send_raw(&self, datagram: &[u8]) {
        // A refusal tells of an earlier datagram, that its port was closed; it comes once.
        let sent = match self.socket.send(datagram) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                self.socket.send(datagram)
            }
            sent => sent,
        };
        match sent {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            sent => _ = sent.expect("the way to the relay is there"),
        }
    }

    fn emit(&mut self, datagram: &[u8]) {
        if datagram[0] == DATA {
            self.data += 1;
            self.data_bytes += datagram.len() as u64;
            self.doubtful += u64::from(looks_partial(&self.socket, datagram));
        } else {
            self.handshakes += 1;
        }
        self.newest.insert(datagram[0], datagram.to_vec());
        self.send_raw(datagram);
    }

    /// Takes in what has come.
    fn receive(&mut self) {
        let mut datagram = [0; DATAGRAM_LEN_MAX];
        loop {
            match self.socket.recv(&mut datagram) {
                Ok(len) => {
                    self.heard += 1;
                    self.heard_bytes += len;
                    self.take_in(&datagram[..len]);
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(_) => return,
            }
        }
    }

    fn take_in(&mut self, datagram: &[u8]) {
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        let mut result = self.tunnel.decapsulate(None, datagram, &mut buffer);
        // Packets that waited for the handshake follow as long as asked for with nothing.
        while let TunnResult::WriteToNetwork(answer) = result {
            self.emit(answer);
            result = self.tunnel.decapsulate(None, &[], &mut buffer);
        }
        if let TunnResult::WriteToTunnelV4(packet, _) = result {
            self.inbox.push(packet[HEADER_LEN..].to_vec());
        }
    }

    fn look_at_timers(&mut self) {
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        if let TunnResult::WriteToNetwork(datagram) = self.tunnel.update_timers(&mut buffer) {
            self.emit(datagram);
        }
    }
}

/// Lets `peers` run until `done` says so.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub fn run<const N: usize>(
    what: &str,
    mut peers: [&mut Peer; N],
    mut done: impl FnMut(&mut [&mut Peer; N]) -> bool,
) {
    let until = Instant::now() + PATIENCE;
    while !done(&mut peers) {
        assert!(Instant::now() < until, "{what} did not come about");
        attend(&mut peers, TIMERS);
    }
}

/// Lets `peers` run for so long: to see that something does not happen.
pub fn idle<const N: usize>(peers: [&mut Peer; N], time: Duration) {
    let until = Instant::now() + time;
    run("the end of a pause", peers, |_| Instant::now() >= until);
}

/// Sends `payload` from one to the other and waits until it is there.
pub fn ping(from: &mut Peer, to: &mut Peer, payload: &[u8]) {
    from.send(payload);
    run("a packet's arrival", [from, to], |[_, to]| to.inbox.iter().any(|it| it == payload));
}

/// As [`ping`], again and again: for a time in which packets may go astray.
pub fn reach(from: &mut Peer, to: &mut Peer, payload: &[u8]) {
    let mut next = Instant::now();
    run("a packet's arrival", [from, to], |[from, to]| {
        if Instant::now() >= next {
            from.send(payload);
            next = Instant::now() + AGAIN;
        }
        to.inbox.iter().any(|it| it == payload)
    });
}

/// Sends `packets` of lengths up to 1,400 bytes in bursts and waits for each burst. Returns how many
/// of them were not doubtful.
///
/// # Panics
/// When one is missing, changed or, in a burst without doubtful ones, out of order.
pub fn bulk(from: &mut Peer, to: &mut Peer, packets: u64) -> u64 {
    let payload = |number: u64| {
        // Neighbours of one length may leave the relay as a run.
        let len = number / 16 * 99 % 1393;
        [number.to_be_bytes().to_vec(), vec![number as u8; len as usize]].concat()
    };
    to.inbox.clear();
    let (mut sent, doubtful) = (0, from.doubtful);
    while sent < packets {
        let burst = BURST.min(packets - sent);
        let before = from.doubtful;
        (sent..sent + burst).for_each(|number| from.send(&payload(number)));
        run("a burst", [&mut *from, &mut *to], |[_, to]| to.inbox.len() as u64 >= burst);
        if from.doubtful > before {
            // It was overtaken.
            to.inbox.sort();
        }
        for (number, got) in (sent..).zip(to.inbox.drain(..)) {
            assert!(got == payload(number), "packet {number} is missing or came out of order");
        }
        sent += burst;
    }
    packets - (from.doubtful - doubtful)
}

/// Numbered packets from one peer to another, as steadily as they are asked for.
#[derive(Debug, Default)]
pub struct Stream {
    /// Whether each came that was sent.
    came: Vec<bool>,
    /// Numbers of those that are, see [`Peer::doubtful`].
    doubtful: Vec<usize>,
}

impl Stream {
    /// What the packets of streams begin with.
    const MARK: &[u8; 8] = b"stream: ";

    /// Sends the next one, and lets both peers run until something comes or a millisecond is over.
    pub fn step(&mut self, from: &mut Peer, to: &mut Peer) {
        let before = from.doubtful;
        from.send(&[Self::MARK.as_slice(), &self.came.len().to_be_bytes()].concat());
        if from.doubtful > before {
            self.doubtful.push(self.came.len());
        }
        self.came.push(false);
        attend(&mut [from, &mut *to], Duration::from_millis(1));
        self.sort(to);
    }

    /// Whether the packet of this number is, see [`Peer::doubtful`].
    #[must_use]
    pub fn is_doubtful(&self, number: usize) -> bool {
        self.doubtful.contains(&number)
    }

    /// How many were sent.
    #[must_use]
    pub fn len(&self) -> usize {
        self.came.len()
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.came.is_empty()
    }

    /// The numbers of those that did not come, after `patience` for those on their way.
    pub fn missing(&mut self, from: &mut Peer, to: &mut Peer, patience: Duration) -> Vec<usize> {
        let until = Instant::now() + patience;
        while self.came.contains(&false) && Instant::now() < until {
            attend(&mut [&mut *from, &mut *to], TIMERS);
            self.sort(to);
        }
        let numbered = self.came.iter().enumerate();
        numbered.filter(|(_, came)| !**came).map(|(number, _)| number).collect()
    }

    fn sort(&mut self, to: &mut Peer) {
        to.inbox.retain(|packet| {
            let number = packet.strip_prefix(Self::MARK).and_then(|it| it.try_into().ok());
            let place = number.and_then(|it| self.came.get_mut(usize::from_be_bytes(it)));
            place.map(|came| *came = true).is_none()
        });
    }
}

/// Lets `peers` do what has come for them in the next `time`, and what is due.
fn attend(peers: &mut [&mut Peer], time: Duration) {
    let mut fds: Vec<_> =
        peers.iter().map(|peer| PollFd::new(&peer.socket, PollFlags::IN)).collect();
    let time = Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
    // An interrupted wait is a short one.
    let _ = poll(&mut fds, Some(&time));
    for peer in peers {
        peer.receive();
        peer.look_at_timers();
    }
}

/// Whether the UDP checksum (RFC 768) of what a socket sends is the sum of its pseudo header.
fn looks_partial(socket: &UdpSocket, payload: &[u8]) -> bool {
    let [own, other] = [socket.local_addr(), socket.peer_addr()]
        .map(|address| address.expect("a connected socket has both"));
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let len = u16::try_from(UDP_LEN + payload.len()).expect("it was sent").to_be_bytes();
    let pseudo = [octets(own.ip()), octets(other.ip()), vec![0, UDP], len.to_vec()].concat();
    let ports = [own.port().to_be_bytes(), other.port().to_be_bytes()].concat();
    let header = sum(&pseudo);
    let whole = !sum(&[&pseudo, &ports, len.as_slice(), payload].concat());
    whole == header
}

/// The ones' complement sum of `bytes` in pairs (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let pairs = bytes.chunks(2).map(|pair| {
        u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]))
    });
    let total = pairs.sum::<u64>() % 0xffff;
    // Of the two zeros a sum of anything but zeros has this one.
    if total == 0 { 0xffff } else { total as u16 }
}

fn tunnel(own: Identity, other: Identity) -> Box<Tunn> {
    Box::new(Tunn::new(own.secret(), other.public(), None, None, u32::from(own.seed), None))
}

/// A socket on a free port of `own` that hears `relay` alone, so that answers from another address
/// are lost.
///
/// # Panics
/// When `own` is no address of this network namespace.
#[must_use]
pub fn socket(own: IpAddr, relay: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((own, 0)).expect("an own address has free ports");
    socket.connect(relay).expect("there is a way to the relay");
    socket.set_nonblocking(true).expect("a socket can be");
    socket
}

/// As [`socket`], for a relay on loopback: on its address, or on one beside it.
#[must_use]
pub fn loopback(relay: SocketAddr) -> UdpSocket {
    let own = match relay {
        SocketAddr::V4(_) => [127, 0, 0, 9].into(),
        SocketAddr::V6(_) => relay.ip(),
    };
    socket(own, relay)
}

/// An IPv4 packet whose header has what boringtun looks at: version, length and source.
fn ipv4(payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(HEADER_LEN + payload.len()).expect("a packet fits its length field");
    let mut packet = vec![0; HEADER_LEN];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
    packet.extend_from_slice(payload);
    packet
}
