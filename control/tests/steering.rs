//! Steering, by dataplanes that follow a script against the real `control`.
#![forbid(unsafe_code)]

mod harness;

use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use harness::dataplane::Dataplane;
use harness::{Control, bearer, write};
use serde_json::{Value, json};
use steer::{Admission, Order, Revision, Said, Snapshot};

const NODE: &str = "fra-1";
const OTHER: &str = "fra-2";

/// A control that knows two nodes, and a token for it.
fn start() -> (Control, String) {
    start_with(&[])
}

fn start_with(more: &[&str]) -> (Control, String) {
    let control = Control::start_with(more);
    let token = control.token("ci", "operate");
    post(&control, &token, "regions", &json!({"name": "fra", "region_id": 900}));
    for node in [NODE, OTHER] {
        let body = json!({"name": node, "region": "fra", "host_name": "a.example.com"});
        post(&control, &token, "nodes", &body);
    }
    (control, token)
}

fn ask(control: &Control, token: &str, method: &str, path: &str, body: &Value) -> harness::Answer {
    let headers = [("authorization", &*bearer(token)), ("content-type", "application/json")];
    control.ask(method, &format!("/api/v1/{path}"), &headers, &body.to_string())
}

/// Makes a record; its revision.
fn post(control: &Control, token: &str, path: &str, body: &Value) -> Revision {
    let answer = ask(control, token, "POST", path, body);
    assert_eq!(answer.status, 201, "{}", answer.body);
    Revision(answer.json()["revision"].as_u64().expect("a revision"))
}

fn node_key(number: usize) -> String {
    format!("nodekey:{number:064x}")
}

/// Registers a client of this number; the revision.
fn register(control: &Control, token: &str, number: usize) -> Revision {
    let body = json!({"name": format!("client-{number}"), "node_key": node_key(number)});
    post(control, token, "clients", &body)
}

fn dataplanes(control: &Control) -> Value {
    control.cli(&["dataplanes", "ls", "--output", "json"]).expect_success().json()
}

/// Waits until the only connected dataplane is as `fits` wants it, and tells how it is.
fn wait_for_one(control: &Control, fits: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + harness::PATIENCE;
    loop {
        let listed = dataplanes(control);
        match listed["items"].as_array().expect("a list").as_slice() {
            [one] if fits(one) => return one.clone(),
            _ => assert!(Instant::now() < until, "{listed}"),
        }
        std::thread::yield_now();
    }
}

/// What a dataplane of `node` that has nothing is told.
fn whole(control: &Control, node: &str) -> Snapshot {
    let mut fresh = Dataplane::connect(control, node);
    assert_eq!(fresh.adopt(), "whole");
    fresh.snapshot
}

