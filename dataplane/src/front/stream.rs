//! A connection on the front: TCP with or without TLS, as one byte stream.
//!
//! Uses the same record layer as the relay cores, so that a connection can be handed over at any
//! byte: [`Connection::into_parts`] gives socket, keys and whatever was read ahead.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use proto::tls::{Fault, Opened, Protocol, RecordBuf};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::relay::Stream;
use crate::tls::{Rx, Tx};

/// Bytes asked of the socket per read: one full record.
const READ_LEN: usize = 17 << 10;
/// Plaintext sealed per write call, so that one response cannot hold much memory.
const WRITE_LEN_MAX: usize = 64 << 10;

/// See the module.
#[derive(Debug)]
pub struct Connection {
    tcp: TcpStream,
    tls: Option<(Rx, Tx)>,
    /// Bytes read and not opened yet; empty in clear.
    sealed: Vec<u8>,
    /// Plaintext read and not taken yet, from `taken` on.
    plain: Vec<u8>,
    taken: usize,
    /// Sealed bytes on their way out, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    ended: bool,
}

impl Connection {
    /// A connection in clear.
    #[must_use]
    pub fn clear(tcp: TcpStream) -> Self {
        Self::new(tcp, None, Stream::default())
    }

    /// A connection under TLS, with what was read behind the handshake.
    #[must_use]
    pub fn secure(tcp: TcpStream, rx: Rx, tx: Tx, early: Stream) -> Self {
        Self::new(tcp, Some((rx, tx)), early)
    }

    fn new(tcp: TcpStream, tls: Option<(Rx, Tx)>, early: Stream) -> Self {
        let Stream { plain, sealed } = early;
        Self { tcp, tls, sealed, plain, taken: 0, out: Vec::new(), sent: 0, ended: false }
    }

    /// Plaintext that has arrived and was not taken yet.
    #[must_use]
    pub fn peek(&self) -> &[u8] {
        &self.plain[self.taken..]
    }

    /// Takes `len` bytes off the front of [`Connection::peek`].
    pub fn consume(&mut self, len: usize) {
        self.taken = (self.taken + len).min(self.plain.len());
        if self.taken == self.plain.len() {
            self.plain.clear();
            self.taken = 0;
        }
    }

    /// Waits until more plaintext is there; false at the end of the stream.
    ///
    /// # Errors
    /// The kernel's, or `InvalidData` for a record that does not open.
    pub async fn fill(&mut self) -> io::Result<bool> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Socket, keys, and the bytes read ahead.
    #[must_use]
    pub fn into_parts(mut self) -> (TcpStream, Option<(Rx, Tx)>, Stream) {
        self.plain.drain(..self.taken);
        (self.tcp, self.tls, Stream { plain: self.plain, sealed: self.sealed })
    }

    /// [`Connection::fill`] for hand-written futures.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let before = self.plain.len();
        self.open_records()?;
        while self.plain.len() == before && !self.ended {
            let into = if self.tls.is_some() { &mut self.sealed } else { &mut self.plain };
            let len = into.len();
            into.resize(len + READ_LEN, 0);
            let mut buf = ReadBuf::new(&mut into[len..]);
            let polled = Pin::new(&mut self.tcp).poll_read(cx, &mut buf);
            let read = buf.filled().len();
            into.truncate(len + read);
            ready!(polled)?;
            self.ended = read == 0;
            self.open_records()?;
        }
        Poll::Ready(Ok(self.plain.len() > before))
    }

    /// Opens every whole record in `sealed`.
    fn open_records(&mut self) -> io::Result<()> {
        let Some((rx, tx)) = &mut self.tls else { return Ok(()) };
        let mut at = 0;
        while !self.ended {
            match rx.open(&mut self.sealed[at..]) {
                Ok(Opened::Need(_)) => break,
                Ok(Opened::Data { plain, end }) => {
                    self.plain.extend_from_slice(&self.sealed[at..][plain]);
                    at += end;
                }
                Ok(Opened::KeyUpdate { reply, end }) => {
                    tx.update_rx(rx, reply).map_err(invalid)?;
                    at += end;
                }
                Ok(Opened::Closed) | Err(Fault::Alert) => self.ended = true,
                Err(fault) => return Err(invalid(fault)),
            }
        }
        self.sealed.drain(..at);
        Ok(())
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.out[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        self.out.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    fn seal(&mut self, plain: &[u8]) -> io::Result<()> {
        let Some((_, tx)) = &mut self.tls else {
            self.out.extend_from_slice(plain);
            return Ok(());
        };
        let protocol: Protocol = tx.protocol();
        let mut records = RecordBuf::on(std::mem::take(&mut self.out));
        records.push(plain, Some(protocol));
        let (out, _) = tx.seal(records).ok_or(io::ErrorKind::ConnectionAborted)?;
        self.out = out;
        Ok(())
    }
}

fn invalid(fault: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, fault)
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.peek().is_empty() {
            ready!(self.poll_fill(cx))?;
        }
        let len = self.peek().len().min(buf.remaining());
        buf.put_slice(&self.peek()[..len]);
        self.consume(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        let len = bytes.len().min(WRITE_LEN_MAX);
        self.seal(&bytes[..len])?;
        // The bytes are taken: what the socket does not accept now leaves with the next call.
        if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended
            && self.out.is_empty()
            && let Some((_, tx)) = &mut self.tls
        {
            self.out = tx.close_notify();
            self.ended = true;
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
