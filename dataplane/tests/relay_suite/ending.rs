//! Sessions that come twice, go, stay idle, or are ended by the relay.

use std::sync::Arc;
use std::time::Duration;

use dataplane::observe::CloseReason;
use dataplane::relay::{Admitted, Command, Tuning};
use proto::derp::Framing;
use wire::derp::{FrameType, GoneReason};
use wire::drop::DropReason;

use crate::frames::{self, Frame, key};
use crate::harness::{End as _, Harness, Relay, roomy};

pub(crate) fn the_last_writer_of_a_key_is_active<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let mut sender = relay.join(0, key(1));
    let mut twins = [relay.join(0, key(2)), relay.join(1, key(2))];
    assert_eq!(relay.fabric.census(), (2, 1, 2));
    for (round, active) in [(0, 1), (1, 0), (2, 1), (3, 1), (4, 0)] {
        if round > 0 {
            twins[active].write(&frames::frame(FrameType::NotePreferred, &[1]));
            twins[active].sync(&mut relay);
        }
        sender.send(&key(2), &[round]);
        assert_eq!(twins[active].next(&mut relay).packet_from(&key(1)), [round]);
        relay.rest();
        relay.step();
        assert!(twins[1 - active].read());
    }
    twins[0].end.close();
    relay.until("one left", |relay, _| relay.sessions() == 2);
    sender.send(&key(2), b"the other takes over");
    assert_eq!(twins[1].next(&mut relay).packet_from(&key(1)), b"the other takes over");
    assert_eq!(twins[1].sync(&mut relay), []);
    relay.rest();
    assert_eq!(relay.fabric.census(), (2, 0, 0));
}

pub(crate) fn tells_those_who_heard_from_a_key_when_it_is_gone<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let mut twins = [relay.join(0, key(1)), relay.join(1, key(1))];
    let mut hearers = [relay.join(0, key(2)), relay.join(1, key(3)), relay.join(1, key(4))];
    let mut stranger = relay.join(0, key(5));
    stranger.send(&key(1), b"it never answers");
    // The first twin spoke to 2 and 3, the second to 3 and 4.
    for (twin, hearer) in [(0, 0), (0, 1), (1, 1), (1, 2), (1, 2)] {
        let packet = [twin as u8, hearer as u8];
        twins[twin].send(&key(2 + hearer as u8), &packet);
        assert_eq!(hearers[hearer].next(&mut relay).packet_from(&key(1)), packet);
    }
    twins[0].end.close();
    relay.until("one left", |relay, _| relay.sessions() == 5);
    for hearer in &mut hearers {
        assert_eq!(hearer.sync(&mut relay), [], "the key lives on");
    }
    twins[1].end.close();
    let gone = Frame::Gone { key: key(1), reason: GoneReason::Disconnected as u8 };
    for hearer in &mut hearers {
        assert_eq!(hearer.next(&mut relay), gone);
    }
    relay
        .until("all told", |relay, _| relay.count(|core| core.peer_gone_disconnected.value()) >= 3);
    relay.step();
    for hearer in &mut hearers {
        assert_eq!(hearer.sync(&mut relay), [], "once each");
    }
    assert_eq!(stranger.sync(&mut relay), [], "it never heard from the key");
    assert_eq!(relay.count(|core| core.peer_gone_disconnected.value()), 3);
    relay.rest();
}

