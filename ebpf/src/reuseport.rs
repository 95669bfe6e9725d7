//! The program that spreads a port's datagrams over the sockets of several cores.
//!
//! Owns the choice of a socket: WireGuard handshakes to the first, where their state is, data by
//! receiver index so that a flow stays on one core, the rest to the kernel's own hash. An object of
//! its own, because it loads with CAP_BPF alone. The dataplane loads one per listen address, with
//! its sockets in the order of their cores.
#![no_std]
#![no_main]

#[cfg(not(target_arch = "bpf"))]
extern crate std;

use core::ptr;

// For the license and the panic handler.
use ebpf as _;

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::macros::{map, sk_reuseport};
use aya_ebpf::maps::{Array, ReusePortSockArray};
use aya_ebpf::programs::SkReuseportContext;
use wire::packet::UDP_LEN;

/// Sockets of one port at most.
const SOCKETS_MAX: u32 = 256;

#[map]
static SOCKETS: ReusePortSockArray = ReusePortSockArray::with_max_entries(SOCKETS_MAX, 0);
/// How many of the sockets take data; 0 leaves everything to the kernel. Written by user space.
#[map]
static SPREAD: Array<u32> = Array::with_max_entries(1, 0);

/// The entry.
#[sk_reuseport]
pub fn reuseport(context: SkReuseportContext) -> u32 {
    if let Some(socket) = choose(&context) {
        // A socket that is gone leaves the choice to the kernel.
        let _ = SOCKETS.select_reuseport(&context, socket);
    }
    SK_PASS
}

#[inline(always)]
fn choose(context: &SkReuseportContext) -> Option<u32> {
    let spread = *SPREAD.get(0)?;
    if spread == 0 {
        return None;
    }
    // SAFETY: the program's context is readable while it runs. Volatile, because the verifier
    // refuses loads from it that the compiler has merged.
    let (data, end) = unsafe {
        (
            ptr::read_volatile(&raw const (*context.md).__bindgen_anon_1.data) as usize,
            ptr::read_volatile(&raw const (*context.md).__bindgen_anon_2.data_end) as usize,
        )
    };
    if data + UDP_LEN + 8 > end {
        return None;
    }
    // SAFETY: the verifier has seen the comparison above.
    let [kind, receiver] =
        unsafe { ptr::read_unaligned((data + UDP_LEN) as *const [u32; 2]) }.map(u32::from_le);
    match kind {
        1..=3 => Some(0),
        // Indices are random with some peers and counted with others.
        4 => Some((receiver.wrapping_mul(0x9e37_79b1) >> 16) % spread),
        _ => None,
    }
}
