//! One relay under test, whatever drives it, and the clients that speak to it.
//!
//! A [`Harness`] supplies workers and connections; everything else is the same for all drivers.
//! Waiting means stepping the relay until a condition holds, under a deadline, never a pause.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::io::Socket;
use dataplane::observe::{CloseReason, CoreCounters, Flow, PacketKind};
use dataplane::relay::{Command, Fabric, Newcomer, Stream, Tuning};
use proto::derp::Framing;
use proto::ws;
use wire::derp;
use wire::drop::DropReason;
use wire::key::Key;

use crate::frames::{self, Frame};

/// Longest wait for anything. Far above a loaded host's pauses.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Workers over one driver.
pub(crate) trait Harness: Sized {
    type Socket: Socket;
    type End: End;
    /// Steps after which waiting has failed, if time has not run out before.
    const STEPS_MAX: usize;
    /// Whether connections share receive buffers, of which a burst can use up all.
    const HAS_FEW_BUFFERS: bool;
    /// How late a timer may fire where time is real.
    const LATENESS: Duration;

    /// A worker for every core of `fabric`.
    fn start(fabric: &Arc<Fabric<Self::Socket>>) -> Self;
    /// A new connection: the client's end and the relay's.
    fn connect(&mut self) -> (Self::End, Self::Socket);
    /// Lets every worker finish a round at least, and says what they hold.
    fn step(&mut self) -> Load;
    /// Keeps the workers from working until [`Harness::go_on`].
    fn hold(&mut self) {}
    fn go_on(&mut self) {}
    /// Lets [`Worker::run`] end the workers.
    ///
    /// [`Worker::run`]: dataplane::relay::Worker::run
    fn run_to_end(self);
    /// Time on the workers' clock.
    fn now(&self) -> Duration;
}

/// A client's end of a connection.
pub(crate) trait End {
    /// Sends all of `bytes`.
    fn write(&mut self, bytes: &[u8]);
    /// Takes what has arrived; false once the relay has ended the connection.
    fn read(&mut self, into: &mut Vec<u8>) -> bool;
    /// Ends the client's sending direction.
    fn close(&mut self);
    /// Whether the relay still holds its end.
    fn is_held(&self) -> bool;
}

/// What workers hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) waiting_packets: u64,
    pub(crate) held_bytes: usize,
}

impl std::ops::Add for Load {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            waiting_packets: self.waiting_packets + other.waiting_packets,
            held_bytes: self.held_bytes + other.held_bytes,
        }
    }
}

/// Bounds under which nothing of a test's size is ever dropped, and no clock interferes.
pub(crate) fn roomy() -> Tuning {
    let mut tuning = Tuning { write_timeout_ms: 0, ..Tuning::default() };
    tuning.queue.queue_bytes_max = 64 << 20;
    tuning.queue.queue_packets_max = 1 << 20;
    tuning
}

/// The relay under test.
pub(crate) struct Relay<H: Harness> {
    harness: H,
    pub(crate) fabric: Arc<Fabric<H::Socket>>,
    counters: Vec<Arc<CoreCounters>>,
}

impl<H: Harness> Relay<H> {
    pub(crate) fn start(cores: usize, tuning: Tuning) -> Self {
        let counters: Vec<Arc<CoreCounters>> = (0..cores).map(|_| Arc::default()).collect();
        let fabric = Fabric::new(tuning, &counters);
        Self { harness: H::start(&fabric), fabric, counters }
    }

    /// A client with `key` on `core` that has heard its greeting.
    pub(crate) fn join(&mut self, core: usize, key: Key) -> Client<H> {
        self.join_as(core, key, Framing::Raw)
    }

    pub(crate) fn join_as(&mut self, core: usize, key: Key, framing: Framing) -> Client<H> {
        let mut client = self.adopt(core, key, framing, &[]);
        let first = client.next(self);
        assert_eq!(first, Frame::Info(b"sealed elsewhere".to_vec()), "the greeting comes first");
        client
    }

    /// A client that has sent `early` before it came to its core.
    pub(crate) fn adopt(
        &mut self,
        core: usize,
        key: Key,
        framing: Framing,
        early: &[u8],
    ) -> Client<H> {
        let (end, socket) = self.harness.connect();
        let greeting = frames::greeting();
        let decoder = (framing == Framing::WebSocket).then(Box::<ws::Decoder>::default);
        let early = Stream { plain: early.to_vec(), sealed: Vec::new() };
        let newcomer = Newcomer {
            socket,
            tls: None,
            framing,
            key,
            greeting,
            early,
            decoder,
            not_ideal: false,
        };
        self.fabric.post(core, Command::Adopt(Box::new(newcomer)));
        Client { end, framing, arrived: Vec::new(), stream: Vec::new(), pings: 0 }
    }

    pub(crate) fn step(&mut self) -> Load {
        self.harness.step()
    }

    /// Runs `during` while no worker works.
    pub(crate) fn hold(&mut self, during: impl FnOnce()) {
        self.harness.hold();
        during();
        self.harness.go_on();
    }

    pub(crate) fn now(&self) -> Duration {
        self.harness.now()
    }

