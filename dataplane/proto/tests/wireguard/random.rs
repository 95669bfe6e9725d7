//! Anything in any order: no more bytes out than in, all invariants, no panic.

use std::time::Duration;

use proptest::prelude::*;
use proto::wireguard::{Index, Limits};
use wire::key::Key;

use crate::world::{World, forged_data, forged_initiation, forged_response, key, place};

const PEERS: usize = 3;
const LINKS: [(usize, usize); 2] = [(0, 1), (0, 2)];

#[derive(Clone, Debug)]
enum Act {
    Bytes {
        from: u8,
        bytes: Vec<u8>,
    },
    Initiation {
        from: u8,
        to: u8,
        sender: u8,
    },
    Response {
        from: u8,
        to: u8,
        sender: u8,
        receiver: u8,
    },
    Cookie {
        from: u8,
        receiver: u8,
    },
    Data {
        from: u8,
        receiver: u8,
    },
    Replay {
        from: u8,
        which: prop::sample::Index,
        flipped: Option<prop::sample::Index>,
    },
    Initiate {
        peer: u8,
        other: u8,
    },
    Talk {
        peer: u8,
        other: u8,
    },
    Roam {
        peer: u8,
        to: u8,
    },
    Restart {
        peer: u8,
    },
    Pass {
        seconds: u8,
    },
    /// The lower bits say which links there are, the next whether all peers.
    Register {
        links: u8,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let small = 0..6_u8;
    prop_oneof![
        1 => (small.clone(), prop::collection::vec(any::<u8>(), 0..160))
            .prop_map(|(from, bytes)| Act::Bytes { from, bytes }),
        4 => (small.clone(), small.clone(), small.clone())
            .prop_map(|(from, to, sender)| Act::Initiation { from, to, sender }),
        4 => (small.clone(), small.clone(), small.clone(), small.clone())
            .prop_map(|(from, to, sender, receiver)| Act::Response { from, to, sender, receiver }),
        1 => (small.clone(), small.clone())
            .prop_map(|(from, receiver)| Act::Cookie { from, receiver }),
        4 => (small.clone(), small.clone())
            .prop_map(|(from, receiver)| Act::Data { from, receiver }),
        2 => (small.clone(), any::<prop::sample::Index>(), any::<Option<prop::sample::Index>>())
            .prop_map(|(from, which, flipped)| Act::Replay { from, which, flipped }),
        4 => (small.clone(), small.clone()).prop_map(|(peer, other)| Act::Initiate { peer, other }),
        2 => (small.clone(), small.clone()).prop_map(|(peer, other)| Act::Talk { peer, other }),
        1 => (small.clone(), small.clone()).prop_map(|(peer, to)| Act::Roam { peer, to }),
        1 => small.prop_map(|peer| Act::Restart { peer }),
        2 => (0..100_u8).prop_map(|seconds| Act::Pass { seconds }),
        1 => (0..8_u8).prop_map(|links| Act::Register { links }),
    ]
}

/// One of six places, the first three of which are peers' homes.
fn spot(world: &World, number: u8) -> proto::wireguard::Place {
    match number {
        0..3 => world.nodes[usize::from(number)].place,
        _ => place(&format!("192.0.2.{number}:{number}")),
    }
}

/// A registered key or one that is not.
fn reader(number: u8) -> Key {
    key(usize::from(number))
}

fn pair(peer: u8, other: u8) -> Option<(usize, usize)> {
    let (peer, other) = (usize::from(peer) % PEERS, usize::from(other) % PEERS);
    (peer != other).then_some((peer, other))
}

fn perform(world: &mut World, act: Act) {
    match act {
        Act::Bytes { from, bytes } => {
            world.judge(spot(world, from), &bytes);
        }
        Act::Initiation { from, to, sender } => {
            let bytes = forged_initiation(&reader(to), sender.into());
            world.judge(spot(world, from), &bytes);
        }
        Act::Response { from, to, sender, receiver } => {
            let bytes = forged_response(&reader(to), sender.into(), Index(receiver.into()));
            world.judge(spot(world, from), &bytes);
        }
        Act::Cookie { from, receiver } => {
            let mut bytes = [0; 64];
            (bytes[0], bytes[4]) = (3, receiver);
            world.judge(spot(world, from), &bytes);
        }
        Act::Data { from, receiver } => {
            world.judge(spot(world, from), &forged_data(receiver.into()));
        }
        Act::Replay { from, which, flipped } => {
            if world.seen.is_empty() {
                return;
            }
            let mut bytes = which.get(&world.seen).1.clone();
            if let Some(flipped) = flipped.filter(|_| !bytes.is_empty()) {
                let at = flipped.index(bytes.len());
                bytes[at] ^= 1;
            }
            world.send(spot(world, from), &bytes);
        }
        Act::Initiate { peer, other } => {
            if let Some((peer, other)) = pair(peer, other) {
                world.initiate(peer, other);
            }
        }
        Act::Talk { peer, other } => {
            if let Some((peer, other)) = pair(peer, other) {
                world.talk(peer, other, 1);
            }
        }
        Act::Roam { peer, to } => {
            world.nodes[usize::from(peer) % PEERS].place =
                place(&format!("203.0.113.{peer}:{}", 100 + u16::from(to)));
        }
        Act::Restart { peer } => world.restart(usize::from(peer) % PEERS, 1000),
        Act::Pass { seconds } => world.pass(Duration::from_secs(seconds.into())),
        Act::Register { links } => {
            let peers = if links & 4 == 0 { PEERS } else { PEERS - 1 };
            let numbered = LINKS.iter().enumerate();
            let kept = numbered.filter(|(i, (_, b))| links >> i & 1 == 1 && *b < peers);
            let kept: Vec<_> = kept.map(|(_, link)| *link).collect();
            world.register(0..peers, &kept);
        }
    }
    world.deliver();
}

const SMALL: Limits = Limits {
    askers_per_peer_max: 3,
    handshakes_max: 5,
    sessions_per_link_max: 2,
    strikes_max: 4,
    ..Limits::DEFAULT
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// What is asserted stands in [`World`], for every datagram.
    #[test]
    fn nothing_gets_more_out_than_it_brought_in(acts in prop::collection::vec(act(), 0..120)) {
        let mut world = World::with_limits(PEERS, &LINKS, SMALL);
        for act in acts {
            perform(&mut world, act);
        }
    }

    /// Whatever happened before, stock peers that go on trying find each other.
    #[test]
    fn peers_find_each_other_after_anything(acts in prop::collection::vec(act(), 0..60)) {
        let mut world = World::new(PEERS, &LINKS);
        for act in acts {
            perform(&mut world, act);
        }
        world.register(0..PEERS, &LINKS);
        world.pass(Duration::from_secs(5));
        for peer in 0..PEERS {
            world.restart(peer, 1000);
        }
        let found = (0..18).any(|_| {
            let before = world.relay.counters().completed;
            world.initiate(0, 1);
            world.initiate(1, 0);
            world.deliver();
            world.pass(Duration::from_secs(5));
            world.relay.counters().completed > before
        });
        prop_assert!(found, "{:?}", world.outcomes());
        world.assert_talking(0, 1);
    }
}
