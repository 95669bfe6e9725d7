//! What the fuzz targets do with their input, as plain functions.
//!
//! Owns one function per target and the list of them. cargo-fuzz runs each from
//! `fuzz/fuzz_targets/`, `tests/fuzz_replay.rs` runs the seeds in `fuzz/corpus/` on every ordinary
//! test run. To add a target: write its function here, name it in [`TARGETS`], put seeds (`*.seed`)
//! into `fuzz/corpus/NAME/`, a `fuzz/fuzz_targets/NAME.rs` and a `[[bin]]` into the fuzz crate; the
//! replay test notices what is missing. A target panics on a broken promise and returns on
//! everything else.

mod steering;
mod wireguard;

use std::net::SocketAddr;

use proto::bucket::Rate;
use proto::derp::hello::{self, HelloFault, NONCE_LEN, Shared};
use proto::derp::{
    Budget, Dropped, Flight, Framing, Ingress, Lane, Limits, Outbox, PeerFault, Pool, Pushed,
};
use proto::stun::{Responder, Seed, Verdict};
use proto::tick::Tick;
use proto::tls::{self, Aead, Opened, Opener, Protocol, RecordBuf, Sealer, TAG_LEN};
use proto::ws;
use steer::signature;
use wire::derp::{FrameType, HEADER_LEN, Header, RECV_HEAD_LEN};
use wire::key::{KEY_LEN, Key};
use wire::maps::Outcome;
use wire::stun::{ANSWER_LEN_MAX, Answer, parse, parse_answer};

use crate::frames::{self, Table};

/// The body of a target.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its file and of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("client_info", client_info),
    ("derp_header", derp_header),
    ("frame", frame),
    ("ingress", ingress),
    ("order", order),
    ("queue", queue),
    ("record", record),
    ("said", said),
    ("signature", signature),
    ("stun", stun),
    ("wireguard", wireguard),
    ("ws", ws),
];

/// The JSON of a `ClientInfo`: whatever a client seals is read or refused for what it says, never
/// for its box; the same bytes as a whole payload open no box.
pub fn client_info(data: &[u8]) {
    let shared = Shared::new(&[5; 32].into());
    assert_eq!(shared.open(data), None, "nobody guesses a box");
    let Ok(json) = std::str::from_utf8(data) else { return };
    let key = Key([3; KEY_LEN]);
    let frame = shared.client_info(&key, json, [1; NONCE_LEN]);
    let payload = &frame[HEADER_LEN..];
    assert_eq!(hello::client_key(payload), Ok(key));
    match shared.open_client_info(payload) {
        Ok(_) | Err(HelloFault::Json | HelloFault::MeshKey) => {}
        Err(fault) => panic!("{fault}"),
    }
}

/// A frame on its way into the fast path: it fares as the slow model says, and nothing is read
/// that was not asked for. With no room before it, an answer may only be refused. Behind the driver
/// the same holds, whatever the kernel is said to have merged.
pub fn frame(data: &[u8]) {
    let found = frames::judged(data, 256, &Table::new());
    assert_eq!(found, frames::model(data, &Table::new()));
    let cramped = frames::judged(data, 0, &Table::new());
    assert!(cramped == found || cramped == (Some(Outcome::NoRoom), data.to_vec()));
    for each in [0, 32, data.len() / 3] {
        let late = frames::judged_late(data, each, &Table::new());
        assert_eq!(late, frames::model_late(data, each, &Table::new()));
    }
}

/// The three header fields of a signed request, a line each, over a request without content: what is
/// read keeps its bounds, and its base has a line for each thing that must be covered.
pub fn signature(data: &[u8]) {
    /// SHA-256 of nothing (FIPS 180-4).
    const NOTHING: [u8; signature::DIGEST_LEN] = [
        0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9,
        0x24, 0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52,
        0xb8, 0x55,
    ];
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(3, '\n').map(str::to_owned);
    let mut line = || lines.next().unwrap_or_default();
    let fields =
        signature::Fields { content_digest: line(), signature_input: line(), signature: line() };
    let request = signature::Request {
        method: "POST",
        authority: "primary.example",
        path: "/",
        query: "",
        content_sha256: &NOTHING,
    };
    let Ok(found) = signature::read(&request, &fields) else { return };
    assert!((1..=signature::SIGNATURES_MAX).contains(&found.len()));
    for one in found {
        assert!((1..=signature::KEYID_LEN_MAX).contains(&one.keyid.len()));
        assert!((1..=signature::NONCE_LEN_MAX).contains(&one.nonce.len()));
        assert!((0..=signature::VALID_S).contains(&(one.expires - one.created)));
        assert_eq!(one.base.lines().count(), signature::COVERED.len() + 1);
        for name in signature::COVERED {
            let start = format!("\"{name}\": ");
            assert_eq!(one.base.lines().filter(|line| line.starts_with(&start)).count(), 1);
        }
        let _ = one.check_time(0);
    }
}

