//! `GET /api/v1/watch`: what changes, as server-sent events, from any revision on.
//!
//! Events: `change` with a [`WatchEvent`], its id what to resume from; `reset`, after which everything
//! known is to be forgotten; `upto` when all changes so far have been told. A watcher who reads slowly
//! is not queued for: what it gets next is read from the store when it is ready, a page at a time.
//!
//! An id is a revision and a word for its past, which dataplanes have, too: where the store was put back
//! to a backup, who saw what that has undone is told to begin anew.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::str::FromStr;
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
use crate::store::{Kind, Place, Record, Revision, Told};

/// A silent stream says so this often, for whoever is in between.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Records read from the store at once, which one watcher holds while it takes them.
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
    from: Option<String>,
}

/// What somebody has seen last: the id of an event, or a revision alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    revision: Revision,
    /// The word for its past; `None` if nobody says.
    past: Option<String>,
}

impl FromStr for Seen {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let (number, past) = match text.split_once('-') {
            Some((number, past)) => (number, Some(past.to_owned())),
            None => (text, None),
        };
        let number = number.parse().ok().filter(|number| *number >= 0);
        let why = "from takes a revision, 0 or more, or the id of an event";
        let revision = number.ok_or_else(|| Problem::new(Code::BadRequest, why))?;
        Ok(Self { revision: Revision(revision), past })
    }
}

/// The stream, from `from` or the header Last-Event-ID on; without either, from the beginning.
pub(crate) async fn watch(
    ask: Ask,
    query: Result<Query<Parameters>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    ask.admit(Scope::Read).await?;
    let header = ask.headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let resumed = header.and_then(|text| text.parse().ok());
    let asked = parameters(query)?.from.map(|from| from.parse()).transpose()?;
    let seen = resumed.or(asked).unwrap_or_default();
    let Ok(place) = Arc::clone(&ask.control.watches).try_acquire_owned() else {
        ask.control.counters.watches_refused.add(1);
        return Err(Problem::new(Code::Busy, "as many watch as may; try again later"));
    };
    let (events, stream) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(tell(ask, seen, events, place));
    let stream = Sse::new(ReceiverStream::new(stream));
    Ok(stream.keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response())
}

/// Tells changes until the watcher goes, may no longer see them, or control stops.
async fn tell(
    ask: Ask,
    seen: Seen,
    events: mpsc::Sender<Result<Event, Infallible>>,
    _place: OwnedSemaphorePermit,
) {
    let mut revisions = ask.control.store.revisions();
    let mut stop = ask.control.stop.clone();
    let (mut from, mut past) = (Place::after(seen.revision), seen.past);
    loop {
        revisions.mark_unchanged();
        match look(&ask, from, past.as_deref()).await {
            Ok(page) => {
                (from, past) = (page.next, None);
                for event in page.events() {
                    if events.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                let now = *ask.control.store.revisions().borrow();
                let is_behind = from.whole_upto.is_some() || from.upto < now;
                if is_behind && !*stop.borrow() {
                    continue;
                }
            }
            // Nothing is lost: the next look begins at the same place.
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

/// What a watcher is told before the next look.
struct Page {
    reset: bool,
    records: Vec<Record>,
    next: Place,
    /// The words for the pasts of all these revisions, as far as the log has them.
    pasts: BTreeMap<Revision, String>,
}

/// What comes after `from`, whose past is called `past` by who has seen it.
async fn look(ask: &Ask, from: Place, past: Option<&str>) -> Result<Page, Problem> {
    let caller = ask.admit(Scope::Read).await?;
    let store = &*ask.control.store;
    let undone = match past {
        Some(past) => {
            let entries = store.entries(vec![from.upto]).await?;
            // Where it cannot be told any more, nothing can be told from there on.
            entries.first().is_none_or(|entry| entry.past() != past)
        }
        None => false,
    };
    let from = if undone { Place::default() } else { from };
    let Told { mut records, next, reset } = store.tell(from, BATCH_ROWS).await?;
    if !Scope::Admin.allowed_by(&caller.scopes) {
        records.retain(|record| record.kind != Kind::Token);
    }
    let revisions = records.iter().map(|record| record.revision).chain([next.upto]);
    let entries = store.entries(revisions.collect()).await?;
    let pasts = entries.iter().map(|entry| (entry.revision, entry.past())).collect();
    Ok(Page { reset: reset || undone, records, next, pasts })
}

impl Page {
    fn events(self) -> impl Iterator<Item = Event> {
        let Self { reset, records, next, pasts } = self;
        let id = move |revision: Revision| match pasts.get(&revision) {
            Some(past) => format!("{revision}-{past}"),
            None => revision.to_string(),
        };
        let reset = reset.then(|| Event::default().event("reset").data("{}"));
        // In the middle of the whole nothing is told up to anywhere.
        let upto = next.whole_upto.is_none().then(|| {
            let event = Event::default().event("upto").id(id(next.upto));
            event.data(format!("{{\"revision\":{}}}", next.upto))
        });
        let told = records.into_iter().filter_map(move |record| {
            let id = id(record.revision);
            Some(event(record)?.id(id))
        });
        reset.into_iter().chain(told).chain(upto)
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
    Some(Event::default().event("change").data(data))
}
