//! Networks of a comparison's own: a fresh namespace for the runner, others beside it.
//!
//! Owns nothing that outlives the process: a namespace goes with the last process in it, and the one that
//! holds it ends with us. Must never touch the host's network. Both comparisons call it.

use anyhow::{Context as _, Result, bail, ensure};
use std::ffi::OsString;
use std::process::{Child, Command, Stdio};

/// Whether this process may make namespaces.
pub(crate) fn own_network_works() -> bool {
    let tried = Command::new("unshare").args(["--net", "ip", "link", "set", "lo", "up"]).output();
    tried.is_ok_and(|output| output.status.success())
}

/// Runs the same command line in a fresh network namespace, with `--own-network` and `extra` besides.
pub(crate) fn rerun_in_own_network(extra: impl IntoIterator<Item = OsString>) -> Result<()> {
    let own = std::env::current_exe().context("finding this program")?;
    let status = Command::new("unshare")
        .arg("--net")
        .arg(own)
        .args(std::env::args_os().skip(1))
        .arg("--own-network")
        .args(extra)
        .status()
        .context("starting unshare")?;
    if !status.success() {
        bail!("the comparison failed");
    }
    Ok(())
}

/// Runs `ip` with `words`, separated by blanks.
pub(crate) fn ip(words: &str) -> Result<()> {
    run(Command::new("ip"), words)
}

/// A network namespace beside our own, for as long as this lives.
pub(crate) struct Network {
    holder: Child,
}

impl Network {
    /// A new one, with nothing in it.
    pub(crate) fn new() -> Result<Self> {
        // Ends with its input, so with us however we end.
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo; cat"]);
        let mut holder = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting unshare")?;
        let mut output = holder.stdout.take().context("the holder has an output")?;
        // It is in its namespace when it has said so.
        std::io::Read::read_exact(&mut output, &mut [0]).context("no network namespace")?;
        Ok(Self { holder })
    }

    /// The number of a process in it.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Runs `ip` with `words` in it.
    pub(crate) fn ip(&self, words: &str) -> Result<()> {
        let mut command = self.enter();
        command.arg("ip");
        run(command, words)
    }

    /// A command that begins with entering it; the program and its arguments are to follow.
    pub(crate) fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid())).arg("--");
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        super::child::end(&mut self.holder);
    }
}

fn run(mut command: Command, words: &str) -> Result<()> {
    let output = command.args(words.split_whitespace()).output().context("starting ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {words}: {}", said.trim());
    Ok(())
}
