//! What the committed program costs for one packet, above the least that sends anything.
#![forbid(unsafe_code)]

use std::time::Duration;

use aya::maps::{Array, HashMap as BpfHashMap, ProgramArray};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, include_bytes_aligned};
use tests::frames::table::{PEERS, receiver};
use tests::frames::{Datagram, Sum, Table};
use tests::skip::skip;
use wire::maps::{Address, Config, Flow};
use wire::stun::{TxId, request};

static RELAY: &[u8] = include_bytes_aligned!("../../ebpf/objects/relay.o");
static LAB: &[u8] = include_bytes_aligned!("../../ebpf/objects/lab.o");
static AGAIN: &[u8] = include_bytes_aligned!("../../ebpf/objects/again.o");

/// Runs behind each figure.
const REPEAT: u32 = 200_000;
/// Rounds, of which the best counts: what else the machine does only ever adds.
const ROUNDS: usize = 15;

fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> &'a mut Xdp {
    object.program_mut(name).expect("is there").try_into().expect("it is an XDP program")
}

fn stock(source: &str, target: &str, payload: &[u8]) -> Vec<u8> {
    Datagram {
        stations: [2, 0, 0, 0, 0, 0xaa, 2, 0, 0, 0, 0, 0xbb],
        tag: None,
        class: 0,
        id: 1,
        whole: false,
        hops: 55,
        source: source.parse().expect("an address"),
        target: target.parse().expect("an address"),
        payload,
        sum: Sum::Right,
    }
    .build()
}

/// Nanoseconds that the kernel takes for one run of `program` on `frame`, through `again`.
fn cost(again: &mut Ebpf, program: &Xdp, frame: &[u8]) -> (u32, Duration) {
    let mut template = frame.to_vec();
    template.resize(160, 0);
    template.extend((frame.len() as u32).to_ne_bytes());
    let template: [u8; 164] = template.try_into().expect("its length");
    let mut place: Array<_, [u8; 164]> =
        again.map_mut("TEMPLATE").expect("is there").try_into().expect("an array");
    place.set(0, template, 0).expect("a place");
    let mut next: ProgramArray<_> =
        again.map_mut("NEXT").expect("is there").try_into().expect("programs");
    next.set(0, program.fd().expect("loaded"), 0).expect("a place");
    let run = xdp(again, "again").test_run(TestRunOptions {
        data_in: Some(frame),
        repeat: REPEAT,
        ..TestRunOptions::default()
    });
    let run = run.expect("the kernel runs it");
    (run.return_value, run.duration)
}

#[test]
fn figures() {
    let mut again = Ebpf::load(AGAIN).expect("an object");
    if let Err(e) = xdp(&mut again, "again").load() {
        println!("{e}");
        return skip("bpf", "no");
    }
    let mut lab = Ebpf::load(LAB).expect("an object");
    xdp(&mut lab, "reflect").load().expect("taken");
    let table = Table::new();
    let mut object = match std::env::var("RELAY_OBJ") {
        Ok(p) => Ebpf::load_file(p).expect("x"),
        Err(_) => Ebpf::load(RELAY).expect("an object"),
    };
    let mut place: Array<_, [u8; Config::LEN]> =
        object.map_mut("CONFIG").expect("x").try_into().expect("x");
    place.set(0, table.config.encode(), 0).expect("x");
    let mut locals: BpfHashMap<_, [u8; Address::LEN], u32> =
        object.map_mut("LOCAL").expect("x").try_into().expect("x");
    for local in &table.locals {
        locals.insert(local.encode(), 1, 0).expect("x");
    }
    let mut flows: Array<_, [u8; Flow::LEN]> =
        object.map_mut("FLOW").expect("x").try_into().expect("x");
    for (key, hop) in &table.flows {
        let place = table.config.places(key)[0];
        flows.set(place, Flow { key: *key, hop: *hop }.encode(), 0).expect("x");
    }
    xdp(&mut object, "relay").load().expect("taken");
    let mut data4 = [0x55; 64];
    data4[..4].copy_from_slice(&[4, 0, 0, 0]);
    data4[4..8].copy_from_slice(&receiver(0, 2).to_le_bytes());
    let mut data6 = data4;
    data6[4..8].copy_from_slice(&receiver(3, 5).to_le_bytes());
    let plain = {
        let mut p = request(TxId([7; 12]))[..20].to_vec();
        p[3] = 0;
        p
    };
    for (name, frame) in [
        ("other port", stock("198.51.100.7:4096", "192.0.2.1:53", &request(TxId([7; 12])))),
        ("stun4", stock("198.51.100.7:4096", "192.0.2.1:3478", &request(TxId([7; 12])))),
        ("stun4 far local", stock("198.51.100.7:4096", "192.0.2.2:3478", &request(TxId([7; 12])))),
        ("stun4 plain", stock("198.51.100.7:4096", "192.0.2.1:3478", &plain)),
        ("stun6", stock("[2001:db8:1::7]:4096", "[2001:db8::1]:3478", &request(TxId([7; 12])))),
        ("data4", stock(PEERS[0], "192.0.2.1:3478", &data4)),
        ("data6", stock(PEERS[3], "[2001:db8::1]:3478", &data6)),
    ] {
        let mut best = [Duration::MAX; 2];
        let mut action = [0; 2];
        for _ in 0..ROUNDS {
            let (a, d) = cost(&mut again, xdp(&mut lab, "reflect"), &frame);
            best[0] = best[0].min(d);
            action[0] = a;
            let (a, d) = cost(&mut again, xdp(&mut object, "relay"), &frame);
            best[1] = best[1].min(d);
            action[1] = a;
        }
        println!(
            "{name}: {action:?} {best:?} diff {}",
            best[1].as_nanos() as i64 - best[0].as_nanos() as i64
        );
    }
}
