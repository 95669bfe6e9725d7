//! Clients that read slowly, not at all, or go away with packets under way.

use dataplane::observe::CloseReason;
use wire::drop::DropReason;

use crate::frames::{self, Frame, disco, key};
use crate::harness::{Client, End as _, Harness, Relay, roomy};

/// Payload bytes of a packet in a flood.
const PACKET_LEN: usize = 1400;
/// A reader's kernel, or window, holds less than this many bytes.
const ABSORBED_BYTES: usize = 1 << 20;

fn numbered(number: u32) -> Vec<u8> {
    let mut packet = number.to_be_bytes().to_vec();
    packet.resize(PACKET_LEN, 0);
    packet
}

fn number_of(packet: &[u8]) -> u32 {
    u32::from_be_bytes(*packet.first_chunk().expect("numbered"))
}

/// Sends numbered packets, twice as many as the reader absorbs; returns how many there are.
fn clog<H: Harness>(relay: &mut Relay<H>, sender: &mut Client<H>, to: u8) -> u32 {
    let sent = (2 * ABSORBED_BYTES / PACKET_LEN) as u32;
    for number in 0..sent {
        sender.send(&key(to), &numbered(number));
    }
    relay.until("taken in", |relay, _| relay.flow().received == u64::from(sent));
    assert!(relay.fabric.queued_bytes() >= ABSORBED_BYTES / 2, "the reader is never full");
    sent
}

pub(crate) fn sends_disco_before_waiting_bulk<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let (mut sender, mut reader) = (relay.join(0, key(1)), relay.join(1, key(2)));
    let sent = clog(&mut relay, &mut sender, 2);
    sender.send(&key(2), &disco(b"find me"));
    relay.until("taken in", |relay, _| relay.flow().received == u64::from(sent) + 1);
    let (mut behind, mut bulk) = (None, 0);
    for _ in 0..=sent {
        let packet = reader.next(&mut relay).packet_from(&key(1));
        if packet == disco(b"find me") {
            behind = Some(bulk);
        } else {
            assert_eq!(number_of(&packet), bulk);
            bulk += 1;
        }
    }
    let behind = behind.expect("disco arrives");
    assert!(bulk - behind >= 40, "{behind} of {bulk} were before it");
    relay.rest();
}

pub(crate) fn keeps_the_newest_packets_of_a_stopped_reader<H: Harness>() {
    let mut tuning = roomy();
    tuning.queue.queue_packets_max = 50;
    tuning.queue.queue_bytes_max = 100 << 10;
    let mut relay = Relay::<H>::start(2, tuning);
    let (mut sender, mut reader) = (relay.join(0, key(1)), relay.join(1, key(2)));
    let total = (4 * ABSORBED_BYTES / PACKET_LEN) as u32;
    for number in 0..total {
        sender.send(&key(2), &numbered(number));
    }
    relay.until("taken in", |relay, load| {
        assert!(relay.fabric.queued_bytes() <= 100 << 10, "{}", relay.fabric.queued_bytes());
        // A queue's buffer may be four times its content: it doubles, and moves at half empty.
        assert!(load.held_bytes <= 5 * (100 << 10), "{load:?}");
        relay.flow().received == u64::from(total)
    });
    let dropped = relay.dropped(DropReason::QueueHead);
    assert!(dropped > 100, "{dropped}");
    assert_eq!(sender.sync(&mut relay), [], "the sender is not held up");
    let mut numbers = Vec::new();
    while numbers.last() != Some(&(total - 1)) {
        numbers.push(number_of(&reader.next(&mut relay).packet_from(&key(1))));
    }
    assert!(numbers.is_sorted_by(|a, b| a < b));
    assert_eq!(numbers.len() as u64 + dropped, u64::from(total));
    let newest: Vec<u32> = (total - 50..total).collect();
    assert_eq!(numbers[numbers.len() - 50..], newest, "the newest fifty waited");
    relay.rest();
}

