//! A wall clock that jumps, ahead and back, below a running control: stock libfaketime moves it, and
//! leaves the monotonic clock alone, as a correction by hand or of a wrong battery does.
//!
//! The tests' own clock and that of the command line stay right. No system sets a clock to before
//! 1970, so the earliest here is moments after that.
#![forbid(unsafe_code)]

mod harness;
mod peers;

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use harness::dataplane::Dataplane;
use harness::signing::{BODY, Signing, instance, now, send};
use harness::{Answer, Control, PATIENCE, Scratch, bearer, command, key};
use peers::skip;
use serde_json::{Value, json};
use steer::Revision;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Longer than tombstones and idempotency keys are kept.
const EIGHT_DAYS: i64 = 8 * DAY;

/// A clock that control reads in place of the system's.
struct Clock {
    library: PathBuf,
    scratch: Scratch,
}

impl Clock {
    /// One that is right; `None` where libfaketime is missing.
    fn new() -> Option<Self> {
        let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let mut libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
        let Some(library) = libraries.find(|path| path.is_file()) else {
            skip("faketime", "libfaketime is not installed");
            return None;
        };
        let clock = Self { library, scratch: Scratch::new() };
        clock.set(0);
        Some(clock)
    }

    /// The program with this clock.
    fn command(&self) -> Command {
        let mut command = command();
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", self.scratch.path("offset"))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command
    }

    /// Sets it so many seconds ahead of the right time.
    fn set(&self, ahead: i64) {
        let new = self.scratch.path("new");
        std::fs::write(&new, format!("{ahead:+}\n")).expect("a scratch folder takes files");
        std::fs::rename(new, self.scratch.path("offset")).expect("whoever reads sees one of both");
    }

    fn start(&self, more: &[&str]) -> Control {
        let more = more.iter().map(|flag| (*flag).to_owned()).collect();
        Control::start_as(self.command(), Scratch::new(), more)
    }
}

/// How far the clock goes in turn, the last being right again.
fn jumps() -> [i64; 7] {
    let almost_1970 = 5 - now();
    [0, DAY, -DAY, EIGHT_DAYS, almost_1970, 400 * DAY, 0]
}

fn ask(control: &Control, token: &str, method: &str, path: &str, body: &Value) -> Answer {
    ask_once(control, token, method, path, body, None)
}

fn ask_once(
    control: &Control,
    token: &str,
    method: &str,
    path: &str,
    body: &Value,
    once: Option<&str>,
) -> Answer {
    let authorization = bearer(token);
    let mut headers =
        vec![("authorization", &*authorization), ("content-type", "application/json")];
    headers.extend(once.map(|key| ("idempotency-key", key)));
    control.ask(method, &format!("/api/v1/{path}"), &headers, &body.to_string())
}

fn post(control: &Control, token: &str, path: &str, body: &Value) -> Revision {
    let answer = ask(control, token, "POST", path, body);
    assert_eq!(answer.status, 201, "{}", answer.body);
    Revision(answer.json()["revision"].as_u64().expect("a revision"))
}

fn peer(number: u8) -> Value {
    json!({"name": format!("peer-{number}"), "public_key": key(number)})
}

/// A control that knows a node, and a token for it.
fn with_node(clock: &Clock, more: &[&str]) -> (Control, String) {
    let control = clock.start(more);
    let token = control.token("ci", "operate");
    post(&control, &token, "regions", &json!({"name": "fra", "region_id": 900}));
    let node = json!({"name": "fra-1", "region": "fra", "host_name": "127.0.0.1", "derp_port": 1});
    post(&control, &token, "nodes", &node);
    (control, token)
}

/// The store's revision.
fn latest(control: &Control) -> Revision {
    let listed = control.cli(&["peers", "ls", "--output", "json"]).expect_success().json();
    Revision(listed["revision"].as_u64().expect("a revision"))
}

