//! Every HTTP answer of this relay that is not an upgrade.
//!
//! Owns statuses, headers and bodies, which are derper's wherever derper has the page. A [`Site`]
//! is built at start; [`Site::respond`] reads nothing but its arguments and the counters, and does
//! no I/O. The front calls it for each request that is no DERP upgrade.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response, StatusCode, Uri};

use steer::satellite::KEY_PATH;

use super::bootstrap::Bootstrap;
use crate::config::Home;
use crate::observe::{CONTENT_TYPE, Registry, Route, TlsVersion};
use crate::offload::look::{Looks, SPAN_MAX, Subject};
use crate::satellite::Satellite;

/// What every page is made of.
pub type Answer = Response<Full<Bytes>>;

/// The port that an HTTPS address need not name.
const HTTPS_PORT: u16 = 443;
/// Longest challenge of a captive-portal check that is answered, in bytes.
const CHALLENGE_LEN_MAX: usize = 64;
const CHALLENGE: HeaderName = HeaderName::from_static("x-tailscale-challenge");
const CHALLENGE_RESPONSE: HeaderName = HeaderName::from_static("x-tailscale-response");
/// Headers by which a proxy says that a request is somebody else's.
const FORWARDED: [HeaderName; 4] = [
    HeaderName::from_static("x-forwarded-for"),
    header::FORWARDED,
    HeaderName::from_static("x-real-ip"),
    header::VIA,
];

const NO_CACHE: &str = "no-cache, no-store, must-revalidate, no-transform, max-age=0";
const STRICT_TRANSPORT: &str = "max-age=63072000; includeSubDomains";
const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// derper's content policy for browsers.
macro_rules! content_policy {
    () => {
        "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'; block-all-mixed-content; object-src 'none'"
    };
}
const CONTENT_POLICY: &str = content_policy!();
/// The same for our home page, whose one style block is known by its digest; a test keeps it right.
const HOME_POLICY: &str =
    concat!(content_policy!(), "; style-src 'sha256-AQA/QWpgL6cl8xiumUmB96FkIxEfyx0YWGuLEgkRGaY='");
const HOME_PAGE: &str = include_str!("pages/home.html");
const DEBUG_PAGE: &str = "<!doctype html><html lang=\"en\"><title>relay debug</title><h1>Relay debug</h1><ul>\
<li><a href=\"/debug/varz\">/debug/varz</a> (derper's names)</li>\
<li><a href=\"/debug/vars\">/debug/vars</a> (the same as JSON)</li>\
<li><a href=\"/metrics\">/metrics</a> (our names)</li>\
<li><a href=\"/debug/xdp/trace?seconds=5&amp;one_in=100\">/debug/xdp/trace</a> (packets that XDP saw, some of them)</li>\
<li><a href=\"/debug/xdp/time?seconds=5\">/debug/xdp/time</a> (time in XDP)</li></ul></html>\n";

/// Which listener a request came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The main one, over TLS of this version.
    Tls(TlsVersion),
    /// The main one where TLS is off.
    Clear,
    /// The plain one beside it: captive-portal checks, health and redirects.
    Plain,
}

/// A request's head, as far as pages look at it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Method.
    pub method: &'a Method,
    /// Target.
    pub uri: &'a Uri,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// Address of the TCP peer.
    pub client: IpAddr,
    /// Where it came in.
    pub listener: Listener,
}

/// Why the relay should get no new clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// Not every listener is up.
    Starting,
    /// The relay is stopping.
    Draining,
    /// Control, which says who is admitted, has not spoken yet.
    Unsteered,
    /// The loop of this relay core does not turn.
    CoreStalled(usize),
}

impl Unready {
    /// Whether waiting will not help.
    #[must_use]
    pub const fn needs_restart(self) -> bool {
        match self {
            Self::Starting | Self::Draining | Self::Unsteered => false,
            Self::CoreStalled(_) => true,
        }
    }
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Draining => f.write_str("draining"),
            Self::Unsteered => f.write_str("nobody is admitted until control has spoken"),
            Self::CoreStalled(core) => write!(f, "core {core} stalled"),
        }
    }
}

