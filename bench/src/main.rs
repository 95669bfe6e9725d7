//! `bench`: the load generator, the limit programs, the peers and the report that judges the relay.
//!
//! Owns every figure the project claims. Must never depend on the relay's own crate: what it measures is a
//! process, reached by sockets and read by the kernel's accounting. Called by people and by CI.

#![forbid(unsafe_code)]

mod compare;
mod connect;
#[cfg(feature = "engines")]
mod engine;
mod fastpath;
mod fleet;
mod flood;
mod hello;
mod host;
mod idle;
mod limit;
mod link;
mod load;
mod record;
mod runner;
mod tls;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The relay's allocator: a limit must not lose by a slower one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send traffic through a server and report what came out.
    Load(Box<load::LoadArgs>),
    /// Connect and close, as often as the server bears or at a rate.
    Connect(connect::ConnectArgs),
    /// Hold many clients still and read the server's memory.
    Idle(idle::IdleArgs),
    /// Compare ours with stock derper and the limit programs, and judge.
    Compare(Box<compare::CompareArgs>),
    /// Compare XDP with our own sockets, those with bare loops and coturn, and judge.
    Fastpath(Box<fastpath::FastpathArgs>),
    /// Register a fleet with control, steer a dataplane, and judge.
    Fleet(Box<fleet::FleetArgs>),
    /// Send datagrams through a server in another network and report what came out.
    Flood(Box<flood::FloodArgs>),
    /// Run the framed relay on another engine.
    #[cfg(feature = "engines")]
    Engine(engine::EngineArgs),
    /// Run a limit program.
    Limit(limit::LimitArgs),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    if !matches!(command, Command::Compare(_) | Command::Fastpath(_)) {
        // As the relay does: clearing 2 MiB at a page fault is no latency of a server. Servers of others
        // would inherit it from the runner.
        let _ = rustix::thread::disable_transparent_huge_pages(true);
    }
    match command {
        Command::Load(args) => load::main(&args),
        Command::Connect(args) => connect::main(&args),
        Command::Idle(args) => idle::main(&args),
        Command::Compare(args) => compare::main(&args),
        Command::Fastpath(args) => fastpath::main(&args),
        Command::Fleet(args) => fleet::main(&args),
        Command::Flood(args) => flood::main(&args),
        #[cfg(feature = "engines")]
        Command::Engine(args) => engine::main(&args),
        Command::Limit(args) => limit::main(&args),
    }
}

/// Tells whoever started us something, as one line of JSON on standard output.
pub(crate) fn event(value: &serde_json::Value) {
    println!("{value}");
}
