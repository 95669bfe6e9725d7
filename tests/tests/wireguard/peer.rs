//! Stock WireGuard peers (boringtun) over real sockets, driven by whoever waits for something.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use base64::{Engine, prelude::BASE64_STANDARD};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tests::process::PATIENCE;

/// Longest datagram there is.
const DATAGRAM_LEN_MAX: usize = 1 << 16;
/// Between two looks of a peer at its timers.
const TIMERS_MS: i64 = 100;
/// Between two tries to reach a peer.
const AGAIN: Duration = Duration::from_millis(200);
/// Bytes of an IPv4 header.
const HEADER_LEN: usize = 20;

/// A peer's name and key pair, the same in every test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) name: &'static str,
    seed: u8,
}

pub(crate) const ALICE: Identity = Identity { name: "alice", seed: 1 };
pub(crate) const BOB: Identity = Identity { name: "bob", seed: 2 };
pub(crate) const CAROL: Identity = Identity { name: "carol", seed: 3 };

impl Identity {
    fn secret(self) -> StaticSecret {
        StaticSecret::from([self.seed; 32])
    }

    fn public(self) -> PublicKey {
        PublicKey::from(&self.secret())
    }

    /// Its table in a configuration file.
    pub(crate) fn table(self) -> String {
        let key = BASE64_STANDARD.encode(self.public().as_bytes());
        format!("[[wireguard.peer]]\nname = \"{}\"\npublic_key = \"{key}\"\n", self.name)
    }
}

/// A peer that talks to one other.
pub(crate) struct Peer {
    own: Identity,
    other: Identity,
    tunnel: Box<Tunn>,
    socket: UdpSocket,
    relay: SocketAddr,
    /// What came out of the tunnel, without the IP header.
    pub(crate) inbox: Vec<Vec<u8>>,
    /// Datagrams that came from the relay.
    pub(crate) heard: usize,
    /// Handshake messages sent.
    pub(crate) handshakes: usize,
}

impl Peer {
    /// A peer on a free port of the relay's address, or of loopback beside it.
    pub(crate) fn new(own: Identity, other: Identity, relay: SocketAddr) -> Self {
        Self {
            own,
            other,
            tunnel: tunnel(own, other),
            socket: socket(relay),
            relay,
            inbox: Vec::new(),
            heard: 0,
            handshakes: 0,
        }
    }

    /// Forgets every session, as a restart does; the port is a new one.
    pub(crate) fn restart(&mut self) {
        self.tunnel = tunnel(self.own, self.other);
        self.move_away();
    }

    /// Goes on from another port.
    pub(crate) fn move_away(&mut self) {
        self.socket = socket(self.relay);
    }

    /// Sends a packet through the tunnel, or begins a handshake and keeps the packet.
    pub(crate) fn send(&mut self, payload: &[u8]) {
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        let packet = ipv4(payload);
        match self.tunnel.encapsulate(&packet, &mut buffer) {
            TunnResult::WriteToNetwork(datagram) => {
                self.handshakes += usize::from(datagram[0] != 4);
                self.socket.send(datagram).expect("loopback takes it");
            }
            TunnResult::Done => {}
            other => panic!("{}: {other:?}", self.own.name),
        }
    }

    /// Begins a handshake although there may be a session.
    pub(crate) fn begin(&mut self) {
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        match self.tunnel.format_handshake_initiation(&mut buffer, true) {
            TunnResult::WriteToNetwork(datagram) => {
                self.handshakes += 1;
                self.socket.send(datagram).expect("loopback takes it");
            }
            other => panic!("{}: {other:?}", self.own.name),
        }
    }

    /// Sends bytes past the tunnel.
    pub(crate) fn send_raw(&self, datagram: &[u8]) {
        self.socket.send(datagram).expect("loopback takes it");
    }

    /// Takes in what has come.
    fn receive(&mut self) {
        let mut datagram = [0; DATAGRAM_LEN_MAX];
        while let Ok(len) = self.socket.recv(&mut datagram) {
            self.heard += 1;
            self.take_in(&datagram[..len]);
        }
    }

    fn take_in(&mut self, datagram: &[u8]) {
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        let mut result = self.tunnel.decapsulate(None, datagram, &mut buffer);
        // Packets that waited for the handshake follow as long as asked for with nothing.
        while let TunnResult::WriteToNetwork(answer) = result {
            self.handshakes += usize::from(answer[0] != 4);
            self.socket.send(answer).expect("loopback takes it");
            result = self.tunnel.decapsulate(None, &[], &mut buffer);
        }
        if let TunnResult::WriteToTunnelV4(packet, _) = result {
            self.inbox.push(packet[HEADER_LEN..].to_vec());
        }
    }

    fn look_at_timers(&mut self) {
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        if let TunnResult::WriteToNetwork(datagram) = self.tunnel.update_timers(&mut buffer) {
            self.handshakes += usize::from(datagram[0] != 4);
            self.socket.send(datagram).expect("loopback takes it");
        }
    }
}

/// Lets `peers` run until `done` says so.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub(crate) fn run<const N: usize>(
    what: &str,
    mut peers: [&mut Peer; N],
    mut done: impl FnMut(&mut [&mut Peer; N]) -> bool,
) {
    let until = Instant::now() + PATIENCE;
    while !done(&mut peers) {
        assert!(Instant::now() < until, "{what} did not come about");
        wait(&peers);
        for peer in &mut peers {
            peer.receive();
            peer.look_at_timers();
        }
    }
}

/// Lets `peers` run for so long: to see that something does not happen.
pub(crate) fn idle<const N: usize>(peers: [&mut Peer; N], time: Duration) {
    let until = Instant::now() + time;
    run("the end of a pause", peers, |_| Instant::now() >= until);
}

/// Sends `payload` from one to the other and waits until it is there.
pub(crate) fn ping(from: &mut Peer, to: &mut Peer, payload: &[u8]) {
    from.send(payload);
    run("a packet's arrival", [from, to], |[_, to]| to.inbox.iter().any(|it| it == payload));
}

/// As [`ping`], again and again: for a time in which packets may go astray.
pub(crate) fn reach(from: &mut Peer, to: &mut Peer, payload: &[u8]) {
    let mut next = Instant::now();
    run("a packet's arrival", [from, to], |[from, to]| {
        if Instant::now() >= next {
            from.send(payload);
            next = Instant::now() + AGAIN;
        }
        to.inbox.iter().any(|it| it == payload)
    });
}

fn wait(peers: &[&mut Peer]) {
    let mut fds: Vec<_> =
        peers.iter().map(|peer| PollFd::new(&peer.socket, PollFlags::IN)).collect();
    let time = Timespec { tv_sec: 0, tv_nsec: TIMERS_MS * 1_000_000 };
    // An interrupted wait is a short one.
    let _ = poll(&mut fds, Some(&time));
}

fn tunnel(own: Identity, other: Identity) -> Box<Tunn> {
    Box::new(Tunn::new(own.secret(), other.public(), None, None, u32::from(own.seed), None))
}

/// A socket that hears the relay's address alone, so that answers from another one are lost.
fn socket(relay: SocketAddr) -> UdpSocket {
    let own: IpAddr = match relay {
        SocketAddr::V4(_) => [127, 0, 0, 9].into(),
        SocketAddr::V6(_) => relay.ip(),
    };
    let socket = UdpSocket::bind((own, 0)).expect("loopback has free ports");
    socket.connect(relay).expect("loopback is reachable");
    socket.set_nonblocking(true).expect("a socket can be");
    socket
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
