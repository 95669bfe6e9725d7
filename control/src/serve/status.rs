//! The status page at `/` and `/status`, and the same as `/status.json`: for everybody, without
//! authentication, like the map.
//!
//! Tells names, places, states and latencies, and never why something fails, which may name hosts
//! that are nobody's business. Everything is of this process's memory, rendered once a second at most.
//! The page is whole without script; script adds what only the visitor's browser knows. Nothing comes
//! from elsewhere, which its Content-Security-Policy says by hashes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::Url;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Control;
use super::prober::{Health, State, TargetKind};
use super::problem::{Code, Problem};
use crate::clock::{self, Stamp};
use crate::derp_map::DerpMap;
use crate::probe::latency::{
    BAD_ABOVE_MS, Band, GOOD_BELOW_MS, LOSS_BELOW_PER_MILLE, Latencies, ROUND_TRIP_BELOW_MS, words,
};
use crate::resource::Node;
use crate::store::UnixS;

const STYLE: &str = include_str!("status/page.css");
const SCRIPT: &str = include_str!("status/page.js");
/// How long a rendered page is served.
const KEEP: Duration = Duration::from_secs(1);
/// Rows on the page, at most, so that page and policy stay small; `/status.json` has all.
const ROWS_MAX: usize = 100;

/// Everything that the page says, as `/status.json` says it.
#[derive(Debug, Serialize)]
struct Status {
    as_of: Stamp,
    regions: Vec<Region>,
    satellites: Vec<Target>,
    latency_bands_ms: Bands,
}

#[derive(Debug, Serialize)]
struct Bands {
    good_below: u32,
    bad_above: u32,
    required_below: u32,
}

#[derive(Debug, Serialize)]
struct Region {
    region: String,
    region_id: u32,
    title: String,
    nodes: Vec<Target>,
}

#[derive(Debug, Serialize)]
struct Target {
    name: String,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Stamp>,
    /// As control measured it.
    latency_ms: Latencies,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// What a browser asks to measure its own latency; nothing if there is nothing it could ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_url: Option<String>,
}

/// Both forms, ready to be sent.
#[derive(Debug)]
struct Rendered {
    page: Bytes,
    policy: HeaderValue,
    json: Bytes,
}

/// What was rendered last, and when.
#[derive(Debug, Default)]
pub(crate) struct StatusPage(Mutex<Option<(Instant, Arc<Rendered>)>>);

impl StatusPage {
    async fn current(&self, control: &Control) -> Result<Arc<Rendered>, Problem> {
        let mut kept = self.0.lock().await;
        if let Some((at, rendered)) = &*kept
            && at.elapsed() < KEEP
        {
            return Ok(Arc::clone(rendered));
        }
        let current = control.board.current(&*control.store).await.map_err(|_| {
            let why = "the DERP map cannot be built; readyz tells those who may know why";
            Problem::new(Code::DerpMapUnavailable, why)
        })?;
        let status =
            Status::of(&current.map, control.prober.all(None, &[]), &control.prober.urls());
        let rendered = Arc::new(status.render()?);
        *kept = Some((Instant::now(), Arc::clone(&rendered)));
        Ok(rendered)
    }
}

/// `GET /` and `GET /status`.
pub(super) async fn page(Shared(control): Shared<Arc<Control>>) -> Result<Response, Problem> {
    let rendered = control.status.current(&control).await?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, rendered.policy.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    Ok((headers, rendered.page.clone()).into_response())
}

/// `GET /status.json`.
pub(super) async fn json(Shared(control): Shared<Arc<Control>>) -> Result<Response, Problem> {
    let rendered = control.status.current(&control).await?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
    ];
    Ok((headers, rendered.json.clone()).into_response())
}

