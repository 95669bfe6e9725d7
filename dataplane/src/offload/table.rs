//! Which flows the map holds, and why the others are not in it.
//!
//! Owns the replica of the relay's flows that the map is made from. An entry leaves our own address
//! out, so that two flows may want the same one; the first has it. The keeper finds out what an entry
//! would say; the map is behind [`Entries`].

use std::collections::HashMap;

use proto::wireguard::{FlowKey, FlowTarget};
use wire::maps::{self, Hop};

use crate::observe::SocketReason;
use crate::xdp::{FastPath, XdpFault};

/// The map, as far as single flows go.
pub(super) trait Entries {
    /// Why it cannot be written.
    type Fault;
    /// Adds or changes an entry. `false` if it has no place.
    fn add(&mut self, key: &maps::FlowKey, hop: &Hop) -> Result<bool, Self::Fault>;
    /// Takes an entry out, if it is there.
    fn remove(&mut self, key: &maps::FlowKey) -> Result<(), Self::Fault>;
}

impl Entries for FastPath {
    type Fault = XdpFault;

    fn add(&mut self, key: &maps::FlowKey, hop: &Hop) -> Result<bool, XdpFault> {
        self.add_flow(key, hop)
    }

    fn remove(&mut self, key: &maps::FlowKey) -> Result<(), XdpFault> {
        self.remove_flow(key).map(|_| ())
    }
}

/// What the map would have for a flow, or why only the sockets can serve it.
pub(super) type Entry = Result<(maps::FlowKey, Hop), SocketReason>;

#[derive(Clone, Copy, Debug)]
struct Known {
    target: FlowTarget,
    /// The entry that it has, or why it has none.
    entry: Result<maps::FlowKey, SocketReason>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Table {
    flows: HashMap<FlowKey, Known>,
    owners: HashMap<maps::FlowKey, FlowKey>,
}

impl Table {
    /// Every flow and where it goes.
    pub(super) fn flows(&self) -> impl Iterator<Item = (&FlowKey, &FlowTarget)> {
        self.flows.iter().map(|(key, known)| (key, &known.target))
    }

    /// Forgets all flows. The map is not touched.
    pub(super) fn clear(&mut self) {
        self.flows.clear();
        self.owners.clear();
    }

    /// Flows in the map, and those that are not, by reason.
    pub(super) fn counts(&self) -> (u64, [u64; SocketReason::COUNT]) {
        let mut by_sockets = [0; SocketReason::COUNT];
        for reason in self.flows.values().filter_map(|known| known.entry.err()) {
            by_sockets[reason.index()] += 1;
        }
        (self.owners.len() as u64, by_sockets)
    }

    /// Whether a flow is out of the map for `reason`.
    pub(super) fn any(&self, reason: SocketReason) -> bool {
        self.flows.values().any(|known| known.entry == Err(reason))
    }

    /// Gives a flow its entry, or leaves it to the sockets.
    pub(super) fn place<E: Entries>(
        &mut self,
        key: FlowKey,
        target: FlowTarget,
        wanted: Entry,
        map: &mut E,
    ) -> Result<(), E::Fault> {
        let before = self.flows.get(&key).and_then(|known| known.entry.ok());
        if let Some(entry) = before.filter(|entry| wanted.map(|(it, _)| it) != Ok(*entry)) {
            self.release(&entry, map)?;
        }
        let entry = match wanted {
            Ok((entry, _)) if self.owners.get(&entry).is_some_and(|owner| *owner != key) => {
                Err(SocketReason::Twin)
            }
            Ok((entry, hop)) => match map.add(&entry, &hop) {
                Ok(true) => {
                    self.owners.insert(entry, key);
                    Ok(entry)
                }
                Ok(false) => {
                    self.owners.remove(&entry);
                    Err(SocketReason::MapFull)
                }
                Err(fault) => {
                    self.flows.insert(key, Known { target, entry: Err(SocketReason::Fault) });
                    self.owners.remove(&entry);
                    return Err(fault);
                }
            },
            Err(reason) => Err(reason),
        };
        self.flows.insert(key, Known { target, entry });
        Ok(())
    }

    /// Forgets a flow.
    pub(super) fn remove<E: Entries>(
        &mut self,
        key: &FlowKey,
        map: &mut E,
    ) -> Result<(), E::Fault> {
        match self.flows.remove(key).and_then(|known| known.entry.ok()) {
            Some(entry) => self.release(&entry, map),
            None => Ok(()),
        }
    }

    /// Takes a flow out of the map for `reason`, until it is placed again.
    pub(super) fn suspend<E: Entries>(
        &mut self,
        key: &FlowKey,
        reason: SocketReason,
        map: &mut E,
    ) -> Result<(), E::Fault> {
        let Some(known) = self.flows.get_mut(key) else { return Ok(()) };
        match std::mem::replace(&mut known.entry, Err(reason)) {
            Ok(entry) => self.release(&entry, map),
            Err(_) => Ok(()),
        }
    }

