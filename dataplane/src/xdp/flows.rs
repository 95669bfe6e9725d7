//! Where each flow stands in map `FLOW`.
//!
//! Owns a mirror of the map and the choice between a flow's two places. A flow that finds both
//! taken moves others to their second one; if that does not help within a bound, it gets no place
//! and its data goes on through the sockets. It never leaves a placed flow out of the map while
//! moving it. The loader calls it, with the map as [`Store`].

use std::collections::HashMap;

use wire::maps::{Address, Config, Flow, FlowKey, Hop};

/// Flows moved at most to make room for one.
const MOVES_MAX: usize = 64;

/// A key that no packet has.
const NOBODY: FlowKey =
    FlowKey { source: Address::NONE, receiver: 0, source_port: 0, local_port: 0 };

/// The map that places are written to.
pub(super) trait Store {
    /// Why a write failed.
    type Fault;
    /// Puts `value` into a place; the kernel does not do that in one piece.
    fn write(&mut self, place: u32, value: &[u8; Flow::LEN]) -> Result<(), Self::Fault>;
}

/// What became of a flow that was to be in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    /// It was there already, with this hop.
    Already,
    /// It is there now.
    Written,
    /// There is no place for it.
    Full,
}

/// The flows in the map by their places.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Only its seed matters. It stays the same as long as the map does.
    config: Config,
    /// Each flow is in one of the two places of its key, and in one only.
    taken: HashMap<u32, Flow>,
}

impl Places {
    /// No flows, under `seed`.
    pub(super) fn new(seed: [u64; 2]) -> Self {
        Self { config: Config { seed, ..Config::default() }, taken: HashMap::new() }
    }

    /// The seed that places are computed with.
    pub(super) const fn seed(&self) -> [u64; 2] {
        self.config.seed
    }

    /// Takes note of what stands in `place` already. `false` if it does not belong there, and is
    /// to be written free.
    pub(super) fn found(&mut self, place: u32, flow: Flow) -> bool {
        let belongs =
            self.config.places(&flow.key).contains(&place) && self.place(&flow.key).is_none();
        if belongs {
            self.taken.insert(place, flow);
        }
        belongs
    }

    /// The flows that are in the map.
    pub(super) fn flows(&self) -> impl Iterator<Item = &Flow> {
        self.taken.values()
    }

    fn place(&self, key: &FlowKey) -> Option<u32> {
        let mut places = self.config.places(key).into_iter();
        places.find(|place| self.taken.get(place).is_some_and(|flow| flow.key == *key))
    }

    /// Brings a flow into the map.
    pub(super) fn insert<S: Store>(
        &mut self,
        key: &FlowKey,
        hop: &Hop,
        store: &mut S,
    ) -> Result<Placed, S::Fault> {
        let flow = Flow { key: *key, hop: *hop };
        if let Some(place) = self.place(key) {
            if self.taken.get(&place) == Some(&flow) {
                return Ok(Placed::Already);
            }
            self.put(place, flow, store)?;
            return Ok(Placed::Written);
        }
        let Some(path) = self.path(key) else {
            return Ok(Placed::Full);
        };
        // From the free end on, so that each flow is in its new place before it leaves the old.
        for step in path.windows(2).rev() {
            let [from, to] = *step else { continue };
            if let Some(moved) = self.taken.get(&from).copied() {
                self.put(to, moved, store)?;
                self.free(from, store)?;
            }
        }
        if let Some(place) = path.first() {
            self.put(*place, flow, store)?;
        }
        Ok(Placed::Written)
    }

    /// Takes a flow out of the map, if it is in it.
    pub(super) fn remove<S: Store>(
        &mut self,
        key: &FlowKey,
        store: &mut S,
    ) -> Result<bool, S::Fault> {
        match self.place(key) {
            Some(place) => self.free(place, store).map(|()| true),
            None => Ok(false),
        }
    }

    /// Places from one of `key`'s to a free one, where the flow in each can move to the next.
    fn path(&self, key: &FlowKey) -> Option<Vec<u32>> {
        let [first, second] = self.config.places(key);
        for start in [first, second] {
            let mut path = vec![start];
            let mut at = start;
            while let Some(flow) = self.taken.get(&at) {
                let [a, b] = self.config.places(&flow.key);
                let next = if at == a { b } else { a };
                if path.len() > MOVES_MAX || path.contains(&next) {
                    break;
                }
                path.push(next);
                at = next;
            }
            if !self.taken.contains_key(&at) {
                return Some(path);
            }
        }
        None
    }

