//! STUN binding requests and answers (RFC 8489), as Tailscale's and plain clients use them.
//!
//! Owns the message layout for both ends: a relay parses requests and writes answers, a probe does
//! the reverse. It never answers anything but a binding request and never writes more than one
//! attribute. Every loop has a fixed bound and the input is read through checked slices only, so
//! that an XDP program can run the same code. The STUN responder of `proto` and probes call it.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::drop::DropReason;

/// Bytes of a message header.
pub const HEADER_LEN: usize = 20;
/// Bytes 4..8 of every message (RFC 8489 section 5).
pub const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// Longest request parsed, in bytes. Stock clients send 40; RFC 8489 section 6.1 keeps requests
/// below the path MTU, and the checksum of a longer one would cost more than its answer is worth.
pub const REQUEST_LEN_MAX: usize = 1500;
/// Most attributes walked in one message. Stock requests have two.
pub const ATTRIBUTES_MAX: usize = 64;
/// Bytes of Tailscale's request.
pub const REQUEST_LEN: usize = 40;
/// Bytes of an answer to an IPv4 source.
pub const ANSWER_LEN_V4: usize = 32;
/// Bytes of an answer to an IPv6 source, the longest there is.
pub const ANSWER_LEN_MAX: usize = 44;
/// Bytes of the checksum attribute that ends a message: type, length and value.
const FINGERPRINT_LEN: usize = 8;
/// Value of Tailscale's SOFTWARE attribute; derper answers no request without it.
pub(crate) const TAILNODE: [u8; 8] = *b"tailnode";
/// What the checksum is combined with (RFC 8489 section 14.7).
pub(crate) const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Message types of the binding method.
mod message {
    pub(super) const REQUEST: u16 = 0x0001;
    pub(super) const SUCCESS: u16 = 0x0101;
}

/// Attribute types (RFC 8489 section 18.3). From 0x8000 on they may be skipped if unknown.
mod attribute {
    pub(super) const MAPPED_ADDRESS: u16 = 0x0001;
    pub(super) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    /// Used by servers older than RFC 5389; stock clients still read it.
    pub(super) const XOR_MAPPED_ADDRESS_OLD: u16 = 0x8020;
    pub(super) const SOFTWARE: u16 = 0x8022;
    pub(super) const FINGERPRINT: u16 = 0x8028;
    pub(super) const OPTIONAL_FROM: u16 = 0x8000;
}

/// What ties an answer to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct TxId(pub [u8; 12]);

const _: () = assert!(size_of::<TxId>() == 12);

/// Why a datagram is not the message looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// Some other protocol.
    NotStun,
    /// STUN, but not what was looked for.
    Bad(Fault),
}

impl Reject {
    /// The drop reason under which a relay counts it.
    #[must_use]
    pub const fn drop_reason(self) -> DropReason {
        match self {
            Self::NotStun => DropReason::NotStun,
            Self::Bad(_) => DropReason::BadStun,
        }
    }
}

/// What is wrong with a STUN message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Another method, or an indication, or an answer where a request was looked for.
    Kind,
    /// Longer than [`REQUEST_LEN_MAX`].
    TooLong,
    /// The header's length is not that of the attributes.
    Length,
    /// An attribute runs past the end.
    Truncated,
    /// More than [`ATTRIBUTES_MAX`] attributes.
    TooManyAttributes,
    /// The checksum is wrong or not at the end.
    Fingerprint,
    /// An attribute that the sender insists on and this server does not implement.
    Required,
    /// An answer without a usable address.
    NoAddress,
}

/// Whether `datagram` is a STUN message at all, for ports that several protocols share.
#[inline]
#[must_use]
pub fn looks_like(datagram: &[u8]) -> bool {
    Header::read(datagram).is_some()
}

/// A message header.
///
/// ```text
///  0           2           4           8                      20
///  +-----------+-----------+-----------+----------------------+---------------
///  | 00 | type | length    | 2112a442  | transaction id       | attributes ...
///  +-----------+-----------+-----------+----------------------+---------------
/// ```
struct Header {
    kind: u16,
    /// Bytes of all attributes.
    len: u16,
    txid: TxId,
}

