//! Floods: every table has a bound, and what is established stands.

use std::time::Duration;

use proto::bucket::Rate;
use proto::wireguard::{FAN_OUT_MAX, Limits};
use wire::drop::DropReason;

use crate::world::{Outcome, World, forged_initiation, key, place};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
const D: usize = 3;

const SMALL: Limits = Limits {
    askers_per_peer_max: 8,
    handshakes_max: 8,
    sessions_per_link_max: 2,
    strikes_max: 16,
    ..Limits::DEFAULT
};

#[test]
fn one_initiation_goes_to_no_more_places_than_its_bytes_and_the_bound_allow() {
    let mut world = World::new(2, &[(A, B)]);
    for (port, copies) in [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0)] {
        let from = place(&format!("192.0.2.1:{port}"));
        let outcome = world.judge(from, &forged_initiation(&key(B), port));
        assert_eq!(outcome, Outcome::Dropped(DropReason::NoEndpoint), "{copies}");
    }
    // Eight messages' worth of credit, and one more each time.
    for copies in [FAN_OUT_MAX, FAN_OUT_MAX, 3, 1, 1] {
        let outcome = world.judge(place("192.0.2.9:9"), &forged_initiation(&key(A), 9));
        let Outcome::Sent(places) = outcome else { panic!("{outcome:?}") };
        assert_eq!(places.len(), copies);
    }
}

#[test]
fn without_credit_places_take_turns() {
    let mut world = World::new(2, &[(A, B)]);
    let places: Vec<_> = (1..=5).map(|host| place(&format!("192.0.{host}.1:1"))).collect();
    for (sender, place) in places.iter().enumerate() {
        world.judge(*place, &forged_initiation(&key(B), sender as u32));
    }
    let mut reached = Vec::new();
    for sender in 0..10 {
        if let Outcome::Sent(copies) =
            world.judge(place("192.0.2.9:9"), &forged_initiation(&key(A), sender))
        {
            reached.extend(copies);
        }
    }
    assert!(places.iter().all(|place| reached.contains(place)));
}

#[test]
fn an_endpoint_gets_every_second_copy_however_many_claim_to_be_there_too() {
    let mut world = World::with_limits(2, &[(A, B)], SMALL);
    world.cold_start(A, B);
    for host in 0..8 {
        world.judge(place(&format!("192.0.{host}.1:1")), &forged_initiation(&key(B), host));
    }
    let home = world.nodes[A].place;
    let from = place("192.0.2.9:9");
    let to_home = (0..40).filter(|sender| {
        match world.judge(from, &forged_initiation(&key(A), 100 + sender)) {
            Outcome::Sent(copies) => copies.contains(&home),
            other => panic!("{other:?}"),
        }
    });
    let to_home = to_home.count();
    assert!((19..=22).contains(&to_home), "{to_home}");
}

#[test]
fn a_flood_of_initiations_from_strangers_does_not_push_out_those_of_endpoints() {
    let mut world = World::with_limits(2, &[(A, B)], SMALL);
    world.cold_start(A, B);
    world.initiate(A, B);
    let (from, initiation) = world.take();
    world.judge(from, &initiation);
    for sender in 0..1000 {
        let stranger = place(&format!("192.0.2.{}:{}", sender % 200, 1 + sender));
        world.judge(stranger, &forged_initiation(&key(B), sender));
    }
    assert_eq!(world.relay.counters().handshakes, 8);
    assert!(world.relay.counters().handshakes_evicted > 900);
    let completed = world.relay.counters().completed;
    world.receive(B, &initiation);
    world.deliver();
    assert_eq!(world.relay.counters().completed, completed + 1);
}

#[test]
fn nor_does_a_flood_from_an_endpoint() {
    let mut world = World::with_limits(4, &[(A, B), (C, D)], SMALL);
    world.cold_start(A, B);
    world.cold_start(C, D);
    world.initiate(C, D);
    let (from, initiation) = world.take();
    world.judge(from, &initiation);
    let flooder = world.nodes[A].place;
    for sender in 0..1000 {
        world.judge(flooder, &forged_initiation(&key(B), sender));
    }
    assert!(world.relay.counters().handshakes_evicted > 900);
    let completed = world.relay.counters().completed;
    world.receive(D, &initiation);
    world.deliver();
    assert_eq!(world.relay.counters().completed, completed + 1);
}

#[test]
fn one_network_does_not_push_out_everybody_who_asks() {
    let mut world = World::with_limits(2, &[(A, B)], SMALL);
    world.initiate(A, B);
    world.deliver();
    for sender in 0..1000 {
        let from = place(&format!("192.0.2.{}:{}", sender % 200, 1 + sender));
        world.judge(from, &forged_initiation(&key(B), sender));
    }
    assert!(world.relay.counters().askers_evicted > 900);
    let tries = (1..=8).find(|_| {
        world.initiate(B, A);
        world.deliver();
        world.relay.counters().completed == 1
    });
    assert!(tries.is_some(), "{:?}", world.outcomes());
}

#[test]
fn sessions_of_a_link_are_bounded() {
    let mut world = World::with_limits(2, &[(A, B)], SMALL);
    world.cold_start(A, B);
    for _ in 0..10 {
        world.connect(A, B);
        world.assert_talking(A, B);
    }
    assert_eq!(world.flows.len(), 4);
    assert_eq!(world.relay.counters().sessions_evicted, 9);
}

#[test]
fn offenders_are_noted_up_to_the_limit_and_forgotten_in_time() {
    let mut world = World::with_limits(2, &[(A, B)], SMALL);
    for sender in 0..1000 {
        let from = place(&format!("[2001:db8:{sender:x}::1]:1"));
        world.judge(from, &forged_initiation(&key(200), sender));
    }
    assert_eq!(world.relay.counters().watched, 16);
    assert!(world.relay.counters().strikes_unrecorded > 900);
    world.pass(Duration::from_secs(61));
    assert_eq!(world.relay.counters().watched, 0);
}

#[test]
fn looking_for_addressees_is_rationed_and_endpoints_have_a_ration_of_their_own() {
    let trials = Rate { per_second: 10, burst: 100 };
    let mut world = World::with_limits(2, &[(A, B)], Limits { trials, ..Limits::DEFAULT });
    world.cold_start(A, B);
    world.register(0..60, &[(A, B)]);
    for sender in 0..1000 {
        let from = place(&format!("[2001:db8:{sender:x}::1]:1"));
        world.judge(from, &forged_initiation(&key(200), sender));
    }
    let (_, _, outcome) = world.seen.last().expect("it");
    assert_eq!(*outcome, Outcome::Dropped(DropReason::TrialsSpent));
    world.connect(A, B);
    world.assert_talking(A, B);
}

#[test]
fn places_that_led_to_nothing_are_forgotten() {
    let mut world = World::new(2, &[(A, B)]);
    world.initiate(A, B);
    world.deliver();
    world.pass(Duration::from_secs(121));
    world.initiate(B, A);
    world.deliver();
    assert_eq!(world.seen[1].2, Outcome::Dropped(DropReason::NoEndpoint));
    assert_eq!(world.relay.counters().handshakes, 0);
}
