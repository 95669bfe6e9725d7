//! What the eBPF programs share: packet memory as the judge of `wire` sees it.
//!
//! Owns the only way from the judge to raw memory. Nothing here checks a bound by itself: the
//! kernel's verifier proves every access before the program runs, or does not load it. The
//! programs `relay` and `lab` call it.
#![no_std]

#[cfg(not(target_arch = "bpf"))]
extern crate std;

use core::ptr;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use wire::packet::Frame;

/// A frame in the memory of a driver.
pub struct Packet {
    context: *mut xdp_md,
    data: usize,
    end: usize,
}

impl Packet {
    /// The frame that `context` is about.
    #[inline(always)]
    pub fn new(context: *mut xdp_md) -> Self {
        let mut packet = Self { context, data: 0, end: 0 };
        packet.reload();
        packet
    }

    #[inline(always)]
    fn reload(&mut self) {
        // SAFETY: an XDP program's context is readable for as long as it runs. Volatile, because
        // the verifier refuses loads from it that the compiler has merged.
        unsafe {
            self.data = ptr::read_volatile(&raw const (*self.context).data) as usize;
            self.end = ptr::read_volatile(&raw const (*self.context).data_end) as usize;
        }
    }

    #[inline(always)]
    fn read<T: Copy>(&self, at: usize) -> T {
        // SAFETY: the verifier has seen `has` confirm these bytes on every path to here, or
        // refuses the program.
        unsafe { ptr::read_unaligned((self.data + at) as *const T) }
    }

    #[inline(always)]
    fn write<T: Copy>(&mut self, at: usize, value: T) {
        // SAFETY: as for `read`; nobody else has the frame while the program runs.
        unsafe { ptr::write_unaligned((self.data + at) as *mut T, value) }
    }
}

impl Frame for Packet {
    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.data
    }

    #[inline(always)]
    fn has(&self, len: usize) -> bool {
        // In this form, and no other, the verifier learns a bound from it.
        self.data + len <= self.end
    }

    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        self.read(at)
    }

    #[inline(always)]
    fn short(&self, at: usize) -> u16 {
        self.read(at)
    }

    #[inline(always)]
    fn word(&self, at: usize) -> u32 {
        self.read(at)
    }

    #[inline(always)]
    fn set_byte(&mut self, at: usize, value: u8) {
        self.write(at, value);
    }

    #[inline(always)]
    fn set_short(&mut self, at: usize, value: u16) {
        self.write(at, value);
    }

    #[inline(always)]
    fn set_word(&mut self, at: usize, value: u32) {
        self.write(at, value);
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
        self.reload();
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
