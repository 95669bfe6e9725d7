//! The fast path on virtual Ethernet, between network namespaces of its own and real UDP sockets.
//! The relay's namespace has no socket at all, so that whatever answers or forwards is the program.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, include_bytes_aligned};
use dataplane::xdp::{Changes, FastPath, Mode, Wanted, Watch, XdpFault};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use wire::maps::{
    Address, Config, FlowKey, Hop, Kept, Leg, Outcome, PORTS_MAX, Pace, Tally, exit, feature,
};
use wire::stun::{TxId, parse_answer, request};

static LAB: &[u8] = include_bytes_aligned!("../../ebpf/objects/lab.o");

const PORT: u16 = 3478;
const SEED: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345];
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);
const STATION_A0: [u8; 6] = [2, 0, 0, 0, b'a', 0];
const STATION_R0: [u8; 6] = [2, 0, 0, 0, b'r', 0];
/// What tests of other things never meet the end of.
const LEASE: Duration = Duration::from_secs(3600);
const STATION_R1: [u8; 6] = [2, 0, 0, 0, b'r', 1];
const STATION_B0: [u8; 6] = [2, 0, 0, 0, b'b', 0];

/// Three namespaces: clients A and B, each with a cable to the relay R.
struct Net {
    tag: String,
    /// XDP programs that the clients' ends need before they take what the relay transmits.
    _far_ends: Vec<Ebpf>,
}

impl Net {
    /// The network, or `None` where it may not be made, which is said.
    fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if let Err(refusal) = FastPath::load(None, SEED) {
            skip(&refusal.to_string());
            return None;
        }
        let tag = format!("pg{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut net = Self { tag, _far_ends: Vec::new() };
        for name in ["A", "B", "R"] {
            let made = Command::new("ip").args(["netns", "add", &net.name(name)]).output();
            if !made.as_ref().is_ok_and(|made| made.status.success()) {
                skip("no network namespaces");
                return None;
            }
            net.ip(name, "link set lo up");
        }
        for (client, near, far, subnet) in [("A", "a0", "r0", 1), ("B", "b0", "r1", 2)] {
            let relay = net.name("R");
            net.ip(client, &format!("link add {near} type veth peer name {far} netns {relay}"));
            for (name, link, host) in [(client, near, 2), ("R", far, 1)] {
                let letter = link.as_bytes()[0];
                let digit = link.as_bytes()[1] - b'0';
                net.ip(name, &format!("link set {link} address 02:00:00:00:{letter:02x}:0{digit}"));
                net.ip(name, &format!("addr add 10.77.{subnet}.{host}/24 dev {link}"));
                net.ip(name, &format!("addr add fd77:{subnet}::{host}/64 dev {link} nodad"));
                net.ip(name, &format!("link set {link} up"));
            }
            let far_end = net.within(client, || {
                let mut lab = Ebpf::load(LAB).expect("loaded before");
                let pass: &mut Xdp =
                    lab.program_mut("pass").and_then(|it| it.try_into().ok()).expect("is there");
                pass.load().expect("loaded before");
                pass.attach(near, XdpMode::Driver).expect("veth has native XDP");
                lab
            });
            net._far_ends.push(far_end);
        }
        Some(net)
    }

    fn name(&self, which: &str) -> String {
        format!("{}-{which}", self.tag)
    }

