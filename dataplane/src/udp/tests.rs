//! The ports of one core over loopback, which delivers before a send returns.

use super::*;
use std::time::{Duration, UNIX_EPOCH};

use proto::bucket::Rate;
use proto::stun::{RATE_DEFAULT, Seed};
use proto::wireguard::{
    FlowChange, FlowKey, FlowTarget, Index, Limits, LinkId, Place, PortId, Registrations, mac1,
};
use quinn_udp::{EcnCodepoint, Transmit, UdpSocketState};
use socket2::{Domain, Socket, Type};
use wire::key::Key;
use wire::stun::{TxId, parse_answer, request};
use wire::wireguard::{INITIATION_COVERED_LEN, INITIATION_LEN};

use crate::config::wireguard::Wireguard;
use crate::observe::{BuildInfo, PacketKind, Registry};

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
        let addr = socket.local_addr().expect("it is bound");
        let port = UdpPort::new(socket, Responder::new(Seed([1, 2]), rate, Tick::ZERO));
        let registry = Registry::new(1, BuildInfo::new("epoll"), UNIX_EPOCH);
        let Udp(open) = Udp::new(0, vec![port], Shared::new(&[addr], registry.links, None));
        Some(Self { open: *open.expect("it has a port"), counters: CoreCounters::default() })
    }

    /// Serves the port and says whether there may be more.
    fn serve(&mut self, work_max: usize) -> bool {
        self.serve_at(work_max, Tick::ZERO)
    }

    fn serve_at(&mut self, work_max: usize, now: Tick) -> bool {
        let post = |_: usize, _: Errand| panic!("there is one core");
        let round = Round { core: 0, now, counters: &self.counters, post: &post };
        self.open.ports[0].ready = true;
        self.open.serve_port(0, work_max, &round);
        self.open.ports[0].ready
    }

    fn obey(&mut self, errand: Errand) {
        let post = |_: usize, _: Errand| panic!("there is one core");
        let round = Round { core: 0, now: Tick::ZERO, counters: &self.counters, post: &post };
        self.open.switch.obey(errand, &mut self.open.ports, &round);
    }

    fn learn(&mut self, changes: &[FlowChange]) {
        self.obey(Errand::Learn(changes.into()));
    }

    fn register(&mut self, peers: impl IntoIterator<Item = Key>, links: &[[Key; 2]]) {
        let made = Registrations::new(peers, links.iter().copied(), &Limits::DEFAULT);
        let registrations = made.expect("valid");
        let wireguard = Wireguard { registrations, ..Wireguard::default() };
        self.obey(Errand::Register(Box::new(Peering::from(&wireguard))));
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
    server.learn(&[FlowChange::Add(key, target)]);
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
    server.learn(&[change]);
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
    let mut meta = RecvMeta::default();
    meta.addr = ([192, 0, 2, 1], 1).into();
    let source = Source::new(0, &meta, false);
    for _ in 0..switch::WAITING_MAX {
        switch.judge(&data(1, 100), &source, &mut [], &round);
    }
    assert_eq!(posted.borrow().len(), switch::WAITING_DATA_MAX);
    // What cannot be a handshake takes no place of one.
    for _ in 0..switch::WAITING_MAX {
        switch.judge(&[1, 0, 0, 0], &source, &mut [], &round);
    }
    assert_eq!(posted.borrow().len(), switch::WAITING_DATA_MAX);
    for _ in 0..switch::WAITING_MAX {
        switch.judge(&initiation(&KEYS[0], 1), &source, &mut [], &round);
    }
    assert_eq!(posted.borrow().len(), switch::WAITING_MAX);
    assert!(posted.borrow().iter().all(|(core, _)| *core == RELAY_CORE));
    let dropped = |reason| drops(&counters, reason);
    assert_eq!(dropped(DropReason::BadWireguard), 1024);
    assert_eq!(dropped(DropReason::RelayBusy), 1024);
    assert_eq!(counters.flow().received, 2048);
    assert_eq!(counters.wireguard_handed_over.value(), 1024);
}

