//! The front: accepts, TLS handshakes, HTTP, and DERP logins, on tokio beside the relay cores.
//!
//! One current-thread runtime per core, at a lower priority than the relay worker there, so that a
//! storm of handshakes never queues in front of packets. Upgraded connections leave for a relay core;
//! everything else is answered by hyper from [`pages`].

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::bucket::{Bucket, Rate};
use proto::tick::Tick;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net;
use tokio::sync::oneshot;
use tokio::time::{Instant as Deadline, timeout, timeout_at};

use self::gate::Gate;
use self::greet::Way;
use self::head::{Asked, Head};
use self::pages::{Listener, Site, Unready};
use self::stream::Connection;
use crate::certs::{Resolver, ServerConfigs};
use crate::config::TcpLimits;
use crate::identity::Identity;
use crate::observe::{HandshakeResult, Limit, Registry, TlsVersion};
use crate::relay::Fabric;

pub use crate::observe::Scheme;

pub mod bootstrap;
mod gate;
mod greet;
pub mod handshake;
mod head;
pub mod pages;
pub mod stream;

/// Time for a handshake and a request head together, as in stock derper.
const HEAD: Duration = Duration::from_secs(30);
/// Connections to the plain port whose first request is under way.
const PLAIN_MAX: usize = 256;
/// Connections of one port that hyper serves, idle ones among them. Each holds some 16 KiB.
const HTTP_MAX: usize = 2048;
/// Pause after the kernel had no descriptor for a connection.
const BREATH: Duration = Duration::from_millis(20);
/// Time between two lines of the log that say so.
const COMPLAINT: Duration = Duration::from_secs(10);

/// What every front thread shares.
#[derive(Debug)]
pub struct Front {
    /// Where upgraded connections go.
    pub fabric: Arc<Fabric<Arc<TcpStream>>>,
    /// The relay's key pair.
    pub identity: Identity,
    /// Certificates; `None` where DERP is served in clear.
    pub tls: Option<ServerConfigs>,
    /// What HTTP serves.
    pub site: Site,
    /// Counters.
    pub registry: Arc<Registry>,
    /// Socket options.
    pub tcp: TcpLimits,
    /// Bounds of new connections.
    pub admission: Admission,
    /// Why no more clients should come; empty while all is well.
    pub unready: RwLock<Vec<Unready>>,
    /// Whether no client is let in although the relay goes on, because control says so.
    pub draining: AtomicBool,
    /// Whether control, which says who is admitted, has not spoken yet: nobody is.
    pub unsteered: AtomicBool,
}

/// Bounds of new connections.
#[derive(Debug)]
pub struct Admission {
    /// Connections to the main port per second and burst; `None`: unlimited.
    pub rate: Option<Rate>,
    /// Sessions on all cores.
    pub sessions_max: usize,
    bucket: Mutex<Bucket>,
    /// Connections whose handshake, first request or login is under way, by port: the probes of the
    /// plain one must be answered while handshakes are crowded.
    starting: [Places; Scheme::COUNT],
    /// Connections that hyper serves, by port.
    http: [Places; Scheme::COUNT],
    epoch: Instant,
    /// When the log may next say that the kernel gives no connection, in milliseconds of `epoch`.
    complain_from_ms: AtomicU64,
}

impl Admission {
    /// Bounds with nothing used up. `handshakes_max` bounds the main port's.
    #[must_use]
    pub fn new(
        rate: Option<Rate>,
        handshakes_max: usize,
        sessions_max: usize,
        epoch: Instant,
    ) -> Self {
        let bucket = Bucket::full(rate.unwrap_or(Rate { per_second: 1, burst: 1 }), Tick::ZERO);
        let starting = [(handshakes_max, Limit::Handshakes), (PLAIN_MAX, Limit::PlainPort)];
        Self {
            rate,
            sessions_max,
            bucket: Mutex::new(bucket),
            starting: starting.map(|(max, limit)| Places::new(max, limit)),
            http: [(); Scheme::COUNT].map(|()| Places::new(HTTP_MAX, Limit::Http)),
            epoch,
            complain_from_ms: AtomicU64::new(0),
        }
    }

