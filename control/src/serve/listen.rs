//! The unix socket and the TCP ports: binding, accepting, and letting go at the end.
//!
//! A connection has a place among a bounded number, a time for its request heads, and ends when it
//! is idle at the stop. A stranger's place goes to the next one when all are taken, so that idle or
//! slow ones keep nobody out. Who is at the other end goes with each request.

use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::Control;
use super::caller::Peer;
use crate::config::Checked;
use crate::fault::{OperatorFault, SOCKET_LONG};
use crate::lobby::{Lobby, Seat};

/// Connections at a time over all TCP ports on which somebody has shown a token, beside those of
/// strangers, which the lobby bounds.
const KNOWN_MAX: usize = 1024;
/// Connections at a time over the unix socket, so that strangers never lock the operator out.
const LOCAL_CONNECTIONS_MAX: usize = 128;
/// Time for the head of a request, which is also how long an idle connection stays.
const HEAD: Duration = Duration::from_secs(60);
/// Time for requests under way to end once control stops.
const FAREWELL: Duration = Duration::from_secs(5);
/// Pause after a failed accept, which mostly means that descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a request's head, at most.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Who may connect to the socket: its owner and group.
const SOCKET_MODE: u32 = 0o660;

/// Who may look into a folder made for it: the same.
const FOLDER_MODE: u32 = 0o750;
/// Longest path of a socket, in bytes: `sun_path` of unix(7) but for the zero at its end.
const SOCKET_LEN_MAX: usize = 107;

/// Everything that is listened on.
pub(super) struct Listeners {
    tcp: Vec<TcpListener>,
    unix: Socket,
}

/// Binds what `checked` names.
pub(super) async fn bind(checked: &Checked) -> Result<Listeners, OperatorFault> {
    let mut tcp = Vec::new();
    for address in &checked.listen {
        let bound = TcpListener::bind(address).await;
        tcp.push(bound.map_err(|error| OperatorFault::bind("listen", address, &error))?);
    }
    make_folder_of(&checked.socket)?;
    let unix = bind_unix(&checked.socket)
        .await
        .map_err(|error| OperatorFault::bind("socket", checked.socket.display(), &error))?;
    Ok(Listeners { tcp, unix })
}

/// Makes the folder of the socket if it is missing, for its owner and group; no more than that one.
fn make_folder_of(socket: &Path) -> Result<(), OperatorFault> {
    let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty());
    let Some(folder) = folder else { return Ok(()) };
    match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            let fix = "make this folder, or choose another --socket";
            Err(OperatorFault::file(folder, &error, fix))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A socket, and the name by which it is found.
pub(crate) struct Socket {
    /// Dropped first: as long as somebody listens nobody else binds it, so it is still ours to remove.
    pub(crate) name: SocketName,
    pub(crate) listener: UnixListener,
}

/// The name of a socket that was bound; gone once this is dropped, as it would lead nowhere.
pub(crate) struct SocketName(PathBuf);

impl Drop for SocketName {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl fmt::Display for SocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// Binds the socket, in place of one that nobody listens on any more.
pub(crate) async fn bind_unix(path: &Path) -> io::Result<Socket> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => match UnixStream::connect(path).await {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(_) => std::fs::remove_file(path)?,
        },
        Ok(_) => {
            let why = "something is there that is no socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        Err(_) if path.as_os_str().len() > SOCKET_LEN_MAX => {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, SOCKET_LONG));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    let name = SocketName(path.to_owned());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(Socket { name, listener })
}

impl Listeners {
    /// The TCP addresses, as the log tells them.
    pub(super) fn tcp_names(&self) -> String {
        let names = self.tcp.iter().filter_map(|listener| listener.local_addr().ok());
        let names: Vec<_> = names.map(|address: SocketAddr| address.to_string()).collect();
        format!("[{}]", names.join(", "))
    }

