//! The runner: every row of the README's table, ours against stock derper and the limit programs.
//!
//! Owns the order of a comparison: for each experiment interleaved rounds over all servers in rotating
//! order, the first round thrown away, every ratio formed inside a round. Server on core 0, load on core
//! 1, each a process of its own. Must never compare figures of different rounds. Called by people and CI.

mod experiment;
mod faults;
mod peer;
mod rows;
mod server;

use crate::host;
use crate::runner::{Comparison, network};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What to compare, how long, and where the result goes.
#[derive(Args, Clone, Debug)]
pub(crate) struct CompareArgs {
    /// Our server's program; without it the rows about it are skipped.
    #[arg(long)]
    dataplane: Option<PathBuf>,
    /// Stock derper; without it the runner builds one if Go is present.
    #[arg(long)]
    derper: Option<PathBuf>,
    /// Rounds that count; one more is run first and thrown away.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that count in each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Idle clients.
    #[arg(long, default_value_t = 10_000)]
    clients: usize,
    /// Frames a second of the sparse load; without it half of derper's saturated ones in this run, and no
    /// sparse load if those were not measured.
    #[arg(long)]
    sparse_rate: Option<f64>,
    /// Connects a second of the accept storm.
    #[arg(long, default_value_t = 1000.0)]
    storm_rate: f64,
    /// A look, not a judgement: two rounds of half a second, a tenth of the clients.
    #[arg(long)]
    quick: bool,
    /// Only experiments whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Every raw round goes here as JSON.
    #[arg(long)]
    out: PathBuf,
    /// Stay in the host's network: its congestion control and its ports are then used as they are.
    #[arg(long)]
    host_network: bool,
    /// Set on the copy of the runner that has a network of its own.
    #[arg(long, hide = true)]
    own_network: bool,
}

/// Runs the comparison, prints the table and writes the file. An error, too, if a measurement of our own
/// server failed.
pub(crate) fn main(args: &CompareArgs) -> Result<()> {
    let mut args = args.clone();
    if args.own_network {
        prepare_own_network()?;
    } else {
        // Before there is a network of its own, from which no module proxy can be reached.
        let given = args.derper.is_some();
        args.derper = peer::derper(args.derper.as_deref())?;
        if !args.host_network && network::own_network_works() {
            let built = args.derper.as_deref().filter(|_| !given);
            let named = built.map(|program| format!("--derper={}", program.display()).into());
            return network::rerun_in_own_network(named);
        }
    }
    if args.quick {
        (args.rounds, args.seconds, args.clients) = (2, 0.5, args.clients / 10);
    }
    host::lift_descriptor_limit()?;
    let mut comparison = Comparison::default();
    let lab = server::Lab::new(&args, &mut comparison.skipped)?;
    comparison.facts = facts(&args, &lab);
    let only = args.only.as_deref().unwrap_or_default();
    let mut experiments = experiment::all(&args);
    experiments.retain(|experiment| experiment.name.contains(only));
    ensure!(!experiments.is_empty(), "no experiment's name contains {only:?}");
    for experiment in experiments {
        eprintln!("{}", experiment.name);
        for round in 0..=args.rounds {
            experiment.round(&lab, round, &mut comparison);
        }
    }
    comparison.conclude(&rows::TABLE, &args.out)
}

fn facts(args: &CompareArgs, lab: &server::Lab) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("kernel", host::kernel()),
        ("cpu", host::cpu_model()),
        ("cores", std::thread::available_parallelism().map_or(0, usize::from).to_string()),
        ("congestion control of untuned sockets", host::default_congestion()),
        ("network of its own", args.own_network.to_string()),
        ("bench", env!("CARGO_PKG_VERSION").to_owned()),
        ("dataplane", lab.dataplane_version()),
        ("derper", lab.derper_version()),
        ("rounds", args.rounds.to_string()),
        ("seconds", args.seconds.to_string()),
        ("tls", "1.3, AES-128-GCM, X25519, P-256 certificate".to_owned()),
    ])
}

fn prepare_own_network() -> Result<()> {
    network::ip("link set lo up")?;
    // A namespace may be refused cubic when the host does not list it; reno paces no more than cubic does.
    let set = |setting: &str, value: &str| {
        std::fs::write(format!("/proc/sys/net/ipv4/{setting}"), value)
            .with_context(|| format!("setting {setting}"))
    };
    set("tcp_congestion_control", "cubic").or_else(|_| set("tcp_congestion_control", "reno"))?;
    set("ip_local_port_range", "1024 65535")
}
