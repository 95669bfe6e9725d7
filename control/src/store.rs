//! The store: what control must remember, behind one trait.
//!
//! Owns the vocabulary of records and changes and the promises every back end keeps (its tests are
//! `suite`, run over each). It knows nothing of HTTP and nothing of what a body means: a record is
//! a kind, a name, unique keys, references and a JSON body. Every change takes a revision from one
//! counter in its own transaction; what is removed leaves a tombstone.

pub mod postgres;
pub mod sqlite;
#[cfg(test)]
mod suite;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::clock::Stamp;

/// Records of one kind, at most; enough for ten times the fleet this is built for. Of some kinds there
/// are fewer, see [`Kind::records_max`].
pub const RECORDS_MAX: usize = 100_000;
/// Changes in one transaction, at most: a whole DERP map is published in one.
pub const OPERATIONS_MAX: usize = 20_000;
/// Rows of one page or one read of changes, at most.
pub const PAGE_ROWS_MAX: usize = 10_000;
/// Bytes of a body as JSON, at most.
pub const BODY_BYTES_MAX: usize = 32 * 1024;
/// How long a tombstone stays, in seconds: a week. Who watches from before gets the whole anew.
pub const TOMBSTONE_S: i64 = 7 * 24 * 3600;
/// How long a repeated create is recognised, in seconds: a day.
pub const IDEMPOTENCY_S: i64 = 24 * 3600;
/// How long a call waits for its turn. After that, the store is behind by more than it can make up for.
pub const TURN: Duration = Duration::from_secs(5);
/// Audit entries kept, the latest.
pub const AUDIT_ROWS_MAX: i64 = 100_000;

/// A place in the one order of all changes. 0 is before the first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(transparent)]
pub struct Revision(pub i64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Seconds since 1970, as the host's clock has them.
pub type UnixS = i64;

/// The kinds of records.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A satellite.
    Satellite,
    /// A region of the DERP map.
    Region,
    /// A relay node of a region.
    Node,
    /// A WireGuard peer.
    Peer,
    /// Two peers that may talk to each other.
    Link,
    /// A token of the API.
    Token,
    /// A client that relays admit.
    Client,
    /// What every relay goes by.
    Policy,
    /// A certificate of relays with its key.
    Certificate,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Satellite,
        Self::Region,
        Self::Node,
        Self::Peer,
        Self::Link,
        Self::Token,
        Self::Client,
        Self::Policy,
        Self::Certificate,
    ];

    /// The word that stands for it in the database and in messages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Satellite => "satellite",
            Self::Region => "region",
            Self::Node => "node",
            Self::Peer => "peer",
            Self::Link => "link",
            Self::Token => "token",
            Self::Client => "client",
            Self::Policy => "policy",
            Self::Certificate => "certificate",
        }
    }

    /// Living records of this kind, at most. Relays have bounds of their own, and refuse what is
    /// beyond them.
    #[must_use]
    pub fn records_max(self) -> usize {
        match self {
            Self::Satellite | Self::Region | Self::Node | Self::Token => RECORDS_MAX,
            // Control's own prober is one for relays.
            Self::Client => steer::CLIENTS_MAX - 1,
            Self::Peer => steer::PEERS_MAX,
            Self::Link => steer::LINKS_MAX,
            Self::Certificate => steer::CERTIFICATES_MAX,
            Self::Policy => 1,
        }
    }

    /// The kind that `word` stands for.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

/// A record as stored, or what is left of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What it is.
    pub kind: Kind,
    /// Its identity: 32 hexadecimal digits, never used again.
    pub id: String,
    /// Its name, unique among the living of its kind.
    pub name: String,
    /// The revision of its last change.
    pub revision: Revision,
    /// When it was made.
    pub created_at: UnixS,
    /// When it was last changed.
    pub updated_at: UnixS,
    /// What it says; `None` for the tombstone of one that was removed.
    pub body: Option<serde_json::Value>,
}

impl Record {
    /// The body as JSON; nothing for a tombstone.
    pub(crate) fn text(&self) -> String {
        self.body.as_ref().map(ToString::to_string).unwrap_or_default()
    }
}

