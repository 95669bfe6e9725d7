//! Sans-I/O state machines.
#![no_std]
extern crate alloc;

pub mod bucket;
pub mod tick;
