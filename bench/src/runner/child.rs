//! Child processes of a comparison: this program again, as load or as limit, and the lines they print.
//!
//! Owns a child until it is dropped, which ends it. Must never outlive a measurement and never touch a
//! process it did not start.

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A running copy of this program that talks in JSON lines.
pub(crate) struct Helper {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Helper {
    /// Starts `bench` with `args`.
    pub(crate) fn start(args: &[String]) -> Result<Self> {
        let own = std::env::current_exe().context("finding this program")?;
        Self::spawn(&mut Command::new(own), args)
    }

    /// The same for load that runs only while nobody else wants the core.
    pub(crate) fn start_idle(args: &[String]) -> Result<Self> {
        let own = std::env::current_exe().context("finding this program")?;
        Self::spawn(Command::new("chrt").args(["--idle", "0"]).arg(own), args)
    }

    fn spawn(command: &mut Command, args: &[String]) -> Result<Self> {
        let mut child = command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting bench {}", args.join(" ")))?;
        let lines = BufReader::new(child.stdout.take().context("child has no output")?);
        Ok(Self { child, lines })
    }

    /// Starts `bench` with `args` as the last words of `command`, which execs it.
    pub(crate) fn start_by(mut command: Command, args: &[String]) -> Result<Self> {
        command.arg(std::env::current_exe().context("finding this program")?);
        Self::spawn(&mut command, args)
    }

    /// The child's process number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the event called `name` and returns it.
    pub(crate) fn wait_for(&mut self, name: &str) -> Result<Value> {
        let mut line = String::new();
        while self.lines.read_line(&mut line)? > 0 {
            let event: Value =
                serde_json::from_str(&line).context("child printed something else")?;
            if event["event"] == name {
                return Ok(event);
            }
            line.clear();
        }
        bail!("child ended before it said {name:?}")
    }

    /// Waits for the result and returns its part called `name`.
    pub(crate) fn result<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        let mut event = self.wait_for("result")?;
        serde_json::from_value(event[name].take())
            .with_context(|| format!("no {name} in the result"))
    }

    /// Lets a gated child go on.
    pub(crate) fn release(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut().context("child has no input")?;
        input.write_all(b"\n").context("child is gone")
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends `child` and waits until it is gone.
pub(crate) fn end(child: &mut Child) {
    // Both fail only if it has already ended and been waited for.
    let _ = child.kill();
    let _ = child.wait();
}
