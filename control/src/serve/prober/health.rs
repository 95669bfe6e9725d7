//! How the findings of visits become a state, with hysteresis, and what the API shows of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Stamp;
use crate::probe::latency::{Latencies, milliseconds};
use crate::probe::{Fault, node, satellite};
use crate::store::UnixS;

/// Visits in a row that must fail before a target is unhealthy: with the default period a minute to
/// a minute and a half, so that a restart is none of our business.
pub(super) const FAILURES_TO_UNHEALTHY: u32 = 3;
/// Visits in a row that must succeed before an unhealthy target is healthy again.
pub(super) const SUCCESSES_TO_HEALTHY: u32 = 2;
/// Visits in a row that must fail before a node may be left out of the map. Later than unhealthy by
/// more than a period: by then a fault of our own network shows at every node, and then none is.
pub(super) const FAILURES_TO_LEAVE_OUT: u32 = 5;

/// What a target is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    /// A node of the DERP map, whichever source it is from.
    Node,
    /// A satellite.
    Satellite,
}

/// How a target is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It was not visited yet, or from here nobody can tell.
    #[default]
    Unknown,
    /// It answers.
    Healthy,
    /// It has not answered as it should, several times in a row.
    Unhealthy,
}

/// What probing knows of a target.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// What it is.
    pub kind: TargetKind,
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: State,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Stamp>,
    /// When it was visited last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<Stamp>,
    /// What the last visit found wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How fast it answered.
    pub latency_ms: Latencies,
    /// What it says its version is; satellites only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether the map is served without it.
    #[serde(default)]
    pub left_out: bool,
}

/// What a visit says of a target.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finding {
    pub(super) verdict: Verdict,
    pub(super) latencies: Latencies,
    pub(super) version: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Everything that was asked was answered.
    Well,
    /// Everything but a login, as by a relay that does not know us: for this reason.
    Shut(String),
    /// Something was not, for this reason.
    Unwell(String),
    /// From here it cannot be told, for this reason.
    Untold(String),
}

impl Finding {
    /// That of a visit which did not come to its end.
    pub(super) fn too_slow() -> Self {
        let verdict = Verdict::Unwell("it takes too long over every answer".into());
        Self { verdict, latencies: Latencies::default(), version: None }
    }
}

impl From<&node::Visit> for Finding {
    fn from(visit: &node::Visit) -> Self {
        let verdict = judge(&visit.faults(), visit.asked());
        Self { verdict, latencies: visit.latencies(), version: None }
    }
}

impl From<satellite::Visit> for Finding {
    fn from(visit: satellite::Visit) -> Self {
        let latencies = Latencies {
            https: visit.latency.as_ref().ok().copied().map(milliseconds),
            ..Latencies::default()
        };
        let faults: Vec<_> =
            visit.latency.err().map(|fault| ("HTTPS", fault)).into_iter().collect();
        Self { verdict: judge(&faults, true), latencies, version: visit.version }
    }
}

fn judge(faults: &[(&str, Fault)], asked: bool) -> Verdict {
    if !asked {
        return Verdict::Untold("the map says nothing by which it could be asked".into());
    }
    let words = |bad: &dyn Fn(&Fault) -> bool| {
        let bad = faults.iter().filter(|(_, fault)| bad(fault));
        let words: Vec<_> = bad.map(|(what, fault)| format!("{what}: {fault}")).collect();
        (!words.is_empty()).then(|| words.join("; "))
    };
    let failed = words(&|fault| match fault {
        Fault::Failed(_) => true,
        // What we cannot reach others may.
        Fault::NotAdmitted | Fault::NoFamily(_) => false,
    });
    let untold = words(&|fault| matches!(fault, Fault::NoFamily(_)));
    let shut = words(&|fault| matches!(fault, Fault::NotAdmitted));
    match (failed, untold, shut) {
        (Some(why), ..) => Verdict::Unwell(why),
        (None, Some(why), _) => Verdict::Untold(why),
        (None, None, Some(why)) => Verdict::Shut(why),
        (None, None, None) => Verdict::Well,
    }
}

/// What is remembered of a target.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// Tells it from that of the same target before it moved, of which visits may be under way.
    pub(super) stay: u64,
    pub(super) state: State,
    /// Visits in a row that went against `state`, or since the beginning failed.
    failures: u32,
    successes: u32,
    since: Option<UnixS>,
    checked_at: Option<UnixS>,
    /// It has let us log in before.
    let_in: bool,
    why: Option<String>,
    pub(super) latencies: Latencies,
    version: Option<String>,
}

impl Record {
    /// What is known when this stay begins, which is nothing.
    pub(super) fn of(stay: u64) -> Self {
        Self { stay, ..Self::default() }
    }

    /// Takes in a visit; the new state if it is another.
    pub(super) fn note(&mut self, finding: Finding, now: UnixS) -> Option<State> {
        // A relay that knows its clients does its work. One that has let us in before, and now hangs up
        // on a login, may do so with everybody.
        let (verdict, shut) = match finding.verdict {
            Verdict::Shut(why) if self.let_in => (Verdict::Unwell(why), None),
            Verdict::Shut(why) => (Verdict::Well, Some(why)),
            verdict => (verdict, None),
        };
        self.let_in |= verdict == Verdict::Well && shut.is_none();
        let state = match verdict {
            Verdict::Well | Verdict::Shut(_) => {
                (self.failures, self.why) = (0, shut);
                self.successes = self.successes.saturating_add(1);
                let enough = match self.state {
                    State::Unhealthy => SUCCESSES_TO_HEALTHY,
                    State::Unknown | State::Healthy => 1,
                };
                if self.successes >= enough { State::Healthy } else { self.state }
            }
            Verdict::Unwell(why) => {
                (self.successes, self.why) = (0, Some(why));
                self.failures = self.failures.saturating_add(1);
                let enough = self.failures >= FAILURES_TO_UNHEALTHY;
                if enough { State::Unhealthy } else { self.state }
            }
            Verdict::Untold(why) => {
                (self.failures, self.successes, self.why) = (0, 0, Some(why));
                State::Unknown
            }
        };
        self.latencies = finding.latencies;
        self.version = finding.version.or(self.version.take());
        self.checked_at = Some(now);
        if state == self.state && self.since.is_some() {
            return None;
        }
        self.since = Some(now);
        let changed = state != self.state;
        self.state = state;
        changed.then_some(state)
    }

