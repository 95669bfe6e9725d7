//! Completion I/O on io_uring: multishot accept and receive, provided buffers, one submit a round.
//! Sends go out at once; the ring carries what the kernel does not take then.
//!
//! Memory named by an entry belongs to this driver from push to terminal completion; a descriptor
//! stays open until its last operation ended; nothing is ever cancelled, sockets are shut down.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use proto::tick::Tick;
use rustix::net::SendFlags;

use self::buffers::Buffers;
use super::slab::Slab;
use super::{Driver, Event, Landed, Submitted, Token, Wake};

mod buffers;

/// Submission entries: the sends of one round before an extra system call is needed.
const SUBMISSIONS: u32 = 1024;
/// Completion entries. Measured: a queue that overflows costs a quarter of the capacity.
const COMPLETIONS: u32 = 8192;

/// The kind of an operation, in the top byte of its user data; the slab token is below.
const KIND_SHIFT: u32 = 56;
const TOKEN_MASK: u64 = (1 << KIND_SHIFT) - 1;
const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const WATCH: u64 = 2;
const ACCEPT: u64 = 3;
const WAKE: u64 = 4;

/// See the module.
pub struct Uring {
    ring: IoUring,
    buffers: Buffers,
    epoch: Instant,
    waker: Arc<Eventfd>,
    streams: Slab<Stream>,
    flights: Slab<Flight>,
    watched: Slab<(RawFd, Token)>,
    listeners: Slab<(TcpListener, Token)>,
    /// Multishot operations that ended although their source did not, by user data.
    rearm: Vec<u64>,
    /// See [`Driver::starved`].
    starved: u64,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Stream {
    socket: Arc<TcpStream>,
    token: Token,
}

#[derive(Debug)]
struct Flight {
    socket: Arc<TcpStream>,
    flight: Token,
    bytes: Vec<u8>,
    sent: usize,
    moved: Tick,
}

/// Whether the kernel grants a ring with every feature this driver relies on.
///
/// # Errors
/// The kernel's refusal.
pub fn probe() -> io::Result<()> {
    let ring = new_ring(8)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::RecvMulti::CODE,
        opcode::Send::CODE,
        opcode::PollAdd::CODE,
        opcode::AcceptMulti::CODE,
    ];
    if needed.iter().any(|code| !probe.is_supported(*code)) || !ring.params().is_feature_ext_arg() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let buffers = Buffers::register(&ring, 1)?;
    drop(ring);
    drop(buffers);
    Ok(())
}

fn new_ring(submissions: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_cqsize(COMPLETIONS)
        .dontfork()
        .build(submissions)
}

impl Uring {
    /// A driver whose clock began at `epoch`.
    ///
    /// To be made on the thread that polls it: the kernel ties the ring to its creator.
    ///
    /// # Errors
    /// The kernel's refusal; see [`probe`].
    pub fn new(epoch: Instant) -> io::Result<Self> {
        let ring = new_ring(SUBMISSIONS)?;
        let buffers = Buffers::register(&ring, buffers::COUNT)?;
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let waker = Arc::new(Eventfd(rustix::event::eventfd(0, flags)?));
        let mut uring = Self {
            ring,
            buffers,
            epoch,
            waker,
            streams: Slab::default(),
            flights: Slab::default(),
            watched: Slab::default(),
            listeners: Slab::default(),
            rearm: vec![WAKE << KIND_SHIFT],
            starved: 0,
        };
        uring.rearm();
        Ok(uring)
    }

