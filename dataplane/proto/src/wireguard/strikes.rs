//! Who sends initiations that are for nobody.
//!
//! Finding out for whom an initiation is costs one keyed hash for each registered peer. Whoever
//! makes the relay do that in vain too often is refused it for a while. Owns the counts, per place
//! and per network, in a table that stops growing at its limit. An endpoint loses nothing by
//! somebody striking with its forged address: what it asks of its own links is tried regardless.

use alloc::collections::BTreeMap;
use core::time::Duration;

use super::{Place, Prefix};
use crate::tick::Tick;

/// Strikes count together if they fall within this of the first.
const WINDOW: Duration = Duration::from_secs(10);
/// How long an offender is ignored.
const IGNORED: Duration = Duration::from_secs(60);
/// Strikes within the window that a place is allowed. A stock peer of a removed registration makes
/// two.
pub(super) const STRIKES_PER_PLACE: u16 = 8;
/// Strikes within the window that a network is allowed.
pub(super) const STRIKES_PER_PREFIX: u16 = 128;
/// Of an ignored network, one initiation in so many is looked at, so that somebody who behaves
/// gets through behind the same address translator: a stock peer tries 18 times before it rests.
const SAMPLE: u16 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    Place(Place),
    Prefix(Prefix),
}

#[derive(Clone, Copy, Debug)]
struct Record {
    /// Strikes since `since`, or how many were ignored since.
    count: u16,
    since: Tick,
    /// Until then it is ignored.
    until: Option<Tick>,
}

#[derive(Debug, Default)]
pub(super) struct Strikes {
    /// At most `max` of [`Strikes::strike`].
    records: BTreeMap<Origin, Record>,
    /// Strikes not recorded because the table was full.
    pub(super) unrecorded: u64,
}

impl Strikes {
    /// Whether what comes from `place` is not worth looking at now.
    pub(super) fn ignores(&mut self, place: Place, now: Tick) -> bool {
        let banned = |record: &&mut Record| record.until.is_some_and(|until| now < until);
        if self.records.get_mut(&Origin::Place(place)).as_ref().is_some_and(banned) {
            return true;
        }
        let prefix = Origin::Prefix(place.prefix());
        self.records.get_mut(&prefix).filter(banned).is_some_and(|record| {
            record.count = (record.count + 1) % SAMPLE;
            record.count != 0
        })
    }

    /// Counts an initiation for nobody.
    pub(super) fn strike(&mut self, place: Place, now: Tick, max: usize) {
        self.count(Origin::Place(place), STRIKES_PER_PLACE, now, max);
        self.count(Origin::Prefix(place.prefix()), STRIKES_PER_PREFIX, now, max);
    }

    fn count(&mut self, origin: Origin, allowed: u16, now: Tick, max: usize) {
        let full = self.records.len() >= max;
        let fresh = Record { count: 0, since: now, until: None };
        let record = match self.records.get_mut(&origin) {
            Some(record) => record,
            None if full => return self.unrecorded += 1,
            None => self.records.entry(origin).or_insert(fresh),
        };
        if record.over(now) {
            *record = fresh;
        }
        if record.until.is_some() {
            return;
        }
        record.count += 1;
        if record.count > allowed {
            *record = Record { count: 0, since: now, until: Some(now.plus(IGNORED)) };
        }
    }

    pub(super) fn expire(&mut self, now: Tick) {
        self.records.retain(|_, record| !record.over(now));
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }
}

impl Record {
    fn over(&self, now: Tick) -> bool {
        now >= self.until.unwrap_or(self.since.plus(WINDOW))
    }
}

#[cfg(test)]
mod tests {
    use super::super::PortId;
    use super::*;

    const MAX: usize = 64;

    fn place(host: u8, port: u16) -> Place {
        Place::new(PortId(0), ([192, 0, 2, host], port).into())
    }

    fn offend(strikes: &mut Strikes, place: Place, times: u16, now: Tick) {
        for _ in 0..times {
            strikes.strike(place, now, MAX);
        }
    }

    #[test]
    fn a_place_is_ignored_for_a_while_and_its_neighbours_are_not() {
        let mut strikes = Strikes::default();
        offend(&mut strikes, place(1, 1), STRIKES_PER_PLACE, Tick::ZERO);
        assert!(!strikes.ignores(place(1, 1), Tick::ZERO));
        offend(&mut strikes, place(1, 1), 1, Tick::ZERO);
        assert!(strikes.ignores(place(1, 1), Tick::ZERO));
        assert!(!strikes.ignores(place(1, 2), Tick::ZERO));
        let later = Tick::ZERO.plus(IGNORED);
        assert!(!strikes.ignores(place(1, 1), later));
        strikes.expire(later);
        assert_eq!(strikes.len(), 0);
    }

    #[test]
    fn slow_strikes_do_not_add_up() {
        let mut strikes = Strikes::default();
        for i in 0..100 {
            offend(&mut strikes, place(1, 1), STRIKES_PER_PLACE, Tick::ZERO.plus(WINDOW * i));
        }
        assert!(!strikes.ignores(place(1, 1), Tick::ZERO.plus(WINDOW * 99)));
    }

    #[test]
    fn of_an_ignored_network_a_sample_is_looked_at() {
        let mut strikes = Strikes::default();
        for host in 0..=STRIKES_PER_PREFIX / STRIKES_PER_PLACE {
            offend(&mut strikes, place(host as u8, 1), STRIKES_PER_PLACE, Tick::ZERO);
        }
        let looked_at = (0..800).filter(|_| !strikes.ignores(place(200, 9), Tick::ZERO)).count();
        assert_eq!(looked_at, 800 / usize::from(SAMPLE));
        let elsewhere = Place::new(PortId(0), ([192, 0, 3, 1], 1).into());
        assert!(!strikes.ignores(elsewhere, Tick::ZERO));
    }

    #[test]
    fn the_table_stops_growing_at_its_limit() {
        let mut strikes = Strikes::default();
        for port in 0..1000 {
            strikes.strike(place(1, port), Tick::ZERO, MAX);
        }
        assert_eq!(strikes.len(), MAX);
        assert_eq!(strikes.unrecorded, 1000 - (MAX as u64 - 1));
    }
}
