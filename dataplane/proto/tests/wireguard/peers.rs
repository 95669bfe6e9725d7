//! Stock peers that behave: they start, talk, rekey, roam and restart.

use std::time::Duration;

use proto::wireguard::{Place, PortId};
use wire::drop::DropReason;

use crate::world::{Outcome, World, place};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

#[test]
fn peers_find_each_other_although_neither_place_is_known() {
    let mut world = World::new(2, &[(A, B)]);
    world.initiate(A, B);
    world.deliver();
    assert_eq!(world.seen[0].2, Outcome::Dropped(DropReason::NoEndpoint));
    world.initiate(B, A);
    world.deliver();
    assert_eq!(world.seen[1].2, Outcome::Sent(vec![world.nodes[A].place]));
    world.assert_talking(A, B);
    assert_eq!(world.endpoint(A), Some(world.nodes[A].place));
    assert_eq!(world.endpoint(B), Some(world.nodes[B].place));
}

#[test]
fn peers_that_start_at_the_same_moment_find_each_other() {
    let mut world = World::new(2, &[(A, B)]);
    world.initiate(A, B);
    world.initiate(B, A);
    world.deliver();
    world.assert_talking(A, B);
}

#[test]
fn a_packet_that_waited_for_the_handshake_arrives() {
    let mut world = World::new(2, &[(A, B)]);
    world.initiate(B, A);
    world.deliver();
    world.talk(A, B, 5);
    world.deliver();
    assert_eq!(world.nodes[B].inbox, [(A, 5)]);
    world.assert_talking(A, B);
}

#[test]
fn nobody_has_an_endpoint_before_data_confirms_it() {
    let mut world = World::new(2, &[(A, B)]);
    world.initiate(A, B);
    world.deliver();
    world.initiate(B, A);
    world.deliver();
    let kinds: Vec<u8> = world.seen.iter().map(|(_, datagram, _)| datagram[0]).collect();
    assert_eq!(kinds, [1, 1, 2, 4], "initiations of both, response, keepalive");

    let mut again = World::new(2, &[(A, B)]);
    for (from, datagram, outcome) in world.seen.drain(..3) {
        assert_eq!(again.judge(from, &datagram), outcome);
        assert_eq!((again.endpoint(A), again.endpoint(B)), (None, None));
        assert!(again.flows.is_empty());
    }
}

#[test]
fn a_hub_and_its_spokes_start_cold() {
    let mut world = World::new(3, &[(A, B), (A, C)]);
    world.initiate(B, A);
    world.initiate(C, A);
    world.deliver();
    // The hub's initiation for one spoke may reach the place of the other, who cannot read it.
    for _ in 0..2 {
        world.initiate(A, B);
        world.initiate(A, C);
        world.deliver();
    }
    world.assert_talking(A, B);
    world.assert_talking(A, C);
    let places = [A, B, C].map(|peer| Some(world.nodes[peer].place));
    assert_eq!([A, B, C].map(|peer| world.endpoint(peer)), places);
}

#[test]
fn nobody_is_sent_what_is_known_to_be_for_somebody_else() {
    let mut world = World::new(3, &[(A, B), (A, C)]);
    world.initiate(C, A);
    world.deliver();
    world.connect(A, C);
    world.initiate(A, B);
    world.deliver();
    let (_, _, outcome) = world.seen.last().expect("it");
    assert_eq!(*outcome, Outcome::Dropped(DropReason::NoEndpoint), "C asked for A, as B may have");
}

#[test]
fn a_known_hub_is_reached_at_once() {
    let mut world = World::new(3, &[(A, B), (A, C)]);
    world.cold_start(A, B);
    world.connect(C, A);
    world.assert_talking(A, C);
    world.assert_talking(A, B);
}

