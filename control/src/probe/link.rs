//! One HTTP/1.1 connection, over TLS or not, to whoever is probed.
//!
//! Dialling is done before a request is timed, so that a latency is that of one round trip and its
//! answer, as browsers' Resource Timing and Coder's dashboard have it. No ALPN is offered and no
//! redirect followed. Answers are read up to a limit.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, HOST, HeaderValue, UPGRADE, USER_AGENT};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::{Family, Fault};
use crate::fault::words;

/// Time for one address to accept.
const CONNECT: Duration = Duration::from_secs(2);
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Time for an answer, body included.
pub(super) const ANSWER: Duration = Duration::from_secs(4);
/// Bytes of an answer's body, at most.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an answer's head, at most.
const HEAD_BYTES_MAX: usize = 32 * 1024;
const AGENT: &str = concat!("perigee-control/", env!("CARGO_PKG_VERSION"));

/// Where to dial, and what to say and expect there.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    /// Addresses, the first that accepts is taken.
    pub(super) addresses: Vec<SocketAddr>,
    /// The name and port for the `Host` header.
    pub(super) host: String,
    /// TLS, with the name that it is for; none for plain HTTP.
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// Somebody to ask again and again: a connection, opened anew where it was closed.
#[derive(Debug)]
pub(super) struct Line {
    dial: Dial,
    link: Option<Link>,
}

impl Line {
    /// Connects as `dial` says.
    pub(super) async fn open(dial: Dial) -> Result<Self, Fault> {
        let link = Link::open(&dial).await?;
        Ok(Self { dial, link: Some(link) })
    }

    /// The answer to a GET of `path`.
    pub(super) async fn get(&mut self, path: &str) -> Result<Answer, Fault> {
        let mut link = self.take().await?;
        let answer = link.get(path).await?;
        self.link = Some(link);
        Ok(answer)
    }

    /// The connection, to be used up.
    pub(super) async fn take(&mut self) -> Result<Link, Fault> {
        if let Some(mut link) = self.link.take()
            && link.is_open().await
        {
            return Ok(link);
        }
        Link::open(&self.dial).await
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Link {
    sender: SendRequest<Empty<Bytes>>,
    host: HeaderValue,
    /// What moves the connection's bytes, ended with it.
    _driver: JoinSet<()>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
    /// From the request to the answer's head.
    pub(super) round_trip: Duration,
}

impl Link {
    async fn open(dial: &Dial) -> Result<Self, Fault> {
        let stream = connect(&dial.addresses).await?;
        let Some((settings, name)) = &dial.tls else { return Self::over(stream, &dial.host).await };
        let connector = TlsConnector::from(Arc::clone(settings));
        match timeout(HANDSHAKE, connector.connect(name.clone(), stream)).await {
            Ok(Ok(stream)) => Self::over(stream, &dial.host).await,
            Ok(Err(error)) => Err(Fault::failed(format_args!("TLS: {}", words(&error)))),
            Err(_) => Err(Fault::failed(format_args!("TLS: no handshake in {HANDSHAKE:?}"))),
        }
    }

    async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        host: &str,
    ) -> Result<Self, Fault> {
        let host = HeaderValue::from_str(host).map_err(Fault::failed)?;
        let opened = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = opened.map_err(Fault::failed)?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // How it ended, whoever waits for an answer is told.
            let _ = connection.with_upgrades().await;
        });
        Ok(Self { sender, host, _driver: driver })
    }

    /// Whether another request may be sent.
    async fn is_open(&mut self) -> bool {
        // Ready at once or closed, unless the server goes on with an answer that was complete.
        matches!(timeout(ANSWER, self.sender.ready()).await, Ok(Ok(())))
    }

    /// The answer to a GET of `path`.
    async fn get(&mut self, path: &str) -> Result<Answer, Fault> {
        let request = self.request(path)?;
        let exchange = async {
            let sent = Instant::now();
            let answer = self.sender.send_request(request).await.map_err(said_wrong)?;
            let round_trip = sent.elapsed();
            let status = answer.status();
            let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
            let body = body.map_err(|error| Fault::failed(format_args!("{path}: {error}")))?;
            Ok(Answer { status, body: body.to_bytes().to_vec(), round_trip })
        };
        let silent = || Fault::failed(format_args!("{path}: no answer in {ANSWER:?}"));
        timeout(ANSWER, exchange).await.map_err(|_| silent())?
    }

    /// The bare stream, once the server has switched it to DERP.
    pub(super) async fn upgrade(mut self) -> Result<Stream, Fault> {
        let mut request = self.request("/derp")?;
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("DERP"));
        let exchange = async {
            let answer = self.sender.send_request(request).await.map_err(said_wrong)?;
            switched(answer).await
        };
        let silent = || Fault::failed(format_args!("/derp: no answer in {ANSWER:?}"));
        let upgraded = timeout(ANSWER, exchange).await.map_err(|_| silent())??;
        Ok(TokioIo::new(upgraded))
    }

    fn request(&self, path: &str) -> Result<Request<Empty<Bytes>>, Fault> {
        Request::get(path)
            .header(HOST, &self.host)
            .header(USER_AGENT, AGENT)
            .body(Empty::new())
            .map_err(Fault::failed)
    }
}

/// A connection that has left HTTP.
pub(super) type Stream = TokioIo<Upgraded>;

async fn switched(answer: Response<hyper::body::Incoming>) -> Result<Upgraded, Fault> {
    let status = answer.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Fault::failed(format_args!("/derp: answered {status} to the upgrade")));
    }
    hyper::upgrade::on(answer).await.map_err(said_wrong)
}

/// What is behind hyper's word for it.
fn said_wrong(error: hyper::Error) -> Fault {
    let cause = std::error::Error::source(&error);
    let io = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>());
    match io {
        Some(error) => Fault::io(error),
        None if error.is_incomplete_message() => Fault::failed("closed without an answer"),
        None => Fault::failed(error),
    }
}

/// The first of `addresses` that accepts; else why the first did not that this host has a way to.
async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, Fault> {
    let mut why = Fault::failed("there is no address to dial");
    for (number, address) in addresses.iter().enumerate() {
        let fault = match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Without it the latency is that of the kernel's patience.
                stream.set_nodelay(true).map_err(|error| Fault::io(&error))?;
                return Ok(stream);
            }
            Ok(Err(error)) => match error.kind() {
                ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => {
                    Fault::NoFamily(Family::of(*address))
                }
                _ => Fault::failed(format_args!("{address}: {}", words(&error))),
            },
            Err(_) => Fault::failed(format_args!("{address}: did not accept in {CONNECT:?}")),
        };
        if number == 0 || matches!(why, Fault::NoFamily(_)) {
            why = fault;
        }
    }
    Err(why)
}
