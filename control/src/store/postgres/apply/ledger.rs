//! A change carried out in memory, operation by operation.
//!
//! Owns every rule that a record can break: names and keys given once, needs, expected revisions,
//! limits. It asks no database: `gather` fills it with what the change touches, `write` writes down
//! how it ends. So each operation sees what those before it did, in whatever order they come, though
//! the server is asked a few times for all of them together.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use crate::store::{
    Draft, Kind, Operation, Record, Revision, StoreFault, Subject, TokenMark, UnixS, audited,
};

/// See the module.
pub(super) struct Ledger {
    now: UnixS,
    /// The revision of the last operation so far.
    pub(super) revision: Revision,
    /// By id, the records that operations make or change.
    pub(super) records: HashMap<String, Standing>,
    /// The ids of living records by name, as far as operations ask for the name.
    pub(super) names: HashMap<(Kind, String), String>,
    /// The names of who has a key, as far as operations ask for the key.
    pub(super) holders: HashMap<(Kind, String), String>,
    /// By id and of each id, who needs a record that may have to be needed by nobody, in words.
    pub(super) needers: HashMap<String, BTreeMap<String, String>>,
    /// How many live, of the kinds that operations create.
    pub(super) living: HashMap<Kind, u64>,
    /// What goes to the audit log.
    pub(super) log: Log,
}

/// A record as it stands after the operations so far.
pub(super) struct Standing {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) revision: Revision,
    pub(super) created_at: UnixS,
    /// The body as JSON; `None` once it is removed.
    pub(super) text: Option<String>,
    /// What it has and needs; nothing once it is removed.
    pub(super) hold: Hold,
    /// For a token that the change makes, how it is known.
    pub(super) mark: Option<TokenMark>,
    /// How it was before the change; `None` for one that the change makes.
    pub(super) before: Option<Before>,
}

/// What a record was before the change.
pub(super) struct Before {
    pub(super) name: String,
    pub(super) hold: Hold,
}

/// What a living record keeps from others.
#[derive(Clone, Default)]
pub(super) struct Hold {
    /// Its keys.
    pub(super) keys: Vec<String>,
    /// The ids of the records that it needs, each once.
    pub(super) needs: Vec<String>,
}

/// Lines of the audit log, by column: revision; verb, kind, id, name, before, after.
#[derive(Default)]
pub(super) struct Log {
    pub(super) revisions: Vec<i64>,
    pub(super) words: [Vec<String>; 6],
}

impl Ledger {
    /// One that knows of no record, at the store's revision.
    pub(super) fn new(revision: Revision, now: UnixS) -> Self {
        Self {
            now,
            revision,
            records: HashMap::new(),
            names: HashMap::new(),
            holders: HashMap::new(),
            needers: HashMap::new(),
            living: HashMap::new(),
            log: Log::default(),
        }
    }

    /// Carries out `operation`. After a fault the ledger is of no use any more.
    pub(super) fn carry_out(&mut self, operation: &Operation) -> Result<Record, StoreFault> {
        match operation {
            Operation::Create { kind, id, draft, mark } => self.create(*kind, id, draft, mark),
            Operation::Replace { kind, id, expected, draft } => {
                self.replace(*kind, id, *expected, draft)
            }
            Operation::Remove { kind, id, expected } => self.remove(*kind, id, *expected),
        }
    }

    /// Refuses to have made more records of a kind than there may be.
    pub(super) fn refuse_too_many(&self) -> Result<(), StoreFault> {
        let too_many = |(kind, living): (&Kind, &u64)| *living > kind.records_max() as u64;
        match self.living.iter().any(too_many) {
            true => Err(StoreFault::Limit("more records of this kind than the store takes")),
            false => Ok(()),
        }
    }

    /// The records that are to be written, in the order of their revisions.
    pub(super) fn touched(&self) -> Vec<(&str, &Standing)> {
        let mut touched: Vec<_> =
            self.records.iter().map(|(id, record)| (id.as_str(), record)).collect();
        touched.sort_unstable_by_key(|(_, record)| record.revision);
        touched
    }

    fn create(
        &mut self,
        kind: Kind,
        id: &str,
        draft: &Draft,
        mark: &Option<TokenMark>,
    ) -> Result<Record, StoreFault> {
        if self.records.contains_key(id) {
            return Err(StoreFault::Broken(format!("the id {id} is used twice")));
        }
        self.take_name(kind, id, &draft.name)?;
        let text = draft.text()?;
        let revision = self.next_revision();
        let hold = self.take(kind, id, draft)?;
        if let Some(living) = self.living.get_mut(&kind) {
            *living += 1;
        }
        let subject = Subject { kind, id, name: &draft.name };
        self.log.note(revision, "create", subject, "", &text);
        let (name, created_at, text) = (draft.name.clone(), self.now, Some(text));
        let mark = mark.clone();
        let made = Standing { kind, name, revision, created_at, text, hold, mark, before: None };
        self.records.insert(id.to_owned(), made);
        Ok(draft.made(kind, id, revision, self.now))
    }

