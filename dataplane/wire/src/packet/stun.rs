//! A binding request turned into its answer, where it lies.
//!
//! Owns the forms of request that need no walk over attributes: without any, with a FINGERPRINT
//! alone, and Tailscale's. They are a part of what [`crate::stun::parse`] takes, and get the answer
//! that it would give; all others pass to the sockets. [`super::judge`] calls it.

use super::{
    Frame, HOPS, IPV4_LEN, IPV6_LEN, TAGGED_LEN, UDP, UDP_LEN, VERSION_4, VERSION_6, World,
    address_sum, checksum, ether, pseudo_sum, set_address, set_words, source, sum, swapped, target,
    words,
};
use crate::maps::{Address, Outcome, feature};
use crate::stun::{
    ANSWER_LEN_MAX, ANSWER_LEN_V4, FINGERPRINT_XOR, HEADER_LEN, REQUEST_LEN, TAILNODE, crc32,
};

/// The cookie as it lies in a packet.
pub(super) const COOKIE: u32 = u32::from_ne_bytes(crate::stun::COOKIE);
/// The half of the first word that is the message's type.
pub(super) const KIND: u32 = u32::from_ne_bytes([0xff, 0xff, 0, 0]);
/// A binding request in that half.
pub(super) const REQUEST: u32 = u32::from_ne_bytes([0, 1, 0, 0]);

/// Bytes of a request whose only attribute is a FINGERPRINT.
const SEALED_LEN: usize = HEADER_LEN + 8;
/// IPv4's fragment field: do not.
const WHOLE: u16 = 0x4000_u16.to_be();

/// Answers a request in a datagram of `len` bytes.
#[inline(always)]
pub(super) fn answer<F: Frame, W: World, const L2: usize, const IP: usize>(
    frame: &mut F,
    world: &W,
    len: usize,
) -> Outcome {
    let config = world.config();
    if !config.has(feature::STUN) {
        return Outcome::Off;
    }
    let local = target::<F, L2, IP>(frame);
    if !world.is_local(&local) {
        return Outcome::NotLocal;
    }
    let payload = L2 + IP + UDP_LEN;
    let attributes = match len - UDP_LEN {
        HEADER_LEN => Some(plain(frame, payload)),
        SEALED_LEN if frame.has(payload + SEALED_LEN) => Some(sealed(frame, payload)),
        REQUEST_LEN if frame.has(payload + REQUEST_LEN) => Some(tailnode(frame, payload)),
        _ => None,
    };
    let Some(Some(attributes)) = attributes else {
        return Outcome::OddStun;
    };
    let ends = Ends::read::<F, L2, IP>(frame);
    if !ends.checksum_holds::<IP>(len, attributes) {
        return Outcome::BadChecksum;
    }
    let now_ns = world.now_ns();
    if !config.lives(now_ns) {
        return Outcome::Off;
    }
    if config.has(feature::SHED) {
        return Outcome::Shed;
    }
    if !world.admit(prefix::<IP>(&ends.source), now_ns) {
        return Outcome::RateLimited;
    }
    match ends.write::<F, L2, IP>(frame) {
        false => Outcome::NoRoom,
        true if IP == IPV4_LEN => Outcome::AnsweredV4,
        true => Outcome::AnsweredV6,
    }
}

/// The number of the network that a source is counted under: as the responder of the sockets has
/// it, /24 for IPv4, /48 for IPv6.
#[inline(always)]
const fn prefix<const IP: usize>(source: &Address) -> u64 {
    let [a, b, _, d] = source.0;
    if IP == IPV4_LEN {
        (u32::from_be(d) >> 8) as u64
    } else {
        1 << 48 | (u32::from_be(a) as u64) << 16 | (u32::from_be(b) >> 16) as u64
    }
}

/// The sum of no attributes, if the header at `at` says that there are none.
#[inline(always)]
fn plain<F: Frame>(frame: &F, at: usize) -> Option<u64> {
    (frame.short(at + 2) == 0).then_some(0)
}

/// The sum of the attributes, if they are a FINGERPRINT that is right.
#[inline(always)]
fn sealed<F: Frame>(frame: &F, at: usize) -> Option<u64> {
    let [kind, value] = words(frame, at + HEADER_LEN);
    let expected = SEALED.fingerprint(words(frame, at + 8));
    let right = frame.short(at + 2) == 8_u16.to_be() && kind == MARK && value == expected;
    right.then_some(sum([kind, value]))
}

