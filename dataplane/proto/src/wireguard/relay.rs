//! The truth about handshakes, endpoints and flows.
//!
//! Owns every decision about who is where. It sees handshake messages and the rare transport
//! message that no flow is known for. It never reads what is sealed, never sends anything of its
//! own and never sends more bytes than it was given. One core owns it; the others and the XDP map
//! follow its changes.

use alloc::vec::Vec;
use core::time::Duration;

use wire::drop::DropReason;
use wire::wireguard::{Cookie, Data, INITIATION_LEN, Initiation, Message, Reject, Response};

use super::handshakes::{Answer, Handshake, HandshakeId, Handshakes};
use super::mac::Mac1;
use super::pairs::{Pair, Pairs, SESSION_LIFE};
use super::roster::{PeerId, Roster};
use super::strikes::Strikes;
use super::{
    Effects, FlowChange, FlowKey, Limits, LinkId, LinkStatus, PeerStatus, Place, Registrations,
    Session, Verdict,
};
use crate::bucket::Bucket;
use crate::tick::Tick;

/// How often [`Relay::tick`] should be called. Lifetimes are as much longer as it is called later.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes that came in and went nowhere, kept at most for sending other messages to several places.
/// More than any datagram has.
const CREDIT_BYTES_MAX: usize = 1 << 16;
/// Keys that are tried whatever was spent: together they cost about as much as receiving the
/// message did.
pub(super) const FREE_TRIALS: usize = 4;

/// Follows the handshakes of registered peers and says which flows exist.
///
/// **For whom.** mac1 of an initiation is keyed by the addressee's public key, that of a response
/// by the initiator's. Anybody who knows those keys can make either, so neither proves who sent it.
///
/// **Where a peer may be.** A place that sends an initiation for B may be any peer linked to B; it
/// is an *asker* of B. An initiation for A goes to A's endpoint. If A has none, or the last
/// initiation sent there led to nothing, it goes to A's previous or contested place and to the
/// askers of A's neighbours as well: up to four places at once if credit allows, else to one after
/// the other, every second time to the endpoint.
///
/// **Credit.** Every byte that comes in earns one, every byte that goes out spends one, and what is
/// not there is not spent. So no input, forged or not, ever gets more bytes out than it brought in.
///
/// **Trials.** mac1 is found out by trying keys, the likely ones first. A few are free. What is
/// beyond them is spent from rations: for what comes from an endpoint, its own, so that junk with
/// its forged address costs nobody else; else the one of all strangers. A response from where an
/// initiation went, to whoever lives where that came from, is one key and needs no ration.
///
/// **What moves an endpoint.** A response counts only from a place that the initiation was sent to.
/// The exchange is complete when the first data packet comes from where the initiation came from,
/// with the responder's index: a real initiator sends none on a forged response. Then both sides
/// have flows, and a peer without an endpoint has one. An endpoint that lately completed an
/// exchange is displaced only if the other side took part from its own endpoint, and stays known
/// as the previous one; otherwise the new place is a contested one until the old has been silent
/// for the life of a session. Existing sessions are never cut: they end by age.
#[derive(Debug)]
pub struct Relay {
    limits: Limits,
    roster: Roster,
    handshakes: Handshakes,
    pairs: Pairs,
    strikes: Strikes,
    /// Bytes received and not sent, at most [`CREDIT_BYTES_MAX`].
    credit_bytes: usize,
    /// Keys that may be tried for places that are nobody's endpoint.
    strangers: Bucket,
    /// Keys that may be tried for all endpoints together; each has its own ration besides.
    endpoints: Bucket,
    counters: Counters,
    /// The latest moment it was told. Lifetimes rely on time that does not go back.
    now: Tick,
}

/// What happened so far, and how often a limit was reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Exchanges completed.
    pub completed: u64,
    /// Peers that were found at another place than before.
    pub moved: u64,
    /// Handshakes that made room, at [`Limits::handshakes_max`].
    pub handshakes_evicted: u64,
    /// Places that made room, at [`Limits::askers_per_peer_max`].
    pub askers_evicted: u64,
    /// Sessions that made room, at [`Limits::sessions_per_link_max`].
    pub sessions_evicted: u64,
    /// Offences not noted, at [`Limits::strikes_max`].
    pub strikes_unrecorded: u64,
    /// Handshakes that are waiting now.
    pub handshakes: u64,
    /// Places and networks that are being watched now.
    pub watched: u64,
}

impl Relay {
    /// How often [`Relay::tick`] should be called.
    pub const TICK_INTERVAL: Duration = TICK_INTERVAL;

