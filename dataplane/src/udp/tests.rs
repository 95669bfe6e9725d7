//! The ports of one core over loopback, which delivers before a send returns.

use super::*;
use std::time::{Duration, UNIX_EPOCH};

use proto::bucket::Rate;
use proto::stun::{RATE_DEFAULT, Seed};
use proto::wireguard::{FlowChange, FlowKey, FlowTarget, Index, LinkId};
use quinn_udp::{Transmit, UdpSocketState};
use socket2::{Domain, Socket, Type};
use wire::stun::{TxId, parse_answer, request};

use crate::observe::{BuildInfo, Registry};

const TXID: TxId = TxId([9; 12]);

/// The UDP side of the only core, with one port, and what it has counted. Loopback delivers before
/// `send` returns, so that no test has to wait for a datagram.
struct Server {
    open: Open,
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
        let socket = socket.expect("a free port of loopback");
        let port = UdpPort::new(socket, Responder::new(Seed([1, 2]), rate, Tick::ZERO));
        let registry = Registry::new(1, BuildInfo::new("epoll"), UNIX_EPOCH);
        let Udp(open) = Udp::new(0, vec![port], Shared::new(&[addr], registry.links, None));
        Some(Self { open: *open.expect("it has a port"), counters: CoreCounters::default() })
    }

    /// Serves the port and says whether there may be more.
    fn serve(&mut self, work_max: usize) -> bool {
        let post = |_: usize, _: Errand| panic!("there is one core");
        let round = Round { core: 0, now: Tick::ZERO, counters: &self.counters, post: &post };
        self.open.ports[0].ready = true;
        self.open.serve_port(0, work_max, &round);
        self.open.ports[0].ready
    }

    fn count(&self, outcome: StunOutcome, family: Family) -> u64 {
        self.counters.stun[outcome.index()][family.index()].value()
    }

    /// The address of its port at `ip`.
    fn at(&self, ip: &str) -> SocketAddr {
        let port = self.open.ports[0].socket.local_addr().expect("it is bound").port();
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
    assert!(!server.serve(100));
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
    assert!(server.serve(0));
    assert!(server.serve(40));
    assert_eq!(server.counters.flow().received, 40);
    assert!(!server.serve(100));
    assert_eq!(server.counters.flow().answered, 100);
    assert!(!server.serve(1));
}

#[test]
fn a_port_is_ready_until_it_is_drained() {
    let server = Server::bind("127.0.0.1:0", RATE_DEFAULT).expect("IPv4");
    let (addr, client) = (server.at("127.0.0.1"), client("127.0.0.1"));
    let Server { open, counters } = server;
    let mut udp = Udp(Some(Box::new(open)));
    for _ in 0..ROUND_WORK_MAX + 1 {
        client.send_to(&request(TXID), addr).expect("loopback takes it");
    }
    let post = |_: usize, _: Errand| panic!("there is one core");
    let round = Round { core: 0, now: Tick::ZERO, counters: &counters, post: &post };
    udp.serve(&round);
    assert!(udp.waits());
    udp.serve(&round);
    assert!(!udp.waits());
    assert_eq!(counters.flow().answered, 129);
    udp.wake(0);
    assert!(udp.waits());
    udp.wake(1);
}

#[test]
fn counts_every_datagram_once() {
    let mut server = Server::bind("127.0.0.1:0", Rate { per_second: 0, burst: 2 }).expect("IPv4");
    let client = client("127.0.0.1");
    let (whole, cut) = (request(TXID), &request(TXID)[..38]);
    for datagram in [&[][..], b"hello", cut, &whole, &whole, &whole] {
        client.send_to(datagram, server.at("127.0.0.1")).expect("loopback takes it");
    }
    assert!(!server.serve(100));
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
    assert!(!server.serve(100));
    let flow = server.counters.flow();
    assert_eq!((flow.received, flow.answered, flow.dropped), (10, 9, 1));
}

#[test]
fn a_refused_answer_is_a_drop() {
    let mut server = Server::bind("127.0.0.1:0", RATE_DEFAULT).expect("IPv4");
    let mut meta = RecvMeta::default();
    meta.addr = ([127, 0, 0, 1], 0).into();
    let outcome = server.open.ports[0].answer(&request(TXID), &meta, Tick::ZERO);
    assert_eq!(outcome, StunOutcome::WriteError);
}

/// Makes the server know a flow of data from one to the other.
fn relay_data(server: &mut Server, from: &std::net::UdpSocket, to: &std::net::UdpSocket) {
    let place = |socket: &std::net::UdpSocket| {
        Place::new(PortId(0), socket.local_addr().expect("it is bound"))
    };
    let key = FlowKey { from: place(from), receiver: Index(7) };
    let target = FlowTarget { to: place(to), link: LinkId(0) };
    let learn = Errand::Learn(Arc::new([FlowChange::Add(key, target)]));
    let post = |_: usize, _: Errand| panic!("there is one core");
    let round = Round { core: 0, now: Tick::ZERO, counters: &server.counters, post: &post };
    server.open.switch.obey(learn, &mut server.open.ports, &round);
}