#[test]
fn a_dataplane_is_told_everything_and_then_every_change() {
    let (control, token) = start();
    let mut dataplane = Dataplane::connect(&control, NODE);
    assert_eq!(dataplane.adopt(), "whole");
    // Of clients there is always control's own prober.
    assert_eq!((dataplane.snapshot.clients.len(), dataplane.snapshot.drain), (1, false));
    let ok = |args: &[&str]| control.cli(args).expect_success();
    let key = rcgen::KeyPair::generate().expect("random bytes");
    let params = rcgen::CertificateParams::new(vec!["relay.example.com".to_owned()]);
    let chain = params.expect("a name").self_signed(&key).expect("it signs itself").pem();
    let chain_file = write(&control.scratch, "chain.pem", &chain);
    let key_file = write(&control.scratch, "key.pem", &key.serialize_pem());
    for command in [
        &["clients", "create", "laptop", &node_key(1)][..],
        &["peers", "create", "alice", &harness::key(1)],
        &["peers", "create", "bob", &harness::key(2)],
        &["links", "create", "alice", "bob"],
        &["certificates", "create", "edge", "--chain", &chain_file, "--key", &key_file],
        &["policy", "set", "--admission", "registered", "--keepalive-ms", "30000"],
        &["nodes", "drain", NODE],
    ] {
        ok(command);
        assert_eq!(dataplane.adopt(), "delta", "{command:?}");
    }
    let now = dataplane.snapshot.clone();
    assert_eq!((now.admission, now.sessions.keepalive_ms), (Admission::Registered, Some(30_000)));
    assert_eq!((now.clients.len(), now.peers.len(), now.links.len(), now.drain), (2, 2, 1, true));
    assert_eq!(now.certificates["edge"].chain.trim(), chain.trim());
    assert_eq!(now.certificates["edge"].key.expose(), key.serialize_pem());
    assert_eq!(whole(&control, NODE).to_text(), now.to_text());
    for command in [
        &["links", "rm", "alice/bob", "--yes"][..],
        &["peers", "rm", "bob", "--yes"],
        &["clients", "rm", "laptop", "--yes"],
        &["certificates", "rm", "edge", "--yes"],
        &["nodes", "undrain", NODE],
    ] {
        ok(command);
        assert_eq!(dataplane.adopt(), "delta", "{command:?}");
    }
    assert_eq!(ask(&control, &token, "DELETE", "policies/default", &Value::Null).status, 204);
    dataplane.adopt();
    let now = &dataplane.snapshot;
    assert_eq!(
        (now.admission, now.sessions.keepalive_ms, now.drain),
        (Admission::Open, None, false)
    );
    assert_eq!((now.clients.len(), now.peers.len(), now.certificates.len()), (1, 1, 0));
    assert_eq!(whole(&control, NODE).to_text(), now.to_text());
}

#[test]
fn who_is_connected_is_listed_with_how_they_are() {
    let (control, token) = start();
    let mut dataplane = Dataplane::connect(&control, NODE);
    let (_, first) = dataplane.look();
    let behind = wait_for_one(&control, |_| true);
    assert_eq!((&behind["state"], &behind["revision"]), (&json!("behind"), &json!(0)));
    dataplane.say(&Said::Adopted { revision: first.revision });
    dataplane.snapshot = first;
    dataplane.say(&Said::Report { sessions: 12, draining: false, stalled_cores: 1 });
    let current = wait_for_one(&control, |one| one["sessions"] == json!(12));
    assert_eq!(current["state"], "current");
    assert_eq!(current["revision"], json!(dataplane.snapshot.revision));
    assert_eq!(current["version"], "0.0.test");
    assert_eq!((&current["from"], &current["stalled_cores"]), (&json!("unix"), &json!(1)));
    let at = register(&control, &token, 1);
    let table = control.cli(&["dataplanes", "ls"]).expect_success().out;
    let row: Vec<_> = table.lines().nth(1).expect("a row").split_whitespace().collect();
    assert_eq!([row[0], row[6], row[7]], [NODE, "1", "behind"], "{table}");
    dataplane.settle(at);
    let listed = with_metrics(&control, &token);
    assert!(listed.contains("control_steer_dataplanes 1\n"), "{listed}");
    assert!(listed.contains("control_steer_orders_total{kind=\"delta\"} 1\n"), "{listed}");
    assert_eq!(control.get("/readyz").status, 200);
    drop(dataplane);
    let until = Instant::now() + harness::PATIENCE;
    while dataplanes(&control)["items"] != json!([]) {
        assert!(Instant::now() < until, "it is gone");
    }
    assert!(
        with_metrics(&control, &token).contains("control_steer_ended_total{reason=\"gone\"} 1\n")
    );
    assert_eq!(control.get("/readyz").status, 200, "control is ready without any");
}

fn with_metrics(control: &Control, token: &str) -> String {
    control.ask("GET", "/metrics", &[("authorization", &bearer(token))], "").body
}

