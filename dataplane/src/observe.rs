//! Every counter and gauge of the process, in one place.
//!
//! Owns the cells, their closed label sets and both renderings: Prometheus text under our names
//! ([`Registry::prometheus`]) and derper's names ([`Registry::varz`], [`Registry::vars`]). No label
//! ever holds a key, an address or a host. Workers write [`CoreCounters`] of their own core, the
//! front writes [`FrontCounters`]; the metrics pages read everything at any time.

mod derper;
mod fast_path;
mod labels;
mod links;
mod process;
mod prometheus;
mod steer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use wire::drop::DropReason;

pub use fast_path::{Attachment, FastPathCells};
pub use labels::{
    CloseReason, Family, HandshakeResult, Limit, LoginFailure, PacketKind, Route, Scheme,
    SocketReason, StunOutcome, TlsVersion, Upgrade, WireguardEvent,
};
pub use links::{LinkCells, Links};
pub use prometheus::CONTENT_TYPE;
pub use steer::SteerCells;

/// A number that exactly one thread writes and any thread reads.
///
/// Writing is a load and a store, without the bus lock of a read-modify-write.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Counts `n` more.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Counts one more.
    #[inline]
    pub fn increment(&self) {
        self.add(1);
    }

    /// Takes one off a gauge.
    #[inline]
    pub fn decrement(&self) {
        self.add(u64::MAX);
    }

    /// Sets a gauge.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The present value.
    #[inline]
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that any thread writes and reads.
#[derive(Debug, Default)]
pub struct SharedCell(AtomicU64);

impl SharedCell {
    /// Counts one more.
    #[inline]
    pub fn increment(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Sets a gauge.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The present value.
    #[inline]
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Packets and their bytes. Of DERP those are payload bytes, without framing.
#[derive(Debug, Default)]
pub struct Tally {
    /// Packets.
    pub packets: Cell,
    /// Bytes.
    pub bytes: Cell,
}

impl Tally {
    /// Counts `packets` more, of `bytes` bytes in all.
    #[inline]
    pub fn add(&self, packets: u64, bytes: u64) {
        self.packets.add(packets);
        self.bytes.add(bytes);
    }

    /// The present packets and bytes.
    #[must_use]
    pub fn value(&self) -> (u64, u64) {
        (self.packets.value(), self.bytes.value())
    }
}

/// What one core counts. Its worker is the only writer, also of sessions that another core owns.
///
/// Aligned to two cache lines, which adjacent-line prefetch fetches together, so that no two cores
/// write the same one.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CoreCounters {
    /// Packets read from DERP clients: relayed packets and pings.
    pub packets_received: Cell,
    /// Packets written to the connection of their destination.
    pub packets_forwarded: Cell,
    /// Packets that the relay answered itself: pings that got their pong.
    pub packets_answered: Cell,
    /// Payload bytes of `packets_received`, without framing.
    pub bytes_received: Cell,
    /// Payload bytes of `packets_forwarded`, without framing.
    pub bytes_forwarded: Cell,
    /// Packets and bytes not sent, by reason and kind; see [`CoreCounters::count_drop`].
    pub dropped: [[Tally; PacketKind::COUNT]; DropReason::COUNT],
    /// Relayed packets received that look like disco.
    pub disco_received: Cell,
    /// Pings read from clients.
    pub pings: Cell,
    /// Pongs written to clients.
    pub pongs: Cell,
    /// Frames of a type this version does not know, skipped.
    pub unknown_frames: Cell,
    /// `PeerGone` frames because a peer's last connection ended.
    pub peer_gone_disconnected: Cell,
    /// `PeerGone` frames because a peer is not connected here.
    pub peer_gone_not_here: Cell,
    /// Sessions that this core took over from the front.
    pub sessions_opened: Cell,
    /// Sessions that this core closed, by reason.
    pub sessions_closed: [Cell; CloseReason::COUNT],
    /// Sessions closed because a write made no progress in time.
    pub write_timeouts: Cell,
    /// `KeepAlive` frames written.
    pub keepalives: Cell,
    /// Sessions that made this relay their home after having said otherwise.
    pub home_moves_in: Cell,
    /// Sessions that made another relay their home.
    pub home_moves_out: Cell,
    /// Turns of the worker's loop.
    pub rounds: Cell,
    /// Sends of one connection's gathered records.
    pub flushes: Cell,
    /// TLS records sealed.
    pub records_sealed: Cell,
    /// Sends that the socket took only in part or not at all.
    pub send_pending: Cell,
    /// Receives that found the buffer pool empty.
    pub enobufs: Cell,
    /// STUN datagrams by outcome and address family; see [`CoreCounters::count_stun`].
    pub stun: [[Cell; Family::COUNT]; StunOutcome::COUNT],
    /// WireGuard datagrams read by this core or judged here for another.
    pub wireguard_received: Tally,
    /// WireGuard datagrams sent on, each once however many copies left.
    pub wireguard_forwarded: Tally,
    /// Copies of WireGuard handshakes beyond the first of each.
    pub wireguard_copies: Cell,
    /// WireGuard datagrams given to the core that owns the relay, which counts their fate.
    pub wireguard_handed_over: Cell,
    /// WireGuard initiations that came to an address of ours for which there was no number left.
    pub wireguard_unnumbered: Cell,
    /// Runs of WireGuard data given to the kernel as one.
    pub wireguard_runs: Cell,
    /// What the relay counts, as of its last look at the clock. On the core that owns it.
    pub wireguard_events: [Cell; WireguardEvent::COUNT],
    /// Gauge: WireGuard handshakes that wait for their completion, as of that look.
    pub wireguard_handshakes: Cell,
    /// Gauge: places and networks that are watched for junk, as of that look.
    pub wireguard_watched: Cell,
    /// Gauge: WireGuard flows that the relay knows.
    pub wireguard_flows: Cell,
    /// Gauge: sessions owned by this core.
    pub sessions: Cell,
    /// Gauge: sessions whose client calls this relay its home.
    pub home_sessions: Cell,
    /// Gauge: sessions whose client would rather have reached another node of the region.
    pub notideal_sessions: Cell,
}

impl CoreCounters {
    /// Counts one packet of `bytes` payload bytes as dropped.
    #[inline]
    pub fn count_drop(&self, reason: DropReason, kind: PacketKind, bytes: u64) {
        self.count_drops(reason, kind, 1, bytes);
    }

