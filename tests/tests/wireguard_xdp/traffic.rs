//! What passes between two peers at rest, and which way it goes.

use std::process::Command;

use tests::netns::{Family, Host, Plan};
use tests::process::{Process, eventually};
use tests::skip::skip;
use tests::stun::ask;
use tests::wireguard::{ALICE, BOB, Peer, bulk, ping};

use crate::scene::{APART, Mode, OUTCOMES, Scene, TOGETHER, fast};

pub(crate) fn bulk_between_two_interfaces_goes_the_chosen_way_and_adds_up(mode: Mode) {
    const FORTH: u64 = 20_000;
    const BACK: u64 = 2_000;
    let Some(scene) = Scene::new(mode, APART) else { return };
    let (mut alice, mut bob) = scene.pair(Family::V4);
    let before = scene.metrics();
    let sure = bulk(&mut alice, &mut bob, FORTH) + bulk(&mut bob, &mut alice, BACK);
    scene.went_its_way(&before, sure);
    scene.adds_up([&alice, &bob]);
}

pub(crate) fn bulk_by_way_of_one_interface_turns_around(mode: Mode) {
    const PACKETS: u64 = 2_000;
    for family in [Family::V4, Family::V6] {
        let Some(scene) = Scene::new(mode, TOGETHER) else { return };
        let (mut alice, mut bob) = scene.pair(family);
        let before = scene.metrics();
        let sure = bulk(&mut alice, &mut bob, PACKETS) + bulk(&mut bob, &mut alice, PACKETS);
        scene.went_its_way(&before, sure);
        scene.adds_up([&alice, &bob]);
    }
}

pub(crate) fn checksums_left_to_the_card_are_delivered_all_the_same(mode: Mode) {
    const PACKETS: u64 = 500;
    let plan = Plan { lans: APART, whole_checksums: false, xdp: mode != Mode::Off };
    for family in [Family::V4, Family::V6] {
        let Some(scene) = Scene::with(mode, &plan, &[], Process::start) else { return };
        let mut alice = scene.peer(ALICE, BOB, family);
        let mut bob = scene.peer(BOB, ALICE, family);
        bob.begin();
        ping(&mut alice, &mut bob, b"hello");
        scene.until_flows_are_known();
        bulk(&mut alice, &mut bob, PACKETS);
        bulk(&mut bob, &mut alice, PACKETS);
        scene.adds_up([&alice, &bob]);
        let metrics = scene.metrics();
        let passed = metrics.sum(OUTCOMES, &["outcome=\"pass_partial_checksum\""]);
        match mode {
            Mode::Native | Mode::Generic | Mode::Auto => assert!(passed >= 2 * PACKETS, "{passed}"),
            // It knows such checksums from whole ones, and may carry them.
            Mode::Tcx => assert!(passed + fast(&metrics) > PACKETS, "{passed}"),
            Mode::Off => assert_eq!(passed, 0),
        }
    }
}

pub(crate) fn peers_of_two_families_talk_through_the_sockets(mode: Mode) {
    let Some(scene) = Scene::new(mode, APART) else { return };
    let mut alice = scene.peer(ALICE, BOB, Family::V4);
    let mut bob = scene.peer(BOB, ALICE, Family::V6);
    bob.begin();
    ping(&mut alice, &mut bob, b"from IPv4");
    ping(&mut bob, &mut alice, b"from IPv6");
    bulk(&mut alice, &mut bob, 500);
    bulk(&mut bob, &mut alice, 500);
    scene.adds_up([&alice, &bob]);
    assert_eq!(fast(&scene.metrics()), 0);
}

