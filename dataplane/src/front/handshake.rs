//! The TLS handshake, driven by rustls over a buffer of ours.
//!
//! rustls' unbuffered interface leaves unread ciphertext with the caller, so nothing is lost when
//! the record layer changes hands right behind the client's `Finished`.

use std::io;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{Error, PeerIncompatible, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::stream::Connection;
use crate::certs::ServerConfigs;
use crate::observe::{HandshakeResult, TlsVersion};
use crate::relay::Stream;
use crate::tls;

/// Bytes of ciphertext held for one handshake: a client's flight is far below.
const FLIGHT_LEN_MAX: usize = 32 << 10;
/// Bytes asked of the socket per read.
const READ_LEN: usize = 4 << 10;
/// Content type of a handshake record, the first byte of every TLS client.
const HANDSHAKE: u8 = 22;

/// Fatal alert 70 in a TLS 1.0 record: what a client below TLS 1.2 understands.
const PROTOCOL_VERSION: [u8; 7] = [21, 3, 1, 0, 2, 2, 70];

/// Why a handshake did not finish.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeFault {
    /// The bytes are no TLS at all.
    #[error("not TLS")]
    NotTls,
    /// TLS refused the client; the alert has been sent.
    #[error("{0}")]
    Refused(#[from] Error),
    /// The socket failed or the client left.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl HandshakeFault {
    /// What it counts as. A client that leaves, as port scanners do, is no fault of the socket.
    #[must_use]
    pub fn result(&self) -> HandshakeResult {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match self {
            Self::NotTls | Self::Refused(_) => HandshakeResult::PeerFault,
            Self::Io(error) => match error.kind() {
                UnexpectedEof | ConnectionReset | BrokenPipe => HandshakeResult::PeerFault,
                _ => HandshakeResult::IoError,
            },
        }
    }
}

/// Performs the server's side of the handshake on `tcp`.
///
/// # Errors
/// [`HandshakeFault`]; the connection is of no further use.
pub async fn accept(
    mut tcp: TcpStream,
    configs: &ServerConfigs,
) -> Result<(Connection, TlsVersion), HandshakeFault> {
    let mut sealed = Vec::with_capacity(READ_LEN);
    while !holds_hello(&sealed)? {
        read(&mut tcp, &mut sealed).await?;
    }
    if is_too_old(&sealed) {
        tcp.write_all(&PROTOCOL_VERSION).await?;
        return Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled).into());
    }
    let config = configs.for_hello(&sealed);
    let mut connection = UnbufferedServerConnection::new(config.clone())?;
    let mut out = Vec::new();
    let mut plain = Vec::new();
    loop {
        let step = advance(&mut connection, &mut sealed, &mut out, &mut plain);
        if !out.is_empty() {
            tcp.write_all(&out).await?;
            out.clear();
        }
        match step? {
            Step::Again => {}
            Step::Read => read(&mut tcp, &mut sealed).await?,
            Step::Done => break,
        }
    }
    let version = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => TlsVersion::Tls13,
        _ => TlsVersion::Tls12,
    };
    let (rx, tx) = tls::take_over(connection)?;
    Ok((Connection::secure(tcp, rx, tx, Stream { plain, sealed }), version))
}

enum Step {
    /// Something was written; rustls has more to say.
    Again,
    /// The client must speak first.
    Read,
    /// Application data may flow.
    Done,
}

/// Lets rustls work on `sealed` until it waits for the socket. Replies gather in `out`; data that
/// the client sent right behind its `Finished` in `plain`.
fn advance(
    connection: &mut UnbufferedServerConnection,
    sealed: &mut Vec<u8>,
    out: &mut Vec<u8>,
    plain: &mut Vec<u8>,
) -> Result<Step, HandshakeFault> {
    loop {
        let UnbufferedStatus { mut discard, state } = connection.process_tls_records(sealed);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(out, |room| data.encode(room))?;
                None
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Some(Step::Again)
            }
            Ok(ConnectionState::BlockedHandshake) => Some(Step::Read),
            Ok(ConnectionState::WriteTraffic(_)) => Some(Step::Done),
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    plain.extend_from_slice(record.payload);
                }
                None
            }
            Ok(_) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Err(error) => {
                sealed.drain(..discard);
                alert(connection, sealed, out);
                return Err(error.into());
            }
        };
        sealed.drain(..discard);
        match step {
            Some(Step::Done) if connection.is_handshaking() => return Ok(Step::Read),
            Some(step) => return Ok(step),
            None => {}
        }
    }
}

/// Puts the alert that tells the client why it is refused behind `out`.
///
/// rustls is asked only while it has something to say: it would look at the client's bytes again, and
/// refuse them a second time.
fn alert(connection: &mut UnbufferedServerConnection, sealed: &mut [u8], out: &mut Vec<u8>) {
    while connection.wants_write()
        && let Ok(ConnectionState::EncodeTlsData(mut data)) =
            connection.process_tls_records(sealed).state
    {
        if encode(out, |room| data.encode(room)).is_err() {
            return;
        }
    }
}

fn encode(
    out: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> io::Result<()> {
    let len = out.len();
    let mut room = 4 << 10;
    loop {
        out.resize(len + room, 0);
        match encode(&mut out[len..]) {
            Ok(written) => {
                out.truncate(len + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(need)) => room = need.required_size,
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

/// Whether the first record, which names the protocols the client offers, is complete.
fn holds_hello(sealed: &[u8]) -> Result<bool, HandshakeFault> {
    match sealed {
        [kind, ..] if *kind != HANDSHAKE => Err(HandshakeFault::NotTls),
        [_, _, _, hi, lo, record @ ..] => {
            Ok(record.len() >= usize::from(u16::from_be_bytes([*hi, *lo])))
        }
        _ => Ok(false),
    }
}

/// Whether the hello's own version is below TLS 1.2, as no client of TLS 1.2 or 1.3 writes it.
/// rustls would look for common ciphers first and send an alert that misleads.
fn is_too_old(sealed: &[u8]) -> bool {
    matches!(sealed, [_, _, _, _, _, 1, _, _, _, 3, minor, ..] if *minor < 3)
}

async fn read(tcp: &mut TcpStream, sealed: &mut Vec<u8>) -> Result<(), HandshakeFault> {
    if sealed.len() >= FLIGHT_LEN_MAX {
        return Err(HandshakeFault::NotTls);
    }
    sealed.reserve(READ_LEN);
    match tcp.read_buf(sealed).await? {
        0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        _ => Ok(()),
    }
}
