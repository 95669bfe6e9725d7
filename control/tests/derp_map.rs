//! The DERP map as others see it: served, merged, published, and kept when a source goes wrong.
#![forbid(unsafe_code)]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::{Control, Scratch, command, run, write};
use rustix::process::Signal;
use serde_json::{Value, json};

fn map(id: u32, code: &str, node: &str) -> Value {
    json!({"Regions": {id.to_string(): {
        "RegionID": id, "RegionCode": code, "RegionName": code, "Latitude": 1.5,
        "Nodes": [{"Name": node, "RegionID": id, "HostName": "relay.example.com", "Unknown": "kept"}],
    }}})
}

fn served(control: &Control) -> Value {
    let answer = control.get("/derpmap/default");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer.json()
}

#[test]
fn an_empty_map_is_a_map_and_every_change_is_there_at_once() {
    let control = Control::start();
    assert_eq!(served(&control), json!({"Regions": {}}));
    let ok = |args: &[&str]| control.cli(args).expect_success();
    ok(&["regions", "create", "fra", "900", "--title", "Frankfurt"]);
    assert_eq!(served(&control), json!({"Regions": {}}), "a region without nodes is of no use");
    ok(&["nodes", "create", "900a", "fra", "a.example.com", "--ipv4", "192.0.2.1", "--can-port80"]);
    let expected = json!({"Regions": {"900": {
        "RegionID": 900, "RegionCode": "fra", "RegionName": "Frankfurt",
        "Nodes": [{"Name": "900a", "RegionID": 900, "HostName": "a.example.com",
            "IPv4": "192.0.2.1", "CanPort80": true}],
    }}});
    assert_eq!(served(&control), expected);
    assert_eq!(ok(&["derpmap", "show", "--output", "json"]).json(), expected);
    ok(&["nodes", "rm", "900a", "--yes"]);
    assert_eq!(served(&control), json!({"Regions": {}}));
}

#[test]
fn who_has_the_map_already_gets_no_copy() {
    let control = Control::start();
    let first = control.get("/derpmap/default");
    let etag = first.header("etag").expect("it has one").to_owned();
    let ask = |tags: &str| control.ask("GET", "/derpmap/default", &[("if-none-match", tags)], "");
    let same = ask(&etag);
    assert_eq!((same.status, same.body.as_str(), same.header("etag")), (304, "", Some(&*etag)));
    assert_eq!(ask(&format!("\"x\", W/{etag}")).status, 304);
    assert_eq!(ask("\"x\"").status, 200);
    control.cli(&["regions", "create", "fra", "900"]).expect_success();
    assert_eq!(ask(&etag).status, 304, "the same bytes are the same map");
    control.cli(&["nodes", "create", "a", "fra", "h"]).expect_success();
    assert_eq!(ask(&etag).status, 200);
}

