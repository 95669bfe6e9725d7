//! What relays are steered by, as the operator sets it: clients, policy, certificates, drain; and
//! the admissions that relays ask for.
#![forbid(unsafe_code)]

mod harness;

use harness::{Control, KEY, bearer, write};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

const NODE_KEY: &str = "nodekey:0101010101010101010101010101010101010101010101010101010101010101";

/// A chain and its key, as PEM.
fn pair(name: &str) -> (String, String) {
    pair_until(name, 4000)
}

fn pair_until(name: &str, year: i32) -> (String, String) {
    let key = KeyPair::generate().expect("the system has random bytes");
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    (params.self_signed(&key).expect("it signs itself").pem(), key.serialize_pem())
}

/// A request with a token of this scope and a JSON body.
fn ask(control: &Control, token: &str, method: &str, path: &str, body: &Value) -> harness::Answer {
    let headers = [("authorization", &*bearer(token)), ("content-type", "application/json")];
    control.ask(method, path, &headers, &body.to_string())
}

#[test]
fn clients_are_registered_listed_and_removed() {
    let control = Control::start();
    let ok = |args: &[&str]| control.cli(args).expect_success();
    let shouting = NODE_KEY.replace("01", "AB");
    ok(&["clients", "create", "laptop", &shouting]);
    assert!(ok(&["clients", "ls"]).out.contains(&shouting.to_lowercase()));
    let taken = control.cli(&["clients", "create", "phone", &shouting.to_lowercase()]);
    assert_eq!(taken.code, 3, "{}", taken.errors);
    for wrong in ["nodekey:", "nodekey:00", KEY, &NODE_KEY.replace('1', "0"), &NODE_KEY[8..]] {
        let refused = control.cli(&["clients", "create", "phone", wrong]);
        assert_eq!(refused.code, 3, "{}", refused.errors);
        assert!(refused.errors.contains("node_key: is no node key"), "{}", refused.errors);
    }
    ok(&["clients", "rm", "laptop", "--yes"]);
    assert_eq!(ok(&["clients", "ls"]).out, "NAME  NODE KEY\n");
}

#[test]
fn there_is_one_policy_of_which_only_what_is_named_changes() {
    let control = Control::start();
    let ok = |args: &[&str]| control.cli(args).expect_success();
    let shown = || ok(&["policy", "show", "--output", "json"]).json();
    assert_eq!(shown(), json!({"name": "default", "admission": "open", "sessions": {}}));
    ok(&["policy", "set", "--admission", "registered", "--keepalive-ms", "30000"]);
    ok(&["policy", "set", "--queue-packets-max", "64"]);
    let both = json!({"queue_packets_max": 64, "keepalive_ms": 30000});
    assert_eq!(shown(), json!({"name": "default", "admission": "registered", "sessions": both}));
    let set = ok(&["policy", "set", "--keepalive-ms", "none", "--admission", "open"]).out;
    assert!(set.contains("keepalive_ms         none"), "{set}");
    for (flag, value) in [
        ("--queue-bytes-max", "1000"),
        ("--queue-packets-max", "0"),
        ("--queued-bytes-max", "1"),
        ("--keepalive-ms", "0"),
        ("--keepalive-ms", "120000"),
    ] {
        let refused = control.cli(&["policy", "set", flag, value]);
        assert_eq!(refused.code, 3, "{flag} {value}: {}", refused.errors);
        let field = flag.trim_start_matches('-').replace('-', "_");
        assert!(refused.errors.contains(&field), "{}", refused.errors);
    }
    for wrong in [&["policy", "set"][..], &["policy", "set", "--keepalive-ms", "soon"]] {
        assert_eq!(control.cli(wrong).code, 2);
    }
    let token = control.token("ci", "operate");
    let other = ask(&control, &token, "POST", "/api/v1/policies", &json!({"name": "other"}));
    assert_eq!((other.status, other.code()), (422, "invalid_field".into()));
    assert_eq!(shown()["sessions"], json!({"queue_packets_max": 64}));
}

