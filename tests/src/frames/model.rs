//! What ought to become of a frame, worked out slowly.
//!
//! Owns the rules of the fast path a second time, over `SocketAddr` and vectors: STUN requests are
//! judged by `wire::stun`, which the sockets use, and every frame that leaves is built from its
//! parts with whole checksums. A shared mistake would have to be made twice.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wire::maps::{Address, FlowKey, Outcome, exit, feature};
use wire::packet::World;
use wire::stun::{ANSWER_LEN_MAX, COOKIE, parse};

use super::build::{Datagram, Sum, ones};
use super::{Judged, Table};

/// A datagram for a served port, as found.
struct Found<'a> {
    frame: &'a [u8],
    /// Bytes of the Ethernet header.
    l2: usize,
    source: SocketAddr,
    target: SocketAddr,
    /// Bytes of IP payload that the IP header gives.
    ip_payload: Option<usize>,
    udp: &'a [u8],
    /// Behind the driver: bytes of payload in each of the datagrams that were merged, or 0.
    late: Option<usize>,
}

/// What the rules make of `frame`.
#[must_use]
pub fn model(frame: &[u8], table: &Table) -> Judged {
    judged(frame, None, table)
}

/// The same behind the driver, where the kernel may have merged datagrams of `each` bytes of payload.
#[must_use]
pub fn model_late(frame: &[u8], each: usize, table: &Table) -> Judged {
    judged(frame, Some(each), table)
}

fn judged(frame: &[u8], late: Option<usize>, table: &Table) -> Judged {
    match find(frame, table) {
        None => (None, frame.to_vec()),
        Some(found) => match verdict(&Found { late, ..found }, table) {
            Ok((outcome, sent)) => (Some(outcome), sent),
            Err(outcome) => (Some(outcome), frame.to_vec()),
        },
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn find<'a>(frame: &'a [u8], table: &Table) -> Option<Found<'a>> {
    let l2 = if be16(frame.get(..18)?, 12) == 0x8100 { 18 } else { 14 };
    let ip = &frame[l2..];
    let (source, target, ip_payload, udp): (IpAddr, IpAddr, _, _) = match be16(frame, l2 - 2) {
        0x0800 => {
            let ip = ip.get(..48).map(|_| ip)?;
            if ip[0] != 0x45 || ip[9] != 17 || be16(ip, 6) & 0x3fff != 0 {
                return None;
            }
            let at = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
            let payload = usize::from(be16(ip, 2)).checked_sub(20);
            (at(12).into(), at(16).into(), payload, &ip[20..])
        }
        0x86dd => {
            let ip = ip.get(..68).map(|_| ip)?;
            if ip[0] >> 4 != 6 || ip[6] != 17 {
                return None;
            }
            let at = |at: usize| {
                Ipv6Addr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).expect("sixteen bytes"))
            };
            (at(8).into(), at(24).into(), Some(usize::from(be16(ip, 4))), &ip[40..])
        }
        _ => return None,
    };
    let source = SocketAddr::new(source, be16(udp, 0));
    let target = SocketAddr::new(target, be16(udp, 2));
    let served = target.port() != 0 && table.config.ports.contains(&target.port().to_be());
    served.then_some(Found { frame, l2, source, target, ip_payload, udp, late: None })
}

/// A host elsewhere may have this address.
fn plausible(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, ..] = ip.octets();
            first != 0 && !ip.is_loopback() && !ip.is_multicast() && first < 240
        }
        IpAddr::V6(ip) => {
            let disguised = ip.to_ipv4_mapped().is_some();
            !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !disguised
        }
    }
}

