//! What every back end must keep to, written once and run over each: `suite!(fresh)` makes a test of
//! every case, where `fresh()` gives an empty store with whatever must live as long as it, or nothing
//! where there can be none.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::token::new_id;

/// Makes a test of every case over the stores that `$fresh` makes.
macro_rules! suite {
    ($fresh:path) => {
        $crate::store::suite::suite!($fresh:
            a_record_is_found_by_id_and_name,
            revisions_are_one_order_over_all_kinds,
            a_name_or_key_is_given_once_until_it_is_removed,
            a_record_is_found_by_its_key_while_it_has_it,
            concurrent_creates_of_one_name_have_one_winner,
            a_change_is_whole_or_not_at_all,
            an_operation_sees_what_those_before_it_did,
            names_move_within_a_change,
            keys_move_within_a_change,
            needs_come_and_go_within_a_change,
            an_expected_revision_may_be_of_the_same_change,
            a_change_of_thousands_is_as_one_of_few,
            what_others_need_stays,
            if_match_keeps_the_later_change,
            a_repeated_create_happens_once,
            pages_hold_every_record_once,
            a_watcher_sees_each_change_and_resumes_anywhere,
            compaction_tells_old_watchers_to_begin_anew,
            all_that_lives_is_told_by_the_page_while_it_changes,
            a_compaction_before_the_end_of_the_whole_takes_nothing_away,
            tokens_are_found_by_prefix_until_removed,
            every_change_is_in_the_audit_log,
            a_record_is_followed_in_the_audit_log_through_its_names,
            limits_are_kept,
        );
    };
    ($fresh:path: $($case:ident,)+) => {
        $(
            #[tokio::test]
            async fn $case() {
                let Some((store, _keep)) = $fresh().await else { return };
                $crate::store::suite::$case(store).await;
            }
        )+
    };
}
pub(super) use suite;

type Any = Arc<dyn Store>;

pub(super) fn draft(name: &str) -> Draft {
    Draft { name: name.into(), keys: vec![], needs: vec![], body: json!({"name": name}) }
}

pub(super) fn create(kind: Kind, draft: Draft) -> Operation {
    Operation::Create { kind, id: new_id(), draft, mark: None }
}

pub(super) fn change(operations: Vec<Operation>) -> Change {
    Change { actor: "test".into(), now: 1000, operations, once: None, unchanged: None }
}

pub(super) async fn make(
    store: &dyn Store,
    kind: Kind,
    draft: Draft,
) -> Result<Record, StoreFault> {
    let applied = store.apply(change(vec![create(kind, draft)])).await?;
    Ok(applied.records.into_iter().next().expect("one operation makes one record"))
}

async fn remove(store: &dyn Store, record: &Record) -> Result<Record, StoreFault> {
    let (kind, id) = (record.kind, record.id.clone());
    let applied = store.apply(change(vec![Operation::Remove { kind, id, expected: None }])).await?;
    Ok(applied.records.into_iter().next().expect("one operation tells of one record"))
}

fn replaced(id: &str, kind: Kind, draft: Draft) -> Operation {
    Operation::Replace { kind, id: id.into(), expected: None, draft }
}

fn removed(id: &str, kind: Kind) -> Operation {
    Operation::Remove { kind, id: id.into(), expected: None }
}

fn made(id: &str, kind: Kind, draft: Draft) -> Operation {
    Operation::Create { kind, id: id.into(), draft, mark: None }
}

fn keyed(name: &str, key: &str) -> Draft {
    Draft { keys: vec![key.into()], ..draft(name) }
}

fn needing(name: &str, region: &str) -> Draft {
    Draft { needs: vec![(Kind::Region, region.into())], ..draft(name) }
}

async fn names(store: &dyn Store, kind: Kind) -> Vec<String> {
    let page = store.list(Query { kind, after: None, limit: 1000 }).await.expect("it lists");
    page.records.into_iter().map(|record| record.name).collect()
}

pub(super) async fn a_record_is_found_by_id_and_name(store: Any) {
    let made = make(&*store, Kind::Peer, draft("alice")).await.expect("it is new");
    let by_id = store.read(Kind::Peer, made.id.clone()).await.expect("it reads");
    let by_name = store.find(Kind::Peer, "alice".into()).await.expect("it reads");
    assert_eq!((by_id.as_ref(), by_name.as_ref()), (Some(&made), Some(&made)));
    assert_eq!((made.created_at, made.updated_at), (1000, 1000));
    assert_eq!(store.read(Kind::Link, made.id.clone()).await, Ok(None), "of another kind");
    assert_eq!(store.find(Kind::Peer, "bob".into()).await, Ok(None));
    assert_eq!(store.counts().await.expect("it counts")[3], (Kind::Peer, 1));
}

