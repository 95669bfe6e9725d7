//! Peers, links, and what is known about where each peer is.
//!
//! Owns the numbers of peers and links, which survive a reload, the three kinds of places a peer may
//! be at, and the order in which peers are tried to find out whom a message is for. The relay asks
//! it where an initiation should go and tells it what was proved.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::time::Duration;

use wire::key::Key;

use super::mac::{Mac1, MacKey};
use super::pairs::SESSION_LIFE;
use super::relay::FREE_TRIALS;
use super::{FAN_OUT_MAX, LinkId, Place, Registrations};
use crate::bucket::{Bucket, Rate};
use crate::tick::Tick;

/// How long a place is remembered from which an initiation came that led to nothing. A stock
/// initiator tries for 90 s (WireGuard paper, section 6.4); an address translator forgets an idle
/// mapping within two minutes or so.
pub(super) const ASKER_LIFE: Duration = Duration::from_secs(120);
/// An endpoint that completed an exchange within this time is alive: its session may be in use.
const PROOF_LIFE: Duration = SESSION_LIFE;
/// Keys per second and link that may be tried for messages from a peer's endpoint. A peer renews a
/// session every two minutes at the earliest and repeats what is lost after 5 s; and it is found
/// early, by [`Roster::due`].
const RATION_PER_LINK: u32 = 16;
/// How often all links may be tried at once for messages from a peer's endpoint.
const RATION_LOOKS: u32 = 2;
/// Places weighed for one fan-out; the newest are kept.
const CANDIDATES_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PeerId(u32);

/// A place that completed an exchange, and when it last did.
#[derive(Clone, Copy, Debug)]
struct Endpoint {
    place: Place,
    proved: Tick,
}

/// A place that sent an initiation, and when it last did.
#[derive(Clone, Copy, Debug)]
struct Asker {
    place: Place,
    heard: Tick,
}

/// Somebody whom a peer may talk to.
#[derive(Clone, Copy, Debug)]
struct Neighbour {
    peer: PeerId,
    link: LinkId,
    /// When the two last completed an exchange.
    met: Option<Tick>,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) key: Key,
    mac: MacKey,
    /// Its links, in order of the other peer.
    neighbours: Vec<Neighbour>,
    /// Those of `neighbours` that it ever met, in the order of when it last did.
    met: BTreeSet<(Tick, PeerId)>,
    /// Keys that may be tried for messages from its endpoint.
    ration: Bucket,
    endpoint: Option<Endpoint>,
    /// The endpoint before this one; or a place that completed an exchange nobody could vouch for
    /// while the endpoint was alive. Another place than `endpoint`.
    rival: Option<Endpoint>,
    /// Places that want to talk to this peer and thus may be any of its neighbours. All different.
    askers: Vec<Asker>,
    /// Initiations sent to `endpoint` since an exchange with it was completed.
    unanswered: u8,
    /// Initiations sent since then. Says whose turn it is if one cannot be sent to all places.
    turn: usize,
}

#[derive(Debug, Default)]
pub(super) struct Roster {
    peers: Vec<Option<Peer>>,
    by_key: BTreeMap<Key, PeerId>,
    /// Every peer, those with most links first.
    by_links: Vec<PeerId>,
    /// The two ends of each link.
    links: Vec<Option<[PeerId; 2]>>,
    /// The peer that was last proved to be at a place. Its endpoint is that place.
    owners: BTreeMap<Place, PeerId>,
    /// Askers that made room for newer ones.
    pub(super) askers_evicted: u64,
    /// Peers that were proved to be at another place than before.
    pub(super) moved: u64,
}

/// What a reload took away.
#[derive(Debug, Default)]
pub(super) struct Removed {
    pub(super) peers: BTreeSet<PeerId>,
    pub(super) links: Vec<LinkId>,
}

/// For whom a message is, if that was found out, and how many keys were tried for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    pub(super) found: Option<PeerId>,
    pub(super) tried: usize,
}

impl Trial {
    /// What it takes from a ration of that rate: keys that were not free, no more than there can be.
    pub(super) fn dear(self, rate: Rate) -> u32 {
        let keys = self.tried.saturating_sub(FREE_TRIALS);
        u32::try_from(keys).unwrap_or(u32::MAX).min(rate.burst)
    }
}

