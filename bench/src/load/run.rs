//! The load loop: what is due is sealed and written, what has come is opened and verified, in rounds.
//!
//! Owns the links, the flows and the clock of one run. In an open loop a full socket delays a send but
//! never its schedule, so waiting counts as latency. Must never sleep unless told to: a sleeping receiver
//! makes the server pay for waking it. Called by `load::main` only.

use super::flow::{Arrival, Ends, Flow, is_packet, shuffled};
use super::latency::Latency;
use super::{LoadArgs, LoadReport};
use crate::hello::{Dialer, Hello, Identity};
use crate::host;
use crate::link::{Flushed, Link, Scratch, split_frame};
use anyhow::{Context as _, Result};
use rustix::event::{Timespec, epoll};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Most plaintext bytes sealed before one write.
const BATCH_LEN: usize = 64 << 10;
/// Nanoseconds without an arrival after which a closed loop gives up on what is in flight.
const STALL_NS: u64 = 100_000_000;
/// Nanoseconds granted to the last frames of an open loop.
const DRAIN_NS: u64 = 500_000_000;
/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 256;

/// When frames are due.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// So many frames in flight for each flow.
    Window(u64),
    /// A frame every so many nanoseconds, flow after flow.
    Every(f64),
}

/// A connection and what the loop knows of it.
struct Client {
    link: Link,
    /// The flow that arrives here.
    inbound: Option<usize>,
    /// The flows that start here.
    outbound: Vec<usize>,
    /// The socket is full: nothing is sealed until it drains.
    blocked: bool,
    /// The server ended the connection.
    closed: bool,
}

/// Counters of one window.
#[derive(Default)]
struct Tally {
    delivered: u64,
    sent: u64,
    lost: u64,
    errors: u64,
    closed: u64,
    reads: u64,
    idle_ns: u64,
}

struct Run<'a> {
    args: &'a LoadArgs,
    pace: Pace,
    epoll: OwnedFd,
    clients: Vec<Client>,
    flows: Vec<Flow>,
    /// Flows that may have something due.
    due: Vec<usize>,
    /// Number of the next frame of the open loop's schedule that has not made its flow due.
    cursor: u64,
    tally: Tally,
    latency: Latency,
    /// How late the generator itself was with its frames: its sockets were full, or it had no core.
    lateness: Latency,
    start: Instant,
    /// Only frames due in this window have their latency recorded, in nanoseconds since `start`.
    window: std::ops::Range<u64>,
}

/// Connects, runs warm-up and window, and reports.
pub(crate) fn run(args: &LoadArgs, dialer: Dialer) -> Result<LoadReport> {
    let mut scratch = Scratch::default();
    host::lift_descriptor_limit()?;
    let (clients, flows) = connect(args, dialer, &mut scratch)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, client) in clients.iter().enumerate() {
        client.link.stream.set_nonblocking(true)?;
        // The slow readers' sockets are never looked at again.
        if client.inbound.is_some_and(|flow| flow >= args.pairs) && args.slow_readers > 0 {
            continue;
        }
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&epoll, &client.link.stream, data, epoll::EventFlags::IN)?;
    }
    if let Some(core) = args.core {
        host::pin(&[core])?;
    }
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    if args.gate {
        crate::event(&serde_json::json!({ "event": "connected", "clients": clients.len() }));
        std::io::stdin().read_line(&mut String::new())?;
    }
    let mut run = Run {
        args,
        pace: args.rate.map_or(Pace::Window(args.window), |rate| Pace::Every(1e9 / rate)),
        epoll,
        clients,
        due: Vec::with_capacity(flows.len()),
        flows,
        cursor: 0,
        tally: Tally::default(),
        latency: Latency::new()?,
        lateness: Latency::new()?,
        start: Instant::now(),
        window: nanos(args.warm_up)..nanos(args.warm_up + args.seconds),
    };
    run.measure(&mut scratch)
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

