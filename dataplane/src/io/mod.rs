//! The one shape of I/O that suits readiness and completion alike.
//!
//! A [`Driver`] moves bytes between sockets and its caller's buffers on one thread. It knows nothing
//! of DERP, TLS or queues; the relay worker, its only caller, knows nothing of sockets. Received
//! bytes are lent for the length of a callback, sent bytes are owned by the driver until they land.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use proto::tick::Tick;

pub mod epoll;
pub mod probe;
pub mod sim;
pub(crate) mod slab;
#[allow(unsafe_code, reason = "the kernel reads and writes its rings and buffers (invariant 10)")]
pub mod uring;

/// The caller's name for a socket or listener; the driver only hands it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// A stream socket as a driver sees it. Clones name the same connection.
pub trait Socket: Clone + Send + Sync + 'static {
    /// Ends both directions. Whatever is under way on any driver then ends by itself, so nothing is
    /// ever cancelled; the descriptor closes with its last clone.
    fn shutdown(&self);
}

impl Socket for Arc<TcpStream> {
    fn shutdown(&self) {
        // It fails only on a connection that has already ended, which is what is asked for.
        let _ = TcpStream::shutdown(self, Shutdown::Both);
    }
}

/// What happened, as told to the callback of [`Driver::poll`].
#[derive(Debug)]
pub enum Event<'a, S> {
    /// Bytes arrived. They may be changed in place and are gone after the callback.
    Received(Token, &'a mut [u8]),
    /// The peer ended the stream, or it broke. The last event of its token.
    Ended(Token, io::Result<()>),
    /// A send that was [`Submitted::Pending`] has landed.
    Landed(Landed),
    /// A watched descriptor may be read until it would block.
    Ready(Token),
    /// A listener accepted a connection, which is not adopted yet.
    Accepted(Token, S),
}

/// A finished send.
#[derive(Debug)]
pub struct Landed {
    /// The token given to [`Driver::send`].
    pub flight: Token,
    /// The buffer, for reuse.
    pub bytes: Vec<u8>,
    /// Whether every byte was handed to the kernel.
    pub result: io::Result<()>,
}

/// What [`Driver::send`] made of a buffer.
#[derive(Debug)]
pub enum Submitted {
    /// Done within the call.
    Now(Landed),
    /// [`Event::Landed`] will tell.
    Pending,
}

/// Wakes a driver that blocks in [`Driver::poll`], from any thread.
pub trait Wake: Send + Sync {
    /// Makes the present or next `poll` return soon.
    fn wake(&self);
}

/// One thread's I/O.
pub trait Driver {
    /// The stream sockets it works on.
    type Socket: Socket;

    /// Time since the process began, on the clock that all drivers of the process share.
    fn now(&self) -> Tick;

    /// Starts receiving from `socket`; ends with exactly one [`Event::Ended`].
    ///
    /// # Errors
    /// The kernel's, if the socket cannot be watched; there is no event then.
    fn adopt(&mut self, socket: &Self::Socket, token: Token) -> io::Result<()>;

    /// Sends all of `bytes`. Sockets adopted elsewhere are fine; one send per socket at a time.
    fn send(&mut self, socket: &Self::Socket, flight: Token, bytes: Vec<u8>) -> Submitted;

    /// Adds to `found` the pending flights that moved no byte since `before`.
    fn stalled(&self, before: Tick, found: &mut Vec<Token>);

    /// Reports [`Event::Ready`] whenever `fd` becomes readable. `fd` outlives the driver.
    ///
    /// # Errors
    /// The kernel's, or `Unsupported`.
    fn watch(&mut self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()>;

    /// Accepts connections for as long as the driver lives.
    ///
    /// # Errors
    /// The kernel's, or `Unsupported`.
    fn listen(&mut self, listener: TcpListener, token: Token) -> io::Result<()>;

    /// Receives so far that had to wait because no buffer was free.
    fn starved(&self) -> u64 {
        0
    }

    /// A handle that wakes [`Driver::poll`].
    fn waker(&self) -> Arc<dyn Wake>;

    /// Waits until something happened, at most `wait` (`None`: for ever), and reports it.
    ///
    /// # Errors
    /// The kernel's, where the driver cannot go on.
    fn poll(
        &mut self,
        wait: Option<Duration>,
        on: &mut impl FnMut(Event<'_, Self::Socket>),
    ) -> io::Result<()>;
}

/// Bytes one receive may bring: 45 full-size frames with their records, and the largest frame.
///
/// Measured: below 16 KiB bursts fall apart, above 64 KiB nothing is gained.
pub(crate) const RECEIVE_LEN: usize = 64 << 10;
