//! Removing what is kept for a time only, a batch at a time.
//!
//! However much there is, each statement is over long before the server would end it, and changes
//! come in between. Only the control that leads calls this, and a second one would do no harm.

use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::Param;
use super::connections::{ANSWER, Connections};
use super::read::value;
use crate::store::{AUDIT_ROWS_MAX, IDEMPOTENCY_S, StoreFault, TOMBSTONE_S, UnixS};

/// Rows that one statement removes. Most of its time the server looks whether anybody needs them: 5,000
/// tombstones of 100,000 took 0.6 s on two busy cores (PostgreSQL 15, 2026-12), all of them 8 s.
pub(super) const ROWS_AT_ONCE: i64 = 2_000;

/// Removes old tombstones, idempotency keys and audit entries, `rows` at a time, until none is left.
pub(super) async fn compact(
    connections: &Connections,
    now: UnixS,
    rows: i64,
) -> Result<(), StoreFault> {
    let work = Work { connections, rows };
    // The first go first: where this ends early, who watches from after them need not begin anew.
    let tombstones = "WITH gone AS (
                          DELETE FROM record WHERE id IN (
                              SELECT id FROM record WHERE body IS NULL AND updated_at < $1
                              ORDER BY revision LIMIT $2
                          ) RETURNING revision
                      ), counted AS (
                          UPDATE store
                          SET compacted = greatest(compacted, (SELECT max(revision) FROM gone))
                          WHERE EXISTS (SELECT FROM gone)
                      )
                      SELECT count(*) FROM gone";
    work.repeat(tombstones, now.saturating_sub(TOMBSTONE_S)).await?;
    let once = "WITH gone AS (
                    DELETE FROM once WHERE key IN (
                        SELECT key FROM once WHERE at < $1 ORDER BY at LIMIT $2
                    ) RETURNING key
                )
                SELECT count(*) FROM gone";
    work.repeat(once, now.saturating_sub(IDEMPOTENCY_S)).await?;
    let sql = "SELECT revision FROM audit ORDER BY revision DESC OFFSET $1 LIMIT 1";
    let first_too_many = work.rows(sql, &[(&AUDIT_ROWS_MAX, Type::INT8)]).await?;
    let Some(row) = first_too_many.first() else { return Ok(()) };
    let audit = "WITH gone AS (
                     DELETE FROM audit WHERE revision IN (
                         SELECT revision FROM audit WHERE revision <= $1 ORDER BY revision LIMIT $2
                     ) RETURNING revision
                 )
                 SELECT count(*) FROM gone";
    work.repeat(audit, value(row, 0)?).await
}

struct Work<'a> {
    connections: &'a Connections,
    rows: i64,
}

impl Work<'_> {
    /// Has `sql` remove what is up to `end`, until it finds less than it may remove.
    async fn repeat(&self, sql: &str, end: i64) -> Result<(), StoreFault> {
        loop {
            let with: [Param<'_>; 2] = [(&end, Type::INT8), (&self.rows, Type::INT8)];
            let counted = self.rows(sql, &with).await?;
            let removed = counted.first().map_or(Ok(0), |row| value::<i64>(row, 0))?;
            if removed < self.rows {
                return Ok(());
            }
        }
    }

    /// What one statement gives. Changes that wait have their turns before the next.
    async fn rows(&self, sql: &str, with: &[Param<'_>]) -> Result<Vec<Row>, StoreFault> {
        let turn = timeout(ANSWER, self.connections.writer.lock()).await;
        let client = turn.map_err(|_| StoreFault::Busy)?;
        self.connections.within(client.query_typed(sql, with)).await
    }
}
