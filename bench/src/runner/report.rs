//! Judges the rows and prints them: ratios inside a round, medians over rounds, spread beside each.
//!
//! Owns the table's form. Must never hide a row: what was not measured says so.

use super::faults::Faults;
use super::row::{Goal, Row};
use super::stats::{Spread, spread};
use super::{Comparison, Sample, Subject};
use serde::Serialize;
use std::collections::BTreeSet;

/// What a comparison judges and prints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    /// The rows.
    pub(crate) rows: &'static [Row],
    /// Who is ours: a row is about each of them, if it does not name one.
    pub(crate) ours: &'static [Subject],
    /// Figures printed for everyone besides those of the rows: experiment and name.
    pub(crate) beside: &'static [(&'static str, &'static str)],
}

/// One judged row.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    /// What was compared.
    pub(crate) what: &'static str,
    /// Whose figure it is.
    pub(crate) subject: Subject,
    /// The ratio over the rounds.
    pub(crate) ratio: Spread,
    /// The same for the whole window, where the ratio is one of medians over its slices.
    pub(crate) window: Option<Spread>,
    /// Our own figure over the rounds.
    pub(crate) figure: Spread,
    /// What it must reach.
    pub(crate) must: String,
    /// What it should reach.
    pub(crate) aim: String,
    /// How it did.
    pub(crate) verdict: String,
}

/// Judges every row that has samples, for each of ours.
pub(crate) fn judge(samples: &[Sample], table: &Table) -> Vec<Line> {
    let pairs = table.rows.iter().flat_map(|row| table.ours.iter().map(move |own| (row, *own)));
    let about = pairs.filter(|(row, own)| row.of.is_none_or(|of| of == *own));
    about.filter_map(|(row, own)| line(samples, row, own)).collect()
}

/// The counted samples of `subject` in `experiment`.
fn counted<'s>(
    samples: &'s [Sample],
    experiment: &str,
    subject: Subject,
) -> impl Iterator<Item = &'s Sample> {
    let experiment = experiment.to_owned();
    samples.iter().filter(move |sample| {
        sample.round > 0 && sample.subject == subject && sample.experiment == experiment
    })
}

fn line(samples: &[Sample], row: &Row, subject: Subject) -> Option<Line> {
    let own = || counted(samples, row.experiment, subject);
    let figures = own().filter_map(|sample| sample.figures.get(row.figure).copied());
    let ratio = ratio(samples, row, subject, row.figure)?;
    let window = row.window.and_then(|figure| self::ratio(samples, row, subject, figure));
    let (must, aim) = goal_text(row.goal);
    let mut marks = faults(samples, row, subject).marks();
    if let Some(against) = row.against {
        let theirs = faults(samples, row, against).marks();
        marks.extend(theirs.iter().map(|mark| format!("{against:?}: {mark}")));
    }
    let mut verdict = verdict(row.goal, ratio.median);
    if !marks.is_empty() {
        verdict = format!("{verdict} ({})", marks.join("; ")).trim_start().to_owned();
    }
    Some(Line {
        what: row.what,
        subject,
        ratio,
        window,
        figure: spread(figures.collect())?,
        must,
        aim,
        verdict,
    })
}

/// The ratio of `row` over the rounds, formed of `figure`.
fn ratio(samples: &[Sample], row: &Row, subject: Subject, figure: &str) -> Option<Spread> {
    let ratios = counted(samples, row.experiment, subject).filter_map(|sample| {
        let own = sample.figures.get(figure)?;
        let Some(against) = row.against else { return Some(*own) };
        let other =
            counted(samples, row.experiment, against).find(|other| other.round == sample.round)?;
        Some(own / other.figures.get(figure)?)
    });
    spread(ratios.collect())
}

/// What the counted samples of `subject` behind `row` met, together.
fn faults(samples: &[Sample], row: &Row, subject: Subject) -> Faults {
    let met = counted(samples, row.experiment, subject).map(|sample| sample.faults);
    met.fold(Faults::default(), Faults::and)
}

fn goal_text(goal: Goal) -> (String, String) {
    match goal {
        Goal::AtLeast(must, aim) => (format!(">= {must}"), format!(">= {aim}")),
        Goal::AtMost(must, aim) => (format!("<= {must}"), format!("<= {aim}")),
        Goal::Told => (String::new(), String::new()),
    }
}

fn verdict(goal: Goal, median: f64) -> String {
    let (must_met, aim_met, off) = match goal {
        Goal::AtLeast(must, aim) => (median >= must, median >= aim, 1.0 - median / must),
        Goal::AtMost(must, aim) => (median <= must, median <= aim, median / must - 1.0),
        Goal::Told => return String::new(),
    };
    match (must_met, aim_met) {
        (_, true) => "aim".to_owned(),
        (true, false) => "must".to_owned(),
        (false, false) => format!("missed by {:.0} %", off * 100.0),
    }
}

