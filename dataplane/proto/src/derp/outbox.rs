//! What waits to be sent to one client: the open flight, and lanes behind a flight that is out.
//!
//! Owns the drop policy: lanes are bounded in packets and bytes and lose their oldest packet first.
//! At most one flight is out at a time; whoever holds it calls [`Outbox::landed`] and looks again,
//! so that any worker may push and any worker may flush: the flight is the baton.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use wire::derp::{self, HEADER_LEN, Header, RECV_HEAD_LEN};
use wire::key::Key;

use super::Pool;
use crate::tls::{Protocol, RecordBuf};
use crate::ws;

/// Plaintext bytes after which a flight takes no further frame: four full records.
const FLIGHT_BYTES_MAX: usize = 64 << 10;
/// Bytes of control frames (pongs, departures) that may wait for a client that does not read.
const CONTROL_BYTES_MAX: usize = 64 << 10;
/// Bytes of a lane's second and later chunks: a buffer of the pool's middle class.
const CHUNK_BYTES: usize = 18 << 10;

/// Bytes that the framing adds to one frame at most: three WebSocket headers.
const FRAMING_LEN_MAX: usize = 12;

/// How frames are laid into the byte stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Frames follow each other, as after `Upgrade: DERP`.
    Raw,
    /// Each frame travels in binary WebSocket messages of its own.
    WebSocket,
}

/// Bounds of one client's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that may wait in each lane. At least one packet of the largest size fits.
    pub queue_bytes_max: usize,
    /// Packets that may wait in each lane.
    pub queue_packets_max: u32,
}

/// Bytes that may wait in the queues of all clients together.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    max: AtomicUsize,
}

impl Budget {
    /// A budget of `max` bytes, all free.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max: AtomicUsize::new(max) }
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Changes the bound. What waits above a lower one leaves as it would have.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    fn take(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= self.max.load(Ordering::Relaxed);
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Which queue a packet waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Path discovery: sent before bulk, so that bulk cannot starve it.
    Disco,
    /// Everything else.
    Bulk,
}

/// Packets and payload bytes that were given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Disco packets.
    pub disco_packets: u64,
    /// Their payload bytes.
    pub disco_bytes: u64,
    /// Other packets.
    pub other_packets: u64,
    /// Their payload bytes.
    pub other_bytes: u64,
}

impl Dropped {
    /// All packets, disco or not.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.disco_packets + self.other_packets
    }

    /// Adds one packet of `len` payload bytes.
    pub fn add(&mut self, lane: Lane, len: usize) {
        match lane {
            Lane::Disco => {
                self.disco_packets += 1;
                self.disco_bytes += len as u64;
            }
            Lane::Bulk => {
                self.other_packets += 1;
                self.other_bytes += len as u64;
            }
        }
    }
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// Queued, and the outbox was already going to be flushed.
    Queued,
    /// Queued; the caller must see to a flush at the end of its round.
    Schedule,
    /// The session is closed: the packet was not taken.
    Closed,
    /// Neither lane nor budget has room for it: the packet was not taken.
    Full,
}

/// A batch of whole frames on its way to the socket.
#[derive(Debug)]
pub struct Flight {
    /// The plaintext, laid out for sealing.
    pub records: RecordBuf,
    /// The packets in it; control frames are not counted.
    pub packets: Dropped,
}

/// One client's outgoing side, without its cipher and socket.
#[derive(Debug)]
pub struct Outbox {
    open: RecordBuf,
    /// Packets in `open`.
    open_packets: Dropped,
    protocol: Option<Protocol>,
    framing: Framing,
    limits: Limits,
    /// A flight is out. Invariant: only its holder calls [`Outbox::landed`].
    flying: bool,
    /// A worker has promised to flush.
    scheduled: bool,
    closed: bool,
    /// The last words are queued: nothing may follow them.
    ending: bool,
    /// Frames that wait behind the flight. Invariant: `None` or not empty, between calls.
    backlog: Option<Box<Backlog>>,
}

#[derive(Debug, Default)]
struct Backlog {
    control: Frames,
    disco: Frames,
    bulk: Frames,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.control.is_empty() && self.disco.is_empty() && self.bulk.is_empty()
    }

    fn lane(&mut self, lane: Lane) -> &mut Frames {
        match lane {
            Lane::Disco => &mut self.disco,
            Lane::Bulk => &mut self.bulk,
        }
    }
}

