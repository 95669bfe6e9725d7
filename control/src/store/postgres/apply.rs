//! Changes, as transactions that take the lock on the store's one row first.
//!
//! With it held, a change sees everything that was changed before it and nobody changes anything
//! beside it, on this control or another: so what it touches is read first (`gather`), its operations
//! are carried out in memory (`ledger`), and the end of it is written (`write`). It must never call
//! done what the server did not say is committed.

mod gather;
mod ledger;
mod write;

use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_postgres::types::Type;
use tokio_postgres::{IsolationLevel, Row, Transaction};

use self::gather::gather;
use self::ledger::Ledger;
use self::write::write;

use super::connections::{ANSWER, CHANNEL, Connections};
use super::read::{self, value};
use super::schema::MIGRATIONS;
use super::{Param, causes, fault, is_final};
use crate::store::{
    Applied, Change, OPERATIONS_MAX, Once, Record, Revision, StoreFault, Unchanged, UnixS,
};

/// Time for all operations of one change, before its commit.
const CHANGE: Duration = Duration::from_secs(20);
/// Rows that one statement reads or writes. With the largest bodies that is 16 MiB, which take 1.3 s on
/// the way at 100 Mbit/s: a third of the time of a statement.
const ROWS_AT_ONCE: usize = 500;

/// Carries out `change`, or nothing of it.
pub(super) async fn apply(
    connections: &Connections,
    change: &Change,
) -> Result<Applied, StoreFault> {
    if change.operations.len() > OPERATIONS_MAX {
        return Err(StoreFault::Limit("more operations in one change than the store takes"));
    }
    let turn = timeout(ANSWER, connections.writer.lock()).await;
    let mut client = turn.map_err(|_| StoreFault::Busy)?;
    let begun = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted);
    let transaction = connections.within(begun.start()).await?;
    let turn = Turn { connections, transaction: &transaction };
    let done = timeout(CHANGE, turn.carry_out(change)).await;
    let applied = done.map_err(|_| StoreFault::Busy)??;
    if !applied.replayed {
        commit(connections, transaction).await?;
    }
    Ok(applied)
}

/// Commits. Only the server's word counts: without it nobody knows.
async fn commit(connections: &Connections, transaction: Transaction<'_>) -> Result<(), StoreFault> {
    let why = match timeout(ANSWER, transaction.commit()).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) if is_final(&error) => return Err(fault(&error)),
        Ok(Err(error)) => causes(&error),
        Err(_) => format!("no answer to a commit in {} s", ANSWER.as_secs()),
    };
    tracing::error!(why, "whether a change was committed is not known");
    connections.lose(&why);
    Err(StoreFault::Unknown)
}

/// The turn of one change: its transaction, in which the lock is taken first.
struct Turn<'a> {
    connections: &'a Connections,
    transaction: &'a Transaction<'a>,
}

