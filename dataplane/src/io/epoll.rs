//! Readiness I/O on mio: the fallback where io_uring is forbidden, and the oracle for it.
//!
//! Edge triggered: a socket stays on the ready list until a read comes up short. Each socket gets
//! one read of the shared scratch buffer per round, so that no sender can hold a round.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Waker};
use proto::tick::Tick;

use super::slab::Slab;
use super::{Driver, Event, Landed, RECEIVE_LEN, Submitted, Token, Wake};

/// Kernel events taken per round.
const EVENTS_MAX: usize = 1024;
/// Connections accepted per listener and round.
const ACCEPTS_MAX: usize = 64;
/// Bytes received per round, as many as the buffers of the uring driver hold: more than a round can
/// send would only fill queues to be dropped from.
const ROUND_BYTES_MAX: usize = 512 << 10;
const WAKER: mio::Token = mio::Token(usize::MAX);

/// See the module.
#[derive(Debug)]
pub struct Epoll {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    epoch: Instant,
    scratch: Box<[u8]>,
    sources: Slab<Source>,
    /// Sources that may have more to read than the last round took.
    ready: VecDeque<u64>,
}

#[derive(Debug)]
enum Source {
    Stream { socket: Arc<TcpStream>, token: Token, queued: bool, hung_up: bool },
    Flight(Flight),
    Datagram { token: Token },
    Listener { listener: TcpListener, token: Token },
}

/// A send that would have blocked.
#[derive(Debug)]
struct Flight {
    /// A duplicate descriptor: this epoll may watch the original for reading, another worker's too.
    fd: OwnedFd,
    socket: Arc<TcpStream>,
    flight: Token,
    bytes: Vec<u8>,
    sent: usize,
    moved: Tick,
}

impl Epoll {
    /// A driver whose clock began at `epoch`.
    ///
    /// # Errors
    /// The kernel's, where descriptors are exhausted.
    pub fn new(epoch: Instant) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            waker,
            epoch,
            scratch: vec![0; RECEIVE_LEN].into_boxed_slice(),
            sources: Slab::default(),
            ready: VecDeque::new(),
        })
    }

    fn register(&mut self, fd: RawFd, source: Source, interest: Interest) -> io::Result<u64> {
        let at = self.sources.insert(source);
        let done =
            self.poll.registry().register(&mut SourceFd(&fd), mio::Token(at as usize), interest);
        if let Err(error) = done {
            self.sources.remove(at);
            return Err(error);
        }
        Ok(at)
    }

    fn forget(&mut self, at: u64, fd: RawFd) -> Option<Source> {
        // It fails only for a descriptor that is not registered, and then there is nothing to undo.
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        self.sources.remove(at)
    }

    /// One read of the stream at `at`. Returns the bytes received.
    fn receive(&mut self, at: u64, on: &mut impl FnMut(Event<'_, Arc<TcpStream>>)) -> usize {
        let Some(Source::Stream { socket, token, queued, hung_up }) = self.sources.get_mut(at)
        else {
            return 0;
        };
        let token = *token;
        let ended = match (&**socket).read(&mut self.scratch) {
            Ok(0) => Ok(()),
            Ok(len) => {
                *queued = len == self.scratch.len() || *hung_up;
                if *queued {
                    self.ready.push_back(at);
                }
                on(Event::Received(token, &mut self.scratch[..len]));
                return len;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                *queued = false;
                return 0;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.ready.push_back(at);
                return 0;
            }
            Err(error) => Err(error),
        };
        let fd = socket.as_raw_fd();
        self.forget(at, fd);
        on(Event::Ended(token, ended));
        0
    }

    /// Goes on with the pending send at `at`.
    fn resume(&mut self, at: u64, on: &mut impl FnMut(Event<'_, Arc<TcpStream>>)) {
        let now = self.now();
        let Some(Source::Flight(flight)) = self.sources.get_mut(at) else { return };
        let before = flight.sent;
        let result = match write_on(&flight.socket, &flight.bytes, &mut flight.sent) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if flight.sent > before {
                    flight.moved = now;
                }
                return;
            }
            result => result,
        };
        let fd = flight.fd.as_raw_fd();
        if let Some(Source::Flight(Flight { flight, bytes, .. })) = self.forget(at, fd) {
            on(Event::Landed(Landed { flight, bytes, result }));
        }
    }

    fn accept(&mut self, at: u64, on: &mut impl FnMut(Event<'_, Arc<TcpStream>>)) {
        let Some(Source::Listener { listener, token }) = self.sources.get_mut(at) else { return };
        for _ in 0..ACCEPTS_MAX {
            match listener.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_ok() {
                        on(Event::Accepted(*token, Arc::new(stream)));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The connection died in the queue, or descriptors ran out; others may follow.
                Err(_) => break,
            }
        }
        self.ready.push_back(at);
    }
}