const KEYS: [Key; 2] = [Key([1; 32]), Key([2; 32])];

fn drops(counters: &CoreCounters, reason: DropReason) -> u64 {
    counters.dropped[reason.index()][PacketKind::Other.index()].packets.value()
}

/// An initiation for that reader, from nobody.
fn initiation(to: &Key, sender: u32) -> Vec<u8> {
    let mut bytes = vec![0; INITIATION_LEN];
    bytes[0] = 1;
    bytes[4..8].copy_from_slice(&sender.to_le_bytes());
    let mac = mac1(to, &bytes[..INITIATION_COVERED_LEN]);
    bytes[INITIATION_COVERED_LEN..][..16].copy_from_slice(&mac);
    bytes
}

fn send_run(from: &std::net::UdpSocket, to: SocketAddr, datagram: &[u8], count: usize) {
    let sender = UdpSocketState::new(from.into()).expect("a UDP socket");
    let run = Transmit {
        destination: to,
        ecn: None,
        contents: &datagram.repeat(count),
        segment_size: Some(datagram.len()),
        src_ip: None,
    };
    sender.try_send(from.into(), &run).expect("this kernel segments");
}

#[test]
fn after_a_run_that_had_to_be_judged_runs_are_read_one_at_a_time_for_a_while() {
    for junk in [data(1, 100), vec![9; 100]] {
        let mut server = Server::bind("127.0.0.1:0", RATE_DEFAULT).expect("IPv4");
        let (client, addr) = (client("127.0.0.1"), server.at("127.0.0.1"));
        let mut received = Vec::new();
        for now in [Tick::ZERO, Tick::ZERO, Tick::ZERO.plus(WARY_TIME)] {
            for _ in 0..3 {
                send_run(&client, addr, &junk, 10);
            }
            let before = server.counters.flow().received;
            server.serve_at(11, now);
            received.push(server.counters.flow().received - before);
            while server.serve_at(1000, now) {}
        }
        assert_eq!(received, [30, 20, 30]);
    }
}

#[test]
fn runs_of_known_flows_make_nobody_wary() {
    let mut server = Server::bind("127.0.0.1:0", RATE_DEFAULT).expect("IPv4");
    let (from, to) = (client("127.0.0.1"), client("127.0.0.2"));
    relay_data(&mut server, &from, &to);
    for _ in 0..2 {
        for _ in 0..3 {
            send_run(&from, server.at("127.0.0.1"), &data(1, 100), 10);
        }
        assert!(!server.serve(11));
    }
    assert_eq!(server.counters.wireguard_forwarded.value().0, 60);
}

#[test]
fn keys_that_are_tried_are_work() {
    let mut server = Server::bind("127.0.0.1:0", RATE_DEFAULT).expect("IPv4");
    server.register((1..=100).map(|n| Key([n; 32])), &[]);
    let (client, addr) = (client("127.0.0.1"), server.at("127.0.0.1"));
    for sender in 0..64 {
        client.send_to(&initiation(&Key([200; 32]), sender), addr).expect("loopback takes it");
    }
    assert!(server.serve(33));
    assert_eq!(server.counters.flow().received, 32, "the first read was work enough");
}

#[test]
fn what_comes_from_ourselves_goes_nowhere() {
    let mut server = Server::bind("0.0.0.0:0", RATE_DEFAULT).expect("IPv4");
    let ends = ["127.0.0.1", "127.0.0.2"].map(|ip| server.at(ip));
    let places = ends.map(|end| {
        let locals = &server.open.switch.shared.locals;
        let port = locals.offer(0, end.ip()).expect("a number").keep();
        let other = if end == ends[0] { ends[1] } else { ends[0] };
        Place::new(port, other)
    });
    let add = |from, to| {
        let key = FlowKey { from, receiver: Index(7) };
        FlowChange::Add(key, FlowTarget { to, link: LinkId(0) })
    };
    server.learn(&[add(places[0], places[1]), add(places[1], places[0])]);
    let course = Course { to: ends[1], from: Some(ends[0].ip()), ecn: None };
    server.open.ports[0].socket.answer(&course, &data(1, 100)).expect("loopback takes it");
    for _ in 0..10 {
        server.serve(100);
    }
    assert_eq!(server.counters.wireguard_received.value(), (1, 100), "it went round");
    assert_eq!(drops(&server.counters, DropReason::OwnAddress), 1);
    // Nor does it make handshakes.
    server.register(KEYS, &[KEYS]);
    server.open.ports[0].socket.answer(&course, &initiation(&KEYS[0], 1)).expect("it is taken");
    server.serve(100);
    assert_eq!(drops(&server.counters, DropReason::OwnAddress), 2);
}

