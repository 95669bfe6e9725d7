//! A disk that really is full, below a running control, a starting one and a backup.
//!
//! The disk is a small tmpfs in a mount namespace of its own, so nothing else sees it.
#![forbid(unsafe_code)]

mod harness;
mod peers;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use harness::{Control, KEY, Ran, Scratch, bearer, command, run};
use peers::skip;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// Exit codes, as documented in `control --help`.
const TRY_AGAIN: i32 = 75;
/// Bytes that a tmpfs gives at once.
const PAGE: usize = 4096;
/// What is said of a full disk.
const FULL: &str = "the disk is full; free some space";

/// A tmpfs of 1 MiB.
struct Disk {
    /// Keeps the mount namespace, in which the disk alone is.
    holder: Child,
    /// What `nsenter` takes to have the rights to enter it.
    rights: &'static [&'static str],
    at: PathBuf,
}

impl Disk {
    /// One at `at`, which is made; `None` where no disk can be mounted.
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir(at).expect("a scratch folder takes folders");
        let script = "mount -t tmpfs -o size=1m,mode=700 tmpfs \"$0\" && echo mounted && exec cat";
        let mut why = String::new();
        // As root, else as root of a user namespace.
        let own: &[&str] = &["--user", "--preserve-credentials"];
        for (unshare, rights) in [(&[][..], &[][..]), (&["--user", "--map-root-user"], own)] {
            let mut command = Command::new("unshare");
            command.args(unshare).args(["--mount", "sh", "-c", script]).arg(at);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut holder = match command.spawn() {
                Ok(holder) => holder,
                Err(error) => {
                    why = error.to_string();
                    continue;
                }
            };
            let mut said = String::new();
            let output = holder.stdout.as_mut().expect("standard output is piped");
            let _ = BufReader::new(output).read_line(&mut said);
            if said == "mounted\n" {
                return Some(Self { holder, rights, at: at.to_owned() });
            }
            let mut errors = holder.stderr.take().expect("standard error is piped");
            why.clear();
            let _ = errors.read_to_string(&mut why);
            let _ = holder.wait();
        }
        skip("tmpfs", why.trim());
        None
    }

    /// The program, where the disk is.
    fn command(&self) -> Command {
        let mut entering = Command::new("nsenter");
        entering.arg("--target").arg(self.holder.id().to_string()).arg("--mount");
        let program = command();
        entering.args(self.rights).arg("--").arg(program.get_program());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => entering.env(name, value),
                None => entering.env_remove(name),
            };
        }
        entering
    }

    /// The path of `name` on the disk, seen from here.
    fn path(&self, name: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.at.strip_prefix("/").expect("scratch paths are absolute")).join(name)
    }

    /// Leaves room for so many pages.
    fn fill_but(&self, pages: usize) {
        let mut ballast = File::create(self.path("ballast")).expect("an empty file fits");
        let mut taken: usize = 0;
        while ballast.write_all(&[1; PAGE]).is_ok() {
            taken += 1;
        }
        let rest = taken.checked_sub(pages).expect("the disk had that room") * PAGE;
        ballast.set_len(rest as u64).expect("files may shrink");
    }

    /// Makes room.
    fn clear(&self) {
        std::fs::remove_file(self.path("ballast")).expect("it was filled");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Starts control on the disk. `None` if it got ready; then it was told to end, and did.
fn try_start(disk: &Disk, scratch: &Scratch) -> Option<Ran> {
    let mut command = disk.command();
    command.args(["serve", "--listen", "127.0.0.1:0", "--socket", &text(&scratch.path("s"))]);
    command.args(["--state-dir", &text(&disk.at), "--steer-socket", &text(&scratch.path("t"))]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut errors = String::new();
    let mut is_ready = false;
    for line in BufReader::new(child.stderr.take().expect("piped")).lines() {
        let line = line.expect("it logs UTF-8");
        if line.contains("control ready") {
            is_ready = true;
            let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            kill_process(id.expect("a process has an id"), Signal::TERM).expect("it is ours");
        }
        errors += &format!("{line}\n");
    }
    let code = child.wait().expect("it ends").code().expect("it is not killed");
    assert!(!is_ready || code == 0, "{errors}");
    (!is_ready).then_some(Ran { code, out: String::new(), errors })
}

fn expect_full(ran: &Ran, place: &str) {
    let wanted = format!("control: {place}{FULL}\n");
    assert_eq!((ran.code, ran.errors.as_str()), (TRY_AGAIN, wanted.as_str()));
}

#[test]
fn a_running_control_refuses_changes_in_one_line_and_serves_on() {
    let scratch = Scratch::new();
    let Some(disk) = Disk::mount(&scratch.path("state")) else { return };
    let steer = text(&scratch.path("t"));
    let more = ["--steer-socket", &*steer, "--probe-every", "off"].map(str::to_owned).to_vec();
    let control = Control::start_as(disk.command(), scratch, more);
    let ok = |args: &[&str]| control.cli(args).expect_success();
    ok(&["regions", "create", "fra", "900"]);
    ok(&["nodes", "create", "900a", "fra", "relay.example.com"]);
    let token = control.token("ci", "operate");
    let map = control.get("/derpmap/default").body;
    disk.fill_but(0);
    for _ in 0..3 {
        expect_full(&control.cli(&["peers", "create", "alice", KEY]), "");
    }
    let authorization = bearer(&token);
    let headers = [
        ("authorization", &*authorization),
        ("content-type", "application/json"),
        ("idempotency-key", "one"),
    ];
    let bob = json!({"name": "bob", "public_key": harness::key(2)}).to_string();
    let post = || control.ask("POST", "/api/v1/peers", &headers, &bob);
    let refused = post();
    assert_eq!((refused.status, refused.code()), (507, "storage_full".into()));
    assert_eq!(ok(&["peers", "ls"]).out.lines().count(), 1, "nothing of it is there");
    assert_eq!(ok(&["audit"]).out.lines().count(), 4, "two creates and a token");
    assert_eq!(ok(&["nodes", "ls"]).out.lines().count(), 2);
    assert_eq!(control.get("/derpmap/default").body, map);
    for (path, body) in [("/livez", "live\n"), ("/readyz", "ready\n")] {
        assert_eq!(control.get(path).body, body, "reads, map and relays go on");
    }
    disk.clear();
    ok(&["peers", "create", "alice", KEY]);
    let made = post();
    assert_eq!(made.status, 201, "the refused request took no key: {}", made.body);
    assert_eq!(post().json()["id"], made.json()["id"]);
    let audit = ok(&["audit"]).out;
    assert_eq!(audit.matches("peer alice").count(), 1, "{audit}");
    assert_eq!(ok(&["peers", "ls", "--output", "json"]).json()["revision"], 5, "none was skipped");
    let (status, log) = control.stop_and_read();
    assert_eq!(status.code(), Some(0));
    assert!(log.iter().any(|line| line.contains("WARN") && line.contains(FULL)), "{log:#?}");
    assert!(!log.iter().any(|line| line.contains("panicked")), "{log:#?}");
}

#[test]
fn with_little_room_a_change_is_there_whole_or_not_at_all() {
    let scratch = Scratch::new();
    let Some(disk) = Disk::mount(&scratch.path("state")) else { return };
    let steer = text(&scratch.path("t"));
    let control = Control::start_as(disk.command(), scratch, vec!["--steer-socket".into(), steer]);
    let mut made = Vec::new();
    for pages in 0..12_u8 {
        disk.fill_but(pages.into());
        let name = format!("peer-{pages:02}");
        let ran = control.cli(&["peers", "create", &name, &harness::key(pages + 1)]);
        match ran.code {
            0 => made.push(name),
            _ => expect_full(&ran, ""),
        }
        let listed = control.cli(&["peers", "ls", "--output", "json"]).expect_success().json();
        let names = listed["items"].as_array().expect("a list").iter();
        let names: Vec<_> = names.map(|row| row["name"].as_str().expect("a name")).collect();
        assert_eq!(names, made, "with {pages} pages");
    }
    assert!(!made.is_empty() && made.len() < 12, "both were tried: {made:?}");
    disk.clear();
    let mut control = control;
    control.kill();
    let control = control.start_again_as(disk.command());
    let listed = control.cli(&["peers", "ls"]).expect_success().out;
    assert_eq!(listed.lines().count(), made.len() + 1, "what was answered is durable");
}

#[test]
fn a_first_start_on_a_full_disk_ends_with_one_line_and_leaves_room_for_the_next() {
    let scratch = Scratch::new();
    let Some(disk) = Disk::mount(&scratch.path("state")) else { return };
    let place = format!("{}: ", disk.at.join("control.db").display());
    let mut ready = 0;
    for pages in (0..100).step_by(5) {
        disk.fill_but(pages);
        let ended = try_start(&disk, &scratch);
        let is_ready = ended.is_none();
        match ended {
            None => ready += 1,
            Some(ran) => expect_full(&ran, &place),
        }
        // Each is a first start.
        for name in ["control.db", "control.db-wal", "control.db-shm"] {
            let left = std::fs::remove_file(disk.path(name));
            assert!(is_ready || left.is_err(), "{name} with {pages} pages");
        }
    }
    assert!((1..20).contains(&ready), "both were tried: {ready}");
    disk.clear();
    drop(Control::start_as(disk.command(), scratch, Vec::new()));
}

#[test]
fn a_later_start_on_a_full_disk_loses_nothing() {
    let scratch = Scratch::new();
    let Some(disk) = Disk::mount(&scratch.path("state")) else { return };
    let mut control = Control::start_as(disk.command(), scratch, Vec::new());
    control.cli(&["peers", "create", "alice", KEY]).expect_success();
    let database = || std::fs::read(disk.path("control.db")).expect("it is there");
    let place = format!("{}: ", disk.at.join("control.db").display());
    // After a power cut the index of the log is there and takes no further room, so it may start.
    let mut refused = 0;
    for is_killed in [true, false] {
        if is_killed {
            control.kill();
        } else {
            assert_eq!(control.end().code(), Some(0));
        }
        for pages in 0..8 {
            disk.fill_but(pages);
            let before = database();
            if let Some(ran) = try_start(&disk, &control.scratch) {
                expect_full(&ran, &place);
                assert!(database() == before, "with {pages} pages");
                refused += 1;
            }
        }
        disk.clear();
        control = control.start_again_as(disk.command());
        assert!(control.cli(&["peers", "ls"]).expect_success().out.contains("alice"));
    }
    assert!(refused > 0, "there was no room");
}

#[test]
fn a_backup_onto_a_full_disk_ends_with_one_line_and_leaves_nothing() {
    let scratch = Scratch::new();
    let Some(disk) = Disk::mount(&scratch.path("disk")) else { return };
    let control = Control::start_as(command(), scratch, Vec::new());
    control.cli(&["peers", "create", "alice", KEY]).expect_success();
    let copy = text(&disk.at.join("copy.db"));
    let state = text(&control.state);
    let backup = || run(disk.command().args(["backup", &copy, "--state-dir", &state]));
    for pages in [0, 1, 10] {
        disk.fill_but(pages);
        let ran = backup();
        assert_eq!((ran.code, ran.out.as_str(), ran.errors.lines().count()), (TRY_AGAIN, "", 1));
        assert!(
            ran.errors.contains(&copy) && ran.errors.contains("disk is full"),
            "{}",
            ran.errors
        );
        let left = std::fs::read_dir(disk.path("")).expect("a folder");
        assert_eq!(left.count(), 1, "the ballast alone");
    }
    disk.clear();
    backup().expect_success();
    assert!(disk.path("copy.db").exists());
}

#[test]
fn what_is_on_a_full_disk_can_be_copied_away_whether_control_runs_or_not() {
    let scratch = Scratch::new();
    let Some(disk) = Disk::mount(&scratch.path("state")) else { return };
    let mut control = Control::start_as(disk.command(), scratch, Vec::new());
    control.cli(&["peers", "create", "alice", KEY]).expect_success();
    disk.fill_but(0);
    let copies = Scratch::new();
    let copy = |name: &str| {
        let (to, state) = (text(&copies.path(name)), text(&disk.at));
        run(disk.command().args(["backup", &to, "--state-dir", &state])).expect_success();
    };
    copy("running");
    control.end();
    copy("ended");
}

/// The log often is on the disk that is full.
#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let scratch = Scratch::new();
    let full = File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut command = command();
    command.args(["serve", "--listen", "127.0.0.1:0", "--log", "debug", "--socket"]);
    command.arg(scratch.path("s")).arg("--state-dir").arg(scratch.path("state"));
    let mut child = command.stdin(Stdio::null()).stderr(full).spawn().expect("it starts");
    let list = || {
        let socket = text(&scratch.path("s"));
        run(harness::command().args(["peers", "ls", "--socket", &socket]))
    };
    let ended = loop {
        if list().code == 0 || child.try_wait().expect("it is ours").is_some() {
            break child.try_wait().expect("it is ours");
        }
    };
    assert_eq!(ended, None, "it serves");
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    kill_process(id.expect("a process has an id"), Signal::TERM).expect("it is ours");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}