impl Status {
    fn of(map: &DerpMap, health: Vec<Health>, urls: &BTreeMap<String, String>) -> Self {
        let (mut nodes, mut satellites) = (BTreeMap::new(), Vec::new());
        for health in health {
            match health.kind {
                TargetKind::Node => drop(nodes.insert(health.name.clone(), health)),
                TargetKind::Satellite => {
                    let url = urls.get(&health.name);
                    let url = url.and_then(|url| latency_url(url, "/latency-check"));
                    satellites.push(Target::of(health, url));
                }
            }
        }
        let mut node = |node: &Node| match nodes.remove(&node.name) {
            Some(health) => Target::of(health, node_url(node)),
            None => Target::unknown(node),
        };
        let regions = map.regions.values().map(|of| Region {
            region: of.region.name.clone(),
            region_id: of.region.region_id,
            title: match of.region.title.as_str() {
                "" => of.region.name.clone(),
                title => title.to_owned(),
            },
            nodes: of.nodes.iter().map(&mut node).collect(),
        });
        Self {
            as_of: Stamp(clock::now()),
            regions: regions.collect(),
            satellites,
            latency_bands_ms: Bands {
                good_below: GOOD_BELOW_MS,
                bad_above: BAD_ABOVE_MS,
                required_below: ROUND_TRIP_BELOW_MS,
            },
        }
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.regions.iter().flat_map(|region| &region.nodes).chain(&self.satellites)
    }

    fn render(&self) -> Result<Rendered, Problem> {
        let json = serde_json::to_vec(self);
        let json = json.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
        let policy = HeaderValue::from_str(&self.policy());
        let policy = policy.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
        Ok(Rendered { page: Bytes::from(self.html()), policy, json: Bytes::from(json) })
    }

    /// Who may be asked by the script: us, and those on the page.
    fn policy(&self) -> String {
        static HASHES: LazyLock<[String; 2]> = LazyLock::new(|| {
            [STYLE, SCRIPT].map(|text| BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes())))
        });
        let [style, script] = &*HASHES;
        let shown = self.targets().take(ROWS_MAX).filter_map(|target| target.latency_url.as_ref());
        let mut origins: Vec<_> = shown.filter_map(|url| origin(url)).collect();
        origins.sort();
        origins.dedup();
        let origins: String = origins.iter().map(|origin| format!(" {origin}")).collect();
        format!(
            "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; \
             img-src data:; connect-src 'self'{origins}; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'"
        )
    }

    fn html(&self) -> String {
        let mut room = ROWS_MAX;
        let mut relays = String::new();
        let now = self.as_of;
        for region in &self.regions {
            for node in region.nodes.iter().take(room) {
                let under = format!("{} · {}", escape(&region.region), escape(&node.name));
                row(&mut relays, ("node", &region.title, &under), node, now);
                room -= 1;
            }
        }
        let mut satellites = String::new();
        for satellite in self.satellites.iter().take(room) {
            let under = satellite.version.as_deref().map(escape).unwrap_or_default();
            row(&mut satellites, ("satellite", &satellite.name, &under), satellite, now);
        }
        let mut page = String::with_capacity(STYLE.len() + SCRIPT.len() + relays.len() + 4096);
        let all = self.targets().count();
        let more = match all.saturating_sub(ROWS_MAX) {
            0 => String::new(),
            more => format!("<p>{more} more are in <a href=\"/status.json\">status.json</a>.</p>"),
        };
        let (loss, at) = (f64::from(LOSS_BELOW_PER_MILLE) / 10.0, self.as_of);
        // Writing to a string cannot fail.
        let _ = writeln!(
            page,
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>Relay status</title><link rel=\"icon\" href=\"data:,\">\
             <style>{STYLE}</style></head>\
             <body data-good-below=\"{GOOD_BELOW_MS}\" data-bad-above=\"{BAD_ABOVE_MS}\" \
             data-required=\"{ROUND_TRIP_BELOW_MS}\">\
             <header><p class=\"title\">Relay status</p>{}<p>As of <time datetime=\"{at}\">{}</time></p></header><main>{}{}{more}</main>\
             <footer><p id=\"nearest\" role=\"status\"></p>\
             <p>Latency is good below {GOOD_BELOW_MS} ms, fair to {BAD_ABOVE_MS} ms and slow above. \
             Required are a round trip below {ROUND_TRIP_BELOW_MS} ms and a loss below {loss} %.</p>\
             <noscript><p>Latency from your browser takes script.</p></noscript>\
             <p><a href=\"/status.json\">status.json</a></p></footer>\
             <script>{SCRIPT}</script></body></html>",
            self.headline(),
            at.to_string().replace('T', " ").replace('Z', " UTC"),
            table("Relays", &relays),
            table("Satellites", &satellites),
        );
        page
    }

    /// The state of all in one sentence.
    fn headline(&self) -> String {
        let count = |state| self.targets().filter(|target| target.state == state).count();
        let (healthy, unhealthy) = (count(State::Healthy), count(State::Unhealthy));
        let all = self.targets().count();
        let (class, text) = match (all, unhealthy, healthy) {
            (0, ..) => ("none", "Nothing is registered yet".to_owned()),
            (1, 1, _) => ("bad", "It does not answer".to_owned()),
            (_, 1, _) => ("bad", format!("1 of {all} does not answer")),
            (_, 2.., _) => ("bad", format!("{unhealthy} of {all} do not answer")),
            (_, 0, healthy) if healthy == all => ("good", "Everything answers".to_owned()),
            (_, 0, healthy) => ("none", format!("{healthy} of {all} were seen to answer")),
        };
        format!("<h1 class=\"{class}\">{text}</h1>")
    }
}

