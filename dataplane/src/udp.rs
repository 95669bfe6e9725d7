//! The STUN port: one non-blocking UDP socket of one core.
//!
//! Owns the socket, its receive buffers and the way an answer leaves: from the address that was
//! asked, which on a host with several is not the kernel's first choice. It never blocks, allocates
//! nothing after [`UdpSocket::bind`], and judges nothing itself; that is [`Responder`]'s work. The
//! relay worker calls [`UdpSocket::serve`] when the descriptor is readable.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::{array, fmt};

use proto::stun::{Responder, Verdict};
use proto::tick::Tick;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use wire::drop::DropReason;
use wire::stun::ANSWER_LEN_MAX;

use crate::observe::{CoreCounters, Family, StunOutcome};

/// Buffers handed to the kernel per system call, at most quinn-udp's batch of 32.
const BATCH: usize = 32;
/// Bytes of one buffer: the longest datagram, and the longest run of datagrams that the kernel
/// hands over as one (GRO). Pages that no datagram reaches are never resident.
const BUFFER_LEN: usize = 64 << 10;
/// Kernel buffer asked for in each direction, in bytes. Bursts beyond the kernel's default of 208
/// KiB are lost while the core is busy with relay work (design decision 6).
const KERNEL_BUFFER_LEN: usize = 7 << 20;

/// Datagrams served per port and round. Each costs about two system calls' time, so that a flooded
/// port holds up relay work by well under a millisecond (invariant 11).
const ROUND_DATAGRAMS_MAX: usize = 128;

/// Whether anything is left to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The socket was empty at some moment; the next datagram makes it readable again.
    Drained,
    /// The budget ran out first; call again next round.
    BudgetSpent,
    /// Receiving failed. No datagram was lost by it; the next one makes the socket readable again.
    Failed(io::ErrorKind),
}

/// A STUN port of one core, as its worker keeps it.
#[derive(Debug)]
pub struct UdpPort {
    socket: UdpSocket,
    responder: Responder,
    /// Set by the worker when the descriptor becomes readable, cleared here when it is drained.
    pub(crate) ready: bool,
}

impl UdpPort {
    /// A port to be read at once.
    #[must_use]
    pub const fn new(socket: UdpSocket, responder: Responder) -> Self {
        Self { socket, responder, ready: true }
    }

    /// One round's work.
    pub fn serve(&mut self, now: Tick, counters: &CoreCounters) {
        let Self { socket, responder, ready } = self;
        *ready = match socket.serve(responder, now, counters, ROUND_DATAGRAMS_MAX) {
            Served::BudgetSpent => true,
            Served::Drained | Served::Failed(_) => false,
        };
    }
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A bound UDP socket and the buffers to read it.
pub struct UdpSocket {
    port: Port,
    /// [`BATCH`] times [`BUFFER_LEN`].
    buffer: Box<[u8]>,
}

/// The socket and what quinn-udp knows of it.
struct Port {
    socket: std::net::UdpSocket,
    state: UdpSocketState,
}

impl UdpSocket {
    /// Binds to `addr`; port 0 takes a free one. `[::]` also takes IPv4, every other IPv6 address
    /// takes IPv6 only. With `reuse_port` the sockets of several cores share the port.
    ///
    /// The kernel buffers are as large as the process may make them: 7 MiB with CAP_NET_ADMIN, else
    /// what `net.core.rmem_max` and `wmem_max` allow.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says, most often that the address is in use or not of this host.
    pub fn bind(addr: SocketAddr, reuse_port: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(!addr.ip().is_unspecified())?;
        }
        socket.set_reuse_port(reuse_port)?;
        enlarge_kernel_buffers(&socket);
        // The descriptor becomes non-blocking here, and reports addresses and runs of datagrams.
        let state = UdpSocketState::new((&socket).into())?;
        socket.bind(&addr.into())?;
        let buffer = vec![0; BATCH * BUFFER_LEN].into();
        Ok(Self { port: Port { socket: socket.into(), state }, buffer })
    }

