//! Real `control` processes on one PostgreSQL database: together, one killed, one cut off, and
//! without their server.
#![forbid(unsafe_code)]

mod harness;
#[path = "../src/testing/postgres.rs"]
mod server;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::{Answer, Control, KEY, Scratch, command, run};
use serde_json::{Value, json};
use server::Server;

/// Two on one database, started at the same time.
fn two(url: &str) -> [Control; 2] {
    std::thread::scope(|scope| {
        let start = || Control::start_with(&["--database", url]);
        let other = scope.spawn(start);
        [start(), other.join().expect("it starts")]
    })
}

/// A request with a token and a JSON body.
fn with(control: &Control, token: &str, method: &str, path: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    control.ask(method, path, &headers, &body.to_string())
}

fn peer(at: usize) -> Value {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&(at as u64 + 1).to_le_bytes());
    let key = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, key);
    json!({"name": format!("peer{at}"), "public_key": key})
}

fn leads(control: &Control, token: &str) -> bool {
    let page = with(control, token, "GET", "/metrics", &Value::Null).body;
    page.lines().any(|line| line == "control_leader 1")
}

#[test]
fn two_serve_one_state_and_one_goes_on_when_the_other_is_killed() {
    let Some(server) = Server::shared() else { return };
    let url = server.database();
    let [mut one, mut other] = two(&url);
    assert!(!one.state.join("control.db").exists(), "nothing is kept in the folder");
    let token = one.token("ci", "admin");
    if leads(&other, &token) {
        std::mem::swap(&mut one, &mut other);
    }
    assert!(leads(&one, &token) && !leads(&other, &token));
    let mut stream = other.watch("/api/v1/watch?from=1", &format!("Bearer {token}"));
    assert_eq!(stream.event().name, "upto");
    for (at, control) in [&one, &other, &one].into_iter().enumerate() {
        let made = with(control, &token, "POST", "/api/v1/peers", &peer(at));
        assert_eq!(made.status, 201, "{}", made.body);
        let told = stream.event();
        assert_eq!((told.name.as_str(), &told.data["name"]), ("change", &peer(at)["name"]));
        assert_eq!(stream.event().name, "upto");
    }
    let listed = |control: &Control| {
        with(control, &token, "GET", "/api/v1/peers", &Value::Null).json()["items"].clone()
    };
    assert_eq!(listed(&one), listed(&other));
    one.kill();
    assert_eq!(with(&other, &token, "POST", "/api/v1/peers", &peer(3)).status, 201);
    assert_eq!(stream.event().data["name"], "peer3");
    other.wait_for("leads the controls on this database");
    assert!(leads(&other, &token));
    let one = one.start_again();
    assert_eq!(listed(&one), listed(&other));
    assert!(!leads(&one, &token));
    // What one says of a record the other takes as If-Match, and a removed token ends on both.
    assert_eq!(one.cli(&["peers", "rm", "peer3", "--yes"]).code, 0);
    assert_eq!(other.cli(&["tokens", "rm", "ci", "--yes"]).code, 0);
    assert_eq!(with(&one, &token, "GET", "/api/v1/peers", &Value::Null).status, 401);
}

#[test]
fn of_concurrent_creates_over_both_exactly_one_wins() {
    let Some(server) = Server::shared() else { return };
    let both = two(&server.database());
    let token = both[0].token("ci", "register");
    let body = json!({"name": "sydney", "public_key": KEY});
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let make = |control| with(control, &token, "POST", "/api/v1/satellites", &body).status;
        let tries: Vec<_> = both
            .iter()
            .cycle()
            .take(24)
            .map(|control| scope.spawn(move || make(control)))
            .collect();
        tries.into_iter().map(|one| one.join().expect("no try panics")).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| [201, 409].contains(status)), "{statuses:?}");
}