/// The relay's pages and what they show.
#[derive(Debug)]
pub struct Site {
    /// What the home page is.
    pub home: Home,
    /// Whether `/derp` relays.
    pub derp: bool,
    /// TCP port of the TLS listener, to which the plain one redirects; `None` where TLS is off here
    /// and some proxy's, on the usual port.
    pub tls_port: Option<u16>,
    /// Names resolved for clients.
    pub bootstrap: Bootstrap,
    /// The counters to show and to count requests in.
    pub registry: Arc<Registry>,
    /// The key by which the primary side knows this satellite, where it is one.
    pub satellite: Option<Arc<Satellite>>,
    /// For a closer look at the fast path, where there is one.
    pub looks: Option<Looks>,
}

impl Site {
    /// The answer to `request`, counted. `unready` says why the relay should get no new clients.
    #[must_use]
    pub fn respond(&self, request: &Request<'_>, unready: &[Unready]) -> Answer {
        let route = route(request);
        let front = &self.registry.front;
        front.http_requests[route.index()].increment();
        if let Listener::Tls(version) = request.listener {
            front.tls_requests[version.index()].increment();
        }
        match route {
            Route::Derp => self.derp_page(),
            Route::Probe => probe(request.method),
            Route::Generate204 => generate_204(request.headers),
            Route::BootstrapDns => self.bootstrap_dns(request.uri),
            Route::Robots => browser(page(TEXT, "User-agent: *\nDisallow: /\n")),
            Route::Health => health(request.uri.path(), unready),
            Route::Metrics => guarded(request, || page(CONTENT_TYPE, self.registry.prometheus())),
            Route::Debug => self.debug(request),
            Route::SatelliteKey => self.satellite_key(request.method),
            Route::Connect => refuse(StatusCode::FORBIDDEN, "CONNECT not enabled"),
            Route::Home => self.home_page(),
            Route::Redirect => self.to_https(request),
            Route::Bad => refuse(StatusCode::BAD_REQUEST, "Use HTTPS"),
        }
    }

    fn derp_page(&self) -> Answer {
        if self.derp {
            refuse(StatusCode::UPGRADE_REQUIRED, "DERP requires connection upgrade")
        } else {
            refuse(StatusCode::NOT_FOUND, "derp server disabled")
        }
    }

