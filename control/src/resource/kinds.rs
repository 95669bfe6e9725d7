//! The kinds but for policy and certificate, which have more to check.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::key::{fingerprint, node_key, satellite_key, wireguard_key};
use super::{
    FieldFault, Resource, Scope, access_url, check_host, check_ipv4, check_ipv6, check_name,
    check_text,
};
use crate::clock::Stamp;
use crate::store::{Kind, UnixS};

/// Fields of a region or node that Tailscale or Coder know and we do not, as they write them.
pub type MapFields = Map<String, Value>;

/// Largest region id: the last that fits a 32-bit signed number, which is what stock code takes.
pub(super) const REGION_ID_MAX: u32 = i32::MAX as u32;

/// How long a satellite's key goes on counting once another has taken its place, in seconds: a day.
pub const KEY_OVERLAP_S: UnixS = 24 * 3600;

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A satellite: a proxy near its users that the primary trusts by its key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Satellite {
    /// Its name.
    pub name: String,
    /// Where it is reached; empty if whoever registered it did not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub access_url: String,
    /// Its Ed25519 key: base64 of 32 bytes, or PEM.
    pub public_key: String,
    /// The key's fingerprint; ours to say.
    #[serde(default)]
    #[schema(read_only)]
    pub fingerprint: String,
    /// The key before, for a while after a rotation; ours to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub old_key: Option<OldKey>,
    /// How it is doing; ours to say, and no part of the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub status: Option<SatelliteStatus>,
}

/// A key that was replaced and still counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OldKey {
    /// The key: base64 of 32 bytes.
    pub public_key: String,
    /// Its fingerprint.
    pub fingerprint: String,
    /// When it ends to count.
    pub until: Stamp,
}

/// What was heard of a satellite since control's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SatelliteStatus {
    /// Whether it is there.
    pub state: SatelliteState,
    /// When it was heard last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_at: Option<Stamp>,
    /// Its version, as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where users reach it, as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_url: Option<String>,
}

/// Whether a satellite is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SatelliteState {
    /// It was not heard since control's start.
    #[default]
    Unknown,
    /// It was heard lately.
    Up,
    /// It was heard, but not lately.
    Silent,
}

impl SatelliteState {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Silent => "silent",
        }
    }
}

impl Resource for Satellite {
    const KIND: Kind = Kind::Satellite;
    const PLURAL: &'static str = "satellites";
    const WRITE: Scope = Scope::Register;

    fn check(&mut self) -> Result<(), FieldFault> {
        check_name("name", &self.name)?;
        if !self.access_url.is_empty() {
            self.access_url = access_url("access_url", &self.access_url)?;
        }
        self.public_key = satellite_key(&self.public_key)?;
        self.fingerprint = fingerprint(&self.public_key);
        (self.old_key, self.status) = (None, None);
        Ok(())
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn keys(&self) -> Vec<String> {
        let old = self.old_key.iter().map(|old| &old.public_key);
        std::iter::once(&self.public_key)
            .chain(old)
            .map(|key| format!("public_key={key}"))
            .collect()
    }

    fn keep(&mut self, old: &Self, now: UnixS) {
        self.old_key = match self.public_key == old.public_key {
            true => old.old_key.clone().filter(|old| now < old.until.0),
            false => Some(OldKey {
                public_key: old.public_key.clone(),
                fingerprint: old.fingerprint.clone(),
                until: Stamp(now + KEY_OVERLAP_S),
            }),
        };
    }
}

/// A region of the DERP map. Its name is the map's RegionCode.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// RegionCode: short, unique.
    pub name: String,
    /// RegionID: 1 to 2147483647, unique. Tailscale keeps 900 to 999 free for other people's.
    #[schema(minimum = 1)]
    pub region_id: u32,
    /// RegionName: what people read; the name if empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// Avoid: no client makes it its home.
    #[serde(default, skip_serializing_if = "is_false")]
    pub avoid: bool,
    /// Further fields of the map, as Tailscale or Coder write them.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub map_fields: MapFields,
}

impl Resource for Region {
    const KIND: Kind = Kind::Region;
    const PLURAL: &'static str = "regions";
    const WRITE: Scope = Scope::Operate;

    fn check(&mut self) -> Result<(), FieldFault> {
        check_name("name", &self.name)?;
        check_text("title", &self.title)?;
        if self.region_id == 0 || self.region_id > REGION_ID_MAX {
            let why = format!("is {}; take 1 to {REGION_ID_MAX}", self.region_id);
            return Err(FieldFault::new("region_id", why));
        }
        crate::derp_map::check_region_fields(&self.map_fields)
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn keys(&self) -> Vec<String> {
        vec![format!("region_id={}", self.region_id)]
    }
}

/// A relay node of a region. Fields left out are as the map's are when left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name, unique over all regions, such as 900a.
    pub name: String,
    /// The name of its region.
    pub region: String,
    /// HostName: what clients dial and its certificate is for.
    pub host_name: String,
    /// CertName: another name for the certificate, or `sha256-raw:` and its digest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cert_name: String,
    /// IPv4: its address instead of what DNS says, or `none`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ipv4: String,
    /// IPv6: its address instead of what DNS says, or `none`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ipv6: String,
    /// STUNPort: 0 for 3478, -1 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stun_port: i32,
    /// STUNOnly: answers STUN and relays nothing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stun_only: bool,
    /// DERPPort: 0 for 443.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub derp_port: u16,
    /// InsecureForTests: clients verify no certificate.
    #[serde(default, skip_serializing_if = "is_false")]
    pub insecure_for_tests: bool,
    /// ForceHTTP: no TLS at all (Coder).
    #[serde(default, skip_serializing_if = "is_false")]
    pub force_http: bool,
    /// STUNTestIP: the address for STUN instead, for tests.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stun_test_ip: String,
    /// CanPort80: answers captive-portal checks on port 80.
    #[serde(default, skip_serializing_if = "is_false")]
    pub can_port80: bool,
    /// It takes no new sessions and sends its clients elsewhere; no field of the map.
    #[serde(default, skip_serializing_if = "is_false")]
    pub drain: bool,
    /// Further fields of the map, as Tailscale or Coder write them.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub map_fields: MapFields,
}

