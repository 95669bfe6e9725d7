//! Sans-I/O state machines: bytes and time in, verdicts out.
//!
//! Owns what DERP, STUN, WireGuard's outside, WebSocket and TLS records mean; never touches a clock, a socket, the
//! environment or entropy (invariant 1). `dataplane` drives it from sockets, the simulation from
//! memory, the fuzz targets from raw bytes.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod bucket;
pub mod derp;
pub mod stun;
pub mod tick;
pub mod tls;
pub mod wireguard;
pub mod ws;
