//! Our record layer against rustls as its oracle, in memory.
//!
//! A rustls client shakes hands with a rustls server, whose keys our layer then takes over. What
//! one side seals the other must open, however the bytes are cut and whenever keys change.
#![forbid(unsafe_code)]

#[path = "common/oracle.rs"]
mod oracle;

use dataplane::io::sim::Random;
use dataplane::tls::{Rx, Tx};
use proto::tls::{Fault, Opened, PLAINTEXT_LEN_MAX, RecordBuf};
use rustls::{ClientConnection, ProtocolVersion, SupportedCipherSuite};

use self::oracle::{hear, say, shake_hands};

/// Our end of an established connection, and the oracle's.
struct Pair {
    client: ClientConnection,
    rx: Rx,
    tx: Tx,
    /// Ciphertext that has arrived at our end and is not opened yet.
    sealed: Vec<u8>,
    random: Random,
    /// Keys of ours that the client asked to be renewed.
    updates: u32,
}

/// What ends the receiving direction.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed,
    Fault(Fault),
}

impl Pair {
    fn new(suite: SupportedCipherSuite, seed: u64) -> Self {
        let (client, rx, tx, sealed) = shake_hands(suite);
        Self { client, rx, tx, sealed, random: Random::new(seed), updates: 0 }
    }

    fn is_tls13(&self) -> bool {
        self.client.protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    fn noise(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.random.below(256) as u8).collect()
    }

    /// Opens whatever is whole, after `bytes` more have arrived.
    fn open(&mut self, bytes: &[u8]) -> Result<Vec<u8>, End> {
        self.sealed.extend_from_slice(bytes);
        let (mut plain_text, mut at) = (Vec::new(), 0);
        loop {
            match self.rx.open(&mut self.sealed[at..]).map_err(End::Fault)? {
                Opened::Need(len) => {
                    assert!(self.sealed.len() - at < len, "all that is needed is there");
                    self.sealed.drain(..at);
                    return Ok(plain_text);
                }
                Opened::Data { plain, end } => {
                    plain_text.extend_from_slice(&self.sealed[at..][plain]);
                    at += end;
                }
                Opened::KeyUpdate { reply, end } => {
                    self.tx.update_rx(&mut self.rx, reply).expect("TLS 1.3 has another key");
                    self.updates += u32::from(reply);
                    at += end;
                }
                Opened::Closed => return Err(End::Closed),
            }
        }
    }

    /// The client sends `len` bytes, which arrive in pieces.
    fn receive(&mut self, len: usize) {
        let data = self.noise(len);
        let sealed = say(&mut self.client, &data);
        let (mut opened, mut rest) = (Vec::new(), &sealed[..]);
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(1 + self.random.below(rest.len()));
            opened.extend(self.open(piece).expect("authentic"));
            rest = later;
        }
        assert!(opened == data, "{len} bytes from the client");
    }

    /// We send `len` bytes, appended and delivered in pieces.
    fn send(&mut self, len: usize) -> u64 {
        let data = self.noise(len);
        let protocol = Some(self.tx.protocol());
        let (mut records, mut rest) = (RecordBuf::on(Vec::new()), &data[..]);
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(1 + self.random.below(rest.len()));
            records.push(piece, protocol);
            rest = later;
        }
        let (sealed, count) = self.tx.seal(records).expect("the key is fresh");
        let cut = self.random.below(sealed.len() + 1);
        let mut heard = hear(&mut self.client, &sealed[..cut]).expect("authentic");
        heard.extend(hear(&mut self.client, &sealed[cut..]).expect("authentic"));
        assert!(heard == data, "{len} bytes to the client");
        count
    }
}

#[test]
fn data_passes_both_ways_under_every_suite() {
    for (at, suite) in oracle::suites().into_iter().enumerate() {
        let mut pair = Pair::new(suite, at as u64);
        for len in [0, 1, 100, PLAINTEXT_LEN_MAX, PLAINTEXT_LEN_MAX + 1, 65_573] {
            pair.receive(len);
            if len > 0 {
                assert_eq!(pair.send(len), len.div_ceil(PLAINTEXT_LEN_MAX) as u64, "{suite:?}");
            }
        }
        for _ in 0..60 {
            let len = 1 + pair.random.below(3000);
            if pair.random.chance(128) {
                pair.receive(len);
            } else {
                pair.send(len);
            }
            // An idle direction lets its expanded key go at any time.
            if pair.random.chance(40) {
                pair.rx.aead_mut().cool();
                pair.tx.cool();
                assert!(!pair.rx.aead_mut().is_warm() && !pair.tx.is_warm());
            }
        }
    }
}

