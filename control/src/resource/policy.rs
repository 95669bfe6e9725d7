//! The one policy that every relay goes by: who is admitted, and what bounds a session.
//!
//! Owns [`Policy`]; its bounds are those of the steering contract, its form is the API's own: that is
//! public, so that the contract may change without it. A limit that is left out is as each relay's
//! own configuration has it, and a relay may refuse what does not go with that.

use serde::{Deserialize, Serialize};
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

impl From<SessionLimits> for steer::SessionLimits {
    fn from(limits: SessionLimits) -> Self {
        let SessionLimits {
            queue_bytes_max,
            queue_packets_max,
            queued_bytes_max,
            write_timeout_ms,
            keepalive_ms,
            keepalive_jitter_ms,
        } = limits;
        Self {
            queue_bytes_max,
            queue_packets_max,
            queued_bytes_max,
            write_timeout_ms,
            keepalive_ms,
            keepalive_jitter_ms,
        }
    }
}

impl From<Admission> for steer::Admission {
    fn from(admission: Admission) -> Self {
        match admission {
            Admission::Open => Self::Open,
            Admission::Registered => Self::Registered,
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
        let limits = steer::SessionLimits::from(self.sessions);
        limits.check().map_err(|refusal| FieldFault::new("sessions", refusal.to_string()))
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}
