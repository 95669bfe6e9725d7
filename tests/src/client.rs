//! A small DERP client: enough to be a good neighbour, or a bad one, of the sessions under test.
//!
//! Owns one blocking connection over TLS, with a deadline on every read and write. It shares the
//! codec with the relay; the conformance program is the foreign one. The hostile and start tests
//! call it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use proto::derp::hello::{NONCE_LEN, Shared};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use wire::derp::{self, CLIENT_FRAME_LEN_MAX, FrameType, HEADER_LEN, Header};
use wire::key::Key;
use zeroize::Zeroizing;

use crate::process::PATIENCE;

/// A TLS stream to the relay.
pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A connected client.
#[derive(Debug)]
pub struct Client {
    stream: Tls,
    /// The key others address it by.
    pub key: Key,
}

/// A frame as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its type, `None` for one that this code does not know.
    pub kind: Option<FrameType>,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Client {
    /// Connects to `relay`, upgrades and introduces itself, up to `ServerInfo`.
    ///
    /// # Errors
    /// When the relay closes, is silent or says something else.
    pub fn connect(relay: SocketAddr) -> io::Result<Self> {
        let mut stream = upgrade(relay)?;
        let hello = read_frame(&mut stream)?;
        let server = match hello.payload.split_at_checked(derp::MAGIC.len()) {
            Some((magic, key)) if magic == derp::MAGIC => Key::read(key),
            Some(_) | None => None,
        };
        let server = server.ok_or_else(|| io::Error::other("no ServerKey"))?;
        let (key, client_info, shared) = introduction(&server)?;
        stream.write_all(&client_info)?;
        let info = read_frame(&mut stream)?;
        if info.kind != Some(FrameType::ServerInfo) || shared.open(&info.payload).is_none() {
            return Err(io::Error::other("no ServerInfo"));
        }
        Ok(Self { stream, key })
    }

    /// Sends `packet` to `to`.
    ///
    /// # Errors
    /// When the connection is closed or takes nothing in time.
    pub fn send(&mut self, to: &Key, packet: &[u8]) -> io::Result<()> {
        let mut frame = derp::send_head(to, packet.len()).to_vec();
        frame.extend_from_slice(packet);
        self.write(&frame)
    }

    /// Sends `bytes` as they are.
    ///
    /// # Errors
    /// When the connection is closed or takes nothing in time.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// The next frame.
    ///
    /// # Errors
    /// When the connection is closed or silent.
    pub fn receive(&mut self) -> io::Result<Frame> {
        read_frame(&mut self.stream)
    }

    /// The next packet and its sender; other frames are skipped.
    ///
    /// # Errors
    /// When the connection is closed or silent.
    pub fn receive_packet(&mut self) -> io::Result<(Key, Vec<u8>)> {
        loop {
            let mut frame = self.receive()?;
            if frame.kind == Some(FrameType::RecvPacket) {
                let from =
                    Key::read(&frame.payload).ok_or_else(|| io::Error::other("no source"))?;
                return Ok((from, frame.payload.split_off(from.0.len())));
            }
        }
    }

    /// Waits for the answer to a ping: all that was sent before it has been taken.
    ///
    /// # Errors
    /// When the connection is closed or silent.
    pub fn ping(&mut self, data: [u8; 8]) -> io::Result<()> {
        self.write(&derp::ping(data))?;
        loop {
            let frame = self.receive()?;
            if frame.kind == Some(FrameType::Pong) && frame.payload == data {
                return Ok(());
            }
        }
    }

    /// Reads until the relay closes.
    ///
    /// # Errors
    /// When the relay neither closes nor sends.
    pub fn drain(&mut self) -> io::Result<Vec<Frame>> {
        let mut frames = Vec::new();
        loop {
            match self.receive() {
                Ok(frame) => frames.push(frame),
                Err(error) if timed_out(&error) => return Err(error),
                Err(_) => return Ok(frames),
            }
        }
    }

    /// Vanishes with a reset instead of a farewell.
    pub fn reset(self) {
        reset(&self.stream.sock);
    }

    /// The socket, to shrink its buffers or to look at it.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.stream.sock
    }
}

