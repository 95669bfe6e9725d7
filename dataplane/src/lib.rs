//! The dataplane process.

pub mod certs;
pub mod cli;
pub mod config;
pub mod fault;
pub mod identity;
pub mod io;
pub mod observe;
#[cfg(test)]
mod testing;
pub mod relay;
pub mod tls;
pub mod udp;
pub mod affinity;
pub mod front;
pub mod launch;
