//! Reading, merging and comparing maps.

use serde_json::json;

use super::load::parse;
use super::*;

const TAILSCALE: &str = r#"{
  "Regions": {"900": {"RegionID": 900, "RegionCode": "fra", "RegionName": "Frankfurt", "Latitude": 50.1,
    "EmbeddedRelay": false, "Nodes": [
      {"Name": "900a", "RegionID": 900, "HostName": "a.example.com", "IPv4": "192.0.2.1", "CanPort80": true, "New": [1]},
      {"Name": "900b", "RegionID": 900, "HostName": "b.example.com", "STUNPort": -1, "DERPPort": 8443}]}},
  "omitDefaultRegions": true}"#;

const HEADSCALE: &str = "
regions:
  901:
    regionid: 901
    regioncode: syd
    regionname: Sydney
    nodes:
      - name: 901a
        regionid: 901
        hostname: c.example.com
        stunport: 0
        ipv6: \"2001:db8::1\"
";

fn source(place: &str, text: &str) -> Source {
    Source { place: place.into(), map: parse(text).expect("a map") }
}

#[test]
fn tailscales_form_comes_back_with_every_field() {
    let map = parse(TAILSCALE).expect("a map");
    let value: Value = serde_json::from_str(TAILSCALE).expect("JSON");
    assert_eq!(map.to_value(), value);
    assert_eq!(DerpMap::from_value(map.to_value()), Ok(map.clone()));
    assert_eq!(map.nodes(), 2);
}

#[test]
fn headscales_yaml_is_the_same_map_in_lower_case() {
    let map = parse(HEADSCALE).expect("a map");
    assert_eq!(
        map.to_value(),
        json!({"Regions": {"901": {"RegionID": 901, "RegionCode": "syd", "RegionName": "Sydney",
            "Nodes": [{"Name": "901a", "RegionID": 901, "HostName": "c.example.com", "IPv6": "2001:db8::1"}]}}})
    );
}