    fn ip(&self, which: &str, args: &str) -> String {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name(which)]).args(args.split(' '));
        let output: Output = command.output().expect("ip runs");
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `task` on a thread in a namespace.
    fn within<T: Send>(&self, which: &str, task: impl FnOnce() -> T + Send) -> T {
        let place = File::open(format!("/run/netns/{}", self.name(which))).expect("was made");
        let run = || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(place.as_fd(), kind).expect("this may make namespaces");
            task()
        };
        std::thread::scope(|scope| scope.spawn(run).join()).expect("the task says what failed")
    }

    /// A client's socket, whose address other threads may know.
    fn socket(&self, which: &str, address: &str) -> UdpSocket {
        self.within(which, || {
            let socket = UdpSocket::bind(address).expect("an address of the namespace");
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            socket
        })
    }

    /// Sends `payload` from client A's port 5555 to the relay, in segments of `each` bytes that the
    /// kernel leaves together for as long as it can (0: in one), without a checksum if `bare`. One
    /// that is wanted is left to a network card, which there is none of here.
    fn sends(&self, client: &str, relay: &str, payload: &[u8], each: usize, bare: bool) {
        // Option 11 of the socket level leaves the checksum out, option 103 of UDP is its GSO.
        let script = "import socket,sys; host,relay,data,each,bare=sys.argv[1:]; \
            s=socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET,socket.SOCK_DGRAM); \
            s.setsockopt(1,11,int(bare)); int(each) and s.setsockopt(17,103,int(each)); \
            s.bind((host,5555)); s.sendto(bytes.fromhex(data),(relay,3478))";
        let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        let (each, bare) = (each.to_string(), u8::from(bare).to_string());
        self.python("A", script, &[client, relay, &hex, &each, &bare]);
    }

    /// Switches the checksums that `link` is to compute off, or on again.
    fn finishes_checksums(&self, which: &str, link: &str, on: bool) {
        // SIOCETHTOOL with ETHTOOL_STXCSUM.
        let script = "import array,fcntl,socket,struct,sys; \
            v=array.array('B',struct.pack('II',0x17,int(sys.argv[2]))); \
            a=struct.pack('16sP',sys.argv[1].encode(),v.buffer_info()[0]); \
            fcntl.ioctl(socket.socket(socket.AF_INET,socket.SOCK_DGRAM),0x8946,a)";
        self.python(which, script, &[link, if on { "1" } else { "0" }]);
    }

    fn python(&self, which: &str, script: &str, args: &[&str]) {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(which), "python3", "-c", script]).args(args);
        let done = command.output().expect("python runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Waits until nothing is attached to a link of the relay: the kernel puts that off.
    fn is_rid_of_xdp(&self, link: &str) {
        let end = Instant::now() + PATIENCE;
        while self.ip("R", &format!("link show {link}")).contains("xdp") {
            assert!(Instant::now() < end, "{link} still has it");
        }
    }

    /// Number of a link.
    fn index(&self, which: &str, link: &str) -> u32 {
        let told = self.ip(which, &format!("-o link show {link}"));
        told.split(':').next().and_then(|it| it.parse().ok()).expect("a number")
    }

    /// Asks the relay and returns whether it answered rightly.
    fn asks(&self, address: &str, relay: &str) {
        let socket = self.socket("A", address);
        let txid = TxId([9; 12]);
        socket.send_to(&request(txid), relay).expect("sent");
        let mut buffer = [0; 100];
        let (len, from) = socket.recv_from(&mut buffer).expect("an answer");
        assert_eq!(from, relay.parse().expect("an address"));
        let answer = parse_answer(&buffer[..len]).expect("an answer");
        assert_eq!(answer.txid, txid);
        assert_eq!(answer.address, socket.local_addr().expect("bound"));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in ["A", "B", "R"] {
            let _ = Command::new("ip").args(["netns", "del", &self.name(name)]).output();
        }
    }
}