/// A client's stream of frames, cut every `data[0]` bytes: the verdicts do not depend on the cuts.
pub fn ingress(data: &[u8]) {
    let Some((&cut, stream)) = data.split_first() else { return };
    let whole = intake(stream, stream.len().max(1));
    assert_eq!(intake(stream, usize::from(cut).max(1)), whole);
}

/// What the intake makes of `stream` fed in pieces of `cut` bytes, up to the first fault.
fn intake(stream: &[u8], cut: usize) -> (Vec<String>, Option<PeerFault>) {
    let mut ingress = Ingress::default();
    let mut seen = Vec::new();
    for piece in stream.chunks(cut) {
        let fed = ingress.feed(piece, &mut |verdict| seen.push(format!("{verdict:?}")));
        if let Err(fault) = fed {
            return (seen, Some(fault));
        }
    }
    (seen, None)
}

/// A DERP frame header: read whenever five bytes are there, and written back as it was.
pub fn derp_header(data: &[u8]) {
    let Some(header) = Header::read(data) else {
        assert!(data.len() < HEADER_LEN);
        return;
    };
    match FrameType::from_byte(header.kind) {
        Some(kind) => assert_eq!(Header::bytes(kind, header.len)[..], data[..HEADER_LEN]),
        None => assert_eq!(header.kind, data[0]),
    }
}

/// A datagram for the STUN port: what is answered is answered truly, and the responder agrees with
/// the parser about the rest. The same datagram as an answer is parsed without harm.
pub fn stun(data: &[u8]) {
    let _ = parse_answer(data);
    let seed = Seed([0x5eed, 0xcafe]);
    let mut responder = Responder::new(seed, Rate { per_second: 1, burst: 2 }, Tick::ZERO);
    for source in [
        SocketAddr::from(([192, 0, 2, 1], 1025)),
        SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 65_535)),
    ] {
        let mut out = [0; ANSWER_LEN_MAX];
        let verdict = responder.step(data, source, Tick::ZERO, &mut out);
        match parse(data) {
            Ok(request) => {
                let Verdict::Answer(len) = verdict else { panic!("within the rate") };
                let expected = Answer { txid: request.txid, address: source };
                assert_eq!(parse_answer(&out[..len]), Ok(expected));
                assert_eq!(len, if source.is_ipv4() { 32 } else { 44 });
                assert_eq!(data[..2], [0, 1]);
            }
            Err(reject) => assert_eq!(verdict, Verdict::Drop(reject.drop_reason())),
        }
    }
}

/// Control's lines to a dataplane, cut every `data[0]` bytes: what is read is written back as it was,
/// and what does not fit leaves the old snapshot in force.
pub fn order(data: &[u8]) {
    steering::orders(data);
}

/// A dataplane's lines to control, cut every `data[0]` bytes: what is read is written back as it was.
pub fn said(data: &[u8]) {
    steering::said(data);
}

/// Messages, pauses and reloads for the WireGuard relay: no more bytes leave than came, the data
/// table follows the truth, and all invariants hold.
pub fn wireguard(data: &[u8]) {
    wireguard::run(data);
}

/// A peer's records under a cipher that finds everything authentic, cut every `data[1]` bytes:
/// what they hold does not depend on the cuts. As plaintext the same bytes come back from records.
pub fn record(data: &[u8]) {
    let [protocol, cut, stream @ ..] = data else { return };
    let protocol =
        [Protocol::Tls13, Protocol::Tls12Gcm, Protocol::Tls12Chacha][usize::from(protocol % 3)];
    let cut = usize::from(*cut).max(1);
    let whole = open(protocol, stream, stream.len().max(1));
    assert_eq!(open(protocol, stream, cut), whole);
    let mut records = RecordBuf::on(Vec::new());
    let most = records.len_with(stream.len(), Some(protocol));
    stream.chunks(cut).for_each(|piece| records.push(piece, Some(protocol)));
    assert_eq!(records.plain_len(), stream.len());
    if !stream.is_empty() {
        let (sealed, _) = records.seal(&mut Sealer::new(protocol, Trusting, [0; 12], 0));
        assert!(sealed.len() <= most, "{} of {most}", sealed.len());
        let (plain, end) = open(protocol, &sealed, cut);
        assert!(plain == stream && end.is_none());
    }
}

