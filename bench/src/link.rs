//! One client connection after its handshake: batches of records in, batches of frames out.
//!
//! Owns the socket, the record keys and what is left of a partial record, frame or write. It never
//! blocks once `hello` is done with it, and knows frames only by their length. Buffers for reading are
//! the caller's and shared by all links, so that thousands of idle links cost next to nothing.

use crate::record::{self, Opener, Outbox, Sealer};
use anyhow::{Result, bail};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use wire::derp::{HEADER_LEN, Header};

/// Most bytes taken by one read: several 16 KiB records of every sender that shares the receiver.
const READ_LEN: usize = 256 << 10;

/// Buffers that all links of a thread read through.
pub(crate) struct Scratch {
    cipher: Box<[u8]>,
    plain: Box<[u8]>,
}

impl Default for Scratch {
    fn default() -> Self {
        // A partial record and a partial 64 KiB frame may precede what is read.
        Self {
            cipher: vec![0; READ_LEN + (32 << 10)].into(),
            plain: vec![0; READ_LEN + (128 << 10)].into(),
        }
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Everything is with the kernel.
    All,
    /// The socket is full.
    Blocked,
}

/// A client's end of a relayed connection.
pub(crate) struct Link {
    /// The socket.
    pub(crate) stream: TcpStream,
    /// What is to be sent.
    pub(crate) out: Outbox,
    /// `None` on plain TCP.
    keys: Option<(Opener, Sealer)>,
    /// The start of a record whose rest has not come.
    partial_record: Vec<u8>,
    /// The start of a frame whose rest has not come.
    partial_frame: Vec<u8>,
}

impl Link {
    /// A link over `stream`; plain without `keys`.
    pub(crate) fn new(stream: TcpStream, keys: Option<(Opener, Sealer)>) -> Self {
        let (partial_record, partial_frame) = (Vec::new(), Vec::new());
        Self { stream, out: Outbox::default(), keys, partial_record, partial_frame }
    }

    /// The socket and the keys, for an engine that reads and writes by itself; all else must be empty.
    #[cfg(feature = "engines")]
    pub(crate) fn into_parts(self) -> (TcpStream, Option<(Opener, Sealer)>) {
        debug_assert!(self.partial_record.is_empty() && self.partial_frame.is_empty());
        (self.stream, self.keys)
    }

    /// Reads once. Returns all plaintext not yet kept, old and new; `None` if the socket has nothing.
    pub(crate) fn receive<'s>(&mut self, scratch: &'s mut Scratch) -> Result<Option<&'s [u8]>> {
        let Scratch { cipher, plain } = scratch;
        let mut end = self.partial_frame.len();
        plain[..end].copy_from_slice(&self.partial_frame);
        let Some((opener, _)) = &mut self.keys else {
            let Some(got) = read(&mut self.stream, &mut plain[end..][..READ_LEN])? else {
                return Ok(None);
            };
            return Ok(Some(&plain[..end + got]));
        };
        let held = self.partial_record.len();
        cipher[..held].copy_from_slice(&self.partial_record);
        let Some(got) = read(&mut self.stream, &mut cipher[held..][..READ_LEN])? else {
            return Ok(None);
        };
        let mut rest = &cipher[..held + got];
        while let Some(len) = record::record_len(rest)
            && len <= rest.len()
        {
            end += opener.open(&rest[..len], &mut plain[end..])?;
            rest = &rest[len..];
        }
        self.partial_record.clear();
        self.partial_record.extend_from_slice(rest);
        Ok(Some(&plain[..end]))
    }

    /// Keeps the unparsed `rest` of what [`Link::receive`] returned.
    #[inline]
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        self.partial_frame.clear();
        self.partial_frame.extend_from_slice(rest);
    }

    /// Begins what [`Link::end_record`] ends; appends in between go into one record.
    #[inline]
    pub(crate) fn begin_record(&mut self) {
        if self.keys.is_some() {
            self.out.open_record();
        }
    }

    /// Seals what was appended since [`Link::begin_record`].
    #[inline]
    pub(crate) fn end_record(&mut self) {
        match &mut self.keys {
            Some((_, sealer)) => self.out.seal_record(sealer),
            None => self.out.close_plain(),
        }
    }

    /// Queues `bytes` as one record.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.begin_record();
        self.out.append(bytes);
        self.end_record();
    }

    /// Writes what is queued, once.
    #[inline]
    pub(crate) fn flush(&mut self) -> Result<Flushed> {
        flush(&mut self.stream, &mut self.out)
    }
}

/// Writes what `out` holds, once.
#[inline]
pub(crate) fn flush(stream: &mut TcpStream, out: &mut Outbox) -> Result<Flushed> {
    while !out.unsent().is_empty() {
        match stream.write(out.unsent()) {
            Ok(len) if len == out.unsent().len() => out.consume(len),
            Ok(len) => {
                out.consume(len);
                return Ok(Flushed::Blocked);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Flushed::All)
}

/// Reads once; `None` if nothing is there, an error if the peer has closed.
#[inline]
pub(crate) fn read(stream: &mut TcpStream, into: &mut [u8]) -> Result<Option<usize>> {
    match stream.read(into) {
        Ok(0) => bail!("peer closed the connection"),
        Ok(len) => Ok(Some(len)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// The first whole frame of `bytes`, header included, and what follows it.
#[inline]
pub(crate) fn split_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let header = Header::read(bytes)?;
    bytes.split_at_checked(HEADER_LEN + header.len as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::derp::FrameType;

    #[test]
    fn a_frame_is_split_only_when_whole() {
        let mut bytes = Header::bytes(FrameType::Ping, 8).to_vec();
        bytes.extend_from_slice(b"12345678rest");
        for cut in 0..13 {
            assert!(split_frame(&bytes[..cut]).is_none());
        }
        let (frame, rest) = split_frame(&bytes).expect("whole");
        assert_eq!((frame.len(), rest), (13, &b"rest"[..]));
    }
}