pub(super) async fn revisions_are_one_order_over_all_kinds(store: Any) {
    let hint = store.revisions();
    let mut last = Revision(0);
    for (at, kind) in Kind::ALL.into_iter().enumerate() {
        let made = make(&*store, kind, draft(&format!("n{at}"))).await.expect("it is new");
        assert_eq!(made.revision.0, last.0 + 1);
        last = made.revision;
        assert_eq!(*hint.borrow(), last);
    }
}

pub(super) async fn a_name_or_key_is_given_once_until_it_is_removed(store: Any) {
    let keyed = |name: &str| Draft { keys: vec!["id=1".into()], ..draft(name) };
    let first = make(&*store, Kind::Region, keyed("fra")).await.expect("it is new");
    let taken = |word: &str| Err(StoreFault::Taken { kind: Kind::Region, word: word.into() });
    assert_eq!(make(&*store, Kind::Region, draft("fra")).await, taken("fra"));
    let (key, holder) = ("id=1".to_owned(), "fra".to_owned());
    let held = StoreFault::Held { kind: Kind::Region, key, holder };
    assert_eq!(held.to_string(), "region \"fra\" has this id already");
    assert_eq!(make(&*store, Kind::Region, keyed("syd")).await, Err(held));
    make(&*store, Kind::Node, keyed("fra")).await.expect("another kind has names of its own");
    let gone = remove(&*store, &first).await.expect("it is there");
    assert!(gone.body.is_none() && gone.revision > first.revision);
    let again = make(&*store, Kind::Region, keyed("fra")).await.expect("it is free again");
    assert_ne!(again.id, first.id);
    let again = StoreFault::Gone { kind: Kind::Region, id: first.id.clone() };
    assert_eq!(remove(&*store, &first).await, Err(again));
}

pub(super) async fn a_record_is_found_by_its_key_while_it_has_it(store: Any) {
    let keyed = |key: &str| Draft { keys: vec![key.into()], ..draft("alice") };
    let made = make(&*store, Kind::Client, keyed("k=1")).await.expect("it is new");
    assert_eq!(store.holder(Kind::Client, "k=1".into()).await, Ok(Some(made.clone())));
    assert_eq!(store.holder(Kind::Peer, "k=1".into()).await, Ok(None), "of another kind");
    assert_eq!(store.holder(Kind::Client, "alice".into()).await, Ok(None), "a name is no key");
    let (kind, id) = (Kind::Client, made.id.clone());
    let moved = Operation::Replace { kind, id, expected: None, draft: keyed("k=2") };
    let moved = store.apply(change(vec![moved])).await.expect("it is there").records.remove(0);
    assert_eq!(store.holder(Kind::Client, "k=1".into()).await, Ok(None));
    assert_eq!(store.holder(Kind::Client, "k=2".into()).await, Ok(Some(moved.clone())));
    remove(&*store, &moved).await.expect("it is there");
    assert_eq!(store.holder(Kind::Client, "k=2".into()).await, Ok(None));
}

