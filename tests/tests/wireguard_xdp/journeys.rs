//! What changes while packets pass: keys, addresses, peers, the operator's mind.

use std::time::Duration;

use rustix::process::Signal;
use tests::netns::Family;
use tests::process::eventually;
use tests::skip::{skip, slow};
use tests::wireguard::{ALICE, BOB, CAROL, Stream, bulk, idle, ping, reach, run};

use crate::scene::{APART, Mode, Scene, TOGETHER};

/// More than a packet under way needs.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// More than what was forwarded needs to be there.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) fn rekeying_under_traffic_loses_nothing(mode: Mode) {
    /// Packets each way between two handshakes.
    const BETWEEN: usize = 400;
    let Some(scene) = Scene::new(mode, APART) else { return };
    let (mut alice, mut bob) = scene.pair(Family::V4);
    let completed =
        || scene.metrics().sum("relay_wireguard_events_total", &["event=\"completed\""]);
    let first = completed();
    let (mut forth, mut back) = (Stream::default(), Stream::default());
    for round in 0..4 {
        for _ in 0..BETWEEN {
            forth.step(&mut alice, &mut bob);
            back.step(&mut bob, &mut alice);
        }
        let initiator = if round % 2 == 0 { &mut alice } else { &mut bob };
        initiator.begin();
    }
    let lost = forth.missing(&mut alice, &mut bob, GRACE);
    let lost_back = back.missing(&mut bob, &mut alice, GRACE);
    assert!(lost.is_empty() && lost_back.is_empty(), "lost {lost:?} and {lost_back:?}");
    ping(&mut alice, &mut bob, b"with the newest keys");
    scene.settle(&mut alice, &mut bob);
    eventually("four handshakes", || {
        let now = completed();
        if now >= first + 4 { Ok(()) } else { Err(format!("{now}, from {first}")) }
    });
    let before = scene.metrics();
    let sure = bulk(&mut alice, &mut bob, 200);
    scene.went_its_way(&before, sure);
    scene.adds_up([&alice, &bob]);
}

pub(crate) fn a_peer_on_another_address_is_found_again(mode: Mode) {
    for family in [Family::V4, Family::V6] {
        let Some(scene) = Scene::new(mode, TOGETHER) else { return };
        let (mut alice, mut bob) = scene.pair(family);
        let home = scene.net.host("alice");
        alice.move_to(home.socket_at(home.other_address(family)));
        alice.begin();
        reach(&mut bob, &mut alice, b"to the new address");
        ping(&mut alice, &mut bob, b"from the new address");
        scene.settle(&mut alice, &mut bob);
        let before = scene.metrics();
        let sure = bulk(&mut bob, &mut alice, 200);
        scene.went_its_way(&before, sure);
    }
}

pub(crate) fn a_peer_with_another_network_card_is_found_again(mode: Mode) {
    for family in [Family::V4, Family::V6] {
        let Some(scene) = Scene::new(mode, APART) else { return };
        let (mut alice, mut bob) = scene.pair(family);
        let handshakes = (alice.handshakes, bob.handshakes);
        // Having forgotten the relay's station it has to ask, and so tells its own new one.
        let home = &scene.net.host("alice").space;
        home.ip("link set eth0 address 02:00:00:00:00:77\nneighbour flush dev eth0\n");
        reach(&mut alice, &mut bob, b"by another card");
        reach(&mut bob, &mut alice, b"to the other card");
        scene.settle(&mut alice, &mut bob);
        let before = scene.metrics();
        let sure = bulk(&mut bob, &mut alice, 200);
        scene.went_its_way(&before, sure);
        assert_eq!((alice.handshakes, bob.handshakes), handshakes, "the session went on");
    }
}

