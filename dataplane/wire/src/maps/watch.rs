//! Maps `WATCH`, `EVENTS` and `TIME`: a closer look at the programs, for a while.
//!
//! Owns how long a look lasts, what is told of a packet, and how durations are put in rows. Nothing
//! of a payload is ever told. The deadlines are the kernel's to keep, so that a look ends even if
//! whoever asked for it is gone. The loader writes `WATCH`, the programs the other two.

use core::net::{IpAddr, SocketAddr};

use super::bytes::{Reader, Writer};
use super::{Address, Outcome};

/// Map `WATCH`, an array of one: which looks are taken, and until when. Deadlines are in nanoseconds
/// of `CLOCK_MONOTONIC`. Heeded only while [`super::feature`] says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Watching {
    /// When tracing ends.
    pub trace_until_ns: u64,
    /// When measuring time ends.
    pub time_until_ns: u64,
    /// A packet is traced if a random number is not above this one.
    pub chance: u32,
    /// Nothing.
    pub zero: u32,
}

impl Watching {
    /// Bytes of the value.
    pub const LEN: usize = 24;

    /// The chance that traces one packet in `n`; none at all in 0.
    #[must_use]
    pub const fn one_in(n: u32) -> u32 {
        match n {
            0 => 0,
            n => u32::MAX / n,
        }
    }

    /// As map memory has it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = Writer::new();
        out.put(self.trace_until_ns.to_ne_bytes());
        out.put(self.time_until_ns.to_ne_bytes());
        out.words([self.chance, self.zero]);
        out.finish()
    }
}

/// Who sent a datagram to whom, before anything was rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Ends {
    /// Whom it came from.
    pub source: Address,
    /// Whom it came to.
    pub target: Address,
    /// Port it came from, as in the packet.
    pub source_port: u16,
    /// Port it came to, as in the packet.
    pub target_port: u16,
    /// Bytes of UDP payload as its header has it, whatever else is wrong; of all datagrams that the
    /// kernel has merged.
    pub payload_len: u32,
}

/// Map `EVENTS`, a ring buffer: what became of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// When the program had decided, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Who and whom.
    pub ends: Ends,
    /// Bytes of the frame as it came.
    pub frame_len: u32,
    /// Number of the interface that it came in by.
    pub interface: u32,
    /// Index of an [`Outcome`].
    pub outcome: u32,
    /// Datagrams in it, which are several if the kernel has merged them.
    pub datagrams: u32,
}

impl Event {
    /// Bytes of an event.
    pub const LEN: usize = 64;

    /// Whom it came from.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::from(self.ends.source), u16::from_be(self.ends.source_port))
    }

    /// Whom it came to.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::from(self.ends.target), u16::from_be(self.ends.target_port))
    }

    /// What became of it.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        Outcome::from_index(self.outcome)
    }

    /// From map memory.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let mut bytes = Reader(bytes);
        Self {
            at_ns: bytes.long(),
            ends: Ends {
                source: Address(bytes.words()),
                target: Address(bytes.words()),
                source_port: bytes.short(),
                target_port: bytes.short(),
                payload_len: bytes.word(),
            },
            frame_len: bytes.word(),
            interface: bytes.word(),
            outcome: bytes.word(),
            datagrams: bytes.word(),
        }
    }
}

/// Rows of map `TIME`. The last has everything beyond: from 2^23 ns, 8 ms, on.
pub const ROWS: u32 = 24;

/// The row of map `TIME` that a duration is counted in: `n` has those from 2^n to 2^(n + 1) - 1
/// nanoseconds, and the first has 0 too.
#[inline(always)]
#[must_use]
pub const fn row(duration_ns: u64) -> u32 {
    // Without the compiler's own count of leading zeros, which takes no instruction here but forty.
    let mut row = 0;
    let mut rest = duration_ns >> 1;
    while rest != 0 && row < ROWS - 1 {
        rest >>= 1;
        row += 1;
    }
    row
}

const _: () = {
    assert!(size_of::<Watching>() == Watching::LEN && align_of::<Watching>() == 8);
    assert!(size_of::<Event>() == Event::LEN && align_of::<Event>() == 8);
};

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn encoded_fields_stand_where_the_struct_has_them() {
        let watching = Watching { trace_until_ns: 1, time_until_ns: 2, chance: 3, zero: 0 };
        let bytes = watching.encode();
        assert_eq!(bytes[offset_of!(Watching, trace_until_ns)], 1);
        assert_eq!(bytes[offset_of!(Watching, time_until_ns)], 2);
        assert_eq!(bytes[offset_of!(Watching, chance)], 3);
    }

    #[test]
    fn events_are_read_from_where_the_program_writes() {
        let mut bytes = [0; Event::LEN];
        let ends = offset_of!(Event, ends);
        for (offset, value) in [
            (offset_of!(Event, at_ns), 1),
            (ends + offset_of!(Ends, source), 2),
            (ends + offset_of!(Ends, target), 3),
            (ends + offset_of!(Ends, source_port), 4),
            (ends + offset_of!(Ends, target_port), 5),
            (ends + offset_of!(Ends, payload_len), 6),
            (offset_of!(Event, frame_len), 7),
            (offset_of!(Event, interface), 8),
            (offset_of!(Event, outcome), 9),
            (offset_of!(Event, datagrams), 10),
        ] {
            bytes[offset] = value;
        }
        let first = |value: u32| Address([u32::from_ne_bytes([value as u8, 0, 0, 0]), 0, 0, 0]);
        let expected = Event {
            at_ns: u64::from_ne_bytes([1, 0, 0, 0, 0, 0, 0, 0]),
            ends: Ends {
                source: first(2),
                target: first(3),
                source_port: u16::from_ne_bytes([4, 0]),
                target_port: u16::from_ne_bytes([5, 0]),
                payload_len: u32::from_ne_bytes([6, 0, 0, 0]),
            },
            frame_len: u32::from_ne_bytes([7, 0, 0, 0]),
            interface: u32::from_ne_bytes([8, 0, 0, 0]),
            outcome: u32::from_ne_bytes([9, 0, 0, 0]),
            datagrams: u32::from_ne_bytes([10, 0, 0, 0]),
        };
        assert_eq!(Event::decode(&bytes), expected);
        assert_eq!(expected.outcome(), Outcome::from_index(9));
    }

    #[test]
    fn each_row_has_twice_the_span_of_the_one_before() {
        assert_eq!([0, 1, 2, 3, 4, 7, 8].map(row), [0, 0, 1, 1, 2, 2, 3]);
        for n in 1..ROWS {
            assert_eq!([row((1 << n) - 1), row(1 << n)], [n - 1, n]);
        }
        assert_eq!([row(1 << ROWS), row(u64::MAX)], [ROWS - 1; 2]);
    }

    #[test]
    fn chances_are_shares_of_all_numbers() {
        assert_eq!(Watching::one_in(1), u32::MAX);
        assert_eq!(Watching::one_in(1000), 4_294_967);
        assert_eq!(Watching::one_in(0), 0);
    }
}
