//! The fast path: what is done with an Ethernet frame before the kernel's stack sees it.
//!
//! Owns the rules, from Ethernet to UDP payload, for the two things that need no stack: a STUN
//! binding request is answered in place, WireGuard data of a known flow is rewritten and sent on.
//! Everything else, and everything unusual, passes untouched to the sockets, which do the same work
//! (design decision 7). It holds no state: tables are the [`World`]'s. The XDP programs run it over
//! packet memory, tests and hosts without XDP over slices; so all of it is inlined, reads at
//! constant offsets only, and asks [`Frame::has`] before it does.

pub mod checksum;
mod forward;
mod slice;
mod stun;

pub use slice::SliceFrame;

use crate::maps::{Address, Config, Ends, FlowKey, Hop, MAPPED, Outcome};

/// Bytes of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// Bytes of an Ethernet header with an IEEE 802.1Q tag.
pub const TAGGED_LEN: usize = 18;
/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6_LEN: usize = 40;
/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;
/// What packets that we send may still cross, in hops (RFC 1700).
const HOPS: u8 = 64;

/// Bytes of Ethernet, IPv6 and UDP headers: with so many in reach, [`concerns`] knows.
pub const HEADERS_LEN: usize = ETHERNET_LEN + IPV6_LEN + UDP_LEN;
/// Bytes at the beginning of a frame that are read at most, where no request is answered.
pub const LOOKED_AT_LEN: usize = TAGGED_LEN + IPV6_LEN + UDP_LEN + PAYLOAD_LEN_MIN;

/// Bytes of STUN's header, the shortest payload looked at.
const PAYLOAD_LEN_MIN: usize = crate::stun::HEADER_LEN;

/// EtherType values as they lie in a packet (IEEE 802 numbers).
mod ether {
    pub(super) const IPV4: u16 = 0x0800_u16.to_be();
    pub(super) const IPV6: u16 = 0x86dd_u16.to_be();
    pub(super) const TAG: u16 = 0x8100_u16.to_be();
}

/// Protocol number of UDP.
const UDP: u8 = 17;
/// First byte of an IPv4 header without options.
const VERSION_4: u8 = 0x45;
/// First four bits of an IPv6 header.
const VERSION_6: u8 = 0x60;
/// The bits of IPv4's fragment field that a whole datagram has clear.
const FRAGMENT: u16 = 0x3fff_u16.to_be();

/// A frame in memory, read and written in words as they lie there.
///
/// Offsets are constants after inlining. A read or write beyond what [`Frame::has`] last confirmed
/// is a mistake of ours: the verifier then refuses the XDP program, a slice gives zeros.
pub trait Frame {
    /// Whether there is an answer to be made of such a frame. Where there is none, binding requests
    /// go to the sockets.
    const ANSWERS: bool = true;
    /// Whether [`Frame::repair`] is there, for a kernel that knows what stands in a checksum.
    const REPAIRS: bool = false;

    /// Bytes of the frame.
    fn len(&self) -> usize;

    /// Whether it has none.
    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it has at least `len` bytes. After `true` they may be read and written.
    fn has(&self, len: usize) -> bool;
    /// The byte at `at`.
    fn byte(&self, at: usize) -> u8;
    /// The two bytes from `at` on.
    fn short(&self, at: usize) -> u16;
    /// The four bytes from `at` on.
    fn word(&self, at: usize) -> u32;
    /// Writes one byte.
    fn set_byte(&mut self, at: usize, value: u8);
    /// Writes two bytes.
    fn set_short(&mut self, at: usize, value: u16);
    /// Writes four bytes.
    fn set_word(&mut self, at: usize, value: u32);
    /// Makes the frame `len` bytes long, at whichever end there is room, and says whether it did;
    /// if not, nothing has changed. Afterwards the contents are undefined and nothing is confirmed.
    fn resize(&mut self, len: usize) -> bool;

    /// Whether an IEEE 802.1Q tag belongs to the frame without being in it.
    #[inline(always)]
    fn is_tagged(&self) -> bool {
        false
    }

    /// Bytes of payload in each datagram of those that the kernel has merged in this frame, the last
    /// of which may be shorter; 0 if it is one datagram.
    #[inline(always)]
    fn segment_len(&self) -> usize {
        0
    }

