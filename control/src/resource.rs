//! What records mean: the kinds as types, their checks, and what they are to the store.
//!
//! Owns the trait [`Resource`] and the rules for names, keys and addresses that its types share. A
//! value that passed [`Resource::check`] can be stored and served as it is. The API, the DERP map
//! and the command line use these types; nothing here reads a socket or a file.

mod certificate;
mod key;
mod kinds;
mod policy;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::clock::Stamp;
use crate::store::{Draft, Kind, Record, Revision, UnixS};

pub use certificate::{Certificate, KeyPem};
pub use key::{fingerprint, node_key, satellite_key};
pub use kinds::{
    Client, KEY_OVERLAP_S, Link, MapFields, Node, OldKey, Peer, Region, Satellite, SatelliteState,
    SatelliteStatus, Token,
};
pub use policy::{Admission, POLICY, Policy, SessionLimits};

/// Longest name, in bytes: that of a DNS label.
pub const NAME_LEN_MAX: usize = 63;
/// Characters of a name that is too long that are quoted.
const NAME_SHOWN: usize = 16;
/// Longest free text, in bytes.
pub const TEXT_LEN_MAX: usize = 255;

/// What a token's holder may do. Each but `read` includes `read`, and `admin` includes all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// See everything but tokens and the audit log.
    Read,
    /// Change all that relays go by: regions, nodes, peers, links, clients, policy, certificates and
    /// the DERP map.
    Operate,
    /// Register and remove satellites.
    Register,
    /// Everything, tokens and the audit log included.
    Admin,
}

impl Scope {
    /// Whether a holder of `held` may do what `self` is asked for.
    #[must_use]
    pub fn allowed_by(self, held: &[Self]) -> bool {
        held.contains(&Self::Admin)
            || held.contains(&self)
            || (self == Self::Read && !held.is_empty())
    }
}

/// A field that cannot be taken, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct FieldFault {
    /// The field's name.
    pub field: &'static str,
    /// What is wrong with it and what to write.
    pub why: String,
}

impl FieldFault {
    /// A fault of `field`.
    pub fn new(field: &'static str, why: impl Into<String>) -> Self {
        Self { field, why: why.into() }
    }
}

/// A kind of record, as a type.
pub trait Resource: Serialize + DeserializeOwned + ToSchema + Send + Sync + 'static {
    /// Its kind.
    const KIND: Kind;
    /// The last word of its path and its command.
    const PLURAL: &'static str;
    /// Who may change it.
    const WRITE: Scope;
    /// Who may see it.
    const READ: Scope = Scope::Read;
    /// The field that makes its name, if a living record's name never changes. Relays know such a
    /// record by its name alone, so another name is another record.
    const FIXED: Option<&'static str> = None;

    /// Checks every field, brings it to its one form, and fills in what the server knows.
    ///
    /// # Errors
    /// Names the first field that cannot be taken.
    fn check(&mut self) -> Result<(), FieldFault>;

    /// Its name, once checked.
    fn name(&self) -> String;

    /// The name that `word` stands for, however it is written.
    fn name_by(word: &str) -> String {
        word.to_owned()
    }

    /// Words that no other of its kind may have.
    fn keys(&self) -> Vec<String> {
        Vec::new()
    }

    /// What must exist for it.
    fn needs(&self) -> Vec<(Kind, String)> {
        Vec::new()
    }

    /// Takes over from what it is to replace what callers cannot set.
    fn keep(&mut self, _old: &Self, _now: UnixS) {}

    /// It, as the store takes it.
    ///
    /// # Panics
    /// Never: these types are made of texts, numbers and lists.
    fn draft(&self) -> Draft {
        let body = serde_json::to_value(self).expect("plain data has a JSON form");
        Draft { name: self.name(), keys: self.keys(), needs: self.needs(), body }
    }
}

/// A record as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Row<R> {
    /// Its identity.
    #[schema(read_only)]
    pub id: String,
    /// The revision of its last change, which is also its ETag.
    #[schema(read_only)]
    pub revision: Revision,
    /// When it was made.
    #[schema(read_only)]
    pub created_at: Stamp,
    /// When it was last changed.
    #[schema(read_only)]
    pub updated_at: Stamp,
    /// What it says.
    #[serde(flatten)]
    pub resource: R,
}

