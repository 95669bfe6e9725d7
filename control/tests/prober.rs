//! What `control serve` finds out by itself about nodes and satellites, and what it makes of it.
#![forbid(unsafe_code)]

mod harness;
mod peers;

use serde_json::{Value, json};

use harness::{Control, KEY, Scratch, key, write};
use peers::Derper;

/// A map of one region for each of `nodes`, numbered from 1.
fn map(nodes: &[&Value]) -> Value {
    let regions = (1..).zip(nodes).map(|(id, node)| {
        let mut node = (*node).clone();
        node["Name"] = format!("{id}a").into();
        node["RegionID"] = id.into();
        let region = json!({"RegionID": id, "RegionCode": format!("r{id}"), "Nodes": [node]});
        (id.to_string(), region)
    });
    json!({"Regions": regions.collect::<serde_json::Map<_, _>>()})
}

fn served(control: &Control) -> Vec<String> {
    let regions = control.get("/derpmap/default").json()["Regions"].clone();
    regions.as_object().expect("regions").keys().cloned().collect()
}

fn etag(control: &Control) -> String {
    control.get("/derpmap/default").header("etag").expect("a map has one").to_owned()
}

/// The one row of a list that has this name.
fn row(control: &Control, kind: &str, name: &str) -> Value {
    let listed = control.cli(&[kind, "ls", "--output", "json"]).expect_success().json();
    let rows = listed["items"].as_array().expect("rows").clone();
    rows.into_iter().find(|row| row["name"] == name).expect("it is listed")
}

#[test]
fn a_node_that_fails_is_left_out_and_comes_back_but_the_last_stays() {
    let (Some(one), Some(two)) = (Derper::start(&[]), Derper::start(&[])) else { return };
    let scratch = Scratch::new();
    let file = write(&scratch, "map.json", &map(&[&one.node, &two.node]).to_string());
    let control = Control::start_with(&["--probe-every", "100ms", "--probe-leave-out", "yes"]);
    control.cli(&["derpmap", "publish", &file, "--yes"]).expect_success();
    control.wait_for("is healthy");
    control.wait_for("is healthy");
    let whole = etag(&control);
    let revision = row(&control, "nodes", "1a")["revision"].clone();

    let host = one.node["HostName"].as_str().expect("a host").to_owned();
    let one = one.stop();
    control.wait_for("does without failing nodes failing={\"1a\"}");
    assert_eq!(served(&control), ["2"]);
    let less = etag(&control);
    assert_ne!(less, whole);
    let lost = row(&control, "nodes", "1a");
    assert_eq!(lost["health"]["state"], "unhealthy");
    assert_eq!(lost["health"]["left_out"], true);
    let why = lost["health"]["why"].as_str().expect("a reason");
    assert!(why.contains(&format!("HTTPS and DERP: {host}:")) && why.contains("refused"), "{why}");
    assert!(control.cli(&["nodes", "ls"]).expect_success().out.contains("left out"));
    let shown = control.cli(&["derpmap", "show"]).expect_success();
    assert!(shown.out.contains("\"1a\"") && shown.errors.contains("not served"), "{shown:?}");

    let two = two.stop();
    control.wait_for("the DERP map is served whole failing={\"1a\", \"2a\"}");
    assert_eq!(served(&control), ["1", "2"], "no relay would be left");
    assert_eq!(etag(&control), whole);

    let two = two();
    control.wait_for("does without failing nodes failing={\"1a\"}");
    assert_eq!((served(&control), etag(&control)), (vec!["2".to_owned()], less));
    let one = one();
    control.wait_for("has all of its nodes again");
    assert_eq!(etag(&control), whole);
    let back = row(&control, "nodes", "1a");
    assert_eq!((&back["health"]["state"], &back["revision"]), (&json!("healthy"), &revision));
    assert!(back["health"]["latency_ms"]["derp"].as_f64().expect("a latency") > 0.0);
    drop((one, two));
}

