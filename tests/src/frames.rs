//! Ethernet frames for the fast path: how tests make them, and what ought to become of them.
//!
//! Owns a small made-up network ([`Table`]), a generator of frames that are right or nearly so, a
//! frame that insists on being asked as the kernel's verifier does, and a slow model of the rules
//! that shares no code with `wire::packet`. The host tests, the fuzz target and the tests of the
//! compiled eBPF object call it.

mod build;
mod model;
pub mod table;

pub use build::{Datagram, Dice, Sum, frame, merged};
pub use model::{model, model_late};
pub use table::Table;

use std::cell::Cell;

use wire::maps::Outcome;
use wire::packet::{Change, Frame, SliceFrame, checksum, judge};

/// What became of a frame, and its bytes afterwards.
pub type Judged = (Option<Outcome>, Vec<u8>);

/// What the shared code does with `frame`, which has `headroom` bytes before it.
///
/// # Panics
/// When the code reads what it has not asked for.
#[must_use]
pub fn judged(frame: &[u8], headroom: usize, table: &Table) -> Judged {
    let mut buffer = vec![0xee; headroom];
    buffer.extend(frame);
    let mut frame = Proved::<false>::new(&mut buffer, headroom, 0);
    let outcome = judge(&mut frame, table);
    (outcome, frame.inner.bytes().to_vec())
}

/// The same behind the driver (tcx), where nothing is answered and the kernel may have merged
/// datagrams of `each` bytes of payload; 0 for a single one.
///
/// # Panics
/// When the code reads what it has not asked for.
#[must_use]
pub fn judged_late(frame: &[u8], each: usize, table: &Table) -> Judged {
    let mut buffer = frame.to_vec();
    let mut frame = Proved::<true>::new(&mut buffer, 0, each);
    let outcome = judge(&mut frame, table);
    (outcome, frame.inner.bytes().to_vec())
}

/// A frame that allows what the verifier allows: bytes up to the length last asked about.
struct Proved<'a, const LATE: bool> {
    inner: SliceFrame<'a>,
    proved: Cell<usize>,
    each: usize,
}

impl<'a, const LATE: bool> Proved<'a, LATE> {
    fn new(buffer: &'a mut [u8], headroom: usize, each: usize) -> Self {
        Self { inner: SliceFrame::new(buffer, headroom), proved: Cell::new(0), each }
    }

    fn claim(&self, end: usize) {
        assert!(end <= self.proved.get(), "byte {end} without asking");
    }
}

impl<const LATE: bool> Frame for Proved<'_, LATE> {
    const ANSWERS: bool = !LATE;
    const REPAIRS: bool = LATE;

    fn segment_len(&self) -> usize {
        self.each
    }

    fn peek(&self, at: usize) -> Option<[u32; 2]> {
        self.inner.peek(at)
    }

    /// As the kernel does for what has no card to finish it.
    fn repair(&mut self, at: usize, change: &Change) {
        self.claim(at + 2);
        let more = u64::from(change.pseudo) + u64::from(change.ports);
        self.inner.set_short(at, checksum::repair_udp(self.inner.short(at), 0, more));
        self.proved.set(0);
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn has(&self, len: usize) -> bool {
        let has = self.inner.has(len);
        if has {
            self.proved.set(self.proved.get().max(len));
        }
        has
    }

    fn byte(&self, at: usize) -> u8 {
        self.claim(at + 1);
        self.inner.byte(at)
    }

    fn short(&self, at: usize) -> u16 {
        self.claim(at + 2);
        self.inner.short(at)
    }

    fn word(&self, at: usize) -> u32 {
        self.claim(at + 4);
        self.inner.word(at)
    }

    fn set_byte(&mut self, at: usize, value: u8) {
        self.claim(at + 1);
        self.inner.set_byte(at, value);
    }

    fn set_short(&mut self, at: usize, value: u16) {
        self.claim(at + 2);
        self.inner.set_short(at, value);
    }

    fn set_word(&mut self, at: usize, value: u32) {
        self.claim(at + 4);
        self.inner.set_word(at, value);
    }

    fn resize(&mut self, len: usize) -> bool {
        let done = self.inner.resize(len);
        if done {
            self.proved.set(0);
        }
        done
    }
}
