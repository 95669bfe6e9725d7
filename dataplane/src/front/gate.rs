//! Between hyper and a connection: lets HTTP pass and stops in front of a DERP upgrade.
//!
//! A DERP upgrade may follow other requests on its connection, and a fast start allows no HTTP
//! answer, so hyper must never see it. The gate shows hyper one head at a time; before an upgrade it
//! reports the end of the stream, hyper finishes, and the connection comes back untouched.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::head::{self, Asked, Head};
use super::stream::Connection;

/// See the module.
#[derive(Debug)]
pub(super) struct Gate {
    connection: Connection,
    state: State,
    /// hyper has written something and not yet been told that all of it left.
    unsent: bool,
    /// Whom to wake once it has.
    reader: Option<Waker>,
}

#[derive(Debug)]
enum State {
    /// The next byte begins a head.
    Boundary,
    /// This many bytes of a head are hyper's, and another head follows.
    Head(usize),
    /// The connection carries bodies, or nonsense: all of it is hyper's.
    Open,
    /// An upgrade lies at the front.
    Found(Asked),
}

impl Gate {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, state: State::Boundary, unsent: false, reader: None }
    }

    /// A gate that never closes, where no upgrade is served.
    pub(super) fn open(connection: Connection) -> Self {
        Self { connection, state: State::Open, unsent: false, reader: None }
    }

    /// The upgrade that hyper was stopped in front of; its head is taken off the connection.
    pub(super) fn take_upgrade(&mut self) -> Option<Asked> {
        match std::mem::replace(&mut self.state, State::Open) {
            State::Found(asked) => Some(asked),
            State::Boundary | State::Head(_) | State::Open => None,
        }
    }

    pub(super) fn into_connection(self) -> Connection {
        self.connection
    }

    /// Looks at the head at the front; pending until it is complete or the stream ends.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(Head { asked, end, has_body }) = head::read(self.connection.peek()) {
                self.state = match asked {
                    Asked::Http if has_body || end == 0 => State::Open,
                    Asked::Http => State::Head(end),
                    Asked::Derp { .. } | Asked::WebSocket(_) => {
                        self.connection.consume(end);
                        State::Found(asked)
                    }
                };
                return Poll::Ready(Ok(()));
            }
            if !ready!(self.connection.poll_fill(cx))? {
                self.state = State::Open;
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncRead for Gate {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if matches!(self.state, State::Boundary) {
            // The end that hyper sees in front of an upgrade must not overtake its last answer.
            if self.unsent {
                self.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            ready!(self.poll_head(cx))?;
        }
        match self.state {
            State::Found(_) | State::Boundary => Poll::Ready(Ok(())),
            State::Open => Pin::new(&mut self.connection).poll_read(cx, buf),
            State::Head(left) => {
                let len = left.min(buf.remaining());
                buf.put_slice(&self.connection.peek()[..len]);
                self.connection.consume(len);
                self.state = if len == left { State::Boundary } else { State::Head(left - len) };
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Gate {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unsent = true;
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.connection).poll_flush(cx))?;
        self.unsent = false;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}