#[test]
fn peers_that_are_not_linked_do_not_get_through() {
    let mut world = World::new(3, &[(A, B)]);
    world.cold_start(A, B);
    // B is configured with C and would answer, and does.
    world.initiate(C, B);
    world.deliver();
    assert_eq!(world.last(2).0, world.nodes[B].place);
    let (_, _, outcome) = world.seen.last().expect("an answer");
    assert_eq!(*outcome, Outcome::Dropped(DropReason::NotLinked));
    world.talk(C, B, 1);
    world.talk(B, C, 1);
    world.deliver();
    assert_eq!((&*world.nodes[B].inbox, &*world.nodes[C].inbox), (&[(A, 77)][..], &[][..]));
    assert_eq!(world.endpoint(C), None);
    world.assert_talking(A, B);
}

#[test]
fn rekeying_overlaps_and_the_old_session_ends_by_age() {
    let mut world = World::new(2, &[(A, B)]);
    world.cold_start(A, B);
    let old = world.last(4);
    for (initiator, responder) in [(A, B), (B, A), (A, B)] {
        world.pass(Duration::from_secs(120));
        world.connect(initiator, responder);
        assert_eq!(world.flows.len(), 4, "the new session and the one before");
        world.assert_talking(A, B);
    }
    assert_eq!(world.judge(old.0, &old.1), Outcome::Dropped(DropReason::UnknownIndex));
    world.pass(Duration::from_secs(189));
    assert_eq!(world.flows.len(), 2);
    world.pass(Duration::from_secs(1));
    assert!(world.flows.is_empty());
}

#[test]
fn an_idle_link_comes_back_without_a_cold_start() {
    let mut world = World::new(2, &[(A, B)]);
    world.cold_start(A, B);
    world.pass(Duration::from_secs(3600));
    world.connect(A, B);
    world.assert_talking(A, B);
}

#[test]
fn a_peer_that_roams_is_followed_with_its_next_handshake() {
    for roamer in [A, B] {
        let mut world = World::new(2, &[(A, B)]);
        world.cold_start(A, B);
        let new = place("192.0.2.77:1");
        world.nodes[roamer].place = new;
        world.talk(roamer, A + B - roamer, 1);
        world.deliver();
        assert_ne!(world.endpoint(roamer), Some(new), "data alone moves nothing");
        world.pass(Duration::from_secs(15));
        world.connect(roamer, A + B - roamer);
        assert_eq!(world.endpoint(roamer), Some(new));
        assert_eq!(world.relay.counters().moved, 1);
        world.assert_talking(A, B);
        world.pass(Duration::from_secs(120));
        world.connect(A + B - roamer, roamer);
        world.assert_talking(A, B);
    }
}

#[test]
fn a_peer_whose_address_translator_moved_it_is_found_by_its_keepalives() {
    for roamer in [A, B] {
        let mut world = World::new(2, &[(A, B)]);
        world.cold_start(A, B);
        let (other, new) = (A + B - roamer, place("192.0.2.77:1"));
        world.nodes[roamer].place = new;
        world.pass(Duration::from_secs(25));
        world.talk(roamer, other, 1);
        world.deliver();
        let (_, _, outcome) = world.seen.last().expect("it");
        assert_eq!(*outcome, Outcome::Dropped(DropReason::UnknownIndex));
        // What the other sends is lost, and it tries as stock peers do.
        world.talk(other, roamer, 1);
        world.deliver();
        world.pass(Duration::from_secs(15));
        let found = (0..3).any(|_| {
            world.initiate(other, roamer);
            world.deliver();
            world.pass(Duration::from_secs(5));
            world.relay.counters().completed == 2
        });
        assert!(found, "{:?}", world.outcomes());
        assert_eq!(world.endpoint(roamer), Some(new));
        world.assert_talking(A, B);
    }
}

#[test]
fn both_peers_may_roam_at_once() {
    let mut world = World::new(2, &[(A, B)]);
    world.cold_start(A, B);
    world.pass(Duration::from_secs(30));
    (world.nodes[A].place, world.nodes[B].place) = (place("192.0.2.1:1"), place("192.0.2.2:2"));
    let mut tries = 0;
    while world.relay.counters().completed < 2 {
        tries += 1;
        assert!(tries <= 3, "found within three tries: {:?}", world.outcomes());
        world.initiate(A, B);
        world.initiate(B, A);
        world.deliver();
        world.pass(Duration::from_secs(5));
    }
    world.assert_talking(A, B);
    // Two rekeyings later nothing is left of the places before.
    for _ in 0..3 {
        world.pass(Duration::from_secs(120));
        world.initiate(A, B);
        world.deliver();
        world.pass(Duration::from_secs(5));
        world.initiate(A, B);
        world.deliver();
        world.assert_talking(A, B);
    }
    assert_eq!(world.endpoint(A), Some(place("192.0.2.1:1")));
    assert_eq!(world.endpoint(B), Some(place("192.0.2.2:2")));
}

