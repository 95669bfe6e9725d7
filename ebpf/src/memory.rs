//! Bytes between two pointers, as the verifier lets a program have them.
//!
//! Owns every read and write of a packet. [`crate::Packet`] and [`crate::Buffer`] are made of it.

use core::ptr;

/// Packet memory. Void as soon as a helper may have moved the packet.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    data: usize,
    end: usize,
}

impl Memory {
    /// What lies between `data` and `end`, which are a context's.
    #[inline(always)]
    pub(crate) const fn new(data: usize, end: usize) -> Self {
        Self { data, end }
    }

    /// Bytes in it.
    #[inline(always)]
    pub(crate) const fn len(&self) -> usize {
        self.end - self.data
    }

    /// Whether it has at least `len` bytes.
    #[inline(always)]
    pub(crate) const fn has(&self, len: usize) -> bool {
        // In this form, and no other, the verifier learns a bound from it.
        self.data + len <= self.end
    }

    #[inline(always)]
    pub(crate) fn read<T: Copy>(&self, at: usize) -> T {
        // SAFETY: the verifier has seen `has` confirm these bytes on every path to here, or
        // refuses the program.
        unsafe { ptr::read_unaligned((self.data + at) as *const T) }
    }

    #[inline(always)]
    pub(crate) fn write<T: Copy>(&mut self, at: usize, value: T) {
        // SAFETY: as for `read`; nobody else has the frame while the program runs.
        unsafe { ptr::write_unaligned((self.data + at) as *mut T, value) }
    }
}

/// The part of [`wire::packet::Frame`] that only looks into `self.memory`.
macro_rules! access {
    () => {
        #[inline(always)]
        fn has(&self, len: usize) -> bool {
            self.memory.has(len)
        }

        #[inline(always)]
        fn byte(&self, at: usize) -> u8 {
            self.memory.read(at)
        }

        #[inline(always)]
        fn short(&self, at: usize) -> u16 {
            self.memory.read(at)
        }

        #[inline(always)]
        fn word(&self, at: usize) -> u32 {
            self.memory.read(at)
        }

        #[inline(always)]
        fn set_byte(&mut self, at: usize, value: u8) {
            self.memory.write(at, value);
        }

        #[inline(always)]
        fn set_short(&mut self, at: usize, value: u16) {
            self.memory.write(at, value);
        }

        #[inline(always)]
        fn set_word(&mut self, at: usize, value: u32) {
            self.memory.write(at, value);
        }
    };
}
pub(crate) use access;
