//! The end of the relay's process, and its next life, while packets pass.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::netns::{Family, Net, Plan};
use tests::process::{Process, eventually};
use tests::scratch::Scratch;
use tests::skip::skip;
use tests::stun::is_answered;
use tests::wireguard::{Peer, Stream, bulk, ping};

use crate::journeys::GRACE;
use crate::scene::{APART, Mode, Scene, start, text_of};

/// A file system for pins, of the test's own.
struct Pins {
    scratch: Scratch,
}

impl Pins {
    fn new() -> Option<Self> {
        let pins = Self { scratch: Scratch::new() };
        let mounted =
            Command::new("mount").args(["-t", "bpf", "bpf"]).arg(pins.scratch.as_ref()).output();
        let why = match mounted {
            Ok(output) if output.status.success() => return Some(pins),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        skip("bpf", &format!("no file system for pins: {why}"));
        None
    }

    /// What the relay is told.
    fn folder(&self) -> PathBuf {
        self.scratch.path("perigee")
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // Its pins go with it.
        let _ = Command::new("umount").arg(self.scratch.as_ref()).output();
    }
}

/// Packets both ways, whatever happens beside.
struct Traffic<'a> {
    peers: [&'a mut Peer; 2],
    streams: [Stream; 2],
}

impl Traffic<'_> {
    fn step(&mut self) {
        let Self { peers: [alice, bob], streams: [forth, back] } = self;
        forth.step(alice, bob);
        back.step(bob, alice);
    }

    /// Packets sent so far, each way.
    fn sent(&self) -> usize {
        self.streams[0].len()
    }

    /// Numbers of those that were lost, each way, and of those that could not be told from packets
    /// without a checksum. Such a packet goes through the sockets, if there are any.
    fn lost(mut self) -> [[Vec<usize>; 2]; 2] {
        let Self { peers: [alice, bob], streams: [forth, back] } = &mut self;
        let missing = [forth.missing(alice, bob, GRACE), back.missing(bob, alice, GRACE)];
        let split = |stream: &Stream, missing: &[usize]| {
            let (doubtful, lost) = missing.iter().partition(|number| stream.is_doubtful(**number));
            [lost, doubtful]
        };
        [split(forth, &missing[0]), split(back, &missing[1])]
    }
}

fn plan() -> Plan<'static> {
    Plan { lans: APART, whole_checksums: true, xdp: true }
}