impl Header {
    /// The header of `datagram`, or `None` if that is no STUN message.
    #[inline]
    fn read(datagram: &[u8]) -> Option<Self> {
        let (head, txid) = datagram.first_chunk::<HEADER_LEN>()?.split_first_chunk::<8>()?;
        let [a, b, c, d, cookie @ ..] = *head;
        let kind = u16::from_be_bytes([a, b]);
        if kind & 0xc000 != 0 || cookie != COOKIE {
            return None;
        }
        Some(Self { kind, len: u16::from_be_bytes([c, d]), txid: TxId(*txid.first_chunk()?) })
    }
}

/// A binding request worth answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Returned in the answer.
    pub txid: TxId,
}

/// Parses a binding request in one of two forms.
///
/// Tailscale's: attributes up to the end of the datagram whatever the header's length says, among
/// them SOFTWARE `tailnode`, the last one a valid FINGERPRINT; other attributes do not matter. So
/// does derper.
///
/// Plain: the header's length holds, FINGERPRINT is optional but last and valid if there, and no
/// other attribute is one the sender insists on. RFC 8489 would have those answered with error 420.
/// Silence is preferred: what they ask for (credentials, another port to answer from) no relay
/// offers, and an error would be one more message that a forged source address turns against
/// somebody else.
///
/// # Errors
///
/// [`Reject`] says whether the datagram was STUN, and if so what is wrong with it.
#[inline]
pub fn parse(datagram: &[u8]) -> Result<Request, Reject> {
    let header = Header::read(datagram).ok_or(Reject::NotStun)?;
    if header.kind != message::REQUEST {
        return Err(Reject::Bad(Fault::Kind));
    }
    if datagram.len() > REQUEST_LEN_MAX {
        return Err(Reject::Bad(Fault::TooLong));
    }
    let attributes = datagram.get(HEADER_LEN..).unwrap_or_default();
    let survey = survey(attributes).map_err(Reject::Bad)?;
    if survey.fingerprints > 0 && !(survey.fingerprint_last && fingerprint_holds(datagram)) {
        return Err(Reject::Bad(Fault::Fingerprint));
    }
    if survey.fingerprints > 0 && survey.tailnode {
        return Ok(Request { txid: header.txid });
    }
    if usize::from(header.len) != attributes.len() {
        return Err(Reject::Bad(Fault::Length));
    }
    if survey.fingerprints > 1 {
        return Err(Reject::Bad(Fault::Fingerprint));
    }
    if survey.required {
        return Err(Reject::Bad(Fault::Required));
    }
    Ok(Request { txid: header.txid })
}

impl Request {
    /// Writes the answer for a request that came from `source`: 32 bytes for IPv4, which includes
    /// IPv4 addresses mapped into IPv6, else 44.
    ///
    /// ```text
    ///  0           2           4           8                      20
    ///  +-----------+-----------+-----------+----------------------+
    ///  | 0101      | 12 or 24  | 2112a442  | transaction id       |
    ///  +-----------+-----------+-----+-----+-----+----------------+------------+
    ///  | 0020      | 8 or 20   | 00  | 1/2 | port xor 2112     | address xor  |
    ///  +-----------+-----------+-----+-----+-------------------+ bytes 4..20   |
    ///  20          22          24    25    26                  28              32 or 44
    /// ```
    #[inline]
    pub fn answer<'a>(&self, source: SocketAddr, out: &'a mut [u8; ANSWER_LEN_MAX]) -> &'a [u8] {
        let mask = mask(self.txid);
        let (family, len, address) = match source.ip().to_canonical() {
            IpAddr::V4(ip) => (FAMILY_V4, ANSWER_LEN_V4, widen(ip)),
            IpAddr::V6(ip) => (FAMILY_V6, ANSWER_LEN_MAX, ip.octets()),
        };
        let [port_high, port_low] = source.port().to_be_bytes();
        let total = len as u8;
        out[..8].copy_from_slice(&header_start(message::SUCCESS, total - 20));
        out[8..20].copy_from_slice(&self.txid.0);
        out[20..28].copy_from_slice(&[
            0x00,
            0x20,
            0,
            total - 24,
            0,
            family,
            port_high ^ COOKIE[0],
            port_low ^ COOKIE[1],
        ]);
        out[28..].copy_from_slice(&xor(address, mask));
        out.get(..len).unwrap_or_default()
    }
}