/// The clock as control reads it, ahead of the right time.
fn ahead(control: &Control) -> i64 {
    let page = control.get("/status.json").json();
    let as_of: control::clock::Stamp =
        serde_json::from_value(page["as_of"].clone()).expect("a time");
    as_of.0 - now()
}

/// Waits until `is_so`.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::yield_now();
    }
}

fn visits(control: &Control, token: &str) -> u64 {
    let authorization = bearer(token);
    let page = control.ask("GET", "/metrics", &[("authorization", &authorization)], "");
    assert_eq!(page.status, 200, "{}", page.body);
    let counts = page.body.lines().filter(|line| line.starts_with("control_probe_visits_total"));
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

#[test]
fn changes_steering_watches_probes_and_audit_go_on() {
    let Some(clock) = Clock::new() else { return };
    let (control, token) = with_node(&clock, &["--probe-every", "1s"]);
    let mut dataplane = Dataplane::connect(&control, "fra-1");
    dataplane.adopt();
    let mut watch = control.watch("/api/v1/watch", &bearer(&token));
    while watch.event().name != "upto" {}
    for (number, jump) in (1..).zip(jumps()) {
        clock.set(jump);
        until("the clock", || (ahead(&control) - jump).abs() < 60);
        let before = visits(&control, &token);
        let once = format!("once-{number}");
        let create = || ask_once(&control, &token, "POST", "peers", &peer(number), Some(&once));
        let made = create();
        assert_eq!(made.status, 201, "{}", made.body);
        let made = made.json();
        assert_eq!(create().json()["id"], made["id"], "a repetition is known");
        let revision = Revision(made["revision"].as_u64().expect("a revision"));
        assert_eq!(dataplane.settle(revision), ["delta"]);
        assert_eq!(dataplane.snapshot.peers.len(), usize::from(number));
        let told = watch.event();
        assert_eq!(
            (told.name.as_str(), &told.data["body"]["name"]),
            ("change", &peer(number)["name"])
        );
        assert_eq!(watch.event().name, "upto");
        let audit = control.cli(&["audit", "--limit", "1", "--output", "json"]).json();
        let entry = &audit["items"][0];
        assert_eq!((&entry["name"], &entry["at"]), (&peer(number)["name"], &made["created_at"]));
        until("a probe", || visits(&control, &token) > before);
        assert_eq!(control.get("/readyz").body, "ready\n");
    }
    let (status, log) = control.stop_and_read();
    assert_eq!(status.code(), Some(0));
    assert!(!log.iter().any(|line| line.contains("panicked")), "{log:#?}");
}

#[test]
fn tokens_end_by_the_clock_and_count_again_when_it_is_right_again() {
    let Some(clock) = Clock::new() else { return };
    let control = clock.start(&[]);
    let short = ["tokens", "create", "short", "--scope", "read", "--expires", "1h"];
    let short = control.cli(&short).expect_success().out.trim().to_owned();
    let lasting = control.token("lasting", "read");
    let status = |token: &str| ask(&control, token, "GET", "peers", &Value::Null).status;
    for jump in jumps() {
        clock.set(jump);
        until("the clock", || (ahead(&control) - jump).abs() < 60);
        let wanted = if jump > HOUR { 401 } else { 200 };
        assert_eq!((status(&short), status(&lasting)), (wanted, 200), "{jump}");
    }
    clock.set(DAY);
    until("the clock", || ahead(&control) > HOUR);
    let late = control.cli(&["tokens", "create", "late", "--scope", "read", "--expires", "1h"]);
    assert_eq!(late.code, 3, "it would have ended already: {}", late.errors);
}

#[test]
fn a_signature_of_another_time_is_refused_with_the_clocks_named() {
    let Some(clock) = Clock::new() else { return };
    let control = clock.start(&[]);
    let (token, satellite) = (control.token("ci", "register"), Signing::new());
    assert_eq!(satellite.register(&control, &token, "sydney").status, 201);
    let word = instance(&control);
    let send_at = |time: i64| send(&control, &satellite.sign(BODY, &word, time));
    let state = || {
        let listed = control.cli(&["satellites", "ls", "--output", "json"]).expect_success();
        listed.json()["items"][0]["status"]["state"].clone()
    };
    assert_eq!(send_at(now()).status, 200);
    for jump in jumps() {
        clock.set(jump);
        until("the clock", || (ahead(&control) - jump).abs() < 60);
        assert_eq!(state(), "up", "it was heard a moment ago, whatever the clock says");
        let right = send_at(now());
        match jump {
            0 => assert_eq!(right.status, 200, "{}", right.body),
            _ => {
                assert_eq!((right.status, right.code()), (401, "clock_apart".into()));
                assert!(right.body.contains("set the clocks"), "{}", right.body);
                let as_wrong = send_at(now() + jump);
                assert_eq!(as_wrong.status, 200, "{}", as_wrong.body);
            }
        }
    }
}

#[test]
fn what_was_compacted_too_early_misleads_nobody() {
    let Some(clock) = Clock::new() else { return };
    let (mut control, token) = with_node(&clock, &["--probe-every", "off"]);
    let create = |control: &Control, number: u8, once: &str| {
        ask_once(control, &token, "POST", "peers", &peer(number), Some(once))
    };
    let remove = |control: &Control, number: u8| {
        let path = format!("peers/peer-{number}");
        assert_eq!(ask(control, &token, "DELETE", &path, &Value::Null).status, 204);
    };
    let made = [1, 2].map(|number| create(&control, number, &format!("once-{number}")));
    let seen = made[1].json()["revision"].as_u64().expect("a revision");
    let mut dataplane = Dataplane::connect(&control, "fra-1");
    dataplane.adopt();
    let snapshot = dataplane.snapshot.clone();
    drop(dataplane);
    remove(&control, 2);
    control.end();
    // A start compacts, and so does every hour of the monotonic clock.
    clock.set(EIGHT_DAYS);
    control = control.start_again_as(clock.command());
    let path = format!("/api/v1/watch?from={seen}");
    until("the compaction", || control.watch(&path, &bearer(&token)).event().name == "reset");
    let mut watch = control.watch(&path, &bearer(&token));
    let events = std::iter::from_fn(|| Some(watch.event()).filter(|event| event.name != "upto"));
    let names: Vec<_> =
        events.filter_map(|event| event.data["name"].as_str().map(str::to_owned)).collect();
    assert!(names.contains(&"peer-1".to_owned()) && !names.contains(&"peer-2".to_owned()));
    let mut dataplane = Dataplane::again(&control, "fra-1", &snapshot);
    assert_eq!(dataplane.adopt(), "whole", "what was removed can be told no other way");
    assert_eq!(dataplane.snapshot.peers.len(), 1);
    // The key of the first create is forgotten, and the create is refused for its name instead.
    assert_eq!(create(&control, 1, "once-1").code(), "taken");
    let ahead = create(&control, 3, "once-3").json();
    remove(&control, 1);
    dataplane.settle(latest(&control));
    // Back again: records, tombstones and keys of a time to come.
    clock.set(0);
    assert_eq!(create(&control, 3, "once-3").json()["id"], ahead["id"], "a repetition is known");
    let mut snapshot = dataplane.snapshot.clone();
    drop(dataplane);
    control.end();
    control = control.start_again_as(clock.command());
    create(&control, 4, "once-4");
    remove(&control, 3);
    let mut again = Dataplane::again(&control, "fra-1", &snapshot);
    assert_eq!(again.settle(latest(&control)), ["delta"]);
    snapshot = again.snapshot.clone();
    let mut fresh = Dataplane::connect(&control, "fra-1");
    fresh.adopt();
    assert_eq!(snapshot.to_text(), fresh.snapshot.to_text());
    assert_eq!(snapshot.peers.len(), 1, "peer-4 alone");
}
