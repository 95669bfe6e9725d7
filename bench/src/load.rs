//! The load generator: relayed traffic in a closed or an open loop, and what it says about a server.
//!
//! Owns the arguments and the result of one run; `flow` holds what is sent and verified, `run` the
//! loop, `latency` what the frames took.
//! One thread, thousands of clients. Must never count a frame that its receiver has not verified in
//! order. Called from the command line, mostly as the runner's child on a core of its own.

mod flow;
mod latency;
mod run;

pub(crate) use flow::is_packet;

use crate::hello::{Dialer, Hello};
use anyhow::{Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::net::SocketAddrV4;

/// What to send, to whom, for how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// Server to connect to.
    #[arg(long)]
    pub(crate) server: SocketAddrV4,
    /// What a client says first.
    #[arg(long, value_enum, default_value = "derp")]
    pub(crate) hello: Hello,
    /// Plain TCP instead of TLS.
    #[arg(long)]
    pub(crate) plain: bool,
    /// Sender and receiver pairs.
    #[arg(long, default_value_t = 20)]
    pub(crate) pairs: usize,
    /// Packet bytes in a frame, key and header not counted.
    #[arg(long, default_value_t = 1400)]
    pub(crate) size: usize,
    /// Frames in flight for each pair (closed loop).
    #[arg(long, default_value_t = 24)]
    pub(crate) window: u64,
    /// Frames a second over all pairs (open loop); without it the loop is closed.
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Frames put into one client record where so many are due.
    #[arg(long, default_value_t = 1)]
    pub(crate) frames_per_record: usize,
    /// Match senders and receivers at random, by this seed, instead of in order of arrival.
    #[arg(long)]
    pub(crate) random_pairs: Option<u64>,
    /// Receivers which never read, fed by the senders of the first pairs.
    #[arg(long, default_value_t = 0)]
    pub(crate) slow_readers: usize,
    /// The same number of receivers which do read: the calm to compare `--slow-readers` with.
    #[arg(long, default_value_t = 0, conflicts_with = "slow_readers")]
    pub(crate) extra_readers: usize,
    /// Seconds before counting starts.
    #[arg(long, default_value_t = 0.5)]
    pub(crate) warm_up: f64,
    /// Seconds that count.
    #[arg(long, default_value_t = 2.0)]
    pub(crate) seconds: f64,
    /// Process whose CPU time and memory are read around the counted window.
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,
    /// Core to stay on.
    #[arg(long)]
    pub(crate) core: Option<usize>,
    /// Sleep between events instead of polling: leaves the core to others.
    #[arg(long)]
    pub(crate) sleep: bool,
    /// When connected, say so and wait for a line on standard input.
    #[arg(long)]
    pub(crate) gate: bool,
}

/// What one run found. Times in microseconds are one-way, from the scheduled send time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LoadReport {
    /// Length of the counted window.
    pub(crate) seconds: f64,
    /// Frames due in the window (open loop) or sent in it.
    pub(crate) offered: u64,
    /// Frames verified in the window.
    pub(crate) delivered: u64,
    /// Frames overtaken by later ones of their pair: dropped by the server.
    pub(crate) lost: u64,
    /// Frames of the window that had not come when the run ended (open loop).
    pub(crate) missing: u64,
    /// Frames out of order, from a wrong source or with wrong content.
    pub(crate) errors: u64,
    /// Connections the server ended.
    pub(crate) closed: u64,
    /// Frames that came with one read, on average.
    pub(crate) frames_per_read: f64,
    /// Verified frames a second.
    pub(crate) frames_per_second: f64,
    /// The server's CPU time in the window, in seconds.
    pub(crate) server_cpu_seconds: f64,
    /// Verified frames per second of the server's CPU time.
    pub(crate) frames_per_cpu_second: f64,
    /// The server's CPU time for one verified frame, in nanoseconds.
    pub(crate) cpu_ns_per_frame: f64,
    /// The server's resident memory at the end, in bytes.
    pub(crate) server_resident_bytes: u64,
    /// Median latency.
    pub(crate) p50_us: f64,
    /// 99th percentile of the latency.
    pub(crate) p99_us: f64,
    /// Median over slices of 100 ms of their 99th percentiles.
    pub(crate) typical_p99_us: f64,
    /// 99.9th percentile of the latency.
    pub(crate) p999_us: f64,
    /// Longest latency.
    pub(crate) max_us: f64,
    /// 99th percentile of how late the generator was with a frame (open loop).
    pub(crate) late_p99_us: f64,
    /// Median over slices of 100 ms of the same.
    pub(crate) late_typical_p99_us: f64,
    /// Share of the window in which the generator had work; above 0.9 an open loop's figures are its own.
    pub(crate) generator_busy: f64,
    /// The generator's CPU time over the window's length.
    pub(crate) generator_cpu: f64,
}

/// Runs the load and prints its report as one line of JSON.
pub(crate) fn main(args: &LoadArgs) -> Result<()> {
    ensure!(args.size >= flow::PACKET_LEN_MIN, "--size is at least {}", flow::PACKET_LEN_MIN);
    ensure!(
        args.pairs > 0 && args.frames_per_record > 0,
        "--pairs and --frames-per-record are at least 1"
    );
    let extra = args.slow_readers.max(args.extra_readers);
    ensure!(extra <= args.pairs, "there are no more slow or extra readers than pairs");
    let dialer = Dialer::new(args.server, args.hello, args.plain)?;
    crate::event(&serde_json::json!({ "event": "result", "load": run::run(args, dialer)? }));
    Ok(())
}
