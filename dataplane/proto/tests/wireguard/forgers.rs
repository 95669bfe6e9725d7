//! Those who are not peers: they know public keys, overhear, replay, forge sources.

use std::time::Duration;

use proto::wireguard::{Index, Place};
use wire::drop::DropReason;

use crate::world::{Outcome, World, forged_data, forged_initiation, forged_response, key, place};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

fn elsewhere() -> Place {
    place("192.0.2.66:666")
}

fn talking() -> World {
    let mut world = World::new(2, &[(A, B)]);
    world.cold_start(A, B);
    world.pass(Duration::from_secs(30));
    world
}

/// Nothing moved, and A and B still talk; also after a handshake from either side.
fn assert_unharmed(world: &mut World) {
    for (from, to) in [(A, B), (B, A)] {
        assert_eq!(world.endpoint(A), Some(world.nodes[A].place));
        assert_eq!(world.endpoint(B), Some(world.nodes[B].place));
        world.assert_talking(A, B);
        world.pass(Duration::from_secs(120));
        world.connect(from, to);
    }
    world.assert_talking(A, B);
}

#[test]
fn everything_replayed_from_elsewhere_moves_nothing() {
    let mut world = talking();
    world.connect(A, B);
    world.talk(A, B, 1);
    world.deliver();
    for (_, datagram, _) in world.seen.split_off(0) {
        world.nodes[A].inbox.clear();
        match world.judge(elsewhere(), &datagram) {
            // To the endpoint, which knows it is old, and one for one.
            Outcome::Sent(copies) => assert!(datagram[0] == 1 && copies.len() == 1),
            Outcome::Dropped(reason) => assert_eq!(reason, DropReason::UnknownIndex),
            Outcome::Forwarded(_) => panic!("a flow is bound to its place"),
        }
    }
    assert_unharmed(&mut world);
}

#[test]
fn a_replayed_initiation_is_answered_by_nobody() {
    let mut world = talking();
    let (_, old) = world.last(1);
    world.pass(Duration::from_secs(5));
    for _ in 0..20 {
        world.send(elsewhere(), &old);
        world.deliver();
    }
    let answers = world.seen.iter().rev().take(20).filter(|(_, it, _)| it[0] != 1).count();
    assert_eq!(answers, 0, "{:?}", world.outcomes());
    assert_unharmed(&mut world);
}

#[test]
fn everything_replayed_from_where_it_came_moves_nothing() {
    let mut world = talking();
    world.connect(B, A);
    for (from, datagram, _) in world.seen.split_off(0) {
        world.send(from, &datagram);
        world.deliver();
    }
    assert_unharmed(&mut world);
}

#[test]
fn a_response_counts_only_from_where_the_initiation_went() {
    let mut world = talking();
    world.initiate(A, B);
    let (from, initiation) = world.take();
    assert!(matches!(world.judge(from, &initiation), Outcome::Sent(_)));
    let index = Index(u32::from_le_bytes(*initiation[4..].first_chunk().expect("its length")));
    let response = forged_response(&key(A), 7, index);
    for forger in [elsewhere(), place("203.0.113.2:40001"), from] {
        let outcome = world.judge(forger, &response);
        assert_eq!(outcome, Outcome::Dropped(DropReason::UnknownIndex));
    }
    world.send(from, &initiation);
    world.deliver();
    assert_unharmed(&mut world);
}

#[test]
fn a_forged_response_of_somebody_who_got_the_fan_out_loses_against_the_true_one() {
    let mut world = World::new(2, &[(A, B)]);
    world.initiate(B, A);
    world.deliver();
    // The forger is taken for somebody who may be B, and earned credit for a second copy.
    world.judge(elsewhere(), &forged_initiation(&key(A), 1));
    world.initiate(A, B);
    let (from, initiation) = world.take();
    let copies = vec![world.nodes[B].place, elsewhere()];
    assert_eq!(world.judge(from, &initiation), Outcome::Sent(copies));
    let index = Index(u32::from_le_bytes(*initiation[4..].first_chunk().expect("its length")));
    world.send(elsewhere(), &forged_response(&key(A), 666, index));
    world.deliver();
    assert_eq!(world.seen.last().expect("it").2, Outcome::Sent(vec![from]));
    assert!(world.flows.is_empty(), "A does not believe it");
    world.send(from, &initiation);
    world.deliver();
    world.assert_talking(A, B);
    assert_eq!(world.endpoint(B), Some(world.nodes[B].place));
}

