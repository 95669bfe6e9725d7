//! Experiments: one load shape each, measured on every subject in every round.
//!
//! Owns the shapes. A measurement starts a fresh server, loads it and returns named figures; `rows` says
//! which of them make a row. Must never know what is good: `report` judges.

use super::server::{Lab, Server};
use super::{CompareArgs, faults};
use crate::connect::ConnectReport;
use crate::idle::IdleReport;
use crate::load::LoadReport;
use crate::runner::child::Helper;
use crate::runner::{Comparison, Figures, Sample, Subject, figures, note, stats};
use anyhow::{Context as _, Result};

/// The server's core when it has one, and the load's.
const SERVER_CORE: usize = 0;
const LOAD_CORE: usize = 1;
/// Frames a second over all pairs of the experiments that look at latency beside a disturbance.
const CALM_RATE: f64 = 20_000.0;
/// Seconds that a storm begins before the load's window and lasts after it.
const STORM_MARGIN_SECONDS: f64 = 1.5;
/// Stopped receivers.
const SLOW_READERS: usize = 4;
/// The experiment that shows derper's ceiling.
const DERPER_CEILING: &str = "saturated-1400-20";

/// What is done to a server.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Saturated {
        size: usize,
        pairs: usize,
    },
    Plain,
    /// Frames a second; half of derper's own saturated ones in this run if `None`.
    Sparse {
        rate: Option<f64>,
    },
    Overload,
    StoppedReader,
    Idle {
        clients: usize,
    },
    TlsOnly,
    Connects,
    Storm {
        rate: f64,
    },
    TwoCores,
}

impl Shape {
    /// Itself, with what earlier measurements of this run decide; `None` if they were not made.
    fn settled(&self, samples: &[Sample]) -> Option<Self> {
        let Self::Sparse { rate: None } = self else { return Some(self.clone()) };
        let ceilings = samples
            .iter()
            .filter(|s| {
                s.round > 0 && s.subject == Subject::Derper && s.experiment == DERPER_CEILING
            })
            .filter_map(|s| s.figures.get("frames_per_second").copied());
        let ceiling = stats::spread(ceilings.collect())?;
        Some(Self::Sparse { rate: Some(ceiling.median / 2.0) })
    }
}

/// A load shape and who is put under it.
pub(crate) struct Experiment {
    /// Name that rows and `--only` refer to.
    pub(crate) name: String,
    shape: Shape,
    subjects: &'static [Subject],
    seconds: f64,
}

/// All experiments, in the table's order.
pub(crate) fn all(args: &CompareArgs) -> Vec<Experiment> {
    use Subject::{
        CopyLoop, Derper, Epoll, Glommio, TlsAccept, TlsLoop, TokioMt, TokioUring, Uring,
    };
    let relays: &[Subject] = &[Uring, Epoll, Derper, TlsLoop];
    let servers: &[Subject] = &[Uring, Epoll, Derper];
    let ours: &[Subject] = &[Uring, Epoll];
    let saturated = |size, pairs| {
        (format!("saturated-{size}-{pairs}"), Shape::Saturated { size, pairs }, relays)
    };
    let named = |name: &str, shape, subjects| (name.to_owned(), shape, subjects);
    [
        saturated(1400, 20),
        saturated(1400, 4),
        saturated(64, 20),
        saturated(64, 4),
        named("sparse", Shape::Sparse { rate: args.sparse_rate }, relays),
        named("overload", Shape::Overload, relays),
        named("stopped-reader", Shape::StoppedReader, servers),
        named("idle", Shape::Idle { clients: args.clients }, relays),
        named("tls-only", Shape::TlsOnly, &[Uring, Epoll, Derper, TlsAccept]),
        named("connects", Shape::Connects, servers),
        named("storm", Shape::Storm { rate: args.storm_rate }, servers),
        named("two-cores", Shape::TwoCores, ours),
        named(
            "engines",
            Shape::Saturated { size: 1400, pairs: 20 },
            &[TokioMt, TokioUring, Glommio, Uring, Epoll, TlsLoop],
        ),
        named("plain", Shape::Plain, &[TokioMt, TokioUring, Glommio, CopyLoop]),
    ]
    .into_iter()
    .filter(|(name, ..)| name != "engines" || cfg!(feature = "engines"))
    .map(|(name, shape, subjects)| Experiment { name, shape, subjects, seconds: args.seconds })
    .collect()
}

impl Experiment {
    /// Measures every subject once, in an order that rotates with `round`.
    pub(crate) fn round(&self, lab: &Lab, round: usize, into: &mut Comparison) {
        let Some(shape) = self.shape.settled(&into.samples) else {
            if round == 0 {
                let why =
                    format!("{DERPER_CEILING} of derper was not measured, give --sparse-rate");
                into.skipped.push(format!("{}: {why}", self.name));
            }
            return;
        };
        let count = self.subjects.len();
        for subject in (0..count).map(|at| self.subjects[(at + round) % count]) {
            if !lab.has(subject) {
                continue;
            }
            match self.measure(&shape, lab, subject) {
                Ok(figures) => {
                    let faults = faults::of(&shape, subject, &figures);
                    if subject.is_ours() && faults.are_fatal() {
                        let marks = faults.marks().join(", ");
                        into.failed.push(note(&self.name, subject, round, &marks));
                    }
                    let experiment = self.name.clone();
                    into.samples.push(Sample { experiment, round, subject, figures, faults });
                }
                Err(error) => {
                    let lost = if subject.is_ours() { &mut into.failed } else { &mut into.skipped };
                    lost.push(note(&self.name, subject, round, &format!("{error:#}")));
                }
            }
        }
    }

