//! What either side writes: one message a line, an object whose one field is the message's kind.
//!
//! Fields that are not known are skipped, so that either side may learn to say more. What stands in
//! a snapshot or a delta is not: nothing is adopted that was not understood.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::{Delta, Refusal, Revision, Snapshot, WHY_BYTES_MAX, cut};

/// From a dataplane to control.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// Who it is and what it has: the first message.
    Hello {
        /// [`PROTOCOL`](crate::PROTOCOL).
        protocol: u32,
        /// The name under which control knows the node.
        node: String,
        /// Of its program.
        version: String,
        /// Whose snapshot is in force; `None` before the first.
        store: Option<String>,
        /// The number of the snapshot in force; 0 before the first.
        revision: Revision,
        /// Its [`Snapshot::past`]; empty before the first.
        #[serde(default)]
        past: String,
    },
    /// The snapshot with this number is in force.
    Adopted {
        /// The number.
        revision: Revision,
    },
    /// The snapshot with this number is not; what was in force stays so.
    Refused {
        /// The number, as far as it could be read; else that of the snapshot in force.
        revision: Revision,
        /// Why, in words; at most [`WHY_BYTES_MAX`] bytes.
        why: String,
    },
    /// How it is; the sign of life.
    Report {
        /// DERP sessions.
        sessions: u64,
        /// Whether it drains.
        draining: bool,
        /// Relay cores that do not go round.
        stalled_cores: u32,
    },
}

/// From control to a dataplane.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Go by this.
    Whole(Box<Snapshot>),
    /// Go by what this makes of what is in force.
    Delta(Delta),
    /// Nothing has changed; the sign of life.
    Current {
        /// The number of the newest snapshot.
        revision: Revision,
    },
    /// Control hangs up.
    Goodbye {
        /// Why, in words; at most [`WHY_BYTES_MAX`] bytes.
        why: String,
    },
}

impl Said {
    const KINDS: [&'static str; 4] = ["hello", "adopted", "refused", "report"];

    /// A refusal, its reason cut to what is allowed.
    #[must_use]
    pub fn refused(revision: Revision, why: &impl fmt::Display) -> Self {
        Self::Refused { revision, why: cut(&why.to_string(), WHY_BYTES_MAX).to_owned() }
    }

    /// Reads a line, with or without its end; `None` for a kind that is not known.
    ///
    /// # Errors
    /// [`Refusal::Malformed`].
    pub fn read(line: &[u8]) -> Result<Option<Self>, Refusal> {
        read(line, &Self::KINDS)
    }

    /// The line, with its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        to_line(self)
    }
}

impl Order {
    const KINDS: [&'static str; 4] = ["whole", "delta", "current", "goodbye"];

    /// A farewell, its reason cut to what is allowed.
    #[must_use]
    pub fn goodbye(why: &impl fmt::Display) -> Self {
        Self::Goodbye { why: cut(&why.to_string(), WHY_BYTES_MAX).to_owned() }
    }

    /// Reads a line, with or without its end; `None` for a kind that is not known. What a snapshot
    /// or delta leads to is not judged here.
    ///
    /// # Errors
    /// [`Refusal::Malformed`].
    pub fn read(line: &[u8]) -> Result<Option<Self>, Refusal> {
        read(line, &Self::KINDS)
    }

    /// The line, with its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        to_line(self)
    }
}

fn read<T: DeserializeOwned>(line: &[u8], kinds: &[&str]) -> Result<Option<T>, Refusal> {
    serde_json::from_slice(line).map(Some).or_else(|error| match kind(line) {
        Some(kind) if !kinds.contains(&kind.as_str()) => Ok(None),
        Some(_) | None => Err(Refusal::malformed(&error)),
    })
}

/// The one field of the object that `line` is.
fn kind(line: &[u8]) -> Option<String> {
    let fields: BTreeMap<String, IgnoredAny> = serde_json::from_slice(line).ok()?;
    let mut kinds = fields.into_keys();
    kinds.next().filter(|_| kinds.next().is_none())
}

fn to_line(message: &impl Serialize) -> String {
    // Texts, numbers and maps whose keys are texts always serialise.
    let mut line = serde_json::to_string(message).unwrap_or_default();
    line.push('\n');
    line
}
