//! Limit programs: what the machine allows when a server does nothing but the unavoidable.
//!
//! Each is one file of about a hundred lines: the bare TLS relay loop, the same without TLS, the bare
//! handshake loop, the bare UDP relays. They parse nothing and look up nothing; connections are paired in
//! order of arrival, UDP ports by their numbers.
//! The runner starts them like any server and reads their port from the first line they print.

mod copy_loop;
mod tls_accept;
mod tls_loop;
mod udp_many;
mod udp_runs;

use anyhow::Result;
use clap::{Args, ValueEnum};
use nix::sys::socket::SockaddrIn;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};

/// Kernel buffer of a UDP limit's socket in bytes, as large as the relay's.
const KERNEL_BUFFER_LEN: usize = 7 << 20;

/// Which limit program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Limit {
    /// Read, open, copy to the partner, seal, write.
    TlsLoop,
    /// Read, copy to the partner, write.
    CopyLoop,
    /// Accept, handshake, close.
    TlsAccept,
    /// Receive a run of datagrams, send it on.
    UdpRuns,
    /// Receive many datagrams, send them on.
    UdpMany,
}

/// How to run it.
#[derive(Args, Clone, Debug)]
pub(crate) struct LimitArgs {
    /// Which one.
    #[arg(value_enum)]
    limit: Limit,
    /// Address to listen at.
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST)]
    address: Ipv4Addr,
    /// Port to listen at; 0 takes any free one and prints it.
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
    match args.limit {
        Limit::TlsLoop => tls_loop::run(&listen(args)?),
        Limit::CopyLoop => copy_loop::run(&listen(args)?),
        Limit::TlsAccept => tls_accept::run(&listen(args)?),
        Limit::UdpRuns => udp_runs::run(&bind(args)?),
        Limit::UdpMany => udp_many::run(&bind(args)?),
    }
}

fn listen(args: &LimitArgs) -> Result<TcpListener> {
    let listener = TcpListener::bind((args.address, args.port))?;
    tell(listener.local_addr()?.port());
    Ok(listener)
}

fn bind(args: &LimitArgs) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((args.address, args.port))?;
    crate::host::enlarge_buffers(&socket, KERNEL_BUFFER_LEN)?;
    tell(socket.local_addr()?.port());
    Ok(socket)
}

fn tell(port: u16) {
    crate::event(&serde_json::json!({ "event": "listening", "port": port }));
}

/// Where a datagram from `from` goes: to the same host, to the other port of a pair.
fn partner(from: SockaddrIn) -> SockaddrIn {
    let from = SocketAddrV4::from(from);
    SocketAddrV4::new(*from.ip(), from.port() ^ 1).into()
}
