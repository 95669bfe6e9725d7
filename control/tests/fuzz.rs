//! Whatever JSON, or whatever else, is sent to the API: an answer comes, and a refusal says why in
//! problem details. Bodies that once were trouble, or could be, are replayed first.
#![forbid(unsafe_code)]

mod harness;

use harness::{Answer, Control, bearer};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

/// Where bodies are taken, and how.
const PATHS: [(&str, &str); 21] = [
    ("POST", "/api/v1/satellites"),
    ("POST", "/api/v1/regions"),
    ("POST", "/api/v1/nodes"),
    ("POST", "/api/v1/peers"),
    ("POST", "/api/v1/links"),
    ("POST", "/api/v1/tokens"),
    ("POST", "/api/v1/clients"),
    ("POST", "/api/v1/policies"),
    ("POST", "/api/v1/certificates"),
    ("PUT", "/api/v1/satellites/a"),
    ("PUT", "/api/v1/regions/a"),
    ("PUT", "/api/v1/nodes/a"),
    ("PUT", "/api/v1/peers/a"),
    ("PUT", "/api/v1/links/a%2Fb"),
    ("PUT", "/api/v1/tokens/a"),
    ("PUT", "/api/v1/clients/a"),
    ("PUT", "/api/v1/policies/default"),
    ("PUT", "/api/v1/certificates/a"),
    ("PUT", "/api/v1/derpmap"),
    ("POST", "/api/private/satellites"),
    ("POST", "/verify"),
];

/// Names that fields of bodies have, so that some of what is made up is nearly right.
const FIELDS: [&str; 36] = [
    "name",
    "access_url",
    "public_key",
    "fingerprint",
    "region_id",
    "title",
    "avoid",
    "map_fields",
    "region",
    "host_name",
    "cert_name",
    "ipv4",
    "ipv6",
    "stun_port",
    "stun_only",
    "derp_port",
    "drain",
    "peers",
    "scopes",
    "expires_at",
    "prefix",
    "node_key",
    "admission",
    "sessions",
    "queue_bytes_max",
    "keepalive_ms",
    "chain",
    "key",
    "names",
    "id",
    "revision",
    "created_at",
    "NodePublic",
    "Regions",
    "Nodes",
    "RegionID",
];

/// Texts that some field takes.
const TEXTS: [&str; 18] = [
    "",
    "a",
    "b",
    "default",
    "fra",
    "https://a",
    "none",
    "192.0.2.1",
    "2001:db8::1",
    harness::KEY,
    "nodekey:0101010101010101010101010101010101010101010101010101010101010101",
    "open",
    "registered",
    "read",
    "2026-01-31T12:00:00Z",
    "-----BEGIN CERTIFICATE-----\nAAAA\n",
    "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
    "\u{0}\u{1b}[2J\u{202e}",
];

/// A control and a token that may do everything.
fn start() -> (Control, String) {
    let control = Control::start();
    let token = control.token("ci", "admin");
    (control, token)
}

fn asked((control, token): &(Control, String), method: &str, path: &str, body: &[u8]) -> Answer {
    let (bearer, cookie) = (bearer(token), format!("session_token={token}"));
    let headers =
        [("authorization", &*bearer), ("cookie", &cookie), ("content-type", "application/json")];
    control.ask_bytes(method, path, &headers, body)
}

fn judge(control: &(Control, String), body: &[u8]) {
    for (method, path) in PATHS {
        let answer = asked(control, method, path, body);
        let told = || {
            let sent: String = String::from_utf8_lossy(body).chars().take(400).collect();
            format!("{method} {path} {sent}: {} {}", answer.status, answer.body)
        };
        match answer.status {
            200 | 201 => {}
            // What the framework refuses, too.
            400..500 if path.starts_with("/api/private/") => {
                assert!(answer.json()["error"]["msg"].is_string(), "{}", told());
            }
            400..500 => {
                let kind = answer.header("content-type");
                assert_eq!(kind, Some("application/problem+json"), "{}", told());
                assert!(!answer.code().is_empty(), "{}", told());
                assert_eq!(answer.json()["status"], answer.status, "{}", told());
            }
            _ => panic!("{}", told()),
        }
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0..1000u16).prop_map(Value::from),
        proptest::sample::select(TEXTS.to_vec()).prop_map(Value::from),
        ".{0,80}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 8, |inner| {
        let name = prop_oneof![
            8 => proptest::sample::select(FIELDS.to_vec()).prop_map(str::to_owned),
            1 => ".{0,20}",
        ];
        prop_oneof![
            1 => proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            3 => proptest::collection::hash_map(name, inner, 0..8)
                .prop_map(|fields| fields.into_iter().collect()),
        ]
    })
}

/// JSON, JSON cut short, or neither.
fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => value().prop_map(|value| value.to_string().into_bytes()),
        1 => (value(), any::<proptest::sample::Index>()).prop_map(|(value, at)| {
            let mut text = value.to_string().into_bytes();
            text.truncate(at.index(text.len()));
            text
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..200),
    ]
}

#[test]
fn known_trouble_is_answered() {
    let control = start();
    let deep = "[".repeat(30_000);
    let nested = format!("{{\"map_fields\":{}1{}}}", "[".repeat(120), "]".repeat(120));
    for text in [
        "",
        "null",
        "0",
        "[]",
        "{}",
        "\"\"",
        "\u{feff}{}",
        "{\"name\":\"\\ud800\"}",
        "1e999",
        "{\"region_id\":1e999}",
        "{\"name\":\"a\",\"name\":\"b\"}",
        deep.as_str(),
        &nested,
        "{\"peers\":[\"a\"]}",
        "{\"expires_at\":\"9999-99-99T99:99:99Z\"}",
        "{\"name\":\"a\",\"scopes\":[\"read\"],\"expires_at\":\"-9999-01-01T00:00:00Z\"}",
        "{\"sessions\":{\"keepalive_ms\":18446744073709551615,\"keepalive_jitter_ms\":18446744073709551615}}",
        "{\"sessions\":{\"keepalive_ms\":-1}}",
        "{\"Regions\":{\"1\":null}}",
        "{\"Regions\":[]}",
        "{\"NodePublic\":\"nodekey:\\u0000\"}",
    ] {
        judge(&control, text.as_bytes());
    }
    let name = "-".repeat(70_000);
    judge(&control, json!({"name": name, "chain": name, "key": name}).to_string().as_bytes());
}

#[test]
fn any_body_is_answered() {
    let control = start();
    let settings = ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() };
    let tried = TestRunner::new(settings).run(&body(), |body| {
        judge(&control, &body);
        Ok(())
    });
    tried.unwrap_or_else(|fault| panic!("{fault}"));
}