/// Connects all clients and pairs them: flow by flow in order of arrival, or at random.
fn connect(
    args: &LoadArgs,
    mut dialer: Dialer,
    scratch: &mut Scratch,
) -> Result<(Vec<Client>, Vec<Flow>)> {
    let extra = args.slow_readers.max(args.extra_readers);
    let count = args.pairs * 2 + extra;
    let mut clients = Vec::with_capacity(count);
    let mut keys = Vec::with_capacity(count);
    for number in 0..count {
        let identity = Identity::generate();
        let link = dialer.dial(&identity, scratch).with_context(|| format!("client {number}"))?;
        keys.push(identity.public);
        clients.push(Client {
            link,
            inbound: None,
            outbound: Vec::new(),
            blocked: false,
            closed: false,
        });
    }
    let order = match args.random_pairs {
        Some(seed) => shuffled(args.pairs * 2, seed),
        None => (0..args.pairs * 2).collect(),
    };
    let paired = order.chunks_exact(2).map(|pair| (pair[0], pair[1]));
    let extras = (0..extra).map(|at| (order[at * 2], args.pairs * 2 + at));
    let mut flows = Vec::with_capacity(args.pairs + extra);
    for (sender, receiver) in paired.chain(extras) {
        let number = flows.len();
        let timed = number < if extra > 0 { extra } else { args.pairs };
        let rewritten = args.hello != Hello::None;
        let ends = Ends { sender: (sender, keys[sender]), receiver: keys[receiver], rewritten };
        flows.push(Flow::new(number as u32, ends, args.size, timed));
        clients[sender].outbound.push(number);
        clients[receiver].inbound = Some(number);
    }
    Ok((clients, flows))
}