#[test]
fn a_node_that_moves_is_no_longer_the_one_that_let_us_in() {
    let denies = harness::serve_posts("/verify", || r#"{"Allow":false}"#.to_owned()) + "/verify";
    let Some(open) = Derper::start(&[]) else { return };
    let flag = format!("-verify-client-url={denies}");
    let Some(shut) = Derper::start(&[&flag]) else { return };
    let scratch = Scratch::new();
    let control = Control::start_with(&["--probe-every", "100ms", "--probe-leave-out", "yes"]);
    for node in [&open.node, &shut.node] {
        let file = write(&scratch, "map.json", &map(&[node]).to_string());
        control.cli(&["derpmap", "publish", &file, "--yes"]).expect_success();
        control.wait_for("is healthy");
    }
    let why = row(&control, "nodes", "1a")["health"]["why"].clone();
    assert!(why.as_str().is_some_and(|why| why.contains("turned us away")), "{why}");
}

#[test]
fn a_map_that_comes_late_is_visited_at_once() {
    let Some(derper) = Derper::start(&[]) else { return };
    let text = map(&[&derper.node]).to_string();
    let url = harness::serve("/map", move || text.clone()) + "/map";
    // Nothing else would have it looked at before the hour is over.
    let control = Control::start_with(&["--probe-every", "1h", "--derp-map-url", &url]);
    control.wait_for("is healthy");
}

#[test]
fn a_node_that_fails_is_only_marked_if_nothing_else_is_wished() {
    let control = Control::start_with(&["--probe-every", "100ms"]);
    control.cli(&["regions", "create", "mine", "900"]).expect_success();
    for args in [
        ["nodes", "create", "900a", "mine", "127.0.0.1", "--derp-port", "1", "--stun-port=-1"],
        ["nodes", "create", "900b", "mine", "127.0.0.1", "--derp-port", "2", "--stun-port=-1"],
    ] {
        control.cli(&args).expect_success();
    }
    let known = etag(&control);
    control.wait_for("is unhealthy");
    control.wait_for("is unhealthy");
    let health = row(&control, "nodes", "900a")["health"].clone();
    assert_eq!((&health["state"], &health["left_out"]), (&json!("unhealthy"), &json!(false)));
    assert_eq!(etag(&control), known);
    let token = format!("Bearer {}", control.token("ci", "read"));
    let page = control.ask("GET", "/metrics", &[("authorization", &token)], "").body;
    let line = "control_probe_targets{target=\"node\",state=\"unhealthy\"} 2";
    assert!(page.lines().any(|known| known == line), "{page}");
}

#[test]
fn satellites_are_listed_with_state_version_and_latency() {
    let url = harness::serve_pages(&[
        ("/latency-check", "OK"),
        ("/api/v2/buildinfo", r#"{"version":"v2.30.0"}"#),
    ]);
    let control = Control::start();
    let token = format!("Bearer {}", control.token("ci", "register"));
    let create = |name: &str, url: &str, key: &str| {
        let body = json!({"name": name, "access_url": url, "public_key": key}).to_string();
        let headers = [("authorization", &*token), ("content-type", "application/json")];
        assert_eq!(control.ask("POST", "/api/v1/satellites", &headers, &body).status, 201);
    };
    create("sydney", &url, KEY);
    // The default period is half a minute; a new one is not left waiting for it.
    control.wait_for("is healthy");
    let health = row(&control, "satellites", "sydney")["health"].clone();
    assert_eq!((&health["state"], &health["version"]), (&json!("healthy"), &json!("v2.30.0")));
    assert!(health["latency_ms"]["https"].as_f64().expect("a latency") > 0.0);
    create("nowhere", "", &key(2));
    let table = control.cli(&["satellites", "ls"]).expect_success().out;
    let words: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["NAME", "URL", "STATE", "VERSION", "LATENCY"]);
    assert_eq!(words[1], ["nowhere", "-", "unknown", "-", "-"]);
    assert_eq!(words[2][..4], ["sydney", &url, "healthy", "v2.30.0"]);
    assert_eq!(words[2][5], "ms");
    assert!(!table.contains('\u{1b}'), "no terminal, no colours");
}

#[test]
fn nothing_is_visited_where_that_is_not_wished() {
    let control = Control::start_with(&["--probe-every", "off"]);
    control.cli(&["regions", "create", "mine", "900"]).expect_success();
    control.cli(&["nodes", "create", "900a", "mine", "127.0.0.1"]).expect_success();
    assert_eq!(row(&control, "nodes", "900a")["health"], Value::Null);
    let token = format!("Bearer {}", control.token("ci", "read"));
    let ask = |path: &str| control.ask("GET", path, &[("authorization", &token)], "");
    assert_eq!(ask("/api/v1/health?kind=node").json(), json!({"items": []}));
    assert_eq!(ask("/api/v1/health?kind=moon").status, 400);
    assert_eq!(control.get("/api/v1/health").status, 401);
}
