//! WireGuard peers and links, as the tables of a configuration file name them.
//!
//! Owns the way from `[[wireguard.peer]]` and `[[wireguard.link]]` to a [`Wireguard`] that is
//! consistent: names and keys are distinct, links join two different peers that exist, none twice.
//! Tables of tables have no form as a flag or variable, so these exist in the file alone. A start,
//! `check` and a reload call it; it reads no file itself.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::path::Path;

use proto::wireguard::{Limits, Registrations};
use steer::{NAME_BYTES_MAX, PeerKey, is_name};
use toml::{Table, Value};
use wire::key::{KEY_LEN, Key};

use super::raw::unknown;
use crate::fault::OperatorFault;

/// The tables within `[wireguard]`.
const TABLES: [&str; 2] = ["peer", "link"];
/// The keys of a peer.
const PEER_FIELDS: [&str; 2] = ["name", "public_key"];
/// The key of a link.
const LINK_FIELDS: [&str; 1] = ["peers"];

/// Who may talk to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wireguard {
    /// The peers, no two with the same name or key.
    pub peers: Vec<Peer>,
    /// The links, no two between the same peers.
    pub links: Vec<Link>,
    /// The same, as the relay takes it.
    pub registrations: Registrations,
}

/// A stock WireGuard peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What the operator calls it: letters, digits, dots, hyphens and underscores.
    pub name: String,
    /// Its public key.
    pub key: Key,
}

/// Two peers that may talk to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// Their places among the peers, in the order of the file; they differ.
    pub peers: [usize; 2],
}

impl Wireguard {
    /// What the table `[wireguard]` of the file at `path` says.
    pub(super) fn from_table(path: &Path, table: &Table) -> Result<Self, OperatorFault> {
        known(path, "wireguard.", table, &TABLES)?;
        let mut reader = Reader {
            path,
            wireguard: Self::default(),
            names: HashMap::new(),
            keys: HashMap::new(),
            linked: HashSet::new(),
        };
        for peer in tables(path, table, "peer")? {
            reader.read_peer(peer)?;
        }
        for link in tables(path, table, "link")? {
            reader.read_link(link)?;
        }
        reader.wireguard.check();
        reader.finish()
    }

    /// What control says.
    ///
    /// # Errors
    /// When the relay cannot hold all of it.
    pub(crate) fn from_snapshot(snapshot: &steer::Snapshot) -> Result<Self, OperatorFault> {
        let names: HashMap<_, _> = snapshot.peers.keys().zip(0..).collect();
        let peers = snapshot.peers.iter();
        let peers: Vec<_> =
            peers.map(|(name, key)| Peer { name: name.clone(), key: key.0 }).collect();
        // A snapshot that was checked has links of its own peers alone.
        let place = |link: &[String; 2]| {
            Some(Link { peers: [*names.get(&link[0])?, *names.get(&link[1])?] })
        };
        let links: Vec<_> = snapshot.links.iter().filter_map(place).collect();
        let registrations = registrations(&peers, &links).map_err(OperatorFault::config)?;
        Ok(Self { peers, links, registrations })
    }

    /// What metrics and reports call `link`.
    #[must_use]
    pub fn link_name(&self, link: &Link) -> String {
        let [one, other] = link.peers.map(|peer| self.peers[peer].name.as_str());
        format!("{one}/{other}")
    }

    /// The tables as a file has them.
    pub(crate) fn to_toml(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail; names need no escaping.
        for Peer { name, key } in &self.peers {
            let key = PeerKey(*key);
            let _ = writeln!(text, "[[wireguard.peer]]\nname = \"{name}\"\npublic_key = \"{key}\"");
        }
        for link in &self.links {
            let [one, other] = link.peers.map(|peer| &self.peers[peer].name);
            let _ = writeln!(text, "[[wireguard.link]]\npeers = [\"{one}\", \"{other}\"]");
        }
        text
    }

    /// Verifies what the fields promise.
    fn check(&self) {
        debug_assert!(self.links.iter().all(|link| {
            let [one, other] = link.peers;
            one != other && one.max(other) < self.peers.len()
        }));
    }
}

/// A [`Wireguard`] under construction.
struct Reader<'a> {
    path: &'a Path,
    wireguard: Wireguard,
    /// The peers' places, by name.
    names: HashMap<String, usize>,
    /// The peers' places, by key.
    keys: HashMap<Key, usize>,
    /// Each link's peers, the earlier first.
    linked: HashSet<[usize; 2]>,
}