impl Turn<'_> {
    async fn rows(&self, sql: &str, with: &[Param<'_>]) -> Result<Vec<Row>, StoreFault> {
        self.connections.within(self.transaction.query_typed(sql, with)).await
    }

    async fn execute(&self, sql: &str, with: &[Param<'_>]) -> Result<u64, StoreFault> {
        self.connections.within(self.transaction.execute_typed(sql, with)).await
    }

    /// Whether something has; of what was compacted nobody knows, so it counts as such.
    async fn has_changed(&self, unchanged: &Unchanged) -> Result<bool, StoreFault> {
        let sql = format!(
            "SELECT compacted > $1
                 OR EXISTS (SELECT 1 FROM record WHERE revision > $1 AND kind IN ({})) FROM store",
            unchanged.words()
        );
        let rows = self.rows(&sql, &[(&unchanged.since.0, Type::INT8)]).await?;
        rows.first().map_or(Ok(true), |row| value(row, 0))
    }

    async fn carry_out(&self, change: &Change) -> Result<Applied, StoreFault> {
        let now = self.lock().await?;
        if let Some(once) = &change.once
            && let Some(records) = self.replay(once).await?
        {
            return Ok(Applied { records, replayed: true });
        }
        if let Some(unchanged) = &change.unchanged
            && (unchanged.since > now || self.has_changed(unchanged).await?)
        {
            return Err(StoreFault::Stale { now });
        }
        let mut ledger = gather(self, change, now).await?;
        let mut records = Vec::with_capacity(change.operations.len());
        for operations in change.operations.chunks(ROWS_AT_ONCE) {
            for operation in operations {
                records.push(ledger.carry_out(operation)?);
            }
            // Thousands of them take longer than other requests should wait.
            yield_now().await;
        }
        ledger.refuse_too_many()?;
        write(self, &ledger, change.now).await?;
        if let Some(once) = &change.once {
            self.remember(once, &records, change.now).await?;
        }
        self.finish(change, &ledger).await?;
        Ok(Applied { records, replayed: false })
    }

    /// Waits until nobody else changes anything, and learns where the store is.
    async fn lock(&self) -> Result<Revision, StoreFault> {
        let rows = self.rows("SELECT revision, version FROM store FOR UPDATE", &[]).await?;
        let row =
            rows.first().ok_or_else(|| StoreFault::Broken("the store's row is gone".into()))?;
        let version: i32 = value(row, 1)?;
        if usize::try_from(version) != Ok(MIGRATIONS.len()) {
            // A newer control has come. Who connects again is told what to do.
            let why = format!("it has schema {version} now");
            self.connections.lose(&why);
            return Err(StoreFault::Away(why));
        }
        Ok(Revision(value(row, 0)?))
    }

    /// The records that the same request made before.
    async fn replay(&self, once: &Once) -> Result<Option<Vec<Record>>, StoreFault> {
        let sql = "SELECT digest, ids FROM once WHERE key = $1";
        let rows = self.rows(sql, &[(&once.key, Type::TEXT)]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        if value::<&str>(row, 0)? != once.digest {
            return Err(StoreFault::OnceReused);
        }
        // Compaction may have taken the tombstone of one; then only the rest can be told.
        let sql = format!(
            "SELECT {} FROM unnest($1) WITH ORDINALITY AS made (id, place)
             JOIN record ON record.id = made.id ORDER BY place",
            read::COLUMNS
        );
        let ids: Vec<String> = value(row, 1)?;
        let rows = self.rows(&sql, &[(&ids, Type::TEXT_ARRAY)]).await?;
        rows.iter().map(read::record).collect::<Result<_, _>>().map(Some)
    }

    async fn remember(
        &self,
        once: &Once,
        records: &[Record],
        now: UnixS,
    ) -> Result<(), StoreFault> {
        let ids: Vec<_> = records.iter().map(|record| record.id.as_str()).collect();
        let sql = "INSERT INTO once (key, digest, at, ids) VALUES ($1, $2, $3, $4)";
        let with: [Param<'_>; 4] = [
            (&once.key, Type::TEXT),
            (&once.digest, Type::TEXT),
            (&now, Type::INT8),
            (&ids, Type::TEXT_ARRAY),
        ];
        self.execute(sql, &with).await.map(drop)
    }

    /// Writes the counter and the audit log, and has others told once this is committed.
    async fn finish(&self, change: &Change, ledger: &Ledger) -> Result<(), StoreFault> {
        let sql = "WITH counted AS (UPDATE store SET revision = $1),
                   logged AS (
                       INSERT INTO audit (revision, at, actor, verb, kind, id, name, before, after)
                       SELECT line.revision, $2, $3, verb, kind, id, name, before, after
                       FROM unnest($4, $5, $6, $7, $8, $9, $10)
                            AS line (revision, verb, kind, id, name, before, after)
                   )
                   SELECT pg_notify($11, '')";
        let [verbs, kinds, ids, names, befores, afters] = &ledger.log.words;
        let with: [Param<'_>; 11] = [
            (&ledger.revision.0, Type::INT8),
            (&change.now, Type::INT8),
            (&change.actor, Type::TEXT),
            (&ledger.log.revisions, Type::INT8_ARRAY),
            (verbs, Type::TEXT_ARRAY),
            (kinds, Type::TEXT_ARRAY),
            (ids, Type::TEXT_ARRAY),
            (names, Type::TEXT_ARRAY),
            (befores, Type::TEXT_ARRAY),
            (afters, Type::TEXT_ARRAY),
            (&CHANNEL, Type::TEXT),
        ];
        self.rows(sql, &with).await.map(drop)
    }
}

/// Notes when tokens were used last.
pub(super) async fn touch_tokens(
    connections: &Connections,
    uses: &[(String, UnixS)],
) -> Result<(), StoreFault> {
    // Another control may have seen a later use.
    let sql = "UPDATE token_mark SET used_at = greatest(used_at, used.at)
               FROM unnest($1, $2) AS used (id, at) WHERE token_mark.id = used.id";
    let (ids, times): (Vec<_>, Vec<_>) = uses.iter().map(|(id, at)| (id.as_str(), *at)).unzip();
    let turn = timeout(ANSWER, connections.writer.lock()).await;
    let client = turn.map_err(|_| StoreFault::Busy)?;
    let with: [Param<'_>; 2] = [(&ids, Type::TEXT_ARRAY), (&times, Type::INT8_ARRAY)];
    connections.within(client.execute_typed(sql, &with)).await.map(drop)
}
