//! The unix socket and the TCP ports: binding, accepting, and letting go at the end.
//!
//! A connection has a place among a bounded number, a time for its request heads, and ends when it
//! is idle at the stop. Who is at its other end goes with each request.

use std::fs::DirBuilder;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::Control;
use super::caller::Peer;
use crate::config::Checked;
use crate::fault::{OperatorFault, SOCKET_LONG};

/// Connections at a time over all TCP ports.
const CONNECTIONS_MAX: u32 = 1024;
/// Connections at a time over the unix socket, so that strangers never lock the operator out.
const LOCAL_CONNECTIONS_MAX: u32 = 128;
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
    unix: UnixListener,
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

/// Binds the socket, in place of one that nobody listens on any more.
pub(crate) async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
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
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
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
        let [places, local_places] = [CONNECTIONS_MAX, LOCAL_CONNECTIONS_MAX]
            .map(|places| Arc::new(Semaphore::new(places as usize)));
        let mut accepting = JoinSet::new();
        for listener in self.tcp {
            let server = Server::new(&control, &router, &places);
            accepting.spawn(async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, address)) => {
                            // Answers are one write each; waiting for more would only delay them.
                            let _ = stream.set_nodelay(true);
                            server.serve(stream, Peer::Tcp(address));
                        }
                        Err(error) => server.pause(&error).await,
                    }
                }
            });
        }
        let server = Server::new(&control, &router, &local_places);
        accepting.spawn(async move {
            loop {
                match self.unix.accept().await {
                    Ok((stream, _)) => match stream.peer_cred() {
                        Ok(peer) => server.serve(stream, Peer::Unix { uid: peer.uid() }),
                        Err(error) => tracing::warn!(%error, "a caller without credentials"),
                    },
                    Err(error) => server.pause(&error).await,
                }
            }
        });
        let mut stop = control.stop.clone();
        // The sender outlives this; an error would mean that it has stopped all the same.
        let _ = stop.wait_for(|stop| *stop).await;
        accepting.shutdown().await;
        let gone = async {
            // A place comes back when its connection has ended; these are never closed.
            let _ = places.acquire_many(CONNECTIONS_MAX).await;
            let _ = local_places.acquire_many(LOCAL_CONNECTIONS_MAX).await;
        };
        if tokio::time::timeout(FAREWELL, gone).await.is_err() {
            tracing::warn!("some requests were cut off");
        }
    }
}

/// What serves connections of one listener.
struct Server {
    control: Arc<Control>,
    router: Router,
    places: Arc<Semaphore>,
}

impl Server {
    fn new(control: &Arc<Control>, router: &Router, places: &Arc<Semaphore>) -> Self {
        Self { control: Arc::clone(control), router: router.clone(), places: Arc::clone(places) }
    }

    async fn pause(&self, error: &io::Error) {
        tracing::warn!(%error, "a connection could not be accepted");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.control.counters.connections_refused.add(1);
            return;
        };
        self.control.counters.connections.add(1);
        let router = self.router.clone().layer(Extension(peer));
        tokio::spawn(connection(stream, router, self.control.stop.clone(), place));
    }
}

/// One connection, until either side has had enough.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut stop: tokio::sync::watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
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
