//! What all workers share: the directory of peers, bounds, mailboxes and counters.
//!
//! The directory is cut into shards behind read-mostly locks. Each shard has an epoch that moves
//! with every change, so that a worker's cached route is valid exactly while the epoch stands.

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crossbeam_utils::CachePadded;
use proto::derp::{Budget, Departure, Directory, Limits, SessionId};
use steer::Sessions;
use wire::key::Key;

use super::mailbox::{Command, Mailbox};
use super::{Admitted, Peer};
use crate::io::Socket;
use crate::observe::{CloseReason, CoreCounters};

/// Shards of the directory; a power of two.
const SHARDS: usize = 64;
/// Peers that wait, per key, to hear that the key's last session has gone.
const HEIRS_MAX: usize = 4096;

/// Sessions of one key at a time. Stock clients have one, and two for the moment of a new connection;
/// each change of the active one costs a look at all of them under the shard's lock.
const SESSIONS_PER_KEY_MAX: usize = 16;

/// Bounds and times of every session.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Bounds of each client's queue.
    pub queue: Limits,
    /// Bytes that may wait in all queues together.
    pub queued_bytes_max: usize,
    /// A send that moves no byte for so long ends its session, in milliseconds; 0: never.
    pub write_timeout_ms: u64,
    /// Between two keepalives of a session, jitter excluded, in milliseconds.
    pub keepalive_ms: u64,
    /// Most that a session's own jitter adds to that, in milliseconds.
    pub keepalive_jitter_ms: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self::from(&Sessions::default())
    }
}

