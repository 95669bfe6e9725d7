//! What control said and what became of it.

use std::time::{SystemTime, UNIX_EPOCH};

use super::SharedCell;
use super::prometheus::Page;

/// Written by the steering thread alone.
#[derive(Debug, Default)]
pub struct SteerCells {
    /// Gauge: the number of the snapshot in force; 0 before the first.
    pub revision: SharedCell,
    /// Gauge: 1 while control is connected and has said something.
    pub connected: SharedCell,
    /// Snapshots and deltas put in force.
    pub adopted: SharedCell,
    /// Lines refused: malformed, or a snapshot that is stale, contradictory or of no use here.
    pub refused: SharedCell,
    /// Messages of a kind that this version does not know.
    pub unknown: SharedCell,
    /// Snapshots in force that could not be kept in `steer_state`.
    pub keep_failures: SharedCell,
    /// When the snapshot in force was known to be the newest, in seconds since 1970; 0 before the
    /// first.
    pub confirmed_unix_s: SharedCell,
}

impl SteerCells {
    /// Every series, as of `now`.
    pub(super) fn write(&self, page: &mut Page, now: SystemTime) {
        page.gauge(
            "relay_steer_revision",
            "Number of the snapshot in force.",
            self.revision.value(),
        );
        page.gauge("relay_steer_connected", "Whether control answers.", self.connected.value());
        for (name, help, cell) in [
            ("relay_steer_adopted_total", "Snapshots put in force.", &self.adopted),
            ("relay_steer_refused_total", "Lines of control refused.", &self.refused),
            ("relay_steer_unknown_total", "Messages of unknown kind, skipped.", &self.unknown),
            (
                "relay_steer_keep_failures_total",
                "Snapshots in force that could not be kept on disk.",
                &self.keep_failures,
            ),
        ] {
            page.counter(name, help, cell.value());
        }
        // An alert on the age must not fire where nobody steers.
        let confirmed = self.confirmed_unix_s.value();
        if confirmed > 0 {
            let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            page.gauge(
                "relay_steer_snapshot_age_seconds",
                "Since the snapshot in force was known to be the newest.",
                now.saturating_sub(confirmed),
            );
        }
    }
}
