//! The suite over SQLite, and what is particular to a file: locks, modes, schemas, damage, room.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::*;
use crate::store::suite::{change, create, draft, make, suite};
use crate::store::{AUDIT_ROWS_MAX, TOMBSTONE_S};
use crate::testing::Scratch;
use crate::token::digest_hex;

async fn fresh() -> Option<(Arc<dyn Store>, Scratch)> {
    let folder = Scratch::new();
    let store = SqliteStore::open(folder.as_ref()).expect("an empty folder takes a store");
    Some((Arc::new(store), folder))
}

suite!(fresh);

/// Every step that was ever on main, by the digest of its text. None of these lines may change;
/// a new step adds one.
const RELEASED: [&str; 2] = [
    "9cd85f2cce9a4d4239150fa5cef97a1a7e133904e6e86575d62f93aa20706ef5",
    "46c1385594dea34bcab9676c9f9df234a9b7cc666bce8d4741b40ccf9352e9e7",
];

#[test]
fn steps_that_were_on_main_are_as_they_were() {
    let now: Vec<_> = schema::MIGRATIONS.iter().map(|step| digest_hex(step.as_bytes())).collect();
    assert_eq!(now, RELEASED);
}

#[tokio::test]
async fn every_schema_that_was_ever_on_main_comes_forward_with_its_records() {
    // A store of each older version is one that only knew the steps up to it.
    for version in 1..=schema::MIGRATIONS.len() {
        let folder = Scratch::new();
        let path = folder.path(FILE);
        make_file(&path).expect("the folder takes files");
        let (connection, secret, _) =
            schema::open(&path, &schema::MIGRATIONS[..version]).expect("it is new");
        let filled = "INSERT INTO record VALUES ('i', 'peer', 'alice', 1, 5, 5, '{\"a\":1}');
                      INSERT INTO audit (revision, at, actor, verb, kind, name, before, after)
                      VALUES (1, 5, 'uid:0', 'create', 'peer', 'alice', '', 'x');
                      UPDATE counter SET revision = 1;";
        connection.execute_batch(filled).expect("the first schema has these tables");
        drop(connection);
        let store = SqliteStore::open(folder.as_ref()).expect("it comes forward");
        assert_eq!(store.secret(), secret);
        let record = store.find(Kind::Peer, "alice".into()).await.expect("it reads");
        assert_eq!(record.expect("it is there").body, Some(serde_json::json!({"a": 1})));
        make(&store, Kind::Peer, draft("bob")).await.expect("it writes");
        let log = store.audit(None, 9).await.expect("it reads");
        assert_eq!((log.len(), log[0].id.is_some()), (2, true));
        // By this word dataplanes know it, from before entries had ids.
        assert_eq!((log[1].id.as_deref(), &*log[1].past()), (None, "c8f4b9a733106c17"));
    }
}

#[test]
fn an_older_file_is_copied_before_its_schema_changes() {
    let folder = Scratch::new();
    let path = folder.path(FILE);
    make_file(&path).expect("the folder takes files");
    drop(schema::open(&path, schema::MIGRATIONS).expect("it is new"));
    let next = [schema::MIGRATIONS, &["CREATE TABLE later (a INTEGER) STRICT;"]].concat();
    let (connection, ..) = schema::open(&path, &next).expect("one step more");
    connection.execute("INSERT INTO later VALUES (1)", []).expect("the table is there");
    drop(connection);
    let copy = path.with_extension(format!("db.version-{}", schema::MIGRATIONS.len()));
    drop(schema::open(&copy, schema::MIGRATIONS).expect("the copy is as the file was"));
    let fault = schema::open(&path, schema::MIGRATIONS).expect_err("it is newer now").to_string();
    assert!(fault.contains("start a newer control"), "{fault}");
    let broken = [next.as_slice(), &["CREATE TABLE half (a INTEGER) STRICT; NONSENSE;"]].concat();
    schema::open(&path, &broken).expect_err("the step is no SQL");
    drop(schema::open(&path, &next).expect("nothing of the failed step has stayed"));
}

