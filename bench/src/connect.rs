//! Connection load: as many connects as a server bears, or a given rate of them, and what they cost.
//!
//! Each connect is a stock client's whole way in (TCP, TLS, upgrade, keys, ServerInfo), then a close; or
//! the TLS handshake alone. Some blocking threads on one core; must never keep a connection. The runner
//! uses it for the handshake rows and as the storm beside established traffic.

use crate::hello::{Dialer, Hello, Identity};
use crate::host;
use crate::link::Scratch;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

/// Longest connect that is told apart from others, in microseconds.
const TIME_US_MAX: u64 = 60_000_000;

/// How to connect, how often, for how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConnectArgs {
    /// Server to connect to.
    #[arg(long)]
    server: SocketAddrV4,
    /// What a client says first.
    #[arg(long, value_enum, default_value = "derp")]
    hello: Hello,
    /// Handshake and close, without any hello.
    #[arg(long)]
    tls_only: bool,
    /// Connects a second, by the clock; without it as many as possible.
    #[arg(long)]
    rate: Option<f64>,
    /// Connects in progress at most.
    #[arg(long, default_value_t = 16)]
    threads: usize,
    /// Seconds to go on.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Process whose CPU time is read around the run.
    #[arg(long)]
    server_pid: Option<u32>,
    /// Core to stay on.
    #[arg(long)]
    core: Option<usize>,
}

/// What the connects came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ConnectReport {
    /// Length of the run.
    pub(crate) seconds: f64,
    /// Connects that went all the way.
    pub(crate) connected: u64,
    /// Connects that did not.
    pub(crate) failed: u64,
    /// Whole connects a second.
    pub(crate) connects_per_second: f64,
    /// The server's CPU time in the run, in seconds.
    pub(crate) server_cpu_seconds: f64,
    /// Whole connects per second of the server's CPU time.
    pub(crate) connects_per_cpu_second: f64,
    /// Median time of a connect, in microseconds.
    pub(crate) p50_us: f64,
    /// 99th percentile of the time of a connect, in microseconds.
    pub(crate) p99_us: f64,
}

/// What one thread did.
struct Share {
    connected: u64,
    failed: u64,
    times_us: Histogram<u64>,
}

/// Connects, and prints the report as one line of JSON.
pub(crate) fn main(args: &ConnectArgs) -> Result<()> {
    ensure!(args.threads > 0, "--threads is at least 1");
    host::lift_descriptor_limit()?;
    if let Some(core) = args.core {
        host::pin(&[core])?;
    }
    let dialer = Dialer::new(args.server, args.hello, false)?;
    crate::event(&serde_json::json!({ "event": "running" }));
    let before = args.server_pid.map_or(Ok(0), host::cpu_ns)?;
    let start = Instant::now();
    let shares = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads)
            .map(|number| {
                scope.spawn({
                    let dialer = dialer.clone();
                    move || share(args, dialer, number, start)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().ok().context("a connecting thread panicked")?)
            .collect::<Result<Vec<_>>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let server = (args.server_pid.map_or(Ok(0), host::cpu_ns)? - before) as f64 / 1e9;
    let connected: u64 = shares.iter().map(|share| share.connected).sum();
    let mut times = Histogram::<u64>::new_with_max(TIME_US_MAX, 3)?;
    for share in &shares {
        times.add(&share.times_us)?;
    }
    let report = ConnectReport {
        seconds,
        connected,
        failed: shares.iter().map(|share| share.failed).sum(),
        connects_per_second: connected as f64 / seconds,
        server_cpu_seconds: server,
        connects_per_cpu_second: if server > 0.0 { connected as f64 / server } else { 0.0 },
        p50_us: times.value_at_quantile(0.5) as f64,
        p99_us: times.value_at_quantile(0.99) as f64,
    };
    crate::event(&serde_json::json!({ "event": "result", "connect": report }));
    Ok(())
}

/// Makes the connects of thread `number`: those whose place in the schedule it is, or one after another.
fn share(args: &ConnectArgs, mut dialer: Dialer, number: usize, start: Instant) -> Result<Share> {
    let mut share =
        Share { connected: 0, failed: 0, times_us: Histogram::new_with_max(TIME_US_MAX, 3)? };
    let mut scratch = Scratch::default();
    for turn in 0_u64.. {
        if let Some(rate) = args.rate {
            let place = turn * args.threads as u64 + number as u64;
            let due = start + Duration::from_secs_f64(place as f64 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        if start.elapsed().as_secs_f64() >= args.seconds {
            break;
        }
        let begun = Instant::now();
        let outcome = if args.tls_only {
            dialer.dial_tls_only()
        } else {
            dialer.dial(&Identity::generate(), &mut scratch).map(drop)
        };
        match outcome {
            Ok(()) => {
                share.connected += 1;
                share.times_us.saturating_record(begun.elapsed().as_micros() as u64);
            }
            Err(_) => share.failed += 1,
        }
    }
    Ok(share)
}
