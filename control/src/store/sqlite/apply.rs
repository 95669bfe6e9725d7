//! Changes, as transactions of the one connection that writes.

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{fault, read};
use crate::store::{
    AUDIT_ROWS_MAX, Applied, Change, Draft, IDEMPOTENCY_S, Kind, OPERATIONS_MAX, Once, Operation,
    Record, Revision, StoreFault, Subject, TOMBSTONE_S, TokenMark, Unchanged, UnixS, audited,
};

/// Whether something has; of what was compacted nobody knows, so it counts as such.
fn has_changed(connection: &Connection, unchanged: &Unchanged) -> Result<bool, StoreFault> {
    if unchanged.since < read::compacted(connection)? {
        return Ok(true);
    }
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM record WHERE revision > ?1 AND kind IN ({}))",
        unchanged.words()
    );
    connection.query_row(&sql, [unchanged.since.0], |row| row.get(0)).map_err(fault)
}

/// Carries out `change`, or nothing of it.
pub(super) fn apply(connection: &mut Connection, change: &Change) -> Result<Applied, StoreFault> {
    if change.operations.len() > OPERATIONS_MAX {
        return Err(StoreFault::Limit("more operations in one change than the store takes"));
    }
    let begun = connection.transaction_with_behavior(TransactionBehavior::Immediate);
    let transaction = begun.map_err(fault)?;
    if let Some(once) = &change.once
        && let Some(records) = replay(&transaction, once)?
    {
        return Ok(Applied { records, replayed: true });
    }
    if let Some(unchanged) = &change.unchanged {
        let now = read::revision(&transaction)?;
        if unchanged.since > now || has_changed(&transaction, unchanged)? {
            return Err(StoreFault::Stale { now });
        }
    }
    let step = Step { transaction: &transaction, actor: &change.actor, now: change.now };
    let mut records = Vec::with_capacity(change.operations.len());
    for operation in &change.operations {
        records.push(match operation {
            Operation::Create { kind, id, draft, mark } => step.create(*kind, id, draft, mark)?,
            Operation::Replace { kind, id, expected, draft } => {
                step.replace(*kind, id, *expected, draft)?
            }
            Operation::Remove { kind, id, expected } => step.remove(*kind, id, *expected)?,
        });
    }
    refuse_too_many(&transaction, &change.operations)?;
    if let Some(once) = &change.once {
        remember(&transaction, once, &records, change.now)?;
    }
    transaction.commit().map_err(fault)?;
    Ok(Applied { records, replayed: false })
}

/// The records that the same request made before.
fn replay(transaction: &Transaction<'_>, once: &Once) -> Result<Option<Vec<Record>>, StoreFault> {
    let sql = "SELECT digest, ids FROM once WHERE key = ?1";
    let row = transaction
        .query_row(sql, [&once.key], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
        .optional()
        .map_err(fault)?;
    let Some((digest, ids)) = row else { return Ok(None) };
    if digest != once.digest {
        return Err(StoreFault::OnceReused);
    }
    let found = ids.split(',').map(|id| read::any_by_id(transaction, id));
    // Compaction may have taken the tombstone of one; then only the rest can be told.
    found.filter_map(Result::transpose).collect::<Result<_, _>>().map(Some)
}

fn remember(
    transaction: &Transaction<'_>,
    once: &Once,
    records: &[Record],
    now: UnixS,
) -> Result<(), StoreFault> {
    let ids: Vec<_> = records.iter().map(|record| record.id.as_str()).collect();
    let sql = "INSERT INTO once (key, digest, at, ids) VALUES (?1, ?2, ?3, ?4)";
    let done = transaction.execute(sql, params![once.key, once.digest, now, ids.join(",")]);
    done.map(drop).map_err(fault)
}

fn refuse_too_many(
    transaction: &Transaction<'_>,
    operations: &[Operation],
) -> Result<(), StoreFault> {
    for kind in Kind::ALL {
        let creates = |operation: &Operation| matches!(operation, Operation::Create { kind: k, .. } if *k == kind);
        let most = kind.records_max() as u64;
        if operations.iter().any(creates) && read::count(transaction, kind)? > most {
            return Err(StoreFault::Limit("more records of this kind than the store takes"));
        }
    }
    Ok(())
}

/// What every operation of one change shares.
struct Step<'a> {
    transaction: &'a Transaction<'a>,
    actor: &'a str,
    now: UnixS,
}