/// What a record is to say.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Its name.
    pub name: String,
    /// Further words that no other of its kind may have, such as `code=fra`.
    pub keys: Vec<String>,
    /// Living records it cannot do without, by kind and name. They cannot be removed or renamed
    /// while it lives.
    pub needs: Vec<(Kind, String)>,
    /// The body.
    pub body: serde_json::Value,
}

impl Draft {
    /// The body as JSON, if it is no larger than the store takes.
    pub(crate) fn text(&self) -> Result<String, StoreFault> {
        let text = self.body.to_string();
        if text.len() > BODY_BYTES_MAX {
            return Err(StoreFault::Limit("this record is larger than the store takes"));
        }
        Ok(text)
    }
}

impl Draft {
    /// The record that this makes.
    pub(crate) fn made(&self, kind: Kind, id: &str, revision: Revision, now: UnixS) -> Record {
        Record {
            kind,
            id: id.to_owned(),
            name: self.name.clone(),
            revision,
            created_at: now,
            updated_at: now,
            body: Some(self.body.clone()),
        }
    }
}

/// How a token is found and known again. Kept beside the record, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenMark {
    /// The words of the token that are no secret.
    pub prefix: String,
    /// A keyed hash of the whole token.
    pub hash: Vec<u8>,
}

impl fmt::Debug for TokenMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenMark({})", self.prefix)
    }
}

/// One step of a [`Change`].
#[derive(Clone, Debug)]
pub enum Operation {
    /// Make a record.
    Create {
        /// Its kind.
        kind: Kind,
        /// Its new id.
        id: String,
        /// What it says.
        draft: Draft,
        /// For a token, how it is known.
        mark: Option<TokenMark>,
    },
    /// Put another body in the place of a record's.
    Replace {
        /// Its kind.
        kind: Kind,
        /// Its id.
        id: String,
        /// Only if it is still at this revision.
        expected: Option<Revision>,
        /// What it is to say.
        draft: Draft,
    },
    /// Remove a record.
    Remove {
        /// Its kind.
        kind: Kind,
        /// Its id.
        id: String,
        /// Only if it is still at this revision.
        expected: Option<Revision>,
    },
}

/// The key by which a repeated create is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    /// What the caller chose, with who the caller is in front.
    pub key: String,
    /// A digest of the request: the same key with another request is a fault.
    pub digest: String,
}

/// A change: all of its operations happen, or none.
#[derive(Clone, Debug)]
pub struct Change {
    /// Who asks, for the audit log.
    pub actor: String,
    /// When.
    pub now: UnixS,
    /// What, in this order.
    pub operations: Vec<Operation>,
    /// Only once, if repeated.
    pub once: Option<Once>,
    /// Only if this is so.
    pub unchanged: Option<Unchanged>,
}

/// Nothing of some kinds was made, changed or removed after a revision that the store has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unchanged {
    /// The revision.
    pub since: Revision,
    /// The kinds.
    pub kinds: &'static [Kind],
}

impl Unchanged {
    /// The kinds as a list in SQL.
    fn words(&self) -> String {
        let words: Vec<_> = self.kinds.iter().map(|kind| format!("'{}'", kind.word())).collect();
        words.join(", ")
    }
}

/// What became of a [`Change`].
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The records, one for each operation, as they are now.
    pub records: Vec<Record>,
    /// Whether the same change had been made before; these are its records.
    pub replayed: bool,
}

/// Which records to list.
#[derive(Clone, Debug)]
pub struct Query {
    /// Of which kind.
    pub kind: Kind,
    /// Those whose names come after this one.
    pub after: Option<String>,
    /// At most so many; [`PAGE_ROWS_MAX`] bounds it.
    pub limit: usize,
}

/// Records in the order of their names.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The records.
    pub records: Vec<Record>,
    /// Whether there are more.
    pub more: bool,
    /// The store's revision when they were read.
    pub revision: Revision,
}

