//! Starts, refusals to start, signals and ends, as an operator sees them.
#![forbid(unsafe_code)]

use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustix::process::Signal;
use tests::client::{Client, pin, presented_pin};
use tests::metrics::Metrics;
use tests::process::{Process, program};
use tests::relay::{Relay, field, loopback};
use tests::scratch::Scratch;
use tests::skip::skip;
use wire::derp::FrameType;

/// Exit codes as documented in `dataplane --help`.
const USAGE: i32 = 2;
const UNAVAILABLE: i32 = 69;
const TRY_AGAIN: i32 = 75;
const CONFIG: i32 = 78;

/// Asserts that `dataplane` with `args` ends with `code` and one line that says each of `words`.
fn refuses(args: &[&str], code: i32, words: &[&str]) {
    let (status, lines) = Process::start(args).wait();
    assert_eq!(status.code(), Some(code), "{args:?}: {lines:?}");
    assert_eq!(lines.len(), 1, "{args:?}: {lines:?}");
    assert!(lines[0].starts_with("dataplane: "), "{lines:?}");
    for word in words {
        assert!(lines[0].contains(word), "{args:?}: no {word:?} in {lines:?}");
    }
}

/// As [`refuses`], of a start that would be good on loopback but for `more`.
fn refuses_with(more: &[&str], code: i32, words: &[&str]) {
    let mut args = vec!["--cores", "1"];
    for (flag, address) in [("--listen", "127.0.0.1:0"), ("--stun-listen", "127.0.0.1:0")] {
        if !more.contains(&flag) {
            args.extend([flag, address]);
        }
    }
    args.extend(more);
    refuses(&args, code, words);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("scratch paths are UTF-8")
}

fn certificate(name: &str) -> CertifiedKey<KeyPair> {
    generate_simple_self_signed([name.to_owned()]).expect("rcgen makes certificates")
}

/// Writes a certificate for `name` and its key, as `--cert` takes them; returns its pin, too.
fn write_pair(scratch: &Scratch, name: &str) -> (String, String) {
    let CertifiedKey { cert, signing_key } = certificate(name);
    let cert_file = scratch.write("relay.pem", cert.pem());
    let key_file = scratch.write("relay.key", signing_key.serialize_pem());
    (format!("{},{}", text(&cert_file), text(&key_file)), pin(cert.der()))
}

