//! derper's metric names, so that its dashboards and alerts go on working.
//!
//! [`Registry::varz`] is its Prometheus page and [`Registry::vars`] its JSON page. Names for things
//! this relay has not (mesh, forwarders, watchers, unpublished bootstrap names, read errors of STUN,
//! Go's run time) stay at zero or are left out.

use std::fmt::Write;

use serde_json::{Map, Value, json};
use wire::drop::DropReason;

use super::prometheus::Page;
use super::{
    CoreCounters, Family, PacketKind, Registry, Route, Scheme, StunOutcome, TlsVersion, Upgrade,
    process,
};

/// Prefixes by which derper's JSON names say what kind of number they are.
const GAUGE: &str = "gauge_";
const COUNTER: &str = "counter_";

/// The drop reasons of stock derper; ours beyond them count as the one in the second column.
const DROP_REASONS: [(&str, &[DropReason]); 7] = [
    ("dup_client", &[DropReason::DupClient]),
    ("gone_disconnected", &[DropReason::GoneDisconnected, DropReason::StaleSlot]),
    ("queue_head", &[DropReason::QueueHead]),
    ("queue_tail", &[DropReason::QueueTail]),
    ("unknown_dest", &[DropReason::UnknownDest]),
    ("unknown_dest_on_fwd", &[]),
    ("write_error", &[DropReason::WriteError]),
];

impl Registry {
    /// `/debug/varz`: derper's series as Prometheus text.
    #[must_use]
    pub fn varz(&self) -> String {
        let mut page = Page(String::with_capacity(8 << 10));
        for (name, value) in self.derp_numbers() {
            let (bare, kind) = name
                .strip_prefix(GAUGE)
                .map(|bare| (bare, "gauge"))
                .unwrap_or((name.strip_prefix(COUNTER).unwrap_or(name), "counter"));
            plain(&mut page, &format!("derp_{bare}"), kind, value);
        }
        let name = "derp_packets_received_kind";
        kind_line(&mut page, name, "counter");
        for (kind, value) in self.received_by_kind() {
            page.sample(name, &[("kind", kind)], value);
        }
        self.varz_drops(&mut page);
        self.varz_front(&mut page);
        plain(&mut page, "process_resident_memory_bytes", "gauge", process::resident_bytes());
        plain(&mut page, "process_open_fds", "gauge", process::open_descriptors());
        let _ = writeln!(page.0, "# TYPE process_cpu_seconds_total counter");
        page.sample("process_cpu_seconds_total", &[], process::cpu_seconds());
        page.0
    }

