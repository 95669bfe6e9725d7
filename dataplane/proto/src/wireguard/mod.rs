//! The WireGuard relay: any number of stock peers behind one UDP port, nothing ever decrypted.
//!
//! [`Registrations`] say who exists and who may talk to whom. [`Relay`] owns the truth: it follows
//! handshakes, learns where peers are and says which flows exist. It sees rare packets only.
//! [`Flows`] is the data table, a replica of that truth for each core; the XDP map is one more. No
//! clock, no entropy (invariant 1). What a peer must have configured is `Endpoint = relay`.
//!
//! The rules by which places become endpoints stand at [`Relay`].

mod flows;
mod handshakes;
mod mac;
mod pairs;
mod registrations;
mod relay;
mod roster;
mod strikes;

use alloc::vec::Vec;
use core::hash::{Hash, Hasher};
use core::net::{IpAddr, SocketAddr, SocketAddrV6};
use core::time::Duration;

use wire::drop::DropReason;
use wire::key::Key;
pub use wire::wireguard::Index;

pub use flows::Flows;
pub use mac::mac1;
pub use registrations::{Limits, RegistrationFault, Registrations};
pub use relay::{Counters, Relay};

/// Copies of one initiation that leave at most, to different places where its addressee may be.
pub const FAN_OUT_MAX: usize = 4;

/// One of our own UDP sockets: the index of its address among the configured ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct PortId(pub u8);

/// Where a datagram comes from or goes to: one of our sockets, and the other side's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    port: PortId,
    /// Canonical: no IPv4 mapped into IPv6, no flow label.
    remote: SocketAddr,
}

impl Place {
    /// A place. IPv4 mapped into IPv6 becomes IPv4, and an IPv6 flow label is left out, so that one
    /// remote is one place.
    #[inline]
    #[must_use]
    pub fn new(port: PortId, remote: SocketAddr) -> Self {
        let remote = match (remote.ip().to_canonical(), remote) {
            (IpAddr::V6(ip), SocketAddr::V6(it)) => {
                SocketAddr::V6(SocketAddrV6::new(ip, it.port(), 0, it.scope_id()))
            }
            (ip, it) => SocketAddr::new(ip, it.port()),
        };
        Self { port, remote }
    }

    /// Our socket.
    #[inline]
    #[must_use]
    pub const fn port(self) -> PortId {
        self.port
    }

    /// The other side.
    #[inline]
    #[must_use]
    pub const fn remote(self) -> SocketAddr {
        self.remote
    }

    /// The network that an abuser is taken to own: /24 of IPv4, /56 of IPv6.
    fn prefix(self) -> Prefix {
        match self.remote.ip() {
            IpAddr::V4(ip) => Prefix(u64::from(ip.to_bits() >> 8)),
            IpAddr::V6(ip) => Prefix(1 << 56 | (ip.to_bits() >> 72) as u64),
        }
    }
}

/// In two words, which is what the data path pays for. IPv6 scopes are left to `Eq`.
impl Hash for Place {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (family, ip) = match self.remote.ip() {
            IpAddr::V4(ip) => (0, u128::from(ip.to_bits())),
            IpAddr::V6(ip) => (1 << 32, ip.to_bits()),
        };
        state.write_u128(ip);
        state.write_u64(family | u64::from(self.port.0) << 16 | u64::from(self.remote.port()));
    }
}

/// A network as a number that no other network has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix(u64);

/// An allowed pair of peers. Dense: below [`Limits::links_max`], and reused after
/// [`FlowChange::Forget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct LinkId(pub u32);

impl LinkId {
    /// Index into a table of links.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a data packet is recognised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// Where it comes from.
    pub from: Place,
    /// Its receiver index.
    pub receiver: Index,
}

/// Where the packets of a flow go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTarget {
    /// The other peer's place.
    pub to: Place,
    /// On whose account.
    pub link: LinkId,
}

/// A change of the data table, to be applied to every replica in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowChange {
    /// Packets with this key go there from now on.
    Add(FlowKey, FlowTarget),
    /// Packets with this key are unknown from now on.
    Remove(FlowKey),
    /// The link is no more, its flows are removed already; its number may be used again.
    Forget(LinkId),
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes, unchanged, to every place in [`Effects::copies`], of which there is at least one.
    Sent,
    /// It goes nowhere.
    Drop(DropReason),
}

/// What the caller has to do after a call. Every call empties it first; keep one for all calls.
#[derive(Debug, Default)]
pub struct Effects {
    /// Where the datagram goes, at most [`FAN_OUT_MAX`] different places.
    pub copies: Vec<Place>,
    /// Changes of the data table, in order. One datagram makes at most 8.
    pub flows: Vec<FlowChange>,
    /// The link on whose account a data packet goes; `None` for handshakes.
    pub link: Option<LinkId>,
    /// Keys that were tried to find out for whom the datagram is, each under a microsecond's work.
    pub tried: usize,
}

impl Effects {
    fn clear(&mut self) {
        self.copies.clear();
        self.flows.clear();
        self.link = None;
        self.tried = 0;
    }
}

/// A peer as an operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its public key.
    pub key: Key,
    /// Where it is, if it completed an exchange from anywhere.
    pub endpoint: Option<Place>,
}

/// A link as an operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// Its number.
    pub link: LinkId,
    /// Public keys of the two peers, the smaller one first.
    pub peers: [Key; 2],
    /// Sessions of the two that are relayed. One or two are usual.
    pub sessions: usize,
}

/// A relayed session, for a successor that is to go on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Public keys of initiator and responder.
    pub peers: [Key; 2],
    /// What the initiator sends.
    pub forth: FlowKey,
    /// What the responder sends.
    pub back: FlowKey,
    /// How much longer it lasts.
    pub left: Duration,
}
