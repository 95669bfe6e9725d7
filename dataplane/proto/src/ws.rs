//! Server side of RFC 6455 for a byte stream tunnelled in binary messages (DERP over WebSocket).
//!
//! Owns framing, masking and the accept key. Payload bytes pass through: they are unmasked where
//! they lie and handed on as they come, so message boundaries mean nothing and nothing but a
//! control frame is ever held back. It never allocates and has no extensions. The DERP session
//! calls it; the front calls [`accept_key`] for the upgrade; benches and tests use the masked side
//! as clients.

use base64::{Engine, prelude::BASE64_STANDARD};
use sha1::{Digest, Sha1};

/// Longest message to send, in bytes: stock clients close on one byte more (1009). Split above it.
pub const MESSAGE_LEN_MAX: usize = 32 << 10;
/// Longest message taken, in bytes, over all its fragments: a frame of 1 MiB, and 64 KiB for what a
/// client's write buffer puts around it. Nothing is buffered, so this limits nonsense only.
pub const MESSAGE_IN_LEN_MAX: u64 = (1 << 20) + (64 << 10);
/// Longest payload of a control frame in bytes (RFC 6455 section 5.5).
pub const CONTROL_LEN_MAX: usize = 125;
/// Longest header without a mask, in bytes.
pub const HEADER_LEN_MAX: usize = 10;
/// Longest header with a mask, in bytes.
pub const MASKED_HEADER_LEN_MAX: usize = 14;
/// Longest whole control frame without a mask, in bytes.
pub const CONTROL_FRAME_LEN_MAX: usize = 2 + CONTROL_LEN_MAX;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
/// Values of the seven-bit length that announce a longer one in the next two or eight bytes.
const LEN_16: u8 = 126;
const LEN_64: u8 = 127;

/// What a frame is (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of a message.
    Continuation = 0x0,
    /// The first fragment of a text message, which DERP never sends.
    Text = 0x1,
    /// The first fragment of a binary message.
    Binary = 0x2,
    /// The last frame.
    Close = 0x8,
    /// To be answered with its payload.
    Ping = 0x9,
    /// An answer, or a sign of life.
    Pong = 0xa,
}

impl Opcode {
    /// The opcode in the low half of a frame's first byte, or `None` for a reserved one.
    #[inline]
    #[must_use]
    pub const fn from_bits(byte: u8) -> Option<Self> {
        Some(match byte & 0xf {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    const fn control(self) -> Option<Control> {
        match self {
            Self::Close => Some(Control::Close),
            Self::Ping => Some(Control::Ping),
            Self::Pong => Some(Control::Pong),
            Self::Continuation | Self::Text | Self::Binary => None,
        }
    }
}

/// The opcodes of control frames.
#[derive(Clone, Copy, Debug)]
enum Control {
    Close,
    Ping,
    Pong,
}

/// What a client did wrong. The session answers with [`close`] and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A frame without a mask.
    Unmasked,
    /// A reserved bit is set; extensions were never agreed.
    ReservedBits,
    /// A reserved opcode.
    ReservedOpcode,
    /// A fragment outside of a message, or a message inside of another.
    Fragments,
    /// A control frame that is fragmented or longer than [`CONTROL_LEN_MAX`].
    Control,
    /// A close frame with half a code or one that must not be sent.
    CloseCode,
    /// A text message.
    Text,
    /// A message above the limit.
    TooLong,
}

impl Fault {
    /// The code to close with (RFC 6455 section 7.4.1).
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Text => 1003,
            Self::TooLong => 1009,
            Self::Unmasked
            | Self::ReservedBits
            | Self::ReservedOpcode
            | Self::Fragments
            | Self::Control
            | Self::CloseCode => 1002,
        }
    }

