//! `tidy`: the rules of this repository that no compiler checks.
//!
//! Reads the files that git tracks and prints a line per broken rule. It must never change a file.
//! People and CI run it; it is also a test of this package, so that the ordinary test command
//! notices.
#![forbid(unsafe_code)]

mod files;
mod manifests;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// A tracked file: its path from the root, with `/` between, and its text.
#[derive(Debug)]
struct Tracked {
    path: String,
    /// `None` for bytes that are not UTF-8.
    text: Option<String>,
}

fn main() -> ExitCode {
    let broken = match tracked(&root()) {
        Ok(tree) => judge(&tree),
        Err(why) => vec![why],
    };
    for line in &broken {
        // Nobody reads a closed standard error, and the exit code still tells.
        let _ = writeln!(std::io::stderr(), "tidy: {line}");
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every broken rule, as `file: what, and what to do`.
fn judge(tree: &[Tracked]) -> Vec<String> {
    let mut broken = manifests::check(tree);
    broken.extend(tree.iter().flat_map(files::check));
    broken
}

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files that git tracks below `root` and that are still there.
fn tracked(root: &Path) -> Result<Vec<Tracked>, String> {
    let listed = Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]).output();
    let listed = listed.map_err(|error| format!("git: {error}; install it"))?;
    if !listed.status.success() {
        return Err("git lists no files; run this in a clone of the repository".into());
    }
    let paths = String::from_utf8(listed.stdout).map_err(|_| "a path is not UTF-8".to_owned())?;
    let paths = paths.split('\0').filter(|path| !path.is_empty());
    // A file that is gone from the folder is about to be gone from the index.
    let read = paths.filter_map(|path| {
        let bytes = std::fs::read(root.join(path)).ok()?;
        Some(Tracked { path: path.to_owned(), text: String::from_utf8(bytes).ok() })
    });
    Ok(read.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_keeps_its_rules() {
        let tree = tracked(&root()).expect("the tests run in a clone");
        assert!(tree.iter().any(|file| file.path == "Cargo.toml"));
        assert_eq!(judge(&tree), [""; 0]);
    }
}