    fn replace(
        &mut self,
        kind: Kind,
        id: &str,
        expected: Option<Revision>,
        draft: &Draft,
    ) -> Result<Record, StoreFault> {
        let old = self.current(kind, id, expected)?;
        let (created_at, old_name) = (old.created_at, old.name.clone());
        if draft.name != old_name {
            self.refuse_needed(kind, id, &old_name)?;
            self.take_name(kind, id, &draft.name)?;
            self.names.remove(&(kind, old_name));
        }
        let text = draft.text()?;
        let revision = self.next_revision();
        self.release(id);
        let hold = self.take(kind, id, draft)?;
        if let Some(record) = self.records.get_mut(id) {
            let old = record.text.replace(text.clone()).unwrap_or_default();
            (record.name, record.revision, record.hold) = (draft.name.clone(), revision, hold);
            let subject = Subject { kind, id, name: &draft.name };
            self.log.note(revision, "replace", subject, &old, &text);
        }
        Ok(Record { created_at, ..draft.made(kind, id, revision, self.now) })
    }

    fn remove(
        &mut self,
        kind: Kind,
        id: &str,
        expected: Option<Revision>,
    ) -> Result<Record, StoreFault> {
        let old = self.current(kind, id, expected)?;
        let (created_at, name) = (old.created_at, old.name.clone());
        self.refuse_needed(kind, id, &name)?;
        let revision = self.next_revision();
        self.release(id);
        self.names.remove(&(kind, name.clone()));
        if let Some(living) = self.living.get_mut(&kind) {
            *living -= 1;
        }
        if let Some(record) = self.records.get_mut(id) {
            let old = record.text.take().unwrap_or_default();
            record.revision = revision;
            self.log.note(revision, "remove", Subject { kind, id, name: &name }, &old, "");
        }
        let (id, updated_at, body) = (id.to_owned(), self.now, None);
        Ok(Record { kind, id, name, revision, created_at, updated_at, body })
    }

    /// The living record, if it is where the caller saw it.
    fn current(
        &self,
        kind: Kind,
        id: &str,
        expected: Option<Revision>,
    ) -> Result<&Standing, StoreFault> {
        let found = self.records.get(id);
        let living = found.filter(|record| record.kind == kind && record.text.is_some());
        let record = living.ok_or_else(|| StoreFault::Gone { kind, id: id.to_owned() })?;
        match expected {
            Some(expected) if expected != record.revision => {
                Err(StoreFault::Stale { now: record.revision })
            }
            Some(_) | None => Ok(record),
        }
    }

    /// Refuses if anybody needs the record; of several, the one whose id is first is named.
    fn refuse_needed(&self, kind: Kind, id: &str, name: &str) -> Result<(), StoreFault> {
        match self.needers.get(id).and_then(|needers| needers.values().next()) {
            Some(by) => Err(StoreFault::InUse { kind, name: name.to_owned(), by: by.clone() }),
            None => Ok(()),
        }
    }

    fn take_name(&mut self, kind: Kind, id: &str, name: &str) -> Result<(), StoreFault> {
        match self.names.entry((kind, name.to_owned())) {
            Entry::Occupied(_) => Err(StoreFault::Taken { kind, word: name.to_owned() }),
            Entry::Vacant(free) => {
                free.insert(id.to_owned());
                Ok(())
            }
        }
    }

    /// Takes the draft's keys and notes its needs.
    fn take(&mut self, kind: Kind, id: &str, draft: &Draft) -> Result<Hold, StoreFault> {
        for key in &draft.keys {
            match self.holders.entry((kind, key.clone())) {
                Entry::Vacant(free) => free.insert(draft.name.clone()),
                Entry::Occupied(held) => {
                    let (key, holder) = (key.clone(), held.get().clone());
                    return Err(StoreFault::Held { kind, key, holder });
                }
            };
        }
        let mut hold = Hold { keys: draft.keys.clone(), needs: Vec::new() };
        for (needed, name) in &draft.needs {
            let found = self.names.get(&(*needed, name.clone()));
            let needs = found
                .ok_or_else(|| StoreFault::Missing { kind: *needed, word: name.clone() })?
                .clone();
            let own = format!("{} {}", kind.word(), draft.name);
            self.needers.entry(needs.clone()).or_default().insert(id.to_owned(), own);
            if !hold.needs.contains(&needs) {
                hold.needs.push(needs);
            }
        }
        Ok(hold)
    }

    /// Gives back what [`Self::take`] took.
    fn release(&mut self, id: &str) {
        let Some(record) = self.records.get_mut(id) else { return };
        let Hold { keys, needs } = std::mem::take(&mut record.hold);
        for key in keys {
            self.holders.remove(&(record.kind, key));
        }
        for needed in needs {
            if let Some(needers) = self.needers.get_mut(&needed) {
                needers.remove(id);
            }
        }
    }

    /// The next revision. It is written down once, at the end: the lock is held until then.
    fn next_revision(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }
}

impl Log {
    fn note(
        &mut self,
        revision: Revision,
        verb: &str,
        Subject { kind, id, name }: Subject<'_>,
        before: &str,
        after: &str,
    ) {
        self.revisions.push(revision.0);
        let [before, after] = [before, after].map(audited);
        let line = [verb.into(), kind.word().into(), id.into(), name.into(), before, after];
        for (column, word) in self.words.iter_mut().zip(line) {
            column.push(word);
        }
    }
}
