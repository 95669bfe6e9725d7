//! Random clients over a faulty network, one seed after the other, with every promise verified.
//!
//! One or two workers share a simulated network that reads and writes short, runs out of buffers,
//! lands sends in any order and breaks connections. `PERIGEE_SEEDS` says how many seeds to run
//! (256), or which ones (`17..18`).
#![forbid(unsafe_code)]

#[expect(dead_code, reason = "shared with the relay suite, which needs more of it")]
#[path = "common/frames.rs"]
mod frames;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use dataplane::io::sim::{self, Faults, Net, Random, Sim, SimSocket};
use dataplane::observe::{CoreCounters, PacketKind};
use dataplane::relay::{Command, Fabric, Newcomer, Stream, Tuning, Worker};
use dataplane::udp::Udp;
use proto::derp::{Framing, Lane, Limits};
use wire::derp::{self, FrameType, GoneReason};
use wire::disco;
use wire::drop::DropReason;
use wire::key::Key;

use self::frames::{Frame, key};

/// Steps of a seed before the network calms down.
const STEPS: usize = 150;
/// Clients at a time.
const CLIENTS_MAX: usize = 10;
/// Keys that clients have; one more is asked for and never there.
const KEYS: u8 = 5;
/// Rounds within which a calm relay must come to rest.
const ROUNDS_MAX: usize = 20_000;
/// A round of workers that have something to do takes less than this.
const IDLE: Duration = Duration::from_micros(100);
/// Bytes of a packet's account of itself: sender, number and destination.
const ACCOUNT_LEN: usize = 4 + 4 + 1;

#[test]
fn every_seed_keeps_the_promises() {
    let (seeds, all) = seeds();
    let mut totals = [0; DropReason::COUNT];
    for seed in seeds {
        let run = panic::catch_unwind(AssertUnwindSafe(|| World::new(seed).run()));
        let dropped = run.unwrap_or_else(|fault| {
            eprintln!(
                "seed {seed} failed; again: PERIGEE_SEEDS={seed}..{} cargo test -p dataplane --test simulation",
                seed + 1
            );
            panic::resume_unwind(fault)
        });
        totals.iter_mut().zip(dropped).for_each(|(total, dropped)| *total += dropped);
    }
    use DropReason::{GoneDisconnected, QueueHead, QueueTail, UnknownDest, WriteError};
    for reason in [GoneDisconnected, QueueHead, QueueTail, UnknownDest, WriteError] {
        assert!(!all || totals[reason.index()] > 0, "no seed met {reason:?}: {totals:?}");
    }
}

/// The seeds to run, and whether they are many enough to meet everything.
fn seeds() -> (Range<u64>, bool) {
    const EXPECT: &str = "PERIGEE_SEEDS is a number of seeds, or a range of them such as 17..18";
    let Ok(text) = std::env::var("PERIGEE_SEEDS") else { return (0..256, true) };
    match text.split_once("..") {
        Some((first, end)) => (first.parse().expect(EXPECT)..end.parse().expect(EXPECT), false),
        None => (0..text.parse().expect(EXPECT), false),
    }
}

/// One seed: the relay, its network and its clients.
struct World {
    random: Random,
    net: Net,
    counters: Vec<Arc<CoreCounters>>,
    fabric: Arc<Fabric<SimSocket>>,
    workers: Vec<Worker<Sim>>,
    clients: Vec<Client>,
    ledger: Ledger,
}

/// What all clients together have sent and heard.
#[derive(Default)]
struct Ledger {
    /// The key of each client there ever was.
    keys: Vec<u8>,
    /// Who ever sent to whom, by key.
    addressed: HashSet<(u8, u8)>,
    sent: u64,
    /// Packets that arrived, by sender and number.
    arrived: HashSet<(u32, u32)>,
}

