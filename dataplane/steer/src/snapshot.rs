//! Everything that one dataplane goes by.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::hash::Hash;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    CERTIFICATES_MAX, CLIENTS_MAX, LINKS_MAX, NodeKey, PEERS_MAX, PEM_BYTES_MAX, PeerKey, Refusal,
    Revision, SessionLimits, is_name,
};

/// Everything that one dataplane goes by, as of one revision of one store.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Whose revisions these are.
    pub store: String,
    /// Its number.
    pub revision: Revision,
    /// A word for what led to that number. A store that was put back to a backup comes to the same
    /// number by another way, and then has another word for it.
    #[serde(default)]
    pub past: String,
    /// Bounds and times of every session.
    pub sessions: SessionLimits,
    /// Which DERP clients are let in.
    pub admission: Admission,
    /// The registered DERP clients by name; no two have one key.
    pub clients: BTreeMap<String, NodeKey>,
    /// The WireGuard peers by name; no two have one key.
    pub peers: BTreeMap<String, PeerKey>,
    /// The pairs of peers that may talk, each with its smaller name first.
    pub links: BTreeSet<[String; 2]>,
    /// Certificates by name; none: the dataplane's own.
    pub certificates: BTreeMap<String, Certificate>,
    /// Whether this dataplane is to send its clients elsewhere and take no new ones.
    pub drain: bool,
}

/// Which DERP clients are let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admission {
    /// All of them.
    #[default]
    Open,
    /// Those whose key is registered.
    Registered,
}

/// A certificate with its private key.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The certificate and those above it, as PEM.
    pub chain: String,
    /// Its private key.
    pub key: SecretPem,
}

#[allow(missing_debug_implementations, reason = "never printed (invariant 7)")]
/// A private key as PEM: neither printed nor told apart by `==`, and wiped when dropped.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretPem(Zeroizing<String>);

impl Snapshot {
    /// Reads the text form and judges it.
    ///
    /// # Errors
    /// [`Refusal::Malformed`], [`Refusal::Bounds`].
    pub fn read(text: &[u8]) -> Result<Self, Refusal> {
        let snapshot: Self =
            serde_json::from_slice(text).map_err(|error| Refusal::malformed(&error))?;
        snapshot.check()?;
        Ok(snapshot)
    }

    /// The text form: one line of JSON without its end.
    #[must_use]
    pub fn to_text(&self) -> String {
        // Texts, numbers and maps whose keys are texts always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Judges whether it may take the place of `in_force`: its numbers never go back, unless they
    /// are of another store.
    ///
    /// # Errors
    /// [`Refusal::Stale`], [`Refusal::Bounds`].
    pub fn may_replace(&self, in_force: Option<&Self>) -> Result<(), Refusal> {
        match in_force {
            Some(old) if old.store == self.store && self.revision < old.revision => {
                Err(Refusal::Stale { offered: self.revision, in_force: old.revision })
            }
            Some(_) | None => self.check(),
        }
    }

    /// Judges the values.
    ///
    /// # Errors
    /// [`Refusal::Bounds`], in words.
    pub fn check(&self) -> Result<(), Refusal> {
        if !is_name(&self.store) {
            return Err(Refusal::bounds("store is no name"));
        }
        if !self.past.is_empty() && !is_name(&self.past) {
            return Err(Refusal::bounds("past is no word"));
        }
        self.sessions.check()?;
        check_names("clients", self.clients.keys(), CLIENTS_MAX)?;
        check_names("peers", self.peers.keys(), PEERS_MAX)?;
        check_names("certificates", self.certificates.keys(), CERTIFICATES_MAX)?;
        check_distinct("clients", &self.clients)?;
        check_distinct("peers", &self.peers)?;
        self.check_links()?;
        self.certificates.iter().try_for_each(|(name, certificate)| certificate.check(name))
    }

    fn check_links(&self) -> Result<(), Refusal> {
        if self.links.len() > LINKS_MAX {
            return Err(too_many("links", self.links.len(), LINKS_MAX));
        }
        for [one, other] in &self.links {
            if one >= other {
                let why = format!("links: {one:?} and {other:?} are not two names in order");
                return Err(Refusal::Bounds(why));
            }
            if let Some(name) = [one, other].into_iter().find(|it| !self.peers.contains_key(*it)) {
                return Err(Refusal::Bounds(format!("links: no peer is named {name:?}")));
            }
        }
        Ok(())
    }
}

impl Certificate {
    /// Whether both are the same, in a time that tells nothing of the keys.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        let [one, another] = [&self.key, &other.key].map(|key| key.0.as_bytes());
        let differing = one.iter().zip(another).fold(0, |all, (a, b)| all | (a ^ b));
        self.chain == other.chain && one.len() == another.len() && differing == 0
    }

    fn check(&self, name: &str) -> Result<(), Refusal> {
        for (field, text) in [("chain", self.chain.as_str()), ("key", self.key.expose())] {
            if text.len() > PEM_BYTES_MAX {
                return Err(too_many(
                    &format!("bytes in certificates: {name}: {field}"),
                    text.len(),
                    PEM_BYTES_MAX,
                ));
            }
            // RFC 7468: printable ASCII and white space; anything else is longer in JSON, too.
            if !text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t')) {
                return Err(Refusal::Bounds(format!("certificates: {name}: {field} is no PEM")));
            }
        }
        Ok(())
    }
}

/// Without the private key, and without the chain, which is long.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

impl SecretPem {
    /// Takes a private key over.
    #[must_use]
    pub fn new(pem: String) -> Self {
        Self(Zeroizing::new(pem))
    }

    /// The text, for who parses it or keeps it in a file of the owner's.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

fn too_many(what: &str, count: usize, max: usize) -> Refusal {
    Refusal::Bounds(format!("{count} {what}; {max} are the most"))
}

fn check_names<'a>(
    table: &str,
    mut names: impl ExactSizeIterator<Item = &'a String>,
    max: usize,
) -> Result<(), Refusal> {
    if names.len() > max {
        return Err(too_many(table, names.len(), max));
    }
    match names.find(|name| !is_name(name)) {
        Some(name) => Err(Refusal::Bounds(format!(
            "{table}: {:?} is no name",
            crate::cut(name, crate::NAME_BYTES_MAX)
        ))),
        None => Ok(()),
    }
}

fn check_distinct<K: Hash + Eq>(table: &str, keys: &BTreeMap<String, K>) -> Result<(), Refusal> {
    let mut seen = HashSet::with_capacity(keys.len());
    match keys.iter().find(|(_, key)| !seen.insert(*key)) {
        Some((name, _)) => Err(Refusal::Bounds(format!("{table}: {name} has the key of another"))),
        None => Ok(()),
    }
}
