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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
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
            place @ Place::Node { .. } => Subject::Node(Box::new(self.node(place)?.clone())),
            Place::Satellite { access_url } => {
                Subject::Satellite { access_url: access_url.clone() }
            }
        })
    }

    fn node(&self, place: &Place) -> Option<&Node> {
        let Place::Node { region, number } = place else { return None };
        self.map.as_ref()?.map.regions.get(region)?.nodes.get(*number)
    }

    /// Whether `target` is asked elsewhere, or otherwise, than among `old`: what is known of it is then
    /// another's.
    fn moved(&self, target: &Target, old: &Self) -> bool {
        let (Some(new), Some(was)) = (self.places.get(target), old.places.get(target)) else {
            return false;
        };
        if let (Place::Satellite { access_url: new }, Place::Satellite { access_url: was }) =
            (new, was)
        {
            return new != was;
        }
        let (new, was) = (self.node(new), old.node(was));
        let plain = |node: &Node| Node { drain: false, region: String::new(), ..node.clone() };
        new != was && new.map(plain) != was.map(plain)
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
    /// Records that were begun.
    stays: u64,
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

    /// Has the authorities of certificates read again.
    pub(crate) async fn forget_authorities(&self) {
        self.trust.forget().await;
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

    /// Forgets targets that are no more, or are somewhere else than in `old`, and makes room for those
    /// that are new; the nodes that the map should do without, if that changed.
    fn remember(&self, targets: &Targets, old: &Targets) -> Option<BTreeSet<String>> {
        let mut memory = self.memory();
        let stays =
            |target: &Target| targets.places.contains_key(target) && !targets.moved(target, old);
        memory.records.retain(|target, _| stays(target));
        let Memory { records, stays, gone, .. } = &mut *memory;
        let before = gone.len();
        gone.retain(|name| records.contains_key(&node_target(name)));
        let changed = (gone.len() != before).then(|| gone.clone());
        let targets = &targets.places;
        for target in targets.keys() {
            records.entry(target.clone()).or_insert_with(|| {
                *stays += 1;
                Record::of(*stays)
            });
        }
        let url = |(target, place): (&Target, &Place)| match place {
            Place::Satellite { access_url } => Some((target.name.to_string(), access_url.clone())),
            Place::Node { .. } => None,
        };
        memory.urls = targets.iter().filter_map(url).collect();
        changed
    }

    /// Which stay of `target` a visit is of that begins now.
    fn stay(&self, target: &Target) -> Option<u64> {
        self.memory().records.get(target).map(|record| record.stay)
    }

    /// Takes in what a visit of this stay has found; the nodes that the map should do without, if that
    /// changed.
    fn note(&self, target: &Target, stay: u64, finding: Finding) -> Option<BTreeSet<String>> {
        self.figures.note(target.kind, &finding);
        let mut memory = self.memory();
        let Memory { records, gone, .. } = &mut *memory;
        // It may have been removed, or have moved, meanwhile.
        let record = records.get_mut(target).filter(|record| record.stay == stay)?;
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
    let mut under_way = HashMap::<Target, Weak<()>>::new();
    let mut sources = control.board.moved();
    loop {
        while visits.try_join_next().is_some() {}
        let due = schedule.next().map_or(look, |due| due.min(look));
        tokio::select! {
            Ok(()) = async { tokio::select! {
                changed = revisions.changed() => changed,
                changed = sources.changed() => changed,
            } } => {
                let soon = looked.map_or(look, |looked| looked + LOOK_PAUSE);
                look = look.min(soon);
                continue;
            }
            () = sleep_until(due) => {}
        }
        if Instant::now() >= look {
            // A look that fails says so at `/readyz`, too; until then it stays as it was.
            if let Ok(found) = look_around(&control).await {
                let old = std::mem::replace(&mut targets, found);
                if let Some(gone) = control.prober.remember(&targets, &old) {
                    control.board.leave_out(gone);
                }
                schedule.set(targets.places.keys(), Instant::now());
                under_way.retain(|target, visit: &mut Weak<()>| {
                    let stays = targets.places.contains_key(target) && !targets.moved(target, &old);
                    stays && visit.strong_count() > 0
                });
            }
            looked = Some(Instant::now());
            look = Instant::now() + every.max(LOOK_PAUSE);
        }
        while let Some(target) = schedule.take_due(Instant::now()) {
            // One that is slow to answer has one place, however often it is due.
            if under_way.get(&target).is_some_and(|visit| visit.strong_count() > 0) {
                continue;
            }
            let (Some(subject), Some(stay), Some(place)) = (
                targets.subject(&target),
                control.prober.stay(&target),
                control.prober.place().await,
            ) else {
                continue;
            };
            let here = Arc::new(());
            under_way.insert(target.clone(), Arc::downgrade(&here));
            let visit = visit(Arc::clone(&control), target, stay, subject, place);
            visits.spawn(async move {
                visit.await;
                drop(here);
            });
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
    stay: u64,
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
    if let Some(gone) = prober.note(&target, stay, finding) {
        // Before anything is waited for, in which another visit may find more.
        control.board.leave_out(gone.clone());
        match control.board.serves_without(&gone).await {
            _ if gone.is_empty() => tracing::info!("the DERP map has all of its nodes again"),
            true => tracing::warn!(failing = ?gone, "the DERP map does without failing nodes"),
            false => {
                tracing::warn!(failing = ?gone, "every relay fails, so the DERP map is served whole");
            }
        }
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