#[test]
fn files_and_urls_are_merged_and_conflicts_name_both_places() {
    let scratch = Scratch::new();
    let yaml = "regions:\n  901:\n    regionid: 901\n    regioncode: syd\n    regionname: Sydney\n    nodes:\n      - name: 901a\n        regionid: 901\n        hostname: c.example.com\n";
    let [one, two] = [("a.json", map(900, "fra", "900a").to_string()), ("b.yaml", yaml.to_owned())]
        .map(|(name, text)| write(&scratch, name, &text));
    let url = harness::serve("/map", || map(902, "lon", "902a").to_string()) + "/map";
    let control = Control::start_with(&[
        "--derp-map-file",
        &one,
        "--derp-map-file",
        &two,
        "--derp-map-url",
        &url,
    ]);
    // The URL is asked after the start, which waits for nobody.
    let regions = || -> Vec<String> {
        let map = served(&control);
        map["Regions"].as_object().expect("a map").keys().cloned().collect()
    };
    while regions().len() < 3 {
        std::thread::yield_now();
    }
    assert_eq!(regions(), ["900", "901", "902"]);
    assert_eq!(served(&control)["Regions"]["900"]["Latitude"], 1.5);
    assert_eq!(served(&control)["Regions"]["900"]["Nodes"][0]["Unknown"], "kept");
    assert_eq!(control.get("/readyz").body, "ready\n");

    let clash = control.cli(&["regions", "create", "x", "901"]);
    assert_eq!(clash.code, 3);
    let words = format!("region 901 is in {two} and in control's own records; leave it in one");
    assert!(clash.errors.contains(&words), "{}", clash.errors);
    control.cli(&["regions", "create", "x", "903"]).expect_success();
    let clash = control.cli(&["nodes", "create", "902a", "x", "h"]);
    assert!(clash.errors.contains(&url), "{}", clash.errors);

    let clash = write(&scratch, "c.json", &map(900, "other", "x").to_string());
    let both = run(command().args(["derpmap", "validate", &one, &clash]));
    assert_eq!(both.code, 78);
    assert!(both.errors.contains("region 900 is in ") && both.errors.contains("c.json"));
    for (name, text, why) in [
        ("d.json", r#"{"Regions":{},"Regions":{}}"#, "the key \"Regions\" is there twice"),
        ("d.yaml", "regions: {}\nregions: {}\n", "duplicate"),
        ("e.yaml", "regions:\n  ? ~\n  : {}\n", ""),
    ] {
        let bad = run(command().args(["derpmap", "validate", &write(&scratch, name, text)]));
        assert_eq!(bad.code, 78, "{}", bad.errors);
        assert!(bad.errors.contains(name) && bad.errors.contains(why), "{}", bad.errors);
        for word in ["Options", "Option<", "struct"] {
            assert!(!bad.errors.contains(word), "{}", bad.errors);
        }
    }
    for (file, why) in [("/dev/zero", "is longer than"), ("-", "standard input is not read")] {
        let bad = run(command().args(["derpmap", "validate", file]));
        assert_eq!(bad.code, 78, "{}", bad.errors);
        assert!(bad.errors.starts_with(&format!("control: {file}: {why}")), "{}", bad.errors);
    }
    let fine = run(command().args(["derpmap", "validate", &one, &two]));
    assert_eq!((fine.code, fine.out.as_str()), (0, "valid: 2 regions, 2 nodes\n"));
}

#[test]
fn a_file_gone_wrong_keeps_the_last_good_map() {
    let scratch = Scratch::new();
    let file = write(&scratch, "a.json", &map(900, "fra", "900a").to_string());
    let control = Control::start_with(&["--derp-map-file", &file]);
    let before = served(&control);
    write(&scratch, "a.json", "{");
    control.signal(Signal::HUP);
    let line = control.wait_for("all files stay as they were");
    assert!(line.contains("a.json"), "{line}");
    assert_eq!(served(&control), before);
    // A file that is good but clashes with a record is known only by merging.
    control.cli(&["regions", "create", "syd", "901"]).expect_success();
    control.cli(&["nodes", "create", "901a", "syd", "h"]).expect_success();
    let before = served(&control);
    write(&scratch, "a.json", &map(901, "fra", "900a").to_string());
    control.signal(Signal::HUP);
    control.wait_for("DERP map files and certificates read again");
    assert_eq!(served(&control), before);
    let auth = format!("Bearer {}", control.token("probe", "read"));
    let ready = control.ask("GET", "/readyz", &[("authorization", &auth)], "");
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("region 901 is in "), "{}", ready.body);
    let public = "DERP map: its sources contradict each other; the last good one is served\n";
    assert_eq!(control.get("/readyz").body, public, "strangers see no paths");
    let other = control.cli(&["regions", "create", "lon", "905"]).expect_success();
    assert_eq!(other.out, "created region lon\n");
    let stays = "control: the DERP map in service stays as it was: region 901 is in ";
    assert!(other.errors.starts_with(stays), "{}", other.errors);
    control.cli(&["nodes", "rm", "901a", "--yes"]).expect_success();
    let last = control.cli(&["regions", "rm", "syd", "--yes"]).expect_success();
    assert_eq!(last.errors, "", "nothing stands in its way any more");
    assert_eq!(control.get("/readyz").status, 200);
    assert_eq!(served(&control)["Regions"]["901"]["RegionCode"], "fra");
}