#[tokio::test]
async fn records_outlive_the_process_and_its_secret_too() {
    let folder = Scratch::new();
    let store = SqliteStore::open(folder.as_ref()).expect("it opens");
    let (secret, made) = (store.secret(), make(&store, Kind::Peer, draft("alice")).await);
    drop(store);
    let store = SqliteStore::open(folder.as_ref()).expect("it opens again");
    assert_eq!(store.secret(), secret);
    assert_eq!(store.find(Kind::Peer, "alice".into()).await, made.map(Some));
    assert_eq!(store.revisions().borrow().0, 1);
}

#[test]
fn the_file_is_for_its_owner_alone() {
    let folder = Scratch::new();
    let inner = folder.path("state");
    let _store = SqliteStore::open(&inner).expect("it makes the folder");
    let mode = |path: &Path| {
        let found = std::fs::metadata(path).expect("it is there");
        found.permissions().mode() & 0o777
    };
    assert_eq!(mode(&inner), 0o700);
    for name in [FILE, LOCK, "control.db-wal", "control.db-shm"] {
        assert_eq!(mode(&inner.join(name)), 0o600, "{name}");
    }
}

#[test]
fn a_second_control_on_the_same_file_ends_with_one_line() {
    let folder = Scratch::new();
    let first = SqliteStore::open(folder.as_ref()).expect("it opens");
    let fault = SqliteStore::open(folder.as_ref()).expect_err("it is taken");
    assert_eq!(fault.code(), ExitCode::TryAgain);
    assert!(fault.to_string().contains("another control has this database"), "{fault}");
    drop(first);
    SqliteStore::open(folder.as_ref()).expect("it is free again");
}

#[test]
fn damage_is_told_in_one_line_and_nothing_is_touched() {
    let folder = Scratch::new();
    drop(SqliteStore::open(folder.as_ref()).expect("it opens"));
    let path = folder.path(FILE);
    let mut damaged = std::fs::read(&path).expect("it is there");
    let middle = 4096..damaged.len().min(3 * 4096);
    damaged[middle].fill(0xa5);
    let foreign =
        b"no database at all, but long enough to be looked at as one, and some".repeat(99);
    for (bytes, words) in [(damaged, "is corrupt"), (foreign, "is corrupt"), (vec![], "is empty")] {
        std::fs::write(&path, &bytes).expect("it is writable");
        let fault = SqliteStore::open(folder.as_ref()).expect_err("it is damaged");
        assert_eq!(fault.code(), ExitCode::Config);
        let text = fault.to_string();
        assert!(text.contains(words) && text.contains("control backup"), "{text}");
        assert_eq!(std::fs::read(&path).expect("it is there"), bytes);
    }
    std::fs::remove_file(&path).expect("it is ours");
    let other = Connection::open(&path).expect("SQLite makes it");
    other.execute_batch("CREATE TABLE theirs (a)").expect("it is writable");
    drop(other);
    let fault = SqliteStore::open(folder.as_ref()).expect_err("it is another's").to_string();
    assert!(fault.contains("another program's database"), "{fault}");
}

#[tokio::test]
async fn a_full_disk_is_one_clear_fault_and_the_old_state_stays() {
    let folder = Scratch::new();
    let store = SqliteStore::open(folder.as_ref()).expect("it opens");
    let kept = make(&store, Kind::Peer, draft("kept")).await.expect("there is room");
    store.allow_pages(2).await;
    let large = crate::store::Draft { body: "x".repeat(20_000).into(), ..draft("large") };
    let fault = make(&store, Kind::Peer, large.clone()).await.expect_err("there is no room");
    assert_eq!(fault, StoreFault::Full);
    assert_eq!(store.find(Kind::Peer, "kept".into()).await, Ok(Some(kept)));
    assert_eq!(store.find(Kind::Peer, "large".into()).await, Ok(None));
    store.allow_pages(1000).await;
    let made = make(&store, Kind::Peer, large).await.expect("there is room again");
    assert_eq!(made.revision, Revision(2), "the failed change took no revision");
}

