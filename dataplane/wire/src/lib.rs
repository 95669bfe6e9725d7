//! Relay wire formats: header views, encoders and checks over borrowed bytes.
//!
//! Owns every byte layout that Perigee reads or writes below TLS. It never allocates, never reads a
//! clock, socket or entropy source (invariants 1 and 2), and never panics on input from the network
//! (invariant 11). `proto`, `steer`, the benches, the tests and the eBPF programs call it.
#![no_std]
#![forbid(unsafe_code)]

pub mod derp;
pub mod disco;
pub mod drop;
pub mod key;
pub mod maps;
pub mod meta_cert;
pub mod packet;
pub mod stun;
pub mod wireguard;
