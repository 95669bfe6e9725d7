//! Every page: status, headers and body, row by row as derper answers.

use std::collections::BTreeMap;
use std::time::SystemTime;

use http_body_util::BodyExt;

use super::*;
use crate::observe::BuildInfo;
use crate::testing::Scratch;

/// A stranger, a Tailscale peer and a local client.
const STRANGER: &str = "198.51.100.7";
const LOCAL: &str = "127.0.0.1";

const TLS: Listener = Listener::Tls(TlsVersion::Tls13);

fn site() -> Site {
    Site {
        home: Home::Page,
        derp: true,
        tls_port: Some(443),
        bootstrap: Bootstrap::default(),
        registry: Arc::new(Registry::new(1, BuildInfo::new("epoll"), SystemTime::UNIX_EPOCH)),
        satellite: None,
        looks: None,
    }
}

struct Shown {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Shown {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("our headers are text"))
    }
}

/// Asks `site` over `listener` from `client`: `asked` is a method and a target, then headers by line.
fn ask_from(site: &Site, listener: Listener, client: &str, asked: &str) -> Shown {
    ask_unready(site, &[], listener, client, asked)
}

fn ask_unready(
    site: &Site,
    unready: &[Unready],
    listener: Listener,
    client: &str,
    asked: &str,
) -> Shown {
    let mut lines = asked.lines();
    let (method, target) =
        lines.next().and_then(|line| line.split_once(' ')).expect("a method and a target");
    let mut request = hyper::Request::builder().method(method).uri(target);
    for line in lines {
        let (name, value) = line.split_once(": ").expect("a header");
        request = request.header(name, value);
    }
    let request = request.body(()).expect("a good request");
    let request = Request {
        method: request.method(),
        uri: request.uri(),
        headers: request.headers(),
        client: client.parse().expect("an address"),
        listener,
    };
    let (parts, body) = site.respond(&request, unready).into_parts();
    let body = text_of(body);
    Shown { status: parts.status.as_u16(), headers: parts.headers, body }
}

fn text_of(body: Full<Bytes>) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let bytes = runtime.block_on(body.collect()).expect("a full body is there").to_bytes();
    String::from_utf8(bytes.to_vec()).expect("pages are text")
}

fn ask(asked: &str) -> Shown {
    ask_from(&site(), TLS, STRANGER, asked)
}

fn ask_plain(asked: &str) -> Shown {
    ask_from(&site(), Listener::Plain, STRANGER, asked)
}

fn for_browsers(shown: &Shown) -> bool {
    shown.header("strict-transport-security") == "max-age=63072000; includeSubDomains"
        && shown
            .header("content-security-policy")
            .starts_with("default-src 'self'; frame-ancestors 'none';")
        && shown.header("x-frame-options") == "DENY"
        && shown.header("x-content-type-options") == "nosniff"
}

#[test]
fn refusals_are_derpers() {
    let plain = "text/plain; charset=utf-8";
    for (asked, status, body) in [
        ("GET /derp", 426, "DERP requires connection upgrade\n"),
        ("POST /derp\nUpgrade: h2c", 426, "DERP requires connection upgrade\n"),
        ("POST /derp/probe", 405, "bogus probe method\n"),
        ("OPTIONS /derp/latency-check", 405, "bogus probe method\n"),
        ("CONNECT controlplane.tailscale.com:443", 403, "CONNECT not enabled\n"),
        ("GET /debug/", 403, "debug access denied\n"),
        ("GET /debug/nope", 403, "debug access denied\n"),
        ("GET /metrics", 403, "debug access denied\n"),
    ] {
        let shown = ask(asked);
        assert_eq!((shown.status, shown.body.as_str()), (status, body), "{asked}");
        assert_eq!(
            (shown.header("content-type"), shown.header("x-content-type-options")),
            (plain, "nosniff")
        );
    }
    let disabled = Site { derp: false, ..site() };
    let shown = ask_from(&disabled, TLS, STRANGER, "GET /derp");
    assert_eq!((shown.status, shown.body.as_str()), (404, "derp server disabled\n"));
}

