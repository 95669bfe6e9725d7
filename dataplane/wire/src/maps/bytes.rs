//! Values as bytes, for user space, which may not reinterpret memory.
//!
//! Owns writing and reading of fields in sequence, in the byte order of the machine that the maps
//! are on. The other modules of [`crate::maps`] call it, each for its own type.

/// Fills `N` bytes from the front.
pub(super) struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    pub(super) fn put<const M: usize>(&mut self, field: [u8; M]) {
        if let Some(place) = self.bytes.get_mut(self.at..self.at + M) {
            place.copy_from_slice(&field);
        }
        self.at += M;
    }

    pub(super) fn words<const M: usize>(&mut self, words: [u32; M]) {
        for word in words {
            self.put(word.to_ne_bytes());
        }
    }

    pub(super) fn finish(self) -> [u8; N] {
        debug_assert!(self.at == N);
        self.bytes
    }
}

/// What is left to read.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn take<const M: usize>(&mut self) -> [u8; M] {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            debug_assert!(false, "a type is read from bytes of its own length");
            return [0; M];
        };
        self.0 = rest;
        *field
    }

    pub(super) fn short(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    pub(super) fn word(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    pub(super) fn long(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    pub(super) fn words<const M: usize>(&mut self) -> [u32; M] {
        core::array::from_fn(|_| self.word())
    }
}
