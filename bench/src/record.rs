//! TLS 1.3 records over extracted secrets: opened straight into the reader's buffer, sealed in place in the writer's.
//!
//! Owns the keys, the sequence numbers and the record framing. It never handshakes (`tls` does) and
//! never touches a socket. AES-128-GCM only: the one suite that every compared program is held to.
//! The load generator and the limit programs call it; it shares no code with the relay it measures.

use anyhow::{Context as _, Result, bail, ensure};
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

/// Bytes of a record header: type, legacy version, length (RFC 8446, 5.1).
pub(crate) const HEADER_LEN: usize = 5;
/// Bytes of the AES-128-GCM tag.
pub(crate) const TAG_LEN: usize = 16;
/// Bytes a record adds to its plaintext: header, content type, tag.
pub(crate) const OVERHEAD_LEN: usize = HEADER_LEN + 1 + TAG_LEN;
/// Most plaintext bytes in one record (RFC 8446, 5.1).
pub(crate) const PLAINTEXT_LEN_MAX: usize = 16 << 10;

/// Content type of application data.
const APPLICATION: u8 = 23;
/// Content type of handshake messages: after the handshake, session tickets.
const HANDSHAKE: u8 = 22;

/// One direction's key, fixed nonce part and record counter.
struct Direction {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl Direction {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self> {
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
            bail!("peer negotiated a suite other than AES-128-GCM");
        };
        let key = UnboundKey::new(&AES_128_GCM, key.as_ref())
            .ok()
            .context("AES-128 key of wrong length")?;
        let iv = iv.as_ref().try_into().context("nonce of wrong length")?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// The next record's nonce: the counter folded into the last eight bytes (RFC 8446, 5.3).
    #[inline]
    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// The whole length of the record that starts `bytes`, once its header is there.
#[inline]
pub(crate) fn record_len(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<HEADER_LEN>()?;
    Some(HEADER_LEN + usize::from(u16::from_be_bytes([header[3], header[4]])))
}

/// Opens the records of one direction.
pub(crate) struct Opener(Direction);

impl Opener {
    /// The opener for rustls' receive secrets.
    pub(crate) fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self> {
        Direction::new(secrets).map(Self)
    }

