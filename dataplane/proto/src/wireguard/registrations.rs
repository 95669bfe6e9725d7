//! Who exists and who may talk to whom.
//!
//! Owns the validation of what an operator wrote. The configuration makes [`Registrations`], the
//! relay believes them.

use alloc::vec::Vec;

use thiserror::Error;
use wire::key::Key;

use crate::bucket::Rate;

/// How much of everything a relay keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Registered peers.
    pub peers_max: usize,
    /// Registered links; also the bound of [`super::LinkId`].
    pub links_max: usize,
    /// Places, per addressee, from which initiations for it came and whose owner is not known yet.
    pub askers_per_peer_max: usize,
    /// Handshakes that have begun and are not complete.
    pub handshakes_max: usize,
    /// Sessions per link, two flows each. Rekeying needs two, a restarting peer a third.
    pub sessions_per_link_max: usize,
    /// Places and networks that are being watched for junk.
    pub strikes_max: usize,
    /// Keys tried to find out for whom messages from unknown places are; and as many more for known
    /// endpoints. One costs under a microsecond. Both bursts together are what a flood can make
    /// one moment cost.
    pub trials: Rate,
}

impl Limits {
    /// Limits of a host with a few thousand peers; all tables together stay below 10 MB.
    pub const DEFAULT: Self = Self {
        peers_max: 4096,
        links_max: 4096,
        askers_per_peer_max: 16,
        handshakes_max: 4096,
        sessions_per_link_max: 4,
        strikes_max: 4096,
        trials: Rate { per_second: 200_000, burst: 8192 },
    };

    /// Flows that exist at most, the size of every replica of the data table.
    #[must_use]
    pub const fn flows_max(&self) -> usize {
        self.links_max * self.sessions_per_link_max * 2
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What is wrong with a list of peers and links. An operator's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RegistrationFault {
    /// The list is longer than [`Limits::peers_max`].
    #[error("more than {max} peers are registered")]
    TooManyPeers {
        /// The limit.
        max: usize,
    },
    /// The list is longer than [`Limits::links_max`].
    #[error("more than {max} links are registered")]
    TooManyLinks {
        /// The limit.
        max: usize,
    },
    /// No private key belongs to a key of zeros.
    #[error("a peer's public key is all zeros")]
    ZeroKey,
    /// Two peers have the same key.
    #[error("the public key {0:?} is registered twice")]
    DuplicatePeer(Key),
    /// A link names a key that is not registered.
    #[error("a link names the public key {0:?}, which is not registered")]
    UnknownPeer(Key),
    /// A link has the same peer at both ends.
    #[error("a link joins the public key {0:?} to itself")]
    SelfLink(Key),
    /// The same two peers are linked twice.
    #[error("the public keys {0:?} and {1:?} are linked twice")]
    DuplicateLink(Key, Key),
}

/// Registered peers and links, all of them valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registrations {
    /// Sorted, distinct, none of them zero.
    peers: Vec<Key>,
    /// Sorted, distinct; of each the smaller key first; both keys are in `peers`.
    links: Vec<[Key; 2]>,
}

impl Registrations {
    /// Validates peers, by their public keys, and the links between them.
    ///
    /// # Errors
    ///
    /// The first [`RegistrationFault`] there is.
    pub fn new(
        peers: impl IntoIterator<Item = Key>,
        links: impl IntoIterator<Item = [Key; 2]>,
        limits: &Limits,
    ) -> Result<Self, RegistrationFault> {
        let peers = collect(peers, limits.peers_max)
            .ok_or(RegistrationFault::TooManyPeers { max: limits.peers_max })?;
        if peers.iter().any(Key::is_zero) {
            return Err(RegistrationFault::ZeroKey);
        }
        if let Some(key) = duplicate(&peers) {
            return Err(RegistrationFault::DuplicatePeer(key));
        }
        let ordered = links.into_iter().map(|[a, b]| [a.min(b), a.max(b)]);
        let links = collect(ordered, limits.links_max)
            .ok_or(RegistrationFault::TooManyLinks { max: limits.links_max })?;
        for &[a, b] in &links {
            if a == b {
                return Err(RegistrationFault::SelfLink(a));
            }
            for key in [a, b] {
                if peers.binary_search(&key).is_err() {
                    return Err(RegistrationFault::UnknownPeer(key));
                }
            }
        }
        if let Some([a, b]) = duplicate(&links) {
            return Err(RegistrationFault::DuplicateLink(a, b));
        }
        Ok(Self { peers, links })
    }

    /// The peers' public keys, in order.
    #[must_use]
    pub fn peers(&self) -> &[Key] {
        &self.peers
    }

    /// The links, in order, the smaller key first.
    #[must_use]
    pub fn links(&self) -> &[[Key; 2]] {
        &self.links
    }
}

/// All `items` in order, or `None` if they are more than `max`.
fn collect<T: Ord>(items: impl IntoIterator<Item = T>, max: usize) -> Option<Vec<T>> {
    let mut all: Vec<T> = items.into_iter().take(max.saturating_add(1)).collect();
    all.sort_unstable();
    (all.len() <= max).then_some(all)
}

fn duplicate<T: Copy + PartialEq>(sorted: &[T]) -> Option<T> {
    sorted.windows(2).find_map(|pair| (pair[0] == pair[1]).then_some(pair[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Key = Key([1; 32]);
    const B: Key = Key([2; 32]);
    const C: Key = Key([3; 32]);

    fn fault(peers: &[Key], links: &[[Key; 2]]) -> Option<RegistrationFault> {
        let limits = Limits { peers_max: 3, links_max: 2, ..Limits::DEFAULT };
        Registrations::new(peers.iter().copied(), links.iter().copied(), &limits).err()
    }

    #[test]
    fn what_is_valid_is_kept_in_order() {
        let made = Registrations::new([C, A, B], [[C, A], [A, B]], &Limits::DEFAULT);
        let made = made.expect("valid");
        assert_eq!(made.peers(), [A, B, C]);
        assert_eq!(made.links(), [[A, B], [A, C]]);
    }

    #[test]
    fn every_fault_is_named() {
        use RegistrationFault as Fault;
        assert_eq!(fault(&[], &[]), None);
        assert_eq!(fault(&[A, B, C], &[[A, B], [B, C]]), None);
        let zero = Key([0; 32]);
        assert_eq!(fault(&[A, B, C, zero], &[]), Some(Fault::TooManyPeers { max: 3 }));
        let links = [[A, B], [B, C], [A, C]];
        assert_eq!(fault(&[A, B, C], &links), Some(Fault::TooManyLinks { max: 2 }));
        assert_eq!(fault(&[A, zero], &[]), Some(Fault::ZeroKey));
        assert_eq!(fault(&[A, B, A], &[]), Some(Fault::DuplicatePeer(A)));
        assert_eq!(fault(&[A, B], &[[C, A]]), Some(Fault::UnknownPeer(C)));
        assert_eq!(fault(&[A, B], &[[B, B]]), Some(Fault::SelfLink(B)));
        assert_eq!(fault(&[A, B], &[[B, A], [A, B]]), Some(Fault::DuplicateLink(A, B)));
    }
}
