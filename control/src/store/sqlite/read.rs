//! What is read, each within one look at the database.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::fault;
use crate::clock::Stamp;
use crate::store::{
    AuditEntry, Kind, PAGE_ROWS_MAX, Page, Place, Query, Record, Revision, StoreFault, Told, UnixS,
};

/// The columns that [`record`] takes.
const COLUMNS: &str = "kind, id, name, revision, created_at, updated_at, body";

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let broken = |column: usize, what: String| {
        let error = Box::<dyn std::error::Error + Send + Sync>::from(what);
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error)
    };
    let kind: String = row.get(0)?;
    let body: Option<String> = row.get(6)?;
    let body = body.map(|text| serde_json::from_str(&text)).transpose();
    Ok(Record {
        kind: Kind::from_word(&kind).ok_or_else(|| broken(0, format!("unknown kind {kind}")))?,
        id: row.get(1)?,
        name: row.get(2)?,
        revision: Revision(row.get(3)?),
        created_at: row.get(4)?,
        updated_at: row.get(5)?,
        body: body.map_err(|error| broken(6, error.to_string()))?,
    })
}

fn one(
    connection: &Connection,
    condition: &str,
    with: impl rusqlite::Params,
) -> Result<Option<Record>, StoreFault> {
    let sql = format!("SELECT {COLUMNS} FROM record WHERE {condition}");
    let found = connection
        .prepare_cached(&sql)
        .and_then(|mut found| found.query_row(with, record).optional());
    found.map_err(fault)
}

fn many(
    connection: &Connection,
    condition: &str,
    with: impl rusqlite::Params,
) -> Result<Vec<Record>, StoreFault> {
    let sql = format!("SELECT {COLUMNS} FROM record WHERE {condition}");
    let rows = || -> rusqlite::Result<_> {
        connection.prepare_cached(&sql)?.query_map(with, record)?.collect()
    };
    rows().map_err(fault)
}

pub(super) fn by_id(
    connection: &Connection,
    kind: Kind,
    id: &str,
) -> Result<Option<Record>, StoreFault> {
    one(connection, "id = ?1 AND kind = ?2 AND body IS NOT NULL", params![id, kind.word()])
}

/// The record with this id, living or not.
pub(super) fn any_by_id(connection: &Connection, id: &str) -> Result<Option<Record>, StoreFault> {
    one(connection, "id = ?1", [id])
}

pub(super) fn by_name(
    connection: &Connection,
    kind: Kind,
    name: &str,
) -> Result<Option<Record>, StoreFault> {
    one(connection, "kind = ?1 AND name = ?2 AND body IS NOT NULL", params![kind.word(), name])
}

pub(super) fn by_key(
    connection: &Connection,
    kind: Kind,
    key: &str,
) -> Result<Option<Record>, StoreFault> {
    let condition = "id = (SELECT id FROM record_key WHERE kind = ?1 AND word = ?2)";
    one(connection, condition, params![kind.word(), key])
}

pub(super) fn list(connection: &mut Connection, query: &Query) -> Result<Page, StoreFault> {
    let transaction = connection.transaction().map_err(fault)?;
    let limit = query.limit.min(PAGE_ROWS_MAX);
    let condition = "kind = ?1 AND name > ?2 AND body IS NOT NULL ORDER BY name LIMIT ?3";
    let after = query.after.as_deref().unwrap_or_default();
    let with = params![query.kind.word(), after, limit as i64 + 1];
    let mut records = many(&transaction, condition, with)?;
    let more = records.len() > limit;
    records.truncate(limit);
    Ok(Page { records, more, revision: revision(&transaction)? })
}

/// What is told from `from` on: `limit` records at most of what changed, `whole_limit` of what lives.
pub(super) fn tell(
    connection: &mut Connection,
    from: Place,
    limit: usize,
    whole_limit: usize,
) -> Result<Told, StoreFault> {
    let transaction = connection.transaction().map_err(fault)?;
    let now = revision(&transaction)?;
    let Place { upto: seen, whole_upto } = from;
    let begins = whole_upto.is_none() && seen == Revision(0);
    // A revision that this store never had is another store's: what it stood for is unknown.
    let reset = whole_upto.is_none() && !begins && (seen < compacted(&transaction)? || seen > now);
    let whole_upto = if begins || reset { Some(now) } else { whole_upto };
    let after = if reset { Revision(0) } else { seen };
    let (upto, limit, condition) = match whole_upto {
        Some(upto) => (upto, whole_limit.max(1), "body IS NOT NULL AND"),
        None => (now, limit.clamp(1, PAGE_ROWS_MAX), ""),
    };
    let condition =
        format!("{condition} revision > ?1 AND revision <= ?2 ORDER BY revision LIMIT ?3");
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    let records = many(&transaction, &condition, params![after.0, upto.0, most])?;
    let next = match records.last() {
        Some(last) if records.len() == limit => Place { upto: last.revision, whole_upto },
        Some(_) | None => Place::after(upto),
    };
    Ok(Told { records, next, reset })
}

