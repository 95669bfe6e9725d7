//! Idle load: many clients that each exchange a frame and then hold still, and the memory they cost.
//!
//! Owns the clients for as long as it runs, in a process of its own: client and server each need a
//! descriptor per connection. Reads the server's resident memory before the first client and after the
//! last frame. Called by the runner.

use crate::hello::{Dialer, Hello, Identity};
use crate::host;
use crate::link::{Link, Scratch, split_frame};
use crate::load::is_packet;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::net::SocketAddrV4;
use std::time::Duration;
use wire::derp::{RECV_HEAD_LEN, send_head};
use wire::key::Key;

/// Packet bytes of the one frame that every client exchanges.
const PACKET_LEN: usize = 64;

/// How many clients, and where.
#[derive(Args, Clone, Debug)]
pub(crate) struct IdleArgs {
    /// Server to connect to.
    #[arg(long)]
    server: SocketAddrV4,
    /// What a client says first.
    #[arg(long, value_enum, default_value = "derp")]
    hello: Hello,
    /// Clients; an even number.
    #[arg(long, default_value_t = 10_000)]
    clients: usize,
    /// Seconds to wait after the last frame before memory is read.
    #[arg(long, default_value_t = 3.0)]
    settle: f64,
    /// Process whose resident memory is read.
    #[arg(long)]
    server_pid: u32,
    /// Core to stay on.
    #[arg(long)]
    core: Option<usize>,
}

/// What holding the clients costs the server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct IdleReport {
    /// Clients held.
    pub(crate) clients: u64,
    /// The server's resident memory without clients, in bytes.
    pub(crate) resident_before_bytes: u64,
    /// The same with all of them, after each has exchanged a frame.
    pub(crate) resident_after_bytes: u64,
    /// The difference for one client.
    pub(crate) bytes_per_client: f64,
}

/// Connects, exchanges, settles, and prints the report as one line of JSON.
pub(crate) fn main(args: &IdleArgs) -> Result<()> {
    ensure!(args.clients >= 2 && args.clients.is_multiple_of(2), "--clients is an even number");
    let descriptors = host::lift_descriptor_limit()?;
    ensure!(descriptors > args.clients as u64 + 64, "the file limit of {descriptors} is too low");
    if let Some(core) = args.core {
        host::pin(&[core])?;
    }
    let before = host::resident_bytes(args.server_pid)?;
    let mut dialer = Dialer::new(args.server, args.hello, false)?;
    let mut scratch = Scratch::default();
    let mut clients = Vec::with_capacity(args.clients);
    for number in 0..args.clients {
        let identity = Identity::generate();
        let link =
            dialer.dial(&identity, &mut scratch).with_context(|| format!("client {number}"))?;
        clients.push((identity.public, link));
    }
    for pair in clients.chunks_exact_mut(2) {
        let [(a, a_link), (b, b_link)] = pair else { continue };
        exchange(a_link, b_link, b, &mut scratch)?;
        exchange(b_link, a_link, a, &mut scratch)?;
    }
    std::thread::sleep(Duration::from_secs_f64(args.settle));
    let after = host::resident_bytes(args.server_pid)?;
    let report = IdleReport {
        clients: args.clients as u64,
        resident_before_bytes: before,
        resident_after_bytes: after,
        bytes_per_client: after.saturating_sub(before) as f64 / args.clients as f64,
    };
    crate::event(&serde_json::json!({ "event": "result", "idle": report }));
    Ok(())
}

/// Sends one frame and waits until it has come.
fn exchange(from: &mut Link, to: &mut Link, to_key: &Key, scratch: &mut Scratch) -> Result<()> {
    from.push(&[&send_head(to_key, PACKET_LEN)[..], &[1; PACKET_LEN]].concat());
    from.flush()?;
    from.out.release();
    loop {
        let bytes = to.receive(scratch)?.context("the frame did not come in time")?;
        let arrived = std::iter::successors(split_frame(bytes), |(_, rest)| split_frame(rest))
            .any(|(frame, _)| is_packet(frame) && frame.len() == RECV_HEAD_LEN + PACKET_LEN);
        if arrived {
            to.keep(&[]);
            return Ok(());
        }
        to.keep(bytes);
    }
}
