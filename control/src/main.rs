//! The `control` process: parse, carry out, and an exit code that says what to mend.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

/// Lists and maps are many small pieces for a moment; this takes them faster and gives them back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match control::cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // Nobody reads a closed standard error, and the exit code still tells.
            let _ = writeln!(std::io::stderr(), "control: {fault}");
            fault.code().into()
        }
    }
}