#[test]
fn a_silent_url_is_a_reason_not_to_be_ready_and_no_reason_to_forget() {
    let good = Arc::new(AtomicBool::new(false));
    let says = Arc::clone(&good);
    let url = harness::serve("/map", move || match says.load(Ordering::SeqCst) {
        true => map(902, "lon", "902a").to_string(),
        false => "nothing".to_owned(),
    }) + "/map";
    let control = Control::start_with(&["--derp-map-url", &url]);
    control.wait_for("could not be fetched");
    let auth = format!("Bearer {}", control.token("probe", "read"));
    let ready = control.ask("GET", "/readyz", &[("authorization", &auth)], "");
    assert!(ready.status == 503 && ready.body.contains(&url), "{}", ready.body);
    assert_eq!(served(&control), json!({"Regions": {}}), "what is known is served");
    good.store(true, Ordering::SeqCst);
    control.signal(Signal::HUP);
    while control.get("/readyz").status != 200 {
        std::thread::yield_now();
    }
    let known = served(&control);
    assert_eq!(known["Regions"]["902"]["RegionCode"], "lon");
    good.store(false, Ordering::SeqCst);
    control.signal(Signal::HUP);
    control.wait_for("could not be fetched");
    assert_eq!(served(&control), known);
    let reloaded = control.cli(&["reload"]);
    assert_eq!(reloaded.code, 1, "{}", reloaded.errors);
    let lines: Vec<_> = reloaded.errors.lines().collect();
    assert!(lines[0].starts_with(&format!("control: {url}: ")), "{lines:?}");
    assert_eq!(lines[1..], ["control: one URL gave no DERP map; its last one stays"]);
    good.store(true, Ordering::SeqCst);
    assert_eq!(control.cli(&["reload"]).expect_success().errors, "");
}

#[test]
fn a_reload_says_that_the_map_could_not_be_merged() {
    let scratch = Scratch::new();
    let file = write(&scratch, "a.json", &map(900, "fra", "900a").to_string());
    let control = Control::start_with(&["--derp-map-file", &file]);
    control.cli(&["regions", "create", "syd", "901"]).expect_success();
    control.cli(&["nodes", "create", "901a", "syd", "h"]).expect_success();
    served(&control);
    write(&scratch, "a.json", &map(901, "fra", "900a").to_string());
    let reloaded = control.cli(&["reload", "--output", "json"]);
    assert_eq!(reloaded.code, 1, "{}", reloaded.errors);
    let why = format!("region 901 is in {file} and in control's own records; leave it in one");
    let last = "control: the DERP map in service stays as it was";
    assert_eq!(reloaded.errors, format!("control: {why}\n{last}\n"));
    assert_eq!(reloaded.json(), json!({"silent": [], "fault": why}));
}

#[test]
fn a_map_is_published_whole_and_only_as_it_was_shown() {
    let scratch = Scratch::new();
    let control = Control::start();
    let ok = |args: &[&str]| control.cli(args).expect_success();
    let mut wanted = map(900, "fra", "900a");
    wanted["Regions"]["901"] = map(901, "syd", "901a")["Regions"]["901"].clone();
    let file = write(&scratch, "map.json", &wanted.to_string());
    let diff = ok(&["derpmap", "diff", &file]).out;
    assert!(diff.contains("+ region 900 fra: node 900a"), "{diff}");
    let refused = control.cli_with(&["derpmap", "publish", &file], "no\n");
    assert_eq!(refused.code, 1);
    assert!(refused.errors.contains("+ region 901 syd"), "{}", refused.errors);
    assert_eq!(served(&control), json!({"Regions": {}}));
    ok(&["derpmap", "publish", &file, "--yes"]);
    assert_eq!(served(&control), wanted, "with every field, those we do not know, too");
    assert_eq!(
        ok(&["derpmap", "publish", &file, "--yes"]).out,
        "no difference; nothing to publish\n"
    );
    assert_eq!(ok(&["derpmap", "diff", &file]).out, "no difference\n");

    // A region changes its id, a node moves, another region goes: still one change.
    let mut next = map(910, "fra", "901a");
    next["Regions"]["910"]["Nodes"][0]["DERPPort"] = json!(8443);
    let file = write(&scratch, "map.json", &next.to_string());
    ok(&["derpmap", "publish", &file, "--yes"]);
    assert_eq!(served(&control), next);

    let token = control.token("ci", "operate");
    let put = |expected: &str| {
        let auth = format!("Bearer {token}");
        let headers = [
            ("authorization", &*auth),
            ("content-type", "application/json"),
            ("if-match", expected),
        ];
        control.ask("PUT", "/api/v1/derpmap", &headers, &wanted.to_string())
    };
    let stale = put("\"1\"");
    assert_eq!((stale.status, stale.code()), (412, "stale".into()));
    assert_eq!(served(&control), next);
    assert_eq!(put("*").status, 200);
    assert_eq!(served(&control), wanted);
}