pub(super) async fn concurrent_creates_of_one_name_have_one_winner(store: Any) {
    let tries = (0..32).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { make(&*store, Kind::Satellite, draft("sydney")).await })
    });
    let tries: Vec<_> = tries.collect();
    let mut won = 0;
    for one in tries {
        match one.await.expect("no task panics") {
            Ok(_) => won += 1,
            Err(fault) => assert!(matches!(fault, StoreFault::Taken { .. }), "{fault}"),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(names(&*store, Kind::Satellite).await, ["sydney"]);
}

pub(super) async fn a_change_is_whole_or_not_at_all(store: Any) {
    make(&*store, Kind::Peer, draft("bob")).await.expect("it is new");
    let both = vec![create(Kind::Peer, draft("alice")), create(Kind::Peer, draft("bob"))];
    let fault = store.apply(change(both)).await.expect_err("bob is taken");
    assert_eq!(fault, StoreFault::Taken { kind: Kind::Peer, word: "bob".into() });
    assert_eq!(names(&*store, Kind::Peer).await, ["bob"]);
    assert_eq!(*store.revisions().borrow(), Revision(1));
    let page = store.list(Query { kind: Kind::Peer, after: None, limit: 1 }).await;
    assert_eq!(page.expect("it lists").revision, Revision(1), "no revision is lost");
    let unchanged = |since: i64, kinds: &'static [Kind]| Change {
        unchanged: Some(Unchanged { since: Revision(since), kinds }),
        ..change(vec![create(Kind::Peer, draft("carol"))])
    };
    for stale in [unchanged(0, &Kind::ALL), unchanged(0, &[Kind::Peer]), unchanged(2, &[])] {
        assert_eq!(store.apply(stale).await, Err(StoreFault::Stale { now: Revision(1) }));
    }
    store.apply(unchanged(0, &[Kind::Region, Kind::Node])).await.expect("none of those changed");
    let gone =
        store.find(Kind::Peer, "carol".into()).await.expect("it reads").expect("it is there");
    remove(&*store, &gone).await.expect("it is there");
    let since_it_was_there = Change { operations: Vec::new(), ..unchanged(2, &[Kind::Peer]) };
    let stale = store.apply(since_it_was_there.clone()).await;
    assert_eq!(stale, Err(StoreFault::Stale { now: Revision(3) }), "a removal counts, too");
    let now = Some(Unchanged { since: Revision(3), kinds: &Kind::ALL });
    let nothing = store.apply(Change { unchanged: now, ..since_it_was_there }).await;
    assert_eq!(nothing, Ok(Applied { records: Vec::new(), replayed: false }));
}

pub(super) async fn an_operation_sees_what_those_before_it_did(store: Any) {
    let (region, node) = (Kind::Region, Kind::Node);
    let operations = vec![
        made("r1", region, keyed("fra", "id=1")),
        made("n1", node, needing("1a", "fra")),
        replaced("n1", node, needing("1b", "fra")),
        removed("n1", node),
        removed("r1", region),
        made("r2", region, keyed("fra", "id=1")),
        made("n2", node, needing("1a", "fra")),
    ];
    let applied = store.apply(change(operations)).await.expect("each can be done in its turn");
    let told = applied.records.iter().map(|record| {
        (record.revision.0, record.id.as_str(), record.name.as_str(), record.body.is_some())
    });
    let expected = [
        (1, "r1", "fra", true),
        (2, "n1", "1a", true),
        (3, "n1", "1b", true),
        (4, "n1", "1b", false),
        (5, "r1", "fra", false),
        (6, "r2", "fra", true),
        (7, "n2", "1a", true),
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected);
    let living = store.changes(Revision(0), 10).await.expect("it reads");
    assert_eq!((living.records, living.upto), (applied.records[5..].to_vec(), Revision(7)));
    let since = store.changes(Revision(1), 10).await.expect("it reads");
    assert_eq!(since.records, applied.records[3..], "tombstones of what lived for a moment");
    let log = store.audit(None, 10).await.expect("it reads");
    let verbs: Vec<_> = log.iter().rev().map(|entry| entry.verb.as_str()).collect();
    let expected = ["create", "create", "replace", "remove", "remove", "create", "create"];
    assert_eq!(verbs, expected);
    assert_eq!((&log[3].before, log[3].after.as_str()), (&log[4].after, ""));
    let holder = store.holder(region, "id=1".into()).await.expect("it reads");
    assert_eq!(holder.expect("it is held").id, "r2");
}

pub(super) async fn names_move_within_a_change(store: Any) {
    let kind = Kind::Peer;
    let taken = |word: &str| Err(StoreFault::Taken { kind, word: word.into() });
    let twice = vec![made("a", kind, draft("alice")), made("b", kind, draft("alice"))];
    assert_eq!(store.apply(change(twice)).await, taken("alice"));
    let both = vec![made("a", kind, draft("alice")), made("b", kind, draft("bob"))];
    store.apply(change(both)).await.expect("they are new");
    let rename = |id: &str, name: &str| replaced(id, kind, draft(name));
    let at_once = vec![rename("a", "bob"), rename("b", "alice")];
    assert_eq!(store.apply(change(at_once)).await, taken("bob"), "one comes first");
    let by_a_third = vec![rename("a", "carol"), rename("b", "alice"), rename("a", "bob")];
    store.apply(change(by_a_third)).await.expect("each name is free in its turn");
    let found = store.find(kind, "alice".into()).await.expect("it reads");
    assert_eq!(found.expect("it lives").id, "b");
    let follow = vec![removed("b", kind), rename("a", "alice"), made("c", kind, draft("bob"))];
    store.apply(change(follow)).await.expect("each name is free in its turn");
    assert_eq!(names(&*store, kind).await, ["alice", "bob"]);
    let late = vec![made("d", kind, draft("bob")), removed("c", kind)];
    assert_eq!(store.apply(change(late)).await, taken("bob"), "it is not free yet");
    let reused = vec![rename("a", "dora"), made("d", kind, draft("alice")), rename("a", "alice")];
    assert_eq!(store.apply(change(reused)).await, taken("alice"));
}

