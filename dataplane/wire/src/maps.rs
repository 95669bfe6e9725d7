//! What user space and the XDP programs tell each other: keys and values of the eBPF maps.
//!
//! Owns their layout. Each is `repr(C)` without padding, its size asserted here for both sides
//! (invariant 9); user space, which may not reinterpret memory, writes and reads them as bytes
//! through `encode` and `decode`. Fields that are compared with or copied into packets are kept as
//! they lie in a packet, so that the fast path never swaps bytes. The loader, the judge of
//! [`crate::packet`] and the programs in `ebpf/` call it.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::drop::DropReason;

/// Ports served at most; each packet of the host is compared with all of them.
pub const PORTS_MAX: usize = 6;
/// Own addresses that are compared before any table is asked.
pub const NEAR_MAX: usize = 2;
/// Own addresses known at most. Those beyond get their STUN answers from the sockets.
pub const LOCALS_MAX: u32 = 1024;
/// Places for flows, a power of two; 6 MiB. A pair of peers has two flows per key generation. From
/// about half of them on, some flows find no place and stay with the sockets.
pub const PLACES: u32 = 65_536;
/// Cells of statistics at most by default, one for each direction of a link.
pub const CELLS_DEFAULT: u32 = 8_192;
/// Buckets that source prefixes share, per CPU; a power of two.
pub const BUCKETS: u32 = 4_096;
/// Interfaces that packets may leave by, other than the one they came in by.
pub const EXITS_MAX: u32 = 64;

/// Switches in [`Config::features`].
pub mod feature {
    /// Binding requests are answered.
    pub const STUN: u32 = 1;
    /// WireGuard data of known flows is forwarded.
    pub const RELAY: u32 = 2;
    /// Binding requests that would be answered are dropped, so that clients look for another home.
    pub const SHED: u32 = 4;
}

/// An IP address as it lies in a packet, in four words; IPv4 is mapped into IPv6.
///
/// Aligned to eight, as all keys: the compiler joins neighbouring words into one store, and the
/// verifier takes none across the grain of the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct Address(pub [u32; 4]);

/// The third word of an IPv4 address in IPv6.
pub const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// The unspecified address, which no packet comes from.
    pub const NONE: Self = Self([0; 4]);

    /// An IPv4 address from its word.
    #[inline(always)]
    #[must_use]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// Whether it stands for an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.0[0] | self.0[1] == 0 && self.0[2] == MAPPED
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        let ip = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut bytes = Writer::<16>::new();
        bytes.put(ip.octets());
        Self(Reader(&bytes.finish()).words())
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let mut bytes = Writer::<16>::new();
        bytes.words(address.0);
        match Ipv6Addr::from(bytes.finish()).to_canonical() {
            Self::V4(ip) => Self::V4(Ipv4Addr::from(ip.octets())),
            v6 @ Self::V6(_) => v6,
        }
    }
}

/// Map `CONFIG`, an array of one: what the programs do at all. Written by user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// UDP ports served, as in a packet; 0 is no port.
    pub ports: [u16; PORTS_MAX],
    /// Bits of [`feature`].
    pub features: u32,
    /// How fast a source prefix may ask on one CPU.
    pub pace: Pace,
    /// Key of the hash that maps prefixes to buckets, drawn at random; the second is odd.
    pub seed: [u64; 2],
    /// Those of map `LOCAL` that most requests come to, which saves looking it up: a quarter of
    /// what an answer costs. [`Address::NONE`] where there are fewer.
    pub near: [Address; NEAR_MAX],
}

/// A rate, as a bucket applies it without dividing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pace {
    /// Nanoseconds that one packet uses up.
    pub cost_ns: u64,
    /// Nanoseconds by which a prefix may be ahead of its rate: the burst times the cost.
    pub ahead_ns_max: u64,
}

impl Pace {
    /// `per_second` packets a second after a burst of `burst`. A rate of 0 admits nothing.
    #[must_use]
    pub const fn new(per_second: u32, burst: u32) -> Self {
        const SECOND_NS: u64 = 1_000_000_000;
        if per_second == 0 || burst == 0 {
            return Self { cost_ns: u64::MAX, ahead_ns_max: 0 };
        }
        let cost_ns = SECOND_NS.div_ceil(per_second as u64);
        Self { cost_ns, ahead_ns_max: cost_ns.saturating_mul(burst as u64) }
    }

