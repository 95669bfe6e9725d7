//! Changes, as transactions that take the lock on the store's one row first.
//!
//! With it held, a change sees everything that was changed before it and nobody changes anything
//! beside it, on this control or another. It must never call done what the server did not say is
//! committed.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::types::Type;
use tokio_postgres::{IsolationLevel, Transaction};

use super::connections::{ANSWER, CHANNEL, Connections};
use super::read::{self, Source, value};
use super::schema::MIGRATIONS;
use super::{Param, causes, fault, is_final};
use crate::store::{
    AUDIT_ROWS_MAX, Applied, Change, Draft, IDEMPOTENCY_S, Kind, OPERATIONS_MAX, Once, Operation,
    Record, Revision, StoreFault, TOMBSTONE_S, TokenMark, UnixS, audited,
};

/// Time for all operations of one change, before its commit.
const CHANGE: Duration = Duration::from_secs(20);

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
    let mut step = Step::new(connections, &transaction, change);
    let done = timeout(CHANGE, step.carry_out(change)).await;
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

/// What every operation of one change shares.
struct Step<'a> {
    connections: &'a Connections,
    transaction: &'a Transaction<'a>,
    actor: &'a str,
    now: UnixS,
    /// The revision of the last operation so far.
    revision: Revision,
    /// What is to go to the audit log.
    log: Log,
}

/// Lines of the audit log, by column: revision, verb, kind, name, before, after.
#[derive(Default)]
struct Log {
    revisions: Vec<i64>,
    words: [Vec<String>; 5],
}

impl<'a> Step<'a> {
    fn new(
        connections: &'a Connections,
        transaction: &'a Transaction<'a>,
        change: &'a Change,
    ) -> Self {
        let (actor, now, revision) = (change.actor.as_str(), change.now, Revision(0));
        Self { connections, transaction, actor, now, revision, log: Log::default() }
    }

    async fn carry_out(&mut self, change: &Change) -> Result<Applied, StoreFault> {
        self.lock().await?;
        if let Some(once) = &change.once
            && let Some(records) = self.replay(once).await?
        {
            return Ok(Applied { records, replayed: true });
        }
        if let Some(seen) = change.unchanged_since
            && seen != self.revision
        {
            return Err(StoreFault::Stale { now: self.revision });
        }
        let mut records = Vec::with_capacity(change.operations.len());
        for operation in &change.operations {
            records.push(match operation {
                Operation::Create { kind, id, draft, mark } => {
                    self.create(*kind, id, draft, mark).await?
                }
                Operation::Replace { kind, id, expected, draft } => {
                    self.replace(*kind, id, *expected, draft).await?
                }
                Operation::Remove { kind, id, expected } => {
                    self.remove(*kind, id, *expected).await?
                }
            });
        }
        self.refuse_too_many(&change.operations).await?;
        if let Some(once) = &change.once {
            self.remember(once, &records).await?;
        }
        self.finish().await?;
        Ok(Applied { records, replayed: false })
    }