/// The sum of the attributes, if they are those of Tailscale's request and its FINGERPRINT is right.
#[inline(always)]
fn tailnode<F: Frame>(frame: &F, at: usize) -> Option<u64> {
    let found: [u32; 5] = words(frame, at + HEADER_LEN);
    let [software, tail, node, mark, value] = found;
    let expected = TAILSCALE.fingerprint(words(frame, at + 8));
    let right = frame.short(at + 2) == 20_u16.to_be()
        && software == SOFTWARE
        && tail == NAME[0]
        && node == NAME[1]
        && mark == MARK
        && value == expected;
    right.then_some(sum(found))
}

/// Type and length of FINGERPRINT.
const MARK: u32 = u32::from_ne_bytes([0x80, 0x28, 0, 4]);
/// Type and length of Tailscale's SOFTWARE.
const SOFTWARE: u32 = u32::from_ne_bytes([0x80, 0x22, 0, 8]);
/// Its value.
const NAME: [u32; 2] = {
    let [a, b, c, d, e, f, g, h] = TAILNODE;
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
};

/// A request's FINGERPRINT in parts. A CRC is linear, and in the requests answered here nothing but
/// the transaction id varies: one lookup for each of its `PARTS`, which have `VALUES` values, and no
/// chain of steps.
struct Form<const PARTS: usize, const VALUES: usize> {
    /// What the rest of the message makes of it.
    rest: u32,
    /// What each part of the transaction id adds.
    shares: [[u32; VALUES]; PARTS],
}

/// Half bytes: 1.5 KiB. The kernel reads such requests seldom.
///
/// References and not statics: those have names, in which the compiler puts a hash of where the
/// sources lie, and a compiled program shall not depend on that.
const SEALED: &Form<24, 16> = &{
    let message = put([0; HEADER_LEN], 0, [0, 1, 0, 8]);
    Form::of(put(message, 4, crate::stun::COOKIE))
};

/// Bytes, of every stock request: 12 KiB for half as many lookups.
const TAILSCALE: &Form<12, 256> = &{
    let message = put([0; REQUEST_LEN - 8], 0, [0, 1, 0, 20]);
    let message = put(message, 4, crate::stun::COOKIE);
    let message = put(message, HEADER_LEN, SOFTWARE.to_ne_bytes());
    Form::of(put(message, HEADER_LEN + 4, TAILNODE))
};

const fn put<const N: usize, const M: usize>(
    mut message: [u8; N],
    at: usize,
    field: [u8; M],
) -> [u8; N] {
    let mut i = 0;
    while i < M {
        message[at + i] = field[i];
        i += 1;
    }
    message
}

impl<const PARTS: usize, const VALUES: usize> Form<PARTS, VALUES> {
    /// Bits of a part, which divide those of a byte.
    const BITS: usize = 96 / PARTS;

    /// The form of requests that are `message` but for the transaction id, which is zero there.
    const fn of<const N: usize>(message: [u8; N]) -> Self {
        assert!(VALUES == 1 << Self::BITS && 8 % Self::BITS == 0);
        let rest = crc32(&message);
        let mut shares = [[0; VALUES]; PARTS];
        let mut part = 0;
        while part < PARTS {
            let bit = part * Self::BITS;
            let mut value = 1;
            while value < VALUES {
                // Each but a power of two is the sum of its lowest bit and a smaller one.
                let (lowest, others) = (value & value.wrapping_neg(), value & (value - 1));
                shares[part][value] = if others == 0 {
                    let mut changed = message;
                    // Lower parts of a byte come first.
                    changed[8 + bit / 8] = (value << (bit % 8)) as u8;
                    (crc32(&changed) ^ rest).to_be()
                } else {
                    shares[part][lowest] ^ shares[part][others]
                };
                value += 1;
            }
            part += 1;
        }
        Self { rest: (rest ^ FINGERPRINT_XOR).to_be(), shares }
    }

    /// The FINGERPRINT, as in a packet, of a request with transaction id `txid`.
    #[inline(always)]
    fn fingerprint(&self, txid: [u32; 3]) -> u32 {
        let mut crc = self.rest;
        let mut part = 0;
        while part < PARTS {
            let bit = part * Self::BITS;
            let word = u32::from_le(txid[bit / 32]);
            let value = (word >> (bit % 32)) as usize & (VALUES - 1);
            crc ^= self.shares[part][value];
            part += 1;
        }
        crc
    }
}