/// A cipher that changes nothing and believes everything.
#[derive(Debug)]
struct Trusting;

impl Aead for Trusting {
    fn open(&self, _: [u8; 12], _: &[u8], _: &mut [u8]) -> bool {
        true
    }

    fn seal(&self, _: [u8; 12], _: &[u8], _: &mut [u8]) -> [u8; TAG_LEN] {
        [0; TAG_LEN]
    }
}

/// The data in `stream` fed in pieces of `cut` bytes, and what ended it, if anything did: the
/// peer's own word, or a fault.
fn open(
    protocol: Protocol,
    stream: &[u8],
    cut: usize,
) -> (Vec<u8>, Option<Result<(), tls::Fault>>) {
    let mut opener = Opener::new(protocol, Trusting, [0; 12], 0);
    let (mut sealed, mut data) = (Vec::new(), Vec::new());
    for piece in stream.chunks(cut) {
        sealed.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match opener.open(&mut sealed[at..]) {
                Ok(Opened::Need(len)) => {
                    assert!(len > sealed.len() - at, "all that is needed is there");
                    break;
                }
                Ok(Opened::Data { plain, end }) => {
                    assert!(plain.end <= end);
                    data.extend_from_slice(&sealed[at..][plain]);
                    at += end;
                }
                Ok(Opened::KeyUpdate { end, .. }) => {
                    opener.rekey(Trusting, [0; 12]);
                    at += end;
                }
                Ok(Opened::Closed) => return (data, Some(Ok(()))),
                Err(fault) => return (data, Some(Err(fault))),
            }
        }
        sealed.drain(..at);
    }
    (data, None)
}

/// What happens to a client's queue, an operation for each byte or three: the queue keeps its
/// bounds and its order, and knows what became of every packet.
pub fn queue(data: &[u8]) {
    let [bounds, ops @ ..] = data else { return };
    let mut queue = Queue::new(*bounds);
    let mut ops = ops.iter();
    while let Some(op) = ops.next() {
        let mut len =
            || usize::from(*ops.next().unwrap_or(&0)) << 8 | usize::from(*ops.next().unwrap_or(&0));
        match op % 8 {
            0..3 => queue.push(Lane::Bulk, len()),
            3 => queue.push(Lane::Disco, len()),
            4 => drop(queue.outbox.push_control(&[0x13, 0, 0, 0, 2, *op, 0], &mut queue.pool)),
            5 => queue.take_off(),
            6 => queue.land(),
            _ => queue.close(),
        }
        queue.check();
    }
    while queue.flying.is_some() || queue.outbox.queued_packets() > 0 {
        queue.land();
        queue.take_off();
        queue.check();
    }
    queue.close();
    queue.check();
    assert_eq!((queue.budget.used(), queue.outbox.held_bytes()), (0, 0));
}

/// An outbox, and what it was given.
struct Queue {
    outbox: Outbox,
    pool: Pool,
    budget: Budget,
    flying: Option<Dropped>,
    /// Packets that the outbox took.
    taken: u64,
    /// Those that made room for others.
    dropped: Dropped,
    /// Those that landed, or waited when it closed.
    flown: u64,
    /// The numbers of the packets that flew last, by lane.
    last: [u64; 2],
}

impl Queue {
    fn new(bounds: u8) -> Self {
        let limits = Limits {
            queue_bytes_max: 66_000 + (usize::from(bounds >> 4) << 10),
            queue_packets_max: u32::from(bounds & 7),
        };
        Self {
            outbox: Outbox::new(None, Framing::Raw, limits),
            pool: Pool::default(),
            budget: Budget::new(if bounds & 8 == 0 { 1 << 20 } else { 40_000 }),
            flying: None,
            taken: 0,
            dropped: Dropped::default(),
            flown: 0,
            last: [0; 2],
        }
    }

    fn push(&mut self, lane: Lane, len: usize) {
        let mut packet = (self.taken + 1).to_be_bytes().to_vec();
        packet.push(u8::from(lane == Lane::Disco));
        packet.resize(packet.len().max(len), 0);
        let with = (&mut self.pool, &self.budget);
        let source = Key([7; KEY_LEN]);
        match self.outbox.push_packet(&source, &packet, lane, with, &mut self.dropped) {
            Pushed::Queued | Pushed::Schedule => self.taken += 1,
            Pushed::Closed | Pushed::Full => {}
        }
    }

