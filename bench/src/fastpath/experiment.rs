//! Experiments: one load shape each, measured on every subject in every round.
//!
//! Owns the shapes. A measurement starts a fresh server, floods it and returns named figures; `rows` says
//! which of them make a row. Must never know what is good: `report` judges.

use super::FastpathArgs;
use super::server::{Lab, METRICS_PORT, Server};
use crate::flood::FloodReport;
use crate::runner::Subject::{
    self, BestLoop, Coturn, Generic, Native, Sockets, Tcx, UdpMany, UdpRuns,
};
use crate::runner::child::Helper;
use crate::runner::faults::Faults;
use crate::runner::{Comparison, Figures, Sample, figures, note};
use anyhow::Result;

/// Names that rows and `--only` refer to.
pub(super) const STUN: &str = "stun";
pub(super) const WIREGUARD_SMALL: &str = "wireguard-128";
pub(super) const WIREGUARD_LARGE: &str = "wireguard-1452";
pub(super) const RUNS: &str = "runs";
pub(super) const SINGLE: &str = "single";
pub(super) const BURSTS: &str = "bursts";

/// Addresses that ask STUN.
const ASKERS: usize = 4096;
/// Full-sized WireGuard data: an inner packet of 1420 bytes.
const LARGE: usize = 1452;
/// Datagrams of a run: as many as fit 64 KiB.
const RUN: usize = 44;
/// Packets of one flow that follow one another in bursts.
const BURST: usize = 8;
/// Flows that send runs.
const RUN_FLOWS: usize = 16;
/// Share that may be lost at the rate that sockets are measured at.
const LOSS_MAX: f64 = 0.02;
/// Share of packets that XDP itself has to count where it is measured.
const BY_XDP_MIN: f64 = 0.99;

/// A load shape and who is put under it.
pub(super) struct Experiment {
    /// Name that rows and `--only` refer to.
    pub(super) name: &'static str,
    /// What is sent, for people.
    pub(super) shape: String,
    subjects: &'static [Subject],
    size: usize,
    flows: usize,
    seconds: f64,
}

/// All experiments, in the table's order.
pub(super) fn all(args: &FastpathArgs) -> Vec<Experiment> {
    let pairs = format!("{} flows of {} WireGuard pairs in turn", args.flows, args.flows / 2);
    let rate = format!("sockets at the highest rate with {LOSS_MAX} lost, XDP flat out");
    let experiment = |name, subjects, shape: &str, size, flows| Experiment {
        name,
        shape: shape.to_owned(),
        subjects,
        size,
        flows,
        seconds: args.seconds,
    };
    let small = format!("{pairs}, datagrams of 128 B, from the kernel; {rate}");
    let large = format!("{pairs}, datagrams of {LARGE} B, from the kernel; {rate}");
    vec![
        experiment(
            STUN,
            &[Native, Generic, Sockets],
            &format!("requests of Tailscale's form from {ASKERS} addresses in turn; {rate}"),
            0,
            ASKERS,
        ),
        experiment(WIREGUARD_SMALL, &[Native, Tcx, Generic, Sockets], &small, 128, args.flows),
        experiment(WIREGUARD_LARGE, &[Native, Sockets], &large, LARGE, args.flows),
        experiment(
            RUNS,
            &[Sockets, UdpRuns],
            &format!(
                "{RUN_FLOWS} flows, each sending runs of {RUN} datagrams of {LARGE} B from a socket, \
                 flat out; what the server cannot take is lost"
            ),
            LARGE,
            RUN_FLOWS,
        ),
        experiment(
            SINGLE,
            &[Sockets, UdpMany, UdpRuns, Coturn],
            &format!(
                "{} flows in turn, datagrams of 128 B, from the kernel, so that no two neighbours can \
                 be merged; each server at the highest rate with {LOSS_MAX} lost",
                args.flows
            ),
            128,
            args.flows,
        ),
        experiment(
            BURSTS,
            &[Sockets, UdpMany, UdpRuns, Coturn],
            &format!(
                "{} flows, {BURST} datagrams of 128 B of each in turn, from the kernel, whose driver \
                 merges them for sockets that take runs; each server at the highest rate with \
                 {LOSS_MAX} lost",
                args.flows
            ),
            128,
            args.flows,
        ),
    ]
}

impl Experiment {
    /// Measures every subject once, in an order that rotates with `round`.
    pub(super) fn round(&self, lab: &Lab, round: usize, into: &mut Comparison) {
        let count = self.subjects.len();
        for subject in (0..count).map(|at| self.subjects[(at + round) % count]) {
            if !lab.has(subject) {
                continue;
            }
            match self.measure(lab, subject) {
                Ok(figures) => {
                    let faults = faults(subject, &figures);
                    if subject.is_ours() && faults.are_fatal() {
                        let marks = faults.marks().join(", ");
                        into.failed.push(note(self.name, subject, round, &marks));
                    }
                    let experiment = self.name.to_owned();
                    into.samples.push(Sample { experiment, round, subject, figures, faults });
                }
                Err(error) => {
                    let lost = if subject.is_ours() { &mut into.failed } else { &mut into.skipped };
                    lost.push(note(self.name, subject, round, &format!("{error:#}")));
                }
            }
        }
        if let Some(best) = best_loop(&into.samples, self.name, round) {
            into.samples.push(best);
        }
    }