impl Roster {
    /// Makes peers and links those of `registrations`. What stays keeps its number and all that is
    /// known about it; the numbers of what goes are used again.
    pub(super) fn adopt(&mut self, registrations: &Registrations, now: Tick) -> Removed {
        let removed = self.remove_others(registrations);
        let mut free = vacant(&self.peers);
        for key in registrations.peers() {
            if !self.by_key.contains_key(key) {
                let id = PeerId(place_in(&mut self.peers, &mut free, Peer::new(*key)));
                self.by_key.insert(*key, id);
            }
        }
        let mut free = vacant(&self.links);
        for keys in registrations.links() {
            let [Some(a), Some(b)] = keys.map(|key| self.by_key.get(&key).copied()) else {
                debug_assert!(false, "registrations link registered keys");
                continue;
            };
            if self.link(a, b).is_none() {
                let link = LinkId(place_in(&mut self.links, &mut free, [a, b]));
                self.join(a, b, link);
                self.join(b, a, link);
            }
        }
        let mut ids: Vec<_> = self.by_key.values().copied().collect();
        ids.sort_by_key(|id| Reverse(self.neighbours_len(*id)));
        for id in &ids {
            if let Some(peer) = self.peer_mut(*id) {
                peer.ration = Bucket::full(peer.ration_rate(), now);
            }
        }
        self.by_links = ids;
        removed
    }

    /// In one pass over each table, however much goes.
    fn remove_others(&mut self, registrations: &Registrations) -> Removed {
        let mut removed = Removed::default();
        let links =
            self.links().filter(|(_, keys)| registrations.links().binary_search(keys).is_err());
        removed.links = links.map(|(link, _)| link).collect();
        let mut bereft = BTreeSet::new();
        for link in &removed.links {
            let ends = self.links.get_mut(link.index()).and_then(Option::take);
            bereft.extend(ends.into_iter().flatten());
        }
        let Self { peers, links, .. } = self;
        for id in bereft {
            if let Some(peer) = peers.get_mut(id.0 as usize).and_then(Option::as_mut) {
                peer.leave(|link| links.get(link.index()).is_some_and(Option::is_some));
            }
        }
        let stays = |key: &Key| registrations.peers().binary_search(key).is_ok();
        removed.peers =
            self.by_key.extract_if(.., |key, _| !stays(key)).map(|(_, id)| id).collect();
        if !removed.peers.is_empty() {
            self.owners.retain(|_, owner| !removed.peers.contains(owner));
        }
        for id in &removed.peers {
            if let Some(slot) = self.peers.get_mut(id.0 as usize) {
                *slot = None;
            }
        }
        removed
    }

    fn join(&mut self, id: PeerId, other: PeerId, link: LinkId) {
        if let Some(peer) = self.peer_mut(id) {
            let at = peer.neighbours.partition_point(|it| it.peer < other);
            peer.neighbours.insert(at, Neighbour { peer: other, link, met: None });
        }
    }