    fn take_off(&mut self) {
        let Some(Flight { records, packets }) = self.outbox.take_off() else { return };
        assert!(self.flying.is_none(), "one flight at a time");
        self.flying = Some(packets);
        let plain = records.into_plain();
        let mut rest = &plain[..];
        while let Some(header) = Header::read(rest) {
            if header.kind == FrameType::RecvPacket as u8 {
                let packet = &rest[RECV_HEAD_LEN..];
                let number = u64::from_be_bytes(*packet.first_chunk().expect("numbered"));
                let last = &mut self.last[usize::from(packet[8])];
                assert!(number > *last, "{number} after {last}");
                *last = number;
            }
            rest = &rest[HEADER_LEN + header.len as usize..];
        }
        assert!(rest.is_empty(), "whole frames");
        self.pool.take_back(plain);
    }

    fn land(&mut self) {
        if let Some(packets) = self.flying.take() {
            self.flown += packets.packets();
            let _ = self.outbox.landed(&mut self.pool, &self.budget);
        }
    }

    fn close(&mut self) {
        let waiting = self.outbox.close(&mut self.pool, &self.budget);
        self.flown += waiting.packets();
    }

    fn check(&self) {
        self.outbox.check();
        let flying = self.flying.as_ref().map_or(0, Dropped::packets);
        let known = self.flown + flying + self.dropped.packets() + self.outbox.queued_packets();
        assert_eq!(self.taken, known, "every packet has its fate");
    }
}

/// A WebSocket client's stream, cut every `data[0]` bytes: the events do not depend on the cuts,
/// and no more bytes come out than went in. As a payload the same bytes survive masking.
pub fn ws(data: &[u8]) {
    let Some((&cut, stream)) = data.split_first() else { return };
    let cut = usize::from(cut).max(1);
    let whole = decode(stream, stream.len().max(1));
    assert_eq!(decode(stream, cut), whole);
    let out: usize = whole.iter().map(Seen::len).sum();
    assert!(out <= stream.len());
    let frames: Vec<u8> = messages(stream, cut);
    let expected = if stream.is_empty() { vec![] } else { vec![Seen::Data(stream.to_vec())] };
    assert_eq!(decode(&frames, cut), expected);
}

/// A WebSocket event that outlives its input.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Data(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    Fault(ws::Fault),
}

impl Seen {
    fn len(&self) -> usize {
        match self {
            Self::Data(bytes) | Self::Ping(bytes) => bytes.len(),
            Self::Pong | Self::Close(_) | Self::Fault(_) => 0,
        }
    }
}

/// The events of `stream` fed in pieces of `cut` bytes, with neighbouring data joined.
fn decode(stream: &[u8], cut: usize) -> Vec<Seen> {
    let mut decoder = ws::Decoder::new(1 << 16);
    let mut seen = Vec::new();
    for piece in stream.to_vec().chunks_mut(cut) {
        let mut input = piece;
        while let Some(event) = decoder.step(&mut input) {
            match (event, seen.last_mut()) {
                (ws::Event::Data(data), Some(Seen::Data(before))) => before.extend(data.iter()),
                (ws::Event::Data(data), _) => seen.push(Seen::Data(data.to_vec())),
                (ws::Event::Ping(payload), _) => seen.push(Seen::Ping(payload.to_vec())),
                (ws::Event::Pong, _) => seen.push(Seen::Pong),
                (ws::Event::Close(code), _) => seen.push(Seen::Close(code)),
                (ws::Event::Fault(fault), _) => seen.push(Seen::Fault(fault)),
            }
        }
        assert!(input.is_empty());
    }
    seen
}

/// A client's binary message per `cut` bytes of `payload`, masked by its first bytes.
fn messages(payload: &[u8], cut: usize) -> Vec<u8> {
    let mut frames = Vec::new();
    for part in payload.chunks(cut) {
        let mask = *payload.first_chunk().unwrap_or(&[7; 4]);
        let (head, head_len) = ws::masked_header(ws::Opcode::Binary, part.len(), mask);
        frames.extend(&head[..head_len]);
        let start = frames.len();
        frames.extend(part);
        ws::apply_mask(&mut frames[start..], mask);
    }
    frames
}