fn verdict(found: &Found<'_>, table: &Table) -> Result<(Outcome, Vec<u8>), Outcome> {
    let len = usize::from(be16(found.udp, 4));
    let whole = Some(len) == found.ip_payload && len >= 28 && found.udp.len() >= len;
    let group = found.frame[0] % 2 == 1;
    let (source, target) = (found.source, found.target);
    if !whole
        || group
        || !plausible(source.ip())
        || source.ip() == target.ip()
        || source.port() == 0
    {
        return Err(Outcome::Odd);
    }
    let payload = &found.udp[8..len];
    if payload[..2] == [0, 1] && payload[4..8] == COOKIE {
        if found.late.is_some() {
            return Err(Outcome::LateStun);
        }
        return stun(found, payload, table);
    }
    match payload[..4] {
        [1..=3, 0, 0, 0] => Err(Outcome::Handshake),
        [4, 0, 0, 0] => data(found, payload, table),
        _ => Err(Outcome::Unknown),
    }
}

/// What a datagram's checksum is.
fn sum(found: &Found<'_>, payload: &[u8]) -> Sum {
    let stored = be16(found.udp, 6);
    let of = |sum| {
        let built = rebuilt(found, found.source, found.target, payload, sum).build();
        be16(&built[built.len() - payload.len() - 8..], 6)
    };
    match stored {
        0 => Sum::Zero,
        sum if sum == of(Sum::Partial) => Sum::Partial,
        sum if sum == of(Sum::Right) => Sum::Right,
        _ => Sum::Wrong,
    }
}

/// The datagram between other ends.
fn rebuilt<'a>(
    found: &Found<'_>,
    source: SocketAddr,
    target: SocketAddr,
    payload: &'a [u8],
    sum: Sum,
) -> Datagram<'a> {
    let mut stations = [0; 12];
    stations[..6].copy_from_slice(&found.frame[6..12]);
    stations[6..].copy_from_slice(&found.frame[..6]);
    let tag = (found.l2 == 18).then(|| be16(found.frame, 14));
    Datagram { stations, tag, class: 0, id: 0, whole: true, hops: 64, source, target, payload, sum }
}

fn stun(found: &Found<'_>, payload: &[u8], table: &Table) -> Result<(Outcome, Vec<u8>), Outcome> {
    if table.config.features & feature::STUN == 0 {
        return Err(Outcome::Off);
    }
    if !table.locals.contains(&Address::from(found.target.ip())) {
        return Err(Outcome::NotLocal);
    }
    let known = match payload.len() {
        20 => true,
        28 => payload[20..24] == [0x80, 0x28, 0, 4],
        40 => {
            payload[2..4] == [0, 20]
                && payload[20..32] == *b"\x80\x22\x00\x08tailnode"
                && payload[32..36] == [0x80, 0x28, 0, 4]
        }
        _ => false,
    };
    let request = parse(payload).ok().filter(|_| known).ok_or(Outcome::OddStun)?;
    match sum(found, payload) {
        Sum::Right | Sum::Partial => {}
        Sum::Zero if found.source.is_ipv4() => {}
        Sum::Zero | Sum::Wrong => return Err(Outcome::BadChecksum),
    }
    if table.now_ns.get() >= table.config.alive_until_ns {
        return Err(Outcome::Off);
    }
    if table.config.features & feature::SHED != 0 {
        return Err(Outcome::Shed);
    }
    if !table.admit(prefix(found.source.ip()), table.now_ns.get()) {
        return Err(Outcome::RateLimited);
    }
    let mut out = [0; ANSWER_LEN_MAX];
    let answer = request.answer(found.source, &mut out);
    let sent = rebuilt(found, found.target, found.source, answer, Sum::Right);
    let answered = if found.source.is_ipv4() { Outcome::AnsweredV4 } else { Outcome::AnsweredV6 };
    Ok((answered, sent.build()))
}

fn prefix(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3].iter().fold(0, |net, byte| net << 8 | u64::from(*byte)),
        IpAddr::V6(ip) => ip.octets()[..6].iter().fold(1, |net, byte| net << 8 | u64::from(*byte)),
    }
}

