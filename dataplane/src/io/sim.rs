//! I/O in memory under virtual time, with faults drawn from a seed.
//!
//! Injects short reads and writes, receive buffers that run out, completions in any order and
//! closes in flight. The relay suite and the simulation tests drive the far ends through [`Net`].
//! Time passes for all drivers of a network together: it jumps only once none has anything to do.

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use proto::tick::Tick;

use super::{Driver, Event, Landed, Submitted, Token, Wake};

/// Bytes that travel to a client before it must read.
const WINDOW: usize = 96 << 10;
/// A round in which something happens.
const ROUND: Duration = Duration::from_micros(1);
/// What passes where nobody waits for anything.
const STILLNESS: Duration = Duration::from_secs(1);

/// How badly the network behaves. Chances are in 1/256 per opportunity.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// A receive brings only part of what is there.
    pub short_read: u8,
    /// A send moves only part of the buffer and lands later.
    pub short_write: u8,
    /// No receive buffer is free for a connection this round.
    pub no_buffer: u8,
    /// A connection breaks while operations are in flight.
    pub close: u8,
}

impl Faults {
    /// A perfect network.
    pub const NONE: Self = Self { short_read: 0, short_write: 0, no_buffer: 0, close: 0 };
}

/// A small generator (xorshift64*); its stream is the whole randomness of a simulation.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    /// True `chance` times in 256.
    pub fn chance(&mut self, chance: u8) -> bool {
        self.below(256) < usize::from(chance)
    }
}

/// The network: every connection and the clock. Clones are the same network.
#[derive(Clone, Debug)]
pub struct Net(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    now: Tick,
    random: Random,
    faults: Faults,
    lines: Vec<Line>,
    /// Until when each driver would sleep; `None` since something happened to any of them.
    asleep: Vec<Option<Tick>>,
}

/// One connection.
#[derive(Debug, Default)]
struct Line {
    to_relay: VecDeque<u8>,
    to_client: VecDeque<u8>,
    /// No byte moves towards the relay any more.
    client_closed: bool,
    /// The relay ended the connection, or it broke.
    broken: bool,
}

/// A client's end of a connection.
#[derive(Clone, Debug)]
pub struct Client {
    net: Net,
    line: usize,
    descriptor: Weak<()>,
}

/// The relay's end of a connection.
#[derive(Clone, Debug)]
pub struct SimSocket {
    net: Net,
    line: usize,
    /// Stands for the descriptor, which closes with the last clone.
    _descriptor: Arc<()>,
}

impl Net {
    /// An empty network.
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Self {
        let random = Random::new(seed);
        let (lines, asleep) = (Vec::new(), Vec::new());
        Self(Arc::new(Mutex::new(Inner { now: Tick::ZERO, random, faults, lines, asleep })))
    }

    /// A new connection: the client's end and the relay's.
    #[must_use]
    pub fn connect(&self) -> (Client, SimSocket) {
        let mut inner = self.lock();
        inner.lines.push(Line::default());
        let line = inner.lines.len() - 1;
        let descriptor = Arc::new(());
        let client = Client { net: self.clone(), line, descriptor: Arc::downgrade(&descriptor) };
        (client, SimSocket { net: self.clone(), line, _descriptor: descriptor })
    }

    /// The virtual time.
    #[must_use]
    pub fn now(&self) -> Tick {
        self.lock().now
    }

    /// Stops injecting faults, so that a test can watch the system come to rest.
    pub fn calm(&self) {
        self.lock().faults = Faults::NONE;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Sends bytes to the relay; they are lost if the connection has ended.
    pub fn write(&self, bytes: &[u8]) {
        let mut inner = self.net.lock();
        let line = &mut inner.lines[self.line];
        if !line.client_closed && !line.broken {
            line.to_relay.extend(bytes);
        }
    }

    /// Takes everything that has arrived.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        take(&mut self.net.lock().lines[self.line].to_client, usize::MAX)
    }

    /// Closes the client's sending direction.
    pub fn close(&self) {
        self.net.lock().lines[self.line].client_closed = true;
    }

    /// Whether the relay has ended the connection.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.net.lock().lines[self.line].broken
    }

    /// Whether the relay has let go of its descriptor.
    #[must_use]
    pub fn is_released(&self) -> bool {
        self.descriptor.strong_count() == 0
    }
}

impl Inner {
    /// Lets time pass after a round of driver `id`, which would sleep until `until` had nothing
    /// happened.
    fn pass(&mut self, id: usize, happened: bool, until: Tick) {
        if happened {
            self.asleep.fill(None);
            self.now = self.now.plus(ROUND);
            return;
        }
        self.asleep[id] = Some(until);
        self.now = self.now.plus(Duration::from_nanos(1));
        if let Some(first) = self.asleep.iter().copied().min().flatten() {
            let first = if first == Tick::NEVER { self.now.plus(STILLNESS) } else { first };
            self.now = self.now.max(first);
            self.asleep.fill(None);
        }
    }
}

impl super::Socket for SimSocket {
    fn shutdown(&self) {
        self.net.lock().lines[self.line].broken = true;
    }
}

/// The driver over a [`Net`].
#[derive(Debug)]
pub struct Sim {
    net: Net,
    /// Its place in the network's list of sleepers.
    id: usize,
    adopted: Vec<(usize, Token)>,
    flights: Vec<Pending>,
    woken: Arc<Bell>,
}

#[derive(Debug)]
struct Pending {
    line: usize,
    flight: Token,
    bytes: Vec<u8>,
    sent: usize,
    moved: Tick,
}

impl Pending {
    fn land(self, result: io::Result<()>) -> Landed {
        Landed { flight: self.flight, bytes: self.bytes, result }
    }
}