/// The fields of [`Row`] that are not the resource's own.
pub const ROW_FIELDS: [&str; 4] = ["id", "revision", "created_at", "updated_at"];

impl<R: Resource> Row<R> {
    /// The row of a living record.
    ///
    /// # Errors
    /// When the record is a tombstone or its body is not of this kind, which only another program
    /// can have written.
    pub fn from_record(record: Record) -> Result<Self, serde_json::Error> {
        Ok(Self {
            id: record.id,
            revision: record.revision,
            created_at: Stamp(record.created_at),
            updated_at: Stamp(record.updated_at),
            resource: serde_json::from_value(record.body.unwrap_or_default())?,
        })
    }
}

/// A body as it may be shown: without the fields that are only ever written.
#[must_use]
pub fn shown(kind: Kind, mut body: Value) -> Value {
    if let (Kind::Certificate, Some(fields)) = (kind, body.as_object_mut()) {
        fields.remove(certificate::SECRET);
    }
    body
}

/// Checks a name: 1 to 63 letters, digits, dots, hyphens and underscores of ASCII.
pub(crate) fn check_name(field: &'static str, name: &str) -> Result<(), FieldFault> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let starts = name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    if name.len() > NAME_LEN_MAX {
        let start: String = name.chars().take(NAME_SHOWN).collect();
        let why = format!("{start:?}… has {} bytes; take at most {NAME_LEN_MAX}", name.len());
        return Err(FieldFault::new(field, why));
    }
    match starts && name.bytes().all(fits) {
        true => Ok(()),
        false => Err(FieldFault::new(
            field,
            format!(
                "{name:?} is no name; take 1 to {NAME_LEN_MAX} letters, digits, '.', '-' and '_', a letter or digit first"
            ),
        )),
    }
}

/// Checks a free text: at most 255 bytes, no control characters.
pub(crate) fn check_text(field: &'static str, text: &str) -> Result<(), FieldFault> {
    match text.len() <= TEXT_LEN_MAX && !text.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(FieldFault::new(
            field,
            format!("takes at most {TEXT_LEN_MAX} bytes without control characters"),
        )),
    }
}

/// Checks a host: an address, or a DNS name as resolvers take it, without a port.
pub(crate) fn check_host(field: &'static str, text: &str) -> Result<(), FieldFault> {
    check_text(field, text)?;
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(letter);
    let name = text.strip_suffix('.').unwrap_or(text);
    match text.parse::<IpAddr>().is_ok() || name.split('.').all(label) {
        true => Ok(()),
        false => {
            let why = format!("{text:?} is no host; give a DNS name or an address, without a port");
            Err(FieldFault::new(field, why))
        }
    }
}

/// Checks an IPv4 address, or the word that turns the family off.
pub(crate) fn check_ipv4(field: &'static str, text: &str) -> Result<(), FieldFault> {
    match text.is_empty() || text == "none" || text.parse::<Ipv4Addr>().is_ok() {
        true => Ok(()),
        false => Err(FieldFault::new(field, format!("{text:?} is no IPv4 address; or write none"))),
    }
}

/// Checks an IPv6 address, or the word that turns the family off.
pub(crate) fn check_ipv6(field: &'static str, text: &str) -> Result<(), FieldFault> {
    match text.is_empty() || text == "none" || text.parse::<Ipv6Addr>().is_ok() {
        true => Ok(()),
        false => Err(FieldFault::new(field, format!("{text:?} is no IPv6 address; or write none"))),
    }
}

/// The one form of an access URL: scheme, host and port, and a path without its last slash.
pub(crate) fn access_url(field: &'static str, text: &str) -> Result<String, FieldFault> {
    let fault = |why: &str| FieldFault::new(field, format!("{why}; write https://HOST"));
    check_text(field, text)?;
    let url = reqwest::Url::parse(text).map_err(|error| fault(&error.to_string()))?;
    if !["http", "https"].contains(&url.scheme()) || url.host().is_none() {
        return Err(fault("is no HTTP address"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(fault("takes no query"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(fault("takes no user"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests;