    fn bootstrap_dns(&self, uri: &Uri) -> Answer {
        let query = uri.query().unwrap_or_default();
        let name = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("q="))
            .filter(|name| !name.is_empty());
        if let Some(name) = name {
            let front = &self.registry.front;
            if self.bootstrap.has(name) { &front.bootstrap_hits } else { &front.bootstrap_misses }
                .increment();
        }
        // Answers go to everybody once: keeping the connection would cost more than it saves.
        with(browser(page(JSON, self.bootstrap.document())), header::CONNECTION, "close")
    }

    /// The satellite's public key, for whoever registers it: anybody may ask.
    fn satellite_key(&self, method: &Method) -> Answer {
        if method != Method::GET && method != Method::HEAD {
            let answer = refuse(StatusCode::METHOD_NOT_ALLOWED, "the key is for reading");
            return with(answer, header::ALLOW, "GET, HEAD");
        }
        let Some(satellite) = &self.satellite else {
            return refuse(StatusCode::NOT_FOUND, "this relay is no satellite");
        };
        with(browser(page(JSON, satellite.document())), header::CACHE_CONTROL, "no-store")
    }

    fn home_page(&self) -> Answer {
        match &self.home {
            Home::Page => {
                with(browser(page(HTML, HOME_PAGE)), header::CONTENT_SECURITY_POLICY, HOME_POLICY)
            }
            Home::Blank => browser(page(HTML, "")),
            Home::Redirect(url) => browser(redirect(StatusCode::FOUND, url)),
        }
    }

    fn debug(&self, request: &Request<'_>) -> Answer {
        let path = request.uri.path();
        if path == "/debug" {
            return redirect(StatusCode::TEMPORARY_REDIRECT, "/debug/");
        }
        guarded(request, || match path {
            "/debug/" => page(HTML, DEBUG_PAGE),
            "/debug/varz" => page(CONTENT_TYPE, self.registry.varz()),
            "/debug/vars" => {
                page("application/json; charset=utf-8", self.registry.vars().to_string())
            }
            "/debug/xdp/trace" | "/debug/xdp/time" if self.looks.is_none() => {
                refuse(StatusCode::NOT_FOUND, "no XDP program is attached")
            }
            "/debug/xdp/trace" | "/debug/xdp/time" => refuse(
                StatusCode::BAD_REQUEST,
                "write ?seconds=1 to 60 and, for a trace, one_in=1 or more; one look at a time",
            ),
            _ => refuse(StatusCode::NOT_FOUND, "404 page not found"),
        })
    }

    /// The look at the fast path that `request` asks for: its text comes when the look is over.
    /// `None` for every other page, and for whoever may not look or asks wrongly.
    #[must_use]
    pub fn look(&self, request: &Request<'_>) -> Option<tokio::sync::oneshot::Receiver<String>> {
        let path = request.uri.path().strip_prefix("/debug/xdp/")?;
        if request.method != Method::GET || !may_debug(request) {
            return None;
        }
        let query = request.uri.query().unwrap_or_default();
        let number = |name: &str, default: u32| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let value = pairs.find(|(key, _)| *key == name);
            value.map_or(Some(default), |(_, text)| text.parse().ok().filter(|value| *value > 0))
        };
        let span = Duration::from_secs(number("seconds", 5)?.into());
        let subject = match path {
            "trace" => Subject::Packets { one_in: number("one_in", 100)? },
            "time" => Subject::Time,
            _ => return None,
        };
        let told = self.looks.as_ref().filter(|_| span <= SPAN_MAX)?.ask(subject, span)?;
        self.registry.front.http_requests[Route::Debug.index()].increment();
        Some(told)
    }

    /// The page of a look that is over, or was cut short because the relay ends.
    #[must_use]
    pub fn looked(text: Option<String>) -> Answer {
        text.map_or_else(
            || refuse(StatusCode::SERVICE_UNAVAILABLE, "the relay ends"),
            |text| browser(page(TEXT, text)),
        )
    }

    /// The same address over TLS; for the root, an operator's way to the debug pages.
    fn to_https(&self, request: &Request<'_>) -> Answer {
        let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let Some(host) = host.map(without_port).filter(|host| !host.is_empty()) else {
            return refuse(StatusCode::BAD_REQUEST, "Use HTTPS");
        };
        let port = match self.tls_port {
            None | Some(HTTPS_PORT) => String::new(),
            Some(port) => format!(":{port}"),
        };
        let path = match request.uri.path_and_query().map_or("/", |path| path.as_str()) {
            "/" if may_debug(request) => "/debug/",
            path => path,
        };
        redirect(StatusCode::FOUND, &format!("https://{host}{port}{path}"))
    }
}

/// What `request` asks for. The plain listener has few pages of its own and redirects the rest.
fn route(request: &Request<'_>) -> Route {
    let path = request.uri.path();
    match path {
        "/generate_204" => return Route::Generate204,
        "/healthz" | "/livez" | "/readyz" => return Route::Health,
        "/metrics" => return Route::Metrics,
        path if path == "/debug" || path.starts_with("/debug/") => return Route::Debug,
        _ => {}
    }
    let reads = request.method == Method::GET || request.method == Method::HEAD;
    match (request.listener, path) {
        (Listener::Plain, _) if reads => Route::Redirect,
        (Listener::Plain, _) => Route::Bad,
        (Listener::Tls(_) | Listener::Clear, _) if request.method == Method::CONNECT => {
            Route::Connect
        }
        (Listener::Tls(_) | Listener::Clear, path) => match path {
            "/derp" => Route::Derp,
            "/derp/probe" | "/derp/latency-check" => Route::Probe,
            "/bootstrap-dns" => Route::BootstrapDns,
            "/robots.txt" => Route::Robots,
            KEY_PATH => Route::SatelliteKey,
            _ => Route::Home,
        },
    }
}

