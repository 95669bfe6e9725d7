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
use std::time::Duration;

use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, include_bytes_aligned};
use dataplane::xdp::{Changes, FastPath, Mode, Wanted};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use wire::maps::{Address, Config, FlowKey, Hop, Outcome, PORTS_MAX, Pace, Tally, exit, feature};
use wire::stun::{TxId, parse_answer, request};

static LAB: &[u8] = include_bytes_aligned!("../../ebpf/objects/lab.o");

const PORT: u16 = 3478;
const SEED: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345];
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);
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
    path.set_locals(&locals()).expect("addresses");
    let mode = net.within("R", || {
        path.attach("r1", wanted).expect("attached");
        path.attach("r0", wanted).expect("attached")
    });
    match wanted {
        Wanted::Auto | Wanted::Native => assert_eq!(mode, Mode::Native),
        Wanted::Generic => assert_eq!(mode, Mode::Generic),
    }
    path
}

fn count(path: &mut FastPath, outcome: Outcome) -> u64 {
    path.outcomes().expect("counts")[outcome.index() as usize].packets
}

#[test]
fn answers_real_sockets_in_every_mode() {
    let Some(net) = Net::new() else { return };
    for wanted in [Wanted::Native, Wanted::Generic, Wanted::Auto] {
        let mut path = start(&net, wanted, None);
        net.asks("10.77.1.2:0", "10.77.1.1:3478");
        net.asks("[fd77:1::2]:0", "[fd77:1::1]:3478");
        assert_eq!(count(&mut path, Outcome::Answered), 2);
    }
    let left = net.ip("R", "link show r0");
    assert!(!left.contains("xdp"), "{left}");
}

#[test]
fn forwards_between_cables_what_has_a_whole_checksum() {
    let Some(net) = Net::new() else { return };
    for wanted in [Wanted::Native, Wanted::Generic] {
        let mut path = start(&net, wanted, None);
        let receiver = net.socket("B", "10.77.2.2:0");
        let from: SocketAddr = "10.77.1.2:5555".parse().expect("an address");
        let local: SocketAddr = "10.77.1.1:3478".parse().expect("an address");
        let leaving: SocketAddr = "10.77.2.1:3478".parse().expect("an address");
        let to = receiver.local_addr().expect("bound");
        let hop = Hop::back(local, leaving, to, 7).expect("one family");
        let hop = hop.by(exit::OUT, STATION_B0, STATION_R1);
        let key = FlowKey::new(from, local, 0x0102_0304);
        let flows = HashMap::from([(key, hop)]);
        let changes = path.set_flows(&flows).expect("room");
        assert_eq!(changes, Changes { written: 1, ..Changes::default() });
        assert_eq!(path.set_flows(&flows).expect("room"), Changes::default());
        let index = net.ip("R", "-o link show r1");
        let index = index.split(':').next().and_then(|it| it.parse().ok()).expect("a number");
        net.within("R", || path.set_exit(0, index)).expect("an interface");

        // Option 11 of the socket level leaves the checksum out; without it the sender leaves it to
        // a network card that does not exist, which the program must not take for a whole one.
        let script = "import socket,sys; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); \
            s.setsockopt(1,11,int(sys.argv[1])); s.bind(('10.77.1.2',5555)); \
            s.sendto(bytes([4,0,0,0,4,3,2,1])+bytes(24)+sys.argv[1].encode(),('10.77.1.1',3478))";
        for no_checksum in ["0", "1"] {
            let sent = Command::new("ip")
                .args(["netns", "exec", &net.name("A"), "python3", "-c", script, no_checksum])
                .output()
                .expect("python runs");
            assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
        }
        let mut buffer = [0; 100];
        let (len, source) = receiver.recv_from(&mut buffer).expect("forwarded");
        assert_eq!((len, source), (33, leaving));
        assert_eq!((buffer[..8].to_vec(), buffer[32]), (vec![4, 0, 0, 0, 4, 3, 2, 1], b'1'));
        assert_eq!(count(&mut path, Outcome::Redirected), 1);
        assert_eq!(count(&mut path, Outcome::PartialChecksum), 1);
        assert_eq!(path.statistics(7).expect("a cell"), Tally { packets: 1, bytes: 33 });
        assert!(path.remove_flow(&key).expect("a write"));
        assert!(!path.remove_flow(&key).expect("no write"));
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
    net.asks("10.77.1.2:0", "10.77.1.1:3478");
    drop(first);
    net.asks("10.77.1.2:0", "10.77.1.1:3478");

    let mut second = start(&net, Wanted::Native, Some(&folder));
    assert_eq!(count(&mut second, Outcome::Answered), 2);
    assert_eq!(second.set_flows(&flows).expect("room"), Changes::default());
    assert_eq!(second.set_locals(&locals()).expect("addresses"), Changes::default());
    net.asks("[fd77:1::2]:0", "[fd77:1::1]:3478");
    assert_eq!(count(&mut second, Outcome::Answered), 3);
    second.detach().expect("its own pins");
    assert!(!folder.exists());
    let left = net.ip("R", "link show r0");
    assert!(!left.contains("xdp"), "{left}");
}