/// Makes the kernel answer the close of `socket` with a reset.
pub fn reset(socket: &TcpStream) {
    // Without the option the close is an ordinary one, and the test that wanted more still holds.
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(std::time::Duration::ZERO));
}

/// Whether `error` says that nothing came in time, rather than that the connection ended.
#[must_use]
pub fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A TCP connection whose reads and writes end in time.
///
/// # Errors
/// When nobody accepts.
pub fn connect_tcp(relay: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&relay, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A TLS connection whose handshake is done.
///
/// # Errors
/// When the relay does not complete it.
pub fn connect_tls(relay: SocketAddr) -> io::Result<Tls> {
    let connection =
        ClientConnection::new(config(), ServerName::from(relay.ip())).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, connect_tcp(relay)?);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// SHA-256 of the certificate that `relay` presents, as a pin is written.
///
/// # Errors
/// When there is no handshake or no certificate.
pub fn presented_pin(relay: SocketAddr) -> io::Result<String> {
    let stream = connect_tls(relay)?;
    let leaf = stream.conn.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| io::Error::other("no certificate"))?;
    Ok(pin(leaf))
}

/// The pin of a certificate.
#[must_use]
pub fn pin(certificate: &[u8]) -> String {
    let hex = digest(&SHA256, certificate)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    format!("sha256-raw:{hex}")
}

/// A TLS connection upgraded to DERP, before any frame.
///
/// # Errors
/// When the relay does not switch protocols.
pub fn upgrade(relay: SocketAddr) -> io::Result<Tls> {
    let mut stream = connect_tls(relay)?;
    stream.write_all(
        format!(
            "GET /derp HTTP/1.1\r\nHost: {relay}\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
        )
        .as_bytes(),
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    if head.starts_with(b"HTTP/1.1 101 ") {
        Ok(stream)
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()))
    }
}

/// Reads one frame.
///
/// # Errors
/// When the connection ends or is silent, or the frame is longer than any client accepts.
pub fn read_frame(stream: &mut impl Read) -> io::Result<Frame> {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head)?;
    let header = Header::read(&head).ok_or_else(|| io::Error::other("no header"))?;
    let len = header.len as usize;
    if len > CLIENT_FRAME_LEN_MAX {
        return Err(io::Error::other("a frame that would kill a stock client"));
    }
    let mut payload = vec![0; len];
    stream.read_exact(&mut payload)?;
    Ok(Frame { kind: FrameType::from_byte(header.kind), payload })
}

/// A fresh key, the `ClientInfo` frame of its owner, and the secret shared with `server`.
///
/// # Errors
/// When the system gives no entropy or `server` is no key.
pub fn introduction(server: &Key) -> io::Result<(Key, Vec<u8>, Shared)> {
    let broken = |_| io::Error::other("the crypto library refused");
    let private = PrivateKey::generate(&X25519).map_err(broken)?;
    let public = private.compute_public_key().map_err(broken)?;
    let key = Key::read(public.as_ref()).ok_or_else(|| io::Error::other("a short key"))?;
    let mut point = Zeroizing::new([0; 32]);
    agree(
        &private,
        UnparsedPublicKey::new(&X25519, &server.0),
        aws_lc_rs::error::Unspecified,
        |secret| {
            point.copy_from_slice(secret);
            Ok(())
        },
    )
    .map_err(broken)?;
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).map_err(broken)?;
    let shared = Shared::new(&point);
    let frame = shared.client_info(&key, r#"{"version":2,"CanAckPings":true}"#, nonce);
    Ok((key, frame, shared))
}

fn config() -> Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    let make = || {
        let provider = Arc::new(provider::default_provider());
        let verifier = Arc::new(AnyCertificate(Arc::clone(&provider)));
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Arc::new(config)
    };
    Arc::clone(CONFIG.get_or_init(make))
}

/// Takes any certificate, but no wrong signature: which certificate it is, tests look at themselves.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