pub(super) async fn keys_move_within_a_change(store: Any) {
    let kind = Kind::Client;
    let held = |key: &str, holder: &str| {
        Err(StoreFault::Held { kind, key: key.into(), holder: holder.into() })
    };
    let twice = vec![made("a", kind, keyed("alice", "k=1")), made("b", kind, keyed("bob", "k=1"))];
    assert_eq!(store.apply(change(twice)).await, held("k=1", "alice"));
    let own = Draft { keys: vec!["k=1".into(), "k=1".into()], ..draft("alice") };
    assert_eq!(store.apply(change(vec![made("a", kind, own)])).await, held("k=1", "alice"));
    let both = vec![made("a", kind, keyed("alice", "k=1")), made("b", kind, keyed("bob", "k=2"))];
    store.apply(change(both)).await.expect("they are new");
    let give = |id: &str, name: &str, key: &str| replaced(id, kind, keyed(name, key));
    let at_once = vec![give("a", "alice", "k=2"), give("b", "bob", "k=1")];
    assert_eq!(store.apply(change(at_once)).await, held("k=2", "bob"), "one comes first");
    let by_a_third =
        vec![give("a", "alice", "k=3"), give("b", "bob", "k=1"), give("a", "alice", "k=2")];
    store.apply(change(by_a_third)).await.expect("each key is free in its turn");
    let removed = vec![removed("b", kind), made("c", kind, keyed("carol", "k=1"))];
    store.apply(change(removed)).await.expect("removal frees the key");
    for (key, holder) in [("k=1", Some("c")), ("k=2", Some("a")), ("k=3", None)] {
        let found = store.holder(kind, key.into()).await.expect("it reads");
        assert_eq!(found.as_ref().map(|record| record.id.as_str()), holder, "{key}");
    }
}

pub(super) async fn needs_come_and_go_within_a_change(store: Any) {
    let (region, node) = (Kind::Region, Kind::Node);
    let regions = vec![made("r1", region, draft("fra")), made("r2", region, draft("syd"))];
    store.apply(change(regions)).await.expect("they are new");
    let in_use = |by: &str| {
        Err(StoreFault::InUse { kind: region, name: "fra".into(), by: format!("node {by}") })
    };
    let needed = vec![made("n1", node, needing("1a", "fra")), removed("r1", region)];
    assert_eq!(store.apply(change(needed)).await, in_use("1a"));
    let nodes = ["n3", "n2", "n1"].map(|id| made(id, node, needing(id, "fra")));
    store.apply(change(nodes.into())).await.expect("their region is there");
    let early = vec![removed("n1", node), removed("r1", region)];
    assert_eq!(store.apply(change(early)).await, in_use("n2"), "the first by id that is left");
    let renamed = vec![
        removed("n1", node),
        removed("n3", node),
        replaced("n2", node, needing("other", "fra")),
        replaced("r1", region, draft("par")),
    ];
    assert_eq!(store.apply(change(renamed)).await, in_use("other"));
    let gone = vec![removed("r2", region), made("n4", node, needing("4a", "syd"))];
    let missing = StoreFault::Missing { kind: region, word: "syd".into() };
    assert_eq!(store.apply(change(gone)).await, Err(missing));
    let moved = vec![
        removed("n1", node),
        removed("n3", node),
        replaced("n2", node, needing("n2", "syd")),
        replaced("r1", region, draft("par")),
        made("n4", node, needing("4a", "par")),
    ];
    store.apply(change(moved)).await.expect("nobody needs it by then");
    let fault = store.apply(change(vec![removed("r2", region)])).await.expect_err("n2 needs it");
    assert!(matches!(fault, StoreFault::InUse { .. }), "{fault}");
    let all = vec![
        removed("n2", node),
        removed("n4", node),
        removed("r1", region),
        removed("r2", region),
    ];
    store.apply(change(all)).await.expect("who needs goes first");
}

