//! Connects one client the way a stock one does: TCP, TLS, upgrade, keys; or one of the simpler ways.
//!
//! Owns the wire form of a client's first flight. Blocking, with a deadline, and done before any traffic
//! starts. The NaCl box comes from `crypto_box`, so that the relay's own box meets a foreign one here.
//! The load generator, the storm and the idle load call it.

use crate::link::{Link, Scratch, split_frame};
use crate::{host, tls};
use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use crypto_box::aead::{Aead as _, AeadCore as _, OsRng};
use crypto_box::{PublicKey, SalsaBox, SecretKey};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use wire::derp::{FrameType, HEADER_LEN, Header, MAGIC};
use wire::key::{KEY_LEN, Key};

/// A stock client gives a connect ten seconds; a storm or a shared machine may need more.
const DEADLINE: Duration = Duration::from_secs(20);
/// The JSON that a stock client seals into its `ClientInfo`.
const CLIENT_INFO: &[u8] = br#"{"version":2,"CanAckPings":true}"#;
/// What precedes the hex key in the meta certificate's common name.
const META_PREFIX: &[u8] = b"derpkey";
/// Send buffer of every client, in bytes. The kernel would let it grow to megabytes: an overload would
/// then measure the cache misses of the load's own queue. What does not fit stays in the schedule.
const SEND_BUFFER_LEN: usize = 256 << 10;
/// Clients that share one source address: below the ephemeral ports of one address.
const CLIENTS_PER_SOURCE: u32 = 20_000;

/// What a client says before its first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Hello {
    /// A stock client's upgrade, keys and all.
    Derp,
    /// A `ClientInfo` frame with the bare key: the engines' relay.
    Key,
    /// Nothing: the limit programs pair connections in order of arrival.
    None,
}

/// A client's key pair.
pub(crate) struct Identity {
    secret: SecretKey,
    /// The key others address this client by.
    pub(crate) public: Key,
}

impl Identity {
    /// A fresh random identity.
    pub(crate) fn generate() -> Self {
        let secret = SecretKey::generate(&mut OsRng);
        let public = Key(*secret.public_key().as_bytes());
        Self { secret, public }
    }

    /// The whole `ClientInfo` frame for the server with key `server`.
    fn client_info(&self, server: &Key) -> Result<Vec<u8>> {
        let nonce = SalsaBox::generate_nonce(&mut OsRng);
        let sealed = SalsaBox::new(&PublicKey::from(server.0), &self.secret)
            .encrypt(&nonce, CLIENT_INFO)
            .ok()
            .context("sealing ClientInfo")?;
        let len = KEY_LEN + nonce.len() + sealed.len();
        let header = Header::bytes(FrameType::ClientInfo, len as u32);
        Ok([&header[..], &self.public.0, &nonce, &sealed].concat())
    }
}

/// Makes connections to one server.
#[derive(Clone)]
pub(crate) struct Dialer {
    server: SocketAddrV4,
    hello: Hello,
    /// `None` on plain TCP.
    tls: Option<Arc<ClientConfig>>,
    /// Connections made so far; chooses the source address.
    dialled: u32,
}

impl Dialer {
    /// A dialer for `server`, over TLS unless `plain`.
    pub(crate) fn new(server: SocketAddrV4, hello: Hello, plain: bool) -> Result<Self> {
        let tls = if plain { None } else { Some(tls::client_config()?) };
        Ok(Self { server, hello, tls, dialled: 0 })
    }

    /// Connects as `identity`, through the hello, to the point where packets may flow.
    pub(crate) fn dial(&mut self, identity: &Identity, scratch: &mut Scratch) -> Result<Link> {
        let mut stream = self.connect()?;
        let (keys, chain) = match &self.tls {
            None => (None, Vec::new()),
            Some(config) => {
                let secured = tls::connect(config, &mut stream)?;
                (Some((secured.opener, secured.sealer)), secured.chain)
            }
        };
        let mut link = Link::new(stream, keys);
        match self.hello {
            Hello::Derp => upgrade(&mut link, identity, meta_key(&chain), scratch)?,
            Hello::Key => {
                let header = Header::bytes(FrameType::ClientInfo, KEY_LEN as u32);
                send(&mut link, &[&header[..], &identity.public.0].concat())?;
                link.receive(scratch)?.context("no answer to the key")?;
            }
            Hello::None => {}
        }
        Ok(link)
    }