#[test]
fn what_a_dataplane_refuses_is_told_anew_with_the_next_change() {
    let (control, token) = start();
    let mut dataplane = Dataplane::connect(&control, NODE);
    dataplane.adopt();
    let at = register(&control, &token, 1);
    assert_eq!(dataplane.refuse("a gap"), "delta");
    control.wait_for("an order was refused");
    assert_eq!(dataplane.adopt(), "whole", "a delta that was refused is told whole");
    assert_eq!(dataplane.snapshot.revision, at);
    let at = register(&control, &token, 2);
    assert_eq!((dataplane.refuse("no"), dataplane.refuse("no\u{1b}[2J")), ("delta", "whole"));
    let refused = wait_for_one(&control, |one| one["refusal"] == json!("no[2J"));
    assert_eq!(
        (&refused["state"], refused["revision"].as_u64()),
        (&json!("refused"), Some(at.0 - 1))
    );
    assert_eq!(dataplane.current(), at, "nothing is tried again before the next change");
    let at = register(&control, &token, 3);
    assert_eq!(dataplane.settle(at), ["delta"]);
    let mended = wait_for_one(&control, |one| one["state"] == "current");
    assert_eq!(mended.get("refusal"), None);
    assert_eq!(whole(&control, NODE).to_text(), dataplane.snapshot.to_text());
    // One that has nothing refuses everything.
    let mut stubborn = Dataplane::connect(&control, OTHER);
    assert_eq!(stubborn.refuse("never"), "whole");
    register(&control, &token, 4);
    assert_eq!(stubborn.refuse("never"), "whole");
    let page = with_metrics(&control, &token);
    assert!(page.contains("control_steer_answers_total{result=\"refused\"} 5\n"), "{page}");
}

#[test]
fn a_dataplane_that_comes_back_is_told_what_it_missed() {
    let (control, token) = start();
    let old = whole(&control, NODE);
    let now = register(&control, &token, 1);
    let newest = whole(&control, NODE);
    let mut same = Dataplane::again(&control, NODE, &newest);
    assert_eq!(same.current(), now, "nothing is told twice");
    let mut late = Dataplane::again(&control, NODE, &old);
    assert_eq!(late.settle(now), ["delta"]);
    assert_eq!(late.snapshot.to_text(), newest.to_text());
    let foreign = Snapshot { store: "elsewhere".into(), revision: Revision(900), ..old.clone() };
    let mut foreign = Dataplane::again(&control, NODE, &foreign);
    assert_eq!(foreign.adopt(), "whole");
    assert_eq!(foreign.snapshot.to_text(), newest.to_text());
    // Control's database was put back to an older copy.
    let ahead = Snapshot { revision: Revision(900), ..old };
    let mut ahead = Dataplane::again(&control, NODE, &ahead);
    assert_eq!(ahead.adopt(), "whole");
    assert_ne!(ahead.snapshot.store, newest.store, "else its number would be too low");
    let next = register(&control, &token, 2);
    assert_eq!(ahead.settle(next), ["delta"]);
    let mut healed = Dataplane::again(&control, NODE, &ahead.snapshot);
    assert_eq!(healed.adopt(), "whole");
    assert_eq!(healed.snapshot.to_text(), whole(&control, NODE).to_text());
}

#[test]
fn what_a_backup_has_undone_is_undone_at_dataplanes_however_far_the_store_has_come() {
    let (mut control, token) = start();
    register(&control, &token, 1);
    let copy = control.scratch.path("copy.db");
    let state = control.state.display().to_string();
    let copy_text = copy.display().to_string();
    control.cli(&["backup", &copy_text, "--state-dir", &state]).expect_success();
    register(&control, &token, 2);
    let undone = whole(&control, NODE);
    control.kill();
    for name in ["control.db-wal", "control.db-shm"] {
        // Whether they are there is SQLite's business.
        let _ = std::fs::remove_file(control.state.join(name));
    }
    std::fs::rename(copy, control.state.join("control.db")).expect("one file system");
    let control = control.start_again();
    let same = register(&control, &token, 3);
    assert_eq!(same, undone.revision, "the same number, by another past");
    let mut back = Dataplane::again(&control, NODE, &undone);
    assert_eq!(back.adopt(), "whole");
    control.wait_for("goes by what this store has undone");
    assert!(!back.snapshot.clients.contains_key("client-2"), "{:?}", back.snapshot.clients);
    let further = register(&control, &token, 4);
    assert_eq!(back.settle(further), ["delta"]);
    let mut late = Dataplane::again(&control, OTHER, &undone);
    assert_eq!(late.adopt(), "whole", "a lower number than the store's is no proof");
    let (mut one, other) = (back.snapshot, late.snapshot);
    one.store.clone_from(&other.store);
    assert_eq!(one.to_text(), other.to_text());
}

