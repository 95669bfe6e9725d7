//! From one snapshot to the next.

use serde::{Deserialize, Serialize};

use crate::{Admission, Certificate, NodeKey, PeerKey, Refusal, Revision, SessionLimits, Snapshot};

/// What makes the snapshot of one revision out of that of another. Several transactions of the store
/// may be in it; one is never in two.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// Which snapshot it begins at.
    pub from: Revision,
    /// Which snapshot it leads to; above `from`.
    pub to: Revision,
    /// What [`Snapshot::past`] is from then on.
    #[serde(default)]
    pub past: String,
    /// The steps between them, in their order. Only what they lead to is judged.
    pub changes: Vec<Step>,
}

/// One step of a [`Delta`]. To put a name that is there replaces it; to drop one that is not there,
/// because it came and went between two revisions, changes nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Step {
    /// A DERP client is registered.
    PutClient {
        /// Its name.
        name: String,
        /// Its key.
        key: NodeKey,
    },
    /// A DERP client is registered no longer.
    DropClient {
        /// Its name.
        name: String,
    },
    /// A WireGuard peer is registered.
    PutPeer {
        /// Its name.
        name: String,
        /// Its key.
        key: PeerKey,
    },
    /// A WireGuard peer is registered no longer.
    DropPeer {
        /// Its name.
        name: String,
    },
    /// Two peers may talk.
    PutLink {
        /// Their names, the smaller first.
        peers: [String; 2],
    },
    /// Two peers may talk no longer.
    DropLink {
        /// Their names, the smaller first.
        peers: [String; 2],
    },
    /// A certificate is to be shown.
    PutCertificate {
        /// Its name.
        name: String,
        /// It and its key.
        certificate: Certificate,
    },
    /// A certificate is to be shown no longer.
    DropCertificate {
        /// Its name.
        name: String,
    },
    /// Bounds and times of every session, all of them.
    Sessions(SessionLimits),
    /// Which DERP clients are let in.
    Admission(Admission),
    /// Whether to drain.
    Drain(bool),
}

impl Snapshot {
    /// The snapshot that `delta` leads to from this one, judged as a whole.
    ///
    /// # Errors
    /// [`Refusal::Gap`] if it begins elsewhere, [`Refusal::Stale`] if it leads nowhere,
    /// [`Refusal::Bounds`] of what it leads to.
    pub fn after(&self, delta: &Delta) -> Result<Self, Refusal> {
        let in_force = self.revision;
        if delta.from != in_force {
            return Err(Refusal::Gap { from: delta.from, in_force });
        }
        if delta.to <= in_force {
            return Err(Refusal::Stale { offered: delta.to, in_force });
        }
        let mut next = self.clone();
        next.revision = delta.to;
        next.past.clone_from(&delta.past);
        delta.changes.iter().for_each(|step| next.take(step));
        next.check()?;
        Ok(next)
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::PutClient { name, key } => {
                self.clients.insert(name.clone(), *key);
            }
            Step::DropClient { name } => {
                self.clients.remove(name);
            }
            Step::PutPeer { name, key } => {
                self.peers.insert(name.clone(), *key);
            }
            Step::DropPeer { name } => {
                self.peers.remove(name);
            }
            Step::PutLink { peers } => {
                self.links.insert(peers.clone());
            }
            Step::DropLink { peers } => {
                self.links.remove(peers);
            }
            Step::PutCertificate { name, certificate } => {
                self.certificates.insert(name.clone(), certificate.clone());
            }
            Step::DropCertificate { name } => {
                self.certificates.remove(name);
            }
            Step::Sessions(limits) => self.sessions = *limits,
            Step::Admission(mode) => self.admission = *mode,
            Step::Drain(drain) => self.drain = *drain,
        }
    }
}
