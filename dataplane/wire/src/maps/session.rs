//! Map `SESSION`: what user space leaves for its successor. No program reads it.
//!
//! Owns the layout of one relayed session: whose it is, its two directions, and when it ends. Public
//! keys only; nothing here opens a packet. The loader writes and reads it, the owner of the sessions
//! decides what is in it.

use core::net::{IpAddr, SocketAddr, SocketAddrV6};

use super::Address;
use super::bytes::{Reader, Writer};
use crate::key::KEY_LEN;

/// What a session is known by: its peers, and the numbers that they gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeptKey {
    /// Public key of the peer that began the handshake.
    pub initiator: [u8; KEY_LEN],
    /// Public key of the peer that answered it.
    pub responder: [u8; KEY_LEN],
    /// Receiver indices: of what goes forth, to the responder, and of what goes back.
    pub receivers: [u32; 2],
}

/// One direction of a session.
///
/// Addresses are told apart by family and IPv6 scope; IPv4 mapped into IPv6 comes back as IPv4, and
/// a flow label is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Address of ours that its packets come to.
    pub local: SocketAddr,
    /// Whom they come from.
    pub remote: SocketAddr,
    /// Their receiver index.
    pub receiver: u32,
}

/// A relayed session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Public key of the peer that began the handshake.
    pub initiator: [u8; KEY_LEN],
    /// Public key of the peer that answered it.
    pub responder: [u8; KEY_LEN],
    /// What the initiator sends.
    pub forth: Leg,
    /// What the responder sends.
    pub back: Leg,
    /// When both have forgotten it, in nanoseconds of `CLOCK_BOOTTIME`.
    pub deadline_ns: u64,
}

impl KeptKey {
    /// Bytes of the key.
    pub const LEN: usize = 2 * KEY_LEN + 8;

    /// As map memory has it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = Writer::new();
        out.put(self.initiator);
        out.put(self.responder);
        out.words(self.receivers);
        out.finish()
    }

    /// From map memory.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let mut bytes = Reader(bytes);
        Self { initiator: bytes.take(), responder: bytes.take(), receivers: bytes.words() }
    }
}

/// ```text
///  0                16          20          22          24
///  +----------------+-----------+-----------+-----------+
///  | address        | scope     | port      | zero      |
///  +----------------+-----------+-----------+-----------+
/// ```
const END_LEN: usize = Address::LEN + 8;

fn put_end<const N: usize>(out: &mut Writer<N>, end: SocketAddr) {
    let scope = match end {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(end) => end.scope_id(),
    };
    out.words(Address::from(end.ip()).0);
    out.words([scope]);
    out.put(end.port().to_ne_bytes());
    out.put([0; 2]);
}

fn take_end(bytes: &mut Reader<'_>) -> SocketAddr {
    let ip = IpAddr::from(Address(bytes.words()));
    let (scope, port) = (bytes.word(), bytes.short());
    let _zero = bytes.short();
    match ip {
        IpAddr::V4(_) => SocketAddr::new(ip, port),
        IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope).into(),
    }
}

impl Kept {
    /// Bytes of the value.
    pub const LEN: usize = 4 * END_LEN + 8;

    /// What it is kept under.
    #[must_use]
    pub const fn key(&self) -> KeptKey {
        KeptKey {
            initiator: self.initiator,
            responder: self.responder,
            receivers: [self.forth.receiver, self.back.receiver],
        }
    }

    /// The value, as map memory has it; the key has the rest.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = Writer::new();
        for leg in [self.forth, self.back] {
            put_end(&mut out, leg.local);
            put_end(&mut out, leg.remote);
        }
        out.put(self.deadline_ns.to_ne_bytes());
        out.finish()
    }

    /// From map memory, what was kept under `key`.
    #[must_use]
    pub fn decode(key: &KeptKey, bytes: &[u8; Self::LEN]) -> Self {
        let mut bytes = Reader(bytes);
        let [forth, back] = key.receivers.map(|receiver| Leg {
            local: take_end(&mut bytes),
            remote: take_end(&mut bytes),
            receiver,
        });
        let KeptKey { initiator, responder, .. } = *key;
        Self { initiator, responder, forth, back, deadline_ns: bytes.long() }
    }
}

/// The program's side of a key: it only gives the map its sizes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SessionKey(pub [u32; KeptKey::LEN / 4]);

/// The program's side of a value.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Session(pub [u64; Kept::LEN / 8]);

const _: () = {
    assert!(size_of::<SessionKey>() == KeptKey::LEN);
    assert!(size_of::<Session>() == Kept::LEN);
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn end() -> impl Strategy<Value = SocketAddr> {
        any::<(IpAddr, u16, u32)>().prop_map(|(ip, port, scope)| match ip.to_canonical() {
            IpAddr::V4(_) => SocketAddr::new(ip.to_canonical(), port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope).into(),
        })
    }

    fn leg() -> impl Strategy<Value = Leg> {
        (end(), end(), any::<u32>()).prop_map(|(local, remote, receiver)| Leg {
            local,
            remote,
            receiver,
        })
    }

    proptest! {
        #[test]
        fn sessions_round_trip(
            initiator: [u8; KEY_LEN],
            responder: [u8; KEY_LEN],
            forth in leg(),
            back in leg(),
            deadline_ns: u64,
        ) {
            let kept = Kept { initiator, responder, forth, back, deadline_ns };
            let key = KeptKey::decode(&kept.key().encode());
            prop_assert_eq!(Kept::decode(&key, &kept.encode()), kept);
        }

        #[test]
        fn any_bytes_are_some_session(key: [u8; KeptKey::LEN], value: [u8; Kept::LEN]) {
            let kept = Kept::decode(&KeptKey::decode(&key), &value);
            prop_assert_eq!(kept.key().encode(), key);
        }
    }
}