/// The latency probe of clients without UDP, from browsers too.
fn probe(method: &Method) -> Answer {
    if method != Method::GET && method != Method::HEAD {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "bogus probe method");
    }
    with(Response::default(), header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")
}

/// The captive-portal check, which a portal cannot answer because it does not echo the challenge.
fn generate_204(headers: &HeaderMap) -> Answer {
    let mut answer = with(status(StatusCode::NO_CONTENT), header::CACHE_CONTROL, NO_CACHE);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    let challenge =
        headers.get(CHALLENGE).and_then(|value| value.to_str().ok()).filter(|challenge| {
            (1..=CHALLENGE_LEN_MAX).contains(&challenge.len()) && challenge.bytes().all(allowed)
        });
    if let Some(Ok(response)) =
        challenge.map(|text| HeaderValue::try_from(format!("response {text}")))
    {
        answer.headers_mut().insert(CHALLENGE_RESPONSE, response);
    }
    answer
}

fn health(path: &str, unready: &[Unready]) -> Answer {
    let answer = match path {
        "/healthz" => page(TEXT, "OK"),
        "/livez" => report("live", unready.iter().filter(|why| why.needs_restart())),
        _ => report("ready", unready.iter()),
    };
    with(answer, header::CACHE_CONTROL, "no-store")
}

/// `{"<what>": true}`, or 503 and the reasons why not.
fn report<'a>(what: &str, reasons: impl Iterator<Item = &'a Unready>) -> Answer {
    let reasons: Vec<_> = reasons.map(ToString::to_string).collect();
    let mut answer =
        page(JSON, serde_json::json!({ what: reasons.is_empty(), "reasons": reasons }).to_string());
    if !reasons.is_empty() {
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    answer
}

/// The page for those who may see it.
fn guarded(request: &Request<'_>, page: impl FnOnce() -> Answer) -> Answer {
    if may_debug(request) {
        browser(page())
    } else {
        refuse(StatusCode::FORBIDDEN, "debug access denied")
    }
}

/// Loopback and Tailscale addresses, not through a proxy that might stand for somebody else.
fn may_debug(request: &Request<'_>) -> bool {
    let forwarded = FORWARDED
        .iter()
        .any(|name| request.headers.get(name).is_some_and(|value| !value.is_empty()));
    !forwarded
        && match request.client.to_canonical() {
            // 100.64.0.0/10, the carrier-grade NAT range (RFC 6598).
            IpAddr::V4(address) => {
                address.is_loopback() || matches!(address.octets(), [100, 64..=127, ..])
            }
            // fd7a:115c:a1e0::/48.
            IpAddr::V6(address) => {
                address.is_loopback() || matches!(address.segments(), [0xfd7a, 0x115c, 0xa1e0, ..])
            }
        }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') =>
        {
            name
        }
        Some(_) | None => host,
    }
}

fn status(status: StatusCode) -> Answer {
    let mut answer = Answer::default();
    *answer.status_mut() = status;
    answer
}

fn page(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    with(Response::new(Full::new(body.into())), header::CONTENT_TYPE, content_type)
}

/// A refusal as Go's HTTP library words it: plain text and a line end.
fn refuse(code: StatusCode, text: &'static str) -> Answer {
    let mut answer =
        with(page(TEXT, format!("{text}\n")), header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    *answer.status_mut() = code;
    answer
}

fn redirect(code: StatusCode, location: &str) -> Answer {
    match HeaderValue::from_str(location) {
        Ok(location) => {
            let mut answer = status(code);
            answer.headers_mut().insert(header::LOCATION, location);
            answer
        }
        Err(_) => refuse(StatusCode::BAD_REQUEST, "Use HTTPS"),
    }
}

/// Adds the headers that browsers heed.
fn browser(mut answer: Answer) -> Answer {
    for (name, value) in [
        (header::STRICT_TRANSPORT_SECURITY, STRICT_TRANSPORT),
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        answer = with(answer, name, value);
    }
    answer
}

fn with(mut answer: Answer, name: HeaderName, value: &'static str) -> Answer {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}

#[cfg(test)]
mod tests;
