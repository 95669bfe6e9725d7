//! The counting of a flood: windows of sending, what they cost and what came of them.
//!
//! Owns the search for the rate and the arithmetic of the report. Must never count what was sent as what
//! came: only the sink's counter says that. The generator keeps its core busy in every window, so what a
//! packet costs beside the floor is the difference of two windows with the same pauses.

use super::frame::{HEADERS_LEN, frame};
use super::lab::{Lab, Wanted, inside};
use super::{FloodArgs, FloodReport, Flow, OWN_STATION, SERVER_STATION};
use crate::host;
use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
use std::io::{IoSlice, Read as _, Write as _};
use std::iter::repeat_n;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

/// Frames of one test run, sent and skipped: each call has a fixed cost of milliseconds, a pause in what
/// is sent, so that shorter ones would be bursts.
const CALL_FRAMES: u32 = 1 << 18;
/// Seconds of one look at a rate.
const LOOK_SECONDS: f64 = 0.2;
/// Frames skipped at first for each one sent when the rate is looked for, and at most.
const SKIPPED_FIRST: f64 = 6.0;
const SKIPPED_MAX: f64 = 2000.0;
/// By how much a rate is lower than the one that was too high.
const STEP: f64 = 1.15;
/// How long nothing may come before everything has.
const SETTLED: Duration = Duration::from_millis(20);
/// How long the fast path may take to know all flows.
const KNOWN_MAX: Duration = Duration::from_secs(5);

/// What was counted so far, or in between.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    sent: u64,
    right: u64,
    wrong: u64,
    server_ns: u64,
    load_ns: u64,
    /// Time in which it was sent.
    sending_ns: u64,
}

struct Flood<'a> {
    args: &'a FloodArgs,
    lab: &'a mut Lab,
    flows: &'a [Flow],
    wanted: Wanted,
    /// What the kernel runs the generator on.
    frame: Vec<u8>,
    /// What a flow's socket sends at once.
    run: Vec<Vec<u8>>,
    /// Datagrams that sockets sent.
    sent: u64,
    /// Time spent on sending.
    sending: Duration,
}

/// Floods the server and its floor.
pub(super) fn measure(
    args: &FloodArgs,
    lab: &mut Lab,
    flows: &[Flow],
    wanted: Wanted,
) -> Result<FloodReport> {
    let framed =
        |flow: &Flow| frame(SERVER_STATION, OWN_STATION, flow.source, args.server, &flow.datagram);
    let frames: Vec<_> = flows.iter().map(framed).collect();
    let bursts = frames.iter().flat_map(|frame| repeat_n(&frame[..], args.burst));
    lab.set_heads(&bursts.collect::<Vec<_>>())?;
    let frame = frames.into_iter().next().context("there are flows")?;
    ensure!(frame.len() == HEADERS_LEN + flows[0].datagram.len(), "a frame is all of a datagram");
    let count = args.run.unwrap_or_default();
    let run = flows.iter().map(|flow| flow.datagram.repeat(count)).collect();
    Flood { args, lab, flows, wanted, frame, run, sent: 0, sending: Duration::ZERO }.measure()
}