impl Step<'_> {
    fn create(
        &self,
        kind: Kind,
        id: &str,
        draft: &Draft,
        mark: &Option<TokenMark>,
    ) -> Result<Record, StoreFault> {
        self.refuse_name(kind, &draft.name)?;
        let body = draft.text()?;
        let revision = self.next_revision()?;
        let sql = "INSERT INTO record (id, kind, name, revision, created_at, updated_at, body)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6)";
        self.execute(sql, params![id, kind.word(), draft.name, revision.0, self.now, body])?;
        self.take(kind, id, draft)?;
        if let Some(mark) = mark {
            let sql = "INSERT INTO token_mark (id, prefix, hash) VALUES (?1, ?2, ?3)";
            self.execute(sql, params![id, mark.prefix, mark.hash])?;
        }
        let subject = Subject { kind, id, name: &draft.name };
        self.audit(revision, "create", subject, "", &body)?;
        Ok(draft.made(kind, id, revision, self.now))
    }

    fn replace(
        &self,
        kind: Kind,
        id: &str,
        expected: Option<Revision>,
        draft: &Draft,
    ) -> Result<Record, StoreFault> {
        let old = self.current(kind, id, expected)?;
        if draft.name != old.name {
            self.refuse_needed(kind, &old)?;
            self.refuse_name(kind, &draft.name)?;
        }
        let body = draft.text()?;
        let revision = self.next_revision()?;
        self.release(id)?;
        let sql = "UPDATE record SET name = ?2, revision = ?3, updated_at = ?4, body = ?5
                   WHERE id = ?1";
        self.execute(sql, params![id, draft.name, revision.0, self.now, body])?;
        self.take(kind, id, draft)?;
        let subject = Subject { kind, id, name: &draft.name };
        self.audit(revision, "replace", subject, &old.text(), &body)?;
        Ok(Record {
            name: draft.name.clone(),
            revision,
            updated_at: self.now,
            body: Some(draft.body.clone()),
            ..old
        })
    }

    fn remove(
        &self,
        kind: Kind,
        id: &str,
        expected: Option<Revision>,
    ) -> Result<Record, StoreFault> {
        let old = self.current(kind, id, expected)?;
        self.refuse_needed(kind, &old)?;
        let revision = self.next_revision()?;
        self.release(id)?;
        self.execute("DELETE FROM token_mark WHERE id = ?1", [id])?;
        let sql = "UPDATE record SET revision = ?2, updated_at = ?3, body = NULL WHERE id = ?1";
        self.execute(sql, params![id, revision.0, self.now])?;
        let subject = Subject { kind, id, name: &old.name };
        self.audit(revision, "remove", subject, &old.text(), "")?;
        Ok(Record { revision, updated_at: self.now, body: None, ..old })
    }

    /// The living record, if it is where the caller saw it.
    fn current(
        &self,
        kind: Kind,
        id: &str,
        expected: Option<Revision>,
    ) -> Result<Record, StoreFault> {
        let found = read::by_id(self.transaction, kind, id)?;
        let record = found.ok_or_else(|| StoreFault::Gone { kind, id: id.to_owned() })?;
        match expected {
            Some(expected) if expected != record.revision => {
                Err(StoreFault::Stale { now: record.revision })
            }
            Some(_) | None => Ok(record),
        }
    }

    fn refuse_name(&self, kind: Kind, name: &str) -> Result<(), StoreFault> {
        match read::by_name(self.transaction, kind, name)? {
            Some(_) => Err(StoreFault::Taken { kind, word: name.to_owned() }),
            None => Ok(()),
        }
    }

    fn refuse_needed(&self, kind: Kind, record: &Record) -> Result<(), StoreFault> {
        let sql = "SELECT record.kind, record.name FROM record_need
                   JOIN record ON record.id = record_need.id
                   WHERE record_need.needs_id = ?1 ORDER BY record_need.id LIMIT 1";
        let by = self
            .transaction
            .query_row(sql, [&record.id], |row| {
                Ok(format!("{} {}", row.get::<_, String>(0)?, row.get::<_, String>(1)?))
            })
            .optional()
            .map_err(fault)?;
        match by {
            Some(by) => Err(StoreFault::InUse { kind, name: record.name.clone(), by }),
            None => Ok(()),
        }
    }

    /// Takes the draft's keys and notes its needs.
    fn take(&self, kind: Kind, id: &str, draft: &Draft) -> Result<(), StoreFault> {
        for word in &draft.keys {
            let sql = "INSERT INTO record_key (kind, word, id) VALUES (?1, ?2, ?3)
                       ON CONFLICT DO NOTHING";
            if self.execute(sql, params![kind.word(), word, id])? == 0 {
                let holder = read::by_key(self.transaction, kind, word)?;
                let holder = holder.map(|holder| holder.name).unwrap_or_default();
                return Err(StoreFault::Held { kind, key: word.clone(), holder });
            }
        }
        for (kind, name) in &draft.needs {
            let needed = read::by_name(self.transaction, *kind, name)?
                .ok_or_else(|| StoreFault::Missing { kind: *kind, word: name.clone() })?;
            let sql = "INSERT INTO record_need (id, needs_id) VALUES (?1, ?2)
                       ON CONFLICT DO NOTHING";
            self.execute(sql, params![id, needed.id])?;
        }
        Ok(())
    }

    /// Gives back what [`Self::take`] took.
    fn release(&self, id: &str) -> Result<(), StoreFault> {
        self.execute("DELETE FROM record_key WHERE id = ?1", [id])?;
        self.execute("DELETE FROM record_need WHERE id = ?1", [id])?;
        Ok(())
    }

    fn next_revision(&self) -> Result<Revision, StoreFault> {
        let sql = "UPDATE counter SET revision = revision + 1 RETURNING revision";
        let next = self
            .transaction
            .prepare_cached(sql)
            .and_then(|mut next| next.query_row([], |row| row.get(0)));
        next.map(Revision).map_err(fault)
    }

    fn audit(
        &self,
        revision: Revision,
        verb: &str,
        Subject { kind, id, name }: Subject<'_>,
        before: &str,
        after: &str,
    ) -> Result<(), StoreFault> {
        let [before, after] = [before, after].map(audited);
        let sql = "INSERT INTO audit (revision, at, actor, verb, kind, id, name, before, after)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        let (Self { now, actor, .. }, kind) = (self, kind.word());
        let row = params![revision.0, now, actor, verb, kind, id, name, before, after];
        self.execute(sql, row).map(drop)
    }

    fn execute(&self, sql: &str, with: impl rusqlite::Params) -> Result<usize, StoreFault> {
        let done = self.transaction.prepare_cached(sql).and_then(|mut cached| cached.execute(with));
        done.map_err(fault)
    }
}

