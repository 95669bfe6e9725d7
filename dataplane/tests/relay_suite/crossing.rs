//! Two workers and traffic between their clients, as much at once as there can be.

use proto::derp::Framing;
use wire::key::{KEY_LEN, Key};

use crate::frames::{Frame, key};
use crate::harness::{Client, Harness, Relay, roomy};

pub(crate) fn relays_both_ways_under_load<H: Harness>() {
    const PACKETS: u32 = 6000;
    let mut relay = Relay::<H>::start(2, roomy());
    let (mut a, mut b) = (relay.join(0, key(1)), relay.join(1, key(2)));
    let (mut from_a, mut from_b) = (0, 0);
    for batch in 0..PACKETS / 100 {
        for number in batch * 100..(batch + 1) * 100 {
            a.send(&key(2), &packet(number));
            b.send(&key(1), &packet(number));
        }
        // Both directions are read while they flow, as far as they have come.
        relay.step();
        collect(&mut b, &key(1), &mut from_a);
        collect(&mut a, &key(2), &mut from_b);
    }
    relay.until("all of it", |_, _| {
        collect(&mut b, &key(1), &mut from_a);
        collect(&mut a, &key(2), &mut from_b);
        (from_a, from_b) == (PACKETS, PACKETS)
    });
    relay.rest();
    assert_eq!((relay.flow().forwarded, relay.flow().dropped), (u64::from(PACKETS) * 2, 0));
}

pub(crate) fn counts_every_packet_once_among_many_clients<H: Harness>() {
    const CLIENTS: u8 = 12;
    const ROUNDS: u32 = 60;
    let mut relay = Relay::<H>::start(2, roomy());
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|at| relay.join(usize::from(at / 2 % 2), key(at))).collect();
    let mut heard = vec![[0_u32; CLIENTS as usize]; usize::from(CLIENTS)];
    let hear = |clients: &mut [Client<H>], heard: &mut [[u32; CLIENTS as usize]]| {
        for (client, heard) in clients.iter_mut().zip(heard) {
            client.read();
            while let Some(frame) = client.take() {
                let Frame::Packet { source, packet } = frame else { panic!("{frame:?}") };
                let from = (0..CLIENTS).position(|at| key(at) == source).expect("one of us");
                assert!(packet == self::packet(heard[from]), "in order from {from}");
                heard[from] += 1;
            }
        }
    };
    for round in 0..ROUNDS {
        for client in &mut clients {
            for to in 0..CLIENTS {
                client.send(&key(to), &packet(round));
            }
        }
        relay.step();
        hear(&mut clients, &mut heard);
    }
    relay.until("all of it", |_, _| {
        hear(&mut clients, &mut heard);
        heard.iter().flatten().all(|count| *count == ROUNDS)
    });
    relay.rest();
    let total = u64::from(CLIENTS) * u64::from(CLIENTS) * u64::from(ROUNDS);
    assert_eq!((relay.flow().received, relay.flow().forwarded), (total, total));
}

pub(crate) fn takes_a_burst_from_everybody_at_once<H: Harness>() {
    const CLIENTS: u8 = 60;
    let mut relay = Relay::<H>::start(1, roomy());
    let mut clients: Vec<_> = (0..CLIENTS).map(|at| relay.join(0, key(at))).collect();
    for burst in 0..3 {
        // More than a driver has receive buffers for.
        relay.hold(|| {
            for (at, client) in (1..).zip(&mut clients) {
                client.send(&key(at % CLIENTS), &vec![burst; 60_000]);
            }
        });
        for (at, client) in (0..).zip(&mut clients) {
            let source = key((at + CLIENTS - 1) % CLIENTS);
            assert!(client.next(&mut relay).packet_from(&source) == vec![burst; 60_000]);
        }
    }
    relay.rest();
    assert_eq!(relay.count(|core| core.enobufs.value()) > 0, H::HAS_FEW_BUFFERS);
}

/// More newcomers than a worker adopts in a round: it comes back for the rest by itself.
pub(crate) fn greets_a_crowd_that_comes_at_once<H: Harness>() {
    const CLIENTS: u16 = 400;
    let mut relay = Relay::<H>::start(1, roomy());
    let key = |number: u16| {
        let mut key = Key([1; KEY_LEN]);
        key.0[..2].copy_from_slice(&number.to_be_bytes());
        key
    };
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|at| relay.adopt(0, key(at), Framing::Raw, &[])).collect();
    for client in &mut clients {
        assert_eq!(client.next(&mut relay), Frame::Info(b"sealed elsewhere".to_vec()));
    }
    relay.rest();
}

/// A packet that says which it is, of a length that its number decides.
fn packet(number: u32) -> Vec<u8> {
    let mut packet = number.to_be_bytes().to_vec();
    packet.resize(4 + number as usize * 131 % 1500, number as u8);
    packet
}

/// Reads what has come from `source`; `count` packets came before.
fn collect<H: Harness>(reader: &mut Client<H>, source: &Key, count: &mut u32) {
    reader.read();
    while let Some(frame) = reader.take() {
        assert!(frame.packet_from(source) == packet(*count), "number {count}");
        *count += 1;
    }
}