impl Flood<'_> {
    fn measure(&mut self) -> Result<FloodReport> {
        if self.args.by_xdp && self.flows[0].socket.is_some() {
            let flows = self.flows.len() as f64;
            wait_for("flows known to XDP", flows, || {
                metric(self.args, "relay_xdp_flows ", |_| true)
            })?;
        }
        let mut skipped = 0;
        if let Some(loss_max) = self.args.loss_max {
            skipped = self.look_for_rate(loss_max)?;
        }
        self.window(0, skipped, self.args.warm_up)?;
        let before = self.counted_by_xdp()?;
        let counts = self.window(0, skipped, self.args.seconds)?;
        let by_xdp = self.counted_by_xdp()? - before;
        let floor = if self.args.run.is_none() {
            self.window(1, skipped, self.args.warm_up)?;
            self.window(1, skipped, self.args.seconds)?
        } else {
            Counts::default()
        };
        ensure!(counts.right > 0, "nothing came through");
        Ok(report(f64::from(skipped), counts, floor, by_xdp))
    }

    /// The fewest frames to skip for each one sent, of which no more than this share is lost.
    fn look_for_rate(&mut self, loss_max: f64) -> Result<u32> {
        let mut skipped = SKIPPED_FIRST;
        loop {
            self.set_out(0, skipped as u32)?;
            let before = self.counts()?;
            self.send(LOOK_SECONDS)?;
            // What still waits counts as lost: a queue that grows is a rate too high.
            let counts = self.counts()?.since(before);
            self.settle()?;
            if counts.lost_share() <= loss_max || skipped > SKIPPED_MAX {
                return Ok(skipped as u32);
            }
            skipped *= STEP;
        }
    }

    /// Sends for so long and waits until what comes of it has come.
    fn window(&mut self, slot: u32, skipped: u32, seconds: f64) -> Result<Counts> {
        self.set_out(slot, skipped)?;
        let before = self.counts()?;
        self.send(seconds)?;
        let load_ns = self.counts()?.load_ns;
        self.settle()?;
        Ok(Counts { load_ns, ..self.counts()? }.since(before))
    }

    fn set_out(&mut self, slot: u32, skipped: u32) -> Result<()> {
        self.lab.set_course(self.flows.len() * self.args.burst, skipped, slot)?;
        self.lab.want(Some(self.wanted))
    }

    fn send(&mut self, seconds: f64) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed().as_secs_f64() < seconds {
            if self.args.run.is_some() {
                self.send_runs()?;
            } else {
                self.lab.run(&self.frame, CALL_FRAMES)?;
            }
        }
        self.sending += begun.elapsed();
        Ok(())
    }

    /// Waits until nothing comes any more.
    fn settle(&mut self) -> Result<()> {
        let mut last = self.lab.seen()?;
        loop {
            std::thread::sleep(SETTLED);
            let seen = self.lab.seen()?;
            if seen == last {
                return self.lab.want(None);
            }
            last = seen;
        }
    }

    /// One run of each flow.
    fn send_runs(&mut self) -> Result<()> {
        for (flow, run) in self.flows.iter().zip(&self.run) {
            let socket = flow.socket.as_ref().context("runs need flows with sockets")?;
            let stride = flow.datagram.len() as u16;
            let segments = [ControlMessage::UdpGsoSegments(&stride)];
            let bytes = [IoSlice::new(run)];
            let flags = MsgFlags::empty();
            let sent = sendmsg::<SockaddrIn>(socket.as_raw_fd(), &bytes, &segments, flags, None)?;
            self.sent += (sent / usize::from(stride)) as u64;
        }
        Ok(())
    }

    fn counts(&mut self) -> Result<Counts> {
        let [right, wrong] = self.lab.seen()?;
        let sent = if self.args.run.is_some() { self.sent } else { self.lab.sent()? };
        let server_ns =
            host::cpu_ns(self.args.server_pid)? + host::soft_interrupts_ns(self.args.server_core)?;
        let load_ns = host::cpu_ns(std::process::id())? + host::soft_interrupts_ns(self.args.core)?;
        let sending_ns = self.sending.as_nanos() as u64;
        Ok(Counts { sent, right, wrong, server_ns, load_ns, sending_ns })
    }

    /// Packets that XDP says it answered or sent on so far: once it has told of those that the sink saw,
    /// as it tells now and then only. None where XDP has nothing to do.
    fn counted_by_xdp(&mut self) -> Result<f64> {
        let [seen, _] = self.lab.seen()?;
        let done = ["answered", "forwarded", "redirected"].map(|it| format!("\"{it}\""));
        let counted = || {
            metric(self.args, "relay_xdp_packets_total{", |labels| {
                done.iter().any(|outcome| labels.contains(outcome.as_str()))
            })
        };
        if !self.args.by_xdp {
            return Ok(0.0);
        }
        // Where it does not come true the share in the report says so.
        let _ = wait_for("packets counted by XDP", seen as f64, counted);
        counted()
    }
}

/// Waits until XDP is attached somewhere.
pub(super) fn wait_until_attached(args: &FloodArgs) -> Result<()> {
    wait_for("interfaces with XDP", 1.0, || metric(args, "relay_xdp_mode{", |_| true))
}

