//! Limit programs: what the machine allows when a server does nothing but the unavoidable.
//!
//! Each is one file of about a hundred lines: the bare TLS relay loop, the same without TLS, the bare
//! handshake loop. They parse nothing and look up nothing; connections are paired in order of arrival.
//! The runner starts them like any server and reads their port from the first line they print.

mod copy_loop;
mod tls_accept;
mod tls_loop;

use anyhow::Result;
use clap::{Args, ValueEnum};
use std::net::{Ipv4Addr, TcpListener};

/// Which limit program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Limit {
    /// Read, open, copy to the partner, seal, write.
    TlsLoop,
    /// Read, copy to the partner, write.
    CopyLoop,
    /// Accept, handshake, close.
    TlsAccept,
}

/// How to run it.
#[derive(Args, Clone, Debug)]
pub(crate) struct LimitArgs {
    /// Which one.
    #[arg(value_enum)]
    limit: Limit,
    /// Port on the loopback address; 0 takes any free one and prints it.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Core to stay on.
    #[arg(long)]
    core: Option<usize>,
}

/// Runs a limit program until it is ended.
pub(crate) fn main(args: &LimitArgs) -> Result<()> {
    crate::host::lift_descriptor_limit()?;
    if let Some(core) = args.core {
        crate::host::pin(&[core])?;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port))?;
    crate::event(
        &serde_json::json!({ "event": "listening", "port": listener.local_addr()?.port() }),
    );
    match args.limit {
        Limit::TlsLoop => tls_loop::run(&listener),
        Limit::CopyLoop => copy_loop::run(&listener),
        Limit::TlsAccept => tls_accept::run(&listener),
    }
}