    /// Counts `packets` packets of `bytes` payload bytes in all as dropped.
    #[inline]
    pub fn count_drops(&self, reason: DropReason, kind: PacketKind, packets: u64, bytes: u64) {
        self.dropped[reason.index()][kind.index()].add(packets, bytes);
    }

    /// Counts one STUN datagram of `bytes` bytes, also as dropped if `outcome` is a drop.
    #[inline]
    pub fn count_stun(&self, outcome: StunOutcome, family: Family, bytes: u64) {
        self.stun[outcome.index()][family.index()].increment();
        if let Some(reason) = outcome.drop_reason() {
            self.count_drop(reason, PacketKind::Other, bytes);
        }
    }

    /// The two sides of the conservation law (invariant 4). They are equal when no packet waits.
    #[must_use]
    pub fn flow(&self) -> Flow {
        let stun = self.stun.iter().flatten().map(Cell::value).sum::<u64>();
        let stun_answered: u64 =
            self.stun[StunOutcome::Success.index()].iter().map(Cell::value).sum();
        let wireguard = [&self.wireguard_received, &self.wireguard_forwarded];
        let [wireguard_received, wireguard_forwarded] = wireguard.map(|it| it.packets.value());
        Flow {
            received: self.packets_received.value() + stun + wireguard_received,
            forwarded: self.packets_forwarded.value() + wireguard_forwarded,
            answered: self.packets_answered.value() + stun_answered,
            dropped: self.dropped.iter().flatten().map(|dropped| dropped.packets.value()).sum(),
        }
    }
}

/// Packets of every protocol by fate, the terms of the conservation law.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Packets read from the network.
    pub received: u64,
    /// Packets sent on to a peer.
    pub forwarded: u64,
    /// Packets answered by the relay itself.
    pub answered: u64,
    /// Packets with a drop reason.
    pub dropped: u64,
}

impl Flow {
    /// Packets received whose fate is still open, that is, which wait in a queue.
    #[must_use]
    pub fn waiting(&self) -> i64 {
        let fated = self.forwarded + self.answered + self.dropped;
        self.received.wrapping_sub(fated).cast_signed()
    }
}

