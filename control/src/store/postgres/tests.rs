//! The suite over PostgreSQL, and what is particular to a server that others use and that may go.

mod agreement;
mod proxy;

use std::time::Instant;

use proxy::{Mode, Proxy};

use super::*;
use crate::store::suite::{change, create, draft, make, suite};
use crate::store::{AUDIT_ROWS_MAX, Draft, TOMBSTONE_S};
use crate::testing::postgres::Server as Postgres;
use crate::token::digest_hex;

/// Time for what takes moments on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn target(url: &str) -> Target {
    Target::parse(url, None).expect("a test's own URL")
}

async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(target(url)).await.expect("the server is there")
}

async fn fresh() -> Option<(Arc<dyn Store>, ())> {
    let server = Postgres::shared()?;
    Some((Arc::new(open(&server.database()).await), ()))
}

suite!(fresh);

/// The next news, whatever it is.
async fn news(hint: &mut watch::Receiver<Revision>) -> Revision {
    let changed = timeout(PATIENCE, hint.changed()).await;
    changed.expect("there is news").expect("the store lives");
    *hint.borrow_and_update()
}

async fn lead(store: &PostgresStore) {
    let mut state = store.state.clone();
    let leads = state.wait_for(|state| matches!(state, State::Up { leads: true, .. }));
    timeout(PATIENCE, leads).await.expect("it leads").expect("the store lives");
}

async fn down(store: &PostgresStore, what: &str) {
    let mut state = store.state.clone();
    let told =
        state.wait_for(|state| matches!(state, State::Down { why, .. } if why.contains(what)));
    timeout(PATIENCE, told).await.expect("it is told").expect("the store lives");
}

/// Every step that was ever on main, by the digest of its text. None of these lines may change;
/// a new step adds one.
const RELEASED: [&str; 2] = [
    "35f2519711203bc93666c6adee1f957b49589b7677466e9b5ccea3c962b36c47",
    "f41e50295363947199d6a12e69a9c0bb33c9685382da50cbd8e4d321be54ba95",
];

#[test]
fn steps_that_were_on_main_are_as_they_were() {
    let now: Vec<_> = schema::MIGRATIONS.iter().map(|step| digest_hex(step.as_bytes())).collect();
    assert_eq!(now, RELEASED);
}

async fn bring_forward(url: &str, steps: &[&str]) -> Result<(), OperatorFault> {
    let connector = target(url).trust.connector()?;
    schema::bring_forward(&Server { target: target(url), connector }, steps).await
}

#[tokio::test]
async fn every_schema_that_was_ever_on_main_comes_forward_with_its_records() {
    let Some(server) = Postgres::shared() else { return };
    for version in 1..=schema::MIGRATIONS.len() {
        let url = server.database();
        bring_forward(&url, &schema::MIGRATIONS[..version]).await.expect("it is new");
        let filled = "SET search_path TO perigee;
                      INSERT INTO record VALUES ('i', 'peer', 'alice', 1, 5, 5, '{\"a\":1}');
                      INSERT INTO audit (revision, at, actor, verb, kind, name, before, after)
                      VALUES (1, 5, 'uid:0', 'create', 'peer', 'alice', '', 'x');
                      UPDATE store SET revision = 1";
        server.sql(&url, filled);
        let store = open(&url).await;
        let record = store.find(Kind::Peer, "alice".into()).await.expect("it reads");
        assert_eq!(record.expect("it is there").body, Some(serde_json::json!({"a": 1})));
        make(&store, Kind::Peer, draft("bob")).await.expect("it writes");
        let log = store.audit(None, 9).await.expect("it reads");
        assert_eq!((log.len(), log[0].id.is_some()), (2, true));
        // By this word dataplanes know it, from before entries had ids.
        assert_eq!((log[1].id.as_deref(), &*log[1].past()), (None, "c8f4b9a733106c17"));
    }
}