    /// The address it is bound to.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.port.socket.local_addr()
    }

    /// Bytes that the kernel really buffers for reading, its own bookkeeping included.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn kernel_buffer_len(&self) -> io::Result<usize> {
        self.port.state.recv_buffer_size((&self.port.socket).into())
    }

    /// Reads until the socket is empty or `budget_datagrams` are done with, and answers what
    /// `responder` says is to be answered.
    ///
    /// Runs of datagrams are not split over two calls, so that the budget may be exceeded by up to
    /// 63 datagrams for each run in the last batch; plain clients send no runs.
    pub fn serve(
        &mut self,
        responder: &mut Responder,
        now: Tick,
        counters: &CoreCounters,
        budget_datagrams: usize,
    ) -> Served {
        let mut left = budget_datagrams;
        while left > 0 {
            let asked = left.min(BATCH);
            let mut parts = self.buffer.chunks_exact_mut(BUFFER_LEN);
            let mut buffers: [IoSliceMut<'_>; BATCH] =
                array::from_fn(|_| IoSliceMut::new(parts.next().unwrap_or_default()));
            let mut metas = [RecvMeta::default(); BATCH];
            let Port { socket, state } = &self.port;
            let read = state.recv(socket.into(), &mut buffers[..asked], &mut metas[..asked]);
            let read = match read {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Served::Drained,
                Err(error) => return Served::Failed(error.kind()),
            };
            for (buffer, meta) in buffers.iter().zip(&metas).take(read) {
                let bytes = buffer.get(..meta.len).unwrap_or_default();
                for datagram in datagrams(bytes, meta.stride) {
                    let outcome = self.port.answer(datagram, meta, responder, now);
                    counters.count_stun(outcome, family(meta.addr), datagram.len() as u64);
                    left = left.saturating_sub(1);
                }
            }
            if read < asked {
                return Served::Drained;
            }
        }
        Served::BudgetSpent
    }
}

impl Port {
    /// Answers one datagram if the responder says so.
    fn answer(
        &self,
        datagram: &[u8],
        meta: &RecvMeta,
        responder: &mut Responder,
        now: Tick,
    ) -> StunOutcome {
        let mut out = [0; ANSWER_LEN_MAX];
        let len = match responder.step(datagram, meta.addr, now, &mut out) {
            Verdict::Answer(len) => len,
            Verdict::Drop(reason) => return outcome(reason),
        };
        let answer = Transmit {
            destination: meta.addr,
            ecn: None,
            contents: out.get(..len).unwrap_or_default(),
            segment_size: None,
            src_ip: meta.dst_ip,
        };
        match self.state.try_send((&self.socket).into(), &answer) {
            Ok(()) => StunOutcome::Success,
            Err(_) => StunOutcome::WriteError,
        }
    }
}

/// The outcome that a responder's reason is counted as.
const fn outcome(reason: DropReason) -> StunOutcome {
    match reason {
        DropReason::NotStun => StunOutcome::NotStun,
        DropReason::RateLimited => StunOutcome::RateLimited,
        DropReason::SendFailed => StunOutcome::WriteError,
        // The rest are reasons of the DERP side and of the fast path, which no responder gives.
        DropReason::BadStun
        | DropReason::UnknownDest
        | DropReason::GoneDisconnected
        | DropReason::QueueHead
        | DropReason::QueueTail
        | DropReason::WriteError
        | DropReason::DupClient
        | DropReason::StaleSlot
        | DropReason::Shed => StunOutcome::BadStun,
    }
}