#[test]
fn an_address_has_no_number_before_the_relay_has_use_for_it() {
    let mut server = Server::bind("0.0.0.0:0", RATE_DEFAULT).expect("IPv4");
    server.register(KEYS, &[KEYS]);
    let number =
        |server: &Server, ip: [u8; 4]| server.open.switch.shared.locals.known(0, Some(ip.into()));
    let (client, stranger) = (client("127.0.0.1"), client("127.0.1.1"));
    let port = server.at("127.0.0.1").port();
    for host in 2..=200 {
        for junk in [data(1, 100), initiation(&Key([9; 32]), 1)] {
            stranger
                .send_to(&junk, SocketAddr::from(([127, 0, 0, host], port)))
                .expect("loopback takes it");
        }
    }
    while server.serve(1000) {}
    assert!((2..=200).all(|host| number(&server, [127, 0, 0, host]).is_none()));
    let flow = server.counters.flow();
    assert_eq!((flow.received, flow.dropped), (398, 398));

    let known = initiation(&KEYS[0], 1);
    client.send_to(&known, SocketAddr::from(([127, 0, 0, 7], port))).expect("loopback takes it");
    server.serve(100);
    assert_eq!(drops(&server.counters, DropReason::NoEndpoint), 1);
    assert_eq!(number(&server, [127, 0, 0, 7]), Some(PortId(1)));
    // What the other sends comes from the address that the first one asked.
    let other = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    other
        .send_to(&initiation(&KEYS[1], 2), SocketAddr::from(([127, 0, 0, 8], port)))
        .expect("it is taken");
    server.serve(100);
    let mut bytes = [0; 200];
    let (_, source) = client.recv_from(&mut bytes).expect("it was sent on");
    assert_eq!(source, ([127, 0, 0, 7], port).into());
}

#[test]
fn more_addresses_than_numbers_are_counted() {
    let mut server = Server::bind("0.0.0.0:0", RATE_DEFAULT).expect("IPv4");
    server.register(KEYS, &[KEYS]);
    for host in 0..LOCALS_MAX {
        let _ = server
            .open
            .switch
            .shared
            .locals
            .offer(0, [127, 1, 0, host as u8].into())
            .map(local::Offer::keep);
    }
    let client = client("127.0.0.1");
    let port = server.at("127.0.0.1").port();
    client
        .send_to(&initiation(&KEYS[0], 1), SocketAddr::from(([127, 0, 0, 7], port)))
        .expect("it is taken");
    server.serve(100);
    assert_eq!(server.counters.wireguard_unnumbered.value(), 1);
    assert_eq!(drops(&server.counters, DropReason::NoEndpoint), 1);
}

/// Reads one datagram or run, and its mark. By a socket of ours: the times that quinn-udp asks for
/// leave no room for marks of runs.
fn receive_marked(socket: &UdpSocket) -> (usize, Option<EcnCodepoint>) {
    let (mut bytes, mut metas) = ([0; 2000], [RecvMeta::default()]);
    let buffers = &mut [IoSliceMut::new(&mut bytes)];
    assert_eq!(socket.receive(buffers, &mut metas).expect("loopback has delivered"), 1);
    (metas[0].len, metas[0].ecn)
}