#[test]
fn a_satellite_tells_its_public_key_to_anybody() {
    let scratch = Scratch::new();
    let satellite = Satellite::new(scratch.path("satellite.pem")).expect("the folder is ours");
    let keys = satellite.keys();
    let site = Site { satellite: Some(Arc::new(satellite)), ..site() };
    for listener in [TLS, Listener::Clear] {
        let shown = ask_from(&site, listener, STRANGER, "GET /api/private/satellites/key");
        assert_eq!((shown.status, shown.body.as_bytes()), (200, &keys.document()[..]));
        assert_eq!(shown.header("content-type"), "application/json");
        assert_eq!(shown.header("cache-control"), "no-store");
    }
    let posted = ask_from(&site, TLS, STRANGER, "POST /api/private/satellites/key");
    assert_eq!((posted.status, posted.header("allow")), (405, "GET, HEAD"));
    let upgrade = "GET /api/private/satellites/key\nUpgrade: DERP\nConnection: Upgrade";
    assert_eq!(ask_from(&site, TLS, STRANGER, upgrade).status, 200);
    let none = ask("GET /api/private/satellites/key");
    assert_eq!((none.status, none.body.as_str()), (404, "this relay is no satellite\n"));
    let plain = "GET /api/private/satellites/key\nHost: relay.example";
    let plain = ask_from(&site, Listener::Plain, STRANGER, plain);
    assert_eq!(plain.status, 302, "the plain port sends to TLS");
}

#[test]
fn probes_are_empty_and_open_to_every_origin() {
    for asked in [
        "GET /derp/probe",
        "HEAD /derp/probe",
        "GET /derp/latency-check",
        "HEAD /derp/latency-check?x=1",
    ] {
        let shown = ask(asked);
        assert_eq!((shown.status, shown.body.as_str()), (200, ""), "{asked}");
        assert_eq!(shown.header("access-control-allow-origin"), "*");
    }
}

#[test]
fn captive_portal_checks_get_their_challenge_back() {
    let long = "a".repeat(64);
    let too_long = "a".repeat(65);
    for (challenge, response) in [
        ("ts_192.0.2.1", "response ts_192.0.2.1"),
        ("a.b-c_d:E9", "response a.b-c_d:E9"),
        (&long, &format!("response {long}")),
        (&too_long, ""),
        ("a b", ""),
        ("a/b", ""),
        ("", ""),
    ] {
        for shown in [
            ask(&format!("GET /generate_204\nX-Tailscale-Challenge: {challenge}")),
            ask_plain(&format!("POST /generate_204?t=1\nX-Tailscale-Challenge: {challenge}")),
        ] {
            assert_eq!((shown.status, shown.body.as_str()), (204, ""));
            assert_eq!(shown.header("x-tailscale-response"), response, "{challenge}");
            let cache = "no-cache, no-store, must-revalidate, no-transform, max-age=0";
            assert_eq!(shown.header("cache-control"), cache);
        }
    }
    assert_eq!(ask("GET /generate_204").header("x-tailscale-response"), "");
}

#[test]
fn bootstrap_dns_is_the_same_for_everybody_and_counts_questions() {
    let site = site();
    let shown = ask_from(&site, TLS, STRANGER, "GET /bootstrap-dns");
    assert_eq!((shown.status, shown.body.as_str()), (200, ""), "nothing is configured");
    assert_eq!(
        (shown.header("content-type"), shown.header("connection")),
        ("application/json", "close")
    );
    assert!(for_browsers(&shown));
    let address = "192.0.2.1".parse().expect("an address");
    site.bootstrap.publish(BTreeMap::from([("a.example".to_owned(), vec![address])]));
    for asked in [
        "GET /bootstrap-dns",
        "POST /bootstrap-dns?q=a.example",
        "GET /bootstrap-dns?x=1&q=b.example",
    ] {
        let shown = ask_from(&site, TLS, STRANGER, asked);
        assert_eq!(shown.body, "{\n\t\"a.example\": [\n\t\t\"192.0.2.1\"\n\t]\n}", "{asked}");
    }
    let front = &site.registry.front;
    assert_eq!((front.bootstrap_hits.value(), front.bootstrap_misses.value()), (1, 1));
    assert_eq!(front.http_requests[Route::BootstrapDns.index()].value(), 4);
}

#[test]
fn robots_are_kept_out() {
    let shown = ask("GET /robots.txt");
    assert_eq!((shown.status, shown.body.as_str()), (200, "User-agent: *\nDisallow: /\n"));
    assert!(for_browsers(&shown));
}

#[test]
fn every_other_path_is_the_home_page() {
    for asked in
        ["GET /", "POST /", "GET /nope", "GET /derp/", "GET /derp/x", "GET /DERP", "GET /debugger"]
    {
        let shown = ask(asked);
        assert_eq!(shown.status, 200, "{asked}");
        assert_eq!(shown.header("content-type"), "text/html; charset=utf-8");
        assert!(shown.body.starts_with("<!doctype html>") && for_browsers(&shown), "{asked}");
    }
    let blank = Site { home: Home::Blank, ..site() };
    let shown = ask_from(&blank, TLS, STRANGER, "GET /");
    assert_eq!((shown.status, shown.body.as_str()), (200, ""));
    let elsewhere = Site { home: Home::Redirect("https://example.com/".into()), ..site() };
    let shown = ask_from(&elsewhere, TLS, STRANGER, "GET /nope");
    assert_eq!((shown.status, shown.header("location")), (302, "https://example.com/"));
    assert!(for_browsers(&shown));
}