    /// Whether `bucket` lets one more packet through at `now_ns`, which it then counts.
    ///
    /// A bucket holds the moment at which it will be full again. So it is one word, and taking a
    /// packet is one addition.
    #[inline(always)]
    pub const fn admit(&self, bucket: &mut u64, now_ns: u64) -> bool {
        let full_at = if *bucket < now_ns { now_ns } else { *bucket };
        let then = full_at.wrapping_add(self.cost_ns);
        // The first part also refuses a cost that wrapped.
        let admitted = then > now_ns && then - now_ns <= self.ahead_ns_max;
        if admitted {
            *bucket = then;
        }
        admitted
    }
}

impl Config {
    /// Whether `port`, as in a packet, is served.
    #[inline(always)]
    #[must_use]
    pub fn serves(&self, port: u16) -> bool {
        let [a, b, c, d, e, f] = self.ports;
        let any = a == port || b == port || c == port || d == port || e == port || f == port;
        any && port != 0
    }

    /// Whether `address` is one of the nearest.
    #[inline(always)]
    #[must_use]
    pub fn is_near(&self, address: &Address) -> bool {
        let [a, b] = &self.near;
        a == address || b == address
    }

    /// Whether all of `features` are switched on.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, features: u32) -> bool {
        self.features & features == features
    }

    /// The two places in map `FLOW` where a flow may stand, under the secret seed.
    #[inline(always)]
    #[must_use]
    pub const fn places(&self, key: &FlowKey) -> [u32; 2] {
        let [a, b, c, d] = key.source.0;
        const BITS: u32 = PLACES.trailing_zeros();
        let ports = (key.source_port as u32) << 16 | key.local_port as u32;
        let [start, factor] = self.seed;
        let hash = mix(start ^ pair(a, b), factor);
        let hash = mix(hash ^ pair(c, d), factor);
        let hash = mix(hash ^ pair(ports, key.receiver), factor);
        // Only the top of a product has seen all bits, and two numbers are wanted from there.
        let hash = hash.wrapping_mul(factor);
        [(hash >> (64 - BITS)) as u32, (hash >> (64 - 2 * BITS)) as u32 & (PLACES - 1)]
    }

    /// The bucket of a source prefix: two rounds of multiplying and folding under the secret seed.
    #[inline(always)]
    #[must_use]
    pub const fn bucket(&self, prefix: u64) -> u32 {
        let [a, b] = self.seed;
        let once = (prefix ^ a).wrapping_mul(b);
        let twice = (once ^ once >> 32).wrapping_mul(b);
        (twice >> 32) as u32 & (BUCKETS - 1)
    }
}

/// WireGuard data that may pass, by what stands in its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// Whom it comes from.
    pub source: Address,
    /// Receiver index, as in the packet.
    pub receiver: u32,
    /// Port it comes from, as in the packet.
    pub source_port: u16,
    /// Port of ours that it comes to, as in the packet.
    pub local_port: u16,
}

impl FlowKey {
    /// The flow of data that `from` sends to `local` for the session that its receiver calls
    /// `receiver`, a number.
    #[must_use]
    pub fn new(from: SocketAddr, local: SocketAddr, receiver: u32) -> Self {
        Self {
            source: from.ip().into(),
            receiver: receiver.to_le(),
            source_port: from.port().to_be(),
            local_port: local.port().to_be(),
        }
    }
}

#[inline(always)]
const fn pair(a: u32, b: u32) -> u64 {
    (a as u64) << 32 | b as u64
}

/// A round of hashing: the product's high half, which all bits go into, over its low one.
#[inline(always)]
const fn mix(value: u64, factor: u64) -> u64 {
    let product = value.wrapping_mul(factor);
    product ^ product >> 32
}

