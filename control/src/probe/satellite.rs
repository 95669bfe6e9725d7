//! A satellite, asked at its access URL for what its primary and its users' browsers ask.
//!
//! Latency is that of `/latency-check` (Coder's dashboard); relays and v1 satellites answer other
//! paths, which are tried next. `/healthz-report` is what a v2 primary judges by, and
//! `/api/v2/buildinfo` tells the version. A satellite without the last two has only its latency.

use std::time::Duration;

use reqwest::Url;
use rustls::pki_types::ServerName;
use serde::Deserialize;

use super::link::{Dial, Line};
use super::place::resolve;
use super::trust::{Expected, Trust};
use super::{Fault, ROUNDS};

/// Where latency is measured: v2 satellites, relays, v1 satellites.
const LATENCY_PATHS: [&str; 3] = ["/latency-check", "/derp/latency-check", "/cem-healthz"];
const REPORT: &str = "/healthz-report";
const BUILD_INFO: &str = "/api/v2/buildinfo";
/// Characters of a text that a satellite says of itself, at most.
const TEXT_CHARS_MAX: usize = 120;

/// What a visit of a satellite has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// From a request on an open connection to its answer, or why the satellite is not well.
    pub latency: Result<Duration, Fault>,
    /// What it says its version is.
    pub version: Option<String>,
}

/// A satellite's `/healthz-report`, as a v2 primary reads it.
#[derive(Deserialize)]
struct Report {
    errors: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct BuildInfo {
    version: String,
}

/// Visits the satellite at `access_url` once.
pub async fn visit(access_url: &str, trust: &Trust) -> Visit {
    let mut satellite = match Satellite::connect(access_url, trust).await {
        Ok(satellite) => satellite,
        Err(fault) => return Visit { latency: Err(fault), version: None },
    };
    let mut latency = satellite.check_latency().await;
    for _ in 1..ROUNDS {
        let Ok(best) = latency else { return Visit { latency, version: None } };
        latency = satellite.check_latency().await.map(|again| best.min(again));
    }
    let latency = satellite.report().await.and(latency);
    Visit { latency, version: satellite.version().await }
}

/// A satellite to talk to.
#[derive(Debug)]
pub struct Satellite {
    line: Line,
    /// The path that it answers latency checks on, once known.
    latency_path: Option<&'static str>,
}

impl Satellite {
    /// Connects to the satellite at `access_url`.
    ///
    /// # Errors
    /// When it is not to be reached, or its certificate is not to be trusted.
    pub async fn connect(access_url: &str, trust: &Trust) -> Result<Self, Fault> {
        let line = Line::open(dial(access_url, trust).await?).await?;
        Ok(Self { line, latency_path: None })
    }

    /// How long a latency check takes.
    ///
    /// # Errors
    /// When none of the paths that satellites have is answered with success.
    pub async fn check_latency(&mut self) -> Result<Duration, Fault> {
        let known = self.latency_path;
        let paths =
            LATENCY_PATHS.into_iter().filter(|path| known.is_none_or(|known| known == *path));
        let mut first = None;
        for path in paths {
            let answer = self.line.get(path).await?;
            if answer.status.is_success() {
                self.latency_path = Some(path);
                return Ok(answer.round_trip);
            }
            first.get_or_insert_with(|| Fault::failed(format_args!("{path}: {}", answer.status)));
        }
        Err(first.unwrap_or_else(|| Fault::failed("it answers no latency check")))
    }

    /// The first thing that it says is wrong with itself.
    async fn report(&mut self) -> Result<(), Fault> {
        let answer = self.line.get(REPORT).await?;
        if answer.status.is_server_error() {
            return Err(Fault::failed(format_args!("{REPORT}: {}", answer.status)));
        }
        // Whoever has no such page may answer anything, which says nothing.
        let report = serde_json::from_slice::<Report>(&answer.body).ok();
        let report = report.filter(|_| answer.status.is_success());
        match report.and_then(|report| report.errors).and_then(|errors| errors.into_iter().next()) {
            Some(error) => Err(Fault::failed(format_args!("it says: {}", plain(&error)))),
            None => Ok(()),
        }
    }

    /// Its version, if it tells one.
    async fn version(&mut self) -> Option<String> {
        let answer = self.line.get(BUILD_INFO).await.ok()?;
        let info: BuildInfo = serde_json::from_slice(&answer.body).ok()?;
        Some(plain(&info.version)).filter(|version| !version.is_empty())
    }
}

async fn dial(access_url: &str, trust: &Trust) -> Result<Dial, Fault> {
    let none = || Fault::failed(format_args!("{access_url}: is no HTTP address"));
    let url = Url::parse(access_url).map_err(|_| none())?;
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err(none());
    };
    let addresses = resolve(host, port).await?;
    let tls = match url.scheme() {
        "http" => None,
        _ => {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let name = ServerName::try_from(bare.to_owned()).map_err(|_| none())?;
            Some((trust.settings(Expected::Dialled).await?, name))
        }
    };
    Ok(Dial { addresses, host: format!("{host}:{port}"), tls })
}

/// A stranger's text, fit for a line of a table.
fn plain(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|letter| !letter.is_control()).take(TEXT_CHARS_MAX).collect()
}
