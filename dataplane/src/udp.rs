//! The UDP side of one core: STUN answered and WireGuard relayed on the same ports.
//!
//! Owns the core's sockets and tells their datagrams apart once: data of a known WireGuard flow is
//! sent on, other WireGuard goes to the relay, everything else to the STUN responder. Answers leave
//! from the address that was asked. It never blocks and takes no lock; it judges nothing itself.
//! The relay worker calls [`Udp::serve`] each round and passes errands between cores.

mod departures;
mod local;
pub mod overflow;
mod report;
mod runs;
mod socket;
mod switch;

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use std::{array, fmt};

use proto::stun::{Responder, Verdict};
use proto::tick::Tick;
use quinn_udp::RecvMeta;
use wire::drop::DropReason;
use wire::stun::ANSWER_LEN_MAX;

use crate::observe::{CoreCounters, Family, StunOutcome};
use departures::{Departure, Departures};
use runs::{Kind, Run, runs};
use socket::{BATCH, Course};
use switch::{Source, Switch};

pub use local::LOCALS_MAX;
pub use report::{REPORTS_MAX, Report, Reporter};
pub use socket::UdpSocket;
pub use switch::{Errand, Peering, RELAY_CORE, Rare, Shared};

/// Bytes of one buffer: the longest datagram, and the longest run of datagrams that the kernel
/// hands over as one (GRO). Pages that no datagram reaches are never resident.
const BUFFER_LEN: usize = 64 << 10;
/// From one buffer to the next. Not a power of two, or the heads of all buffers, which are what is
/// looked at, would share a few lines of the cache.
const BUFFER_STRIDE: usize = BUFFER_LEN + 1088;
/// Bytes of the buffers of one read.
const ROW_LEN: usize = BATCH * BUFFER_STRIDE;

/// Reads whose datagrams are sorted before the first is sent on: the further one looks, the more of a
/// flow leave together when there is a backlog. Without one a read is not full, and the only one.
const WINDOW_READS: usize = 4;
/// Work done per port and round, in single datagrams. Each costs about two system calls' time, so
/// that a flooded port holds up relay work by well under a millisecond (invariant 11).
const ROUND_WORK_MAX: usize = 128;
/// Datagrams of a run whose copying takes as long as the system calls of one datagram.
const RUN_SHARE: usize = 8;
/// Keys whose trying takes as long as the system calls of one datagram.
const KEYS_SHARE: usize = 4;
/// How long a port is read one buffer at a time after a run came that had to be judged, datagram by
/// datagram. Plain peers send no such runs; the 2,048 datagrams of 32 of them take milliseconds.
const WARY_TIME: Duration = Duration::from_secs(1);

/// What one round of a core lends to its UDP side.
pub struct Round<'a> {
    /// The core.
    pub core: usize,
    /// When the round began.
    pub now: Tick,
    /// What the core counts.
    pub counters: &'a CoreCounters,
    /// Brings an errand to the UDP side of another core.
    pub post: &'a dyn Fn(usize, Errand),
}

impl fmt::Debug for Round<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Round").field("core", &self.core).field("now", &self.now).finish()
    }
}

/// A port of one core.
#[derive(Debug)]
pub struct UdpPort {
    socket: UdpSocket,
    responder: Responder,
    /// Set when the descriptor becomes readable, cleared when it is drained.
    ready: bool,
    /// Until then it is read one buffer at a time.
    wary_until: Tick,
}

impl UdpPort {
    /// A port to be read at once.
    #[must_use]
    pub const fn new(socket: UdpSocket, responder: Responder) -> Self {
        Self { socket, responder, ready: true, wary_until: Tick::ZERO }
    }

    /// The number by which the kernel's tables know its socket.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn inode(&self) -> io::Result<u64> {
        self.socket.inode()
    }
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// See the module. The default has no ports.
#[derive(Default)]
pub struct Udp(Option<Box<Open>>);

/// A UDP side with ports.
struct Open {
    ports: Vec<UdpPort>,
    switch: Switch,
    /// [`WINDOW_READS`] times [`ROW_LEN`].
    buffer: Box<[u8]>,
}

