//! The generator of datagrams: a flood that costs little, and what became of it.
//!
//! Owns one measurement: flows that the server knows, frames made in the kernel (or runs from sockets), a
//! sink that counts what comes back. `peers` and `turn` make the flows, `frame` their frames, `lab` has the
//! programs, `window` the counting. The server is behind a virtual Ethernet pair, in a network of its own;
//! a second pair leads to a program that throws away, which is the floor. Called by `fastpath`.

mod frame;
mod lab;
mod peers;
mod turn;
mod window;

pub(crate) use peers::public_key;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use lab::{HEADS_MAX, Lab, Wanted};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;
use wire::stun::{TxId, parse_answer, request};

/// Our end of the pair to the server, and the server's.
pub(crate) const OWN: &str = "l0";
pub(crate) const SERVER: &str = "r0";
/// The same of the pair to the floor.
pub(crate) const OWN_FLOOR: &str = "l1";
pub(crate) const FLOOR: &str = "r1";
/// Stations of [`OWN`] and [`SERVER`].
pub(crate) const OWN_STATION: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(crate) const SERVER_STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Our address on [`OWN`].
pub(crate) const OWN_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// First of the many that ask STUN (RFC 2544 keeps the network for benches).
const ASKERS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// First port of the flows; even ones belong with the odd ones after them.
const PORTS: u16 = 20_000;
/// WireGuard's type 4, with which all that is relayed here begins.
const DATA: [u8; 4] = [4, 0, 0, 0];
/// A binding answer's type and its length with a mapped IPv4 address.
const ANSWER: [u8; 4] = [1, 1, 0, 12];

/// What the flows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Content {
    /// Binding requests of Tailscale's form, each from another address.
    Stun,
    /// WireGuard data of pairs that did a handshake through the server.
    Wireguard,
    /// TURN channel data.
    Turn,
    /// The same bytes as WireGuard data, from pairs of ports that the server knows nothing of.
    Plain,
}

/// What to send, to whom, for how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct FloodArgs {
    /// What the flows are.
    #[arg(value_enum)]
    content: Content,
    /// Server to send to.
    #[arg(long)]
    server: SocketAddrV4,
    /// Process whose CPU time is read.
    #[arg(long)]
    server_pid: u32,
    /// Its core, and ours.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// Core to stay on.
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// A process in the server's network.
    #[arg(long)]
    network: u32,
    /// Flows, a power of two.
    #[arg(long, default_value_t = 64)]
    flows: usize,
    /// Bytes of a datagram, without channel header; STUN's are as they are.
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// Frames of one flow that follow one another, a power of two.
    #[arg(long, default_value_t = 1)]
    burst: usize,
    /// Send runs of so many datagrams from sockets instead of frames from the kernel.
    #[arg(long)]
    run: Option<usize>,
    /// The server answers from its driver: count there, too.
    #[arg(long)]
    driver: bool,
    /// XDP is to do the work: wait until it can, and see that it did.
    #[arg(long, requires = "metrics_port")]
    by_xdp: bool,
    /// Let frames into the server's stack by a program that passes everything, where nothing else does.
    #[arg(long)]
    pass: bool,
    /// Send at the highest rate of which at most this share is lost; without it as fast as can be.
    #[arg(long)]
    loss_max: Option<f64>,
    /// Port at which the server's metrics are read, to see which way packets went.
    #[arg(long)]
    metrics_port: Option<u16>,
    /// Seconds before counting starts.
    #[arg(long, default_value_t = 0.3)]
    warm_up: f64,
    /// Seconds that count.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

/// What one run found. CPU times are of processes and of the soft interrupts that ran on their account.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FloodReport {
    /// Length of the counted window.
    pub(crate) seconds: f64,
    /// Packets sent a second.
    pub(crate) offered_per_second: f64,
    /// Packets that came back, or through, a second.
    pub(crate) packets_per_second: f64,
    /// Of those sent, the share that did not.
    pub(crate) lost_share: f64,
    /// Packets that came with something else in them.
    pub(crate) errors: u64,
    /// Frames skipped by the generator for each one sent.
    pub(crate) skipped: f64,
    /// The server's CPU time over the window's length.
    pub(crate) server_busy: f64,
    /// The server's CPU time for a packet that came through, in nanoseconds.
    pub(crate) server_ns: f64,
    /// The generator's and the sink's for a packet sent.
    pub(crate) load_ns: f64,
    /// The same when the other end throws every frame away.
    pub(crate) floor_ns: f64,
    /// What a packet costs altogether, less the floor.
    pub(crate) packet_ns: f64,
    /// Packets for a second of that.
    pub(crate) packets_per_cpu_second: f64,
    /// Packets for a second of all CPU time spent, the generator's included.
    pub(crate) packets_per_second_of_all: f64,
    /// Packets for a second of the server's CPU time.
    pub(crate) packets_per_server_second: f64,
    /// Of the packets that came through, the share that XDP counts as its own.
    pub(crate) by_xdp: f64,
}

