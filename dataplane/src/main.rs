//! The `dataplane` process: parse, check, launch, and an exit code that says what to mend.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::SystemTime;

use dataplane::cli::{self, Command};
use dataplane::config::{Checked, LogFormat};
use dataplane::fault::OperatorFault;
use dataplane::launch;
use tracing_subscriber::EnvFilter;

/// Per-size pages keep the short-lived garbage of handshakes away from sessions that stay.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()).and_then(carry_out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // Nobody reads a closed standard error, and the exit code still tells.
            let _ = writeln!(std::io::stderr(), "dataplane: {fault}");
            fault.code().into()
        }
    }
}

fn carry_out(command: Command) -> Result<(), OperatorFault> {
    match command {
        Command::Run(checked) => {
            start_log(&checked);
            launch::run(&checked)
        }
        Command::Check { checked, effective } => {
            print(&cli::report(&checked, &effective, SystemTime::now())?)
        }
        Command::ChangeKey(change, path) => print(&change(&path)?),
        Command::Print(text) => print(&text),
    }
}

fn start_log(checked: &Checked) {
    let filter = EnvFilter::new(&checked.log);
    // Colours are for a terminal; a journal would keep the escape codes.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        // It would tell standard error that standard error cannot be written, and panic of that.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match checked.log_format {
        LogFormat::Human => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// Prints to standard output; a reader that has gone away is no fault.
fn print(text: &str) -> Result<(), OperatorFault> {
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            let failed = dataplane::fault::ExitCode::Failed;
            Err(OperatorFault::new(
                failed,
                format_args!("cannot write to standard output: {error}"),
            ))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
