//! Lines out of a stream that comes in pieces, none longer than allowed.

use std::collections::VecDeque;
use std::mem;

/// See the module. What waits in it is bounded by one line and one piece.
#[derive(Debug)]
pub struct Lines {
    bytes_max: usize,
    /// Whole lines, without their ends.
    whole: VecDeque<Vec<u8>>,
    /// The line whose end has not come; at most `bytes_max` bytes.
    begun: Vec<u8>,
}

/// A line is longer than allowed. Nothing after it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {bytes_max} bytes")]
pub struct TooLong {
    /// What is allowed.
    pub bytes_max: usize,
}

impl Lines {
    /// For lines of up to `bytes_max` bytes, their ends excluded.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, whole: VecDeque::new(), begun: Vec::new() }
    }

    /// Takes the next piece of the stream.
    ///
    /// # Errors
    /// [`TooLong`]; lines that ended before it can still be popped.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), TooLong> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            if self.begun.len() + text.len() > self.bytes_max {
                return Err(TooLong { bytes_max: self.bytes_max });
            }
            self.begun.extend_from_slice(text);
            if text.len() < part.len() {
                self.whole.push_back(mem::take(&mut self.begun));
            }
        }
        Ok(())
    }

    /// The next whole line, without its end.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.whole.pop_front()
    }

    /// Bytes of the line whose end has not come: where the stream ends now, it ends amid a line.
    #[must_use]
    pub fn begun_bytes(&self) -> usize {
        self.begun.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn popped(lines: &mut Lines) -> Vec<String> {
        std::iter::from_fn(|| lines.pop())
            .map(|line| String::from_utf8(line).expect("text"))
            .collect()
    }

    #[test]
    fn lines_do_not_depend_on_the_pieces() {
        let stream = b"one\n\ntwo and more\nthree";
        for cut in 1..=stream.len() {
            let mut lines = Lines::new(12);
            for piece in stream.chunks(cut) {
                lines.push(piece).expect("short lines");
            }
            assert_eq!(popped(&mut lines), ["one", "", "two and more"], "cut every {cut}");
            assert_eq!(lines.begun_bytes(), 5);
        }
    }

    #[test]
    fn a_line_at_its_bound_passes_and_one_beyond_is_refused_before_it_ends() {
        let mut lines = Lines::new(4);
        lines.push(b"four\nfou").expect("at the bound");
        lines.push(b"r").expect("at the bound");
        assert_eq!(lines.push(b"x"), Err(TooLong { bytes_max: 4 }));
        assert_eq!(popped(&mut lines), ["four"]);
        assert_eq!(Lines::new(4).push(b"fives\n"), Err(TooLong { bytes_max: 4 }));
    }
}