/// IPv4 over an IPv6 socket is IPv4.
fn family(source: SocketAddr) -> Family {
    match source.ip().to_canonical() {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// The datagrams in one buffer, all of `stride` bytes but the last. No bytes are an empty one.
fn datagrams(bytes: &[u8], stride: usize) -> impl Iterator<Item = &[u8]> {
    let stride = if stride == 0 { BUFFER_LEN } else { stride };
    let (first, rest) = bytes.split_at(stride.min(bytes.len()));
    std::iter::once(first).chain(rest.chunks(stride))
}

/// Asks for [`KERNEL_BUFFER_LEN`], beyond the system's limit where the process may. Less will do.
fn enlarge_kernel_buffers(socket: &Socket) {
    use rustix::net::sockopt;
    if sockopt::set_socket_recv_buffer_size_force(socket, KERNEL_BUFFER_LEN).is_err() {
        let _ = socket.set_recv_buffer_size(KERNEL_BUFFER_LEN);
    }
    if sockopt::set_socket_send_buffer_size_force(socket, KERNEL_BUFFER_LEN).is_err() {
        let _ = socket.set_send_buffer_size(KERNEL_BUFFER_LEN);
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.socket.as_fd()
    }
}

/// Without the buffers.
impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocket").field("socket", &self.port.socket).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::bucket::Rate;
    use proto::stun::{RATE_DEFAULT, Seed};
    use std::time::Duration;
    use wire::stun::{TxId, parse_answer, request};

    const TXID: TxId = TxId([9; 12]);

    /// A serving socket and what it has counted. Loopback delivers before `send` returns, so that
    /// no test has to wait for a datagram.
    struct Server {
        socket: UdpSocket,
        responder: Responder,
        counters: CoreCounters,
    }

    impl Server {
        /// `None` if this host has no address of that family.
        fn bind(addr: &str, rate: Rate) -> Option<Self> {
            let addr: SocketAddr = addr.parse().expect("an address");
            let socket = UdpSocket::bind(addr, false);
            if addr.is_ipv6() && socket.is_err() {
                return None;
            }
            Some(Self {
                socket: socket.expect("a free port of loopback"),
                responder: Responder::new(Seed([1, 2]), rate, Tick::ZERO),
                counters: CoreCounters::default(),
            })
        }

        fn serve(&mut self, budget_datagrams: usize) -> Served {
            let Self { socket, responder, counters } = self;
            socket.serve(responder, Tick::ZERO, counters, budget_datagrams)
        }

        fn count(&self, outcome: StunOutcome, family: Family) -> u64 {
            self.counters.stun[outcome.index()][family.index()].value()
        }

        /// The address of its port at `ip`.
        fn at(&self, ip: &str) -> SocketAddr {
            let port = self.socket.local_addr().expect("it is bound").port();
            SocketAddr::new(ip.parse().expect("an address"), port)
        }
    }

    /// A client's socket on `ip`, connected or not as the test wants.
    fn client(ip: &str) -> std::net::UdpSocket {
        let socket = std::net::UdpSocket::bind((ip, 0)).expect("a free port of loopback");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("not zero");
        socket
    }

    /// Sends a request from `from_ip` to the server at `server_ip` and checks who answers what.
    fn ask_and_check(server: &mut Server, from_ip: &str, server_ip: &str) {
        let (client, server_addr) = (client(from_ip), server.at(server_ip));
        client.send_to(&request(TXID), server_addr).expect("loopback takes it");
        assert_eq!(server.serve(100), Served::Drained);
        let mut bytes = [0; 100];
        let (len, source) = client.recv_from(&mut bytes).expect("an answer");
        let answer = parse_answer(&bytes[..len]).expect("a STUN answer");
        assert_eq!(source, server_addr);
        assert_eq!(answer.address, client.local_addr().expect("it is bound"));
        assert_eq!(answer.txid, TXID);
    }

    #[test]
    fn answers_from_the_queried_ipv4_address() {
        let mut server = Server::bind("0.0.0.0:0", RATE_DEFAULT).expect("IPv4");
        ask_and_check(&mut server, "127.0.0.1", "127.0.0.1");
        ask_and_check(&mut server, "127.0.0.1", "127.0.0.2");
        ask_and_check(&mut server, "127.0.0.3", "127.0.0.2");
        assert_eq!(server.count(StunOutcome::Success, Family::V4), 3);
        assert_eq!(server.count(StunOutcome::Success, Family::V6), 0);
    }

    #[test]
    fn answers_ipv6() {
        let Some(mut server) = Server::bind("[::1]:0", RATE_DEFAULT) else { return };
        ask_and_check(&mut server, "::1", "::1");
        assert_eq!(server.count(StunOutcome::Success, Family::V6), 1);
    }

    #[test]
    fn wildcard_ipv6_socket_also_answers_ipv4_from_the_queried_address() {
        let Some(mut server) = Server::bind("[::]:0", RATE_DEFAULT) else { return };
        ask_and_check(&mut server, "127.0.0.1", "127.0.0.2");
        ask_and_check(&mut server, "::1", "::1");
        assert_eq!(server.count(StunOutcome::Success, Family::V4), 1);
        assert_eq!(server.count(StunOutcome::Success, Family::V6), 1);
    }

    #[test]
    fn cores_share_a_port_if_asked_to() {
        let first = UdpSocket::bind(([127, 0, 0, 1], 0).into(), true).expect("a free port");
        let addr = first.local_addr().expect("it is bound");
        assert!(UdpSocket::bind(addr, true).is_ok());
        assert!(UdpSocket::bind(addr, false).is_err());
    }

    #[test]
    fn kernel_buffers_are_at_least_the_default() {
        let plain = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
        let ours = UdpSocket::bind(([127, 0, 0, 1], 0).into(), false).expect("a free port");
        let default = plain.recv_buffer_size().expect("a socket has one");
        assert!(ours.kernel_buffer_len().expect("a socket has one") >= default);
    }

    #[test]
    fn stops_when_the_budget_is_spent() {
        let mut server = Server::bind("127.0.0.1:0", RATE_DEFAULT).expect("IPv4");
        let client = client("127.0.0.1");
        for _ in 0..100 {
            client.send_to(&request(TXID), server.at("127.0.0.1")).expect("loopback takes it");
        }
        assert_eq!(server.serve(0), Served::BudgetSpent);
        assert_eq!(server.serve(40), Served::BudgetSpent);
        assert_eq!(server.counters.flow().received, 40);
        assert_eq!(server.serve(100), Served::Drained);
        assert_eq!(server.counters.flow().answered, 100);
        assert_eq!(server.serve(1), Served::Drained);
    }

    #[test]
    fn a_port_is_ready_until_it_is_drained() {
        let server = Server::bind("127.0.0.1:0", RATE_DEFAULT).expect("IPv4");
        let (addr, client) = (server.at("127.0.0.1"), client("127.0.0.1"));
        let mut port = UdpPort::new(server.socket, server.responder);
        for _ in 0..ROUND_DATAGRAMS_MAX + 1 {
            client.send_to(&request(TXID), addr).expect("loopback takes it");
        }
        port.serve(Tick::ZERO, &server.counters);
        assert!(port.ready);
        port.serve(Tick::ZERO, &server.counters);
        assert!(!port.ready);
        assert_eq!(server.counters.flow().answered, 129);
    }

    #[test]
    fn counts_every_datagram_once() {
        let mut server =
            Server::bind("127.0.0.1:0", Rate { per_second: 0, burst: 2 }).expect("IPv4");
        let client = client("127.0.0.1");
        let (whole, cut) = (request(TXID), &request(TXID)[..38]);
        for datagram in [&[][..], b"hello", cut, &whole, &whole, &whole] {
            client.send_to(datagram, server.at("127.0.0.1")).expect("loopback takes it");
        }
        assert_eq!(server.serve(100), Served::Drained);
        for (outcome, count) in [
            (StunOutcome::Success, 2),
            (StunOutcome::NotStun, 2),
            (StunOutcome::BadStun, 1),
            (StunOutcome::RateLimited, 1),
            (StunOutcome::WriteError, 0),
        ] {
            assert_eq!(server.count(outcome, Family::V4), count, "{outcome:?}");
        }
        let flow = server.counters.flow();
        assert_eq!((flow.received, flow.answered + flow.dropped), (6, 6));
    }

    #[test]
    fn answers_each_datagram_of_a_run() {
        let mut server = Server::bind("127.0.0.1:0", RATE_DEFAULT).expect("IPv4");
        let client = client("127.0.0.1");
        let sender = UdpSocketState::new((&client).into()).expect("a UDP socket");
        let contents = request(TXID).repeat(10);
        let run = Transmit {
            destination: server.at("127.0.0.1"),
            ecn: None,
            contents: &contents[..contents.len() - 1],
            segment_size: Some(40),
            src_ip: None,
        };
        sender.try_send((&client).into(), &run).expect("this kernel segments");
        assert_eq!(server.serve(100), Served::Drained);
        let flow = server.counters.flow();
        assert_eq!((flow.received, flow.answered, flow.dropped), (10, 9, 1));
    }

    #[test]
    fn a_refused_answer_is_a_drop() {
        let mut server = Server::bind("127.0.0.1:0", RATE_DEFAULT).expect("IPv4");
        let mut meta = RecvMeta::default();
        meta.addr = ([127, 0, 0, 1], 0).into();
        let port = &server.socket.port;
        let outcome = port.answer(&request(TXID), &meta, &mut server.responder, Tick::ZERO);
        assert_eq!(outcome, StunOutcome::WriteError);
    }

    #[test]
    fn runs_split_by_stride() {
        let split = |bytes, stride| datagrams(bytes, stride).collect::<Vec<_>>();
        assert_eq!(split(b"", 0), [b""]);
        assert_eq!(split(b"abc", 3), [b"abc"]);
        assert_eq!(split(b"abcde", 2), [&b"ab"[..], b"cd", b"e"]);
        assert_eq!(split(b"abc", 9), [b"abc"]);
        assert_eq!(split(b"ab", 0), [b"ab"]);
    }
}
