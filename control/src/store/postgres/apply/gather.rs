//! What a change touches, read in a few statements whose number does not depend on how its
//! operations are mixed.
//!
//! Owns which rows the ledger must know. The lock is held, so that nothing of it changes until the
//! change is written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::ledger::{Before, Hold, Ledger, Standing};
use super::{Param, ROWS_AT_ONCE, Turn};
use crate::store::postgres::read::{kind, value};
use crate::store::{Change, Draft, Kind, Operation, Revision, StoreFault};

/// What operations ask for, each once.
#[derive(Default)]
struct Asked<'a> {
    /// Records to be replaced or removed.
    ids: BTreeSet<&'a str>,
    /// Names that drafts take or need.
    names: BTreeSet<(Kind, &'a str)>,
    /// Keys that drafts take.
    keys: BTreeSet<(Kind, &'a str)>,
    /// Kinds of which records are created.
    made: BTreeSet<Kind>,
}

impl<'a> Asked<'a> {
    fn of(operations: &'a [Operation]) -> Self {
        let mut asked = Self::default();
        for operation in operations {
            match operation {
                Operation::Create { kind, draft, .. } => {
                    asked.made.insert(*kind);
                    asked.draft(*kind, draft);
                }
                Operation::Replace { kind, id, draft, .. } => {
                    asked.ids.insert(id);
                    asked.draft(*kind, draft);
                }
                Operation::Remove { id, .. } => {
                    asked.ids.insert(id);
                }
            }
        }
        asked
    }

    fn draft(&mut self, kind: Kind, draft: &'a Draft) {
        self.names.insert((kind, &draft.name));
        self.names.extend(draft.needs.iter().map(|(kind, name)| (*kind, name.as_str())));
        self.keys.extend(draft.keys.iter().map(|key| (kind, key.as_str())));
    }
}

/// A ledger of all that `change` touches, in a store at `revision`.
pub(super) async fn gather(
    turn: &Turn<'_>,
    change: &Change,
    revision: Revision,
) -> Result<Ledger, StoreFault> {
    let asked = Asked::of(&change.operations);
    let ids: Vec<_> = asked.ids.iter().copied().collect();
    let mut ledger = Ledger::new(revision, change.now);
    // Asked at once, so that this takes the time of the longest.
    (ledger.records, ledger.names, ledger.holders, ledger.living) = tokio::try_join!(
        records(turn, &ids),
        holders(turn, NAMED, &asked.names),
        holders(turn, KEYED, &asked.keys),
        living(turn, &asked.made),
    )?;
    let alone: Vec<_> = must_be_alone(&change.operations, &ledger).into_iter().collect();
    ledger.needers = needers(turn, &alone, change.operations.len()).await?;
    Ok(ledger)
}

/// The records of these ids, with what they hold.
async fn records(turn: &Turn<'_>, ids: &[&str]) -> Result<HashMap<String, Standing>, StoreFault> {
    let (records, keys, needs) = tokio::try_join!(
        of_ids(
            turn,
            "SELECT id, kind, name, revision, created_at, body FROM record WHERE id = ANY ($1)",
            ids
        ),
        of_ids(turn, "SELECT id, word FROM record_key WHERE id = ANY ($1)", ids),
        of_ids(turn, "SELECT id, needs_id FROM record_need WHERE id = ANY ($1)", ids),
    )?;
    let mut holds: HashMap<&str, Hold> = HashMap::new();
    for row in &keys {
        holds.entry(value(row, 0)?).or_default().keys.push(value(row, 1)?);
    }
    for row in &needs {
        holds.entry(value(row, 0)?).or_default().needs.push(value(row, 1)?);
    }
    let standing = |row| {
        let id: &str = value(row, 0)?;
        Ok((id.to_owned(), standing(row, holds.get(id).cloned().unwrap_or_default())?))
    };
    records.iter().map(standing).collect()
}

fn standing(row: &Row, hold: Hold) -> Result<Standing, StoreFault> {
    let name: String = value(row, 2)?;
    Ok(Standing {
        kind: kind(value(row, 1)?)?,
        revision: Revision(value(row, 3)?),
        created_at: value(row, 4)?,
        text: value(row, 5)?,
        mark: None,
        before: Some(Before { name: name.clone(), hold: hold.clone() }),
        name,
        hold,
    })
}

async fn of_ids(turn: &Turn<'_>, sql: &str, ids: &[&str]) -> Result<Vec<Row>, StoreFault> {
    let mut rows = Vec::new();
    for ids in ids.chunks(ROWS_AT_ONCE) {
        rows.extend(turn.rows(sql, &[(&ids, Type::TEXT_ARRAY)]).await?);
    }
    Ok(rows)
}

/// Of pairs of kind and name, those that living records have, and their ids.
const NAMED: &str = "SELECT record.kind, record.name, record.id
                     FROM unnest($1, $2) AS asked (kind, name) JOIN record
                     ON record.kind = asked.kind AND record.name = asked.name
                        AND body IS NOT NULL";
/// Of pairs of kind and key, those that living records have, and their names.
const KEYED: &str = "SELECT asked.kind, asked.word, record.name
                     FROM unnest($1, $2) AS asked (kind, word) JOIN record_key
                     ON record_key.kind = asked.kind AND record_key.word = asked.word
                     JOIN record ON record.id = record_key.id";

async fn holders(
    turn: &Turn<'_>,
    sql: &str,
    asked: &BTreeSet<(Kind, &str)>,
) -> Result<HashMap<(Kind, String), String>, StoreFault> {
    let asked: Vec<_> = asked.iter().collect();
    let mut held = HashMap::new();
    for asked in asked.chunks(ROWS_AT_ONCE) {
        let (kinds, words): (Vec<_>, Vec<_>) =
            asked.iter().map(|(kind, word)| (kind.word(), *word)).unzip();
        let with: [Param<'_>; 2] = [(&kinds, Type::TEXT_ARRAY), (&words, Type::TEXT_ARRAY)];
        for row in turn.rows(sql, &with).await? {
            held.insert((kind(value(&row, 0)?)?, value(&row, 1)?), value(&row, 2)?);
        }
    }
    Ok(held)
}

/// How many records live of these kinds.
async fn living(turn: &Turn<'_>, kinds: &BTreeSet<Kind>) -> Result<HashMap<Kind, u64>, StoreFault> {
    let mut living: HashMap<_, _> = kinds.iter().map(|kind| (*kind, 0)).collect();
    if !living.is_empty() {
        let sql = "SELECT kind, count(*) FROM record
                   WHERE kind = ANY ($1) AND body IS NOT NULL GROUP BY kind";
        let words: Vec<_> = kinds.iter().map(|kind| kind.word()).collect();
        for row in turn.rows(sql, &[(&words, Type::TEXT_ARRAY)]).await? {
            living.insert(kind(value(&row, 0)?)?, value::<i64>(&row, 1)?.unsigned_abs());
        }
    }
    Ok(living)
}

/// The ids of stored records that are removed or renamed, which nobody may need then.
fn must_be_alone<'a>(operations: &'a [Operation], ledger: &Ledger) -> BTreeSet<&'a str> {
    let ends = |operation: &'a Operation| match operation {
        Operation::Create { .. } => None,
        Operation::Replace { id, draft, .. } => {
            let record = ledger.records.get(id)?;
            (record.name != draft.name).then_some(id.as_str())
        }
        Operation::Remove { id, .. } => ledger.records.contains_key(id).then_some(id.as_str()),
    };
    operations.iter().filter_map(ends).collect()
}

/// Who needs these records. Of each no more than `operations` and one, the first by id: an operation
/// ends one need at most, so one of them is left if any is.
async fn needers(
    turn: &Turn<'_>,
    ids: &[&str],
    operations: usize,
) -> Result<HashMap<String, BTreeMap<String, String>>, StoreFault> {
    let sql = "SELECT needed.id, needer.id, needer.kind || ' ' || needer.name
               FROM unnest($1) AS needed (id), LATERAL (
                   SELECT record.* FROM record_need JOIN record ON record.id = record_need.id
                   WHERE needs_id = needed.id ORDER BY record_need.id LIMIT $2
               ) AS needer";
    let most = operations as i64 + 1;
    let mut needers: HashMap<_, BTreeMap<_, _>> = HashMap::new();
    for ids in ids.chunks(ROWS_AT_ONCE) {
        let with: [Param<'_>; 2] = [(&ids, Type::TEXT_ARRAY), (&most, Type::INT8)];
        for row in turn.rows(sql, &with).await? {
            let by = needers.entry(value(&row, 0)?).or_default();
            by.insert(value(&row, 1)?, value(&row, 2)?);
        }
    }
    Ok(needers)
}
