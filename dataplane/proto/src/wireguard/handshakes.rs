//! Handshakes that have begun and are not complete.
//!
//! Owns what ties a response to the initiation it answers, and the first data packet to the
//! response. A response counts only from a place that the initiation was sent to; nobody else can
//! know its index.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use super::roster::PeerId;
use super::{FAN_OUT_MAX, FlowKey, Index, Place};
use crate::tick::Tick;

/// How long an initiation waits for the first data packet. A stock initiator gives up on it after
/// REKEY_TIMEOUT, 5 s, and begins another (WireGuard paper, section 6.4).
pub(super) const HANDSHAKE_LIFE: Duration = Duration::from_secs(15);
/// Handshakes looked at that share a place and an index. More than one is a collision or malice.
const SHARED_MAX: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HandshakeId(u64);

/// A response that was passed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    /// Where it came from, and what the responder receives with.
    pub(super) from: Place,
    pub(super) index: Index,
    /// Whom the response is for, by its mac1.
    pub(super) initiator: PeerId,
}

#[derive(Clone, Debug)]
pub(super) struct Handshake {
    /// Where the initiation came from, and what the initiator receives with.
    pub(super) origin: FlowKey,
    /// For whom it is, by its mac1.
    pub(super) to: PeerId,
    /// Where it was sent, at most [`FAN_OUT_MAX`].
    copies: Vec<Place>,
    /// At most one from each of `copies`.
    answers: Vec<Answer>,
    /// Whether it came from the endpoint of a peer that may send it. Others make room first.
    known: bool,
    expires: Tick,
}

#[derive(Debug, Default)]
pub(super) struct Handshakes {
    /// In the order of their beginning and thus of their expiry.
    all: BTreeMap<HandshakeId, Handshake>,
    /// Those of `all` that are not `known`.
    strangers: BTreeSet<HandshakeId>,
    /// Those of `all` that are `known`, by where they came from.
    by_place: BTreeSet<(Place, HandshakeId)>,
    /// How many each place has in `by_place`, none of them zero; and the same the other way round.
    counts: BTreeMap<Place, usize>,
    crowds: BTreeSet<(usize, Place)>,
    by_origin: BTreeMap<(FlowKey, PeerId), HandshakeId>,
    /// By what a response will carry and where from: each copy of each handshake.
    by_copy: BTreeSet<(FlowKey, HandshakeId)>,
    /// By what the first data packet will carry and where from. Some answer of that handshake.
    by_answer: BTreeMap<FlowKey, HandshakeId>,
    next: u64,
    /// Handshakes that made room for newer ones.
    pub(super) evicted: u64,
}

impl Handshakes {
    /// Notes an initiation that is being sent to `copies`. The same one again, as networks and
    /// replays make it, adds its copies to the first.
    pub(super) fn begin(
        &mut self,
        (origin, to): (FlowKey, PeerId),
        copies: &[Place],
        known: bool,
        now: Tick,
        max: usize,
    ) {
        let id = match self.by_origin.get(&(origin, to)) {
            Some(id) => *id,
            None => {
                while self.all.len() >= max.max(1) {
                    self.evict();
                }
                self.insert(origin, to, known, now)
            }
        };
        let Some(handshake) = self.all.get_mut(&id) else { return };
        for &place in copies {
            if handshake.copies.len() < FAN_OUT_MAX && !handshake.copies.contains(&place) {
                handshake.copies.push(place);
                self.by_copy.insert((FlowKey { from: place, receiver: origin.receiver }, id));
            }
        }
    }

    fn insert(&mut self, origin: FlowKey, to: PeerId, known: bool, now: Tick) -> HandshakeId {
        let id = HandshakeId(self.next);
        self.next += 1;
        let expires = now.plus(HANDSHAKE_LIFE);
        let (copies, answers) = (Vec::new(), Vec::new());
        self.all.insert(id, Handshake { origin, to, copies, answers, known, expires });
        self.by_origin.insert((origin, to), id);
        if known {
            self.by_place.insert((origin.from, id));
            self.recount(origin.from, |count| count + 1);
        } else {
            self.strangers.insert(id);
        }
        id
    }

    /// Handshakes that were sent to `key.from` and want answers to `key.receiver`, oldest first: a
    /// copycat's comes after the one it copies.
    pub(super) fn sent_to(&self, key: FlowKey) -> impl Iterator<Item = (HandshakeId, &Handshake)> {
        let range = (key, HandshakeId(0))..=(key, HandshakeId(u64::MAX));
        let ids = self.by_copy.range(range).take(SHARED_MAX);
        ids.filter_map(|(_, id)| Some((*id, self.all.get(id)?)))
    }

    /// Notes a response that is being passed on. `settled` says whether it comes from the
    /// addressee's endpoint; such an answer keeps its key against others. False if another response
    /// came from the same place before.
    pub(super) fn answer(
        &mut self,
        id: HandshakeId,
        answer: Answer,
        settled: impl Fn(&Handshake, Place) -> bool,
    ) -> bool {
        let Some(handshake) = self.all.get(&id) else { return false };
        if let Some(before) = handshake.answers.iter().find(|it| it.from == answer.from) {
            return before.index == answer.index && before.initiator == answer.initiator;
        }
        let key = FlowKey { from: handshake.origin.from, receiver: answer.index };
        let holder = self.by_answer.get(&key).and_then(|holder| self.all.get(holder));
        let holds =
            holder.is_some_and(|it| it.answer_at(key).is_some_and(|held| settled(it, held.from)));
        if !holds || settled(handshake, answer.from) {
            self.by_answer.insert(key, id);
        }
        if let Some(handshake) = self.all.get_mut(&id) {
            debug_assert!(handshake.copies.contains(&answer.from));
            // Two places that chose the same index: the one that holds the key comes first.
            match handshake.answers.iter().position(|it| it.index == answer.index) {
                Some(at) if !holds => handshake.answers.insert(at, answer),
                Some(_) | None => handshake.answers.push(answer),
            }
        }
        true
    }

