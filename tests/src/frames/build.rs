//! Frames from parts, and random ones that are right or nearly so.
//!
//! Owns the layout of a frame as somebody would write it who has never seen the fast path: bytes
//! appended to a vector, checksums added up byte by byte.

use std::net::{IpAddr, SocketAddr};

use wire::stun::{TxId, request};

use super::table::{LOCALS, PEERS, PORT, PORT_2, receiver};

/// What stands in a UDP checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// What belongs there.
    Right,
    /// Nothing.
    Zero,
    /// The pseudo header's sum, as for a network card to finish.
    Partial,
    /// Something else.
    Wrong,
}

/// The parts of a UDP datagram in Ethernet.
#[derive(Clone, Debug)]
pub struct Datagram<'a> {
    /// Destination and source station.
    pub stations: [u8; 12],
    /// 802.1Q tag.
    pub tag: Option<u16>,
    /// Type of service or traffic class.
    pub class: u8,
    /// Identification (IPv4) or flow label.
    pub id: u16,
    /// IPv4's "do not fragment".
    pub whole: bool,
    /// Time to live or hop limit.
    pub hops: u8,
    /// From where.
    pub source: SocketAddr,
    /// To where, of the same family.
    pub target: SocketAddr,
    /// Its payload.
    pub payload: &'a [u8],
    /// Its checksum.
    pub sum: Sum,
}

impl<'a> Datagram<'a> {
    /// A datagram like any other.
    ///
    /// # Panics
    /// If `source` or `target` is no address with a port.
    #[must_use]
    pub fn new(source: &str, target: &str, payload: &'a [u8]) -> Self {
        Self {
            stations: [2, 0, 0, 0, 0, 0xaa, 2, 0, 0, 0, 0, 0xbb],
            tag: None,
            class: 0,
            id: 1,
            whole: false,
            hops: 55,
            source: source.parse().expect("an address"),
            target: target.parse().expect("an address"),
            payload,
            sum: Sum::Right,
        }
    }

    /// The frame.
    ///
    /// # Panics
    /// If the families differ.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut frame = self.stations.to_vec();
        if let Some(tag) = self.tag {
            frame.extend([0x81, 0]);
            frame.extend(tag.to_be_bytes());
        }
        let udp = self.udp();
        let len = (udp.len() as u16).to_be_bytes();
        let [id_high, id_low] = self.id.to_be_bytes();
        match (self.source.ip(), self.target.ip()) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let total = (udp.len() as u16 + 20).to_be_bytes();
                let mut ip = vec![0x45, self.class, total[0], total[1], id_high, id_low];
                ip.extend([if self.whole { 0x40 } else { 0 }, 0, self.hops, 17, 0, 0]);
                ip.extend(source.octets());
                ip.extend(target.octets());
                let sum = !ones(&ip);
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend([0x08, 0x00]);
                frame.extend(ip);
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                frame.extend([0x86, 0xdd]);
                frame.extend([0x60 | self.class >> 4, self.class << 4, id_high, id_low]);
                frame.extend([len[0], len[1], 17, self.hops]);
                frame.extend(source.octets());
                frame.extend(target.octets());
            }
            (source, target) => panic!("{source} and {target} differ in family"),
        }
        frame.extend(udp);
        frame
    }

    fn udp(&self) -> Vec<u8> {
        let len = (self.payload.len() as u16 + 8).to_be_bytes();
        let mut pseudo = Vec::new();
        for ip in [self.source.ip(), self.target.ip()] {
            match ip {
                IpAddr::V4(ip) => pseudo.extend(ip.octets()),
                IpAddr::V6(ip) => pseudo.extend(ip.octets()),
            }
        }
        pseudo.extend([0, 17, len[0], len[1]]);
        let partial = ones(&pseudo);
        let mut udp = self.source.port().to_be_bytes().to_vec();
        udp.extend(self.target.port().to_be_bytes());
        udp.extend(len);
        udp.extend([0, 0]);
        udp.extend(self.payload);
        pseudo.extend(&udp);
        let right = match !ones(&pseudo) {
            0 => 0xffff,
            sum => sum,
        };
        let sum = match self.sum {
            Sum::Right => right,
            Sum::Zero => 0,
            Sum::Partial => partial,
            Sum::Wrong => right ^ 0x0101,
        };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        udp
    }
}