pub(super) async fn an_expected_revision_may_be_of_the_same_change(store: Any) {
    let kind = Kind::Peer;
    let at = |revision, name: &str| {
        let expected = Some(Revision(revision));
        Operation::Replace { kind, id: "a".into(), expected, draft: draft(name) }
    };
    let own = vec![made("a", kind, draft("alice")), at(1, "bob"), at(2, "carol")];
    store.apply(change(own)).await.expect("each sees the one before");
    let old = vec![at(3, "dora"), at(3, "emil")];
    assert_eq!(store.apply(change(old)).await, Err(StoreFault::Stale { now: Revision(4) }));
    let gone = vec![removed("a", kind), at(3, "emil")];
    let fault = StoreFault::Gone { kind, id: "a".into() };
    assert_eq!(store.apply(change(gone)).await, Err(fault));
    assert_eq!(names(&*store, kind).await, ["carol"]);
}

/// More than any back end does at a time.
pub(super) async fn a_change_of_thousands_is_as_one_of_few(store: Any) {
    const MANY: usize = 1_201;
    let (region, node) = (Kind::Region, Kind::Node);
    let key = |at: usize| format!("k={at}");
    let draft_of =
        |at: usize, key: String| Draft { keys: vec![key], ..needing(&at.to_string(), "fra") };
    let mut operations = vec![made("r", region, draft("fra"))];
    operations.extend((0..MANY).map(|at| made(&format!("n{at}"), node, draft_of(at, key(at)))));
    let applied = store.apply(change(operations)).await.expect("they are new");
    assert_eq!(applied.records.len(), MANY + 1);
    // Every key goes on to the next, the last one's first.
    let next = |at: usize| replaced(&format!("n{at}"), node, draft_of(at, key(at + 1)));
    store.apply(change((0..MANY).rev().map(next).collect())).await.expect("each key is free");
    let holder = store.holder(node, key(MANY)).await.expect("it reads").expect("it is held");
    assert_eq!((holder.name.as_str(), holder.revision), ("1200", Revision(MANY as i64 + 2)));
    let mut all: Vec<_> = (0..MANY).map(|at| removed(&format!("n{at}"), node)).collect();
    all.push(removed("r", region));
    let applied = store.apply(change(all)).await.expect("who needs goes first");
    assert!(applied.records.iter().all(|record| record.body.is_none()));
    let log = store.audit(None, 2 * PAGE_ROWS_MAX).await.expect("it reads");
    let revisions: Vec<_> = log.iter().rev().map(|entry| entry.revision.0).collect();
    assert_eq!(revisions, (1..=3 * MANY as i64 + 2).collect::<Vec<_>>());
    let left = store.changes(Revision(0), 10).await.expect("it reads");
    assert_eq!((left.records.len(), left.upto.0), (0, 3 * MANY as i64 + 2));
}

pub(super) async fn what_others_need_stays(store: Any) {
    let needs = vec![(Kind::Region, "fra".to_owned())];
    let node = Draft { needs, ..draft("1a") };
    let missing = StoreFault::Missing { kind: Kind::Region, word: "fra".into() };
    assert_eq!(make(&*store, Kind::Node, node.clone()).await, Err(missing));
    let region = make(&*store, Kind::Region, draft("fra")).await.expect("it is new");
    let node = make(&*store, Kind::Node, node).await.expect("its region is there");
    let in_use = StoreFault::InUse { kind: Kind::Region, name: "fra".into(), by: "node 1a".into() };
    assert_eq!(remove(&*store, &region).await, Err(in_use.clone()));
    let replace = |name: &str| {
        let (kind, id) = (Kind::Region, region.id.clone());
        change(vec![Operation::Replace { kind, id, expected: None, draft: draft(name) }])
    };
    assert_eq!(store.apply(replace("syd")).await, Err(in_use));
    store.apply(replace("fra")).await.expect("it may change but for its name");
    remove(&*store, &node).await.expect("nobody needs it");
    store.apply(replace("syd")).await.expect("now it may be renamed");
    let record = store.find(Kind::Region, "syd".into()).await.expect("it reads");
    remove(&*store, &record.expect("it is there")).await.expect("and removed");
}

pub(super) async fn if_match_keeps_the_later_change(store: Any) {
    let made = make(&*store, Kind::Peer, draft("alice")).await.expect("it is new");
    let replace = |expected| {
        let (kind, id) = (Kind::Peer, made.id.clone());
        let draft = Draft { body: json!({"name": "alice", "v": 2}), ..draft("alice") };
        change(vec![Operation::Replace { kind, id, expected: Some(expected), draft }])
    };
    let now = store.apply(replace(made.revision)).await.expect("it is there").records.remove(0);
    assert_eq!(now.body, Some(json!({"name": "alice", "v": 2})));
    let stale = Err(StoreFault::Stale { now: now.revision });
    assert_eq!(store.apply(replace(made.revision)).await, stale);
    let (kind, id) = (Kind::Peer, made.id.clone());
    let old = Operation::Remove { kind, id, expected: Some(made.revision) };
    assert_eq!(store.apply(change(vec![old])).await, stale);
    assert_eq!(store.find(Kind::Peer, "alice".into()).await, Ok(Some(now)));
}

