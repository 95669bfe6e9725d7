//! What a dataplane does right now, from two of its metrics pages.
//!
//! Owns the reading of a page and the rates between two of them. It asks nobody and draws nothing:
//! `cli::top` fetches pages, [`screen`] draws. Control itself is not asked, so that this works while
//! control is stuck.

pub(crate) mod screen;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// Bytes of a metrics page, at most: 100,000 links have four samples each.
pub(crate) const PAGE_BYTES_MAX: usize = 64 << 20;

/// A metrics page: samples by name and labels, as printed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Page(BTreeMap<String, f64>);

impl Page {
    /// Reads a page of Prometheus' text format 0.0.4. Lines of another kind are skipped: a newer
    /// dataplane may say more.
    pub(crate) fn read(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(samples.collect())
    }

    /// Whether a dataplane wrote it.
    pub(crate) fn is_ours(&self) -> bool {
        self.0.contains_key("relay_sessions")
    }

    /// The samples of a family, each with its labels.
    fn family<'a>(&'a self, family: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let range = self.0.range(family.to_owned()..);
        range
            .map_while(move |(name, value)| {
                let rest = name.strip_prefix(family)?;
                Some((rest, *value))
            })
            .filter(|(rest, _)| rest.is_empty() || rest.starts_with('{'))
    }

    fn sum(&self, family: &str, label: &str) -> f64 {
        self.family(family)
            .filter(|(labels, _)| labels.contains(label))
            .map(|(_, value)| value)
            .sum()
    }
}

/// The value of `label` among the labels of a sample; escapes stay as they are.
fn label<'a>(labels: &'a str, label: &str) -> Option<&'a str> {
    let (_, rest) = labels.split_once(&format!("{label}=\""))?;
    rest.split('"').next()
}

/// Packets of one protocol, each second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Traffic {
    /// `derp`, `stun` or `wireguard`.
    pub(crate) proto: &'static str,
    pub(crate) received_per_s: f64,
    pub(crate) forwarded_per_s: f64,
    pub(crate) answered_per_s: f64,
    /// Payload sent on.
    pub(crate) bytes_per_s: f64,
    /// Of those received, by XDP.
    pub(crate) by_xdp_per_s: f64,
}

/// What a WireGuard link carries, each second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LinkRate {
    pub(crate) link: String,
    pub(crate) packets_per_s: f64,
    pub(crate) bytes_per_s: f64,
}

/// A dataplane between two looks.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Look {
    /// Between the two looks.
    pub(crate) seconds: f64,
    pub(crate) version: String,
    pub(crate) io: String,
    pub(crate) sessions: u64,
    pub(crate) home_sessions: u64,
    pub(crate) sessions_opened_per_s: f64,
    pub(crate) handshakes_open: u64,
    pub(crate) links: u64,
    pub(crate) xdp_flows: u64,
    pub(crate) traffic: Vec<Traffic>,
    /// Reasons for which packets were dropped, the most frequent first, with packets each second.
    pub(crate) drops: Vec<(String, f64)>,
    /// The busiest links first.
    pub(crate) busiest: Vec<LinkRate>,
    /// CPU seconds each second, if the page has them.
    pub(crate) cpus_used: f64,
    pub(crate) resident_bytes: u64,
    /// What control steered it to, and whether control is there; nothing if it is not steered.
    pub(crate) steered: Option<Steered>,
}

/// How a dataplane stands to control.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Steered {
    pub(crate) connected: bool,
    pub(crate) revision: u64,
}

const PROTOS: [&str; 3] = ["derp", "stun", "wireguard"];

impl Look {
    /// What happened from `before` to `now`. Counters that went back, as those of a restarted
    /// dataplane, count from zero.
    pub(crate) fn between(before: &Page, now: &Page, time: Duration) -> Self {
        let seconds = time.as_secs_f64().max(f64::MIN_POSITIVE);
        let rate = |family: &str, label: &str| {
            let (was, is) = (before.sum(family, label), now.sum(family, label));
            if is < was { is / seconds } else { (is - was) / seconds }
        };
        let whole = |family: &str| now.sum(family, "") as u64;
        let build = now.family("relay_build_info").next().map_or("", |(labels, _)| labels);
        let of_build = |name| label(build, name).unwrap_or_default().to_owned();
        Self {
            seconds,
            version: of_build("version"),
            io: of_build("io"),
            sessions: whole("relay_sessions"),
            home_sessions: whole("relay_home_sessions"),
            sessions_opened_per_s: rate("relay_sessions_opened_total", ""),
            handshakes_open: whole("relay_tls_handshakes_open"),
            links: whole("relay_wireguard_links"),
            xdp_flows: whole("relay_xdp_flows"),
            traffic: PROTOS.map(|proto| traffic(proto, &rate)).into(),
            drops: drops(now, &rate),
            busiest: busiest(before, now, seconds),
            cpus_used: rate("process_cpu_seconds_total", ""),
            resident_bytes: whole("process_resident_memory_bytes"),
            steered: now.family("relay_steer_connected").next().map(|(_, value)| Steered {
                connected: value > 0.0,
                revision: whole("relay_steer_revision"),
            }),
        }
    }
}

