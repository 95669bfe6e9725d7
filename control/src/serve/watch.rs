//! `GET /api/v1/watch`: what changes, as server-sent events, from any revision on.
//!
//! Events: `change` with a [`WatchEvent`], its id the revision to resume from; `reset`, after which
//! everything known is to be forgotten; `upto` when all changes so far have been told. A watcher who
//! reads slowly is not queued for: what it gets next is read from the store when it is ready.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Query;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use utoipa::ToSchema;

use super::api::{Ask, parameters};
use super::problem::{Code, Problem};
use crate::clock::Stamp;
use crate::resource::{self, Scope};
use crate::store::{Kind, Record, Revision};

/// A silent stream says so this often, for whoever is in between.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Changes read from the store at once.
const BATCH_ROWS: usize = 256;
/// Events that may wait for one watcher.
const EVENTS_MAX: usize = 16;

/// A record that was made, changed or removed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WatchEvent {
    /// The kind.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The revision of the change.
    pub revision: Revision,
    /// When.
    pub at: Stamp,
    /// What it says now; absent if it was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub body: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Parameters {
    from: Option<Revision>,
}

/// The stream, from `from` or the header Last-Event-ID on; without either, from the beginning.
pub(crate) async fn watch(
    ask: Ask,
    query: Result<Query<Parameters>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    ask.admit(Scope::Read).await?;
    let header = ask.headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let resumed = header.and_then(|text| text.parse().ok()).map(Revision);
    let asked = parameters(query)?.from;
    if asked.is_some_and(|from| from < Revision::default()) {
        return Err(Problem::new(Code::BadRequest, "from takes a revision, 0 or more"));
    }
    let from = resumed.or(asked).unwrap_or_default();
    let Ok(place) = Arc::clone(&ask.control.watches).try_acquire_owned() else {
        ask.control.counters.watches_refused.add(1);
        return Err(Problem::new(Code::Busy, "as many watch as may; try again later"));
    };
    let (events, stream) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(tell(ask, from, events, place));
    let stream = Sse::new(ReceiverStream::new(stream));
    Ok(stream.keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response())
}

/// Tells changes until the watcher goes, may no longer see them, or control stops.
async fn tell(
    ask: Ask,
    mut from: Revision,
    events: mpsc::Sender<Result<Event, Infallible>>,
    _place: OwnedSemaphorePermit,
) {
    let mut revisions = ask.control.store.revisions();
    let mut stop = ask.control.stop.clone();
    loop {
        revisions.mark_unchanged();
        let look = async {
            let caller = ask.admit(Scope::Read).await?;
            let changes = ask.control.store.changes(from, BATCH_ROWS).await?;
            Ok::<_, Problem>((Scope::Admin.allowed_by(&caller.scopes), changes))
        };
        match look.await {
            Ok((sees_tokens, changes)) => {
                let told = changes.records.into_iter();
                let told = told.filter(|record| sees_tokens || record.kind != Kind::Token);
                let reset = changes.reset.then(|| Event::default().event("reset").data("{}"));
                let upto = Event::default().event("upto").id(changes.upto.to_string());
                let upto = upto.data(format!("{{\"revision\":{}}}", changes.upto));
                for event in reset.into_iter().chain(told.filter_map(event)).chain([upto]) {
                    if events.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                from = changes.upto;
                if from < *ask.control.store.revisions().borrow() {
                    continue;
                }
            }
            // Nothing is lost: the next look begins at the same revision.
            Err(Problem { code: Code::Busy | Code::StoreAway, .. }) => {}
            Err(Problem { code: Code::Unauthenticated | Code::Forbidden, .. }) => return,
            Err(problem) => {
                tracing::warn!(problem.detail, "a watch ends");
                return;
            }
        }
        tokio::select! {
            changed = revisions.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(HEARTBEAT) => {}
            () = events.closed() => return,
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

fn event(record: Record) -> Option<Event> {
    let event = WatchEvent {
        kind: record.kind,
        id: record.id,
        name: record.name,
        revision: record.revision,
        at: Stamp(record.updated_at),
        body: record.body.map(|body| resource::shown(record.kind, body)),
    };
    let data = serde_json::to_string(&event).ok()?;
    Some(Event::default().event("change").id(event.revision.to_string()).data(data))
}
