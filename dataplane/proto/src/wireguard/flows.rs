//! The data table: which packets go where, and how many went.
//!
//! Owns a replica of the relay's flows and the counters of each link. It decides nothing: changes
//! come from [`super::Relay`], in order. The worker of each core calls [`Flows::forward`] for every
//! transport message; that is one hash lookup and allocates nothing.

use alloc::vec::Vec;

use hashbrown::HashMap;
use wire::wireguard::data_receiver;

use super::{FlowChange, FlowKey, FlowTarget, Limits, LinkId, Place};

/// What went over a link, both ways together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Transport messages.
    pub packets: u64,
    /// Their bytes, as UDP payload.
    pub bytes: u64,
}

/// The flows as one core knows them.
#[derive(Debug)]
pub struct Flows {
    /// At most [`Limits::flows_max`]. The hasher is keyed: peers choose the indices.
    targets: HashMap<FlowKey, FlowTarget>,
    /// By link; as long as the highest link that ever had a flow, or was counted, needs.
    stats: Vec<LinkStats>,
    /// No link has a higher number.
    links_max: usize,
}

impl Flows {
    /// An empty table.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self { targets: HashMap::new(), stats: Vec::new(), links_max: limits.links_max }
    }

    /// Applies a change of the truth.
    pub fn apply(&mut self, change: &FlowChange) {
        match *change {
            FlowChange::Add(key, target) => {
                self.make_room(target.link);
                self.targets.insert(key, target);
            }
            FlowChange::Remove(key) => {
                self.targets.remove(&key);
            }
            FlowChange::Forget(link) => {
                debug_assert!(self.targets.values().all(|it| it.link != link), "removed before");
                if let Some(stats) = self.stats.get_mut(link.index()) {
                    *stats = LinkStats::default();
                }
            }
        }
    }

    /// Where a transport message goes, counted as gone. `None` for everything that is no transport
    /// message of a known flow: that is the relay's to judge.
    #[inline]
    pub fn forward(&mut self, datagram: &[u8], from: Place) -> Option<FlowTarget> {
        let receiver = data_receiver(datagram)?;
        let target = self.target(&FlowKey { from, receiver })?;
        self.count(target.link, 1, datagram.len() as u64);
        Some(target)
    }

    /// Where packets with `key` go, not counted: for trains of packets that share a key.
    #[inline]
    #[must_use]
    pub fn target(&self, key: &FlowKey) -> Option<FlowTarget> {
        self.targets.get(key).copied()
    }

    /// Counts what went over a link.
    #[inline]
    pub fn count(&mut self, link: LinkId, packets: u64, bytes: u64) {
        if link.index() >= self.stats.len() {
            self.make_room(link);
        }
        if let Some(stats) = self.stats.get_mut(link.index()) {
            stats.packets += packets;
            stats.bytes += bytes;
        }
    }

    /// Number of flows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether there is no flow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Every flow, in no order: for whoever keeps another replica in step.
    pub fn iter(&self) -> impl Iterator<Item = (&FlowKey, &FlowTarget)> {
        self.targets.iter()
    }

    /// What went over each link that ever carried anything.
    pub fn stats(&self) -> impl Iterator<Item = (LinkId, LinkStats)> {
        let numbered = self.stats.iter().enumerate();
        numbered
            .filter(|(_, stats)| stats.packets > 0)
            .map(|(link, stats)| (LinkId(link as u32), *stats))
    }

    /// Makes the counters of `link` exist. Not inlined: only the first flow of a link comes here.
    #[cold]
    fn make_room(&mut self, link: LinkId) {
        debug_assert!(link.index() < self.links_max, "the relay numbers links below its limit");
        if link.index() < self.links_max && link.index() >= self.stats.len() {
            self.stats.resize(link.index() + 1, LinkStats::default());
        }
    }
}