/// WireGuard data for [`relay_data`]'s flow.
fn data(fill: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![fill; len];
    bytes[..8].copy_from_slice(&[4, 0, 0, 0, 7, 0, 0, 0]);
    bytes
}

#[test]
fn a_run_of_data_leaves_as_it_came() {
    let mut server = Server::bind("127.0.0.1:0", RATE_DEFAULT).expect("IPv4");
    let (from, to) = (client("127.0.0.1"), client("127.0.0.2"));
    relay_data(&mut server, &from, &to);
    let sender = UdpSocketState::new((&from).into()).expect("a UDP socket");
    let contents: Vec<u8> = (0..10).flat_map(|fill| data(fill, 1000)).collect();
    let run = Transmit {
        destination: server.at("127.0.0.1"),
        ecn: None,
        contents: &contents[..contents.len() - 100],
        segment_size: Some(1000),
        src_ip: None,
    };
    sender.try_send((&from).into(), &run).expect("this kernel segments");
    assert!(!server.serve(100));
    for fill in 0..10 {
        let mut bytes = [0; 2000];
        let len = to.recv(&mut bytes).expect("it was sent on");
        assert_eq!((len, bytes[8]), (if fill < 9 { 1000 } else { 900 }, fill));
    }
    assert_eq!(server.counters.wireguard_runs.value(), 1);
    assert_eq!(server.counters.wireguard_forwarded.value(), (10, 9900));
    assert_eq!(server.counters.flow().waiting(), 0);
}

#[test]
fn single_data_of_one_flow_leaves_as_a_run_and_a_refused_one_is_a_drop() {
    let mut server = Server::bind("127.0.0.1:0", RATE_DEFAULT).expect("IPv4");
    let (from, to) = (client("127.0.0.1"), client("127.0.0.2"));
    relay_data(&mut server, &from, &to);
    let addr = server.at("127.0.0.1");
    for (fill, len) in [(1, 100), (2, 100), (3, 60), (4, 200)] {
        from.send_to(&data(fill, len), addr).expect("loopback takes it");
    }
    assert!(!server.serve(100));
    for expected in [(100, 1), (100, 2), (60, 3), (200, 4)] {
        let mut bytes = [0; 2000];
        let len = to.recv(&mut bytes).expect("it was sent on");
        assert_eq!((len, bytes[8]), expected);
    }
    assert_eq!(server.counters.wireguard_runs.value(), 1);

    // No host sends to port 0.
    let key = FlowKey {
        from: Place::new(PortId(0), from.local_addr().expect("bound")),
        receiver: Index(7),
    };
    let nowhere = Place::new(PortId(0), ([127, 0, 0, 1], 0).into());
    let change = FlowChange::Add(key, FlowTarget { to: nowhere, link: LinkId(0) });
    let post = |_: usize, _: Errand| panic!("there is one core");
    let round = Round { core: 0, now: Tick::ZERO, counters: &server.counters, post: &post };
    server.open.switch.obey(Errand::Learn(Arc::new([change])), &mut server.open.ports, &round);
    for len in [100, 100, 300] {
        from.send_to(&data(9, len), addr).expect("loopback takes it");
    }
    assert!(!server.serve(100));
    let flow = server.counters.flow();
    assert_eq!((flow.forwarded, flow.dropped), (4, 3));
}

#[test]
fn what_waits_for_the_relay_core_is_bounded_and_data_leaves_room_for_handshakes() {
    let registry = Registry::new(2, BuildInfo::new("epoll"), UNIX_EPOCH);
    let mut switch =
        Switch::new(1, Shared::new(&[([127, 0, 0, 1], 1).into()], registry.links, None));
    let counters = CoreCounters::default();
    let posted = std::cell::RefCell::new(Vec::new());
    let post = |core: usize, errand: Errand| posted.borrow_mut().push((core, errand));
    let round = Round { core: 1, now: Tick::ZERO, counters: &counters, post: &post };
    let from = Place::new(PortId(0), ([192, 0, 2, 1], 1).into());
    for _ in 0..switch::WAITING_MAX {
        switch.judge(&data(1, 100), from, &mut [], &round);
    }
    assert_eq!(posted.borrow().len(), switch::WAITING_DATA_MAX);
    for _ in 0..switch::WAITING_MAX {
        switch.judge(&[1, 0, 0, 0], from, &mut [], &round);
    }
    assert_eq!(posted.borrow().len(), switch::WAITING_MAX);
    assert!(posted.borrow().iter().all(|(core, _)| *core == RELAY_CORE));
    let flow = counters.flow();
    assert_eq!((flow.received, flow.dropped), (1024, 1024));
    assert_eq!(counters.wireguard_handed_over.value(), 1024);
}