pub(super) async fn a_repeated_create_happens_once(store: Any) {
    let once = |digest: &str| Some(Once { key: "k".into(), digest: digest.into() });
    let with = |digest: &str| Change {
        once: once(digest),
        ..change(vec![create(Kind::Peer, draft("alice"))])
    };
    let first = store.apply(with("d")).await.expect("it is new");
    let second = store.apply(with("d")).await.expect("it is the same");
    assert!(!first.replayed && second.replayed);
    assert_eq!(first.records, second.records);
    assert_eq!(store.apply(with("e")).await, Err(StoreFault::OnceReused));
    remove(&*store, &first.records[0]).await.expect("it is there");
    let third = store.apply(with("d")).await.expect("it is the same still");
    assert!(third.replayed && third.records[0].body.is_none());
    store.compact(1000 + IDEMPOTENCY_S + 1).await.expect("it compacts");
    let late = store.apply(with("d")).await.expect("it was forgotten");
    assert!(!late.replayed);
}

pub(super) async fn pages_hold_every_record_once(store: Any) {
    let all: Vec<_> = (0..25).map(|at| format!("n{at:02}")).collect();
    let made = all.iter().rev().map(|name| create(Kind::Peer, draft(name)));
    store.apply(change(made.collect())).await.expect("they are new");
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(Query { kind: Kind::Peer, after, limit: 10 }).await;
        let page = page.expect("it lists");
        found.extend(page.records.iter().map(|record| record.name.clone()));
        after = found.last().cloned();
        if !page.more {
            break;
        }
        assert_eq!(page.records.len(), 10);
    }
    assert_eq!(found, all);
}

pub(super) async fn a_watcher_sees_each_change_and_resumes_anywhere(store: Any) {
    let alice = make(&*store, Kind::Peer, draft("alice")).await.expect("it is new");
    let bob = make(&*store, Kind::Peer, draft("bob")).await.expect("it is new");
    let gone = remove(&*store, &alice).await.expect("it is there");
    let all = store.changes(Revision(0), 10).await.expect("it reads");
    assert_eq!((all.records, all.upto, all.reset), (vec![bob.clone()], Revision(3), false));
    let since = store.changes(alice.revision, 10).await.expect("it reads");
    assert_eq!(since.records, [bob.clone(), gone.clone()], "the tombstone is told");
    let first = store.changes(alice.revision, 1).await.expect("it reads");
    assert_eq!((first.records, first.upto), (vec![bob.clone()], bob.revision));
    let rest = store.changes(first.upto, 1).await.expect("it reads");
    assert_eq!((rest.records, rest.upto), (vec![gone.clone()], gone.revision));
    let none = store.changes(gone.revision, 10).await.expect("it reads");
    assert_eq!((none.records.len(), none.upto, none.reset), (0, gone.revision, false));
    let foreign = store.changes(Revision(99), 10).await.expect("it reads");
    assert!(foreign.reset, "a revision of another store means nothing here");
    assert_eq!((foreign.records, foreign.upto), (vec![bob], Revision(3)));
}

pub(super) async fn compaction_tells_old_watchers_to_begin_anew(store: Any) {
    let alice = make(&*store, Kind::Peer, draft("alice")).await.expect("it is new");
    let bob = make(&*store, Kind::Peer, draft("bob")).await.expect("it is new");
    let gone = remove(&*store, &alice).await.expect("it is there");
    store.compact(1000 + TOMBSTONE_S - 1).await.expect("it compacts");
    let early = store.changes(alice.revision, 10).await.expect("it reads");
    assert!(!early.reset && early.records.len() == 2, "the tombstone is young");
    store.compact(1000 + TOMBSTONE_S + 1).await.expect("it compacts");
    let late = store.changes(alice.revision, 10).await.expect("it reads");
    assert_eq!((late.records, late.upto, late.reset), (vec![bob], gone.revision, true));
    let current = store.changes(gone.revision, 10).await.expect("it reads");
    assert!(!current.reset, "who has seen the tombstone goes on");
}

