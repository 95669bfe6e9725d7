//! Counters and gauges of control, and how Prometheus reads them. Label sets are closed, and every
//! series is there from the start, at zero.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::steering::{self, Ended};
use crate::store::{Kind, Revision};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Answers by the first digit of their status, from 1.
    pub(crate) answers: [Counter; 5],
    /// Requests without a token that may do what they asked.
    pub(crate) auth_failures: Counter,
    /// Connections accepted.
    pub(crate) connections: Counter,
    /// Strangers' connections closed for others, as many being open as may be.
    pub(crate) connections_displaced: Counter,
    /// Connections closed at once because as many were open as may be.
    pub(crate) connections_refused: Counter,
    /// Watch streams refused because as many were open as may be.
    pub(crate) watches_refused: Counter,
    /// Signs of life taken from satellites.
    pub(crate) satellite_reports: Counter,
    /// Signs of life refused.
    pub(crate) satellite_refusals: Counter,
    /// Admissions answered with yes, and with no.
    pub(crate) verify: [Counter; 2],
    /// Requests that took longer than they may.
    pub(crate) timeouts: Counter,
}

/// What is read off when somebody asks.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) revision: Revision,
    pub(crate) records: Vec<(Kind, u64)>,
    /// Regions and nodes of the map in service.
    pub(crate) map: Option<(usize, usize)>,
    /// Whether the map in service is what store and sources say.
    pub(crate) map_is_current: bool,
    /// Whether this control does what one of several should do.
    pub(crate) leads: bool,
    pub(crate) watches: usize,
    /// Connected dataplanes, and how many revisions the last of them is behind.
    pub(crate) dataplanes: usize,
    pub(crate) steer_lag: u64,
}

/// What takes a family's name, kind, help and samples.
type Family<'a> = dyn FnMut(&str, &str, &str, Vec<(String, u64)>) + 'a;

fn steering_families(steer: &steering::Counters, gauges: &Gauges, family: &mut Family<'_>) {
    let one = |value: u64| vec![(String::new(), value)];
    let two = |label: &str, words: [&str; 2], values: [&Counter; 2]| {
        let samples = words.iter().zip(values);
        samples.map(|(word, value)| (format!("{{{label}=\"{word}\"}}"), value.now())).collect()
    };
    let help = "Connected dataplanes.";
    family("control_steer_dataplanes", "gauge", help, one(gauges.dataplanes as u64));
    let help = "Revisions that the last of the connected dataplanes is behind.";
    family("control_steer_lag_revisions", "gauge", help, one(gauges.steer_lag));
    let help = "Connections of dataplanes accepted.";
    family("control_steer_connections_total", "counter", help, one(steer.connections.now()));
    let ends = Ended::ALL.iter().zip(&steer.ended);
    let ends = ends.map(|(end, count)| (format!("{{reason=\"{}\"}}", end.word()), count.now()));
    let help = "Connections of dataplanes ended, by reason.";
    family("control_steer_ended_total", "counter", help, ends.collect());
    let sent = two("kind", ["whole", "delta"], [&steer.wholes, &steer.deltas]);
    family("control_steer_orders_total", "counter", "Snapshots and deltas sent.", sent);
    let answers = two("result", ["adopted", "refused"], [&steer.adopted, &steer.refused]);
    family("control_steer_answers_total", "counter", "Answers to them.", answers);
    let help = "Lines of dataplanes of a kind that is not known.";
    family("control_steer_unknown_lines_total", "counter", help, one(steer.unknown_lines.now()));
}

/// Appends one family of series to a page in Prometheus' text format.
pub(crate) fn family(
    page: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    samples: Vec<(String, u64)>,
) {
    // Writing to a string cannot fail.
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(page, "{name}{labels} {value}");
    }
}

/// The page in Prometheus' text format.
pub(crate) fn page(counters: &Counters, steer: &steering::Counters, gauges: &Gauges) -> String {
    let mut page = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, u64)>| {
        family(&mut page, name, kind, help, samples);
    };
    let one = |value: u64| vec![(String::new(), value)];
    let build = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    family("control_build_info", "gauge", "Always 1; the version.", vec![(build, 1)]);
    let answers = counters.answers.iter().enumerate();
    let answers = answers.map(|(at, count)| (format!("{{class=\"{}xx\"}}", at + 1), count.now()));
    let help = "Answers to requests by class of status.";
    family("control_http_answers_total", "counter", help, answers.collect());
    for (name, help, counter) in [
        (
            "control_auth_failures_total",
            "Requests without a token for them.",
            &counters.auth_failures,
        ),
        ("control_connections_total", "Connections accepted.", &counters.connections),
        (
            "control_connections_displaced_total",
            "Connections without a token closed for newer ones: as many were open as may be.",
            &counters.connections_displaced,
        ),
        (
            "control_connections_refused_total",
            "Connections to the unix socket closed at once: as many were open as may be.",
            &counters.connections_refused,
        ),
        (
            "control_watches_refused_total",
            "Watch streams refused: as many were open as may be.",
            &counters.watches_refused,
        ),
        (
            "control_satellite_reports_total",
            "Signs of life taken from satellites.",
            &counters.satellite_reports,
        ),
        (
            "control_satellite_refusals_total",
            "Signs of life refused: wrong key, clock or nonce.",
            &counters.satellite_refusals,
        ),
        ("control_timeouts_total", "Requests that took too long.", &counters.timeouts),
    ] {
        family(name, "counter", help, one(counter.now()));
    }
    let results = ["allowed", "refused"].iter().zip(&counters.verify);
    let results = results.map(|(word, count)| (format!("{{result=\"{word}\"}}"), count.now()));
    let help = "Admissions answered to relays.";
    family("control_verify_total", "counter", help, results.collect());
    let revision = gauges.revision.0.unsigned_abs();
    family("control_store_revision", "gauge", "Revision of the last change.", one(revision));
    let records = gauges.records.iter();
    let records = records.map(|(kind, count)| (format!("{{kind=\"{}\"}}", kind.word()), *count));
    family("control_records", "gauge", "Records by kind.", records.collect());
    let (regions, nodes) = gauges.map.unwrap_or_default();
    family("control_derp_map_regions", "gauge", "Regions of the map served.", one(regions as u64));
    family("control_derp_map_nodes", "gauge", "Nodes of the map served.", one(nodes as u64));
    let current = u64::from(gauges.map_is_current);
    let help = "1 if the map served is what store, files and URLs say.";
    family("control_derp_map_current", "gauge", help, one(current));
    let help = "1 if this control leads those on its database; one alone always does.";
    family("control_leader", "gauge", help, one(u64::from(gauges.leads)));
    family("control_watches", "gauge", "Watch streams open.", one(gauges.watches as u64));
    steering_families(steer, gauges, &mut family);
    page
}
