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
    AuditEntry, Kind, PAGE_ROWS_MAX, Page, Place, Query, Record, Revision, StoreFault, Told, UnixS,
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

/// What is told from `from` on: `limit` records at most of what changed, `whole_limit` of what lives.
pub(super) async fn tell(
    connections: &Connections,
    from: Place,
    limit: usize,
    whole_limit: usize,
) -> Result<Told, StoreFault> {
    let Place { upto: seen, whole_upto } = from;
    if whole_upto.is_some() || seen == Revision(0) {
        return whole(connections, from, whole_limit, false).await;
    }
    let sql = format!(
        "SELECT {COLUMNS}, store.revision, store.compacted FROM store LEFT JOIN LATERAL (
             SELECT * FROM record WHERE revision > $1 ORDER BY revision LIMIT $2
         ) AS record ON true ORDER BY record.revision"
    );
    let limit = limit.clamp(1, PAGE_ROWS_MAX);
    let with: [Param<'_>; 2] = [(&seen.0, Type::INT8), (&(limit as i64), Type::INT8)];
    let rows = rows(connections, &sql, &with).await?;
    let (records, [now, compacted]) = beside_the_store(&rows)?;
    // A revision that this store never had is another store's: what it stood for is unknown.
    if seen < compacted || seen > now {
        return whole(connections, Place::default(), whole_limit, true).await;
    }
    let next = match records.last() {
        Some(last) if records.len() == limit => Place::after(last.revision),
        Some(_) | None => Place::after(now),
    };
    Ok(Told { records, next, reset: false })
}

/// `limit` records at most of all that lives, from `from` on.
async fn whole(
    connections: &Connections,
    from: Place,
    limit: usize,
    reset: bool,
) -> Result<Told, StoreFault> {
    let sql = format!(
        "SELECT {COLUMNS}, store.revision FROM store LEFT JOIN LATERAL (
             SELECT * FROM record WHERE body IS NOT NULL AND revision > $1
                                        AND revision <= coalesce($2, store.revision)
             ORDER BY revision LIMIT $3
         ) AS record ON true ORDER BY record.revision"
    );
    let limit = limit.max(1);
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    let upto = from.whole_upto.map(|upto| upto.0);
    let with: [Param<'_>; 3] =
        [(&from.upto.0, Type::INT8), (&upto, Type::INT8), (&most, Type::INT8)];
    let rows = rows(connections, &sql, &with).await?;
    let (records, [now]) = beside_the_store(&rows)?;
    let upto = from.whole_upto.unwrap_or(now);
    let next = match records.last() {
        Some(last) if records.len() == limit => {
            Place { upto: last.revision, whole_upto: Some(upto) }
        }
        Some(_) | None => Place::after(upto),
    };
    Ok(Told { records, next, reset })
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

/// The columns that [`entry`] takes.
const ENTRY_COLUMNS: &str = "revision, at, actor, verb, kind, name, before, after, id";

fn entry(row: &Row) -> Result<AuditEntry, StoreFault> {
    Ok(AuditEntry {
        revision: Revision(value(row, 0)?),
        at: Stamp(value(row, 1)?),
        actor: value(row, 2)?,
        verb: value(row, 3)?,
        kind: kind(value(row, 4)?)?,
        name: value(row, 5)?,
        before: value(row, 6)?,
        after: value(row, 7)?,
        id: value(row, 8)?,
    })
}

pub(super) async fn audit(
    from: &Connections,
    before: Option<Revision>,
    limit: usize,
) -> Result<Vec<AuditEntry>, StoreFault> {
    let sql = format!(
        "SELECT {ENTRY_COLUMNS} FROM audit WHERE revision < $1 ORDER BY revision DESC LIMIT $2"
    );
    let before = before.map_or(i64::MAX, |before| before.0);
    let limit = limit.min(PAGE_ROWS_MAX) as i64;
    let rows = rows(from, &sql, &[(&before, Type::INT8), (&limit, Type::INT8)]).await?;
    rows.iter().map(entry).collect()
}

pub(super) async fn entries(
    from: &Connections,
    of: &[Revision],
) -> Result<Vec<AuditEntry>, StoreFault> {
    let sql = format!(
        "SELECT {ENTRY_COLUMNS} FROM unnest($1) WITH ORDINALITY AS asked (revision, place)
         JOIN audit USING (revision) ORDER BY place"
    );
    let of: Vec<_> = of.iter().map(|revision| revision.0).collect();
    let rows = rows(from, &sql, &[(&of, Type::INT8_ARRAY)]).await?;
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
