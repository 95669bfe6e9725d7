//! Invariant 2: a worker that has seen its traffic before takes no memory from the system.
//!
//! Each driver relays on the test's own thread, where every allocation of a round is counted.
#![forbid(unsafe_code)]

#[expect(dead_code, reason = "shared with the relay suite, which needs more of it")]
#[path = "common/frames.rs"]
mod frames;
#[expect(dead_code, reason = "shared with the record tests, which need more of it")]
#[path = "common/oracle.rs"]
mod oracle;
#[path = "common/skip.rs"]
mod skip;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use allocation_counter::measure;
use dataplane::io::Driver;
use dataplane::io::epoll::Epoll;
use dataplane::io::uring::Uring;
use dataplane::observe::CoreCounters;
use dataplane::relay::{Command, Fabric, Newcomer, Stream, Tuning, Worker};
use dataplane::udp::Udp;
use proto::derp::Framing;
use rustix::net::RecvFlags;
use rustls::ClientConnection;
use rustls::crypto::aws_lc_rs::cipher_suite;

use self::frames::key;

/// Clients, each of which sends to its neighbour.
const CLIENTS: usize = 4;
/// Batches before counting begins: buffers, routes and tables have grown to their size then.
const WARM_UP: usize = 60;
/// Batches that are counted.
const COUNTED: usize = 200;
/// Packets of a batch, per client.
const BATCH: usize = 8;
/// Longest wait for a batch to come through.
const PATIENCE: Duration = Duration::from_secs(20);

/// How clients write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// A batch at a time.
    Whole,
    /// With a round of the worker in the middle of a frame or record.
    Cut,
    /// The next batches while the last is still under way.
    Overlapping,
}

const PACES: [Pace; 3] = [Pace::Whole, Pace::Cut, Pace::Overlapping];

struct Client {
    tcp: TcpStream,
    tls: Option<ClientConnection>,
}

struct Bench<D: Driver<Socket = Arc<TcpStream>>> {
    worker: Worker<D>,
    counters: Arc<CoreCounters>,
    clients: Vec<Client>,
    sent: u64,
    /// Allocations within rounds.
    allocations: u64,
}

impl<D: Driver<Socket = Arc<TcpStream>>> Bench<D> {
    fn new(driver: D, tls: bool) -> Self {
        // A keepalive a second wakes a worker that would wait for something that never comes.
        let tuning = Tuning { keepalive_ms: 1000, ..Tuning::default() };
        let counters = Arc::<CoreCounters>::default();
        let fabric = Fabric::new(tuning, &[Arc::clone(&counters)]);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let clients = (0..CLIENTS).map(|at| join(&fabric, &listener, at, tls)).collect();
        let worker = Worker::new(0, fabric, driver, Udp::default()).expect("no ports to watch");
        let mut bench = Self { worker, counters, clients, sent: 0, allocations: 0 };
        bench.run_until("everyone is there", |core| core.sessions.value() == CLIENTS as u64);
        bench
    }

    fn run_until(&mut self, what: &str, done: impl Fn(&CoreCounters) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        while !done(&self.counters) {
            self.round();
            assert!(Instant::now() < give_up, "never: {what}");
        }
    }

    fn round(&mut self) {
        let round = measure(|| self.worker.round().expect("the driver goes on"));
        self.allocations += round.count_total;
        // Nobody reads what arrives but the kernel's buffer must not fill.
        let mut bytes = [0; 64 << 10];
        for client in &self.clients {
            while rustix::net::recv(&client.tcp, &mut bytes[..], RecvFlags::DONTWAIT).is_ok() {}
        }
    }

    /// Every client sends a batch to its neighbour.
    fn batch(&mut self, number: usize, pace: Pace) {
        let pieces: Vec<Vec<u8>> = (0..CLIENTS).map(|at| self.words(at, number)).collect();
        let cut = |piece: &[u8]| match pace {
            Pace::Cut => 1 + (number * 997) % (piece.len() - 1),
            Pace::Whole | Pace::Overlapping => piece.len(),
        };
        for (client, piece) in self.clients.iter_mut().zip(&pieces) {
            client.tcp.write_all(&piece[..cut(piece)]).expect("the relay reads");
        }
        if pace != Pace::Whole {
            self.round();
        }
        for (client, piece) in self.clients.iter_mut().zip(&pieces) {
            client.tcp.write_all(&piece[cut(piece)..]).expect("the relay reads");
        }
        self.sent += (CLIENTS * BATCH) as u64;
        let behind = if pace == Pace::Overlapping { 3 * (CLIENTS * BATCH) as u64 } else { 0 };
        let wanted = self.sent.saturating_sub(behind);
        self.run_until("the batch", |core| core.packets_forwarded.value() >= wanted);
    }

    /// What client `at` writes in batch `number`.
    fn words(&mut self, at: usize, number: usize) -> Vec<u8> {
        let to = key(((at + 1) % CLIENTS) as u8);
        let packets = (0..BATCH)
            .map(|packet| frames::send(&to, &[7; 1400][..1400 - packet * (number % 100)]));
        let words = packets.collect::<Vec<_>>().concat();
        match &mut self.clients[at].tls {
            Some(tls) => oracle::say(tls, &words),
            None => words,
        }
    }
}

fn join(fabric: &Fabric<Arc<TcpStream>>, listener: &TcpListener, at: usize, tls: bool) -> Client {
    let address = listener.local_addr().expect("bound");
    let tcp = TcpStream::connect(address).expect("the listener lives");
    tcp.set_nodelay(true).expect("a live socket");
    let (socket, _) = listener.accept().expect("it has just connected");
    socket.set_nonblocking(true).expect("a live socket");
    let shaken = tls.then(|| oracle::shake_hands(cipher_suite::TLS13_AES_128_GCM_SHA256));
    let (client, keys) = match shaken {
        Some((client, rx, tx, _)) => (Some(client), Some((rx, tx))),
        None => (None, None),
    };
    let newcomer = Newcomer {
        socket: Arc::new(socket),
        tls: keys,
        framing: Framing::Raw,
        key: key(at as u8),
        greeting: frames::greeting(),
        early: Stream::default(),
        decoder: None,
        not_ideal: false,
    };
    fabric.post(0, Command::Adopt(Box::new(newcomer)));
    Client { tcp, tls: client }
}

/// Relays batches until everything has its size, then counts.
fn verify<D: Driver<Socket = Arc<TcpStream>>>(driver: impl Fn() -> D) {
    for tls in [false, true] {
        for pace in PACES {
            let mut bench = Bench::new(driver(), tls);
            for number in 0..WARM_UP {
                bench.batch(number, pace);
            }
            assert!(bench.allocations > 0, "nothing is counted");
            bench.allocations = 0;
            for number in 0..COUNTED {
                bench.batch(number, pace);
            }
            assert_eq!(bench.allocations, 0, "{pace:?}, under TLS: {tls}");
        }
    }
}

#[test]
fn epoll_relays_without_the_allocator() {
    verify(|| Epoll::new(Instant::now()).expect("descriptors are there"));
}

#[test]
fn uring_relays_without_the_allocator() {
    if skip::uring_works() {
        verify(|| Uring::new(Instant::now()).expect("probed before"));
    }
}
