//! The `dataplane` program as a child process: its log, its signals, its end.
//!
//! Owns one child and kills it, by its id, when dropped. Waiting means waiting for a line of its
//! log or for the log's end, never for time to pass. [`crate::relay`] and the tests call it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

/// Time for anything that takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Environment variables that would change what a test starts.
const PREFIX: &str = "PERIGEE_";

/// The `dataplane` program: the one `PERIGEE_DATAPLANE` names, else built once by cargo.
///
/// # Panics
/// When it does not build.
pub fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let build = || build(&["--release", "-p", "dataplane"]);
    PROGRAM.get_or_init(|| std::env::var_os("PERIGEE_DATAPLANE").map_or_else(build, PathBuf::from))
}

/// The `control` program: the one `PERIGEE_CONTROL` names, else built once by cargo, as control's own
/// tests have it.
///
/// # Panics
/// When it does not build.
pub fn control_program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let build = || build(&["-p", "control"]);
    PROGRAM.get_or_init(|| std::env::var_os("PERIGEE_CONTROL").map_or_else(build, PathBuf::from))
}

/// `cargo`, in the workspace, with the target folder of whoever started the tests.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}

fn build(what: &[&str]) -> PathBuf {
    let built = cargo()
        .arg("build")
        .args(what)
        .arg("--message-format=json")
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo starts");
    assert!(built.status.success(), "cargo build: {}", built.status);
    let messages = String::from_utf8(built.stdout).expect("cargo writes UTF-8");
    let mut executable = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    });
    executable.next_back().expect("cargo names what it built")
}

/// A running or ended `dataplane`.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: Arc<Log>,
}

/// The lines of standard error, as far as they came.
#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    fn state(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// Starts `dataplane` with `args` and nothing of our own environment that would change it.
    ///
    /// # Panics
    /// When the program cannot be started.
    #[must_use]
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(program());
        command.args(args);
        Self::run(command)
    }

    /// Starts `command`, which is to become `dataplane`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run(mut command: Command) -> Self {
        let set_here: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
        for (name, _) in std::env::vars_os() {
            let ours = name.to_string_lossy().starts_with(PREFIX);
            if ours && !set_here.contains(&name) {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let errors = child.stderr.take().expect("standard error is piped");
        let log = Arc::<Log>::default();
        let reader = Arc::clone(&log);
        thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                reader.state().lines.push(line);
                reader.grown.notify_all();
            }
            reader.state().ended = true;
            reader.grown.notify_all();
        });
        Self { child, log }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The log so far.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.state().lines.clone()
    }

    /// The first thing that `find` makes of a line of the log.
    ///
    /// # Panics
    /// When the log ends without it, or [`PATIENCE`] does.
    pub fn wait_for<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        let mut read = 0;
        let mut state = self.log.state();
        loop {
            if let Some(found) = state.lines[read..].iter().find_map(|line| find(line)) {
                return found;
            }
            read = state.lines.len();
            let left = until.saturating_duration_since(Instant::now());
            assert!(!state.ended && !left.is_zero(), "no {what} in:\n{}", state.lines.join("\n"));
            state = match self.log.grown.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// How it ended, and all it wrote to standard error.
    ///
    /// # Panics
    /// When it does not end within [`PATIENCE`].
    pub fn wait(&mut self) -> (ExitStatus, Vec<String>) {
        let state = self.log.state();
        let waited = self.log.grown.wait_timeout_while(state, PATIENCE, |state| !state.ended);
        let lines = match waited {
            Ok((state, _)) if state.ended => state.lines.clone(),
            Ok((state, _)) => panic!("it goes on after:\n{}", state.lines.join("\n")),
            Err(poisoned) => poisoned.into_inner().0.lines.clone(),
        };
        (self.child.wait().expect("our own child can be waited for"), lines)
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|ended| ended.is_none())
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child takes signals");
    }

    /// Its resident memory, in bytes: now, and at its highest so far.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn resident_bytes(&self) -> (u64, u64) {
        let path = format!("/proc/{}/status", self.id());
        let status = std::fs::read_to_string(path).expect("a running process has a status");
        let read = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            kib.expect("the kernel tells resident memory") << 10
        };
        (read("VmRSS:"), read("VmHWM:"))
    }

    /// Its open file descriptors.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.id());
        std::fs::read_dir(folder).expect("a running process has descriptors").count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("log of process {}:\n{}", self.id(), self.log.state().lines.join("\n"));
        }
    }
}

/// Lifts this process's soft limit of open files to the hard one, for tests that hold more
/// connections than the 1,024 it usually is.
///
/// # Panics
/// When the kernel refuses, which it must not below the hard limit.
pub fn lift_descriptor_limit() {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })
        .expect("the soft limit may be as high as the hard one");
}

/// Asks `done` until it says yes: for facts of which no event tells.
///
/// # Panics
/// When it still says no after [`PATIENCE`], with what it said last.
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Result<T, String>) -> T {
    /// Pause between two questions, so that asking does not keep the answer from coming true.
    const PAUSE: Duration = Duration::from_millis(20);
    let until = Instant::now() + PATIENCE;
    loop {
        match done() {
            Ok(value) => return value,
            Err(why) => assert!(Instant::now() < until, "{what}: {why}"),
        }
        #[allow(clippy::disallowed_methods, reason = "the one place that polls, with a deadline")]
        thread::sleep(PAUSE);
    }
}