/// Everything from `place` on, in pages of `limit`; what whoever is told has then, and where it ends.
async fn told(
    store: &dyn Store,
    mut place: Place,
    limit: usize,
    had: &mut BTreeMap<String, Record>,
) -> Place {
    loop {
        let told = store.tell(place, limit).await.expect("it tells");
        assert!(told.records.len() <= limit);
        assert!(told.records.is_sorted_by_key(|record| record.revision));
        if told.reset {
            had.clear();
        }
        let ends = told.records.len() < limit && place.whole_upto.is_none();
        place = told.next;
        for record in told.records {
            match record.body {
                Some(_) => drop(had.insert(record.id.clone(), record)),
                None => drop(had.remove(&record.id)),
            }
        }
        if ends && place.whole_upto.is_none() && place.upto > Revision(0) {
            return place;
        }
    }
}

/// All that lives, by id.
async fn living(store: &dyn Store) -> BTreeMap<String, Record> {
    let all = store.changes(Revision(0), 1).await.expect("it reads");
    all.records.into_iter().map(|record| (record.id.clone(), record)).collect()
}

pub(super) async fn all_that_lives_is_told_by_the_page_while_it_changes(store: Any) {
    let kind = Kind::Peer;
    let id = |at: usize| format!("p{at}");
    let all = (0..10).map(|at| made(&id(at), kind, draft(&id(at))));
    store.apply(change(all.collect())).await.expect("they are new");
    store.apply(change(vec![removed("p0", kind)])).await.expect("it is there");
    let mut had = BTreeMap::new();
    let first = store.tell(Place::default(), 4).await.expect("it tells");
    let ids: Vec<_> = first.records.iter().map(|record| record.id.as_str()).collect();
    assert_eq!((ids, first.reset), (vec!["p1", "p2", "p3", "p4"], false));
    let whole_upto = Some(Revision(11));
    assert_eq!(first.next, Place { upto: Revision(5), whole_upto });
    had.extend(first.records.into_iter().map(|record| (record.id.clone(), record)));
    // Of those that were told and of those that were not, one is changed and one is removed.
    let meanwhile = vec![
        replaced("p1", kind, draft("p1")),
        removed("p2", kind),
        replaced("p8", kind, draft("p8")),
        removed("p9", kind),
        made("p10", kind, draft("p10")),
    ];
    store.apply(change(meanwhile)).await.expect("they are there");
    let second = store.tell(first.next, 4).await.expect("it tells");
    let ids: Vec<_> = second.records.iter().map(|record| record.id.as_str()).collect();
    assert_eq!((ids, second.next), (vec!["p5", "p6", "p7"], Place::after(Revision(11))));
    let end = told(&*store, first.next, 4, &mut had).await;
    assert_eq!((&had, end), (&living(&*store).await, Place::after(Revision(16))));
    let foreign = store.tell(Place::after(Revision(99)), 2).await.expect("it tells");
    assert_eq!((foreign.reset, foreign.records.len()), (true, 2));
    assert_eq!(foreign.next.whole_upto, Some(Revision(16)));
    let rest = store.tell(foreign.next, 2).await.expect("it tells");
    assert!(!rest.reset && rest.records[0].revision > foreign.next.upto);
}

pub(super) async fn a_compaction_before_the_end_of_the_whole_takes_nothing_away(store: Any) {
    let kind = Kind::Peer;
    let all = (0..10).map(|at| made(&format!("p{at}"), kind, draft(&format!("p{at}"))));
    store.apply(change(all.collect())).await.expect("they are new");
    store.apply(change(vec![removed("p0", kind)])).await.expect("it is there");
    let (late, old) = (1000 + TOMBSTONE_S + 1, Revision(5));
    let first = store.tell(Place::default(), 4).await.expect("it tells");
    assert_eq!(first.next.upto, old);
    let records = first.records.into_iter().map(|record| (record.id.clone(), record));
    let (mut had, mut other) = (records.clone().collect(), records.collect());
    store.compact(late).await.expect("it compacts");
    assert!(store.tell(Place::after(old), 4).await.expect("it tells").reset, "for all others");
    let second = store.tell(first.next, 4).await.expect("it tells");
    assert!(!second.reset && second.records.len() == 4, "all of it lives");
    told(&*store, first.next, 4, &mut had).await;
    assert_eq!(had, living(&*store).await);
    // What goes after the whole began, and is compacted before its end, nobody can be told.
    store.apply(change(vec![removed("p1", kind)])).await.expect("it is there");
    store.compact(late).await.expect("it compacts");
    told(&*store, first.next, 4, &mut other).await;
    assert_eq!(other, living(&*store).await);
}

