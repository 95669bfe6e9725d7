//! One direction each of a TLS 1.2 or 1.3 connection with an AEAD suite.
//!
//! Owns the nonce sequence; must never reuse a nonce or accept a record out of order. The relay
//! session and the HTTP front call it; rustls is its oracle in the tests of `dataplane`.

use core::fmt;
use core::ops::Range;

use super::{HEADER_LEN, PLAINTEXT_LEN_MAX};

/// Bytes of the authentication tag of every suite in use.
pub const TAG_LEN: usize = 16;
/// Bytes of the per-record nonce that TLS 1.2 AES-GCM sends in clear (RFC 5288 §3).
const EXPLICIT_NONCE_LEN: usize = 8;
/// Longest ciphertext of a TLS 1.3 record in bytes (RFC 8446 §5.2).
const CIPHERTEXT_13_LEN_MAX: usize = PLAINTEXT_LEN_MAX + 256;
/// Records in a row without application data before the peer is cut. Stock peers send none.
const IDLE_RECORDS_MAX: u8 = 32;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// An AEAD cipher with its key.
pub trait Aead {
    /// Decrypts `data` (ciphertext, then tag) in place; false if it is not authentic.
    fn open(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8]) -> bool;
    /// Encrypts `data` in place and returns the tag.
    fn seal(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN];
}

/// Which record protection the handshake chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TLS 1.3, any suite.
    Tls13,
    /// TLS 1.2 with AES-GCM: eight nonce bytes travel in each record.
    Tls12Gcm,
    /// TLS 1.2 with ChaCha20-Poly1305 (RFC 7905): nothing of the nonce travels.
    Tls12Chacha,
}

impl Protocol {
    /// Bytes in front of the plaintext of a sealed record.
    #[inline]
    #[must_use]
    pub const fn head_len(self) -> usize {
        match self {
            Self::Tls13 | Self::Tls12Chacha => HEADER_LEN,
            Self::Tls12Gcm => HEADER_LEN + EXPLICIT_NONCE_LEN,
        }
    }

    /// Bytes behind the plaintext of a sealed record.
    #[inline]
    #[must_use]
    pub const fn tail_len(self) -> usize {
        match self {
            Self::Tls13 => 1 + TAG_LEN,
            Self::Tls12Gcm | Self::Tls12Chacha => TAG_LEN,
        }
    }

    const fn explicit_nonce_len(self) -> usize {
        self.head_len() - HEADER_LEN
    }

    const fn ciphertext_len_max(self) -> usize {
        match self {
            Self::Tls13 => CIPHERTEXT_13_LEN_MAX,
            Self::Tls12Gcm | Self::Tls12Chacha => PLAINTEXT_LEN_MAX + 2048,
        }
    }
}

/// Why a peer's records cannot be accepted. Every fault ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The record's tag does not verify.
    #[error("record is not authentic")]
    NotAuthentic,
    /// The record is longer than TLS allows.
    #[error("record is too long")]
    TooLong,
    /// The record is too short to hold what it must.
    #[error("record is too short")]
    TooShort,
    /// A record or handshake message that has no place after the handshake.
    #[error("unexpected record")]
    Unexpected,
    /// The peer sent a fatal alert.
    #[error("peer sent a fatal alert")]
    Alert,
    /// Too many records in a row carried no data.
    #[error("too many empty records")]
    Flood,
    /// The sequence number would repeat.
    #[error("record limit reached")]
    Exhausted,
}

/// What the bytes at the front of a buffer turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The record is complete only once the buffer holds this many bytes.
    Need(usize),
    /// Application data at `plain`; the record ends at `end`. The range may be empty.
    Data {
        /// Where the plaintext lies in the buffer.
        plain: Range<usize>,
        /// Where the next record begins.
        end: usize,
    },
    /// The peer's next records use its next key; `reply` asks for ours to be updated too.
    KeyUpdate {
        /// Whether the peer asked us to update our sending key.
        reply: bool,
        /// Where the next record begins.
        end: usize,
    },
    /// The peer closed its sending side.
    Closed,
}