impl Udp {
    /// The UDP side of `core` with these ports, which come in the same order on every core.
    #[must_use]
    pub fn new(core: usize, ports: Vec<UdpPort>, shared: Arc<Shared>) -> Self {
        if ports.is_empty() {
            return Self::default();
        }
        let buffer = vec![0; WINDOW_READS * ROW_LEN].into();
        Self(Some(Box::new(Open { ports, switch: Switch::new(core, shared), buffer })))
    }

    /// The ports, to be watched.
    pub fn ports(&self) -> impl Iterator<Item = &UdpPort> {
        self.0.iter().flat_map(|open| &open.ports)
    }

    /// The port in the place `at` has become readable.
    #[inline]
    pub fn wake(&mut self, at: usize) {
        if let Some(port) = self.0.as_mut().and_then(|open| open.ports.get_mut(at)) {
            port.ready = true;
        }
    }

    /// Whether there may be something to read now.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.ports().any(|port| port.ready)
    }

    /// When [`Udp::serve`] wants to be called even if nothing comes.
    #[must_use]
    pub fn next_tick(&self) -> Option<Tick> {
        self.0.as_ref().and_then(|open| open.switch.next_tick())
    }

    /// Whether binding requests get no answer from now on, so that clients look for another relay.
    pub fn shed(&mut self, shedding: bool) {
        for port in self.0.iter_mut().flat_map(|open| &mut open.ports) {
            port.responder.shed(shedding);
        }
    }

    /// One round's work on each port that is ready, and what is due by the clock.
    pub fn serve(&mut self, round: &Round<'_>) {
        let Some(open) = &mut self.0 else { return };
        for at in 0..open.ports.len() {
            if open.ports[at].ready {
                open.serve_port(at, ROUND_WORK_MAX, round);
            }
        }
        open.switch.tick(round);
    }

    /// Does what another core, or the process, asks.
    pub fn obey(&mut self, errand: Errand, round: &Round<'_>) {
        if let Some(Open { ports, switch, .. }) = self.0.as_deref_mut() {
            switch.obey(errand, ports, round);
        }
    }
}

impl Open {
    /// Reads the port in the place `at` until it is empty or `work_max` is done.
    ///
    /// What one read brought is finished in any case, so that the bound may be exceeded: by up to 63
    /// datagrams, or once in [`WARY_TIME`] as many for each of [`BATCH`] runs.
    fn serve_port(&mut self, at: usize, work_max: usize, round: &Round<'_>) {
        let mut left = work_max;
        while left > 0 && self.ports[at].ready {
            left = left.saturating_sub(self.serve_window(at, left, round));
        }
    }

    /// Reads up to a window's worth, and sends on what is to be. Returns the work done, which may be
    /// more than `left`.
    fn serve_window(&mut self, at: usize, left: usize, round: &Round<'_>) -> usize {
        let Self { ports, switch, buffer } = self;
        let mut departures = Departures::new();
        let mut work = 0;
        for row in buffer.chunks_exact_mut(ROW_LEN) {
            let wary = round.now < ports[at].wary_until;
            let asked = if wary { 1 } else { left.saturating_sub(work).min(BATCH) };
            let mut metas = [RecvMeta::default(); BATCH];
            let metas = &mut metas[..asked];
            // A failure loses no datagram; the next one makes the socket readable again.
            let read = read_row(&ports[at].socket, row, metas).unwrap_or(0);
            let buffers = row.chunks_exact(BUFFER_STRIDE).zip(&*metas).take(read);
            let arrivals =
                buffers.map(|(buffer, meta)| (buffer.get(..meta.len).unwrap_or_default(), meta));
            work += sort(arrivals, at, &mut departures, ports, switch, round);
            ports[at].ready = read == asked;
            // Runs are merged already: to read on would only drive them out of the cache.
            if !ports[at].ready || wary || work >= left || departures.has_runs() {
                break;
            }
        }
        work + departures.flush(&mut switch.gate(ports), round)
    }
}

