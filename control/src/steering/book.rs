//! What dataplanes are told, read from the store once for all who ask the same.
//!
//! Owns the last difference between two revisions, which all dataplanes that keep up ask for at the
//! same time, and the last snapshot as long as anybody is being sent it: after a restart all of them
//! ask for that. It keeps neither for longer, and few snapshots of different revisions at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use steer::{Delta, NodeKey, Order, Snapshot};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::orders::{Moment, Said, Untold, number, whole};
use crate::store::{AuditEntry, Changes, PAGE_ROWS_MAX, Revision, Store, StoreFault};

/// Records of a difference, at most; beyond it, a snapshot says it shorter.
const DELTA_RECORDS_MAX: usize = 4096;
/// Snapshots of different revisions that are being made or sent at a time.
const EDITIONS_MAX: usize = 4;

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
    /// The order for nodes of which the steps say nothing, that they drain no longer, that they do.
    lines: [OnceLock<String>; 3],
}

impl News {
    /// The order with the steps in `said` for `node`, made once for all who are told the same.
    pub(super) fn line(&self, said: &Said, node: &str) -> &str {
        let which = match said.drains.get(node) {
            None => 0,
            Some(drain) if *drain != Some(true) => 1,
            Some(_) => 2,
        };
        self.lines[which].get_or_init(|| {
            let Moment { revision, past } = self.upto.clone();
            let changes = said.for_node(node);
            let delta = Delta { from: number(self.from), to: number(revision), past, changes };
            Order::Delta(delta).to_line()
        })
    }
}

/// A snapshot that is being sent to one node or many.
struct Edition {
    upto: Moment,
    /// Whether each node drains: nothing else differs between them.
    drains: BTreeMap<String, bool>,
    /// The order for nodes that do not drain, and, if there are any, that for those that do.
    lines: [Option<String>; 2],
    /// Given back once nobody is being sent it.
    _place: EditionPlace,
}

/// What there is to tell a node.
pub(super) enum Told {
    Whole(Whole),
    /// There is no such node.
    NoNode,
    /// Nothing until a place for another snapshot is free.
    Full,
}

/// The right to make one more snapshot; given back with the last who is being sent it.
pub(super) struct EditionPlace(
    #[expect(dead_code, reason = "held, not used")] OwnedSemaphorePermit,
);

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
        // The log is cut at its end, so an old revision may have none.
        let past = entry.map(AuditEntry::past).unwrap_or_default();
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
        let (upto, lines) = (self.moment(upto).await?, Default::default());
        let news = Arc::new(News { from, upto, said, lines });
        *last = Some(Arc::clone(&news));
        Ok(news)
    }

    /// The snapshot for `node` of what the store has now or of a later moment, made in `place` if a new
    /// one must be made. With `foreign` it is told as another store's, whose numbers may be lower.
    pub(super) async fn whole(
        &self,
        node: &str,
        foreign: bool,
        place: Option<EditionPlace>,
    ) -> Result<Told, BookFault> {
        let now = *self.store.revisions().borrow();
        let mut editions = self.editions.lock().await;
        let kept = &mut editions[usize::from(foreign)];
        let last = kept.upgrade();
        if let Some(edition) = last.as_ref().filter(|edition| edition.upto.revision >= now) {
            return Ok(edition.for_node(node).map_or(Told::NoNode, Told::Whole));
        }
        let free = || Arc::clone(&self.places).try_acquire_owned().ok().map(EditionPlace);
        if let Some(place) = place.or_else(free) {
            let edition = Arc::new(self.edition(foreign, place).await?);
            *kept = Arc::downgrade(&edition);
            return Ok(edition.for_node(node).map_or(Told::NoNode, Told::Whole));
        }
        // Slow dataplanes are still being sent older ones. The last of those does, and what has
        // changed since follows.
        let older = last.and_then(|edition| edition.for_node(node));
        Ok(older.map_or(Told::Full, Told::Whole))
    }

    /// A place for a new snapshot, once one is free; of those who wait the first gets it.
    pub(super) async fn place(&self) -> Result<EditionPlace, BookFault> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        Ok(EditionPlace(place.map_err(|_| StoreFault::Busy)?))
    }

    async fn edition(&self, foreign: bool, place: EditionPlace) -> Result<Edition, BookFault> {
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