/// The receiving direction.
pub struct Opener<A> {
    aead: A,
    iv: [u8; 12],
    seq: u64,
    protocol: Protocol,
    idle_records: u8,
}

impl<A> Opener<A> {
    /// A direction whose next record has sequence number `seq`.
    pub fn new(protocol: Protocol, aead: A, iv: [u8; 12], seq: u64) -> Self {
        Self { aead, iv, seq, protocol, idle_records: 0 }
    }

    /// Replaces the key after [`Opened::KeyUpdate`]; the sequence starts again at zero.
    pub fn rekey(&mut self, aead: A, iv: [u8; 12]) {
        self.aead = aead;
        self.iv = iv;
        self.seq = 0;
    }

    /// The cipher, for callers that let an idle connection's key schedule go.
    pub fn aead_mut(&mut self) -> &mut A {
        &mut self.aead
    }

    /// Which record protection is in force.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }
}

impl<A: Aead> Opener<A> {
    /// Opens the record at the front of `buf` in place.
    ///
    /// # Errors
    /// A [`Fault`] ends the connection: the direction must not be used again.
    #[inline]
    pub fn open(&mut self, buf: &mut [u8]) -> Result<Opened, Fault> {
        let Some(&[kind, _, _, hi, lo]) = buf.first_chunk::<HEADER_LEN>() else {
            return Ok(Opened::Need(HEADER_LEN));
        };
        let len = usize::from(u16::from_be_bytes([hi, lo]));
        if len > self.protocol.ciphertext_len_max() {
            return Err(Fault::TooLong);
        }
        let end = HEADER_LEN + len;
        if buf.len() < end {
            return Ok(Opened::Need(end));
        }
        match self.protocol {
            Protocol::Tls13 => self.open_13(kind, &mut buf[..end]),
            Protocol::Tls12Gcm | Protocol::Tls12Chacha => self.open_12(kind, &mut buf[..end]),
        }
    }

    fn open_13(&mut self, kind: u8, record: &mut [u8]) -> Result<Opened, Fault> {
        if kind != APPLICATION_DATA {
            return Err(Fault::Unexpected);
        }
        let (header, body) = record.split_at_mut(HEADER_LEN);
        if body.len() < TAG_LEN + 1 {
            return Err(Fault::TooShort);
        }
        let seq = self.advance()?;
        let nonce = nonce(&self.iv, seq);
        if !self.aead.open(nonce, header, body) {
            return Err(Fault::NotAuthentic);
        }
        // The content type is the last byte that is not padding.
        let inner = &body[..body.len() - TAG_LEN];
        let at = inner.iter().rposition(|byte| *byte != 0).ok_or(Fault::Unexpected)?;
        if at > PLAINTEXT_LEN_MAX {
            return Err(Fault::TooLong);
        }
        let kind = inner[at];
        self.classify(kind, HEADER_LEN..HEADER_LEN + at, record)
    }

    fn open_12(&mut self, kind: u8, record: &mut [u8]) -> Result<Opened, Fault> {
        let skip = self.protocol.explicit_nonce_len();
        let (header, body) = record.split_at_mut(HEADER_LEN);
        if body.len() < skip + TAG_LEN {
            return Err(Fault::TooShort);
        }
        let (explicit, body) = body.split_at_mut(skip);
        let seq = self.advance()?;
        let plain_len = body.len() - TAG_LEN;
        if plain_len > PLAINTEXT_LEN_MAX {
            return Err(Fault::TooLong);
        }
        let mut number = nonce(&self.iv, seq);
        if self.protocol == Protocol::Tls12Gcm {
            number[..4].copy_from_slice(&self.iv[..4]);
            number[4..].copy_from_slice(explicit);
        }
        if !self.aead.open(number, &aad_12(seq, header, plain_len), body) {
            return Err(Fault::NotAuthentic);
        }
        let start = HEADER_LEN + skip;
        self.classify(kind, start..start + plain_len, record)
    }