/// Map `FLOW`, an array of [`PLACES`]. Written by user space, which has authenticated the flow.
///
/// Not one of the kernel's hash maps: looking up in those is a call and costs 24 ns, half of what
/// forwarding does; a lookup in an array is a few instructions of the program itself. The kernel
/// does not write an entry in one piece, so a writer first empties it, then writes the hop with no
/// key, then both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// With [`Address::NONE`] as its source the place is free.
    pub key: FlowKey,
    /// Where it goes.
    pub hop: Hop,
}

impl Flow {
    /// Bytes of the value.
    pub const LEN: usize = FlowKey::LEN + Hop::LEN;
    /// A free place.
    pub const FREE: [u8; Self::LEN] = [0; Self::LEN];

    /// As map memory has it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = Writer::new();
        out.put(self.key.encode());
        out.put(self.hop.encode());
        out.finish()
    }

    /// From map memory; `None` if the place is free.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let mut bytes = Reader(bytes);
        let key = FlowKey::decode(&bytes.take());
        let hop = Hop::decode(&bytes.take());
        (key.source != Address::NONE).then_some(Self { key, hop })
    }
}

/// How a forwarded packet leaves, in [`Hop::exit`].
pub mod exit {
    /// To the station it came from, by the interface it came in by: right where all peers are
    /// behind one router.
    pub const BACK: u32 = 0;
    /// To the station in [`super::Hop::stations`], by the interface it came in by: right where
    /// there is only one.
    pub const TURN: u32 = 1;
    /// This plus `n`: to the station in [`super::Hop::stations`], by the interface in slot `n` of
    /// map `OUT`.
    pub const OUT: u32 = 2;
}

/// Value of [`FlowKey`]: what the datagram's addresses become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Hop {
    /// Address of ours that the flow comes to; to another one it is not this flow.
    pub local: Address,
    /// Address of ours that it leaves from, of the same family.
    pub source: Address,
    /// Where it goes, of the same family and no address of ours: what a relay sends to itself
    /// belongs to its sockets.
    pub target: Address,
    /// Destination and source of the Ethernet frame, unless `exit` is [`exit::BACK`].
    pub stations: [u32; 3],
    /// Port of ours that it leaves from, as in a packet.
    pub source_port: u16,
    /// Port it goes to, as in a packet.
    pub target_port: u16,
    /// One of [`exit`].
    pub exit: u32,
    /// Cell of map `STATS` that it is counted in.
    pub cell: u32,
}

impl Hop {
    /// From `from` to `to`, back by the way it came, for datagrams that came to `local`. `None` if
    /// that would change the address family, which the fast path leaves to the sockets.
    #[must_use]
    pub fn back(local: SocketAddr, from: SocketAddr, to: SocketAddr, cell: u32) -> Option<Self> {
        let (source, target) = (Address::from(from.ip()), Address::from(to.ip()));
        let local = Address::from(local.ip());
        let one_family = local.is_v4() == source.is_v4() && source.is_v4() == target.is_v4();
        one_family.then_some(Self {
            local,
            source,
            target,
            stations: [0; 3],
            source_port: from.port().to_be(),
            target_port: to.port().to_be(),
            exit: exit::BACK,
            cell,
        })
    }

    /// The same to the station `to`, from our station `from`, by `exit`.
    #[must_use]
    pub fn by(mut self, exit: u32, to: [u8; 6], from: [u8; 6]) -> Self {
        let mut bytes = Writer::<12>::new();
        bytes.put(to);
        bytes.put(from);
        self.stations = Reader(&bytes.finish()).words();
        self.exit = exit;
        self
    }
}

/// Maps `COUNT` and `STATS`, per-CPU arrays: what passed. Written by the programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Bytes: of frames as they came in for `COUNT`, of UDP payload for `STATS`.
    pub bytes: u64,
}

impl Tally {
    /// Counts one packet.
    #[inline(always)]
    pub const fn add(&mut self, bytes: u64) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes);
    }
}

const _: () = {
    assert!(size_of::<Address>() == 16 && align_of::<Address>() == 8);
    assert!(size_of::<Config>() == Config::LEN && align_of::<Config>() == 8);
    assert!(size_of::<FlowKey>() == FlowKey::LEN && align_of::<FlowKey>() == 8);
    assert!(size_of::<Hop>() == Hop::LEN && align_of::<Hop>() == 8);
    assert!(size_of::<Flow>() == Flow::LEN && align_of::<Flow>() == 8);
    assert!(PLACES.is_power_of_two());
    assert!(size_of::<Tally>() == Tally::LEN && align_of::<Tally>() == 8);
    assert!(BUCKETS.is_power_of_two());
};