    /// Connects and handshakes only, then waits until the server has closed its end too.
    pub(crate) fn dial_tls_only(&mut self) -> Result<()> {
        let mut stream = self.connect()?;
        let config = self.tls.as_ref().context("a TLS-only connect needs TLS")?;
        tls::connect(config, &mut stream)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        std::io::copy(&mut stream, &mut std::io::sink())
            .context("waiting for the server to close")?;
        Ok(())
    }

    fn connect(&mut self) -> Result<TcpStream> {
        let source =
            Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + self.dialled / CLIENTS_PER_SOURCE);
        self.dialled += 1;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_send_buffer_size(SEND_BUFFER_LEN)?;
        if source != Ipv4Addr::LOCALHOST {
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        socket
            .connect_timeout(&SocketAddr::V4(self.server).into(), DEADLINE)
            .context("connecting")?;
        let stream = TcpStream::from(socket);
        host::tune(&stream)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(stream)
    }
}

/// The server's key as its meta certificate tells it, if there is one.
fn meta_key(chain: &[CertificateDer<'_>]) -> Option<Key> {
    chain.iter().find_map(|certificate| {
        let at = certificate.windows(META_PREFIX.len()).position(|window| window == META_PREFIX)?;
        let hex = certificate.get(at + META_PREFIX.len()..)?.get(..KEY_LEN * 2)?;
        Key::from_hex(std::str::from_utf8(hex).ok()?)
    })
}

/// Upgrades and exchanges keys; with a known `server` key in a single flight, as stock clients do.
fn upgrade(
    link: &mut Link,
    identity: &Identity,
    server: Option<Key>,
    scratch: &mut Scratch,
) -> Result<()> {
    let fast = if server.is_some() { "Derp-Fast-Start: 1\r\n" } else { "" };
    let mut flight = format!(
        "GET /derp HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: Go-http-client/1.1\r\n\
         Connection: Upgrade\r\nUpgrade: DERP\r\n{fast}\r\n"
    )
    .into_bytes();
    if let Some(key) = &server {
        flight.extend_from_slice(&identity.client_info(key)?);
    }
    send(link, &flight)?;
    let mut upgraded = server.is_some();
    loop {
        let Some(mut rest) = link.receive(scratch)? else {
            bail!("no answer to the upgrade in time")
        };
        if !upgraded && let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
            ensure!(rest.starts_with(b"HTTP/1.1 101 "), "server refused the upgrade");
            (upgraded, rest) = (true, &rest[end + 4..]);
        }
        let mut answer = None;
        while upgraded && let Some((frame, tail)) = split_frame(rest) {
            rest = tail;
            match FrameType::from_byte(frame[0]) {
                Some(FrameType::ServerKey) => answer = server_key(frame),
                Some(FrameType::ServerInfo) => {
                    link.keep(rest);
                    return Ok(());
                }
                other => bail!("unexpected {other:?} during the hello"),
            }
        }
        link.keep(rest);
        if server.is_none()
            && let Some(key) = answer
        {
            send(link, &identity.client_info(&key)?)?;
        }
    }
}

fn server_key(frame: &[u8]) -> Option<Key> {
    Key::read(frame.get(HEADER_LEN..)?.strip_prefix(&MAGIC)?)
}

fn send(link: &mut Link, bytes: &[u8]) -> Result<()> {
    link.push(bytes);
    link.stream.write_all(link.out.unsent()).context("sending the hello")?;
    link.out.consume(link.out.unsent().len());
    link.out.release();
    Ok(())
}