    /// Writes a flow so that no reader takes an old key with a new hop.
    fn put<S: Store>(&mut self, place: u32, flow: Flow, store: &mut S) -> Result<(), S::Fault> {
        if self.taken.contains_key(&place) {
            self.free(place, store)?;
        }
        store.write(place, &Flow { key: NOBODY, hop: flow.hop }.encode())?;
        store.write(place, &flow.encode())?;
        self.taken.insert(place, flow);
        Ok(())
    }

    fn free<S: Store>(&mut self, place: u32, store: &mut S) -> Result<(), S::Fault> {
        store.write(place, &Flow::FREE)?;
        self.taken.remove(&place);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::net::SocketAddr;
    use wire::maps::PLACES;

    /// A map that remembers, and checks how it is written.
    #[derive(Default)]
    struct Memory(HashMap<u32, [u8; Flow::LEN]>);

    impl Store for Memory {
        type Fault = Infallible;

        fn write(&mut self, place: u32, value: &[u8; Flow::LEN]) -> Result<(), Infallible> {
            assert!(place < PLACES);
            let before = self.0.insert(place, *value).unwrap_or(Flow::FREE);
            if let Some(now) = Flow::decode(value) {
                assert_eq!(Flow::decode(&before), None, "over another flow");
                assert_eq!(before[FlowKey::LEN..], now.hop.encode(), "the hop comes first");
            }
            Ok(())
        }
    }

    impl Memory {
        /// As the program looks a flow up.
        fn find(&self, places: &Places, key: &FlowKey) -> Option<Hop> {
            let candidates = places.config.places(key);
            let flows = candidates.iter().filter_map(|place| self.0.get(place));
            flows.filter_map(Flow::decode).find(|flow| flow.key == *key).map(|flow| flow.hop)
        }
    }

    fn key(number: u32) -> FlowKey {
        let from: SocketAddr = "192.0.2.7:51820".parse().expect("an address");
        let local: SocketAddr = "198.51.100.1:3478".parse().expect("an address");
        FlowKey::new(from, local, number)
    }

    fn hop(cell: u32) -> Hop {
        let ours: SocketAddr = "198.51.100.1:3478".parse().expect("an address");
        let to: SocketAddr = "203.0.113.9:1".parse().expect("an address");
        Hop::back(ours, ours, to, cell).expect("one family")
    }

    fn places() -> Places {
        Places::new([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345])
    }

    #[test]
    fn inserts_changes_and_removes() {
        let (mut places, mut map) = (places(), Memory::default());
        assert_eq!(places.insert(&key(1), &hop(1), &mut map), Ok(Placed::Written));
        assert_eq!(places.insert(&key(1), &hop(1), &mut map), Ok(Placed::Already));
        assert_eq!(places.insert(&key(1), &hop(2), &mut map), Ok(Placed::Written));
        assert_eq!(map.find(&places, &key(1)), Some(hop(2)));
        assert_eq!(places.flows().count(), 1);
        assert_eq!(places.remove(&key(1), &mut map), Ok(true));
        assert_eq!(places.remove(&key(1), &mut map), Ok(false));
        assert_eq!(map.find(&places, &key(1)), None);
    }

    #[test]
    fn fills_four_tenths_without_losing_a_flow() {
        let (mut places, mut map) = (places(), Memory::default());
        let count = PLACES / 10 * 4;
        for number in 0..count {
            let placed = places.insert(&key(number), &hop(number), &mut map);
            assert_eq!(placed, Ok(Placed::Written), "{number}");
        }
        for number in 0..count {
            assert_eq!(map.find(&places, &key(number)), Some(hop(number)));
        }
    }

    #[test]
    fn overfull_it_refuses_and_keeps_what_it_has() {
        let (mut places, mut map) = (places(), Memory::default());
        let mut refused = 0;
        for number in 0..PLACES {
            match places.insert(&key(number), &hop(number), &mut map) {
                Ok(Placed::Full) => refused += 1,
                placed => assert_eq!(placed, Ok(Placed::Written)),
            }
        }
        assert!(refused > 0 && refused < PLACES / 2, "{refused}");
        let found = (0..PLACES).filter(|number| map.find(&places, &key(*number)).is_some());
        assert_eq!(found.count() as u32 + refused, PLACES);
    }

    #[test]
    fn takes_over_what_belongs_and_nothing_else() {
        let flow = Flow { key: key(5), hop: hop(5) };
        let mut places = places();
        let [first, second] = places.config.places(&flow.key);
        assert!(!places.found(first.wrapping_add(1) % PLACES, flow));
        assert!(places.found(second, flow));
        assert!(!places.found(first, flow));
        let mut map = Memory::default();
        assert_eq!(places.insert(&flow.key, &flow.hop, &mut map), Ok(Placed::Already));
    }
}