    /// The text to close with; for a text message it is derper's.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Unmasked => "frame is not masked",
            Self::ReservedBits => "reserved bit is set",
            Self::ReservedOpcode => "reserved opcode",
            Self::Fragments => "fragment out of order",
            Self::Control => "control frame is fragmented or too long",
            Self::CloseCode => "close code is not valid",
            Self::Text => "unexpected frame type read (expected MessageBinary): MessageText",
            Self::TooLong => "message is too long",
        }
    }
}

/// What [`Decoder::step`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Bytes of the tunnelled stream, never empty, unmasked in the input.
    Data(&'a mut [u8]),
    /// To be answered with [`control`]: pong, same payload.
    Ping(&'a [u8]),
    /// Nothing to do.
    Pong,
    /// The client is done, with its code if it gave one. To be answered with the same and the end.
    Close(Option<u16>),
    /// The client broke the protocol.
    Fault(Fault),
}

/// Takes frames of one client apart.
///
/// ```text
///  0       1       2           2, 4 or 10     6, 8 or 14
///  +-------+-------+-----------+--------------+----------------------
///  | F R O | M len | long len  | mask, 4 bytes| payload xor mask ...
///  +-------+-------+-----------+--------------+----------------------
///    F fin 0x80, R reserved 0x70, O opcode 0x0f; M masked 0x80
///    len 0..=125, or 126: long len has 16 bits, 127: 64 bits
/// ```
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Most bytes of one message.
    message_len_max: u64,
    /// Bytes announced so far of a message whose last fragment has not begun, if inside of one.
    message_len: Option<u64>,
    phase: Phase,
    /// Of the current frame, turned so that its first byte is for the next payload byte.
    mask: [u8; 4],
    /// The header as far as it is there.
    head: [u8; MASKED_HEADER_LEN_MAX],
    /// The payload of a control frame as far as it is there.
    control: [u8; CONTROL_LEN_MAX],
}

const _: () = assert!(size_of::<Decoder>() <= 192);

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Collecting a header, of which `have` bytes are there.
    Head { have: u8 },
    /// Passing payload on; `left` is not zero.
    Data { left: u64 },
    /// Collecting the payload of a control frame; `have` is below `len`.
    Control { kind: Control, have: u8, len: u8 },
    /// After a close or a fault: whatever comes is swallowed.
    Ended,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(MESSAGE_IN_LEN_MAX)
    }
}

impl Decoder {
    /// A decoder at the start of a stream that takes messages of up to `message_len_max` bytes.
    #[must_use]
    pub const fn new(message_len_max: u64) -> Self {
        Self {
            message_len_max,
            message_len: None,
            phase: Phase::Head { have: 0 },
            mask: [0; 4],
            head: [0; MASKED_HEADER_LEN_MAX],
            control: [0; CONTROL_LEN_MAX],
        }
    }

    /// Moves `input` to behind the next event, or to its end and returns `None`.
    ///
    /// After [`Event::Close`] and [`Event::Fault`] there are no more events.
    #[inline]
    pub fn step<'d, 'a: 'd>(&'d mut self, input: &mut &'a mut [u8]) -> Option<Event<'d>> {
        while !input.is_empty() {
            match self.phase {
                Phase::Head { have } => match self.take_head(have, input) {
                    Ok(None) => {}
                    Ok(Some(empty)) => return Some(self.finish_control(empty, 0)),
                    Err(fault) => return Some(self.fail(fault)),
                },
                Phase::Data { left } => {
                    let data = take(input, left);
                    self.mask = apply_mask(data, self.mask);
                    self.phase = match left - data.len() as u64 {
                        0 => Phase::Head { have: 0 },
                        left => Phase::Data { left },
                    };
                    return Some(Event::Data(data));
                }
                Phase::Control { kind, have, len } => {
                    let part = take(input, u64::from(len - have));
                    self.mask = apply_mask(part, self.mask);
                    let have = append(&mut self.control, have, part);
                    self.phase = Phase::Control { kind, have, len };
                    if have == len {
                        return Some(self.finish_control(kind, len));
                    }
                }
                Phase::Ended => *input = &mut [],
            }
        }
        None
    }