#[test]
fn marks_of_congestion_survive_a_refused_send() {
    for ip in ["127.0.0.1", "::1"] {
        let any = SocketAddr::new(ip.parse().expect("one"), 0);
        let Some(mut server) = Server::bind(&any.to_string(), RATE_DEFAULT) else { continue };
        let to = UdpSocket::bind(any, false).expect("a free port");
        let socket = &mut server.open.ports[0].socket;
        let addr = to.local_addr().expect("bound");
        let marked = Course { to: addr, from: None, ecn: Some(EcnCodepoint::Ce) };
        let foreign = if addr.is_ipv4() { "224.0.0.1" } else { "2001:db8::1" };
        let refused = Course { from: Some(foreign.parse().expect("one")), ..marked };
        for round in 0..3 {
            let now = Tick::ZERO.plus(Duration::from_secs(round));
            let error = socket.send(&refused, b"x", now).expect_err("that is no source");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(socket.answer(&refused, b"x").is_err());
            let later = now.plus(Duration::from_millis(500));
            socket.send(&marked, b"x", later).expect("loopback takes it");
            assert_eq!(receive_marked(&to), (1, Some(EcnCodepoint::Ce)), "{ip}");
            socket.send_run(&marked, b"xxyyz", 2, later, &mut |_, _, left| assert!(left));
            assert_eq!(receive_marked(&to), (5, Some(EcnCodepoint::Ce)), "{ip}");
        }
    }
}

#[test]
fn marks_of_congestion_pass_through_on_single_data_and_on_runs() {
    let mut server = Server::bind("127.0.0.1:0", RATE_DEFAULT).expect("IPv4");
    let (from, addr) = (client("127.0.0.1"), server.at("127.0.0.1"));
    let bound = SocketAddr::from(([127, 0, 0, 2], 0));
    let to = UdpSocket::bind(bound, false).expect("a free port");
    let place = |addr| Place::new(PortId(0), addr);
    let key = FlowKey { from: place(from.local_addr().expect("bound")), receiver: Index(7) };
    let target = FlowTarget { to: place(to.local_addr().expect("bound")), link: LinkId(0) };
    server.learn(&[FlowChange::Add(key, target)]);
    let sender = UdpSocketState::new((&from).into()).expect("a UDP socket");
    for ecn in [None, Some(EcnCodepoint::Ect0), Some(EcnCodepoint::Ect1), Some(EcnCodepoint::Ce)] {
        for count in [1, 5] {
            let contents = &data(1, 100).repeat(count);
            let segment_size = (count > 1).then_some(100);
            let run = Transmit { destination: addr, ecn, contents, segment_size, src_ip: None };
            sender.try_send((&from).into(), &run).expect("this kernel segments");
            server.serve(100);
            assert_eq!(receive_marked(&to), (100 * count, ecn));
        }
    }
}

#[test]
fn a_refused_run_makes_others_to_its_place_leave_singly_and_nobody_elses() {
    let mut server = Server::bind("0.0.0.0:0", RATE_DEFAULT).expect("IPv4");
    let socket = &mut server.open.ports[0].socket;
    let (near, far) = (client("127.0.0.1"), client("127.0.0.1"));
    let course = |to: &std::net::UdpSocket, from: Option<&str>| {
        let to = to.local_addr().expect("bound");
        Course { to, from: from.map(|ip| ip.parse().expect("one")), ecn: None }
    };
    let mut to_far = course(&far, None);
    to_far.to.set_ip([127, 0, 0, 2].into());
    let mut singly = |course: &Course, stride: usize, now| {
        socket.send_run(course, &[0; 1000], stride, now, &mut |_, _, _| {})
    };
    let now = Tick::ZERO;
    assert_eq!(singly(&course(&near, None), 100, now), 0);
    assert_eq!(singly(&course(&near, Some("192.0.2.1")), 100, now), 10, "refused");
    assert_eq!(singly(&course(&near, None), 100, now), 10);
    assert_eq!(singly(&course(&near, None), 200, now), 5);
    assert_eq!(singly(&course(&near, None), 50, now), 0, "shorter ones may pass");
    assert_eq!(singly(&to_far, 100, now), 0, "another way");
    assert_eq!(singly(&course(&near, None), 100, now.plus(Duration::from_secs(1))), 0);
}

