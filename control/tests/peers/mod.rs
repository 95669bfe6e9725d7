//! Foreign peers for the probes, as processes: stock derper, built from its Go module, and coturn.
//!
//! A machine that lacks one skips its tests, aloud; `PERIGEE_REQUIRE` names what must not be missing.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::Scratch;

/// Time for anything that takes milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// The version that is asked; the bench compares with the same.
const DERPER: &str = "v1.102.4";

/// Says that the running test is skipped, because `what` is missing as `why` tells.
pub(crate) fn skip(what: &str, why: &str) {
    let required = std::env::var("PERIGEE_REQUIRE").unwrap_or_default();
    let is_required = required.split(',').any(|name| name.trim() == what);
    assert!(!is_required, "{what} is required and missing: {why}");
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // The test runner hides what passing tests print through the macros.
    let _ = writeln!(std::io::stderr(), "skipped {test}: no {what}: {why}");
}

/// The program, built once into the target folder; `None` where there is no Go.
fn derper() -> Option<&'static PathBuf> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = PROGRAM.get_or_init(|| {
        // <target>/tmp is the tests' own folder.
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("..");
        let folder = target.join("peers").join(format!("derper-{DERPER}"));
        let program = folder.join("derper");
        if program.is_file() {
            return Ok(program);
        }
        let module = format!("tailscale.com/cmd/derper@{DERPER}");
        let go = Command::new("go").args(["install", &module]).env("GOBIN", &folder).output();
        let output = go.map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(program),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    });
    built.as_ref().inspect_err(|why| skip("go", why)).ok()
}

/// A child that goes with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A place for a program that cannot say which port it got: a port that is free on an address that no
/// other peer has, so that nobody takes it meanwhile.
fn free_place() -> SocketAddr {
    static MADE: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, MADE.fetch_add(1, Ordering::Relaxed), high, low.max(1));
    let listener = TcpListener::bind((address, 0)).expect("loopback is a whole network");
    let place = listener.local_addr().expect("bound");
    let both = UdpSocket::bind(place).is_ok();
    if both { place } else { free_place() }
}

/// Stock derper on loopback, with a certificate of its own.
pub(crate) struct Derper {
    _running: Running,
    _scratch: Scratch,
    /// Its node in a DERP map, as it prints it, with the ports added.
    pub(crate) node: Value,
    place: SocketAddr,
    more: Vec<String>,
}

impl Derper {
    /// One with these further flags; `None` where there is no Go.
    pub(crate) fn start(more: &[&str]) -> Option<Self> {
        let more = more.iter().map(|flag| (*flag).to_owned()).collect();
        Self::start_at(free_place(), Scratch::new(), more)
    }

    /// Ends it, and gives what starts it again at the same place, with the same certificate.
    pub(crate) fn stop(self) -> impl FnOnce() -> Self {
        let Self { _running: running, _scratch: scratch, place, more, .. } = self;
        drop(running);
        move || Self::start_at(place, scratch, more).expect("it was there a moment ago")
    }

    fn start_at(place: SocketAddr, scratch: Scratch, more: Vec<String>) -> Option<Self> {
        let (host, port) = (place.ip().to_string(), place.port());
        let mut command = Command::new(derper()?);
        command
            .args(["-a", &place.to_string(), "-http-port", "-1"])
            .args(["-stun-port", &port.to_string(), "-certmode", "manual", "-hostname", &host])
            .arg("-certdir")
            .arg(scratch.path("certs"))
            .arg("-c")
            .arg(scratch.path("derper.key"))
            .args(&more)
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("derper starts");
        let errors = child.stderr.take().expect("standard error is piped");
        let running = Running(child);
        let mut lines = BufReader::new(errors).lines().map_while(Result::ok);
        let node = lines.find(|line| line.trim_start().starts_with('{'));
        let node = node.expect("derper prints its node");
        let mut node: Value = serde_json::from_str(&node).expect("it is JSON");
        until(|| TcpStream::connect(place).is_ok());
        // Whoever writes to a pipe that nobody reads stops.
        std::thread::spawn(move || lines.for_each(drop));
        node["DERPPort"] = port.into();
        node["STUNPort"] = port.into();
        node["IPv6"] = "none".into();
        Some(Self { _running: running, _scratch: scratch, node, place, more })
    }
}

/// coturn, answering STUN alone.
pub(crate) struct Coturn {
    _running: Running,
    pub(crate) address: SocketAddr,
}

impl Coturn {
    /// One on loopback; `None` where it is not installed.
    pub(crate) fn start() -> Option<Self> {
        let address = free_place();
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let mut command = Command::new("turnserver");
        command
            .args(["-n", "-S", "-L", &host, "-p", &port, "--no-cli"])
            .args(["--no-tls", "--no-dtls", "--log-file", "stdout", "--pidfile", "/dev/null"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let running = match command.spawn() {
            Ok(child) => Running(child),
            Err(error) => {
                skip("coturn", &error.to_string());
                return None;
            }
        };
        until(|| is_answered(address));
        Some(Self { _running: running, address })
    }
}

/// Waits for a program that does not say when it listens; until it does, the kernel refuses for it.
fn until(listens: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !listens() {
        assert!(Instant::now() < end, "a peer does not listen");
        std::thread::yield_now();
    }
}

/// Whether something answers a plain binding request.
fn is_answered(server: SocketAddr) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback binds");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out is taken");
    socket.connect(server).expect("loopback has routes");
    let asked = socket.send(&wire::stun::request(wire::stun::TxId([7; 12])));
    asked.is_ok() && socket.recv(&mut [0; 100]).is_ok()
}