#[test]
fn a_restart_of_control_tells_nothing_twice_and_nothing_too_little() {
    let (mut control, token) = start();
    let mut dataplane = Dataplane::connect(&control, NODE);
    dataplane.adopt();
    control.kill();
    assert!(dataplane.next().is_none_or(|order| matches!(order, Order::Current { .. })));
    let control = control.start_again();
    let mut same = Dataplane::again(&control, NODE, &dataplane.snapshot);
    assert_eq!(same.current(), dataplane.snapshot.revision);
    let at = register(&control, &token, 1);
    assert_eq!(same.settle(at), ["delta"]);
    let stopped = std::thread::spawn(move || control.stop());
    assert_eq!(same.goodbye(), "control stops");
    assert_eq!(stopped.join().expect("it stops").code(), Some(0));
}

#[test]
fn from_before_the_compaction_everything_is_told() {
    let (mut control, token) = start();
    register(&control, &token, 1);
    let old = whole(&control, NODE);
    control.cli(&["clients", "rm", "client-1", "--yes"]).expect_success();
    control.kill();
    let database = rusqlite::Connection::open(control.state.join("control.db")).expect("a file");
    let aged = "UPDATE record SET updated_at = 0 WHERE body IS NULL";
    assert_eq!(database.execute(aged, []), Ok(1));
    drop(database);
    let control = control.start_again();
    let until = Instant::now() + harness::PATIENCE;
    // Control compacts right after its start; what it has told before, it may tell again.
    for number in 2.. {
        register(&control, &token, number);
        let mut late = Dataplane::again(&control, NODE, &old);
        if late.adopt() == "whole" {
            assert!(!late.snapshot.clients.contains_key("client-1"));
            break;
        }
        assert!(Instant::now() < until, "the tombstone is never gone");
    }
}

#[test]
fn a_drain_is_told_to_its_node_alone() {
    let (control, _) = start();
    let [mut one, mut other] = [NODE, OTHER].map(|node| Dataplane::connect(&control, node));
    assert_eq!([one.adopt(), other.adopt()], ["whole"; 2]);
    control.cli(&["nodes", "drain", NODE]).expect_success();
    assert_eq!([one.adopt(), other.adopt()], ["delta"; 2]);
    assert_eq!((one.snapshot.drain, other.snapshot.drain), (true, false));
    assert!(whole(&control, NODE).drain && !whole(&control, OTHER).drain);
    control.cli(&["nodes", "rm", NODE, "--yes"]).expect_success();
    assert_eq!(one.goodbye(), "the node was removed");
    assert_eq!(other.adopt(), "delta");
}

#[test]
fn who_is_not_known_is_sent_away_and_the_log_says_so_once() {
    let (control, token) = start();
    for _ in 0..3 {
        let why = Dataplane::connect(&control, "nowhere").goodbye();
        assert!(why.contains("there is no node \"nowhere\""), "{why}");
    }
    control.wait_for("WARN a dataplane was refused");
    control.wait_for("DEBUG a dataplane was refused again");
    let mut old = Dataplane::dial(&control);
    let (node, version) = (NODE.to_owned(), "9".to_owned());
    let (store, revision, past) = (None, Revision(0), String::new());
    old.say(&Said::Hello { protocol: 9, node, version, store, revision, past });
    let why = old.goodbye();
    assert!(why.contains("protocol 9"), "{why}");
    let mut rude = Dataplane::dial(&control);
    rude.say(&Said::Adopted { revision: Revision(1) });
    assert_eq!(rude.goodbye(), "the first message must be a hello");
    let page = with_metrics(&control, &token);
    assert!(page.contains("control_steer_ended_total{reason=\"hello\"} 5\n"), "{page}");
}