#[test]
fn keys_are_renewed_when_the_client_renews_its_own() {
    for suite in oracle::suites() {
        let mut pair = Pair::new(suite, 7);
        if !pair.is_tls13() {
            assert!(pair.client.refresh_traffic_keys().is_err(), "TLS 1.2 has no updates");
            continue;
        }
        for round in 1..=5 {
            pair.client.refresh_traffic_keys().expect("TLS 1.3 has updates");
            pair.receive(500);
            assert_eq!(pair.updates, round);
            assert_eq!(pair.send(300), 2, "our own update goes before the data");
            assert_eq!(pair.send(300), 1, "and once only");
            pair.receive(20_000);
        }
        // Two requests before we have anything to say are worth one update.
        for _ in 0..2 {
            pair.client.refresh_traffic_keys().expect("TLS 1.3 has updates");
            pair.receive(1);
        }
        assert!(pair.updates >= 6);
        assert_eq!(pair.send(40_000), 4);
    }
}

#[test]
fn an_end_is_an_end_in_both_directions() {
    for suite in oracle::suites() {
        let mut pair = Pair::new(suite, 3);
        pair.receive(10);
        let alert = pair.tx.close_notify();
        assert!(hear(&mut pair.client, &alert).expect("authentic").is_empty());
        assert!(oracle::has_heard_the_end(&mut pair.client));
        pair.client.send_close_notify();
        let alert = say(&mut pair.client, b"");
        for byte in &alert[..alert.len() - 1] {
            assert_eq!(pair.open(&[*byte]), Ok(Vec::new()));
        }
        assert_eq!(pair.open(&alert[alert.len() - 1..]), Err(End::Closed));
    }
}

#[test]
fn a_changed_record_is_never_opened() {
    for suite in oracle::suites() {
        for at in 0..60 {
            let mut pair = Pair::new(suite, 5);
            let mut sealed = say(&mut pair.client, b"a record of the client's");
            let bit = 1 << pair.random.below(8);
            if at < sealed.len() {
                sealed[at] ^= bit;
                match pair.open(&sealed) {
                    Err(End::Fault(_)) => {}
                    // A longer length waits for bytes that the next record then spoils.
                    Ok(none) => assert!(none.is_empty() && (3..5).contains(&at), "byte {at}"),
                    Err(End::Closed) => panic!("byte {at} of {suite:?} made an end"),
                }
            }
            let mut records = RecordBuf::on(Vec::new());
            records.push(b"a record of ours", Some(pair.tx.protocol()));
            let (mut sealed, _) = pair.tx.seal(records).expect("the key is fresh");
            let at = 5 + pair.random.below(sealed.len() - 5);
            sealed[at] ^= bit;
            hear(&mut pair.client, &sealed).expect_err("the oracle notices too");
        }
    }
}

#[test]
fn a_replayed_or_missing_record_is_noticed() {
    for suite in oracle::suites() {
        let mut pair = Pair::new(suite, 9);
        let first = say(&mut pair.client, b"first");
        let second = say(&mut pair.client, b"second");
        assert_eq!(pair.open(&first).as_deref(), Ok(&b"first"[..]));
        assert_eq!(pair.open(&first), Err(End::Fault(Fault::NotAuthentic)), "replayed");
        let mut pair = Pair::new(suite, 9);
        let _ = say(&mut pair.client, b"lost");
        assert_eq!(
            pair.open(&second),
            Err(End::Fault(Fault::NotAuthentic)),
            "of another connection"
        );
        pair.sealed.clear();
        let mut pair = Pair::new(suite, 9);
        let _ = say(&mut pair.client, b"lost");
        let next = say(&mut pair.client, b"next");
        assert_eq!(pair.open(&next), Err(End::Fault(Fault::NotAuthentic)), "one is missing");
    }
}