impl Run<'_> {
    fn measure(&mut self, scratch: &mut Scratch) -> Result<LoadReport> {
        let own = std::process::id();
        let cpu = |pid: Option<u32>| pid.map_or(Ok(0), host::cpu_ns);
        if let Pace::Window(_) = self.pace {
            self.list_all();
        }
        self.turn_until(self.window.start, scratch)?;
        self.tally = Tally::default();
        let before = (cpu(self.args.server_pid)?, cpu(Some(own))?, self.now());
        self.turn_until(self.window.end, scratch)?;
        let after = (cpu(self.args.server_pid)?, cpu(Some(own))?, self.now());
        let tally = std::mem::take(&mut self.tally);
        let missing = self.drain(scratch)?;
        self.latency.end_slice();
        self.lateness.end_slice();

        let seconds = (after.2 - before.2) as f64 / 1e9;
        let server = (after.0 - before.0) as f64 / 1e9;
        let delivered = tally.delivered as f64;
        let generator = (after.1 - before.1) as f64 / 1e9 / seconds;
        let polled = 1.0 - tally.idle_ns as f64 / 1e9 / seconds;
        Ok(LoadReport {
            seconds,
            offered: self.args.rate.map_or(tally.sent, |rate| (rate * seconds) as u64),
            delivered: tally.delivered,
            lost: tally.lost,
            missing,
            errors: tally.errors,
            closed: tally.closed,
            frames_per_read: delivered / tally.reads.max(1) as f64,
            frames_per_second: delivered / seconds,
            server_cpu_seconds: server,
            frames_per_cpu_second: if server > 0.0 { delivered / server } else { 0.0 },
            cpu_ns_per_frame: server * 1e9 / delivered.max(1.0),
            server_resident_bytes: self.args.server_pid.map_or(Ok(0), host::resident_bytes)?,
            p50_us: self.latency.quantile_us(0.5),
            p99_us: self.latency.quantile_us(0.99),
            p999_us: self.latency.quantile_us(0.999),
            typical_p99_us: self.latency.typical_p99_us(),
            late_p99_us: self.lateness.quantile_us(0.99),
            late_typical_p99_us: self.lateness.typical_p99_us(),
            max_us: self.latency.max_us(),
            generator_busy: if self.args.sleep { generator } else { polled },
            generator_cpu: generator,
        })
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn list_all(&mut self) {
        for flow in 0..self.flows.len() {
            self.list(flow);
        }
    }

    #[inline]
    fn list(&mut self, flow: usize) {
        if !self.flows[flow].listed {
            self.flows[flow].listed = true;
            self.due.push(flow);
        }
    }

    /// Turns the loop until `end`, in nanoseconds since the start.
    fn turn_until(&mut self, end: u64, scratch: &mut Scratch) -> Result<()> {
        let mut stall_check = self.now() + STALL_NS;
        let mut last = self.now();
        while last < end {
            let worked = self.turn(last, scratch)?;
            let now = self.now();
            if !worked {
                self.tally.idle_ns += now - last;
            }
            if now >= stall_check && matches!(self.pace, Pace::Window(_)) {
                self.tally.lost += self.flows.iter_mut().map(Flow::give_up_if_stalled).sum::<u64>();
                self.list_all();
                stall_check = now + STALL_NS;
            }
            last = now;
        }
        Ok(())
    }

    /// One round; says whether there was anything to do.
    fn turn(&mut self, now: u64, scratch: &mut Scratch) -> Result<bool> {
        self.list_scheduled(now);
        let mut worked = !self.due.is_empty();
        let mut due = std::mem::take(&mut self.due);
        for flow in due.drain(..) {
            self.flows[flow].listed = false;
            self.send_due(flow, now);
        }
        self.due = due;
        let mut events = [std::mem::MaybeUninit::uninit(); EVENTS_MAX];
        let timeout = self.timeout(self.now());
        let (events, _) = match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => return Ok(worked),
            other => other?,
        };
        worked |= !events.is_empty();
        for event in events {
            let client = event.data.u64() as usize;
            let flags = event.flags;
            if flags.contains(epoll::EventFlags::OUT) {
                self.unblock(client);
            }
            if flags.intersects(!epoll::EventFlags::OUT) {
                self.receive(client, scratch);
            }
        }
        Ok(worked)
    }

    /// How long the kernel may let us wait for an event.
    fn timeout(&self, now: u64) -> Timespec {
        let wait = match self.pace {
            _ if !self.args.sleep || !self.due.is_empty() => 0,
            Pace::Window(_) => STALL_NS,
            Pace::Every(interval) => {
                ((self.cursor as f64 * interval) as u64).saturating_sub(now).min(STALL_NS)
            }
        };
        Timespec { tv_sec: 0, tv_nsec: wait as _ }
    }

    /// Lists the flows whose turn in the schedule has come; nothing is scheduled after the window.
    fn list_scheduled(&mut self, now: u64) {
        let Pace::Every(interval) = self.pace else { return };
        let now = now.min(self.window.end);
        while (self.cursor as f64 * interval) as u64 <= now {
            self.list((self.cursor % self.flows.len() as u64) as usize);
            self.cursor += 1;
        }
    }

    /// When the next frame of `flow` is due, if that is not after `now`.
    #[inline]
    fn scheduled(&self, flow: usize, now: u64) -> Option<u64> {
        let state = &self.flows[flow];
        match self.pace {
            Pace::Window(window) => (state.next - state.expect < window).then_some(now),
            Pace::Every(interval) => {
                let frame = state.next * self.flows.len() as u64 + flow as u64;
                Some((frame as f64 * interval) as u64)
                    .filter(|due| *due <= now.min(self.window.end))
            }
        }
    }

    /// Seals and writes everything of `flow` that is due, batch by batch, until the socket is full.
    fn send_due(&mut self, flow: usize, now: u64) {
        let sender = self.flows[flow].sender;
        while !self.clients[sender].blocked && !self.clients[sender].closed {
            let mut batch = 0;
            while batch < BATCH_LEN
                && let Some(mut scheduled) = self.scheduled(flow, now)
            {
                self.clients[sender].link.begin_record();
                for frames in 1.. {
                    self.lateness.record(scheduled, now);
                    let frame = self.flows[flow].next_frame(scheduled);
                    self.clients[sender].link.out.append(frame);
                    batch += frame.len();
                    self.tally.sent += 1;
                    let full = frames == self.args.frames_per_record
                        || self.clients[sender].link.out.record_len() + frame.len()
                            > crate::record::PLAINTEXT_LEN_MAX;
                    let Some(next) = self.scheduled(flow, now).filter(|_| !full) else { break };
                    scheduled = next;
                }
                self.clients[sender].link.end_record();
            }
            if batch == 0 {
                return;
            }
            self.flush(sender);
        }
    }

    fn flush(&mut self, client: usize) {
        match self.clients[client].link.flush() {
            Ok(Flushed::All) => {}
            Ok(Flushed::Blocked) => {
                self.clients[client].blocked = true;
                self.watch(client, epoll::EventFlags::IN | epoll::EventFlags::OUT);
            }
            Err(_) => self.close(client),
        }
    }

    fn unblock(&mut self, client: usize) {
        self.clients[client].blocked = false;
        self.flush(client);
        if !self.clients[client].blocked && !self.clients[client].closed {
            self.watch(client, epoll::EventFlags::IN);
            for at in 0..self.clients[client].outbound.len() {
                self.list(self.clients[client].outbound[at]);
            }
        }
    }

    fn watch(&mut self, client: usize, flags: epoll::EventFlags) {
        let data = epoll::EventData::new_u64(client as u64);
        if epoll::modify(&self.epoll, &self.clients[client].link.stream, data, flags).is_err() {
            self.close(client);
        }
    }

    fn close(&mut self, client: usize) {
        if !std::mem::replace(&mut self.clients[client].closed, true) {
            self.tally.closed += 1;
            // A slow reader's socket was never added; that is the only failure there can be.
            let _ = epoll::delete(&self.epoll, &self.clients[client].link.stream);
        }
    }

    /// Reads once and verifies every whole frame that is there.
    fn receive(&mut self, client: usize, scratch: &mut Scratch) {
        let now = self.now();
        let state = &mut self.clients[client];
        let mut rest = match state.link.receive(scratch) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(_) => return self.close(client),
        };
        self.tally.reads += 1;
        while let Some((frame, tail)) = split_frame(rest) {
            rest = tail;
            if !is_packet(frame) {
                continue;
            }
            let Some(flow) = state.inbound.map(|flow| &mut self.flows[flow]) else {
                self.tally.errors += 1;
                continue;
            };
            match flow.arrive(frame) {
                Arrival::Good { lost, scheduled_ns } => {
                    self.tally.delivered += 1;
                    self.tally.lost += lost;
                    if flow.timed && self.window.contains(&scheduled_ns) {
                        self.latency.record(scheduled_ns, now);
                    }
                }
                Arrival::Wrong => self.tally.errors += 1,
            }
        }
        state.link.keep(rest);
        if let (Pace::Window(_), Some(flow)) = (self.pace, state.inbound) {
            self.list(flow);
        }
    }

    /// Waits for the open loop's last frames; returns how many of the timed ones never came.
    fn drain(&mut self, scratch: &mut Scratch) -> Result<u64> {
        let Pace::Every(_) = self.pace else { return Ok(0) };
        let end = self.now() + DRAIN_NS;
        while self.now() < end
            && self.flows.iter().any(|flow| flow.timed && flow.expect < flow.next)
        {
            self.turn(self.now(), scratch)?;
        }
        let unsent = |flow: usize, state: &Flow| {
            let due = self.cursor.saturating_sub(flow as u64).div_ceil(self.flows.len() as u64);
            due.saturating_sub(state.expect)
        };
        Ok(self
            .flows
            .iter()
            .enumerate()
            .filter(|(_, state)| state.timed)
            .map(|(at, state)| unsent(at, state))
            .sum())
    }
}