#[test]
fn the_home_page_needs_nothing_from_elsewhere_and_its_style_is_allowed() {
    let shown = ask("GET /");
    for fetched in ["src=", "@import", "url(", "<link", "<script"] {
        assert!(!shown.body.contains(fetched), "{fetched}");
    }
    let style = shown.body.split("<style>").nth(1).and_then(|rest| rest.split("</style>").next());
    let digest = aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA256,
        style.expect("a style block").as_bytes(),
    );
    let allowed = format!("style-src 'sha256-{}'", base64(digest.as_ref()));
    assert!(
        shown.header("content-security-policy").ends_with(&allowed),
        "home.html changed; it now needs {allowed}"
    );
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let padding = digit > chunk.len();
            text.push(if padding {
                '='
            } else {
                char::from(DIGITS[(word >> (18 - 6 * digit)) as usize & 63])
            });
        }
    }
    text
}

#[test]
fn the_plain_port_redirects_to_the_other() {
    for (asked, location) in [
        ("GET /\nHost: relay.example", "https://relay.example/"),
        ("HEAD /nope?x=1\nHost: relay.example:80", "https://relay.example/nope?x=1"),
        ("GET /derp\nHost: [2001:db8::1]:80", "https://[2001:db8::1]/derp"),
        ("GET /derp/probe\nHost: [2001:db8::1]", "https://[2001:db8::1]/derp/probe"),
    ] {
        let shown = ask_plain(asked);
        assert_eq!((shown.status, shown.header("location")), (302, location), "{asked}");
    }
    let elsewhere = Site { tls_port: Some(8443), ..site() };
    let shown = ask_from(&elsewhere, Listener::Plain, STRANGER, "GET /a\nHost: relay.example:8080");
    assert_eq!(shown.header("location"), "https://relay.example:8443/a");
    let proxied = Site { tls_port: None, ..site() };
    let shown = ask_from(&proxied, Listener::Plain, STRANGER, "GET /a\nHost: relay.example:8080");
    assert_eq!(shown.header("location"), "https://relay.example/a");
    let shown = ask_from(&site(), Listener::Plain, LOCAL, "GET /\nHost: relay.example");
    assert_eq!(shown.header("location"), "https://relay.example/debug/");
    for asked in
        ["POST /\nHost: relay.example", "GET /", "PUT /derp\nHost: a", "CONNECT a.example:443"]
    {
        let shown = ask_plain(asked);
        assert_eq!((shown.status, shown.body.as_str()), (400, "Use HTTPS\n"), "{asked}");
    }
}

#[test]
fn debug_pages_are_for_this_host_and_the_tailnet() {
    let tailscale = [
        "100.64.0.1",
        "100.127.255.255",
        "fd7a:115c:a1e0::1",
        "::1",
        "127.9.9.9",
        "::ffff:127.0.0.1",
    ];
    let strangers =
        ["100.63.255.255", "100.128.0.0", "fd7a:115c:a1e1::1", "10.0.0.1", "198.51.100.7"];
    for listener in [TLS, Listener::Clear, Listener::Plain] {
        let status = |client: &str, asked: &str| ask_from(&site(), listener, client, asked).status;
        for client in tailscale {
            assert_eq!(status(client, "GET /debug/varz"), 200, "{client}");
            for forwarded in [
                "X-Forwarded-For: 127.0.0.1",
                "Forwarded: for=127.0.0.1",
                "X-Real-IP: 127.0.0.1",
                "Via: 1.1 proxy",
            ] {
                let asked = format!("GET /debug/varz\n{forwarded}");
                assert_eq!(status(client, &asked), 403, "{client} {forwarded}");
            }
        }
        for client in strangers {
            assert_eq!(status(client, "GET /debug/varz"), 403, "{client}");
            assert_eq!(status(client, "GET /debug"), 307, "{client}");
        }
    }
}