#[test]
fn a_certificate_is_listed_with_its_names_and_its_end() {
    let control = Control::start();
    let put = |name: &str, (chain, key): (String, String)| {
        [
            write(&control.scratch, &format!("{name}.pem"), &chain),
            write(&control.scratch, &format!("{name}.key"), &key),
        ]
    };
    let [chain, key] = put("edge", pair("relay.example.com"));
    let command = ["certificates", "create", "edge", "--chain", &chain, "--key", &key];
    let made = control.cli(&command).expect_success();
    assert_eq!((made.out.as_str(), made.errors.as_str()), ("created certificate edge\n", ""));
    let [_, other] = put("other", pair("relay.example.com"));
    let wrong = ["certificates", "replace", "edge", "--chain", &chain, "--key", &other];
    let wrong = control.cli(&wrong);
    assert_eq!(wrong.code, 3);
    assert!(wrong.errors.contains("key: is not the key of the chain"), "{}", wrong.errors);
    let [old, key] = put("old", pair_until("old.example.com", 2001));
    let replaced = ["certificates", "replace", "edge", "--chain", &old, "--key", &key];
    let replaced = control.cli(&replaced).expect_success();
    assert!(replaced.errors.contains("ended on 2001-01-01"), "{}", replaced.errors);
    let listed = control.cli(&["certificates", "ls"]).expect_success().out;
    assert!(listed.contains("old.example.com  2001-01-01T00:00:00Z (past)"), "{listed}");
    control.cli(&["certificates", "rm", "edge", "--yes"]).expect_success();
    let missing = ["certificates", "create", "edge", "--chain", "/nowhere", "--key", &key];
    assert_eq!(control.cli(&missing).code, 78);
}

#[test]
fn a_certificates_key_is_shown_nowhere() {
    let control = Control::start();
    let token = control.token("ci", "admin");
    let (chain, key) = pair("relay.example.com");
    let secret: Vec<_> = key.lines().filter(|line| !line.starts_with('-')).collect();
    let body = json!({"name": "edge", "chain": format!("{chain}{key}"), "key": key});
    let path = "/api/v1/certificates";
    let mut seen = vec![ask(&control, &token, "POST", path, &body).body];
    assert!(seen[0].contains("relay.example.com"), "{}", seen[0]);
    seen.push(ask(&control, &token, "PUT", &format!("{path}/edge"), &body).body);
    for path in [path, &format!("{path}/edge"), "/api/v1/audit", "/metrics"] {
        let answer = ask(&control, &token, "GET", path, &Value::Null);
        assert_eq!(answer.status, 200, "{path}");
        seen.push(answer.body);
    }
    let mut stream = control.watch("/api/v1/watch?from=0", &bearer(&token));
    seen.extend((0..3).map(|_| stream.event().data.to_string()));
    for command in [&["certificates", "ls", "--output", "json"][..], &["audit"]] {
        seen.push(control.cli(command).expect_success().out);
    }
    let wrong = json!({"name": "edge", "chain": "x", "key": key});
    seen.push(ask(&control, &token, "PUT", &format!("{path}/edge"), &wrong).body);
    let typed = json!({"name": "edge", "chain": [key], "key": {"a": key}});
    seen.push(ask(&control, &token, "PUT", &format!("{path}/edge"), &typed).body);
    for text in seen {
        assert!(secret.iter().all(|line| !text.contains(line)), "{text}");
        assert!(!text.contains("PRIVATE"), "{text}");
    }
}

#[test]
fn a_name_that_relays_know_is_for_good() {
    let control = Control::start();
    let token = control.token("ci", "operate");
    let ok = |args: &[&str]| control.cli(args).expect_success();
    ok(&["regions", "create", "fra", "900"]);
    ok(&["nodes", "create", "fra-1", "fra", "a.example.com"]);
    ok(&["clients", "create", "laptop", NODE_KEY]);
    for (at, name) in [(1, "alice"), (2, "bob"), (3, "carol")] {
        ok(&["peers", "create", name, &harness::key(at)]);
    }
    ok(&["links", "create", "alice", "bob"]);
    let (chain, key) = pair("relay.example.com");
    let body = json!({"name": "edge", "chain": chain, "key": key});
    assert_eq!(ask(&control, &token, "POST", "/api/v1/certificates", &body).status, 201);
    let link = ok(&["links", "ls", "--output", "json"]).json();
    let link = format!("links/{}", link["items"][0]["id"].as_str().expect("an id"));
    for (path, field, body) in [
        ("nodes/fra-1", "name", json!({"name": "x", "region": "fra", "host_name": "a"})),
        ("clients/laptop", "name", json!({"name": "x", "node_key": NODE_KEY})),
        ("peers/carol", "name", json!({"name": "x", "public_key": harness::key(3)})),
        (&link, "peers", json!({"peers": ["alice", "carol"]})),
        ("certificates/edge", "name", json!({"name": "x", "chain": chain, "key": key})),
    ] {
        let refused = ask(&control, &token, "PUT", &format!("/api/v1/{path}"), &body);
        assert_eq!((refused.status, refused.code()), (422, "invalid_field".into()), "{path}");
        assert_eq!(refused.json()["field"], field);
    }
    let other = json!({"name": "x", "region_id": 900});
    assert_eq!(ask(&control, &token, "PUT", "/api/v1/regions/fra", &other).code(), "in_use");
}