/// What an answer takes over from its request.
struct Ends {
    stations: [u32; 3],
    /// IEEE 802.1Q tag, if there is one.
    tag: u16,
    source: Address,
    local: Address,
    source_port: u16,
    local_port: u16,
    /// First word of the payload: type and length.
    head: u32,
    txid: [u32; 3],
    checksum: u16,
}

impl Ends {
    #[inline(always)]
    fn read<F: Frame, const L2: usize, const IP: usize>(frame: &F) -> Self {
        let udp = L2 + IP;
        Self {
            stations: words(frame, 0),
            tag: if L2 == TAGGED_LEN { frame.short(14) } else { 0 },
            source: source::<F, L2, IP>(frame),
            local: target::<F, L2, IP>(frame),
            source_port: frame.short(udp),
            local_port: frame.short(udp + 2),
            head: frame.word(udp + UDP_LEN),
            txid: words(frame, udp + UDP_LEN + 8),
            checksum: frame.short(udp + 6),
        }
    }

    #[inline(always)]
    fn addresses<const IP: usize>(&self) -> u64 {
        address_sum::<IP>(&self.source) + address_sum::<IP>(&self.local)
    }

    #[inline(always)]
    fn ports(&self) -> u64 {
        u64::from(self.source_port) + u64::from(self.local_port)
    }

    /// Whether the UDP checksum of a datagram of `len` bytes, whose attributes have the sum
    /// `attributes`, holds, or is absent as IPv4 allows, or is left to a network card that will
    /// not see it: the answer's is made anew.
    #[inline(always)]
    fn checksum_holds<const IP: usize>(&self, len: usize, attributes: u64) -> bool {
        if self.checksum == 0 {
            return IP == IPV4_LEN;
        }
        let pseudo = self.addresses::<IP>() + pseudo_sum(len);
        let header = self.ports() + u64::from((len as u16).to_be()) + u64::from(self.checksum);
        let message = sum([self.head, COOKIE]) + sum(self.txid) + attributes;
        checksum::holds(pseudo + header + message) || self.checksum == checksum::fold(pseudo)
    }

    /// Makes `frame` the answer; `false` leaves it as it was.
    #[inline(always)]
    fn write<F: Frame, const L2: usize, const IP: usize>(&self, frame: &mut F) -> bool {
        let len = UDP_LEN + if IP == IPV4_LEN { ANSWER_LEN_V4 } else { ANSWER_LEN_MAX };
        let whole = L2 + IP + len;
        if !frame.resize(whole) || !frame.has(whole) {
            return false;
        }
        set_words(frame, 0, swapped(self.stations));
        let kind = if IP == IPV4_LEN { ether::IPV4 } else { ether::IPV6 };
        if L2 == TAGGED_LEN {
            frame.set_short(12, ether::TAG);
            frame.set_short(14, self.tag);
        }
        frame.set_short(L2 - 2, kind);
        if IP == IPV4_LEN {
            self.write_ipv4::<F, L2>(frame, len);
        } else {
            self.write_ipv6::<F, L2>(frame, len);
        }
        let udp = L2 + IP;
        let payload = self.write_message::<F, IP>(frame, udp + UDP_LEN);
        let length = (len as u16).to_be();
        let sum = self.addresses::<IP>() + pseudo_sum(len) + self.ports() + u64::from(length);
        frame.set_short(udp, self.local_port);
        frame.set_short(udp + 2, self.source_port);
        frame.set_short(udp + 4, length);
        frame.set_short(udp + 6, checksum::udp(sum + payload));
        true
    }

    #[inline(always)]
    fn write_ipv4<F: Frame, const L2: usize>(&self, frame: &mut F, len: usize) {
        let version = u16::from_ne_bytes([VERSION_4, 0]);
        let length = ((IPV4_LEN + len) as u16).to_be();
        let limit = u16::from_ne_bytes([HOPS, UDP]);
        let sum = u64::from(version) + u64::from(length) + u64::from(WHOLE) + u64::from(limit);
        frame.set_short(L2, version);
        frame.set_short(L2 + 2, length);
        frame.set_short(L2 + 4, 0);
        frame.set_short(L2 + 6, WHOLE);
        frame.set_short(L2 + 8, limit);
        frame.set_short(L2 + 10, checksum::ipv4(sum + self.addresses::<IPV4_LEN>()));
        set_address::<F, IPV4_LEN>(frame, L2 + 12, &self.local);
        set_address::<F, IPV4_LEN>(frame, L2 + 16, &self.source);
    }