#[test]
fn debug_pages_show_both_vocabularies() {
    let local = |asked: &str| ask_from(&site(), TLS, LOCAL, asked);
    assert!(local("GET /metrics").body.contains("\nrelay_sessions 0\n"));
    assert!(local("GET /debug/varz").body.contains("\nderp_current_connections 0\n"));
    assert_eq!(
        local("GET /metrics").header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let vars: serde_json::Value =
        serde_json::from_str(&local("GET /debug/vars").body).expect("it is JSON");
    assert_eq!(vars["derp"]["gauge_current_connections"], 0);
    assert!(local("GET /debug/").body.contains("href=\"/debug/varz\""));
    assert!(for_browsers(&local("GET /debug/")));
    let (nope, bare) = (local("GET /debug/nope"), local("GET /debug"));
    assert_eq!((nope.status, nope.body.as_str()), (404, "404 page not found\n"));
    assert_eq!((bare.status, bare.header("location")), (307, "/debug/"));
}

#[test]
fn health_says_why() {
    let ask = |path: &str, unready: &[Unready]| {
        let shown =
            ask_unready(&site(), unready, Listener::Plain, STRANGER, &format!("GET {path}"));
        assert_eq!(shown.header("cache-control"), "no-store");
        (shown.status, shown.body)
    };
    let stalled = [Unready::Draining, Unready::CoreStalled(3)];
    assert_eq!(ask("/healthz", &stalled), (200, "OK".into()));
    assert_eq!(ask("/livez", &[]), (200, r#"{"live":true,"reasons":[]}"#.into()));
    assert_eq!(ask("/readyz", &[]), (200, r#"{"ready":true,"reasons":[]}"#.into()));
    assert_eq!(ask("/livez", &[Unready::Starting, Unready::Draining]).0, 200);
    assert_eq!(
        ask("/readyz", &[Unready::Starting]),
        (503, r#"{"ready":false,"reasons":["starting"]}"#.into())
    );
    assert_eq!(
        ask("/livez", &stalled),
        (503, r#"{"live":false,"reasons":["core 3 stalled"]}"#.into())
    );
    assert_eq!(
        ask("/readyz", &stalled).1,
        r#"{"ready":false,"reasons":["draining","core 3 stalled"]}"#
    );
}

#[test]
fn requests_are_counted_by_route_and_tls_version() {
    let site = site();
    let _ = ask_from(&site, TLS, STRANGER, "GET /nope");
    let _ = ask_from(&site, Listener::Plain, STRANGER, "POST /nope");
    let front = &site.registry.front;
    assert_eq!(front.http_requests[Route::Home.index()].value(), 1);
    assert_eq!(front.http_requests[Route::Bad.index()].value(), 1);
    assert_eq!(front.tls_requests[TlsVersion::Tls13.index()].value(), 1);
}

/// A site whose looks nobody takes, and what asks for them.
fn watched() -> (Site, impl Sized) {
    let poll = mio::Poll::new().expect("epoll");
    let bell = mio::Waker::new(poll.registry(), mio::Token(0)).expect("an eventfd");
    let (looks, asked) = Looks::new(Arc::new(bell));
    (Site { looks: Some(looks), ..site() }, (poll, asked))
}

fn look(site: &Site, client: &str, target: &str) -> bool {
    let request = hyper::Request::get(target).body(()).expect("a good request");
    let request = Request {
        method: request.method(),
        uri: request.uri(),
        headers: request.headers(),
        client: client.parse().expect("an address"),
        listener: TLS,
    };
    site.look(&request).is_some()
}

#[test]
fn looks_are_for_operators_who_ask_rightly_one_at_a_time() {
    let (watched, _asked) = watched();
    for target in [
        "/debug/xdp/trace?seconds=0",
        "/debug/xdp/trace?seconds=61",
        "/debug/xdp/trace?one_in=0",
        "/debug/xdp/time?seconds=soon",
        "/debug/xdp/other",
        "/debug/varz",
    ] {
        assert!(!look(&watched, LOCAL, target), "{target}");
    }
    assert!(!look(&watched, STRANGER, "/debug/xdp/time"));
    assert!(look(&watched, LOCAL, "/debug/xdp/trace?seconds=60&one_in=7"));
    assert!(!look(&watched, LOCAL, "/debug/xdp/time"), "one waits already");
    let shown = ask_from(&watched, TLS, LOCAL, "GET /debug/xdp/time");
    assert_eq!((shown.status, shown.body.contains("one look at a time")), (400, true));
    let without = ask_from(&site(), TLS, LOCAL, "GET /debug/xdp/time");
    assert_eq!((without.status, &*without.body), (404, "no XDP program is attached\n"));
    assert_eq!(ask_from(&watched, TLS, STRANGER, "GET /debug/xdp/time").status, 403);
}
