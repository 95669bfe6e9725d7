//! Which sessions each key has, and which of them is active.
//!
//! Policy: the last writer is active. A key's newest session becomes active, and any session that
//! sends a frame takes over. Owns no session; must stay free of sockets. Shards of it sit behind
//! the relay's locks.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hash::BuildHasher;

use hashbrown::HashMap;
use wire::key::Key;

/// Names a session for the life of the process; never reused (invariant 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// What a departure left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It was the key's last session: the peer is gone.
    Last,
    /// Other sessions of the key live on.
    Others,
    /// The session was not registered.
    Unknown,
}

/// Sessions by key. `T` is the handle that routes lead to.
#[derive(Debug)]
pub struct Directory<T, S> {
    peers: HashMap<Key, Sessions<T>, S>,
}

#[derive(Debug)]
enum Sessions<T> {
    One(SessionId, T),
    /// Invariant: at least two, the active one last.
    #[allow(clippy::box_collection, reason = "rare, and every other entry would pay its size")]
    Many(Box<Vec<(SessionId, T)>>),
}

impl<T, S: BuildHasher> Directory<T, S> {
    /// An empty directory. `hasher` must be keyed: clients choose the keys.
    pub fn new(hasher: S) -> Self {
        Self { peers: HashMap::with_hasher(hasher) }
    }

    /// Registers a session and makes it the active one of `key`. True if the key had none.
    pub fn arrive(&mut self, key: Key, id: SessionId, handle: T) -> bool {
        match self.peers.remove(&key) {
            None => {
                self.peers.insert(key, Sessions::One(id, handle));
                true
            }
            Some(Sessions::One(old, old_handle)) => {
                let both = Vec::from([(old, old_handle), (id, handle)]);
                self.peers.insert(key, Sessions::Many(Box::new(both)));
                false
            }
            Some(Sessions::Many(mut all)) => {
                all.push((id, handle));
                self.peers.insert(key, Sessions::Many(all));
                false
            }
        }
    }

    /// Makes `id` the active session of `key`. True if it was not before.
    pub fn activate(&mut self, key: &Key, id: SessionId) -> bool {
        let Some(Sessions::Many(all)) = self.peers.get_mut(key) else {
            return false;
        };
        match all.iter().position(|(other, _)| *other == id) {
            Some(at) if at + 1 < all.len() => {
                all[at..].rotate_left(1);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Removes a session. The one that wrote last among the others is then active.
    pub fn depart(&mut self, key: &Key, id: SessionId) -> Departure {
        match self.peers.get_mut(key) {
            Some(Sessions::One(only, _)) if *only == id => {
                self.peers.remove(key);
                Departure::Last
            }
            Some(Sessions::Many(all)) => {
                let Some(at) = all.iter().position(|(other, _)| *other == id) else {
                    return Departure::Unknown;
                };
                all.remove(at);
                if all.len() == 1
                    && let Some((id, handle)) = all.pop()
                {
                    self.peers.insert(*key, Sessions::One(id, handle));
                }
                Departure::Others
            }
            Some(Sessions::One(..)) | None => Departure::Unknown,
        }
    }

    /// The session of `key` that wrote longest ago, if the key has more than `max`.
    #[must_use]
    pub fn surplus(&self, key: &Key, max: usize) -> Option<&T> {
        match self.peers.get(key)? {
            Sessions::Many(all) if all.len() > max => all.first().map(|(_, handle)| handle),
            Sessions::Many(_) | Sessions::One(..) => None,
        }
    }

    /// The active session of `key`.
    #[inline]
    #[must_use]
    pub fn active(&self, key: &Key) -> Option<(SessionId, &T)> {
        match self.peers.get(key)? {
            Sessions::One(id, handle) => Some((*id, handle)),
            Sessions::Many(all) => all.last().map(|(id, handle)| (*id, handle)),
        }
    }

    /// Distinct keys with at least one session.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.peers.len()
    }

    /// Keys with several sessions, and the sessions of those keys.
    #[must_use]
    pub fn duplicates(&self) -> (usize, usize) {
        self.peers.values().fold((0, 0), |(keys, sessions), peer| match peer {
            Sessions::One(..) => (keys, sessions),
            Sessions::Many(all) => (keys + 1, sessions + all.len()),
        })
    }

    /// Every session with its key, in no order.
    pub fn sessions(&self) -> impl Iterator<Item = (&Key, &T)> {
        self.peers.iter().flat_map(|(key, sessions)| {
            let (one, many) = match sessions {
                Sessions::One(_, handle) => (Some(handle), &[][..]),
                Sessions::Many(all) => (None, &all[..]),
            };
            one.into_iter().chain(many.iter().map(|(_, handle)| handle)).map(move |it| (key, it))
        })
    }

    /// Verifies the invariants of the fields.
    pub fn check(&self) {
        for peer in self.peers.values() {
            if let Sessions::Many(all) = peer {
                assert!(all.len() >= 2, "a lone session is stored as one");
                for (i, (id, _)) in all.iter().enumerate() {
                    assert!(all[..i].iter().all(|(other, _)| other != id), "registered once");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key([1; 32]);

    fn directory(ids: &[u64]) -> Directory<u64, hashbrown::DefaultHashBuilder> {
        let mut directory = Directory::new(hashbrown::DefaultHashBuilder::default());
        for id in ids {
            directory.arrive(KEY, SessionId(*id), *id);
            directory.check();
        }
        directory
    }

    fn active<S: BuildHasher>(directory: &Directory<u64, S>) -> Option<u64> {
        directory.active(&KEY).map(|(_, handle)| *handle)
    }

    #[test]
    fn the_newest_session_is_active_until_another_writes() {
        let mut directory = directory(&[1, 2, 3]);
        assert_eq!(active(&directory), Some(3));
        assert!(directory.activate(&KEY, SessionId(1)));
        assert!(!directory.activate(&KEY, SessionId(1)));
        assert_eq!(active(&directory), Some(1));
        assert_eq!(directory.duplicates(), (1, 3));
    }

    #[test]
    fn the_peer_is_gone_only_with_its_last_session() {
        let mut directory = directory(&[1, 2]);
        assert_eq!(directory.depart(&KEY, SessionId(2)), Departure::Others);
        assert_eq!(active(&directory), Some(1));
        assert_eq!(directory.depart(&KEY, SessionId(2)), Departure::Unknown);
        assert_eq!(directory.depart(&KEY, SessionId(1)), Departure::Last);
        assert_eq!(directory.depart(&KEY, SessionId(1)), Departure::Unknown);
        assert_eq!((directory.keys(), active(&directory)), (0, None));
    }

    #[test]
    fn every_session_is_listed_with_its_key() {
        let mut directory = directory(&[1, 2]);
        directory.arrive(Key([2; 32]), SessionId(3), 3);
        let mut listed: Vec<_> = directory.sessions().map(|(key, it)| (key.0[0], *it)).collect();
        listed.sort_unstable();
        assert_eq!(listed, [(1, 1), (1, 2), (2, 3)]);
    }
}
