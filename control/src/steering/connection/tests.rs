//! What takes minutes on a clock, on one that does not wait.

use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, DuplexStream, duplex};
use tokio::time::sleep;

use super::*;
use crate::resource::{Client, Node, Resource};
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
    /// Registers a client, so that the next snapshot is another.
    async fn change(&self, number: u8) {
        let node_key = format!("nodekey:{number:064x}");
        let client = Client { name: format!("client-{number}"), node_key };
        self.create(Kind::Client, client.draft()).await;
    }

    async fn create(&self, kind: Kind, draft: Draft) {
        let create = Operation::Create { kind, id: new_id(), draft, mark: None };
        let (actor, operations) = ("test".to_owned(), vec![create]);
        let change = Change { actor, now: 1, operations, once: None, unchanged: None };
        self.steering.store.apply(change).await.expect("it is new");
    }

    async fn new() -> Self {
        let folder = Scratch::new();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(folder.as_ref()).expect("it opens"));
        let node = Node { name: NODE.into(), ..Node::default() };
        let draft = Draft { needs: Vec::new(), ..node.draft() };
        let (stop, stopped) = watch::channel(false);
        let scene = Self {
            steering: Arc::new(Steering::new(
                store,
                None,
                steer::NodeKey(wire::key::Key([9; 32])),
                stopped,
            )),
            stop,
            _folder: folder,
        };
        scene.create(Kind::Node, draft).await;
        scene
    }

    /// The other end of a connection, and why it has ended once it has.
    fn dial(&self) -> (BufReader<DuplexStream>, tokio::task::JoinHandle<Ended>) {
        let (ours, theirs) = duplex(PIPE_BYTES);
        let steering = Arc::clone(&self.steering);
        let served = tokio::spawn(async move {
            let guest = Guest { from: "here".into(), names: None };
            serve(&steering, ours, guest).await;
            let ended = |ended: &Ended| steering.counters.ended[*ended as usize].now() > 0;
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
    hello_as(stream, NODE).await;
}

async fn hello_as(stream: &mut BufReader<DuplexStream>, node: &str) {
    let (node, version) = (node.to_owned(), "0".to_owned());
    let revision = steer::Revision(0);
    let (store, past) = (None, String::new());
    say(stream, &Said::Hello { protocol: PROTOCOL, node, version, store, revision, past }).await;
}

/// The next line; empty at the end.
async fn line(stream: &mut BufReader<DuplexStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).await.expect("text");
    line
}

/// The next line that is no sign of life.
async fn order(stream: &mut BufReader<DuplexStream>) -> String {
    loop {
        let line = line(stream).await;
        if !line.contains("current") {
            return line;
        }
    }
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
    let whole = order(&mut stream).await;
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
    assert!(order(&mut stream).await.contains("whole"));
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
async fn who_reads_slowly_and_speaks_meanwhile_is_not_silent() {
    // Of two things that are ready at once either might have been seen first.
    for _ in 0..16 {
        let scene = Scene::new().await;
        for number in 1..=9 {
            scene.change(number).await;
        }
        let (mut stream, _served) = scene.dial();
        hello(&mut stream).await;
        let mut whole = vec![0; PIPE_BYTES];
        stream.get_mut().read_exact(&mut whole).await.expect("it begins");
        for _ in 0..3 {
            sleep(SILENCE / 2).await;
            say(&mut stream, &report()).await;
        }
        stream.read_until(b'\n', &mut whole).await.expect("it goes on");
        let Ok(Some(Order::Whole(whole))) = Order::read(&whole) else { panic!("no snapshot") };
        say(&mut stream, &Said::Adopted { revision: whole.revision }).await;
        let sign = line(&mut stream).await;
        assert!(sign.contains("current"), "{sign}");
    }
}

/// On the clock of everybody, as the store's threads are waited for.
#[tokio::test]
async fn slow_dataplanes_hold_up_no_other_and_who_waits_is_heard() {
    let scene = Scene::new().await;
    let mut slow = Vec::new();
    // Each is being sent a snapshot of a revision of its own, of which it takes only the beginning.
    for number in 1..=4 {
        scene.change(number).await;
        let (mut stream, _served) = scene.dial();
        hello(&mut stream).await;
        // Past its buffer, which would take all of it.
        stream.get_mut().read_exact(&mut [0]).await.expect("it begins");
        slow.push(stream);
    }
    scene.change(5).await;
    let began = Instant::now();
    let (mut quick, _served) = scene.dial();
    hello(&mut quick).await;
    let whole = line(&mut quick).await;
    let Ok(Some(Order::Whole(whole))) = Order::read(whole.as_bytes()) else { panic!("{whole}") };
    assert!(whole.clients.contains_key("client-4") && !whole.clients.contains_key("client-5"));
    say(&mut quick, &Said::Adopted { revision: whole.revision }).await;
    let delta = order(&mut quick).await;
    assert!(delta.contains("client-5"), "{delta}");
    assert!(began.elapsed() < WRITE, "nobody waited for the slow");

    // A node that none of those knows has to wait for one of its own.
    let node = Node { name: "fra-2".into(), ..Node::default() };
    scene.create(Kind::Node, Draft { needs: Vec::new(), ..node.draft() }).await;
    let (mut late, _served) = scene.dial();
    hello_as(&mut late, "fra-2").await;
    say(&mut late, &Said::Report { sessions: 12, draining: false, stalled_cores: 0 }).await;
    let heard = || scene.steering.dataplanes().iter().any(|it| it.sessions == 12);
    while !heard() {
        assert!(began.elapsed() < WRITE, "it is heard while it waits");
        tokio::task::yield_now().await;
    }
    let nothing = timeout(Duration::from_millis(100), order(&mut late)).await;
    assert!(nothing.is_err(), "the four still have their places: {nothing:?}");
    // One that is sent the last of those does not wait behind it.
    let (mut again, _served) = scene.dial();
    hello(&mut again).await;
    let last = timeout(WRITE, order(&mut again)).await.expect("at once");
    assert!(last.contains("client-4") && !last.contains("client-5"), "{last}");
    drop(slow);
    assert!(order(&mut late).await.contains("whole"));
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_told() {
    let scene = Scene::new().await;
    let (mut stream, served) = scene.dial();
    hello(&mut stream).await;
    assert!(order(&mut stream).await.contains("whole"));
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