    /// Queues an entry; submits first if the queue is full.
    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: every entry made in this file names memory and descriptors that `self.streams`,
            // `self.flights`, `self.watched`, `self.listeners` or `self.waker` keep until its last
            // completion was taken.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // A full queue empties by submitting; a busy kernel (EBUSY) does once completions are
            // taken, which the overflow list of the kernel allows for.
            let _ = self.ring.submit();
        }
    }

    fn push_send(&mut self, at: u64) {
        let Some(flight) = self.flights.get_mut(at) else { return };
        let rest = &flight.bytes[flight.sent..];
        let fd = types::Fd(flight.socket.as_raw_fd());
        let entry = opcode::Send::new(fd, rest.as_ptr(), rest.len() as u32)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .user_data(SEND << KIND_SHIFT | at);
        self.push(&entry);
    }

    /// Arms again what ended early: after buffers ran out, or where the kernel ends multishots.
    fn rearm(&mut self) {
        for user_data in std::mem::take(&mut self.rearm) {
            let at = user_data & TOKEN_MASK;
            let entry = match user_data >> KIND_SHIFT {
                RECEIVE => self.streams.get_mut(at).map(|stream| {
                    let fd = types::Fd(stream.socket.as_raw_fd());
                    opcode::RecvMulti::new(fd, buffers::GROUP).build()
                }),
                ACCEPT => self.listeners.get_mut(at).map(|(listener, _)| {
                    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                    opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).flags(flags).build()
                }),
                WATCH => self.watched.get_mut(at).map(|(fd, _)| watch_entry(*fd)),
                _ => Some(watch_entry(self.waker.0.as_raw_fd())),
            };
            if let Some(entry) = entry {
                self.push(&entry.user_data(user_data));
            }
        }
    }

    fn complete(&mut self, entry: &cqueue::Entry, on: &mut impl FnMut(Event<'_, Arc<TcpStream>>)) {
        let at = entry.user_data() & TOKEN_MASK;
        let ended = !cqueue::more(entry.flags());
        match entry.user_data() >> KIND_SHIFT {
            RECEIVE => return self.received(at, entry, on),
            SEND => return self.sent(at, entry.result(), on),
            ACCEPT => self.accepted(at, entry.result(), on),
            WATCH => {
                if let Some((_, token)) = self.watched.get_mut(at) {
                    on(Event::Ready(*token));
                }
            }
            _ => self.waker.clear(),
        }
        if ended {
            self.rearm.push(entry.user_data());
        }
    }

    fn received(
        &mut self,
        at: u64,
        entry: &cqueue::Entry,
        on: &mut impl FnMut(Event<'_, Arc<TcpStream>>),
    ) {
        let result = entry.result();
        let Some(stream) = self.streams.get_mut(at) else { return };
        let token = stream.token;
        if let Some(buffer) = cqueue::buffer_select(entry.flags()) {
            if result > 0 {
                self.buffers
                    .lend(buffer, result as usize, |bytes| on(Event::Received(token, bytes)));
            } else {
                self.buffers.lend(buffer, 0, |_| ());
            }
        }
        if cqueue::more(entry.flags()) {
            return;
        }
        if result > 0 || result == -libc::ENOBUFS {
            self.starved += u64::from(result < 0);
            self.rearm.push(RECEIVE << KIND_SHIFT | at);
            return;
        }
        self.streams.remove(at);
        let end = if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-result)) };
        on(Event::Ended(token, end));
    }

    fn sent(&mut self, at: u64, result: i32, on: &mut impl FnMut(Event<'_, Arc<TcpStream>>)) {
        let now = self.now();
        let Some(flight) = self.flights.get_mut(at) else { return };
        let result = match result {
            0 => Err(io::ErrorKind::WriteZero.into()),
            len if len > 0 => {
                flight.sent += len as usize;
                flight.moved = now;
                Ok(())
            }
            code if code == -libc::EINTR || code == -libc::EAGAIN => Ok(()),
            code => Err(io::Error::from_raw_os_error(-code)),
        };
        if result.is_ok() && flight.sent < flight.bytes.len() {
            return self.push_send(at);
        }
        if let Some(Flight { flight, bytes, .. }) = self.flights.remove(at) {
            on(Event::Landed(Landed { flight, bytes, result }));
        }
    }

    fn accepted(&mut self, at: u64, fd: RawFd, on: &mut impl FnMut(Event<'_, Arc<TcpStream>>)) {
        // A negative result is a connection that died in the queue, or descriptors that ran out.
        if fd < 0 {
            return;
        }
        // SAFETY: the kernel has just made `fd` for this completion and nobody else knows it.
        let stream = unsafe { TcpStream::from_raw_fd(fd) };
        if let Some((_, token)) = self.listeners.get_mut(at) {
            on(Event::Accepted(*token, Arc::new(stream)));
        }
    }
}

fn watch_entry(fd: RawFd) -> squeue::Entry {
    opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(true).build()
}

impl Driver for Uring {
    type Socket = Arc<TcpStream>;

    fn now(&self) -> Tick {
        Tick(self.epoch.elapsed().as_nanos() as u64)
    }

    fn adopt(&mut self, socket: &Self::Socket, token: Token) -> io::Result<()> {
        let at = self.streams.insert(Stream { socket: socket.clone(), token });
        self.rearm.push(RECEIVE << KIND_SHIFT | at);
        Ok(())
    }

    /// Sends at once what the kernel takes; the ring carries the rest.
    ///
    /// A send through the ring would land a round later: the buffer of each would stay out until
    /// then, and a backlog would leave by one flight a round.
    fn send(&mut self, socket: &Self::Socket, flight: Token, bytes: Vec<u8>) -> Submitted {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = match rustix::net::send(&**socket, &bytes, flags) {
            Ok(sent) if sent == bytes.len() => {
                return Submitted::Now(Landed { flight, bytes, result: Ok(()) });
            }
            Ok(sent) => sent,
            // Whatever it is, the ring meets it again and reports it.
            Err(_) => 0,
        };
        let moved = self.now();
        let at = self.flights.insert(Flight { socket: socket.clone(), flight, bytes, sent, moved });
        self.push_send(at);
        Submitted::Pending
    }

    fn stalled(&self, before: Tick, found: &mut Vec<Token>) {
        let stalled = self.flights.iter().filter(|(_, flight)| flight.moved < before);
        found.extend(stalled.map(|(_, flight)| flight.flight));
    }

    fn watch(&mut self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let at = self.watched.insert((fd.as_raw_fd(), token));
        self.rearm.push(WATCH << KIND_SHIFT | at);
        Ok(())
    }

    fn listen(&mut self, listener: TcpListener, token: Token) -> io::Result<()> {
        let at = self.listeners.insert((listener, token));
        self.rearm.push(ACCEPT << KIND_SHIFT | at);
        Ok(())
    }

    fn starved(&self) -> u64 {
        self.starved
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.waker) as Arc<dyn Wake>
    }

    fn poll(
        &mut self,
        wait: Option<Duration>,
        on: &mut impl FnMut(Event<'_, Self::Socket>),
    ) -> io::Result<()> {
        self.rearm();
        let timeout = wait.map(types::Timespec::from);
        let mut args = types::SubmitArgs::new();
        if let Some(timeout) = &timeout {
            args = args.timespec(timeout);
        }
        match self.ring.submitter().submit_with_args(1, &args) {
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                Some(_) | None => return Err(error),
            },
        }
        // Entries that arrive while these are worked through wait for the next round.
        let waiting = self.ring.completion().len();
        for _ in 0..waiting {
            let Some(entry) = self.ring.completion().next() else { break };
            self.complete(&entry, on);
        }
        self.buffers.publish();
        Ok(())
    }
}

