//! `control netcheck` and `control ping` as people and scripts run them, with and without a control.
#![forbid(unsafe_code)]

mod harness;
mod peers;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use harness::{Control, KEY, Ran, Scratch, TlsSatellite, command, run, write};
use peers::{Coturn, Derper};

/// Exit codes, as documented in `control --help`.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 4;

fn control(args: &[&str]) -> Ran {
    run(command().args(args))
}

/// A region of one node.
fn region(id: u32, code: &str, node: &Value) -> (String, Value) {
    let mut node = node.clone();
    node["Name"] = format!("{id}a").into();
    node["RegionID"] = id.into();
    let region = json!({"RegionID": id, "RegionCode": code, "RegionName": code, "Nodes": [node]});
    (id.to_string(), region)
}

fn map(regions: impl IntoIterator<Item = (String, Value)>) -> String {
    json!({"Regions": regions.into_iter().collect::<serde_json::Map<_, _>>()}).to_string()
}

/// A node that nobody serves.
fn dead() -> Value {
    json!({"HostName": "127.0.0.1", "IPv6": "none", "DERPPort": 1, "STUNPort": -1})
}

#[test]
fn netcheck_needs_a_map_and_no_control() {
    let Some(derper) = Derper::start(&[]) else { return };
    let scratch = Scratch::new();
    let text = map([region(900, "fra", &dead()), region(901, "syd", &derper.node)]);
    let file = write(&scratch, "map.json", &text);
    let report = control(&["netcheck", "--map", &file, "--output", "json"]).expect_success().json();
    assert_eq!((&report["udp"], &report["nearest"]), (&json!(true), &json!("syd")));
    assert!(report["ipv4"]["seen_as"].as_str().expect("it was seen").starts_with("127.0.0.1:"));
    assert_eq!(report["ipv6"]["works"], Value::Null, "nobody was asked");
    let regions = report["regions"].as_array().expect("regions");
    assert_eq!((&regions[0]["region"], &regions[1]["region"]), (&json!("syd"), &json!("fra")));
    for kind in ["derp", "https", "stun_v4"] {
        assert!(regions[0]["latency_ms"][kind].as_f64().expect(kind) > 0.0);
    }
    let why = regions[1]["nodes"][0]["why"].as_str().expect("a reason");
    assert_eq!(why, "HTTPS and DERP: 127.0.0.1:1: connection refused");
    let loss = &report["requirements"]["loss"];
    assert_eq!(
        (&loss["sent"], &loss["lost"], &loss["met"]),
        (&json!(200), &json!(0), &json!(true))
    );

    let text = control(&["netcheck", "--map", &file]).expect_success().out;
    for line in ["UDP:     yes", "IPv6:    not asked", "Nearest: syd"] {
        assert!(text.lines().any(|known| known == line), "{line} in\n{text}");
    }
    assert!(text.contains("Round trip below 400 ms: pass ("), "{text}");
    assert!(text.contains("Loss below 0.5 %: pass (0 of 200 lost)"), "{text}");
    assert!(!text.contains('\u{1b}'), "no terminal, no colours");
}

#[test]
fn netcheck_fails_where_nothing_answers_and_says_what_is_wrong_with_a_map() {
    let scratch = Scratch::new();
    let file = write(&scratch, "dead.json", &map([region(900, "fra", &dead())]));
    let ran = control(&["netcheck", "--map", &file]);
    let why = "control: no relay of the map can be used\n";
    assert_eq!((ran.code, ran.errors.as_str()), (FAILED, why));
    assert!(ran.out.contains("Round trip below 400 ms: fail (no answer)"), "{}", ran.out);
    assert!(ran.out.contains("Loss below 0.5 %: not measured"), "{}", ran.out);
    let file = write(&scratch, "none.json", &map([]));
    let ran = control(&["netcheck", "--map", &file]);
    assert_eq!((ran.code, ran.errors.as_str()), (FAILED, "control: the map has no nodes to ask\n"));
    if let Some(mut derper) = Derper::start(&[]) {
        derper.node["CertName"] = format!("sha256-raw:{}", "0".repeat(64)).into();
        let file = write(&scratch, "pin.json", &map([region(900, "fra", &derper.node)]));
        let ran = control(&["netcheck", "--map", &file]);
        assert_eq!((ran.code, ran.errors.as_str()), (FAILED, why), "{}", ran.out);
        let nearest = "Nearest: none, as no relay of the map can be used\n";
        assert!(ran.out.contains(nearest), "though STUN answers: {}", ran.out);
        assert!(ran.out.contains("Round trip below 400 ms: fail (no answer)"), "{}", ran.out);
        assert!(ran.out.contains("Loss below 0.5 %: not measured"), "{}", ran.out);
    }
    let missing = scratch.path("missing.json").display().to_string();
    assert_eq!(control(&["netcheck", "--map", &missing]).code, 78);
}

