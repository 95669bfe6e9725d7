//! Random changes over both back ends: what they answer, refuse and keep is the same.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::store::sqlite::SqliteStore;
use crate::store::{Once, Operation, Unchanged};
use crate::testing::Scratch;

/// Of the last there may be only one.
const KINDS: [Kind; 4] = [Kind::Region, Kind::Node, Kind::Peer, Kind::Policy];
/// Names and keys: few, so that they collide.
const WORDS: usize = 12;

/// An operation before there are records to speak of.
#[derive(Clone, Debug)]
enum Deed {
    Create(Kind, Wish),
    /// Under its own name, or another.
    Replace(Target, bool, Wish),
    Remove(Target),
}

/// What a draft is to say; needs are those of records that live, by number.
#[derive(Clone, Debug)]
struct Wish {
    name: usize,
    keys: Vec<usize>,
    needs: Vec<usize>,
    body: usize,
}

/// A record by number, of those that live or of all, and the revision it is expected at.
#[derive(Clone, Copy, Debug)]
struct Target {
    living: bool,
    number: usize,
    expected: Expected,
}

#[derive(Clone, Copy, Debug)]
enum Expected {
    Anything,
    /// What the last change that was carried out has left it at.
    Seen,
    Old,
}

/// A change before there are records to speak of.
#[derive(Clone, Debug)]
struct Asked {
    deeds: Vec<Deed>,
    once: Option<(bool, bool)>,
    if_unchanged: bool,
}

prop_compose! {
    fn a_wish()(
        name in 0..WORDS,
        keys in prop_oneof![3 => vec(0..WORDS, 0..=1), 1 => vec(0..WORDS, 2)],
        needs in prop_oneof![3 => Just(vec![]), 2 => vec(any::<usize>(), 1..=2)],
        body in 0..3usize,
    ) -> Wish {
        Wish { name, keys, needs, body }
    }
}

prop_compose! {
    fn a_target()(
        living in proptest::bool::weighted(0.95),
        number in any::<usize>(),
        expected in prop_oneof![
            12 => Just(Expected::Anything),
            6 => Just(Expected::Seen),
            1 => Just(Expected::Old),
        ],
    ) -> Target {
        Target { living, number, expected }
    }
}

fn a_deed() -> impl Strategy<Value = Deed> {
    let kind = prop_oneof![12 => select(&KINDS[..3]), 1 => Just(KINDS[3])];
    let other_name = proptest::bool::weighted(0.3);
    prop_oneof![
        4 => (kind, a_wish()).prop_map(|(kind, wish)| Deed::Create(kind, wish)),
        4 => (a_target(), other_name, a_wish())
            .prop_map(|(target, other, wish)| Deed::Replace(target, other, wish)),
        2 => a_target().prop_map(Deed::Remove),
    ]
}

fn an_asked() -> impl Strategy<Value = Asked> {
    let deeds = prop_oneof![vec(a_deed(), 1), vec(a_deed(), 2..=4), vec(a_deed(), 5..=10)];
    let once = proptest::option::weighted(0.1, any::<(bool, bool)>());
    (deeds, once, proptest::bool::weighted(0.1)).prop_map(|(deeds, once, if_unchanged)| Asked {
        deeds,
        once,
        if_unchanged,
    })
}

/// A record that was ever to be made.
#[derive(Clone, Debug)]
struct Known {
    kind: Kind,
    id: String,
    name: String,
    seen: Revision,
    living: bool,
}

/// What there is to speak of.
#[derive(Clone, Debug, Default)]
struct World {
    records: Vec<Known>,
    upto: Revision,
}

impl World {
    fn change(&mut self, asked: &Asked) -> Change {
        let operations = asked.deeds.iter().map(|deed| self.operation(deed)).collect();
        let once = asked.once.map(|(key, digest)| Once {
            key: format!("key {key}"),
            digest: format!("digest {digest}"),
        });
        let unchanged = Unchanged { since: self.upto, kinds: &Kind::ALL };
        let unchanged = asked.if_unchanged.then_some(unchanged);
        Change { once, unchanged, ..change(operations) }
    }

