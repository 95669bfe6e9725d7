//! Whatever happens to the store, deltas lead to what a snapshot says.

use std::sync::Arc;

use proptest::prelude::*;
use steer::{Order, Snapshot};

use super::*;
use crate::resource::{Admission, KeyPem, Resource, SessionLimits};
use crate::steering::book::{Book, Told};
use crate::store::sqlite::SqliteStore;
use crate::store::{Change, Operation, Store, TOMBSTONE_S};
use crate::testing::Scratch;
use crate::token::new_id;

const NODE: &str = "fra-1";
/// The prober's key.
const OURS: NodeKey = NodeKey(wire::key::Key([200; 32]));

/// What is done to the record of some name.
#[derive(Clone, Debug)]
enum Deed {
    Client(u8, u8),
    Peer(u8, u8),
    Link(u8, u8),
    Certificate(u8, u8),
    Policy(u8),
    Drain(bool),
    OtherNode(u8),
    Remove(Kind, u8, u8),
}

/// What happens between two looks of a dataplane.
#[derive(Clone, Debug)]
enum Event {
    /// Some changes.
    Change(Vec<Deed>),
    /// Tombstones are forgotten.
    Compact,
    /// The slow dataplane looks, too.
    Look,
}

fn deed() -> impl Strategy<Value = Deed> {
    let (name, key) = (0..5u8, 0..6u8);
    let kinds = [Kind::Client, Kind::Peer, Kind::Link, Kind::Certificate, Kind::Policy];
    prop_oneof![
        (name.clone(), key.clone()).prop_map(|(name, key)| Deed::Client(name, key)),
        (name.clone(), key.clone()).prop_map(|(name, key)| Deed::Peer(name, key)),
        (name.clone(), name.clone()).prop_map(|(one, other)| Deed::Link(one, other)),
        (name.clone(), key.clone()).prop_map(|(name, key)| Deed::Certificate(name, key)),
        key.prop_map(Deed::Policy),
        any::<bool>().prop_map(Deed::Drain),
        name.clone().prop_map(Deed::OtherNode),
        (proptest::sample::select(kinds.to_vec()), name.clone(), name)
            .prop_map(|(kind, name, other)| Deed::Remove(kind, name, other)),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => proptest::collection::vec(deed(), 1..4).prop_map(Event::Change),
        1 => Just(Event::Compact),
        2 => Just(Event::Look),
    ]
}

fn letter(number: u8) -> String {
    char::from(b'a' + number).to_string()
}

fn key_text(number: u8) -> String {
    format!("nodekey:{}", format!("{:02x}", number + 1).repeat(32))
}

/// The operation of `deed` on the store as it is.
async fn operation(store: &dyn Store, deed: &Deed) -> Option<Operation> {
    let peers = |one: u8, other: u8| [letter(one.min(other)), letter(one.max(other))];
    let (kind, draft) = match deed {
        Deed::Client(name, key) => {
            (Kind::Client, Client { name: letter(*name), node_key: key_text(*key) }.draft())
        }
        Deed::Peer(name, key) => {
            let key = PeerKey(wire_key(*key)).to_string();
            (Kind::Peer, Peer { name: letter(*name), public_key: key }.draft())
        }
        Deed::Link(one, other) if one != other => {
            (Kind::Link, Link { peers: peers(*one, *other) }.draft())
        }
        Deed::Link(..) => return None,
        Deed::Certificate(name, text) => {
            let key = KeyPem::new(format!("key {text}\n"));
            let chain = format!("chain {text}\n");
            let new = Certificate { name: letter(*name), chain, key, ..Certificate::default() };
            (Kind::Certificate, new.draft())
        }
        Deed::Policy(number) => {
            let sessions = SessionLimits {
                keepalive_ms: (number % 2 == 0).then_some(1000 + u64::from(*number)),
                ..SessionLimits::default()
            };
            let admission = if *number < 3 { Admission::Open } else { Admission::Registered };
            (Kind::Policy, Policy { admission, sessions, ..Policy::default() }.draft())
        }
        Deed::Drain(drain) => {
            (Kind::Node, Node { name: NODE.into(), drain: *drain, ..Node::default() }.body_draft())
        }
        Deed::OtherNode(name) => (
            Kind::Node,
            Node { name: letter(*name), drain: name % 2 == 0, ..Node::default() }.body_draft(),
        ),
        Deed::Remove(kind, name, other) => {
            let name = match kind {
                Kind::Link => peers(*name, *other).join("/"),
                Kind::Policy => "default".to_owned(),
                _ => letter(*name),
            };
            let id = store.find(*kind, name).await.expect("it reads")?.id;
            return Some(Operation::Remove { kind: *kind, id, expected: None });
        }
    };
    Some(match store.find(kind, draft.name.clone()).await.expect("it reads") {
        Some(record) => Operation::Replace { kind, id: record.id, expected: None, draft },
        None => Operation::Create { kind, id: new_id(), draft, mark: None },
    })
}

impl Node {
    /// Without the region that a node needs, which is of no interest here.
    fn body_draft(&self) -> crate::store::Draft {
        crate::store::Draft { needs: Vec::new(), ..self.draft() }
    }
}

fn wire_key(number: u8) -> wire::key::Key {
    wire::key::Key([number + 1; 32])
}