/// Both write while their sessions are ended again and again: what was answered 201 is there, what
/// was refused is not, and a watcher has seen exactly what is there.
#[test]
fn what_was_answered_is_true_though_sessions_are_cut() {
    const CREATES: usize = 150;
    let Some(server) = Server::shared() else { return };
    let url = server.database();
    let both = two(&url);
    let token = both[0].token("ci", "operate");
    let mut stream = both[1].watch("/api/v1/watch?from=0", &format!("Bearer {token}"));
    assert_eq!(stream.event().name, "upto");
    let answered = AtomicUsize::new(0);
    let answers: Vec<(usize, u16)> = std::thread::scope(|scope| {
        let write = |at: usize| {
            let (control, token, answered) = (&both[at], &token, &answered);
            scope.spawn(move || {
                let numbers = (0..CREATES).map(|number| 2 * number + at);
                let make = |number| {
                    let made = with(control, token, "POST", "/api/v1/peers", &peer(number));
                    answered.fetch_add(1, Ordering::Relaxed);
                    (number, made.status)
                };
                numbers.map(make).collect::<Vec<_>>()
            })
        };
        let writers = [write(0), write(1)];
        let mut cuts = 0;
        while writers.iter().any(|writer| !writer.is_finished()) {
            if answered.load(Ordering::Relaxed) > 40 * cuts {
                server.cut(&url);
                cuts += 1;
            }
            std::thread::yield_now();
        }
        assert!(cuts > 1, "{cuts}");
        writers.into_iter().flat_map(|writer| writer.join().expect("no writer panics")).collect()
    });
    // The last cut may still be felt: the answer is to try again.
    let once_back = |args: &[&str]| loop {
        match both[0].cli(args) {
            ran if ran.code == 75 => {}
            ran => return ran.expect_success(),
        }
    };
    once_back(&["peers", "create", "last", KEY]);
    let mut seen = BTreeMap::new();
    while !seen.contains_key("last") {
        let event = stream.event();
        if event.name == "change" {
            let name = event.data["name"].as_str().expect("a name").to_owned();
            assert_eq!(seen.insert(name, ()), None, "each once");
        }
    }
    let listed = once_back(&["peers", "ls", "--output", "json"]).json();
    let items = listed["items"].as_array().expect("a list");
    let there: BTreeMap<_, _> =
        items.iter().map(|row| (row["name"].as_str().expect("a name").to_owned(), ())).collect();
    assert_eq!(seen, there, "the watcher missed nothing");
    let mut counted = BTreeMap::<u16, usize>::new();
    for (number, status) in answers {
        *counted.entry(status).or_default() += 1;
        let there = there.contains_key(&format!("peer{number}"));
        match status {
            201 => assert!(there, "peer{number} was made"),
            503 => assert!(!there, "peer{number} was refused"),
            // Nobody knows, and that was said.
            504 => {}
            _ => panic!("peer{number}: {status}"),
        }
    }
    println!("answers by status: {counted:?}");
}

/// What is answered on the unix socket.
fn over_the_socket(control: &Control, path: &str) -> String {
    let mut stream = UnixStream::connect(&control.socket).expect("it listens");
    let head = format!("GET {path} HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    text
}

#[test]
fn without_the_server_requests_are_refused_at_once_and_all_comes_back() {
    let Some(mut server) = Server::start() else { return };
    let control = Control::start_with(&["--database", &server.database()]);
    let token = control.token("ci", "operate");
    let mut stream = control.watch("/api/v1/watch?from=0", &format!("Bearer {token}"));
    assert_eq!(stream.event().name, "upto");
    let map = control.get("/derpmap/default");
    assert_eq!((map.status, control.get("/readyz").status), (200, 200));
    server.stop();
    let began = Instant::now();
    for _ in 0..3 {
        let refused = with(&control, &token, "POST", "/api/v1/peers", &peer(0));
        assert_eq!((refused.status, refused.code()), (503, "store_away".into()));
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    }
    // Far from the five seconds that a silent server is waited for, each time.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(control.get("/livez").status, 200);
    let ready = control.get("/readyz");
    assert_eq!(
        (ready.status, ready.body.as_str()),
        (503, "store: the database cannot be reached\n")
    );
    let ready = over_the_socket(&control, "/readyz");
    assert!(ready.contains("store: the database cannot be reached: "), "{ready}");
    assert_eq!(control.get("/derpmap/default").body, map.body, "the last map is served");
    let refused = control.cli(&["peers", "ls"]);
    assert_ne!(refused.code, 0);
    assert!(refused.errors.contains("the database cannot be reached"), "{}", refused.errors);
    server.run(&[]);
    control.wait_for("the database is back");
    assert_eq!(control.get("/readyz").body, "ready\n");
    assert_eq!(with(&control, &token, "POST", "/api/v1/peers", &peer(0)).status, 201);
    let told = std::iter::from_fn(|| Some(stream.event())).find(|event| event.name == "change");
    assert_eq!(told.expect("the stream goes on").data["name"], "peer0");
}

#[test]
fn faults_of_the_operator_are_one_line_without_the_password() {
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path(name).display().to_string();
    let variable = "PERIGEE_CONTROL_DATABASE";
    let secret = "postgres://u:hush@/d?host=/nonexistent";
    let serve = || {
        let mut command = command();
        command.args(["serve", "--listen", "127.0.0.1:0", "--log", "trace", "--socket"]);
        command.arg(path("s"));
        command
    };
    let away = run(serve().env(variable, secret));
    assert_eq!(away.code, 69, "{}", away.errors);
    let shown = run(serve().args(["--database", secret]));
    assert_eq!(shown.code, 2, "{}", shown.errors);
    let wrong = run(serve().env(variable, "mysql://u:hush@h/d"));
    assert_eq!(wrong.code, 78, "{}", wrong.errors);
    let backup = run(command().args(["backup", &path("copy")]).env(variable, secret));
    assert_eq!(backup.code, 2, "{}", backup.errors);
    assert!(backup.errors.contains("pg_dump"), "{}", backup.errors);
    for fault in [away, shown, wrong, backup] {
        assert!(!fault.errors.contains("hush"), "{}", fault.errors);
        assert_eq!(fault.errors.trim_end().lines().count(), 1, "{}", fault.errors);
    }
}