pub(crate) fn resumes_a_stopped_reader_without_loss<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let (mut sender, mut reader) = (relay.join(0, key(1)), relay.join(1, key(2)));
    let sent = clog(&mut relay, &mut sender, 2);
    for number in 0..sent {
        assert_eq!(number_of(&reader.next(&mut relay).packet_from(&key(1))), number);
    }
    sender.send(&key(2), b"and on");
    assert_eq!(reader.next(&mut relay).packet_from(&key(1)), b"and on");
    relay.rest();
    assert_eq!(relay.flow().dropped, 0);
}

pub(crate) fn cuts_a_reader_that_stands_still_and_no_other<H: Harness>() {
    let mut tuning = roomy();
    tuning.write_timeout_ms = 400;
    let mut relay = Relay::<H>::start(2, tuning);
    let (mut sender, mut reader) = (relay.join(0, key(1)), relay.join(1, key(2)));
    let mut other = relay.join(1, key(3));
    sender.write(&frames::send(&key(2), b"hello"));
    reader.send(&key(3), b"so that it hears");
    assert_eq!(other.next(&mut relay).packet_from(&key(2)), b"so that it hears");
    for number in 0..(2 * ABSORBED_BYTES / PACKET_LEN) as u32 {
        sender.send(&key(2), &numbered(number));
    }
    let before = relay.now();
    relay.until("cut", |relay, _| relay.closed(CloseReason::WriteTimeout) == 1);
    let took = (relay.now() - before).as_millis();
    assert!(took < 1000 + H::LATENESS.as_millis(), "{took} ms");
    assert_eq!(relay.count(|core| core.write_timeouts.value()), 1);
    let gone = Frame::Gone { key: key(2), reason: 0 };
    assert_eq!(other.next(&mut relay), gone);
    sender.send(&key(3), b"still here");
    assert_eq!(other.next(&mut relay).packet_from(&key(1)), b"still here");
    assert_eq!(sender.sync(&mut relay), []);
    relay.rest();
    relay.until("let go", |_, _| !reader.end.is_held());
    let lost = relay.dropped(DropReason::GoneDisconnected)
        + relay.dropped(DropReason::WriteError)
        + relay.dropped(DropReason::UnknownDest);
    assert!(lost > 100, "{lost} packets were under way");
    assert_eq!(relay.sessions(), 2);
}

pub(crate) fn forgets_what_waited_for_a_closed_session<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let (mut sender, mut reader) = (relay.join(0, key(1)), relay.join(1, key(2)));
    let sent = clog(&mut relay, &mut sender, 2);
    reader.end.close();
    relay.until("ended", |relay, _| relay.closed(CloseReason::Eof) == 1);
    relay.rest();
    let lost = relay.dropped(DropReason::GoneDisconnected) + relay.dropped(DropReason::WriteError);
    assert!(lost > 40, "{lost}");
    assert_eq!(lost + relay.flow().forwarded, u64::from(sent));
    assert!(!reader.end.is_held());
    sender.send(&key(2), b"into the void");
    assert_eq!(sender.sync(&mut relay), []);
    assert_eq!(relay.dropped(DropReason::UnknownDest), 1);
}

pub(crate) fn keeps_queues_of_all_clients_within_the_budget<H: Harness>() {
    let mut tuning = roomy();
    tuning.queued_bytes_max = 300 << 10;
    let mut relay = Relay::<H>::start(2, tuning);
    let mut sender = relay.join(0, key(1));
    let mut readers: Vec<_> = (2..6).map(|at| relay.join(usize::from(at % 2), key(at))).collect();
    let total = 4 * (2 * ABSORBED_BYTES / PACKET_LEN) as u32;
    for number in 0..total {
        sender.send(&key(2 + (number % 4) as u8), &numbered(number));
    }
    relay.until("taken in", |relay, _| {
        assert!(relay.fabric.queued_bytes() <= 300 << 10);
        relay.flow().received == u64::from(total)
    });
    let dropped = relay.flow().dropped;
    assert!(dropped > 0);
    let mut seen = 0;
    relay.until("everything else arrives", |relay, _| {
        seen += readers.iter_mut().map(|reader| reader.packets()).sum::<u64>();
        seen == u64::from(total) - dropped && relay.flow().waiting() == 0
    });
    relay.rest();
}
