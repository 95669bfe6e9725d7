//! The ring of receive buffers that the kernel picks from.
//!
//! Owns the memory; lends each buffer for one callback and gives it back to the kernel after it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// The only buffer group of a ring.
pub(super) const GROUP: u16 = 0;
/// Bytes of one buffer.
const BUFFER_LEN: usize = 16 << 10;
/// Buffers of a worker's ring. Together with their length this bounds what one round takes in, at
/// 512 KiB: more than a round can send only fills queues to be dropped from (measured: with 4 MiB
/// goodput at twice the capacity fell to a third), and more no longer fits a core's cache.
pub(super) const COUNT: u16 = 32;
/// Alignment of the entry table: the kernel asks for a page.
const PAGE: usize = 4096;

/// See the module.
pub(super) struct Buffers {
    /// The entry table that the kernel reads, `count` entries in page-aligned memory.
    table: NonNull<BufRingEntry>,
    /// The buffers themselves, `count` times [`BUFFER_LEN`] bytes.
    memory: NonNull<u8>,
    /// Entries in the table. Invariant: a power of two.
    count: u16,
    /// Where the next returned buffer goes; the kernel sees it at [`Buffers::publish`].
    tail: u16,
}

impl Buffers {
    /// Registers `count` buffers with `ring`, which must be dropped before the result.
    pub(super) fn register(ring: &IoUring, count: u16) -> io::Result<Self> {
        debug_assert!(count.is_power_of_two());
        let table = allocate(Self::table_layout(count)).cast();
        let memory = allocate(Self::memory_layout(count));
        let mut buffers = Self { table, memory, count, tail: 0 };
        // SAFETY: `table` holds `count` entries and lives as long as `buffers`, which the driver
        // keeps behind its ring.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(table.as_ptr() as u64, count, GROUP, 0)
        }?;
        for buffer in 0..count {
            buffers.give_back(buffer);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// Calls `with` on the first `len` bytes of `buffer`, then gives the buffer back.
    #[inline]
    pub(super) fn lend(&mut self, buffer: u16, len: usize, with: impl FnOnce(&mut [u8])) {
        assert!(buffer < self.count && len <= BUFFER_LEN, "the kernel names our buffers only");
        // SAFETY: `buffer` is within `memory` by the assertion, and the kernel does not touch it
        // between the completion that named it and the `give_back` below.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(
                self.memory.as_ptr().add(usize::from(buffer) * BUFFER_LEN),
                len,
            )
        };
        with(bytes);
        self.give_back(buffer);
    }

    fn give_back(&mut self, buffer: u16) {
        let at = usize::from(self.tail & (self.count - 1));
        // SAFETY: `at` is below `count` by the mask, and the kernel does not read entries at or
        // beyond the tail it has seen.
        let entry = unsafe { &mut *self.table.as_ptr().add(at) };
        let address = self.memory.as_ptr() as u64 + u64::from(buffer) * BUFFER_LEN as u64;
        entry.set_addr(address);
        entry.set_len(BUFFER_LEN as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel every buffer given back so far.
    pub(super) fn publish(&mut self) {
        // SAFETY: the table is the initialised start of a buffer ring, so the tail field exists, is
        // aligned, and is only ever accessed atomically.
        let tail = unsafe { &*BufRingEntry::tail(self.table.as_ptr()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }

    fn table_layout(count: u16) -> Layout {
        Layout::array::<BufRingEntry>(usize::from(count))
            .and_then(|layout| layout.align_to(PAGE))
            .expect("65,535 entries of 16 bytes fit a layout")
    }

    fn memory_layout(count: u16) -> Layout {
        Layout::from_size_align(usize::from(count) * BUFFER_LEN, PAGE)
            .expect("65,535 buffers of 16 KiB fit a layout")
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated in `register` with the same layout; the ring is gone.
        unsafe { dealloc(self.table.as_ptr().cast(), Self::table_layout(self.count)) };
        // SAFETY: as above.
        unsafe { dealloc(self.memory.as_ptr(), Self::memory_layout(self.count)) };
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: no layout made in this file has size zero.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}