impl Target {
    fn of(health: Health, latency_url: Option<String>) -> Self {
        Self {
            name: health.name,
            state: health.state,
            since: health.since,
            latency_ms: health.latency_ms,
            version: health.version,
            latency_url,
        }
    }

    fn unknown(node: &Node) -> Self {
        Self {
            name: node.name.clone(),
            state: State::Unknown,
            since: None,
            latency_ms: Latencies::default(),
            version: None,
            latency_url: node_url(node),
        }
    }
}

fn table(caption: &str, rows: &str) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let id = caption.to_ascii_lowercase();
    format!(
        "<section aria-labelledby=\"{id}\"><h2 id=\"{id}\">{caption}</h2><table>\
         <thead><tr><th scope=\"col\">Name</th><th scope=\"col\" class=\"state\">State</th>\
         <th scope=\"col\" class=\"ms\">From control</th>\
         <th scope=\"col\" class=\"ms\">From your browser</th></tr></thead>\
         <tbody>{rows}</tbody></table></section>"
    )
}

fn row(rows: &mut String, (kind, title, under): (&str, &str, &str), target: &Target, now: Stamp) {
    let (class, state) = match target.state {
        State::Healthy => ("good", "healthy"),
        State::Unhealthy => ("bad", "unhealthy"),
        State::Unknown => ("none", "unknown"),
    };
    let name = escape(&target.name);
    let title = escape(title);
    let url = target.latency_url.as_deref().map(escape);
    let url = url.map(|url| format!(" data-url=\"{url}\" data-title=\"{title}\""));
    let since = target.since.filter(|_| target.state == State::Unhealthy);
    let since = since.map(|at| format!("<small>for {}</small>", age(now.0 - at.0)));
    // Writing to a string cannot fail.
    let _ = write!(
        rows,
        "<tr data-target=\"{kind}/{name}\"{}><th scope=\"row\">{title}<small>{under}</small></th>\
         <td data-state class=\"state {class}\">{state}{}</td>{}\
         <td data-here class=\"ms none\">–</td></tr>",
        url.unwrap_or_default(),
        since.unwrap_or_default(),
        measured(target.latency_ms.shown()),
    );
}

/// Seconds in the largest unit of which there is at least one.
fn age(seconds: UnixS) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "min")];
    match units.into_iter().find(|(unit, _)| seconds >= *unit) {
        Some((unit, word)) => format!("{} {word}", seconds / unit),
        None => format!("{} s", seconds.max(0)),
    }
}

/// A latency with its colour, and with its word for those whom a colour tells nothing.
fn measured(ms: Option<f64>) -> String {
    let Some(ms) = ms else { return "<td data-there class=\"ms none\">–</td>".to_owned() };
    let (class, word) = match Band::of(ms) {
        Band::Good => ("good", "good"),
        Band::Fair => ("fair", "fair"),
        Band::Bad => ("bad", "slow"),
    };
    format!("<td data-there class=\"ms {class}\">{}<small>{word}</small></td>", words(ms))
}

