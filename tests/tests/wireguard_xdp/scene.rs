//! A relay between hosts: its network, its process, and what it says it did.
//!
//! Owns the way from a mode to a running relay in its namespace. Every scenario calls it.

use std::path::Path;

use tests::metrics::Metrics;
use tests::netns::{Family, Net, Plan};
use tests::process::{Process, eventually, program};
use tests::relay::Relay;
use tests::scratch::Scratch;
use tests::wireguard::{ALICE, BOB, Identity, Peer, configuration, ping};

/// A family of metrics: what became of packets that a program saw.
pub(crate) const OUTCOMES: &str = "relay_xdp_packets_total";

/// Alice and bob, each behind an interface of the relay's.
pub(crate) const APART: &[&[&str]] = &[&["alice"], &["bob"]];
/// Alice and bob behind one interface.
pub(crate) const TOGETHER: &[&[&str]] = &[&["alice", "bob"]];

/// How the relay is to attach its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Native,
    Generic,
    Tcx,
    /// Whichever is best, which on virtual cables is tcx.
    Auto,
    Off,
}

impl Mode {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tcx => "tcx",
            Self::Auto => "auto",
            Self::Off => "off",
        }
    }

    /// Relay cores, so that scenarios see one and several.
    const fn cores(self) -> &'static str {
        match self {
            Self::Native | Self::Auto | Self::Off => "2",
            Self::Generic | Self::Tcx => "1",
        }
    }
}

/// See the module. Fields are dropped in this order: the relay before its network.
pub(crate) struct Scene {
    pub(crate) relay: Relay,
    pub(crate) net: Net,
    pub(crate) scratch: Scratch,
    pub(crate) mode: Mode,
    interfaces: usize,
}

impl Scene {
    /// A relay for alice and bob on these networks, or `None` where there may be none, which is said.
    pub(crate) fn new(mode: Mode, lans: &[&[&str]]) -> Option<Self> {
        let plan = Plan { lans, whole_checksums: true, xdp: mode != Mode::Off };
        Self::with(mode, &plan, &[], Process::start)
    }

    /// As [`Scene::new`], on this network, with these arguments, too, and started by `launch`.
    pub(crate) fn with(
        mode: Mode,
        plan: &Plan<'_>,
        more: &[&str],
        launch: impl FnOnce(&[&str]) -> Process + Send,
    ) -> Option<Self> {
        let net = Net::new(plan)?;
        let scratch = Scratch::new();
        let interfaces = plan.lans.len();
        let file = write_configuration(&scratch, interfaces, &[ALICE, BOB], &[[ALICE, BOB]]);
        let args = arguments(mode, interfaces, &file);
        let args: Vec<_> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let relay = start(&net, &args, launch);
        Some(Self { relay, net, scratch, mode, interfaces })
    }

    /// The arguments that it was started with, but for those of its own.
    pub(crate) fn arguments(&self) -> Vec<String> {
        arguments(self.mode, self.interfaces, text_of(&self.scratch.path(FILE)))
    }

    /// Writes peers and links anew, for a reload.
    pub(crate) fn register(&self, peers: &[Identity], links: &[[Identity; 2]]) {
        write_configuration(&self.scratch, self.interfaces, peers, links);
    }

    /// A peer on the host of its name, or on that of the other if it has none.
    pub(crate) fn peer(&self, own: Identity, other: Identity, family: Family) -> Peer {
        Peer::new(own, other, self.net.host(own.name).socket(family))
    }

    /// Alice and bob, who have met, and whose packets go the way of this mode.
    pub(crate) fn pair(&self, family: Family) -> (Peer, Peer) {
        let mut alice = self.peer(ALICE, BOB, family);
        let mut bob = self.peer(BOB, ALICE, family);
        bob.begin();
        ping(&mut alice, &mut bob, b"hello");
        ping(&mut bob, &mut alice, b"hello yourself");
        self.settle(&mut alice, &mut bob);
        (alice, bob)
    }

    /// Waits until the fast path has the two flows of a session, or does not want to.
    pub(crate) fn until_flows_are_known(&self) {
        if self.mode == Mode::Off {
            return;
        }
        eventually("flows in the fast path", || {
            match self.metrics().sum("relay_xdp_flows", &[]) {
                0 | 1 => Err("not both yet"),
                _ => Ok(()),
            }
            .map_err(str::to_owned)
        });
    }

    /// Waits until packets of the two go the way of this mode, in both directions.
    pub(crate) fn settle(&self, alice: &mut Peer, bob: &mut Peer) {
        if self.mode == Mode::Off {
            return;
        }
        eventually("data by way of XDP", || {
            let before = by_sockets(&self.metrics());
            alice.inbox.clear();
            bob.inbox.clear();
            ping(alice, bob, b"fast?");
            ping(bob, alice, b"fast!");
            match by_sockets(&self.metrics()) - before {
                0 => Ok(()),
                more => Err(format!("{more} of 2 or more by the sockets")),
            }
        });
    }