    /// Whether another line of the log is due: one in [`COMPLAINT`], whoever writes it.
    fn may_complain(&self) -> bool {
        let now_ms = self.epoch.elapsed().as_millis() as u64;
        let next_ms = now_ms + COMPLAINT.as_millis() as u64;
        let due = |from_ms| (from_ms <= now_ms).then_some(next_ms);
        self.complain_from_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok()
    }

    /// Takes a place for a new connection.
    fn enter(&self, scheme: Scheme) -> Result<Place<'_>, Limit> {
        match (scheme, self.rate) {
            (Scheme::Main, Some(rate)) => {
                let now = Tick(self.epoch.elapsed().as_nanos() as u64);
                let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
                if !bucket.take(1, now, rate) {
                    return Err(Limit::AcceptRate);
                }
            }
            (Scheme::Main, None) | (Scheme::Plain, _) => {}
        }
        self.starting[scheme.index()].take()
    }
}

/// So many connections may be in one state at a time.
#[derive(Debug)]
struct Places {
    taken: AtomicUsize,
    max: usize,
    /// What to count where none is left.
    limit: Limit,
}

impl Places {
    fn new(max: usize, limit: Limit) -> Self {
        Self { taken: AtomicUsize::new(0), max, limit }
    }

    fn take(&self) -> Result<Place<'_>, Limit> {
        let place = Place(&self.taken);
        if self.taken.fetch_add(1, Ordering::Relaxed) >= self.max {
            return Err(self.limit);
        }
        Ok(place)
    }
}

/// One of the [`Places`], given back when dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A listener and what it speaks.
#[derive(Debug)]
pub struct Entrance {
    /// The bound socket.
    pub listener: TcpListener,
    /// What is spoken there.
    pub scheme: Scheme,
}

impl Entrance {
    /// The same listener for another thread: whoever is idle accepts.
    ///
    /// # Errors
    /// The kernel's, where descriptors ran out.
    pub fn share(&self) -> io::Result<Self> {
        Ok(Self { listener: self.listener.try_clone()?, scheme: self.scheme })
    }
}

impl Front {
    /// Says why no more clients should come.
    pub fn set_unready(&self, why: Vec<Unready>) {
        *self.unready.write().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why no more clients should come, at this moment.
    #[must_use]
    pub fn unready(&self) -> Vec<Unready> {
        let mut why = self.unready.read().unwrap_or_else(PoisonError::into_inner).clone();
        if self.is_draining() && !why.contains(&Unready::Draining) {
            why.push(Unready::Draining);
        }
        if self.unsteered.load(Ordering::Relaxed) {
            why.push(Unready::Unsteered);
        }
        why
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// DERP sessions on all cores.
    pub(crate) fn sessions(&self) -> u64 {
        self.registry.cores.iter().map(|core| core.sessions.value()).sum()
    }

    /// Refreshes the gauges that nobody counts as things happen.
    pub fn take_census(&self, resolver: Option<&Resolver>) {
        let (_, dup_keys, dup_sessions) = self.fabric.census();
        self.registry.front.dup_keys.set(dup_keys as u64);
        self.registry.front.dup_sessions.set(dup_sessions as u64);
        self.registry.front.dup_sessions_opened.set(self.fabric.dup_sessions_opened());
        let handshakes =
            self.admission.starting[Scheme::Main.index()].taken.load(Ordering::Relaxed);
        self.registry.front.handshakes_open.set(handshakes as u64);
        if let Some(resolver) = resolver {
            let expiry_unix_s = resolver.expiry_unix_s(SystemTime::now()).max(0) as u64;
            self.registry.front.certificate_expiry_unix_s.set(expiry_unix_s);
        }
    }

    /// Serves `entrances` on this thread until `stop` resolves. Calls `up` once it accepts.
    ///
    /// # Errors
    /// The kernel's, if the runtime or a listener cannot be set up.
    pub fn run(
        self: Arc<Self>,
        entrances: Vec<Entrance>,
        up: impl FnOnce(),
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            for Entrance { listener, scheme } in entrances {
                let listener = net::TcpListener::from_std(listener)?;
                tokio::spawn(Arc::clone(&self).accept(listener, scheme));
            }
            up();
            stop.await;
            Ok(())
        })
    }

