//! How a change ends, written down in statements of bounded size.
//!
//! Owns their order: what is given back goes first, so that whoever takes it finds it free, however
//! names and keys have moved. What is as it was is not written.

use tokio_postgres::types::Type;

use super::ledger::{Ledger, Standing};
use super::{Param, ROWS_AT_ONCE, Turn};
use crate::store::{StoreFault, UnixS};

/// A record with its id.
type Touched<'a> = (&'a str, &'a Standing);
/// A row of two words.
type Pair<'a> = (&'a str, &'a str);

/// Writes the records of `ledger` with what they hold.
pub(super) async fn write(turn: &Turn<'_>, ledger: &Ledger, now: UnixS) -> Result<(), StoreFault> {
    let touched = ledger.touched();
    let (made, changed): (Vec<_>, Vec<_>) =
        touched.iter().copied().partition(|(_, record)| record.before.is_none());
    let (kept, gone): (Vec<_>, Vec<_>) =
        changed.iter().copied().partition(|(_, record)| record.text.is_some());
    give_back(turn, &changed).await?;
    update(turn, &gone, now).await?;
    update(turn, &kept, now).await?;
    insert(turn, &made, now).await?;
    take(turn, &touched).await
}

/// Gives back names, keys, needs and marks that records had and have no more.
async fn give_back(turn: &Turn<'_>, changed: &[Touched<'_>]) -> Result<(), StoreFault> {
    let (mut keys, mut needs, mut renamed, mut gone) = (vec![], vec![], vec![], vec![]);
    for (id, record) in changed {
        let Some(before) = &record.before else { continue };
        let freed = before.hold.keys.iter().filter(|key| !record.hold.keys.contains(key));
        keys.extend(freed.map(|key| (record.kind.word(), key.as_str())));
        let freed = before.hold.needs.iter().filter(|needed| !record.hold.needs.contains(needed));
        needs.extend(freed.map(|needed| (*id, needed.as_str())));
        match &record.text {
            Some(_) if record.name != before.name => renamed.push(*id),
            Some(_) => {}
            None => gone.push(*id),
        }
    }
    let sql = "DELETE FROM record_key USING unnest($1, $2) AS freed (kind, word)
               WHERE record_key.kind = freed.kind AND record_key.word = freed.word";
    pairs(turn, sql, &keys).await?;
    let sql = "DELETE FROM record_need USING unnest($1, $2) AS freed (id, needs_id)
               WHERE record_need.id = freed.id AND record_need.needs_id = freed.needs_id";
    pairs(turn, sql, &needs).await?;
    // Only names of bodies are taken; the new body comes with the new name.
    ids(turn, "UPDATE record SET body = NULL WHERE id = ANY ($1)", &renamed).await?;
    ids(turn, "DELETE FROM token_mark WHERE id = ANY ($1)", &gone).await
}

async fn update(turn: &Turn<'_>, records: &[Touched<'_>], now: UnixS) -> Result<(), StoreFault> {
    let sql = "UPDATE record SET name = after.name, revision = after.revision, updated_at = $5,
                                 body = after.body
               FROM unnest($1, $2, $3, $4) AS after (id, name, revision, body)
               WHERE record.id = after.id";
    for records in records.chunks(ROWS_AT_ONCE) {
        let columns = Columns::of(records);
        let with: [Param<'_>; 5] = [
            (&columns.ids, Type::TEXT_ARRAY),
            (&columns.names, Type::TEXT_ARRAY),
            (&columns.revisions, Type::INT8_ARRAY),
            (&columns.bodies, Type::TEXT_ARRAY),
            (&now, Type::INT8),
        ];
        turn.execute(sql, &with).await?;
    }
    Ok(())
}