    fn release<E: Entries>(&mut self, entry: &maps::FlowKey, map: &mut E) -> Result<(), E::Fault> {
        self.owners.remove(entry);
        map.remove(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::wireguard::{Index, LinkId, Place, PortId};
    use std::net::SocketAddr;

    /// A map of `room` entries.
    #[derive(Default)]
    struct Memory {
        room: usize,
        broken: bool,
        entries: HashMap<maps::FlowKey, Hop>,
    }

    impl Entries for Memory {
        type Fault = ();

        fn add(&mut self, key: &maps::FlowKey, hop: &Hop) -> Result<bool, ()> {
            if self.broken {
                return Err(());
            }
            let fits = self.entries.contains_key(key) || self.entries.len() < self.room;
            if fits {
                self.entries.insert(*key, *hop);
            }
            Ok(fits)
        }

        fn remove(&mut self, key: &maps::FlowKey) -> Result<(), ()> {
            self.entries.remove(key);
            Ok(())
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn key(port: u8, receiver: u32) -> FlowKey {
        let from = Place::new(PortId(port), address("192.0.2.7:5"));
        FlowKey { from, receiver: Index(receiver) }
    }

    fn target() -> FlowTarget {
        FlowTarget { to: Place::new(PortId(0), address("192.0.2.8:6")), link: LinkId(3) }
    }

    fn entry(receiver: u32, cell: u32) -> Entry {
        let ours = address("198.51.100.1:3478");
        let hop = Hop::back(ours, ours, address("192.0.2.8:6"), cell).expect("one family");
        Ok((maps::FlowKey::new(address("192.0.2.7:5"), ours, receiver), hop))
    }

    /// The table, and that the map holds just what it thinks.
    fn agree(table: &Table, map: &Memory) {
        let owned: std::collections::HashSet<_> = table.owners.keys().copied().collect();
        assert_eq!(owned, map.entries.keys().copied().collect());
        for (entry, owner) in &table.owners {
            assert_eq!(table.flows[owner].entry, Ok(*entry));
        }
    }

    #[test]
    fn the_first_of_two_flows_has_the_entry_and_leaves_it_to_the_other() {
        let (mut table, mut map) = (Table::default(), Memory { room: 9, ..Memory::default() });
        table.place(key(0, 1), target(), entry(1, 3), &mut map).expect("it takes it");
        table.place(key(1, 1), target(), entry(1, 4), &mut map).expect("it takes it");
        agree(&table, &map);
        assert_eq!(table.counts().1[SocketReason::Twin.index()], 1);
        // The second going takes nothing from the first.
        table.remove(&key(1, 1), &mut map).expect("it takes it");
        agree(&table, &map);
        assert_eq!(table.counts().0, 1);
        table.place(key(1, 1), target(), entry(1, 4), &mut map).expect("it takes it");
        table.remove(&key(0, 1), &mut map).expect("it takes it");
        table.place(key(1, 1), target(), entry(1, 4), &mut map).expect("it takes it");
        agree(&table, &map);
        assert_eq!(map.entries.values().map(|hop| hop.cell).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn a_flow_that_loses_its_way_leaves_the_map_and_comes_back() {
        let (mut table, mut map) = (Table::default(), Memory { room: 9, ..Memory::default() });
        for wanted in [entry(1, 3), Err(SocketReason::Route), entry(1, 3), entry(2, 3)] {
            table.place(key(0, 1), target(), wanted, &mut map).expect("it takes it");
            agree(&table, &map);
            assert_eq!(table.counts().0, u64::from(wanted.is_ok()));
        }
        table.suspend(&key(0, 1), SocketReason::Probing, &mut map).expect("it takes it");
        agree(&table, &map);
        assert!(table.any(SocketReason::Probing) && map.entries.is_empty());
        table.place(key(0, 1), target(), entry(1, 3), &mut map).expect("it takes it");
        assert!(!table.any(SocketReason::Probing));
        agree(&table, &map);
    }

    #[test]
    fn what_finds_no_room_or_fails_stays_with_the_sockets() {
        let (mut table, mut map) = (Table::default(), Memory { room: 1, ..Memory::default() });
        table.place(key(0, 1), target(), entry(1, 3), &mut map).expect("it takes it");
        table.place(key(0, 2), target(), entry(2, 3), &mut map).expect("it takes it");
        agree(&table, &map);
        assert_eq!(table.counts().1[SocketReason::MapFull.index()], 1);
        map.broken = true;
        assert_eq!(table.place(key(0, 3), target(), entry(3, 3), &mut map), Err(()));
        agree(&table, &map);
        assert_eq!(table.counts().1[SocketReason::Fault.index()], 1);
        assert_eq!(table.flows().count(), 3);
    }
}