#[tokio::test]
async fn a_step_is_whole_or_not_at_all_and_a_newer_schema_is_refused() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let broken = [schema::MIGRATIONS, &["CREATE TABLE half (a bigint); NONSENSE"]].concat();
    bring_forward(&url, &broken).await.expect_err("the step is no SQL");
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname = 'perigee'";
    assert_eq!(server.sql(&url, left), "0");
    let next = [schema::MIGRATIONS, &["CREATE TABLE later (a bigint)"]].concat();
    bring_forward(&url, &next).await.expect("one step more");
    let fault = PostgresStore::open(target(&url)).await.expect_err("it is newer");
    assert_eq!(fault.code(), ExitCode::Config);
    assert!(fault.to_string().contains("start a newer control"), "{fault}");
}

#[tokio::test]
async fn a_schema_that_a_newer_control_has_made_is_left_alone() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let store = open(&url).await;
    server.sql(&url, "UPDATE perigee.store SET version = version + 1");
    let fault = make(&store, Kind::Peer, draft("alice")).await.expect_err("it is newer");
    assert!(matches!(fault, StoreFault::Away(_)), "{fault}");
    down(&store, "start a newer control").await;
}

#[tokio::test]
async fn what_is_no_place_for_a_store_is_told_in_one_line() {
    let Some(server) = Postgres::shared() else { return };
    let refused = async |url: &str| PostgresStore::open(target(url)).await.expect_err("refused");
    let theirs = server.database();
    server.sql(&theirs, "CREATE SCHEMA perigee CREATE TABLE theirs (a bigint)");
    let fault = refused(&theirs).await;
    assert_eq!(fault.code(), ExitCode::Config);
    assert!(fault.to_string().contains("another program's"), "{fault}");
    server.sql("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0");
    let fault = refused(&server.url("latin")).await.to_string();
    assert!(fault.contains("UTF8"), "{fault}");
    let fault = refused(&server.url("nowhere")).await;
    assert_eq!(fault.code(), ExitCode::Config);
    assert!(fault.to_string().contains("\"nowhere\" does not exist"), "{fault}");
    let fault = refused("postgres://u@/d?host=/nonexistent").await;
    assert_eq!(fault.code(), ExitCode::Unavailable);
    // Who may not make the schema is told so, and takes one that is made for it.
    let made = server.database();
    server.sql(&made, "CREATE ROLE weak LOGIN");
    let weak = made.replace("perigee@", "weak@");
    let fault = refused(&weak).await;
    assert_eq!(fault.code(), ExitCode::Privilege);
    server.sql(&made, "CREATE SCHEMA perigee AUTHORIZATION weak");
    make(&open(&weak).await, Kind::Peer, draft("alice")).await.expect("it is its own");
}

#[tokio::test]
async fn controls_that_start_at_once_on_an_empty_database_all_come_up() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let starts: Vec<_> = (0..6)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { open(&url).await })
        })
        .collect();
    let mut stores = Vec::new();
    for start in starts {
        stores.push(start.await.expect("no start panics"));
    }
    assert!(stores.iter().all(|store| store.secret() == stores[0].secret()));
    assert_eq!(stores.iter().filter(|store| store.leads()).count(), 1);
}

#[tokio::test]
async fn changes_of_one_control_wake_the_others() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let (one, other) = (open(&url).await, open(&url).await);
    let mut hint = other.revisions();
    hint.mark_unchanged();
    let made = make(&one, Kind::Peer, draft("alice")).await.expect("it is new");
    assert_eq!(news(&mut hint).await, made.revision);
    let seen = other.changes(Revision(0), 10).await.expect("it reads");
    assert_eq!((seen.records, seen.upto), (vec![made], Revision(1)));
    // What anybody says there is no truth.
    server.sql(&url, "NOTIFY perigee_control, '99'");
    let made = make(&one, Kind::Peer, draft("bob")).await.expect("it is new");
    assert_eq!(news(&mut hint).await, made.revision);
    // A change of whoever speaks SQL tells nobody, and is seen at the next heartbeat.
    server.sql(&url, "UPDATE perigee.store SET revision = 7");
    assert_eq!(news(&mut hint).await, Revision(7));
}