#[tokio::test]
async fn a_compaction_goes_by_steps_until_nothing_old_is_left() {
    const OLD: i64 = 45;
    let folder = Scratch::new();
    let store = SqliteStore::open(folder.as_ref()).expect("it opens");
    let filled = format!(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {OLD})
         INSERT INTO record SELECT 't' || n, 'peer', 't' || n, n, 5, 5, NULL FROM n;
         INSERT INTO once SELECT 'k' || revision, 'd', 5, '' FROM record;
         WITH RECURSIVE n (n) AS
             (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {AUDIT_ROWS_MAX} + {OLD})
         INSERT INTO audit (revision, at, actor, verb, kind, name, before, after)
             SELECT n, 5, 'a', 'remove', 'peer', 't', '', '' FROM n;
         UPDATE counter SET revision = {AUDIT_ROWS_MAX} + {OLD};"
    );
    let fill = move |connection: &mut Connection| connection.execute_batch(&filled).map_err(fault);
    store.writer.ask(fill).await.expect("these are its tables");
    let now = 6 + TOMBSTONE_S;
    let step = move |connection: &mut Connection| apply::compact(connection, now, 10);
    for gone in [10, 20, 30, 40] {
        assert_eq!(store.writer.ask(step).await, Ok(true));
        let reset = async |from| {
            let told = store.tell(Place::after(Revision(from)), 1).await;
            told.expect("it tells").reset
        };
        assert!(reset(gone - 1).await && !reset(gone).await, "the first went first");
    }
    assert_eq!(store.writer.ask(step).await, Ok(false));
    let left = |connection: &mut Connection| {
        let sql = "SELECT (SELECT count(*) FROM record) + (SELECT count(*) FROM once), count(*)
                   FROM audit";
        connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).map_err(fault)
    };
    assert_eq!(store.reader.ask(left).await, Ok((0, AUDIT_ROWS_MAX)));
}

#[tokio::test]
async fn a_crowd_that_reads_keeps_nobody_out() {
    let folder = Scratch::new();
    let store = Arc::new(SqliteStore::open(folder.as_ref()).expect("it opens"));
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let held = store.reader.ask(move |_| Ok(wait.recv()));
    let look = || {
        let store = Arc::clone(&store);
        async move { store.look().await }
    };
    let crowd: tokio::task::JoinSet<_> = (0..2 * JOBS_MAX).map(|_| look()).collect();
    // The operator comes last.
    let operator = tokio::spawn(look());
    tokio::task::yield_now().await;
    go_on.send(()).expect("the thread waits");
    held.await.expect("it answers").expect("it was told to go on");
    assert_eq!(operator.await.expect("no read panics"), Ok(Revision(0)));
    assert!(crowd.join_all().await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_backup_opens_as_a_store_of_its_own() {
    let folder = Scratch::new();
    let store = SqliteStore::open(folder.as_ref()).expect("it opens");
    make(&store, Kind::Peer, draft("alice")).await.expect("it is new");
    let other = folder.path("other");
    make_folder(&other).expect("the folder takes folders");
    backup(folder.as_ref(), &other.join(FILE)).expect("a running store can be copied");
    let mode = std::fs::metadata(other.join(FILE)).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let copy = SqliteStore::open(&other).expect("it is a store");
    assert!(copy.find(Kind::Peer, "alice".into()).await.expect("it reads").is_some());
    let fault = backup(folder.as_ref(), &other.join(FILE)).expect_err("it is there already");
    assert!(fault.to_string().contains("choose a new file"), "{fault}");
    let fault = backup(&folder.path("nowhere"), &other.join("x")).expect_err("there is none");
    assert!(fault.to_string().contains("--state-dir"), "{fault}");
}

/// Ten thousand satellites and as many nodes are listed well within the 50 ms that operators were
/// promised on a machine of its own; the bound here only notices a missing index.
#[tokio::test]
async fn ten_thousand_records_are_listed_in_moments() {
    let folder = Scratch::new();
    let store = SqliteStore::open(folder.as_ref()).expect("it opens");
    let many = (0..10_000).map(|at| create(Kind::Satellite, draft(&format!("s{at}"))));
    store.apply(change(many.collect())).await.expect("they are new");
    let began = std::time::Instant::now();
    let query = Query { kind: Kind::Satellite, after: None, limit: 10_000 };
    let page = store.list(query).await.expect("it lists");
    assert_eq!((page.records.len(), page.more), (10_000, false));
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(2), "{took:?}");
}