    /// The eight bytes from `at` on, which [`Frame::has`] need not have confirmed.
    #[inline(always)]
    fn peek(&self, at: usize) -> Option<[u32; 2]> {
        self.has(at + 8).then(|| [self.word(at), self.word(at + 4)])
    }

    /// Repairs the UDP checksum at `at`, of which nothing is changed yet, after everything else has
    /// been. 0 stays 0, which is no checksum. Afterwards nothing is confirmed.
    #[inline(always)]
    fn repair(&mut self, at: usize, change: &Change) {
        let _ = (at, change);
    }
}

/// By how much the sums of a datagram's words have changed, for a kernel that keeps account of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Addresses: what is in the pseudo header.
    pub pseudo: u32,
    /// Ports: what is in the datagram itself.
    pub ports: u32,
    /// All that is behind the Ethernet header and no checksum makes up for, addresses of IPv6 as if
    /// the datagram's did not.
    pub rest: u32,
}

/// The tables that a verdict depends on, and where it leaves its mark. Shared references only: in
/// the kernel the tables are nobody's.
pub trait World {
    /// What is switched on.
    fn config(&self) -> &Config;
    /// Whether `address` is one of ours.
    fn is_local(&self, address: &Address) -> bool;
    /// Where datagrams of a flow go.
    fn flow(&self, key: &FlowKey) -> Option<&Hop>;
    /// The clock of rates and of [`Config::alive_until_ns`], which only goes forward.
    fn now_ns(&self) -> u64;
    /// Whether a source prefix, as a number, may have one more answer now; it is counted if so.
    fn admit(&self, prefix: u64, now_ns: u64) -> bool;
    /// Whether the packet came in by the interface in slot `out`. It is then sent back as any other is
    /// that does: a driver that can need not be able to send what comes from elsewhere.
    fn is_ingress(&self, out: u32) -> bool;
    /// Chooses slot `out` as the interface that this packet will leave by; `false` if it is empty.
    fn redirect(&self, out: u32) -> bool;
    /// Counts `packets` datagrams, together with `bytes` of payload, in a cell of the statistics.
    fn account(&self, cell: u32, packets: u64, bytes: u64);

    /// Takes note of a datagram for a served port before anything is done with it.
    #[inline(always)]
    fn note(&self, ends: impl FnOnce() -> Ends) {
        let _ = ends;
    }
}

/// Whether `frame` may be for a served port as far as its headers tell: then the rest of it is to be
/// brought in reach before it is judged. A frame with a tag in it is not looked into.
#[inline(always)]
pub fn concerns<F: Frame>(frame: &F, config: &Config) -> bool {
    const IPV4: usize = ETHERNET_LEN + IPV4_LEN;
    const IPV6: usize = ETHERNET_LEN + IPV6_LEN;
    if !frame.has(IPV4 + UDP_LEN) {
        return false;
    }
    match frame.short(12) {
        ether::IPV4 => frame.byte(ETHERNET_LEN + 9) == UDP && config.serves(frame.short(IPV4 + 2)),
        ether::IPV6 => {
            frame.has(IPV6 + UDP_LEN)
                && frame.byte(ETHERNET_LEN + 6) == UDP
                && config.serves(frame.short(IPV6 + 2))
        }
        _ => false,
    }
}

/// What is to be done with `frame`, which has been rewritten if that is to send it. `None`: it is
/// for none of the served ports.
#[inline(always)]
pub fn judge<F: Frame, W: World>(frame: &mut F, world: &W) -> Option<Outcome> {
    if !frame.has(TAGGED_LEN) {
        return None;
    }
    match frame.short(12) {
        ether::IPV4 => ipv4::<F, W, ETHERNET_LEN>(frame, world),
        ether::IPV6 => ipv6::<F, W, ETHERNET_LEN>(frame, world),
        ether::TAG => match frame.short(16) {
            ether::IPV4 => ipv4::<F, W, TAGGED_LEN>(frame, world),
            ether::IPV6 => ipv6::<F, W, TAGGED_LEN>(frame, world),
            _ => None,
        },
        _ => None,
    }
}

