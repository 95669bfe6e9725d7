//! How results are printed: tables for people, JSON for programs; and how people are asked.

use std::io::{BufRead, IsTerminal, Write};

use serde::Serialize;

use crate::fault::OperatorFault;

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

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Whether somebody looks on, who may press keys.
    pub(super) fn is_terminal(&self) -> bool {
        std::io::stdout().is_terminal() && std::io::stdin().is_terminal()
    }

    pub(super) fn colours(&self) -> bool {
        self.colours
    }

    /// One result: `text` for people, `value` for programs.
    pub(super) fn show(&self, value: &impl Serialize, text: &str) -> Result<(), OperatorFault> {
        match self.format {
            Format::Human => print(text),
            Format::Json => {
                let json = serde_json::to_string_pretty(value);
                print(&json.map_err(|error| OperatorFault::failed(format!("JSON: {error}")))?)
            }
        }
    }

    /// Rows under their headings.
    pub(super) fn table(
        &self,
        value: &impl Serialize,
        headings: &[&str],
        rows: &[Vec<String>],
    ) -> Result<(), OperatorFault> {
        self.show(value, &table(headings, rows, self.colours))
    }
}

fn table(headings: &[&str], rows: &[Vec<String>], colours: bool) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let cells = cells.map(|cell| cell.chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(&mut headings.iter().copied());
    let head = if colours { format!("\u{1b}[1m{head}\u{1b}[0m") } else { head };
    let rows = rows.iter().map(|row| line(&mut row.iter().map(String::as_str)));
    std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
}

/// Prints to standard output; a reader that has gone away is no fault.
pub(super) fn print(text: &str) -> Result<(), OperatorFault> {
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(OperatorFault::failed(format!("cannot write to standard output: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Talks to whoever started this.
pub(super) fn say(text: &str) {
    // Nobody listens to a closed standard error.
    let _ = writeln!(std::io::stderr(), "{text}");
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
        let rows = [vec!["a".into(), "bcd".into()], vec!["sydney".into(), String::new()]];
        assert_eq!(table(&["NAME", "X"], &rows, false), "NAME    X\na       bcd\nsydney");
        assert!(table(&["NAME"], &[], true).contains("\u{1b}[1mNAME"));
    }
}
