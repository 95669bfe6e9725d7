//! The buffer in which outgoing records grow: plaintext is appended once, in the place where it is
//! sealed and sent from.
//!
//! Must never move plaintext again: record heads and tails are left open while appending.

use alloc::vec::Vec;

use super::{Aead, PLAINTEXT_LEN_MAX, Protocol, Sealer};

/// Plaintext laid out as records, ready to be sealed in place.
///
/// ```text
///  | head | plaintext, 16384 bytes | tail | head | plaintext ... | tail |
/// ```
///
/// Without TLS heads and tails have no bytes and the plaintext is contiguous.
#[derive(Debug, Default)]
pub struct RecordBuf {
    bytes: Vec<u8>,
    /// Plaintext bytes that the last record still takes; at 0 the next byte opens a record.
    room: usize,
    plain_len: usize,
}

impl RecordBuf {
    /// An empty buffer on top of `bytes`, whose capacity is reused.
    #[must_use]
    pub fn on(mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        Self { bytes, room: 0, plain_len: 0 }
    }

    /// Plaintext bytes appended so far.
    #[inline]
    #[must_use]
    pub fn plain_len(&self) -> usize {
        self.plain_len
    }

    /// Whether nothing was appended yet.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.plain_len == 0
    }

    /// Bytes that the underlying vector can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Bytes needed for `plain_len` more plaintext bytes, records' heads and tails included.
    #[must_use]
    pub fn len_with(&self, plain_len: usize, protocol: Option<Protocol>) -> usize {
        let overhead = protocol.map_or(0, |p| p.head_len() + p.tail_len());
        self.bytes.len() + plain_len + overhead * (plain_len / PLAINTEXT_LEN_MAX + 2)
    }

    /// Replaces the underlying vector by `larger`, keeping the content; returns the old one.
    #[must_use]
    pub fn swap(&mut self, mut larger: Vec<u8>) -> Vec<u8> {
        larger.clear();
        larger.extend_from_slice(&self.bytes);
        core::mem::replace(&mut self.bytes, larger)
    }

    /// Appends plaintext, opening records as needed. `protocol` is the same on every call.
    #[inline]
    pub fn push(&mut self, mut plain: &[u8], protocol: Option<Protocol>) {
        self.plain_len += plain.len();
        let Some(protocol) = protocol else {
            self.bytes.extend_from_slice(plain);
            return;
        };
        while !plain.is_empty() {
            if self.room == 0 {
                self.open_record(protocol);
            }
            let (now, later) = plain.split_at(plain.len().min(self.room));
            self.bytes.extend_from_slice(now);
            self.room -= now.len();
            plain = later;
        }
    }

    fn open_record(&mut self, protocol: Protocol) {
        let tail_len = if self.bytes.is_empty() { 0 } else { protocol.tail_len() };
        let len = self.bytes.len() + tail_len + protocol.head_len();
        self.bytes.resize(len, 0);
        self.room = PLAINTEXT_LEN_MAX;
    }

    /// Seals every record and gives the bytes to send, and the number of records.
    #[must_use]
    pub fn seal<A: Aead>(mut self, sealer: &mut Sealer<A>) -> (Vec<u8>, u64) {
        let protocol = sealer.protocol();
        let len = self.bytes.len() + protocol.tail_len();
        self.bytes.resize(len, 0);
        let stride = protocol.head_len() + PLAINTEXT_LEN_MAX + protocol.tail_len();
        let mut records = 0;
        for record in self.bytes.chunks_mut(stride) {
            sealer.seal(record);
            records += 1;
        }
        (self.bytes, records)
    }

    /// The bytes as they are, for a connection without TLS.
    #[must_use]
    pub fn into_plain(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::super::record::tests::Toy;
    use super::super::{Opened, Opener};
    use super::*;

    #[test]
    fn long_plaintext_is_cut_into_full_records() {
        for protocol in [Protocol::Tls13, Protocol::Tls12Gcm] {
            for len in [1, PLAINTEXT_LEN_MAX - 1, PLAINTEXT_LEN_MAX, PLAINTEXT_LEN_MAX + 1, 70_000]
            {
                let plain: Vec<u8> = (0..len).map(|i| (i / 251) as u8).collect();
                let mut buf = RecordBuf::on(Vec::new());
                let promised = buf.len_with(len, Some(protocol));
                for piece in plain.chunks(1437) {
                    buf.push(piece, Some(protocol));
                }
                let iv = [3; 12];
                let (mut sent, records) = buf.seal(&mut Sealer::new(protocol, Toy, iv, 5));
                assert!(sent.len() <= promised);
                assert_eq!(records, len.div_ceil(PLAINTEXT_LEN_MAX) as u64);
                let mut opener = Opener::new(protocol, Toy, iv, 5);
                let (mut at, mut got) = (0, vec![]);
                while at < sent.len() {
                    let Ok(Opened::Data { plain, end }) = opener.open(&mut sent[at..]) else {
                        panic!("not a data record at {at}");
                    };
                    got.extend_from_slice(&sent[at..][plain]);
                    at += end;
                }
                assert_eq!(got, plain);
            }
        }
    }

    #[test]
    fn without_tls_the_bytes_stay_as_they_are() {
        let mut buf = RecordBuf::on(vec![1, 2, 3]);
        buf.push(b"abc", None);
        buf.push(b"def", None);
        assert_eq!(buf.plain_len(), 6);
        assert_eq!(buf.into_plain(), b"abcdef");
    }
}