    /// `/debug/vars`: the same numbers as JSON.
    #[must_use]
    pub fn vars(&self) -> Value {
        let mut derp: Map<String, Value> = self
            .derp_numbers()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), json!(value)))
            .collect();
        derp.insert(
            "counter_packets_received_kind".into(),
            self.received_by_kind().into_iter().collect(),
        );
        derp.insert("version".into(), json!(self.build.version));
        let front = &self.front;
        json!({
            "derp": derp,
            "derp_websocket_accepts": front.upgrades[Upgrade::WebSocket.index()].value(),
            "stun": {
                "counter_requests": self.stun_requests().into_iter().collect::<Value>(),
                "counter_addrfamily": self.stun_families().into_iter().collect::<Value>(),
            },
            "tls_listener": {
                "counter_accepted_connections": front.accepts[Scheme::Main.index()].value(),
                "counter_rejected_connections": self.rejected(),
            },
        })
    }

    /// The numbers of derper's `derp` object, under their JSON names.
    fn derp_numbers(&self) -> Vec<(&'static str, u64)> {
        let sum = |number: fn(&CoreCounters) -> u64| self.sum(number);
        let sessions = sum(|core| core.sessions.value());
        let (dup_keys, dup_sessions) =
            (self.front.dup_keys.value(), self.front.dup_sessions.value());
        let keys = (sessions + dup_keys).saturating_sub(dup_sessions);
        let received = sum(|core| core.packets_received.value());
        let pings = sum(|core| core.pings.value());
        vec![
            ("accepts", sum(|core| core.sessions_opened.value())),
            ("bytes_received", sum(|core| core.bytes_received.value())),
            ("bytes_sent", sum(|core| core.bytes_forwarded.value())),
            // derper does not count pings as packets.
            ("packets_received", received.saturating_sub(pings)),
            ("packets_sent", sum(|core| core.packets_forwarded.value())),
            ("packets_forwarded_in", 0),
            ("packets_forwarded_out", 0),
            ("home_moves_in", sum(|core| core.home_moves_in.value())),
            ("home_moves_out", sum(|core| core.home_moves_out.value())),
            ("got_ping", pings),
            ("sent_pong", sum(|core| core.pongs.value())),
            ("unknown_frames", sum(|core| core.unknown_frames.value())),
            ("peer_gone_disconnected_frames", sum(|core| core.peer_gone_disconnected.value())),
            ("peer_gone_not_here_frames", sum(|core| core.peer_gone_not_here.value())),
            ("multiforwarder_created", 0),
            ("multiforwarder_deleted", 0),
            ("packet_forwarder_delete_other_value", 0),
            ("sclient_write_timeouts", sum(|core| core.write_timeouts.value())),
            ("gauge_current_connections", sessions),
            ("gauge_current_home_connections", sum(|core| core.home_sessions.value())),
            ("gauge_current_notideal_connections", sum(|core| core.notideal_sessions.value())),
            ("gauge_clients_total", keys),
            ("gauge_clients_local", keys),
            ("gauge_clients_remote", 0),
            ("gauge_watchers", 0),
            ("gauge_current_dup_client_keys", dup_keys),
            ("gauge_current_dup_client_conns", dup_sessions),
            ("gauge_current_file_descriptors", process::open_descriptors()),
            ("counter_total_dup_client_conns", self.front.dup_sessions_opened.value()),
        ]
    }

    fn received_by_kind(&self) -> [(&'static str, u64); 2] {
        let disco = self.sum(|core| core.disco_received.value());
        let relayed =
            self.sum(|core| core.packets_received.value().saturating_sub(core.pings.value()));
        [
            (PacketKind::Disco.label(), disco),
            (PacketKind::Other.label(), relayed.saturating_sub(disco)),
        ]
    }

    fn varz_drops(&self, page: &mut Page) {
        for (name, bytes) in [("derp_bytes_dropped", true), ("derp_packets_dropped", false)] {
            kind_line(page, name, "counter");
            for (label, reasons) in DROP_REASONS {
                for kind in PacketKind::ALL {
                    let dropped = reasons.iter().map(|reason| self.dropped(*reason, *kind));
                    let value: u64 = dropped
                        .map(|(packets, payload)| if bytes { payload } else { packets })
                        .sum();
                    page.sample(name, &[("reason", label), ("kind", kind.label())], value);
                }
            }
        }
    }

    fn varz_front(&self, page: &mut Page) {
        let front = &self.front;
        let websockets = front.upgrades[Upgrade::WebSocket.index()].value();
        plain(page, "derp_websocket_accepts", "counter", websockets);
        plain(
            page,
            "tls_listener_accepted_connections",
            "counter",
            front.accepts[Scheme::Main.index()].value(),
        );
        plain(page, "tls_listener_rejected_connections", "counter", self.rejected());
        kind_line(page, "derper_tls_request_version", "counter");
        for version in TlsVersion::ALL {
            let count = front.tls_requests[version.index()].value();
            page.sample("derper_tls_request_version", &[("version", version.label())], count);
        }
        kind_line(page, "stun_requests", "counter");
        for (disposition, count) in self.stun_requests() {
            page.sample("stun_requests", &[("disposition", disposition)], count);
        }
        kind_line(page, "stun_addrfamily", "counter");
        for (family, count) in self.stun_families() {
            page.sample("stun_addrfamily", &[("family", family)], count);
        }
        let requests = front.http_requests[Route::BootstrapDns.index()].value();
        plain(page, "bootstrap_dns_requests", "counter", requests);
        plain(page, "bootstrap_dns_published_hits", "counter", front.bootstrap_hits.value());
        plain(page, "bootstrap_dns_published_misses", "counter", 0);
        plain(page, "bootstrap_dns_unpublished_hits", "counter", 0);
        // A name that is not published is taken for an unpublished one, as derper does.
        plain(page, "bootstrap_dns_unpublished_misses", "counter", front.bootstrap_misses.value());
    }

    fn rejected(&self) -> u64 {
        self.front.accept_rejected.iter().map(super::SharedCell::value).sum()
    }

    /// derper's four dispositions; what it has no word for counts as not STUN, as it does there.
    fn stun_requests(&self) -> [(&'static str, u64); 4] {
        let outcome = |outcome| self.stun(outcome, None);
        let (limited_by_xdp, _) = self.fast_path.dropped(DropReason::RateLimited);
        let limited = outcome(StunOutcome::RateLimited) + limited_by_xdp;
        let refused = outcome(StunOutcome::BadStun) + limited;
        [
            ("not_stun", outcome(StunOutcome::NotStun) + refused),
            ("read_error", 0),
            ("success", self.stun_families().iter().map(|(_, answered)| answered).sum()),
            ("write_error", outcome(StunOutcome::WriteError)),
        ]
    }

    /// Answered requests by family.
    fn stun_families(&self) -> [(&'static str, u64); 2] {
        [Family::V4, Family::V6]
            .map(|family| (family.label(), self.stun_by_all(StunOutcome::Success, family)))
    }
}

fn kind_line(page: &mut Page, name: &str, kind: &str) {
    let _ = writeln!(page.0, "# TYPE {name} {kind}");
}

fn plain(page: &mut Page, name: &str, kind: &str, value: u64) {
    kind_line(page, name, kind);
    page.sample(name, &[], value);
}