fn skip(why: &str) {
    let required = std::env::var("PERIGEE_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name.trim() == "bpf"), "bpf is required: {why}");
    eprintln!("skipped: no bpf: {why}");
}

fn config() -> Config {
    let mut ports = [0; PORTS_MAX];
    ports[0] = PORT.to_be();
    Config {
        ports,
        features: feature::STUN | feature::RELAY,
        pace: Pace::new(1000, 1000),
        seed: [0; 2],
        alive_until_ns: 0,
        near: [Address::NONE; 2],
    }
}

fn locals() -> Vec<IpAddr> {
    ["10.77.1.1", "10.77.2.1", "fd77:1::1", "fd77:2::1"]
        .map(|ip| ip.parse().expect("an address"))
        .to_vec()
}

/// The program on both of the relay's cables.
fn start(net: &Net, wanted: Wanted, pins: Option<&Path>) -> FastPath {
    let mut path = FastPath::load(pins, SEED).expect("loaded before");
    path.configure(&config()).expect("a configuration");
    path.renew(LEASE).expect("a write");
    path.set_locals(&locals()).expect("addresses");
    let mode = net.within("R", || {
        path.attach("r1", wanted).expect("attached");
        path.attach("r0", wanted).expect("attached")
    });
    match wanted {
        Wanted::Auto | Wanted::Native => assert_eq!(mode, Mode::Native),
        Wanted::Tcx => assert_eq!(mode, Mode::Tcx),
        Wanted::Generic => assert_eq!(mode, Mode::Generic),
    }
    path
}

fn count(path: &mut FastPath, outcome: Outcome) -> u64 {
    path.outcomes().expect("counts")[outcome.index() as usize].packets
}

fn answered(path: &mut FastPath) -> u64 {
    count(path, Outcome::AnsweredV4) + count(path, Outcome::AnsweredV6)
}

#[test]
fn answers_real_sockets_in_every_mode() {
    let Some(net) = Net::new() else { return };
    for wanted in [Wanted::Native, Wanted::Generic, Wanted::Auto] {
        let mut path = start(&net, wanted, None);
        net.asks("10.77.1.2:0", "10.77.1.1:3478");
        net.asks("[fd77:1::2]:0", "[fd77:1::1]:3478");
        assert_eq!(answered(&mut path), 2);
    }
    net.is_rid_of_xdp("r0");
}

/// A flow from client A's port 5555 to `to` at client B, of session `receiver`.
fn flow(from: &str, local: &str, leaving: &str, to: SocketAddr, receiver: u32) -> (FlowKey, Hop) {
    let end = |ip: &str, port| SocketAddr::new(ip.parse().expect("an address"), port);
    let local = end(local, PORT);
    let hop = Hop::back(local, end(leaving, PORT), to, 7).expect("one family");
    let hop = hop.by(exit::OUT, STATION_B0, STATION_R1);
    (FlowKey::new(end(from, 5555), local, receiver), hop)
}

/// WireGuard data of `len` bytes in all, which differs from any with another `mark`.
fn data(receiver: u32, mark: u8, len: usize) -> Vec<u8> {
    let mut data = vec![mark; len];
    data[..4].copy_from_slice(&[4, 0, 0, 0]);
    data[4..8].copy_from_slice(&receiver.to_le_bytes());
    data
}

#[test]
fn forwards_between_cables_what_has_a_whole_checksum() {
    let Some(net) = Net::new() else { return };
    for wanted in [Wanted::Native, Wanted::Generic] {
        let mut path = start(&net, wanted, None);
        let receiver = net.socket("B", "10.77.2.2:0");
        let to = receiver.local_addr().expect("bound");
        let (key, hop) = flow("10.77.1.2", "10.77.1.1", "10.77.2.1", to, 0x0102_0304);
        let flows = HashMap::from([(key, hop)]);
        let changes = path.set_flows(&flows).expect("room");
        assert_eq!(changes, Changes { written: 1, ..Changes::default() });
        assert_eq!(path.set_flows(&flows).expect("room"), Changes::default());
        let index = net.index("R", "r1");
        net.within("R", || path.set_exit(0, index)).expect("an interface");

        // The program must not take a checksum that a card was to compute for a whole one.
        for bare in [false, true] {
            let payload = data(0x0102_0304, u8::from(bare), 33);
            net.sends("10.77.1.2", "10.77.1.1", &payload, 0, bare);
        }
        let mut buffer = [0; 100];
        let (len, source) = receiver.recv_from(&mut buffer).expect("forwarded");
        assert_eq!(source, "10.77.2.1:3478".parse().expect("an address"));
        assert_eq!(buffer[..len], data(0x0102_0304, 1, 33));
        assert_eq!(count(&mut path, Outcome::Redirected), 1);
        assert_eq!(count(&mut path, Outcome::PartialChecksum), 1);
        assert_eq!(path.statistics(7).expect("a cell"), Tally { packets: 1, bytes: 33 });
        assert!(path.remove_flow(&key).expect("a write"));
        assert!(!path.remove_flow(&key).expect("no write"));
    }
}

#[test]
fn behind_the_driver_it_forwards_whoever_computes_the_checksum() {
    let Some(net) = Net::new() else { return };
    for (client, local, leaving, far) in [
        ("10.77.1.2", "10.77.1.1", "10.77.2.1", "10.77.2.2:0"),
        ("fd77:1::2", "fd77:1::1", "fd77:2::1", "[fd77:2::2]:0"),
    ] {
        let mut path = start(&net, Wanted::Tcx, None);
        let receiver = net.socket("B", far);
        let to = receiver.local_addr().expect("bound");
        for session in [1, 2] {
            let (key, hop) = flow(client, local, leaving, to, session);
            assert!(path.add_flow(&key, &hop).expect("a write"));
        }
        let index = net.index("R", "r1");
        net.within("R", || path.set_exit(0, index)).expect("an interface");
        // Once nobody ever computes it, once the relay's card must, and the receiver checks it.
        for card in [true, false] {
            net.finishes_checksums("R", "r1", card);
            let mixed = [data(1, 1, 48), data(2, 2, 48), data(1, 3, 48)].concat();
            net.sends(client, local, &mixed, 48, false);
            let run: Vec<_> = (4..10).map(|mark| data(1, mark, 600)).collect();
            let run = [run.concat(), data(1, 10, 32)].concat();
            net.sends(client, local, &run, 600, false);
            net.sends(client, local, &data(2, 11, 33), 0, false);
            net.sends(client, local, &data(2, 12, 33), 0, client.contains('.'));
            let mut buffer = [0; 1000];
            for (mark, len) in
                [(4, 600), (5, 600), (6, 600), (7, 600), (8, 600), (9, 600), (10, 32)]
                    .into_iter()
                    .chain([(11, 33), (12, 33)])
            {
                let (got, source) = receiver.recv_from(&mut buffer).expect("forwarded");
                assert_eq!(source, SocketAddr::new(leaving.parse().expect("an address"), PORT));
                let session = if mark > 10 { 2 } else { 1 };
                assert_eq!(buffer[..got], data(session, mark, len));
            }
        }
        assert_eq!(count(&mut path, Outcome::Redirected), 18);
        assert_eq!(count(&mut path, Outcome::Mixed), 6);
        let bytes = 2 * (6 * 600 + 32 + 2 * 33);
        assert_eq!(path.statistics(7).expect("a cell"), Tally { packets: 18, bytes });
    }
}

#[test]
fn behind_the_driver_it_also_turns_packets_round() {
    let Some(net) = Net::new() else { return };
    let mut path = start(&net, Wanted::Tcx, None);
    let receiver = net.socket("A", "10.77.1.2:0");
    let to = receiver.local_addr().expect("bound");
    for (session, exit) in [(1, exit::BACK), (2, exit::TURN)] {
        let (key, hop) = flow("10.77.1.2", "10.77.1.1", "10.77.1.1", to, session);
        path.add_flow(&key, &hop.by(exit, STATION_A0, STATION_R0)).expect("a write");
        net.sends("10.77.1.2", "10.77.1.1", &data(session, 9, 33), 0, false);
        let mut buffer = [0; 100];
        let (len, from) = receiver.recv_from(&mut buffer).expect("forwarded");
        assert_eq!(from, "10.77.1.1:3478".parse().expect("an address"));
        assert_eq!(buffer[..len], data(session, 9, 33));
    }
    assert_eq!(count(&mut path, Outcome::Forwarded), 2);
}

#[test]
fn a_driver_hands_nothing_to_an_interface_that_has_no_program_in_its_own() {
    let Some(net) = Net::new() else { return };
    let mut path = FastPath::load(None, SEED).expect("loaded before");
    path.configure(&config()).expect("a configuration");
    path.renew(LEASE).expect("a write");
    let receiver = net.socket("B", "10.77.2.2:0");
    let to = receiver.local_addr().expect("bound");
    let (key, hop) = flow("10.77.1.2", "10.77.1.1", "10.77.2.1", to, 1);
    path.add_flow(&key, &hop).expect("a write");
    let index = net.index("R", "r1");
    net.within("R", || {
        path.attach("r0", Wanted::Native).expect("attached");
        path.attach("r1", Wanted::Tcx).expect("attached");
        path.set_exit(0, index).expect("an interface");
    });
    net.sends("10.77.1.2", "10.77.1.1", &data(1, 1, 33), 0, true);
    assert_eq!(count(&mut path, Outcome::NoExit), 1);

    net.within("R", || {
        path = start(&net, Wanted::Tcx, None);
        path.add_flow(&key, &hop).expect("a write");
        path.set_exit(0, index).expect("an interface");
    });
    net.sends("10.77.1.2", "10.77.1.1", &data(1, 2, 33), 0, true);
    let mut buffer = [0; 100];
    let (len, _) = receiver.recv_from(&mut buffer).expect("forwarded");
    assert_eq!(buffer[..len], data(1, 2, 33));
    net.within("R", || path.set_exit(0, 0)).expect("none");
    net.sends("10.77.1.2", "10.77.1.1", &data(1, 3, 33), 0, true);
    assert_eq!(count(&mut path, Outcome::NoExit), 1);
}

#[test]
fn behind_the_driver_it_leaves_stun_to_the_sockets() {
    let Some(net) = Net::new() else { return };
    let mut path = start(&net, Wanted::Tcx, None);
    let server = net.socket("R", "10.77.1.1:3478");
    let client = net.socket("A", "10.77.1.2:0");
    client.send_to(&request(TxId([9; 12])), "10.77.1.1:3478").expect("sent");
    let mut buffer = [0; 100];
    let (len, from) = server.recv_from(&mut buffer).expect("passed");
    assert_eq!(
        (&buffer[..len], from),
        (&request(TxId([9; 12]))[..], client.local_addr().expect("bound"))
    );
    assert_eq!(count(&mut path, Outcome::LateStun), 1);
}

#[test]
fn a_look_tells_of_packets_and_times_for_a_while() {
    let Some(net) = Net::new() else { return };
    let mut path = start(&net, Wanted::Native, None);
    let far = Duration::from_secs(3600);
    let told = |path: &mut FastPath| {
        let mut events = Vec::new();
        path.events(&mut |event| events.push(*event)).expect("a ring");
        events
    };
    net.asks("10.77.1.2:0", "10.77.1.1:3478");
    assert_eq!((told(&mut path).len(), path.durations().expect("counts").packets()), (0, 0));

    path.watch(&Watch { trace_one_in: 1, trace_for: far, time_for: far }).expect("a write");
    // Configuring does not end it.
    path.configure(&config()).expect("a configuration");
    net.asks("10.77.1.2:5556", "10.77.1.1:3478");
    net.asks("[fd77:1::2]:5557", "[fd77:1::1]:3478");
    let events = told(&mut path);
    let ends: Vec<_> = events.iter().map(|event| (event.source(), event.target())).collect();
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
    assert_eq!(
        ends,
        [
            (address("10.77.1.2:5556"), address("10.77.1.1:3478")),
            (address("[fd77:1::2]:5557"), address("[fd77:1::1]:3478")),
        ]
    );
    let index = net.index("R", "r0");
    let expected = [(Outcome::AnsweredV4, 82), (Outcome::AnsweredV6, 102)];
    for (event, (outcome, frame_len)) in events.iter().zip(expected) {
        assert_eq!(event.outcome(), Some(outcome));
        assert_eq!((event.interface, event.datagrams), (index, 1));
        assert_eq!((event.frame_len, event.ends.payload_len), (frame_len, 40));
    }
    assert!(events[0].at_ns < events[1].at_ns);
    assert_eq!(path.durations().expect("counts").packets(), 2);

    // Looks end in the kernel, whoever asked for them, with the next tick after their deadline.
    let soon = Duration::from_nanos(1);
    path.watch(&Watch { trace_one_in: 1, trace_for: soon, time_for: soon }).expect("a write");
    let end = Instant::now() + PATIENCE;
    loop {
        let before = path.durations().expect("counts");
        net.asks("10.77.1.2:0", "10.77.1.1:3478");
        if told(&mut path).is_empty() {
            assert_eq!(path.durations().expect("counts"), before);
            break;
        }
        assert!(Instant::now() < end, "it goes on");
    }

    // One in very many is none of a few.
    path.watch(&Watch { trace_one_in: u32::MAX, trace_for: far, ..Watch::default() })
        .expect("a write");
    net.asks("10.77.1.2:0", "10.77.1.1:3478");
    path.watch(&Watch::default()).expect("a write");
    net.asks("10.77.1.2:0", "10.77.1.1:3478");
    assert_eq!(told(&mut path), []);
}

#[test]
fn what_finds_no_room_in_the_ring_is_counted() {
    /// More than it holds.
    const PACKETS: u64 = 6000;
    let Some(net) = Net::new() else { return };
    let mut path = start(&net, Wanted::Native, None);
    let far = Duration::from_secs(3600);
    path.watch(&Watch { trace_one_in: 1, trace_for: far, ..Watch::default() }).expect("a write");
    let client = net.socket("A", "10.77.1.2:0");
    for _ in 0..PACKETS {
        client.send_to(&[0xff; 60], "10.77.1.1:3478").expect("sent");
    }
    let end = Instant::now() + PATIENCE;
    while count(&mut path, Outcome::Unknown) < PACKETS {
        assert!(Instant::now() < end, "not all came");
    }
    let mut told = 0;
    path.events(&mut |_| told += 1).expect("a ring");
    let lost = path.events_lost().expect("a count");
    assert!(lost > 0 && told > 3000, "{told} told, {lost} lost");
    assert_eq!(told + lost, PACKETS);
}

#[test]
fn a_look_behind_the_driver_counts_what_is_merged() {
    let Some(net) = Net::new() else { return };
    let mut path = start(&net, Wanted::Tcx, None);
    let far = Duration::from_secs(3600);
    path.watch(&Watch { trace_one_in: 1, trace_for: far, time_for: far }).expect("a write");
    let run = [data(1, 1, 48), data(1, 2, 48), data(1, 3, 40)].concat();
    net.sends("10.77.1.2", "10.77.1.1", &run, 48, false);
    let mut events = Vec::new();
    path.events(&mut |event| events.push(*event)).expect("a ring");
    let [event] = events[..] else { panic!("{events:?}") };
    assert_eq!(event.outcome(), Some(Outcome::NoFlow));
    assert_eq!((event.datagrams, event.frame_len, event.ends.payload_len), (3, 178, 136));
    assert_eq!(path.durations().expect("counts").packets(), 1);
}

#[test]
fn an_absent_interface_is_named() {
    let Some(net) = Net::new() else { return };
    let mut path = FastPath::load(None, SEED).expect("loaded before");
    for wanted in [Wanted::Auto, Wanted::Native, Wanted::Tcx, Wanted::Generic] {
        let fault = net.within("R", || path.attach("r7", wanted)).expect_err("there is none");
        assert!(matches!(&fault, XdpFault::Interface { name, .. } if name == "r7"), "{fault}");
        assert!(fault.to_string().contains("r7") && !fault.is_privilege(), "{fault}");
    }
}

/// A bpffs of its own.
struct Pins(PathBuf);

impl Pins {
    fn new(tag: &str) -> Option<Self> {
        let folder = std::env::temp_dir().join(format!("pins-{tag}"));
        fs::create_dir_all(&folder).expect("a folder");
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&folder).output();
        let mounted = mounted.is_ok_and(|it| it.status.success());
        let pins = Self(folder);
        mounted.then_some(pins)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
        let _ = fs::remove_dir(&self.0);
    }
}

