//! What dataplanes are told, read from the store once for all who ask the same.
//!
//! Owns the last difference between two revisions, which all dataplanes that keep up ask for at the
//! same time, and the last snapshot as long as anybody is being sent it: after a restart all of them
//! ask for that. It keeps neither for longer, and few snapshots of different revisions at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use steer::{NodeKey, Order, Snapshot};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::orders::{Moment, Said, Untold, whole};
use crate::store::{Changes, PAGE_ROWS_MAX, Revision, Store, StoreFault};
use crate::token::digest_hex;

/// Records of a difference, at most; beyond it, a snapshot says it shorter.
const DELTA_RECORDS_MAX: usize = 4096;
/// Snapshots of different revisions that are being made or sent at a time.
const EDITIONS_MAX: usize = 4;
/// Letters of a [`Moment::past`].
const PAST_LEN: usize = 16;

/// Why nothing can be told now.
#[derive(Debug, thiserror::Error)]
pub(super) enum BookFault {
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// The store holds what cannot be told.
    #[error(transparent)]
    Untold(#[from] Untold),
}

/// What leads from one revision to a later one.
#[derive(Debug)]
pub(super) struct News {
    from: Revision,
    /// Where it leads.
    pub(super) upto: Moment,
    /// The steps; `None` if only a snapshot can tell it.
    pub(super) said: Option<Said>,
}

/// A snapshot that is being sent to one node or many.
struct Edition {
    upto: Moment,
    /// Whether each node drains: nothing else differs between them.
    drains: BTreeMap<String, bool>,
    /// The order for nodes that do not drain, and, if there are any, that for those that do.
    lines: [Option<String>; 2],
    /// Given back once nobody is being sent it.
    _place: OwnedSemaphorePermit,
}

/// A snapshot for one node.
pub(super) struct Whole {
    edition: Arc<Edition>,
    drains: bool,
}

impl Whole {
    /// The order.
    pub(super) fn line(&self) -> &str {
        self.edition.lines[usize::from(self.drains)].as_deref().unwrap_or_default()
    }

    /// The revision it is of.
    pub(super) fn upto(&self) -> Revision {
        self.edition.upto.revision
    }
}

impl Edition {
    /// What of it is for `node`, if there is such a node.
    fn for_node(self: &Arc<Self>, node: &str) -> Option<Whole> {
        let drains = *self.drains.get(node)?;
        Some(Whole { edition: Arc::clone(self), drains })
    }
}

/// See the module.
pub(super) struct Book {
    store: Arc<dyn Store>,
    id: String,
    /// The key that control's own probes log in by.
    prober: NodeKey,
    last: Mutex<Option<Arc<News>>>,
    /// The last snapshot, and the last that was told as another store's. Held while one is made, so
    /// that those who wait for it share it.
    editions: Mutex<[Weak<Edition>; 2]>,
    places: Arc<Semaphore>,
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Book({})", self.id)
    }
}

impl Book {
    pub(super) fn new(store: Arc<dyn Store>, id: String, prober: NodeKey) -> Self {
        let places = Arc::new(Semaphore::new(EDITIONS_MAX));
        Self { store, id, prober, last: Mutex::default(), editions: Mutex::default(), places }
    }

    /// What the store's revisions go by.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// `revision`, and what of it is in the store's log: a digest of the entry. A store that was put
    /// back to a backup comes to the same number by another change, at another time.
    pub(super) async fn moment(&self, revision: Revision) -> Result<Moment, StoreFault> {
        let entries = self.store.audit(Some(Revision(revision.0 + 1)), 1).await?;
        let entry = entries.first().filter(|entry| entry.revision == revision);
        // The log is cut at its end, so an old revision may have none. Texts and numbers serialise.
        let text = entry.map(|entry| serde_json::to_vec(entry).unwrap_or_default());
        let past = text.map(|text| digest_hex(&text)[..PAST_LEN].to_owned()).unwrap_or_default();
        Ok(Moment { revision, past })
    }

    /// What has changed since `from`, which is above 0.
    pub(super) async fn since(&self, from: Revision) -> Result<Arc<News>, BookFault> {
        let mut last = self.last.lock().await;
        // The revision is a hint; news of a later one than it says are good all the same.
        let now = *self.store.revisions().borrow();
        let fits = |news: &&Arc<News>| news.from == from && news.upto.revision >= now;
        if let Some(news) = last.as_ref().filter(fits) {
            return Ok(Arc::clone(news));
        }
        let Changes { records, upto, reset } = self.store.changes(from, DELTA_RECORDS_MAX).await?;
        let told = !reset && records.len() < DELTA_RECORDS_MAX;
        let said = told.then(|| Said::of(&records)).transpose()?;
        let news = Arc::new(News { from, upto: self.moment(upto).await?, said });
        *last = Some(Arc::clone(&news));
        Ok(news)
    }

    /// The snapshot for `node`, if there is such a node, of what the store has now or of a later
    /// moment. With `foreign` it is told as another store's, whose numbers may be lower.
    pub(super) async fn whole(
        &self,
        node: &str,
        foreign: bool,
    ) -> Result<Option<Whole>, BookFault> {
        let now = *self.store.revisions().borrow();
        let mut editions = self.editions.lock().await;
        let kept = &mut editions[usize::from(foreign)];
        let last = kept.upgrade();
        if let Some(edition) = last.as_ref().filter(|edition| edition.upto.revision >= now) {
            return Ok(edition.for_node(node));
        }
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                // Slow dataplanes are still being sent older ones. The last of those does, and what
                // has changed since follows.
                if let Some(whole) = last.and_then(|edition| edition.for_node(node)) {
                    return Ok(Some(whole));
                }
                let place = Arc::clone(&self.places).acquire_owned().await;
                place.map_err(|_| StoreFault::Busy)?
            }
        };
        let edition = Arc::new(self.edition(foreign, place).await?);
        *kept = Arc::downgrade(&edition);
        Ok(edition.for_node(node))
    }

    async fn edition(
        &self,
        foreign: bool,
        place: OwnedSemaphorePermit,
    ) -> Result<Edition, BookFault> {
        let Changes { records, upto, .. } = self.store.changes(Revision(0), PAGE_ROWS_MAX).await?;
        let (upto, prober) = (self.moment(upto).await?, self.prober);
        let id = match foreign {
            true => format!("{}-{}", self.id, upto.revision),
            false => self.id.clone(),
        };
        // Ten thousands of records take longer than other requests should wait.
        let made = tokio::task::spawn_blocking(move || {
            let (snapshot, drains) = whole(&id, &upto, &records, prober)?;
            let line = |drain| {
                let snapshot = Snapshot { drain, ..snapshot.clone() };
                Order::Whole(Box::new(snapshot)).to_line()
            };
            let lines = [false, true]
                .map(|drain| drains.values().any(|has| *has == drain).then(|| line(drain)));
            Ok::<_, Untold>(Edition { upto, drains, lines, _place: place })
        });
        Ok(made.await.map_err(|error| StoreFault::Broken(error.to_string()))??)
    }
}