pub(crate) fn ends_every_session_of_who_is_admitted_no_longer<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let mut twins = [relay.join(0, key(1)), relay.join(1, key(1))];
    let mut others = [relay.join(0, key(2)), relay.join(1, key(3))];
    for (twin, other) in [(0, 0), (1, 1)] {
        twins[twin].send(&key(2 + other as u8), b"remember me");
        assert_eq!(others[other].next(&mut relay).packet_from(&key(1)), b"remember me");
    }
    relay.fabric.admit(Admitted::Keys([key(2), key(3)].into()));
    for twin in &mut twins {
        assert_eq!(twin.read_to_end(&mut relay), []);
    }
    relay.until("ended", |relay, _| relay.closed(CloseReason::Revoked) == 2);
    let gone = Frame::Gone { key: key(1), reason: GoneReason::Disconnected as u8 };
    for other in &mut others {
        assert_eq!(other.next(&mut relay), gone);
        other.send(&key(1), b"where are you?");
        assert_eq!(other.sync(&mut relay), [], "the others go on");
    }
    assert_eq!(relay.dropped(DropReason::UnknownDest), 2);
    relay.rest();
    assert_eq!((relay.sessions(), relay.fabric.census()), (2, (2, 0, 0)));
}

pub(crate) fn a_session_revoked_on_its_way_is_ended_as_it_comes<H: Harness>() {
    let mut relay = Relay::<H>::start(1, roomy());
    let mut hearer = relay.join(0, key(2));
    relay.fabric.admit(Admitted::Keys([key(2)].into()));
    // The front had let it in before.
    let early = frames::send(&key(2), b"I am in");
    let mut late = relay.adopt(0, key(1), Framing::Raw, &early);
    assert_eq!(late.read_to_end(&mut relay), []);
    relay.until("ended", |relay, _| relay.closed(CloseReason::Revoked) == 1);
    assert_eq!(hearer.sync(&mut relay), [], "nothing of it was passed on");
    relay.fabric.admit(Admitted::Everyone);
    let mut late = relay.join(0, key(1));
    late.send(&key(2), b"now I am");
    assert_eq!(hearer.next(&mut relay).packet_from(&key(1)), b"now I am");
    relay.rest();
}

pub(crate) fn goes_by_other_bounds_from_when_it_is_told<H: Harness>() {
    let mut relay = Relay::<H>::start(1, roomy());
    let mut before = relay.join(0, key(1));
    relay.fabric.tune(Tuning { keepalive_ms: 50, keepalive_jitter_ms: 0, ..roomy() });
    before.sync(&mut relay);
    let start = relay.now();
    let mut after = relay.join(0, key(2));
    assert_eq!(after.next_of_any_kind(&mut relay), Frame::KeepAlive);
    assert!(relay.now() - start <= Duration::from_millis(50) + H::LATENESS);
    before.sync(&mut relay);
}

pub(crate) fn a_key_with_too_many_sessions_loses_the_one_silent_for_longest<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let mut all: Vec<_> = (0..16).map(|at| relay.join(at % 2, key(1))).collect();
    all[0].sync(&mut relay);
    assert_eq!(relay.sessions(), 16);
    let mut newest = relay.join(0, key(1));
    let mut silent = all.remove(1);
    assert_eq!(silent.read_to_end(&mut relay), []);
    relay.until("ended", |relay, _| relay.closed(CloseReason::Duplicate) == 1);
    for client in all.iter_mut().chain([&mut newest]) {
        assert_eq!(client.sync(&mut relay), [], "the others go on");
    }
    assert_eq!((relay.sessions(), relay.fabric.census()), (16, (1, 1, 16)));
}

pub(crate) fn keeps_sessions_alive_with_jitter<H: Harness>() {
    const EVERY: Duration = Duration::from_millis(100);
    const JITTER: Duration = Duration::from_millis(40);
    let mut relay = Relay::<H>::start(
        1,
        Tuning {
            keepalive_ms: EVERY.as_millis() as u64,
            keepalive_jitter_ms: JITTER.as_millis() as u64,
            ..roomy()
        },
    );
    let start = relay.now();
    let mut clients: Vec<_> = (0..8).map(|at| relay.join(0, key(at))).collect();
    let mut first = Vec::new();
    for client in &mut clients {
        let mut heard = Vec::new();
        for _ in 0..3 {
            assert_eq!(client.next_of_any_kind(&mut relay), Frame::KeepAlive);
            heard.push(relay.now() - start);
        }
        // Reading one client after the other only makes what is seen of the later ones late.
        assert!(heard[2] >= EVERY * 3, "{heard:?}");
        first.push(heard[2]);
    }
    assert!(first[0] <= (EVERY + JITTER) * 3 + H::LATENESS, "{first:?}");
    let sent = relay.count(|core| core.keepalives.value());
    assert!(sent >= 24, "{sent}");
    let most = 8 * (relay.now().as_millis() / EVERY.as_millis());
    assert!(u128::from(sent) <= most, "{sent} of at most {most}");
}