#[test]
fn netcheck_takes_the_map_of_a_control_by_socket_or_address() {
    let Some(coturn) = Coturn::start() else { return };
    let node = json!({"HostName": coturn.address.ip(), "IPv6": "none", "STUNOnly": true,
        "STUNPort": coturn.address.port()});
    let serving = Control::start_with(&["--probe-every", "off"]);
    let file = write(&serving.scratch, "map.json", &map([region(900, "fra", &node)]));
    serving.cli(&["derpmap", "publish", &file, "--yes"]).expect_success();
    let url = format!("http://{}/derpmap/default", serving.address);
    let by_url = control(&["netcheck", "--map", &url, "--output", "json"]).expect_success().json();
    let by_socket = serving.cli(&["netcheck", "--output", "json"]).expect_success().json();
    for report in [by_url, by_socket] {
        assert_eq!(report["nearest"], "fra");
        assert_eq!(
            report["regions"][0]["latency_ms"].as_object().map(|found| found.len()),
            Some(1)
        );
    }
}

#[test]
fn ping_finds_nodes_regions_satellites_and_urls() {
    let Some(derper) = Derper::start(&[]) else { return };
    let url = harness::serve_pages(&[("/latency-check", "OK")]);
    let serving = Control::start_with(&["--probe-every", "off"]);
    let file = write(&serving.scratch, "map.json", &map([region(900, "fra", &derper.node)]));
    serving.cli(&["derpmap", "publish", &file, "--yes"]).expect_success();
    let token = format!("Bearer {}", serving.token("ci", "register"));
    let body = json!({"name": "sydney", "access_url": url, "public_key": KEY}).to_string();
    let headers = [("authorization", &*token), ("content-type", "application/json")];
    assert_eq!(serving.ask("POST", "/api/v1/satellites", &headers, &body).status, 201);

    for (word, name) in [("900a", "900a"), ("fra", "900a"), ("900", "900a")] {
        let ran = serving.cli(&["ping", word, "--count", "3", "--output", "json"]);
        let report = ran.expect_success().json();
        assert_eq!(report["target"], name);
        let rounds = report["rounds"].as_array().expect("rounds");
        assert_eq!(rounds.len(), 3);
        for round in rounds {
            for kind in ["derp", "https", "stun_v4"] {
                assert!(round["latency_ms"][kind].as_f64().expect(kind) > 0.0, "{round}");
            }
        }
        assert_eq!(report["requirements"]["loss"]["sent"], 3);
    }
    for word in ["sydney", &url] {
        let text = serving.cli(&["ping", word, "--count", "2"]).expect_success().out;
        assert!(text.starts_with(&format!("{word}  HTTPS ")), "{text}");
        assert!(text.contains("Loss below 0.5 %: pass (0 of 2 lost)"), "{text}");
    }
    let ran = control(&["ping", "fra", "--map", &file, "--count", "1"]).expect_success();
    assert!(ran.out.starts_with("900a  DERP "), "{}", ran.out);

    let ran = serving.cli(&["ping", "moon"]);
    assert_eq!(ran.code, NOT_FOUND);
    assert_eq!(ran.errors, "control: no node, region or satellite is called \"moon\"\n");
    assert_eq!(serving.cli(&["ping", "fra", "--count", "0"]).code, USAGE);
}