#[test]
fn a_peer_that_restarts_is_back_with_its_first_handshake() {
    for (restarted, new) in [(A, None), (B, None), (A, Some("192.0.2.9:9")), (B, Some("[::9]:9"))] {
        let mut world = World::new(2, &[(A, B)]);
        world.cold_start(A, B);
        world.restart(restarted, 1000);
        if let Some(new) = new {
            world.nodes[restarted].place = place(new);
        }
        world.talk(restarted, A + B - restarted, 1);
        world.deliver();
        world.assert_talking(A, B);
    }
}

#[test]
fn the_other_side_of_a_restart_may_be_the_one_to_notice() {
    let mut world = World::new(2, &[(A, B)]);
    world.cold_start(A, B);
    world.restart(B, 1000);
    world.talk(A, B, 1);
    world.deliver();
    world.pass(Duration::from_secs(15));
    world.connect(A, B);
    world.assert_talking(A, B);
}

#[test]
fn after_a_restart_of_the_relay_peers_find_each_other_again() {
    let mut world = World::new(2, &[(A, B)]);
    world.cold_start(A, B);
    let mut fresh = World::new(2, &[(A, B)]);
    fresh.nodes = world.nodes;
    for number in 0..200 {
        fresh.talk(A, B, number);
        fresh.talk(B, A, number);
        fresh.deliver();
    }
    fresh.cold_start(A, B);
}

#[test]
fn places_may_be_on_any_socket_and_of_any_family() {
    let mut world = World::new(3, &[(A, B), (B, C), (A, C)]);
    world.nodes[A].place = Place::new(PortId(1), "[2001:db8::1]:1".parse().expect("an address"));
    world.nodes[B].place = Place::new(PortId(2), "[::ffff:192.0.2.2]:2".parse().expect("one"));
    assert_eq!(world.nodes[B].place.remote(), "192.0.2.2:2".parse().expect("an address"));
    world.cold_start(A, B);
    world.cold_start(B, C);
    world.connect(C, A);
    world.assert_talking(A, C);
}

#[test]
fn peers_behind_one_address_are_told_apart() {
    let mut world = World::new(3, &[(A, B), (B, C), (A, C)]);
    for peer in [A, B, C] {
        world.nodes[peer].place = place(&format!("192.0.2.1:{}", 100 + peer));
    }
    world.cold_start(A, B);
    world.cold_start(C, A);
    world.connect(B, C);
    world.assert_talking(B, C);
}

#[test]
fn cookies_find_whoever_sent_the_handshake() {
    let mut world = World::new(2, &[(A, B)]);
    world.cold_start(A, B);
    // Under load from the first handshake on: the initiator's first try earns a cookie.
    world.restart(B, 0);
    world.pass(Duration::from_secs(15));
    world.initiate(A, B);
    world.deliver();
    assert_eq!(world.last(3).0, world.nodes[B].place);
    assert_eq!(world.seen.last().expect("it").2, Outcome::Sent(vec![world.nodes[A].place]));
    world.pass(Duration::from_secs(5));
    world.connect(A, B);
    world.assert_talking(A, B);
    // And a responder's, from an initiator under load.
    world.restart(A, 0);
    world.pass(Duration::from_secs(15));
    world.initiate(A, B);
    world.deliver();
    assert_eq!(world.last(3).0, world.nodes[B].place, "of the initiation first");
    world.pass(Duration::from_secs(5));
    world.initiate(A, B);
    world.deliver();
    assert_eq!(world.last(3).0, world.nodes[A].place, "then of the response");
    assert_eq!(world.seen.last().expect("it").2, Outcome::Sent(vec![world.nodes[B].place]));
}
