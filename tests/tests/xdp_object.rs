//! The committed eBPF objects, run by the kernel on single packets (BPF_PROG_TEST_RUN), against the
//! same code on the host: same verdict, same bytes, same counts.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use aya::maps::{Array, DevMap, HashMap as BpfHashMap, Map, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, include_bytes_aligned};
use tests::frames::table::{OUT, PEERS, receiver};
use tests::frames::{Datagram, Dice, Judged, Table, frame, judged, judged_late, merged};
use tests::skip::{may_load_programs, skip};
use wire::maps::{Action, Address, Config, Flow, Outcome, Pace, Tally};
use wire::packet::IPV6_LEN;
use wire::stun::{TxId, request};

static RELAY: &[u8] = include_bytes_aligned!("../../ebpf/objects/relay.o");
static LAB: &[u8] = include_bytes_aligned!("../../ebpf/objects/lab.o");
static REUSEPORT: &[u8] = include_bytes_aligned!("../../ebpf/objects/reuseport.o");

/// The kernel runs nothing shorter than an Ethernet header.
const FRAME_LEN_MIN: usize = 14;
/// Nor, behind the driver, than the headers that the Ethernet type promises.
const LATE_LEN_MIN: usize = FRAME_LEN_MIN + IPV6_LEN;
/// Room that the kernel gives before a frame.
const HEADROOM: usize = 256;
/// Random frames of a run.
const FRAMES: usize = 40_000;

fn program<'a>(object: &'a mut Ebpf, name: &str) -> &'a mut Xdp {
    let program = object.program_mut(name).expect("the object has the program");
    program.try_into().expect("it is an XDP program")
}

/// The relay's program with the contents of `table` in its maps.
fn relay(table: &Table) -> Ebpf {
    let mut object = Ebpf::load(RELAY).expect("the committed object is an object");
    configure(&mut object, &table.config);
    let mut locals: BpfHashMap<_, [u8; Address::LEN], u32> = map(&mut object, "LOCAL");
    for local in &table.locals {
        locals.insert(local.encode(), 1, 0).expect("room for an address");
    }
    let mut flows: Array<_, [u8; Flow::LEN]> = map(&mut object, "FLOW");
    for (number, (key, hop)) in table.flows.iter().enumerate() {
        // Every other one in its second place.
        let place = table.config.places(key)[number % 2];
        assert_eq!(flows.get(&place, 0).expect("a place"), Flow::FREE);
        let flow = Flow { key: *key, hop: *hop };
        flows.set(place, flow.encode(), 0).expect("a place");
    }
    let mut exits: DevMap<_> = map(&mut object, "OUT");
    // The loopback interface, which is always there; a test run sends nothing.
    exits.set(OUT, 1, None, 0).expect("room for an interface");
    let mut exits: Array<_, u32> = map(&mut object, "EXIT");
    // Not the one that frames of a test come from, which is 1.
    exits.set(OUT, 7, 0).expect("room for an interface");
    program(&mut object, "relay").load().expect("the verifier takes the committed object");
    object
}

fn map<'a, M: TryFrom<&'a mut Map, Error = aya::maps::MapError>>(
    object: &'a mut Ebpf,
    name: &str,
) -> M {
    let map = object.map_mut(name).expect("the object has the map");
    M::try_from(map).expect("it is a map of that type")
}

fn configure(object: &mut Ebpf, config: &Config) {
    let mut place: Array<_, [u8; Config::LEN]> = map(object, "CONFIG");
    place.set(0, config.encode(), 0).expect("a place for it");
}

/// Runs one frame; returns what the kernel is told to do, and the frame afterwards.
fn run(program: &Xdp, frame: &[u8]) -> (Action, Vec<u8>) {
    let (result, after) = run_as(program, frame, None);
    let action = match result.return_value {
        1 => Action::Drop,
        2 => Action::Pass,
        3 => Action::Transmit,
        4 => Action::Redirect,
        other => panic!("action {other}"),
    };
    (action, after)
}

/// The same behind the driver, where datagrams of `each` bytes of payload were merged. Whether the
/// interface is the one that it came in by is not told.
fn run_late(program: &SchedClassifier, frame: &[u8], each: usize) -> (Action, Vec<u8>) {
    // struct __sk_buff, of which a test run takes a few fields.
    let mut context = [0; 192];
    if each > 0 {
        let count = frame.len().div_ceil(each) as u32;
        context[164..168].copy_from_slice(&count.to_ne_bytes());
        context[176..180].copy_from_slice(&(each as u32).to_ne_bytes());
    }
    let (result, after) = run_as(program, frame, Some(&context));
    let action = match result.return_value.cast_signed() {
        -1 => Action::Pass,
        2 => Action::Drop,
        7 => Action::Redirect,
        other => panic!("action {other}"),
    };
    (action, after)
}