async fn insert(turn: &Turn<'_>, records: &[Touched<'_>], now: UnixS) -> Result<(), StoreFault> {
    let sql = "INSERT INTO record (id, kind, name, revision, created_at, updated_at, body)
               SELECT id, kind, name, revision, $6, $6, body
               FROM unnest($1, $2, $3, $4, $5) AS made (id, kind, name, revision, body)";
    for records in records.chunks(ROWS_AT_ONCE) {
        let columns = Columns::of(records);
        let kinds: Vec<_> = records.iter().map(|(_, record)| record.kind.word()).collect();
        let with: [Param<'_>; 6] = [
            (&columns.ids, Type::TEXT_ARRAY),
            (&kinds, Type::TEXT_ARRAY),
            (&columns.names, Type::TEXT_ARRAY),
            (&columns.revisions, Type::INT8_ARRAY),
            (&columns.bodies, Type::TEXT_ARRAY),
            (&now, Type::INT8),
        ];
        turn.execute(sql, &with).await?;
    }
    Ok(())
}

/// Records by column.
struct Columns<'a> {
    ids: Vec<&'a str>,
    names: Vec<&'a str>,
    revisions: Vec<i64>,
    bodies: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    fn of(records: &[Touched<'a>]) -> Self {
        Self {
            ids: records.iter().map(|(id, _)| *id).collect(),
            names: records.iter().map(|(_, record)| record.name.as_str()).collect(),
            revisions: records.iter().map(|(_, record)| record.revision.0).collect(),
            bodies: records.iter().map(|(_, record)| record.text.as_deref()).collect(),
        }
    }
}

/// Takes keys, needs and marks that records have and had not.
async fn take(turn: &Turn<'_>, touched: &[Touched<'_>]) -> Result<(), StoreFault> {
    let (mut keys, mut needs, mut marks) = (vec![], vec![], vec![]);
    for (id, record) in touched {
        let before = record.before.as_ref().map(|before| &before.hold);
        let new = |key: &&String| before.is_none_or(|before| !before.keys.contains(key));
        let taken = record.hold.keys.iter().filter(new);
        keys.extend(taken.map(|key| (record.kind.word(), key.as_str(), *id)));
        let new = |needed: &&String| before.is_none_or(|before| !before.needs.contains(needed));
        needs.extend(record.hold.needs.iter().filter(new).map(|needed| (*id, needed.as_str())));
        let mark = record.mark.as_ref().filter(|_| record.text.is_some());
        marks.extend(mark.map(|mark| (*id, mark)));
    }
    for keys in keys.chunks(ROWS_AT_ONCE) {
        let kinds: Vec<_> = keys.iter().map(|(kind, ..)| *kind).collect();
        let words: Vec<_> = keys.iter().map(|(_, word, _)| *word).collect();
        let ids: Vec<_> = keys.iter().map(|(.., id)| *id).collect();
        let sql = "INSERT INTO record_key (kind, word, id) SELECT * FROM unnest($1, $2, $3)";
        let columns = [&kinds, &words, &ids];
        turn.execute(sql, &columns.map(|column| -> Param<'_> { (column, Type::TEXT_ARRAY) }))
            .await?;
    }
    let sql = "INSERT INTO record_need (id, needs_id) SELECT * FROM unnest($1, $2)";
    pairs(turn, sql, &needs).await?;
    // Tokens are made one at a time, by people.
    for (id, mark) in marks {
        let sql = "INSERT INTO token_mark (id, prefix, hash) VALUES ($1, $2, $3)";
        let with: [Param<'_>; 3] =
            [(&id, Type::TEXT), (&mark.prefix, Type::TEXT), (&mark.hash, Type::BYTEA)];
        turn.execute(sql, &with).await?;
    }
    Ok(())
}

async fn pairs(turn: &Turn<'_>, sql: &str, pairs: &[Pair<'_>]) -> Result<(), StoreFault> {
    for pairs in pairs.chunks(ROWS_AT_ONCE) {
        let (left, right): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
        turn.execute(sql, &[(&left, Type::TEXT_ARRAY), (&right, Type::TEXT_ARRAY)]).await?;
    }
    Ok(())
}

async fn ids(turn: &Turn<'_>, sql: &str, ids: &[&str]) -> Result<(), StoreFault> {
    for ids in ids.chunks(ROWS_AT_ONCE) {
        turn.execute(sql, &[(&ids, Type::TEXT_ARRAY)]).await?;
    }
    Ok(())
}