/// Tailscale's request: SOFTWARE first, FINGERPRINT last, as its XDP program relies on.
#[must_use]
pub fn request(txid: TxId) -> [u8; REQUEST_LEN] {
    let mut out = [0; REQUEST_LEN];
    out[..8].copy_from_slice(&header_start(message::REQUEST, 20));
    out[8..20].copy_from_slice(&txid.0);
    out[20..24].copy_from_slice(&[0x80, 0x22, 0, 8]);
    out[24..32].copy_from_slice(&TAILNODE);
    out[32..36].copy_from_slice(&[0x80, 0x28, 0, 4]);
    let sum = crc32(&out[..32]) ^ FINGERPRINT_XOR;
    out[36..].copy_from_slice(&sum.to_be_bytes());
    out
}

/// A server's answer to a binding request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// That of the request. A probe must compare it with what it sent.
    pub txid: TxId,
    /// Where the server saw the request come from.
    pub address: SocketAddr,
}

/// Parses the answer to a binding request. Like stock clients it takes the first
/// XOR-MAPPED-ADDRESS, in its old number too, and failing that the first MAPPED-ADDRESS.
///
/// # Errors
///
/// [`Reject`] says whether the datagram was STUN, and if so what is wrong with it.
pub fn parse_answer(datagram: &[u8]) -> Result<Answer, Reject> {
    let header = Header::read(datagram).ok_or(Reject::NotStun)?;
    if header.kind != message::SUCCESS {
        return Err(Reject::Bad(Fault::Kind));
    }
    let end = HEADER_LEN + usize::from(header.len);
    let mut rest = datagram.get(HEADER_LEN..end).ok_or(Reject::Bad(Fault::Length))?;
    let mut fallback = None;
    for _ in 0..ATTRIBUTES_MAX {
        if rest.is_empty() {
            break;
        }
        let next = Attribute::split(rest).ok_or(Reject::Bad(Fault::Truncated))?;
        rest = next.rest;
        match next.kind {
            attribute::XOR_MAPPED_ADDRESS | attribute::XOR_MAPPED_ADDRESS_OLD => {
                if let Some(address) = read_address(next.value, mask(header.txid)) {
                    return Ok(Answer { txid: header.txid, address });
                }
            }
            attribute::MAPPED_ADDRESS => {
                fallback = fallback.or_else(|| read_address(next.value, [0; 16]));
            }
            _ => {}
        }
    }
    let address = fallback.ok_or(Reject::Bad(Fault::NoAddress))?;
    Ok(Answer { txid: header.txid, address })
}

/// What one walk over a request's attributes finds.
#[derive(Default)]
struct Survey {
    /// SOFTWARE is `tailnode`.
    tailnode: bool,
    /// Some attribute may not be skipped. This server implements none that a request could carry.
    required: bool,
    /// How many FINGERPRINT attributes there are.
    fingerprints: u8,
    /// The last attribute is a FINGERPRINT of the right length.
    fingerprint_last: bool,
}

#[inline]
fn survey(attributes: &[u8]) -> Result<Survey, Fault> {
    let mut survey = Survey::default();
    let mut rest = attributes;
    for _ in 0..ATTRIBUTES_MAX {
        if rest.is_empty() {
            break;
        }
        let next = Attribute::split(rest).ok_or(Fault::Truncated)?;
        rest = next.rest;
        survey.fingerprint_last = false;
        match next.kind {
            attribute::SOFTWARE => survey.tailnode |= next.value == TAILNODE,
            attribute::FINGERPRINT => {
                survey.fingerprints += 1;
                survey.fingerprint_last = next.value.len() == 4;
            }
            kind => survey.required |= kind < attribute::OPTIONAL_FROM,
        }
    }
    if rest.is_empty() { Ok(survey) } else { Err(Fault::TooManyAttributes) }
}