/// A client, alive or not.
struct Client {
    number: u32,
    key: u8,
    end: sim::Client,
    /// Bytes that are still to be given to the network.
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    reads: bool,
    /// It said goodbye, or something for which the relay ends it.
    leaving: bool,
    greeted: bool,
    packets_sent: u32,
    pings_sent: u64,
    pongs_heard: u64,
    /// The number of the last packet of each sender and lane.
    heard: HashMap<(u32, bool), u32>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed.wrapping_add(1) << 20);
        let chance = |random: &mut Random, most| (random.below(2) * random.below(most)) as u8;
        let faults = Faults {
            short_read: chance(&mut random, 200),
            short_write: chance(&mut random, 200),
            no_buffer: chance(&mut random, 100),
            close: u8::from(random.below(4) == 0),
        };
        let tuning = Tuning {
            queue: Limits {
                queue_bytes_max: 66_000 + random.below(200_000),
                queue_packets_max: 1 + random.below(64) as u32,
            },
            queued_bytes_max: 50_000 + random.below(500_000),
            write_timeout_ms: 2000 * random.below(2) as u64,
            ..Tuning::default()
        };
        let counters: Vec<Arc<CoreCounters>> =
            (0..=random.below(2)).map(|_| Arc::default()).collect();
        let fabric = Fabric::new(tuning, &counters);
        let net = Net::new(seed, faults);
        let worker = |core| {
            let driver = Sim::new(net.clone());
            Worker::new(core, Arc::clone(&fabric), driver, Udp::default())
                .expect("no ports to watch")
        };
        let workers = (0..counters.len()).map(worker).collect();
        let (clients, ledger) = (Vec::new(), Ledger::default());
        Self { random, net, counters, fabric, workers, clients, ledger }
    }

    /// Runs the seed; gives the packets dropped, by reason.
    fn run(mut self) -> [u64; DropReason::COUNT] {
        for _ in 0..STEPS {
            self.act();
            for at in 0..self.clients.len() {
                self.clients[at].transmit(&mut self.random);
            }
            self.step();
        }
        self.net.calm();
        for client in &mut self.clients {
            client.reads = true;
            client.flush();
            if client.leaving {
                client.end.close();
            }
        }
        self.rest();
        self.verify_flow();
        self.verify_liveness();
        self.verify_end();
        DropReason::ALL.map(|reason| self.dropped(reason))
    }

    /// Something that a client does.
    fn act(&mut self) {
        let alive: Vec<usize> =
            (0..self.clients.len()).filter(|at| self.clients[*at].is_alive()).collect();
        if alive.is_empty() || (alive.len() < CLIENTS_MAX && self.random.chance(24)) {
            return self.join();
        }
        let random = &mut self.random;
        let client = &mut self.clients[alive[random.below(alive.len())]];
        match random.below(100) {
            0..60 => {
                for _ in 0..=random.below(8) {
                    let size = match random.below(8) {
                        0 => random.below(derp::PACKET_LEN_MAX - ACCOUNT_LEN),
                        1 | 2 => 1400,
                        _ => random.below(200),
                    };
                    let to = random.below(usize::from(KEYS) + 1) as u8;
                    client.send(to, Lane::Bulk, size, &mut self.ledger);
                }
            }
            60..72 => {
                let to = random.below(usize::from(KEYS) + 1) as u8;
                client.send(to, Lane::Disco, random.below(100), &mut self.ledger);
            }
            72..82 => client.ping(),
            82..85 => client.outgoing.extend(frames::frame(FrameType::NotePreferred, &[1])),
            85..87 => client.outgoing.extend([0x70, 0, 0, 0, 3, 4, 4, 4]),
            87..89 => client.misbehave(random),
            89..92 => client.leaving = true,
            _ => client.reads = !client.reads,
        }
    }

    fn join(&mut self) {
        let (end, socket) = self.net.connect();
        let number = self.ledger.keys.len() as u32;
        let own = self.random.below(usize::from(KEYS)) as u8;
        self.ledger.keys.push(own);
        let mut client = Client::new(number, own, end);
        if self.random.chance(64) {
            client.send(
                self.random.below(usize::from(KEYS)) as u8,
                Lane::Bulk,
                50,
                &mut self.ledger,
            );
        }
        let cut = self.random.below(client.outgoing.len() + 1);
        let early = Stream { plain: client.outgoing.drain(..cut).collect(), sealed: Vec::new() };
        let newcomer = Newcomer {
            socket,
            tls: None,
            framing: Framing::Raw,
            key: key(own),
            greeting: frames::greeting(),
            early,
            decoder: None,
            not_ideal: false,
        };
        let core = self.random.below(self.workers.len());
        self.fabric.post(core, Command::Adopt(Box::new(newcomer)));
        self.clients.push(client);
    }

    /// A round of every worker, in any order, then a look at what the clients got.
    fn step(&mut self) {
        let first = self.random.below(self.workers.len());
        for at in 0..self.workers.len() {
            let at = (first + at) % self.workers.len();
            let worker = &mut self.workers[at];
            worker.round().expect("the simulation goes on");
            worker.check();
        }
        for client in &mut self.clients {
            if client.reads || client.end.is_ended() {
                client.read(&mut self.ledger);
            }
        }
    }

    /// Steps until every worker sleeps and every client has read everything.
    fn rest(&mut self) {
        let mut idle = 0;
        for _ in 0..ROUNDS_MAX {
            let before = self.net.now();
            self.step();
            let took = self.net.now().saturating_since(before);
            idle = if took >= IDLE { idle + 1 } else { 0 };
            if idle == 3 {
                return;
            }
        }
        panic!("the relay never rests");
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        let cells = self.counters.iter().map(|core| &core.dropped[reason.index()]);
        let of = |kind: PacketKind| {
            cells.clone().map(|cells| cells[kind.index()].packets.value()).sum::<u64>()
        };
        of(PacketKind::Disco) + of(PacketKind::Other)
    }

    fn sum(&self, of: impl Fn(&CoreCounters) -> u64) -> u64 {
        self.counters.iter().map(|core| of(core)).sum()
    }

    /// Every packet has its one fate, and nothing is held.
    fn verify_flow(&self) {
        for (at, worker) in self.workers.iter().enumerate() {
            assert_eq!((worker.waiting_packets(), worker.held_bytes()), (0, 0), "worker {at}");
        }
        assert_eq!(self.fabric.queued_bytes(), 0);
        self.fabric.check();
        let (received, forwarded) =
            (self.sum(|core| core.flow().received), self.sum(|core| core.flow().forwarded));
        let (answered, dropped) =
            (self.sum(|core| core.flow().answered), self.sum(|core| core.flow().dropped));
        assert_eq!(received, forwarded + answered + dropped);
        // A write that fails may have carried some of its packets.
        let arrived = self.ledger.arrived.len() as u64;
        let most = forwarded + self.dropped(DropReason::WriteError);
        assert!((forwarded..=most).contains(&arrived), "{forwarded} <= {arrived} <= {most}");
        let relayed = received - self.sum(|core| core.pings.value());
        let all_stayed = self.clients.iter().all(Client::is_alive);
        assert!(relayed == self.ledger.sent || (!all_stayed && relayed < self.ledger.sent));
    }

    /// Everyone who is there is answered, and reached under their key.
    fn verify_liveness(&mut self) {
        let alive: Vec<usize> =
            (0..self.clients.len()).filter(|at| self.clients[*at].is_alive()).collect();
        for at in &alive {
            let (sender, to) = (self.clients[*at].number, self.clients[alive[0]].key);
            let client = &mut self.clients[*at];
            client.ping();
            client.send(to, Lane::Bulk, 1400, &mut self.ledger);
            client.flush();
            let packet = client.packets_sent;
            self.rest();
            let client = &self.clients[*at];
            assert_eq!(client.pongs_heard, client.pings_sent, "client {sender} is answered");
            assert!(self.ledger.arrived.contains(&(sender, packet)), "{sender} reaches key {to}");
        }
    }

    /// Nothing is left of sessions that have ended.
    fn verify_end(&mut self) {
        self.clients.iter().for_each(|client| client.end.close());
        self.rest();
        self.verify_flow();
        assert_eq!(self.fabric.census(), (0, 0, 0));
        assert_eq!(self.sum(|core| core.sessions.value()), 0);
        assert_eq!(self.sum(|core| core.home_sessions.value()), 0);
        let closed = self.sum(|core| core.sessions_closed.iter().map(|cell| cell.value()).sum());
        assert_eq!(self.sum(|core| core.sessions_opened.value()), closed);
        assert_eq!(self.clients.len() as u64, closed);
        assert!(
            self.clients.iter().all(|client| client.end.is_released()),
            "descriptors are closed"
        );
    }
}

