//! A frame in a byte slice.
//!
//! Owns the bounds of a frame within its buffer. Reads beyond it give zeros, as they would be a
//! mistake of the judge and not of the sender. Tests and benches call it.

use super::Frame;

/// A frame in a buffer that may have room before it, and none behind, as with most drivers.
#[derive(Debug)]
pub struct SliceFrame<'a> {
    buffer: &'a mut [u8],
    /// Not beyond `end`.
    start: usize,
    /// Not beyond the buffer.
    end: usize,
}

impl<'a> SliceFrame<'a> {
    /// The frame in `buffer` behind `headroom` bytes, or all of it if there are not as many.
    #[must_use]
    pub fn new(buffer: &'a mut [u8], headroom: usize) -> Self {
        let end = buffer.len();
        let start = if headroom <= end { headroom } else { 0 };
        Self { buffer, start, end }
    }

    /// The frame's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        let field = self.bytes().get(at..).and_then(<[u8]>::first_chunk);
        debug_assert!(field.is_some(), "read at {at} without asking");
        field.copied().unwrap_or([0; N])
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, at: usize, value: [u8; N]) {
        let frame = self.buffer.get_mut(self.start..self.end);
        let field = frame.and_then(|frame| frame.get_mut(at..)?.first_chunk_mut());
        debug_assert!(field.is_some(), "written at {at} without asking");
        if let Some(field) = field {
            *field = value;
        }
    }
}

impl Frame for SliceFrame<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    fn has(&self, len: usize) -> bool {
        self.len() >= len
    }

    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        u8::from_ne_bytes(self.read(at))
    }

    #[inline(always)]
    fn short(&self, at: usize) -> u16 {
        u16::from_ne_bytes(self.read(at))
    }

    #[inline(always)]
    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.read(at))
    }

    #[inline(always)]
    fn set_byte(&mut self, at: usize, value: u8) {
        self.write(at, value.to_ne_bytes());
    }

    #[inline(always)]
    fn set_short(&mut self, at: usize, value: u16) {
        self.write(at, value.to_ne_bytes());
    }

    #[inline(always)]
    fn set_word(&mut self, at: usize, value: u32) {
        self.write(at, value.to_ne_bytes());
    }

    fn resize(&mut self, len: usize) -> bool {
        if len <= self.len() {
            self.end = self.start + len;
            return true;
        }
        let grown = len - self.len();
        let fits = grown <= self.start;
        if fits {
            self.start -= grown;
        }
        fits
    }
}