/// What became of a packet to one of the served ports: the keys of map `COUNT`. Every such packet
/// is counted under exactly one (invariant 4); all others pass uncounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Outcome {
    /// A binding request, answered in place.
    Answered,
    /// WireGuard data, sent out by the interface it came in by.
    Forwarded,
    /// WireGuard data, sent out by another interface.
    Redirected,
    /// A binding request beyond its prefix's rate: dropped.
    RateLimited,
    /// A binding request while draining: dropped.
    Shed,
    /// To an address that is not ours, or not the flow's: passed.
    NotLocal,
    /// Lengths that disagree, a source that cannot be, an Ethernet group address: passed.
    Odd,
    /// Neither a binding request nor WireGuard: passed.
    Unknown,
    /// Its feature is switched off: passed.
    Off,
    /// A binding request in a form that the sockets judge, or a wrong one: passed.
    OddStun,
    /// A checksum that does not hold, which the kernel decides on: passed.
    BadChecksum,
    /// A checksum that the sender left to its network card, as between containers: passed.
    PartialChecksum,
    /// A WireGuard handshake message: passed.
    Handshake,
    /// WireGuard data of no known flow: passed.
    NoFlow,
    /// WireGuard data that would have to leave by a gone interface, or with another VLAN tag:
    /// passed.
    NoExit,
    /// An answer longer than its request, and a driver that gives no room for it: passed.
    NoRoom,
}

/// What the kernel does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The stack and its sockets have it, unchanged.
    Pass,
    /// Out by the interface it came in by.
    Transmit,
    /// Out by the interface chosen for it.
    Redirect,
    /// Nobody has it.
    Drop,
}

impl Outcome {
    /// Every outcome, in the order of its counter index.
    pub const ALL: [Self; 16] = [
        Self::Answered,
        Self::Forwarded,
        Self::Redirected,
        Self::RateLimited,
        Self::Shed,
        Self::NotLocal,
        Self::Odd,
        Self::Unknown,
        Self::Off,
        Self::OddStun,
        Self::BadChecksum,
        Self::PartialChecksum,
        Self::Handshake,
        Self::NoFlow,
        Self::NoExit,
        Self::NoRoom,
    ];

    /// Number of outcomes, the length of map `COUNT`.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// What the kernel is told.
    #[inline(always)]
    #[must_use]
    pub const fn action(self) -> Action {
        match self {
            Self::Answered | Self::Forwarded => Action::Transmit,
            Self::Redirected => Action::Redirect,
            Self::RateLimited | Self::Shed => Action::Drop,
            Self::NotLocal
            | Self::Odd
            | Self::Unknown
            | Self::Off
            | Self::OddStun
            | Self::BadChecksum
            | Self::PartialChecksum
            | Self::Handshake
            | Self::NoFlow
            | Self::NoExit
            | Self::NoRoom => Action::Pass,
        }
    }

    /// The reason under which the relay counts it, if it is dropped.
    #[must_use]
    pub const fn drop_reason(self) -> Option<DropReason> {
        match self {
            Self::RateLimited => Some(DropReason::RateLimited),
            Self::Shed => Some(DropReason::Shed),
            Self::Answered
            | Self::Forwarded
            | Self::Redirected
            | Self::NotLocal
            | Self::Odd
            | Self::Unknown
            | Self::Off
            | Self::OddStun
            | Self::BadChecksum
            | Self::PartialChecksum
            | Self::Handshake
            | Self::NoFlow
            | Self::NoExit
            | Self::NoRoom => None,
        }
    }

    /// The metric label value.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Forwarded => "forwarded",
            Self::Redirected => "redirected",
            Self::RateLimited => "rate_limited",
            Self::Shed => "shed",
            Self::NotLocal => "pass_not_local",
            Self::Odd => "pass_odd",
            Self::Unknown => "pass_unknown",
            Self::Off => "pass_off",
            Self::OddStun => "pass_odd_stun",
            Self::BadChecksum => "pass_bad_checksum",
            Self::PartialChecksum => "pass_partial_checksum",
            Self::Handshake => "pass_handshake",
            Self::NoFlow => "pass_no_flow",
            Self::NoExit => "pass_no_exit",
            Self::NoRoom => "pass_no_room",
        }
    }

    /// Key in map `COUNT`.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