async fn happen(store: &dyn Store, event: &Event, now: &mut i64) {
    match event {
        Event::Change(deeds) => {
            for deed in deeds {
                let Some(operation) = operation(store, deed).await else { continue };
                let (actor, operations) = ("test".to_owned(), vec![operation]);
                let change = Change { actor, now: *now, operations, once: None, unchanged: None };
                // A key is taken, a peer is linked or missing: then nothing changes.
                let _ = store.apply(change).await;
            }
        }
        Event::Compact => {
            *now += TOMBSTONE_S + 1;
            store.compact(*now).await.expect("it compacts");
        }
        Event::Look => {}
    }
}

/// A dataplane as the contract has it.
async fn look(book: &Book, old: Snapshot) -> Snapshot {
    let from = Revision(i64::try_from(old.revision.0).expect("a revision"));
    let news = match old.revision.0 {
        0 => None,
        _ => Some(book.since(from).await.expect("it reads")),
    };
    match news.as_ref().map(|news| (&news.upto, &news.said)) {
        Some((upto, Some(_))) if upto.revision == from => old,
        Some((upto, Some(said))) => {
            let (to, past) = (number(upto.revision), upto.past.clone());
            let delta = Delta { from: old.revision, to, past, changes: said.for_node(NODE) };
            let line = Order::Delta(delta).to_line();
            let Ok(Some(Order::Delta(delta))) = Order::read(line.as_bytes()) else {
                panic!("{line}")
            };
            old.after(&delta).expect("it fits")
        }
        Some((_, None)) | None => {
            let told = book.whole(NODE, false, None).await.expect("it reads");
            let Told::Whole(whole) = told else { panic!("the node is there, and a place") };
            match Order::read(whole.line().as_bytes()) {
                Ok(Some(Order::Whole(whole))) => *whole,
                _ => panic!("{}", whole.line()),
            }
        }
    }
}

async fn agree(events: Vec<Event>) {
    let folder = Scratch::new();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(folder.as_ref()).expect("it opens"));
    let book = Book::new(Arc::clone(&store), "here".into(), OURS);
    let mut now = 1000;
    happen(&*store, &Event::Change(vec![Deed::Drain(false)]), &mut now).await;
    let (mut quick, mut slow) = (Snapshot::default(), Snapshot::default());
    for event in events {
        happen(&*store, &event, &mut now).await;
        quick = look(&book, quick).await;
        if matches!(event, Event::Look) {
            slow = look(&book, slow).await;
        }
    }
    quick = look(&book, quick).await;
    slow = look(&book, slow).await;
    let whole = look(&book, Snapshot::default()).await;
    assert_eq!(quick.to_text(), whole.to_text());
    assert_eq!(slow.to_text(), whole.to_text());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn deltas_lead_to_what_a_snapshot_says(events in proptest::collection::vec(event(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(agree(events));
    }
}

fn moment() -> Moment {
    Moment { revision: Revision(7), past: "a1".into() }
}

fn record(kind: Kind, name: &str, body: Option<serde_json::Value>) -> Record {
    let (id, name) = (new_id(), name.to_owned());
    Record { kind, id, name, revision: Revision(7), created_at: 5, updated_at: 5, body }
}

#[test]
fn a_body_of_another_program_is_named_and_its_value_is_not() {
    let secret = serde_json::json!({"name": "edge", "chain": "x", "key": ["hush"]});
    for (kind, body) in [
        (Kind::Certificate, secret),
        (Kind::Client, serde_json::json!({"name": "a", "node_key": "hush"})),
        (Kind::Peer, serde_json::json!("hush")),
        (Kind::Link, serde_json::json!({"peers": ["hush"]})),
        (Kind::Policy, serde_json::json!({"admission": "hush"})),
        (Kind::Node, serde_json::json!([])),
    ] {
        let fault = Said::of(&[record(kind, "edge", Some(body))]).expect_err("not one");
        let text = fault.to_string();
        assert!(text.contains("edge") && !text.contains("hush"), "{text}");
    }
    Said::of(&[record(Kind::Link, "edge", None)]).expect_err("no two names");
}

#[test]
fn a_store_beyond_what_relays_take_is_told_to_none() {
    let node = record(Kind::Node, NODE, Some(serde_json::to_value(Node::default()).expect("JSON")));
    let twice = ["a", "b"].map(|name| {
        let client = Client { name: name.to_owned(), node_key: key_text(1) };
        record(Kind::Client, name, Some(serde_json::to_value(client).expect("JSON")))
    });
    let [one, two] = twice;
    let fault = whole("here", &moment(), &[node, one, two], OURS).expect_err("one key twice");
    assert!(fault.to_string().contains("has the key of another"), "{fault}");
}

#[test]
fn a_snapshot_says_which_nodes_there_are_and_lets_the_prober_in() {
    let body = serde_json::to_value(Node { drain: true, ..Node::default() }).expect("JSON");
    let nodes = [record(Kind::Node, NODE, Some(body))];
    let (snapshot, drains) = whole("here", &moment(), &nodes, OURS).expect("in bounds");
    assert_eq!(drains, [(NODE.to_owned(), true)].into());
    assert_eq!((snapshot.revision, &*snapshot.past), (number(Revision(7)), "a1"));
    assert_eq!(snapshot.clients[PROBER].0, OURS.0, "control's probes are let in everywhere");
}
