//! What is read, each by a single statement, which sees whole transactions only.
//!
//! Where an answer needs the store's revision beside rows, the rows are joined to it, so that it
//! comes even when there are none.

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};

use super::connections::Connections;
use super::{Param, fault};
use crate::clock::Stamp;
use crate::store::{
    AuditEntry, Changes, Kind, PAGE_ROWS_MAX, Page, Query, Record, Revision, StoreFault, UnixS,
};

/// The columns that [`record`] takes.
pub(super) const COLUMNS: &str =
    "record.kind, record.id, record.name, record.revision, created_at, updated_at, body";

/// The record in `row`.
pub(super) fn record(row: &Row) -> Result<Record, StoreFault> {
    let body: Option<&str> = value(row, 6)?;
    let body = body.map(serde_json::from_str).transpose();
    Ok(Record {
        kind: kind(value(row, 0)?)?,
        id: value(row, 1)?,
        name: value(row, 2)?,
        revision: Revision(value(row, 3)?),
        created_at: value(row, 4)?,
        updated_at: value(row, 5)?,
        body: body.map_err(|error| StoreFault::Broken(error.to_string()))?,
    })
}

/// The kind that `word` stands for.
pub(super) fn kind(word: &str) -> Result<Kind, StoreFault> {
    Kind::from_word(word).ok_or_else(|| StoreFault::Broken(format!("unknown kind {word}")))
}

/// The value in a column.
pub(super) fn value<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, StoreFault> {
    row.try_get(column).map_err(|error| fault(&error))
}