    fn classify(&mut self, kind: u8, plain: Range<usize>, record: &[u8]) -> Result<Opened, Fault> {
        let end = record.len();
        let content = &record[plain.clone()];
        if kind == APPLICATION_DATA && !content.is_empty() {
            self.idle_records = 0;
            return Ok(Opened::Data { plain, end });
        }
        self.idle_records += 1;
        if self.idle_records > IDLE_RECORDS_MAX {
            return Err(Fault::Flood);
        }
        match (kind, content) {
            (APPLICATION_DATA, _) | (ALERT, [_, USER_CANCELED]) => {
                Ok(Opened::Data { plain: end..end, end })
            }
            (ALERT, [_, CLOSE_NOTIFY]) => Ok(Opened::Closed),
            (ALERT, [_, _]) => Err(Fault::Alert),
            (HANDSHAKE, [24, 0, 0, 1, reply @ (0 | 1)]) if self.protocol == Protocol::Tls13 => {
                Ok(Opened::KeyUpdate { reply: *reply == 1, end })
            }
            (CHANGE_CIPHER_SPEC | ALERT | HANDSHAKE | _, _) => Err(Fault::Unexpected),
        }
    }

    fn advance(&mut self) -> Result<u64, Fault> {
        let seq = self.seq;
        self.seq = seq.checked_add(1).ok_or(Fault::Exhausted)?;
        Ok(seq)
    }
}

impl<A> fmt::Debug for Opener<A> {
    /// Without the key and its initial vector (invariant 7).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

impl<A> fmt::Debug for Sealer<A> {
    /// Without the key and its initial vector (invariant 7).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

/// The sending direction.
pub struct Sealer<A> {
    aead: A,
    iv: [u8; 12],
    seq: u64,
    protocol: Protocol,
}

impl<A> Sealer<A> {
    /// A direction whose next record has sequence number `seq`.
    pub fn new(protocol: Protocol, aead: A, iv: [u8; 12], seq: u64) -> Self {
        Self { aead, iv, seq, protocol }
    }

    /// Replaces the key after a `KeyUpdate` was sealed; the sequence starts again at zero.
    pub fn rekey(&mut self, aead: A, iv: [u8; 12]) {
        self.aead = aead;
        self.iv = iv;
        self.seq = 0;
    }

    /// The cipher, for callers that let an idle connection's key schedule go.
    pub fn aead_mut(&mut self) -> &mut A {
        &mut self.aead
    }

    /// Which record protection is in force.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Records sealed under the present key.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.seq
    }
}

impl<A: Aead> Sealer<A> {
    /// Seals application data in place: `record` is head room, plaintext and tail room.
    ///
    /// The rooms are [`Protocol::head_len`] and [`Protocol::tail_len`] bytes, the plaintext at most
    /// [`PLAINTEXT_LEN_MAX`].
    #[inline]
    pub fn seal(&mut self, record: &mut [u8]) {
        self.seal_as(APPLICATION_DATA, record);
    }

    /// Seals a TLS 1.3 `KeyUpdate` that asks for none in return; [`Sealer::rekey`] must follow.
    ///
    /// Returns the record: it goes out before anything sealed later.
    pub fn seal_key_update(&mut self) -> [u8; HEADER_LEN + 5 + 1 + TAG_LEN] {
        debug_assert_eq!(self.protocol, Protocol::Tls13);
        let mut record = [0; HEADER_LEN + 5 + 1 + TAG_LEN];
        record[HEADER_LEN..HEADER_LEN + 5].copy_from_slice(&[24, 0, 0, 1, 0]);
        self.seal_as(HANDSHAKE, &mut record);
        record
    }

