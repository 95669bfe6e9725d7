//! The dataplane process.

pub mod certs;
pub mod fault;
pub mod identity;
pub mod observe;
#[cfg(test)]
mod testing;
pub mod udp;
