//! How results are printed: tables for people, JSON for programs; and how people are asked.

use std::io::{BufRead, IsTerminal, Write};

use serde::Serialize;

use crate::fault::{OperatorFault, UNTRUSTED, harmless};
use crate::probe::latency::{self, Band};

/// For whom results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// People; this may change.
    Human,
    /// Programs; one document a command.
    Json,
}

/// Prints results in one format.
#[derive(Debug)]
pub(super) struct Output {
    format: Format,
    colours: bool,
}

impl Output {
    pub(super) fn new(format: Format) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { format, colours: wanted && std::io::stdout().is_terminal() }
    }

    /// Whether programs read what is printed.
    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether somebody looks on, who may press keys.
    pub(super) fn is_terminal(&self) -> bool {
        std::io::stdout().is_terminal() && std::io::stdin().is_terminal()
    }

    pub(super) fn colours(&self) -> bool {
        self.colours
    }

    /// Rows under their headings, as text.
    pub(super) fn rows(&self, headings: &[&str], rows: &[Vec<Cell>]) -> String {
        table(headings, rows, self.colours)
    }

    /// `text` in `colour`, where a terminal shows it.
    pub(super) fn paint(&self, text: &str, colour: Colour) -> String {
        if self.colours { colour.paint(text) } else { text.to_owned() }
    }

    /// A latency in its colour.
    pub(super) fn latency(&self, ms: f64) -> String {
        self.paint(&latency::words(ms), Band::of(ms).into())
    }

    /// One result: `text` for people, `value` for programs.
    pub(super) fn show(&self, value: &impl Serialize, text: &str) -> Result<(), OperatorFault> {
        self.show_painted(value, &harmless(text, &['\n']))
    }

    /// The same with a text that has colours in it, and nothing of strangers that a terminal obeys.
    pub(super) fn show_painted(
        &self,
        value: &impl Serialize,
        text: &str,
    ) -> Result<(), OperatorFault> {
        match self.format {
            Format::Human => print(text),
            Format::Json => {
                let json = serde_json::to_string_pretty(value);
                print(&json.map_err(|error| OperatorFault::failed(format!("JSON: {error}")))?)
            }
        }
    }

    /// Rows under their headings, in colours where a terminal shows them.
    pub(super) fn coloured(
        &self,
        value: &impl Serialize,
        headings: &[&str],
        rows: &[Vec<Cell>],
    ) -> Result<(), OperatorFault> {
        self.show_painted(value, &table(headings, rows, self.colours))
    }

    /// Rows under their headings.
    pub(super) fn table(
        &self,
        value: &impl Serialize,
        headings: &[&str],
        rows: &[Vec<String>],
    ) -> Result<(), OperatorFault> {
        let cells = |row: &Vec<String>| row.iter().cloned().map(Cell::from).collect();
        self.coloured(value, headings, &rows.iter().map(cells).collect::<Vec<_>>())
    }
}

/// A colour of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Green,
    Yellow,
    Red,
}

impl Colour {
    fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Green => 32,
            Self::Yellow => 33,
            Self::Red => 31,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// The colour of a latency, as Coder's documents have it.
impl From<Band> for Colour {
    fn from(band: Band) -> Self {
        match band {
            Band::Good => Self::Green,
            Band::Fair => Self::Yellow,
            Band::Bad => Self::Red,
        }
    }
}

/// What stands in a row under a heading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>, colour: Colour) -> Self {
        Self { text: harmless(&text.into(), &[]), colour: Some(colour) }
    }

    /// A latency in its colour, or a dash.
    pub(super) fn latency(ms: Option<f64>) -> Self {
        match ms {
            Some(ms) => Self::new(latency::words(ms), Band::of(ms).into()),
            None => Self::from("-".to_owned()),
        }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text: harmless(&text, &[]), colour: None }
    }
}

fn table(headings: &[&str], rows: &[Vec<Cell>], colours: bool) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let cells = cells.map(|cell| cell.text.chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..headings.len()).map(width).collect();
    let padded = |text: &str, width: &usize| format!("{text:width$}");
    let head = headings.iter().zip(&widths).map(|(text, width)| padded(text, width));
    let head = head.collect::<Vec<_>>().join("  ").trim_end().to_owned();
    let head = if colours { format!("\u{1b}[1m{head}\u{1b}[0m") } else { head };
    let cell = |(cell, width): (&Cell, &usize)| {
        let text = padded(&cell.text, width);
        match cell.colour.filter(|_| colours) {
            // The blanks behind it are not coloured, or they could not be trimmed.
            Some(colour) => text.replacen(&cell.text, &colour.paint(&cell.text), 1),
            None => text,
        }
    };
    let rows = rows.iter().map(|row| {
        let cells: Vec<_> = row.iter().zip(&widths).map(cell).collect();
        cells.join("  ").trim_end().to_owned()
    });
    std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
}

/// Prints to standard output; a reader that has gone away is no fault.
pub(super) fn print(text: &str) -> Result<(), OperatorFault> {
    print_on(text).map(drop)
}

/// The same; tells whether anybody is still reading.
pub(super) fn print_on(text: &str) -> Result<bool, OperatorFault> {
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => {
            Err(OperatorFault::failed(format!("cannot write to standard output: {error}")))
        }
    }
}

/// Talks to whoever started this.
pub(super) fn say(text: &str) {
    // Nobody listens to a closed standard error.
    let _ = writeln!(std::io::stderr(), "{}", harmless(text, &['\n']));
}

/// Says where other certificate authorities are named, if one of these faults is for want of one.
pub(super) fn say_authorities<'a>(mut faults: impl Iterator<Item = &'a String>) {
    if faults.any(|why| why.contains(UNTRUSTED)) {
        say("control: SSL_CERT_FILE may name other certificate authorities than the system's");
    }
}

/// Asks for a yes on standard input.
///
/// # Errors
/// Everything but `y` and `yes` is a no.
pub(super) fn confirm(question: &str) -> Result<(), OperatorFault> {
    let _ = write!(std::io::stderr(), "{question} [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    match (read, answer.trim().to_ascii_lowercase().as_str()) {
        (Ok(_), "y" | "yes") => Ok(()),
        (Ok(0), _) => {
            say("");
            Err(OperatorFault::usage("nobody answered; give --yes to do it unasked"))
        }
        _ => Err(OperatorFault::failed("not confirmed; nothing was changed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let cells = |texts: [&str; 2]| texts.map(|text| Cell::from(text.to_owned())).to_vec();
        let rows = [cells(["a", "bcd"]), cells(["sydney", ""])];
        assert_eq!(table(&["NAME", "X"], &rows, false), "NAME    X\na       bcd\nsydney");
        assert!(table(&["NAME"], &[], true).contains("\u{1b}[1mNAME"));
    }

    #[test]
    fn what_a_terminal_obeys_is_shown() {
        let rows = [vec![Cell::from("a\u{1b}[31m\nb".to_owned())]];
        assert_eq!(table(&["X"], &rows, true).lines().nth(1), Some(r"a\u{1b}[31m\nb"));
    }

    #[test]
    fn colours_change_no_width() {
        let rows = [vec![Cell::latency(Some(151.2)), Cell::latency(None)]];
        assert_eq!(table(&["MS", "X"], &rows, false), "MS      X\n151 ms  -");
        assert!(table(&["MS", "X"], &rows, true).ends_with("\n\u{1b}[33m151 ms\u{1b}[0m  -"));
    }
}