/// What the front counts, and the gauges that no single core owns.
#[derive(Debug, Default)]
pub struct FrontCounters {
    /// Connections accepted, by what their listener speaks.
    pub accepts: [SharedCell; Scheme::COUNT],
    /// Connections closed at once, by the limit they met.
    pub accept_rejected: [SharedCell; Limit::COUNT],
    /// TLS handshakes ended, by result and version.
    pub tls_handshakes: [[SharedCell; TlsVersion::COUNT]; HandshakeResult::COUNT],
    /// Gauge: TLS handshakes under way.
    pub handshakes_open: SharedCell,
    /// HTTP requests by route.
    pub http_requests: [SharedCell; Route::COUNT],
    /// Connections closed because a request head, the first or a later one, took too long.
    pub head_timeouts: SharedCell,
    /// DERP upgrades that became no session, by reason.
    pub login_failures: [SharedCell; LoginFailure::COUNT],
    /// HTTP requests and DERP upgrades by the TLS version they came over.
    pub tls_requests: [SharedCell; TlsVersion::COUNT],
    /// Connections handed over to a relay core, by manner.
    pub upgrades: [SharedCell; Upgrade::COUNT],
    /// `/bootstrap-dns` questions for a name that is published.
    pub bootstrap_hits: SharedCell,
    /// `/bootstrap-dns` questions for a name that is not.
    pub bootstrap_misses: SharedCell,
    /// Certificates loaded anew while running.
    pub certificate_reloads: SharedCell,
    /// Certificates refused while running; the old ones stayed.
    pub certificate_reload_failures: SharedCell,
    /// Peers and links loaded anew while running.
    pub wireguard_reloads: SharedCell,
    /// Peers and links refused while running; the old ones stayed.
    pub wireguard_reload_failures: SharedCell,
    /// Signs of life that a primary side took.
    pub satellite_reports: SharedCell,
    /// Signs of life that no primary side took.
    pub satellite_report_failures: SharedCell,
    /// Gauge: registered WireGuard peers.
    pub wireguard_peers: SharedCell,
    /// Datagrams that the kernel threw away because a socket's buffer was full, as of the last look.
    pub udp_overflows: SharedCell,
    /// Gauge: the earliest expiry of a certificate in use, in seconds since 1970.
    pub certificate_expiry_unix_s: SharedCell,
    /// Gauge: keys with more than one session.
    pub dup_keys: SharedCell,
    /// Gauge: sessions of such keys.
    pub dup_sessions: SharedCell,
    /// Sessions opened for a key that had one already.
    pub dup_sessions_opened: SharedCell,
}

/// What the build and the start decided, for `relay_build_info`.
#[derive(Clone, Copy, Debug)]
pub struct BuildInfo {
    /// Version of the package.
    pub version: &'static str,
    /// Commit it was built from, or `unknown`.
    pub commit: &'static str,
    /// The I/O driver in use: `uring`, `epoll` or `sim`.
    pub io: &'static str,
    /// The TLS library.
    pub tls: &'static str,
}

impl BuildInfo {
    /// The facts of this build, with `io` as chosen at start.
    #[must_use]
    pub const fn new(io: &'static str) -> Self {
        let commit = match option_env!("PERIGEE_COMMIT") {
            Some(commit) => commit,
            None => "unknown",
        };
        Self { version: env!("CARGO_PKG_VERSION"), commit, io, tls: "rustls" }
    }
}

/// All numbers of the process. One exists; the front and every worker share it.
#[derive(Debug)]
pub struct Registry {
    /// One block per relay core, by core index.
    pub cores: Box<[Arc<CoreCounters>]>,
    /// The front's block.
    pub front: FrontCounters,
    /// What WireGuard links have carried.
    pub links: Arc<Links>,
    /// What XDP did.
    pub fast_path: FastPathCells,
    /// What control said.
    pub steer: SteerCells,
    build: BuildInfo,
    started: SystemTime,
}

impl Registry {
    /// A registry of zeros for `cores` relay cores of a process that started at `started`.
    #[must_use]
    pub fn new(cores: usize, build: BuildInfo, started: SystemTime) -> Self {
        Self {
            cores: (0..cores).map(|_| Arc::default()).collect(),
            front: FrontCounters::default(),
            links: Arc::new(Links::new(cores)),
            fast_path: FastPathCells::default(),
            steer: SteerCells::default(),
            build,
            started,
        }
    }

    /// One number summed over all cores.
    fn sum(&self, number: impl Fn(&CoreCounters) -> u64) -> u64 {
        self.cores.iter().map(|core| number(core)).fold(0, u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests;
