//! What dataplanes are told, read from the store once for all who ask the same.
//!
//! Owns the last difference between two revisions, which all dataplanes that keep up ask for at the
//! same time, and places for snapshots, which are large: only a few are made and sent at a time.

use std::fmt;
use std::sync::Arc;

use steer::Order;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::orders::{Said, Untold, whole};
use crate::store::{Changes, PAGE_ROWS_MAX, Revision, Store, StoreFault};

/// Records of a difference, at most; beyond it, a snapshot says it shorter.
const DELTA_RECORDS_MAX: usize = 4096;
/// Snapshots being made and sent at a time.
const WHOLES_MAX: usize = 4;

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
    pub(super) upto: Revision,
    /// The steps; `None` if only a snapshot can tell it.
    pub(super) said: Option<Said>,
    /// Whether `from` was never a revision of this store as it is now: it was put back to an older
    /// copy.
    pub(super) put_back: bool,
}

/// A snapshot to be sent.
pub(super) struct Whole {
    /// The order.
    pub(super) line: String,
    /// The revision it is of.
    pub(super) upto: Revision,
    /// Given back once it is sent.
    _place: OwnedSemaphorePermit,
}

/// See the module.
pub(super) struct Book {
    store: Arc<dyn Store>,
    id: String,
    last: Mutex<Option<Arc<News>>>,
    wholes: Arc<Semaphore>,
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Book({})", self.id)
    }
}

impl Book {
    pub(super) fn new(store: Arc<dyn Store>, id: String) -> Self {
        Self { store, id, last: Mutex::default(), wholes: Arc::new(Semaphore::new(WHOLES_MAX)) }
    }

    /// What the store's revisions go by.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// What has changed since `from`, which is above 0.
    pub(super) async fn since(&self, from: Revision) -> Result<Arc<News>, BookFault> {
        let mut last = self.last.lock().await;
        // The revision is a hint; news of a later one than it says are good all the same.
        let now = *self.store.revisions().borrow();
        if let Some(news) = last.as_ref().filter(|news| news.from == from && news.upto >= now) {
            return Ok(Arc::clone(news));
        }
        let Changes { records, upto, reset } = self.store.changes(from, DELTA_RECORDS_MAX).await?;
        let told = !reset && records.len() < DELTA_RECORDS_MAX;
        let said = told.then(|| Said::of(&records)).transpose()?;
        let news = Arc::new(News { from, upto, said, put_back: reset && from > upto });
        *last = Some(Arc::clone(&news));
        Ok(news)
    }

    /// The snapshot for `node`, if there is such a node. With `foreign` it is told as another store's,
    /// whose numbers may be lower.
    pub(super) async fn whole(
        &self,
        node: &str,
        foreign: bool,
    ) -> Result<Option<Whole>, BookFault> {
        let place = Arc::clone(&self.wholes).acquire_owned().await;
        let place = place.map_err(|_| StoreFault::Busy)?;
        let Changes { records, upto, .. } = self.store.changes(Revision(0), PAGE_ROWS_MAX).await?;
        let id = if foreign { format!("{}-{upto}", self.id) } else { self.id.clone() };
        let node = node.to_owned();
        // Ten thousands of records take longer than other requests should wait.
        let made = tokio::task::spawn_blocking(move || {
            let snapshot = whole(&id, upto, &records, &node)?;
            Ok::<_, Untold>(snapshot.map(|snapshot| Order::Whole(Box::new(snapshot)).to_line()))
        });
        let line = made.await.map_err(|error| StoreFault::Broken(error.to_string()))??;
        Ok(line.map(|line| Whole { line, upto, _place: place }))
    }
}
