//! Our own metric names, as Prometheus text.

use std::fmt::{Display, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use wire::drop::DropReason;

use super::{
    Cell, CloseReason, CoreCounters, Family, HandshakeResult, Limit, LoginFailure, PacketKind,
    Registry, Route, Scheme, StunOutcome, TlsVersion, Upgrade, WireguardEvent, process,
};

/// Content type of the Prometheus text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Registry {
    /// Every series under our names. All of them exist from the start, at zero.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut page = Page(String::with_capacity(16 << 10));
        self.write_packets(&mut page);
        self.write_drops(&mut page);
        self.write_sessions(&mut page);
        self.write_frames(&mut page);
        self.write_cores(&mut page);
        self.write_stun(&mut page);
        self.write_wireguard(&mut page);
        self.fast_path.write(&mut page);
        self.steer.write(&mut page, SystemTime::now());
        self.write_front(&mut page);
        self.write_certificates(&mut page);
        self.write_process(&mut page);
        page.0
    }

    /// `path` is the way packets took: `xdp` for what never left it, else the driver.
    fn write_packets(&self, page: &mut Page) {
        let path = self.build.io;
        let xdp = &self.fast_path;
        let sum = |number: &dyn Fn(&CoreCounters) -> &Cell| self.sum(|core| number(core).value());
        let mut family = |name, help, protos: &[(&str, u64)], by_xdp: &[(&str, u64)]| {
            page.family(name, "counter", help);
            for (path, protos) in [(path, protos), ("xdp", by_xdp)] {
                for (proto, value) in protos {
                    page.sample(name, &[("proto", proto), ("path", path)], value);
                }
            }
        };
        let stun = self.sum(|core| core.stun.iter().flatten().map(Cell::value).sum());
        let answered = self.stun(StunOutcome::Success, None);
        family(
            "relay_packets_received_total",
            "Packets read.",
            &[
                ("derp", sum(&|core| &core.packets_received)),
                ("stun", stun),
                ("wireguard", sum(&|core| &core.wireguard_received.packets)),
            ],
            &[("stun", xdp.stun_received()), ("wireguard", xdp.forwarded())],
        );
        family(
            "relay_packets_forwarded_total",
            "Packets sent on.",
            &[
                ("derp", sum(&|core| &core.packets_forwarded)),
                ("wireguard", sum(&|core| &core.wireguard_forwarded.packets)),
            ],
            &[("wireguard", xdp.forwarded())],
        );
        family(
            "relay_packets_answered_total",
            "Packets answered.",
            &[("derp", sum(&|core| &core.packets_answered)), ("stun", answered)],
            &[("stun", Family::ALL.iter().map(|family| xdp.answered(*family)).sum())],
        );
        family(
            "relay_bytes_received_total",
            "Payload bytes read.",
            &[
                ("derp", sum(&|core| &core.bytes_received)),
                ("wireguard", sum(&|core| &core.wireguard_received.bytes)),
            ],
            &[("wireguard", xdp.wireguard_bytes.value())],
        );
        family(
            "relay_bytes_forwarded_total",
            "Payload bytes sent on.",
            &[
                ("derp", sum(&|core| &core.bytes_forwarded)),
                ("wireguard", sum(&|core| &core.wireguard_forwarded.bytes)),
            ],
            &[("wireguard", xdp.wireguard_bytes.value())],
        );
    }

    fn write_wireguard(&self, page: &mut Page) {
        let mut family = |name, help, cell: &dyn Fn(&CoreCounters) -> &Cell| {
            page.counter(name, help, self.sum(|core| cell(core).value()));
        };
        family("relay_wireguard_copies_total", "Copies of handshakes beyond the first.", &|core| {
            &core.wireguard_copies
        });
        family(
            "relay_wireguard_handed_over_total",
            "Messages given to the core that owns the relay.",
            &|core| &core.wireguard_handed_over,
        );
        family(
            "relay_wireguard_unnumbered_total",
            "Initiations to one address of this host more than can be told apart.",
            &|core| &core.wireguard_unnumbered,
        );
        family("relay_wireguard_runs_total", "Runs of data sent as one.", &|core| {
            &core.wireguard_runs
        });
        let name = "relay_wireguard_events_total";
        page.family(name, "counter", "What happened in the relay.");
        for event in WireguardEvent::ALL {
            let count = self.sum(|core| core.wireguard_events[event.index()].value());
            page.sample(name, &[("event", event.label())], count);
        }
        for (name, help, cell) in [
            (
                "relay_wireguard_handshakes",
                "Handshakes that are not complete.",
                (|core| &core.wireguard_handshakes) as fn(&CoreCounters) -> &Cell,
            ),
            ("relay_wireguard_watched", "Places and networks watched for junk.", |core| {
                &core.wireguard_watched
            }),
            ("relay_wireguard_flows", "Flows, one for each direction of a session.", |core| {
                &core.wireguard_flows
            }),
        ] {
            page.gauge(name, help, self.sum(|core| cell(core).value()));
        }
        self.write_links(page);
    }

    fn write_links(&self, page: &mut Page) {
        let front = &self.front;
        page.gauge("relay_wireguard_peers", "Registered peers.", front.wireguard_peers.value());
        let links = self.links.read();
        page.gauge("relay_wireguard_links", "Registered links.", links.len());
        let name = "relay_wireguard_link_packets_total";
        page.family(name, "counter", "Data packets sent on, by link.");
        for (link, packets, _) in &links {
            page.sample(name, &[("link", link)], packets);
        }
        let name = "relay_wireguard_link_bytes_total";
        page.family(name, "counter", "Bytes of data packets sent on, by link.");
        for (link, _, bytes) in &links {
            page.sample(name, &[("link", link)], bytes);
        }
        let name = "relay_wireguard_reloads_total";
        page.family(name, "counter", "Peers and links loaded anew, by result.");
        page.sample(name, &[("result", "ok")], front.wireguard_reloads.value());
        page.sample(name, &[("result", "refused")], front.wireguard_reload_failures.value());
        page.counter(
            "relay_udp_overflows_total",
            "Datagrams that came while a socket's buffer was full.",
            front.udp_overflows.value(),
        );
    }

    fn write_drops(&self, page: &mut Page) {
        for (name, help, bytes) in [
            ("relay_packets_dropped_total", "Packets not sent, by the one reason why.", false),
            (
                "relay_bytes_dropped_total",
                "Bytes of packets not sent: payload, of frames where XDP dropped.",
                true,
            ),
        ] {
            page.family(name, "counter", help);
            for reason in DropReason::ALL {
                for kind in PacketKind::ALL {
                    let (mut packets, mut payload) = self.dropped(reason, *kind);
                    if *kind == PacketKind::Other {
                        let (by_xdp, frames) = self.fast_path.dropped(reason);
                        packets += by_xdp;
                        payload += frames;
                    }
                    let labels = [("reason", reason.label()), ("kind", kind.label())];
                    page.sample(name, &labels, if bytes { payload } else { packets });
                }
            }
        }
    }

    fn write_sessions(&self, page: &mut Page) {
        page.gauge("relay_sessions", "DERP sessions.", self.sum(|core| core.sessions.value()));
        page.gauge(
            "relay_home_sessions",
            "Sessions at home here.",
            self.sum(|core| core.home_sessions.value()),
        );
        let notideal = self.sum(|core| core.notideal_sessions.value());
        page.gauge("relay_notideal_sessions", "Sessions that wanted another node.", notideal);
        page.gauge(
            "relay_duplicate_keys",
            "Keys with several sessions.",
            self.front.dup_keys.value(),
        );
        page.gauge(
            "relay_duplicate_sessions",
            "Sessions of such keys.",
            self.front.dup_sessions.value(),
        );
        let opened = self.sum(|core| core.sessions_opened.value());
        page.counter("relay_sessions_opened_total", "Sessions taken over by a core.", opened);
        let name = "relay_sessions_closed_total";
        page.family(name, "counter", "Sessions ended, by reason.");
        for reason in CloseReason::ALL {
            let closed = self.sum(|core| core.sessions_closed[reason.index()].value());
            page.sample(name, &[("reason", reason.label())], closed);
        }
    }

    fn write_frames(&self, page: &mut Page) {
        let mut family = |name, help, cell: &dyn Fn(&CoreCounters) -> &Cell| {
            page.counter(name, help, self.sum(|core| cell(core).value()));
        };
        family("relay_disco_packets_received_total", "Packets that look like disco.", &|core| {
            &core.disco_received
        });
        family("relay_pings_received_total", "Pings read.", &|core| &core.pings);
        family("relay_pongs_sent_total", "Pongs written.", &|core| &core.pongs);
        family("relay_unknown_frames_total", "Frames of unknown type, skipped.", &|core| {
            &core.unknown_frames
        });
        family("relay_keepalives_sent_total", "Keepalives written.", &|core| &core.keepalives);
        family("relay_write_timeouts_total", "Sessions whose writes stood still.", &|core| {
            &core.write_timeouts
        });
        family("relay_home_moves_in_total", "Sessions that came home.", &|core| {
            &core.home_moves_in
        });
        family("relay_home_moves_out_total", "Sessions that left home.", &|core| {
            &core.home_moves_out
        });
        let name = "relay_peer_gone_sent_total";
        page.family(name, "counter", "PeerGone frames, by reason.");
        let disconnected = self.sum(|core| core.peer_gone_disconnected.value());
        page.sample(name, &[("reason", "disconnected")], disconnected);
        page.sample(
            name,
            &[("reason", "not_here")],
            self.sum(|core| core.peer_gone_not_here.value()),
        );
    }

    fn write_cores(&self, page: &mut Page) {
        let mut family = |name, help, cell: &dyn Fn(&CoreCounters) -> &Cell| {
            page.family(name, "counter", help);
            for (core, counters) in self.cores.iter().enumerate() {
                page.sample(name, &[("core", &core.to_string())], cell(counters).value());
            }
        };
        family("relay_rounds_total", "Turns of the worker's loop.", &|core| &core.rounds);
        family("relay_flushes_total", "Sends of gathered records.", &|core| &core.flushes);
        family("relay_tls_records_sealed_total", "TLS records sealed.", &|core| {
            &core.records_sealed
        });
        family("relay_sends_pending_total", "Sends not taken whole.", &|core| &core.send_pending);
        family("relay_buffer_pool_empty_total", "Receives without a buffer.", &|core| {
            &core.enobufs
        });
    }

    fn write_stun(&self, page: &mut Page) {
        let name = "relay_stun_requests_total";
        page.family(
            name,
            "counter",
            "Datagrams on the UDP ports that are not WireGuard, by what became of them.",
        );
        for outcome in StunOutcome::ALL {
            for family in Family::ALL {
                let labels = [("disposition", outcome.label()), ("family", family.label())];
                page.sample(name, &labels, self.stun_by_all(*outcome, *family));
            }
        }
    }

    fn write_front(&self, page: &mut Page) {
        let front = &self.front;
        let name = "relay_connections_accepted_total";
        page.family(name, "counter", "Connections accepted, by port.");
        for scheme in Scheme::ALL {
            let labels = [("port", scheme.label())];
            page.sample(name, &labels, front.accepts[scheme.index()].value());
        }
        let name = "relay_admission_rejected_total";
        page.family(name, "counter", "Connections closed at once, by limit.");
        for limit in Limit::ALL {
            page.sample(
                name,
                &[("limit", limit.label())],
                front.accept_rejected[limit.index()].value(),
            );
        }
        let name = "relay_tls_handshakes_total";
        page.family(name, "counter", "TLS handshakes ended, by result and version.");
        for result in HandshakeResult::ALL {
            for version in TlsVersion::ALL {
                let count = front.tls_handshakes[result.index()][version.index()].value();
                page.sample(
                    name,
                    &[("result", result.label()), ("version", version.label())],
                    count,
                );
            }
        }
        page.gauge(
            "relay_tls_handshakes_open",
            "TLS handshakes under way.",
            front.handshakes_open.value(),
        );
        let name = "relay_http_requests_total";
        page.family(name, "counter", "HTTP requests, by route.");
        for route in Route::ALL {
            page.sample(
                name,
                &[("route", route.label())],
                front.http_requests[route.index()].value(),
            );
        }
        let name = "relay_upgrades_total";
        page.family(name, "counter", "Connections handed to a relay core, by manner.");
        for manner in Upgrade::ALL {
            page.sample(
                name,
                &[("manner", manner.label())],
                front.upgrades[manner.index()].value(),
            );
        }
        page.counter(
            "relay_head_timeouts_total",
            "Connections closed because a request head took too long.",
            front.head_timeouts.value(),
        );
        let name = "relay_logins_failed_total";
        page.family(name, "counter", "DERP upgrades that became no session, by reason.");
        for reason in LoginFailure::ALL {
            let count = front.login_failures[reason.index()].value();
            page.sample(name, &[("reason", reason.label())], count);
        }
    }

    fn write_certificates(&self, page: &mut Page) {
        let front = &self.front;
        let name = "relay_certificate_reloads_total";
        page.family(name, "counter", "Certificates loaded anew, by result.");
        page.sample(name, &[("result", "ok")], front.certificate_reloads.value());
        page.sample(name, &[("result", "refused")], front.certificate_reload_failures.value());
        let name = "relay_satellite_reports_total";
        page.family(name, "counter", "Signs of life to primary sides, by result.");
        page.sample(name, &[("result", "ok")], front.satellite_reports.value());
        page.sample(name, &[("result", "failed")], front.satellite_report_failures.value());
        // An alert on the expiry must not fire where there is no certificate.
        let expiry = front.certificate_expiry_unix_s.value();
        if expiry > 0 {
            page.gauge(
                "relay_certificate_expiry_timestamp_seconds",
                "Earliest expiry of a certificate.",
                expiry,
            );
        }
    }

    fn write_process(&self, page: &mut Page) {
        let name = "relay_build_info";
        page.family(name, "gauge", "What was built and chosen.");
        let build = &self.build;
        let labels = [
            ("version", build.version),
            ("commit", build.commit),
            ("io", build.io),
            ("tls", build.tls),
        ];
        page.sample(name, &labels, 1);
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        page.gauge(
            "process_start_time_seconds",
            "Start, in seconds since 1970.",
            started.as_secs_f64(),
        );
        page.gauge("process_resident_memory_bytes", "Resident memory.", process::resident_bytes());
        page.gauge("process_open_fds", "Open file descriptors.", process::open_descriptors());
        page.counter(
            "process_cpu_seconds_total",
            "CPU time, user and system.",
            process::cpu_seconds(),
        );
    }

    /// Packets and payload bytes dropped for `reason`, over all cores.
    pub(super) fn dropped(&self, reason: DropReason, kind: PacketKind) -> (u64, u64) {
        let packets = self.sum(|core| core.dropped[reason.index()][kind.index()].packets.value());
        let bytes = self.sum(|core| core.dropped[reason.index()][kind.index()].bytes.value());
        (packets, bytes)
    }

    /// STUN datagrams with `outcome`, over all cores and by XDP, which judges few and does not tell the
    /// families of those it drops.
    pub(super) fn stun_by_all(&self, outcome: StunOutcome, family: Family) -> u64 {
        let by_xdp =
            if outcome == StunOutcome::Success { self.fast_path.answered(family) } else { 0 };
        self.stun(outcome, Some(family)) + by_xdp
    }

    /// STUN datagrams with `outcome`, of one family or of both, over all cores.
    pub(super) fn stun(&self, outcome: StunOutcome, family: Option<Family>) -> u64 {
        self.sum(|core| {
            let families = &core.stun[outcome.index()];
            family.map_or_else(
                || families.iter().map(Cell::value).sum(),
                |family| families[family.index()].value(),
            )
        })
    }
}

/// A page of the text format under construction. Writing to a `String` cannot fail.
pub(super) struct Page(pub(super) String);

impl Page {
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Label values come from closed sets, or are names that were checked; none needs escaping.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let open = if i == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{open}{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }
}
