//! A measuring rod: the same packet for a program, however often it is run.
//!
//! Owns one program, `again`, that makes the frame what it was and then jumps to the program under
//! test. A test run repeats a program on what the last run has left, which is a request only once;
//! and what this costs is the same for every program that is jumped to. Tests call it.
#![no_std]
#![no_main]

#[cfg(not(target_arch = "bpf"))]
extern crate std;

use aya_ebpf::bindings::xdp_action::XDP_ABORTED;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::XdpContext;
use ebpf::Packet;
use wire::packet::Frame;

/// Bytes of a frame at most.
const LEN_MAX: usize = 160;

/// A frame of an even length, and how long it is.
#[repr(C)]
pub struct Template {
    shorts: [u16; LEN_MAX / 2],
    len: u32,
}

/// Written by user space.
#[map]
static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);
/// The program under test. Written by user space.
#[map]
static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The entry. It only returns if there is nothing to jump to.
#[xdp]
pub fn again(context: XdpContext) -> u32 {
    let Some(template) = TEMPLATE.get(0) else {
        return XDP_ABORTED;
    };
    let mut packet = Packet::new(context.ctx);
    if !packet.restore(template.len as usize) {
        return XDP_ABORTED;
    }
    let mut at = 0;
    while at < LEN_MAX && packet.has(at + 2) {
        packet.set_short(at, template.shorts[at / 2]);
        at += 2;
    }
    // SAFETY: a jump that fails goes on here.
    unsafe { NEXT.tail_call(&context, 0) };
    XDP_ABORTED
}