/// The next hop is then not the peer: what XDP sends on goes to the router's station.
pub(crate) fn peers_behind_a_router_are_reached_through_it(mode: Mode) {
    for (family, far, routes) in [
        (Family::V4, "198.51.100.7", "198.51.100.0/24 via 10.77.1.2"),
        (Family::V6, "2001:db8::7", "2001:db8::/64 via fd77:0:0:1::2"),
    ] {
        let Some(scene) = Scene::new(mode, APART) else { return };
        let host = scene.net.host("alice");
        // The host is its own router: its address is on an interface that no cable leads to.
        host.space.ip(&format!("address add {far} dev lo nodad"));
        scene.net.relay.ip(&format!("route add {routes}"));
        let mut bob = scene.peer(BOB, ALICE, family);
        let far = far.parse().expect("an address");
        let mut alice = Peer::new(ALICE, BOB, host.socket_at(far));
        bob.begin();
        ping(&mut alice, &mut bob, b"from afar");
        scene.settle(&mut alice, &mut bob);
        let before = scene.metrics();
        let sure = bulk(&mut alice, &mut bob, 200) + bulk(&mut bob, &mut alice, 200);
        scene.went_its_way(&before, sure);
        scene.adds_up([&alice, &bob]);
    }
}

pub(crate) fn stun_is_answered_on_the_same_port(mode: Mode) {
    const EACH: u64 = 10;
    let Some(scene) = Scene::new(mode, APART) else { return };
    let (mut alice, mut bob) = scene.pair(Family::V4);
    for family in [Family::V4, Family::V6] {
        for host in ["alice", "bob"].map(|name| scene.net.host(name)) {
            for _ in 0..EACH {
                ask(&host.socket(family), host.relay(family));
            }
        }
    }
    ping(&mut alice, &mut bob, b"and this goes on");
    let count = |family, label| scene.metrics().sum(family, &[label]);
    eventually("answers on the account", || {
        scene.metrics().balance()?;
        match count("relay_packets_answered_total", "proto=\"stun\"") {
            answered if answered == 4 * EACH => Ok(()),
            answered => Err(format!("{answered} of {}", 4 * EACH)),
        }
    });
    // What dashboards made for derper go by.
    assert_eq!(count("relay_stun_requests_total", "disposition=\"success\""), 4 * EACH);
    let by_xdp = count(OUTCOMES, "outcome=\"answered_ipv");
    match mode {
        Mode::Native | Mode::Generic | Mode::Auto => assert_eq!(by_xdp, 4 * EACH),
        // It leaves them to the sockets.
        Mode::Tcx | Mode::Off => assert_eq!(by_xdp, 0),
    }
}

/// What coturn's clients say, run by a host. They wait for an answer as long as it takes.
fn coturn(host: &Host, family: Family, program: &str, more: &[&str]) -> String {
    let own = host.address(family).to_string();
    let relay = host.relay(family);
    let mut command = Command::new("timeout");
    command.args(["20", program]).args(more).args(["-p", &relay.port().to_string(), "-L", &own]);
    command.arg(relay.ip().to_string());
    let output = host.space.within(|| command.output()).expect("timeout is everywhere");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    said
}

pub(crate) fn foreign_stun_clients_learn_their_address(mode: Mode) {
    if let Err(error) = Command::new("turnutils_stunclient").output() {
        return skip("coturn", &error.to_string());
    }
    let Some(scene) = Scene::new(mode, APART) else { return };
    let host = scene.net.host("alice");
    for family in [Family::V4, Family::V6] {
        let own = host.address(family);
        let said = coturn(host, family, "turnutils_stunclient", &[]);
        assert!(said.contains(&format!("UDP reflexive addr: {own}:")), "{said}");
        let said = coturn(host, family, "turnutils_natdiscovery", &["-m"]);
        let after = |mark: &str| said.split(mark).nth(1)?.lines().next().map(str::to_owned);
        let told = after("UDP reflexive addr: ").expect("an answer");
        assert!(told.starts_with(&format!("{own}:")), "{said}");
        assert_eq!(after("Local addr: : "), Some(told), "{said}");
    }
    eventually("answers on the account", || {
        let metrics = scene.metrics();
        metrics.balance()?;
        let answered = metrics.sum("relay_packets_answered_total", &["proto=\"stun\""]);
        if answered >= 4 { Ok(()) } else { Err(format!("{answered} of 4")) }
    });
}