    /// A relay that knows nobody.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            strangers: Bucket::full(limits.trials, Tick::ZERO),
            endpoints: Bucket::full(limits.trials, Tick::ZERO),
            limits,
            roster: Roster::default(),
            handshakes: Handshakes::default(),
            pairs: Pairs::default(),
            strikes: Strikes::default(),
            credit_bytes: 0,
            counters: Counters::default(),
            now: Tick::ZERO,
        }
    }

    /// Makes peers and links those of `registrations`. Peers and links that stay keep everything;
    /// the flows of links that go end.
    pub fn register(&mut self, registrations: &Registrations, now: Tick, effects: &mut Effects) {
        effects.clear();
        let now = self.latest(now);
        self.expire(now, effects);
        let removed = self.roster.adopt(registrations, now);
        self.handshakes.remove_peers(&removed.peers);
        for link in removed.links {
            self.pairs.release_link(link, &mut effects.flows);
            effects.flows.push(FlowChange::Forget(link));
        }
        self.check_in_debug();
    }

    /// Judges a datagram that no flow is known for. See [`Effects`] for what is then to be done.
    pub fn step(
        &mut self,
        datagram: &[u8],
        from: Place,
        now: Tick,
        effects: &mut Effects,
    ) -> Verdict {
        effects.clear();
        let now = self.latest(now);
        self.credit_bytes = CREDIT_BYTES_MAX.min(self.credit_bytes + datagram.len());
        let judged = match Message::parse(datagram) {
            Ok(Message::Initiation(message)) => self.initiation(message, from, now, effects),
            Ok(Message::Response(message)) => self.response(message, from, now, effects),
            Ok(Message::Cookie(message)) => self.cookie(message, from, effects),
            Ok(Message::Data(message)) => self.data(message, from, now, effects),
            Err(Reject::Length(_)) => Err(DropReason::BadWireguard),
            Err(Reject::NotWireguard) => Err(DropReason::NotStun),
        };
        match judged {
            Ok(()) => {
                debug_assert!(!effects.copies.is_empty() && !effects.copies.contains(&from));
                let spent = datagram.len() * effects.copies.len();
                debug_assert!(spent <= self.credit_bytes, "a copy was sent without credit");
                self.credit_bytes = self.credit_bytes.saturating_sub(spent);
                Verdict::Sent
            }
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// Lets go of what is over. To be called every [`Relay::TICK_INTERVAL`].
    pub fn tick(&mut self, now: Tick, effects: &mut Effects) {
        effects.clear();
        let now = self.latest(now);
        self.expire(now, effects);
        self.check_in_debug();
    }

    /// Every relayed session, to be kept for [`Relay::resume`].
    pub fn sessions(&self, now: Tick) -> impl Iterator<Item = Session> {
        self.pairs.iter().filter_map(move |pair| self.session(pair, now))
    }

    /// The sessions of one link among [`Relay::sessions`].
    pub fn sessions_of(&self, link: LinkId, now: Tick) -> impl Iterator<Item = Session> {
        self.pairs.iter_link(link).filter_map(move |pair| self.session(pair, now))
    }

    fn session(&self, pair: &Pair, now: Tick) -> Option<Session> {
        let responder = self.roster.other_end(pair.link, pair.initiator)?;
        let key = |id| self.roster.peer(id).map(|peer| peer.key);
        let left = pair.expires.saturating_since(now);
        let Pair { forth, back, .. } = *pair;
        Some(Session { peers: [key(pair.initiator)?, key(responder)?], forth, back, left })
    }

    /// Goes on with the sessions of a predecessor, as far as their peers are registered and linked,
    /// and takes their places for endpoints where none are known.
    pub fn resume(
        &mut self,
        sessions: impl IntoIterator<Item = Session>,
        now: Tick,
        effects: &mut Effects,
    ) {
        effects.clear();
        let now = self.latest(now);
        let mut sessions: Vec<_> = sessions.into_iter().take(self.limits.flows_max() / 2).collect();
        sessions.sort_by_key(|session| session.left);
        for Session { peers, forth, back, left } in sessions {
            let [Some(a), Some(b)] = peers.map(|key| self.roster.find(&key)) else { continue };
            let Some(link) = self.roster.link(a, b) else { continue };
            if forth.from == back.from {
                continue;
            }
            let vouched = self.roster.settle((a, forth.from), (b, back.from), now);
            let expires = now.plus(left.min(SESSION_LIFE));
            let pair = Pair { link, initiator: a, forth, back, vouched, expires };
            self.pairs.add(pair, self.limits.sessions_per_link_max, &mut effects.flows);
        }
        self.check_in_debug();
    }

    /// Every registered peer.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus> {
        let peers = self.roster.peers();
        peers.map(|(id, peer)| PeerStatus { key: peer.key, endpoint: self.roster.endpoint(id) })
    }

    /// Every registered link.
    pub fn links(&self) -> impl Iterator<Item = LinkStatus> {
        self.roster.links().map(|(link, peers)| {
            let sessions = self.pairs.count(link);
            LinkStatus { link, peers, sessions }
        })
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            moved: self.roster.moved,
            handshakes_evicted: self.handshakes.evicted,
            askers_evicted: self.roster.askers_evicted,
            sessions_evicted: self.pairs.evicted,
            strikes_unrecorded: self.strikes.unrecorded,
            handshakes: self.handshakes.len() as u64,
            watched: self.strikes.len() as u64,
            ..self.counters
        }
    }

    /// Verifies the invariants of all tables.
    ///
    /// # Panics
    ///
    /// If one does not hold.
    pub fn check(&self) {
        assert!(self.credit_bytes <= CREDIT_BYTES_MAX);
        self.roster.check(self.limits.askers_per_peer_max);
        let peer_exists = |id| self.roster.peer(id).is_some();
        self.handshakes.check(self.limits.handshakes_max, peer_exists);
        let link_exists = |link| self.roster.link_exists(link);
        self.pairs.check(self.limits.sessions_per_link_max, link_exists);
        assert!(self.strikes.len() <= self.limits.strikes_max);
    }

    fn check_in_debug(&self) {
        if cfg!(debug_assertions) {
            self.check();
        }
    }

    fn latest(&mut self, now: Tick) -> Tick {
        self.now = self.now.max(now);
        self.now
    }

    fn expire(&mut self, now: Tick, effects: &mut Effects) {
        self.pairs.expire(now, &mut effects.flows);
        self.handshakes.expire(now);
        self.roster.expire(now);
        self.strikes.expire(now);
    }

    fn initiation(
        &mut self,
        message: Initiation<'_>,
        from: Place,
        now: Tick,
        effects: &mut Effects,
    ) -> Result<(), DropReason> {
        let to = self.addressee(message.mac1(), from, now, &mut effects.tried)?;
        let owner = self.roster.owner(from);
        let known = owner.is_some_and(|owner| self.roster.link(owner, to).is_some());
        if !known {
            self.roster.note_asker(to, from, now, self.limits.askers_per_peer_max);
        }
        let room = self.credit_bytes / INITIATION_LEN;
        self.roster.fan_out(to, from, room, now, &mut effects.copies);
        if effects.copies.is_empty() {
            return Err(DropReason::NoEndpoint);
        }
        let origin = FlowKey { from, receiver: message.sender() };
        let max = self.limits.handshakes_max;
        self.handshakes.begin((origin, to), &effects.copies, known, now, max);
        Ok(())
    }

    /// For whom an initiation is. The links of whoever is at home at `from` come first; trying
    /// everybody is refused to offenders.
    fn addressee(
        &mut self,
        mac1: Mac1<'_>,
        from: Place,
        now: Tick,
        tried: &mut usize,
    ) -> Result<PeerId, DropReason> {
        if let Some(owner) = self.roster.owner(from)
            && let Some(id) = self.try_links(owner, mac1, now, tried)
        {
            return Ok(id);
        }
        if self.strikes.ignores(from, now) {
            return Err(DropReason::Ignored);
        }
        let rest = self.roster.len().saturating_sub(FREE_TRIALS);
        let rate = self.limits.trials;
        // Whatever is configured, it suffices for one look at everybody.
        let affordable = self.strangers.tokens(now, rate) as usize >= rest.min(rate.burst as usize);
        let max = if affordable { usize::MAX } else { FREE_TRIALS };
        let trial = self.roster.try_each(self.roster.most_linked(), mac1, max);
        self.strangers.take(trial.dear(rate), now, rate);
        *tried += trial.tried;
        match trial.found {
            Some(id) => Ok(id),
            None if !affordable => Err(DropReason::TrialsSpent),
            None => {
                self.strikes.strike(from, now, self.limits.strikes_max);
                Err(DropReason::UnknownPeer)
            }
        }
    }

    /// Which neighbour of `owner`, who is at home, an initiation is for; as far as its ration goes.
    fn try_links(
        &mut self,
        owner: PeerId,
        mac1: Mac1<'_>,
        now: Tick,
        tried: &mut usize,
    ) -> Option<PeerId> {
        let rate = self.limits.trials;
        let shared = self.endpoints.tokens(now, rate);
        let (ration, own_rate) = self.roster.ration(owner)?;
        let max = FREE_TRIALS + ration.tokens(now, own_rate).min(shared) as usize;
        let trial = self.roster.try_each(self.roster.due(owner, now), mac1, max);
        self.endpoints.take(trial.dear(rate), now, rate);
        let (ration, own_rate) = self.roster.ration(owner)?;
        ration.take(trial.dear(own_rate), now, own_rate);
        *tried += trial.tried;
        trial.found
    }

    /// Which neighbour of `to` a response is for: whoever is at home where the initiation came from,
    /// or else somebody from elsewhere, as far as the ration of strangers goes.
    fn initiator(
        &mut self,
        to: PeerId,
        origin: Place,
        mac1: Mac1<'_>,
        now: Tick,
        tried: &mut usize,
    ) -> Result<PeerId, DropReason> {
        let owner = self.roster.owner(origin);
        let owner = owner.filter(|owner| self.roster.link(*owner, to).is_some());
        *tried += usize::from(owner.is_some());
        if let Some(owner) = owner.filter(|owner| self.roster.fits(*owner, mac1)) {
            return Ok(owner);
        }
        let rate = self.limits.trials;
        let max = FREE_TRIALS + self.strangers.tokens(now, rate) as usize;
        let trial = self.roster.try_each(self.roster.lost(to), mac1, max);
        self.strangers.take(trial.dear(rate), now, rate);
        *tried += trial.tried;
        let spent = trial.tried < self.roster.neighbours_len(to);
        let reason = if spent { DropReason::TrialsSpent } else { DropReason::NotLinked };
        trial.found.ok_or(reason)
    }

    fn response(
        &mut self,
        message: Response<'_>,
        from: Place,
        now: Tick,
        effects: &mut Effects,
    ) -> Result<(), DropReason> {
        let key = FlowKey { from, receiver: message.receiver() };
        let waiting: Vec<_> =
            self.handshakes.sent_to(key).map(|(id, it)| (id, it.to, it.origin.from)).collect();
        let mut reason = DropReason::UnknownIndex;
        let mut chosen: Option<(HandshakeId, PeerId, Place)> = None;
        for (id, to, origin) in waiting {
            let found = self.initiator(to, origin, message.mac1(), now, &mut effects.tried);
            let initiator = match found {
                Ok(initiator) => initiator,
                Err(why) => {
                    reason = why;
                    continue;
                }
            };
            // The oldest, unless one comes from the initiator's own endpoint.
            let home = self.roster.endpoint(initiator) == Some(origin);
            if chosen.is_none() || home {
                chosen = Some((id, initiator, origin));
            }
            if home {
                break;
            }
        }
        let (id, initiator, origin) = chosen.ok_or(reason)?;
        let answer = Answer { from, index: message.sender(), initiator };
        let settled = |it: &Handshake, place| self.roster.endpoint(it.to) == Some(place);
        if !self.handshakes.answer(id, answer, settled) {
            return Err(DropReason::UnknownIndex);
        }
        // An older session by that name would swallow the packet that completes this one.
        let named = FlowKey { from: origin, receiver: message.sender() };
        self.pairs.release(&named, &mut effects.flows);
        effects.copies.push(origin);
        Ok(())
    }

    /// A cookie reply goes to whoever sent what it answers.
    fn cookie(
        &mut self,
        message: Cookie<'_>,
        from: Place,
        effects: &mut Effects,
    ) -> Result<(), DropReason> {
        let key = FlowKey { from, receiver: message.receiver() };
        let initiation = self.handshakes.sent_to(key).next().map(|(_, it)| it.origin.from);
        let response = self.handshakes.answered(&key).map(|(_, _, answer)| answer.from);
        let to = initiation.or(response).ok_or(DropReason::UnknownIndex)?;
        effects.copies.push(to);
        Ok(())
    }

    /// A transport message completes an exchange, or it belongs to a session that the caller's
    /// replica has not heard of yet.
    fn data(
        &mut self,
        message: Data<'_>,
        from: Place,
        now: Tick,
        effects: &mut Effects,
    ) -> Result<(), DropReason> {
        let key = FlowKey { from, receiver: message.receiver() };
        let Some((id, handshake, answer)) = self.handshakes.answered(&key) else {
            let target = self.pairs.target(&key).ok_or(DropReason::UnknownIndex)?;
            effects.copies.push(target.to);
            effects.link = Some(target.link);
            return Ok(());
        };
        let (initiator, responder) = (answer.initiator, handshake.to);
        let back = FlowKey { from: answer.from, receiver: handshake.origin.receiver };
        let link = self.roster.link(initiator, responder).ok_or(DropReason::NotLinked)?;
        self.handshakes.remove(id);
        let vouched = self.roster.settle((initiator, from), (responder, answer.from), now);
        let expires = now.plus(SESSION_LIFE);
        let pair = Pair { link, initiator, forth: key, back, vouched, expires };
        self.pairs.add(pair, self.limits.sessions_per_link_max, &mut effects.flows);
        self.counters.completed += 1;
        effects.copies.push(answer.from);
        effects.link = Some(link);
        Ok(())
    }
}
