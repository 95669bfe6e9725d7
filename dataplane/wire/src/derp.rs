//! DERP frames: the five-byte header, the frame types, their limits and their encoders.
//!
//! All integers are big-endian. Facts: Tailscale's `derp` package, protocol version 2, and the
//! limits that stock derper 1.102 enforces.

use crate::key::{KEY_LEN, Key};

/// Protocol version, spoken in `ClientInfo`, `ServerInfo` and `Derp-Version`.
pub const VERSION: u8 = 2;
/// First eight payload bytes of `ServerKey`: "DERP" and a key in UTF-8.
pub const MAGIC: [u8; 8] = *b"DERP\xf0\x9f\x94\x91";
/// Bytes of a frame header.
pub const HEADER_LEN: usize = 5;
/// Longest relayed packet in bytes; one byte more closes the connection.
pub const PACKET_LEN_MAX: usize = 64 << 10;
/// Shortest and longest `ClientInfo` payload in bytes: key 32 and nonce 24, up to 256 KiB.
pub const CLIENT_INFO_LEN: core::ops::RangeInclusive<usize> = 56..=256 << 10;
/// Shortest and longest `Ping` payload in bytes; only the first eight come back.
pub const PING_LEN: core::ops::RangeInclusive<usize> = 8..=1000;
/// Bytes of a ping that its `Pong` returns.
pub const PONG_LEN: usize = 8;
/// Bytes before the packet in a `RecvPacket` frame: header and source key.
pub const RECV_HEAD_LEN: usize = HEADER_LEN + KEY_LEN;
/// A client drops its connection on any frame with a longer payload than this, in bytes.
pub const CLIENT_FRAME_LEN_MAX: usize = 1 << 20;

/// Frame types of protocol version 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameType {
    /// Server's public key, its first frame.
    ServerKey = 0x01,
    /// Client's key and sealed JSON, its first frame.
    ClientInfo = 0x02,
    /// Server's sealed JSON, the first frame after the keys.
    ServerInfo = 0x03,
    /// Destination key and packet, from a client.
    SendPacket = 0x04,
    /// Source key and packet, to a client.
    RecvPacket = 0x05,
    /// Empty, to a client: the connection lives.
    KeepAlive = 0x06,
    /// One byte, from a client: whether this is its home relay.
    NotePreferred = 0x07,
    /// Key and reason, to a client that has heard from that key.
    PeerGone = 0x08,
    /// Key, address and flags, to a mesh peer.
    PeerPresent = 0x09,
    /// Source key, destination key and packet, from a mesh peer.
    ForwardPacket = 0x0a,
    /// Empty, from a mesh peer.
    WatchConns = 0x10,
    /// Key, from a mesh peer.
    ClosePeer = 0x11,
    /// Opaque data to be returned.
    Ping = 0x12,
    /// The returned data.
    Pong = 0x13,
    /// Text about the connection's health, to a client.
    Health = 0x14,
    /// Two durations in milliseconds, to a client.
    Restarting = 0x15,
}

impl FrameType {
    /// The type of `byte`, or `None` for one this version does not know (to be skipped, never fatal).
    #[inline]
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::ServerKey,
            0x02 => Self::ClientInfo,
            0x03 => Self::ServerInfo,
            0x04 => Self::SendPacket,
            0x05 => Self::RecvPacket,
            0x06 => Self::KeepAlive,
            0x07 => Self::NotePreferred,
            0x08 => Self::PeerGone,
            0x09 => Self::PeerPresent,
            0x0a => Self::ForwardPacket,
            0x10 => Self::WatchConns,
            0x11 => Self::ClosePeer,
            0x12 => Self::Ping,
            0x13 => Self::Pong,
            0x14 => Self::Health,
            0x15 => Self::Restarting,
            _ => return None,
        })
    }
}

/// Why a client hears `PeerGone`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GoneReason {
    /// The peer's last connection ended.
    Disconnected = 0x00,
    /// The peer is not connected here.
    NotHere = 0x01,
}

/// A frame header.
///
/// ```text
///  0      1                 5
///  +------+-----------------+----------------------
///  | type | payload length  | payload ...
///  +------+-----------------+----------------------
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type byte as received; see [`FrameType::from_byte`].
    pub kind: u8,
    /// Payload length in bytes, header excluded.
    pub len: u32,
}

impl Header {
    /// The header at the start of `bytes`, or `None` if fewer than five bytes are there.
    #[inline]
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let [kind, a, b, c, d] = *bytes.first_chunk::<HEADER_LEN>()?;
        Some(Self { kind, len: u32::from_be_bytes([a, b, c, d]) })
    }

    /// The five bytes of a header for `len` payload bytes of `kind`.
    #[inline]
    #[must_use]
    pub const fn bytes(kind: FrameType, len: u32) -> [u8; HEADER_LEN] {
        let [a, b, c, d] = len.to_be_bytes();
        [kind as u8, a, b, c, d]
    }
}

