//! WireGuard data on its way through: a lookup, new addresses, a repaired checksum.
//!
//! Owns the rewriting of one datagram. The payload is neither read nor changed, but for the
//! receiver index that the flow is found by. Type of service, ECN, identification and "do not
//! fragment" stay; the hop limit starts anew, as with any datagram that a relay sends. The address
//! family never changes here. [`super::judge`] calls it.

use super::{
    Frame, HOPS, IPV4_LEN, TAGGED_LEN, UDP_LEN, World, address_sum, checksum, pseudo_sum,
    set_address, set_words, source, swapped, target, words,
};
use crate::maps::{FlowKey, Hop, Outcome, exit, feature};

/// Bytes of the shortest data message: an empty one, a keepalive.
const DATA_LEN_MIN: usize = 32;

/// Forwards a data message in a datagram of `len` bytes, if its flow is known.
///
/// ```text
///  0           4           8                      16
///  +-----------+-----------+----------------------+-------------
///  | 04 00 00 00 receiver  | counter              | ciphertext
///  +-----------+-----------+----------------------+-------------
/// ```
#[inline(always)]
pub(super) fn data<F: Frame, W: World, const L2: usize, const IP: usize>(
    frame: &mut F,
    world: &W,
    len: usize,
) -> Outcome {
    let udp = L2 + IP;
    if !world.config().has(feature::RELAY) {
        return Outcome::Off;
    }
    if len < UDP_LEN + DATA_LEN_MIN {
        return Outcome::Unknown;
    }
    let key = FlowKey {
        source: source::<F, L2, IP>(frame),
        receiver: frame.word(udp + UDP_LEN + 4),
        source_port: frame.short(udp),
        local_port: frame.short(udp + 2),
    };
    let Some(hop) = world.flow(&key) else {
        return Outcome::NoFlow;
    };
    let local = target::<F, L2, IP>(frame);
    if local != hop.local {
        return Outcome::NotLocal;
    }
    let old = address_sum::<IP>(&key.source)
        + address_sum::<IP>(&local)
        + u64::from(key.source_port)
        + u64::from(key.local_port);
    let Ok(sealed) = checksum_after::<F, L2, IP>(frame, hop, old, len) else {
        return Outcome::PartialChecksum;
    };
    let outcome = match hop.exit {
        exit::BACK => Outcome::Forwarded,
        // The tag would have to be the other side's.
        _ if L2 == TAGGED_LEN => return Outcome::NoExit,
        exit::TURN => Outcome::Forwarded,
        out if world.redirect(out - exit::OUT) => Outcome::Redirected,
        _ => return Outcome::NoExit,
    };
    rewrite::<F, L2, IP>(frame, hop, old, sealed);
    world.account(hop.cell, (len - UDP_LEN) as u64);
    outcome
}

/// A checksum that cannot be repaired.
struct Partial;

/// The UDP checksum that the datagram has after rewriting. `old` is the sum of addresses and ports.
///
/// A sender that leaves the checksum to its network card puts the pseudo header's sum there, and
/// where no card comes between, as among containers, that is what arrives. To repair it would make
/// it wrong; the kernel, which knows, has to finish it. One good checksum in 65536 looks the same.
#[inline(always)]
fn checksum_after<F: Frame, const L2: usize, const IP: usize>(
    frame: &F,
    hop: &Hop,
    old: u64,
    len: usize,
) -> Result<u16, Partial> {
    let checksum = frame.short(L2 + IP + 6);
    if checksum == 0 {
        // None was computed, which IPv4 allows and IPv6 does not.
        return if IP == IPV4_LEN { Ok(0) } else { Err(Partial) };
    }
    let addresses = old - u64::from(frame.short(L2 + IP)) - u64::from(frame.short(L2 + IP + 2));
    if checksum == checksum::fold(addresses + pseudo_sum(len)) {
        return Err(Partial);
    }
    let new = address_sum::<IP>(&hop.source)
        + address_sum::<IP>(&hop.target)
        + u64::from(hop.source_port)
        + u64::from(hop.target_port);
    Ok(checksum::repair_udp(checksum, old, new))
}

/// Gives the datagram its new ends. `old` is the sum of the addresses and ports it had, `sealed`
/// the UDP checksum it gets.
#[inline(always)]
fn rewrite<F: Frame, const L2: usize, const IP: usize>(
    frame: &mut F,
    hop: &Hop,
    old: u64,
    sealed: u16,
) {
    let udp = L2 + IP;
    let stations = if hop.exit == exit::BACK { swapped(words(frame, 0)) } else { hop.stations };
    set_words(frame, 0, stations);
    if IP == IPV4_LEN {
        let ports = u64::from(frame.short(udp)) + u64::from(frame.short(udp + 2));
        let limit = frame.short(L2 + 8);
        let [_, protocol] = limit.to_ne_bytes();
        let fresh = u16::from_ne_bytes([HOPS, protocol]);
        let minus = old - ports + u64::from(limit);
        let plus =
            address_sum::<IP>(&hop.source) + address_sum::<IP>(&hop.target) + u64::from(fresh);
        frame.set_short(L2 + 8, fresh);
        frame.set_short(L2 + 10, checksum::repair_ipv4(frame.short(L2 + 10), minus, plus));
        set_address::<F, IP>(frame, L2 + 12, &hop.source);
        set_address::<F, IP>(frame, L2 + 16, &hop.target);
    } else {
        frame.set_byte(L2 + 7, HOPS);
        set_address::<F, IP>(frame, L2 + 8, &hop.source);
        set_address::<F, IP>(frame, L2 + 24, &hop.target);
    }
    frame.set_short(udp, hop.source_port);
    frame.set_short(udp + 2, hop.target_port);
    frame.set_short(udp + 6, sealed);
}