    /// Opens one whole `record` into `out` and returns the plaintext's length in bytes: 0 for a session
    /// ticket. `out` has room for `record.len()` bytes. An alert, a close included, is an error.
    #[inline]
    pub(crate) fn open(&mut self, record: &[u8], out: &mut [u8]) -> Result<usize> {
        ensure!(
            record.len() > OVERHEAD_LEN - 1 && record[0] == APPLICATION,
            "not a protected record"
        );
        let (header, body) = record.split_at(HEADER_LEN);
        let (cipher, tag) = body.split_at(body.len() - TAG_LEN);
        let out = &mut out[..cipher.len()];
        let nonce = self.0.nonce();
        let opened = self.0.key.open_separate_gather(nonce, Aad::from(header), cipher, tag, out);
        ensure!(opened.is_ok(), "record {} does not open", self.0.sequence - 1);
        let Some(last) = out.iter().rposition(|byte| *byte != 0) else {
            bail!("record of padding only")
        };
        match out[last] {
            APPLICATION => Ok(last),
            HANDSHAKE => Ok(0),
            kind => bail!("peer sent content type {kind}, not data"),
        }
    }
}

/// Seals the records of one direction.
pub(crate) struct Sealer(Direction);

impl Sealer {
    /// The sealer for rustls' send secrets.
    pub(crate) fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self> {
        Direction::new(secrets).map(Self)
    }
}

/// Bytes on their way to one socket: sealed records, or plain bytes where there is no TLS.
///
/// ```text
///  0        start            record      end
///  +--------+----------------+-----------+---------
///  | sent   | sealed, unsent | still open| spare ...
///  +--------+----------------+-----------+---------
/// ```
#[derive(Default)]
pub(crate) struct Outbox {
    /// Always initialised to its whole length, so that spare bytes can be lent out.
    buffer: Vec<u8>,
    /// First unsent byte.
    start: usize,
    /// Header of the record being filled; `end` when none is.
    record: usize,
    /// One past the last byte in use; never before `record`, which is never before `start`.
    end: usize,
}

impl Outbox {
    /// At least `len` writable bytes after what is there; [`Outbox::commit`] keeps the first of them.
    #[inline]
    pub(crate) fn spare(&mut self, len: usize) -> &mut [u8] {
        if self.buffer.len() < self.end + len {
            self.buffer.resize((self.end + len).next_power_of_two(), 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Keeps the first `len` spare bytes.
    #[inline]
    pub(crate) fn commit(&mut self, len: usize) {
        self.end += len;
    }

    /// Appends `bytes` to what is being written.
    #[inline]
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.spare(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.commit(bytes.len());
    }

    /// Bytes of plaintext in the open record; 0 when none is open.
    #[inline]
    pub(crate) fn record_len(&self) -> usize {
        (self.end - self.record).saturating_sub(HEADER_LEN)
    }

    /// Starts a record unless one is open.
    #[inline]
    pub(crate) fn open_record(&mut self) {
        if self.record == self.end {
            self.spare(HEADER_LEN);
            self.commit(HEADER_LEN);
        }
    }

    /// Seals the open record, if any.
    #[inline]
    pub(crate) fn seal_record(&mut self, sealer: &mut Sealer) {
        if self.record == self.end {
            return;
        }
        self.append(&[APPLICATION]);
        let body = self.end - self.record - HEADER_LEN;
        let [high, low] = ((body + TAG_LEN) as u16).to_be_bytes();
        let header = [APPLICATION, 3, 3, high, low];
        self.spare(TAG_LEN);
        let record = &mut self.buffer[self.record..];
        record[..HEADER_LEN].copy_from_slice(&header);
        let plaintext = &mut record[HEADER_LEN..HEADER_LEN + body];
        let nonce = sealer.0.nonce();
        let tag = sealer.0.key.seal_in_place_separate_tag(nonce, Aad::from(header), plaintext);
        let tag = tag.expect("a record is far below AES-GCM's length limit");
        record[HEADER_LEN + body..][..TAG_LEN].copy_from_slice(tag.as_ref());
        self.end += TAG_LEN;
        self.record = self.end;
    }

    /// Ends a plain append: everything appended so far may be sent.
    #[inline]
    pub(crate) fn close_plain(&mut self) {
        self.record = self.end;
    }

    /// What may be sent now.
    #[inline]
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.buffer[self.start..self.record]
    }

    /// Forgets the first `len` unsent bytes: the socket took them.
    #[inline]
    pub(crate) fn consume(&mut self, len: usize) {
        self.start += len;
        if self.start == self.end {
            (self.start, self.record, self.end) = (0, 0, 0);
        } else if self.start > self.buffer.len() / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.record -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Gives an idle buffer back.
    pub(crate) fn release(&mut self) {
        if self.end == 0 {
            self.buffer = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directions() -> (Sealer, Opener) {
        let direction = || Direction {
            key: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[7; 16]).expect("16 bytes")),
            iv: [9; NONCE_LEN],
            sequence: 3,
        };
        (Sealer(direction()), Opener(direction()))
    }

    #[test]
    fn sealed_records_open_in_order_and_only_once() {
        let (mut sealer, mut opener) = directions();
        let mut outbox = Outbox::default();
        for text in [&b"first"[..], b"second"] {
            outbox.open_record();
            outbox.append(text);
            outbox.seal_record(&mut sealer);
        }
        let sent = outbox.unsent().to_vec();
        let first = record_len(&sent).expect("header is there");
        let mut out = [0; 64];
        assert_eq!(opener.open(&sent[..first], &mut out).expect("opens"), 5);
        assert_eq!(&out[..5], b"first");
        assert_eq!(opener.open(&sent[first..], &mut out).expect("opens"), 6);
        assert!(opener.open(&sent[first..], &mut out).is_err());
    }

    #[test]
    fn outbox_keeps_the_unsent_tail_and_the_open_record() {
        let (mut sealer, mut opener) = directions();
        let mut outbox = Outbox::default();
        outbox.open_record();
        outbox.append(&[1; 100]);
        outbox.seal_record(&mut sealer);
        let sent = outbox.unsent().to_vec();
        outbox.open_record();
        outbox.append(b"open");
        outbox.consume(sent.len());
        assert!(outbox.unsent().is_empty());
        assert_eq!(outbox.record_len(), 4);
        outbox.seal_record(&mut sealer);
        let mut out = [0; 200];
        assert_eq!(opener.open(&sent, &mut out).expect("opens"), 100);
        assert_eq!(opener.open(outbox.unsent(), &mut out).expect("opens"), 4);
    }
}