    /// Seals the alert that closes this direction, into `out`; returns the bytes written.
    pub fn seal_close_notify<'a>(&mut self, out: &'a mut [u8; 64]) -> &'a [u8] {
        let (head, tail) = (self.protocol.head_len(), self.protocol.tail_len());
        let record = &mut out[..head + 2 + tail];
        record[head..head + 2].copy_from_slice(&[1, CLOSE_NOTIFY]);
        self.seal_as(ALERT, record);
        record
    }

    fn seal_as(&mut self, kind: u8, record: &mut [u8]) {
        let seq = self.seq;
        self.seq += 1;
        let (head_len, tail_len) = (self.protocol.head_len(), self.protocol.tail_len());
        let len = (record.len() - HEADER_LEN) as u16;
        let (head, rest) = record.split_at_mut(head_len);
        let (body, tag) = rest.split_at_mut(rest.len() - TAG_LEN);
        let plain_len = body.len() + TAG_LEN - tail_len;
        debug_assert!(plain_len <= PLAINTEXT_LEN_MAX);
        let outer = if self.protocol == Protocol::Tls13 { APPLICATION_DATA } else { kind };
        head[..3].copy_from_slice(&[outer, 3, 3]);
        head[3..HEADER_LEN].copy_from_slice(&len.to_be_bytes());
        let mut number = nonce(&self.iv, seq);
        let sealed = match self.protocol {
            Protocol::Tls13 => {
                body[plain_len] = kind;
                self.aead.seal(number, head, body)
            }
            Protocol::Tls12Gcm => {
                // The sequence number, masked by the secret's own bytes, never repeats under a key.
                number[..4].copy_from_slice(&self.iv[..4]);
                head[HEADER_LEN..].copy_from_slice(&number[4..]);
                self.aead.seal(number, &aad_12(seq, head, plain_len), body)
            }
            Protocol::Tls12Chacha => self.aead.seal(number, &aad_12(seq, head, plain_len), body),
        };
        tag.copy_from_slice(&sealed);
    }
}

/// RFC 8446 §5.3: the sequence number, padded on the left, XORed into the static IV.
#[inline]
fn nonce(iv: &[u8; 12], seq: u64) -> [u8; 12] {
    let mut nonce = *iv;
    for (byte, seq) in nonce[4..].iter_mut().zip(seq.to_be_bytes()) {
        *byte ^= seq;
    }
    nonce
}

/// RFC 5246 §6.2.3.3: sequence number, type, version and plaintext length.
fn aad_12(seq: u64, header: &[u8], plain_len: usize) -> [u8; 13] {
    let mut aad = [0; 13];
    aad[..8].copy_from_slice(&seq.to_be_bytes());
    aad[8..11].copy_from_slice(&header[..3]);
    aad[11..].copy_from_slice(&(plain_len as u16).to_be_bytes());
    aad
}

