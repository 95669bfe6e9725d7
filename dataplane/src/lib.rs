//! The dataplane process, as a library: everything but its `main`.
// One module talks to the kernel through memory that both write; it is allowed what it needs.
#![deny(unsafe_code)]

pub mod affinity;
pub mod certs;
pub mod cli;
pub mod config;
pub mod fault;
pub mod front;
pub mod identity;
pub mod io;
pub mod launch;
pub mod observe;
pub mod relay;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod udp;
pub mod xdp;
