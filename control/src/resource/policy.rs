//! The one policy that every relay goes by: who is admitted, and what bounds a session.
//!
//! Owns [`Policy`] and its bounds, which are those of the steering contract. A limit that is left out
//! is as each relay's own configuration has it, so limits that bound each other are judged here only
//! as far as both are said.

use serde::{Deserialize, Serialize};
use steer::{CLIENT_PATIENCE_MS, QUEUE_BYTES_MIN};
use utoipa::ToSchema;

use super::{FieldFault, Resource, Scope};
use crate::store::Kind;

/// The name of the one policy.
pub const POLICY: &str = "default";

/// Who may use a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// Everybody.
    #[default]
    Open,
    /// Registered clients alone.
    Registered,
}

/// Bounds and times of every session. What is left out is as each relay's configuration says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SessionLimits {
    /// Bytes that may wait in each lane of a client's queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_bytes_max: Option<u64>,
    /// Packets that may wait in each lane of a client's queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_packets_max: Option<u32>,
    /// Bytes that may wait in all queues together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_bytes_max: Option<u64>,
    /// A send that moves no byte for so long ends its session, in milliseconds; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_timeout_ms: Option<u64>,
    /// Between two keepalives of a session, jitter excluded, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive_ms: Option<u64>,
    /// Most that a session's own jitter adds to that, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive_jitter_ms: Option<u64>,
}

impl SessionLimits {
    fn check(&self) -> Result<(), FieldFault> {
        let keepalive = self.keepalive_ms.unwrap_or(1);
        let silence = keepalive.saturating_add(self.keepalive_jitter_ms.unwrap_or(0));
        let whole = self.queue_bytes_max.unwrap_or(QUEUE_BYTES_MIN);
        let faults = [
            (
                whole < QUEUE_BYTES_MIN,
                "sessions.queue_bytes_max",
                format!("holds no whole packet; take {QUEUE_BYTES_MIN} or more"),
            ),
            (
                self.queue_packets_max == Some(0),
                "sessions.queue_packets_max",
                "is zero; take 1 or more".to_owned(),
            ),
            (
                self.queued_bytes_max.is_some_and(|all| all < whole),
                "sessions.queued_bytes_max",
                format!("is below that of one queue; take {whole} or more"),
            ),
            (
                keepalive == 0 || silence >= CLIENT_PATIENCE_MS,
                "sessions.keepalive_ms",
                format!("and its jitter must be above zero and below {CLIENT_PATIENCE_MS} ms"),
            ),
        ];
        match faults.into_iter().find(|(is_fault, ..)| *is_fault) {
            Some((_, field, why)) => Err(FieldFault::new(field, why)),
            None => Ok(()),
        }
    }
}

/// What every relay goes by. There is at most one; without it, everybody is admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Always `default`.
    #[serde(default = "name")]
    pub name: String,
    /// Who may use relays.
    #[serde(default)]
    pub admission: Admission,
    /// Bounds and times of every session.
    #[serde(default)]
    pub sessions: SessionLimits,
}

fn name() -> String {
    POLICY.to_owned()
}

impl Default for Policy {
    fn default() -> Self {
        let (admission, sessions) = Default::default();
        Self { name: name(), admission, sessions }
    }
}

impl Resource for Policy {
    const KIND: Kind = Kind::Policy;
    const PLURAL: &'static str = "policies";
    const WRITE: Scope = Scope::Operate;
    const FIXED: Option<&'static str> = Some("name");

    fn check(&mut self) -> Result<(), FieldFault> {
        if self.name != POLICY {
            let why = format!("there is one policy; call it {POLICY}");
            return Err(FieldFault::new("name", why));
        }
        self.sessions.check()
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}
