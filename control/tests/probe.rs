//! The probes against foreign peers, and against targets that are silent, closed or wrong.
#![forbid(unsafe_code)]

mod harness;
mod peers;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use control::derp_map::DerpMap;
use control::probe::{Fault, Identity, Trust, node, satellite, stun};
use control::resource::Node;
use serde_json::{Value, json};

use peers::{Coturn, Derper};

/// A node as the map of a region of it alone has it.
fn parse(node: &Value) -> Node {
    let map = json!({"Regions": {"900": {
        "RegionID": 900, "RegionCode": "mine", "RegionName": "mine", "Nodes": [node],
    }}});
    let map = DerpMap::from_value(map).expect("a map");
    map.regions[&900].nodes[0].clone()
}

fn identity() -> Identity {
    Identity::fresh().expect("the system has random bytes")
}

fn visit(node: &Node) -> node::Visit {
    block_on(node::visit(node, &Trust::default(), &identity()))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// The words of a probe that failed.
fn why<T: std::fmt::Debug>(result: Option<Result<T, Fault>>) -> String {
    result.expect("it was asked").expect_err("it fails").to_string()
}

/// A node on loopback that is not there but for what a test serves.
fn local(port: u16) -> Node {
    parse(&json!({"Name": "900a", "RegionID": 900, "HostName": "127.0.0.1", "IPv6": "none",
        "DERPPort": port, "STUNPort": -1, "InsecureForTests": true}))
}

/// Takes connections, answers whatever comes first with `answer`, and reads on.
fn says(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback binds");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer);
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    port
}

#[test]
fn stock_derper_answers_every_way() {
    let Some(derper) = Derper::start(&[]) else { return };
    let found = visit(&parse(&derper.node));
    let stun = found.stun_v4.expect("it has STUN").expect("it answers");
    assert!(stun.address.ip().is_loopback());
    assert_eq!(found.stun_v6, None, "the map turns it off");
    for latency in [found.https, found.derp] {
        let latency = latency.expect("it relays").expect("it answers");
        assert!(latency < Duration::from_secs(4), "{latency:?}");
    }
}

#[test]
fn stock_derpers_certificate_is_judged_as_the_map_says() {
    let Some(derper) = Derper::start(&[]) else { return };
    let with = |change: Value| {
        let mut node = derper.node.clone();
        for (name, value) in change.as_object().expect("fields") {
            node[name] = value.clone();
        }
        visit(&parse(&node))
    };
    let pin = format!("sha256-raw:{}", "0".repeat(64));
    let other = with(json!({"CertName": pin, "InsecureForTests": true}));
    assert!(why(other.https).contains("another certificate than the one pinned"));
    assert!(why(other.derp).contains("another certificate than the one pinned"));
    assert!(other.stun_v4.expect("STUN has no certificate").is_ok());
    let unknown = why(with(json!({"CertName": ""})).https);
    assert!(unknown.starts_with("TLS: invalid peer certificate"), "{unknown}");
    let any = with(json!({"CertName": "", "InsecureForTests": true}));
    assert!(any.derp.expect("it relays").is_ok());
}

#[test]
fn a_relay_that_admits_only_clients_it_knows_is_told_from_a_dead_one() {
    let url = harness::serve_posts("/verify", || r#"{"Allow":false}"#.to_owned());
    let flag = format!("-verify-client-url={url}/verify");
    let Some(derper) = Derper::start(&[&flag]) else { return };
    let found = visit(&parse(&derper.node));
    assert!(found.https.expect("it serves").is_ok());
    assert_eq!(found.derp, Some(Err(Fault::NotAdmitted)));
}

#[test]
fn coturn_answers_and_loses_nothing() {
    let Some(coturn) = Coturn::start() else { return };
    let loss = block_on(async {
        let mut client = stun::Client::connect(coturn.address).await.expect("there is a way");
        client.count(200, Duration::from_millis(1), || {}).await.expect("it answers")
    });
    assert_eq!((loss.sent, loss.lost), (200, 0));
}

#[test]
fn a_target_that_is_not_there_is_named() {
    let mut node = local(1);
    assert_eq!(why(visit(&node).derp), "127.0.0.1:1: connection refused");
    node.host_name = "nowhere.invalid".into();
    node.stun_port = 0;
    let found = visit(&node);
    assert!(why(found.https).starts_with("DNS: nowhere.invalid: "));
    assert!(why(found.stun_v4).starts_with("DNS: nowhere.invalid: "));
    let mute = UdpSocket::bind("127.0.0.1:0").expect("loopback binds");
    let address: SocketAddr = mute.local_addr().expect("bound");
    node = local(1);
    node.stun_port = address.port().into();
    assert_eq!(why(visit(&node).stun_v4), format!("no answer from {address} in 3s"));
}

#[test]
fn a_target_that_says_something_else_ends_the_visit_in_time() {
    let silent = local(says(b""));
    assert_eq!(why(visit(&silent).derp), "TLS: no handshake in 3s");
    let clear = local(says(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    assert!(why(visit(&clear).https).starts_with("TLS: "));
    let plain = |answer| Node { force_http: true, ..local(says(answer)) };
    let mute = visit(&plain(b""));
    assert_eq!(why(mute.https), "/derp/latency-check: no answer in 4s");
    let page = visit(&plain(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"));
    assert_eq!(why(page.https), "/derp/latency-check: 404 Not Found");
    let garbage = visit(&plain(b"\x00\x01\x02 garbage\r\n\r\n"));
    assert!(why(garbage.https).contains("invalid"), "said what hyper says");
}

#[test]
fn frames_that_no_relay_sends_end_the_login() {
    const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n\
        Connection: Upgrade\r\n\r\n";
    let with = |frames: &[u8]| {
        let answer: &'static [u8] = Box::leak([SWITCH, frames].concat().into_boxed_slice());
        let node = Node { force_http: true, ..local(says(answer)) };
        let session = block_on(async {
            let mut relay = node::connect(&node, &Trust::default()).await.expect("it accepts");
            relay.log_in(&identity()).await.map(drop)
        });
        session.expect_err("no relay").to_string()
    };
    let none = "its first frame is no server key";
    assert_eq!(with(b"\x05\0\0\0\x01x"), none);
    let key = [b"\x01\0\0\0\x28DERP\xf0\x9f\x94\x91".as_slice(), &[9; 32]].concat();
    let info = with(&[&key, b"\x03\0\0\0\x02{}".as_slice()].concat());
    assert_eq!(info, "its frame after the keys is no server info for us");
    assert_eq!(with(&[b"\x01\0\0\0\x28DERP\xf0\x9f\x94\x91".as_slice(), &[0; 32]].concat()), none);
    assert!(with(b"\x01\xff\xff\xff\xff").contains("longer than any client takes"));
}

#[test]
fn a_satellite_tells_its_version_and_what_is_wrong_with_it() {
    let pages = |pages: &'static [(&'static str, &'static str)]| {
        let url = harness::serve_pages(pages);
        block_on(satellite::visit(&url, &Trust::default()))
    };
    let v2 = pages(&[
        ("/latency-check", "OK"),
        ("/healthz-report", r#"{"errors":null,"warnings":["versions differ"]}"#),
        ("/api/v2/buildinfo", r#"{"version":"v2.30.0\u0007+x","workspace_proxy":true}"#),
    ]);
    assert!(v2.latency.is_ok());
    assert_eq!(v2.version.as_deref(), Some("v2.30.0+x"));
    let unwell = pages(&[
        ("/latency-check", "OK"),
        ("/healthz-report", r#"{"errors":["failed to get\nbuild info"],"warnings":[]}"#),
    ]);
    let fault = unwell.latency.expect_err("it says so");
    assert_eq!(fault.to_string(), "it says: failed to get build info");
    let v1 = pages(&[("/cem-healthz", "ok"), ("/healthz-report", "<html>")]);
    assert_eq!((v1.latency.is_ok(), v1.version), (true, None));
    let other = pages(&[("/", "hello")]);
    let fault = other.latency.expect_err("no satellite");
    assert_eq!(fault.to_string(), "/latency-check: 404 Not Found");
}
