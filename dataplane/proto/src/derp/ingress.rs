//! Frames of one client, cut out of its byte stream.
//!
//! Owns the bytes of a frame that is not complete yet and nothing else. Judges every header before
//! its payload arrives, so that a bad length costs nothing. The relay session feeds it.

use alloc::vec::Vec;

use wire::derp::{FrameType, HEADER_LEN, Header, PACKET_LEN_MAX, PING_LEN, PONG_LEN};
use wire::key::{KEY_LEN, Key};

use super::Pool;

/// What one frame asks the relay to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Relay `packet` to `destination`.
    Packet {
        /// The key that the packet is for.
        destination: Key,
        /// 0 to [`PACKET_LEN_MAX`] bytes.
        packet: &'a [u8],
    },
    /// Return these bytes in a `Pong`.
    Ping([u8; PONG_LEN]),
    /// The client says whether this relay is its home.
    Preferred(bool),
    /// A pong; nothing to do.
    Pong,
    /// A frame of a type that clients do not send or this version does not know; skipped.
    Unknown,
}

/// Why a client's session ends. It is told nothing, as stock clients expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// `SendPacket` with fewer bytes than a key, or a packet above the limit.
    #[error("send packet length out of bounds")]
    PacketLen,
    /// `Ping` outside 8 to 1000 bytes.
    #[error("ping length out of bounds")]
    PingLen,
    /// `NotePreferred` whose payload is not one byte.
    #[error("note preferred is not one byte")]
    PreferredLen,
    /// A mesh frame from a client that did not show the mesh key.
    #[error("mesh frame from a client outside the mesh")]
    NotMesh,
}

/// The frame intake of one session.
#[derive(Debug, Default)]
pub struct Ingress {
    /// The start of a frame whose end has not arrived. Invariant: shorter than the frame.
    partial: Vec<u8>,
    /// Bytes of an unknown frame still to be passed over.
    skip: u32,
}

impl Ingress {
    /// Takes `input`, the next bytes of the stream, and calls `on` for each frame they complete.
    ///
    /// For callers without a [`Pool`]; see [`Ingress::feed_with`].
    ///
    /// # Errors
    /// The first [`PeerFault`]; the session must end and the intake not be fed again.
    pub fn feed(
        &mut self,
        input: &[u8],
        on: &mut impl FnMut(Verdict<'_>),
    ) -> Result<(), PeerFault> {
        self.feed_with(input, &mut Pool::default(), &mut |verdict, _| on(verdict))
    }

    /// Like [`Ingress::feed`], with the pool that `cx` has for a frame that is cut short. `cx` is
    /// lent to `on` for each frame.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn feed_with<C: AsMut<Pool>>(
        &mut self,
        mut input: &[u8],
        cx: &mut C,
        on: &mut impl FnMut(Verdict<'_>, &mut C),
    ) -> Result<(), PeerFault> {
        if !self.partial.is_empty() {
            input = self.complete(input, cx, on)?;
        }
        loop {
            if self.skip > 0 {
                let passed = input.len().min(self.skip as usize);
                input = &input[passed..];
                self.skip -= passed as u32;
            }
            let Some(header) = Header::read(input) else {
                break;
            };
            match Extent::of(header)? {
                Extent::Skip(len) => {
                    self.skip = len;
                    input = &input[HEADER_LEN..];
                    on(passed_over(header), cx);
                }
                Extent::Whole(len) => {
                    let Some((frame, rest)) = input.split_at_checked(len) else {
                        break;
                    };
                    on(judge(header, &frame[HEADER_LEN..]), cx);
                    input = rest;
                }
            }
        }
        cx.as_mut().extend(&mut self.partial, input);
        Ok(())
    }

    /// Completes the partial frame from `input`; returns what is left of it.
    fn complete<'a, C: AsMut<Pool>>(
        &mut self,
        mut input: &'a [u8],
        cx: &mut C,
        on: &mut impl FnMut(Verdict<'_>, &mut C),
    ) -> Result<&'a [u8], PeerFault> {
        input = self.fill(HEADER_LEN, input, cx.as_mut());
        let Some(header) = Header::read(&self.partial) else {
            return Ok(input);
        };
        match Extent::of(header)? {
            Extent::Skip(len) => {
                self.skip = len;
                on(passed_over(header), cx);
            }
            Extent::Whole(len) => {
                input = self.fill(len, input, cx.as_mut());
                if self.partial.len() < len {
                    return Ok(input);
                }
                on(judge(header, &self.partial[HEADER_LEN..]), cx);
            }
        }
        cx.as_mut().take_back(core::mem::take(&mut self.partial));
        Ok(input)
    }

    fn fill<'a>(&mut self, len: usize, input: &'a [u8], pool: &mut Pool) -> &'a [u8] {
        let missing = len.saturating_sub(self.partial.len());
        let (now, later) = input.split_at(missing.min(input.len()));
        pool.extend(&mut self.partial, now);
        later
    }

    /// Bytes held for an incomplete frame; zero for an idle client.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.partial.capacity()
    }
}

/// How much of the stream a frame takes, known from its header alone.
enum Extent {
    /// The frame, header included, is collected and judged.
    Whole(usize),
    /// This many payload bytes are passed over unseen.
    Skip(u32),
}

