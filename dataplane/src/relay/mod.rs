//! The relay: sessions owned by cores, peers shared by all of them.
//!
//! [`Fabric`] is what every worker sees: who is connected ([`Peer`]s by key), bounds and mailboxes.
//! A [`Worker`] owns its sessions' receiving side alone; any worker may push to any peer and flush
//! it. Nothing here knows what a socket or a ring is; drivers do.

mod admitted;
mod context;
mod fabric;
mod flush;
mod forward;
mod mailbox;
mod peer;
mod pulse;
mod routes;
mod session;
mod timers;
mod worker;

pub use admitted::Admitted;
pub use fabric::{Fabric, Tuning};
pub use mailbox::{Command, Newcomer, Stream};
pub use peer::Peer;
pub use pulse::Pulse;
pub use worker::Worker;
