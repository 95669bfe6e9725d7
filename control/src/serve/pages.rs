//! Living records of a kind where all or many are wanted, a page at a time: what is between the
//! store's text and a row takes many times the row's memory.

use tokio::task::yield_now;

use super::problem::Problem;
use crate::store::{Kind, Query, Record, Revision, Store};

/// Rows of a page.
const ROWS_AT_ONCE: usize = 500;

/// Has `take` take in `limit` records after the name `after`, in the order of their names. The store
/// reads the next page meanwhile. Gives the last name if there are more.
pub(super) async fn take_pages(
    store: &dyn Store,
    kind: Kind,
    after: Option<String>,
    limit: usize,
    mut take: impl FnMut(Vec<Record>, Revision) -> Result<(), Problem>,
) -> Result<Option<String>, Problem> {
    let ask = |after, left: usize| store.list(Query { kind, after, limit: ROWS_AT_ONCE.min(left) });
    let (mut left, mut page) = (limit, ask(after, limit).await?);
    loop {
        left -= page.records.len().min(left);
        let last = page.records.last().filter(|_| page.more).map(|record| record.name.clone());
        if last.is_none() || left == 0 {
            take(page.records, page.revision)?;
            return Ok(last);
        }
        let taken = async {
            // The question must be on its way before this thread is busy.
            yield_now().await;
            take(page.records, page.revision)
        };
        let (next, taken) = tokio::join!(biased; ask(last, left), taken);
        taken?;
        page = next?;
    }
}
