//! The data table: which packets go where.
//!
//! Owns a replica of the relay's flows. It decides nothing and counts nothing: changes come from
//! [`super::Relay`], in order, and the worker of each core asks [`Flows::forward`] for every run of
//! transport messages; that is one hash lookup and allocates nothing.

use hashbrown::HashMap;
use wire::wireguard::data_receiver;

use super::{FlowChange, FlowKey, FlowTarget, Limits, Place};

/// The flows as one core knows them.
#[derive(Debug)]
pub struct Flows {
    /// At most `max`. Peers choose the indices in its keys; the hasher is no defence against keys
    /// made to collide, but nobody gets more than the few flows of his links into it.
    targets: HashMap<FlowKey, FlowTarget>,
    /// [`Limits::flows_max`].
    max: usize,
}

impl Flows {
    /// An empty table.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self { targets: HashMap::new(), max: limits.flows_max() }
    }

    /// Applies a change of the truth.
    pub fn apply(&mut self, change: &FlowChange) {
        match *change {
            FlowChange::Add(key, target) => {
                self.targets.insert(key, target);
                debug_assert!(self.targets.len() <= self.max, "the relay bounds sessions");
            }
            FlowChange::Remove(key) => {
                self.targets.remove(&key);
            }
            FlowChange::Forget(_) => {}
        }
    }

    /// Where a transport message goes. `None` for everything that is no transport message of a
    /// known flow: that is the relay's to judge.
    #[inline]
    #[must_use]
    pub fn forward(&self, datagram: &[u8], from: Place) -> Option<FlowTarget> {
        let receiver = data_receiver(datagram)?;
        self.target(&FlowKey { from, receiver })
    }

    /// Where packets with `key` go.
    #[inline]
    #[must_use]
    pub fn target(&self, key: &FlowKey) -> Option<FlowTarget> {
        self.targets.get(key).copied()
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
}
