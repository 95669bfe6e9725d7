//! The WireGuard relay under anything that can reach it, from places that forge one another.

use std::net::SocketAddr;
use std::time::Duration;

use proto::tick::Tick;
use proto::wireguard::{
    Effects, Flows, Limits, Place, PortId, Registrations, Relay, Verdict, mac1,
};
use wire::key::{KEY_LEN, Key};
use wire::wireguard::{
    COOKIE_LEN, DATA_LEN_MIN, INITIATION_COVERED_LEN, INITIATION_LEN, MAC_LEN,
    RESPONSE_COVERED_LEN, RESPONSE_LEN,
};

/// Tight, so that short inputs reach them.
const LIMITS: Limits = Limits {
    peers_max: 3,
    links_max: 2,
    askers_per_peer_max: 3,
    handshakes_max: 4,
    sessions_per_link_max: 2,
    strikes_max: 4,
    ..Limits::DEFAULT
};

/// What is done, one byte each with its arguments: 0 to 3 as messages of that kind less one, then
/// raw bytes, a pause, a reload.
pub(super) fn run(data: &[u8]) {
    let mut data = data.iter().copied();
    let mut world = World {
        relay: Relay::new(LIMITS),
        flows: Flows::new(&LIMITS),
        effects: Effects::default(),
        now: Tick::ZERO,
        bytes_in: 0,
        bytes_out: 0,
    };
    world.register(0b11);
    while world.act(&mut data).is_some() {}
}

struct World {
    relay: Relay,
    flows: Flows,
    effects: Effects,
    now: Tick,
    bytes_in: usize,
    bytes_out: usize,
}

impl World {
    fn act(&mut self, data: &mut impl Iterator<Item = u8>) -> Option<()> {
        let mut next = || data.next();
        match next()? % 7 {
            0 => {
                let (from, to, sender) = (next()?, next()?, next()?);
                let mut message = message::<INITIATION_LEN>(1, [sender, 0]);
                sign(&mut message, INITIATION_COVERED_LEN, to);
                self.receive(from, &message);
            }
            1 => {
                let (from, to, sender, receiver) = (next()?, next()?, next()?, next()?);
                let mut message = message::<RESPONSE_LEN>(2, [sender, receiver]);
                sign(&mut message, RESPONSE_COVERED_LEN, to);
                self.receive(from, &message);
            }
            2 => self.receive(next()?, &message::<COOKIE_LEN>(3, [next()?, 0])),
            3 => self.receive(next()?, &message::<DATA_LEN_MIN>(4, [next()?, 0])),
            4 => {
                let (from, len) = (next()?, next()?);
                let bytes: Vec<u8> = std::iter::from_fn(next).take(len.into()).collect();
                self.receive(from, &bytes);
            }
            5 => {
                self.now = self.now.plus(Duration::from_secs(next()?.into()));
                self.relay.tick(self.now, &mut self.effects);
                self.follow();
            }
            _ => self.register(next()?),
        }
        Some(())
    }

    /// The bits of `links` say which of the two there are.
    fn register(&mut self, links: u8) {
        let both = [[key(0), key(1)], [key(0), key(2)]];
        let links = (0..2).filter(|link| links >> link & 1 == 1).map(|link| both[link]);
        let made = Registrations::new((0..3).map(key), links, &LIMITS).expect("valid");
        self.relay.register(&made, self.now, &mut self.effects);
        self.follow();
    }

    fn receive(&mut self, from: u8, datagram: &[u8]) {
        self.bytes_in += datagram.len();
        let from = place(from);
        let copies = match self.flows.forward(datagram, from) {
            Some(_) => 1,
            None => match self.relay.step(datagram, from, self.now, &mut self.effects) {
                Verdict::Sent => self.effects.copies.len(),
                Verdict::Drop(_) => 0,
            },
        };
        self.bytes_out += copies * datagram.len();
        assert!(self.bytes_out <= self.bytes_in, "more bytes left than came");
        self.follow();
    }

    fn follow(&mut self) {
        for change in self.effects.flows.drain(..) {
            self.flows.apply(&change);
        }
        self.relay.check();
        let sessions: usize = self.relay.links().map(|link| link.sessions).sum();
        assert_eq!(self.flows.len(), 2 * sessions);
    }
}

/// The first three are registered.
fn key(number: u8) -> Key {
    Key([number % 4 + 1; KEY_LEN])
}

fn place(number: u8) -> Place {
    let remote = match number % 8 {
        7 => SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7], 7)),
        n => SocketAddr::from(([192, 0, 2 + n / 4, n], u16::from(n))),
    };
    Place::new(PortId(number / 8 % 2), remote)
}

/// A message with its first two numbers after the kind.
fn message<const N: usize>(kind: u8, [first, second]: [u8; 2]) -> [u8; N] {
    let mut bytes = [0; N];
    (bytes[0], bytes[4], bytes[8]) = (kind, first, second);
    bytes
}

fn sign(message: &mut [u8], covered: usize, reader: u8) {
    let mac = mac1(&key(reader), &message[..covered]);
    message[covered..covered + MAC_LEN].copy_from_slice(&mac);
}
