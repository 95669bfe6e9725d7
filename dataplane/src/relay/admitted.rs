//! Which clients may have sessions, and the end of those that may no longer.
//!
//! Owned by the [`Fabric`], set by whoever is steered, asked by the front before a login is answered
//! and by a worker once it has adopted a session. Asked nowhere else: no packet waits for it.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use wire::key::Key;

use super::{Fabric, Peer};
use crate::io::Socket;
use crate::observe::CloseReason;

/// Which clients may have sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Admitted {
    /// All of them.
    #[default]
    Everyone,
    /// Those with these keys.
    Keys(HashSet<Key>),
}

impl Admitted {
    /// Whether the client with this key may have one.
    #[must_use]
    pub fn admits(&self, key: &Key) -> bool {
        match self {
            Self::Everyone => true,
            Self::Keys(keys) => keys.contains(key),
        }
    }
}

impl<S: Socket> Fabric<S> {
    /// Whether the client with this key may have a session now.
    #[must_use]
    pub fn admits(&self, key: &Key) -> bool {
        self.admitted().admits(key)
    }

    /// Lets in whom `admitted` admits from now on, and ends the sessions of all others.
    ///
    /// A session on its way in is found here if it is in the directory; else its worker, which asks
    /// once it has put it there, finds the new rule.
    pub fn admit(&self, admitted: Admitted) {
        let admitted = Arc::new(admitted);
        *self.admitted.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&admitted);
        if *admitted == Admitted::Everyone {
            return;
        }
        for shard in &self.shards {
            let table = shard.table.read().unwrap_or_else(PoisonError::into_inner);
            let revoked = |(key, peer): (&Key, &Arc<Peer<S>>)| {
                (!admitted.admits(key)).then(|| Arc::clone(peer))
            };
            let revoked: Vec<_> = table.directory.sessions().filter_map(revoked).collect();
            drop(table);
            // Their own workers hear of it and take them out of the directory.
            revoked.iter().for_each(|peer| peer.cut(CloseReason::Revoked));
        }
    }

    fn admitted(&self) -> Arc<Admitted> {
        Arc::clone(&self.admitted.read().unwrap_or_else(PoisonError::into_inner))
    }
}