    /// The handshake, and the answer to it, that a packet with `key` completes.
    pub(super) fn answered(&self, key: &FlowKey) -> Option<(HandshakeId, &Handshake, Answer)> {
        let id = *self.by_answer.get(key)?;
        let handshake = self.all.get(&id)?;
        Some((id, handshake, handshake.answer_at(*key)?))
    }

    pub(super) fn remove(&mut self, id: HandshakeId) {
        let Some(handshake) = self.all.remove(&id) else { return };
        if !self.strangers.remove(&id) {
            self.by_place.remove(&(handshake.origin.from, id));
            self.recount(handshake.origin.from, |count| count.saturating_sub(1));
        }
        self.by_origin.remove(&(handshake.origin, handshake.to));
        for from in handshake.copies {
            self.by_copy.remove(&(FlowKey { from, receiver: handshake.origin.receiver }, id));
        }
        for answer in handshake.answers {
            let key = FlowKey { from: handshake.origin.from, receiver: answer.index };
            if self.by_answer.get(&key) == Some(&id) {
                self.by_answer.remove(&key);
            }
        }
    }

    /// Makes room: the oldest from somewhere unknown, else the oldest of the place that has most. So
    /// whoever floods pushes out his own.
    fn evict(&mut self) {
        let crowd = self.crowds.last().map(|(_, place)| *place);
        let of_crowd = crowd.and_then(|place| {
            self.by_place.range((place, HandshakeId(0))..).next().map(|(_, id)| *id)
        });
        if let Some(id) = self.strangers.first().copied().or(of_crowd) {
            self.remove(id);
            self.evicted += 1;
        }
    }

    /// Changes how many handshakes from `place` there are in `by_place`.
    fn recount(&mut self, place: Place, change: impl FnOnce(usize) -> usize) {
        let before = self.counts.get(&place).copied().unwrap_or(0);
        let count = change(before);
        self.crowds.remove(&(before, place));
        if count == 0 {
            self.counts.remove(&place);
        } else {
            self.counts.insert(place, count);
            self.crowds.insert((count, place));
        }
    }

    pub(super) fn expire(&mut self, now: Tick) {
        while let Some((&id, handshake)) = self.all.first_key_value()
            && handshake.expires <= now
        {
            self.remove(id);
        }
    }

    /// Removes every handshake with one of `peers`.
    pub(super) fn remove_peers(&mut self, peers: &BTreeSet<PeerId>) {
        let involved = |it: &Handshake| {
            peers.contains(&it.to) || it.answers.iter().any(|it| peers.contains(&it.initiator))
        };
        let gone = self.all.iter().filter(|(_, it)| involved(it)).map(|(id, _)| *id);
        for id in gone.collect::<Vec<_>>() {
            self.remove(id);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn check(&self, max: usize, peer_exists: impl Fn(PeerId) -> bool) {
        assert!(self.all.len() <= max && self.by_origin.len() == self.all.len());
        let copies: usize = self.all.values().map(|it| it.copies.len()).sum();
        assert_eq!(self.by_copy.len(), copies);
        let mut last = Tick::ZERO;
        for (id, it) in &self.all {
            assert!(last <= it.expires, "expiry follows the beginning");
            last = it.expires;
            assert_eq!(self.by_origin.get(&(it.origin, it.to)), Some(id));
            assert_eq!(self.strangers.contains(id), !it.known);
            assert_eq!(self.by_place.contains(&(it.origin.from, *id)), it.known);
            assert!(peer_exists(it.to) && it.answers.iter().all(|it| peer_exists(it.initiator)));
            assert!(it.copies.len() <= FAN_OUT_MAX && it.answers.len() <= it.copies.len());
            assert!(!it.copies.contains(&it.origin.from), "nobody is sent its own initiation");
            assert!(it.answers.iter().all(|answer| it.copies.contains(&answer.from)));
        }
        for (key, id) in &self.by_answer {
            let handshake = self.all.get(id).expect("entries go with their handshake");
            assert!(handshake.answer_at(*key).is_some());
        }
        assert_eq!(self.strangers.len() + self.by_place.len(), self.all.len());
        assert_eq!(self.counts.values().sum::<usize>(), self.by_place.len());
        let crowds: BTreeSet<_> =
            self.counts.iter().map(|(place, count)| (*count, *place)).collect();
        assert_eq!(self.crowds, crowds);
    }
}

impl Handshake {
    /// The answer that gives packets with `key` their meaning.
    fn answer_at(&self, key: FlowKey) -> Option<Answer> {
        debug_assert_eq!(key.from, self.origin.from);
        self.answers.iter().find(|it| it.index == key.receiver).copied()
    }
}
