//! Somebody between control and the server, who passes on, falls silent, or cuts in at a commit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::testing::Scratch;

/// What the proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// It passes everything on.
    Pass,
    /// It keeps what it gets, and all connections open.
    Silent,
    /// It passes on until there is a commit, which it keeps; then it is silent.
    SilentAtCommit,
    /// It ends the connection that sends a commit, whose answer it keeps.
    CutAfterCommit,
    /// It ends the connection that sends a commit, which it keeps.
    CutBeforeCommit,
}

/// See the module.
pub(super) struct Proxy {
    folder: Scratch,
    mode: watch::Sender<Mode>,
    trips: Arc<AtomicUsize>,
    _connections: JoinSet<()>,
}

impl Proxy {
    /// One before the server at `socket`.
    pub(super) fn new(socket: PathBuf) -> Self {
        let folder = Scratch::new();
        let path = folder.path(".s.PGSQL.5432");
        let listener = UnixListener::bind(path).expect("a new folder takes a socket");
        let mode = watch::Sender::new(Mode::Pass);
        let modes = mode.clone();
        let trips = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&trips);
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut passing = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let trips = Arc::clone(&counted);
                passing.spawn(pass(client, socket.clone(), modes.clone(), trips));
            }
        });
        Self { folder, mode, trips, _connections: connections }
    }

    /// The URL of the database that is at `url` without the proxy.
    pub(super) fn url(&self, url: &str) -> String {
        let (start, _) = url.split_once("?host=").expect("the server's own URL");
        let folder: &Path = self.folder.as_ref();
        format!("{start}?host={}", folder.display())
    }

    /// What it does, as it changes.
    pub(super) fn modes(&self) -> watch::Receiver<Mode> {
        self.mode.subscribe()
    }

    /// How often a client has spoken after the server did, over all connections.
    pub(super) fn trips(&self) -> usize {
        self.trips.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn pass(
    mut client: UnixStream,
    socket: PathBuf,
    mode: watch::Sender<Mode>,
    trips: Arc<AtomicUsize>,
) {
    let mut answers = true;
    let Ok(mut server) = UnixStream::connect(socket).await else { return };
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut modes = mode.subscribe();
    loop {
        if *modes.borrow_and_update() == Mode::Silent {
            // What came meanwhile is lost, and so is the connection once there is sound again.
            let _ = modes.changed().await;
            return;
        }
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(count @ 1..) = read else { return };
                let bytes = &asked[..count];
                if std::mem::take(&mut answers) {
                    trips.fetch_add(1, Ordering::Relaxed);
                }
                if bytes.windows(7).any(|word| word == b"COMMIT\0") {
                    let now = *modes.borrow();
                    match now {
                        Mode::Pass | Mode::Silent => {}
                        Mode::SilentAtCommit => {
                            mode.send_replace(Mode::Silent);
                            continue;
                        }
                        Mode::CutBeforeCommit => return,
                        Mode::CutAfterCommit => {
                            // Its answer is the sign that it has happened.
                            if server.write_all(bytes).await.is_ok() {
                                let _ = server.read(&mut answered).await;
                            }
                            return;
                        }
                    }
                }
                if server.write_all(bytes).await.is_err() { return }
            }
            read = server.read(&mut answered) => {
                let Ok(count @ 1..) = read else { return };
                answers = true;
                if client.write_all(&answered[..count]).await.is_err() { return }
            }
            changed = modes.changed() => if changed.is_err() { return },
        }
    }
}