#[test]
fn sockets_let_the_network_fragment_and_stamp_no_times() {
    for addr in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
        let Some(server) = Server::bind(addr, RATE_DEFAULT) else { continue };
        let socket = server.open.ports[0].socket.as_fd();
        use nix::sys::socket::{getsockopt, sockopt as options};
        use rustix::net::sockopt::{
            Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu_discover, ipv6_mtu_discover,
        };
        assert_eq!(getsockopt(&socket, options::ReceiveTimestampns), Ok(false));
        assert_eq!(ip_mtu_discover(socket), Ok(Ipv4PathMtuDiscovery::DONT));
        if addr.starts_with('[') {
            assert_eq!(ipv6_mtu_discover(socket), Ok(Ipv6PathMtuDiscovery::DONT));
            assert_eq!(getsockopt(&socket, options::Ipv6DontFrag), Ok(false));
        }
    }
}

#[test]
fn the_steady_state_allocates_nothing() {
    for ip in ["127.0.0.1", "0.0.0.0"] {
        let mut server = Server::bind(&format!("{ip}:0"), RATE_DEFAULT).expect("IPv4");
        let (from, to) = (client("127.0.0.1"), client("127.0.0.2"));
        let addr = server.at("127.0.0.1");
        relay_data(&mut server, &from, &to);
        if ip == "0.0.0.0" {
            let local = server.open.switch.shared.locals.offer(0, addr.ip());
            let port = local.expect("a number").keep();
            let place =
                |of: &std::net::UdpSocket| Place::new(port, of.local_addr().expect("bound"));
            let key = FlowKey { from: place(&from), receiver: Index(7) };
            let target = FlowTarget { to: place(&to), link: LinkId(0) };
            server.learn(&[FlowChange::Add(key, target)]);
        }
        for _ in 0..3 {
            for len in [100, 100, 60, 200, 300, 300] {
                from.send_to(&data(1, len), addr).expect("loopback takes it");
            }
            send_run(&from, addr, &data(2, 500), 10);
            from.send_to(&request(TXID), addr).expect("loopback takes it");
            from.send_to(&[1, 0, 0, 0], addr).expect("loopback takes it");
            let allocated = allocation_counter::measure(|| {
                server.serve(1000);
            });
            assert_eq!(allocated.count_total, 0);
        }
        assert_eq!(server.counters.wireguard_forwarded.value().0, 3 * 16);
        assert_eq!(server.counters.flow().answered, 3);
    }
}

#[test]
fn a_keeper_that_falls_behind_is_told_everything_and_one_that_ended_nothing() {
    let poll = mio::Poll::new().expect("epoll");
    let bell = Arc::new(mio::Waker::new(poll.registry(), mio::Token(0)).expect("an eventfd"));
    let (reports, told) = crossbeam_channel::bounded(1);
    let reporter = Reporter::new(reports, bell, true);
    let registry = Registry::new(1, BuildInfo::new("epoll"), UNIX_EPOCH);
    let bound = [([127, 0, 0, 1], 1).into()];
    let mut switch = Switch::new(0, Shared::new(&bound, registry.links, Some(reporter)));
    let counters = CoreCounters::default();
    let post = |_: usize, _: Errand| panic!("there is one core");
    let at = |s| Round {
        core: 0,
        now: Tick::ZERO.plus(Duration::from_secs(s)),
        counters: &counters,
        post: &post,
    };
    let register = |switch: &mut Switch, s| {
        let peering = Peering::from(&Wireguard::default());
        switch.obey(Errand::Register(Box::new(peering)), &mut [], &at(s));
    };
    register(&mut switch, 1);
    // The second finds no room.
    register(&mut switch, 2);
    let everything = |report| matches!(report, Ok(Report::Everything { .. }));
    assert!(everything(told.try_recv()) && told.is_empty());
    switch.tick(&at(4));
    assert!(everything(told.try_recv()));
    // It lacks nothing now.
    switch.tick(&at(6));
    assert!(told.is_empty());
    drop(told);
    register(&mut switch, 7);
    switch.tick(&at(9));
}
