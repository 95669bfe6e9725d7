//! The WireGuard relay between real peers (boringtun) and against forgers, in memory and in virtual
//! time.
//!
//! Peers' timers are driven by hand: what a stock peer does after 15 seconds of silence is
//! [`World::initiate`] here. Every datagram goes through the data table first and to the relay if
//! that does not know it, as in the process; after each, all invariants are checked, and that no
//! more bytes left than came.
#![forbid(unsafe_code)]

mod forgers;
mod limits;
mod operators;
mod peers;
mod random;
mod scale;
mod world;