impl Resource for Node {
    const KIND: Kind = Kind::Node;
    const PLURAL: &'static str = "nodes";
    const WRITE: Scope = Scope::Operate;
    const FIXED: Option<&'static str> = Some("name");

    fn check(&mut self) -> Result<(), FieldFault> {
        check_name("name", &self.name)?;
        check_name("region", &self.region)?;
        check_host("host_name", &self.host_name)?;
        check_text("cert_name", &self.cert_name)?;
        if !self.stun_test_ip.is_empty() && self.stun_test_ip.parse::<IpAddr>().is_err() {
            let why = format!("{:?} is no address", self.stun_test_ip);
            return Err(FieldFault::new("stun_test_ip", why));
        }
        check_ipv4("ipv4", &self.ipv4)?;
        check_ipv6("ipv6", &self.ipv6)?;
        if !(-1..=65_535).contains(&self.stun_port) {
            return Err(FieldFault::new("stun_port", "takes a port, 0 for 3478, -1 for none"));
        }
        crate::derp_map::check_node_fields(&self.map_fields)
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn needs(&self) -> Vec<(Kind, String)> {
        vec![(Kind::Region, self.region.clone())]
    }
}

/// A stock WireGuard peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its public key: base64 of 32 bytes.
    pub public_key: String,
}

impl Resource for Peer {
    const KIND: Kind = Kind::Peer;
    const PLURAL: &'static str = "peers";
    const WRITE: Scope = Scope::Operate;
    const FIXED: Option<&'static str> = Some("name");

    fn check(&mut self) -> Result<(), FieldFault> {
        check_name("name", &self.name)?;
        self.public_key = wireguard_key(&self.public_key)?;
        Ok(())
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn keys(&self) -> Vec<String> {
        vec![format!("public_key={}", self.public_key)]
    }
}

/// Two WireGuard peers that may talk to each other through the relay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The names of two different peers.
    #[schema(min_items = 2, max_items = 2)]
    pub peers: [String; 2],
}

impl Resource for Link {
    const KIND: Kind = Kind::Link;
    const PLURAL: &'static str = "links";
    const WRITE: Scope = Scope::Operate;
    const FIXED: Option<&'static str> = Some("peers");

    fn check(&mut self) -> Result<(), FieldFault> {
        for name in &self.peers {
            check_name("peers", name)?;
        }
        self.peers.sort();
        match self.peers[0] == self.peers[1] {
            true => Err(FieldFault::new("peers", "names one peer twice; name two")),
            false => Ok(()),
        }
    }

    fn name(&self) -> String {
        self.peers.join("/")
    }

    /// The pair has no order.
    fn name_by(word: &str) -> String {
        let mut peers: Vec<_> = word.split('/').collect();
        peers.sort_unstable();
        peers.join("/")
    }

    fn needs(&self) -> Vec<(Kind, String)> {
        self.peers.iter().map(|peer| (Kind::Peer, peer.clone())).collect()
    }
}

/// A client that relays admit where the policy admits registered ones only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Its name.
    pub name: String,
    /// Its public key: `nodekey:` and 64 hexadecimal digits.
    pub node_key: String,
}

impl Client {
    /// The word that a client with this key, in its one form, has to itself.
    pub(crate) fn key_word(node_key: &str) -> String {
        format!("node_key={node_key}")
    }
}

impl Resource for Client {
    const KIND: Kind = Kind::Client;
    const PLURAL: &'static str = "clients";
    const WRITE: Scope = Scope::Operate;
    const FIXED: Option<&'static str> = Some("name");

    fn check(&mut self) -> Result<(), FieldFault> {
        check_name("name", &self.name)?;
        self.node_key = node_key(&self.node_key)?;
        Ok(())
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn keys(&self) -> Vec<String> {
        vec![Self::key_word(&self.node_key)]
    }
}

/// A token of the API. The token itself is shown once, when it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Its name.
    pub name: String,
    /// What its holder may do.
    #[schema(min_items = 1)]
    pub scopes: Vec<Scope>,
    /// When it ends; never, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Stamp>,
    /// The part of it that is no secret; ours to say.
    #[serde(default)]
    #[schema(read_only)]
    pub prefix: String,
    /// When it was used last, to the minute; ours to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub last_used_at: Option<Stamp>,
}

impl Resource for Token {
    const KIND: Kind = Kind::Token;
    const PLURAL: &'static str = "tokens";
    const WRITE: Scope = Scope::Admin;
    const READ: Scope = Scope::Admin;

    fn check(&mut self) -> Result<(), FieldFault> {
        check_name("name", &self.name)?;
        self.scopes.sort();
        self.scopes.dedup();
        if self.scopes.is_empty() {
            let why = "is empty; give read, operate, register or admin";
            return Err(FieldFault::new("scopes", why));
        }
        self.last_used_at = None;
        Ok(())
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn keep(&mut self, old: &Self, _now: UnixS) {
        self.prefix.clone_from(&old.prefix);
    }
}