    /// Accepts and serves until control stops and the last request has ended, or its time has.
    pub(super) async fn serve(self, control: Arc<Control>, router: Router) {
        // Closed once the last of those who hold `here` has gone.
        let (open, here) = watch::channel(());
        let server = Server { control: Arc::clone(&control), router, here };
        let mut accepting = JoinSet::new();
        let (lobby, known) = (Arc::<Lobby>::default(), Arc::new(Semaphore::new(KNOWN_MAX)));
        for listener in self.tcp {
            let (server, lobby, known) = (server.clone(), Arc::clone(&lobby), Arc::clone(&known));
            accepting.spawn(async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, address)) => {
                            // Answers are one write each; waiting for more would only delay them.
                            let _ = stream.set_nodelay(true);
                            server.take_in(stream, address, &lobby, &known);
                        }
                        Err(error) => pause(&error).await,
                    }
                }
            });
        }
        let Socket { name, listener } = self.unix;
        let places = Arc::new(Semaphore::new(LOCAL_CONNECTIONS_MAX));
        accepting.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => match stream.peer_cred() {
                        Ok(peer) => server.serve(stream, peer.uid(), &places),
                        Err(error) => tracing::warn!(%error, "a caller without credentials"),
                    },
                    Err(error) => pause(&error).await,
                }
            }
        });
        let mut stop = control.stop.clone();
        // The sender outlives this; an error would mean that it has stopped all the same.
        let _ = stop.wait_for(|stop| *stop).await;
        drop(name);
        accepting.shutdown().await;
        if tokio::time::timeout(FAREWELL, open.closed()).await.is_err() {
            tracing::warn!("some requests were cut off");
        }
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// A connection over TCP: a stranger's, until a request on it carries a token.
#[derive(Debug)]
pub(crate) struct Visit {
    seat: Seat,
    places: Arc<Semaphore>,
    place: OnceLock<OwnedSemaphorePermit>,
}

impl Visit {
    /// From now on no stranger takes its place, if there is one among those who are known.
    pub(super) fn know(&self) {
        if self.place.get().is_none()
            && let Ok(place) = Arc::clone(&self.places).try_acquire_owned()
        {
            // Of two requests at once the second gives its own back.
            let _ = self.place.set(place);
            self.seat.leave();
        }
    }
}

/// What serves connections.
#[derive(Clone)]
struct Server {
    control: Arc<Control>,
    router: Router,
    here: watch::Receiver<()>,
}

impl Server {
    /// Serves somebody on the network.
    fn take_in(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        lobby: &Arc<Lobby>,
        known: &Arc<Semaphore>,
    ) {
        let counters = &self.control.counters;
        counters.connections.add(1);
        let visit = |seat| {
            let (places, place) = (Arc::clone(known), OnceLock::new());
            let visit = Arc::new(Visit { seat, places, place });
            let router = self.router.clone();
            let router = router.layer(Extension(Peer::Tcp(address))).layer(Extension(visit));
            connection(stream, router, self.control.stop.clone(), self.here.clone())
        };
        if lobby.take_in(visit) {
            counters.connections_displaced.add(1);
        }
    }

    /// Serves a process of this host.
    fn serve(&self, stream: UnixStream, uid: u32, places: &Arc<Semaphore>) {
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            self.control.counters.connections_refused.add(1);
            return;
        };
        self.control.counters.connections.add(1);
        let router = self.router.clone().layer(Extension(Peer::Unix { uid }));
        let (stop, here) = (self.control.stop.clone(), self.here.clone());
        tokio::spawn(async move {
            let _place = place;
            connection(stream, router, stop, here).await;
        });
    }
}

/// One connection, until either side has had enough.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut stop: watch::Receiver<bool>,
    _here: watch::Receiver<()>,
) {
    let service = TowerToHyperService::new(router);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // However it ended, the other side knows; there is nobody to tell.
        _ = &mut connection => return,
        _ = stop.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[tokio::test]
    async fn a_name_is_free_once_it_is_given_up_and_the_next_keeps_it() {
        let folder = Scratch::new();
        let path = folder.as_ref().join("s");
        let Socket { name, listener } = bind_unix(&path).await.expect("it binds");
        assert!(bind_unix(&path).await.is_err(), "somebody listens there");
        drop(name);
        let next = bind_unix(&path).await.expect("it binds while the last requests end");
        drop(listener);
        assert!(UnixStream::connect(&path).await.is_ok(), "the new one is found");
        drop(next);
        assert!(!path.exists());
    }
}
