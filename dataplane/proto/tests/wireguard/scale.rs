//! Hubs as large as the limits allow, with stock timers, in virtual time.
//!
//! Peers are stand-ins: their messages carry a true mac1 and true indices, and nothing is encrypted,
//! for the relay could not tell. A stand-in answers what is meant for it and nothing else.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use proto::tick::Tick;
use proto::wireguard::{Effects, Index, Limits, Place, PortId, Registrations, Relay, Verdict};
use wire::drop::DropReason;
use wire::key::Key;

use crate::world::{forged_data, forged_initiation, forged_response};

/// After this a peer repeats an initiation, a little later each time (WireGuard paper, section 6.1).
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// After this it stops.
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// The initiator of a session makes a new one when it is so old.
const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// Nobody sends in a session that is so old.
const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// Rarer than the relay asks for, because each looks at all invariants here.
const TICK_INTERVAL: Duration = Duration::from_secs(5);

/// The two sides of a spoke's link.
const HUB: usize = 0;
const SPOKE: usize = 1;

/// One spoke, and what it and the hub know of each other.
struct Spoke {
    key: Key,
    place: Place,
    /// When each side began to try, and the index of its latest initiation; the hub's side first.
    tries: [Option<(Tick, u32)>; 2],
    /// When the session was made.
    session: Option<Tick>,
    /// Tries that a peer gave up, and times the session was over before the next.
    failures: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick,
    /// Of that spoke's link, that side sends an initiation if it still tries.
    Try(usize, usize),
    /// That side begins to try.
    Begin(usize, usize),
    /// The session made then is over.
    Over(usize, Tick),
    /// Somebody forges one packet after the other.
    Junk,
}

struct Star {
    relay: Relay,
    effects: Effects,
    now: Tick,
    hub: (Key, Place),
    spokes: Vec<Spoke>,
    events: BinaryHeap<Reverse<(Tick, Event)>>,
    next_index: u32,
    /// Whose initiation, and on which side, carried an index.
    meaning: HashMap<u32, (usize, usize)>,
    junk: Option<(Place, Duration)>,
    /// When the last spoke had its first session.
    complete: Option<Tick>,
    /// The most keys that one message cost.
    tried_max: usize,
}

fn number(number: usize) -> Key {
    let mut key = [0x77; 32];
    // Scattered, so that the order of keys says nothing.
    let scattered = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    key[..8].copy_from_slice(&scattered.to_be_bytes());
    Key(key)
}

fn home(number: usize) -> Place {
    let ip = [10, 7, (number >> 8) as u8, number as u8];
    Place::new(PortId(0), (ip, 51820).into())
}

impl Star {
    fn new(spokes: usize) -> Self {
        let limits = Limits::DEFAULT;
        let spokes: Vec<_> = (1..=spokes)
            .map(|at| Spoke {
                key: number(at),
                place: home(at),
                tries: [None; 2],
                session: None,
                failures: 0,
            })
            .collect();
        let mut star = Self {
            relay: Relay::new(limits),
            effects: Effects::default(),
            now: Tick(1_000_000_000),
            hub: (number(0), home(0)),
            spokes,
            events: BinaryHeap::new(),
            next_index: 0,
            meaning: HashMap::new(),
            junk: None,
            complete: None,
            tried_max: 0,
        };
        let hub = star.hub.0;
        let keys = star.spokes.iter().map(|spoke| spoke.key);
        let links = star.spokes.iter().map(|spoke| [hub, spoke.key]);
        let made = Registrations::new(keys.chain([hub]), links, &limits).expect("within limits");
        star.relay.register(&made, star.now, &mut star.effects);
        star.at(Duration::ZERO, Event::Tick);
        star
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.events.push(Reverse((self.now.plus(after), event)));
    }

