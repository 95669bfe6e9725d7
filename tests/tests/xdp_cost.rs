//! What the committed program costs for one packet, above the least that sends anything.
//!
//! The kernel repeats a program on what its last run has left, which is a request only once. So
//! `again` restores the frame before each run and jumps to the program under test, which costs the
//! same for both that are compared.
#![forbid(unsafe_code)]

use std::time::Duration;

use aya::maps::{Array, Map, MapError, ProgramArray};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, include_bytes_aligned};
use tests::frames::table::{LOCALS, PEERS, receiver};
use tests::frames::{Datagram, Table};
use tests::skip::may_load_programs;
use wire::maps::{Address, Config, Flow};
use wire::stun::{TxId, request};

static RELAY: &[u8] = include_bytes_aligned!("../../ebpf/objects/relay.o");
static LAB: &[u8] = include_bytes_aligned!("../../ebpf/objects/lab.o");
static AGAIN: &[u8] = include_bytes_aligned!("../../ebpf/objects/again.o");

/// Runs in a round; a few milliseconds, so that some rounds meet nobody else.
const REPEAT: u32 = 20_000;
/// Rounds at least, of which the shortest counts: what else the machine does only ever adds.
const ROUNDS_MIN: usize = 50;
/// Rounds at most, for machines on which the least is long in coming.
const ROUNDS_MAX: usize = 400;
/// What answering or forwarding may cost above the reflector, in nanoseconds, where the figures of
/// `bench/LOG.md` were taken.
const ABOVE_NS_MAX: u128 = 40;
/// The same for other processors, as a share of what the reflector and restoring the frame take
/// together. The same programs stand at 0.37 on one machine and at 0.33 to 0.48 on another, whose
/// noise comes on top: this finds a cost that doubles, `bench/LOG.md` is for the finer ones.
const SHARE_PERCENT_MAX: u128 = 75;
/// What the kernel calls sending back.
const XDP_TX: u32 = 3;
/// Bytes of a frame that `again` restores at most.
const TEMPLATE_LEN: usize = 160;

fn program<'a>(object: &'a mut Ebpf, name: &str) -> &'a mut Xdp {
    object.program_mut(name).expect("is there").try_into().expect("it is an XDP program")
}

fn map<'a, M: TryFrom<&'a mut Map, Error = MapError>>(object: &'a mut Ebpf, name: &str) -> M {
    M::try_from(object.map_mut(name).expect("is there")).expect("it is of this type")
}

/// The relay's program, with an address of each family near.
fn relay() -> Ebpf {
    let mut object = Ebpf::load(RELAY).expect("an object");
    let table = Table::new();
    let near = [LOCALS[0], LOCALS[2]];
    let near = near.map(|ip| Address::from(ip.parse::<std::net::IpAddr>().expect("an address")));
    let config = Config { near, ..table.config };
    let mut place: Array<_, [u8; Config::LEN]> = map(&mut object, "CONFIG");
    place.set(0, config.encode(), 0).expect("a place");
    let mut flows: Array<_, [u8; Flow::LEN]> = map(&mut object, "FLOW");
    for (key, hop) in &table.flows {
        let [place, _] = config.places(key);
        flows.set(place, Flow { key: *key, hop: *hop }.encode(), 0).expect("a place");
    }
    program(&mut object, "relay").load().expect("the verifier takes it");
    object
}

/// What one run of `program` on `frame` takes, restoring the frame included.
fn cost(again: &mut Ebpf, tested: &Xdp, frame: &[u8]) -> Duration {
    let mut template = [0; TEMPLATE_LEN + 4];
    template[..frame.len()].copy_from_slice(frame);
    template[TEMPLATE_LEN..].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    let mut place: Array<_, [u8; TEMPLATE_LEN + 4]> = map(again, "TEMPLATE");
    place.set(0, template, 0).expect("a place");
    let mut next: ProgramArray<_> = map(again, "NEXT");
    next.set(0, tested.fd().expect("loaded"), 0).expect("a place");
    let run = program(again, "again").test_run(TestRunOptions {
        data_in: Some(frame),
        repeat: REPEAT,
        ..TestRunOptions::default()
    });
    let run = run.expect("the kernel runs it");
    assert_eq!(run.return_value, XDP_TX, "the last run did not send");
    run.duration
}

#[test]
fn answering_and_forwarding_cost_little_above_a_reflector() {
    if !may_load_programs() {
        return;
    }
    let mut again = Ebpf::load(AGAIN).expect("an object");
    program(&mut again, "again").load().expect("the verifier takes it");
    let mut lab = Ebpf::load(LAB).expect("an object");
    program(&mut lab, "reflect").load().expect("the verifier takes it");
    let mut object = relay();
    let asked = request(TxId([7; 12]));
    let data = |from, to| {
        let mut data = [0x55; 64];
        data[..4].copy_from_slice(&[4, 0, 0, 0]);
        data[4..8].copy_from_slice(&receiver(from, to).to_le_bytes());
        data
    };
    for (name, frame) in [
        ("STUN, IPv4", Datagram::new("198.51.100.7:4096", "192.0.2.1:3478", &asked)),
        ("STUN, IPv6", Datagram::new("[2001:db8:1::7]:4096", "[2001:db8::1]:3478", &asked)),
        ("data, IPv4", Datagram::new(PEERS[0], "192.0.2.1:3478", &data(0, 2))),
        ("data, IPv6", Datagram::new(PEERS[3], "[2001:db8::1]:3478", &data(3, 5))),
    ] {
        let frame = frame.build();
        let (mut least, mut rounds) = ([Duration::MAX; 2], 0);
        let (above, reflected) = loop {
            let reflected = cost(&mut again, program(&mut lab, "reflect"), &frame);
            let relayed = cost(&mut again, program(&mut object, "relay"), &frame);
            least = [least[0].min(reflected), least[1].min(relayed)];
            rounds += 1;
            let [reflected, relayed] = least.map(|it| it.as_nanos());
            let above = relayed.saturating_sub(reflected);
            let fair = above <= ABOVE_NS_MAX || above * 100 <= reflected * SHARE_PERCENT_MAX;
            if rounds >= ROUNDS_MIN && fair {
                break (above, reflected);
            }
            assert!(rounds < ROUNDS_MAX, "{name}: {above} ns above a reflector's {reflected}");
        };
        println!("{name}: {above} ns above the reflector, which takes {reflected} with restoring");
    }
}
