//! The prober of `control serve`: visits every node of the DERP map and every satellite once a period
//! and remembers how they are.
//!
//! Owns that memory, which is of this process alone: the store knows nothing of it, and no revision
//! moves. A change of state goes to the log; nodes that stay away go out of the served map, if that is
//! wished. It must never hold up an answer: visits are few at a time and end by themselves.

mod figures;
mod health;
mod schedule;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::Query;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use utoipa::ToSchema;
use wire::key::Key;

use super::Control;
use super::api::{Ask, parameters};
use super::map::{Published, every as every_row};
use super::problem::Problem;
use crate::clock;
use crate::config::Checked;
use crate::probe::{Identity, Trust, node, satellite};
use crate::resource::{Node, Satellite, Scope};
use figures::Figures;
use health::{Finding, Record};
use schedule::Schedule;

pub use health::{Health, State, TargetKind};

/// Visits under way at a time; each has up to three sockets.
const VISITS_MAX: usize = 128;
/// Time for a visit. Every question has a time of its own; one that answers each at the last moment
/// would hold its place for minutes.
const VISIT: Duration = Duration::from_secs(30);
/// Between two looks at what there is to visit, at least: many changes in a row are one.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Whom to visit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Target {
    kind: TargetKind,
    /// Shared by all who remember the target.
    name: Arc<str>,
}

/// Everything that there is to visit.
#[derive(Debug, Default)]
struct Targets {
    /// The map that nodes are found in; there is one after the first look.
    map: Option<Arc<Published>>,
    places: HashMap<Target, Place>,
}

/// Where to find what a visit takes.
#[derive(Clone, Debug)]
enum Place {
    /// In the map: the region's id and the number among its nodes.
    Node {
        region: u32,
        number: usize,
    },
    Satellite {
        access_url: String,
    },
}

/// What a visit takes.
#[derive(Debug)]
enum Subject {
    Node(Box<Node>),
    Satellite { access_url: String },
}