/// ```text
///  0     1     2           4           6           8     9    10          12          16        20
///  +-----+-----+-----------+-----------+-----------+-----+-----+-----------+-----------+-----------+
///  | 45  | tos | length    | id        | fragment  | ttl | 17  | checksum  | source    | target    |
///  +-----+-----+-----------+-----------+-----------+-----+-----+-----------+-----------+-----------+
/// ```
#[inline(always)]
fn ipv4<F: Frame, W: World, const L2: usize>(frame: &mut F, world: &W) -> Option<Outcome> {
    if !frame.has(L2 + IPV4_LEN + UDP_LEN + PAYLOAD_LEN_MIN)
        || frame.byte(L2) != VERSION_4
        || frame.byte(L2 + 9) != UDP
        || frame.short(L2 + 6) & FRAGMENT != 0
        || !world.config().serves(frame.short(L2 + IPV4_LEN + 2))
    {
        return None;
    }
    let total = usize::from(u16::from_be(frame.short(L2 + 2)));
    let source = u32::from_be(frame.word(L2 + 12));
    let plausible = total >= IPV4_LEN && is_plausible_v4(source);
    Some(datagram::<F, W, L2, IPV4_LEN>(frame, world, total.wrapping_sub(IPV4_LEN), plausible))
}

/// ```text
///  0     1     2     4           6     7     8                       24                      40
///  +-----+-----+-----+-----------+-----+-----+-----------------------+-----------------------+
///  | 6 class, flow   | length    | 17  | hops| source                | target                |
///  +-----+-----+-----+-----------+-----+-----+-----------------------+-----------------------+
/// ```
#[inline(always)]
fn ipv6<F: Frame, W: World, const L2: usize>(frame: &mut F, world: &W) -> Option<Outcome> {
    if !frame.has(L2 + IPV6_LEN + UDP_LEN + PAYLOAD_LEN_MIN)
        || frame.byte(L2) & 0xf0 != VERSION_6
        || frame.byte(L2 + 6) != UDP
        || !world.config().serves(frame.short(L2 + IPV6_LEN + 2))
    {
        return None;
    }
    let len = usize::from(u16::from_be(frame.short(L2 + 4)));
    let plausible = is_plausible_v6(words(frame, L2 + 8));
    Some(datagram::<F, W, L2, IPV6_LEN>(frame, world, len, plausible))
}

/// Whether an IPv4 source, a number, can be that of a host elsewhere: not of this network (0/8),
/// loopback (127/8), multicast or reserved (224/3).
#[inline(always)]
const fn is_plausible_v4(source: u32) -> bool {
    let first = source >> 24;
    first != 0 && first != 127 && first < 224
}

/// As [`is_plausible_v4`]: not unspecified, loopback, multicast, or IPv4 in disguise.
#[inline(always)]
const fn is_plausible_v6(source: [u32; 4]) -> bool {
    let [a, b, c, d] = source;
    let small = a | b == 0 && (c == MAPPED || c == 0 && u32::from_be(d) <= 1);
    !small && u32::from_be(a) >> 24 != 0xff
}

/// A UDP datagram for a served port in `len` bytes of IP payload.
///
/// ```text
///  0           2           4           6           8
///  +-----------+-----------+-----------+-----------+---------
///  | source    | target    | length    | checksum  | payload
///  +-----------+-----------+-----------+-----------+---------
/// ```
#[inline(always)]
fn datagram<F: Frame, W: World, const L2: usize, const IP: usize>(
    frame: &mut F,
    world: &W,
    len: usize,
    plausible: bool,
) -> Outcome {
    let udp = L2 + IP;
    world.note(|| ends::<F, L2, IP>(frame));
    let whole = usize::from(u16::from_be(frame.short(udp + 4))) == len
        && len >= UDP_LEN + PAYLOAD_LEN_MIN
        // A frame may be longer: the rest is padding.
        && udp + len <= frame.len();
    // The lowest bit of the first byte marks Ethernet group addresses.
    let group = frame.byte(0) & 1 != 0;
    let ours_again = source::<F, L2, IP>(frame) == target::<F, L2, IP>(frame);
    if !whole || !plausible || group || ours_again || frame.short(udp) == 0 {
        return Outcome::Odd;
    }
    let (first, second) = (frame.word(udp + UDP_LEN), frame.word(udp + UDP_LEN + 4));
    if second == stun::COOKIE && first & stun::KIND == stun::REQUEST {
        if !F::ANSWERS {
            return Outcome::LateStun;
        }
        return stun::answer::<F, W, L2, IP>(frame, world, len);
    }
    match u32::from_le(first) {
        // One byte of type and three zeros (the WireGuard paper, section 5.4).
        1..=3 => Outcome::Handshake,
        4 => forward::data::<F, W, L2, IP>(frame, world, len),
        _ => Outcome::Unknown,
    }
}