#[test]
fn a_wrong_command_line_is_refused_with_what_to_write() {
    refuses(&["--coers", "2"], USAGE, &["--coers", "--cores"]);
    refuses(&["relay"], USAGE, &["relay"]);
    refuses(&["--cores", "0"], USAGE, &["--cores", "auto"]);
    refuses(&["--io", "xdp"], USAGE, &["--io", "epoll"]);
    refuses(&["derper", "-mesh-with", "a"], USAGE, &["-mesh-with", "leave it out"]);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() {
    let scratch = Scratch::new();
    let path = scratch.write("relay.toml", "coers = 2\n");
    refuses(&["--config", text(&path)], CONFIG, &["relay.toml", "coers", "did you mean cores?"]);
    let missing = scratch.path("none.toml");
    refuses(&["--config", text(&missing)], CONFIG, &["none.toml", "no such file"]);
}

#[test]
fn cores_that_the_host_has_not_are_refused() {
    refuses(&["--cores", "1024"], CONFIG, &["1024", "ask for fewer or write auto"]);
    refuses(&["--cores", "1023,"], CONFIG, &["CPU 1023", "name others or write auto"]);
}

#[test]
fn an_interface_that_the_host_has_not_is_refused() {
    let args = ["--xdp-interface", "no-such-if"];
    refuses_with(&args, CONFIG, &["xdp_interface", "no-such-if", "ip link"]);
    refuses_with(&["--xdp", "native"], USAGE, &["xdp_interface"]);
}

#[test]
fn bad_certificates_are_refused_by_file() {
    let scratch = Scratch::new();
    let pair = certificate("127.0.0.1");
    let good = scratch.write("good.pem", pair.cert.pem());
    let good_key = scratch.write("good.key", pair.signing_key.serialize_pem());
    let other_key =
        scratch.write("other.key", certificate("127.0.0.1").signing_key.serialize_pem());
    let garbage = scratch.write("garbage.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    let missing = scratch.path("missing.pem");
    let try_pair = |cert: &Path, key: &Path, words: &[&str]| {
        let both = format!("{},{}", text(cert), text(key));
        refuses_with(&["--cert", &both], CONFIG, words);
    };
    try_pair(&missing, &good_key, &["missing.pem", "no such file", "the certificate must"]);
    try_pair(&good, &missing, &["missing.pem", "no such file", "the certificate's key must"]);
    try_pair(&garbage, &good_key, &["garbage.pem", "it must hold the certificate"]);
    try_pair(&good, &garbage, &["garbage.pem", "private key"]);
    try_pair(&good, &other_key, &["other.key", "good.pem", "give the key it was issued for"]);
    let both = format!("{},{}", text(&good), text(&good_key));
    let foreign = ["--cert", &both, "--hostname", "relay.example"];
    refuses_with(&foreign, CONFIG, &["hostname", "relay.example", "change hostname or add"]);
}

#[test]
fn a_broken_identity_is_refused_and_left_as_it_is() {
    let scratch = Scratch::new();
    let path = scratch.write("relay.key", "{\"PrivateKey\":\"privkey:12\"}");
    refuses_with(&["--key-file", text(&path)], CONFIG, &["relay.key"]);
    let kept = std::fs::read_to_string(&path).expect("the file is still there");
    assert_eq!(kept, "{\"PrivateKey\":\"privkey:12\"}");
}

#[test]
fn ports_in_use_and_foreign_addresses_are_refused() {
    let tcp = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("loopback has free ports");
    let taken = tcp.local_addr().expect("bound").to_string();
    let fix = "stop the other process or choose another port";
    refuses_with(&["--listen", &taken], TRY_AGAIN, &["--listen", &taken, fix]);
    refuses_with(&["--http-listen", &taken], TRY_AGAIN, &["--http-listen", &taken, fix]);
    let taken = udp.local_addr().expect("bound").to_string();
    refuses_with(&["--stun-listen", &taken], TRY_AGAIN, &["--stun-listen", &taken, fix]);
    let scratch = Scratch::new();
    let file =
        scratch.write("relay.toml", format!("stun_listen = \"{taken}\"\nlisten = \"127.0.0.1:0\""));
    refuses(&["--config", text(&file)], TRY_AGAIN, &["relay.toml: stun_listen: ", &taken, fix]);
    let key_file = scratch.path("derper.key");
    let derper = ["derper", "-a", "127.0.0.1:0", "-c", text(&key_file), "-stun-port"];
    let port = taken.rsplit(':').next().expect("an address has a port");
    refuses(&[&derper[..], &[port]].concat(), TRY_AGAIN, &["-stun-port: cannot listen", fix]);
    // An address for documentation (RFC 5737) is no host's own.
    refuses_with(
        &["--listen", "192.0.2.1:0"],
        CONFIG,
        &["listen", "choose an address of this host"],
    );
}

/// `dataplane` where a filter forbids io_uring, as container profiles do by default.
fn without_uring(args: &[&str]) -> Option<Process> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deny_uring.py");
    if let Err(error) = Command::new("python3").arg("--version").output() {
        skip("python3", &error.to_string());
        return None;
    }
    let mut command = Command::new("python3");
    command.arg(script).arg(program()).args(args);
    Some(Process::run(command))
}

#[test]
fn forbidden_uring_is_refused_where_it_was_asked_for() {
    let Some(mut process) = without_uring(&loopback("uring", "1")) else { return };
    let (status, lines) = process.wait();
    assert_eq!((status.code(), lines.len()), (Some(UNAVAILABLE), 1), "{lines:?}");
    for words in ["io: ", "container profile", "write auto or epoll"] {
        assert!(lines[0].contains(words), "{lines:?}");
    }
}

#[test]
fn forbidden_uring_is_replaced_and_named_where_the_choice_is_free() {
    let Some(process) = without_uring(&loopback("auto", "1")) else { return };
    let relay = Relay::from_process(process);
    let (io, why) = relay
        .process
        .wait_for("line about the driver", |line| Some((field(line, "io")?, field(line, "why")?)));
    assert_eq!(io, "epoll");
    assert!(why.contains("container profile"), "{why}");
    let mut client = Client::connect(relay.derp()).expect("it relays");
    client.ping(*b"whatever").expect("it answers");
}

#[test]
fn upgrades_count_by_the_tls_version_they_came_over() {
    let relay = Relay::start(&loopback("epoll", "1"));
    let _client = Client::connect(relay.derp()).expect("it relays");
    let requests = Metrics::parse(&relay.page("/debug/varz"));
    assert_eq!(requests.sum("derper_tls_request_version", &["1.3"]), 1);
    assert_eq!(relay.metrics().sum("relay_upgrades_total", &["raw"]), 1);
}

#[test]
fn a_map_node_is_only_told_where_the_name_is_known() {
    let scratch = Scratch::new();
    let (files, _) = write_pair(&scratch, "127.0.0.1");
    let mut args = loopback("epoll", "1");
    args.extend(["--cert", &files]);
    let told = |args: &[&str]| {
        Relay::start(args).process.wait_for("word of the DERP map node", |line| {
            line.contains("DERP map node: ").then(|| line.to_owned())
        })
    };
    let without = told(&args);
    assert!(without.contains("no DERP map node: hostname is not set; set it"), "{without}");
    args.extend(["--hostname", "127.0.0.1"]);
    assert!(!told(&args).contains("no DERP map node"));
}

#[test]
fn a_hangup_without_certificate_files_says_that_nothing_was_reloaded() {
    let relay = Relay::start(&loopback("epoll", "1"));
    relay.process.signal(Signal::HUP);
    relay.process.wait_for("answer", |line| {
        line.contains("the self-made one stays until a restart").then_some(())
    });
    assert_eq!(relay.metrics().sum("relay_certificate_reloads_total", &["ok"]), 0);
}

/// A relay started by a shell under limits of open files, as `ulimit` has set them.
fn with_open_files(ulimit: &str, more: &[&str]) -> Relay {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{ulimit} && exec \"$0\" \"$@\"")]).arg(program());
    command.args(loopback("auto", "1")).args(more);
    Relay::from_process(Process::run(command))
}