    async fn accept(self: Arc<Self>, listener: net::TcpListener, scheme: Scheme) {
        loop {
            match listener.accept().await {
                Ok((tcp, from)) => {
                    self.registry.front.accepts[scheme.index()].increment();
                    tokio::spawn(Arc::clone(&self).admit(tcp, from, scheme));
                }
                Err(error) => {
                    // Any other connection has died while it queued.
                    let Some(fix) = fix_of_exhaustion(&error) else { continue };
                    let limit = Limit::FileDescriptors.index();
                    self.registry.front.accept_rejected[limit].increment();
                    if self.admission.may_complain() {
                        tracing::warn!(%error, "cannot accept; {fix}");
                    }
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }

    async fn admit(self: Arc<Self>, tcp: net::TcpStream, from: SocketAddr, scheme: Scheme) {
        if let Err(limit) = self.serve(tcp, from, scheme).await {
            self.registry.front.accept_rejected[limit.index()].increment();
        }
    }

    /// Serves a connection until it ends or leaves for a relay core; or says which limit it met.
    async fn serve(
        self: &Arc<Self>,
        tcp: net::TcpStream,
        from: SocketAddr,
        scheme: Scheme,
    ) -> Result<(), Limit> {
        let mut place = self.admission.enter(scheme)?;
        let by = Deadline::now() + HEAD;
        let Some(first) = self.first_request(tcp, scheme, by).await else { return Ok(()) };
        let FirstRequest { mut connection, mut asked, version } = first;
        if asked == Asked::Http {
            let served = self.admission.http[scheme.index()].take()?;
            drop(place);
            let upgrade = self.serve_http(connection, from, scheme, version).await;
            let Some(upgrade) = upgrade else { return Ok(()) };
            (asked, connection) = upgrade;
            place = self.admission.starting[scheme.index()].take()?;
            drop(served);
        }
        if let Some(version) = version {
            self.registry.front.tls_requests[version.index()].increment();
        }
        self.log_in(connection, asked, from).await;
        drop(place);
        Ok(())
    }

    /// TLS, if spoken here, and the first request's head, both of them by `by`.
    async fn first_request(
        &self,
        tcp: net::TcpStream,
        scheme: Scheme,
        by: Deadline,
    ) -> Option<FirstRequest> {
        let mut version = None;
        let mut connection = match (&self.tls, scheme) {
            (Some(configs), Scheme::Main) => {
                let handshakes = &self.registry.front.tls_handshakes;
                let count = |result: HandshakeResult| {
                    handshakes[result.index()][TlsVersion::Unknown.index()].increment();
                };
                match timeout_at(by, handshake::accept(tcp, configs)).await {
                    Ok(Ok((connection, spoken))) => {
                        handshakes[HandshakeResult::Ok.index()][spoken.index()].increment();
                        version = Some(spoken);
                        connection
                    }
                    Err(_) => {
                        count(HandshakeResult::Timeout);
                        return None;
                    }
                    Ok(Err(fault)) => {
                        count(fault.result());
                        tracing::debug!(%fault, "handshake failed");
                        return None;
                    }
                }
            }
            (None, Scheme::Main) | (_, Scheme::Plain) => Connection::clear(tcp),
        };
        loop {
            if let Some(Head { mut asked, end, .. }) = head::read(connection.peek()) {
                if !self.relays(scheme) {
                    asked = Asked::Http;
                }
                if asked != Asked::Http {
                    connection.consume(end);
                }
                return Some(FirstRequest { connection, asked, version });
            }
            let Ok(filled) = timeout_at(by, connection.fill()).await else {
                self.registry.front.head_timeouts.increment();
                return None;
            };
            if !filled.ok()? {
                return None;
            }
        }
    }

    /// Whether a DERP upgrade may come in there.
    fn relays(&self, scheme: Scheme) -> bool {
        self.site.derp && scheme == Scheme::Main
    }

    /// Answers HTTP requests until the connection ends or asks for DERP.
    async fn serve_http(
        self: &Arc<Self>,
        connection: Connection,
        from: SocketAddr,
        scheme: Scheme,
        version: Option<TlsVersion>,
    ) -> Option<(Asked, Connection)> {
        let listener = match (scheme, version) {
            (Scheme::Plain, _) => Listener::Plain,
            (Scheme::Main, None) => Listener::Clear,
            (Scheme::Main, Some(version)) => Listener::Tls(version),
        };
        let gate = if self.relays(scheme) { Gate::new(connection) } else { Gate::open(connection) };
        let front = Arc::clone(self);
        let service = service_fn(move |request| {
            let answer = front.answer(&request, from, listener);
            async move {
                Ok::<_, std::convert::Infallible>(match answer {
                    Ok(answer) => answer,
                    Err(look) => Site::looked(look.await.ok()),
                })
            }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            // The gate ends hyper's stream in front of an upgrade, and clients may end theirs, while
            // the last answer is still to be given.
            .half_close(true)
            .max_headers(head::HEADERS_MAX)
            .max_buf_size(head::HEAD_LEN_MAX)
            .title_case_headers(true)
            .serve_connection(TokioIo::new(gate), service)
            .without_shutdown()
            .await;
        match served {
            Ok(parts) => {
                let mut gate = parts.io.into_inner();
                if let Some(upgrade) = gate.take_upgrade() {
                    return Some((upgrade, gate.into_connection()));
                }
                // It says goodbye in TLS, too; a client that is gone already does not mind.
                let _ = timeout(HEAD, gate.into_connection().shutdown()).await;
            }
            Err(error) => {
                if error.is_timeout() {
                    self.registry.front.head_timeouts.increment();
                }
                tracing::debug!(%from, %error, "HTTP connection ended early");
            }
        }
        None
    }

    /// The answer to `request`, or the look that is to be waited for first.
    fn answer(
        &self,
        request: &Request<Incoming>,
        from: SocketAddr,
        listener: Listener,
    ) -> Result<Response<Full<Bytes>>, oneshot::Receiver<String>> {
        let request = pages::Request {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            client: from.ip().to_canonical(),
            listener,
        };
        match self.site.look(&request) {
            Some(look) => Err(look),
            None => Ok(self.site.respond(&request, &self.unready())),
        }
    }

    async fn log_in(&self, connection: Connection, asked: Asked, from: SocketAddr) {
        let (way, not_ideal) = match asked {
            Asked::Derp { fast_start, not_ideal } => (Way::Raw { fast_start }, not_ideal),
            Asked::WebSocket(terms) => (Way::WebSocket(terms), false),
            Asked::Http => return,
        };
        if let Err(fault) = greet::welcome(self, connection, way, not_ideal).await {
            self.registry.front.login_failures[fault.kind().index()].increment();
            tracing::debug!(%from, %fault, "client did not become a session");
        }
    }

    /// Whether another session may come.
    fn has_room(&self) -> bool {
        let sessions = self.sessions();
        let coming = self.fabric.commands_waiting();
        let room = sessions as usize + coming < self.admission.sessions_max;
        if !room {
            self.registry.front.accept_rejected[Limit::Sessions.index()].increment();
        }
        room
    }

    /// Bounds what the kernel queues for a relay session, or a slow client hides megabytes there.
    fn tune(&self, socket: &TcpStream) {
        // Best effort: a kernel without the option relays all the same.
        let _ = SockRef::from(socket).set_tcp_notsent_lowat(self.tcp.notsent_lowat_bytes);
    }
}

struct FirstRequest {
    connection: Connection,
    asked: Asked,
    version: Option<TlsVersion>,
}

/// What to do about an accept that the kernel refused for want of something; `None` for others.
fn fix_of_exhaustion(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::EMFILE => Some("raise the hard limit of open files (ulimit -Hn, LimitNOFILE)"),
        libc::ENFILE => Some("raise the host's limit of open files (sysctl fs.file-max)"),
        libc::ENOBUFS | libc::ENOMEM => Some("the kernel has no memory left for sockets"),
        _ => None,
    }
}

/// Binds a listener whose connections inherit the options of relay sessions.
///
/// # Errors
/// The kernel's: the address is taken, or may not be used.
pub fn bind(address: SocketAddr, tcp: &TcpLimits) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(limit) = tcp.user_timeout {
        socket.set_tcp_user_timeout(Some(limit))?;
    }
    if let Some(idle) = tcp.keepalive {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