    /// Whether the map should do without it.
    pub(super) fn is_gone(&self, was: bool) -> bool {
        match self.state {
            State::Unhealthy => was || self.failures >= FAILURES_TO_LEAVE_OUT,
            State::Unknown | State::Healthy => false,
        }
    }

    /// What the last visit found wrong.
    pub(super) fn why(&self) -> &str {
        self.why.as_deref().unwrap_or_default()
    }

    /// It, as the API shows it.
    pub(super) fn shown(&self, kind: TargetKind, name: &str, left_out: bool) -> Health {
        Health {
            kind,
            name: name.to_owned(),
            state: self.state,
            since: self.since.map(Stamp),
            checked_at: self.checked_at.map(Stamp),
            why: self.why.clone(),
            latency_ms: self.latencies,
            version: self.version.clone(),
            left_out,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::probe::Family;
    use crate::probe::stun::Seen;

    fn finding(verdict: Verdict) -> Finding {
        Finding { verdict, latencies: Latencies::default(), version: None }
    }

    fn states(visits: &str) -> Vec<State> {
        let mut record = Record::default();
        let note = |visit| {
            let verdict = match visit {
                '+' => Verdict::Well,
                '-' => Verdict::Unwell("it fails".into()),
                '!' => Verdict::Shut("turned us away".into()),
                _ => Verdict::Untold("no IPv6".into()),
            };
            record.note(finding(verdict), 1);
            record.state
        };
        visits.chars().map(note).collect()
    }

    #[test]
    fn a_state_changes_only_when_visits_agree() {
        use State::{Healthy as H, Unhealthy as U, Unknown as X};
        assert_eq!(states("+--+--+---"), [H, H, H, H, H, H, H, H, H, U]);
        assert_eq!(states("---+-++"), [X, X, U, U, U, U, H]);
        assert_eq!(states("+?--+"), [H, X, X, X, H]);
    }

    #[test]
    fn a_relay_that_never_lets_us_in_is_well_and_one_that_does_so_no_more_is_not() {
        use State::{Healthy as H, Unhealthy as U};
        assert_eq!(states("!!!!"), [H, H, H, H]);
        assert_eq!(states("!+!!!"), [H, H, H, H, U]);
    }

    #[test]
    fn a_node_is_gone_later_than_unhealthy_and_back_when_healthy() {
        let mut record = Record::default();
        let mut gone = Vec::new();
        for visit in "+-----+-++".chars() {
            let verdict = match visit {
                '+' => Verdict::Well,
                _ => Verdict::Unwell("it fails".into()),
            };
            record.note(finding(verdict), 1);
            gone.push(record.is_gone(gone.last().copied().unwrap_or_default()));
        }
        let expected = [false, false, false, false, false, true, true, true, true, false];
        assert_eq!(gone, expected);
    }

    #[test]
    fn a_visit_is_judged_by_what_the_node_should_have_answered() {
        let failed = |why: &str| Fault::Failed(why.into());
        let seen =
            Seen { round_trip: Duration::from_millis(5), address: ([127, 0, 0, 1], 1).into() };
        let well = node::Visit {
            stun_v4: Some(Ok(seen)),
            stun_v6: Some(Err(failed("no answer"))),
            https: Some(Ok(Duration::from_millis(7))),
            derp: Some(Ok(Duration::from_micros(6500))),
        };
        let found = Finding::from(&well);
        assert_eq!(found.verdict, Verdict::Well, "one family is enough");
        assert_eq!((found.latencies.shown(), found.latencies.stun_v4), (Some(6.5), Some(5.0)));
        let verdict = |change: &dyn Fn(&mut node::Visit)| {
            let mut visit = well.clone();
            change(&mut visit);
            Finding::from(&visit).verdict
        };
        let dead = verdict(&|visit| {
            visit.stun_v4 = Some(Err(failed("silence")));
            visit.https = Some(Err(failed("refused")));
            visit.derp = Some(Err(failed("refused")));
        });
        assert_eq!(dead, Verdict::Unwell("STUN: silence; HTTPS and DERP: refused".into()));
        let shut = verdict(&|visit| visit.derp = Some(Err(Fault::NotAdmitted)));
        assert!(matches!(&shut, Verdict::Shut(why) if why.starts_with("DERP: turned us away")));
        let no_family = || Fault::NoFamily(Family::V6);
        let untold = verdict(&|visit| {
            (visit.stun_v4, visit.stun_v6) = (None, Some(Err(no_family())));
            visit.https = Some(Err(no_family()));
            visit.derp = Some(Err(no_family()));
        });
        assert!(matches!(untold, Verdict::Untold(_)), "{untold:?}");
        let nothing = verdict(&|visit| {
            (visit.stun_v4, visit.stun_v6) = (None, None);
            (visit.https, visit.derp) = (None, None);
        });
        assert!(matches!(nothing, Verdict::Untold(_)), "{nothing:?}");
    }
}