#[test]
fn junk_ends_its_own_connection_and_nothing_else() {
    let (control, token) = start();
    let mut good = Dataplane::connect(&control, NODE);
    good.adopt();
    let long = vec![b'x'; steer::SAID_BYTES_MAX + 1];
    let deep = format!("{}\n", "[".repeat(8000));
    let junk = [&b"\0\xff\n"[..], b"{\n", b"{}\n", b"\n", b"null\n", deep.as_bytes(), &long];
    let twice = Said::Hello {
        protocol: 1,
        node: NODE.into(),
        version: String::new(),
        store: None,
        revision: Revision(0),
        past: String::new(),
    };
    let twice = twice.to_line();
    let answers = [
        twice.as_str(),
        "{\"adopted\":{\"revision\":1}}\n",
        "{\"refused\":{\"revision\":1,\"why\":\"\"}}\n",
    ];
    for junk in junk.into_iter().chain(answers.iter().map(|line| line.as_bytes())) {
        // As the first thing it says; a hello is none there.
        let mut first = Dataplane::dial(&control);
        first.throw(if junk == twice.as_bytes() { b"?\n" } else { junk });
        while first.next().is_some() {}
        // After a hello.
        let mut later = Dataplane::connect(&control, OTHER);
        later.adopt();
        later.throw(junk);
        while let Some(order) = later.next() {
            assert!(matches!(order, Order::Goodbye { .. } | Order::Current { .. }), "{order:?}");
        }
    }
    // What a later version may say is passed over.
    good.write(b"{\"weather\":{\"rain\":true}}\n");
    good.write(
        b"{\"report\":{\"sessions\":1,\"draining\":false,\"stalled_cores\":0,\"mood\":\"fine\"}}\n",
    );
    let at = register(&control, &token, 1);
    assert_eq!(good.settle(at), ["delta"]);
    assert!(with_metrics(&control, &token).contains("control_steer_unknown_lines_total 1\n"));
    // Halves of lines and silence are waited for, and hold nobody up.
    let _half = {
        let mut half = Dataplane::dial(&control);
        half.write(b"{\"hello\":");
        half
    };
    let at = register(&control, &token, 2);
    assert_eq!(good.settle(at), ["delta"]);
}

#[test]
fn a_thousand_peers_at_once_come_to_the_same_as_a_whole() {
    let (control, token) = start();
    let mut dataplane = Dataplane::connect(&control, NODE);
    dataplane.adopt();
    let last = std::thread::scope(|scope| {
        let makers: Vec<_> = (0..4u16)
            .map(|maker| {
                let (control, token) = (&control, &token);
                scope.spawn(move || {
                    let make = |number: u16| {
                        let mut key = [1; 32];
                        key[..2].copy_from_slice(&number.to_be_bytes());
                        let key = steer::PeerKey(wire::key::Key(key)).to_string();
                        let body = json!({"name": format!("peer-{number}"), "public_key": key});
                        post(control, token, "peers", &body)
                    };
                    (0..250).map(|at| make(maker * 250 + at)).max()
                })
            })
            .collect();
        let made = makers.into_iter().filter_map(|maker| maker.join().expect("no maker panics"));
        made.max().expect("they made some")
    });
    // It has not read meanwhile: all but the first change are one delta.
    assert_eq!(dataplane.settle(last), ["delta"; 2]);
    assert_eq!(dataplane.snapshot.peers.len(), 1000);
    assert_eq!(whole(&control, NODE).to_text(), dataplane.snapshot.to_text());
}