#[tokio::test]
async fn concurrent_creates_over_several_controls_have_one_winner() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let stores = [open(&url).await, open(&url).await, open(&url).await].map(Arc::new);
    let tries: Vec<_> = (0..30)
        .map(|at| {
            let store = Arc::clone(&stores[at % 3]);
            tokio::spawn(async move { make(&*store, Kind::Satellite, draft("sydney")).await })
        })
        .collect();
    let mut won = 0;
    for one in tries {
        match one.await.expect("no try panics") {
            Ok(_) => won += 1,
            Err(fault) => assert!(matches!(fault, StoreFault::Taken { .. }), "{fault}"),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn the_lead_goes_on_when_the_leader_ends() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let first = open(&url).await;
    let second = open(&url).await;
    assert!(first.leads() && !second.leads());
    drop(first);
    lead(&second).await;
}

#[tokio::test]
async fn ended_sessions_are_replaced_and_watchers_are_woken() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let store = open(&url).await;
    let made = make(&store, Kind::Peer, draft("alice")).await.expect("it is new");
    let mut hint = store.revisions();
    hint.mark_unchanged();
    assert_eq!(server.cut(&url), 3);
    assert_eq!(news(&mut hint).await, made.revision, "it is back and says so");
    make(&store, Kind::Peer, draft("bob")).await.expect("it goes on");
    lead(&store).await;
}

#[tokio::test]
async fn without_its_server_a_store_says_so_at_once_and_comes_back() {
    let Some(mut server) = Postgres::start() else { return };
    let url = server.database();
    let (store, secret) = (open(&url).await, open(&url).await.secret());
    make(&store, Kind::Peer, draft("alice")).await.expect("it is new");
    let mut hint = store.revisions();
    server.stop();
    let began = Instant::now();
    for _ in 0..3 {
        let fault = store.find(Kind::Peer, "alice".into()).await.expect_err("it is gone");
        assert!(matches!(fault, StoreFault::Away(_)), "{fault}");
        let fault = make(&store, Kind::Peer, draft("bob")).await.expect_err("it is gone");
        assert!(matches!(fault, StoreFault::Away(_)), "{fault}");
    }
    assert!(began.elapsed() < connections::ANSWER, "{:?}", began.elapsed());
    assert!(!store.leads());
    hint.mark_unchanged();
    server.run(&[]);
    assert_eq!(news(&mut hint).await, Revision(1));
    assert_eq!(store.secret(), secret);
    let made = make(&store, Kind::Peer, draft("bob")).await.expect("it is back");
    assert_eq!(made.revision, Revision(2), "what failed took no revision");
}

#[tokio::test]
async fn another_database_in_the_same_place_is_not_taken_for_the_old() {
    let Some(server) = Postgres::shared() else { return };
    let (url, other) = (server.database(), server.database());
    let store = open(&url).await;
    drop(open(&other).await);
    let [old, new] = [&url, &other].map(|url| server.sql(url, "SELECT current_database()"));
    server.sql("postgres", &format!("ALTER DATABASE {old} ALLOW_CONNECTIONS false"));
    server.cut(&other);
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{old}'"
    );
    server.sql("postgres", &sql);
    server.sql("postgres", &format!("ALTER DATABASE {old} RENAME TO {old}_away"));
    server.sql("postgres", &format!("ALTER DATABASE {new} RENAME TO {old}"));
    down(&store, "another database").await;
}

#[tokio::test]
async fn a_database_that_was_put_back_is_not_taken_for_a_later_state() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let first = open(&url).await;
    make(&first, Kind::Peer, draft("alice")).await.expect("it is new");
    drop(first);
    let store = open(&url).await;
    let mut hint = store.revisions();
    server.cut(&url);
    news(&mut hint).await;
    store.find(Kind::Peer, "alice".into()).await.expect("a cut alone is no other state");
    // The same number of changes, by another way.
    server.sql(&url, "UPDATE perigee.audit SET at = at + 1");
    server.cut(&url);
    down(&store, "put back to an earlier state").await;
}

#[tokio::test]
async fn a_silent_server_is_lost_within_the_time_of_an_answer() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let proxy = Proxy::new(server.socket());
    let store = open(&proxy.url(&url)).await;
    let mut hint = store.revisions();
    proxy.set(Mode::Silent);
    let began = Instant::now();
    let fault = store.find(Kind::Peer, "alice".into()).await.expect_err("nobody answers");
    assert_eq!(fault, StoreFault::Away("no answer in 5 s".into()));
    assert!(began.elapsed() < 2 * connections::ANSWER, "{:?}", began.elapsed());
    hint.mark_unchanged();
    proxy.set(Mode::Pass);
    news(&mut hint).await;
    make(&store, Kind::Peer, draft("alice")).await.expect("it is back");
}

