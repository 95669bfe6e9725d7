//! The table's rows: which figure of which experiment, against whom, and what is asked of it.
//!
//! Owns the goals, nothing else. A row without a goal is there to be read.

use super::experiment::{BURSTS, RUNS, SINGLE, STUN, WIREGUARD_LARGE, WIREGUARD_SMALL};
use crate::runner::Subject::{BestLoop, Coturn, Generic, Native, Sockets, Tcx, UdpRuns};
use crate::runner::report::Table;
use crate::runner::row::{Goal, Row, row};

/// The table of this comparison.
pub(crate) const TABLE: Table =
    Table { rows: ROWS, ours: &[Native, Tcx, Generic, Sockets], beside: BESIDE };

/// All CPU time less the floor; all of it; the server's alone; packets a second.
const CPU: &str = "packets_per_cpu_second";
const ALL: &str = "packets_per_second_of_all";
const SERVER: &str = "packets_per_server_second";
const RATE: &str = "packets_per_second";

const XDP: Goal = Goal::AtLeast(9.0, 15.0);
const RUN: Goal = Goal::AtLeast(0.75, 0.90);
const ONE: Goal = Goal::AtLeast(0.85, 0.95);
const STOCK: Goal = Goal::AtLeast(1.5, 2.5);

const ROWS: &[Row] = &[
    row("STUN answered, packets per CPU-second / own sockets", STUN, CPU, Some(Sockets), XDP)
        .of(Native),
    row("the same, nothing subtracted", STUN, ALL, Some(Sockets), Goal::Told).of(Native),
    row("the same, packets a second, on one core / two", STUN, RATE, Some(Sockets), Goal::Told)
        .of(Native),
    row(
        "STUN answered, packets per CPU-second / own sockets",
        STUN,
        CPU,
        Some(Sockets),
        Goal::Told,
    )
    .of(Generic),
    row(
        "WireGuard 128 B, packets per CPU-second / own sockets",
        WIREGUARD_SMALL,
        CPU,
        Some(Sockets),
        XDP,
    )
    .of(Native),
    row("the same, nothing subtracted", WIREGUARD_SMALL, ALL, Some(Sockets), Goal::Told).of(Native),
    row(
        "the same, packets a second, on one core / two",
        WIREGUARD_SMALL,
        RATE,
        Some(Sockets),
        Goal::Told,
    )
    .of(Native),
    row(
        "WireGuard 128 B, packets per CPU-second / own sockets",
        WIREGUARD_SMALL,
        CPU,
        Some(Sockets),
        Goal::Told,
    )
    .of(Tcx),
    row(
        "WireGuard 128 B, packets per CPU-second / own sockets",
        WIREGUARD_SMALL,
        CPU,
        Some(Sockets),
        Goal::Told,
    )
    .of(Generic),
    row(
        "WireGuard 1,452 B, packets per CPU-second / own sockets",
        WIREGUARD_LARGE,
        CPU,
        Some(Sockets),
        XDP,
    )
    .of(Native),
    row(
        "UDP relay by sockets, runs, packets per server-second / bare GRO and GSO loop",
        RUNS,
        SERVER,
        Some(UdpRuns),
        RUN,
    )
    .of(Sockets),
    row(
        "UDP relay by sockets, single packets in turn, packets per server-second / best bare loop",
        SINGLE,
        SERVER,
        Some(BestLoop),
        ONE,
    )
    .of(Sockets),
    row(
        "UDP relay by sockets, single packets in turn, packets per server-second / coturn",
        SINGLE,
        SERVER,
        Some(Coturn),
        STOCK,
    )
    .of(Sockets),
    row("the same, single packets in bursts / best bare loop", BURSTS, SERVER, Some(BestLoop), ONE)
        .of(Sockets),
    row("the same, single packets in bursts / coturn", BURSTS, SERVER, Some(Coturn), STOCK)
        .of(Sockets),
];

/// Figures that are read beside those of the rows.
const BESIDE: &[(&str, &str)] = &[
    (STUN, "packet_ns"),
    (STUN, "lost_share"),
    (STUN, "server_ns"),
    (STUN, "by_xdp"),
    (WIREGUARD_SMALL, "packet_ns"),
    (WIREGUARD_SMALL, "lost_share"),
    (WIREGUARD_SMALL, "server_ns"),
    (WIREGUARD_SMALL, "by_xdp"),
    (WIREGUARD_LARGE, "packet_ns"),
    (WIREGUARD_LARGE, "lost_share"),
    (WIREGUARD_LARGE, RATE),
    (RUNS, RATE),
    (RUNS, "lost_share"),
    (RUNS, "server_busy"),
    (SINGLE, RATE),
    (SINGLE, "lost_share"),
    (SINGLE, "server_busy"),
    (BURSTS, RATE),
    (BURSTS, "lost_share"),
];