/// Prints the facts, the table, every subject's medians and what was skipped or failed, as Markdown.
pub(crate) fn print(comparison: &Comparison, table: &Table) {
    for (name, value) in &comparison.facts {
        println!("- {name}: {value}");
    }
    println!(
        "\n| what | subject | median (min..max) | whole window | own figure | must | aim | verdict |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for line in &comparison.rows {
        let Line { what, subject, ratio, window, figure, must, aim, verdict } = line;
        let (ratio, own) = (range(ratio), short(figure.median));
        let window = window.as_ref().map_or_else(String::new, range);
        println!(
            "| {what} | {subject:?} | {ratio} | {window} | {own} | {must} | {aim} | {verdict} |"
        );
    }
    print_medians(&comparison.samples, table);
    for skipped in &comparison.skipped {
        println!("\nskipped: {skipped}");
    }
    for failed in &comparison.failed {
        println!("\nFAILED: {failed}");
    }
}

/// The figures that make the rows, for everyone measured: the peers' own level beside ours.
fn print_medians(samples: &[Sample], table: &Table) {
    println!("\n| experiment | figure | subject | median (min..max) | generator busy |");
    println!("|---|---|---|---|---|");
    let figures = table.rows.iter().map(|row| (row.experiment, row.figure));
    let wanted: BTreeSet<_> = figures.chain(table.beside.iter().copied()).collect();
    let subjects: BTreeSet<Subject> = samples.iter().map(|sample| sample.subject).collect();
    for (experiment, figure) in wanted {
        for subject in &subjects {
            let of = |name: &str| {
                let own = counted(samples, experiment, *subject);
                spread(own.filter_map(|sample| sample.figures.get(name).copied()).collect())
            };
            let Some(figures) = of(figure) else { continue };
            let busy = of(busy_during(figure));
            let busy = busy.map_or_else(String::new, |busy| format!("{:.2}", busy.median));
            println!("| {experiment} | {figure} | {subject:?} | {} | {busy} |", range(&figures));
        }
    }
}

/// How busy the generator was in the run that `figure` is of.
fn busy_during(figure: &str) -> &'static str {
    match figure {
        "goodput_of_peak" => "over_generator_busy",
        _ if figure.starts_with("calm_") => "calm_generator_busy",
        _ => "generator_busy",
    }
}

fn range(spread: &Spread) -> String {
    format!("{} ({}..{})", short(spread.median), short(spread.min), short(spread.max))
}

/// Three significant digits, thousands as `k`.
fn short(figure: f64) -> String {
    match figure.abs() {
        size if size >= 1e6 => format!("{:.2} M", figure / 1e6),
        size if size >= 1e4 => format!("{:.0} k", figure / 1e3),
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::row::row;

    const TABLE: Table = Table {
        rows: &[row(
            "frames",
            "saturated",
            "frames_per_cpu_second",
            Some(Subject::Derper),
            Goal::AtLeast(3.5, 5.0),
        )],
        ours: &[Subject::Uring, Subject::Epoll],
        beside: &[],
    };

    fn sample(subject: Subject, round: usize, figure: f64) -> Sample {
        let figures = [("frames_per_cpu_second".to_owned(), figure)].into();
        let experiment = "saturated".to_owned();
        Sample { experiment, round, subject, figures, faults: Faults::default() }
    }

    #[test]
    fn ratios_are_formed_inside_a_round_and_round_zero_is_thrown_away() {
        let samples = [
            sample(Subject::Uring, 0, 1000.0),
            sample(Subject::Derper, 0, 1.0),
            sample(Subject::Uring, 1, 40.0),
            sample(Subject::Derper, 1, 10.0),
            sample(Subject::Uring, 2, 60.0),
            sample(Subject::Derper, 2, 10.0),
        ];
        let lines = judge(&samples, &TABLE);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].ratio, Spread { median: 5.0, min: 4.0, max: 6.0 });
        assert_eq!(lines[0].verdict, "aim");
    }

    #[test]
    fn a_verdict_is_marked_by_both_sides_of_its_ratio() {
        let mut own = sample(Subject::Epoll, 1, 40.0);
        own.faults.lost_frames = 2;
        let mut other = sample(Subject::Derper, 1, 10.0);
        other.faults.generator_busy = true;
        let lines = judge(&[own, other], &TABLE);
        assert_eq!(lines[0].verdict, "must (2 frames lost; Derper: generator busy)");
    }

    #[test]
    fn verdict_names_the_distance() {
        assert_eq!(verdict(Goal::AtLeast(2.0, 4.0), 3.0), "must");
        assert_eq!(verdict(Goal::AtLeast(2.0, 4.0), 1.0), "missed by 50 %");
        assert_eq!(verdict(Goal::AtMost(2.0, 1.0), 3.0), "missed by 50 %");
        assert_eq!(verdict(Goal::Told, 3.0), "");
    }

    #[test]
    fn a_row_may_be_about_one_of_ours_alone() {
        const ROWS: &[Row] = &[TABLE.rows[0].of(Subject::Epoll)];
        let samples =
            [Subject::Uring, Subject::Epoll, Subject::Derper].map(|it| sample(it, 1, 1.0));
        let lines = judge(&samples, &Table { rows: ROWS, ..TABLE });
        assert_eq!(lines.iter().map(|line| line.subject).collect::<Vec<_>>(), [Subject::Epoll]);
    }
}