/// An attribute and what follows it.
///
/// ```text
///  0           2           4
///  +-----------+-----------+------------------+--------------+
///  | type      | length    | value            | 0..3 padding |
///  +-----------+-----------+------------------+--------------+
/// ```
struct Attribute<'a> {
    kind: u16,
    value: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attribute at the start of `bytes`, or `None` if it is cut short, padding included.
    #[inline]
    fn split(bytes: &'a [u8]) -> Option<Self> {
        let (&[a, b, c, d], after) = bytes.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes([c, d]));
        Some(Self {
            kind: u16::from_be_bytes([a, b]),
            value: after.get(..len)?,
            rest: after.get(len.next_multiple_of(4)..)?,
        })
    }
}

/// Whether the checksum in the last four bytes is that of everything before its attribute.
#[inline]
fn fingerprint_holds(datagram: &[u8]) -> bool {
    let Some((covered, attribute)) = datagram.split_last_chunk::<FINGERPRINT_LEN>() else {
        return false;
    };
    attribute.ends_with(&(crc32(covered) ^ FINGERPRINT_XOR).to_be_bytes())
}

const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;

/// Reads family, port and address under `mask`, whose start also covers the port.
fn read_address(value: &[u8], mask: [u8; 16]) -> Option<SocketAddr> {
    let (&[_, family, port_high, port_low], address) = value.split_first_chunk()?;
    let port = u16::from_be_bytes([port_high ^ mask[0], port_low ^ mask[1]]);
    let ip = match family {
        FAMILY_V4 => {
            let masked: &[u8; 4] = address.try_into().ok()?;
            let [a, b, c, d, ..] = xor(widen(Ipv4Addr::from(*masked)), mask);
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        FAMILY_V6 => {
            let masked: &[u8; 16] = address.try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(xor(*masked, mask)))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[inline]
const fn header_start(kind: u16, attributes_len: u8) -> [u8; 8] {
    let [a, b] = kind.to_be_bytes();
    let [c, d, e, f] = COOKIE;
    [a, b, 0, attributes_len, c, d, e, f]
}

/// What addresses are combined with: cookie and transaction id, bytes 4..20 of the header.
#[inline]
fn mask(txid: TxId) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&COOKIE);
    mask[4..].copy_from_slice(&txid.0);
    mask
}

#[inline]
fn widen(ip: Ipv4Addr) -> [u8; 16] {
    let [a, b, c, d] = ip.octets();
    [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

#[inline]
const fn xor(a: [u8; 16], b: [u8; 16]) -> [u8; 16] {
    (u128::from_ne_bytes(a) ^ u128::from_ne_bytes(b)).to_ne_bytes()
}

/// CRC-32 of IEEE 802.3, one byte a step.
#[inline]
pub(crate) const fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    let mut i = 0;
    while i < bytes.len() {
        let [low, ..] = crc.to_le_bytes();
        crc = CRC_TABLE[(low ^ bytes[i]) as usize] ^ (crc >> 8);
        i += 1;
    }
    !crc
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0xedb8_8320 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    extern crate std;
    use std::vec::Vec;

    const TXID: TxId = TxId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);

    /// Taken from a stock client.
    const STOCK_REQUEST: &str =
        "000100142112a442000102030405060708090a0b802200087461696c6e6f6465802800048aabad90";
    /// Taken from derper, asked from 192.0.2.1:1025.
    const STOCK_ANSWER_V4: &str =
        "0101000c2112a442000102030405060708090a0b0020000800012513e112a643";
    /// Taken from derper, asked from [2001:db8::1]:1025.
    const STOCK_ANSWER_V6: &str = "010100182112a442000102030405060708090a0b\
         00200014000225130113a9fa000102030405060708090a0a";
    /// RFC 5769 section 2.1: a request as ICE sends it.
    const RFC_REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae\
         802200105354554e207465737420636c69656e74\
         002400046e0001ff80290008932ff9b151263b36\
         000600096576746a3a68367659202020\
         000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf";
    /// RFC 5769 section 2.2.
    const RFC_ANSWER_V4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae\
         8022000b7465737420766563746f7220002000080001a147e112a643\
         000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
    /// RFC 5769 section 2.3.
    const RFC_ANSWER_V6: &str = "010100482112a442b7e7a701bc34d686fa87dfae\
         8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9\
         00080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c";

    fn unhex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pairs = digits.chunks_exact(2);
        let pairs = pairs.map(|pair| core::str::from_utf8(pair).expect("hex is ASCII"));
        pairs.map(|pair| u8::from_str_radix(pair, 16).expect("filtered")).collect()
    }

    /// A request with `attributes` and a header that gives their length.
    fn plain(attributes: &[u8]) -> Vec<u8> {
        let mut datagram = std::vec![0, 1, 0, attributes.len() as u8];
        datagram.extend(COOKIE);
        datagram.extend(TXID.0);
        datagram.extend(attributes);
        datagram
    }

    /// Appends a valid checksum attribute; the header's length stays as it is.
    fn seal(mut datagram: Vec<u8>) -> Vec<u8> {
        let sum = crc32(&datagram) ^ FINGERPRINT_XOR;
        datagram.extend([0x80, 0x28, 0, 4]);
        datagram.extend(sum.to_be_bytes());
        datagram
    }

    fn bad(fault: Fault) -> Result<Request, Reject> {
        Err(Reject::Bad(fault))
    }

    #[test]
    fn crc_of_the_usual_check_string() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn speaks_as_stock_client_and_derper_do() {
        assert_eq!(request(TXID)[..], unhex(STOCK_REQUEST));
        let request = parse(&unhex(STOCK_REQUEST)).expect("a stock request");
        let mut out = [0xee; ANSWER_LEN_MAX];
        let v4 = SocketAddr::from(([192, 0, 2, 1], 1025));
        assert_eq!(request.answer(v4, &mut out), unhex(STOCK_ANSWER_V4));
        let v6 = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 1025));
        assert_eq!(request.answer(v6, &mut out), unhex(STOCK_ANSWER_V6));
        let mapped = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped(), 1025));
        assert_eq!(request.answer(mapped, &mut out), unhex(STOCK_ANSWER_V4));
    }

    #[test]
    fn reads_the_answers_of_rfc_5769() {
        for (vector, address) in [
            (RFC_ANSWER_V4, "192.0.2.1:32853"),
            (RFC_ANSWER_V6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
        ] {
            let datagram = unhex(vector);
            assert!(fingerprint_holds(&datagram));
            let answer = parse_answer(&datagram).expect("a vector of the RFC");
            assert_eq!(answer.address, address.parse().expect("an address"));
        }
    }

    #[test]
    fn leaves_requests_for_what_it_does_not_offer_alone() {
        let ice = unhex(RFC_REQUEST);
        assert!(fingerprint_holds(&ice));
        assert_eq!(parse(&ice), bad(Fault::Required));
        assert_eq!(parse(&plain(&[0, 3, 0, 4, 0, 0, 0, 2])), bad(Fault::Required));
    }

    #[test]
    fn answers_plain_requests() {
        let expected = Ok(Request { txid: TXID });
        assert_eq!(parse(&plain(&[])), expected);
        assert_eq!(parse(&plain(&[0x80, 0x22, 0, 2, b'h', b'i', 0, 0])), expected);
        let mut sealed = plain(&[]);
        sealed[3] = 8;
        assert_eq!(parse(&seal(sealed)), expected);
    }

    #[test]
    fn plain_requests_must_be_well_formed() {
        let mut short = plain(&[0x80, 0x22, 0, 0]);
        short[3] = 0;
        assert_eq!(parse(&short), bad(Fault::Length));
        assert_eq!(parse(&plain(&[0x80, 0x22, 0])), bad(Fault::Truncated));
        assert_eq!(parse(&plain(&[0x80, 0x22, 0, 1, 0])), bad(Fault::Truncated));
        assert_eq!(parse(&seal(plain(&[]))), bad(Fault::Length));
        let early = [0x80, 0x28, 0, 4, 0, 0, 0, 0, 0x80, 0x22, 0, 0];
        assert_eq!(parse(&plain(&early)), bad(Fault::Fingerprint));
    }

    #[test]
    fn tailnode_requests_may_give_any_length_and_carry_anything() {
        let mut odd = plain(&[0x80, 0x22, 0, 8]);
        odd.extend(TAILNODE);
        odd.extend([0, 3, 0, 1, 7, 0, 0, 0]);
        odd[2] = 0x12;
        assert_eq!(parse(&seal(odd.clone())), Ok(Request { txid: TXID }));
        assert_eq!(parse(&odd), bad(Fault::Length));
    }

    #[test]
    fn tells_other_protocols_and_other_messages_apart() {
        let wireguard = [1; 148];
        assert_eq!(parse(&wireguard), Err(Reject::NotStun));
        assert_eq!(Reject::NotStun.drop_reason(), DropReason::NotStun);
        let mut turn = plain(&[]);
        turn[0] = 0x40;
        assert_eq!(parse(&turn), Err(Reject::NotStun));
        assert_eq!(parse(&unhex(STOCK_ANSWER_V4)), bad(Fault::Kind));
        assert_eq!(Reject::Bad(Fault::Kind).drop_reason(), DropReason::BadStun);
        assert_eq!(parse_answer(&unhex(STOCK_REQUEST)), Err(Reject::Bad(Fault::Kind)));
    }

    #[test]
    fn work_on_one_datagram_is_bounded() {
        let mut long = plain(&[]);
        long.resize(REQUEST_LEN_MAX + 4, 0);
        assert_eq!(parse(&long), bad(Fault::TooLong));
        let many = [0x80, 0xff, 0, 0].repeat(ATTRIBUTES_MAX + 1);
        let mut datagram = plain(&many);
        datagram[2..4].copy_from_slice(&(many.len() as u16).to_be_bytes());
        assert_eq!(parse(&datagram), bad(Fault::TooManyAttributes));
        datagram.truncate(HEADER_LEN + 4 * ATTRIBUTES_MAX);
        datagram[2..4].copy_from_slice(&(4 * ATTRIBUTES_MAX as u16).to_be_bytes());
        assert_eq!(parse(&datagram), Ok(Request { txid: TXID }));
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = unhex(STOCK_REQUEST);
        for cut in 0..whole.len() {
            let expected = match cut {
                0..HEADER_LEN => Err(Reject::NotStun),
                HEADER_LEN | 32 => bad(Fault::Length),
                _ => bad(Fault::Truncated),
            };
            assert_eq!(parse(&whole[..cut]), expected, "{cut} bytes");
        }
        let whole = unhex(STOCK_ANSWER_V6);
        for cut in 0..whole.len() {
            assert!(parse_answer(&whole[..cut]).is_err(), "{cut} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let whole = unhex(STOCK_REQUEST);
        // A flip in the checksum's type makes it some other attribute.
        for bit in (0..whole.len() * 8).filter(|bit| !(32..34).contains(&(bit / 8))) {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn clients_take_old_answers_and_prefer_masked_addresses() {
        let mut old = unhex(STOCK_ANSWER_V4);
        old[20] = 0x80;
        assert!(parse_answer(&old).is_ok());
        let clear = [0, 1, 0, 8, 0, 1, 0, 80, 198, 51, 100, 7];
        let mut both = plain(&clear);
        both[0] = 1;
        assert_eq!(
            parse_answer(&both).map(|answer| answer.address),
            Ok(SocketAddr::from(([198, 51, 100, 7], 80)))
        );
        both.extend(&unhex(STOCK_ANSWER_V4)[20..]);
        both[3] = 24;
        assert_eq!(
            parse_answer(&both).map(|answer| answer.address),
            Ok(SocketAddr::from(([192, 0, 2, 1], 1025)))
        );
        both.truncate(HEADER_LEN);
        both[3] = 0;
        assert_eq!(parse_answer(&both), Err(Reject::Bad(Fault::NoAddress)));
    }

    proptest! {
        #[test]
        fn requests_and_answers_round_trip(txid: [u8; 12], ip: IpAddr, port: u16) {
            let request = parse(&request(TxId(txid))).expect("our own request");
            let mut out = [0; ANSWER_LEN_MAX];
            let answer = parse_answer(request.answer(SocketAddr::new(ip, port), &mut out));
            let address = SocketAddr::new(ip.to_canonical(), port);
            prop_assert_eq!(answer, Ok(Answer { txid: TxId(txid), address }));
        }

        #[test]
        fn any_bytes_are_safe(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (parse(&bytes), parse_answer(&bytes));
            let _ = (parse(&plain(&bytes)), parse(&seal(plain(&bytes))));
            let mut answer = plain(&bytes);
            answer[0] = 1;
            let _ = parse_answer(&answer);
        }
    }
}
