//! A satellite and its primary side, both programs: registered, there, rotated, and left alone.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::client::Client;
use tests::process::{PATIENCE, Process};
use tests::relay::{Relay, field, loopback};
use tests::scratch::Scratch;
use tests::serving::Serving;

fn text(path: &Path) -> String {
    path.to_str().expect("scratch paths are UTF-8").to_owned()
}

/// The only satellite that `control` lists.
fn listed(control: &Serving) -> Value {
    let listed = control.cli(&["satellites", "ls", "--output", "json"]);
    let listed: Value = serde_json::from_str(&listed).expect("it prints JSON");
    listed["items"][0].clone()
}

/// A relay that is a satellite, with `more` flags.
fn satellite(scratch: &Scratch, more: &[&str]) -> Relay {
    let key = text(&scratch.path("satellite.pem"));
    let flags = ["--satellite-key-file", &key];
    Relay::start(&[&loopback("epoll", "1")[..], &flags, more].concat())
}

/// The body of one request, written by hand.
fn ask(address: SocketAddr, head: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out is taken");
    let length = body.len();
    let request = format!(
        "{head}\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), serde_json::from_str(body).unwrap_or_default())
}

fn fingerprint(relay: &Relay) -> String {
    relay.process.wait_for("satellite key", |line| field(line, "fingerprint"))
}

/// Waits until the relay has heard that the primary side knows it by `wanted`.
fn wait_until_known(relay: &Relay, wanted: &str) {
    relay.process.wait_for("word of the primary side", |line| {
        let known = line.contains("the primary side knows this satellite");
        (known && field(line, "fingerprint")? == wanted).then_some(())
    });
}

/// The requests of Coder v1's command line, as it sends them: the key's text goes on unread, the
/// token is a cookie, and nobody tells the access URL but the satellite.
#[test]
fn the_v1_command_lines_requests_register_a_satellite_that_then_reports() {
    let scratch = Scratch::new();
    let control = Serving::start(&scratch);
    let token = control.cli(&["tokens", "create", "v1", "--scope", "register"]);
    let cookie = format!("Cookie: session_token={}", token.trim());
    let url = format!("http://{}", control.address);
    let flags = ["--tls", "off", "--primary-url", &url, "--access-url", "https://sydney.example"];
    let relay = satellite(&scratch, &flags);
    let (status, key) = ask(relay.derp(), "GET /api/private/satellites/key HTTP/1.1", "");
    assert_eq!((status, &key["fingerprint"]), (200, &json!(fingerprint(&relay))));
    let me = format!("GET /api/v0/users/me HTTP/1.1\r\n{cookie}");
    assert_eq!(ask(control.address, &me, "").0, 200);
    let body = json!({"name": "sydney", "public_key": key["key"]}).to_string();
    let create = format!("POST /api/private/satellites HTTP/1.1\r\n{cookie}");
    let (status, made) = ask(control.address, &create, &body);
    assert_eq!((status, &made["data"][0]["fingerprint"]), (201, &key["fingerprint"]));
    wait_until_known(&relay, &fingerprint(&relay));
    let row = listed(&control);
    assert_eq!(row["access_url"], "https://sydney.example");
    assert_eq!(row["status"]["state"], "up");
    assert!(row["status"]["version"].is_string());
    let list = format!("GET /api/private/satellites HTTP/1.1\r\n{cookie}");
    let (_, listed) = ask(control.address, &list, "");
    let id = listed["data"][0]["id"].as_str().expect("an id");
    let remove = format!("DELETE /api/private/satellites/{id} HTTP/1.1\r\n{cookie}");
    assert_eq!(ask(control.address, &remove, "").0, 204);
    assert_eq!(ask(control.address, &list, "").1, json!({"data": []}));
}

#[test]
fn a_key_is_rotated_while_both_run() {
    let scratch = Scratch::new();
    let control = Serving::start(&scratch);
    let url = format!("http://{}", control.address);
    let relay = satellite(&scratch, &["--tls", "off", "--primary-url", &url]);
    let old = fingerprint(&relay);
    let url = format!("http://{}", relay.derp());
    control.cli(&["satellites", "create", "sydney", &url, "--yes"]);
    wait_until_known(&relay, &old);
    let key = text(&scratch.path("satellite.pem"));
    let change = |verb: &str| {
        let mut command = Command::new(tests::process::program());
        command.args(["satellite", verb, "--satellite-key-file", &key]);
        let ran = command.env_clear().output().expect("it starts");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    };
    change("rotate");
    relay.process.signal(Signal::HUP);
    let new = relay.process.wait_for("new key", |line| {
        (field(line, "old")? == old).then(|| field(line, "fingerprint")).flatten()
    });
    control.cli(&["satellites", "rotate", "sydney", "--yes"]);
    assert_eq!(listed(&control)["fingerprint"], json!(new));
    assert_eq!(listed(&control)["old_key"]["fingerprint"], json!(old));
    change("settle");
    relay.process.signal(Signal::HUP);
    wait_until_known(&relay, &new);
    let mode = std::fs::metadata(&key).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // A file that went wrong is refused, and the key in force stays.
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).expect("it is ours");
    relay.process.signal(Signal::HUP);
    relay
        .process
        .wait_for("refusal", |line| line.contains("satellite key not reloaded").then_some(()));
    let (_, told) = ask(relay.derp(), "GET /api/private/satellites/key HTTP/1.1", "");
    assert_eq!(told["fingerprint"], json!(new));
}

