//! What records say to a dataplane: each a step, all of them from nothing a snapshot.
//!
//! Pure functions of records. A snapshot is the delta from nothing, so that deltas and snapshots
//! cannot disagree. Names of records that relays know never change, so a tombstone names what it
//! drops, and steps in the order of revisions lead from any revision to the last.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use steer::{Delta, NodeKey, PeerKey, Refusal, SecretPem, Snapshot, Step};

use crate::resource::{Certificate, Client, Link, Node, Peer, Policy};
use crate::store::{Kind, Record, Revision};

/// Why nothing can be told. Both say that another program has written the store.
#[derive(Debug, thiserror::Error)]
pub(super) enum Untold {
    /// A body is none of its kind.
    #[error("{kind} {name:?} in the store is not one", kind = kind.word())]
    Body {
        /// The kind.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// No relay would take it.
    #[error("the store holds more than relays take: {0}")]
    Bounds(Refusal),
}

/// The name by which relays know the key of control's probes; no client's begins with a dot.
pub(super) const PROBER: &str = ".prober";

/// A revision, and a word that tells it from the same revision of another past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) revision: Revision,
    /// Empty where nothing tells it apart.
    pub(super) past: String,
}

/// What records say: to every dataplane, and to single nodes.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// To every dataplane.
    pub(super) steps: Vec<Step>,
    /// Whether a node drains, by its name; `None` if it was removed.
    pub(super) drains: BTreeMap<String, Option<bool>>,
}

impl Said {
    /// What `records`, in the order of their revisions, say.
    pub(super) fn of(records: &[Record]) -> Result<Self, Untold> {
        let mut said = Self::default();
        records.iter().try_for_each(|record| said.take(record))?;
        Ok(said)
    }

    /// The steps for the dataplane of `node`.
    pub(super) fn for_node(&self, node: &str) -> Vec<Step> {
        let mut steps = self.steps.clone();
        steps.extend(self.drains.get(node).map(|drain| Step::Drain(*drain == Some(true))));
        steps
    }

    fn take(&mut self, record: &Record) -> Result<(), Untold> {
        match record.kind {
            Kind::Client => self.steps.push(client(record)?),
            Kind::Peer => self.steps.push(peer(record)?),
            Kind::Link => self.steps.extend(link(record)?),
            Kind::Certificate => self.steps.push(certificate(record)?),
            Kind::Policy => {
                let policy = body::<Policy>(record)?.unwrap_or_default();
                self.steps.push(Step::Sessions(policy.sessions.into()));
                self.steps.push(Step::Admission(policy.admission.into()));
            }
            Kind::Node => {
                let drain = body::<Node>(record)?.map(|node| node.drain);
                self.drains.insert(record.name.clone(), drain);
            }
            Kind::Satellite | Kind::Region | Kind::Token => {}
        }
        Ok(())
    }
}

/// The snapshot that all living records, which are those of `upto` of `store`, make for a dataplane
/// that does not drain, and whether each node does. `prober` is always let in.
pub(super) fn whole(
    store: &str,
    upto: &Moment,
    living: &[Record],
    prober: NodeKey,
) -> Result<(Snapshot, BTreeMap<String, bool>), Untold> {
    let Said { steps: changes, drains } = Said::of(living)?;
    let clients = [(PROBER.to_owned(), prober)].into();
    let nothing = Snapshot { store: store.to_owned(), clients, ..Snapshot::default() };
    let (to, past) = (number(upto.revision), upto.past.clone());
    let delta = Delta { from: nothing.revision, to, past, changes };
    let snapshot = nothing.after(&delta).map_err(Untold::Bounds)?;
    Ok((snapshot, drains.into_iter().filter_map(|(name, drain)| Some((name, drain?))).collect()))
}

/// A revision as dataplanes write it.
pub(super) fn number(revision: Revision) -> steer::Revision {
    steer::Revision(revision.0.unsigned_abs())
}

/// The body of a living record.
fn body<R: DeserializeOwned>(record: &Record) -> Result<Option<R>, Untold> {
    let read = record.body.as_ref().map(R::deserialize).transpose();
    read.map_err(|_| broken(record))
}

fn broken(record: &Record) -> Untold {
    Untold::Body { kind: record.kind, name: record.name.clone() }
}

fn client(record: &Record) -> Result<Step, Untold> {
    let name = record.name.clone();
    let Some(client) = body::<Client>(record)? else { return Ok(Step::DropClient { name }) };
    let key = NodeKey::parse(&client.node_key).ok_or_else(|| broken(record))?;
    Ok(Step::PutClient { name, key })
}

fn peer(record: &Record) -> Result<Step, Untold> {
    let name = record.name.clone();
    let Some(peer) = body::<Peer>(record)? else { return Ok(Step::DropPeer { name }) };
    let key = PeerKey::parse(&peer.public_key).ok_or_else(|| broken(record))?;
    Ok(Step::PutPeer { name, key })
}

fn link(record: &Record) -> Result<Option<Step>, Untold> {
    if let Some(Link { peers }) = body(record)? {
        return Ok(Some(Step::PutLink { peers }));
    }
    let (one, other) = record.name.split_once('/').ok_or_else(|| broken(record))?;
    Ok(Some(Step::DropLink { peers: [one, other].map(str::to_owned) }))
}

fn certificate(record: &Record) -> Result<Step, Untold> {
    let name = record.name.clone();
    let Some(Certificate { chain, key, .. }) = body(record)? else {
        return Ok(Step::DropCertificate { name });
    };
    let key = SecretPem::new(key.reveal());
    Ok(Step::PutCertificate { name, certificate: steer::Certificate { chain, key } })
}

#[cfg(test)]
mod tests;