/// More reads than the server answers in the time of one answer, half of them given up by who asked.
#[tokio::test]
async fn a_slow_server_with_many_readers_is_not_called_silent() {
    const READERS: usize = 48;
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let store = Arc::new(open(&url).await);
    let slow = "SET search_path TO perigee;
                ALTER TABLE record RENAME TO stored;
                CREATE VIEW record AS
                    SELECT stored.* FROM (SELECT pg_sleep(0.2)) AS slow LEFT JOIN stored ON true";
    server.sql(&url, slow);
    let look = || {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.find(Kind::Peer, "alice".into()).await })
    };
    let before = store.connections().await.expect("the server is there");
    let (gone, waiting): (Vec<_>, Vec<_>) = (0..READERS / 2).map(|_| (look(), look())).unzip();
    // On the one thread of this test, those who have their turns ask meanwhile.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    gone.iter().for_each(JoinHandle::abort);
    for one in waiting {
        assert_eq!(one.await.expect("no read panics"), Ok(None));
    }
    let after = store.connections().await.expect("the server is there");
    assert!(Arc::ptr_eq(&before, &after), "it was never lost");
}

#[tokio::test]
async fn a_commit_without_an_answer_is_called_unknown() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let proxy = Proxy::new(server.socket());
    let store = open(&proxy.url(&url)).await;
    let mut hint = store.revisions();
    for (mode, name, happened) in
        [(Mode::CutAfterCommit, "alice", true), (Mode::CutBeforeCommit, "bob", false)]
    {
        hint.mark_unchanged();
        proxy.set(mode);
        let fault = make(&store, Kind::Peer, draft(name)).await;
        assert_eq!(fault, Err(StoreFault::Unknown), "{mode:?}");
        proxy.set(Mode::Pass);
        news(&mut hint).await;
        let found = store.find(Kind::Peer, name.into()).await.expect("it is back");
        assert_eq!(found.is_some(), happened, "{mode:?}");
    }
    // The key of a repeated create tells what became of it.
    let once = Some(crate::store::Once { key: "k".into(), digest: "d".into() });
    let carol =
        || Change { once: once.clone(), ..change(vec![create(Kind::Peer, draft("carol"))]) };
    proxy.set(Mode::CutAfterCommit);
    assert_eq!(store.apply(carol()).await, Err(StoreFault::Unknown));
    proxy.set(Mode::Pass);
    news(&mut hint).await;
    assert!(store.apply(carol()).await.expect("it is back").replayed);
}

#[tokio::test]
async fn what_a_standby_must_have_is_not_called_done_without_it() {
    let Some(mut server) = Postgres::start() else { return };
    let url = server.database();
    server.sql(&url, "ALTER ROLE perigee SET synchronous_commit TO local");
    server.stop();
    server.run(&["synchronous_standby_names=nobody"]);
    let store = open(&url).await;
    make(&store, Kind::Peer, draft("alice")).await.expect("nobody must have it");
    let mut hint = store.revisions();
    hint.mark_unchanged();
    server.sql(&url, "ALTER ROLE perigee RESET synchronous_commit");
    server.cut(&url);
    news(&mut hint).await;
    let made = make(&store, Kind::Peer, draft("bob")).await;
    assert_eq!(made, Err(StoreFault::Unknown));
}

#[tokio::test]
async fn a_control_cut_off_in_a_change_holds_up_the_others_for_moments_only() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let proxy = Proxy::new(server.socket());
    let (cut, other) = (open(&proxy.url(&url)).await, open(&url).await);
    proxy.set(Mode::SilentAtCommit);
    let lost = tokio::spawn(async move {
        let made = make(&cut, Kind::Peer, draft("alice")).await;
        (made, cut)
    });
    let mut modes = proxy.modes();
    modes.wait_for(|mode| *mode == Mode::Silent).await.expect("the proxy lives");
    let began = Instant::now();
    loop {
        match make(&other, Kind::Peer, draft("bob")).await {
            Ok(made) => break assert_eq!(made.revision, Revision(1)),
            Err(fault) => assert_eq!(fault, StoreFault::Busy),
        }
        assert!(began.elapsed() < PATIENCE);
    }
    let (made, cut) = lost.await.expect("no panic");
    assert_eq!(made, Err(StoreFault::Unknown));
    down(&cut, "").await;
    assert!(!cut.leads());
    assert_eq!(other.find(Kind::Peer, "alice".into()).await, Ok(None));
    // The server waits for a sign of the leader's life before it lets another lead.
    if std::env::var("PERIGEE_SLOW").is_ok_and(|value| value == "1") {
        lead(&other).await;
    }
}

