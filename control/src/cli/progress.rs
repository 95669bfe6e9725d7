//! What is under way, in one line on standard error while it lasts.
//!
//! Owns the line and its end: it is gone before anything else is printed, and when somebody presses
//! Ctrl-C. Where nobody looks on there is none: in a pipe, for programs, on a terminal that is dumb or
//! names no kind. It has no colours. Commands that take longer than a moment call it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use ratatui::crossterm::terminal;
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::output::Output;

/// What is over by then shows nothing.
const MOMENT: Duration = Duration::from_millis(200);
/// Between two pictures of what turns.
const TURN: Duration = Duration::from_millis(100);
/// The line while there is nothing to count.
const TURNING: &str = "{spinner} {wide_msg}";
/// The line of what is counted.
const COUNTED: &str = "{spinner} [{bar:20}] {pos} of {len} {wide_msg}";
/// Pictures a second, at most.
const PICTURES: u8 = 20;
/// Columns of a terminal that does not tell.
const COLUMNS: u16 = 80;
/// Columns of what terminals show of Ctrl-C, `^C`. They are left free, or it would begin a line of
/// its own, and that would be cleared in place of ours.
const ECHO_COLUMNS: u16 = 2;

/// The line that is on the terminal.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// A line that is there until this is dropped. There is one at a time.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    painter: Option<Painter>,
}

/// A thread of its own, as some work lets no other task run meanwhile.
#[derive(Debug)]
struct Painter {
    end: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Progress {
    /// Shows `what` once it has taken a moment, if somebody looks on.
    pub(super) fn start(what: impl Into<String>, output: &Output) -> Self {
        let bar = ProgressBar::hidden();
        bar.set_style(style(TURNING));
        bar.set_message(what.into());
        let painter = (!output.is_json() && is_looked_on()).then(|| {
            let (end, ended) = mpsc::channel();
            let shown = bar.clone();
            let thread = std::thread::spawn(move || paint(&shown, &ended));
            Painter { end, thread }
        });
        Self { bar, painter }
    }

    /// Shows from now on how many of `all` are done.
    pub(super) fn count(&self, what: impl Into<String>, all: u64) -> Steps {
        self.bar.set_style(style(COUNTED));
        self.bar.set_length(all);
        self.bar.set_position(0);
        self.bar.set_message(what.into());
        Steps(self.bar.clone())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(Painter { end, thread }) = self.painter.take() {
            drop(end);
            // Had it panicked, it would have said so.
            let _ = thread.join();
        }
    }
}

/// Counts what is done.
#[derive(Clone, Debug)]
pub(super) struct Steps(ProgressBar);

impl Steps {
    /// One more.
    pub(super) fn step(&self) {
        self.0.inc(1);
    }
}

/// Shows `what` for as long as `work` takes.
pub(super) async fn during<T>(what: &str, output: &Output, work: impl Future<Output = T>) -> T {
    let _shown = Progress::start(what, output);
    work.await
}

/// Whether standard error is a terminal that can take a line back.
fn is_looked_on() -> bool {
    let kind = std::env::var_os("TERM").unwrap_or_default();
    io::stderr().is_terminal() && !kind.is_empty() && kind != "dumb"
}

fn style(template: &str) -> ProgressStyle {
    let made = ProgressStyle::with_template(template);
    made.expect("the templates of this module are right").progress_chars("=> ")
}

/// Shows `bar` after a moment and until `ended`.
fn paint(bar: &ProgressBar, ended: &mpsc::Receiver<()>) {
    if ended.recv_timeout(MOMENT) != Err(RecvTimeoutError::Timeout) {
        return;
    }
    heed_interrupts();
    let terminal = Box::new(Terminal::default());
    bar.set_draw_target(ProgressDrawTarget::term_like_with_hz(terminal, PICTURES));
    *shown() = Some(bar.clone());
    loop {
        bar.tick();
        if ended.recv_timeout(TURN) != Err(RecvTimeoutError::Timeout) {
            break;
        }
    }
    bar.finish_and_clear();
    *shown() = None;
}

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on Ctrl-C clears the line before it ends the process. A thread listens, as the process
/// must end also while it waits for an answer on standard input.
fn heed_interrupts() {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| {
        // Without it, Ctrl-C ends the process all the same, and the line stays.
        let Ok(mut interrupts) = Signals::new([SIGINT]) else { return };
        std::thread::spawn(move || {
            if interrupts.forever().next().is_some() {
                if let Some(bar) = shown().take() {
                    bar.finish_and_clear();
                }
                // A shell must see that it was the signal, or it goes on with its next command.
                let _ = emulate_default_handler(SIGINT);
            }
        });
    });
}

/// Standard error; what is written waits for a picture to be whole.
#[derive(Debug, Default)]
struct Terminal(Mutex<String>);

impl Terminal {
    fn add(&self, what: std::fmt::Arguments<'_>) -> io::Result<()> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.write_fmt(what).map_err(io::Error::other)
    }

    /// Moves by `n` with this last letter of the escape sequence; none would mean one.
    fn go(&self, n: usize, letter: char) -> io::Result<()> {
        if n == 0 { Ok(()) } else { self.add(format_args!("\x1b[{n}{letter}")) }
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        let told = terminal::size().ok().map(|(columns, _)| columns);
        let columns = told.filter(|columns| *columns > ECHO_COLUMNS).unwrap_or(COLUMNS);
        columns - ECHO_COLUMNS
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.go(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.go(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.go(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.go(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.add(format_args!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.add(format_args!("{text}"))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.add(format_args!("\r\x1b[2K"))
    }

    fn flush(&self) -> io::Result<()> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        io::stderr().write_all(std::mem::take(&mut *waiting).as_bytes())
    }
}