#[derive(Debug, Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Sim {
    /// A driver over `net`.
    #[must_use]
    pub fn new(net: Net) -> Self {
        let mut inner = net.lock();
        let id = inner.asleep.len();
        inner.asleep.push(None);
        drop(inner);
        Self { net, id, adopted: Vec::new(), flights: Vec::new(), woken: Arc::default() }
    }

    /// Moves bytes of `pending`; gives the result if it has landed.
    fn advance(&self, pending: &mut Pending) -> Option<io::Result<()>> {
        let mut inner = self.net.lock();
        let now = inner.now;
        let chance = inner.faults.short_write;
        let short = inner.random.chance(chance);
        let rest = pending.bytes.len() - pending.sent;
        let limit = if short { inner.random.below(rest.max(1)) } else { rest };
        let line = &mut inner.lines[pending.line];
        if line.broken {
            return Some(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let len = limit.min(WINDOW.saturating_sub(line.to_client.len()));
        line.to_client.extend(&pending.bytes[pending.sent..pending.sent + len]);
        pending.sent += len;
        if len > 0 {
            pending.moved = now;
        }
        (pending.sent == pending.bytes.len()).then_some(Ok(()))
    }

    /// Moves bytes of every flight, in any order. True if anything moved.
    fn advance_all(&mut self, on: &mut impl FnMut(Event<'_, SimSocket>)) -> bool {
        let order = self.shuffled(self.flights.len());
        let mut flights: Vec<_> = std::mem::take(&mut self.flights).into_iter().map(Some).collect();
        let mut moved = false;
        for at in order {
            let Some(mut pending) = flights[at].take() else { continue };
            let before = pending.sent;
            let landed = self.advance(&mut pending);
            moved |= landed.is_some() || pending.sent > before;
            match landed {
                Some(result) => on(Event::Landed(pending.land(result))),
                None => flights[at] = Some(pending),
            }
        }
        self.flights = flights.into_iter().flatten().collect();
        moved
    }

    /// What the connection at `at` has to report, if anything. `true`: it is over.
    fn receive(&mut self, at: usize) -> Option<(Vec<u8>, bool)> {
        let mut inner = self.net.lock();
        let Inner { random, faults, lines, .. } = &mut *inner;
        let line = &mut lines[self.adopted[at].0];
        if random.chance(faults.close) {
            line.broken = true;
        }
        if line.broken {
            return Some((Vec::new(), true));
        }
        if line.to_relay.is_empty() {
            return line.client_closed.then(|| (Vec::new(), true));
        }
        if random.chance(faults.no_buffer) {
            return None;
        }
        let all = line.to_relay.len().min(super::RECEIVE_LEN);
        let len = if random.chance(faults.short_read) { 1 + random.below(all) } else { all };
        Some((take(&mut line.to_relay, len), false))
    }

    fn shuffled(&self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        let mut inner = self.net.lock();
        for at in (1..len).rev() {
            order.swap(at, inner.random.below(at + 1));
        }
        order
    }
}

impl Driver for Sim {
    type Socket = SimSocket;

    fn now(&self) -> Tick {
        self.net.now()
    }

    fn adopt(&mut self, socket: &SimSocket, token: Token) -> io::Result<()> {
        self.adopted.push((socket.line, token));
        Ok(())
    }

    fn send(&mut self, socket: &SimSocket, flight: Token, bytes: Vec<u8>) -> Submitted {
        let moved = self.now();
        let mut pending = Pending { line: socket.line, flight, bytes, sent: 0, moved };
        let mut inner = self.net.lock();
        let later = inner.faults.short_write;
        let later = inner.random.chance(later);
        drop(inner);
        if !later && let Some(result) = self.advance(&mut pending) {
            return Submitted::Now(pending.land(result));
        }
        self.flights.push(pending);
        Submitted::Pending
    }

    fn stalled(&self, before: Tick, found: &mut Vec<Token>) {
        let stalled = self.flights.iter().filter(|pending| pending.moved < before);
        found.extend(stalled.map(|pending| pending.flight));
    }

    fn watch(&mut self, _: BorrowedFd<'_>, _: Token) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn listen(&mut self, _: TcpListener, _: Token) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.woken) as Arc<dyn Wake>
    }

    /// One round, which never blocks.
    fn poll(
        &mut self,
        wait: Option<Duration>,
        on: &mut impl FnMut(Event<'_, SimSocket>),
    ) -> io::Result<()> {
        let mut happened = self.woken.0.swap(false, Ordering::Acquire);
        happened |= self.advance_all(on);
        let mut over = Vec::new();
        for at in self.shuffled(self.adopted.len()) {
            let (line, token) = self.adopted[at];
            let Some((mut bytes, ended)) = self.receive(at) else {
                happened |= !self.net.lock().lines[line].to_relay.is_empty();
                continue;
            };
            happened = true;
            if ended {
                over.push(at);
                on(Event::Ended(token, Ok(())));
            } else {
                on(Event::Received(token, &mut bytes));
            }
        }
        over.sort_unstable();
        for at in over.into_iter().rev() {
            self.adopted.swap_remove(at);
        }
        let mut inner = self.net.lock();
        let until = wait.map_or(Tick::NEVER, |wait| inner.now.plus(wait));
        inner.pass(self.id, happened, until);
        Ok(())
    }
}

/// Takes at most `len` bytes off the front of `bytes`.
fn take(bytes: &mut VecDeque<u8>, len: usize) -> Vec<u8> {
    let len = len.min(bytes.len());
    let taken = bytes.make_contiguous()[..len].to_vec();
    bytes.drain(..len);
    taken
}