/// Where a browser measures its latency to a node.
fn node_url(node: &Node) -> Option<String> {
    let scheme = if node.force_http { "http" } else { "https" };
    let port = match node.derp_port {
        0 => 443,
        port => port,
    };
    let host = match node.host_name.contains(':') {
        true => format!("[{}]", node.host_name),
        false => node.host_name.clone(),
    };
    let url = format!("{scheme}://{host}:{port}");
    (!node.stun_only).then(|| latency_url(&url, "/derp/latency-check")).flatten()
}

fn latency_url(base: &str, path: &str) -> Option<String> {
    let mut url = Url::parse(base).ok()?;
    url.set_path(path);
    // What the page's policy cannot name, no browser may ask from it.
    let url = String::from(url);
    origin(&url).is_some().then_some(url)
}

/// The origin of `url` as a policy may name it: a host that could say more than its name is not.
fn origin(url: &str) -> Option<String> {
    let origin = Url::parse(url).ok()?.origin().ascii_serialization();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || ":/.-_".contains(letter);
    origin.chars().all(plain).then_some(origin)
}

/// `text` as it may stand in HTML, in attributes, too.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(title: &str, host: &str, health: Vec<Health>) -> Status {
        let map = DerpMap::from_value(json!({"Regions": {"1": {
            "RegionID": 1, "RegionCode": "fra", "RegionName": title, "Nodes": [
                {"Name": "1a", "RegionID": 1, "HostName": "h", "DERPPort": 8443},
            ],
        }}}));
        let mut map = map.expect("a map");
        // As no check would let it pass.
        for region in map.regions.values_mut() {
            host.clone_into(&mut region.nodes[0].host_name);
        }
        Status::of(&map, health, &BTreeMap::new())
    }

    fn health(state: State, derp: f64) -> Health {
        Health {
            kind: TargetKind::Node,
            name: "1a".into(),
            state,
            since: None,
            checked_at: None,
            why: Some("10.0.0.7: refused".into()),
            latency_ms: Latencies { derp: Some(derp), ..Latencies::default() },
            version: None,
            left_out: false,
        }
    }

    #[test]
    fn the_page_says_states_and_latencies_in_words_and_not_why() {
        let status = status("Frankfurt", "relay.example", vec![health(State::Unhealthy, 301.0)]);
        let page = status.html();
        for part in [
            "<h1 class=\"bad\">It does not answer</h1>",
            "class=\"state bad\">unhealthy</td>",
            "class=\"ms bad\">301 ms<small>slow</small></td>",
            "data-url=\"https://relay.example:8443/derp/latency-check\"",
        ] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
        let json = serde_json::to_string(&status).expect("plain data");
        assert!(!page.contains("10.0.0.7") && !json.contains("10.0.0.7"));
        assert!(status.policy().contains("connect-src 'self' https://relay.example:8443;"));
    }

    #[test]
    fn names_add_nothing_to_page_or_policy() {
        let status = status("<script>alert(1)</script>\"'", "a;script-src", Vec::new());
        let page = status.html();
        assert!(!page.contains("<script>alert") && page.contains("&lt;script&gt;alert"));
        assert!(status.policy().contains("connect-src 'self'; base-uri"), "{}", status.policy());
    }

    #[test]
    fn ages_are_in_their_largest_unit() {
        let ages = [-5, 59, 60, 7_199, 86_400 * 3].map(age);
        assert_eq!(ages, ["0 s", "59 s", "1 min", "1 h", "3 d"]);
    }

    #[test]
    fn the_page_is_small_however_much_there_is() {
        let region = |id: u32| {
            let node = json!({"Name": format!("n{id}"), "RegionID": id, "HostName": "h.example"});
            (
                id.to_string(),
                json!({"RegionID": id, "RegionCode": format!("r{id}"), "Nodes": [node]}),
            )
        };
        let regions: serde_json::Map<_, _> = (1..=10_000).map(region).collect();
        let map = DerpMap::from_value(json!({"Regions": regions})).expect("a map");
        let status = Status::of(&map, Vec::new(), &BTreeMap::new());
        let page = status.html();
        assert!(page.len() < 50_000, "{} bytes", page.len());
        assert!(page.contains("9900 more"));
        assert_eq!(
            serde_json::to_value(&status).expect("plain")["regions"][9_999]["region_id"],
            10_000
        );
    }
}