pub(crate) fn announces_a_restart_and_ends_everything<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let mut clients: Vec<_> = (0..6).map(|at| relay.join(usize::from(at % 2), key(at))).collect();
    for core in 0..2 {
        relay.fabric.post(core, Command::Drain { reconnect_in_ms: 1000, try_for_ms: 30_000 });
    }
    let notice = Frame::Restarting(vec![0, 0, 3, 0xe8, 0, 0, 0x75, 0x30]);
    for client in &mut clients {
        assert_eq!(client.next(&mut relay), notice);
        assert_eq!(client.sync(&mut relay), [], "the session goes on");
    }
    for core in 0..2 {
        relay.fabric.post(core, Command::Stop);
    }
    for client in &mut clients {
        assert_eq!(client.read_to_end(&mut relay), []);
        relay.until("let go", |_, _| !client.end.is_held());
    }
    relay.rest();
    assert_eq!((relay.sessions(), relay.closed(CloseReason::Shutdown)), (0, 6));
    assert_eq!(relay.fabric.census(), (0, 0, 0));
}

pub(crate) fn who_comes_amid_a_drain_is_told_as_the_others_were<H: Harness>() {
    let mut relay = Relay::<H>::start(2, roomy());
    let mut before = relay.join(0, key(1));
    for core in 0..2 {
        relay.fabric.post(core, Command::Drain { reconnect_in_ms: 1000, try_for_ms: 30_000 });
    }
    let notice = Frame::Restarting(vec![0, 0, 3, 0xe8, 0, 0, 0x75, 0x30]);
    assert_eq!(before.next(&mut relay), notice);
    // The front had let it in before.
    let mut amid = relay.join(1, key(2));
    assert_eq!(amid.next(&mut relay), notice);
    amid.send(&key(1), b"the session goes on");
    assert_eq!(before.next(&mut relay).packet_from(&key(2)), b"the session goes on");
    for core in 0..2 {
        relay.fabric.post(core, Command::Resume);
    }
    let mut after = relay.join(1, key(3));
    for client in [&mut before, &mut amid, &mut after] {
        assert_eq!(client.sync(&mut relay), [], "nothing more is said");
    }
    relay.rest();
}

pub(crate) fn a_stop_lets_the_notice_out_first<H: Harness>() {
    let mut relay = Relay::<H>::start(1, roomy());
    let mut client = relay.join(0, key(1));
    relay.fabric.post(0, Command::Drain { reconnect_in_ms: 1000, try_for_ms: 30_000 });
    relay.fabric.post(0, Command::Stop);
    let notice = Frame::Restarting(vec![0, 0, 3, 0xe8, 0, 0, 0x75, 0x30]);
    assert_eq!(client.read_to_end(&mut relay), [notice]);
}

pub(crate) fn a_stopped_worker_returns<H: Harness>() {
    let mut relay = Relay::<H>::start(1, roomy());
    let mut client = relay.join(0, key(1));
    client.send(&key(9), b"nobody");
    client.sync(&mut relay);
    relay.fabric.post(0, Command::Stop);
    let fabric = Arc::downgrade(&relay.fabric);
    relay.run_to_end();
    assert!(!client.read(), "it was ended");
    assert!(!client.end.is_held());
    assert_eq!(fabric.strong_count(), 0, "nothing outlives the workers");
}
