//! What each WireGuard link has carried, by the core that sent it.
//!
//! Owns the cells of every link number and the names that operators gave the links in use. A worker
//! writes the cells of its own core, the keeper of the fast path those of XDP; the core that owns the
//! relay says what numbers mean. The metrics page reads all, so that the label set is that of the configuration.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use proto::wireguard::{Limits, LinkId};

use super::Tally;

/// What one core has sent on each link.
#[derive(Debug)]
pub struct LinkCells(Box<[Tally]>);

impl LinkCells {
    fn new() -> Self {
        Self((0..Limits::DEFAULT.links_max).map(|_| Tally::default()).collect())
    }

    /// Counts `packets` of `bytes` bytes in all.
    #[inline]
    pub fn count(&self, link: LinkId, packets: u64, bytes: u64) {
        if let Some(tally) = self.0.get(link.index()) {
            tally.add(packets, bytes);
        }
    }

    /// Begins anew: the number will mean another link.
    pub fn clear(&self, link: LinkId) {
        if let Some(tally) = self.0.get(link.index()) {
            tally.packets.set(0);
            tally.bytes.set(0);
        }
    }

    fn read(&self, link: LinkId) -> (u64, u64) {
        self.0.get(link.index()).map_or((0, 0), Tally::value)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Links {
    cores: Box<[Arc<LinkCells>]>,
    fast_path: LinkCells,
    names: RwLock<BTreeMap<String, LinkId>>,
}

impl Links {
    pub(super) fn new(cores: usize) -> Self {
        Self {
            cores: (0..cores).map(|_| Arc::new(LinkCells::new())).collect(),
            fast_path: LinkCells::new(),
            names: RwLock::default(),
        }
    }

    /// Number of cores.
    #[must_use]
    pub fn cores(&self) -> usize {
        self.cores.len()
    }

    /// The cells that the worker of `core` writes.
    #[must_use]
    pub fn core(&self, core: usize) -> &Arc<LinkCells> {
        &self.cores[core]
    }

    /// The cells that the keeper of the fast path writes.
    #[must_use]
    pub const fn fast_path(&self) -> &LinkCells {
        &self.fast_path
    }

    /// These are all links from now on.
    pub fn rename(&self, links: impl IntoIterator<Item = (LinkId, String)>) {
        let names = links.into_iter().map(|(link, name)| (name, link)).collect();
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// Each link by name, with packets and bytes of all cores.
    pub(super) fn read(&self) -> Vec<(String, u64, u64)> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let sum = |link: LinkId| {
            let cores = self.cores.iter().map(|cells| cells.read(link));
            let values = cores.chain([self.fast_path.read(link)]);
            values.fold((0, 0), |(packets, bytes), (more, longer)| (packets + more, bytes + longer))
        };
        let read = names.iter().map(|(name, link)| {
            let (packets, bytes) = sum(*link);
            (name.clone(), packets, bytes)
        });
        read.collect()
    }
}