/// A session as user space would leave it.
fn session(number: u32) -> Kept {
    let end = |ip: [u8; 4]| SocketAddr::new(ip.into(), PORT);
    let leg = |remote, receiver| Leg { local: end([10, 77, 1, 1]), remote: end(remote), receiver };
    Kept {
        initiator: [1; 32],
        responder: [2; 32],
        forth: leg([10, 77, 1, 2], number),
        back: leg([10, 77, 2, 2], number + 1),
        deadline_ns: u64::MAX,
    }
}

#[test]
fn pinned_it_outlives_its_process_and_is_taken_over() {
    let Some(net) = Net::new() else { return };
    let Some(pins) = Pins::new(&net.tag) else {
        return skip("no bpffs can be mounted");
    };
    let folder = pins.0.join("perigee");
    let mut first = start(&net, Wanted::Native, Some(&folder));
    let ours: SocketAddr = "10.77.1.1:3478".parse().expect("an address");
    let peer: SocketAddr = "10.77.1.2:5555".parse().expect("an address");
    let flow = (FlowKey::new(peer, ours, 1), Hop::back(ours, ours, peer, 1).expect("one family"));
    let flows = HashMap::from([flow]);
    first.set_flows(&flows).expect("room");
    for number in [3, 5, 7] {
        first.keep(&session(number)).expect("room");
    }
    first.forget(&session(5).key()).expect("a write");
    first.forget(&session(5).key()).expect("no write");
    net.asks("10.77.1.2:0", "10.77.1.1:3478");
    drop(first);
    net.asks("10.77.1.2:0", "10.77.1.1:3478");

    let mut second = start(&net, Wanted::Native, Some(&folder));
    assert_eq!(answered(&mut second), 2);
    assert_eq!(second.set_flows(&flows).expect("room"), Changes::default());
    assert_eq!(second.set_locals(&locals()).expect("addresses"), Changes::default());
    let mut kept = second.kept().expect("sessions");
    kept.sort_by_key(|kept| kept.forth.receiver);
    assert_eq!(kept, [session(3), session(7)]);
    net.asks("[fd77:1::2]:0", "[fd77:1::1]:3478");
    assert_eq!(answered(&mut second), 3);
    second.detach().expect("its own pins");
    assert!(!folder.exists());
    net.is_rid_of_xdp("r0");
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

#[test]
fn pins_follow_modes_interfaces_and_layouts() {
    let Some(net) = Net::new() else { return };
    let Some(pins) = Pins::new(&net.tag) else {
        return skip("no bpffs can be mounted");
    };
    let folder = pins.0.join("perigee");
    for foreign in ["maps-0", "somebodys"] {
        fs::create_dir_all(folder.join(foreign)).expect("a folder");
    }
    let maps = format!("maps-{}", wire::maps::LAYOUT);
    let link = |name, mode| format!("link-{name}-{}-{mode}", net.index("R", name));
    let others = [maps.as_str(), "sessions-1", "somebodys"];
    drop(start(&net, Wanted::Tcx, Some(&folder)));
    let [r0, r1] = ["r0", "r1"].map(|name| link(name, "tcx"));
    assert_eq!(names(&folder), [&[r0.as_str(), r1.as_str()], &others[..]].concat());
    let kept = ["CONFIG", "COUNT", "EXIT", "FLOW", "LOCAL", "OUT", "STATS"];
    assert_eq!(names(&folder.join(&maps)), kept);

    // What is in place is kept before anything better is tried.
    let mut path = FastPath::load(Some(&folder), SEED).expect("loaded before");
    let mode = net.within("R", || path.attach("r0", Wanted::Auto)).expect("attached");
    assert_eq!(mode, Mode::Tcx);
    path.settle();
    assert_eq!(names(&folder), [&[r0.as_str()], &others[..]].concat());
    drop(path);

    for (wanted, mode) in
        [(Wanted::Generic, "generic"), (Wanted::Native, "native"), (Wanted::Tcx, "tcx")]
    {
        let mut path = FastPath::load(Some(&folder), SEED).expect("loaded before");
        net.within("R", || path.attach("r0", wanted)).expect("attached");
        assert_eq!(names(&folder), [&[link("r0", mode).as_str()], &others[..]].concat());
    }
    let path = FastPath::load(Some(&folder), SEED).expect("loaded before");
    path.detach().expect("its own pins");
    assert_eq!(names(&folder), ["somebodys"]);
    fs::remove_dir(folder.join("somebodys")).expect("left alone");
    fs::remove_dir(&folder).expect("empty");
}

#[test]
fn requests_are_answered_for_as_long_as_the_process_says_it_is_there() {
    let Some(net) = Net::new() else { return };
    let mut path = start(&net, Wanted::Native, None);
    net.asks("10.77.1.2:0", "10.77.1.1:3478");
    path.renew(Duration::from_millis(200)).expect("a write");
    // Configuring does not lengthen it.
    path.configure(&config()).expect("a configuration");
    let client = net.socket("A", "10.77.1.2:0");
    let end = Instant::now() + PATIENCE;
    while count(&mut path, Outcome::Off) == 0 {
        client.send_to(&request(TxId([9; 12])), "10.77.1.1:3478").expect("sent");
        assert!(Instant::now() < end, "it goes on");
    }
    path.renew(LEASE).expect("a write");
    net.asks("10.77.1.2:0", "10.77.1.1:3478");
}

#[test]
fn data_leaves_where_it_came_in_as_an_answer_does() {
    let Some(net) = Net::new() else { return };
    for wanted in [Wanted::Native, Wanted::Generic, Wanted::Tcx] {
        let mut path = start(&net, wanted, None);
        let receiver = net.socket("A", "10.77.1.2:0");
        let to = receiver.local_addr().expect("bound");
        let end = |ip: &str, port| SocketAddr::new(ip.parse().expect("an address"), port);
        let local = end("10.77.1.1", PORT);
        let hop = Hop::back(local, local, to, 7).expect("one family");
        let station = |letter| [2, 0, 0, 0, letter, 0];
        let hop = hop.by(exit::OUT, station(b'a'), station(b'r'));
        let key = FlowKey::new(end("10.77.1.2", 5555), local, 3);
        assert!(path.add_flow(&key, &hop).expect("a write"));
        let index = net.index("R", "r0");
        net.within("R", || path.set_exit(0, index)).expect("an interface");
        assert_eq!(path.exits().expect("slots")[..2], [index, 0]);
        let payload = data(3, 1, 33);
        net.sends("10.77.1.2", "10.77.1.1", &payload, 0, true);
        let mut buffer = [0; 100];
        let (len, _) = receiver.recv_from(&mut buffer).expect("forwarded");
        assert_eq!(buffer[..len], payload);
        assert_eq!(count(&mut path, Outcome::Forwarded), 1);
        assert_eq!(count(&mut path, Outcome::Redirected), 0);
    }
}

#[test]
fn a_folder_is_one_process_s_and_on_a_bpffs() {
    let Some(net) = Net::new() else { return };
    let Some(pins) = Pins::new(&net.tag) else {
        return skip("no bpffs can be mounted");
    };
    let folder = pins.0.join("perigee");
    let first = start(&net, Wanted::Native, Some(&folder));
    let fault = FastPath::load(Some(&folder), SEED).expect_err("it is another's");
    assert!(matches!(&fault, XdpFault::Taken { pins } if *pins == folder), "{fault}");
    let fault = dataplane::xdp::remove_pins(&folder).expect_err("it is another's");
    assert!(matches!(fault, XdpFault::Taken { .. }), "{fault}");
    net.asks("10.77.1.2:0", "10.77.1.1:3478");
    drop(first);
    assert!(dataplane::xdp::remove_pins(&folder).expect("pins"));

    let elsewhere = std::env::temp_dir().join(format!("no-bpffs-{}", net.tag)).join("perigee");
    let fault = FastPath::load(Some(&elsewhere), SEED).expect_err("no pins there");
    assert!(matches!(&fault, XdpFault::Pin { .. }), "{fault}");
    assert!(fault.to_string().contains("bpffs") && !fault.is_privilege(), "{fault}");
    assert!(!elsewhere.exists());
}

#[test]
fn removing_the_pins_of_a_running_process_detaches_at_once() {
    let Some(net) = Net::new() else { return };
    let Some(pins) = Pins::new(&net.tag) else {
        return skip("no bpffs can be mounted");
    };
    let folder = pins.0.join("perigee");
    drop(start(&net, Wanted::Native, Some(&folder)));
    // Also what was taken over.
    let path = start(&net, Wanted::Native, Some(&folder));
    fs::remove_dir_all(&folder).expect("pins can be removed");
    net.is_rid_of_xdp("r0");
    net.is_rid_of_xdp("r1");
    drop(path);
}

#[test]
fn a_pinned_link_is_not_taken_for_another_interface_s() {
    let Some(net) = Net::new() else { return };
    let Some(pins) = Pins::new(&net.tag) else {
        return skip("no bpffs can be mounted");
    };
    let folder = pins.0.join("perigee");
    drop(start(&net, Wanted::Native, Some(&folder)));
    for (old, new) in [("r0", "r9"), ("r1", "r0"), ("r9", "r1")] {
        net.ip("R", &format!("link set {old} down"));
        net.ip("R", &format!("link set {old} name {new}"));
    }
    for name in ["r0", "r1"] {
        net.ip("R", &format!("link set {name} up"));
    }
    let mut path = FastPath::load(Some(&folder), SEED).expect("loaded before");
    net.within("R", || path.attach("r0", Wanted::Native)).expect("attached");
    path.settle();
    net.is_rid_of_xdp("r1");
    assert!(net.ip("R", "link show r0").contains("xdp"));
}

#[test]
fn sessions_outlive_another_layout_of_the_other_maps() {
    let Some(net) = Net::new() else { return };
    let Some(pins) = Pins::new(&net.tag) else {
        return skip("no bpffs can be mounted");
    };
    let folder = pins.0.join("perigee");
    let mut first = start(&net, Wanted::Native, Some(&folder));
    first.keep(&session(3)).expect("room");
    drop(first);
    let maps = folder.join(format!("maps-{}", wire::maps::LAYOUT));
    // As if they had been of an earlier one.
    fs::rename(&maps, folder.join("maps-0")).expect("a folder can be renamed");
    let mut second = start(&net, Wanted::Native, Some(&folder));
    assert_eq!(second.kept().expect("sessions"), [session(3)]);
    assert!(!folder.join("maps-0").exists());
    net.asks("10.77.1.2:0", "10.77.1.1:3478");
}
