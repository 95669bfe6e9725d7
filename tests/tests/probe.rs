//! Our relay as `control netcheck` and `control ping` see it.
#![forbid(unsafe_code)]

use std::process::{Command, Output};

use serde_json::{Value, json};
use tests::process::control_program;
use tests::relay::{Relay, loopback};
use tests::scratch::Scratch;

fn control() -> Command {
    let mut command = Command::new(control_program());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PERIGEE_") {
            command.env_remove(name);
        }
    }
    command
}

fn report(ran: &Output) -> Value {
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).expect("JSON")
}

#[test]
fn our_relay_answers_every_probe_over_both_families() {
    let relay = Relay::start(&loopback("epoll", "1"));
    let port = |addresses: &[std::net::SocketAddr], v4: bool| {
        addresses.iter().find(|address| address.is_ipv4() == v4).expect("both families").port()
    };
    let stun = &relay.ready.stun;
    let node = |name: &str, id: u32, v4: bool| {
        let (ipv4, ipv6) = if v4 { ("127.0.0.1", "none") } else { ("none", "::1") };
        json!({"Name": name, "RegionID": id, "HostName": relay.ready.hostname, "IPv4": ipv4,
            "IPv6": ipv6, "CertName": relay.ready.pin, "DERPPort": relay.derp().port(),
            "STUNPort": port(stun, v4), "STUNOnly": !v4})
    };
    let region = |id: u32, code: &str, node: Value| json!({"RegionID": id, "RegionCode": code, "RegionName": code, "Nodes": [node]});
    let map = json!({"Regions": {
        "900": region(900, "four", node("900a", 900, true)),
        "901": region(901, "six", node("901a", 901, false)),
    }});
    let scratch = Scratch::new();
    let file = scratch.write("map.json", map.to_string());
    let ran = control().args(["netcheck", "--output", "json", "--map"]).arg(&file).output();
    let found = report(&ran.expect("control starts"));
    assert_eq!((&found["ipv4"]["works"], &found["ipv6"]["works"]), (&json!(true), &json!(true)));
    for region in found["regions"].as_array().expect("regions") {
        assert_eq!(region["nodes"][0]["why"], Value::Null, "{region}");
    }
    assert_eq!(found["requirements"]["loss"]["lost"], 0);
    let ran = control().args(["ping", "four", "--output", "json", "--map"]).arg(&file).output();
    let found = report(&ran.expect("control starts"));
    let rounds = found["rounds"].as_array().expect("rounds");
    let all = rounds.iter().all(|round| {
        ["derp", "https", "stun_v4"].iter().all(|kind| round["latency_ms"][kind].is_f64())
    });
    assert!(all, "{found}");
}
