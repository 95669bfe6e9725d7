//! A page of metrics, read back, and the sum that must come out right.

use std::collections::BTreeMap;

/// The samples of a page by name and labels, as printed.
#[derive(Clone, Debug)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads a page in Prometheus' text format.
    ///
    /// # Panics
    /// When a line is none of that format.
    #[must_use]
    pub fn parse(page: &str) -> Self {
        let samples = page.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let parsed = samples.map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a sample has a value");
            (name.to_owned(), value.parse().expect("a value is a number"))
        });
        Self(parsed.collect())
    }

    /// The sum of all samples of `family` whose labels contain each of `labels`.
    ///
    /// # Panics
    /// When there is none: a test that asks for a wrong name must not pass.
    #[must_use]
    pub fn sum(&self, family: &str, labels: &[&str]) -> u64 {
        let mut matching = self.0.iter().filter(|(name, _)| {
            let (bare, with) = name.split_once('{').unwrap_or((name, ""));
            bare == family && labels.iter().all(|label| with.contains(label))
        });
        let first = matching.next().unwrap_or_else(|| panic!("no {family} with {labels:?}"));
        (first.1 + matching.map(|(_, value)| value).sum::<f64>()) as u64
    }

    /// Whether every packet read has exactly one fate, once none is on its way.
    ///
    /// # Errors
    /// The sum that does not come out.
    pub fn balance(&self) -> Result<(), String> {
        let [received, forwarded, answered, dropped] =
            ["received", "forwarded", "answered", "dropped"]
                .map(|fate| self.sum(&format!("relay_packets_{fate}_total"), &[]));
        if received == forwarded + answered + dropped {
            return Ok(());
        }
        Err(format!(
            "received {received}, forwarded {forwarded} + answered {answered} + dropped {dropped}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_what_matches_and_tells_what_is_lost() {
        let page = "# HELP a b\nrelay_packets_received_total{proto=\"derp\"} 5\n\
            relay_packets_received_total{proto=\"stun\"} 2\nrelay_packets_forwarded_total 3\n\
            relay_packets_answered_total 2\nrelay_packets_dropped_total{reason=\"x\"} 1\n";
        let metrics = Metrics::parse(page);
        assert_eq!(metrics.sum("relay_packets_received_total", &["derp"]), 5);
        let lost = metrics.balance().expect_err("one packet has no fate");
        assert_eq!(lost, "received 7, forwarded 3 + answered 2 + dropped 1");
    }
}
