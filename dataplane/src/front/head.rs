//! The first request of a connection: a DERP upgrade, or plain HTTP for hyper.
//!
//! Reads no further than the head: everything behind it belongs to whoever comes next.

use httparse::{EMPTY_HEADER, Header, Request, Status};

/// Longest request head in bytes; stock clients send under 300.
pub(super) const HEAD_LEN_MAX: usize = 16 << 10;
/// Most header lines of a head.
pub(super) const HEADERS_MAX: usize = 100;

/// What the first request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The raw DERP upgrade.
    Derp {
        /// The client knows the server's key: no HTTP answer may be sent.
        fast_start: bool,
        /// It wanted another node of the region.
        not_ideal: bool,
    },
    /// DERP in WebSocket messages.
    WebSocket(Box<WebSocket>),
    /// Anything else, and heads that make no sense, for hyper to answer.
    Http,
}

/// The terms of a WebSocket upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WebSocket {
    /// `Sec-WebSocket-Key` as sent.
    pub key: Vec<u8>,
    /// The version is 13, the only one there is.
    pub version_fits: bool,
    /// One of the protocols offered is `derp` and not merely contains it.
    pub offers_derp: bool,
}

impl WebSocket {
    /// Whether the upgrade can be granted, even if not to DERP.
    #[must_use]
    pub(super) fn fits(&self) -> bool {
        self.version_fits && !self.key.is_empty()
    }
}

/// A request head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// What it asks for.
    pub(super) asked: Asked,
    /// Where it ends; 0 if it makes no sense.
    pub(super) end: usize,
    /// A body follows it.
    pub(super) has_body: bool,
}

/// Reads the head at the front of `bytes`; `None` if it is not complete yet.
#[must_use]
pub(super) fn read(bytes: &[u8]) -> Option<Head> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(Status::Complete(end)) => {
            let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default();
            let find = |name: &str| value(request.headers, name);
            let has_body = find("transfer-encoding").is_some()
                || find("content-length").is_some_and(|len| len != b"0");
            Some(Head { asked: decide(path, find), end, has_body })
        }
        Ok(Status::Partial) if bytes.len() < HEAD_LEN_MAX => None,
        Ok(Status::Partial) | Err(_) => Some(Head { asked: Asked::Http, end: 0, has_body: false }),
    }
}

/// What a request for `path` asks for, whose headers `find` looks up by their lower-case names.
///
/// Only the path and the `Upgrade` header decide, as in derper: clients in the field send the raw
/// upgrade with any method.
fn decide<'a>(path: &str, find: impl Fn(&str) -> Option<&'a [u8]>) -> Asked {
    if path != "/derp" {
        return Asked::Http;
    }
    let upgrade = find("upgrade").unwrap_or_default();
    let protocols = find("sec-websocket-protocol").unwrap_or_default();
    let is_web_socket = upgrade.eq_ignore_ascii_case(b"websocket");
    if is_web_socket && contains(protocols, b"derp") {
        return Asked::WebSocket(Box::new(WebSocket {
            key: find("sec-websocket-key").unwrap_or_default().to_vec(),
            version_fits: find("sec-websocket-version") == Some(b"13"),
            offers_derp: protocols.split(|byte| *byte == b',').any(|p| p.trim_ascii() == b"derp"),
        }));
    }
    // Very old clients said "websocket" and meant the raw stream.
    if is_web_socket || upgrade.eq_ignore_ascii_case(b"derp") {
        return Asked::Derp {
            fast_start: find("derp-fast-start") == Some(b"1"),
            not_ideal: find("ideal-node").is_some_and(|node| !node.is_empty()),
        };
    }
    Asked::Http
}

fn value<'a>(headers: &[Header<'a>], name: &str) -> Option<&'a [u8]> {
    let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    Some(header.value.trim_ascii())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(head: &str) -> Option<Asked> {
        read(head.replace('\n', "\r\n").as_bytes()).map(|head| head.asked)
    }

    const STOCK: &str = "GET /derp HTTP/1.1\nHost: h\nUpgrade: DERP\nConnection: Upgrade\n";

    #[test]
    fn the_stock_upgrade_is_known_with_and_without_its_options() {
        let asked = |extra: &str| ask(&format!("{STOCK}{extra}\n"));
        let derp = |fast_start, not_ideal| Some(Asked::Derp { fast_start, not_ideal });
        assert_eq!(asked(""), derp(false, false));
        assert_eq!(asked("Derp-Fast-Start: 1\n"), derp(true, false));
        assert_eq!(asked("Derp-Fast-Start: 2\n"), derp(false, false));
        assert_eq!(asked("derp-fast-start: 1\nIdeal-Node: 1b\n"), derp(true, true));
    }

    #[test]
    fn a_cut_head_waits_and_the_rest_is_left_alone() {
        let head = format!("{STOCK}\n").replace('\n', "\r\n");
        for cut in 0..head.len() {
            assert_eq!(read(&head.as_bytes()[..cut]), None, "{cut}");
        }
        let with_more = format!("{head}rest");
        assert_eq!(read(with_more.as_bytes()).map(|read| read.end), Some(head.len()));
    }

    #[test]
    fn web_socket_terms_are_judged() {
        let head = |protocols: &str, version: &str| {
            ask(&format!(
                "GET /derp HTTP/1.1\nUpgrade: WebSocket\nSec-WebSocket-Key: k\n\
                 Sec-WebSocket-Protocol: {protocols}\nSec-WebSocket-Version: {version}\n\n"
            ))
        };
        let terms = |protocols, version| match head(protocols, version) {
            Some(Asked::WebSocket(terms)) => (terms.offers_derp, terms.version_fits),
            other => panic!("{other:?}"),
        };
        assert_eq!(terms("chat, derp", "13"), (true, true));
        assert_eq!(terms("xderpx", "12"), (false, false));
        assert_eq!(head("chat", "13"), Some(Asked::Derp { fast_start: false, not_ideal: false }));
    }

    #[test]
    fn everything_else_is_http() {
        for head in [
            "GET / HTTP/1.1\n\n",
            "GET /derp HTTP/1.1\n\n",
            "GET /derp/x HTTP/1.1\nUpgrade: derp\n\n",
            "nonsense\n\n",
        ] {
            assert_eq!(ask(head), Some(Asked::Http), "{head}");
        }
        let endless = vec![b'a'; HEAD_LEN_MAX];
        assert_eq!(read(&endless).map(|head| (head.asked, head.end)), Some((Asked::Http, 0)));
    }
}