const _: () = {
    let mut i = 0;
    while i < Outcome::ALL.len() {
        assert!(Outcome::ALL[i].index() as usize == i);
        i += 1;
    }
};

impl Address {
    /// Bytes of the key.
    pub const LEN: usize = 16;

    /// As map memory has it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = Writer::new();
        out.words(self.0);
        out.finish()
    }

    /// From map memory.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self(Reader(bytes).words())
    }
}

impl Config {
    /// Bytes of the value.
    pub const LEN: usize = 80;

    /// As map memory has it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = Writer::new();
        for port in self.ports {
            out.put(port.to_ne_bytes());
        }
        out.put(self.features.to_ne_bytes());
        let [a, b] = self.seed;
        for long in [self.pace.cost_ns, self.pace.ahead_ns_max, a, b] {
            out.put(long.to_ne_bytes());
        }
        for address in self.near {
            out.words(address.0);
        }
        out.finish()
    }

    /// From map memory.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let mut bytes = Reader(bytes);
        Self {
            ports: core::array::from_fn(|_| bytes.short()),
            features: bytes.word(),
            pace: Pace { cost_ns: bytes.long(), ahead_ns_max: bytes.long() },
            seed: [bytes.long(), bytes.long()],
            near: core::array::from_fn(|_| Address(bytes.words())),
        }
    }
}

impl FlowKey {
    /// Bytes of the key.
    pub const LEN: usize = 24;

    /// As map memory has it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = Writer::new();
        out.words(self.source.0);
        out.words([self.receiver]);
        out.put(self.source_port.to_ne_bytes());
        out.put(self.local_port.to_ne_bytes());
        out.finish()
    }

    /// From map memory.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let mut bytes = Reader(bytes);
        Self {
            source: Address(bytes.words()),
            receiver: bytes.word(),
            source_port: bytes.short(),
            local_port: bytes.short(),
        }
    }
}

impl Hop {
    /// Bytes of the value.
    pub const LEN: usize = 72;

    /// As map memory has it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = Writer::new();
        out.words(self.local.0);
        out.words(self.source.0);
        out.words(self.target.0);
        out.words(self.stations);
        out.put(self.source_port.to_ne_bytes());
        out.put(self.target_port.to_ne_bytes());
        out.words([self.exit, self.cell]);
        out.finish()
    }

    /// From map memory.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let mut bytes = Reader(bytes);
        Self {
            local: Address(bytes.words()),
            source: Address(bytes.words()),
            target: Address(bytes.words()),
            stations: bytes.words(),
            source_port: bytes.short(),
            target_port: bytes.short(),
            exit: bytes.word(),
            cell: bytes.word(),
        }
    }
}

impl Tally {
    /// Bytes of the value.
    pub const LEN: usize = 16;

    /// From map memory.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let mut bytes = Reader(bytes);
        Self { packets: bytes.long(), bytes: bytes.long() }
    }
}