impl Outbox {
    /// An empty outbox for a connection under `protocol`, or without TLS.
    #[must_use]
    pub fn new(protocol: Option<Protocol>, framing: Framing, limits: Limits) -> Self {
        Self {
            open: RecordBuf::default(),
            open_packets: Dropped::default(),
            protocol,
            framing,
            limits,
            flying: false,
            scheduled: false,
            closed: false,
            ending: false,
            backlog: None,
        }
    }

    /// Queues a packet from `source`. What older packets it displaced is added to `dropped`.
    #[inline]
    pub fn push_packet(
        &mut self,
        source: &Key,
        packet: &[u8],
        lane: Lane,
        (pool, budget): (&mut Pool, &Budget),
        dropped: &mut Dropped,
    ) -> Pushed {
        if self.closed || self.ending {
            return Pushed::Closed;
        }
        let head = derp::recv_head(source, packet.len());
        if self.takes_directly(RECV_HEAD_LEN + packet.len()) {
            self.append(&head, packet, pool);
            self.open_packets.add(lane, packet.len());
        } else if !self.push_behind(lane, &head, packet, (pool, budget), dropped) {
            return Pushed::Full;
        }
        self.schedule()
    }

    /// Queues a control frame. A client that lets 64 KiB of them wait loses the newest.
    pub fn push_control(&mut self, frame: &[u8], pool: &mut Pool) -> Pushed {
        if self.closed || self.ending {
            return Pushed::Closed;
        }
        if self.takes_directly(frame.len()) {
            self.append(frame, &[], pool);
        } else {
            let control = &mut self.backlog.get_or_insert_default().control;
            if control.bytes() + frame.len() > CONTROL_BYTES_MAX {
                return Pushed::Full;
            }
            control.push(frame, &[], pool);
        }
        self.schedule()
    }

    /// Queues bytes as they are, past the framing: WebSocket's own pongs and closes. They join the
    /// open flight, or are given up where that holds 64 KiB already.
    pub fn push_unframed(&mut self, bytes: &[u8], pool: &mut Pool) -> Pushed {
        if self.closed {
            return Pushed::Closed;
        }
        if self.open.plain_len() + bytes.len() > FLIGHT_BYTES_MAX {
            return Pushed::Full;
        }
        self.make_room(bytes.len(), pool);
        self.open.push(bytes, self.protocol);
        self.schedule()
    }

    /// Refuses frames from now on; what is queued still leaves.
    pub fn end(&mut self) {
        self.ending = true;
    }

    /// Takes the open flight, if there is one and none is out. Clears the promise to flush.
    pub fn take_off(&mut self) -> Option<Flight> {
        self.scheduled = false;
        if self.flying || self.closed || self.open.is_empty() {
            return None;
        }
        self.flying = true;
        Some(Flight {
            records: core::mem::take(&mut self.open),
            packets: core::mem::take(&mut self.open_packets),
        })
    }

    /// The flight has landed; opens the next from what waited. True if the caller must flush again,
    /// which is then its promise.
    #[must_use]
    pub fn landed(&mut self, pool: &mut Pool, budget: &Budget) -> bool {
        debug_assert!(self.flying);
        self.flying = false;
        if self.closed {
            return false;
        }
        if let Some(mut backlog) = self.backlog.take() {
            self.refill(&mut backlog, pool, budget);
            if !backlog.is_empty() {
                self.backlog = Some(backlog);
            }
        }
        self.scheduled = !self.open.is_empty();
        self.scheduled
    }

    /// Ends the session: nothing is taken any more. Returns the packets that were still waiting.
    pub fn close(&mut self, pool: &mut Pool, budget: &Budget) -> Dropped {
        self.closed = true;
        let mut waiting = core::mem::take(&mut self.open_packets);
        self.recycle_open(pool);
        if let Some(mut backlog) = self.backlog.take() {
            for lane in [Lane::Disco, Lane::Bulk] {
                while let Some((frame, payload_len)) = backlog.lane(lane).pop(pool) {
                    budget.give_back(frame);
                    waiting.add(lane, payload_len);
                }
            }
        }
        waiting
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether nothing waits and nothing is out.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.flying && self.open.is_empty() && self.backlog.is_none()
    }

    /// Packets queued, those in a flight excluded.
    #[must_use]
    pub fn queued_packets(&self) -> u64 {
        let behind = self.backlog.as_ref().map_or(0, |b| b.disco.packets + b.bulk.packets);
        self.open_packets.packets() + u64::from(behind)
    }

