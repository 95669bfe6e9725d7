//! Who is connected, and how each is; and whom the log was told of as refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Stamp;
use crate::store::Revision;

/// Nodes whose refusals are remembered, so that the log tells each once.
const REFUSED_MAX: usize = 256;

/// How a dataplane keeps up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DataplaneState {
    /// It goes by the newest revision.
    Current,
    /// It is being told of a newer one.
    Behind,
    /// It cannot be told of a newer one, or has refused it, and goes by the one it has.
    Refused,
}

/// A connected dataplane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dataplane {
    /// Its node's name.
    pub node: String,
    /// From where: an address, or `unix`.
    pub from: String,
    /// Its program's version.
    pub version: String,
    /// Since when it is connected.
    pub since: Stamp,
    /// The revision it goes by; 0 if by none of ours yet.
    pub revision: Revision,
    /// How it keeps up.
    pub state: DataplaneState,
    /// Why it does not keep up: why it has refused the last order, or why there is none for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// DERP sessions, as it last said.
    pub sessions: u64,
    /// Whether it drains, as it last said.
    pub draining: bool,
    /// Cores that do not go round, as it last said.
    pub stalled_cores: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Roster {
    next: AtomicU64,
    all: Mutex<BTreeMap<u64, Dataplane>>,
}

impl Roster {
    /// Takes in a dataplane, until the place that this gives is dropped.
    pub(super) fn enter(&self, dataplane: Dataplane) -> Place<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.all().insert(number, dataplane);
        Place { roster: self, number }
    }

    /// Whether a dataplane of this name is connected.
    pub(super) fn has(&self, node: &str) -> bool {
        self.all().values().any(|dataplane| dataplane.node == node)
    }

    /// All of them by node, as they are when the store is at revision `now`.
    pub(super) fn list(&self, now: Revision) -> Vec<Dataplane> {
        let mut all: Vec<_> = self.all().values().cloned().collect();
        for dataplane in &mut all {
            dataplane.state = match (&dataplane.refusal, dataplane.revision >= now) {
                (Some(_), _) => DataplaneState::Refused,
                (None, true) => DataplaneState::Current,
                (None, false) => DataplaneState::Behind,
            };
        }
        all.sort_by(|one, other| one.node.cmp(&other.node));
        all
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Dataplane>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connected dataplane's place in the roster.
pub(super) struct Place<'a> {
    roster: &'a Roster,
    number: u64,
}

impl Place<'_> {
    /// Notes what has changed about it.
    pub(super) fn note(&self, change: impl FnOnce(&mut Dataplane)) {
        if let Some(dataplane) = self.roster.all().get_mut(&self.number) {
            change(dataplane);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.roster.all().remove(&self.number);
    }
}

/// Why each node was refused last.
#[derive(Debug, Default)]
pub(super) struct Refused(Mutex<BTreeMap<String, String>>);

impl Refused {
    /// Whether this is new: a dataplane that is refused tries again and again.
    pub(super) fn is_new(&self, node: &str, why: &str) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REFUSED_MAX && !known.contains_key(node) {
            known.clear();
        }
        known.insert(node.to_owned(), why.to_owned()).is_none_or(|before| before != why)
    }

    /// Forgets a node that is refused no longer.
    pub(super) fn forget(&self, node: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_new_once() {
        let refused = Refused::default();
        assert!(refused.is_new("a", "x") && refused.is_new("a", "y"));
        assert!(!refused.is_new("a", "y"));
        refused.forget("a");
        assert!(refused.is_new("a", "y"));
        for at in 0..10 * REFUSED_MAX {
            refused.is_new(&at.to_string(), "x");
            assert!(refused.0.lock().expect("no panic").len() <= REFUSED_MAX);
        }
    }
}