impl Reader<'_> {
    fn read_peer(&mut self, table: &Table) -> Result<(), OperatorFault> {
        known(self.path, "wireguard.peer.", table, &PEER_FIELDS)?;
        let name = table.get("name").ok_or_else(|| {
            self.fault("wireguard.peer: name is missing; give the peer a name of its own")
        })?;
        let name = name.as_str().filter(|name| is_name(name)).ok_or_else(|| {
            self.fault(format_args!(
                "wireguard.peer: name: {name} is not a peer's name; \
                 write up to {NAME_BYTES_MAX} letters, digits, dots, hyphens and underscores"
            ))
        })?;
        let key = table.get("public_key").ok_or_else(|| {
            self.fault(format_args!(
                "wireguard.peer {name}: public_key is missing; write what wg pubkey prints"
            ))
        })?;
        let PeerKey(key) = key.as_str().and_then(PeerKey::parse).ok_or_else(|| {
            self.fault(format_args!(
                "wireguard.peer {name}: public_key: {key} is not the base64 of a public key's \
                 {KEY_LEN} bytes; write what wg pubkey prints"
            ))
        })?;
        let place = self.wireguard.peers.len();
        if let Some(other) = self.keys.insert(key, place) {
            let other = &self.wireguard.peers[other].name;
            return Err(self.fault(format_args!(
                "wireguard.peer {name}: public_key: is that of {other}; leave one of them out"
            )));
        }
        if self.names.insert(name.to_owned(), place).is_some() {
            return Err(self.fault(format_args!(
                "wireguard.peer {name}: name: is taken; give each peer a name of its own"
            )));
        }
        self.wireguard.peers.push(Peer { name: name.to_owned(), key });
        Ok(())
    }

    fn read_link(&mut self, table: &Table) -> Result<(), OperatorFault> {
        known(self.path, "wireguard.link.", table, &LINK_FIELDS)?;
        let names: Vec<_> = match table.get("peers") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            Some(_) | None => Vec::new(),
        };
        let [one, other] = names[..] else {
            return Err(self.fault(
                "wireguard.link: peers: takes the names of two peers; write peers = [\"a\", \"b\"]",
            ));
        };
        let link = Link { peers: [self.find(one)?, self.find(other)?] };
        if one == other {
            return Err(self.fault(format_args!(
                "wireguard.link: peers: {one} needs no link to itself; name two peers"
            )));
        }
        let [first, second] = link.peers;
        if !self.linked.insert([first.min(second), first.max(second)]) {
            return Err(self.fault(format_args!(
                "wireguard.link: peers: {one} and {other} are linked twice; leave one link out"
            )));
        }
        self.wireguard.links.push(link);
        Ok(())
    }

    fn find(&self, name: &str) -> Result<usize, OperatorFault> {
        self.names.get(name).copied().ok_or_else(|| {
            let names = self.wireguard.peers.iter().map(|peer| peer.name.as_str());
            let fix = match super::raw::nearest(name, names) {
                Some(nearest) => format!("did you mean {nearest}?"),
                None => "add a wireguard.peer of that name".to_owned(),
            };
            self.fault(format_args!("wireguard.link: peers: no peer is named {name:?}; {fix}"))
        })
    }

    fn finish(self) -> Result<Wireguard, OperatorFault> {
        let Wireguard { peers, links, .. } = &self.wireguard;
        let registrations = registrations(peers, links).map_err(|fault| self.fault(fault))?;
        Ok(Wireguard { registrations, ..self.wireguard })
    }

    fn fault(&self, what: impl std::fmt::Display) -> OperatorFault {
        OperatorFault::config(format_args!("{}: {what}", self.path.display()))
    }
}

/// What the relay goes by, or why it cannot hold them.
fn registrations(peers: &[Peer], links: &[Link]) -> Result<Registrations, String> {
    let keys = peers.iter().map(|peer| peer.key);
    let pairs = links.iter().map(|link| link.peers.map(|peer| peers[peer].key));
    Registrations::new(keys, pairs, &Limits::DEFAULT)
        .map_err(|fault| format!("wireguard: {fault}; leave some out"))
}

/// Refuses a key of `table` that is none of `fields`.
fn known(path: &Path, within: &str, table: &Table, fields: &[&str]) -> Result<(), OperatorFault> {
    match table.keys().find(|name| !fields.contains(&name.as_str())) {
        Some(name) => Err(unknown(path, name, within, fields.iter().copied())),
        None => Ok(()),
    }
}

/// The tables of the array `name`, which may be absent.
fn tables<'a>(path: &Path, table: &'a Table, name: &str) -> Result<Vec<&'a Table>, OperatorFault> {
    let fault = || {
        OperatorFault::config(format_args!(
            "{}: wireguard.{name}: takes tables; write [[wireguard.{name}]] above each",
            path.display()
        ))
    };
    match table.get(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => {
            values.iter().map(|value| value.as_table().ok_or_else(fault)).collect()
        }
        Some(_) => Err(fault()),
    }
}
