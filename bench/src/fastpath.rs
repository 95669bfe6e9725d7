//! The runner of the UDP side: STUN and WireGuard in XDP against our own sockets, those against bare loops
//! and stock coturn.
//!
//! Owns the order: for each experiment interleaved rounds over all subjects in rotating order, the first
//! round thrown away, every ratio formed inside a round. Server on core 0 in a network of its own, the
//! flood on core 1. Must never compare figures of different rounds. Called by people and CI, as root.

mod experiment;
mod rows;
mod server;

use crate::host;
use crate::runner::{Comparison, network};
use anyhow::{Result, ensure};
use clap::Args;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What to compare, how long, and where the result goes.
#[derive(Args, Clone, Debug)]
pub(crate) struct FastpathArgs {
    /// Our server's program.
    #[arg(long)]
    dataplane: PathBuf,
    /// Rounds that count; one more is run first and thrown away.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that count in each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Flows, a power of two; STUN has 4,096 askers.
    #[arg(long, default_value_t = 64)]
    flows: usize,
    /// A look, not a judgement: two rounds of half a second.
    #[arg(long)]
    quick: bool,
    /// Only experiments whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Every raw round goes here as JSON.
    #[arg(long)]
    out: PathBuf,
    /// Set on the copy of the runner that has a network of its own.
    #[arg(long, hide = true)]
    own_network: bool,
}

/// Runs the comparison, prints the table and writes the file. An error, too, if a measurement of our own
/// server failed.
pub(crate) fn main(args: &FastpathArgs) -> Result<()> {
    let mut args = args.clone();
    if !args.own_network {
        ensure!(network::own_network_works(), "network namespaces need root");
        return network::rerun_in_own_network([]);
    }
    if args.quick {
        (args.rounds, args.seconds) = (2, 0.5);
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
        eprintln!("{}: {}", experiment.name, experiment.shape);
        comparison.facts.insert(experiment.name, experiment.shape.clone());
        for round in 0..=args.rounds {
            experiment.round(&lab, round, &mut comparison);
        }
    }
    comparison.conclude(&rows::TABLE, &args.out)
}

fn facts(args: &FastpathArgs, lab: &server::Lab) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("kernel", host::kernel()),
        ("cpu", host::cpu_model()),
        ("cores", std::thread::available_parallelism().map_or(0, usize::from).to_string()),
        ("bench", env!("CARGO_PKG_VERSION").to_owned()),
        ("dataplane", lab.dataplane_version()),
        ("coturn", lab.coturn_version()),
        ("rounds", args.rounds.to_string()),
        ("seconds", args.seconds.to_string()),
        ("path", "one virtual Ethernet pair, server on core 0, generator and sink on core 1".into()),
        (
            "packets per CPU-second",
            "all CPU time of server, generator and sink with their soft interrupts, less that of the \
             same generator into XDP_DROP"
                .into(),
        ),
        ("packets per server-second", "CPU time of the server and its soft interrupts alone".into()),
    ])
}
