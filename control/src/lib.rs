//! The control process, as a library: everything but its `main`.
#![forbid(unsafe_code)]

pub mod cli;
pub mod clock;
pub mod config;
pub mod derp_map;
pub mod fault;
mod file;
mod json;
mod lobby;
pub mod probe;
pub mod resource;
pub mod serve;
pub mod steering;
pub mod store;
#[cfg(test)]
mod testing;
pub mod token;
mod top;