#[test]
fn a_response_for_the_wrong_reader_is_dropped() {
    let mut world = talking();
    world.initiate(A, B);
    let (from, initiation) = world.take();
    world.judge(from, &initiation);
    let index = Index(u32::from_le_bytes(*initiation[4..].first_chunk().expect("its length")));
    let response = forged_response(&key(B), 7, index);
    let outcome = world.judge(world.nodes[B].place, &response);
    assert_eq!(outcome, Outcome::Dropped(DropReason::NotLinked));
}

/// Earns credit for copies: so many keepalives that nobody knows.
fn earn(world: &mut World, keepalives: usize) {
    for _ in 0..keepalives {
        let outcome = world.judge(elsewhere(), &forged_data(0xdead));
        assert_eq!(outcome, Outcome::Dropped(DropReason::UnknownIndex));
    }
}

/// A whole exchange with nothing true in it, between two places; what the relay can see is right.
fn forge_exchange(world: &mut World, initiator: Place, responder: Place, indices: (u32, u32)) {
    let before = world.relay.counters().completed;
    world.judge(responder, &forged_initiation(&key(A), indices.1));
    // The first goes to the endpoint, the next to those who may be there too, in turn.
    let reached = (0..20).map(|i| indices.0 | i << 24).find(|index| {
        earn(world, 20);
        let outcome = world.judge(initiator, &forged_initiation(&key(B), *index));
        matches!(outcome, Outcome::Sent(copies) if copies.contains(&responder))
    });
    let index = Index(reached.expect("each has its turn"));
    world.judge(responder, &forged_response(&key(A), indices.1, index));
    world.judge(initiator, &forged_data(indices.1));
    assert_eq!(world.relay.counters().completed, before + 1);
}

#[test]
fn two_forgers_who_complete_an_exchange_displace_no_endpoint_and_cut_no_session() {
    let mut world = talking();
    for round in 0..20 {
        let (x, y) = (format!("192.0.2.66:{}", 1 + round), format!("192.0.2.67:{}", 1 + round));
        world.pass(Duration::from_secs(3));
        forge_exchange(&mut world, place(&x), place(&y), (round << 8, round << 8 | 1));
        world.assert_talking(A, B);
    }
    assert_unharmed(&mut world);
}

#[test]
fn a_copycats_index_does_not_draw_the_response_from_the_endpoint() {
    let mut world = talking();
    let (a, b) = (world.nodes[A].place, world.nodes[B].place);
    world.judge(elsewhere(), &forged_initiation(&key(B), 5));
    world.judge(a, &forged_initiation(&key(B), 5));
    let outcome = world.judge(b, &forged_response(&key(A), 6, Index(5)));
    assert_eq!(outcome, Outcome::Sent(vec![a]));
}

#[test]
fn one_place_answers_one_initiation_once() {
    let mut world = talking();
    let (a, b) = (world.nodes[A].place, world.nodes[B].place);
    world.judge(a, &forged_initiation(&key(B), 5));
    for _ in 0..2 {
        let outcome = world.judge(b, &forged_response(&key(A), 6, Index(5)));
        assert_eq!(outcome, Outcome::Sent(vec![a]), "the network may double it");
    }
    let outcome = world.judge(b, &forged_response(&key(A), 7, Index(5)));
    assert_eq!(outcome, Outcome::Dropped(DropReason::UnknownIndex));
}

