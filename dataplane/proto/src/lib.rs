//! Sans-I/O state machines.
#![no_std]
extern crate alloc;