fn run_as<P>(program: &P, frame: &[u8], context: Option<&[u8]>) -> (TestRunResult, Vec<u8>)
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut out = vec![0; 4096];
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: context,
        ..TestRunOptions::default()
    });
    let result = result.unwrap_or_else(|error| panic!("{error} of {frame:02x?}"));
    out.truncate(result.data_size_out as usize);
    (result, out)
}

fn late(object: &mut Ebpf) -> &mut SchedClassifier {
    let program = object.program_mut("relay_tcx").expect("the object has the program");
    program.try_into().expect("it is a classifier")
}

/// What one cell of a per-CPU map has counted on all CPUs.
fn tally(object: &mut Ebpf, name: &str, cell: u32) -> Tally {
    let cells: PerCpuArray<_, [u8; Tally::LEN]> = map(object, name);
    let values = cells.get(&cell, 0).expect("the map has the cell");
    values.iter().map(Tally::decode).fold(Tally::default(), |sum, it| Tally {
        packets: sum.packets + it.packets,
        bytes: sum.bytes + it.bytes,
    })
}

fn stock(source: &str, target: &str, tag: Option<u16>) -> Vec<u8> {
    let payload = request(TxId([7; 12]));
    let mut datagram = Datagram::new(source, target, &payload);
    datagram.tag = tag;
    datagram.build()
}

#[test]
fn the_objects_are_of_these_sources() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/ebpf-build.sh");
    let output = std::process::Command::new(script).arg("--digest").output();
    let output = output.expect("the script runs");
    let digest = String::from_utf8(output.stdout).expect("hex");
    let committed = include_str!("../../ebpf/objects/digest");
    assert_eq!(digest, committed, "run scripts/ebpf-build.sh and commit what it makes");
}

#[test]
fn answers_stun_in_both_families_with_and_without_a_tag() {
    if !may_load_programs() {
        return;
    }
    let table = Table::new();
    let mut object = relay(&table);
    let mut bytes = 0;
    for (source, target) in
        [("198.51.100.7:4096", "192.0.2.1:3478"), ("[2001:db8:1::7]:4096", "[2001:db8::1]:51820")]
    {
        for tag in [None, Some(0x2005)] {
            let asked = stock(source, target, tag);
            bytes += asked.len() as u64;
            let (action, sent) = run(program(&mut object, "relay"), &asked);
            assert_eq!(action, Action::Transmit);
            assert_eq!(sent, judged(&asked, HEADROOM, &table).1);
            let v6 = if source.starts_with('[') { IPV6_LEN } else { 20 };
            let payload = 14 + if tag.is_some() { 4 } else { 0 } + v6 + 8;
            let answer = wire::stun::parse_answer(&sent[payload..]).expect("an answer");
            assert_eq!(answer.address, source.parse().expect("an address"));
        }
    }
    let [v4, v6] = [Outcome::AnsweredV4, Outcome::AnsweredV6]
        .map(|outcome| tally(&mut object, "COUNT", outcome.index()));
    assert_eq!((v4.packets, v6.packets), (2, 2));
    assert_eq!(v4.bytes + v6.bytes, bytes);
}

#[test]
fn limits_a_prefix_per_cpu() {
    if !may_load_programs() {
        return;
    }
    let mut table = Table::new();
    table.config.pace = Pace::new(1, 3);
    let mut object = relay(&table);
    stay_on_one_cpu();
    let mut actions = |source: &str| {
        let asked = stock(source, "192.0.2.1:3478", None);
        [(); 5].map(|()| run(program(&mut object, "relay"), &asked).0)
    };
    let (sent, dropped) = (Action::Transmit, Action::Drop);
    // Fifteen microseconds apart at most, of a second that a token takes.
    assert_eq!(actions("198.51.100.7:1"), [sent, sent, sent, dropped, dropped]);
    assert_eq!(actions("198.51.100.200:1"), [dropped; 5]);
    assert_eq!(actions("198.51.101.7:1"), [sent, sent, sent, dropped, dropped]);
}

fn stay_on_one_cpu() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let allowed = sched_getaffinity(None).expect("a thread has CPUs");
    let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).expect("at least one");
    let mut one = CpuSet::new();
    one.set(first);
    sched_setaffinity(None, &one).expect("one of its own");
}

#[test]
fn random_frames_fare_as_on_the_host() {
    if !may_load_programs() {
        return;
    }
    let table = Table::new();
    let mut object = relay(&table);
    let mut dice = Dice(2);
    let mut expected: HashMap<Outcome, Tally> = HashMap::new();
    for _ in 0..FRAMES {
        let sent = frame(&mut dice);
        if sent.len() < FRAME_LEN_MIN {
            continue;
        }
        let (outcome, after) = judged(&sent, HEADROOM, &table);
        let action = outcome.map_or(Action::Pass, Outcome::action);
        let found = run(program(&mut object, "relay"), &sent);
        assert_eq!(found, (action, after), "{outcome:?} of {sent:02x?}");
        if let Some(outcome) = outcome {
            expected.entry(outcome).or_default().add(1, sent.len() as u64);
        }
    }
    same_counts(&mut object, &table, &expected);
}