    #[inline(always)]
    fn write_ipv6<F: Frame, const L2: usize>(&self, frame: &mut F, len: usize) {
        frame.set_word(L2, u32::from_ne_bytes([VERSION_6, 0, 0, 0]));
        frame.set_short(L2 + 4, (len as u16).to_be());
        frame.set_short(L2 + 6, u16::from_ne_bytes([UDP, HOPS]));
        set_address::<F, IPV6_LEN>(frame, L2 + 8, &self.local);
        set_address::<F, IPV6_LEN>(frame, L2 + 24, &self.source);
    }

    /// Writes the message to `at` and returns the sum of its words. [`crate::stun::Request::answer`]
    /// has the drawing.
    #[inline(always)]
    fn write_message<F: Frame, const IP: usize>(&self, frame: &mut F, at: usize) -> u64 {
        let (family, len) = if IP == IPV4_LEN { (1, 8) } else { (2, 20) };
        let head = u32::from_ne_bytes([1, 1, 0, len + 4]);
        let attribute = u32::from_ne_bytes([0, 0x20, 0, len]);
        let family = u16::from_ne_bytes([0, family]);
        let [cookie_a, cookie_b, ..] = crate::stun::COOKIE;
        let port = self.source_port ^ u16::from_ne_bytes([cookie_a, cookie_b]);
        let [a, b, c] = self.txid;
        set_words(frame, at, [head, COOKIE, a, b, c, attribute]);
        frame.set_short(at + 24, family);
        frame.set_short(at + 26, port);
        let fixed = sum([head, COOKIE, a, b, c, attribute]) + u64::from(family) + u64::from(port);
        let [s, t, u, v] = self.source.0;
        if IP == IPV4_LEN {
            frame.set_word(at + 28, v ^ COOKIE);
            fixed + u64::from(v ^ COOKIE)
        } else {
            let masked = [s ^ COOKIE, t ^ a, u ^ b, v ^ c];
            set_words(frame, at + 28, masked);
            fixed + sum(masked)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::SliceFrame;
    use crate::stun::{TxId, parse, request};
    use proptest::prelude::*;

    #[test]
    fn the_fixed_words_are_those_of_a_stock_request() {
        let stock = request(TxId([9; 12]));
        let mut bytes = stock;
        let frame = SliceFrame::new(&mut bytes, 0);
        assert_eq!(frame.word(0) & KIND, REQUEST);
        assert_eq!(frame.word(4), COOKIE);
        let [software, a, b, mark, _] = words(&frame, HEADER_LEN);
        assert_eq!([software, a, b, mark], [SOFTWARE, NAME[0], NAME[1], MARK]);
    }

    proptest! {
        #[test]
        fn a_fingerprint_put_together_is_the_one_computed(txid: [u8; 12], flip in 0..32_usize) {
            let mut stock = request(TxId(txid));
            prop_assert!(tailnode(&SliceFrame::new(&mut stock, 0), 0).is_some());
            stock[36 + flip / 8] ^= 1 << (flip % 8);
            prop_assert!(tailnode(&SliceFrame::new(&mut stock, 0), 0).is_none());

            let mut short = [0; SEALED_LEN];
            short[..4].copy_from_slice(&[0, 1, 0, 8]);
            short[4..8].copy_from_slice(&crate::stun::COOKIE);
            short[8..20].copy_from_slice(&txid);
            let value = crc32(&short[..HEADER_LEN]) ^ FINGERPRINT_XOR;
            short[20..24].copy_from_slice(&[0x80, 0x28, 0, 4]);
            short[24..].copy_from_slice(&value.to_be_bytes());
            prop_assert!(parse(&short).is_ok());
            prop_assert!(sealed(&SliceFrame::new(&mut short, 0), 0).is_some());
            short[24 + flip / 8] ^= 1 << (flip % 8);
            prop_assert!(sealed(&SliceFrame::new(&mut short, 0), 0).is_none());
        }

        #[test]
        fn no_form_is_wider_than_the_parser(mut bytes: [u8; REQUEST_LEN], len in 0..3_usize) {
            bytes[..2].copy_from_slice(&[0, 1]);
            bytes[4..8].copy_from_slice(&crate::stun::COOKIE);
            let len = [HEADER_LEN, SEALED_LEN, REQUEST_LEN][len];
            let mut message = bytes;
            let frame = SliceFrame::new(&mut message, 0);
            let taken = match len {
                HEADER_LEN => plain(&frame, 0),
                SEALED_LEN => sealed(&frame, 0),
                _ => tailnode(&frame, 0),
            };
            prop_assert!(taken.is_none() || parse(&bytes[..len]).is_ok());
        }
    }
}