impl Client {
    fn new(number: u32, key: u8, end: sim::Client) -> Self {
        Self {
            number,
            key,
            end,
            outgoing: Vec::new(),
            incoming: Vec::new(),
            reads: true,
            leaving: false,
            greeted: false,
            packets_sent: 0,
            pings_sent: 0,
            pongs_heard: 0,
            heard: HashMap::new(),
        }
    }

    fn is_alive(&self) -> bool {
        !self.leaving && !self.end.is_ended()
    }

    /// Queues a packet that gives an account of itself.
    fn send(&mut self, to: u8, lane: Lane, filler_len: usize, ledger: &mut Ledger) {
        self.packets_sent += 1;
        let mut packet =
            [&self.number.to_be_bytes()[..], &self.packets_sent.to_be_bytes(), &[to]].concat();
        packet.resize(ACCOUNT_LEN + filler_len, self.packets_sent as u8);
        if lane == Lane::Disco {
            packet = frames::disco(&packet);
        }
        self.outgoing.extend(frames::send(&key(to), &packet));
        ledger.addressed.insert((self.key, to));
        ledger.sent += 1;
    }

    fn ping(&mut self) {
        self.pings_sent += 1;
        self.outgoing.extend(derp::ping(self.pings_sent.to_be_bytes()));
    }

