//! What the eBPF programs share: packet memory as the judge of `wire` sees it.
//!
//! Owns the only way from the judge to raw memory, in a driver's form ([`Packet`]) and in that of
//! the kernel's stack ([`Buffer`]). Nothing here checks a bound by itself: the kernel's verifier
//! proves every access before the program runs, or does not load it. The programs `relay` and `lab`
//! call it.
#![no_std]

#[cfg(not(target_arch = "bpf"))]
extern crate std;

mod buffer;
mod memory;

pub use buffer::Buffer;

use core::ptr;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use memory::{Memory, access};
use wire::packet::Frame;

/// A frame in the memory of a driver.
pub struct Packet {
    context: *mut xdp_md,
    memory: Memory,
}

impl Packet {
    /// The frame that `context` is about.
    #[inline(always)]
    pub fn new(context: *mut xdp_md) -> Self {
        Self { context, memory: Self::memory(context) }
    }

    /// Where it lies. What was known of it before is void, if it has been moved.
    #[inline(always)]
    fn memory(context: *mut xdp_md) -> Memory {
        // SAFETY: an XDP program's context is readable for as long as it runs. Volatile, because
        // the verifier refuses loads from it that the compiler has merged.
        unsafe {
            let data = ptr::read_volatile(&raw const (*context).data) as usize;
            let end = ptr::read_volatile(&raw const (*context).data_end) as usize;
            Memory::new(data, end)
        }
    }
}

impl Frame for Packet {
    access!();

    #[inline(always)]
    fn len(&self) -> usize {
        self.memory.len()
    }

    /// Grows at the head, where most drivers keep 256 bytes, and where one does not, at the tail.
    #[inline(always)]
    fn resize(&mut self, len: usize) -> bool {
        let missing = len as i32 - self.len() as i32;
        // SAFETY: the helpers take any number and the program's own context.
        let failed = unsafe {
            if missing <= 0 {
                bpf_xdp_adjust_tail(self.context, missing)
            } else if bpf_xdp_adjust_head(self.context, -missing) == 0 {
                0
            } else {
                bpf_xdp_adjust_tail(self.context, missing)
            }
        };
        self.memory = Self::memory(self.context);
        failed == 0
    }
}

impl Packet {
    /// Gives the frame the length that it had before an answer was made of it; `false` if there is
    /// no room. What is in it is undefined then.
    ///
    /// It costs the same whether the frame has been shortened, lengthened or left alone: each helper
    /// always moves an end, and the kernel always clears what is gained at the tail.
    #[inline(always)]
    pub fn restore(&mut self, len: usize) -> bool {
        const SPARE: i32 = 8;
        let missing = len as i32 - self.len() as i32;
        let (tail, head) = if missing >= 0 { (missing, 0) } else { (0, -missing) };
        // SAFETY: the helpers take any number and the program's own context.
        let failed = unsafe {
            bpf_xdp_adjust_head(self.context, -SPARE);
            bpf_xdp_adjust_head(self.context, head + SPARE);
            bpf_xdp_adjust_tail(self.context, -SPARE);
            bpf_xdp_adjust_tail(self.context, tail + SPARE)
        };
        self.memory = Self::memory(self.context);
        failed == 0
    }
}

/// The terms under which the kernel lends helpers.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// No instruction of a panic is left in a program; the compiler wants to know all the same.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
