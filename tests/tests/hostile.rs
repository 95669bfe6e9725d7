//! Bad input and bad neighbours, over each driver: nobody else may notice.
//!
//! Each test harms one relay in one way while a well-behaved pair exchanges packets through it.
//! Then every packet must have come in order, every counted one must have one fate, and memory and
//! descriptors must be back where they were.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tests::client::{Client, connect_tcp, connect_tls, reset, upgrade};
use tests::metrics::Metrics;
use tests::process::{eventually, lift_descriptor_limit};
use tests::relay::{Relay, loopback, refusal};
use tests::skip::{skip, slow};
use wire::derp::{CLIENT_INFO_LEN, FrameType, Header, PACKET_LEN_MAX, PING_LEN, send_head};
use wire::key::{KEY_LEN, Key};

/// Packets in flight of the well-behaved pair: a stock client that keeps below 30 never loses one.
const IN_FLIGHT: u32 = 16;
/// Bytes that may wait for all clients of a relay under test.
const QUEUED_BYTES_MAX: &str = "33554432";
/// Growth of memory that no attack may exceed: the queues twice over, and what handshakes take.
const GROWTH_MAX: u64 = 64 << 20;

/// Each test below, once per driver.
macro_rules! over_each_driver {
    ($($attack:ident),+ $(,)?) => {
        mod over_epoll { $(#[test] fn $attack() { super::endure("epoll", super::$attack); })+ }
        mod over_uring { $(#[test] fn $attack() { super::endure("uring", super::$attack); })+ }
    };
}

over_each_driver![
    garbage_on_every_port,
    handshakes_and_heads_that_never_end,
    floods_of_accepts,
    cut_and_oversized_frames,
    clients_that_never_read,
    clients_that_vanish,
    random_bytes_after_the_upgrade,
];

fn endure(io: &str, attack: fn(&Relay)) {
    if let Some(why) = refusal(&["--io", io]) {
        return skip(io, &why);
    }
    let mut args = loopback(io, "1");
    args.extend(["--queued-bytes-max", QUEUED_BYTES_MAX, "--handshakes-max", "512"]);
    let mut relay = Relay::start(&args);
    lift_descriptor_limit();
    // Some descriptors come with the first client and the first request, and stay.
    drop(Client::connect(relay.derp()).expect("the relay lets in"));
    at_rest(&relay);
    let descriptors = relay.process.descriptors();
    let pair = Pair::start(relay.derp());
    let (resident, _) = relay.process.resident_bytes();

    attack(&relay);

    let (_, peak) = relay.process.resident_bytes();
    let grown = peak.saturating_sub(resident);
    println!("memory grew by {} KiB at most", grown >> 10);
    assert!(grown < GROWTH_MAX, "memory grew by {grown} bytes");
    let exchanged = pair.stop();
    assert!(exchanged > 0, "the pair exchanged nothing");
    eventually("a descriptor leaks", || {
        let open = relay.process.descriptors();
        if open <= descriptors { Ok(()) } else { Err(format!("{open} open, {descriptors} before")) }
    });
    let metrics = at_rest(&relay);
    assert!(metrics.sum("relay_packets_forwarded_total", &["derp"]) >= exchanged);
    assert!(relay.process.is_alive());
    let log = relay.process.log().join("\n");
    assert!(!log.contains("panicked") && !log.contains("\"ERROR\""), "{log}");
}

/// The counters once every session has ended and every packet has its fate.
fn at_rest(relay: &Relay) -> Metrics {
    eventually("a packet has no fate or a session no end", || {
        let metrics = relay.metrics();
        metrics.balance()?;
        match metrics.sum("relay_sessions", &[]) {
            0 => Ok(metrics),
            sessions => Err(format!("{sessions} sessions left")),
        }
    })
}

/// Two clients that exchange numbered packets until they are stopped.
struct Pair {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Pair {
    /// Returns once the first packets went there and back.
    fn start(relay: SocketAddr) -> Self {
        let mut ends = [(); 2].map(|()| Client::connect(relay).expect("a good client is let in"));
        let mut next = 0;
        exchange(&mut ends, &mut next);
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                exchange(&mut ends, &mut next);
            }
            u64::from(next) * 2
        });
        Self { stop, thread }
    }

    /// How many packets were exchanged. A packet lost or out of order has ended the thread.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the pair never notices the attack")
    }
}

/// A burst there and a burst back; `next` numbers the packets.
fn exchange(ends: &mut [Client; 2], next: &mut u32) {
    let first = *next;
    *next += IN_FLIGHT;
    for _ in 0..ends.len() {
        let [sender, receiver] = &mut *ends;
        let (from, to) = (sender.key, receiver.key);
        for number in first..*next {
            sender.send(&to, &packet(number)).expect("the sender stays connected");
        }
        for number in first..*next {
            let received = receiver.receive_packet().expect("every packet comes in time");
            assert!(received == (from, packet(number)), "packet {number} is another");
        }
        ends.swap(0, 1);
    }
}

/// A packet that carries its number, of a size that varies with it.
fn packet(number: u32) -> Vec<u8> {
    let len = 4 + (number as usize * 97) % 1400;
    number.to_be_bytes().into_iter().cycle().take(len).collect()
}

/// Bytes without a pattern, the same in every run (splitmix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        words.flatten().take(len).collect()
    }
}

