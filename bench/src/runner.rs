//! What the two comparisons share: samples of subjects in rounds, and how a table is judged and printed.
//!
//! Owns the form of a result. Must never know a load or a server: `compare` has those of the DERP relay,
//! `fastpath` those of the UDP side; both bring their rows.

pub(crate) mod child;
pub(crate) mod faults;
pub(crate) mod network;
pub(crate) mod report;
pub(crate) mod row;
pub(crate) mod stats;

use anyhow::{Context as _, Result, ensure};
use faults::Faults;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Figures of one measurement by name.
pub(crate) type Figures = BTreeMap<String, f64>;

/// Who can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Subject {
    /// Our server on io_uring.
    Uring,
    /// Our server on epoll.
    Epoll,
    /// Stock derper.
    Derper,
    /// The bare TLS relay loop.
    TlsLoop,
    /// The bare handshake loop.
    TlsAccept,
    /// The bare copy loop, without TLS.
    CopyLoop,
    /// The framed relay on multi-thread tokio.
    TokioMt,
    /// The framed relay on tokio-uring.
    TokioUring,
    /// The framed relay on glommio.
    Glommio,
    /// Our server with XDP in the driver.
    Native,
    /// Our server with XDP in the kernel's receive path.
    Generic,
    /// Our server with its program behind the stack's door.
    Tcx,
    /// Our server without XDP.
    Sockets,
    /// The bare UDP loop that takes and sends runs.
    UdpRuns,
    /// The bare UDP loop that takes and sends many datagrams in one call.
    UdpMany,
    /// The better of the two, in each round.
    BestLoop,
    /// Stock coturn.
    Coturn,
    /// Our control.
    Control,
}

impl Subject {
    /// Whether it is our server, in any manner.
    pub(crate) fn is_ours(self) -> bool {
        use Subject::{Control, Epoll, Generic, Native, Sockets, Tcx, Uring};
        matches!(self, Uring | Epoll | Native | Generic | Tcx | Sockets | Control)
    }
}

/// One measurement of one subject in one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    /// The experiment's name.
    pub(crate) experiment: String,
    /// Round; 0 is thrown away.
    pub(crate) round: usize,
    /// Who was measured.
    pub(crate) subject: Subject,
    /// What came out.
    pub(crate) figures: Figures,
    /// What it met besides.
    pub(crate) faults: Faults,
}

/// What was measured, where, and all of it.
#[derive(Default, Serialize)]
pub(crate) struct Comparison {
    /// Machine and versions.
    pub(crate) facts: BTreeMap<&'static str, String>,
    /// Every measurement of every round, the thrown-away ones included.
    pub(crate) samples: Vec<Sample>,
    /// The judged rows.
    pub(crate) rows: Vec<report::Line>,
    /// Rows that could not be measured, and why.
    pub(crate) skipped: Vec<String>,
    /// Measurements of our own server that failed, or in which it did what it must never do.
    pub(crate) failed: Vec<String>,
}

impl Comparison {
    /// Judges `table`, prints it and writes everything to `out`. An error if a measurement of our own
    /// server failed.
    pub(crate) fn conclude(mut self, table: &report::Table, out: &Path) -> Result<()> {
        self.rows = report::judge(&self.samples, table);
        report::print(&self, table);
        let json = serde_json::to_string_pretty(&self)?;
        std::fs::write(out, json).with_context(|| format!("writing {}", out.display()))?;
        let failed = self.failed.len();
        ensure!(failed == 0, "{failed} measurements of our server failed");
        Ok(())
    }
}

/// Says at once, and returns for the report, what happened to `subject` in `round` of `experiment`.
pub(crate) fn note(experiment: &str, subject: Subject, round: usize, what: &str) -> String {
    let note = format!("{experiment} of {subject:?}, round {round}: {what}");
    eprintln!("  {note}");
    note
}

/// The numbers of a report by their names.
pub(crate) fn figures(report: &impl Serialize) -> Result<Figures> {
    let Value::Object(fields) = serde_json::to_value(report)? else { return Ok(Figures::new()) };
    Ok(fields.into_iter().filter_map(|(name, value)| Some((name, value.as_f64()?))).collect())
}
