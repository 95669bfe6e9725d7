//! When which target is visited: each once a period, and never many at once.
//!
//! New targets are spread over the period by their share of it, so that a start with ten thousand
//! is as even as the hour after, and a single new one is visited at once. The caller brings the time.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::Target;

#[derive(Debug)]
pub(super) struct Schedule {
    every: Duration,
    /// Each target is in both, with the same time.
    due: HashMap<Target, Instant>,
    queue: BTreeSet<(Instant, Target)>,
}

impl Schedule {
    pub(super) fn new(every: Duration) -> Self {
        Self { every, due: HashMap::new(), queue: BTreeSet::new() }
    }

    /// Visits exactly these from now on; those known keep their turn.
    pub(super) fn set<'a>(&mut self, targets: impl IntoIterator<Item = &'a Target>, now: Instant) {
        let mut old = std::mem::take(&mut self.due);
        self.queue.clear();
        let mut new = Vec::new();
        for target in targets {
            match old.remove(target) {
                Some(at) => self.put(at, target.clone()),
                None => new.push(target),
            }
        }
        let all = u32::try_from(self.due.len() + new.len()).unwrap_or(u32::MAX);
        for (number, target) in (0..).zip(new) {
            self.put(now + self.every.mul_f64(f64::from(number) / f64::from(all)), target.clone());
        }
    }

    /// When the next is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// One that is due; its next turn is a period later.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Target> {
        if self.next().is_none_or(|at| at > now) {
            return None;
        }
        let (at, target) = self.queue.pop_first()?;
        let next = at + self.every;
        // Turns that were missed are not made up for.
        self.put(if next > now { next } else { now + self.every }, target.clone());
        Some(target)
    }

    fn put(&mut self, at: Instant, target: Target) {
        self.queue.insert((at, target.clone()));
        self.due.insert(target, at);
    }
}

#[cfg(test)]
mod tests {
    use super::super::TargetKind;
    use super::*;

    const EVERY: Duration = Duration::from_secs(30);

    fn targets(count: usize) -> Vec<Target> {
        let target =
            |number| Target { kind: TargetKind::Node, name: format!("{number:05}").into() };
        (0..count).map(target).collect()
    }

    #[tokio::test]
    async fn ten_thousand_are_spread_over_the_period() {
        let start = Instant::now();
        let mut schedule = Schedule::new(EVERY);
        schedule.set(&targets(10_000), start);
        for round in 0..2_u32 {
            for second in 0..30_u32 {
                let now = start + EVERY * round + Duration::from_secs(second.into());
                let upto = now + Duration::from_millis(999);
                let due = std::iter::from_fn(|| schedule.take_due(upto)).count();
                assert!((330..=337).contains(&due), "{due} in second {second} of round {round}");
            }
        }
    }

    #[tokio::test]
    async fn a_single_new_one_is_due_at_once_and_the_others_keep_their_turn() {
        let start = Instant::now();
        let mut schedule = Schedule::new(EVERY);
        let all = targets(4);
        schedule.set(&all[..3], start);
        let first = schedule.take_due(start).expect("the first is due");
        assert_eq!((&*first.name, schedule.take_due(start)), ("00000", None));
        schedule.set(&all, start);
        assert_eq!(schedule.take_due(start).as_ref(), Some(&all[3]));
        assert_eq!(schedule.next(), Some(start + EVERY / 3));
        schedule.set(&[], start);
        assert_eq!(schedule.next(), None);
    }

    #[tokio::test]
    async fn missed_turns_are_not_made_up_for() {
        let start = Instant::now();
        let mut schedule = Schedule::new(EVERY);
        schedule.set(&targets(1), start);
        let late = start + EVERY * 5;
        assert!(schedule.take_due(late).is_some());
        assert_eq!((schedule.take_due(late), schedule.next()), (None, Some(late + EVERY)));
    }
}