impl From<&Sessions> for Tuning {
    fn from(sessions: &Sessions) -> Self {
        // A bound beyond the address space is no bound.
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Self {
            queue: Limits {
                queue_bytes_max: bytes(sessions.queue_bytes_max),
                queue_packets_max: sessions.queue_packets_max,
            },
            queued_bytes_max: bytes(sessions.queued_bytes_max),
            write_timeout_ms: sessions.write_timeout_ms,
            keepalive_ms: sessions.keepalive_ms,
            keepalive_jitter_ms: sessions.keepalive_jitter_ms,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Fabric<S> {
    pub(super) shards: Box<[CachePadded<Shard<S>>]>,
    next_session: AtomicU64,
    dup_sessions_opened: AtomicU64,
    /// Which clients may have sessions.
    pub(super) admitted: RwLock<Arc<Admitted>>,
    /// What workers start with; each hears of changes by a command.
    pub(crate) tuning: Tuning,
    pub(crate) budget: Budget,
    mailboxes: Box<[Mailbox<S>]>,
    counters: Box<[Arc<CoreCounters>]>,
}

#[derive(Debug)]
pub(super) struct Shard<S> {
    epoch: AtomicU64,
    pub(super) table: RwLock<Table<S>>,
}

#[derive(Debug)]
pub(super) struct Table<S> {
    pub(super) directory: Directory<Arc<Peer<S>>, RandomState>,
    /// Who has heard from sessions of a key that ended while another session of it lives.
    heirs: HashMap<Key, Vec<Arc<Peer<S>>>>,
}

impl<S: Socket> Fabric<S> {
    /// A fabric for as many workers as there are counters.
    #[must_use]
    pub fn new(tuning: Tuning, counters: &[Arc<CoreCounters>]) -> Arc<Self> {
        let shard = |_| {
            let directory = Directory::new(RandomState::new());
            let table = RwLock::new(Table { directory, heirs: HashMap::new() });
            CachePadded::new(Shard { epoch: AtomicU64::new(0), table })
        };
        Arc::new(Self {
            shards: (0..SHARDS).map(shard).collect(),
            next_session: AtomicU64::new(1),
            dup_sessions_opened: AtomicU64::new(0),
            admitted: RwLock::default(),
            tuning,
            budget: Budget::new(tuning.queued_bytes_max),
            mailboxes: counters.iter().map(|_| Mailbox::default()).collect(),
            counters: counters.into(),
        })
    }

    /// Number of workers.
    #[must_use]
    pub fn cores(&self) -> usize {
        self.mailboxes.len()
    }

    /// Hands a command to the worker of `core` and wakes it if it sleeps.
    pub fn post(&self, core: usize, command: Command<S>) {
        self.mailboxes[core].post(command);
    }

    /// Has every core go by `tuning`: its times from the next turn of their clocks on, bounds of one
    /// queue for sessions that are yet to come.
    pub fn tune(&self, tuning: Tuning) {
        self.budget.set_max(tuning.queued_bytes_max);
        (0..self.cores()).for_each(|core| self.post(core, Command::Tune(tuning)));
    }

    /// The core with the fewest sessions, for the next newcomer.
    #[must_use]
    pub fn least_loaded(&self) -> usize {
        let load = |core: &usize| {
            self.counters[*core].sessions.value() + self.mailboxes[*core].len() as u64
        };
        (0..self.cores()).min_by_key(load).unwrap_or(0)
    }

    /// Distinct keys connected, keys with several sessions, and the sessions of those keys.
    #[must_use]
    pub fn census(&self) -> (usize, usize, usize) {
        self.shards.iter().fold((0, 0, 0), |(all, dup_keys, dup_sessions), shard| {
            let table = shard.table.read().unwrap_or_else(PoisonError::into_inner);
            let (keys, sessions) = table.directory.duplicates();
            (all + table.directory.keys(), dup_keys + keys, dup_sessions + sessions)
        })
    }

    /// Sessions that came for a key which had one already, since the start.
    #[must_use]
    pub fn dup_sessions_opened(&self) -> u64 {
        self.dup_sessions_opened.load(Ordering::Relaxed)
    }

    /// Commands that no worker has taken yet: mostly sessions on their way.
    #[must_use]
    pub fn commands_waiting(&self) -> usize {
        self.mailboxes.iter().map(Mailbox::len).sum()
    }

    /// Bytes that wait in queues now.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.budget.used()
    }

    /// Verifies what the shards keep: one active peer per key, and listeners for live keys only.
    /// To be called while no session comes or goes.
    pub fn check(&self) {
        for shard in &self.shards {
            let table = shard.table.read().unwrap_or_else(PoisonError::into_inner);
            table.directory.check();
            for key in table.heirs.keys() {
                let active = table.directory.active(key);
                assert!(
                    active.is_some_and(|(_, peer)| peer.is_active()),
                    "heirs of a key that lives"
                );
            }
        }
    }

    pub(crate) fn mailbox(&self, core: usize) -> &Mailbox<S> {
        &self.mailboxes[core]
    }

    pub(crate) fn counters(&self, core: usize) -> &Arc<CoreCounters> {
        &self.counters[core]
    }

    pub(crate) fn new_session(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// A number that changes with every change of what [`Fabric::find`] says of `key`.
    #[inline]
    pub(crate) fn epoch(&self, key: &Key) -> u64 {
        self.shard(key).epoch.load(Ordering::Acquire)
    }

    /// The active peer of `key`, with the epoch under which it was so.
    pub(crate) fn find(&self, key: &Key) -> (u64, Option<Arc<Peer<S>>>) {
        let shard = self.shard(key);
        let table = shard.table.read().unwrap_or_else(PoisonError::into_inner);
        let peer = table.directory.active(key).map(|(_, peer)| Arc::clone(peer));
        (shard.epoch.load(Ordering::Acquire), peer)
    }

    /// Registers `peer` and makes it the active one of its key.
    pub(crate) fn arrive(&self, peer: &Arc<Peer<S>>) {
        let surplus = self.change(&peer.key, |table| {
            let before = table.directory.active(&peer.key).map(|(_, before)| Arc::clone(before));
            table.directory.arrive(peer.key, peer.id, Arc::clone(peer));
            if let Some(before) = before {
                before.set_active(false);
                self.dup_sessions_opened.fetch_add(1, Ordering::Relaxed);
            }
            table.directory.surplus(&peer.key, SESSIONS_PER_KEY_MAX).map(Arc::clone)
        });
        if let Some(surplus) = surplus {
            // Its own worker hears of it and takes it out of the directory.
            surplus.cut(CloseReason::Duplicate);
        }
    }

    /// Makes `peer` the active one of its key: it has written last.
    #[cold]
    pub(crate) fn activate(&self, peer: &Peer<S>) {
        self.change(&peer.key, |table| {
            let before = table.directory.active(&peer.key).map(|(_, before)| Arc::clone(before));
            if table.directory.activate(&peer.key, peer.id) {
                if let Some(before) = before {
                    before.set_active(false);
                }
                peer.set_active(true);
            }
        });
    }

    /// Removes `peer`, which `heard` have heard from. Gives those who must be told that the key is
    /// gone: nobody while other sessions of the key live.
    pub(crate) fn depart(&self, peer: &Peer<S>, heard: Vec<Arc<Peer<S>>>) -> Vec<Arc<Peer<S>>> {
        self.change(&peer.key, |table| match table.directory.depart(&peer.key, peer.id) {
            Departure::Last => {
                let mut all = table.heirs.remove(&peer.key).unwrap_or_default();
                all.extend(heard);
                all.sort_unstable_by_key(|peer| peer.id);
                all.dedup_by_key(|peer| peer.id);
                all
            }
            Departure::Others => {
                let heirs = table.heirs.entry(peer.key).or_default();
                heirs.extend(heard.into_iter().take(HEIRS_MAX.saturating_sub(heirs.len())));
                if let Some((_, now)) = table.directory.active(&peer.key) {
                    now.set_active(true);
                }
                Vec::new()
            }
            Departure::Unknown => heard,
        })
    }

    fn change<R>(&self, key: &Key, with: impl FnOnce(&mut Table<S>) -> R) -> R {
        let shard = self.shard(key);
        let mut table = shard.table.write().unwrap_or_else(PoisonError::into_inner);
        let result = with(&mut table);
        debug_assert!({
            table.directory.check();
            true
        });
        shard.epoch.fetch_add(1, Ordering::Release);
        result
    }

    /// Clients choose keys, but a crowded shard only costs them cached routes: within a shard the
    /// hash is keyed.
    #[inline]
    fn shard(&self, key: &Key) -> &Shard<S> {
        &self.shards[usize::from(key.0[7]) % SHARDS]
    }
}