/// The relay must end the stream by itself.
fn expect_end(stream: &mut impl Read, what: &str) {
    let mut sink = [0; 4096];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if tests::client::timed_out(&error) => panic!("{what}: still open"),
            Err(_) => return,
        }
    }
}

fn garbage_on_every_port(relay: &Relay) {
    let mut noise = Noise(1);
    let tcp = relay.ready.derp.iter().chain(&relay.ready.http);
    for (at, address) in tcp.cycle().take(200).enumerate() {
        let mut stream = connect_tcp(*address).expect("the relay accepts");
        // It may refuse the rest by a reset as soon as it has seen the first byte.
        let _ = stream.write_all(&noise.bytes(1 + at * 61));
        let _ = stream.shutdown(Shutdown::Write);
        expect_end(&mut stream, "garbage");
    }
    for address in &relay.ready.stun {
        let socket = UdpSocket::bind((address.ip(), 0)).expect("loopback has free ports");
        for len in 0..600 {
            let mut datagram = noise.bytes(len);
            if len % 2 == 0 && len >= 8 {
                // Half of them look like STUN.
                datagram[0] = 0;
                datagram[4..8].copy_from_slice(&wire::stun::COOKIE);
            }
            socket.send_to(&datagram, address).expect("UDP takes anything");
        }
    }
    eventually("garbage is not counted", || {
        let metrics = relay.metrics();
        let dropped = metrics.sum("relay_packets_dropped_total", &["not_stun"])
            + metrics.sum("relay_packets_dropped_total", &["bad_stun"]);
        if dropped >= 600 { Ok(()) } else { Err(format!("{dropped} dropped")) }
    });
}

/// The first bytes of a ClientHello record of 512 bytes.
const HALF_HELLO: [u8; 9] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc];

fn handshakes_and_heads_that_never_end(relay: &Relay) {
    let address = relay.derp();
    let mut half: Vec<TcpStream> =
        (0..300).map(|_| connect_tcp(address).expect("the relay accepts")).collect();
    for stream in &mut half {
        stream.write_all(&HALF_HELLO).expect("the relay waits for more");
    }
    let mut heads: Vec<_> = (0..100).map(|_| connect_tls(address).expect("a handshake")).collect();
    for piece in ["GET ", "/derp", " HTTP/1.1\r\n", "Host: h\r\n", "Upgrade:", " DE"] {
        for stream in &mut heads {
            stream.write_all(piece.as_bytes()).expect("the relay waits for more");
        }
    }
    // Beyond the bound of open handshakes newcomers are refused, and counted.
    let mut beyond: Vec<_> =
        (0..200).map(|_| connect_tcp(address).expect("the kernel accepts")).collect();
    expect_end(beyond.last_mut().expect("there are some"), "one handshake too many");
    drop((half, heads, beyond));
    eventually("places are not given back", || {
        Client::connect(address).map(drop).map_err(|error| error.to_string())
    });
    let refused = relay.metrics().sum("relay_admission_rejected_total", &["handshakes_max"]);
    assert!(refused > 0, "no rejection counted");
}

/// The time that stock derper gives a handshake, and a margin for a busy machine.
const HANDSHAKE_ENDS: Duration = Duration::from_secs(60);

#[test]
fn a_half_open_handshake_ends_and_is_counted() {
    if !slow() {
        return skip("slow", "set PERIGEE_SLOW=1 for the cases that take minutes");
    }
    let relay = Relay::start(&loopback("auto", "1"));
    let mut half = connect_tcp(relay.derp()).expect("the relay accepts");
    half.set_read_timeout(Some(HANDSHAKE_ENDS)).expect("sockets take timeouts");
    half.write_all(&HALF_HELLO).expect("the relay waits for more");
    expect_end(&mut half, "a half-open handshake");
    assert_eq!(relay.metrics().sum("relay_tls_handshakes_total", &["timeout"]), 1);
}