async fn rows(from: &Connections, sql: &str, with: &[Param<'_>]) -> Result<Vec<Row>, StoreFault> {
    from.read(sql, with).await
}

async fn one(
    from: &Connections,
    condition: &str,
    with: &[Param<'_>],
) -> Result<Option<Record>, StoreFault> {
    let sql = format!("SELECT {COLUMNS} FROM record WHERE {condition}");
    rows(from, &sql, with).await?.first().map(record).transpose()
}

/// Whether `word`, which a caller chose, can be in the database at all: its texts have no NUL.
fn is_text(word: &str) -> bool {
    !word.contains('\0')
}

pub(super) async fn by_id(
    from: &Connections,
    kind: Kind,
    id: &str,
) -> Result<Option<Record>, StoreFault> {
    if !is_text(id) {
        return Ok(None);
    }
    let condition = "id = $1 AND kind = $2 AND body IS NOT NULL";
    one(from, condition, &[(&id, Type::TEXT), (&kind.word(), Type::TEXT)]).await
}

pub(super) async fn by_name(
    from: &Connections,
    kind: Kind,
    name: &str,
) -> Result<Option<Record>, StoreFault> {
    if !is_text(name) {
        return Ok(None);
    }
    let condition = "kind = $1 AND name = $2 AND body IS NOT NULL";
    one(from, condition, &[(&kind.word(), Type::TEXT), (&name, Type::TEXT)]).await
}

pub(super) async fn by_key(
    from: &Connections,
    kind: Kind,
    key: &str,
) -> Result<Option<Record>, StoreFault> {
    if !is_text(key) {
        return Ok(None);
    }
    let condition = "id = (SELECT id FROM record_key WHERE kind = $1 AND word = $2)";
    let with: [Param<'_>; 2] = [(&kind.word(), Type::TEXT), (&key, Type::TEXT)];
    one(from, condition, &with).await
}

pub(super) async fn list(from: &Connections, query: &Query) -> Result<Page, StoreFault> {
    let sql = format!(
        "SELECT {COLUMNS}, store.revision FROM store LEFT JOIN LATERAL (
             SELECT * FROM record WHERE kind = $1 AND name > $2 AND body IS NOT NULL
             ORDER BY name LIMIT $3
         ) AS record ON true ORDER BY record.name"
    );
    let limit = query.limit.min(PAGE_ROWS_MAX);
    // What comes after a name with a NUL comes after what is in front of the NUL.
    let after = query.after.as_deref().and_then(|after| after.split('\0').next());
    let (after, most) = (after.unwrap_or_default(), limit as i64 + 1);
    let kind = query.kind.word();
    let with: [Param<'_>; 3] = [(&kind, Type::TEXT), (&after, Type::TEXT), (&most, Type::INT8)];
    let rows = rows(from, &sql, &with).await?;
    let (mut records, [revision]) = beside_the_store(&rows)?;
    let more = records.len() > limit;
    records.truncate(limit);
    Ok(Page { records, more, revision })
}

/// The records in `rows`, none of which may be there, and what of the store stands beside them.
fn beside_the_store<const N: usize>(
    rows: &[Row],
) -> Result<(Vec<Record>, [Revision; N]), StoreFault> {
    let first = rows.first().ok_or_else(|| StoreFault::Broken("the store's row is gone".into()))?;
    let mut beside = [Revision(0); N];
    for (at, slot) in beside.iter_mut().enumerate() {
        *slot = Revision(value(first, 7 + at)?);
    }
    let none = value::<Option<&str>>(first, 1)?.is_none();
    let records = if none { &[] } else { rows };
    Ok((records.iter().map(record).collect::<Result<_, _>>()?, beside))
}

pub(super) async fn changes(
    from: &Connections,
    since: Revision,
    limit: usize,
) -> Result<Changes, StoreFault> {
    if since == Revision(0) {
        return whole(from, false).await;
    }
    let sql = format!(
        "SELECT {COLUMNS}, store.revision, store.compacted FROM store LEFT JOIN LATERAL (
             SELECT * FROM record WHERE revision > $1 ORDER BY revision LIMIT $2
         ) AS record ON true ORDER BY record.revision"
    );
    let limit = limit.clamp(1, PAGE_ROWS_MAX);
    let with: [Param<'_>; 2] = [(&since.0, Type::INT8), (&(limit as i64), Type::INT8)];
    let rows = rows(from, &sql, &with).await?;
    let (records, [now, compacted]) = beside_the_store(&rows)?;
    // A revision that this store never had is another store's: what it stood for is unknown.
    if since < compacted || since > now {
        return whole(from, true).await;
    }
    let upto = match records.last() {
        Some(last) if records.len() == limit => last.revision,
        Some(_) | None => now,
    };
    Ok(Changes { records, upto, reset: false })
}

/// All that lives. A page of it could end below what is compacted.
async fn whole(from: &Connections, reset: bool) -> Result<Changes, StoreFault> {
    let sql = format!(
        "SELECT {COLUMNS}, store.revision FROM store LEFT JOIN record ON body IS NOT NULL
         ORDER BY record.revision"
    );
    let rows = rows(from, &sql, &[]).await?;
    let (records, [upto]) = beside_the_store(&rows)?;
    Ok(Changes { records, upto, reset })
}

pub(super) async fn token(
    from: &Connections,
    prefix: &str,
) -> Result<Option<(Record, Vec<u8>)>, StoreFault> {
    if !is_text(prefix) {
        return Ok(None);
    }
    let sql = format!(
        "SELECT {COLUMNS}, hash FROM token_mark JOIN record ON record.id = token_mark.id
         WHERE prefix = $1 AND body IS NOT NULL"
    );
    let rows = rows(from, &sql, &[(&prefix, Type::TEXT)]).await?;
    rows.first().map(|row| Ok((record(row)?, value(row, 7)?))).transpose()
}

pub(super) async fn token_uses(from: &Connections) -> Result<Vec<(String, UnixS)>, StoreFault> {
    let sql = "SELECT id, used_at FROM token_mark WHERE used_at IS NOT NULL";
    let rows = rows(from, sql, &[]).await?;
    rows.iter().map(|row| Ok((value(row, 0)?, value(row, 1)?))).collect()
}

pub(super) async fn audit(
    from: &Connections,
    before: Option<Revision>,
    limit: usize,
) -> Result<Vec<AuditEntry>, StoreFault> {
    let sql = "SELECT revision, at, actor, verb, kind, name, before, after FROM audit
               WHERE revision < $1 ORDER BY revision DESC LIMIT $2";
    let before = before.map_or(i64::MAX, |before| before.0);
    let limit = limit.min(PAGE_ROWS_MAX) as i64;
    let rows = rows(from, sql, &[(&before, Type::INT8), (&limit, Type::INT8)]).await?;
    let entry = |row| {
        Ok(AuditEntry {
            revision: Revision(value(row, 0)?),
            at: Stamp(value(row, 1)?),
            actor: value(row, 2)?,
            verb: value(row, 3)?,
            kind: kind(value(row, 4)?)?,
            name: value(row, 5)?,
            before: value(row, 6)?,
            after: value(row, 7)?,
        })
    };
    rows.iter().map(entry).collect()
}

pub(super) async fn look(from: &Connections) -> Result<Revision, StoreFault> {
    let rows = rows(from, "SELECT revision FROM store", &[]).await?;
    let row = rows.first().ok_or_else(|| StoreFault::Broken("the store's row is gone".into()))?;
    value(row, 0).map(Revision)
}

pub(super) async fn counts(from: &Connections) -> Result<Vec<(Kind, u64)>, StoreFault> {
    let sql = "SELECT kind, count(*) FROM record WHERE body IS NOT NULL GROUP BY kind";
    let rows = rows(from, sql, &[]).await?;
    let count = |kind: Kind| {
        for row in &rows {
            if value::<&str>(row, 0)? == kind.word() {
                return Ok((kind, value::<i64>(row, 1)?.unsigned_abs()));
            }
        }
        Ok((kind, 0))
    };
    Kind::ALL.into_iter().map(count).collect()
}
