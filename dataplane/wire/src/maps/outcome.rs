//! Maps `COUNT` and `STATS`: what became of packets, and how many.
//!
//! Owns the one list of outcomes, and what each means to the kernel, to the list of drop reasons
//! and to metrics. The judge of [`crate::packet`] returns them, the programs count them.

use super::bytes::Reader;
use crate::drop::DropReason;

/// What became of a packet to one of the served ports: the keys of map `COUNT`. Every such packet
/// is counted under exactly one (invariant 4); all others pass uncounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Outcome {
    /// A binding request over IPv4, answered in place.
    AnsweredV4,
    /// A binding request over IPv6, answered in place.
    AnsweredV6,
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
    /// A binding request met behind the driver (tcx), where nothing is answered: passed.
    LateStun,
    /// Datagrams that the kernel has merged and that are not all one flow's: passed.
    Mixed,
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
    pub const ALL: [Self; 19] = [
        Self::AnsweredV4,
        Self::AnsweredV6,
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
        Self::LateStun,
        Self::Mixed,
    ];

    /// Number of outcomes, the length of map `COUNT`.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// What the kernel is told.
    #[inline(always)]
    #[must_use]
    pub const fn action(self) -> Action {
        match self {
            Self::AnsweredV4 | Self::AnsweredV6 | Self::Forwarded => Action::Transmit,
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
            | Self::NoRoom
            | Self::LateStun
            | Self::Mixed => Action::Pass,
        }
    }

    /// The reason under which the relay counts it, if it is dropped.
    #[must_use]
    pub const fn drop_reason(self) -> Option<DropReason> {
        match self {
            Self::RateLimited => Some(DropReason::RateLimited),
            Self::Shed => Some(DropReason::Shed),
            Self::AnsweredV4
            | Self::AnsweredV6
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
            | Self::NoRoom
            | Self::LateStun
            | Self::Mixed => None,
        }
    }

    /// The metric label value.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::AnsweredV4 => "answered_ipv4",
            Self::AnsweredV6 => "answered_ipv6",
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
            Self::LateStun => "pass_late_stun",
            Self::Mixed => "pass_mixed",
        }
    }

    /// The outcome with this key in map `COUNT`.
    #[must_use]
    pub fn from_index(index: u32) -> Option<Self> {
        Self::ALL.get(index as usize).copied()
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
    /// Counts packets of `bytes` together.
    #[inline(always)]
    pub const fn add(&mut self, packets: u64, bytes: u64) {
        self.packets = self.packets.wrapping_add(packets);
        self.bytes = self.bytes.wrapping_add(bytes);
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

const _: () = assert!(size_of::<Tally>() == Tally::LEN && align_of::<Tally>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

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
}