impl Driver for Epoll {
    type Socket = Arc<TcpStream>;

    fn now(&self) -> Tick {
        Tick(self.epoch.elapsed().as_nanos() as u64)
    }

    fn adopt(&mut self, socket: &Self::Socket, token: Token) -> io::Result<()> {
        let source =
            Source::Stream { socket: socket.clone(), token, queued: false, hung_up: false };
        self.register(socket.as_raw_fd(), source, Interest::READABLE).map(drop)
    }

    fn send(&mut self, socket: &Self::Socket, flight: Token, bytes: Vec<u8>) -> Submitted {
        let mut sent = 0;
        let result = match write_on(socket, &bytes, &mut sent) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                match socket.as_fd().try_clone_to_owned() {
                    Ok(fd) => {
                        let raw = fd.as_raw_fd();
                        let moved = self.now();
                        let socket = socket.clone();
                        let pending = Flight { fd, socket, flight, bytes, sent, moved };
                        return match self.register(raw, Source::Flight(pending), Interest::WRITABLE)
                        {
                            Ok(_) => Submitted::Pending,
                            Err(error) => landed(flight, Vec::new(), Err(error)),
                        };
                    }
                    Err(error) => Err(error),
                }
            }
            result => result,
        };
        landed(flight, bytes, result)
    }

    fn stalled(&self, before: Tick, found: &mut Vec<Token>) {
        for (_, source) in self.sources.iter() {
            if let Source::Flight(pending) = source
                && pending.moved < before
            {
                found.push(pending.flight);
            }
        }
    }

    fn watch(&mut self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        self.register(fd.as_raw_fd(), Source::Datagram { token }, Interest::READABLE).map(drop)
    }

    fn listen(&mut self, listener: TcpListener, token: Token) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let fd = listener.as_raw_fd();
        self.register(fd, Source::Listener { listener, token }, Interest::READABLE).map(drop)
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.waker) as Arc<dyn Wake>
    }

    fn poll(
        &mut self,
        wait: Option<Duration>,
        on: &mut impl FnMut(Event<'_, Self::Socket>),
    ) -> io::Result<()> {
        let wait = if self.ready.is_empty() { wait } else { Some(Duration::ZERO) };
        if let Err(error) = self.poll.poll(&mut self.events, wait)
            && error.kind() != io::ErrorKind::Interrupted
        {
            return Err(error);
        }
        // What was left over comes before what is new, and each source gets one turn.
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            if event.token() == WAKER {
                continue;
            }
            let at = event.token().0 as u64;
            match self.sources.get_mut(at) {
                Some(Source::Stream { queued, hung_up, .. }) => {
                    *hung_up |= event.is_read_closed() || event.is_error();
                    if !std::mem::replace(queued, true) {
                        self.ready.push_back(at);
                    }
                }
                Some(Source::Flight(_)) => self.resume(at, on),
                Some(Source::Datagram { token }) => on(Event::Ready(*token)),
                Some(Source::Listener { .. }) => self.ready.push_back(at),
                None => {}
            }
        }
        self.events = events;
        let mut received = 0;
        for _ in 0..self.ready.len() {
            if received >= ROUND_BYTES_MAX {
                break;
            }
            let Some(at) = self.ready.pop_front() else { break };
            match self.sources.get_mut(at) {
                Some(Source::Listener { .. }) => self.accept(at, on),
                Some(Source::Stream { .. }) => received += self.receive(at, on),
                Some(Source::Flight(_) | Source::Datagram { .. }) | None => {}
            }
        }
        Ok(())
    }
}

impl Wake for Waker {
    fn wake(&self) {
        // It fails only when the eventfd is gone, and with it the thread that would wake.
        let _ = Self::wake(self);
    }
}

fn landed(flight: Token, bytes: Vec<u8>, result: io::Result<()>) -> Submitted {
    Submitted::Now(Landed { flight, bytes, result })
}

/// Writes `bytes` from `sent` on, until done or the socket would block.
fn write_on(mut socket: &TcpStream, bytes: &[u8], sent: &mut usize) -> io::Result<()> {
    while *sent < bytes.len() {
        match socket.write(&bytes[*sent..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => *sent += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