    pub(super) fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.0 as usize)?.as_ref()
    }

    fn peer_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(id.0 as usize)?.as_mut()
    }

    /// Number of peers.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        let numbered = self.peers.iter().enumerate();
        numbered.filter_map(|(id, peer)| Some((PeerId(id as u32), peer.as_ref()?)))
    }

    /// Every link with the keys of its ends, the smaller one first.
    pub(super) fn links(&self) -> impl Iterator<Item = (LinkId, [Key; 2])> {
        self.links.iter().enumerate().filter_map(|(link, ends)| {
            let [a, b] = ends.as_ref()?.map(|id| self.peer(id).map(|peer| peer.key));
            Some((LinkId(link as u32), [a?.min(b?), a?.max(b?)]))
        })
    }

    fn neighbours(&self, id: PeerId) -> &[Neighbour] {
        self.peer(id).map_or(&[], |peer| &peer.neighbours)
    }

    /// Number of links of a peer.
    pub(super) fn neighbours_len(&self, id: PeerId) -> usize {
        self.neighbours(id).len()
    }

    pub(super) fn link(&self, a: PeerId, b: PeerId) -> Option<LinkId> {
        let neighbours = self.neighbours(a);
        let at = neighbours.binary_search_by_key(&b, |it| it.peer).ok()?;
        neighbours.get(at).map(|it| it.link)
    }

    /// Every peer, those first whom a message from an unknown place is most likely for.
    pub(super) fn most_linked(&self) -> impl Iterator<Item = PeerId> {
        self.by_links.iter().copied()
    }

    /// Whom `id` is linked to, those first to whom it is most likely to send an initiation: sessions
    /// are renewed by age.
    pub(super) fn due(&self, id: PeerId, now: Tick) -> impl Iterator<Item = PeerId> {
        let alive = Tick(now.0.saturating_sub(SESSION_LIFE.as_nanos() as u64));
        let (alive, first) = ((alive, PeerId(0)), (Tick::ZERO, PeerId(0)));
        let met = self.peer(id).map(|peer| &peer.met).into_iter();
        let renewed = met.clone().flat_map(move |met| met.range(alive..));
        let over = met.flat_map(move |met| met.range(first..alive).rev());
        renewed.map(|(_, id)| *id).chain(self.unmet(id)).chain(over.map(|(_, id)| *id))
    }

    /// Whom `id` is linked to, those first who are most likely to ask for it from an unknown place:
    /// nobody knows where they are, or for how long it has not been true.
    pub(super) fn lost(&self, id: PeerId) -> impl Iterator<Item = PeerId> {
        let met = self.peer(id).into_iter().flat_map(|peer| &peer.met);
        self.unmet(id).chain(met.map(|(_, id)| *id))
    }

    fn unmet(&self, id: PeerId) -> impl Iterator<Item = PeerId> {
        self.neighbours(id).iter().filter(|it| it.met.is_none()).map(|it| it.peer)
    }

    /// Notes that the two completed an exchange.
    fn meet(&mut self, a: PeerId, b: PeerId, now: Tick) {
        for (id, other) in [(a, b), (b, a)] {
            let Some(peer) = self.peer_mut(id) else { continue };
            let Ok(at) = peer.neighbours.binary_search_by_key(&other, |it| it.peer) else {
                continue;
            };
            let before = peer.neighbours[at].met.replace(now);
            before.map(|met| peer.met.remove(&(met, other)));
            peer.met.insert((now, other));
        }
    }

    pub(super) fn link_exists(&self, link: LinkId) -> bool {
        self.links.get(link.index()).is_some_and(Option::is_some)
    }

    pub(super) fn find(&self, key: &Key) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    /// Whom `link` joins `id` to.
    pub(super) fn other_end(&self, link: LinkId, id: PeerId) -> Option<PeerId> {
        let [a, b] = (*self.links.get(link.index())?)?;
        Some(if a == id { b } else { a })
    }

    /// What may be tried for messages from the endpoint of `id`, and how fast it grows.
    pub(super) fn ration(&mut self, id: PeerId) -> Option<(&mut Bucket, Rate)> {
        let peer = self.peer_mut(id)?;
        let rate = peer.ration_rate();
        Some((&mut peer.ration, rate))
    }

    /// Whether mac1 is for that peer.
    pub(super) fn fits(&self, id: PeerId, mac1: Mac1<'_>) -> bool {
        self.peer(id).is_some_and(|peer| peer.mac.fits(mac1))
    }

    /// Looks for whom mac1 is among the first `max` of `ids`.
    pub(super) fn try_each(
        &self,
        ids: impl Iterator<Item = PeerId>,
        mac1: Mac1<'_>,
        max: usize,
    ) -> Trial {
        let mut tried = 0;
        let found = ids.take(max).inspect(|_| tried += 1).find(|id| self.fits(*id, mac1));
        Trial { found, tried }
    }

    /// The peer that was last proved to be at `place`.
    pub(super) fn owner(&self, place: Place) -> Option<PeerId> {
        self.owners.get(&place).copied()
    }

    /// Where that peer was last proved to be.
    pub(super) fn endpoint(&self, id: PeerId) -> Option<Place> {
        Some(self.peer(id)?.endpoint?.place)
    }

    /// Whether `place` belongs to another peer than `id` and is in use.
    fn settled_elsewhere(&self, place: Place, id: PeerId, now: Tick) -> bool {
        let owner = self.owner(place).filter(|owner| *owner != id);
        let endpoint = owner.and_then(|owner| self.peer(owner)?.endpoint);
        endpoint.is_some_and(|endpoint| endpoint.alive(now))
    }

    /// Notes that somebody at `place` wants to talk to `id`.
    pub(super) fn note_asker(&mut self, id: PeerId, place: Place, now: Tick, max: usize) {
        let Some(peer) = self.peer_mut(id) else { return };
        peer.askers.retain(|it| it.place != place && now.saturating_since(it.heard) < ASKER_LIFE);
        let evicted = peer.askers.len() >= max.max(1);
        if evicted {
            peer.evict_asker(place);
        }
        peer.askers.push(Asker { place, heard: now });
        self.askers_evicted += u64::from(evicted);
    }

    /// Fills `copies` with places to which an initiation for `id` goes that came from `from`, at
    /// most `room` of them. See [`super::Relay`] for the order.
    pub(super) fn fan_out(
        &mut self,
        id: PeerId,
        from: Place,
        room: usize,
        now: Tick,
        copies: &mut Vec<Place>,
    ) {
        let mut candidates = self.candidates(id, from, now);
        let room = room.min(FAN_OUT_MAX);
        let endpoint = self.endpoint(id).filter(|place| candidates.first() == Some(place));
        let Some(peer) = self.peer_mut(id) else { return };
        let at_home = usize::from(endpoint.is_some());
        let turn = peer.turn;
        peer.turn = turn.wrapping_add(1);
        if candidates.len() > room {
            let others = candidates.get_mut(at_home..).unwrap_or_default();
            if room > at_home {
                others.rotate_left(turn % others.len().max(1));
            } else {
                // Every other one goes to the endpoint, however many others there are.
                others.rotate_left(turn / 2 % others.len().max(1));
                candidates.rotate_left(turn % 2);
            }
            candidates.truncate(room);
        }
        if endpoint.is_some_and(|place| candidates.contains(&place)) {
            peer.unanswered = peer.unanswered.saturating_add(1);
        }
        copies.extend(candidates);
    }

    /// Where `id` may be: its endpoint; and if that is unknown or silent, its rival and whoever wants
    /// to talk to one of its neighbours, the newest first.
    fn candidates(&self, id: PeerId, from: Place, now: Tick) -> Vec<Place> {
        let Some(peer) = self.peer(id) else { return Vec::new() };
        let mut places = Vec::new();
        let mut consider = |place: Place| {
            if place != from && places.len() < CANDIDATES_MAX && !places.contains(&place) {
                places.push(place);
            }
        };
        peer.endpoint.iter().for_each(|it| consider(it.place));
        if peer.endpoint.is_none() || peer.unanswered > 0 {
            peer.rival.iter().filter(|it| it.alive(now)).for_each(|it| consider(it.place));
            let neighbours = peer.neighbours.iter().filter_map(|it| self.peer(it.peer));
            let fresh = |it: &&Asker| now.saturating_since(it.heard) < ASKER_LIFE;
            let mut askers: Vec<&Asker> =
                neighbours.flat_map(|peer| &peer.askers).filter(fresh).collect();
            askers.sort_by_key(|asker| Reverse(asker.heard));
            let askers = askers.iter().map(|it| it.place);
            askers.filter(|it| !self.settled_elsewhere(*it, id, now)).for_each(consider);
        }
        places
    }

    /// Draws the conclusions of a completed exchange between `a` and `b`, each at a place, and says
    /// whether both are now endpoints. See [`super::Relay`] for the rules.
    pub(super) fn settle(&mut self, a: (PeerId, Place), b: (PeerId, Place), now: Tick) -> bool {
        let at_home = |(id, place)| self.endpoint(id) == Some(place);
        let (a_at_home, b_at_home) = (at_home(a), at_home(b));
        self.meet(a.0, b.0, now);
        let settled = self.prove(a, b_at_home, now);
        self.prove(b, a_at_home, now) && settled
    }

    /// Notes that `id` completed an exchange from `place`; `vouched` says whether the other side
    /// did so from its endpoint. True if `place` is its endpoint now.
    fn prove(&mut self, (id, place): (PeerId, Place), vouched: bool, now: Tick) -> bool {
        let Some(peer) = self.peer_mut(id) else { return false };
        let here = Endpoint { place, proved: now };
        let before = peer.endpoint.filter(|there| there.place != place);
        if let Some(there) = before.filter(|it| it.alive(now)) {
            peer.rival = Some(if vouched { there } else { here });
            if !vouched {
                return false;
            }
        }
        peer.endpoint = Some(here);
        peer.rival.take_if(|rival| rival.place == place);
        (peer.unanswered, peer.turn) = (0, 0);
        if let Some(there) = before {
            self.moved += 1;
            if self.owners.get(&there.place) == Some(&id) {
                self.owners.remove(&there.place);
            }
        }
        self.owners.insert(place, id);
        true
    }

    /// Lets go of askers and rivals that are out of date.
    pub(super) fn expire(&mut self, now: Tick) {
        for peer in self.peers.iter_mut().flatten() {
            peer.askers.retain(|it| now.saturating_since(it.heard) < ASKER_LIFE);
            peer.rival.take_if(|rival| !rival.alive(now));
        }
    }

    pub(super) fn check(&self, askers_max: usize) {
        assert_eq!(self.peers().count(), self.by_key.len());
        for (id, peer) in self.peers() {
            assert_eq!(self.by_key.get(&peer.key), Some(&id));
            assert!(peer.neighbours.is_sorted_by_key(|it| it.peer));
            for Neighbour { peer: other, link, met } in &peer.neighbours {
                assert_eq!(self.link(*other, id), Some(*link), "links have two ends");
                let ends = self.links[link.index()].expect("a neighbour is linked");
                assert!(ends.contains(&id) && ends.contains(other) && *other != id);
                assert!(met.is_none_or(|met| peer.met.contains(&(met, *other))));
            }
            let met = peer.neighbours.iter().filter(|it| it.met.is_some()).count();
            assert_eq!(met, peer.met.len());
            assert!(peer.askers.len() <= askers_max);
            for (i, asker) in peer.askers.iter().enumerate() {
                assert!(peer.askers[..i].iter().all(|it| it.place != asker.place));
            }
            let places = peer.endpoint.zip(peer.rival);
            assert!(places.is_none_or(|(endpoint, rival)| endpoint.place != rival.place));
            assert!(peer.endpoint.is_some() || peer.rival.is_none(), "a rival of somebody");
        }
        let ends: usize = self.peers().map(|(_, peer)| peer.neighbours.len()).sum();
        assert_eq!(ends, 2 * self.links().count());
        assert_eq!(self.by_links.len(), self.by_key.len());
        assert!(self.by_links.is_sorted_by_key(|id| Reverse(self.neighbours_len(*id))));
        for (place, owner) in &self.owners {
            assert_eq!(self.endpoint(*owner), Some(*place));
        }
    }
}

