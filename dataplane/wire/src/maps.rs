//! What user space and the XDP programs tell each other: keys and values of the eBPF maps.
//!
//! Owns their layout. What a program reads is `repr(C)` without padding, its size asserted for both
//! sides (invariant 9); user space, which may not reinterpret memory, writes and reads all of it as
//! bytes through `encode` and `decode`. Fields that are compared with or copied into packets are
//! kept as they lie in a packet, so that the fast path never swaps bytes. The loader, the judge of
//! [`crate::packet`] and the programs in `ebpf/` call it.

mod address;
mod bytes;
mod config;
mod flow;
mod outcome;
mod session;
mod watch;

pub use address::{Address, MAPPED};
pub use config::{Config, Pace, feature};
pub use flow::{Flow, FlowKey, Hop, exit};
pub use outcome::{Action, Outcome, Tally};
pub use session::{Kept, KeptKey, Leg, Session, SessionKey};
pub use watch::{Ends, Event, ROWS, Watching, row};

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
/// Sessions kept for a successor at most: each has two flows, and half of the places are in use at
/// best. They take memory only while they are kept.
pub const SESSIONS_MAX: u32 = PLACES / 4;
/// Bytes of the ring that traced packets are told through: 4,000 events.
pub const EVENTS_BYTES: u32 = 1 << 18;

/// The number of this layout. Maps that a process pins for its successor stand in a folder with this
/// number, so that nobody reads another layout as his own.
///
/// Raise it when anything changes that the maps hold: a size or an order, which a test below
/// notices, or what a value means, which nothing can notice but you.
pub const LAYOUT: u32 = 3;

/// The same for map `SESSION` alone, which outlives all other changes: a successor without its
/// predecessor's sessions forwards nothing until the peers shake hands again.
pub const SESSION_LAYOUT: u32 = 1;

const _: () = {
    assert!(PLACES.is_power_of_two());
    assert!(BUCKETS.is_power_of_two());
    assert!(EVENTS_BYTES.is_power_of_two());
};

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    /// Sizes, places of fields, capacities, the order of outcomes and the places of a flow, in one
    /// number (FNV-1a).
    fn shape() -> u64 {
        let key =
            FlowKey { source: Address([1, 2, 3, 4]), receiver: 5, source_port: 6, local_port: 7 };
        let config = Config {
            ports: [0; PORTS_MAX],
            features: 0,
            pace: Pace { cost_ns: 0, ahead_ns_max: 0 },
            seed: [8, 9],
            alive_until_ns: 0,
            near: [Address::NONE; NEAR_MAX],
        };
        let [first, second] = config.places(&key);
        let facts = [
            Config::LEN,
            offset_of!(Config, features),
            offset_of!(Config, pace),
            offset_of!(Config, seed),
            offset_of!(Config, alive_until_ns),
            offset_of!(Config, near),
            FlowKey::LEN,
            offset_of!(FlowKey, receiver),
            offset_of!(FlowKey, source_port),
            offset_of!(FlowKey, local_port),
            Hop::LEN,
            offset_of!(Hop, local),
            offset_of!(Hop, source),
            offset_of!(Hop, target),
            offset_of!(Hop, stations),
            offset_of!(Hop, source_port),
            offset_of!(Hop, target_port),
            offset_of!(Hop, exit),
            offset_of!(Hop, cell),
            Flow::LEN,
            Tally::LEN,
            Watching::LEN,
            Event::LEN,
            LOCALS_MAX as usize,
            PLACES as usize,
            CELLS_DEFAULT as usize,
            BUCKETS as usize,
            EXITS_MAX as usize,
            EVENTS_BYTES as usize,
            ROWS as usize,
            first as usize,
            second as usize,
        ];
        let facts = facts.into_iter().flat_map(|fact| (fact as u64).to_le_bytes());
        let labels = Outcome::ALL.iter().flat_map(|outcome| outcome.label().bytes());
        facts.chain(labels).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    #[test]
    fn another_layout_of_sessions_has_another_number() {
        // When this fails, or what a value means has changed: raise SESSION_LAYOUT.
        let shape = [KeptKey::LEN, Kept::LEN, SESSIONS_MAX as usize];
        assert_eq!((SESSION_LAYOUT, shape), (1, [72, 104, 16_384]));
    }

    #[test]
    fn another_layout_has_another_number() {
        // When this fails: raise LAYOUT, and write both numbers here.
        assert_eq!((LAYOUT, shape()), (3, 3_659_181_613_049_359_546));
    }
}