pub(super) fn compacted(connection: &Connection) -> Result<Revision, StoreFault> {
    let sql = "SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'compacted'";
    let found = connection.query_row(sql, [], |row| row.get(0)).optional();
    found.map(|found| Revision(found.unwrap_or(0))).map_err(fault)
}

pub(super) fn revision(connection: &Connection) -> Result<Revision, StoreFault> {
    let sql = "SELECT revision FROM counter";
    connection.query_row(sql, [], |row| row.get(0)).map(Revision).map_err(fault)
}

pub(super) fn token(
    connection: &Connection,
    prefix: &str,
) -> Result<Option<(Record, Vec<u8>)>, StoreFault> {
    let sql = "SELECT record.kind, record.id, name, revision, created_at, updated_at, body, hash
               FROM token_mark JOIN record ON record.id = token_mark.id
               WHERE prefix = ?1 AND body IS NOT NULL";
    let found = connection.prepare_cached(sql).and_then(|mut found| {
        found.query_row([prefix], |row| Ok((record(row)?, row.get(7)?))).optional()
    });
    found.map_err(fault)
}

pub(super) fn token_uses(connection: &Connection) -> Result<Vec<(String, UnixS)>, StoreFault> {
    let sql = "SELECT id, used_at FROM token_mark WHERE used_at IS NOT NULL";
    let rows = || -> rusqlite::Result<_> {
        let mut statement = connection.prepare_cached(sql)?;
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    };
    rows().map_err(fault)
}

/// The columns that [`entry`] takes.
const ENTRY_COLUMNS: &str = "revision, at, actor, verb, kind, name, before, after, id";

fn entry(row: &Row<'_>) -> rusqlite::Result<AuditEntry> {
    let kind: String = row.get(4)?;
    Ok(AuditEntry {
        revision: Revision(row.get(0)?),
        at: Stamp(row.get(1)?),
        actor: row.get(2)?,
        verb: row.get(3)?,
        kind: Kind::from_word(&kind).ok_or(rusqlite::Error::QueryReturnedNoRows)?,
        name: row.get(5)?,
        before: row.get(6)?,
        after: row.get(7)?,
        id: row.get(8)?,
    })
}

pub(super) fn audit(
    connection: &Connection,
    before: Option<Revision>,
    limit: usize,
) -> Result<Vec<AuditEntry>, StoreFault> {
    let sql = format!(
        "SELECT {ENTRY_COLUMNS} FROM audit WHERE revision < ?1 ORDER BY revision DESC LIMIT ?2"
    );
    let before = before.map_or(i64::MAX, |before| before.0);
    let limit = limit.min(PAGE_ROWS_MAX) as i64;
    let rows = || -> rusqlite::Result<_> {
        connection.prepare_cached(&sql)?.query_map([before, limit], entry)?.collect()
    };
    rows().map_err(fault)
}

pub(super) fn entries(
    connection: &mut Connection,
    of: &[Revision],
) -> Result<Vec<AuditEntry>, StoreFault> {
    let transaction = connection.transaction().map_err(fault)?;
    let sql = format!("SELECT {ENTRY_COLUMNS} FROM audit WHERE revision = ?1");
    let rows = || -> rusqlite::Result<_> {
        let mut statement = transaction.prepare_cached(&sql)?;
        let found = of.iter().map(|revision| statement.query_row([revision.0], entry).optional());
        found.filter_map(Result::transpose).collect()
    };
    rows().map_err(fault)
}

pub(super) fn count(connection: &Connection, kind: Kind) -> Result<u64, StoreFault> {
    let sql = "SELECT count(*) FROM record WHERE kind = ?1 AND body IS NOT NULL";
    let count: i64 = connection.query_row(sql, [kind.word()], |row| row.get(0)).map_err(fault)?;
    Ok(count.unsigned_abs())
}

pub(super) fn counts(connection: &mut Connection) -> Result<Vec<(Kind, u64)>, StoreFault> {
    let transaction = connection.transaction().map_err(fault)?;
    Kind::ALL.into_iter().map(|kind| Ok((kind, count(&transaction, kind)?))).collect()
}
