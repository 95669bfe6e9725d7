//! DERP as a client in a test sees it: frames to write, and frames read back.

use wire::derp::{self, FrameType, HEADER_LEN, Header, RECV_HEAD_LEN};
use wire::disco;
use wire::key::{KEY_LEN, Key};

/// A frame from the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Info(Vec<u8>),
    Packet { source: Key, packet: Vec<u8> },
    KeepAlive,
    Gone { key: Key, reason: u8 },
    Pong(Vec<u8>),
    Restarting(Vec<u8>),
}

impl Frame {
    /// The packet from `source` that this frame is expected to carry.
    pub(crate) fn packet_from(self, source: &Key) -> Vec<u8> {
        match self {
            Self::Packet { source: from, packet } if from == *source => packet,
            other => panic!("a packet from {source:?} was expected, not {other:?}"),
        }
    }
}

/// Cuts the first whole frame off `stream`.
pub(crate) fn take_frame(stream: &mut Vec<u8>) -> Option<Frame> {
    let header = Header::read(stream)?;
    let end = HEADER_LEN + header.len as usize;
    if stream.len() < end {
        return None;
    }
    let payload = &stream[HEADER_LEN..end];
    let frame = match FrameType::from_byte(header.kind) {
        Some(FrameType::ServerInfo) => Frame::Info(payload.to_vec()),
        Some(FrameType::RecvPacket) => Frame::Packet {
            source: Key::read(payload).expect("a packet names its source"),
            packet: payload[KEY_LEN..].to_vec(),
        },
        Some(FrameType::KeepAlive) => Frame::KeepAlive,
        Some(FrameType::PeerGone) => Frame::Gone {
            key: Key::read(payload).expect("a departure names its key"),
            reason: payload[KEY_LEN],
        },
        Some(FrameType::Pong) => Frame::Pong(payload.to_vec()),
        Some(FrameType::Restarting) => Frame::Restarting(payload.to_vec()),
        kind => panic!("the relay does not send {kind:?} ({:#x})", header.kind),
    };
    stream.drain(..end);
    Some(frame)
}

/// A key that differs from every other number's, in the byte that picks a shard too.
pub(crate) fn key(number: u8) -> Key {
    Key(std::array::from_fn(|at| number.wrapping_add(1).wrapping_mul(at as u8 | 1)))
}

/// The whole greeting that a test relay sends: a `ServerInfo` frame, whose box nobody opens here.
pub(crate) fn greeting() -> Vec<u8> {
    frame(FrameType::ServerInfo, b"sealed elsewhere")
}

/// A whole frame.
pub(crate) fn frame(kind: FrameType, payload: &[u8]) -> Vec<u8> {
    [&Header::bytes(kind, payload.len() as u32), payload].concat()
}

/// A whole `SendPacket` frame.
pub(crate) fn send(to: &Key, packet: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(RECV_HEAD_LEN + packet.len());
    frame.extend_from_slice(&derp::send_head(to, packet.len()));
    frame.extend_from_slice(packet);
    frame
}

/// A packet that the relay takes for disco, with `content` behind the shortest envelope.
pub(crate) fn disco(content: &[u8]) -> Vec<u8> {
    let mut packet = disco::MAGIC.to_vec();
    packet.resize(disco::LEN_MIN, 0);
    packet.extend_from_slice(content);
    packet
}