/// Fills `N` bytes from the front.
struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    fn put<const M: usize>(&mut self, field: [u8; M]) {
        if let Some(place) = self.bytes.get_mut(self.at..self.at + M) {
            place.copy_from_slice(&field);
        }
        self.at += M;
    }

    fn words<const M: usize>(&mut self, words: [u32; M]) {
        for word in words {
            self.put(word.to_ne_bytes());
        }
    }

    fn finish(self) -> [u8; N] {
        debug_assert!(self.at == N);
        self.bytes
    }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const M: usize>(&mut self) -> [u8; M] {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            debug_assert!(false, "a type is read from bytes of its own length");
            return [0; M];
        };
        self.0 = rest;
        *field
    }

    fn short(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    fn word(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn long(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    fn words<const M: usize>(&mut self) -> [u32; M] {
        core::array::from_fn(|_| self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;
    extern crate std;
    use proptest::prelude::*;

    #[test]
    fn encoded_fields_stand_where_the_struct_has_them() {
        let config = Config {
            ports: [1, 2, 3, 4, 5, 6],
            features: 7,
            pace: Pace { cost_ns: 8, ahead_ns_max: 9 },
            seed: [10, 11],
            near: [Address([12; 4]), Address([13; 4])],
        };
        let bytes = config.encode();
        assert_eq!(bytes[offset_of!(Config, ports) + 10], 6);
        assert_eq!(bytes[offset_of!(Config, features)], 7);
        assert_eq!(bytes[offset_of!(Config, pace) + offset_of!(Pace, ahead_ns_max)], 9);
        assert_eq!(bytes[offset_of!(Config, seed) + 8], 11);
        assert_eq!(bytes[offset_of!(Config, near) + 16], 13);

        let key = FlowKey { source: Address([1; 4]), receiver: 2, source_port: 3, local_port: 4 };
        let bytes = key.encode();
        assert_eq!(bytes[offset_of!(FlowKey, source)], 1);
        assert_eq!(bytes[offset_of!(FlowKey, receiver)], 2);
        assert_eq!(bytes[offset_of!(FlowKey, source_port)], 3);
        assert_eq!(bytes[offset_of!(FlowKey, local_port)], 4);

        let hop = Hop {
            local: Address([1; 4]),
            source: Address([2; 4]),
            target: Address([3; 4]),
            stations: [4; 3],
            source_port: 5,
            target_port: 6,
            exit: 7,
            cell: 8,
        };
        let bytes = hop.encode();
        for (offset, value) in [
            (offset_of!(Hop, local), 1),
            (offset_of!(Hop, source), 2),
            (offset_of!(Hop, target), 3),
            (offset_of!(Hop, stations), 4),
            (offset_of!(Hop, source_port), 5),
            (offset_of!(Hop, target_port), 6),
            (offset_of!(Hop, exit), 7),
            (offset_of!(Hop, cell), 8),
        ] {
            assert_eq!(bytes[offset], value);
        }
        assert_eq!(offset_of!(Tally, bytes), 8);
    }

    #[test]
    fn flows_spread_over_the_places() {
        let config =
            Config { seed: [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345], ..Config::default() };
        let local = "198.51.100.1:3478".parse().expect("an address");
        // Indices in sequence from one peer, the least random that there is.
        let mut used = std::vec![[false; 3]; PLACES as usize];
        for receiver in 0..PLACES {
            let key = FlowKey::new("192.0.2.7:258".parse().expect("an address"), local, receiver);
            let [a, b] = config.places(&key);
            // Were one choice to follow from the other, their difference would hardly vary.
            for (i, place) in [a, b, a ^ b].into_iter().enumerate() {
                used[place as usize][i] = true;
            }
        }
        // Random placement leaves 1/e, 37 %, of the places empty.
        for choice in 0..3 {
            let empty = used.iter().filter(|used| !used[choice]).count();
            assert!((33..41).contains(&(empty * 100 / used.len())), "{choice}: {empty}");
        }
    }

    #[test]
    fn numbers_become_what_packets_carry() {
        let from = "192.0.2.7:258".parse().expect("an address");
        let local = "198.51.100.1:3478".parse().expect("an address");
        let bytes = FlowKey::new(from, local, 0x0403_0201).encode();
        let expected =
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7, 1, 2, 3, 4, 1, 2, 13, 150];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_hop_never_changes_the_family() {
        let v4 = "192.0.2.7:258".parse().expect("an address");
        let v6 = "[2001:db8::1]:258".parse().expect("an address");
        assert!(Hop::back(v4, v4, v4, 0).is_some());
        assert!(Hop::back(v6, v6, v6, 0).is_some());
        for (local, from, to) in [(v4, v4, v6), (v4, v6, v4), (v6, v4, v4), (v4, v6, v6)] {
            assert_eq!(Hop::back(local, from, to, 0), None);
        }
    }

    #[test]
    fn stations_are_destination_then_source() {
        let v4 = "192.0.2.7:258".parse().expect("an address");
        let hop = Hop::back(v4, v4, v4, 0).expect("one family");
        let hop = hop.by(exit::OUT + 3, [1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]);
        let at = offset_of!(Hop, stations);
        assert_eq!(hop.encode()[at..at + 12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(hop.exit, 5);
    }

    #[test]
    fn only_ports_given_are_served() {
        let config = Config { ports: [0, 80, 0, 0, 0, 443], ..Config::default() };
        assert!(config.serves(80) && config.serves(443));
        assert!(!config.serves(0) && !config.serves(81));
    }

    #[test]
    fn labels_differ_and_dropped_means_a_reason() {
        for outcome in Outcome::ALL {
            let same = Outcome::ALL.iter().filter(|it| it.label() == outcome.label());
            assert_eq!(same.count(), 1);
            let dropped = outcome.action() == Action::Drop;
            assert_eq!(outcome.drop_reason().is_some(), dropped);
            assert_eq!(outcome.label().starts_with("pass_"), outcome.action() == Action::Pass);
        }
    }

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let pace = Pace::new(1000, 20);
        let mut bucket = 0;
        let now = 5_000_000_000;
        assert_eq!((0..50).filter(|_| pace.admit(&mut bucket, now)).count(), 20);
        assert!(!pace.admit(&mut bucket, now + 999_999));
        assert!(pace.admit(&mut bucket, now + 1_000_000));
        assert!(!pace.admit(&mut bucket, now + 1_000_000));
        let much_later = now + 60_000_000_000;
        assert_eq!((0..50).filter(|_| pace.admit(&mut bucket, much_later)).count(), 20);
        for none in [Pace::new(0, 5), Pace::new(5, 0)] {
            assert!(!none.admit(&mut 0, now));
        }
    }

    proptest! {
        #[test]
        fn addresses_round_trip(ip: IpAddr) {
            let address = Address::from(ip);
            prop_assert_eq!(IpAddr::from(address), ip.to_canonical());
            prop_assert_eq!(address.is_v4(), ip.to_canonical().is_ipv4());
            prop_assert_eq!(Address::decode(&address.encode()), address);
        }

        #[test]
        fn values_round_trip(
            config: [u8; Config::LEN],
            key: [u8; FlowKey::LEN],
            hop: [u8; Hop::LEN],
        ) {
            prop_assert_eq!(Config::decode(&config).encode(), config);
            prop_assert_eq!(FlowKey::decode(&key).encode(), key);
            prop_assert_eq!(Hop::decode(&hop).encode(), hop);
            let flow = Flow { key: FlowKey::decode(&key), hop: Hop::decode(&hop) };
            prop_assert_eq!(Flow::decode(&flow.encode()), Some(flow));
            prop_assert_eq!(Flow::decode(&Flow::FREE), None);
        }

        #[test]
        fn a_bucket_never_gives_more_than_burst_and_rate(
            per_second in 1..=u32::MAX,
            burst in 1..=10_000_u32,
            pauses in prop::collection::vec(0..=3_000_000_000_u64, 0..200),
        ) {
            let pace = Pace::new(per_second, burst);
            let (mut bucket, mut now, mut given) = (0, 1, 0_u128);
            for pause in &pauses {
                now += pause;
                given += u128::from(pace.admit(&mut bucket, now));
                let allowed = u128::from(now) * u128::from(per_second) / 1_000_000_000;
                prop_assert!(given <= u128::from(burst) + allowed);
            }
        }

        #[test]
        fn any_bucket_and_moment_are_safe(pace: [u64; 2], mut bucket: u64, now: u64) {
            let [cost_ns, ahead_ns_max] = pace;
            Pace { cost_ns, ahead_ns_max }.admit(&mut bucket, now);
        }

        #[test]
        fn places_are_in_the_table(seed: [u64; 2], key: [u8; FlowKey::LEN]) {
            let config = Config { seed, ..Config::default() };
            let [a, b] = config.places(&FlowKey::decode(&key));
            prop_assert!(a < PLACES && b < PLACES);
        }

        #[test]
        fn buckets_are_in_the_table(seed: [u64; 2], prefix: u64) {
            let config = Config { seed, ..Config::default() };
            prop_assert!(config.bucket(prefix) < BUCKETS);
        }
    }
}