/// A server that takes encrypted connections on a port, with a password, and its authority.
fn with_tls() -> Option<(Postgres, u16, String)> {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let key = || KeyPair::generate().expect("the system has random bytes");
    let mut params = CertificateParams::new(Vec::new()).expect("no names are fine");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, key()).expect("it signs itself");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    let own = key();
    let certificate = params.signed_by(&own, &issuer).expect("the authority signs");
    let mut server = Postgres::prepare()?;
    let rules = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
    let files = [
        ("hba_file", "hba.conf", rules),
        ("ssl_cert_file", "own.pem", &certificate.pem()),
        ("ssl_key_file", "own.key", &own.serialize_pem()),
    ];
    let options =
        files.map(|(key, name, text)| format!("{key}={}", server.file(name, text).display()));
    let mut options: Vec<_> = options.iter().map(String::as_str).collect();
    options.push("ssl=on");
    let port = server.run_on_a_port(&options);
    server.sql("postgres", "ALTER USER perigee PASSWORD 'hush'");
    server.sql("postgres", "CREATE DATABASE d");
    Some((server, port, issuer.pem()))
}

#[tokio::test]
async fn a_server_on_the_network_is_met_with_tls_and_a_password() {
    let Some((server, port, authority)) = with_tls() else { return };
    let authority = server.file("authority.pem", &authority);
    let authority = authority.display();
    let url = |host: &str, more: &str| format!("postgres://perigee:hush@{host}:{port}/d?{more}");
    for more in ["", "sslmode=require", &format!("sslmode=verify-full&sslrootcert={authority}")] {
        let store = open(&url("127.0.0.1", more)).await;
        let sql = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                   WHERE application_name = 'perigee-control'";
        assert_eq!(server.sql("d", sql), "t", "{more}");
        drop(store);
    }
    for (host, more, what, code) in [
        ("127.0.0.1", "sslmode=verify-full", "certificate", ExitCode::Unavailable),
        (
            "localhost",
            &format!("sslmode=verify-full&sslrootcert={authority}"),
            "certificate",
            ExitCode::Unavailable,
        ),
        ("127.0.0.1", "sslmode=disable", "no encryption", ExitCode::Config),
    ] {
        let fault = PostgresStore::open(target(&url(host, more))).await.expect_err("refused");
        assert_eq!(fault.code(), code, "{fault}");
        assert!(fault.to_string().contains(what), "{more}: {fault}");
    }
    let wrong = url("127.0.0.1", "").replace("hush", "husky");
    let fault = PostgresStore::open(target(&wrong)).await.expect_err("it is another");
    assert_eq!(fault.code(), ExitCode::Config);
    let text = fault.to_string();
    assert!(text.contains("password") && !text.contains("husky"), "{text}");
    let bare = url("127.0.0.1", "").replace(":hush", "");
    let file = Some(server.file("password", "hush\n"));
    let target = Target::parse(&bare, file).expect("it is a URL");
    PostgresStore::open(target).await.expect("the file has it");
}

#[tokio::test]
async fn words_that_no_database_holds_are_not_found() {
    let Some((store, ())) = fresh().await else { return };
    make(&*store, Kind::Peer, draft("alice")).await.expect("it is new");
    assert_eq!(store.find(Kind::Peer, "a\0".into()).await, Ok(None));
    assert_eq!(store.read(Kind::Peer, "\0".into()).await, Ok(None));
    assert_eq!(store.token("\0".into()).await, Ok(None));
    let query = |after: &str| Query { kind: Kind::Peer, after: Some(after.into()), limit: 9 };
    assert_eq!(store.list(query("a\0b")).await.expect("it lists").records.len(), 1);
    assert_eq!(store.list(query("alice\0")).await.expect("it lists").records.len(), 0);
}