fn traffic(proto: &'static str, rate: &impl Fn(&str, &str) -> f64) -> Traffic {
    let label = format!("proto=\"{proto}\"");
    Traffic {
        proto,
        received_per_s: rate("relay_packets_received_total", &label),
        forwarded_per_s: rate("relay_packets_forwarded_total", &label),
        answered_per_s: rate("relay_packets_answered_total", &label),
        bytes_per_s: rate("relay_bytes_forwarded_total", &label),
        by_xdp_per_s: rate("relay_packets_received_total", &format!("{label},path=\"xdp\"")),
    }
}

fn drops(now: &Page, rate: &impl Fn(&str, &str) -> f64) -> Vec<(String, f64)> {
    let family = "relay_packets_dropped_total";
    let reasons: std::collections::BTreeSet<_> =
        now.family(family).filter_map(|(labels, _)| label(labels, "reason")).collect();
    let rates = reasons
        .into_iter()
        .map(|reason| (reason.to_owned(), rate(family, &format!("reason=\"{reason}\""))));
    let mut rates: Vec<_> = rates.filter(|(_, rate)| *rate > 0.0).collect();
    rates.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    rates
}

fn busiest(before: &Page, now: &Page, seconds: f64) -> Vec<LinkRate> {
    let mut links: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    let families =
        [("relay_wireguard_link_packets_total", true), ("relay_wireguard_link_bytes_total", false)];
    for (family, is_packets) in families {
        for (labels, value) in now.family(family) {
            let was = before.0.get(&format!("{family}{labels}")).copied().unwrap_or(0.0);
            let more = if value < was { value } else { value - was } / seconds;
            let name = label(labels, "link").unwrap_or(labels);
            let (packets, bytes) = links.entry(name.to_owned()).or_default();
            *(if is_packets { packets } else { bytes }) += more;
        }
    }
    let mut rates: Vec<_> = links
        .into_iter()
        .filter(|(_, (packets, _))| *packets > 0.0)
        .map(|(link, (packets_per_s, bytes_per_s))| LinkRate { link, packets_per_s, bytes_per_s })
        .collect();
    rates.sort_by(|one, other| other.bytes_per_s.total_cmp(&one.bytes_per_s));
    rates
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# HELP relay_sessions Sessions.\nrelay_sessions 3\n\
        relay_sessions_opened_total 10\n\
        relay_build_info{version=\"1.2\",io=\"uring\"} 1\n\
        relay_packets_received_total{proto=\"stun\",path=\"uring\"} 100\n\
        relay_packets_received_total{proto=\"stun\",path=\"xdp\"} 0\n\
        relay_packets_dropped_total{reason=\"bad_stun\",kind=\"other\"} 5\n\
        relay_packets_dropped_total{reason=\"queue_head\",kind=\"disco\"} 1\n\
        relay_packets_dropped_total{reason=\"queue_head\",kind=\"other\"} 1\n\
        relay_wireguard_link_packets_total{link=\"a/b\"} 7\n\
        relay_wireguard_link_bytes_total{link=\"a/b\"} 700\n";

    fn after() -> Page {
        let text = BEFORE
            .replace("_total 10", "_total 14")
            .replace("path=\"uring\"} 100", "path=\"uring\"} 120")
            .replace("path=\"xdp\"} 0", "path=\"xdp\"} 2000")
            .replace("kind=\"disco\"} 1", "kind=\"disco\"} 3")
            .replace("packets_total{link=\"a/b\"} 7", "packets_total{link=\"a/b\"} 9")
            .replace("bytes_total{link=\"a/b\"} 700", "bytes_total{link=\"a/b\"} 4700");
        Page::read(&format!("{text}relay_steer_connected 0\nrelay_steer_revision 44\njunk\n"))
    }

    #[test]
    fn rates_come_from_two_pages() {
        let look = Look::between(&Page::read(BEFORE), &after(), Duration::from_secs(2));
        assert_eq!((look.version.as_str(), look.io.as_str(), look.sessions), ("1.2", "uring", 3));
        assert_eq!(look.sessions_opened_per_s, 2.0);
        let stun = look.traffic.iter().find(|it| it.proto == "stun").expect("it is there");
        assert_eq!((stun.received_per_s, stun.by_xdp_per_s), (1010.0, 1000.0));
        assert_eq!(look.drops, [("queue_head".to_owned(), 1.0)]);
        let link = LinkRate { link: "a/b".into(), packets_per_s: 1.0, bytes_per_s: 2000.0 };
        assert_eq!(look.busiest, [link]);
        assert_eq!(look.steered, Some(Steered { connected: false, revision: 44 }));
    }

    #[test]
    fn a_restarted_dataplane_counts_from_zero() {
        let fresh = Page::read("relay_sessions 0\nrelay_sessions_opened_total 2\n");
        let look = Look::between(&Page::read(BEFORE), &fresh, Duration::from_secs(1));
        assert_eq!(look.sessions_opened_per_s, 2.0);
        assert!(fresh.is_ours() && !Page::read("up 1\n").is_ours());
    }
}