fn floods_of_accepts(relay: &Relay) {
    for _ in 0..4000 {
        let stream = connect_tcp(relay.derp()).expect("the relay accepts");
        // A reset leaves no socket behind that waits for late segments.
        reset(&stream);
    }
    for _ in 0..200 {
        connect_tls(relay.derp()).expect("handshakes go on");
    }
}

fn cut_and_oversized_frames(relay: &Relay) {
    let connect = || Client::connect(relay.derp()).expect("the relay lets in");
    let whole = [&send_head(&Key([7; KEY_LEN]), 100)[..], &[1; 100]].concat();
    for cut in 1..whole.len() {
        let mut client = connect();
        client.write(&whole[..cut]).expect("a cut frame is waited for");
    }
    let too_long = |kind, len: usize| (kind, len as u32);
    for (kind, len) in [
        too_long(FrameType::SendPacket, KEY_LEN + PACKET_LEN_MAX + 1),
        too_long(FrameType::SendPacket, KEY_LEN - 1),
        too_long(FrameType::SendPacket, u32::MAX as usize),
        too_long(FrameType::Ping, PING_LEN.end() + 1),
        too_long(FrameType::Ping, PING_LEN.start() - 1),
        too_long(FrameType::NotePreferred, 2),
        // Only mesh peers may send these.
        too_long(FrameType::WatchConns, 0),
        too_long(FrameType::ClosePeer, KEY_LEN),
        too_long(FrameType::ForwardPacket, 2 * KEY_LEN),
    ] {
        let mut client = connect();
        client.write(&Header::bytes(kind, len)).expect("the header is taken");
        // What follows may already meet a closed connection.
        let _ = client.write(&[0; 2 * KEY_LEN]);
        client.drain().unwrap_or_else(|_| panic!("{kind:?} of {len} bytes is accepted"));
    }
    for len in [CLIENT_INFO_LEN.start() - 1, CLIENT_INFO_LEN.end() + 1] {
        let mut stream = upgrade(relay.derp()).expect("the relay upgrades");
        stream
            .write_all(&Header::bytes(FrameType::ClientInfo, len as u32))
            .expect("the header is taken");
        expect_end(&mut stream, "ClientInfo of a wrong length");
    }
}

fn clients_that_never_read(relay: &Relay) {
    const FLOOD: usize = 64 << 20;
    const PACKET: usize = 16 << 10;
    let mut sender = Client::connect(relay.derp()).expect("the relay lets in");
    let stopped: Vec<_> =
        (0..4).map(|_| Client::connect(relay.derp()).expect("the relay lets in")).collect();
    let packet = vec![9; PACKET];
    for stopped in stopped.iter().cycle().take(FLOOD / PACKET) {
        sender.send(&stopped.key, &packet).expect("the sender is never made to wait for long");
    }
    sender.ping(*b"all sent").expect("the sender is still served");
    let metrics = relay.metrics();
    let reasons = ["queue_head", "gone_disconnected", "unknown_dest", "write_error"];
    let dropped: u64 =
        reasons.iter().map(|reason| metrics.sum("relay_packets_dropped_total", &[reason])).sum();
    assert!(dropped > 0, "{FLOOD} bytes fit nowhere");
}

fn clients_that_vanish(relay: &Relay) {
    for round in 0..20 {
        let mut clients: Vec<_> =
            (0..10).map(|_| Client::connect(relay.derp()).expect("the relay lets in")).collect();
        let keys: Vec<_> = clients.iter().map(|client| client.key).collect();
        for (at, client) in clients.iter_mut().enumerate() {
            for _ in 0..20 {
                let to = &keys[(at + 1) % keys.len()];
                client.send(to, &[round; 1200]).expect("nobody has vanished yet");
            }
        }
        clients.into_iter().for_each(Client::reset);
    }
}

fn random_bytes_after_the_upgrade(relay: &Relay) {
    let mut noise = Noise(2);
    for at in 0..100 {
        let mut stream = upgrade(relay.derp()).expect("the relay upgrades");
        stream.write_all(&noise.bytes(1 + at * 41)).expect("the first flight is taken");
        let mut client = Client::connect(relay.derp()).expect("the relay lets in");
        // A session that has met nonsense may be closed at any point.
        let _ = client.write(&noise.bytes(1 + at * 97));
        let mut record = connect_tls(relay.derp()).expect("a handshake");
        let _ = record.sock.write_all(&noise.bytes(1 + at * 53));
        let _ = record.sock.shutdown(Shutdown::Write);
        expect_end(&mut record.sock, "a broken TLS record");
    }
}