/// A ping with rounds for half an hour, and what it prints.
fn ping_for_long() -> (Child, BufReader<ChildStdout>) {
    let url = harness::serve_pages(&[("/latency-check", "OK")]);
    let mut child = command()
        .args(["ping", &url, "--count", "10000"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let out = child.stdout.take().expect("standard output is piped");
    (child, BufReader::new(out))
}

#[test]
fn ping_that_is_interrupted_tells_what_it_has_seen() {
    let (mut child, mut out) = ping_for_long();
    let mut text = String::new();
    out.read_line(&mut text).expect("a first round");
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    kill_process(id.expect("a process has an id"), Signal::INT).expect("it is ours");
    out.read_to_string(&mut text).expect("the rest");
    assert_eq!(child.wait().expect("it ends").code(), Some(0), "{text}");
    assert!(text.contains("Loss below 0.5 %: pass (0 of "), "{text}");
}

#[test]
fn ping_of_a_dead_target_fails_and_says_why_each_time() {
    let scratch = Scratch::new();
    let file = write(&scratch, "map.json", &map([region(900, "fra", &dead())]));
    let ran = control(&["ping", "fra", "--map", &file, "--count", "2"]);
    assert_eq!(ran.code, FAILED);
    let refused =
        "900a  HTTPS: 127.0.0.1:1: connection refused; DERP: 127.0.0.1:1: connection refused";
    assert_eq!(ran.out.lines().filter(|line| *line == refused).count(), 2, "{}", ran.out);
    assert!(ran.out.contains("Loss below 0.5 %: fail (2 of 2 lost)"), "{}", ran.out);
}

#[test]
fn a_node_of_which_stun_alone_answers_is_no_relay() {
    let Some(coturn) = Coturn::start() else { return };
    let scratch = Scratch::new();
    let node = json!({"HostName": coturn.address.ip(), "IPv6": "none", "DERPPort": 1,
        "STUNPort": coturn.address.port()});
    let file = write(&scratch, "map.json", &map([region(900, "fra", &node)]));
    let ran = control(&["ping", "fra", "--map", &file, "--count", "2"]);
    let why = "control: the relay cannot be used\n";
    assert_eq!((ran.code, ran.errors.as_str()), (FAILED, why), "{}", ran.out);
    assert!(ran.out.contains("Loss below 0.5 %: pass (0 of 2 lost)"), "{}", ran.out);
}

#[test]
fn stun_that_never_answers_is_lost() {
    let Some(mut derper) = Derper::start(&[]) else { return };
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback binds");
    let scratch = Scratch::new();
    derper.node["STUNPort"] = silent.local_addr().expect("it is bound").port().into();
    let file = write(&scratch, "map.json", &map([region(900, "fra", &derper.node)]));
    let ran = control(&["netcheck", "--map", &file]);
    assert_eq!((ran.code, ran.errors.as_str()), (FAILED, "control: more is lost than may be\n"));
    assert!(ran.out.contains("Loss below 0.5 %: fail (3 of 3 lost)"), "{}", ran.out);
}

#[test]
fn what_keeps_authorities_from_being_read_is_named() {
    let scratch = Scratch::new();
    let missing = scratch.path("missing.pem").display().to_string();
    let url = TlsSatellite::start().url;
    let mut ping = command();
    ping.env("SSL_CERT_FILE", &missing).env_remove("SSL_CERT_DIR");
    let ran = run(ping.args(["ping", &url, "--count", "1"]));
    assert_eq!(ran.code, FAILED);
    assert!(
        ran.out.contains("no certificate authorities: ") && ran.out.contains(&missing),
        "{}",
        ran.out
    );
}

#[test]
fn a_ping_ends_with_its_reader() {
    let (mut child, mut out) = ping_for_long();
    out.read_line(&mut String::new()).expect("a first round");
    drop(out);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn a_satellites_certificate_is_verified_against_the_systems_authorities() {
    let satellite = TlsSatellite::start();
    let scratch = Scratch::new();
    let authority = write(&scratch, "ca.pem", &satellite.authority);
    let ping = |file: &str| {
        run(command().env("SSL_CERT_FILE", file).args(["ping", &satellite.url, "--count", "2"]))
    };
    let trusted = ping(&authority).expect_success();
    assert!(trusted.out.contains("(0 of 2 lost)"), "{}", trusted.out);
    let other = write(&scratch, "other.pem", &TlsSatellite::start().authority);
    let refused = ping(&other);
    assert_eq!(refused.code, FAILED);
    assert!(refused.out.contains("TLS: invalid peer certificate: "), "{}", refused.out);
}