#[test]
fn the_limit_of_open_files_is_raised_as_far_as_allowed() {
    let relay = with_open_files("ulimit -Sn 100 && ulimit -Hn 512", &["--sessions-max", "1000"]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.process.id()));
    let limits = limits.expect("a running process has limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let numbers: Vec<_> = line.expect("open files are limited").split_whitespace().collect();
    assert_eq!(numbers[3..5], ["512", "512"]);
    let warned = relay.process.log().join("\n");
    assert!(warned.contains("sessions_max: 1000 connections need more than the 512"), "{warned}");
    assert!(!warned.contains("handshakes_max: "), "one line is enough: {warned}");
}

#[test]
fn a_driver_that_cannot_start_ends_the_start_before_it_is_ready() {
    let mut command = Command::new("sh");
    // Enough to bind, too little for a worker and a front of eight CPUs.
    command.args(["-c", "ulimit -n 12 && exec \"$0\" \"$@\""]).arg(program());
    let (status, lines) = Process::run({
        command.args(loopback("epoll", "1"));
        command
    })
    .wait();
    let log = lines.join("\n");
    assert!(!status.success() && !log.contains("relay ready"), "{log}");
}

#[test]
fn the_command_line_of_derper_starts_it() {
    let scratch = Scratch::new();
    let key_file = scratch.path("derper.key");
    let relay = Relay::start(&[
        "derper",
        "-a",
        "127.0.0.1:0",
        "-http-port=0",
        "-stun-port=0",
        "-hostname=127.0.0.1",
        "-certmode=manual",
        "-certdir",
        text(scratch.as_ref()),
        "-c",
        text(&key_file),
    ]);
    Client::connect(relay.derp()).expect("it relays");
    assert_eq!((relay.ready.http.len(), relay.ready.stun.len()), (1, 1));
    assert!(key_file.exists() && scratch.path("127.0.0.1.crt").exists());
}