pub(super) async fn tokens_are_found_by_prefix_until_removed(store: Any) {
    let mark = TokenMark { prefix: "abc".into(), hash: vec![1, 2, 3] };
    let (kind, id, draft) = (Kind::Token, new_id(), draft("ci"));
    let made = Operation::Create { kind, id, draft, mark: Some(mark) };
    let made = store.apply(change(vec![made])).await.expect("it is new").records.remove(0);
    let found = store.token("abc".into()).await.expect("it reads");
    assert_eq!(found, Some((made.clone(), vec![1, 2, 3])));
    assert_eq!(store.token("abd".into()).await, Ok(None));
    assert_eq!(store.token_uses().await, Ok(vec![]));
    store.touch_tokens(vec![(made.id.clone(), 7), ("gone".into(), 8)]).await.expect("noted");
    assert_eq!(store.token_uses().await, Ok(vec![(made.id.clone(), 7)]));
    assert_eq!(*store.revisions().borrow(), made.revision, "a use is no change");
    remove(&*store, &made).await.expect("it is there");
    assert_eq!(store.token("abc".into()).await, Ok(None));
    assert_eq!(store.token_uses().await, Ok(vec![]));
}

pub(super) async fn every_change_is_in_the_audit_log(store: Any) {
    let made = make(&*store, Kind::Peer, draft("alice")).await.expect("it is new");
    remove(&*store, &made).await.expect("it is there");
    make(&*store, Kind::Link, Draft { needs: vec![(Kind::Peer, "x".into())], ..draft("l") })
        .await
        .expect_err("its peer is missing");
    let log = store.audit(None, 10).await.expect("it reads");
    let told: Vec<_> = log.iter().map(|entry| (entry.revision.0, entry.verb.as_str())).collect();
    assert_eq!(told, [(2, "remove"), (1, "create")]);
    assert_eq!((log[0].actor.as_str(), log[0].name.as_str()), ("test", "alice"));
    assert!(log[1].before.is_empty() && log[0].after.is_empty());
    assert!(log.iter().all(|entry| entry.id.as_ref() == Some(&made.id)));
    assert_eq!((log[1].after.len(), &log[1].after), (64, &log[0].before));
    let older = store.audit(Some(Revision(2)), 10).await.expect("it reads");
    assert_eq!(older, log[1..]);
    let asked = [2, 9, 1].map(Revision);
    assert_eq!(store.entries(asked.into()).await, Ok(log));
}

pub(super) async fn a_record_is_followed_in_the_audit_log_through_its_names(store: Any) {
    let made = make(&*store, Kind::Peer, draft("alice")).await.expect("it is new");
    let renamed = replaced(&made.id, Kind::Peer, draft("bob"));
    store.apply(change(vec![renamed])).await.expect("it is there");
    let log = store.audit(None, 10).await.expect("it reads");
    let told: Vec<_> = log.iter().map(|entry| (entry.id.as_deref(), &*entry.name)).collect();
    assert_eq!(told, [(Some(&*made.id), "bob"), (Some(&*made.id), "alice")]);
    let before = AuditEntry { id: None, ..log[0].clone() };
    assert_eq!(before.past(), log[0].past(), "its word is as without an id");
    assert_ne!(log[0].past(), log[1].past());
}

pub(super) async fn limits_are_kept(store: Any) {
    let large = Draft { body: json!("x".repeat(BODY_BYTES_MAX)), ..draft("large") };
    let fault = make(&*store, Kind::Peer, large).await.expect_err("it is too large");
    assert!(matches!(fault, StoreFault::Limit(_)), "{fault}");
    let many = vec![create(Kind::Peer, draft("a")); OPERATIONS_MAX + 1];
    let fault = store.apply(change(many)).await.expect_err("they are too many");
    assert!(matches!(fault, StoreFault::Limit(_)), "{fault}");
    assert_eq!(names(&*store, Kind::Peer).await, [""; 0]);
    let most = Kind::Certificate.records_max();
    let many = (0..=most).map(|at| create(Kind::Certificate, draft(&at.to_string())));
    let mut many: Vec<_> = many.collect();
    let fault = store.apply(change(many.clone())).await.expect_err("one is too many");
    assert!(matches!(fault, StoreFault::Limit(_)), "{fault}");
    many.pop();
    store.apply(change(many)).await.expect("that many may be");
    let fault = make(&*store, Kind::Certificate, draft("more")).await.expect_err("no more");
    assert!(matches!(fault, StoreFault::Limit(_)), "{fault}");
}