impl Targets {
    fn subject(&self, target: &Target) -> Option<Subject> {
        Some(match self.places.get(target)? {
            Place::Node { region, number } => {
                let region = self.map.as_ref()?.map.regions.get(region)?;
                Subject::Node(Box::new(region.nodes.get(*number)?.clone()))
            }
            Place::Satellite { access_url } => {
                Subject::Satellite { access_url: access_url.clone() }
            }
        })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Prober {
    every: Option<Duration>,
    leave_out: bool,
    trust: Trust,
    /// What relays that we steer, and those that ask us, always let in.
    identity: Identity,
    places: Arc<Semaphore>,
    figures: Figures,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Every target that there is.
    records: BTreeMap<Target, Record>,
    /// Nodes that have failed for so long that the map should do without them.
    gone: BTreeSet<String>,
    /// The access URLs of satellites, by name.
    urls: BTreeMap<String, String>,
}

impl Prober {
    pub(crate) fn new(checked: &Checked, identity: Identity) -> Self {
        Self {
            identity,
            every: checked.probe_every,
            leave_out: checked.probe_leave_out,
            trust: Trust::default(),
            places: Arc::new(Semaphore::new(VISITS_MAX)),
            figures: Figures::default(),
            memory: Mutex::default(),
        }
    }

    /// Whether `key` is the one by which this control's probes, and those of others on its store, log
    /// in to relays.
    pub(crate) fn is_ours(&self, key: &Key) -> bool {
        self.identity.public() == *key
    }

    /// What is known of the targets of `kind`, or of all, by kind and name.
    pub(crate) fn all(&self, kind: Option<TargetKind>, left_out: &[String]) -> Vec<Health> {
        let memory = self.memory();
        let left_out: BTreeSet<_> = left_out.iter().map(String::as_str).collect();
        let wanted =
            memory.records.iter().filter(|(target, _)| kind.is_none_or(|kind| kind == target.kind));
        let shown = |(target, record): (&Target, &Record)| {
            let left_out = target.kind == TargetKind::Node && left_out.contains(&*target.name);
            record.shown(target.kind, &target.name, left_out)
        };
        wanted.map(shown).collect()
    }

    /// The access URLs of all satellites that are visited, by name.
    pub(crate) fn urls(&self) -> BTreeMap<String, String> {
        self.memory().urls.clone()
    }

    /// The part of the metrics that is about probes.
    pub(crate) fn page(&self, left_out: usize) -> String {
        let memory = self.memory();
        let states = memory.records.iter().map(|(target, record)| (target.kind, record.state));
        self.figures.page(states, left_out)
    }

    /// Forgets targets that are no more, and makes room for those that are new; the nodes that the
    /// map should do without, if that changed.
    fn remember(&self, targets: &HashMap<Target, Place>) -> Option<BTreeSet<String>> {
        let mut memory = self.memory();
        memory.records.retain(|target, _| targets.contains_key(target));
        for target in targets.keys() {
            memory.records.entry(target.clone()).or_default();
        }
        let url = |(target, place): (&Target, &Place)| match place {
            Place::Satellite { access_url } => Some((target.name.to_string(), access_url.clone())),
            Place::Node { .. } => None,
        };
        memory.urls = targets.iter().filter_map(url).collect();
        let Memory { records, gone, .. } = &mut *memory;
        let before = gone.len();
        gone.retain(|name| records.contains_key(&node_target(name)));
        (gone.len() != before).then(|| gone.clone())
    }

    /// Takes in what a visit has found; the nodes that the map should do without, if that changed.
    fn note(&self, target: &Target, finding: Finding) -> Option<BTreeSet<String>> {
        self.figures.note(target.kind, &finding);
        let mut memory = self.memory();
        let Memory { records, gone, .. } = &mut *memory;
        // It may have been removed meanwhile.
        let record = records.get_mut(target)?;
        if let Some(state) = record.note(finding, clock::now()) {
            self.figures.changes[state as usize].add(1);
            let (name, why) = (&*target.name, record.why());
            match state {
                State::Healthy => tracing::info!(kind = ?target.kind, name, "is healthy"),
                State::Unhealthy => {
                    tracing::warn!(kind = ?target.kind, name, why, "is unhealthy")
                }
                State::Unknown => {
                    tracing::info!(kind = ?target.kind, name, why, "cannot be told")
                }
            }
        }
        if target.kind != TargetKind::Node || !self.leave_out {
            return None;
        }
        let was = gone.contains(&*target.name);
        let changed = match record.is_gone(was) {
            true => gone.insert(target.name.to_string()),
            false => gone.remove(&*target.name),
        };
        changed.then(|| gone.clone())
    }

    /// A place among the visits under way.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        self.figures.waits.add(1);
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn node_target(name: &str) -> Target {
    Target { kind: TargetKind::Node, name: name.into() }
}

/// Visits for as long as control serves; at once over if that is not wished.
pub(super) async fn run(control: Arc<Control>) {
    let Some(every) = control.prober.every else { return };
    let mut schedule = Schedule::new(every);
    let mut targets = Targets::default();
    let mut revisions = control.store.revisions();
    let (mut looked, mut look) = (None, Instant::now());
    let mut visits = JoinSet::new();
    loop {
        while visits.try_join_next().is_some() {}
        let due = schedule.next().map_or(look, |due| due.min(look));
        tokio::select! {
            Ok(()) = revisions.changed() => {
                let soon = looked.map_or(look, |looked| looked + LOOK_PAUSE);
                look = look.min(soon);
                continue;
            }
            () = sleep_until(due) => {}
        }
        if Instant::now() >= look {
            // A look that fails says so at `/readyz`, too; until then it stays as it was.
            if let Ok(found) = look_around(&control).await {
                targets = found;
                if let Some(gone) = control.prober.remember(&targets.places) {
                    control.board.leave_out(gone);
                }
                schedule.set(targets.places.keys(), Instant::now());
            }
            looked = Some(Instant::now());
            look = Instant::now() + every.max(LOOK_PAUSE);
        }
        while let Some(target) = schedule.take_due(Instant::now()) {
            let (Some(subject), Some(place)) =
                (targets.subject(&target), control.prober.place().await)
            else {
                continue;
            };
            visits.spawn(visit(Arc::clone(&control), target, subject, place));
        }
    }
}

/// What there is to visit.
async fn look_around(control: &Control) -> Result<Targets, Problem> {
    let current = control.board.current(&*control.store).await?;
    let (satellites, _) = every_row::<Satellite>(&*control.store).await?;
    let mut places = HashMap::new();
    for (region, of) in &current.map.regions {
        for (number, node) in of.nodes.iter().enumerate() {
            places.insert(node_target(&node.name), Place::Node { region: *region, number });
        }
    }
    for row in satellites {
        let Satellite { name, access_url, .. } = row.resource;
        // One that registered by the v1 command line has no URL, so there is nothing to ask.
        if !access_url.is_empty() {
            let target = Target { kind: TargetKind::Satellite, name: name.into() };
            places.insert(target, Place::Satellite { access_url });
        }
    }
    Ok(Targets { map: Some(current), places })
}

async fn visit(
    control: Arc<Control>,
    target: Target,
    subject: Subject,
    _place: OwnedSemaphorePermit,
) {
    let prober = &control.prober;
    let visit = async {
        match subject {
            Subject::Node(node) => {
                Finding::from(&node::visit(&node, &prober.trust, &prober.identity).await)
            }
            Subject::Satellite { access_url } => {
                satellite::visit(&access_url, &prober.trust).await.into()
            }
        }
    };
    let finding = timeout(VISIT, visit).await.unwrap_or_else(|_| Finding::too_slow());
    if let Some(gone) = prober.note(&target, finding) {
        match control.board.serves_without(&gone).await {
            true => tracing::warn!(failing = ?gone, "the DERP map does without failing nodes"),
            false => {
                tracing::warn!(failing = ?gone, "every relay fails, so the DERP map is served whole");
            }
        }
        control.board.leave_out(gone);
    }
}

/// What probing knows, at one look.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct HealthListing {
    /// Everything that is visited, by kind and name.
    pub items: Vec<Health>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    kind: Option<TargetKind>,
}

/// `GET /api/v1/health`.
pub(super) async fn list(
    ask: Ask,
    query: Result<Query<Parameters>, axum::extract::rejection::QueryRejection>,
) -> Result<axum::Json<HealthListing>, Problem> {
    ask.admit(Scope::Read).await?;
    let Parameters { kind } = parameters(query)?;
    let current = ask.control.board.current(&*ask.control.store).await?;
    Ok(axum::Json(HealthListing { items: ask.control.prober.all(kind, &current.left_out) }))
}