    fn measure(&self, shape: &Shape, lab: &Lab, subject: Subject) -> Result<Figures> {
        let one = || lab.start(subject, &[SERVER_CORE], false);
        match *shape {
            Shape::Saturated { size, pairs } => {
                self.load(&one()?, subject, &format!("--size {size} --pairs {pairs}"))
            }
            Shape::Plain => {
                self.load(&lab.start(subject, &[SERVER_CORE], true)?, subject, "--plain")
            }
            Shape::Sparse { rate } => {
                let rate = rate.context("the rate is not settled")?;
                let mut figures = self.load(&one()?, subject, &format!("--rate {rate}"))?;
                figures.insert("rate".to_owned(), rate);
                Ok(figures)
            }
            Shape::Overload => {
                let mut figures = self.load(&one()?, subject, "")?;
                let peak = figures["frames_per_second"];
                let over = self.load(&one()?, subject, &format!("--rate {}", peak * 2.0))?;
                figures.insert("goodput_of_peak".to_owned(), over["frames_per_second"] / peak);
                prefixed(&mut figures, "over", &over);
                Ok(figures)
            }
            Shape::StoppedReader => {
                let load = format!("--rate {CALM_RATE}");
                let calm =
                    self.load(&one()?, subject, &format!("{load} --extra-readers {SLOW_READERS}"))?;
                let mut figures =
                    self.load(&one()?, subject, &format!("{load} --slow-readers {SLOW_READERS}"))?;
                against_calm(&mut figures, &calm);
                prefixed(&mut figures, "calm", &calm);
                Ok(figures)
            }
            Shape::Idle { clients } => {
                let line = format!("idle --clients {clients}");
                let report: IdleReport = run(&one()?, subject, &line)?.result("idle")?;
                figures(&report)
            }
            Shape::TlsOnly => self.connects(&one()?, subject, "--tls-only"),
            Shape::Connects => self.connects(&one()?, subject, ""),
            Shape::Storm { rate } => self.storm(&one()?, subject, rate),
            Shape::TwoCores => {
                let load = "--random-pairs 1 --sleep";
                let single = self.load(&one()?, subject, load)?;
                let both = lab.start(subject, &[SERVER_CORE, LOAD_CORE], false)?;
                let mut figures = self.load(&both, subject, load)?;
                let ratio =
                    2.0 * figures["frames_per_cpu_second"] / single["frames_per_cpu_second"];
                figures.insert("capacity_of_one_core".to_owned(), ratio);
                prefixed(&mut figures, "one", &single);
                Ok(figures)
            }
        }
    }

    fn load(&self, server: &Server, subject: Subject, shape: &str) -> Result<Figures> {
        let line = format!("load --seconds {} {shape}", self.seconds);
        let report: LoadReport = run(server, subject, &line)?.result("load")?;
        figures(&report)
    }

    fn connects(&self, server: &Server, subject: Subject, shape: &str) -> Result<Figures> {
        let line = format!("connect --seconds {} {shape}", self.seconds);
        let report: ConnectReport = run(server, subject, &line)?.result("connect")?;
        figures(&report)
    }

    /// Established traffic alone, then the same while others connect at `rate`.
    fn storm(&self, server: &Server, subject: Subject, rate: f64) -> Result<Figures> {
        let line = format!("load --seconds {} --rate {CALM_RATE} --sleep", self.seconds);
        let calm: LoadReport = run(server, subject, &line)?.result("load")?;
        let mut load = run(server, subject, &format!("{line} --gate"))?;
        load.wait_for("connected")?;
        let long = self.seconds + STORM_MARGIN_SECONDS;
        let storm = format!("connect --seconds {long} --rate {rate}");
        let mut storm = Helper::start_idle(&aimed(server, subject, &storm))?;
        storm.wait_for("running")?;
        load.release()?;
        let stormy: LoadReport = load.result("load")?;
        let connects: ConnectReport = storm.result("connect")?;
        let (calm, mut result) = (figures(&calm)?, figures(&stormy)?);
        against_calm(&mut result, &calm);
        prefixed(&mut result, "calm", &calm);
        prefixed(&mut result, "storm", &figures(&connects)?);
        Ok(result)
    }
}

/// Starts `bench` with `line`, aimed at `server`, on the load's core.
fn run(server: &Server, subject: Subject, line: &str) -> Result<Helper> {
    Helper::start(&aimed(server, subject, line))
}

/// The arguments of `line`, aimed at `server`, on the load's core.
fn aimed(server: &Server, subject: Subject, line: &str) -> Vec<String> {
    let hello = match subject {
        Subject::TlsLoop | Subject::TlsAccept | Subject::CopyLoop => "none",
        Subject::TokioMt | Subject::TokioUring | Subject::Glommio => "key",
        _ => "derp",
    };
    let aim = format!(
        "{line} --server {} --server-pid {} --hello {hello} --core {LOAD_CORE}",
        server.address,
        server.pid()
    );
    aim.split_whitespace().map(str::to_owned).collect()
}

/// Adds what a disturbance makes of p99: that of a typical slice and that of the whole window.
fn against_calm(disturbed: &mut Figures, calm: &Figures) {
    for p99 in ["p99", "typical_p99"] {
        let figure = format!("{p99}_us");
        disturbed.insert(format!("{p99}_of_calm"), disturbed[&figure] / calm[&figure]);
    }
}

fn prefixed(into: &mut Figures, prefix: &str, from: &Figures) {
    into.extend(from.iter().map(|(name, value)| (format!("{prefix}_{name}"), *value)));
}
