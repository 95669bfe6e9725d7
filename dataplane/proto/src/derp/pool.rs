//! Send buffers lent to sessions while they have something to send (invariants 2 and 3).
//!
//! One pool per worker; buffers may be returned to another worker's pool than they came from.

use alloc::vec::Vec;

/// Capacities in bytes: one full-size frame, one full record, one full flight.
///
/// The largest holds 64 KiB and a frame head more, in five records of 22 bytes overhead.
const CLASS_BYTES: [usize; 3] = [2 << 10, 18 << 10, 68 << 10];
/// Buffers kept per class; more are given back to the allocator.
const CLASS_KEPT_MAX: [usize; 3] = [4096, 1024, 256];

/// A worker's free buffers, by capacity class.
#[derive(Debug, Default)]
pub struct Pool {
    free: [Vec<Vec<u8>>; CLASS_BYTES.len()],
}

impl Pool {
    /// An empty buffer of at least `bytes` capacity.
    #[must_use]
    pub fn lend(&mut self, bytes: usize) -> Vec<u8> {
        match CLASS_BYTES.iter().position(|class| bytes <= *class) {
            Some(class) => {
                self.free[class].pop().unwrap_or_else(|| Vec::with_capacity(CLASS_BYTES[class]))
            }
            None => Vec::with_capacity(bytes),
        }
    }

    /// Appends `bytes` to `buffer`, which moves into a larger buffer where it is too small.
    #[inline]
    pub fn extend(&mut self, buffer: &mut Vec<u8>, bytes: &[u8]) {
        let need = buffer.len() + bytes.len();
        if need > buffer.capacity() {
            let mut larger = self.lend(need);
            larger.extend_from_slice(buffer);
            self.take_back(core::mem::replace(buffer, larger));
        }
        buffer.extend_from_slice(bytes);
    }

    /// Takes a buffer back, whatever it holds.
    pub fn take_back(&mut self, mut buffer: Vec<u8>) {
        let Some(class) = CLASS_BYTES.iter().rposition(|class| *class <= buffer.capacity()) else {
            return;
        };
        if self.free[class].len() < CLASS_KEPT_MAX[class] {
            buffer.clear();
            self.free[class].push(buffer);
        }
    }

    /// Bytes of capacity kept free.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.free.iter().flatten().map(Vec::capacity).sum()
    }

    /// Gives the free buffers beyond the `keep` first of each class back to the allocator.
    pub fn trim(&mut self, keep: usize) {
        for class in &mut self.free {
            class.truncate(keep);
        }
    }
}

impl AsMut<Self> for Pool {
    fn as_mut(&mut self) -> &mut Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_buffer_moves_within_the_pool() {
        let mut pool = Pool::default();
        let mut buffer = Vec::new();
        pool.extend(&mut buffer, &[]);
        assert_eq!(buffer.capacity(), 0, "nothing takes no buffer");
        pool.extend(&mut buffer, &[1; 100]);
        let small = buffer.capacity();
        pool.extend(&mut buffer, &[2; 3000]);
        assert!(pool.free_bytes() == small && buffer.capacity() > small);
        assert_eq!((buffer[99], buffer[100], buffer.len()), (1, 2, 3100));
        pool.take_back(buffer);
        assert_eq!(pool.lend(small).capacity(), small);
    }

    #[test]
    fn buffers_come_back_to_the_class_they_fit() {
        let mut pool = Pool::default();
        let small = pool.lend(100);
        let large = pool.lend(20 << 10);
        assert!(small.capacity() >= 100 && large.capacity() >= 20 << 10);
        pool.take_back(small);
        pool.take_back(large);
        let kept = pool.free_bytes();
        let again = pool.lend(60 << 10);
        assert!(again.capacity() >= 60 << 10);
        assert!(pool.free_bytes() < kept);
        pool.trim(0);
        assert_eq!(pool.free_bytes(), 0);
    }
}
