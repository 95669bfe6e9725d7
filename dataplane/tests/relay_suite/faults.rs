//! Clients that break the protocol, and destinations that are not there.

use dataplane::observe::CloseReason;
use wire::derp::{FrameType, GoneReason, Header};
use wire::drop::DropReason;

use crate::frames::{self, Frame, disco, key};
use crate::harness::{End as _, Harness, Relay, roomy};

pub(crate) fn skips_unknown_frames<H: Harness>() {
    let mut relay = Relay::<H>::start(1, roomy());
    let mut client = relay.join(0, key(1));
    let mut unknown = vec![0x77, 0, 3, 0, 0];
    unknown.resize(5 + (3 << 16), 0x04);
    client.write(&unknown);
    client.write(&frames::frame(FrameType::KeepAlive, &[]));
    client.write(&frames::frame(FrameType::ServerInfo, b"not for us"));
    client.write(&frames::frame(FrameType::Pong, b"as asked"));
    assert_eq!(client.sync(&mut relay), []);
    assert_eq!(relay.count(|core| core.unknown_frames.value()), 3);
    relay.rest();
}

pub(crate) fn ends_a_session_at_a_bad_length<H: Harness>() {
    let bad = [
        (FrameType::SendPacket, 31),
        (FrameType::SendPacket, 32 + 65_537),
        (FrameType::SendPacket, u32::MAX),
        (FrameType::Ping, 7),
        (FrameType::Ping, 1001),
        (FrameType::NotePreferred, 0),
        (FrameType::NotePreferred, 2),
        (FrameType::WatchConns, 0),
        (FrameType::ForwardPacket, 70),
        (FrameType::ClosePeer, 32),
    ];
    let mut relay = Relay::<H>::start(2, roomy());
    let mut witness = relay.join(0, key(1));
    for (count, (kind, len)) in bad.into_iter().enumerate() {
        let mut client = relay.join(1, key(2));
        client.send(&key(1), b"last words");
        // Nothing but the header: the payload is not waited for.
        client.write(&Header::bytes(kind, len));
        client.write(&frames::send(&key(1), b"too late"));
        assert_eq!(client.read_to_end(&mut relay), [], "{kind:?} of {len}: it is told nothing");
        relay.until("counted", |relay, _| relay.closed(CloseReason::PeerFault) == count as u64 + 1);
        let gone = Frame::Gone { key: key(2), reason: GoneReason::Disconnected as u8 };
        assert_eq!(witness.next(&mut relay).packet_from(&key(2)), b"last words");
        assert_eq!(witness.next(&mut relay), gone);
        assert_eq!(witness.sync(&mut relay), [], "{kind:?} of {len}");
        relay.until("let go", |_, _| !client.end.is_held());
    }
    relay.rest();
    assert_eq!(relay.sessions(), 1);
}

pub(crate) fn tells_of_an_unknown_destination_three_times<H: Harness>() {
    let mut relay = Relay::<H>::start(1, roomy());
    let mut client = relay.join(0, key(1));
    let flood: Vec<u8> = (0..10).flat_map(|at| frames::send(&key(100 + at), &disco(b""))).collect();
    client.write(&flood);
    let heard = client.sync(&mut relay);
    let told =
        (0..3).map(|at| Frame::Gone { key: key(100 + at), reason: GoneReason::NotHere as u8 });
    assert_eq!(heard, told.collect::<Vec<_>>());
    relay.rest();
    assert_eq!(relay.dropped(DropReason::UnknownDest), 10);
    assert_eq!(relay.count(|core| core.peer_gone_not_here.value()), 3);
    assert_eq!(relay.count(|core| core.disco_received.value()), 10);
}

pub(crate) fn says_nothing_of_an_unknown_destination_of_data<H: Harness>() {
    let mut relay = Relay::<H>::start(1, roomy());
    let mut client = relay.join(0, key(1));
    client.send(&key(9), b"is anybody there");
    assert_eq!(client.sync(&mut relay), []);
    let mut late = relay.join(0, key(9));
    client.send(&key(9), b"and now");
    assert_eq!(late.next(&mut relay).packet_from(&key(1)), b"and now");
    relay.rest();
    assert_eq!(relay.dropped(DropReason::UnknownDest), 1);
}
