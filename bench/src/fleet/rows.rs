//! The table's rows, all of one experiment: what a user of control waits for, and what control takes.

use crate::runner::Subject::Control;
use crate::runner::report::Table;
use crate::runner::row::{Goal, Row, row};

/// The one experiment.
pub(super) const FLEET: &str = "fleet";

/// The table.
pub(super) const TABLE: Table = Table { rows: ROWS, ours: &[Control], beside: BESIDE };

const ROWS: &[Row] = &[
    told("first start until ready, ms", "first_start_ms", Goal::AtMost(100.0, 50.0)),
    told("start with the fleet until ready, ms", "start_ms", Goal::AtMost(100.0, 50.0)),
    told("list of all satellites, ms", "list_ms", Goal::AtMost(50.0, 25.0)),
    told("DERP map after a change, ms", "map_ms", Goal::AtMost(100.0, 50.0)),
    told(
        "a change until the dataplane has adopted it, p99 in ms",
        "adopted_p99_ms",
        Goal::AtMost(50.0, 10.0),
    ),
    told("resident when idle, MB", "resident_mb", Goal::AtMost(30.0, 20.0)),
    told("frames lost while control died four times", "lost_over_restarts", Goal::AtMost(0.0, 0.0)),
];

const BESIDE: &[(&str, &str)] = &[
    (FLEET, "adopted_p50_ms"),
    (FLEET, "adopted_max_ms"),
    (FLEET, "load_s"),
    (FLEET, "publish_ms"),
    (FLEET, "publish_again_ms"),
    (FLEET, "resident_after_load_mb"),
];

const fn told(what: &'static str, figure: &'static str, goal: Goal) -> Row {
    row(what, FLEET, figure, None, goal)
}