/// Reads up to one datagram or run into each buffer of `row`. Returns how many there were.
fn read_row(socket: &UdpSocket, row: &mut [u8], metas: &mut [RecvMeta]) -> io::Result<usize> {
    let mut parts = row.chunks_exact_mut(BUFFER_STRIDE);
    let mut buffers: [IoSliceMut<'_>; BATCH] = array::from_fn(|_| {
        let part = parts.next().and_then(|part| part.get_mut(..BUFFER_LEN));
        IoSliceMut::new(part.unwrap_or_default())
    });
    socket.receive(&mut buffers[..metas.len()], metas)
}

/// Gives every run of what the port in the place `at` received its fate, or a place among the
/// departures. Returns the work done.
fn sort<'a, 'm>(
    arrivals: impl Iterator<Item = (&'a [u8], &'m RecvMeta)>,
    at: usize,
    departures: &mut Departures<'a>,
    ports: &mut [UdpPort],
    switch: &mut Switch,
    round: &Round<'_>,
) -> usize {
    let mut work = 0;
    for (bytes, meta) in arrivals {
        let source = Source::new(at, meta, ports[at].socket.is_any());
        for run in runs(bytes, meta.stride) {
            let count = run.count();
            let target = match run.kind {
                Kind::Data => switch.find(run.first(), &source),
                Kind::Handshake | Kind::Other => None,
            };
            let Some(target) = target else {
                work += judge(&run, &source, meta, ports, switch, round);
                if bytes.len() > run.stride {
                    ports[at].wary_until = round.now.plus(WARY_TIME);
                }
                continue;
            };
            work += 1 + count / RUN_SHARE;
            round.counters.wireguard_received.add(count as u64, run.bytes.len() as u64);
            if departures.is_full() {
                work += departures.flush(&mut switch.gate(ports), round);
            }
            let Run { bytes, stride, .. } = run;
            departures.push(Departure { bytes, stride, target, ecn: meta.ecn });
        }
    }
    work
}

/// Has every datagram of a run that belongs to no known flow judged. Returns the work done.
#[cold]
fn judge(
    run: &Run<'_>,
    source: &Source,
    meta: &RecvMeta,
    ports: &mut [UdpPort],
    switch: &mut Switch,
    round: &Round<'_>,
) -> usize {
    let mut work = run.count();
    for datagram in run.datagrams() {
        if run.kind == Kind::Other {
            let outcome = ports[source.socket].answer(datagram, meta, round.now);
            round.counters.count_stun(outcome, family(meta.addr), datagram.len() as u64);
        } else {
            work += switch.judge(datagram, source, ports, round) / KEYS_SHARE;
        }
    }
    work
}

impl UdpPort {
    /// Answers one datagram if the responder says so.
    fn answer(&mut self, datagram: &[u8], meta: &RecvMeta, now: Tick) -> StunOutcome {
        let mut out = [0; ANSWER_LEN_MAX];
        let len = match self.responder.step(datagram, meta.addr, now, &mut out) {
            Verdict::Answer(len) => len,
            Verdict::Drop(reason) => return outcome(reason),
        };
        let course = Course { to: meta.addr, from: meta.dst_ip, ecn: None };
        match self.socket.answer(&course, out.get(..len).unwrap_or_default()) {
            Ok(()) => StunOutcome::Success,
            Err(_) => StunOutcome::WriteError,
        }
    }
}

/// The outcome that a responder's reason is counted as.
fn outcome(reason: DropReason) -> StunOutcome {
    let known = StunOutcome::ALL.iter().find(|outcome| outcome.drop_reason() == Some(reason));
    // A responder gives no other reasons than those of its outcomes.
    debug_assert!(known.is_some(), "{reason:?}");
    known.copied().unwrap_or(StunOutcome::BadStun)
}

/// IPv4 over an IPv6 socket is IPv4.
fn family(source: SocketAddr) -> Family {
    match source.ip().to_canonical() {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// Without the buffers.
impl fmt::Debug for Udp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ports().map(|port| &port.socket)).finish()
    }
}

#[cfg(test)]
mod tests;