    /// Bytes of buffer that the session holds; zero while it is idle.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let behind = |b: &Backlog| b.control.held() + b.disco.held() + b.bulk.held();
        self.open.capacity() + self.backlog.as_deref().map_or(0, behind)
    }

    /// Verifies the invariants of the fields.
    pub fn check(&self) {
        if let Some(backlog) = &self.backlog {
            assert!(!backlog.is_empty(), "an empty backlog is let go");
            for lane in [&backlog.disco, &backlog.bulk] {
                assert!(lane.packets <= self.limits.queue_packets_max);
                assert!(lane.bytes() <= self.limits.queue_bytes_max);
            }
            assert!(self.flying || !self.open.is_empty(), "a backlog waits behind something");
        }
        assert!(self.open.is_empty() || self.flying || self.scheduled || self.closed);
        assert!(!self.closed || (self.open.is_empty() && self.backlog.is_none()));
    }

    #[inline]
    fn takes_directly(&self, frame_len: usize) -> bool {
        !self.flying
            && self.backlog.is_none()
            && (self.open.is_empty() || self.open.plain_len() + frame_len <= FLIGHT_BYTES_MAX)
    }

    #[inline]
    fn schedule(&mut self) -> Pushed {
        if self.scheduled || self.flying {
            return Pushed::Queued;
        }
        self.scheduled = true;
        Pushed::Schedule
    }

    #[inline]
    fn append(&mut self, head: &[u8], tail: &[u8], pool: &mut Pool) {
        self.make_room(head.len() + tail.len(), pool);
        match self.framing {
            Framing::Raw => {
                self.open.push(head, self.protocol);
                self.open.push(tail, self.protocol);
            }
            Framing::WebSocket => self.append_messages(head, tail),
        }
    }

    #[inline]
    fn make_room(&mut self, plain_len: usize, pool: &mut Pool) {
        let need = self.open.len_with(plain_len + FRAMING_LEN_MAX, self.protocol);
        if need > self.open.capacity() {
            let old = self.open.swap(pool.lend(need));
            pool.take_back(old);
        }
    }

    fn append_messages(&mut self, mut head: &[u8], mut tail: &[u8]) {
        while !(head.is_empty() && tail.is_empty()) {
            let len = (head.len() + tail.len()).min(ws::MESSAGE_LEN_MAX);
            let (header, header_len) = ws::header(ws::Opcode::Binary, len);
            let (first, head_rest) = head.split_at(head.len().min(len));
            let (second, tail_rest) = tail.split_at(len - first.len());
            for piece in [&header[..header_len], first, second] {
                self.open.push(piece, self.protocol);
            }
            (head, tail) = (head_rest, tail_rest);
        }
    }

    fn push_behind(
        &mut self,
        lane: Lane,
        head: &[u8],
        packet: &[u8],
        (pool, budget): (&mut Pool, &Budget),
        dropped: &mut Dropped,
    ) -> bool {
        let need = head.len() + packet.len();
        let limits = self.limits;
        let frames = self.backlog.get_or_insert_default().lane(lane);
        let mut paid = budget.take(need);
        while !paid
            || frames.packets >= limits.queue_packets_max
            || frames.bytes() + need > limits.queue_bytes_max
        {
            let Some((frame_len, payload_len)) = frames.pop(pool) else {
                break;
            };
            budget.give_back(frame_len);
            dropped.add(lane, payload_len);
            paid = paid || budget.take(need);
        }
        let fits = paid && limits.queue_packets_max > 0 && need <= limits.queue_bytes_max;
        if fits {
            frames.push(head, packet, pool);
        } else if paid {
            budget.give_back(need);
        }
        self.backlog.take_if(|backlog| backlog.is_empty());
        fits
    }

    fn refill(&mut self, backlog: &mut Backlog, pool: &mut Pool, budget: &Budget) {
        let Backlog { control, disco, bulk } = backlog;
        for (lane, frames) in
            [(None, control), (Some(Lane::Disco), disco), (Some(Lane::Bulk), bulk)]
        {
            while let Some(frame) = frames.front() {
                let len = frame.len();
                if !self.open.is_empty() && self.open.plain_len() + len > FLIGHT_BYTES_MAX {
                    return;
                }
                self.append(frame, &[], pool);
                frames.pop(pool);
                if let Some(lane) = lane {
                    self.open_packets.add(lane, len - RECV_HEAD_LEN);
                    budget.give_back(len);
                }
            }
        }
    }

    fn recycle_open(&mut self, pool: &mut Pool) {
        pool.take_back(core::mem::take(&mut self.open).into_plain());
    }
}