/// Packets of one source, and where they come from.
pub(super) struct Flow {
    pub(super) source: SocketAddrV4,
    pub(super) datagram: Vec<u8>,
    /// The socket it was made known with; its port stays taken.
    pub(super) socket: Option<UdpSocket>,
}

/// Runs the flood and prints its report as one line of JSON.
pub(crate) fn main(args: &FloodArgs) -> Result<()> {
    ensure!(args.flows.is_power_of_two() && args.flows > 1, "--flows is a power of two");
    ensure!(args.burst.is_power_of_two(), "--burst is a power of two");
    ensure!(args.flows * args.burst <= HEADS_MAX, "--flows times --burst is at most {HEADS_MAX}");
    crate::host::lift_descriptor_limit()?;
    crate::host::pin(&[args.core])?;
    let mut lab = Lab::load()?;
    if args.driver {
        lab.attach("sink", OWN)?;
    } else {
        lab.attach_stack_sink(OWN)?;
    }
    // Takes what comes by redirection, which is nothing, but opens the way for it.
    lab.attach("pass", OWN_FLOOR)?;
    lab.attach_in(args.network, "discard", FLOOR)?;
    if args.pass {
        lab.attach_in(args.network, "pass", SERVER)?;
    }
    lab.set_exit(0, OWN)?;
    lab.set_exit(1, OWN_FLOOR)?;
    if args.by_xdp {
        window::wait_until_attached(args)?;
    }
    let (flows, wanted) = flows(args).context("making the flows")?;
    let report = window::measure(args, &mut lab, &flows, wanted)?;
    crate::event(&serde_json::json!({ "event": "result", "flood": report }));
    Ok(())
}

/// The flows, known to the server, and what comes of them.
fn flows(args: &FloodArgs) -> Result<(Vec<Flow>, Wanted)> {
    let source = args.server.port();
    let ports = [PORTS, PORTS + args.flows as u16 * 2 - 1];
    let address = |at: usize| SocketAddrV4::new(OWN_ADDRESS, PORTS + at as u16);
    let from_server = Wanted { source, targets: ports, word: DATA };
    let plain = || [&DATA[..], &[0x5a; 12], &vec![0x5a; args.size.saturating_sub(16)]].concat();
    match args.content {
        Content::Stun => {
            probe(args.server)?;
            let wanted = Wanted { source, targets: [1, u16::MAX], word: ANSWER };
            Ok(((0..args.flows).map(asker).collect(), wanted))
        }
        Content::Wireguard => {
            let mut flows = Vec::new();
            for pair in 0..args.flows / 2 {
                let ends = [address(2 * pair), address(2 * pair + 1)];
                flows.extend(peers::pair(pair, ends, args.server, args.size)?);
            }
            Ok((flows, from_server))
        }
        Content::Turn => {
            let ends = (0..args.flows).map(|at| (address(2 * at), address(2 * at + 1)));
            let channel = |(own, peer)| turn::channel(own, args.server, peer, &plain());
            let flows: Result<_> = ends.map(channel).collect();
            Ok((flows?, Wanted { source: 0, ..from_server }))
        }
        Content::Plain => {
            let flow = |at| -> Result<Flow> {
                let socket = UdpSocket::bind(address(at))?;
                socket.connect(args.server)?;
                Ok(Flow { source: address(at), datagram: plain(), socket: Some(socket) })
            };
            Ok(((0..args.flows).map(flow).collect::<Result<_>>()?, from_server))
        }
    }
}

/// One of the many that ask STUN.
fn asker(number: usize) -> Flow {
    let ip = Ipv4Addr::from_bits(ASKERS.to_bits() + 1 + number as u32);
    let source = SocketAddrV4::new(ip, 1024 + number as u16);
    Flow { source, datagram: request(TxId([7; 12])).to_vec(), socket: None }
}

/// Sees that the server answers, over a real socket.
fn probe(server: SocketAddrV4) -> Result<()> {
    let socket = UdpSocket::bind((OWN_ADDRESS, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(&request(TxId([9; 12])), server)?;
    let mut bytes = [0; 100];
    let (len, from) = socket.recv_from(&mut bytes).context("no STUN answer")?;
    let answer = parse_answer(&bytes[..len]).ok().context("no STUN answer but something else")?;
    let right = from == server.into() && answer.address == socket.local_addr()?;
    ensure!(right, "a wrong STUN answer: {answer:?} from {from}");
    Ok(())
}