#[test]
fn behind_the_driver_random_frames_fare_as_on_the_host() {
    if !may_load_programs() {
        return;
    }
    let table = Table::new();
    let mut object = relay(&table);
    if let Err(error) = late(&mut object).load() {
        return skip("bpf", &error.to_string());
    }
    let mut dice = Dice(4);
    let mut expected: HashMap<Outcome, Tally> = HashMap::new();
    for round in 0..FRAMES {
        let (sent, each) = if round % 2 == 0 { (frame(&mut dice), 0) } else { merged(&mut dice) };
        if sent.len() < LATE_LEN_MIN {
            continue;
        }
        let (outcome, after): Judged = judged_late(&sent, each, &table);
        // Leaving by the interface it came in by is redirecting too.
        let action = match outcome.map_or(Action::Pass, Outcome::action) {
            Action::Transmit => Action::Redirect,
            action => action,
        };
        let found = run_late(late(&mut object), &sent, each);
        assert_eq!(found, (action, after), "{outcome:?}, {each}, of {sent:02x?}");
        if let Some(outcome) = outcome {
            let datagrams = if each == 0 { 1 } else { sent.len().div_ceil(each) as u64 };
            expected.entry(outcome).or_default().add(datagrams, sent.len() as u64);
        }
    }
    same_counts(&mut object, &table, &expected);
}

/// Compares what the programs have counted with what was expected and with `table`'s cells.
fn same_counts(object: &mut Ebpf, table: &Table, expected: &HashMap<Outcome, Tally>) {
    for outcome in Outcome::ALL {
        let counted = tally(object, "COUNT", outcome.index());
        let on_host = expected.get(&outcome).copied().unwrap_or_default();
        assert_eq!(counted, on_host, "{outcome:?}");
    }
    for from in 0..PEERS.len() {
        for to in 0..PEERS.len() {
            let cell = (10 * from + to) as u32;
            let on_host = table.cells.borrow().get(&cell).copied().unwrap_or_default();
            assert_eq!(tally(object, "STATS", cell), on_host, "{:x}", receiver(from, to));
        }
    }
}

fn descriptor(map: &Map) -> RawFd {
    match map {
        Map::Array(map)
        | Map::DevMap(map)
        | Map::HashMap(map)
        | Map::PerCpuArray(map)
        | Map::RingBuf(map) => map.fd().as_fd().as_raw_fd(),
        other => panic!("{other:?} is not in this object"),
    }
}

#[test]
fn all_maps_together_stay_small() {
    /// Bytes that the kernel may lend at most, on as many CPUs.
    const BYTES_MAX: u64 = 16 << 20;
    const CPUS: usize = 2;
    if !may_load_programs() {
        return;
    }
    let object = relay(&Table::new());
    let cpus = std::thread::available_parallelism().expect("at least one").get();
    let mut bytes = 0;
    for (name, map) in object.maps() {
        let fd = descriptor(map);
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("our own");
        let lent = info.lines().find_map(|line| line.strip_prefix("memlock:")).expect("a map's");
        let lent: u64 = lent.trim().parse().expect("bytes");
        println!("{name}: {lent} bytes");
        bytes += lent;
    }
    println!("{bytes} bytes on {cpus} CPUs");
    assert!(bytes <= BYTES_MAX * cpus.div_ceil(CPUS) as u64, "{bytes} bytes on {cpus} CPUs");
}

#[test]
fn switches_turn_while_it_runs() {
    use wire::maps::feature::{RELAY as FORWARD, SHED, STUN};
    if !may_load_programs() {
        return;
    }
    let mut table = Table::new();
    let mut object = relay(&table);
    let asked = stock("198.51.100.7:4096", "192.0.2.1:3478", None);
    for (features, action) in [
        (STUN, Action::Transmit),
        (FORWARD, Action::Pass),
        (STUN | SHED, Action::Drop),
        (STUN | FORWARD, Action::Transmit),
    ] {
        table.config.features = features;
        configure(&mut object, &table.config);
        assert_eq!(run(program(&mut object, "relay"), &asked).0, action, "{features}");
    }
}

#[test]
fn the_other_objects_load() {
    if !may_load_programs() {
        return;
    }
    let mut lab = Ebpf::load(LAB).expect("an object");
    let reflect = program(&mut lab, "reflect");
    reflect.load().expect("the verifier takes it");
    let sent = stock("198.51.100.7:4096", "192.0.2.1:3478", None);
    let (action, after) = run(reflect, &sent);
    assert_eq!(action, Action::Transmit);
    assert_eq!(after[..12], [2, 0, 0, 0, 0, 0xbb, 2, 0, 0, 0, 0, 0xaa]);
    assert_eq!(after[12..], sent[12..]);

    let mut spread = Ebpf::load(REUSEPORT).expect("an object");
    let program = spread.program_mut("reuseport").expect("the object has the program");
    let program: &mut aya::programs::SkReuseport = program.try_into().expect("its type");
    program.load().expect("the verifier takes it");
}
