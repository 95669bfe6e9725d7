//! The real `control`, from start to stop: over its unix socket as the command line, and over TCP
//! as anybody.
#![forbid(unsafe_code)]

mod harness;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Answer, Control, KEY, Satellite, Scratch, TlsSatellite, bearer, command, run};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::{Value, json};

#[test]
fn it_starts_at_once_and_stops_when_told() {
    let began = Instant::now();
    let control = Control::start();
    let took = began.elapsed();
    println!("ready after {took:?}");
    assert_eq!(control.get("/livez").body, "live\n");
    assert_eq!(control.get("/readyz").body, "ready\n");
    let mode = std::fs::metadata(&control.socket).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let folder = control.socket.parent().expect("it is in a folder, which was made for it");
    let mode = std::fs::metadata(folder).expect("it is there").permissions().mode();
    assert_eq!((mode & 0o700, mode & 0o027), (0o700, 0), "for its owner and group");
    let socket = control.socket.clone();
    let stopped = control.stop();
    assert_eq!(stopped.code(), Some(0));
    assert!(!socket.exists(), "the socket's name is gone");
}

#[test]
fn nothing_but_the_map_and_health_is_for_strangers() {
    let control = Control::start();
    for path in ["/livez", "/readyz", "/derpmap/default"] {
        assert_eq!(control.get(path).status, 200, "{path}");
    }
    for path in [
        "/metrics",
        "/api/v1/satellites",
        "/api/v1/regions",
        "/api/v1/nodes",
        "/api/v1/peers",
        "/api/v1/links",
        "/api/v1/tokens",
        "/api/v1/clients",
        "/api/v1/policies",
        "/api/v1/certificates",
        "/api/v1/audit",
        "/api/v1/watch",
        "/api/v1/derpmap",
        "/api/v1/openapi.json",
        "/api/v0/users/me",
        "/api/private/satellites",
    ] {
        assert_eq!(control.get(path).status, 401, "{path}");
    }
    assert_eq!(control.get("/api/v1/satellites").code(), "unauthenticated");
    for token in ["nonsense", "perigee_000000000000_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        let answer = control.ask("GET", "/api/v1/peers", &[("authorization", &bearer(token))], "");
        assert_eq!((answer.status, answer.code()), (401, "unauthenticated".into()));
    }
    assert_eq!(control.get("/nowhere").code(), "not_found");
    assert_eq!(control.ask("DELETE", "/livez", &[], "").code(), "method_not_allowed");
}

#[test]
fn a_strangers_body_is_not_waited_for() {
    let control = Control::start();
    for (method, path) in [("PUT", "/api/v1/derpmap"), ("POST", "/api/v1/peers")] {
        assert_eq!(control.ask_without_body(method, path, 4_000_000).code(), "unauthenticated");
    }
}

