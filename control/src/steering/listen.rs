//! Where dataplanes dial: a unix socket, and TCP with mutual TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::connection::{self, Guest};
use super::{CONNECTIONS_MAX, Ended, FAREWELL, HANDSHAKE, LOCAL_CONNECTIONS_MAX, Steering, tls};
use crate::config::SteerPlaces;
use crate::fault::{OperatorFault, plain};
use crate::lobby::{Lobby, Seat};
use crate::serve::listen::{Socket, bind_unix};

/// Pause after a failed accept, which mostly means that descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Between two lines of the log about certificates, at least.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Everything that dataplanes may dial.
pub(crate) struct Listeners {
    unix: Option<Socket>,
    tcp: Vec<TcpListener>,
}

/// Binds what `places` names.
pub(crate) async fn bind(places: &SteerPlaces) -> Result<Listeners, OperatorFault> {
    let mut tcp = Vec::new();
    for address in &places.listen {
        let bound = TcpListener::bind(address).await;
        tcp.push(bound.map_err(|error| OperatorFault::bind("steer-listen", address, &error))?);
    }
    let mut unix = None;
    if let Some(path) = &places.socket {
        let bound = bind_unix(path).await;
        let fault = |error| OperatorFault::bind("steer-socket", path.display(), &error);
        unix = Some(bound.map_err(fault)?);
    }
    Ok(Listeners { unix, tcp })
}

impl Listeners {
    /// Where it listens, as the log tells it.
    pub(crate) fn names(&self) -> String {
        let unix = self.unix.iter().map(|socket| format!("unix:{}", socket.name));
        let tcp = self.tcp.iter().filter_map(|listener| listener.local_addr().ok());
        let names: Vec<_> = unix.chain(tcp.map(|address| format!("tls://{address}"))).collect();
        format!("[{}]", names.join(", "))
    }

    /// Accepts and serves until control stops and dataplanes have been told so.
    pub(crate) async fn serve(self, steering: Arc<Steering>) {
        let [places, local_places] = [CONNECTIONS_MAX, LOCAL_CONNECTIONS_MAX]
            .map(|places| Arc::new(Semaphore::new(places as usize)));
        let (mut accepting, lobby) = (JoinSet::new(), Arc::new(Lobby::default()));
        for listener in self.tcp {
            let (lobby, places) = (Arc::clone(&lobby), Arc::clone(&places));
            accepting.spawn(accept_tls(listener, lobby, Arc::clone(&steering), places));
        }
        let name = self.unix.map(|Socket { name, listener }| {
            let (steering, places) = (Arc::clone(&steering), Arc::clone(&local_places));
            accepting.spawn(accept_unix(listener, steering, places));
            name
        });
        let mut stop = steering.stop.clone();
        // The sender outlives this; an error would mean that it has stopped all the same.
        let _ = stop.wait_for(|stop| *stop).await;
        drop(name);
        accepting.shutdown().await;
        let gone = async {
            // A place comes back when its connection has ended; these are never closed.
            let _ = places.acquire_many(CONNECTIONS_MAX).await;
            let _ = local_places.acquire_many(LOCAL_CONNECTIONS_MAX).await;
        };
        // Whoever did not hear it will find out.
        let _ = timeout(2 * FAREWELL, gone).await;
    }
}

async fn accept_unix(listener: UnixListener, steering: Arc<Steering>, places: Arc<Semaphore>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                steering.counters.connections.add(1);
                let Some(place) = place(&steering, &places) else { continue };
                let guest = Guest { from: "unix".to_owned(), names: None };
                tokio::spawn(serve(Arc::clone(&steering), stream, guest, place));
            }
            Err(error) => pause(&error).await,
        }
    }
}

async fn accept_tls(
    listener: TcpListener,
    lobby: Arc<Lobby>,
    steering: Arc<Steering>,
    places: Arc<Semaphore>,
) {
    let told = Arc::<Told>::default();
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // Orders are one write each; waiting for more would only delay them.
                let _ = stream.set_nodelay(true);
                steering.counters.connections.add(1);
                let (asked, places) = (Arc::clone(&steering), Arc::clone(&places));
                let told = Arc::clone(&told);
                let visit = |seat| async move {
                    if let Some(session) = greet(stream, address, asked, places, told).await {
                        drop::<Seat>(seat);
                        session.await;
                    }
                };
                if lobby.take_in(visit) {
                    // Somebody else, who has been at it for longest, had to go.
                    steering.count_end(Ended::Busy);
                }
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// A handshake, and what follows it: the session of a dataplane that has a certificate and a place.
async fn greet(
    stream: TcpStream,
    address: SocketAddr,
    steering: Arc<Steering>,
    places: Arc<Semaphore>,
    told: Arc<Told>,
) -> Option<impl Future<Output = ()> + Send + 'static> {
    let (from, acceptor) = (address.to_string(), steering.tls.as_ref()?.acceptor());
    let stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(from, %error, "no handshake");
            let why = plain(&error.to_string());
            if is_of_certificate(&error) && told.is_due() {
                tracing::warn!(
                    why,
                    "whoever dialled --steer-listen has no certificate to be let in"
                );
            }
            steering.count_end(Ended::Tls);
            return None;
        }
        Err(_) => {
            steering.count_end(Ended::Tls);
            return None;
        }
    };
    let place = place(&steering, &places)?;
    let names = Some(tls::names(stream.get_ref().1));
    Some(serve(steering, stream, Guest { from, names }, place))
}

/// When the log told last of certificates, which strangers can have it do as often as they like.
#[derive(Debug, Default)]
struct Told(Mutex<Option<Instant>>);

impl Told {
    fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| last.elapsed() >= TELL_EVERY);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

/// Whether it was for want of a certificate, or for a wrong one, that a handshake failed.
fn is_of_certificate(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    cause.is_some_and(|cause| {
        matches!(
            cause,
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented
        )
    })
}

fn place(steering: &Steering, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    let place = Arc::clone(places).try_acquire_owned().ok();
    if place.is_none() {
        steering.count_end(Ended::Busy);
    }
    place
}

async fn serve(
    steering: Arc<Steering>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    guest: Guest,
    _place: OwnedSemaphorePermit,
) {
    connection::serve(&steering, stream, guest).await;
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "a dataplane could not be accepted");
    sleep(ACCEPT_PAUSE).await;
}