#[test]
fn a_wrong_map_is_refused_by_place() {
    let change = |from: &str, to: &str| parse(&TAILSCALE.replace(from, to)).expect_err("wrong").0;
    assert_eq!(
        change("\"RegionID\": 900, \"RegionCode\"", "\"RegionID\": 9, \"RegionCode\""),
        "region 900: node 900a: RegionID is 900; make it 9"
    );
    assert!(change("192.0.2.1", "192.0.2").starts_with("region 900: node 900a: IPv4: "));
    assert!(change("8443", "84430").starts_with("region 900: node 900b: "));
    assert_eq!(change("900b", "900a"), "node 900a is there twice; rename one");
    assert!(change("\"HostName\": \"a.example.com\"", "\"A\": 1").contains("HostName"));
    assert!(change("\"Regions\"", "\"Region\"").contains("has no Regions"));
    assert!(change("\"fra\"", "\"\"").contains("name or code"));
    for text in ["", "[]", "{", "a: [", "regions: 1", "- *a", "\u{0}"] {
        assert!(parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn every_truncation_is_refused_without_a_panic() {
    for end in (0..TAILSCALE.len()).filter(|end| TAILSCALE.is_char_boundary(*end)) {
        assert!(parse(&TAILSCALE[..end]).is_err());
    }
}

#[test]
fn maps_merge_and_conflicts_name_both_places() {
    let merged = merge(vec![source("a.json", TAILSCALE), source("b.yaml", HEADSCALE)]);
    assert_eq!(merged.expect("they differ").regions.len(), 2);
    let refused = |other: &str| {
        merge(vec![source("a.json", TAILSCALE), source("b.yaml", other)]).expect_err("a conflict").0
    };
    assert_eq!(refused(TAILSCALE), "region 900 is in a.json and in b.yaml; leave it in one");
    assert_eq!(
        refused(&HEADSCALE.replace("syd", "fra")),
        "region code fra is in a.json and in b.yaml; leave it in one"
    );
    assert_eq!(
        refused(&HEADSCALE.replace("901a", "900b")),
        "node 900b is in a.json and in b.yaml; leave it in one"
    );
    assert_eq!(
        refused(&format!("omitDefaultRegions: false\n{}", HEADSCALE.trim_start())),
        "omitDefaultRegions is in a.json and in b.yaml; leave it in one"
    );
}

#[test]
fn names_in_a_fault_forge_no_line_and_move_no_terminal() {
    let of = |number: u32| {
        let text = format!("{{\"Regions\": {{}}, \"a\\u001b[31m\\nDERP map: well\": {number}}}");
        source("a.json", &text)
    };
    let conflict = merge(vec![of(1), of(2)]).expect_err("it says two things").0;
    assert!(conflict.starts_with(r"a\u{1b}[31m\nDERP map: well is twice in a.json"), "{conflict}");
    let unclear = parse("? \"a\\e[31m\"\n: [\n").expect_err("it does not end").0;
    assert!(!unclear.chars().any(char::is_control), "{unclear:?}");
    let name = TAILSCALE.replace("\"900a\"", "\"a\\u001b[31m\\nDERP map: well\"");
    let name = parse(&name).expect_err("it is no name").0;
    assert!(name.contains(r"a\u{1b}[31m\nDERP"), "{name}");
}

#[test]
fn differences_name_what_came_went_and_changed() {
    let old = parse(TAILSCALE).expect("a map");
    assert_eq!(differences(&old, &old), [""; 0]);
    let mut new = old.clone();
    let region = new.regions.get_mut(&900).expect("it is there");
    region.nodes[0].derp_port = 444;
    region.nodes[1].name = "900c".into();
    assert_eq!(
        differences(&old, &new),
        [
            "~ region 900 fra: node 900a: DERPPort none -> 444",
            "- region 900 fra: node 900b",
            "+ region 900 fra: node 900c"
        ]
    );
}

#[test]
fn a_region_without_nodes_is_not_served() {
    let region = |id, name: &str| Region { region_id: id, name: name.into(), ..Region::default() };
    let node =
        Node { name: "1a".into(), region: "one".into(), host_name: "h".into(), ..Node::default() };
    let map = DerpMap::from_store(vec![region(1, "one"), region(2, "two")], vec![node]);
    assert_eq!(map.regions.keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!(map.to_value()["Regions"]["1"]["RegionName"], "one");
}

#[test]
fn what_stock_code_would_refuse_is_refused() {
    let change = |from: &str, to: &str| parse(&TAILSCALE.replace(from, to)).expect_err("wrong").0;
    for (from, to, why) in [
        ("50.1", "\"north\"", "region 900: Latitude takes a number"),
        ("\"Latitude\"", "\"NOMEASURENOHOME\"", "region 900: NOMEASURENOHOME takes true or false"),
        (
            "\"EmbeddedRelay\": false",
            "\"EmbeddedRelay\": 1",
            "region 900: EmbeddedRelay takes true",
        ),
        ("s\": true}", "s\": \"yes\"}", "omitDefaultRegions takes true or false"),
        ("\"omitDefaultRegions\": true", "\"HomeParams\": 5", "HomeParams: is no table"),
        (
            "[1]",
            &format!("{}1{}", "[".repeat(16), "]".repeat(16)),
            "region 900: node 900a: New is deeper",
        ),
        (
            "a.example.com",
            "a.example.com:443",
            "region 900: node 900a: HostName: \"a.example.com:443\" is no host",
        ),
        ("a.example.com", "a?b#c", "region 900: node 900a: HostName: "),
        (
            "\"New\": [1]",
            "\"STUNTestIP\": \"x\"",
            "region 900: node 900a: STUNTestIP: \"x\" is no address",
        ),
    ] {
        let said = change(from, to);
        assert!(said.starts_with(why), "{said}");
    }
    let scores = |scores: &str| {
        let whole = format!("\"homeparams\": {{\"regionscore\": {scores}}}");
        parse(&TAILSCALE.replace("\"omitDefaultRegions\": true", &whole)).map(drop)
    };
    assert_eq!(scores("{\"900\": 0.5, \"901\": 2}"), Ok(()));
    assert_eq!(scores("null"), Ok(()));
    for wrong in ["{\"900\": \"x\"}", "{\"fra\": 1}", "[]"] {
        let why = "HomeParams: RegionScore takes numbers by RegionID";
        assert_eq!(scores(wrong), Err(MapFault(why.into())), "{wrong}");
    }
    for host in ["::1", "192.0.2.1", "a_b.example.com.", "localhost"] {
        parse(&TAILSCALE.replace("a.example.com", host)).expect(host);
    }
}
