//! Map `FLOW`: WireGuard data that may pass, and where it goes.
//!
//! Owns keys, values and what an exit means. Whether a flow exists is user space's to say. The
//! judge of [`crate::packet`] looks them up.

use core::net::SocketAddr;

use super::Address;
use super::bytes::{Reader, Writer};

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

/// Map `FLOW`, an array of [`super::PLACES`]. Written by user space, which has authenticated the flow.
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

const _: () = {
    assert!(size_of::<FlowKey>() == FlowKey::LEN && align_of::<FlowKey>() == 8);
    assert!(size_of::<Hop>() == Hop::LEN && align_of::<Hop>() == 8);
    assert!(size_of::<Flow>() == Flow::LEN && align_of::<Flow>() == 8);
};

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;
    use proptest::prelude::*;

    #[test]
    fn encoded_fields_stand_where_the_structs_have_them() {
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

    proptest! {
        #[test]
        fn values_round_trip(key: [u8; FlowKey::LEN], hop: [u8; Hop::LEN]) {
            prop_assert_eq!(FlowKey::decode(&key).encode(), key);
            prop_assert_eq!(Hop::decode(&hop).encode(), hop);
            let flow = Flow { key: FlowKey::decode(&key), hop: Hop::decode(&hop) };
            prop_assert_eq!(Flow::decode(&flow.encode()), Some(flow));
            prop_assert_eq!(Flow::decode(&Flow::FREE), None);
        }
    }
}