#[test]
fn a_dead_silent_or_wrong_primary_side_keeps_nothing_from_being_relayed() {
    let scratch = Scratch::new();
    let mut control = Serving::start(&scratch);
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback binds");
    let silent_at = silent.local_addr().expect("bound sockets have an address");
    let wrong = something_else();
    let urls = [control.address, silent_at, wrong].map(|address| format!("http://{address}"));
    let certificates = text(&scratch.path("certificates"));
    let flags = ["--cert-dir", &certificates, "--primary-url", &urls.join(",")];
    let relay = satellite(&scratch, &flags);
    let url = format!("https://{}", relay.derp());
    let create = ["satellites", "create", "sydney", &url, "--yes"];
    let stranger = control.run(&create);
    assert_eq!(stranger.status.code(), Some(1), "its certificate is its own: {stranger:?}");
    let authority = text(&scratch.path("certificates/127.0.0.1.crt"));
    control.cli(&[&create[..], &["--ca", &authority]].concat());
    wait_until_known(&relay, &fingerprint(&relay));
    relay
        .process
        .wait_for("word of the wrong one", |line| line.contains("is control there?").then_some(()));
    control.process.signal(Signal::KILL);
    control.process.wait();
    // A reload has the dead one asked at once.
    relay.process.signal(Signal::HUP);
    relay.process.wait_for("word of the dead one", |line| {
        let primary = field(line, "primary")? == control.address.to_string();
        (primary && line.contains("does not know")).then_some(())
    });
    let failed = relay.metrics().sum("relay_satellite_reports_total", &["result=\"failed\""]);
    assert!(failed >= 2, "{failed}");
    let mut ends = [(); 2].map(|()| Client::connect(relay.derp()).expect("it relays"));
    let to = ends[1].key;
    ends[0].send(&to, b"hello").expect("it takes packets");
    assert_eq!(ends[1].receive_packet().expect("it delivers").1, b"hello");
}

/// A server that answers everything with a page.
fn something_else() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback binds");
    let address = listener.local_addr().expect("bound sockets have an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
            );
        }
    });
    address
}

#[test]
fn wrong_keys_and_settings_end_the_start_with_one_line() {
    const CONFIG: i32 = 78;
    const USAGE: i32 = 2;
    let scratch = Scratch::new();
    let open = scratch.write("open.pem", "");
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o640)).expect("it is ours");
    let wrong = scratch.write("wrong.pem", "nonsense");
    std::fs::set_permissions(&wrong, PermissionsExt::from_mode(0o600)).expect("it is ours");
    let (open, wrong, good) = (text(&open), text(&wrong), text(&scratch.path("good.pem")));
    let url = "https://primary.example";
    for (flags, code, word) in [
        (vec!["--satellite-key-file", &open], CONFIG, "others may read this key (mode 0640)"),
        (vec!["--satellite-key-file", &wrong], CONFIG, "holds no Ed25519 key"),
        (vec!["--satellite-key-file", "/proc/none/x.pem"], CONFIG, "may write"),
        (vec!["--primary-url", url], USAGE, "name a satellite_key_file"),
        (vec!["--primary-url", "primary"], USAGE, "is no web address"),
        (
            vec!["--satellite-key-file", &good, "--primary-url", url, "--primary-ca", &wrong],
            CONFIG,
            "holds no certificate",
        ),
        (
            vec!["--satellite-key-file", &good, "--primary-url", url, "--primary-ca", "none.pem"],
            CONFIG,
            "none.pem: no such file",
        ),
    ] {
        let args = [&loopback("epoll", "1")[..], &flags].concat();
        let (status, lines) = Process::start(&args).wait();
        let last = lines.iter().filter(|line| line.starts_with("dataplane: "));
        let last: Vec<_> = last.collect();
        assert_eq!((status.code(), last.len()), (Some(code), 1), "{flags:?}: {lines:?}");
        assert!(last[0].contains(word), "{flags:?}: {last:?}");
    }
    assert_eq!(std::fs::read_to_string(&wrong).expect("it is there"), "nonsense");
}