    fn measure(&self, lab: &Lab, subject: Subject) -> Result<Figures> {
        let server = lab.start(subject, self.flows)?;
        let mut helper = Helper::start(&self.flood(lab, &server, subject))?;
        let report: FloodReport = helper.result("flood")?;
        let FloodReport { packets_per_second, lost_share, packet_ns, server_ns, .. } = report;
        eprintln!(
            "  {subject:?}: {packets_per_second:.0}/s, {lost_share:.3} lost, {packet_ns:.0} ns, \
             server {server_ns:.0} ns"
        );
        figures(&report)
    }

    /// The arguments of the flood for `subject`.
    fn flood(&self, lab: &Lab, server: &Server, subject: Subject) -> Vec<String> {
        let content = match (self.name, subject) {
            (STUN, _) => "stun",
            (_, Coturn) => "turn",
            (_, UdpMany | UdpRuns) => "plain",
            _ => "wireguard",
        };
        let Self { size, flows, seconds, .. } = self;
        let mut line = format!(
            "flood {content} --size {size} --flows {flows} --seconds {seconds} --server {} \
             --server-pid {} --network {}",
            server.address,
            server.pid(),
            lab.network_pid()
        );
        if self.name == RUNS {
            line += &format!(" --run {RUN}");
        } else if !is_xdp(subject) {
            line += &format!(" --loss-max {LOSS_MAX}");
        }
        if self.name == BURSTS {
            line += &format!(" --burst {BURST}");
        }
        match subject {
            Native => line += " --driver",
            // Its program stands where ours would.
            Generic => {}
            _ if self.name == RUNS => {}
            _ => line += " --pass",
        }
        if is_xdp(subject) {
            line += &format!(" --by-xdp --metrics-port {METRICS_PORT}");
        }
        line.split_whitespace().map(str::to_owned).collect()
    }
}

/// Whether a program of ours is to do the work.
fn is_xdp(subject: Subject) -> bool {
    matches!(subject, Native | Generic | Tcx)
}

fn faults(subject: Subject, figures: &Figures) -> Faults {
    let by_xdp = figures.get("by_xdp").copied().unwrap_or_default();
    Faults {
        wrong_frames: figures.get("errors").copied().unwrap_or_default() as u64,
        strayed: is_xdp(subject) && by_xdp < BY_XDP_MIN,
        ..Faults::default()
    }
}

/// The better of the bare loops in `round` of `experiment`, if both were measured there.
fn best_loop(samples: &[Sample], experiment: &str, round: usize) -> Option<Sample> {
    let of = |subject| {
        samples.iter().find(|sample| {
            sample.experiment == experiment && sample.round == round && sample.subject == subject
        })
    };
    let (many, runs): (&Sample, &Sample) = (of(UdpMany)?, of(UdpRuns)?);
    let speed = |sample: &Sample| sample.figures.get("packets_per_server_second").copied();
    let best = if speed(many) >= speed(runs) { many } else { runs };
    Some(Sample { subject: BestLoop, ..best.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(subject: Subject, round: usize, figure: f64) -> Sample {
        let figures = [("packets_per_server_second".to_owned(), figure)].into();
        let experiment = SINGLE.to_owned();
        Sample { experiment, round, subject, figures, faults: Faults::default() }
    }

    #[test]
    fn the_best_loop_is_that_of_the_round() {
        let samples = [
            sample(UdpMany, 1, 10.0),
            sample(UdpRuns, 1, 9.0),
            sample(UdpMany, 2, 7.0),
            sample(UdpRuns, 2, 8.0),
            sample(UdpMany, 3, 1.0),
        ];
        let best = |round| {
            let sample = best_loop(&samples, SINGLE, round)?;
            assert_eq!(sample.subject, BestLoop);
            sample.figures.get("packets_per_server_second").copied()
        };
        assert_eq!([best(1), best(2), best(3)], [Some(10.0), Some(8.0), None]);
    }

    #[test]
    fn what_xdp_did_not_do_is_marked_where_it_is_measured() {
        let figures = Figures::from([("by_xdp".to_owned(), 0.5), ("errors".to_owned(), 2.0)]);
        assert_eq!(
            faults(Native, &figures).marks(),
            ["2 wrong frames", "not all packets went this way"]
        );
        assert_eq!(faults(Sockets, &figures).marks(), ["2 wrong frames"]);
    }
}