    /// Waits until nobody else changes anything, and learns where the store is.
    async fn lock(&mut self) -> Result<(), StoreFault> {
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
        self.revision = Revision(value(row, 0)?);
        Ok(())
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

    async fn remember(&self, once: &Once, records: &[Record]) -> Result<(), StoreFault> {
        let ids: Vec<_> = records.iter().map(|record| record.id.as_str()).collect();
        let sql = "INSERT INTO once (key, digest, at, ids) VALUES ($1, $2, $3, $4)";
        let with: [Param<'_>; 4] = [
            (&once.key, Type::TEXT),
            (&once.digest, Type::TEXT),
            (&self.now, Type::INT8),
            (&ids, Type::TEXT_ARRAY),
        ];
        self.execute(sql, &with).await.map(drop)
    }

    async fn refuse_too_many(&self, operations: &[Operation]) -> Result<(), StoreFault> {
        let sql = "SELECT count(*) FROM record WHERE kind = $1 AND body IS NOT NULL";
        for kind in Kind::ALL {
            let creates = |operation: &Operation| matches!(operation, Operation::Create { kind: k, .. } if *k == kind);
            if !operations.iter().any(creates) {
                continue;
            }
            let rows = self.rows(sql, &[(&kind.word(), Type::TEXT)]).await?;
            let count: i64 = rows.first().map_or(Ok(0), |row| value(row, 0))?;
            if count.unsigned_abs() > kind.records_max() as u64 {
                return Err(StoreFault::Limit("more records of this kind than the store takes"));
            }
        }
        Ok(())
    }

    /// Writes the counter and the audit log, and has others told once this is committed.
    async fn finish(&self) -> Result<(), StoreFault> {
        let sql = "WITH counted AS (UPDATE store SET revision = $1),
                   logged AS (
                       INSERT INTO audit (revision, at, actor, verb, kind, name, before, after)
                       SELECT line.revision, $2, $3, verb, kind, name, before, after
                       FROM unnest($4, $5, $6, $7, $8, $9)
                            AS line (revision, verb, kind, name, before, after)
                   )
                   SELECT pg_notify($10, '')";
        let [verbs, kinds, names, befores, afters] = &self.log.words;
        let with: [Param<'_>; 10] = [
            (&self.revision.0, Type::INT8),
            (&self.now, Type::INT8),
            (&self.actor, Type::TEXT),
            (&self.log.revisions, Type::INT8_ARRAY),
            (verbs, Type::TEXT_ARRAY),
            (kinds, Type::TEXT_ARRAY),
            (names, Type::TEXT_ARRAY),
            (befores, Type::TEXT_ARRAY),
            (afters, Type::TEXT_ARRAY),
            (&CHANNEL, Type::TEXT),
        ];
        self.rows(sql, &with).await.map(drop)
    }

    async fn create(
        &mut self,
        kind: Kind,
        id: &str,
        draft: &Draft,
        mark: &Option<TokenMark>,
    ) -> Result<Record, StoreFault> {
        let body = draft.text()?;
        let revision = self.next_revision();
        let sql = "INSERT INTO record (id, kind, name, revision, created_at, updated_at, body)
                   VALUES ($1, $2, $3, $4, $5, $5, $6) ON CONFLICT DO NOTHING";
        let with: [Param<'_>; 6] = [
            (&id, Type::TEXT),
            (&kind.word(), Type::TEXT),
            (&draft.name, Type::TEXT),
            (&revision.0, Type::INT8),
            (&self.now, Type::INT8),
            (&body, Type::TEXT),
        ];
        if self.execute(sql, &with).await? == 0 {
            return Err(StoreFault::Taken { kind, word: draft.name.clone() });
        }
        self.take(kind, id, draft).await?;
        if let Some(mark) = mark {
            let sql = "INSERT INTO token_mark (id, prefix, hash) VALUES ($1, $2, $3)";
            let with: [Param<'_>; 3] =
                [(&id, Type::TEXT), (&mark.prefix, Type::TEXT), (&mark.hash, Type::BYTEA)];
            self.execute(sql, &with).await?;
        }
        self.note("create", kind, &draft.name, "", &body);
        Ok(draft.made(kind, id, revision, self.now))
    }

    async fn replace(
        &mut self,
        kind: Kind,
        id: &str,
        expected: Option<Revision>,
        draft: &Draft,
    ) -> Result<Record, StoreFault> {
        let old = self.current(kind, id, expected).await?;
        if draft.name != old.name {
            self.refuse_needed(kind, &old).await?;
            if read::named(self.here(), kind, &draft.name).await?.is_some() {
                return Err(StoreFault::Taken { kind, word: draft.name.clone() });
            }
        }
        let body = draft.text()?;
        let revision = self.next_revision();
        // What it took is given back, and taken anew below.
        let sql = "WITH keys AS (DELETE FROM record_key WHERE id = $1),
                   needs AS (DELETE FROM record_need WHERE id = $1)
                   UPDATE record SET name = $2, revision = $3, updated_at = $4, body = $5
                   WHERE id = $1";
        let with: [Param<'_>; 5] = [
            (&id, Type::TEXT),
            (&draft.name, Type::TEXT),
            (&revision.0, Type::INT8),
            (&self.now, Type::INT8),
            (&body, Type::TEXT),
        ];
        self.execute(sql, &with).await?;
        self.take(kind, id, draft).await?;
        self.note("replace", kind, &draft.name, &old.text(), &body);
        let (name, body) = (draft.name.clone(), Some(draft.body.clone()));
        Ok(Record { name, revision, updated_at: self.now, body, ..old })
    }

    async fn remove(
        &mut self,
        kind: Kind,
        id: &str,
        expected: Option<Revision>,
    ) -> Result<Record, StoreFault> {
        let old = self.current(kind, id, expected).await?;
        self.refuse_needed(kind, &old).await?;
        let revision = self.next_revision();
        let sql = "WITH keys AS (DELETE FROM record_key WHERE id = $1),
                   needs AS (DELETE FROM record_need WHERE id = $1),
                   mark AS (DELETE FROM token_mark WHERE id = $1)
                   UPDATE record SET revision = $2, updated_at = $3, body = NULL WHERE id = $1";
        let with: [Param<'_>; 3] =
            [(&id, Type::TEXT), (&revision.0, Type::INT8), (&self.now, Type::INT8)];
        self.execute(sql, &with).await?;
        self.note("remove", kind, &old.name, &old.text(), "");
        Ok(Record { revision, updated_at: self.now, body: None, ..old })
    }

    /// The living record, if it is where the caller saw it.
    async fn current(
        &self,
        kind: Kind,
        id: &str,
        expected: Option<Revision>,
    ) -> Result<Record, StoreFault> {
        let found = read::living(self.here(), kind, id).await?;
        let record = found.ok_or_else(|| StoreFault::Missing { kind, word: id.to_owned() })?;
        match expected {
            Some(expected) if expected != record.revision => {
                Err(StoreFault::Stale { now: record.revision })
            }
            Some(_) | None => Ok(record),
        }
    }

    async fn refuse_needed(&self, kind: Kind, record: &Record) -> Result<(), StoreFault> {
        let sql = "SELECT record.kind || ' ' || record.name FROM record_need
                   JOIN record ON record.id = record_need.id
                   WHERE record_need.needs_id = $1 LIMIT 1";
        let rows = self.rows(sql, &[(&record.id, Type::TEXT)]).await?;
        match rows.first() {
            Some(row) => {
                let (name, by) = (record.name.clone(), value(row, 0)?);
                Err(StoreFault::InUse { kind, name, by })
            }
            None => Ok(()),
        }
    }

    /// Takes the draft's keys and notes its needs.
    async fn take(&self, kind: Kind, id: &str, draft: &Draft) -> Result<(), StoreFault> {
        if !draft.keys.is_empty() {
            let sql = "INSERT INTO record_key (kind, word, id)
                       SELECT $1, word, $2 FROM unnest($3) AS word
                       ON CONFLICT DO NOTHING RETURNING word";
            let with: [Param<'_>; 3] =
                [(&kind.word(), Type::TEXT), (&id, Type::TEXT), (&draft.keys, Type::TEXT_ARRAY)];
            let rows = self.rows(sql, &with).await?;
            let taken: Vec<&str> =
                rows.iter().map(|row| value(row, 0)).collect::<Result<_, _>>()?;
            if let Some(word) = draft.keys.iter().find(|word| !taken.contains(&word.as_str())) {
                let holder = read::holder(self.here(), kind, word).await?;
                let holder = holder.map(|holder| holder.name).unwrap_or_default();
                return Err(StoreFault::Held { kind, key: word.clone(), holder });
            }
        }
        for (kind, name) in &draft.needs {
            let sql = "WITH needed AS (
                           SELECT id FROM record
                           WHERE kind = $2 AND name = $3 AND body IS NOT NULL
                       ), noted AS (
                           INSERT INTO record_need (id, needs_id) SELECT $1, id FROM needed
                           ON CONFLICT DO NOTHING
                       )
                       SELECT id FROM needed";
            let with: [Param<'_>; 3] =
                [(&id, Type::TEXT), (&kind.word(), Type::TEXT), (name, Type::TEXT)];
            if self.rows(sql, &with).await?.is_empty() {
                return Err(StoreFault::Missing { kind: *kind, word: name.clone() });
            }
        }
        Ok(())
    }

    /// The next revision. It is written down once, at the end: the lock is held until then.
    fn next_revision(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    /// Notes a line for the audit log.
    fn note(&mut self, verb: &str, kind: Kind, name: &str, before: &str, after: &str) {
        self.log.revisions.push(self.revision.0);
        let line = [verb.into(), kind.word().into(), name.into(), audited(before), audited(after)];
        for (column, word) in self.log.words.iter_mut().zip(line) {
            column.push(word);
        }
    }

    fn here(&self) -> Source<'_> {
        Source::Change(self.connections, self.transaction)
    }

    async fn rows(
        &self,
        sql: &str,
        with: &[Param<'_>],
    ) -> Result<Vec<tokio_postgres::Row>, StoreFault> {
        self.here().rows(sql, with).await
    }

    async fn execute(&self, sql: &str, with: &[Param<'_>]) -> Result<u64, StoreFault> {
        self.connections.within(self.transaction.execute_typed(sql, with)).await
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

/// Removes what is kept for a time only. One statement, whose parts see the same state.
pub(super) async fn compact(connections: &Connections, now: UnixS) -> Result<(), StoreFault> {
    let sql = "WITH gone AS (
                   DELETE FROM record WHERE body IS NULL AND updated_at < $1 RETURNING revision
               ), forgotten AS (
                   DELETE FROM once WHERE at < $2
               ), cut AS (
                   DELETE FROM audit WHERE revision IN
                   (SELECT revision FROM audit ORDER BY revision DESC OFFSET $3)
               )
               UPDATE store
               SET compacted = greatest(compacted, (SELECT max(revision) FROM gone))";
    let tombstones = now.saturating_sub(TOMBSTONE_S);
    let once = now.saturating_sub(IDEMPOTENCY_S);
    let with: [Param<'_>; 3] =
        [(&tombstones, Type::INT8), (&once, Type::INT8), (&AUDIT_ROWS_MAX, Type::INT8)];
    let turn = timeout(ANSWER, connections.writer.lock()).await;
    let client = turn.map_err(|_| StoreFault::Busy)?;
    connections.within(client.execute_typed(sql, &with)).await.map(drop)
}