#[test]
fn sources_that_contradict_each_other_hold_up_no_change_of_records() {
    let scratch = Scratch::new();
    let file = write(&scratch, "a.json", &map(7, "fra", "7a").to_string());
    let clashes = Arc::new(AtomicBool::new(false));
    let says = Arc::clone(&clashes);
    let url = harness::serve("/map", move || match says.load(Ordering::SeqCst) {
        true => map(7, "lon", "7b").to_string(),
        false => map(8, "lon", "8b").to_string(),
    }) + "/map";
    let control = Control::start_with(&["--derp-map-file", &file, "--derp-map-url", &url]);
    let ok = |args: &[&str]| control.cli(args).expect_success();
    ok(&["reload"]);
    ok(&["regions", "create", "syd", "901"]);
    ok(&["nodes", "create", "901a", "syd", "h"]);
    clashes.store(true, Ordering::SeqCst);
    assert_eq!(control.cli(&["reload"]).code, 1);
    ok(&["nodes", "drain", "901a"]);
    ok(&["regions", "create", "oth", "902"]);
    let taken = control.cli(&["regions", "create", "mine", "7"]);
    assert!(taken.code == 3 && taken.errors.contains("region 7 is in "), "{}", taken.errors);
    let publish = write(&scratch, "b.json", &map(903, "ams", "903a").to_string());
    ok(&["derpmap", "publish", &publish, "--yes"]);
}

#[test]
fn a_published_map_ends_no_drain_and_hides_no_removal() {
    let scratch = Scratch::new();
    let control = Control::start();
    let ok = |args: &[&str]| control.cli(args).expect_success();
    ok(&["regions", "create", "fra", "900"]);
    ok(&["nodes", "create", "900a", "fra", "h"]);
    ok(&["nodes", "drain", "900a"]);
    ok(&["regions", "create", "empty", "905"]);
    let file = write(&scratch, "b.json", &map(901, "fra", "900a").to_string());
    let diff = control.cli_with(&["derpmap", "publish", &file], "no\n");
    assert!(diff.errors.contains("- region 905 empty"), "{}", diff.errors);
    ok(&["derpmap", "publish", &file, "--yes"]);
    let nodes = ok(&["nodes", "ls", "--output", "json"]).json();
    assert_eq!(nodes["items"][0]["drain"], true, "{nodes}");
    assert_eq!(ok(&["regions", "ls", "--output", "json"]).json()["items"][0]["region_id"], 901);
}

/// Ends a thread, after a failure, too.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_map_is_published_while_other_records_change() {
    let control = Control::start();
    let token = control.token("ci", "operate");
    let auth = format!("Bearer {token}");
    let headers = [("authorization", &*auth), ("content-type", "application/json")];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ending = Ending(&stop);
        scope.spawn(|| {
            for number in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let client = json!({"name": format!("c{number}"), "node_key": format!("nodekey:{number:064x}")});
                control.ask("POST", "/api/v1/clients", &headers, &client.to_string());
            }
        });
        let mut taken = 0;
        for round in 0..40 {
            let wanted = map(900 + round % 2, "fra", "900a").to_string();
            let answer = control.ask("PUT", "/api/v1/derpmap", &headers, &wanted);
            taken += u32::from(answer.status == 200);
        }
        drop(ending);
        assert_eq!(taken, 40, "nobody named a revision");
    });
}

#[test]
fn a_url_that_says_nothing_holds_up_neither_the_end_nor_the_others() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = silent.local_addr().expect("it is bound");
    let good = harness::serve("/map", || map(902, "lon", "902a").to_string()) + "/map";
    let urls = [format!("http://{address}/one"), format!("http://{address}/two"), good];
    let args: Vec<_> = urls.iter().flat_map(|url| ["--derp-map-url", url]).collect();
    let control = Control::start_with(&args);
    control.signal(Signal::HUP);
    // It asks: the end comes while answers are waited for.
    let _asked = silent.accept().expect("it asks");
    let began = std::time::Instant::now();
    assert_eq!(control.stop().code(), Some(0));
    assert!(began.elapsed() < std::time::Duration::from_secs(9), "{:?}", began.elapsed());
}