/// Notes when tokens were used last.
pub(super) fn touch_tokens(
    connection: &mut Connection,
    uses: &[(String, UnixS)],
) -> Result<(), StoreFault> {
    let transaction = connection.transaction().map_err(fault)?;
    for (id, at) in uses {
        let sql = "UPDATE token_mark SET used_at = ?2 WHERE id = ?1";
        transaction.execute(sql, params![id, at]).map_err(fault)?;
    }
    transaction.commit().map_err(fault)
}

/// Removes `rows` at most of each that is kept for a time only; whether there may be more.
pub(super) fn compact(
    connection: &mut Connection,
    now: UnixS,
    rows: usize,
) -> Result<bool, StoreFault> {
    let transaction = connection.transaction().map_err(fault)?;
    let most = rows as i64;
    let steps = || -> Result<bool, rusqlite::Error> {
        let old = now.saturating_sub(TOMBSTONE_S);
        // The first go first, so that what is raised to stands for all that are gone.
        let sql = "DELETE FROM record WHERE id IN (
                       SELECT id FROM record WHERE body IS NULL AND updated_at < ?1
                       ORDER BY revision LIMIT ?2
                   ) RETURNING revision";
        let gone: Vec<i64> = transaction
            .prepare(sql)?
            .query_map([old, most], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        if let Some(last) = gone.iter().max() {
            let sql = "INSERT INTO meta (name, value) VALUES ('compacted', ?1)
                       ON CONFLICT (name) DO UPDATE SET value = excluded.value
                       WHERE CAST(excluded.value AS INTEGER) > CAST(meta.value AS INTEGER)";
            transaction.execute(sql, [last.to_string().as_bytes()])?;
        }
        let sql = "DELETE FROM once WHERE key IN (SELECT key FROM once WHERE at < ?1 LIMIT ?2)";
        let forgotten = transaction.execute(sql, [now.saturating_sub(IDEMPOTENCY_S), most])?;
        let sql = "DELETE FROM audit WHERE revision IN (
                       SELECT revision FROM audit WHERE revision <= (
                           SELECT revision FROM audit ORDER BY revision DESC LIMIT 1 OFFSET ?1
                       ) ORDER BY revision LIMIT ?2
                   )";
        let cut = transaction.execute(sql, [AUDIT_ROWS_MAX, most])?;
        Ok([gone.len(), forgotten, cut].contains(&rows))
    };
    let more = steps().map_err(fault)?;
    transaction.commit().map_err(fault)?;
    Ok(more)
}
