//! A closer look at the programs, for a while and one at a time: packets traced, or time measured.
//!
//! Owns the way of a look from whoever asks to the keeper and back, and its text. The debug pages
//! ask.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use mio::Waker;
use tokio::sync::oneshot;
use wire::maps::Event;

use crate::xdp::{Durations, FastPath, Watch, XdpFault};

/// How long a look lasts at most.
pub const SPAN_MAX: Duration = Duration::from_secs(60);
/// Packets told of in one look at most.
pub const EVENTS_MAX: usize = 10_000;
/// Looks that may wait while one is taken.
const WAITING_MAX: usize = 1;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One packet in so many, at random.
    Packets {
        /// At least 1.
        one_in: u32,
    },
    /// How long the programs take for a packet.
    Time,
}

/// A look that somebody waits for.
#[derive(Debug)]
pub(crate) struct Look {
    subject: Subject,
    span: Duration,
    reply: oneshot::Sender<String>,
}

/// The way to the keeper.
#[derive(Clone, Debug)]
pub struct Looks {
    looks: Sender<Look>,
    bell: Arc<Waker>,
}

impl Looks {
    pub(crate) fn new(bell: Arc<Waker>) -> (Self, Receiver<Look>) {
        let (looks, asked) = crossbeam_channel::bounded(WAITING_MAX);
        (Self { looks, bell }, asked)
    }

    /// Asks for a look that lasts `span`, at most [`SPAN_MAX`]. What comes is its text, or nothing
    /// if the process ends. `None` if too many are asked for already.
    #[must_use]
    pub fn ask(&self, subject: Subject, span: Duration) -> Option<oneshot::Receiver<String>> {
        let (reply, told) = oneshot::channel();
        self.looks.try_send(Look { subject, span: span.min(SPAN_MAX), reply }).ok()?;
        // A bell that fails to ring is looked after by the keeper's own clock.
        let _ = self.bell.wake();
        Some(told)
    }
}

/// A look being taken.
#[derive(Debug)]
pub(super) struct Looking {
    look: Look,
    until: Instant,
    text: String,
    events: usize,
}

impl Looking {
    /// Begins `look`. `None` if the kernel refuses, which whoever asked is told.
    pub(super) fn begin(look: Look, fast_path: &mut FastPath) -> Option<Self> {
        let watch = match look.subject {
            Subject::Packets { one_in } => {
                Watch { trace_one_in: one_in, trace_for: look.span, ..Watch::default() }
            }
            Subject::Time => Watch { time_for: look.span, ..Watch::default() },
        };
        // What an earlier look, or a predecessor's, left behind.
        let _ = fast_path.events(&mut |_| ());
        if let Err(fault) = fast_path.watch(&watch) {
            // Nobody may be waiting any more.
            let _ = look.reply.send(format!("{fault}\n"));
            return None;
        }
        let until = Instant::now() + look.span;
        Some(Self { look, until, text: String::new(), events: 0 })
    }

    /// When [`Looking::go_on`] has something to do at the latest.
    pub(super) const fn until(&self) -> Instant {
        self.until
    }

    /// Whether the ring buffer has to be emptied meanwhile.
    pub(super) const fn traces(&self) -> bool {
        matches!(self.look.subject, Subject::Packets { .. })
    }

    /// Writes down what the kernel has to tell. `None` once the look is over and its text sent.
    pub(super) fn go_on(mut self, fast_path: &mut FastPath) -> Option<Self> {
        let over = Instant::now() >= self.until
            || self.events >= EVENTS_MAX
            || self.look.reply.is_closed();
        if self.traces()
            && let Err(fault) = fast_path.events(&mut |event| self.note(event))
        {
            self.end(&fault);
            return None;
        }
        if !over {
            return Some(self);
        }
        let told = match self.look.subject {
            Subject::Packets { .. } => Ok(()),
            Subject::Time => fast_path.durations().map(|it| self.text = table(&it)),
        };
        // The kernel has stopped by its own clock; this stops it looking at the clock.
        match told.and_then(|()| fast_path.watch(&Watch::default())) {
            Ok(()) => drop(self.look.reply.send(self.text)),
            Err(fault) => self.end(&fault),
        }
        None
    }

    fn end(self, fault: &XdpFault) {
        // Nobody may be waiting any more.
        let _ = self.look.reply.send(format!("{}{fault}\n", self.text));
    }

    fn note(&mut self, event: &Event) {
        if self.events >= EVENTS_MAX {
            return;
        }
        self.events += 1;
        let outcome = event.outcome().map_or("?", wire::maps::Outcome::label);
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.text,
            "{}.{:06} {} > {} {outcome} payload={} frame={} datagrams={} interface={}",
            event.at_ns / 1_000_000_000,
            event.at_ns / 1_000 % 1_000_000,
            event.source(),
            event.target(),
            event.ends.payload_len,
            event.frame_len,
            event.datagrams,
            event.interface,
        );
    }
}

/// Each row that counted something: up to how many nanoseconds, packets, share of them up to there.
fn table(durations: &Durations) -> String {
    let mut text = format!("packets {}\n", durations.packets());
    let mut below = 0;
    for (row, count) in (0..).zip(durations.rows).filter(|(_, count)| *count > 0) {
        below += count;
        let end = Durations::end_ns(row).map_or_else(|| "inf".to_owned(), |ns| ns.to_string());
        let share = below as f64 / durations.packets() as f64;
        let _ = writeln!(text, "below_ns={end} packets={count} share={share:.6}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_what_was_counted() {
        let mut durations = Durations::default();
        assert_eq!(table(&durations), "packets 0\n");
        durations.rows[6] = 3;
        let last = durations.rows.len() - 1;
        durations.rows[last] = 1;
        assert_eq!(
            table(&durations),
            "packets 4\nbelow_ns=128 packets=3 share=0.750000\n\
             below_ns=inf packets=1 share=1.000000\n"
        );
    }

    #[test]
    fn one_look_waits_and_the_next_is_refused() {
        let poll = mio::Poll::new().expect("epoll");
        let bell = Waker::new(poll.registry(), mio::Token(0)).expect("an eventfd");
        let (looks, asked) = Looks::new(Arc::new(bell));
        let first = looks.ask(Subject::Time, Duration::MAX);
        assert!(first.is_some() && looks.ask(Subject::Time, Duration::ZERO).is_none());
        assert_eq!(asked.recv().expect("the first").span, SPAN_MAX);
        assert!(looks.ask(Subject::Time, Duration::ZERO).is_some());
    }
}
