//! What Prometheus reads of the probes. Names of targets are no labels: `/api/v1/health` has them.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use super::health::{Finding, State, TargetKind, Verdict};
use crate::probe::latency::Latencies;
use crate::serve::counters::{Counter, family};

/// Upper bounds of the latency buckets, in milliseconds; the bands' and the requirement's among them.
const BUCKETS_MS: [u32; 9] = [5, 10, 25, 50, 100, 150, 300, 400, 1000];
const KINDS: [&str; 4] = ["stun_v4", "stun_v6", "https", "derp"];
const STATES: [(State, &str); 3] =
    [(State::Unknown, "unknown"), (State::Healthy, "healthy"), (State::Unhealthy, "unhealthy")];
const TARGETS: [(TargetKind, &str); 2] =
    [(TargetKind::Node, "node"), (TargetKind::Satellite, "satellite")];

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Visits by target, then by verdict: well, unwell, untold, shut.
    visits: [[Counter; 4]; 2],
    /// Changes of state, by the new one.
    pub(super) changes: [Counter; 3],
    /// Visits that had to wait because as many were under way as may be.
    pub(super) waits: Counter,
    latencies: [Histogram; 4],
}

#[derive(Debug, Default)]
struct Histogram {
    /// Those within each bucket and in none smaller; the last has no bound.
    counts: [Counter; BUCKETS_MS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn add(&self, ms: f64) {
        let bucket = BUCKETS_MS.iter().position(|bound| ms <= f64::from(*bound));
        if let Some(counter) = self.counts.get(bucket.unwrap_or(BUCKETS_MS.len())) {
            counter.add(1);
        }
        self.sum_us.fetch_add((ms * 1000.0) as u64, Ordering::Relaxed);
    }
}

impl Figures {
    pub(super) fn note(&self, kind: TargetKind, finding: &Finding) {
        let verdict = match finding.verdict {
            Verdict::Well => 0,
            Verdict::Unwell(_) => 1,
            Verdict::Untold(_) => 2,
            Verdict::Shut(_) => 3,
        };
        self.visits[kind as usize][verdict].add(1);
        let Latencies { stun_v4, stun_v6, https, derp } = finding.latencies;
        for (histogram, ms) in self.latencies.iter().zip([stun_v4, stun_v6, https, derp]) {
            ms.into_iter().for_each(|ms| histogram.add(ms));
        }
    }

    /// The page's part about probes; `states` are those of all targets.
    pub(super) fn page(
        &self,
        states: impl Iterator<Item = (TargetKind, State)> + Clone,
        left_out: usize,
    ) -> String {
        let mut page = String::new();
        let mut visits = Vec::new();
        let mut targets = Vec::new();
        for (kind, target) in TARGETS {
            for (counter, result) in
                self.visits[kind as usize].iter().zip(["well", "unwell", "untold", "shut"])
            {
                let labels = format!("{{target=\"{target}\",result=\"{result}\"}}");
                visits.push((labels, counter.now()));
            }
            for (state, word) in STATES {
                let count = states.clone().filter(|found| *found == (kind, state)).count();
                let labels = format!("{{target=\"{target}\",state=\"{word}\"}}");
                targets.push((labels, count as u64));
            }
        }
        let help = "Visits of nodes and satellites by what they found.";
        family(&mut page, "control_probe_visits_total", "counter", help, visits);
        let help = "Nodes and satellites that are visited, by state.";
        family(&mut page, "control_probe_targets", "gauge", help, targets);
        let changes = STATES.iter().map(|(state, word)| {
            (format!("{{state=\"{word}\"}}"), self.changes[*state as usize].now())
        });
        let help = "Changes of state, by the new one.";
        family(&mut page, "control_probe_changes_total", "counter", help, changes.collect());
        let one = |value: u64| vec![(String::new(), value)];
        let help = "Visits that waited: as many were under way as may be.";
        family(&mut page, "control_probe_waits_total", "counter", help, one(self.waits.now()));
        let help = "Nodes that the map is served without.";
        family(&mut page, "control_probe_left_out", "gauge", help, one(left_out as u64));
        self.histograms(&mut page);
        page
    }

    fn histograms(&self, page: &mut String) {
        let name = "control_probe_latency_seconds";
        let help = "Time for an answer, by question.";
        family(page, name, "histogram", help, Vec::new());
        for (kind, histogram) in KINDS.iter().zip(&self.latencies) {
            let mut count = 0;
            let bounds = BUCKETS_MS.iter().map(|ms| (f64::from(*ms) / 1000.0).to_string());
            let bounds = bounds.chain(["+Inf".to_owned()]);
            // Writing to a string cannot fail.
            for (bound, counter) in bounds.zip(&histogram.counts) {
                count += counter.now();
                let _ = writeln!(page, "{name}_bucket{{kind=\"{kind}\",le=\"{bound}\"}} {count}");
            }
            let sum = histogram.sum_us.load(Ordering::Relaxed);
            let (seconds, micros) = (sum / 1_000_000, sum % 1_000_000);
            let _ = writeln!(page, "{name}_sum{{kind=\"{kind}\"}} {seconds}.{micros:06}");
            let _ = writeln!(page, "{name}_count{{kind=\"{kind}\"}} {count}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_from_the_start_and_buckets_add_up() {
        let figures = Figures::default();
        let none = figures.page(std::iter::empty(), 0);
        assert!(none.contains("control_probe_targets{target=\"satellite\",state=\"unknown\"} 0\n"));
        assert!(none.contains("control_probe_latency_seconds_count{kind=\"derp\"} 0\n"));
        for ms in [0.25, 150.0, 150.5, 5000.0] {
            let latencies = Latencies { derp: Some(ms), ..Latencies::default() };
            let finding = Finding { verdict: Verdict::Well, latencies, version: None };
            figures.note(TargetKind::Node, &finding);
        }
        let page = figures.page([(TargetKind::Node, State::Healthy)].into_iter(), 2);
        for line in [
            "control_probe_visits_total{target=\"node\",result=\"well\"} 4",
            "control_probe_targets{target=\"node\",state=\"healthy\"} 1",
            "control_probe_latency_seconds_bucket{kind=\"derp\",le=\"0.005\"} 1",
            "control_probe_latency_seconds_bucket{kind=\"derp\",le=\"0.15\"} 2",
            "control_probe_latency_seconds_bucket{kind=\"derp\",le=\"+Inf\"} 4",
            "control_probe_latency_seconds_sum{kind=\"derp\"} 5.300750",
            "control_probe_left_out 2",
        ] {
            assert!(page.lines().any(|known| known == line), "{line} in\n{page}");
        }
    }
}