/// What has changed since some revision, in the order of revisions.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes {
    /// The records as they are now; of several changes to one the last.
    pub records: Vec<Record>,
    /// Go on from here.
    pub upto: Revision,
    /// Tombstones after the asked revision are gone already: forget everything first. These are
    /// then all living records.
    pub reset: bool,
}

/// How far somebody who is told of changes by the page has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// What is up to here has been told.
    pub upto: Revision,
    /// While all that lives is being told: it ends here. What changes or goes meanwhile is at a later
    /// revision, and is told after it, so that a compaction before the end takes nothing away.
    pub whole_upto: Option<Revision>,
}

impl Place {
    /// That of somebody who was told all up to `revision`; from 0, it is everything that lives.
    #[must_use]
    pub fn after(revision: Revision) -> Self {
        Self { upto: revision, whole_upto: None }
    }
}

/// One page of what somebody is told, in the order of revisions.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The records as they are now; of several changes to one the last.
    pub records: Vec<Record>,
    /// Go on from here.
    pub next: Place,
    /// Tombstones after the asked place are gone already: forget everything first. All that lives is
    /// told from here on.
    pub reset: bool,
}

impl From<Told> for Changes {
    fn from(Told { records, next, reset }: Told) -> Self {
        Self { records, upto: next.upto, reset }
    }
}

/// One line of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// The revision that the change made.
    pub revision: Revision,
    /// When.
    pub at: Stamp,
    /// Who: `token:NAME`, `uid:NUMBER` over the socket, `satellite:NAME` for what a satellite says of
    /// itself, or `control` for what it does by itself.
    pub actor: String,
    /// `create`, `replace` or `remove`.
    pub verb: String,
    /// What kind of record.
    pub kind: Kind,
    /// Its id; entries of before this was written down have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its name, after this change.
    pub name: String,
    /// SHA-256 of the body before, in hexadecimal; empty if there was none.
    pub before: String,
    /// SHA-256 of the body after, in hexadecimal; empty if there is none.
    pub after: String,
}

/// Letters of [`AuditEntry::past`].
const PAST_LEN: usize = 16;

impl AuditEntry {
    /// A word that tells its revision from the same one of another past: a store that was put back to a
    /// backup comes to the same number by another change, at another time.
    #[must_use]
    pub fn past(&self) -> String {
        // The word of an entry without an id stays what dataplanes know it by. Texts and numbers
        // serialise.
        let known = Self { id: None, ..self.clone() };
        let text = serde_json::to_vec(&known).unwrap_or_default();
        crate::token::digest_hex(&text)[..PAST_LEN].to_owned()
    }
}

/// What an entry of the audit log is of.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) kind: Kind,
    pub(crate) id: &'a str,
    /// Its name after the change.
    pub(crate) name: &'a str,
}

/// What a key such as `region_id=900` is of, in words.
fn key_words(key: &str) -> String {
    key.split('=').next().unwrap_or(key).replace('_', " ")
}

/// What the audit log says of a body: its digest, or nothing if there is none.
pub(crate) fn audited(body: &str) -> String {
    if body.is_empty() { String::new() } else { crate::token::digest_hex(body.as_bytes()) }
}