impl Extent {
    #[inline]
    fn of(header: Header) -> Result<Self, PeerFault> {
        let len = header.len as usize;
        let fault = match FrameType::from_byte(header.kind) {
            Some(FrameType::SendPacket) => (!(KEY_LEN..=KEY_LEN + PACKET_LEN_MAX).contains(&len))
                .then_some(PeerFault::PacketLen),
            Some(FrameType::Ping) => (!PING_LEN.contains(&len)).then_some(PeerFault::PingLen),
            Some(FrameType::NotePreferred) => (len != 1).then_some(PeerFault::PreferredLen),
            Some(FrameType::ForwardPacket | FrameType::WatchConns | FrameType::ClosePeer) => {
                Some(PeerFault::NotMesh)
            }
            Some(
                FrameType::ServerKey
                | FrameType::ClientInfo
                | FrameType::ServerInfo
                | FrameType::RecvPacket
                | FrameType::KeepAlive
                | FrameType::PeerGone
                | FrameType::PeerPresent
                | FrameType::Pong
                | FrameType::Health
                | FrameType::Restarting,
            )
            | None => return Ok(Self::Skip(header.len)),
        };
        fault.map_or(Ok(Self::Whole(HEADER_LEN + len)), Err)
    }
}

/// The verdict on a frame whose extent is [`Extent::Skip`].
fn passed_over(header: Header) -> Verdict<'static> {
    match FrameType::from_byte(header.kind) {
        Some(FrameType::Pong) => Verdict::Pong,
        _ => Verdict::Unknown,
    }
}

/// The verdict on a frame whose extent is [`Extent::Whole`], so its length is right.
#[inline]
fn judge(header: Header, payload: &[u8]) -> Verdict<'_> {
    match (FrameType::from_byte(header.kind), payload) {
        (Some(FrameType::SendPacket), payload) => match payload.split_first_chunk() {
            Some((key, packet)) => Verdict::Packet { destination: Key(*key), packet },
            None => Verdict::Unknown,
        },
        (Some(FrameType::Ping), payload) => match payload.first_chunk() {
            Some(data) => Verdict::Ping(*data),
            None => Verdict::Unknown,
        },
        (Some(FrameType::NotePreferred), [home]) => Verdict::Preferred(*home != 0),
        _ => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use alloc::{format, vec};

    use proptest::prelude::*;
    use wire::derp;

    use super::*;

    fn run(pieces: &[&[u8]]) -> (Vec<String>, Result<(), PeerFault>) {
        let mut ingress = Ingress::default();
        let mut seen = vec![];
        for piece in pieces {
            let fed = ingress.feed(piece, &mut |verdict| seen.push(format!("{verdict:?}")));
            if fed.is_err() {
                return (seen, fed);
            }
        }
        (seen, Ok(()))
    }

    fn stream() -> Vec<u8> {
        let key = Key([1; KEY_LEN]);
        let mut stream = vec![];
        stream.extend(derp::send_head(&key, 5));
        stream.extend(b"hello");
        stream.extend(derp::ping(*b"12345678"));
        stream.extend(Header::bytes(FrameType::NotePreferred, 1));
        stream.push(1);
        stream.extend([0x77, 0, 0, 0, 3, 9, 9, 9]);
        stream.extend(derp::pong(*b"abcdefgh"));
        stream.extend(derp::send_head(&key, 0));
        stream
    }

    #[test]
    fn frames_are_the_same_however_the_stream_is_cut() {
        let stream = stream();
        let (whole, end) = run(&[&stream]);
        assert_eq!(end, Ok(()));
        assert_eq!(whole.len(), 6);
        for cut in 0..=stream.len() {
            let (head, tail) = stream.split_at(cut);
            assert_eq!(run(&[head, tail]), (whole.clone(), Ok(())), "cut at {cut}");
        }
        let single: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(run(&single), (whole, Ok(())));
    }

    #[test]
    fn bad_lengths_end_the_session_at_the_header() {
        let bad = |kind, len| run(&[&Header::bytes(kind, len)]).1;
        assert_eq!(bad(FrameType::SendPacket, 31), Err(PeerFault::PacketLen));
        assert_eq!(bad(FrameType::SendPacket, 65_569), Err(PeerFault::PacketLen));
        assert_eq!(bad(FrameType::SendPacket, 65_568), Ok(()));
        assert_eq!(bad(FrameType::Ping, 7), Err(PeerFault::PingLen));
        assert_eq!(bad(FrameType::Ping, 1001), Err(PeerFault::PingLen));
        assert_eq!(bad(FrameType::NotePreferred, 0), Err(PeerFault::PreferredLen));
        assert_eq!(bad(FrameType::NotePreferred, 2), Err(PeerFault::PreferredLen));
        assert_eq!(bad(FrameType::WatchConns, 0), Err(PeerFault::NotMesh));
        assert_eq!(bad(FrameType::ForwardPacket, 100), Err(PeerFault::NotMesh));
        assert_eq!(bad(FrameType::ClosePeer, 32), Err(PeerFault::NotMesh));
    }

    #[test]
    fn a_huge_unknown_frame_is_passed_over_without_being_held() {
        let mut ingress = Ingress::default();
        let mut seen = 0;
        let mut on = |_: Verdict<'_>| seen += 1;
        ingress.feed(&[0x99, 0xff, 0xff, 0xff, 0xff], &mut on).expect("skipped");
        ingress.feed(&vec![7; 1 << 20], &mut on).expect("skipped");
        assert_eq!(ingress.held_bytes(), 0);
        assert_eq!(seen, 1);
    }

    proptest! {
        #[test]
        fn never_panics_and_never_holds_more_than_a_frame(bytes: Vec<u8>, cut in 1_usize..40) {
            let mut ingress = Ingress::default();
            for piece in bytes.chunks(cut) {
                if ingress.feed(piece, &mut |_| ()).is_err() { break }
                prop_assert!(ingress.partial.len() < HEADER_LEN + KEY_LEN + PACKET_LEN_MAX);
            }
        }
    }
}