#[test]
fn the_identity_outlives_a_restart_and_is_private() {
    let scratch = Scratch::new();
    let key_file = scratch.path("kept/relay.key");
    let mut args = loopback("epoll", "1");
    args.extend(["--key-file", text(&key_file)]);
    let first = Relay::start(&args).ready.key;
    assert_eq!(Relay::start(&args).ready.key, first);
    let mode = std::fs::metadata(&key_file).expect("it was made").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn certificates_are_replaced_on_hangup_and_bad_ones_are_not() {
    let scratch = Scratch::new();
    let (files, first) = write_pair(&scratch, "127.0.0.1");
    let mut args = loopback("auto", "1");
    args.extend(["--cert", &files]);
    let relay = Relay::start(&args);
    let mut client = Client::connect(relay.derp()).expect("it relays");
    assert_eq!(presented_pin(relay.derp()).expect("a handshake"), first);

    let (_, second) = write_pair(&scratch, "127.0.0.1");
    relay.process.signal(Signal::HUP);
    relay.process.wait_for("reload", |line| line.contains("certificates reloaded").then_some(()));
    assert_eq!(presented_pin(relay.derp()).expect("a handshake"), second);
    assert_ne!(first, second);

    scratch.write("relay.pem", "garbage");
    relay.process.signal(Signal::HUP);
    let refusal = |line: &str| line.contains("certificates not reloaded").then(|| line.to_owned());
    let refusal = relay.process.wait_for("refusal", refusal);
    assert!(refusal.contains("relay.pem"), "{refusal}");
    assert_eq!(presented_pin(relay.derp()).expect("a handshake"), second);
    client.ping(*b"the same").expect("reloads do not touch sessions");
    let reloads = |result| relay.metrics().sum("relay_certificate_reloads_total", &[result]);
    assert_eq!((reloads("ok"), reloads("refused")), (1, 1));
}

#[test]
fn a_stop_tells_clients_to_come_back_and_ends_well() {
    for (io, signal) in [("epoll", Signal::TERM), ("auto", Signal::INT)] {
        let mut relay = Relay::start(&loopback(io, "1"));
        let mut clients: Vec<_> =
            (0..3).map(|_| Client::connect(relay.derp()).expect("it relays")).collect();
        relay.process.signal(signal);
        for client in &mut clients {
            let frames = client.drain().expect("the relay closes");
            let restarting =
                |frame: &tests::client::Frame| frame.kind == Some(FrameType::Restarting);
            assert!(frames.iter().any(restarting), "{io}: {frames:?}");
        }
        let (status, lines) = relay.process.wait();
        assert_eq!(status.code(), Some(0), "{}", lines.join("\n"));
    }
}

#[test]
fn check_says_what_a_start_would_use_and_starts_nothing() {
    let held = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let taken = held.local_addr().expect("bound").to_string();
    let check = |args: &[&str]| {
        let output = Command::new(program()).arg("check").args(args).output().expect("it starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, errors) = check(&["--cores", "1", "--io", "epoll", "--listen", &taken]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(out.contains("cores = \"1\"") && out.contains("# io: epoll: asked for"), "{out}");
    let (code, out, errors) = check(&["--cores", "1024"]);
    assert_eq!((code, out.as_str(), errors.lines().count()), (Some(CONFIG), "", 1), "{errors}");
}