/// Why the store did not do it. Nothing has changed then, but for [`StoreFault::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreFault {
    /// Another record has that name.
    #[error("{kind} {word:?} exists already", kind = kind.word())]
    Taken {
        /// Of which kind.
        kind: Kind,
        /// The name.
        word: String,
    },
    /// Another record has that key.
    #[error("{kind} {holder:?} has this {what} already", kind = kind.word(), what = key_words(key))]
    Held {
        /// Of which kind.
        kind: Kind,
        /// The key.
        key: String,
        /// The name of the record that has it.
        holder: String,
    },
    /// The record that is to be changed is not there, or no more.
    #[error("there is no {kind} {id:?}", kind = kind.word())]
    Gone {
        /// Of which kind.
        kind: Kind,
        /// Its id.
        id: String,
    },
    /// There is none such, and a draft needs it.
    #[error("there is no {kind} {word:?}", kind = kind.word())]
    Missing {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        word: String,
    },
    /// Others need it.
    #[error("{kind} {name:?} is needed by {by}", kind = kind.word())]
    InUse {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// One that needs it.
        by: String,
    },
    /// It has changed since the caller looked.
    #[error("it has changed meanwhile and is at revision {now}")]
    Stale {
        /// Where it is now.
        now: Revision,
    },
    /// The same idempotency key came with another request.
    #[error("this Idempotency-Key was used for another request")]
    OnceReused,
    /// A limit of this module is reached.
    #[error("{0}")]
    Limit(&'static str),
    /// The disk or the database's quota is full.
    #[error("the disk is full; free some space")]
    Full,
    /// More is waiting than the store can take.
    #[error("the store is busy; try again")]
    Busy,
    /// The database is not there at the moment.
    #[error("the database cannot be reached: {0}")]
    Away(String),
    /// The database was lost while it was told to commit.
    #[error(
        "the database was lost during the commit: the change may have happened or not; look, or \
         repeat it with the same Idempotency-Key"
    )]
    Unknown,
    /// The back end failed.
    #[error("the database failed: {0}")]
    Broken(String),
}

/// What the store will answer.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreFault>> + Send + 'a>>;

/// A back end.
///
/// Reads see whole transactions only. A change that was answered is durable. Concurrent changes
/// happen one after the other, in the order of their revisions.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Carries out `change`.
    fn apply(&self, change: Change) -> Answer<'_, Applied>;
    /// The living record with this id.
    fn read(&self, kind: Kind, id: String) -> Answer<'_, Option<Record>>;
    /// The living record with this name.
    fn find(&self, kind: Kind, name: String) -> Answer<'_, Option<Record>>;
    /// The living record that has this key, a word of its [`Draft::keys`].
    fn holder(&self, kind: Kind, key: String) -> Answer<'_, Option<Record>>;
    /// Living records of a kind.
    fn list(&self, query: Query) -> Answer<'_, Page>;
    /// What changed after `from`, `limit` records at most. From 0: everything that lives, at once,
    /// however much it is.
    fn changes(&self, from: Revision, limit: usize) -> Answer<'_, Changes>;
    /// The same from `from` on by the page: `limit` records at most, also of everything that lives.
    fn tell(&self, from: Place, limit: usize) -> Answer<'_, Told>;
    /// The living token with this prefix, and the hash it is known by.
    fn token(&self, prefix: String) -> Answer<'_, Option<(Record, Vec<u8>)>>;
    /// Notes that tokens were used, each by id.
    fn touch_tokens(&self, uses: Vec<(String, UnixS)>) -> Answer<'_, ()>;
    /// When each token that was ever used was used last, by id.
    fn token_uses(&self) -> Answer<'_, Vec<(String, UnixS)>>;
    /// The latest entries of the audit log before `before`, the newest first.
    fn audit(&self, before: Option<Revision>, limit: usize) -> Answer<'_, Vec<AuditEntry>>;
    /// The entries of these revisions that the audit log has, in their order.
    fn entries(&self, of: Vec<Revision>) -> Answer<'_, Vec<AuditEntry>>;
    /// Whether the database answers: the revision it is at. Takes the same time however much there is.
    fn look(&self) -> Answer<'_, Revision>;
    /// Living records of each kind.
    fn counts(&self) -> Answer<'_, Vec<(Kind, u64)>>;
    /// A secret of this store's own, made with it, for keyed hashes.
    fn secret(&self) -> [u8; 32];
    /// Removes what is kept for a time only: old tombstones, idempotency keys and audit entries.
    fn compact(&self, now: UnixS) -> Answer<'_, ()>;
    /// The latest revision, as a hint that there is something new to read. It also wakes when a
    /// database that was away is back.
    fn revisions(&self) -> watch::Receiver<Revision>;
    /// Whether this process is the one of those on its database that does what one should do, such
    /// as compaction. A process that was frozen may believe so for a moment too long: what it then
    /// does must be harmless.
    fn leads(&self) -> bool;
}