impl Drop for Uring {
    /// Ends every operation before the memory it names is freed.
    fn drop(&mut self) {
        for (_, stream) in self.streams.iter() {
            super::Socket::shutdown(&stream.socket);
        }
        for (_, flight) in self.flights.iter() {
            super::Socket::shutdown(&flight.socket);
        }
        let give_up = Instant::now() + Duration::from_secs(1);
        while self.streams.len() + self.flights.len() > 0 && Instant::now() < give_up {
            if self.poll(Some(Duration::from_millis(10)), &mut |_| ()).is_err() {
                break;
            }
        }
        if self.flights.len() > 0 {
            // The kernel still reads from these buffers: losing them is safe, freeing them is not.
            for (_, flight) in self.flights.iter_mut() {
                std::mem::forget(std::mem::take(&mut flight.bytes));
            }
        }
    }
}

/// The descriptor through which other threads wake the ring.
#[derive(Debug)]
struct Eventfd(OwnedFd);

impl Eventfd {
    fn clear(&self) {
        let mut count = [0; 8];
        // Nothing to read means nobody wrote since, which is what is wanted.
        let _ = rustix::io::read(&self.0, &mut count);
    }
}

impl Wake for Eventfd {
    fn wake(&self) {
        // It fails only when the counter is full, and then the ring is awake.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}
