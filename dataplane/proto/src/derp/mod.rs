//! The DERP server without its sockets: greeting, frame intake, queues, and who is connected.

mod directory;
pub mod hello;
mod ingress;
mod outbox;
mod pool;

pub use directory::{Departure, Directory, SessionId};
pub use ingress::{Ingress, PeerFault, Verdict};
pub use outbox::{Budget, Dropped, Flight, Framing, Lane, Limits, Outbox, Pushed};
pub use pool::Pool;