impl Peer {
    fn new(key: Key) -> Self {
        Self {
            key,
            mac: MacKey::new(&key),
            neighbours: Vec::new(),
            met: BTreeSet::new(),
            ration: Bucket::default(),
            endpoint: None,
            rival: None,
            askers: Vec::new(),
            unanswered: 0,
            turn: 0,
        }
    }

    /// Forgets the neighbours whose link does not exist any more.
    fn leave(&mut self, exists: impl Fn(LinkId) -> bool) {
        let Self { neighbours, met, .. } = self;
        neighbours.retain(|it| exists(it.link));
        met.retain(|(_, id)| neighbours.binary_search_by_key(id, |it| it.peer).is_ok());
    }

    /// How fast its ration grows.
    fn ration_rate(&self) -> Rate {
        let links = u32::try_from(self.neighbours.len()).unwrap_or(u32::MAX);
        Rate {
            per_second: links.saturating_mul(RATION_PER_LINK),
            burst: links.saturating_mul(RATION_LOOKS),
        }
    }

    /// Takes out the asker that has been silent longest: of the newcomer's network if that has a
    /// quarter of all places, else of all. One network cannot crowd out the others.
    fn evict_asker(&mut self, newcomer: Place) {
        let kin = |it: &Asker| it.place.prefix() == newcomer.prefix();
        let crowded = self.askers.iter().filter(|it| kin(it)).count() * 4 >= self.askers.len();
        let numbered = self.askers.iter().enumerate().filter(|(_, it)| !crowded || kin(it));
        if let Some((at, _)) = numbered.min_by_key(|(_, it)| it.heard) {
            self.askers.remove(at);
        }
    }
}

impl Endpoint {
    fn alive(&self, now: Tick) -> bool {
        now.saturating_since(self.proved) < PROOF_LIFE
    }
}

/// The empty ones of `slots`, the first one last.
fn vacant<T>(slots: &[Option<T>]) -> Vec<u32> {
    let numbered = slots.iter().enumerate().rev().filter(|(_, slot)| slot.is_none());
    numbered.map(|(at, _)| at as u32).collect()
}

/// Puts `item` into the last of the `free` slots, or else a new one, and says which.
fn place_in<T>(slots: &mut Vec<Option<T>>, free: &mut Vec<u32>, item: T) -> u32 {
    let slot = free.pop().unwrap_or(slots.len() as u32);
    match slots.get_mut(slot as usize) {
        Some(place) => *place = Some(item),
        None => slots.push(Some(item)),
    }
    slot
}
