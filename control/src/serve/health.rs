//! `/livez`, `/readyz` with its reasons, and `/metrics`.

use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::api::Ask;
use super::counters::{Gauges, page};
use super::problem::Problem;
use super::{Control, WATCHES_MAX};
use crate::resource::Scope;
use crate::steering::Dataplane;
use crate::store::StoreFault;

/// What the reason begins with for which the DERP map is not what the records say.
pub(crate) const MAP_REASON: &str = "DERP map";

/// How long a good look at the store counts.
const KEEP: Duration = Duration::from_secs(1);

/// The last look at the store, for all who ask. Strangers ask as often as they like, and cost no look
/// each; held during one, so that those who wait for it share it, however long it takes.
#[derive(Debug, Default)]
pub(crate) struct StoreLook(Mutex<Option<Looked>>);

#[derive(Debug)]
struct Looked {
    began: Instant,
    ended: Instant,
    found: Result<(), StoreFault>,
}

impl StoreLook {
    /// Whether the store is well, as `look` finds it unless somebody just has. That it is not counts for
    /// those who waited for that look and nobody else: it may be over.
    async fn current<T>(
        &self,
        look: impl Future<Output = Result<T, StoreFault>>,
    ) -> Result<(), StoreFault> {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        if let Some(Looked { began, ended, found }) = &*last {
            let counts = match found {
                Ok(()) => asked.saturating_duration_since(*began) < KEEP,
                Err(_) => asked < *ended,
            };
            if counts {
                return found.clone();
            }
        }
        let began = Instant::now();
        let found = look.await.map(drop);
        *last = Some(Looked { began, ended: Instant::now(), found: found.clone() });
        found
    }
}

/// The process runs and answers.
pub(crate) async fn live() -> &'static str {
    "live\n"
}

/// Whether everything control serves is what it should be; a line for each thing that is not. Paths
/// and addresses are for those who may read the API; others get the reason without them.
pub(crate) async fn ready(ask: Ask) -> Response {
    let reasons = reasons(&ask.control).await;
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    let trusted = ask.is_from(Scope::Read).await;
    let lines = reasons.iter().map(|reason| match trusted {
        true => format!("{}: {}\n", reason.what, reason.detail),
        false => format!("{}: {}\n", reason.what, reason.why),
    });
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect::<String>()).into_response()
}

/// Something that is not as it should be.
struct Reason {
    what: &'static str,
    /// Why, for everybody.
    why: &'static str,
    /// Why, with what is not for everybody.
    detail: String,
}

async fn reasons(control: &Control) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if *control.stop.borrow() {
        let why = "control was told to end";
        reasons.push(Reason { what: "stopping", why, detail: why.to_owned() });
    }
    if let Err(fault) = control.store_look.current(control.store.look()).await {
        reasons.push(Reason { what: "store", why: in_public(&fault), detail: fault.to_string() });
    }
    let mut map = |why, detail| reasons.push(Reason { what: MAP_REASON, why, detail });
    match control.board.current(&*control.store).await {
        Ok(current) => {
            let old = "its sources contradict each other; the last good one is served";
            current.fault.iter().for_each(|why| map(old, why.clone()));
        }
        Err(problem) => map("it cannot be built", problem.detail),
    }
    reasons.extend(control.board.silent().into_iter().map(|detail| Reason {
        what: "source of the DERP map",
        why: "it has said nothing yet",
        detail,
    }));
    reasons
}

fn in_public(fault: &StoreFault) -> &'static str {
    match fault {
        StoreFault::Away(_) => "the database cannot be reached",
        StoreFault::Busy => "it is busy",
        StoreFault::Full => "the disk is full",
        StoreFault::Taken { .. }
        | StoreFault::Held { .. }
        | StoreFault::Gone { .. }
        | StoreFault::Missing { .. }
        | StoreFault::InUse { .. }
        | StoreFault::Stale { .. }
        | StoreFault::OnceReused
        | StoreFault::Limit(_)
        | StoreFault::Unknown
        | StoreFault::Broken(_) => "the database failed",
    }
}

/// Counters for Prometheus.
pub(crate) async fn metrics(ask: Ask) -> Result<Response, Problem> {
    ask.admit(Scope::Read).await?;
    let control = &ask.control;
    let current = control.board.current(&*control.store).await.ok();
    let left_out = current.as_ref().map_or(0, |now| now.left_out.len());
    let records = control.store.counts().await?;
    let revision = *control.store.revisions().borrow();
    let dataplanes = control.steering.dataplanes();
    let behind = |dataplane: &Dataplane| revision.0.saturating_sub(dataplane.revision.0);
    let gauges = Gauges {
        dataplanes: dataplanes.len(),
        steer_lag: dataplanes.iter().map(behind).max().unwrap_or(0).unsigned_abs(),
        revision,
        records,
        map: current.as_ref().map(|now| (now.map.regions.len(), now.map.nodes())),
        map_is_current: current.is_some_and(|now| now.fault.is_none()),
        leads: control.store.leads(),
        watches: WATCHES_MAX - control.watches.available_permits(),
    };
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    let page = page(&control.counters, &control.steering.counters, &gauges);
    Ok((kind, page + &control.prober.page(left_out)).into_response())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::{JoinSet, yield_now};
    use tokio::time::{advance, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_crowd_that_asks_for_readiness_costs_one_look_a_second() {
        let (kept, looks) = (Arc::new(StoreLook::default()), Arc::new(AtomicUsize::new(0)));
        let ask = |answer: Result<(), StoreFault>| {
            let (kept, looks) = (Arc::clone(&kept), Arc::clone(&looks));
            let look = async move {
                looks.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
                answer
            };
            async move { kept.current(look).await }
        };
        let crowd: JoinSet<_> = (0..100).map(|_| ask(Ok(()))).collect();
        assert!(crowd.join_all().await.iter().all(Result::is_ok));
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        advance(KEEP).await;
        assert_eq!(ask(Err(StoreFault::Busy)).await, Err(StoreFault::Busy));
        assert_eq!(ask(Ok(())).await, Ok(()), "a fault is not kept");
        assert_eq!(looks.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_takes_long_is_shared_by_all_who_wait_for_it() {
        for found in [Ok(()), Err(StoreFault::Busy)] {
            let (kept, looks) = (Arc::new(StoreLook::default()), Arc::new(AtomicUsize::new(0)));
            let ask = || {
                let (kept, looks, found) = (Arc::clone(&kept), Arc::clone(&looks), found.clone());
                let look = async move {
                    looks.fetch_add(1, Ordering::Relaxed);
                    sleep(2 * KEEP).await;
                    found
                };
                async move { kept.current(look).await }
            };
            let crowd: JoinSet<_> = (0..100).map(|_| ask()).collect();
            assert!(crowd.join_all().await.iter().all(|told| *told == found));
            assert_eq!(looks.load(Ordering::Relaxed), 1);
        }
    }
}