/// A queue of whole frames in chunks lent by a pool: what waits is never moved, however long it grows.
#[derive(Debug, Default)]
struct Frames {
    /// Invariant: a frame waits in each of them, and none lies in two.
    chunks: VecDeque<Vec<u8>>,
    /// Where the oldest frame begins in the first chunk. Invariant: a frame boundary before its end.
    head: usize,
    bytes: usize,
    packets: u32,
}

impl Frames {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn held(&self) -> usize {
        self.chunks.iter().map(Vec::capacity).sum()
    }

    fn push(&mut self, head: &[u8], tail: &[u8], pool: &mut Pool) {
        let need = head.len() + tail.len();
        let room = self.chunks.back().map_or(0, |chunk| chunk.capacity() - chunk.len());
        if room < need {
            // A client that is short of room for an instant takes no more than it needs.
            let len = if self.chunks.is_empty() { need } else { need.max(CHUNK_BYTES) };
            self.chunks.push_back(pool.lend(len));
        }
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.extend_from_slice(head);
            chunk.extend_from_slice(tail);
            self.bytes += need;
            self.packets += 1;
        }
    }

    fn front(&self) -> Option<&[u8]> {
        let waiting = &self.chunks.front()?[self.head..];
        let len = HEADER_LEN + Header::read(waiting)?.len as usize;
        waiting.get(..len)
    }

    /// Removes the oldest frame; returns its length and the length of the packet in it.
    fn pop(&mut self, pool: &mut Pool) -> Option<(usize, usize)> {
        let len = self.front()?.len();
        self.head += len;
        self.bytes -= len;
        self.packets -= 1;
        if self.chunks.front().is_some_and(|chunk| chunk.len() == self.head) {
            self.chunks.pop_front().into_iter().for_each(|chunk| pool.take_back(chunk));
            self.head = 0;
        }
        Some((len, len.saturating_sub(RECV_HEAD_LEN)))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use wire::key::KEY_LEN;

    use super::*;

    const LIMITS: Limits = Limits { queue_bytes_max: 70_000, queue_packets_max: 4 };

    struct Bench {
        outbox: Outbox,
        pool: Pool,
        budget: Budget,
        dropped: Dropped,
    }

    impl Bench {
        fn new(framing: Framing, budget: usize) -> Self {
            Self {
                outbox: Outbox::new(None, framing, LIMITS),
                pool: Pool::default(),
                budget: Budget::new(budget),
                dropped: Dropped::default(),
            }
        }

        fn push(&mut self, tag: u8, len: usize, lane: Lane) -> Pushed {
            let with = (&mut self.pool, &self.budget);
            let source = Key([7; KEY_LEN]);
            let pushed =
                self.outbox.push_packet(&source, &vec![tag; len], lane, with, &mut self.dropped);
            self.outbox.check();
            pushed
        }

        fn fly(&mut self) -> Vec<u8> {
            self.outbox.take_off().map_or_else(Vec::new, |flight| flight.records.into_plain())
        }

        fn land(&mut self) -> bool {
            let again = self.outbox.landed(&mut self.pool, &self.budget);
            self.outbox.check();
            again
        }
    }

    /// First payload byte of each frame in `stream`.
    fn tags(mut stream: &[u8]) -> Vec<u8> {
        let mut tags = vec![];
        while let Some(header) = Header::read(stream) {
            tags.push(stream[HEADER_LEN + KEY_LEN]);
            stream = &stream[HEADER_LEN + header.len as usize..];
        }
        tags
    }

    #[test]
    fn frames_of_one_round_leave_in_one_flight_and_in_order() {
        let mut bench = Bench::new(Framing::Raw, 1 << 20);
        assert_eq!(bench.push(1, 10, Lane::Bulk), Pushed::Schedule);
        assert_eq!(bench.push(2, 20, Lane::Disco), Pushed::Queued);
        assert_eq!(bench.push(3, 30, Lane::Bulk), Pushed::Queued);
        assert_eq!(tags(&bench.fly()), [1, 2, 3]);
        assert!(!bench.land());
        assert_eq!(bench.outbox.held_bytes(), 0);
    }

    #[test]
    fn drops_oldest_when_packets_exceed_the_queue() {
        let mut bench = Bench::new(Framing::Raw, 1 << 20);
        bench.push(0, 10, Lane::Bulk);
        let _ = bench.fly();
        for tag in 1..=6 {
            assert_eq!(bench.push(tag, 10, Lane::Bulk), Pushed::Queued);
        }
        assert_eq!((bench.dropped.other_packets, bench.dropped.other_bytes), (2, 20));
        assert!(bench.land());
        assert_eq!(tags(&bench.fly()), [3, 4, 5, 6]);
    }

    #[test]
    fn drops_oldest_when_bytes_exceed_the_queue() {
        let mut bench = Bench::new(Framing::Raw, 1 << 20);
        bench.push(0, 10, Lane::Bulk);
        let _ = bench.fly();
        for tag in 1..=3 {
            bench.push(tag, 30_000, Lane::Bulk);
        }
        assert_eq!(bench.dropped.other_packets, 1);
        bench.push(4, 65_536, Lane::Bulk);
        assert_eq!(bench.dropped.other_packets, 3);
        assert!(bench.land());
        assert_eq!(tags(&bench.fly()), [4]);
    }

    #[test]
    fn disco_waits_in_its_own_lane_and_leaves_first() {
        let mut bench = Bench::new(Framing::Raw, 1 << 20);
        bench.push(0, 10, Lane::Bulk);
        let _ = bench.fly();
        for tag in 1..=4 {
            bench.push(tag, 10, Lane::Bulk);
        }
        bench.push(9, 62, Lane::Disco);
        assert_eq!(bench.dropped, Dropped::default());
        assert!(bench.land());
        assert_eq!(tags(&bench.fly()), [9, 1, 2, 3, 4]);
    }

    #[test]
    fn a_budget_may_grow_and_shrink_under_what_waits() {
        let budget = Budget::new(10);
        assert!(budget.take(10) && !budget.take(1));
        budget.set_max(11);
        assert!(budget.take(1));
        budget.set_max(5);
        assert!(!budget.take(1));
        budget.give_back(7);
        assert!(budget.take(1) && !budget.take(1));
    }

    #[test]
    fn a_spent_budget_costs_the_oldest_of_the_same_client_or_the_new_packet() {
        let mut bench = Bench::new(Framing::Raw, 100);
        bench.push(0, 10, Lane::Bulk);
        let _ = bench.fly();
        assert_eq!(bench.push(1, 40, Lane::Bulk), Pushed::Queued);
        assert_eq!(bench.push(2, 40, Lane::Bulk), Pushed::Queued);
        assert_eq!(bench.dropped.other_packets, 1);
        assert_eq!(bench.push(3, 400, Lane::Bulk), Pushed::Full);
        assert_eq!(bench.dropped.other_packets, 2);
        assert_eq!(bench.budget.used(), 0);
    }

    #[test]
    fn nothing_follows_the_last_words() {
        let mut bench = Bench::new(Framing::WebSocket, 1 << 20);
        bench.push(1, 10, Lane::Bulk);
        bench.outbox.push_unframed(&[0x88, 0], &mut bench.pool);
        bench.outbox.end();
        assert_eq!(bench.push(2, 10, Lane::Bulk), Pushed::Closed);
        assert_eq!(bench.outbox.push_control(&[6, 0, 0, 0, 0], &mut bench.pool), Pushed::Closed);
        assert!(bench.fly().ends_with(&[0x88, 0]));
        assert!(!bench.land());
    }

    #[test]
    fn closing_reports_what_waited_and_takes_nothing_more() {
        let mut bench = Bench::new(Framing::Raw, 1 << 20);
        bench.push(0, 10, Lane::Bulk);
        let _ = bench.fly();
        bench.push(1, 11, Lane::Bulk);
        bench.push(2, 62, Lane::Disco);
        let waiting = bench.outbox.close(&mut bench.pool, &bench.budget);
        assert_eq!((waiting.other_packets, waiting.disco_packets), (1, 1));
        assert_eq!((waiting.other_bytes, waiting.disco_bytes), (11, 62));
        assert_eq!(bench.push(3, 10, Lane::Bulk), Pushed::Closed);
        assert!(!bench.land());
        assert_eq!(bench.budget.used(), 0);
    }

    #[test]
    fn long_frames_are_cut_into_messages_that_stock_clients_accept() {
        let mut bench = Bench::new(Framing::WebSocket, 1 << 20);
        bench.push(5, 65_536, Lane::Bulk);
        let stream = bench.fly();
        let (mut at, mut lens) = (0, vec![]);
        while at < stream.len() {
            assert_eq!(stream[at], 0x82);
            let (len, head) = match stream[at + 1] {
                126 => (usize::from(u16::from_be_bytes([stream[at + 2], stream[at + 3]])), 4),
                len => (usize::from(len), 2),
            };
            lens.push(len);
            at += head + len;
        }
        assert_eq!(lens, [32_768, 32_768, 37]);
    }
}
