//! A frame as the kernel's stack has it: a socket buffer, at the ingress hook of tcx.
//!
//! Owns what a driver's frame does not have: bytes that are not in one piece, datagrams merged by the
//! kernel (GRO) or never cut by a sender (GSO), tags kept beside the frame, and checksums whose state
//! only the kernel knows. No frame changes its size here. The program `relay_tcx` calls it.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::{
    bpf_csum_update, bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_pull_data,
};
use wire::packet::{Change, Frame};

use crate::memory::{Memory, access};

/// A frame in a socket buffer.
pub struct Buffer {
    context: *mut __sk_buff,
    /// Its first bytes, as many as are in one piece.
    memory: Memory,
}

/// A field of the context. Volatile, because the verifier refuses loads from it that the compiler
/// has merged.
macro_rules! field {
    ($context:expr, $name:ident) => {
        // SAFETY: the program's context is readable for as long as it runs.
        unsafe { ptr::read_volatile(&raw const (*$context).$name) }
    };
}

impl Buffer {
    /// The frame that `context` is about.
    #[inline(always)]
    pub fn new(context: *mut __sk_buff) -> Self {
        Self { context, memory: Self::memory(context) }
    }

    #[inline(always)]
    fn memory(context: *mut __sk_buff) -> Memory {
        Memory::new(field!(context, data) as usize, field!(context, data_end) as usize)
    }

    /// Sees to it that the first `len` bytes are in one piece, or all if there are fewer.
    #[inline(always)]
    pub fn gather(&mut self, len: usize) {
        let wanted = if len < self.len() { len } else { self.len() };
        if self.memory.len() < wanted {
            // SAFETY: the helper takes any number and the program's own context. If it fails, the
            // frame is as it was.
            unsafe { bpf_skb_pull_data(self.context, wanted as u32) };
            self.memory = Self::memory(self.context);
        }
    }

    /// Datagrams in the frame.
    #[inline(always)]
    pub fn datagrams(&self) -> u32 {
        // One that nobody has merged has none.
        match field!(self.context, gso_segs) {
            0 => 1,
            datagrams => datagrams,
        }
    }

    /// Number of the interface that it came in by.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        field!(self.context, ifindex)
    }
}

impl Frame for Buffer {
    /// An answer is of another size than its request, and making room is dear here.
    const ANSWERS: bool = false;
    const REPAIRS: bool = true;

    access!();

    #[inline(always)]
    fn len(&self) -> usize {
        field!(self.context, len) as usize
    }

    #[inline(always)]
    fn resize(&mut self, _len: usize) -> bool {
        false
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        field!(self.context, vlan_present) != 0
    }

    #[inline(always)]
    fn segment_len(&self) -> usize {
        field!(self.context, gso_size) as usize
    }

    #[inline(always)]
    fn peek(&self, at: usize) -> Option<[u32; 2]> {
        let mut words = [0_u32; 2];
        let place = (&raw mut words).cast::<c_void>();
        // SAFETY: the helper fills eight bytes, which `words` has, or fails.
        let failed = unsafe {
            bpf_skb_load_bytes(self.context.cast(), at as u32, place, size_of_val(&words) as u32)
        };
        (failed == 0).then_some(words)
    }

    #[inline(always)]
    fn repair(&mut self, at: usize, change: &Change) {
        let kept = u64::from(BPF_F_MARK_MANGLED_0);
        let pseudo = kept | u64::from(BPF_F_PSEUDO_HDR);
        // What the helpers cannot do leaves a checksum that does not hold, so that the datagram ends
        // at its receiver; they fail for want of memory only.
        // SAFETY: the helpers check the place and take the program's own context.
        unsafe {
            bpf_l4_csum_replace(self.context, at as u32, 0, u64::from(change.pseudo), pseudo);
            bpf_l4_csum_replace(self.context, at as u32, 0, u64::from(change.ports), kept);
            if change.rest != 0 {
                // A sum over the whole frame, if a network card has made one. The first helper above
                // takes the new addresses for part of an IPv4 header.
                bpf_csum_update(self.context, change.rest);
            }
        }
        self.memory = Self::memory(self.context);
    }
}
