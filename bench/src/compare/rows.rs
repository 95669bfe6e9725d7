//! The table's rows: which figure of which experiment, against whom, and what is asked of it.
//!
//! Owns the goals, nothing else. A row without a goal is there to be read.

use crate::runner::Subject::{self, Derper, Epoll, TlsAccept, TlsLoop, Uring};
use crate::runner::report::Table;
use crate::runner::row::{Goal, Row, row};

const PER_CPU: &str = "frames_per_cpu_second";
const VS_DERPER: Option<Subject> = Some(Derper);
const VS_LOOP: Option<Subject> = Some(TlsLoop);
const LARGE: Goal = Goal::AtLeast(3.5, 5.0);
const SMALL: Goal = Goal::AtLeast(3.0, 4.5);
const LOOP: Goal = Goal::AtLeast(0.6, 0.85);

/// The table of this comparison.
pub(crate) const TABLE: Table = Table { rows: ROWS, ours: &[Uring, Epoll], beside: BESIDE };

/// Figures that are read beside those of the rows.
const BESIDE: &[(&str, &str)] = &[
    ("sparse", "p50_us"),
    ("sparse", "rate"),
    ("engines", "frames_per_cpu_second"),
    ("plain", "frames_per_cpu_second"),
    ("overload", "frames_per_second"),
    ("stopped-reader", "typical_p99_us"),
    ("stopped-reader", "p99_us"),
    ("stopped-reader", "p99_of_calm"),
    ("stopped-reader", "calm_typical_p99_us"),
    ("stopped-reader", "calm_p99_us"),
    ("storm", "p99_us"),
    ("storm", "p99_of_calm"),
    ("storm", "calm_typical_p99_us"),
    ("storm", "calm_p99_us"),
    ("storm", "storm_connects_per_second"),
];

/// Every row, in the table's order.
const ROWS: &[Row] = &[
    row(
        "1400 B, 20 pairs, frames per CPU-second / derper",
        "saturated-1400-20",
        PER_CPU,
        VS_DERPER,
        LARGE,
    ),
    row(
        "1400 B, 4 pairs, frames per CPU-second / derper",
        "saturated-1400-4",
        PER_CPU,
        VS_DERPER,
        LARGE,
    ),
    row(
        "1400 B, 20 pairs, frames per CPU-second / bare loop",
        "saturated-1400-20",
        PER_CPU,
        VS_LOOP,
        LOOP,
    ),
    row(
        "1400 B, 4 pairs, frames per CPU-second / bare loop",
        "saturated-1400-4",
        PER_CPU,
        VS_LOOP,
        LOOP,
    ),
    row(
        "64 B, 20 pairs, frames per CPU-second / derper",
        "saturated-64-20",
        PER_CPU,
        VS_DERPER,
        SMALL,
    ),
    row(
        "64 B, 4 pairs, frames per CPU-second / derper",
        "saturated-64-4",
        PER_CPU,
        VS_DERPER,
        SMALL,
    ),
    row(
        "64 B, 20 pairs, frames per CPU-second / bare loop",
        "saturated-64-20",
        PER_CPU,
        VS_LOOP,
        LOOP,
    ),
    row(
        "64 B, 4 pairs, frames per CPU-second / bare loop",
        "saturated-64-4",
        PER_CPU,
        VS_LOOP,
        LOOP,
    ),
    row(
        "sparse, CPU per frame / derper",
        "sparse",
        "cpu_ns_per_frame",
        VS_DERPER,
        Goal::AtMost(0.75, 0.5),
    ),
    row("sparse, one-way p99 / derper", "sparse", "p99_us", VS_DERPER, Goal::AtMost(0.4, 0.2)),
    row(
        "twice own peak offered, goodput / own peak",
        "overload",
        "goodput_of_peak",
        None,
        Goal::AtLeast(0.9, 1.0),
    ),
    row(
        "beside a stopped reader, typical p99 / calm",
        "stopped-reader",
        "typical_p99_of_calm",
        None,
        Goal::AtMost(1.2, 1.05),
    )
    .beside("p99_of_calm"),
    row(
        "resident bytes per idle TLS client",
        "idle",
        "bytes_per_client",
        None,
        Goal::AtMost(4096.0, 2048.0),
    ),
    row(
        "TLS handshakes per CPU-second / bare accept loop",
        "tls-only",
        "connects_per_cpu_second",
        Some(TlsAccept),
        Goal::AtLeast(0.7, 0.85),
    ),
    row(
        "whole connects per CPU-second / derper",
        "connects",
        "connects_per_cpu_second",
        VS_DERPER,
        Goal::AtLeast(1.0, 2.0),
    ),
    row(
        "in an accept storm, typical p99 / derper",
        "storm",
        "typical_p99_us",
        VS_DERPER,
        Goal::AtMost(0.05, 0.01),
    )
    .beside("p99_us"),
    row(
        "in an accept storm, typical p99 / calm",
        "storm",
        "typical_p99_of_calm",
        None,
        Goal::AtMost(4.0, 1.3),
    )
    .beside("p99_of_calm"),
    row(
        "two cores / one, random pairs (frames per CPU-second times cores)",
        "two-cores",
        "capacity_of_one_core",
        None,
        Goal::AtLeast(1.7, 1.9),
    ),
];