#[test]
fn an_index_that_the_endpoint_chose_cannot_be_taken_over() {
    let mut world = talking();
    let (a, b) = (world.nodes[A].place, world.nodes[B].place);
    world.judge(elsewhere(), &forged_initiation(&key(A), 1));
    world.judge(a, &forged_initiation(&key(B), 5));
    world.judge(b, &forged_response(&key(A), 9, Index(5)));
    earn(&mut world, 20);
    let outcome = world.judge(a, &forged_initiation(&key(B), 6));
    assert_eq!(outcome, Outcome::Sent(vec![b, elsewhere()]));
    world.judge(elsewhere(), &forged_response(&key(A), 9, Index(6)));
    assert_eq!(world.judge(a, &forged_data(9)), Outcome::Sent(vec![b]));
}

#[test]
fn an_index_that_is_used_again_means_the_newer_session() {
    let mut world = talking();
    let (a, b, new) = (world.nodes[A].place, world.nodes[B].place, elsewhere());
    world.judge(a, &forged_initiation(&key(B), 5));
    world.judge(b, &forged_response(&key(A), 9, Index(5)));
    assert_eq!(world.judge(a, &forged_data(9)), Outcome::Sent(vec![b]));
    assert_eq!(world.judge(a, &forged_data(9)), Outcome::Forwarded(b));
    // B restarts elsewhere, with no better idea for an index.
    world.judge(new, &forged_initiation(&key(A), 1));
    world.judge(a, &forged_initiation(&key(B), 6));
    earn(&mut world, 20);
    world.judge(a, &forged_initiation(&key(B), 7));
    world.judge(new, &forged_response(&key(A), 9, Index(7)));
    assert_eq!(world.judge(a, &forged_data(9)), Outcome::Sent(vec![new]));
    assert_eq!(world.judge(a, &forged_data(9)), Outcome::Forwarded(new));
}

#[test]
fn an_endpoint_that_was_taken_by_forged_sources_is_won_back_by_its_owner() {
    let mut world = talking();
    // With B's address as source: the relay cannot tell that it is not B who answers.
    let (b, thief) = (world.nodes[B].place, elsewhere());
    world.judge(thief, &forged_initiation(&key(B), 5));
    world.judge(b, &forged_response(&key(A), 6, Index(5)));
    world.judge(thief, &forged_data(6));
    assert_eq!(world.endpoint(A), Some(thief));
    world.assert_talking(A, B);
    world.pass(Duration::from_secs(100));
    world.connect(A, B);
    assert_unharmed(&mut world);
}

#[test]
fn until_then_the_others_still_reach_it() {
    let mut world = talking();
    // So long that its first initiation is forgotten.
    world.pass(Duration::from_secs(100));
    let (b, thief) = (world.nodes[B].place, elsewhere());
    world.judge(thief, &forged_initiation(&key(B), 5));
    world.judge(b, &forged_response(&key(A), 6, Index(5)));
    world.judge(thief, &forged_data(6));
    let completed = world.relay.counters().completed;
    for _ in 0..2 {
        world.pass(Duration::from_secs(5));
        world.initiate(B, A);
        world.deliver();
    }
    assert_eq!(world.relay.counters().completed, completed + 1, "at the second try");
    assert_eq!(world.endpoint(A), Some(world.nodes[A].place));
}

#[test]
fn junk_with_a_peers_own_address_does_not_lock_it_out() {
    let mut world = talking();
    let stranger = key(200);
    for peer in [A, B] {
        let from = world.nodes[peer].place;
        for sender in 0..10_000 {
            world.judge(from, &forged_initiation(&stranger, sender));
        }
    }
    assert_unharmed(&mut world);
}

#[test]
fn a_newcomer_behind_an_offenders_address_gets_through() {
    let mut world = World::new(2, &[(A, B)]);
    world.nodes[A].place = place("192.0.2.66:51820");
    world.initiate(B, A);
    world.deliver();
    for sender in 0..100 {
        world.judge(elsewhere(), &forged_initiation(&key(200), sender));
    }
    let (_, _, outcome) = world.seen.last().expect("it");
    assert_eq!(*outcome, Outcome::Dropped(DropReason::Ignored));
    world.connect(A, B);
    world.assert_talking(A, B);
}