/// The one's complement sum of `bytes` as big-endian words.
#[must_use]
pub(super) fn ones(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0, |sum: u16, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

/// Random numbers that a seed repeats (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let a = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let b = (a ^ a >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        b ^ b >> 31
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.roll() % end as u64) as usize
    }

    /// One time in `n`.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn fill(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.roll() as u8).collect()
    }
}

/// A random frame: mostly for the relay, mostly of a kind that it knows, a third of them damaged.
///
/// # Panics
/// Never: its addresses are addresses.
#[must_use]
pub fn frame(dice: &mut Dice) -> Vec<u8> {
    let peer = dice.below(PEERS.len());
    let mut source: SocketAddr = PEERS[peer].parse().expect("an address");
    if dice.once_in(12) {
        source.set_port(dice.roll() as u16);
    }
    if dice.once_in(20) {
        let odd: &[&str] = if source.is_ipv4() {
            &["0.0.0.1", "127.0.0.1", "224.0.0.1", "255.255.255.255", LOCALS[0], "126.0.0.1"]
        } else {
            &["::", "::1", "ff02::1", "::ffff:192.0.2.9", LOCALS[2], "::2", "fe80::1"]
        };
        source.set_ip(dice.pick(odd).parse().expect("an address"));
    }
    let locals = if source.is_ipv4() { &LOCALS[..2] } else { &LOCALS[2..] };
    let mut ip: IpAddr =
        locals[if dice.once_in(8) { locals.len() - 1 } else { 0 }].parse().expect("an address");
    if dice.once_in(12) {
        ip = if ip.is_ipv4() {
            [192, 0, 2, 77].into()
        } else {
            [0x2001, 0, 0, 0, 0, 0, 0, 7].into()
        };
    }
    let port = if dice.once_in(12) { dice.pick(&[53, 0, 3479]) } else { PORT };
    let port = if dice.once_in(12) { PORT_2 } else { port };
    let mut stations = [2, 0, 0, 0, 0, 0xaa, 2, 0, 0, 0, 0, 0xbb];
    stations[11] = dice.roll() as u8;
    if dice.once_in(30) {
        stations[0] = 0xff;
    }
    let payload = payload(dice, peer);
    let built = Datagram {
        stations,
        tag: dice.once_in(4).then(|| dice.roll() as u16),
        class: dice.roll() as u8,
        id: dice.roll() as u16,
        whole: dice.once_in(2),
        hops: dice.roll() as u8,
        source,
        target: SocketAddr::new(ip, port),
        payload: &payload,
        sum: dice.pick(&[Sum::Right, Sum::Right, Sum::Right, Sum::Zero, Sum::Partial, Sum::Wrong]),
    };
    let mut frame = built.build();
    if dice.once_in(3) {
        damage(&mut frame, dice);
    }
    frame
}