    /// The operation, after which the world is as if it were carried out.
    fn operation(&mut self, deed: &Deed) -> Operation {
        match deed {
            Deed::Create(kind, wish) => {
                let (kind, id) = (*kind, format!("{:032}", self.records.len()));
                let draft = self.draft(wish, None);
                let (name, seen) = (draft.name.clone(), Revision(0));
                self.records.push(Known { kind, id: id.clone(), name, seen, living: true });
                Operation::Create { kind, id, draft, mark: None }
            }
            Deed::Replace(target, other, wish) => {
                let Some((at, expected)) = self.find(*target) else { return nothing() };
                let name = (!other).then(|| self.records[at].name.clone());
                let draft = self.draft(wish, name);
                let record = &mut self.records[at];
                record.name.clone_from(&draft.name);
                let (kind, id) = (record.kind, record.id.clone());
                Operation::Replace { kind, id, expected, draft }
            }
            Deed::Remove(target) => {
                let Some((at, expected)) = self.find(*target) else { return nothing() };
                let record = &mut self.records[at];
                record.living = false;
                Operation::Remove { kind: record.kind, id: record.id.clone(), expected }
            }
        }
    }

    fn draft(&self, wish: &Wish, name: Option<String>) -> Draft {
        let name = name.unwrap_or_else(|| format!("n{}", wish.name));
        let living: Vec<_> = self.records.iter().filter(|record| record.living).collect();
        let needs = wish.needs.iter().filter_map(|number| {
            let needed = living.get(number % living.len().max(1))?;
            Some((needed.kind, needed.name.clone()))
        });
        Draft {
            keys: wish.keys.iter().map(|key| format!("k{key}")).collect(),
            needs: needs.collect(),
            body: serde_json::json!({"name": name, "v": wish.body}),
            name,
        }
    }

    fn find(&self, target: Target) -> Option<(usize, Option<Revision>)> {
        let fits = |at: &usize| self.records[*at].living || !target.living;
        let places: Vec<_> = (0..self.records.len()).filter(fits).collect();
        let at = *places.get(target.number % places.len().max(1))?;
        let seen = self.records[at].seen;
        let expected = match target.expected {
            Expected::Anything => None,
            Expected::Seen => Some(seen),
            Expected::Old => Some(Revision(seen.0 - 1)),
        };
        Some((at, expected))
    }

    fn learn(&mut self, applied: &Applied) {
        for record in &applied.records {
            if let Some(known) = self.records.iter_mut().find(|known| known.id == record.id) {
                known.seen = record.revision;
            }
            self.upto = self.upto.max(record.revision);
        }
    }
}

/// What is asked where there is no record yet.
fn nothing() -> Operation {
    Operation::Remove { kind: Kind::Peer, id: "nobody".into(), expected: None }
}

/// All that a store keeps, but for who has which key.
async fn kept(store: &dyn Store) -> impl PartialEq + fmt::Debug + use<> {
    let (living, news) = (store.changes(Revision(0), 1).await, store.changes(Revision(1), 1_000));
    let pages = (store.tell(Place::default(), 3).await, store.tell(Place::after(Revision(2)), 3));
    let entries = store.entries(vec![Revision(3), Revision(1), Revision(1_000_000)]).await;
    let news = (news.await, pages.0, pages.1.await);
    (living, news, store.audit(None, 1_000).await, entries, store.counts().await)
}

async fn holders(store: &dyn Store) -> impl PartialEq + fmt::Debug + use<> {
    let mut holders = Vec::new();
    for kind in KINDS {
        for key in 0..WORDS {
            holders.push(store.holder(kind, format!("k{key}")).await);
        }
    }
    holders
}

async fn agree(server: &Postgres, history: &[Asked]) {
    let folder = Scratch::new();
    let lite = SqliteStore::open(folder.as_ref()).expect("an empty folder takes a store");
    let postgres = open(&server.database()).await;
    let mut world = World::default();
    let (mut done, mut faults) = (0, Vec::new());
    for asked in history {
        let before = world.clone();
        let change = world.change(asked);
        let (ours, theirs) = (postgres.apply(change.clone()).await, lite.apply(change).await);
        assert_eq!(ours, theirs);
        match ours {
            Ok(applied) if !applied.replayed => {
                world.learn(&applied);
                done += 1;
            }
            Ok(_) => world = before,
            Err(fault) => {
                faults.push(fault.to_string());
                world = before;
            }
        }
        assert_eq!(kept(&postgres).await, kept(&lite).await);
    }
    assert_eq!(holders(&postgres).await, holders(&lite).await);
    println!("{done} of {} changes were carried out; refused: {faults:?}", history.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn back_ends_agree_on_any_changes(history in vec(an_asked(), 1..60)) {
        let Some(server) = Postgres::shared() else { return Ok(()) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime starts").block_on(agree(server, &history));
    }
}