    /// Collects the header and begins its frame once it is there. Returns the kind of a control
    /// frame that is complete because it has no payload.
    #[inline]
    fn take_head(&mut self, have: u8, input: &mut &mut [u8]) -> Result<Option<Control>, Fault> {
        let need = if have < 2 { 2 } else { self.head_len() };
        let have = append(&mut self.head, have, take(input, u64::from(need - have)));
        self.phase = Phase::Head { have };
        if have != need {
            return Ok(None);
        }
        // The first two bytes are judged before the rest is waited for.
        let opcode = self.judge_start()?;
        if need == 2 { Ok(None) } else { self.begin(opcode) }
    }

    /// Bytes of the header, from its first two, mask included.
    #[inline]
    const fn head_len(&self) -> u8 {
        match self.head[1] & !MASKED {
            LEN_16 => 8,
            LEN_64 => 14,
            _ => 6,
        }
    }

    #[inline]
    fn judge_start(&self) -> Result<Opcode, Fault> {
        let [first, second, ..] = self.head;
        let opcode = Opcode::from_bits(first).ok_or(Fault::ReservedOpcode)?;
        let inside = self.message_len.is_some();
        if first & RESERVED != 0 {
            return Err(Fault::ReservedBits);
        }
        if second & MASKED == 0 {
            return Err(Fault::Unmasked);
        }
        match opcode {
            Opcode::Continuation if !inside => Err(Fault::Fragments),
            Opcode::Text | Opcode::Binary if inside => Err(Fault::Fragments),
            Opcode::Text => Err(Fault::Text),
            Opcode::Continuation | Opcode::Binary => Ok(opcode),
            Opcode::Close | Opcode::Ping | Opcode::Pong => {
                let sound = first & FIN != 0 && second & !MASKED < LEN_16;
                if sound { Ok(opcode) } else { Err(Fault::Control) }
            }
        }
    }

    /// Begins the frame of a complete header. Lengths that would fit a shorter form are let pass:
    /// no harm is in them.
    #[inline]
    fn begin(&mut self, opcode: Opcode) -> Result<Option<Control>, Fault> {
        let [first, second, l @ .., _, _, _, _] = self.head;
        let [.., a, b, c, d] = *self.head.get(..usize::from(self.head_len())).unwrap_or_default()
        else {
            return Ok(None);
        };
        self.mask = [a, b, c, d];
        let len = match second & !MASKED {
            LEN_16 => u64::from(u16::from_be_bytes([l[0], l[1]])),
            LEN_64 => u64::from_be_bytes(l),
            len => u64::from(len),
        };
        if let Some(kind) = opcode.control() {
            self.phase = Phase::Control { kind, have: 0, len: len as u8 };
            return Ok((len == 0).then_some(kind));
        }
        let message_len = self.message_len.unwrap_or(0).saturating_add(len);
        if message_len > self.message_len_max {
            return Err(Fault::TooLong);
        }
        self.message_len = (first & FIN == 0).then_some(message_len);
        self.phase = if len == 0 { Phase::Head { have: 0 } } else { Phase::Data { left: len } };
        Ok(None)
    }

    fn finish_control(&mut self, kind: Control, len: u8) -> Event<'_> {
        self.phase = Phase::Head { have: 0 };
        let payload = self.control.get(..usize::from(len)).unwrap_or_default();
        match kind {
            Control::Ping => Event::Ping(payload),
            Control::Pong => Event::Pong,
            Control::Close => {
                self.phase = Phase::Ended;
                close_code(payload).map_or_else(Event::Fault, Event::Close)
            }
        }
    }

    const fn fail(&mut self, fault: Fault) -> Event<'static> {
        self.phase = Phase::Ended;
        Event::Fault(fault)
    }
}