    pub(crate) fn metrics(&self) -> Metrics {
        self.net.relay.within(|| self.relay.metrics())
    }

    /// Waits until all of so many packets of data, sent since `before`, have gone the way of this
    /// mode. What XDP did is known a second later.
    pub(crate) fn went_its_way(&self, before: &Metrics, packets: u64) {
        let forwarded = |metrics: &Metrics| {
            metrics.sum("relay_packets_forwarded_total", &["proto=\"wireguard\""])
        };
        eventually("packets that went their way", || {
            let now = self.metrics();
            let by_xdp = fast(&now) - fast(before);
            let forwarded = forwarded(&now) - forwarded(before);
            let enough = match self.mode {
                Mode::Off => by_xdp == 0 && forwarded >= packets,
                Mode::Native | Mode::Generic | Mode::Tcx | Mode::Auto => by_xdp >= packets,
            };
            let told = format!("{packets} sent, {forwarded} forwarded, {by_xdp} by XDP");
            if enough { Ok(()) } else { Err(told) }
        });
    }

    /// Waits until every packet has its fate and all that `peers` sent is on the link's account.
    pub(crate) fn adds_up(&self, peers: [&Peer; 2]) {
        let packets = peers.iter().map(|peer| peer.data).sum::<u64>();
        let bytes = peers.iter().map(|peer| peer.data_bytes).sum::<u64>();
        let handshakes = peers.iter().map(|peer| peer.handshakes as u64).sum::<u64>();
        eventually("sums that come out", || {
            let metrics = self.metrics();
            metrics.balance()?;
            let link = |unit| {
                let family = format!("relay_wireguard_link_{unit}_total");
                metrics.sum(&family, &["link=\"alice/bob\""])
            };
            let counted = (link("packets"), link("bytes"));
            if counted != (packets, bytes) {
                return Err(format!("the link has {counted:?} of {:?}", (packets, bytes)));
            }
            let seen = metrics.sum(OUTCOMES, &[]);
            let wanted = if self.mode == Mode::Off { 0 } else { packets + handshakes };
            if seen == wanted { Ok(()) } else { Err(format!("XDP saw {seen} of {wanted}")) }
        });
    }
}

/// Datagrams of WireGuard that came to the sockets, so far.
fn by_sockets(metrics: &Metrics) -> u64 {
    let sum = |labels: &[&str]| metrics.sum("relay_packets_received_total", labels);
    let labels = ["proto=\"wireguard\"", "path=\"xdp\""];
    sum(&labels[..1]) - sum(&labels)
}

/// Datagrams that XDP sent on, so far.
pub(crate) fn fast(metrics: &Metrics) -> u64 {
    let count = |outcome| metrics.sum(OUTCOMES, &[outcome]);
    count("outcome=\"forwarded\"") + count("outcome=\"redirected\"")
}

/// Starts a relay in its namespace, the process by `launch`, and waits until it is ready.
pub(crate) fn start(
    net: &Net,
    args: &[&str],
    launch: impl FnOnce(&[&str]) -> Process + Send,
) -> Relay {
    // Built, if it must be, where there is a network.
    let _ = program();
    net.relay.within(|| Relay::from_process(launch(args)))
}

/// What a relay is told that attaches to the first `interfaces` networks in this mode.
pub(crate) fn arguments(mode: Mode, interfaces: usize, file: &str) -> Vec<String> {
    let mut args = vec!["--config", file, "--cores", mode.cores(), "--log-format", "json"];
    args.extend(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
    args.extend(["--xdp", mode.name()]);
    let mut args: Vec<_> = args.into_iter().map(str::to_owned).collect();
    for lan in 1..=interfaces {
        args.extend(["--xdp-interface".to_owned(), format!("lan{lan}")]);
    }
    args
}

/// The file that [`write_configuration`] writes.
const FILE: &str = "relay.toml";

/// A configuration for these peers and links. With one interface the relay listens on every address
/// it has, with several on each of theirs.
pub(crate) fn write_configuration(
    scratch: &Scratch,
    interfaces: usize,
    peers: &[Identity],
    links: &[[Identity; 2]],
) -> String {
    let each = (1..=interfaces).flat_map(|lan| {
        [format!("\"10.77.{lan}.1:3478\""), format!("\"[fd77:0:0:{lan}::1]:3478\"")]
    });
    let listen = match interfaces {
        1 => "\"[::]:3478\"".to_owned(),
        _ => each.collect::<Vec<_>>().join(", "),
    };
    text_of(&scratch.write(FILE, configuration(&listen, peers, links))).to_owned()
}

pub(crate) fn text_of(path: &Path) -> &str {
    path.to_str().expect("scratch paths are UTF-8")
}