    /// All peers have something to say within the first 5 s, in an order of no meaning.
    fn start(&mut self, sides: &[usize]) {
        let count = self.spokes.len();
        for at in 0..count {
            for side in sides {
                let slot = (at * 2 + side) * 7919 % (count * 2);
                let after = REKEY_TIMEOUT.mul_f64(slot as f64 / (count * 2) as f64);
                self.at(after, Event::Begin(at, *side));
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now.plus(time);
        while let Some(Reverse((when, event))) = self.events.peek().copied()
            && when <= end
        {
            self.events.pop();
            self.now = when;
            self.happen(event);
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick => {
                self.relay.tick(self.now, &mut self.effects);
                self.at(TICK_INTERVAL, Event::Tick);
            }
            Event::Begin(at, side) => {
                if self.spokes[at].tries[side].is_none() {
                    self.spokes[at].tries[side] = Some((self.now, 0));
                    self.happen(Event::Try(at, side));
                }
            }
            Event::Try(at, side) => self.try_again(at, side),
            Event::Over(at, made) => {
                if self.spokes[at].session == Some(made) {
                    self.spokes[at].session = None;
                    self.spokes[at].failures += 1;
                    self.happen(Event::Begin(at, SPOKE));
                }
            }
            Event::Junk => {
                let Some((from, pause)) = self.junk else { return };
                self.next_index += 1;
                let junk = forged_initiation(&Key([9; 32]), self.next_index);
                self.send(from, &junk);
                self.at(pause, Event::Junk);
            }
        }
    }

    fn try_again(&mut self, at: usize, side: usize) {
        let Some((begun, _)) = self.spokes[at].tries[side] else { return };
        if self.now.saturating_since(begun) >= REKEY_ATTEMPT_TIME {
            self.spokes[at].tries[side] = None;
            self.spokes[at].failures += 1;
            return;
        }
        self.next_index += 1;
        let index = self.next_index;
        self.spokes[at].tries[side] = Some((begun, index));
        self.meaning.insert(index, (at, side));
        let jitter = Duration::from_millis(u64::from(index) * 7919 % 334);
        self.at(REKEY_TIMEOUT + jitter, Event::Try(at, side));
        let (from, to) = self.ends(at, side);
        self.send(from.1, &forged_initiation(&to.0, index));
    }

    /// Key and place of that side of a link, and of the other.
    fn ends(&self, at: usize, side: usize) -> ((Key, Place), (Key, Place)) {
        let spoke = (self.spokes[at].key, self.spokes[at].place);
        if side == HUB { (self.hub, spoke) } else { (spoke, self.hub) }
    }

    /// Sends to the relay and lets those react whom it passes that on to.
    fn send(&mut self, from: Place, datagram: &[u8]) -> Verdict {
        let verdict = self.relay.step(datagram, from, self.now, &mut self.effects);
        self.tried_max = self.tried_max.max(self.effects.tried);
        for place in self.effects.copies.clone() {
            self.receive(place, datagram);
        }
        verdict
    }

    fn receive(&mut self, place: Place, datagram: &[u8]) {
        let field = |at: usize| {
            u32::from_le_bytes(*datagram[at..].first_chunk().expect("the relay checks lengths"))
        };
        match datagram[0] {
            1 => {
                let Some((at, side)) = self.meaning.get(&field(4)).copied() else { return };
                let (initiator, addressee) = self.ends(at, side);
                if addressee.1 == place {
                    self.next_index += 1;
                    let response = forged_response(&initiator.0, self.next_index, Index(field(4)));
                    self.send(place, &response);
                }
            }
            2 => {
                let Some((at, side)) = self.meaning.get(&field(8)).copied() else { return };
                let tried = self.spokes[at].tries[side].map(|(_, index)| index);
                if self.ends(at, side).0.1 != place || tried != Some(field(8)) {
                    return;
                }
                if self.send(place, &forged_data(field(4))) == Verdict::Sent {
                    self.establish(at, side);
                }
            }
            _ => {}
        }
    }

    fn establish(&mut self, at: usize, initiator: usize) {
        let spoke = &mut self.spokes[at];
        spoke.tries = [None; 2];
        spoke.session = Some(self.now);
        self.at(REKEY_AFTER_TIME, Event::Begin(at, initiator));
        self.at(REJECT_AFTER_TIME, Event::Over(at, self.now));
        if self.complete.is_none() && self.spokes.iter().all(|spoke| spoke.session.is_some()) {
            self.complete = Some(self.now);
        }
    }

    fn failures(&self) -> usize {
        self.spokes.iter().map(|spoke| spoke.failures).sum()
    }

    /// Every spoke has a session, and had one ever since the first.
    #[track_caller]
    fn assert_never_stalled(&self) {
        assert_eq!(self.failures(), 0);
        assert!(self.spokes.iter().all(|spoke| spoke.session.is_some()));
    }
}

#[test]
fn a_hub_of_the_largest_size_starts_cold_and_rekeys_within_its_peers_timers() {
    let limits = Limits::DEFAULT;
    let mut star = Star::new(limits.peers_max.min(limits.links_max) - 1);
    let start = star.now;
    star.start(&[SPOKE, HUB]);
    star.run(REKEY_ATTEMPT_TIME);
    let complete = star.complete.expect("nobody has given up yet");
    assert!(complete.saturating_since(start) < Duration::from_secs(45), "{complete:?}");
    star.run(REKEY_AFTER_TIME + REKEY_AFTER_TIME / 2);
    star.assert_never_stalled();
}

#[test]
fn spokes_alone_start_a_hub_that_only_answers() {
    let mut star = Star::new(1000);
    star.start(&[SPOKE]);
    star.run(Duration::from_secs(4));
    // The hub has something to say to one of them, and is found.
    star.happen(Event::Begin(500, HUB));
    star.run(Duration::from_secs(12));
    assert!(star.complete.is_some());
    star.run(REKEY_AFTER_TIME * 2);
    star.assert_never_stalled();
}

/// A hub with all its sessions, and then junk that has its address.
fn hub_under_junk(initiators: usize, per_second: u32) -> Star {
    let mut star = Star::new(200);
    star.start(&[SPOKE]);
    star.run(Duration::from_secs(1));
    star.happen(Event::Begin(0, HUB));
    star.run(Duration::from_secs(20));
    assert!(star.complete.is_some());
    if initiators == HUB {
        for at in 0..200 {
            star.at(Duration::from_millis(at as u64 * 40), Event::Begin(at, HUB));
        }
        star.run(Duration::from_secs(20));
        // From now on it is the hub that rekeys.
        star.events.retain(|Reverse((_, event))| !matches!(event, Event::Begin(_, SPOKE)));
    }
    star.assert_never_stalled();
    star.junk = Some((star.hub.1, Duration::from_secs(1) / per_second));
    star.happen(Event::Junk);
    star
}

#[test]
fn junk_that_has_a_hubs_address_does_not_stop_its_spokes_from_rekeying() {
    let mut star = hub_under_junk(SPOKE, 1000);
    star.run(REKEY_AFTER_TIME * 2);
    star.assert_never_stalled();
}

#[test]
fn nor_the_hub_itself() {
    let mut star = hub_under_junk(HUB, 1000);
    star.run(REKEY_AFTER_TIME * 2);
    star.assert_never_stalled();
}

#[test]
fn junk_from_strangers_does_not_either_nor_keep_newcomers_from_a_hub() {
    let mut star = Star::new(200);
    star.start(&[SPOKE]);
    star.run(Duration::from_secs(1));
    star.happen(Event::Begin(0, HUB));
    star.run(Duration::from_secs(20));
    star.junk = Some((home(5000), Duration::from_millis(1)));
    star.happen(Event::Junk);
    star.run(REKEY_AFTER_TIME * 2);
    star.assert_never_stalled();
    // A spoke that roams is found.
    star.spokes[7].place = home(6000);
    star.happen(Event::Begin(7, SPOKE));
    assert_eq!(star.spokes[7].session, Some(star.now));
}

#[test]
fn what_one_moment_costs_is_bounded_whoever_floods() {
    let mut star = Star::new(2000);
    star.start(&[SPOKE]);
    star.run(Duration::from_secs(1));
    star.happen(Event::Begin(0, HUB));
    star.run(Duration::from_secs(40));
    assert!(star.complete.is_some());
    let (mut tried, mut spent) = (0, 0);
    let places = 2000;
    for sender in 0..places {
        // From the hub, from each spoke, from as many strangers.
        for from in [star.hub.1, home(1 + sender), home(10_000 + sender)] {
            let junk = forged_initiation(&Key([9; 32]), sender as u32);
            let verdict = star.relay.step(&junk, from, star.now, &mut star.effects);
            tried += star.effects.tried;
            spent += usize::from(verdict == Verdict::Drop(DropReason::TrialsSpent));
        }
    }
    // Two bursts, and for each packet what is free at home and what is free of all.
    let bound = 2 * Limits::DEFAULT.trials.burst as usize + 3 * places * 8;
    assert!(tried <= bound, "{tried} of {bound}");
    assert!(spent > places);
}

#[test]
fn an_answer_to_a_known_place_costs_one_key() {
    let mut star = Star::new(500);
    star.start(&[SPOKE]);
    star.run(Duration::from_secs(1));
    star.happen(Event::Begin(0, HUB));
    star.run(Duration::from_secs(20));
    assert!(star.complete.is_some());
    star.run(REKEY_AFTER_TIME);
    star.tried_max = 0;
    star.run(Duration::from_secs(60));
    star.assert_never_stalled();
    assert!(star.tried_max <= 1, "{}", star.tried_max);
}