#[cfg(test)]
pub(super) mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    /// A toy cipher for framing tests: XOR with the nonce, tag = sum. Never leaves the tests.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Toy;

    impl Aead for Toy {
        fn open(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8]) -> bool {
            let (body, tag) = data.split_at_mut(data.len() - TAG_LEN);
            mask(nonce, body);
            tag == digest(nonce, aad, body)
        }

        fn seal(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
            let tag = digest(nonce, aad, data);
            mask(nonce, data);
            tag
        }
    }

    fn mask(nonce: [u8; 12], data: &mut [u8]) {
        data.iter_mut().zip(nonce.iter().cycle()).for_each(|(byte, n)| *byte ^= n);
    }

    fn digest(nonce: [u8; 12], aad: &[u8], data: &[u8]) -> [u8; TAG_LEN] {
        let mut tag = [0_u8; TAG_LEN];
        for (i, byte) in nonce.iter().chain(aad).chain(data).enumerate() {
            tag[i % TAG_LEN] = tag[i % TAG_LEN].rotate_left(1) ^ byte;
        }
        tag
    }

    const ALL: [Protocol; 3] = [Protocol::Tls13, Protocol::Tls12Gcm, Protocol::Tls12Chacha];

    fn pair(protocol: Protocol) -> (Sealer<Toy>, Opener<Toy>) {
        let iv = [9; 12];
        (Sealer::new(protocol, Toy, iv, 0), Opener::new(protocol, Toy, iv, 0))
    }

    fn record(sealer: &mut Sealer<Toy>, plain: &[u8]) -> Vec<u8> {
        let (head, tail) = (sealer.protocol().head_len(), sealer.protocol().tail_len());
        let mut record = vec![0; head + plain.len() + tail];
        record[head..head + plain.len()].copy_from_slice(plain);
        sealer.seal(&mut record);
        record
    }

    #[test]
    fn records_round_trip_in_order_and_in_no_other() {
        for protocol in ALL {
            let (mut sealer, mut opener) = pair(protocol);
            let mut first = record(&mut sealer, b"first");
            let second = record(&mut sealer, b"second");
            match opener.open(&mut first).expect("authentic") {
                Opened::Data { plain, end } => {
                    assert_eq!(&first[plain], b"first");
                    assert_eq!(end, first.len());
                }
                other => panic!("{other:?}"),
            }
            assert!(matches!(opener.open(&mut second.clone()), Ok(Opened::Data { .. })));
            assert_eq!(opener.open(&mut second.clone()), Err(Fault::NotAuthentic), "replayed");
        }
    }

    #[test]
    fn asks_for_more_at_every_truncation() {
        for protocol in ALL {
            let (mut sealer, mut opener) = pair(protocol);
            let mut whole = record(&mut sealer, b"payload");
            for cut in 0..whole.len() {
                let need = if cut < HEADER_LEN { HEADER_LEN } else { whole.len() };
                assert_eq!(opener.open(&mut whole[..cut]), Ok(Opened::Need(need)));
            }
            assert!(matches!(opener.open(&mut whole), Ok(Opened::Data { .. })));
        }
    }

    #[test]
    fn every_flipped_bit_of_the_body_is_noticed() {
        for protocol in ALL {
            let whole = record(&mut pair(protocol).0, b"x");
            for at in HEADER_LEN..whole.len() {
                let mut broken = whole.clone();
                broken[at] ^= 1;
                assert!(pair(protocol).1.open(&mut broken).is_err(), "byte {at}");
            }
        }
    }

    #[test]
    fn control_records_are_told_apart() {
        let (mut sealer, mut opener) = pair(Protocol::Tls13);
        let mut update = sealer.seal_key_update();
        let end = update.len();
        assert_eq!(opener.open(&mut update), Ok(Opened::KeyUpdate { reply: false, end }));
        let mut out = [0; 64];
        let mut close = sealer.seal_close_notify(&mut out).to_vec();
        assert_eq!(opener.open(&mut close), Ok(Opened::Closed));
    }

    #[test]
    fn a_flood_of_empty_records_ends_the_connection() {
        let (mut sealer, mut opener) = pair(Protocol::Tls13);
        for _ in 0..IDLE_RECORDS_MAX {
            assert!(matches!(opener.open(&mut record(&mut sealer, b"")), Ok(Opened::Data { .. })));
        }
        assert_eq!(opener.open(&mut record(&mut sealer, b"")), Err(Fault::Flood));
    }

    #[test]
    fn long_and_short_records_are_refused() {
        let mut opener = pair(Protocol::Tls13).1;
        assert_eq!(opener.open(&mut [23, 3, 3, 0xff, 0xff]), Err(Fault::TooLong));
        assert_eq!(opener.open(&mut [23, 3, 3, 0, 1, 0]), Err(Fault::TooShort));
        assert_eq!(opener.open(&mut [20, 3, 3, 0, 1, 1]), Err(Fault::Unexpected));
    }
}