/// Waits until `now` gives at least `wanted`.
fn wait_for(what: &str, wanted: f64, now: impl Fn() -> Result<f64>) -> Result<()> {
    let until = Instant::now() + KNOWN_MAX;
    loop {
        let found = now()?;
        if found >= wanted {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{what}: {found} of {wanted}");
        std::thread::sleep(SETTLED);
    }
}

/// The sum of the server's metrics that begin with `name` and whose labels are wanted.
fn metric(args: &FloodArgs, name: &str, wanted: impl Fn(&str) -> bool) -> Result<f64> {
    let port = args.metrics_port.context("no --metrics-port")?;
    // Only whoever is at the server's own host may read them.
    let page = inside(args.network, || page(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)))?;
    let samples = page.lines().filter(|line| line.starts_with(name));
    let values = samples.filter_map(|line| line.rsplit_once(' '));
    let wanted = values.filter(|(labels, _)| wanted(labels));
    Ok(wanted.filter_map(|(_, value)| value.parse::<f64>().ok()).sum())
}

/// The server's metrics.
fn page(address: SocketAddrV4) -> Result<String> {
    let mut stream = TcpStream::connect(address).context("no metrics")?;
    stream.set_read_timeout(Some(KNOWN_MAX))?;
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

impl Counts {
    fn since(self, before: Self) -> Self {
        Self {
            sent: self.sent - before.sent,
            right: self.right - before.right,
            wrong: self.wrong - before.wrong,
            server_ns: self.server_ns - before.server_ns,
            load_ns: self.load_ns - before.load_ns,
            sending_ns: self.sending_ns - before.sending_ns,
        }
    }

    fn lost_share(&self) -> f64 {
        1.0 - self.right as f64 / self.sent as f64
    }
}

/// What a window and its floor say. `by_xdp`: packets that XDP counted in the window.
fn report(skipped: f64, counts: Counts, floor: Counts, by_xdp: f64) -> FloodReport {
    let seconds = counts.sending_ns as f64 / 1e9;
    let per = |ns: u64, packets: u64| if packets == 0 { 0.0 } else { ns as f64 / packets as f64 };
    // A server whose XDP does everything may spend nothing at all.
    let in_a_second = |ns: f64| if ns > 0.0 { 1e9 / ns } else { 0.0 };
    let server_ns = per(counts.server_ns, counts.right);
    let load_ns = per(counts.load_ns, counts.sent);
    let floor_ns = per(floor.load_ns, floor.sent);
    let packet_ns = server_ns + load_ns - floor_ns;
    let all_ns = per(counts.server_ns + counts.load_ns, counts.right);
    FloodReport {
        seconds,
        offered_per_second: counts.sent as f64 / seconds,
        packets_per_second: counts.right as f64 / seconds,
        lost_share: counts.lost_share(),
        errors: counts.wrong,
        skipped,
        server_busy: counts.server_ns as f64 / 1e9 / seconds,
        server_ns,
        load_ns,
        floor_ns,
        packet_ns,
        packets_per_cpu_second: in_a_second(packet_ns),
        packets_per_second_of_all: in_a_second(all_ns),
        packets_per_server_second: in_a_second(server_ns),
        by_xdp: by_xdp / counts.right as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_costs_what_all_spent_less_the_floor() {
        let counts = Counts {
            sent: 1000,
            right: 500,
            wrong: 0,
            server_ns: 1_000_000,
            load_ns: 3_000_000,
            sending_ns: 5_000_000,
        };
        let floor = Counts { sent: 4000, load_ns: 4_000_000, ..Counts::default() };
        let report = report(7.0, counts, floor, 250.0);
        assert_eq!((report.server_ns, report.load_ns, report.floor_ns), (2000.0, 3000.0, 1000.0));
        assert_eq!(report.packet_ns, 4000.0);
        assert_eq!(report.packets_per_cpu_second, 250_000.0);
        assert_eq!(report.packets_per_second_of_all, 125_000.0);
        assert_eq!((report.lost_share, report.by_xdp), (0.5, 0.5));
        assert_eq!((report.offered_per_second, report.packets_per_second), (200_000.0, 100_000.0));
    }
}
