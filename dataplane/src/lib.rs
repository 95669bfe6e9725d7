//! The dataplane process, as a library: everything but its `main`.
// Two modules talk to the kernel through memory; they are allowed what they need (invariant 10).
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
pub mod offload;
pub mod relay;
pub mod satellite;
mod steering;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod udp;
pub mod xdp;
