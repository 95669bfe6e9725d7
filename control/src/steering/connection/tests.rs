//! What takes minutes on a clock, on one that does not wait.

use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream, duplex};

use super::*;
use crate::resource::{Node, Resource};
use crate::store::sqlite::SqliteStore;
use crate::store::{Change, Draft, Operation, Store};
use crate::testing::Scratch;
use crate::token::new_id;

const NODE: &str = "fra-1";
/// What fits between two ends of a connection.
const PIPE_BYTES: usize = 256;

struct Scene {
    steering: Arc<Steering>,
    stop: watch::Sender<bool>,
    _folder: Scratch,
}

impl Scene {
    async fn new() -> Self {
        let folder = Scratch::new();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(folder.as_ref()).expect("it opens"));
        let node = Node { name: NODE.into(), ..Node::default() };
        let draft = Draft { needs: Vec::new(), ..node.draft() };
        let create = Operation::Create { kind: Kind::Node, id: new_id(), draft, mark: None };
        let (actor, operations) = ("test".to_owned(), vec![create]);
        let change = Change { actor, now: 1, operations, once: None, unchanged_since: None };
        store.apply(change).await.expect("it is new");
        let (stop, stopped) = watch::channel(false);
        Self { steering: Arc::new(Steering::new(store, stopped)), stop, _folder: folder }
    }

    /// The other end of a connection, and why it has ended once it has.
    fn dial(&self) -> (BufReader<DuplexStream>, tokio::task::JoinHandle<Ended>) {
        let (ours, theirs) = duplex(PIPE_BYTES);
        let steering = Arc::clone(&self.steering);
        let served = tokio::spawn(async move {
            let guest = Guest { from: "here".into(), names: None };
            serve(&steering, ours, guest).await;
            let ended = |ended: &Ended| steering.counters.ended[*ended as usize].now() == 1;
            Ended::ALL.into_iter().find(ended).expect("every end is counted")
        });
        (BufReader::new(theirs), served)
    }
}

async fn say(stream: &mut BufReader<DuplexStream>, said: &Said) {
    // The other side may have hung up, as the next line tells.
    let _ = stream.get_mut().write_all(said.to_line().as_bytes()).await;
}

async fn hello(stream: &mut BufReader<DuplexStream>) {
    let (node, version) = (NODE.to_owned(), "0".to_owned());
    let revision = steer::Revision(0);
    say(stream, &Said::Hello { protocol: PROTOCOL, node, version, store: None, revision }).await;
}

/// The next line; empty at the end.
async fn line(stream: &mut BufReader<DuplexStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).await.expect("text");
    line
}

fn report() -> Said {
    Said::Report { sessions: 0, draining: false, stalled_cores: 0 }
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_not_waited_for() {
    let scene = Scene::new().await;
    let began = Instant::now();
    let (_stream, served) = scene.dial();
    assert_eq!(served.await.expect("no panic"), Ended::Hello);
    assert_eq!(began.elapsed().as_secs(), HELLO.as_secs());
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_connection_after_signs_of_life_from_here() {
    let scene = Scene::new().await;
    let (mut stream, served) = scene.dial();
    hello(&mut stream).await;
    let whole = line(&mut stream).await;
    let Ok(Some(Order::Whole(whole))) = Order::read(whole.as_bytes()) else { panic!("{whole}") };
    say(&mut stream, &Said::Adopted { revision: whole.revision }).await;
    let heard = Instant::now();
    let mut signs = 0;
    let last = loop {
        match line(&mut stream).await {
            sign if sign.contains("current") => signs += 1,
            other => break other,
        }
    };
    assert!(last.contains("nothing was heard"), "{last}");
    assert!(heard.elapsed() >= SILENCE && signs >= 3, "{signs} in {:?}", heard.elapsed());
    assert_eq!(served.await.expect("no panic"), Ended::Silence);
}

#[tokio::test(start_paused = true)]
async fn an_order_that_is_never_answered_ends_a_connection() {
    let scene = Scene::new().await;
    let (mut stream, served) = scene.dial();
    hello(&mut stream).await;
    assert!(line(&mut stream).await.contains("whole"));
    let last = loop {
        match line(&mut stream).await {
            sign if sign.contains("current") => say(&mut stream, &report()).await,
            other => break other,
        }
    };
    assert!(last.contains("not answered"), "{last}");
    assert_eq!(served.await.expect("no panic"), Ended::Slow);
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_is_given_up_and_its_place_is_free() {
    let scene = Scene::new().await;
    let (mut stream, served) = scene.dial();
    hello(&mut stream).await;
    // The snapshot is longer than what fits in between.
    assert_eq!(served.await.expect("no panic"), Ended::Slow);
    assert_eq!(scene.steering.dataplanes(), []);
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_told() {
    let scene = Scene::new().await;
    let (mut stream, served) = scene.dial();
    hello(&mut stream).await;
    assert!(line(&mut stream).await.contains("whole"));
    scene.stop.send_replace(true);
    let last = loop {
        match line(&mut stream).await {
            sign if sign.contains("current") => {}
            other => break other,
        }
    };
    assert!(last.contains("control stops"), "{last}");
    assert_eq!(served.await.expect("no panic"), Ended::Stop);
}