pub(crate) fn a_restarted_peer_is_found_again(mode: Mode) {
    let Some(scene) = Scene::new(mode, APART) else { return };
    let (mut alice, mut bob) = scene.pair(Family::V6);
    bob.restart(scene.net.host("bob").socket(Family::V6));
    ping(&mut bob, &mut alice, b"after a restart");
    ping(&mut alice, &mut bob, b"welcome back");
    scene.settle(&mut alice, &mut bob);
    let before = scene.metrics();
    let sure = bulk(&mut alice, &mut bob, 200);
    scene.went_its_way(&before, sure);
}

pub(crate) fn a_reload_leaves_flows_alone(mode: Mode) {
    let Some(scene) = Scene::new(mode, &[&["alice", "carol"], &["bob"]]) else { return };
    let (mut alice, mut bob) = scene.pair(Family::V4);
    let handshakes = (alice.handshakes, bob.handshakes);
    let reload = |peers: &[_], links: &[_], times: usize| {
        scene.register(peers, links);
        scene.relay.process.signal(Signal::HUP);
        eventually("a reload", || {
            // Read, and taken up by the core that owns the relay.
            let metrics = scene.metrics();
            let done = metrics.sum("relay_wireguard_reloads_total", &["result=\"ok\""]);
            let linked = metrics.sum("relay_wireguard_links", &[]);
            if (done, linked) == (times as u64, links.len() as u64) {
                Ok(())
            } else {
                Err(format!("{done} so far, {linked} links"))
            }
        });
    };

    reload(&[ALICE, BOB, CAROL], &[[ALICE, BOB], [BOB, CAROL]], 1);
    let before = scene.metrics();
    let sure = bulk(&mut alice, &mut bob, 200) + bulk(&mut bob, &mut alice, 200);
    assert_eq!((alice.handshakes, bob.handshakes), handshakes, "the session went on");
    scene.went_its_way(&before, sure);
    let mut carol = scene.peer(CAROL, BOB, Family::V4);
    let mut bob_for_carol = scene.peer(BOB, CAROL, Family::V4);
    // The relay has bob elsewhere, so that it is he who finds carol.
    carol.begin();
    bob_for_carol.begin();
    ping(&mut bob_for_carol, &mut carol, b"now you may");

    reload(&[ALICE, BOB, CAROL], &[[BOB, CAROL]], 2);
    let dropped =
        || scene.metrics().sum("relay_packets_dropped_total", &["reason=\"unknown_index\""]);
    // Sockets drop what has no link any more as soon as the fast path passes it to them.
    let before = dropped();
    eventually("the end of the link", || {
        alice.send(b"still?");
        if dropped() > before { Ok(()) } else { Err("none of hers is dropped".to_owned()) }
    });
    // Also bob's: carol's first word to him, and what of alice's was forwarded until then.
    idle([&mut alice, &mut bob], PAUSE);
    let (before, heard) = (dropped(), bob.heard);
    (0..20).for_each(|_| alice.send(b"no longer"));
    ping(&mut carol, &mut bob_for_carol, b"I still may");
    run("the end of what was sent", [&mut alice, &mut bob], |_| dropped() >= before + 20);
    idle([&mut alice, &mut bob], PAUSE);
    assert_eq!(bob.heard, heard);
}

/// A peer that changes its address goes on with its old keys until its own timer tells it that
/// nobody answers, 15 seconds later.
#[test]
fn a_roaming_peer_stalls_no_longer_than_its_own_timers() {
    if !slow() {
        return skip("slow", "set PERIGEE_SLOW=1 for the tests that wait for timers");
    }
    for mode in [Mode::Native, Mode::Off] {
        let Some(scene) = Scene::new(mode, APART) else { return };
        let (mut alice, mut bob) = scene.pair(Family::V4);
        let home = scene.net.host("alice");
        alice.move_to(home.socket_at(home.other_address(Family::V4)));
        reach(&mut alice, &mut bob, b"found without a word from the operator");
        ping(&mut bob, &mut alice, b"both ways");
        scene.settle(&mut alice, &mut bob);
    }
}
