//! A running `control serve`, and its command line.
//!
//! Owns the process; its state is in a folder of the test. The integration tests call it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};

use crate::process::{Process, control_program};
use crate::relay::field;
use crate::scratch::Scratch;

/// See the module.
#[derive(Debug)]
pub struct Serving {
    /// The process.
    pub process: Process,
    /// Where it listens for everybody.
    pub address: SocketAddr,
    socket: String,
}

impl Serving {
    /// One whose state is in `scratch`, ready.
    ///
    /// # Panics
    /// When it does not get ready.
    #[must_use]
    pub fn start(scratch: &Scratch) -> Self {
        let socket = text(&scratch.path("s"));
        let mut command = Command::new(control_program());
        command.args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]);
        command.args(["--socket", &socket, "--state-dir", &text(&scratch.path("state"))]);
        let process = Process::run(command);
        let address = process.wait_for("ready line", |line| {
            let list = field(line, "listen")?;
            list.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
        });
        Self { process, address, socket }
    }

    /// What a command says to it, and how it ends.
    ///
    /// # Panics
    /// When the program cannot be started.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(control_program());
        command.args(args).args(["--socket", &self.socket]).env_clear();
        command.output().expect("the program starts")
    }

    /// What a command prints that succeeds.
    ///
    /// # Panics
    /// When it fails.
    pub fn cli(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).expect("it prints UTF-8")
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("scratch paths are UTF-8").to_owned()
}
