//! A PostgreSQL server out of the distribution's package, for tests: one for all tests of a process,
//! with a database for each, or one of its own for a test that stops it.
//!
//! It listens on a unix socket in its own folder. It ends, and its folder goes, when the test's
//! process ends, however it does. It has no durability: a crash of the host may cost it.
#![allow(dead_code, reason = "unit and integration tests take different parts")]

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Time for anything of the server's that takes a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where Debian keeps the programs, each version in a folder of its own.
const PACKAGES: &str = "/usr/lib/postgresql";

/// Runs the server until there is a line on standard input, or its end, after which nothing stays.
const RUN: &str = r#"
folder=$1; shift
"$@" >&2 &
read -r word
if [ "$word" = stop ]; then kill -INT $!; else kill -QUIT $!; fi
wait $!
[ "$word" = stop ] || rm -rf "$folder"
"#;

/// See the module.
pub(crate) struct Server {
    programs: PathBuf,
    folder: PathBuf,
    options: Vec<String>,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// The one of this process; nothing where there is no PostgreSQL, which is said.
    pub(crate) fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Server>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| programs().and_then(|_| Self::start()));
        if shared.is_none() {
            skip();
        }
        shared.as_ref()
    }

    /// One of its own.
    pub(crate) fn start() -> Option<Self> {
        let mut server = Self::prepare()?;
        server.run(&[]);
        Some(server)
    }

    /// One that does not run yet.
    pub(crate) fn prepare() -> Option<Self> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let Some(programs) = programs() else {
            skip();
            return None;
        };
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("perigee-postgres-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).expect("the temporary folder takes folders");
        let server = Self { programs, folder, options: Vec::new(), port: 5432, child: None };
        server.give(&server.folder);
        let mut initdb = server.program("initdb");
        initdb.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
        initdb.args(["--username=perigee", "-D"]).arg(server.folder.join("data"));
        let done = initdb.output().expect("initdb runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Some(server)
    }

    /// Starts it with these settings, or again with those it had.
    pub(crate) fn run(&mut self, options: &[&str]) {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        let mut command = self.program("sh");
        command.args(["-c", RUN, "sh"]).arg(&self.folder).arg(self.programs.join("postgres"));
        command.arg("-D").arg(self.folder.join("data")).arg("-k").arg(&self.folder);
        let fast = ["listen_addresses=", "fsync=off", "full_page_writes=off", "shared_buffers=8MB"];
        for option in fast.into_iter().chain(self.options.iter().map(String::as_str)) {
            command.args(["-c", option]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a shell runs");
        let log = BufReader::new(child.stderr.take().expect("standard error is piped"));
        let (lines, seen) = mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                // Read to the end, or the server would wait; whoever started it listens no longer.
                let _ = lines.send(line);
            }
        });
        self.child = Some(child);
        let mut told = Vec::new();
        while !told.last().is_some_and(|line: &String| line.contains("ready to accept")) {
            match seen.recv_timeout(PATIENCE) {
                Ok(line) => told.push(line),
                Err(_) => panic!("the server does not start:\n{}", told.join("\n")),
            }
        }
    }

    /// Starts it with these settings and on a port of loopback, which is told.
    pub(crate) fn run_on_a_port(&mut self, options: &[&str]) -> u16 {
        let probe = TcpListener::bind("127.0.0.1:0").expect("loopback binds");
        self.port = probe.local_addr().expect("bound sockets have an address").port();
        drop(probe);
        self.options.extend([format!("port={}", self.port), "listen_addresses=127.0.0.1".into()]);
        self.run(options);
        self.port
    }

    /// Stops it, which ends all sessions. Its data stays.
    pub(crate) fn stop(&mut self) {
        let mut child = self.child.take().expect("it runs");
        let mut stdin = child.stdin.take().expect("standard input is piped");
        stdin.write_all(b"stop\n").expect("the shell reads");
        child.wait().expect("it ends");
    }

    /// A new, empty database; gives its URL.
    pub(crate) fn database(&self) -> String {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test{}", MADE.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// The URL of the database `name`, over the socket.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("postgres://perigee@/{name}?host={}&port={}", self.folder.display(), self.port)
    }

    /// What PostgreSQL's own client prints for `text`; `database` is a name or a URL.
    pub(crate) fn sql(&self, database: &str, text: &str) -> String {
        let mut psql = self.program("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "perigee", "-h"]).arg(&self.folder);
        psql.args(["-p", &self.port.to_string()]);
        let done = psql.args(["-c", text, database]).output().expect("psql runs");
        assert!(done.status.success(), "{text}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("it prints UTF-8").trim().to_owned()
    }

    /// Ends all sessions of the database at `url` but the client's own; says how many there were.
    pub(crate) fn cut(&self, url: &str) -> usize {
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        self.sql(url, sql).parse().expect("a number")
    }

    /// Where its socket is.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join(format!(".s.PGSQL.{}", self.port))
    }

    /// A file for it alone.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, text).expect("the folder takes files");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
        self.give(&path);
        path
    }

    /// One of the programs, as a user that the server runs as: it refuses root.
    fn program(&self, name: &str) -> Command {
        let own = self.programs.join(name);
        let mut command = Command::new(if own.exists() { own } else { name.into() });
        command.current_dir(&self.folder).stdin(Stdio::null());
        if let Some((user, group)) = other_user() {
            command.uid(user).gid(group);
        }
        command
    }

    fn give(&self, path: &Path) {
        if let Some((user, group)) = other_user() {
            chown(path, Some(user), Some(group)).expect("root may give files away");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match self.child.take() {
            Some(mut child) => {
                drop(child.stdin.take());
                // However it ended, it is gone.
                let _ = child.wait();
            }
            None => drop(std::fs::remove_dir_all(&self.folder)),
        }
    }
}

/// The programs of the newest version there is.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir(PACKAGES).ok()?.flatten();
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let newest = versions.filter_map(number).max()?;
    let programs = Path::new(PACKAGES).join(newest.to_string()).join("bin");
    programs.join("initdb").exists().then_some(programs)
}

/// Whom the server runs as if this is root: nobody, who is 65534 on every Linux.
fn other_user() -> Option<(u32, u32)> {
    rustix::process::geteuid().is_root().then_some((65534, 65534))
}

/// Says that the running test is skipped.
fn skip() {
    let required = std::env::var("PERIGEE_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name.trim() == "postgres"),
        "postgres is required and missing: there is no server in {PACKAGES}"
    );
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // The test runner hides what passing tests print through the macros.
    let _ = writeln!(std::io::stderr(), "skipped {test}: no postgres: none in {PACKAGES}");
}