/// The whole `ServerKey` frame.
#[must_use]
pub fn server_key(key: &Key) -> [u8; HEADER_LEN + MAGIC.len() + KEY_LEN] {
    let mut frame = [0; HEADER_LEN + MAGIC.len() + KEY_LEN];
    frame[..HEADER_LEN].copy_from_slice(&Header::bytes(FrameType::ServerKey, 40));
    frame[HEADER_LEN..13].copy_from_slice(&MAGIC);
    frame[13..].copy_from_slice(&key.0);
    frame
}

/// Header and source key of a `RecvPacket` frame whose packet has `packet_len` bytes.
///
/// `packet_len` is at most [`PACKET_LEN_MAX`].
#[inline]
#[must_use]
pub fn recv_head(source: &Key, packet_len: usize) -> [u8; RECV_HEAD_LEN] {
    packet_head(FrameType::RecvPacket, source, packet_len)
}

/// Header and destination key of a `SendPacket` frame whose packet has `packet_len` bytes.
///
/// `packet_len` is at most [`PACKET_LEN_MAX`] for a relay to accept the frame.
#[inline]
#[must_use]
pub fn send_head(destination: &Key, packet_len: usize) -> [u8; RECV_HEAD_LEN] {
    packet_head(FrameType::SendPacket, destination, packet_len)
}

#[inline]
fn packet_head(kind: FrameType, key: &Key, packet_len: usize) -> [u8; RECV_HEAD_LEN] {
    let mut head = [0; RECV_HEAD_LEN];
    head[..HEADER_LEN].copy_from_slice(&Header::bytes(kind, (KEY_LEN + packet_len) as u32));
    head[HEADER_LEN..].copy_from_slice(&key.0);
    head
}

/// The whole `KeepAlive` frame.
pub const KEEP_ALIVE: [u8; HEADER_LEN] = Header::bytes(FrameType::KeepAlive, 0);

/// The whole `PeerGone` frame.
#[must_use]
pub fn peer_gone(peer: &Key, reason: GoneReason) -> [u8; HEADER_LEN + KEY_LEN + 1] {
    let mut frame = [0; HEADER_LEN + KEY_LEN + 1];
    frame[..HEADER_LEN].copy_from_slice(&Header::bytes(FrameType::PeerGone, 33));
    frame[HEADER_LEN..37].copy_from_slice(&peer.0);
    frame[37] = reason as u8;
    frame
}

/// The whole `Pong` frame.
#[must_use]
pub fn pong(data: [u8; PONG_LEN]) -> [u8; HEADER_LEN + PONG_LEN] {
    eight(FrameType::Pong, data)
}

/// A whole `Ping` frame of the usual eight bytes.
#[must_use]
pub fn ping(data: [u8; PONG_LEN]) -> [u8; HEADER_LEN + PONG_LEN] {
    eight(FrameType::Ping, data)
}

/// The whole `Restarting` frame: reconnect after and keep trying for, both in milliseconds.
#[must_use]
pub fn restarting(reconnect_in_ms: u32, try_for_ms: u32) -> [u8; HEADER_LEN + 8] {
    let mut data = [0; 8];
    data[..4].copy_from_slice(&reconnect_in_ms.to_be_bytes());
    data[4..].copy_from_slice(&try_for_ms.to_be_bytes());
    eight(FrameType::Restarting, data)
}

fn eight(kind: FrameType, data: [u8; 8]) -> [u8; HEADER_LEN + 8] {
    let mut frame = [0; HEADER_LEN + 8];
    frame[..HEADER_LEN].copy_from_slice(&Header::bytes(kind, 8));
    frame[HEADER_LEN..].copy_from_slice(&data);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_needs_five_bytes() {
        let bytes = Header::bytes(FrameType::SendPacket, 0x0102_0304);
        assert_eq!(bytes, [0x04, 1, 2, 3, 4]);
        for cut in 0..HEADER_LEN {
            assert_eq!(Header::read(&bytes[..cut]), None);
        }
        assert_eq!(Header::read(&bytes), Some(Header { kind: 0x04, len: 0x0102_0304 }));
    }

    #[test]
    fn every_known_type_round_trips_and_the_rest_are_unknown() {
        let known = (0..=u8::MAX).filter_map(FrameType::from_byte).inspect(|kind| {
            assert_eq!(FrameType::from_byte(*kind as u8), Some(*kind));
        });
        assert_eq!(known.count(), 16);
    }

    #[test]
    fn frames_have_the_documented_lengths() {
        let key = Key([7; KEY_LEN]);
        assert_eq!(server_key(&key).len(), 45);
        assert_eq!(&server_key(&key)[..13], b"\x01\0\0\0\x28DERP\xf0\x9f\x94\x91");
        assert_eq!(recv_head(&key, 1400)[..HEADER_LEN], [0x05, 0, 0, 5, 0x98]);
        assert_eq!(peer_gone(&key, GoneReason::NotHere)[37], 1);
        assert_eq!(pong(*b"12345678")[..HEADER_LEN], [0x13, 0, 0, 0, 8]);
    }
}
