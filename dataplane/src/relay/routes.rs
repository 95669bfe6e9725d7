//! Where a session's packets go, and thereby who has heard from it.
//!
//! A route is valid while its shard's epoch stands; a stale one is looked up again. The same list
//! says who must be told when the session's key leaves the relay.

use std::collections::HashMap;
use std::sync::Arc;

use wire::key::Key;

use super::{Fabric, Peer};
use crate::io::Socket;

/// Routes searched one by one; beyond, an index is built.
const SCANNED_MAX: usize = 8;
/// Routes a session may hold. Beyond, packets still flow, at the price of a lookup each, and the
/// destination is not told when this session's key leaves.
const ROUTES_MAX: usize = 4096;
/// Earlier sessions of destinations that moved, still owed the news of a departure.
const PAST_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Routes<S> {
    /// The route used last. Invariant: below `routes.len()`, or that is zero.
    last: usize,
    routes: Vec<Route<S>>,
    /// Position by key. Invariant: complete where present, and present beyond `SCANNED_MAX`.
    #[allow(clippy::box_collection, reason = "most sessions have few routes and no index")]
    index: Option<Box<HashMap<Key, u32>>>,
    past: Vec<Arc<Peer<S>>>,
}

#[derive(Debug)]
struct Route<S> {
    key: Key,
    epoch: u64,
    peer: Arc<Peer<S>>,
}

impl<S> Default for Routes<S> {
    fn default() -> Self {
        Self { last: 0, routes: Vec::new(), index: None, past: Vec::new() }
    }
}

impl<S: Socket> Routes<S> {
    /// Runs `with` on the active peer of `key`; `None` if nobody has that key.
    #[inline]
    pub(crate) fn with_peer<R>(
        &mut self,
        key: &Key,
        fabric: &Fabric<S>,
        with: impl FnOnce(&Arc<Peer<S>>) -> R,
    ) -> Option<R> {
        if let Some(route) = self.routes.get(self.last)
            && route.key == *key
            && route.epoch == fabric.epoch(key)
        {
            return Some(with(&route.peer));
        }
        self.search(key, fabric).map(|peer| with(&peer))
    }

    fn search(&mut self, key: &Key, fabric: &Fabric<S>) -> Option<Arc<Peer<S>>> {
        let at = self.position(key);
        if let Some(at) = at {
            self.last = at;
            if self.routes[at].epoch == fabric.epoch(key) {
                return Some(Arc::clone(&self.routes[at].peer));
            }
        }
        let (epoch, peer) = fabric.find(key);
        let peer = peer?;
        match at {
            Some(at) => {
                let route = &mut self.routes[at];
                route.epoch = epoch;
                if route.peer.id != peer.id {
                    let before = std::mem::replace(&mut route.peer, Arc::clone(&peer));
                    if !before.outbox().is_closed() && self.past.len() < PAST_MAX {
                        self.past.push(before);
                    }
                }
            }
            None => self.insert(Route { key: *key, epoch, peer: Arc::clone(&peer) }),
        }
        Some(peer)
    }

    fn position(&self, key: &Key) -> Option<usize> {
        match &self.index {
            Some(index) => index.get(key).map(|at| *at as usize),
            None => self.routes.iter().position(|route| route.key == *key),
        }
    }

    fn insert(&mut self, route: Route<S>) {
        // The keepalive's sweep makes room. One for each packet would let a client with many live
        // destinations hold the round.
        if self.routes.len() >= ROUTES_MAX {
            return;
        }
        self.last = self.routes.len();
        if let Some(index) = &mut self.index {
            index.insert(route.key, self.last as u32);
        }
        if self.routes.len() < SCANNED_MAX {
            self.routes.reserve_exact(1);
        }
        self.routes.push(route);
        if self.index.is_none() && self.routes.len() > SCANNED_MAX {
            self.rebuild();
        }
    }

    /// Forgets destinations whose sessions have ended.
    pub(crate) fn sweep(&mut self) {
        self.past.retain(|peer| !peer.outbox().is_closed());
        let before = self.routes.len();
        self.routes.retain(|route| !route.peer.outbox().is_closed());
        if self.routes.len() != before {
            self.last = 0;
            self.rebuild();
        }
    }

    fn rebuild(&mut self) {
        let positions = self.routes.iter().enumerate();
        self.index = (self.routes.len() > SCANNED_MAX)
            .then(|| Box::new(positions.map(|(at, route)| (route.key, at as u32)).collect()));
    }

    /// Everyone who has heard from this session.
    pub(crate) fn into_heard(self) -> Vec<Arc<Peer<S>>> {
        let mut heard = self.past;
        heard.extend(self.routes.into_iter().map(|route| route.peer));
        heard
    }
}