/// Random datagrams of WireGuard data for the relay, merged as the kernel does, and how many bytes of
/// payload each has but the last. Some are not all of one flow, some too many.
///
/// # Panics
/// Never: its addresses are addresses.
#[must_use]
pub fn merged(dice: &mut Dice) -> (Vec<u8>, usize) {
    let peer = dice.below(PEERS.len());
    let source: SocketAddr = PEERS[peer].parse().expect("an address");
    let local = if source.is_ipv4() { LOCALS[0] } else { LOCALS[2] };
    let each = dice.pick(&[24, 32, 48, 50]);
    let count = dice.pick(&[1, 2, 3, 40, 63, 64, 65]);
    let to = dice.below(PEERS.len());
    let mut payload = Vec::new();
    for number in 0..count {
        let last = number + 1 == count;
        let len = if last { dice.pick(&[each, each, 32.min(each), 31.min(each)]) } else { each };
        let to = if dice.once_in(100) { to + 1 } else { to };
        payload.extend([4, 0, 0, 0]);
        payload.extend(receiver(peer, to).to_le_bytes());
        payload.extend(dice.fill(len - 8));
    }
    let datagram = Datagram {
        stations: [2, 0, 0, 0, 0, 0xaa, 2, 0, 0, 0, 0, 0xbb],
        tag: None,
        class: dice.roll() as u8,
        id: dice.roll() as u16,
        whole: dice.once_in(2),
        hops: dice.roll() as u8,
        source,
        target: SocketAddr::new(local.parse().expect("an address"), PORT),
        payload: &payload,
        sum: dice.pick(&[Sum::Right, Sum::Partial]),
    };
    (datagram.build(), each)
}

fn payload(dice: &mut Dice, peer: usize) -> Vec<u8> {
    let mut txid = [0; 12];
    txid.copy_from_slice(&dice.fill(12));
    let stock = request(TxId(txid));
    match dice.below(12) {
        0..=2 => stock.to_vec(),
        3 => message(&txid, &[]),
        4 => sealed(&txid),
        5 => dice
            .pick(&[
                message(&txid, &[0x80, 0x22, 0, 4, b'a', b'b', b'c', b'd']).as_slice(),
                &message(&txid, &[0, 3, 0, 4, 0, 0, 0, 6]),
                &message(&txid, &[0x80, 0x28, 0, 4, 1, 2, 3, 4]),
                &stock[..32],
            ])
            .to_vec(),
        6 => {
            let mut odd = stock.to_vec();
            let at = dice.below(odd.len());
            odd[at] ^= 1 << dice.below(8);
            odd
        }
        7 => {
            let (kind, len) = dice.pick(&[(1, 148), (2, 92), (3, 64), (5, 32), (0, 60)]);
            let mut handshake = dice.fill(len);
            handshake[..4].copy_from_slice(&[kind, 0, 0, 0]);
            handshake
        }
        8 => {
            let len = dice.below(100);
            dice.fill(len)
        }
        _ => {
            let len = dice.pick(&[32, 32, 48, 128, 1400, 24, 31, 33, 1001]);
            let mut data = dice.fill(len);
            let to = dice.below(PEERS.len() + 1);
            data[..4].copy_from_slice(&[4, 0, 0, u8::from(dice.once_in(30))]);
            data[4..8].copy_from_slice(&receiver(peer, to).to_le_bytes());
            data
        }
    }
}

/// A binding request with `attributes`.
fn message(txid: &[u8; 12], attributes: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 1, 0, attributes.len() as u8];
    out.extend(wire::stun::COOKIE);
    out.extend(txid);
    out.extend(attributes);
    out
}

/// A binding request with a FINGERPRINT alone.
fn sealed(txid: &[u8; 12]) -> Vec<u8> {
    let mut out = message(txid, &[0x80, 0x28, 0, 4, 0, 0, 0, 0]);
    let mut crc = !0_u32;
    for byte in &out[..20] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0xedb8_8320 };
        }
    }
    out[24..].copy_from_slice(&(!crc ^ 0x5354_554e).to_be_bytes());
    out
}

fn damage(frame: &mut Vec<u8>, dice: &mut Dice) {
    match dice.below(6) {
        0 => frame.truncate(dice.below(frame.len() + 1)),
        1 => {
            let len = dice.below(40);
            frame.extend(dice.fill(len));
        }
        2 => {
            let at = dice.below(frame.len());
            frame[at] = dice.roll() as u8;
        }
        // Somewhere in the headers, one bit.
        _ => {
            let at = dice.below(frame.len().min(70));
            frame[at] ^= 1 << dice.below(8);
        }
    }
}
