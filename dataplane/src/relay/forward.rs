//! What a frame makes the relay do: the whole policy of DERP's client frames, on one screen.
//!
//! Runs on the core that owns the sender. Pushes to the destination's outbox wherever it lives and
//! notes whom to flush; it never sends.

use std::sync::Arc;

use proto::bucket::{Bucket, Rate};
use proto::derp::{Dropped, Lane, Pushed, Verdict};
use proto::tick::Tick;
use wire::derp::{self, GoneReason, PONG_LEN};
use wire::disco;
use wire::drop::DropReason;
use wire::key::Key;

use super::Peer;
use super::context::Context;
use super::routes::Routes;
use crate::io::Socket;
use crate::observe::PacketKind;

/// How often a client hears that a peer is not here, as stock derper has it.
const NOT_HERE_RATE: Rate = Rate { per_second: 1, burst: 3 };

/// The part of a session that acts on verdicts.
#[derive(Debug)]
pub(crate) struct Actor<S> {
    pub(crate) peer: Arc<Peer<S>>,
    pub(crate) routes: Routes<S>,
    not_here: Bucket,
    /// What the client last said of whether this is its home; `None` before it said anything.
    pub(crate) home: Option<bool>,
    pub(crate) not_ideal: bool,
}

impl<S: Socket> Actor<S> {
    pub(crate) fn new(peer: Arc<Peer<S>>, now: Tick) -> Self {
        let not_here = Bucket::full(NOT_HERE_RATE, now);
        Self { peer, routes: Routes::default(), not_here, home: None, not_ideal: false }
    }

    #[inline]
    pub(crate) fn act(&mut self, verdict: Verdict<'_>, cx: &mut Context<S>) {
        if !self.peer.is_active() {
            cx.fabric.activate(&self.peer);
        }
        match verdict {
            Verdict::Packet { destination, packet } => self.forward(&destination, packet, cx),
            Verdict::Ping(data) => self.answer(data, cx),
            Verdict::Preferred(home) => self.prefer(home, cx),
            Verdict::Pong => {}
            Verdict::Unknown => cx.counters.unknown_frames.increment(),
        }
    }

    #[inline]
    fn forward(&mut self, destination: &Key, packet: &[u8], cx: &mut Context<S>) {
        let lane = if disco::looks_like(packet) { Lane::Disco } else { Lane::Bulk };
        cx.counters.packets_received.increment();
        cx.counters.bytes_received.add(packet.len() as u64);
        let Context { fabric, pool, dirty, counters, .. } = cx;
        let mut dropped = Dropped::default();
        let pushed = self.routes.with_peer(destination, fabric, |to| {
            let with = (&mut *pool, &fabric.budget);
            let pushed = to.outbox().push_packet(&self.peer.key, packet, lane, with, &mut dropped);
            if pushed == Pushed::Schedule {
                dirty.push(Arc::clone(to));
            }
            pushed
        });
        if dropped.packets() > 0 {
            count_dropped(counters, DropReason::QueueHead, &dropped);
        }
        let reason = match pushed {
            Some(Pushed::Queued | Pushed::Schedule) => {
                if lane == Lane::Disco {
                    cx.counters.disco_received.increment();
                }
                return;
            }
            Some(Pushed::Closed) => DropReason::GoneDisconnected,
            Some(Pushed::Full) => DropReason::QueueTail,
            None => DropReason::UnknownDest,
        };
        self.refuse(destination, packet, lane, reason, cx);
    }

    #[cold]
    fn refuse(
        &mut self,
        destination: &Key,
        packet: &[u8],
        lane: Lane,
        reason: DropReason,
        cx: &mut Context<S>,
    ) {
        let kind = match lane {
            Lane::Disco => {
                cx.counters.disco_received.increment();
                PacketKind::Disco
            }
            Lane::Bulk => PacketKind::Other,
        };
        cx.counters.count_drop(reason, kind, packet.len() as u64);
        let tell = lane == Lane::Disco && reason == DropReason::UnknownDest;
        if tell && self.not_here.take(1, cx.now, NOT_HERE_RATE) {
            cx.counters.peer_gone_not_here.increment();
            self.control(&derp::peer_gone(destination, GoneReason::NotHere), cx);
        }
    }

    fn answer(&mut self, ping: [u8; PONG_LEN], cx: &mut Context<S>) {
        cx.counters.pings.increment();
        cx.counters.packets_received.increment();
        if cx.push_control(&self.peer, &derp::pong(ping)) == Pushed::Full {
            return cx.counters.count_drop(DropReason::QueueTail, PacketKind::Other, 0);
        }
        cx.counters.packets_answered.increment();
        cx.counters.pongs.increment();
    }

    fn prefer(&mut self, home: bool, cx: &mut Context<S>) {
        let before = self.home.replace(home);
        if before.unwrap_or(false) == home {
            return;
        }
        // As in derper, a client's first word is no move.
        let moved = u64::from(before.is_some());
        if home {
            cx.counters.home_sessions.increment();
            cx.counters.home_moves_in.add(moved);
        } else {
            cx.counters.home_sessions.decrement();
            cx.counters.home_moves_out.add(moved);
        }
    }

    /// Sends the client a frame of ours.
    pub(crate) fn control(&self, frame: &[u8], cx: &mut Context<S>) {
        cx.push_control(&self.peer, frame);
    }

    /// Sends the client bytes that are no DERP frame.
    pub(crate) fn say(&self, bytes: &[u8], cx: &mut Context<S>) {
        let pushed = self.peer.outbox().push_unframed(bytes, &mut cx.pool);
        if pushed == Pushed::Schedule {
            cx.dirty.push(Arc::clone(&self.peer));
        }
    }

    /// Sends the client its last bytes; the connection ends when they have left.
    pub(crate) fn say_last(&self, bytes: &[u8], cx: &mut Context<S>) {
        self.peer.egress().end_when_empty = true;
        self.say(bytes, cx);
        self.peer.outbox().end();
    }
}

/// Counts what a queue gave up.
pub(crate) fn count_dropped(
    counters: &crate::observe::CoreCounters,
    reason: DropReason,
    dropped: &Dropped,
) {
    for (kind, packets, bytes) in [
        (PacketKind::Disco, dropped.disco_packets, dropped.disco_bytes),
        (PacketKind::Other, dropped.other_packets, dropped.other_bytes),
    ] {
        let cell = &counters.dropped[reason.index()][kind.index()];
        cell.packets.add(packets);
        cell.bytes.add(bytes);
    }
}