#[test]
fn a_node_drains_until_told_otherwise_and_the_map_does_not_say_so() {
    let control = Control::start();
    let ok = |args: &[&str]| control.cli(args).expect_success();
    ok(&["regions", "create", "fra", "900"]);
    ok(&["nodes", "create", "fra-1", "fra", "a.example.com"]);
    let map = control.get("/derpmap/default").body;
    assert_eq!(ok(&["nodes", "drain", "fra-1"]).out, "node fra-1 drains\n");
    assert_eq!(ok(&["nodes", "drain", "fra-1"]).out, "node fra-1 drains already\n");
    assert_eq!(control.get("/derpmap/default").body, map);
    let file = write(&control.scratch, "map.json", &map.replace("a.example.com", "b.example.com"));
    ok(&["derpmap", "publish", &file, "--yes"]);
    let row = ok(&["nodes", "ls", "--output", "json"]).json()["items"][0].clone();
    assert_eq!((&row["host_name"], &row["drain"]), (&json!("b.example.com"), &json!(true)));
    assert_eq!(ok(&["nodes", "undrain", "fra-1"]).out, "node fra-1 takes sessions\n");
    assert_eq!(control.cli(&["nodes", "drain", "fra-2"]).code, 4);
}

/// Asks as derper does: without a Content-Type.
fn verify(control: &Control, key: &str) -> Value {
    let body = json!({"NodePublic": key, "Source": "192.0.2.1"}).to_string();
    let answer = control.ask("POST", "/verify", &[], &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

#[test]
fn whoever_asks_is_told_whether_a_client_is_registered() {
    let control = Control::start();
    let (yes, no) = (json!({"Allow": true}), json!({"Allow": false}));
    assert_eq!(verify(&control, NODE_KEY), no, "an empty list admits nobody");
    control.cli(&["clients", "create", "laptop", NODE_KEY]).expect_success();
    assert_eq!(verify(&control, NODE_KEY), yes);
    assert_eq!(verify(&control, &NODE_KEY.replace("01", "02")), no);
    for key in ["", "nodekey:", "nodekey:zz", &NODE_KEY.replace('1', "0"), &"a".repeat(3000)] {
        assert_eq!(verify(&control, key), no);
    }
    control.cli(&["clients", "rm", "laptop", "--yes"]).expect_success();
    assert_eq!(verify(&control, NODE_KEY), no, "a removed one is refused at once");
    for body in ["", "{", "[]", "{}", r#"{"NodePublic":1}"#, r#"{"NodePublic":null}"#] {
        let answer = control.ask("POST", "/verify", &[], body);
        assert_eq!((answer.status, answer.code()), (400, "bad_request".into()), "{body}");
    }
    let large = control.ask("POST", "/verify", &[], &" ".repeat(5000));
    assert_eq!((large.status, large.code()), (413, "too_large".into()));
    assert_eq!(control.get("/verify").code(), "method_not_allowed");
}

#[test]
fn admissions_are_told_to_allowed_networks_alone() {
    let body = json!({"NodePublic": NODE_KEY, "Source": "192.0.2.1"}).to_string();
    let asked = |networks: &str| {
        let control = Control::start_with(&["--verify-allow", networks]);
        control.ask("POST", "/verify", &[], &body)
    };
    for networks in ["127.0.0.0/8", "192.0.2.0/24,127.0.0.1", "0.0.0.0/0"] {
        assert_eq!(asked(networks).status, 200, "{networks}");
    }
    for networks in ["192.0.2.0/24", "::/0", "127.0.0.2"] {
        let refused = asked(networks);
        assert_eq!((refused.status, refused.code()), (403, "forbidden".into()), "{networks}");
    }
}
