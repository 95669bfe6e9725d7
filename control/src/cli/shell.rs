//! What a shell and `man` know of the command line.

use std::path::Path;

use clap_complete::Shell;

use super::grammar;
use crate::fault::OperatorFault;

/// The script that completes the command line in `shell`.
pub(super) fn completions(shell: Shell) -> Result<String, OperatorFault> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut grammar(), "control", &mut script);
    String::from_utf8(script).map_err(|error| OperatorFault::failed(format!("script: {error}")))
}

/// Writes a page for every command to `folder`. Returns how many there are.
pub(super) fn write_man_pages(folder: &Path) -> Result<usize, OperatorFault> {
    let fault = |error: std::io::Error| {
        OperatorFault::file(folder, &error, "name a folder that can be written to")
    };
    std::fs::create_dir_all(folder).map_err(fault)?;
    let command = grammar();
    let pages = 1 + below(&command);
    clap_mangen::generate_to(command, folder).map_err(fault)?;
    Ok(pages)
}

/// The commands below `command`, on all levels.
fn below(command: &clap::Command) -> usize {
    command.get_subcommands().map(|it| 1 + below(it)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_and_every_command_a_page() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completions(shell).expect("a script");
            assert!(script.contains("satellites") && script.contains("state-dir"), "{shell}");
        }
        let folder = crate::testing::Scratch::new();
        let pages = write_man_pages(folder.as_ref()).expect("pages");
        let written = std::fs::read_dir(folder.as_ref()).expect("the folder").count();
        assert_eq!(written, pages);
        let read = |name| std::fs::read_to_string(folder.path(name)).expect("it was written");
        assert!(read("control.1").contains("Exit codes"));
        assert!(read("control-satellites-create.1").contains("public key"));
        let fault = write_man_pages(Path::new("/dev/null/man")).expect_err("no folder");
        assert!(fault.to_string().contains("/dev/null/man"), "{fault}");
    }
}
