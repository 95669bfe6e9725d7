//! Reloads, successors and what is shown.

use std::time::Duration;

use allocation_counter::measure;
use proto::wireguard::Index;
use wire::drop::DropReason;

use crate::world::{Outcome, World, forged_data, forged_initiation, forged_response, key, place};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

#[test]
fn a_reload_leaves_unchanged_links_alone() {
    let mut world = World::new(3, &[(A, B), (A, C)]);
    world.cold_start(A, B);
    world.connect(C, A);
    let kept = world.link(A, C);
    let stats = world.stats(kept);
    world.register([A, B, C], &[(A, C), (B, C)]);
    assert_eq!((world.link(A, C), world.stats(kept)), (kept, stats));
    world.assert_talking(A, C);
    world.talk(A, B, 3);
    world.deliver();
    let (_, _, outcome) = world.seen.last().expect("it");
    assert_eq!(*outcome, Outcome::Dropped(DropReason::UnknownIndex));
    world.connect(B, C);
    world.assert_talking(B, C);
}

#[test]
fn a_link_that_takes_the_number_of_another_starts_counting_at_zero() {
    let mut world = World::new(3, &[(A, B)]);
    world.cold_start(A, B);
    let number = world.link(A, B);
    assert!(world.stats(number).packets > 0);
    world.register([A, B, C], &[(A, C)]);
    assert_eq!(world.link(A, C), number);
    assert_eq!(world.stats(number).packets, 0);
}

#[test]
fn a_peer_that_is_removed_is_forgotten() {
    let mut world = World::new(3, &[(A, B), (A, C)]);
    world.cold_start(A, B);
    world.initiate(B, A);
    let (from, initiation) = world.take();
    world.judge(from, &initiation);
    world.register([A, C], &[(A, C)]);
    assert!(world.flows.is_empty());
    let keys: Vec<_> = world.relay.peers().map(|peer| peer.key).collect();
    assert!(keys.contains(&key(A)) && keys.contains(&key(C)) && keys.len() == 2);
    world.receive(A, &initiation);
    world.deliver();
    assert!(world.flows.is_empty());
    world.register([A, B, C], &[(A, B)]);
    assert_eq!(world.endpoint(B), None);
    world.cold_start(A, B);
}

#[test]
fn a_link_that_goes_during_a_handshake_carries_nothing() {
    let mut world = World::new(2, &[(A, B)]);
    world.cold_start(A, B);
    world.initiate(A, B);
    let (from, initiation) = world.take();
    world.judge(from, &initiation);
    world.register([A, B], &[]);
    world.receive(B, &initiation);
    world.deliver();
    assert!(world.flows.is_empty());
    let (_, _, outcome) = world.seen.last().expect("it");
    assert_eq!(*outcome, Outcome::Dropped(DropReason::NotLinked));
}

#[test]
fn nor_one_that_goes_before_the_first_data() {
    let mut world = World::new(2, &[(A, B)]);
    world.cold_start(A, B);
    let (a, b) = (world.nodes[A].place, world.nodes[B].place);
    world.judge(a, &forged_initiation(&key(B), 5));
    world.judge(b, &forged_response(&key(A), 6, Index(5)));
    world.register([A, B], &[]);
    let outcome = world.judge(a, &forged_data(6));
    assert_eq!(outcome, Outcome::Dropped(DropReason::NotLinked));
    assert!(world.flows.is_empty());
}

#[test]
fn links_count_both_ways_and_handshakes_not() {
    let mut world = World::new(2, &[(A, B)]);
    world.cold_start(A, B);
    let link = world.link(A, B);
    let before = world.stats(link);
    world.assert_talking(A, B);
    world.connect(A, B);
    let after = world.stats(link);
    // One packet each way, and the keepalive that completes the exchange.
    assert_eq!(after.packets - before.packets, 3);
    // Senders may pad what is inside; around it are 32 bytes.
    assert!(after.bytes - before.bytes >= 2 * (21 + 32));
    assert_eq!(world.relay.links().map(|it| it.sessions).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_successor_goes_on_with_the_sessions_there_are() {
    let mut world = World::new(3, &[(A, B), (A, C)]);
    world.cold_start(A, B);
    world.connect(C, A);
    world.pass(Duration::from_secs(100));
    world.connect(B, A);
    world.succeed(3, &[(A, B), (A, C)]);
    world.assert_talking(A, B);
    world.assert_talking(A, C);
    assert_eq!(world.flows.len(), 6);
    for peer in [A, B, C] {
        assert_eq!(world.endpoint(peer), Some(world.nodes[peer].place));
    }
    world.pass(Duration::from_secs(90));
    assert_eq!(world.flows.len(), 2, "sessions end when they would have ended");
    world.connect(A, B);
    world.succeed(3, &[(A, C)]);
    assert!(world.flows.is_empty(), "those of a removed link end with their relay");
}

#[test]
fn forwarding_allocates_nothing() {
    let mut world = World::new(2, &[(A, B)]);
    world.cold_start(A, B);
    let (from, datagram) = world.last(4);
    let stranger = place("192.0.2.66:666");
    let allocated = measure(|| {
        for _ in 0..1000 {
            assert!(world.flows.forward(&datagram, from).is_some());
            assert!(world.flows.forward(&datagram[..31], from).is_none());
            assert!(world.flows.forward(&datagram, stranger).is_none());
        }
    });
    assert_eq!(allocated.count_total, 0);
}