    /// Sends what no client may, and nothing after it.
    fn misbehave(&mut self, random: &mut Random) {
        self.leaving = true;
        let kind = [4, 7, 0x0a, 0x10, 0x11, 0x12][random.below(6)];
        self.outgoing.extend([kind, 0xff, 0xff, 0xff, random.below(256) as u8]);
        self.outgoing.extend((0..random.below(300)).map(|_| random.below(256) as u8));
    }

    /// Gives the network a part of what is queued, cut anywhere.
    fn transmit(&mut self, random: &mut Random) {
        let len = if random.chance(80) {
            random.below(self.outgoing.len() + 1)
        } else {
            self.outgoing.len()
        };
        self.end.write(&self.outgoing[..len]);
        self.outgoing.drain(..len);
        if self.leaving && self.outgoing.is_empty() && random.chance(100) {
            self.end.close();
        }
    }

    fn flush(&mut self) {
        self.end.write(&std::mem::take(&mut self.outgoing));
    }

    fn read(&mut self, ledger: &mut Ledger) {
        self.incoming.extend(self.end.read());
        while let Some(frame) = frames::take_frame(&mut self.incoming) {
            let greeting = matches!(frame, Frame::Info(_));
            assert!(greeting != self.greeted, "one greeting, before all else");
            self.greeted = true;
            match frame {
                Frame::Info(_) | Frame::KeepAlive => {}
                Frame::Packet { source, packet } => self.hear(&source, &packet, ledger),
                Frame::Gone { key: gone, reason } => self.hear_gone(&gone, reason, ledger),
                Frame::Pong(data) => {
                    let pong = u64::from_be_bytes(*data.first_chunk().expect("eight bytes"));
                    assert_eq!(pong, self.pongs_heard + 1, "each ping, in order");
                    self.pongs_heard = pong;
                }
                Frame::Restarting(_) => panic!("the relay stays"),
            }
        }
    }

    fn hear(&mut self, source: &Key, packet: &[u8], ledger: &mut Ledger) {
        let is_disco = disco::looks_like(packet);
        let account = if is_disco { &packet[disco::LEN_MIN..] } else { packet };
        let word =
            |at: usize| u32::from_be_bytes(*account[at..].first_chunk().expect("an account"));
        let (sender, number, to) = (word(0), word(4), account[8]);
        assert_eq!(*source, key(ledger.keys[sender as usize]), "the sender's own key");
        assert_eq!(to, self.key, "a packet for somebody else");
        assert!(
            account[ACCOUNT_LEN..] == vec![number as u8; account.len() - ACCOUNT_LEN],
            "unharmed"
        );
        let last = self.heard.insert((sender, is_disco), number);
        assert!(last < Some(number), "{number} of {sender} after {last:?}");
        assert!(ledger.arrived.insert((sender, number)), "{number} of {sender} twice");
    }

    fn hear_gone(&self, gone: &Key, reason: u8, ledger: &Ledger) {
        let gone = (0..=KEYS).find(|at| key(*at) == *gone).expect("one of the keys");
        let pair = if reason == GoneReason::Disconnected as u8 {
            (gone, self.key)
        } else {
            (self.key, gone)
        };
        assert!(ledger.addressed.contains(&pair), "news of a stranger: {pair:?}, {reason}");
    }
}
