//! Tests that span crates, and the harness they share.
//!
//! Owns the real `dataplane` as a process, network namespaces to run it in, a small DERP client, a scripted control,
//! stock WireGuard peers, and what the fuzz targets do. It never depends on the package `dataplane`:
//! what it sees is what an operator and a client see. The integration tests in `tests/` and the fuzz
//! targets call it.
#![forbid(unsafe_code)]

#[cfg(feature = "relay")]
pub mod client;
#[cfg(feature = "relay")]
pub mod control;
pub mod frames;
pub mod fuzz_targets;
#[cfg(feature = "relay")]
pub mod metrics;
#[cfg(feature = "relay")]
pub mod netns;
#[cfg(feature = "relay")]
pub mod process;
#[cfg(feature = "relay")]
pub mod relay;
#[cfg(feature = "relay")]
pub mod scratch;
#[cfg(feature = "relay")]
pub mod serving;
#[cfg(feature = "relay")]
pub mod skip;
#[cfg(feature = "relay")]
pub mod stun;
#[cfg(feature = "relay")]
pub mod wireguard;