#[test]
fn and_if_the_whole_network_offends_then_soon() {
    let mut world = World::new(2, &[(A, B)]);
    world.nodes[A].place = place("192.0.2.66:51820");
    world.initiate(B, A);
    world.deliver();
    for sender in 0..1000 {
        let from = place(&format!("192.0.2.{}:{}", sender % 250, sender));
        world.judge(from, &forged_initiation(&key(200), sender));
    }
    // A stock peer tries 18 times.
    let tries = (1..=18).find(|_| {
        world.initiate(A, B);
        world.deliver();
        world.relay.counters().completed == 1
    });
    assert!(tries.is_some());
    world.assert_talking(A, B);
}

/// How often an initiation for B reaches `place`, of so many that lead to nothing.
fn drawn(world: &mut World, place: Place, tries: u32) -> usize {
    let from = world.nodes[A].place;
    let reaches = |sender: &u32| match world.judge(from, &forged_initiation(&key(B), *sender)) {
        Outcome::Sent(copies) => copies.contains(&place),
        other => panic!("{other:?}"),
    };
    (1000..1000 + tries).filter(reaches).count()
}

#[test]
fn data_of_no_session_draws_nothing() {
    let mut world = talking();
    let (_, datagram) = world.last(4);
    let index = u32::from_le_bytes(*datagram[4..].first_chunk().expect("its length"));
    for wrong in [index ^ 1, index.wrapping_add(1), index.swap_bytes(), 0] {
        world.judge(elsewhere(), &forged_data(wrong));
    }
    assert_eq!(drawn(&mut world, elsewhere(), 8), 0);
    assert_unharmed(&mut world);
}

#[test]
fn data_that_was_overheard_draws_initiations_and_nothing_more() {
    let mut world = talking();
    world.talk(B, A, 1);
    let (_, datagram) = world.take();
    assert_eq!(world.judge(elsewhere(), &datagram), Outcome::Dropped(DropReason::UnknownIndex));
    assert_eq!(world.flows.len(), 2);
    assert_eq!(world.endpoint(B), Some(world.nodes[B].place));
    // The first goes to the endpoint, and at least every second of the rest.
    let from = world.nodes[A].place;
    let first = world.judge(from, &forged_initiation(&key(B), 999));
    assert_eq!(first, Outcome::Sent(vec![world.nodes[B].place]));
    let home = world.nodes[B].place;
    assert!(drawn(&mut world, home, 20) >= 10);
    assert!(drawn(&mut world, elsewhere(), 20) > 0);
    // Only the last such place is known, and not for long.
    world.judge(place("192.0.2.67:1"), &datagram);
    assert_eq!(drawn(&mut world, elsewhere(), 20), 0);
    world.assert_talking(A, B);
    world.pass(Duration::from_secs(120));
    assert_eq!(drawn(&mut world, place("192.0.2.67:1"), 20), 0);
    world.connect(A, B);
    assert_unharmed(&mut world);
}

#[test]
fn somebodys_place_is_not_anothers_because_of_overheard_data() {
    let mut world = World::new(3, &[(A, B), (A, C)]);
    world.cold_start(A, B);
    world.connect(C, A);
    world.talk(B, A, 1);
    let (_, datagram) = world.take();
    let c = world.nodes[C].place;
    world.judge(c, &datagram);
    assert_eq!(drawn(&mut world, c, 20), 0);
}

#[test]
fn messages_cut_anywhere_are_dropped() {
    let mut world = talking();
    world.restart(B, 0);
    world.initiate(A, B);
    world.deliver();
    for kind in 1..=4 {
        let (from, whole) = world.last(kind);
        for len in (0..whole.len()).filter(|len| kind != 4 || *len < 32) {
            let outcome = world.judge(from, &whole[..len]);
            let reason = if len < 4 { DropReason::NotStun } else { DropReason::BadWireguard };
            assert_eq!(outcome, Outcome::Dropped(reason), "kind {kind}, {len} bytes");
        }
        if kind != 4 {
            let longer = [&*whole, &[0]].concat();
            let outcome = world.judge(from, &longer);
            assert_eq!(outcome, Outcome::Dropped(DropReason::BadWireguard));
        }
    }
}
