//! `bench`: the load generator, the limit programs, the peers and the report that judges the relay.
//!
//! Owns every figure the project claims. Must never depend on the relay's own crate: what it measures is a
//! process, reached by sockets and read by the kernel's accounting. Called by people and by CI.

#![forbid(unsafe_code)]

mod compare;
mod connect;
mod hello;
mod host;
mod idle;
mod limit;
mod link;
mod load;
mod record;
mod tls;

use anyhow::Result;
use clap::{Parser, Subcommand};

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
    /// Run a limit program.
    Limit(limit::LimitArgs),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Load(args) => load::main(&args),
        Command::Connect(args) => connect::main(&args),
        Command::Idle(args) => idle::main(&args),
        Command::Compare(args) => compare::main(&args),
        Command::Limit(args) => limit::main(&args),
    }
}

/// Tells whoever started us something, as one line of JSON on standard output.
pub(crate) fn event(value: &serde_json::Value) {
    println!("{value}");
}
