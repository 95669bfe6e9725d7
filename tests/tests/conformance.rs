//! Stock Tailscale client code against the real relay, over each driver.
//!
//! Owns no case: they are in `conformance/`, a Go program on the stock client packages, which is
//! built once and started against a relay on loopback.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tests::process::{Process, cargo};
use tests::relay::{Relay, loopback, refusal};
use tests::skip::{skip, slow};

/// Exit code of a start that found a port taken.
const TRY_AGAIN: i32 = 75;

#[test]
fn stock_clients_are_served_over_epoll() {
    serve("epoll", "1");
}

#[test]
fn stock_clients_are_served_over_uring() {
    serve("uring", "1");
}

#[test]
fn stock_clients_are_served_by_two_cores() {
    serve("auto", "2");
}

/// The cases that wait for timers, and the stock probing programs, which want a name to dial.
#[test]
fn stock_programs_and_long_timers_agree() {
    if !slow() {
        return skip("slow", "set PERIGEE_SLOW=1 for the cases that take minutes");
    }
    let Some(program) = conformance() else { return };
    let mut args = loopback("auto", "2");
    args.extend(["--hostname", "localhost"]);
    let relay = Relay::start(&args);
    let folder = program.with_file_name("stock");
    build(&folder, &["tailscale.com/cmd/stunc", "tailscale.com/cmd/derpprobe"]);
    let mut command = against(program, &relay);
    command.arg("-slow");
    for (flag, name) in [("-stunc", "stunc"), ("-derpprobe", "derpprobe")] {
        command.arg(flag).arg(folder.join(name));
    }
    judge(command, &relay);
}

/// What the README says first, letter by letter: no certificate, root or file is needed.
#[test]
fn the_first_command_relays_between_two_stock_clients() {
    const FIRST: [&str; 7] = ["run", "--release", "-p", "dataplane", "--", "--cores", "2"];
    let cores = &FIRST[5..];
    if let Some(why) = refusal(cores) {
        return skip("cores", &why);
    }
    let Some(program) = conformance() else { return };
    // Built beforehand, so that the wait for its log is short.
    let built = cargo().args(["build", "--release", "-p", "dataplane"]).status();
    assert!(built.is_ok_and(|status| status.success()), "the first command must build");
    let start = |more: &[&str]| {
        let mut command = cargo();
        command.args(FIRST).args(more).env("PERIGEE_LOG_FORMAT", "json");
        Process::run(command)
    };
    let mut process = start(&[]);
    let taken = process.wait_for("line of the log", |line| {
        let event = line.starts_with('{').then_some(false);
        line.starts_with("dataplane: ").then_some(true).or(event)
    });
    if taken {
        let (status, lines) = process.wait();
        assert_eq!(status.code(), Some(TRY_AGAIN), "{}", lines.join("\n"));
        process = start(&["--listen", "[::]:0", "--stun-listen", "[::]:0"]);
    }
    let relay = Relay::from_process(process);
    let mut command = against(program, &relay);
    command.args(["-run", "^(packets?|ping|netcheck|stun)_"]);
    judge(command, &relay);
}

fn serve(io: &str, cores: &str) {
    if let Some(why) = refusal(&["--io", io]) {
        return skip(io, &why);
    }
    if let Some(why) = refusal(&["--cores", cores]) {
        return skip("cores", &why);
    }
    let Some(program) = conformance() else { return };
    let relay = Relay::start(&loopback(io, cores));
    judge(against(program, &relay), &relay);
}

/// Runs the program to its end: every case must hold, and the relay must outlive them well.
fn judge(mut command: Command, relay: &Relay) {
    let output = command.output().expect("the conformance program starts");
    let report = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}{errors}");
    let totals = report.lines().last().unwrap_or_default();
    let passed = totals.split(' ').next().and_then(|count| count.parse::<usize>().ok());
    assert!(passed.is_some_and(|count| count > 0), "no case ran: {report}{errors}");
    let log = relay.process.log().join("\n");
    assert!(!log.contains("panicked"), "{log}");
    println!("{report}");
}

/// The program, told where `relay` is.
fn against(program: &Path, relay: &Relay) -> Command {
    let mut command = Command::new(program);
    let ready = &relay.ready;
    let url = format!("https://{}:{}/derp", ready.hostname, relay.derp().port());
    command.args(["-url", &url, "-cert-pin", ready.pin.as_deref().expect("a pin")]);
    if let Some(http) = ready.http.first() {
        command.args(["-http-addr", &http.to_string()]);
    }
    let stun: Vec<_> = ready.stun.iter().map(ToString::to_string).collect();
    command.args(["-stun-addr", &stun.join(",")]);
    command
}

/// The conformance program, or `None` where there is no Go to build it with.
fn conformance() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = PROGRAM.get_or_init(|| {
        let version =
            Command::new("go").arg("version").output().map_err(|error| error.to_string())?;
        if !version.status.success() {
            return Err(format!("go version: {}", version.status));
        }
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance");
        build(&program, &["."]);
        Ok(program)
    });
    match made {
        Ok(program) => Some(program),
        Err(why) => {
            skip("go", why);
            None
        }
    }
}

fn build(to: &Path, packages: &[&str]) {
    let mut to = to.as_os_str().to_owned();
    if packages.len() > 1 {
        // Go takes a path that ends so for a folder.
        to.push("/");
    }
    let output = Command::new("go")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/conformance"))
        .args(["build", "-o"])
        .arg(to)
        .args(packages)
        .output()
        .expect("go starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "go build {packages:?}:\n{errors}");
}
