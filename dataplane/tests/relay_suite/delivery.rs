//! Packets and pings between clients that behave.

use proto::derp::Framing;
use wire::derp::{self, FrameType, PACKET_LEN_MAX};

use crate::frames::{self, Frame, key};
use crate::harness::{End as _, Harness, Relay, roomy};

pub(crate) fn greets_before_anything_else<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let packet = frames::send(&key(1), b"early");
    let mut clients: Vec<_> =
        (0..16).map(|at| relay.adopt(at % 2, key(1), Framing::Raw, &packet)).collect();
    for client in &mut clients {
        let first = client.next(&mut relay);
        assert!(matches!(first, Frame::Info(_)), "{first:?}");
    }
    relay.until("every packet arrived", |relay, _| relay.flow().forwarded == 16);
    let received: usize = clients.iter_mut().map(|client| client.sync(&mut relay).len()).sum();
    assert_eq!(received, 16);
    relay.rest();
}

pub(crate) fn delivers_with_the_key_of_the_source<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let (mut a, mut b) = (relay.join(0, key(1)), relay.join(1, key(2)));
    let mut c = relay.join(0, key(3));
    a.send(&key(2), b"from a");
    assert_eq!(b.next(&mut relay).packet_from(&key(1)), b"from a");
    c.send(&key(2), b"from c");
    assert_eq!(b.next(&mut relay).packet_from(&key(3)), b"from c");
    b.send(&key(1), b"from b");
    assert_eq!(a.next(&mut relay).packet_from(&key(2)), b"from b");
    assert_eq!(c.sync(&mut relay), [], "nothing was for c");
    relay.rest();
    assert_eq!(relay.flow().forwarded, 3);
}

pub(crate) fn keeps_the_order_of_packets<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let mut sender = relay.join(0, key(1));
    let mut receivers = [relay.join(0, key(2)), relay.join(1, key(3))];
    for number in 0..4000_u32 {
        let mut packet = number.to_be_bytes().to_vec();
        packet.resize(4 + number as usize * 37 % 1400, 7);
        sender.send(&key(2 + (number % 2) as u8), &packet);
    }
    for (at, receiver) in receivers.iter_mut().enumerate() {
        for number in (at as u32..4000).step_by(2) {
            let packet = receiver.next(&mut relay).packet_from(&key(1));
            assert_eq!(packet[..4], number.to_be_bytes());
            assert_eq!(packet.len(), 4 + number as usize * 37 % 1400);
        }
    }
    relay.rest();
    assert_eq!(relay.flow().dropped, 0);
}

pub(crate) fn carries_every_size<H: Harness>() {
    const SIZES: [usize; 15] = [
        0,
        1,
        31,
        32,
        61,
        62,
        1400,
        2011,
        16_347,
        16_384,
        32_767,
        65_499,
        65_500,
        65_535,
        PACKET_LEN_MAX,
    ];
    let mut relay = Relay::<H>::start(2, roomy());
    let (mut a, mut b) = (relay.join(0, key(1)), relay.join(1, key(2)));
    for size in SIZES {
        let packet: Vec<u8> = (0..size).map(|at| (at / 3) as u8).collect();
        a.send(&key(2), &packet);
        b.send(&key(1), &packet);
        assert!(b.next(&mut relay).packet_from(&key(1)) == packet, "{size} bytes to b");
        assert!(a.next(&mut relay).packet_from(&key(2)) == packet, "{size} bytes to a");
    }
    relay.rest();
    let bytes = SIZES.iter().sum::<usize>() as u64 * 2;
    assert_eq!(relay.count(|core| core.bytes_received.value()), bytes);
    assert_eq!(relay.count(|core| core.bytes_forwarded.value()), bytes);
}

pub(crate) fn delivers_to_the_sender_itself<H: Harness>() {
    let mut relay = Relay::<H>::start(1, roomy());
    let mut client = relay.join(0, key(1));
    client.send(&key(1), b"to myself");
    assert_eq!(client.next(&mut relay).packet_from(&key(1)), b"to myself");
    client.end.close();
    assert_eq!(client.read_to_end(&mut relay), [], "nobody hears of the own departure");
    relay.rest();
    assert!(!client.end.is_held());
}

pub(crate) fn answers_pings_with_their_first_eight_bytes<H: Harness>() {
    let mut relay = Relay::<H>::start(1, roomy());
    let mut client = relay.join(0, key(1));
    for size in [8, 9, 100, 1000] {
        let payload: Vec<u8> = (0..size).map(|at| (at + size) as u8).collect();
        client.write(&frames::frame(FrameType::Ping, &payload));
        assert_eq!(client.next(&mut relay), Frame::Pong(payload[..8].to_vec()));
    }
    client.write(&derp::pong(*b"ignored!"));
    assert_eq!(client.sync(&mut relay), []);
    relay.rest();
    assert_eq!(relay.count(|core| core.pongs.value()), 5);
    assert_eq!(
        (relay.flow().received, relay.flow().answered),
        (5, 5),
        "pings are packets, answered"
    );
}

pub(crate) fn takes_bytes_that_were_read_before_the_adoption<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let mut receiver = relay.join(1, key(2));
    let stream =
        [frames::send(&key(2), b"whole"), frames::send(&key(2), b"cut in the middle")].concat();
    for (number, cut) in (10..).zip([0, 3, 20, 42, 45, 60, stream.len()]) {
        let mut sender = relay.adopt(0, key(number), Framing::Raw, &stream[..cut]);
        sender.write(&stream[cut..]);
        for packet in [&b"whole"[..], b"cut in the middle"] {
            assert_eq!(receiver.next(&mut relay).packet_from(&key(number)), packet, "cut at {cut}");
        }
        let gone = Frame::Gone { key: key(number), reason: 0 };
        sender.end.close();
        assert_eq!(receiver.next(&mut relay), gone);
    }
    relay.rest();
}

pub(crate) fn splits_long_frames_for_websocket_clients<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let mut browser = relay.join_as(0, key(1), Framing::WebSocket);
    let mut client = relay.join(1, key(2));
    for size in [0, 32_731, 32_732, PACKET_LEN_MAX] {
        let packet: Vec<u8> = (0..size).map(|at| (at / 5) as u8).collect();
        client.send(&key(1), &packet);
        // The client's reader refuses a message that is too long.
        assert!(browser.next(&mut relay).packet_from(&key(2)) == packet, "{size} bytes");
        browser.send(&key(2), &packet);
        assert!(client.next(&mut relay).packet_from(&key(1)) == packet, "{size} bytes");
    }
    assert_eq!(browser.sync(&mut relay), []);
    relay.rest();
}