#[test]
fn one_that_never_reads_holds_nobody_up_and_misses_nothing() {
    let (control, token) = start();
    let mut lazy = Dataplane::connect(&control, OTHER);
    lazy.adopt();
    let mut quick = Dataplane::connect(&control, NODE);
    quick.adopt();
    let mut at = Revision(0);
    for number in 0..300 {
        at = register(&control, &token, number + 1);
        assert_eq!(quick.settle(at), ["delta"]);
        lazy.say(&Said::Report { sessions: 1, draining: false, stalled_cores: 0 });
    }
    assert_eq!(lazy.settle(at), ["delta"; 2], "the one under way, and the rest");
    assert_eq!(lazy.snapshot.to_text(), quick.snapshot.to_text());
}

#[test]
fn two_hundred_and_fifty_six_dataplanes_are_told() {
    const MANY: usize = 256;
    let (control, token) = start();
    for number in 0..MANY {
        let body = json!({"name": format!("n{number}"), "region": "fra", "host_name": "a"});
        post(&control, &token, "nodes", &body);
    }
    let before = dataplanes(&control)["revision"].as_u64().expect("a revision");
    let (ready, (told, arrivals)) = (Arc::new(Barrier::new(MANY + 1)), mpsc::channel());
    let threads: Vec<_> = (0..MANY)
        .map(|number| {
            let mut dataplane = Dataplane::connect(&control, &format!("n{number}"));
            let (ready, told) = (Arc::clone(&ready), told.clone());
            std::thread::spawn(move || {
                dataplane.settle(Revision(before));
                ready.wait();
                let kinds = dataplane.settle(Revision(before + 1));
                told.send(Instant::now()).expect("the test waits");
                (kinds, dataplane.snapshot.to_text())
            })
        })
        .collect();
    ready.wait();
    let listed = dataplanes(&control);
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(MANY));
    register(&control, &token, 1);
    let answered = Instant::now();
    let last = (0..MANY).map(|_| arrivals.recv().expect("all are told")).max();
    let took = last.expect("there are some").saturating_duration_since(answered);
    println!("{MANY} dataplanes: the last is told {took:?} after the answer");
    let texts: Vec<_> =
        threads.into_iter().map(|one| one.join().expect("no thread panics")).collect();
    assert!(texts.iter().all(|one| *one == texts[0] && one.0 == ["delta"]));
}

/// What an operator was promised of a change: at a dataplane within 50 ms of its answer, at the 99th
/// percentile.
#[test]
fn a_change_is_at_a_dataplane_as_soon_as_it_is_answered() {
    const CHANGES: usize = 1000;
    const PROMISED: Duration = Duration::from_millis(50);
    let (control, token) = start();
    register(&control, &token, 0x1000);
    let mut dataplane = Dataplane::connect(&control, NODE);
    dataplane.adopt();
    let (told, arrivals) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for _ in 0..CHANGES {
            dataplane.adopt();
            let seen = (dataplane.snapshot.revision, Instant::now());
            told.send(seen).expect("the test waits");
        }
    });
    let (mut after, mut whole_way) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let body = json!({"name": "client-4096", "node_key": node_key(number + 1)});
        let asked = Instant::now();
        let answer = ask(&control, &token, "PUT", "clients/client-4096", &body);
        let answered = Instant::now();
        assert_eq!(answer.status, 200, "{}", answer.body);
        let (revision, arrived) = arrivals.recv().expect("it arrives");
        assert_eq!(Some(revision.0), answer.json()["revision"].as_u64());
        after.push(arrived.saturating_duration_since(answered));
        whole_way.push(arrived - asked);
    }
    reader.join().expect("the reader does not panic");
    for (name, times) in [("answer to arrival", &mut after), ("request to arrival", &mut whole_way)]
    {
        times.sort();
        let [half, most, worst] =
            [CHANGES / 2, CHANGES * 99 / 100, CHANGES - 1].map(|at| times[at]);
        println!("{name}: p50 {half:?}, p99 {most:?}, worst {worst:?} of {CHANGES}");
    }
    let p99 = after[CHANGES * 99 / 100];
    assert!(p99 < PROMISED, "{p99:?}");
}