#[test]
fn garbage_ends_its_own_connection_and_nothing_else() {
    let control = Control::start();
    let token = control.token("ci", "admin");
    for head in ["GET /livez HTTP/1.1\r\n", "GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n"] {
        let answer = control.ask_head(head);
        assert_eq!((answer.status, answer.code()), (400, "bad_request".into()), "{head}");
    }
    assert_eq!(control.ask_head("GET /livez HTTP/1.0\r\n").status, 200, "it has no Host");
    for bytes in [&b"\0\xff\x16\x03\x01"[..], b"GET / HTTP/9.9\r\n\r\n", &[b'A'; 100_000]] {
        control.throw(bytes);
    }
    let deep = "[".repeat(30_000);
    let many = format!("{{\"name\":\"a\",\"scopes\":[{}\"read\"]}}", "\"read\",".repeat(3000));
    let number = r#"{"name":"a","region_id":1e999}"#;
    for (path, body) in [
        ("/api/v1/peers", deep.as_str()),
        ("/api/v1/regions", number),
        ("/api/v1/regions", r#"{"name":"a","region_id":-1}"#),
        ("/api/v1/links", r#"{"peers":["a","b","c"]}"#),
        ("/api/v1/links", "\u{feff}{}"),
        ("/api/v1/nodes", r#"{"name":"\ud800","region":"a","host_name":"b"}"#),
    ] {
        let headers = [("authorization", &*bearer(&token)), ("content-type", "application/json")];
        let answer = control.ask("POST", path, &headers, body);
        assert_eq!((answer.status, answer.code()), (400, "bad_request".into()), "{path}");
    }
    let headers = [("authorization", &*bearer(&token)), ("content-type", "application/json")];
    assert_eq!(control.ask("POST", "/api/v1/tokens", &headers, &many).status, 201);
    assert_eq!(control.ask("GET", "/api/v1/peers/%ff", &headers, "").code(), "bad_request");
    assert_eq!(control.ask("GET", "/api/v1/peers/%00", &headers, "").code(), "not_found");
    assert_eq!(control.get("/livez").status, 200);
}

#[test]
fn metrics_count_what_was_answered() {
    let control = Control::start();
    let token = control.token("prometheus", "read");
    control.cli(&["peers", "create", "alice", KEY]).expect_success();
    assert_eq!(control.get("/api/v1/peers").status, 401);
    let auth = [("authorization", &*bearer(&token))];
    let page = control.ask("GET", "/metrics", &auth, "").body;
    let value = |series: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in {page}")).to_owned()
    };
    assert_eq!(value("control_records{kind=\"peer\"}"), "1");
    assert_eq!(value("control_records{kind=\"link\"}"), "0");
    assert_eq!(value("control_store_revision"), "2");
    assert_eq!(value("control_auth_failures_total"), "1");
    assert_eq!(value("control_http_answers_total{class=\"2xx\"}"), "2");
    assert_eq!(value("control_http_answers_total{class=\"4xx\"}"), "1");
    assert_eq!(value("control_http_answers_total{class=\"5xx\"}"), "0");
    assert_eq!(value("control_derp_map_current"), "1");
}

/// A request with a token and a JSON body.
fn with(control: &Control, token: &str, method: &str, path: &str, body: &Value) -> Answer {
    let headers = [("authorization", &*bearer(token)), ("content-type", "application/json")];
    control.ask(method, path, &headers, &body.to_string())
}

#[test]
fn scopes_bound_what_a_token_may_do_and_removal_ends_it() {
    let control = Control::start();
    let [read, operate, register] =
        ["read", "operate", "register"].map(|scope| control.token(scope, scope));
    let peer = json!({"name": "alice", "public_key": KEY});
    let satellite = json!({"name": "sydney", "public_key": KEY});
    assert_eq!(with(&control, &read, "GET", "/api/v1/peers", &json!(null)).status, 200);
    assert_eq!(with(&control, &read, "GET", "/metrics", &json!(null)).status, 200);
    assert_eq!(with(&control, &read, "POST", "/api/v1/peers", &peer).code(), "forbidden");
    assert_eq!(with(&control, &read, "GET", "/api/v1/tokens", &json!(null)).code(), "forbidden");
    assert_eq!(with(&control, &operate, "POST", "/api/v1/peers", &peer).status, 201);
    assert_eq!(with(&control, &operate, "POST", "/api/v1/satellites", &satellite).status, 403);
    assert_eq!(with(&control, &register, "POST", "/api/v1/satellites", &satellite).status, 201);
    let listed = control.cli(&["tokens", "ls", "--output", "json"]).json();
    let row = listed["items"].as_array().expect("a list").iter().find(|row| row["name"] == "read");
    let row = row.expect("it is listed");
    assert!(row["last_used_at"].is_string(), "{row}");
    assert!(!listed.to_string().contains(&read), "a token is shown once");
    assert_eq!(control.cli(&["tokens", "rm", "read", "--yes"]).code, 0);
    assert_eq!(with(&control, &read, "GET", "/api/v1/peers", &json!(null)).status, 401);
}

#[test]
fn bad_requests_are_told_apart_and_change_nothing() {
    let control = Control::start();
    let token = control.token("ci", "operate");
    let auth = bearer(&token);
    let post = |kind: &str, body: &str| {
        let headers = [("authorization", &*auth), ("content-type", kind)];
        control.ask("POST", "/api/v1/peers", &headers, body)
    };
    let json = "application/json";
    let good = json!({"name": "alice", "public_key": KEY}).to_string();
    assert_eq!(post(json, "{").code(), "bad_request");
    assert_eq!(post(json, "").code(), "bad_request");
    assert_eq!(post(json, r#"{"name":"alice"}"#).code(), "bad_request");
    assert_eq!(post(json, &good.replace("name", "nmae")).code(), "bad_request");
    assert_eq!(post("text/plain", &good).code(), "unsupported_media_type");
    let wrong = post(json, &good.replace("alice", "a b"));
    assert_eq!((wrong.status, wrong.code()), (422, "invalid_field".into()));
    assert_eq!(wrong.json()["field"], "name");
    assert_eq!(wrong.header("content-type"), Some("application/problem+json"));
    let large = post(json, &format!("{{\"name\":\"{}\"}}", "a".repeat(100_000)));
    assert_eq!((large.status, large.code()), (413, "too_large".into()));
    for query in [
        "peers?limit=0",
        "peers?limit=x",
        "peers?cursor=***",
        "peers?cursor=",
        "peers?nonsense=1",
        "watch?from=-1",
        "watch?from=x",
    ] {
        let path = format!("/api/v1/{query}");
        let refused = control.ask("GET", &path, &[("authorization", &auth)], "");
        assert_eq!(refused.code(), "bad_request", "{query}");
        assert!(!refused.body.contains("deserialize"), "{}", refused.body);
    }
    let twice = post(json, &good.replacen('{', r#"{"name":"bob","#, 1));
    assert_eq!(twice.code(), "bad_request");
    assert!(twice.body.contains(r#"the key \"name\" is there twice"#), "{}", twice.body);
    let list = post(json, "[]").json()["detail"].clone();
    assert_eq!(list, "send an object of fields, {...}");
    let long = post(json, &good.replace("alice", &"a".repeat(64))).json()["detail"].clone();
    assert_eq!(long, "name: \"aaaaaaaaaaaaaaaa\"… has 64 bytes; take at most 63");
    let link = with(&control, &token, "POST", "/api/v1/links", &json!({"peers": ["a", "b"]}));
    assert_eq!(link.code(), "missing_reference");
    let listed = with(&control, &token, "GET", "/api/v1/peers", &Value::Null).json();
    assert_eq!(listed["items"], json!([]));
}

#[test]
fn a_record_lives_from_create_to_remove() {
    let control = Control::start();
    let token = control.token("ci", "operate");
    let ask = |method: &str, path: &str, body: Value| with(&control, &token, method, path, &body);
    let made = ask("POST", "/api/v1/peers", json!({"name": "alice", "public_key": KEY}));
    assert_eq!(made.status, 201);
    let row = made.json();
    let path = made.header("location").expect("it is somewhere").to_owned();
    let etag = made.header("etag").expect("it has a revision").to_owned();
    assert_eq!(etag, format!("\"{}\"", row["revision"]));
    assert_eq!(ask("GET", &path, Value::Null).json(), row);
    assert_eq!(ask("GET", "/api/v1/peers/alice", Value::Null).json(), row);
    let taken = ask("POST", "/api/v1/peers", json!({"name": "alice", "public_key": KEY}));
    assert_eq!((taken.status, taken.code()), (409, "taken".into()));
    // What was read can be put back as it is.
    let mut next = row;
    next["public_key"] = json!(harness::key(2));
    let headers = [
        ("authorization", &*bearer(&token)),
        ("content-type", "application/json"),
        ("if-match", &*etag),
    ];
    let put = control.ask("PUT", &path, &headers, &next.to_string());
    assert_eq!((put.status, &put.json()["public_key"]), (200, &next["public_key"]));
    let stale = control.ask("PUT", &path, &headers, &next.to_string());
    assert_eq!((stale.status, stale.code()), (412, "stale".into()));
    assert_eq!(control.ask("DELETE", &path, &headers, "").status, 412);
    assert_eq!(ask("DELETE", &path, Value::Null).status, 204);
    assert_eq!(ask("GET", &path, Value::Null).code(), "not_found");
    assert_eq!(ask("DELETE", &path, Value::Null).code(), "not_found");
}

#[test]
fn a_repeated_create_is_done_once() {
    let control = Control::start();
    let token = control.token("ci", "admin");
    let post = |path: &str, key: &str, body: Value| {
        let headers = [
            ("authorization", &*bearer(&token)),
            ("content-type", "application/json"),
            ("idempotency-key", key),
        ];
        control.ask("POST", path, &headers, &body.to_string())
    };
    let peer = json!({"name": "alice", "public_key": KEY});
    let first = post("/api/v1/peers", "k", peer.clone());
    let second = post("/api/v1/peers", "k", peer.clone());
    assert_eq!((first.status, second.status), (201, 201));
    assert_eq!(first.json(), second.json());
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    let other = post("/api/v1/peers", "k", json!({"name": "bob", "public_key": KEY}));
    assert_eq!((other.status, other.code()), (422, "idempotency_reused".into()));
    assert_eq!(post("/api/v1/peers", "l", peer).code(), "taken");
    let token = json!({"name": "new", "scopes": ["read"]});
    assert_eq!(post("/api/v1/tokens", "k", token.clone()).status, 201);
    let again = post("/api/v1/tokens", "k", token);
    assert_eq!((again.status, again.code()), (409, "replayed".into()));
    assert!(!again.body.contains("perigee_"), "the text is not shown again");
}

#[test]
fn of_concurrent_creates_of_one_name_exactly_one_wins() {
    let control = Control::start();
    let token = control.token("ci", "register");
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..24)
            .map(|_| {
                let body = json!({"name": "sydney", "public_key": KEY});
                let (control, token) = (&control, &token);
                scope
                    .spawn(move || with(control, token, "POST", "/api/v1/satellites", &body).status)
            })
            .collect();
        tries.into_iter().map(|one| one.join().expect("no try panics")).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| [201, 409].contains(status)), "{statuses:?}");
}

#[test]
fn a_list_comes_in_pages_by_cursor() {
    let control = Control::start();
    let token = control.token("ci", "operate");
    for at in 0..7u8 {
        let key = harness::key(at + 1);
        let body = json!({"name": format!("peer{at}"), "public_key": key});
        assert_eq!(with(&control, &token, "POST", "/api/v1/peers", &body).status, 201);
    }
    let (mut names, mut path) = (Vec::new(), "/api/v1/peers?limit=3".to_owned());
    loop {
        let page = with(&control, &token, "GET", &path, &Value::Null).json();
        let items = page["items"].as_array().expect("a list");
        names.extend(items.iter().map(|row| row["name"].as_str().expect("a name").to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/api/v1/peers?limit=3&cursor={cursor}");
    }
    assert_eq!(names, (0..7).map(|at| format!("peer{at}")).collect::<Vec<_>>());
}

#[test]
fn a_watcher_sees_changes_and_resumes() {
    let control = Control::start();
    let token = control.token("ci", "operate");
    let make = |name: &str, key: u8| {
        let body = json!({"name": name, "public_key": harness::key(key)});
        with(&control, &token, "POST", "/api/v1/peers", &body)
    };
    make("alice", 1);
    let mut stream = control.watch("/api/v1/watch?from=0", &bearer(&token));
    let first = stream.event();
    assert_eq!((first.name.as_str(), &first.data["name"]), ("change", &json!("alice")));
    assert_eq!(first.data["kind"], "peer", "tokens are told to admins alone");
    assert_eq!(stream.event().name, "upto");
    make("bob", 2);
    let second = stream.event();
    assert_eq!(
        (&second.data["name"], &second.data["body"]["name"]),
        (&json!("bob"), &json!("bob"))
    );
    with(&control, &token, "DELETE", "/api/v1/peers/alice", &Value::Null);
    assert_eq!(stream.event().name, "upto");
    let gone = stream.event();
    assert_eq!((&gone.data["name"], gone.data.get("body")), (&json!("alice"), None));
    let mut resumed = control.watch(&format!("/api/v1/watch?from={}", second.id), &bearer(&token));
    assert_eq!(resumed.event().data, gone.data);
    // A removed token sees nothing more.
    assert_eq!(control.cli(&["tokens", "rm", "ci", "--yes"]).code, 0);
    assert_eq!(stream.event().name, "upto");
    assert!(stream.ended());
}

#[test]
fn a_watcher_that_saw_what_a_backup_has_undone_begins_anew() {
    let mut control = Control::start();
    let token = control.token("ci", "admin");
    let make = |control: &Control, number: u8| {
        let body = json!({"name": format!("peer{number}"), "public_key": harness::key(number)});
        let made = with(control, &token, "POST", "/api/v1/peers", &body);
        assert_eq!(made.status, 201, "{}", made.body);
        made.json()["revision"].as_u64().expect("a revision")
    };
    let kept = (1..=2).map(|number| make(&control, number)).last().expect("two are made");
    let copy = control.scratch.path("copy.db");
    let (state, to) = (control.state.display().to_string(), copy.display().to_string());
    control.cli(&["backup", &to, "--state-dir", &state]).expect_success();
    let mut stream = control.watch("/api/v1/watch", &bearer(&token));
    let mut id_of = |revision: u64| loop {
        let id = stream.event().id;
        if id.starts_with(&format!("{revision}-")) {
            return id;
        }
    };
    let kept = id_of(kept);
    let undone = (3..=5).map(|number| make(&control, number)).last().expect("three are made");
    let seen = id_of(undone);
    let first = control.watch_after(&kept, &bearer(&token)).event();
    assert_eq!(first.data["name"], "peer3", "nothing was undone yet");
    control.kill();
    for name in ["control.db-wal", "control.db-shm"] {
        // Whether they are there is SQLite's business.
        let _ = std::fs::remove_file(control.state.join(name));
    }
    std::fs::rename(copy, control.state.join("control.db")).expect("one file system");
    let control = control.start_again();
    for number in 11..=15 {
        make(&control, number);
    }
    let first = control.watch_after(&kept, &bearer(&token)).event();
    assert_eq!(first.data["name"], "peer11", "what was not undone is gone on from");
    let mut resumed = control.watch_after(&seen, &bearer(&token));
    assert_eq!(resumed.event().name, "reset");
    let told = std::iter::from_fn(|| Some(resumed.event()).filter(|event| event.name == "change"));
    let names: Vec<_> = told.map(|event| event.data["name"].clone()).collect();
    assert_eq!(names.len(), 8, "{names:?}");
    assert!(!names.contains(&json!("peer5")), "{names:?}");
    let mut by_query = control.watch(&format!("/api/v1/watch?from={seen}"), &bearer(&token));
    assert_eq!(by_query.event().name, "reset");
    let mut bare = control.watch_after(&undone.to_string(), &bearer(&token));
    assert_eq!(bare.event().data["name"], "peer14", "a number alone says nothing of the past");
}

#[test]
fn watchers_who_do_not_read_hold_a_page_each_and_not_the_store() {
    const WATCHERS: usize = 40;
    const NODES: usize = 3_000;
    let control = Control::start();
    let token = control.token("ci", "operate");
    let node = |number: usize| {
        json!({"Name": format!("n{number}"), "RegionID": 900, "HostName": "h.example.com",
               "Filling": "x".repeat(1_000)})
    };
    let nodes: Vec<_> = (0..NODES).map(node).collect();
    let region = json!({"RegionID": 900, "RegionCode": "fra", "RegionName": "f", "Nodes": nodes});
    let map = json!({"Regions": {"900": region}});
    let published = with(&control, &token, "PUT", "/api/v1/derpmap", &map);
    assert_eq!(published.status, 200, "{}", published.body);
    let before = control.resident_kib();
    let mut watchers: Vec<_> = (0..WATCHERS)
        .map(|_| {
            // A unix socket takes little off control's hands.
            let mut stream = UnixStream::connect(&control.socket).expect("it listens");
            let head = b"GET /api/v1/watch HTTP/1.1\r\nHost: control\r\n\r\n";
            stream.write_all(head).expect("it reads");
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while !line.starts_with("event: change") {
                line.clear();
                stream.read_line(&mut line).expect("the stream goes on");
            }
            stream
        })
        .collect();
    let more = control.resident_kib().saturating_sub(before);
    assert!(more < 64 * 1024, "{more} KiB");
    // Whoever reads on is told all of it, and only then that it is all.
    let mut changes = 1;
    let lines = watchers.remove(0).lines().map(|line| line.expect("the stream goes on"));
    let names = lines.filter_map(|line| Some(line.strip_prefix("event: ")?.to_owned()));
    for name in names {
        match name.as_str() {
            "change" => changes += 1,
            "upto" => break,
            other => panic!("{other}"),
        }
    }
    assert_eq!(changes, NODES + 2, "the nodes, their region and a token");
}

#[test]
fn faults_of_the_operator_are_one_line_with_their_code() {
    let control = Control::start();
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path(name).display().to_string();
    let base = ["serve", "--listen", "127.0.0.1:0"];
    let serve = |more: &[&str]| run(command().args(base).args(more));
    let state = control.state.display().to_string();
    let second = serve(&["--state-dir", &state, "--socket", &path("s1")]);
    assert_eq!(second.code, 75, "{}", second.errors);
    assert!(second.errors.contains("another control has this database"), "{}", second.errors);
    let socket = control.socket.display().to_string();
    let taken = serve(&["--state-dir", &path("two"), "--socket", &socket]);
    assert_eq!(taken.code, 75, "{}", taken.errors);
    let port = control.address.to_string();
    let args = ["serve", "--listen", &port, "--state-dir", &path("two"), "--socket", &path("s2")];
    let taken = run(command().args(args));
    assert_eq!(taken.code, 75, "{}", taken.errors);
    assert!(taken.errors.contains(&port), "{}", taken.errors);
    std::fs::create_dir(path("bad")).expect("a new folder");
    std::fs::write(path("bad/control.db"), "x".repeat(9000)).expect("a new file");
    let bad = serve(&["--state-dir", &path("bad"), "--socket", &path("s3")]);
    assert_eq!(bad.code, 78, "{}", bad.errors);
    assert!(bad.errors.contains("is corrupt"), "{}", bad.errors);
    std::fs::write(path("map.json"), r#"{"Regions": {"1": {}}}"#).expect("a new file");
    let bad =
        ["--state-dir", &path("x"), "--socket", &path("s4"), "--derp-map-file", &path("map.json")];
    let bad = serve(&bad);
    assert_eq!(bad.code, 78, "{}", bad.errors);
    assert!(bad.errors.contains("map.json: region 1: "), "{}", bad.errors);
    // A folder is made for the socket, but no more than one.
    let deep = path("no/such/folder/s");
    let state = ["--state-dir", &path("three")];
    let nowhere = serve(&[&state[..], &["--socket", &deep]].concat());
    assert_eq!(nowhere.code, 78, "{}", nowhere.errors);
    assert!(nowhere.errors.contains("make this folder"), "{}", nowhere.errors);
    let file = serve(&[&state[..], &["--socket", &path("map.json")]].concat());
    assert_eq!(file.code, 78, "{}", file.errors);
    assert!(file.errors.contains("something is there that is no socket"), "{}", file.errors);
    let long = serve(&[&state[..], &["--socket", &path(&"s".repeat(120))]].concat());
    assert_eq!(long.code, 78, "{}", long.errors);
    assert!(long.errors.contains("the path is longer than"), "{}", long.errors);
    let ask = run(command().args(["peers", "ls", "--socket", &path(&"s".repeat(120))]));
    assert_eq!((ask.code, ask.errors.contains("the path is longer than")), (78, true));
    let wrong = run(command().args(["serve", "--listen", "nowhere"]));
    assert_eq!(wrong.code, 2, "{}", wrong.errors);
    let wrong = run(command().args(["peers", "ls"]).env("PERIGEE_CONTROL_LISTN", "x"));
    assert_eq!(wrong.code, 69, "only serve reads the settings: {}", wrong.errors);
    for fault in [second, taken, bad, wrong, nowhere, file, long, ask] {
        assert_eq!(fault.errors.trim_end().lines().count(), 1, "{}", fault.errors);
    }
}

#[test]
fn a_control_that_is_stuck_is_waited_for_a_little() {
    let control = Control::start();
    control.signal(Signal::STOP);
    let began = Instant::now();
    let stuck = control.cli(&["peers", "ls"]);
    control.signal(Signal::CONT);
    assert_eq!(stuck.code, 75, "{}", stuck.errors);
    assert!(stuck.errors.contains("control does not answer"), "{}", stuck.errors);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    control.cli(&["peers", "ls"]).expect_success();
}

#[test]
fn the_state_outlives_a_kill() {
    let mut control = Control::start();
    control.cli(&["peers", "create", "alice", KEY]).expect_success();
    control.kill();
    // The socket of the killed one is still there and taken over.
    let control = control.start_again();
    assert!(control.cli(&["peers", "ls"]).out.contains("alice"));
}

#[test]
fn a_satellite_is_registered_listed_and_removed() {
    let control = Control::start();
    let satellite = Satellite::start(KEY, None);
    let url = satellite.url;
    let made = control.cli_with(&["satellites", "create", "sydney", &url], "yes\n");
    assert_eq!(made.code, 0, "{}", made.errors);
    for word in ["sydney", KEY, "SHA256:", "[y/N]"] {
        assert!(made.errors.contains(word), "{word} is shown: {}", made.errors);
    }
    assert_eq!(made.out, "created satellite sydney\n");
    let listed = control.cli(&["satellites", "ls"]);
    assert!(listed.out.contains("sydney") && listed.out.contains(&url), "{}", listed.out);
    let again = control.cli(&["satellites", "create", "sydney", &url, "--yes"]);
    assert_eq!(again.code, 3, "{}", again.errors);
    assert_eq!(again.errors, "control: satellite \"sydney\" exists already\n", "before asking");
    let wrong = control.cli(&["satellites", "create", "\u{1b}[31m", "http://127.0.0.1:1"]);
    assert_eq!(wrong.code, 2, "{}", wrong.errors);
    assert!(wrong.errors.contains("is no name") && !wrong.errors.contains('\u{1b}'));
    let refused = control.cli_with(&["satellites", "rm", "sydney"], "n\n");
    assert_eq!(refused.code, 1, "{}", refused.errors);
    let unasked = control.cli(&["satellites", "rm", "sydney"]);
    assert_eq!(unasked.code, 2, "{}", unasked.errors);
    control.cli(&["satellites", "rm", "sydney", "--yes"]).expect_success();
    assert_eq!(control.cli(&["satellites", "rm", "sydney", "--yes"]).code, 4);
    let log = control.cli(&["audit"]).out;
    assert!(log.contains("remove") && log.contains("satellite sydney"), "{log}");
    assert!(log.contains(" uid:"), "the kernel says who asked: {log}");
}

#[test]
fn a_satellite_that_lies_or_is_silent_is_not_registered() {
    let control = Control::start();
    let create = |url: &str| control.cli(&["satellites", "create", "x", url, "--yes"]);
    let liar = Satellite::start(KEY, Some("SHA256:somethingelse"));
    let answer = create(&liar.url);
    assert_eq!(answer.code, 1);
    assert!(answer.errors.contains("but its key has SHA256:"), "{}", answer.errors);
    assert_eq!(create(&Satellite::start("", Some("x")).url).code, 1);
    assert_eq!(create(&Satellite::start("nonsense", Some("x")).url).code, 1);
    assert_eq!(create("http://127.0.0.1:1").code, 1);
    assert_eq!(create("nonsense").code, 2);
    let none = create(&format!("http://{}", control.address));
    assert!(none.errors.contains("is a satellite there?"), "{}", none.errors);
    assert_eq!(control.cli(&["satellites", "ls"]).out.lines().count(), 1);
}

#[test]
fn a_satellites_certificate_is_verified() {
    let control = Control::start();
    let satellite = TlsSatellite::start();
    let create = ["satellites", "create", "sydney", &satellite.url, "--yes"];
    let stranger = control.cli(&create);
    assert_eq!(stranger.code, 1, "{}", stranger.errors);
    assert!(stranger.errors.contains("no authority that is trusted here"), "{}", stranger.errors);
    assert!(stranger.errors.contains("--ca"), "{}", stranger.errors);
    let authority = harness::write(&control.scratch, "ca.pem", &satellite.authority);
    control.cli(&[&create[..], &["--ca", &authority]].concat()).expect_success();
    let wrong = harness::write(&control.scratch, "no.pem", "nothing");
    let other = ["satellites", "create", "perth", &satellite.url, "--yes", "--ca", &wrong];
    let none = control.cli(&other);
    assert_eq!(none.code, 78, "{}", none.errors);
}

#[test]
fn the_v1_command_lines_requests_are_answered() {
    let control = Control::start();
    let token = control.token("v1", "register");
    let cookie = format!("session_token={token}");
    let as_cookie = [("cookie", &*cookie)];
    let as_header = [("session-token", &*token)];
    for path in ["/api/v0/users/me", "/api/users/me", "/api/private/users/me"] {
        let me = control.ask("GET", path, &as_cookie, "");
        assert_eq!((me.status, &me.json()["username"]), (200, &json!("v1")));
        assert!(me.header("coder-version").is_some());
    }
    let path = "/api/private/satellites";
    let body = json!({"name": "sydney", "public_key": KEY}).to_string();
    let made = control.ask("POST", path, &as_header, &body);
    assert_eq!(made.status, 201, "{}", made.body);
    let taken = control.ask("POST", path, &as_header, &body);
    assert!(taken.status >= 300);
    assert!(taken.json()["error"]["msg"].as_str().expect("a text").contains("sydney"));
    let listed = control.ask("GET", path, &as_cookie, "").json();
    assert_eq!(listed["data"], made.json()["data"]);
    let id = listed["data"][0]["id"].as_str().expect("an id");
    assert!(listed["data"][0]["fingerprint"].as_str().expect("a text").starts_with("SHA256:"));
    assert_eq!(control.ask("DELETE", &format!("{path}/{id}"), &as_cookie, "").status, 204);
    assert_eq!(control.ask("GET", path, &as_cookie, "").json(), json!({"data": []}));
    let wrong = control.ask("GET", path, &[("cookie", "session_token=x")], "");
    assert_eq!(wrong.status, 401);
    assert!(wrong.json()["error"]["msg"].is_string());
    let msg = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let answer = control.ask(method, path, headers, "");
        let msg = answer.json()["error"]["msg"].as_str().expect("v1's form").to_owned();
        (answer.status, msg)
    };
    let (status, why) = msg("GET", path, &[]);
    assert_eq!((status, why.contains("CODER_TOKEN")), (401, true), "{why}");
    assert_eq!(msg("PATCH", path, &as_cookie).0, 405);
    assert_eq!(msg("GET", "/api/private/nothing", &as_cookie).0, 404);
    assert_eq!(
        control.ask("GET", "/api/v1/satellites", &as_cookie, "").status,
        401,
        "a cookie counts nowhere else"
    );
}

#[test]
fn every_kind_has_its_commands() {
    let control = Control::start();
    let ok = |args: &[&str]| control.cli(args).expect_success();
    ok(&["regions", "create", "fra", "900", "--title", "Frankfurt"]);
    ok(&["nodes", "create", "900a", "fra", "a.example.com", "--stun-port", "-1"]);
    ok(&["peers", "create", "alice", KEY]);
    ok(&["peers", "create", "bob", &harness::key(9)]);
    ok(&["links", "create", "bob", "alice"]);
    for (kind, word) in [("regions", "Frankfurt"), ("nodes", "a.example.com"), ("links", "alice")] {
        assert!(ok(&[kind, "ls"]).out.contains(word), "{kind}");
    }
    let json = ok(&["nodes", "ls", "--output", "json"]).json();
    assert_eq!(json["items"][0]["stun_port"], -1);
    let needed = control.cli(&["regions", "rm", "fra", "--yes"]);
    assert_eq!(needed.code, 3);
    assert!(needed.errors.contains("needed by node 900a"), "{}", needed.errors);
    for name in ["alice/bob", "bob/alice"] {
        ok(&["links", "rm", name, "--yes"]);
        ok(&["links", "create", "bob", "alice"]);
    }
    let token = control.token("ci", "operate");
    let pair = json!({"peers": ["bob", "alice"]});
    let ask = |method| with(&control, &token, method, "/api/v1/links/bob%2Falice", &pair).status;
    assert_eq!(["GET", "PUT", "DELETE", "DELETE"].map(ask), [200, 200, 204, 404]);
    ok(&["peers", "rm", "bob", "--yes"]);
    let backup = control.scratch.path("copy.db").display().to_string();
    let state = control.state.display().to_string();
    ok(&["backup", &backup, "--state-dir", &state]);
    let copy = |file: &str, state: &str| {
        let refused = control.cli(&["backup", file, "--state-dir", state]);
        assert_eq!(refused.code, 78, "{}", refused.errors);
        refused.errors
    };
    let again = copy(&backup, &state);
    assert_eq!(again, format!("control: {backup}: file exists; choose a new file\n"));
    let nowhere = copy(&backup, "/nonexistent");
    assert!(nowhere.contains("--state-dir") && nowhere.contains("pg_dump"), "{nowhere}");
    for (args, why) in [
        (&["tokens", "create", "x", "--scope", "read", "--expires", "0s"][..], "such as 90d"),
        (&["tokens", "create", "x", "--scope", "read", "--expires", "-5d"], "such as 90d"),
        (&["ping", "x", "-c", "-1"], "-1 is not in 1..=10000"),
        (&["nodes", "create", "a", "b", "c", "--derp-port", "-1"], "-1 is not in 0..=65535"),
        (&["regions", "create", "neg", "-5"], "-5 is not in"),
        (&["policy", "set", "--keepalive-ms", "-5"], "write a number, or none"),
        (&["audit", "--limit", "-5"], "'-5'"),
    ] {
        let wrong = control.cli(args);
        assert_eq!(wrong.code, 2, "{}", wrong.errors);
        assert!(
            wrong.errors.contains(why) && !wrong.errors.contains("unexpected"),
            "{}",
            wrong.errors
        );
    }
    for word in [".", ".."] {
        let none = control.cli(&["nodes", "rm", word, "--yes"]);
        assert_eq!((none.code, none.errors.contains("is nothing of the name")), (4, true));
    }
    let wrong = control.cli(&["peers", "create", "a", "nonsense"]);
    assert_eq!(wrong.code, 3, "{}", wrong.errors);
    let nobody = run(command().args(["peers", "ls", "--socket", "/nonexistent/control.sock"]));
    assert_eq!(nobody.code, 69);
    assert!(nobody.errors.contains("start control serve"), "{}", nobody.errors);
}

#[test]
fn slow_requests_and_idle_watchers_do_not_hold_up_the_stop() {
    let control = Control::start();
    let token = control.token("ci", "read");
    let mut stream = control.watch("/api/v1/watch", &bearer(&token));
    assert_eq!(stream.event().name, "upto");
    let _half = control.half_a_request();
    let began = Instant::now();
    assert_eq!(control.stop().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    assert!(stream.ended());
}

#[test]
fn idle_strangers_keep_nobody_out_and_displace_nobody_known() {
    // More than may be strangers at a time.
    const MANY: usize = 1100;
    // They are this process's, too.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("it may be lifted");
    // The limit that most hosts begin with, and that control must lift.
    let mut limited = Command::new("sh");
    let lowered = "ulimit -Sn 1024 && exec \"$0\" \"$@\"";
    limited.args(["-c", lowered]).arg(command().get_program());
    let control = Control::start_as(limited, Scratch::new(), Vec::new());
    let token = control.token("ci", "read");
    let operate = bearer(&control.token("cd", "operate"));
    let mut known = control.watch("/api/v1/watch", &bearer(&token));
    assert_eq!(known.event().name, "upto");
    let body = json!({"name": "lon", "region_id": 901}).to_string();
    let upload = control.half_a_body("POST", "/api/v1/regions", &operate, &body);
    let idle: Vec<_> = (0..MANY).map(|_| control.half_a_request()).collect();
    assert_eq!(control.get("/livez").status, 200);
    let mut first = &idle[0];
    first.set_read_timeout(Some(harness::PATIENCE)).expect("a time-out is taken");
    assert_eq!(first.read(&mut [0]).unwrap_or(0), 0, "the oldest had to go");
    assert_eq!(upload.go_on().status, 201, "who is known stays, before all of the body is there");
    assert_eq!(known.event().data["name"], "lon");
    let metrics = control.ask("GET", "/metrics", &[("authorization", &bearer(&token))], "");
    let displaced = metrics.body.lines().find_map(|line| {
        line.strip_prefix("control_connections_displaced_total ")?.parse::<usize>().ok()
    });
    assert!(displaced.is_some_and(|count| count >= MANY - 1024), "{displaced:?}");
}