    /// Steps until `done` holds.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self, Load) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        for _ in 0..H::STEPS_MAX {
            let load = self.step();
            if done(self, load) {
                return;
            }
            if Instant::now() > give_up {
                break;
            }
        }
        panic!("never: {what}; {:?}, {:?}", self.step(), self.flow());
    }

    /// One counter, summed over the cores.
    pub(crate) fn count(&self, of: impl Fn(&CoreCounters) -> u64) -> u64 {
        self.counters.iter().map(|core| of(core)).sum()
    }

    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        let kinds = PacketKind::ALL.iter();
        kinds
            .map(|kind| {
                self.count(|core| core.dropped[reason.index()][kind.index()].packets.value())
            })
            .sum()
    }

    pub(crate) fn closed(&self, reason: CloseReason) -> u64 {
        self.count(|core| core.sessions_closed[reason.index()].value())
    }

    pub(crate) fn sessions(&self) -> u64 {
        self.count(|core| core.sessions.value())
    }

    /// Packets by fate, over all cores.
    pub(crate) fn flow(&self) -> Flow {
        Flow {
            received: self.count(|core| core.flow().received),
            forwarded: self.count(|core| core.flow().forwarded),
            answered: self.count(|core| core.flow().answered),
            dropped: self.count(|core| core.flow().dropped),
        }
    }

    /// Lets the workers run until they have been told to stop; nothing is left of them then.
    pub(crate) fn run_to_end(self) {
        self.harness.run_to_end();
    }

    /// Waits for rest, and verifies what must hold then: every packet has its fate, nobody holds a
    /// buffer, the shared tables agree.
    pub(crate) fn rest(&mut self) {
        self.until("at rest", |relay, load| {
            load == Load::default()
                && relay.flow().waiting() == 0
                && relay.fabric.queued_bytes() == 0
        });
        self.fabric.check();
    }
}

/// A client of the relay under test.
pub(crate) struct Client<H: Harness> {
    pub(crate) end: H::End,
    framing: Framing,
    /// Bytes as they came.
    arrived: Vec<u8>,
    /// DERP frames out of them.
    stream: Vec<u8>,
    pings: u64,
}

impl<H: Harness> Client<H> {
    pub(crate) fn send(&mut self, to: &Key, packet: &[u8]) {
        self.write(&frames::send(to, packet));
    }

    /// Sends DERP frames, in whatever framing the client speaks.
    pub(crate) fn write(&mut self, frames: &[u8]) {
        if self.framing == Framing::Raw {
            return self.end.write(frames);
        }
        let mask = [1, 2, 3, 4];
        let (header, header_len) = ws::masked_header(ws::Opcode::Binary, frames.len(), mask);
        let mut payload = frames.to_vec();
        ws::apply_mask(&mut payload, mask);
        self.end.write(&[&header[..header_len], &payload].concat());
    }

    /// Reads what is there. False once the connection has ended.
    pub(crate) fn read(&mut self) -> bool {
        let alive = self.end.read(&mut self.arrived);
        match self.framing {
            Framing::Raw => self.stream.append(&mut self.arrived),
            Framing::WebSocket => {
                while let Some(payload) = take_message(&mut self.arrived) {
                    self.stream.extend_from_slice(&payload);
                }
            }
        }
        alive
    }

    /// The next frame that has been read already and is no keepalive. Those come whenever a
    /// simulated relay is left to itself.
    pub(crate) fn take(&mut self) -> Option<Frame> {
        std::iter::from_fn(|| frames::take_frame(&mut self.stream))
            .find(|frame| *frame != Frame::KeepAlive)
    }

    /// Reads on; gives the number of packets that were there.
    pub(crate) fn packets(&mut self) -> u64 {
        self.read();
        let frames = std::iter::from_fn(|| self.take());
        frames.filter(|frame| matches!(frame, Frame::Packet { .. })).count() as u64
    }

    /// The next frame that is no keepalive.
    pub(crate) fn next(&mut self, relay: &mut Relay<H>) -> Frame {
        self.await_frame(relay, Self::take)
    }

    /// The next frame, keepalives included.
    pub(crate) fn next_of_any_kind(&mut self, relay: &mut Relay<H>) -> Frame {
        self.await_frame(relay, |client| frames::take_frame(&mut client.stream))
    }

    fn await_frame(&mut self, relay: &mut Relay<H>, take: fn(&mut Self) -> Option<Frame>) -> Frame {
        let mut next = take(self);
        if next.is_none() {
            relay.until("another frame", |_, _| {
                let alive = self.read();
                next = take(self);
                assert!(alive || next.is_some(), "the connection ended");
                next.is_some()
            });
        }
        next.expect("waited for")
    }

    /// Everything that the relay sent before it answers a ping sent now.
    pub(crate) fn sync(&mut self, relay: &mut Relay<H>) -> Vec<Frame> {
        self.pings += 1;
        let data = self.pings.to_be_bytes();
        self.write(&derp::ping(data));
        let mut seen = Vec::new();
        loop {
            match self.next(relay) {
                Frame::Pong(pong) if pong == data => return seen,
                other => seen.push(other),
            }
        }
    }

    /// Waits until the relay has ended the connection; gives the frames before that.
    pub(crate) fn read_to_end(&mut self, relay: &mut Relay<H>) -> Vec<Frame> {
        relay.until("the end of the connection", |_, _| !self.read());
        std::iter::from_fn(|| self.take()).collect()
    }
}

/// Cuts a server's binary message off `arrived`; none may be longer than stock clients accept.
fn take_message(arrived: &mut Vec<u8>) -> Option<Vec<u8>> {
    let (len, head) = match *arrived.get(1)? {
        126 => (usize::from(u16::from_be_bytes([*arrived.get(2)?, *arrived.get(3)?])), 4),
        len => (usize::from(len), 2),
    };
    assert_eq!(arrived[0], 0x82, "a whole binary message");
    assert!(len <= ws::MESSAGE_LEN_MAX, "a message of {len} bytes");
    if arrived.len() < head + len {
        return None;
    }
    Some(arrived.drain(..head + len).skip(head).collect())
}