/// Who sent a datagram to whom.
#[inline(always)]
fn ends<F: Frame, const L2: usize, const IP: usize>(frame: &F) -> Ends {
    let udp = L2 + IP;
    Ends {
        source: source::<F, L2, IP>(frame),
        target: target::<F, L2, IP>(frame),
        source_port: frame.short(udp),
        target_port: frame.short(udp + 2),
        payload_len: u32::from(u16::from_be(frame.short(udp + 4))).wrapping_sub(UDP_LEN as u32),
    }
}

/// The address that a packet comes from.
#[inline(always)]
fn source<F: Frame, const L2: usize, const IP: usize>(frame: &F) -> Address {
    address::<F, IP>(frame, if IP == IPV4_LEN { L2 + 12 } else { L2 + 8 })
}

/// The address that a packet goes to.
#[inline(always)]
fn target<F: Frame, const L2: usize, const IP: usize>(frame: &F) -> Address {
    address::<F, IP>(frame, if IP == IPV4_LEN { L2 + 16 } else { L2 + 24 })
}

#[inline(always)]
fn address<F: Frame, const IP: usize>(frame: &F, at: usize) -> Address {
    if IP == IPV4_LEN { Address::v4(frame.word(at)) } else { Address(words(frame, at)) }
}

#[inline(always)]
fn set_address<F: Frame, const IP: usize>(frame: &mut F, at: usize, address: &Address) {
    let [a, b, c, d] = address.0;
    if IP == IPV4_LEN {
        frame.set_word(at, d);
    } else {
        set_words(frame, at, [a, b, c, d]);
    }
}

/// Sum of an address's words, as a checksum counts them.
#[inline(always)]
fn address_sum<const IP: usize>(address: &Address) -> u64 {
    let [a, b, c, d] = address.0;
    if IP == IPV4_LEN { d as u64 } else { sum([a, b, c, d]) }
}

#[inline(always)]
fn sum<const N: usize>(words: [u32; N]) -> u64 {
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        sum += u64::from(words[i]);
        i += 1;
    }
    sum
}

#[inline(always)]
fn words<F: Frame, const N: usize>(frame: &F, at: usize) -> [u32; N] {
    let mut words = [0; N];
    let mut i = 0;
    while i < N {
        words[i] = frame.word(at + 4 * i);
        i += 1;
    }
    words
}

#[inline(always)]
fn set_words<F: Frame, const N: usize>(frame: &mut F, at: usize, words: [u32; N]) {
    let mut i = 0;
    while i < N {
        frame.set_word(at + 4 * i, words[i]);
        i += 1;
    }
}

/// Both station addresses of a frame, the other way round.
#[inline(always)]
const fn swapped(stations: [u32; 3]) -> [u32; 3] {
    let [a, b, c] = stations;
    // Words as they lie in memory are numbers of the host's byte order, in which "the first two
    // bytes" are the low half on one kind of machine and the high half on the other.
    if cfg!(target_endian = "little") {
        [b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16]
    } else {
        [b << 16 | c >> 16, c << 16 | a >> 16, a << 16 | b >> 16]
    }
}

/// Sends `frame`, of which an Ethernet header is confirmed, back to the station it came from.
#[inline(always)]
pub fn swap_stations<F: Frame>(frame: &mut F) {
    let stations = swapped(words(frame, 0));
    set_words(frame, 0, stations);
}

/// The part of UDP's checksum that the datagram's own bytes do not give: protocol and length.
#[inline(always)]
const fn pseudo_sum(len: usize) -> u64 {
    (UDP as u16).to_be() as u64 + (len as u16).to_be() as u64
}