/// The code of a close frame, which may have none.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Fault> {
    match *payload {
        [] => Ok(None),
        [a, b, ..] => match u16::from_be_bytes([a, b]) {
            code @ (1000..=1003 | 1007..=1014 | 3000..=4999) => Ok(Some(code)),
            _ => Err(Fault::CloseCode),
        },
        [_] => Err(Fault::CloseCode),
    }
}

/// Cuts up to `most` bytes off the front of `input`.
#[inline]
fn take<'a>(input: &mut &'a mut [u8], most: u64) -> &'a mut [u8] {
    let len = usize::try_from(most).unwrap_or(usize::MAX).min(input.len());
    input.split_off_mut(..len).unwrap_or_default()
}

/// Copies `part` to `buffer` behind the `have` bytes that are there and returns how many are then.
#[inline]
fn append(buffer: &mut [u8], have: u8, part: &[u8]) -> u8 {
    for (to, from) in buffer.iter_mut().skip(usize::from(have)).zip(part) {
        *to = *from;
    }
    have + part.len() as u8
}

/// Combines `bytes` with `mask`, which masks and unmasks, and returns the mask for the bytes after.
#[inline]
pub fn apply_mask(bytes: &mut [u8], mut mask: [u8; 4]) -> [u8; 4] {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (blocks, tail) = bytes.as_chunks_mut();
    for block in blocks {
        *block = (u64::from_ne_bytes(*block) ^ wide).to_ne_bytes();
    }
    for byte in tail {
        *byte ^= mask[0];
        mask.rotate_left(1);
    }
    mask
}

/// The header of a whole message or control frame with `len` payload bytes, as a server sends it,
/// and how many of the ten bytes it takes. Stock clients accept up to [`MESSAGE_LEN_MAX`].
#[inline]
#[must_use]
pub const fn header(opcode: Opcode, len: usize) -> ([u8; HEADER_LEN_MAX], usize) {
    let first = FIN | opcode as u8;
    let [a, b, c, d, e, f, g, h] = (len as u64).to_be_bytes();
    match len {
        0..=CONTROL_LEN_MAX => ([first, h, 0, 0, 0, 0, 0, 0, 0, 0], 2),
        126..=0xffff => ([first, LEN_16, g, h, 0, 0, 0, 0, 0, 0], 4),
        _ => ([first, LEN_64, a, b, c, d, e, f, g, h], HEADER_LEN_MAX),
    }
}

/// The header as a client sends it. The payload is then to be combined by [`apply_mask`].
#[must_use]
pub fn masked_header(
    opcode: Opcode,
    len: usize,
    mask: [u8; 4],
) -> ([u8; MASKED_HEADER_LEN_MAX], usize) {
    let (plain, plain_len) = header(opcode, len);
    let mut masked = [0; MASKED_HEADER_LEN_MAX];
    masked[..HEADER_LEN_MAX].copy_from_slice(&plain);
    masked[1] |= MASKED;
    masked[plain_len..plain_len + mask.len()].copy_from_slice(&mask);
    (masked, plain_len + mask.len())
}

/// A whole control frame, as a server sends it. The payload is cut at [`CONTROL_LEN_MAX`] bytes.
#[must_use]
pub fn control<'a>(
    opcode: Opcode,
    payload: &[u8],
    out: &'a mut [u8; CONTROL_FRAME_LEN_MAX],
) -> &'a [u8] {
    let payload = payload.get(..CONTROL_LEN_MAX).unwrap_or(payload);
    *out = [0; CONTROL_FRAME_LEN_MAX];
    out[0] = FIN | opcode as u8;
    out[1] = append(&mut out[2..], 0, payload);
    out.get(..2 + payload.len()).unwrap_or_default()
}