fn data(found: &Found<'_>, payload: &[u8], table: &Table) -> Result<(Outcome, Vec<u8>), Outcome> {
    if table.config.features & feature::RELAY == 0 {
        return Err(Outcome::Off);
    }
    if payload.len() < 32 {
        return Err(Outcome::Unknown);
    }
    let receiver = u32::from_le_bytes([payload[4], payload[5], payload[6], payload[7]]);
    let key = FlowKey::new(found.source, found.target, receiver);
    let hop = table.flows.get(&key).ok_or(Outcome::NoFlow)?;
    let end_ns = u128::from(table.config.alive_until_ns) + 190_000_000_000;
    if u128::from(table.now_ns.get()) >= end_ns {
        return Err(Outcome::Off);
    }
    if IpAddr::from(hop.local) != found.target.ip() {
        return Err(Outcome::NotLocal);
    }
    let v4 = found.source.is_ipv4();
    let each = found.late.filter(|each| *each > 0).unwrap_or(payload.len());
    let parts: Vec<_> = payload.chunks(each).collect();
    let alike = |part: &&[u8]| part.len() >= 32 && part[..8] == payload[..8];
    if each < 32 || parts.len() > 64 || !parts.iter().all(alike) {
        return Err(Outcome::Mixed);
    }
    let sum = match sum(found, payload) {
        // Here the kernel would know, and it is told nothing: a number like any other.
        Sum::Partial if found.late.is_some() => Sum::Wrong,
        Sum::Partial => return Err(Outcome::PartialChecksum),
        Sum::Zero if !v4 => return Err(Outcome::PartialChecksum),
        sum => sum,
    };
    let outcome = match hop.exit {
        exit::BACK => Outcome::Forwarded,
        _ if found.l2 == 18 => return Err(Outcome::NoExit),
        exit::TURN => Outcome::Forwarded,
        out if table.exits.contains(&(out - exit::OUT)) => Outcome::Redirected,
        _ => return Err(Outcome::NoExit),
    };
    let source = SocketAddr::new(hop.source.into(), u16::from_be(hop.source_port));
    let target = SocketAddr::new(hop.target.into(), u16::from_be(hop.target_port));
    let mut sent = rebuilt(found, source, target, payload, sum);
    if hop.exit != exit::BACK {
        let words = hop.stations.map(u32::to_ne_bytes);
        sent.stations.copy_from_slice(words.as_flattened());
    }
    let mut sent = sent.build();
    keep(found, payload, sum, &mut sent);
    table.account(hop.cell, parts.len() as u64, payload.len() as u64);
    Ok((outcome, sent))
}

/// Puts into `sent` what forwarding leaves as it is: class, identification, the fragment field,
/// padding; and makes checksums as wrong as they were before.
fn keep(found: &Found<'_>, payload: &[u8], sum: Sum, sent: &mut Vec<u8>) {
    let ip = found.l2;
    if found.source.is_ipv4() {
        for at in [ip + 1, ip + 4, ip + 5, ip + 6, ip + 7] {
            sent[at] = found.frame[at];
        }
        let before = ones(&found.frame[ip..ip + 20]);
        sent[ip + 10..ip + 12].fill(0);
        let header = difference(before, ones(&sent[ip..ip + 20]));
        sent[ip + 10..ip + 12].copy_from_slice(&header.to_be_bytes());
    } else {
        sent[ip..ip + 4].copy_from_slice(&found.frame[ip..ip + 4]);
    }
    if sum == Sum::Wrong {
        let addresses = if found.source.is_ipv4() { 12..20 } else { 8..40 };
        let udp = sent.len() - payload.len() - 8;
        sent[udp + 6..udp + 8].fill(0);
        // Protocol and length are the same on both sides.
        let all = |frame: &[u8]| {
            let ends = &frame[ip + addresses.start..ip + addresses.end];
            ones(&[ends, &frame[udp..udp + 8 + payload.len()]].concat())
        };
        let datagram = match difference(all(found.frame), all(sent)) {
            0 => 0xffff,
            sum => sum,
        };
        sent[udp + 6..udp + 8].copy_from_slice(&datagram.to_be_bytes());
    }
    sent.extend(&found.udp[payload.len() + 8..]);
}

/// `a - b` in one's complement, where 0 and 0xffff are one number: 0.
fn difference(a: u16, b: u16) -> u16 {
    ((u32::from(a) + 0xffff - u32::from(b)) % 0xffff) as u16
}
