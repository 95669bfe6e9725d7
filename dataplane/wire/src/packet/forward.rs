//! WireGuard data on its way through: a lookup, new addresses, a repaired checksum.
//!
//! Owns the rewriting of one datagram. The payload is neither read nor changed, but for the
//! receiver index that the flow is found by. Type of service, ECN, identification and "do not
//! fragment" stay; the hop limit starts anew, as with any datagram that a relay sends. The address
//! family never changes here. [`super::judge`] calls it.

use super::{
    Change, Frame, HOPS, IPV4_LEN, TAGGED_LEN, UDP_LEN, World, address_sum, checksum, pseudo_sum,
    set_address, set_words, source, swapped, target, words,
};
use crate::maps::{FlowKey, Hop, Outcome, exit, feature};

/// Bytes of the shortest data message: an empty one, a keepalive.
const DATA_LEN_MIN: usize = 32;
/// Datagrams that the kernel has merged are looked at one by one, up to as many as it merges in
/// receiving (UDP_GRO_CNT_MAX).
const MERGED_MAX: usize = 64;

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
    if !world.config().lingers(world.now_ns()) {
        return Outcome::Off;
    }
    let local = target::<F, L2, IP>(frame);
    if local != hop.local {
        return Outcome::NotLocal;
    }
    let payload_len = len - UDP_LEN;
    let Some(packets) = packets(frame, udp + UDP_LEN, payload_len) else {
        return Outcome::Mixed;
    };
    let Ok(sum) = Sum::find::<F, L2, IP>(frame, len) else {
        return Outcome::PartialChecksum;
    };
    let outcome = match hop.exit {
        exit::BACK => Outcome::Forwarded,
        // The tag would have to be the other side's.
        _ if L2 == TAGGED_LEN || frame.is_tagged() => return Outcome::NoExit,
        exit::TURN => Outcome::Forwarded,
        out if world.is_ingress(out - exit::OUT) => Outcome::Forwarded,
        out if world.redirect(out - exit::OUT) => Outcome::Redirected,
        _ => return Outcome::NoExit,
    };
    rewrite::<F, L2, IP>(frame, hop, sum);
    world.account(hop.cell, packets, payload_len as u64);
    outcome
}

/// How many datagrams a frame holds whose UDP payload is `len` bytes from `at` on; `None` if they are
/// not all of one flow, which is that of the first.
#[inline(always)]
fn packets<F: Frame>(frame: &F, at: usize, len: usize) -> Option<u64> {
    let each = frame.segment_len();
    if each == 0 {
        return Some(1);
    }
    let head = [frame.word(at), frame.word(at + 4)];
    if each < DATA_LEN_MIN {
        return None;
    }
    let mut done = 0;
    let mut packets = 0;
    while packets < MERGED_MAX {
        packets += 1;
        done += each;
        if done >= len {
            return Some(packets as u64);
        }
        if len - done < DATA_LEN_MIN || frame.peek(at + done) != Some(head) {
            return None;
        }
    }
    None
}

/// What is in the way of repairing a checksum: nobody has computed it.
struct Partial;

/// What a datagram's UDP checksum will be.
#[derive(Clone, Copy)]
enum Sum {
    /// None, which IPv4 allows, and so it stays.
    Absent,
    /// Whatever the difference makes of it.
    Present,
}

impl Sum {
    /// What the checksum of a datagram of `len` bytes is.
    ///
    /// A sender that leaves it to its network card puts the pseudo header's sum there, and where no
    /// card comes between, as among containers, that is what arrives. To repair it would make it
    /// wrong, unless the kernel does it, which knows. One good checksum in 65536 looks the same.
    #[inline(always)]
    fn find<F: Frame, const L2: usize, const IP: usize>(
        frame: &F,
        len: usize,
    ) -> Result<Self, Partial> {
        let checksum = frame.short(L2 + IP + 6);
        if checksum == 0 {
            return if IP == IPV4_LEN { Ok(Self::Absent) } else { Err(Partial) };
        }
        if F::REPAIRS {
            return Ok(Self::Present);
        }
        let addresses = address_sum::<IP>(&source::<F, L2, IP>(frame))
            + address_sum::<IP>(&target::<F, L2, IP>(frame));
        let partial = checksum == checksum::fold(addresses + pseudo_sum(len));
        if partial { Err(Partial) } else { Ok(Self::Present) }
    }
}

/// Gives the datagram its new ends.
#[inline(always)]
fn rewrite<F: Frame, const L2: usize, const IP: usize>(frame: &mut F, hop: &Hop, sum: Sum) {
    let udp = L2 + IP;
    let stations = if hop.exit == exit::BACK { swapped(words(frame, 0)) } else { hop.stations };
    let addresses = [
        address_sum::<IP>(&source::<F, L2, IP>(frame))
            + address_sum::<IP>(&target::<F, L2, IP>(frame)),
        address_sum::<IP>(&hop.source) + address_sum::<IP>(&hop.target),
    ];
    let ports = [
        u64::from(frame.short(udp)) + u64::from(frame.short(udp + 2)),
        u64::from(hop.source_port) + u64::from(hop.target_port),
    ];
    set_words(frame, 0, stations);
    let limits = set_limit::<F, L2, IP>(frame);
    if IP == IPV4_LEN {
        let [minus, plus] = [0, 1].map(|i| addresses[i] + limits[i]);
        frame.set_short(L2 + 10, checksum::repair_ipv4(frame.short(L2 + 10), minus, plus));
        set_address::<F, IP>(frame, L2 + 12, &hop.source);
        set_address::<F, IP>(frame, L2 + 16, &hop.target);
    } else {
        set_address::<F, IP>(frame, L2 + 8, &hop.source);
        set_address::<F, IP>(frame, L2 + 24, &hop.target);
    }
    frame.set_short(udp, hop.source_port);
    frame.set_short(udp + 2, hop.target_port);
    match sum {
        Sum::Absent | Sum::Present if F::REPAIRS => {
            let rest = match sum {
                Sum::Absent => ports,
                // IPv4's own checksum makes up for what changes in its header.
                Sum::Present if IP == IPV4_LEN => [0; 2],
                Sum::Present => [0, 1].map(|i| addresses[i] + limits[i]),
            };
            frame.repair(
                udp + 6,
                &Change {
                    pseudo: checksum::difference(addresses[0], addresses[1]),
                    ports: checksum::difference(ports[0], ports[1]),
                    rest: checksum::difference(rest[0], rest[1]),
                },
            );
        }
        Sum::Absent => {}
        Sum::Present => {
            let [minus, plus] = [0, 1].map(|i| addresses[i] + ports[i]);
            let old = frame.short(udp + 6);
            frame.set_short(udp + 6, checksum::repair_udp(old, minus, plus));
        }
    }
}

/// Starts the hop limit anew; returns the words it is in, before and after.
#[inline(always)]
fn set_limit<F: Frame, const L2: usize, const IP: usize>(frame: &mut F) -> [u64; 2] {
    let at = if IP == IPV4_LEN { L2 + 8 } else { L2 + 6 };
    let before = frame.short(at);
    let [first, second] = before.to_ne_bytes();
    let bytes = if IP == IPV4_LEN { [HOPS, second] } else { [first, HOPS] };
    let after = u16::from_ne_bytes(bytes);
    frame.set_short(at, after);
    [before.into(), after.into()]
}
