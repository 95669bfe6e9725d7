//! Completed sessions: the truth behind the data table.
//!
//! Owns every flow that exists. Two flows make a session, one for each direction, and they come and
//! go together. A session needs no feedback from the data path: both peers refuse its keys 180
//! seconds after they were made, however busy it is, so its end is known from the start.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use super::roster::PeerId;
use super::{FlowChange, FlowKey, FlowTarget, LinkId, Place};
use crate::tick::Tick;

/// How long a session is relayed: REJECT_AFTER_TIME, 180 s (WireGuard paper, section 6.1), counted
/// from its completion, and some seconds for timers that are rounded.
pub(super) const SESSION_LIFE: Duration = Duration::from_secs(190);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PairId(u64);

/// A session of two peers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) link: LinkId,
    pub(super) initiator: PeerId,
    /// What the initiator sends: from its place, with the responder's index.
    pub(super) forth: FlowKey,
    /// What the responder sends: from its place, with the initiator's index.
    pub(super) back: FlowKey,
    /// Whether both places were endpoints of their peers beyond doubt at completion. Others make
    /// room first.
    pub(super) vouched: bool,
    pub(super) expires: Tick,
}

#[derive(Debug, Default)]
pub(super) struct Pairs {
    /// In the order of their completion and thus of their expiry.
    all: BTreeMap<PairId, Pair>,
    /// Both keys of every pair in `all`, and nothing else.
    by_key: BTreeMap<FlowKey, PairId>,
    /// Every pair in `all`, oldest first; no empty list.
    by_link: BTreeMap<LinkId, Vec<PairId>>,
    next: u64,
    /// Pairs that made room for newer ones of their link.
    pub(super) evicted: u64,
}

impl Pairs {
    /// Adds a session, in place of any that has one of its keys. None expires before those added
    /// earlier.
    pub(super) fn add(&mut self, mut pair: Pair, per_link_max: usize, flows: &mut Vec<FlowChange>) {
        self.release(&pair.forth, flows);
        self.release(&pair.back, flows);
        while self.of_link(pair.link).len() >= per_link_max.max(1) {
            self.evict(pair.link, flows);
        }
        let last = self.all.last_key_value().map_or(Tick::ZERO, |(_, last)| last.expires);
        pair.expires = pair.expires.max(last);
        let id = PairId(self.next);
        self.next += 1;
        self.all.insert(id, pair);
        self.by_key.insert(pair.forth, id);
        self.by_key.insert(pair.back, id);
        self.by_link.entry(pair.link).or_default().push(id);
        let Pair { link, forth, back, .. } = pair;
        flows.push(FlowChange::Add(forth, FlowTarget { to: back.from, link }));
        flows.push(FlowChange::Add(back, FlowTarget { to: forth.from, link }));
    }

    /// Removes the session that has `key`, if there is one.
    pub(super) fn release(&mut self, key: &FlowKey, flows: &mut Vec<FlowChange>) {
        if let Some(&id) = self.by_key.get(key) {
            self.remove(id, flows);
        }
    }

    pub(super) fn release_link(&mut self, link: LinkId, flows: &mut Vec<FlowChange>) {
        for id in self.by_link.get(&link).cloned().unwrap_or_default() {
            self.remove(id, flows);
        }
    }

    pub(super) fn expire(&mut self, now: Tick, flows: &mut Vec<FlowChange>) {
        while let Some((&id, pair)) = self.all.first_key_value()
            && pair.expires <= now
        {
            self.remove(id, flows);
        }
    }

    /// Where packets with `key` go.
    pub(super) fn target(&self, key: &FlowKey) -> Option<FlowTarget> {
        let pair = self.all.get(self.by_key.get(key)?)?;
        let to: Place = if pair.forth == *key { pair.back.from } else { pair.forth.from };
        Some(FlowTarget { to, link: pair.link })
    }

    /// Every session, the one that expires first at the front.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Pair> {
        self.all.values()
    }

    /// Every session of a link, oldest first.
    pub(super) fn iter_link(&self, link: LinkId) -> impl Iterator<Item = &Pair> {
        self.of_link(link).iter().filter_map(|id| self.all.get(id))
    }

    /// Number of sessions of a link.
    pub(super) fn count(&self, link: LinkId) -> usize {
        self.of_link(link).len()
    }

    fn of_link(&self, link: LinkId) -> &[PairId] {
        self.by_link.get(&link).map_or(&[], Vec::as_slice)
    }

    /// Removes the oldest session of a link that nobody vouched for, else the oldest.
    fn evict(&mut self, link: LinkId, flows: &mut Vec<FlowChange>) {
        let ids = self.of_link(link);
        let doubtful = |id: &&PairId| self.all.get(id).is_some_and(|pair| !pair.vouched);
        if let Some(&id) = ids.iter().find(doubtful).or(ids.first()) {
            self.remove(id, flows);
            self.evicted += 1;
        }
    }

    fn remove(&mut self, id: PairId, flows: &mut Vec<FlowChange>) {
        let Some(pair) = self.all.remove(&id) else { return };
        for key in [pair.forth, pair.back] {
            self.by_key.remove(&key);
            flows.push(FlowChange::Remove(key));
        }
        if let Some(ids) = self.by_link.get_mut(&pair.link) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_link.remove(&pair.link);
            }
        }
    }

    pub(super) fn check(&self, per_link_max: usize, link_exists: impl Fn(LinkId) -> bool) {
        assert_eq!(self.by_key.len(), 2 * self.all.len());
        assert_eq!(self.by_link.values().map(Vec::len).sum::<usize>(), self.all.len());
        let mut last = Tick::ZERO;
        for (id, pair) in &self.all {
            assert!(last <= pair.expires, "expiry follows completion");
            last = pair.expires;
            assert_ne!(pair.forth.from, pair.back.from, "nobody relays to itself");
            assert_eq!(self.by_key.get(&pair.forth), Some(id));
            assert_eq!(self.by_key.get(&pair.back), Some(id));
            assert!(self.of_link(pair.link).contains(id));
            assert!(link_exists(pair.link), "flows end with their link");
        }
        for ids in self.by_link.values() {
            assert!(!ids.is_empty() && ids.len() <= per_link_max && ids.is_sorted());
        }
    }
}