/// More tombstones, keys and entries than are removed at a time, by a server that takes longer for
/// all of them together than for any statement.
#[tokio::test]
async fn a_compaction_that_takes_long_comes_to_its_end_and_keeps_nobody_waiting() {
    const OLD: i64 = 45;
    let Some(server) = Postgres::shared() else { return };
    let url = server.database();
    let store = Arc::new(open(&url).await);
    let filled = format!(
        "SET search_path TO perigee;
         INSERT INTO record SELECT 't' || n, 'peer', 't' || n, n, 5, 5, NULL
             FROM generate_series(1, {OLD}) AS n;
         INSERT INTO once SELECT 'k' || n, 'd', 5, ARRAY[]::text[]
             FROM generate_series(1, {OLD}) AS n;
         INSERT INTO audit SELECT n, 5, 'a', 'remove', 'peer', 't', '', ''
             FROM generate_series(1, {AUDIT_ROWS_MAX} + {OLD}) AS n;
         UPDATE store SET revision = {AUDIT_ROWS_MAX} + {OLD};
         CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_sleep(0.1); RETURN OLD; END';
         CREATE TRIGGER dawdle BEFORE DELETE ON record
             FOR EACH ROW EXECUTE FUNCTION dawdle();"
    );
    server.sql(&url, &filled);
    let compaction = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            let connections = store.connections().await.expect("the server is there");
            compact::compact(&connections, 6 + TOMBSTONE_S, 10).await
        }
    });
    let mut made = 0;
    while !compaction.is_finished() {
        let name = format!("n{made}");
        make(&*store, Kind::Peer, draft(&name)).await.expect("changes have turns in between");
        made += 1;
    }
    compaction.await.expect("no panic").expect("each statement is short");
    assert!(made > 1, "{made}");
    let left = "SELECT (SELECT count(*) FROM perigee.record WHERE body IS NULL),
                       (SELECT count(*) FROM perigee.once), compacted FROM perigee.store";
    assert_eq!(server.sql(&url, left), format!("0|0|{OLD}"));
    let entries: i64 =
        server.sql(&url, "SELECT count(*) FROM perigee.audit").parse().expect("a number");
    assert!((AUDIT_ROWS_MAX..=AUDIT_ROWS_MAX + made).contains(&entries), "{entries}");
}

/// A change of ten thousand operations, over each round trip that it takes.
#[tokio::test]
async fn a_large_change_takes_few_round_trips() {
    let Some(server) = Postgres::shared() else { return };
    let proxy = Proxy::new(server.socket());
    let store = open(&proxy.url(&server.database())).await;
    let regions = (0..100).map(|at| create(Kind::Region, draft(&format!("r{at}"))));
    let nodes = (0..10_000).map(|at| {
        let needs = vec![(Kind::Region, format!("r{}", at % 100))];
        create(Kind::Node, Draft { needs, ..draft(&format!("n{at}")) })
    });
    let (before, began) = (proxy.trips(), Instant::now());
    store.apply(change(regions.chain(nodes).collect())).await.expect("they are new");
    let (made, time) = (proxy.trips() - before, began.elapsed());
    println!("10,100 records are made in {made} round trips and {time:?}");
    assert!(made < 150, "{made}");
    let before = proxy.trips();
    make(&store, Kind::Peer, draft("alice")).await.expect("it is new");
    let one = proxy.trips() - before;
    assert!(one < 12, "{one}");
}

/// What a large fleet takes; the bounds here only notice a missing index or a trip for each row.
#[tokio::test]
async fn ten_thousand_records_are_made_and_listed_in_time() {
    let Some((store, ())) = fresh().await else { return };
    let began = Instant::now();
    let many = (0..10_000).map(|at| create(Kind::Satellite, draft(&format!("s{at}"))));
    store.apply(change(many.collect())).await.expect("they are new");
    let made = began.elapsed();
    let query = Query { kind: Kind::Satellite, after: None, limit: 10_000 };
    let page = store.list(query).await.expect("it lists");
    assert_eq!((page.records.len(), page.more), (10_000, false));
    let listed = began.elapsed() - made;
    println!("10,000 records: made in {made:?}, listed in {listed:?}");
    assert!(listed < Duration::from_secs(2), "{listed:?}");
}