/// A whole close frame, as a server sends it. Without a code there is no reason either.
#[must_use]
pub fn close<'a>(
    code: Option<u16>,
    reason: &str,
    out: &'a mut [u8; CONTROL_FRAME_LEN_MAX],
) -> &'a [u8] {
    let mut payload = [0; CONTROL_LEN_MAX];
    let len = code.map_or(0, |code| {
        let have = append(&mut payload, 0, &code.to_be_bytes());
        append(
            &mut payload,
            have,
            reason.as_bytes().get(..CONTROL_LEN_MAX - 2).unwrap_or(reason.as_bytes()),
        )
    });
    control(Opcode::Close, payload.get(..usize::from(len)).unwrap_or_default(), out)
}

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key` (RFC 6455 section 4.2.2).
#[must_use]
pub fn accept_key(sec_websocket_key: &[u8]) -> [u8; 28] {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let digest = Sha1::new().chain_update(sec_websocket_key).chain_update(GUID).finalize();
    let mut text = [0; 28];
    let len = BASE64_STANDARD.encode_slice(digest, &mut text);
    debug_assert_eq!(len, Ok(text.len()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// An event that outlives its input.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Seen {
        Data(Vec<u8>),
        Ping(Vec<u8>),
        Pong,
        Close(Option<u16>),
        Fault(Fault),
    }

    /// Everything `decoder` makes of `bytes`, with neighbouring data joined.
    fn feed(decoder: &mut Decoder, bytes: &[u8], seen: &mut Vec<Seen>) {
        let mut bytes = bytes.to_vec();
        let mut input = &mut bytes[..];
        while let Some(event) = decoder.step(&mut input) {
            match (event, seen.last_mut()) {
                (Event::Data(data), Some(Seen::Data(before))) => before.extend(data.iter()),
                (Event::Data(data), _) => seen.push(Seen::Data(data.to_vec())),
                (Event::Ping(payload), _) => seen.push(Seen::Ping(payload.to_vec())),
                (Event::Pong, _) => seen.push(Seen::Pong),
                (Event::Close(code), _) => seen.push(Seen::Close(code)),
                (Event::Fault(fault), _) => seen.push(Seen::Fault(fault)),
            }
        }
        assert!(input.is_empty());
    }

    fn decode(bytes: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        feed(&mut Decoder::default(), bytes, &mut seen);
        seen
    }

    /// A frame as a client sends it; `first` is its first byte.
    fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let (mut head, len) = masked_header(Opcode::Binary, payload.len(), mask);
        head[0] = first;
        let mut payload = payload.to_vec();
        apply_mask(&mut payload, mask);
        [&head[..len], &payload].concat()
    }

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    #[test]
    fn accept_key_of_the_rfc() {
        assert_eq!(&accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn frames_of_the_rfc() {
        // Section 5.7, with the opcode of the text message changed where it is to be accepted.
        let hello = *b"\x82\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        assert_eq!(frame(0x82, b"Hello", MASK), hello);
        assert_eq!(decode(&hello), [Seen::Data(b"Hello".to_vec())]);
        assert_eq!(decode(b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"), [Seen::Pong]);
        assert_eq!(decode(b"\x89\x05Hello"), [Seen::Fault(Fault::Unmasked)]);
        let mut out = [0; CONTROL_FRAME_LEN_MAX];
        assert_eq!(control(Opcode::Ping, b"Hello", &mut out), b"\x89\x05Hello");
        assert_eq!(header(Opcode::Binary, 256), ([0x82, 0x7e, 1, 0, 0, 0, 0, 0, 0, 0], 4));
        assert_eq!(header(Opcode::Binary, 65_536), ([0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0], 10));
    }

    #[test]
    fn lengths_take_the_shortest_form() {
        for (len, head_len) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            assert_eq!(header(Opcode::Binary, len).1, head_len);
            assert_eq!(masked_header(Opcode::Binary, len, MASK).1, head_len + 4);
            let payload = vec![7; len];
            let expected = if len == 0 { vec![] } else { vec![Seen::Data(payload.clone())] };
            assert_eq!(decode(&frame(0x82, &payload, MASK)), expected);
        }
    }

    #[test]
    fn pings_come_between_fragments() {
        let stream = [
            frame(0x02, b"one ", MASK),
            frame(0x89, b"?", MASK),
            frame(0x00, b"", MASK),
            frame(0x89, b"", MASK),
            frame(0x80, b"message", MASK),
            frame(0x82, b"next", MASK),
        ];
        let expected = [
            Seen::Data(b"one ".to_vec()),
            Seen::Ping(b"?".to_vec()),
            Seen::Ping(vec![]),
            Seen::Data(b"messagenext".to_vec()),
        ];
        assert_eq!(decode(&stream.concat()), expected);
    }

    #[test]
    fn close_ends_the_stream_with_or_without_a_code() {
        for (payload, event) in [
            (&b""[..], Seen::Close(None)),
            (b"\x03\xe8", Seen::Close(Some(1000))),
            (b"\x03\xe9bye", Seen::Close(Some(1001))),
            (b"\x03", Seen::Fault(Fault::CloseCode)),
            (b"\x03\xed", Seen::Fault(Fault::CloseCode)),
            (b"\x00\x00", Seen::Fault(Fault::CloseCode)),
        ] {
            let stream = [frame(0x88, payload, MASK), frame(0x82, b"late", MASK)];
            assert_eq!(decode(&stream.concat()), [event]);
        }
    }

    #[test]
    fn faults_have_their_codes_and_end_the_stream() {
        let inside = frame(0x02, b"a", MASK);
        for (bytes, fault, code) in [
            (frame(0x81, b"hi", MASK), Fault::Text, 1003),
            (frame(0x01, b"hi", MASK), Fault::Text, 1003),
            (b"\x82\x01a".to_vec(), Fault::Unmasked, 1002),
            (frame(0xc2, b"a", MASK), Fault::ReservedBits, 1002),
            (frame(0x83, b"a", MASK), Fault::ReservedOpcode, 1002),
            (frame(0x8b, b"a", MASK), Fault::ReservedOpcode, 1002),
            (frame(0x09, b"a", MASK), Fault::Control, 1002),
            (frame(0x89, &[0; 126], MASK), Fault::Control, 1002),
            (frame(0x80, b"a", MASK), Fault::Fragments, 1002),
        ] {
            let stream = [bytes, frame(0x82, b"late", MASK)].concat();
            assert_eq!(decode(&stream), [Seen::Fault(fault)]);
            assert_eq!(fault.code(), code);
        }
        for first in [0x82, 0x81] {
            let stream = [inside.clone(), frame(first, b"b", MASK)].concat();
            assert_eq!(decode(&stream), [Seen::Data(b"a".to_vec()), Seen::Fault(Fault::Fragments)]);
        }
        assert_eq!(
            Fault::Text.reason(),
            "unexpected frame type read (expected MessageBinary): MessageText"
        );
    }

    #[test]
    fn messages_are_limited_over_all_fragments() {
        assert_eq!(Fault::TooLong.code(), 1009);
        for (stream, fault) in [
            (frame(0x82, &[0; 100], MASK), false),
            (frame(0x82, &[0; 101], MASK), true),
            ([frame(0x02, &[0; 60], MASK), frame(0x80, &[0; 40], MASK)].concat(), false),
            ([frame(0x02, &[0; 60], MASK), frame(0x80, &[0; 41], MASK)].concat(), true),
            ([frame(0x82, &[0; 60], MASK), frame(0x82, &[0; 60], MASK)].concat(), false),
            (b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff....".to_vec(), true),
        ] {
            let mut seen = Vec::new();
            feed(&mut Decoder::new(100), &stream, &mut seen);
            assert_eq!(seen.contains(&Seen::Fault(Fault::TooLong)), fault);
        }
        let stream = frame(0x82, &[1; 1 << 20], MASK);
        assert_eq!(decode(&stream), [Seen::Data(vec![1; 1 << 20])]);
    }

    #[test]
    fn every_truncation_waits_for_more() {
        let stream = [frame(0x82, b"data", MASK), frame(0x89, b"ping", MASK)].concat();
        let (data_end, whole) = (10, stream.len());
        for cut in 0..whole {
            let seen = decode(&stream[..cut]);
            let data = &b"data"[..cut.clamp(6, data_end) - 6];
            let expected = if data.is_empty() { vec![] } else { vec![Seen::Data(data.to_vec())] };
            assert_eq!(seen, expected, "{cut} bytes");
        }
    }

    #[test]
    fn close_frames_carry_code_and_reason() {
        let mut out = [0; CONTROL_FRAME_LEN_MAX];
        assert_eq!(close(Some(1002), "no", &mut out), b"\x88\x04\x03\xeano");
        assert_eq!(close(None, "no", &mut out), b"\x88\x00");
        let long = core::str::from_utf8(&[b'x'; 200]).expect("ASCII");
        assert_eq!(close(Some(1000), long, &mut out).len(), CONTROL_FRAME_LEN_MAX);
    }

    #[derive(Clone, Debug)]
    enum Sent {
        Message(Vec<Vec<u8>>),
        Ping(Vec<u8>),
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
        prop_oneof![
            prop::collection::vec(bytes(300), 1..4).prop_map(Sent::Message),
            bytes(126).prop_map(Sent::Ping),
        ]
    }

    proptest! {
        #[test]
        fn any_messages_cut_anywhere_arrive(
            sent in prop::collection::vec((sent(), any::<[u8; 4]>()), 0..8),
            cuts in prop::collection::vec(1..40_usize, 1..20),
        ) {
            let (mut stream, mut data, mut pings) = (Vec::new(), Vec::new(), Vec::new());
            for (sent, mask) in sent {
                match sent {
                    Sent::Message(parts) => for (i, part) in parts.iter().enumerate() {
                        let fin = if i + 1 == parts.len() { 0x80 } else { 0 };
                        let opcode = if i == 0 { 0x02 } else { 0x00 };
                        stream.extend(frame(fin | opcode, part, mask));
                        data.extend(part);
                    },
                    Sent::Ping(payload) => {
                        stream.extend(frame(0x89, &payload, mask));
                        pings.push(payload);
                    }
                }
            }
            let (mut decoder, mut seen, mut rest) = (Decoder::default(), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                let (part, later) = rest.split_at((*cut).min(rest.len()));
                feed(&mut decoder, part, &mut seen);
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            let (mut data_seen, mut pings_seen) = (Vec::new(), Vec::new());
            for event in seen {
                match event {
                    Seen::Data(part) => data_seen.extend(part),
                    Seen::Ping(payload) => pings_seen.push(payload),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert_eq!((data_seen, pings_seen), (data, pings));
        }

        #[test]
        fn any_bytes_cut_anywhere_are_safe_and_mean_the_same(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            cut in 0..200_usize,
        ) {
            let whole = decode(&bytes);
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let (mut decoder, mut seen) = (Decoder::default(), Vec::new());
            feed(&mut decoder, first, &mut seen);
            feed(&mut decoder, second, &mut seen);
            prop_assert_eq!(seen, whole);
        }

        #[test]
        fn masks_turn_with_their_bytes(mut bytes: Vec<u8>, mask: [u8; 4], cut: usize) {
            let mut once = bytes.clone();
            apply_mask(&mut once, mask);
            for (i, byte) in once.iter().enumerate() {
                prop_assert_eq!(*byte, bytes[i] ^ mask[i % 4]);
            }
            let cut = cut % (bytes.len() + 1);
            let (first, second) = bytes.split_at_mut(cut);
            let turned = apply_mask(first, mask);
            apply_mask(second, turned);
            prop_assert_eq!(bytes, once);
        }
    }
}
