//! Stock derper: found, or built from its public Go module.
//!
//! Owns the version that the figures are about. Must never change what is installed: the program goes into
//! a target folder. Called once a run, before anything is measured.

use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where it comes from.
const MODULE: &str = "tailscale.com/cmd/derper";
/// The newest stable release that builds, as of 2026-11.
const VERSION: &str = "v1.102.4";

/// Lists with commas what must not be missing; the tests know it, too.
const REQUIRE: &str = "PERIGEE_REQUIRE";

/// The program given, or one built into the target folder. Without Go there is none, and it says why,
/// unless `PERIGEE_REQUIRE` names `go`: then that is an error.
pub(crate) fn derper(given: Option<&Path>) -> Result<Option<PathBuf>> {
    if let Some(path) = given {
        ensure!(path.is_file(), "{} is not a file", path.display());
        return Ok(Some(std::path::absolute(path)?));
    }
    let required = std::env::var(REQUIRE).unwrap_or_default();
    match build() {
        Ok(program) => Ok(Some(program)),
        Err(reason) if required.split(',').any(|what| what == "go") => {
            Err(reason.context(format!("{REQUIRE} asks for stock derper")))
        }
        Err(reason) => {
            eprintln!("no stock derper: {reason:#}");
            Ok(None)
        }
    }
}

fn build() -> Result<PathBuf> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    // One folder a version, so that a program built for another is never taken for this one.
    let folder = std::path::absolute(target.join("peers").join(format!("derper-{VERSION}")))?;
    let program = folder.join("derper");
    if program.is_file() {
        return Ok(program);
    }
    let module = format!("{MODULE}@{VERSION}");
    eprintln!("building {module} into {}", folder.display());
    let go = Command::new("go").args(["install", &module]).env("GOBIN", &folder).output();
    let output = go.context("Go is not installed")?;
    ensure!(output.status.success(), "Go: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(program)
}

/// What the program says its version is, asked with `flag`.
pub(crate) fn version(program: &Path, flag: &str) -> String {
    let told = Command::new(program).arg(flag).output();
    let text =
        told.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}