/// What is attached to the relay's interfaces.
fn attached(net: &Net) -> Vec<String> {
    let links = net.relay.ip("link show");
    let xdp = links.lines().filter(|line| line.contains("xdp"));
    xdp.filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

/// Waits until the kernel has let go of what nobody holds any more.
fn nothing_is_attached(net: &Net) {
    eventually("the program's end", || match attached(net) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
}

/// The order of a successor's interfaces.
#[derive(PartialEq)]
enum Order {
    Same,
    Other,
}

/// How many packets pass each way in each of the stages of a restart.
const STAGE: usize = 300;

/// Ends the relay with `signal` and starts it again while packets pass, and checks that none is lost
/// and no peer begins anew. The next one names the interfaces in their order, or in another.
fn survives(mode: Mode, signal: Signal, order: Order) {
    let Some(pins) = Pins::new() else { return };
    let folder = pins.folder();
    let more = ["--xdp-pin", text_of(&folder)];
    let Some(mut scene) = Scene::with(mode, &plan(), &more, Process::start) else { return };
    let (mut alice, mut bob) = scene.pair(Family::V4);
    let handshakes = (alice.handshakes, bob.handshakes);
    let mut traffic = Traffic { peers: [&mut alice, &mut bob], streams: Default::default() };

    // How many had been sent when it was told to end, had ended, was started and was ready.
    let mut stages = [0; 4];
    (0..STAGE).for_each(|_| traffic.step());
    stages[0] = traffic.sent();
    scene.relay.process.signal(signal);
    while scene.relay.process.is_alive() {
        traffic.step();
    }
    stages[1] = traffic.sent();
    (0..STAGE).for_each(|_| traffic.step());
    stages[2] = traffic.sent();
    let mut args = scene.arguments();
    if order == Order::Other {
        let lans: Vec<_> = (0..args.len()).filter(|i| args[*i].starts_with("lan")).collect();
        args.swap(lans[0], lans[1]);
    }
    let args: Vec<_> = args.iter().map(String::as_str).chain(more).collect();
    let next = thread::scope(|scope| {
        let next = scope.spawn(|| start(&scene.net, &args, Process::start));
        while !next.is_finished() {
            traffic.step();
        }
        next.join().expect("it starts again")
    });
    scene.relay = next;
    stages[3] = traffic.sent();
    (0..STAGE).for_each(|_| traffic.step());
    let total = traffic.sent();
    let lost = traffic.lost();
    assert!(
        lost.iter().all(|[lost, _]| lost.is_empty()),
        "lost {lost:?} of {total}, stages at {stages:?}"
    );
    assert_eq!((alice.handshakes, bob.handshakes), handshakes, "the session went on");

    scene.until_flows_are_known();
    let before = scene.metrics();
    let sure = bulk(&mut alice, &mut bob, 200);
    scene.went_its_way(&before, sure);
    // The one after it is met as if nothing had been.
    bob.begin();
    ping(&mut bob, &mut alice, b"new keys");
    scene.settle(&mut alice, &mut bob);
    eventually("the balance", || scene.metrics().balance());
}

#[test]
fn pinned_native_xdp_survives_a_kill() {
    survives(Mode::Native, Signal::KILL, Order::Same);
}

#[test]
fn pinned_native_xdp_survives_another_order_of_interfaces() {
    survives(Mode::Native, Signal::TERM, Order::Other);
}

#[test]
fn pinned_native_xdp_survives_a_restart() {
    survives(Mode::Native, Signal::TERM, Order::Same);
}

#[test]
fn pinned_generic_xdp_survives_a_kill() {
    survives(Mode::Generic, Signal::KILL, Order::Same);
}

#[test]
fn pinned_tcx_survives_a_restart() {
    survives(Mode::Tcx, Signal::TERM, Order::Same);
}

#[test]
fn a_pinned_program_answers_for_seconds_after_a_kill_and_forwards_on() {
    /// What is not answered by then is not.
    const PATIENCE: Duration = Duration::from_millis(200);
    let Some(pins) = Pins::new() else { return };
    let folder = pins.folder();
    let more = ["--xdp-pin", text_of(&folder)];
    let Some(mut scene) = Scene::with(Mode::Native, &plan(), &more, Process::start) else { return };
    let (mut alice, mut bob) = scene.pair(Family::V4);
    let host = scene.net.host("alice");
    let (asker, relay) = (host.socket(Family::V4), host.relay(Family::V4));
    let asks = || (0..2).any(|_| is_answered(&asker, relay, PATIENCE));
    scene.relay.process.signal(Signal::KILL);
    scene.relay.process.wait();
    let killed = Instant::now();
    assert!(asks(), "what it did before goes on for a moment");
    while asks() {
        assert!(killed.elapsed() < Duration::from_secs(6), "clients take it for a relay");
    }
    ping(&mut alice, &mut bob, b"without a relay");
    ping(&mut bob, &mut alice, b"as before");
}

#[test]
fn removing_the_pins_of_an_ended_relay_removes_the_program() {
    let Some(pins) = Pins::new() else { return };
    let folder = pins.folder();
    let more = ["--xdp-pin", text_of(&folder)];
    let Some(mut scene) = Scene::with(Mode::Native, &plan(), &more, Process::start) else { return };
    let (mut alice, mut bob) = scene.pair(Family::V4);
    scene.relay.process.signal(Signal::TERM);
    let (status, _) = scene.relay.process.wait();
    assert!(status.success(), "{status}");
    ping(&mut alice, &mut bob, b"without a relay");
    ping(&mut bob, &mut alice, b"as before");
    assert_eq!(attached(&scene.net).len(), 2);
    fs::remove_dir_all(&folder).expect("pins can be removed");
    nothing_is_attached(&scene.net);
}

#[test]
fn a_start_without_a_fast_path_removes_what_an_earlier_one_has_pinned() {
    let Some(pins) = Pins::new() else { return };
    let folder = pins.folder();
    let more = ["--xdp-pin", text_of(&folder)];
    let Some(mut scene) = Scene::with(Mode::Native, &plan(), &more, Process::start) else { return };
    scene.relay.process.signal(Signal::KILL);
    scene.relay.process.wait();
    assert_eq!(attached(&scene.net).len(), 2);
    scene.mode = Mode::Off;
    let args = scene.arguments();
    let args: Vec<_> = args.iter().map(String::as_str).chain(more).collect();
    scene.relay = start(&scene.net, &args, Process::start);
    nothing_is_attached(&scene.net);
}

#[test]
fn without_pins_nothing_is_left_of_an_ended_relay() {
    for signal in [Signal::TERM, Signal::KILL] {
        let Some(mut scene) = Scene::new(Mode::Native, APART) else { return };
        assert_eq!(attached(&scene.net).len(), 2);
        scene.relay.process.signal(signal);
        scene.relay.process.wait();
        nothing_is_attached(&scene.net);
    }
}
