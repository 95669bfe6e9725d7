//! The DERP greeting: from an upgrade request to a session on a relay core.
//!
//! The costly part of a login, one X25519, happens here, on the front's budget. The relay core gets
//! a client whose key is proved and whose `ServerInfo` is sealed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use proto::derp::Framing;
use proto::derp::hello::{self, ClientInfo, HelloFault, NONCE_LEN, Shared};
use proto::ws;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use wire::derp::{self, HEADER_LEN, Header, VERSION};
use wire::key::Key;

use super::Front;
use super::head::WebSocket;
use super::stream::Connection;
use crate::io::Socket as _;
use crate::observe::{LoginFailure, Upgrade};
use crate::relay::{Command, Newcomer};

/// Time a client has to introduce itself after the upgrade, as in stock derper.
const LOGIN: Duration = Duration::from_secs(10);

/// Why a client did not become a session.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoginFault {
    #[error("no ClientInfo within 10 s")]
    Silent,
    #[error("{0}")]
    Hello(#[from] HelloFault),
    #[error("websocket: {0}")]
    WebSocket(&'static str),
    /// It is told so by a close frame.
    #[error("websocket: {}", .0.reason())]
    Frames(ws::Fault),
    /// With its own code, which is echoed.
    #[error("websocket: closed")]
    Closed(Option<u16>),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("every session slot is taken")]
    Full,
    #[error("its key is not registered")]
    NotAdmitted,
    #[error("the relay is draining")]
    Draining,
}

impl LoginFault {
    /// What it counts as.
    pub(super) fn kind(&self) -> LoginFailure {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match self {
            Self::Silent => LoginFailure::Timeout,
            Self::Hello(_) => LoginFailure::Hello,
            Self::WebSocket(_) | Self::Frames(_) => LoginFailure::WebSocket,
            Self::Closed(_) => LoginFailure::Gone,
            Self::Full => LoginFailure::Full,
            Self::NotAdmitted => LoginFailure::NotAdmitted,
            Self::Draining => LoginFailure::Draining,
            Self::Io(error) => match error.kind() {
                UnexpectedEof | ConnectionReset | BrokenPipe => LoginFailure::Gone,
                _ => LoginFailure::IoError,
            },
        }
    }
}

/// How the client asked for DERP.
pub(super) enum Way {
    Raw { fast_start: bool },
    WebSocket(Box<WebSocket>),
}

/// Answers the upgrade, hears the client's introduction and hands the connection over.
pub(super) async fn welcome(
    front: &Front,
    mut connection: Connection,
    way: Way,
    not_ideal: bool,
) -> Result<(), LoginFault> {
    if front.is_draining() {
        return Err(LoginFault::Draining);
    }
    let mut answer = head_of_answer(&way, &front.identity.public());
    if let Way::WebSocket(terms) = &way
        && !(terms.fits() && terms.offers_derp)
    {
        return refuse(&mut connection, terms, answer).await;
    }
    let (framing, upgrade) = match way {
        Way::Raw { fast_start: true } => (Framing::Raw, Upgrade::Fast),
        Way::Raw { fast_start: false } => (Framing::Raw, Upgrade::Raw),
        Way::WebSocket(_) => (Framing::WebSocket, Upgrade::WebSocket),
    };
    frame(framing, &derp::server_key(&front.identity.public()), &mut answer);
    let decoder = (framing == Framing::WebSocket).then(Box::default);
    let mut intake = Intake { connection, decoder };
    let introduced = timeout(LOGIN, async {
        intake.say(&answer).await?;
        introduction(front, &mut intake).await
    });
    let (key, shared) = match introduced.await {
        Ok(Ok(introduced)) => introduced,
        Ok(Err(fault)) => {
            // The client may be gone; that is its end either way.
            let _ = timeout(LOGIN, intake.say_goodbye(&fault)).await;
            return Err(fault);
        }
        Err(_) => return Err(LoginFault::Silent),
    };
    hand_over(front, intake, framing, key, &shared, not_ideal)?;
    front.registry.front.upgrades[upgrade.index()].increment();
    Ok(())
}

/// Answers a WebSocket upgrade that cannot lead to DERP.
async fn refuse(
    connection: &mut Connection,
    terms: &WebSocket,
    mut answer: Vec<u8>,
) -> Result<(), LoginFault> {
    const REASON: &str = "client must speak the derp subprotocol";
    if !terms.fits() {
        let _ = timeout(LOGIN, write(connection, &answer)).await;
        return Err(LoginFault::WebSocket("version or key does not fit"));
    }
    let mut out = [0; ws::CONTROL_FRAME_LEN_MAX];
    answer.extend_from_slice(ws::close(Some(1008), REASON, &mut out));
    let _ = timeout(LOGIN, async {
        write(connection, &answer).await?;
        // The client's own close, or its end, says that it has read ours.
        connection.fill().await
    })
    .await;
    Err(LoginFault::WebSocket(REASON))
}

/// The HTTP part of the answer, byte for byte as stock servers write it.
fn head_of_answer(way: &Way, key: &Key) -> Vec<u8> {
    match way {
        Way::Raw { fast_start: true } => Vec::new(),
        Way::Raw { fast_start: false } => format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\
             Derp-Version: {VERSION}\r\nDerp-Public-Key: {key}\r\n\r\n"
        )
        .into_bytes(),
        Way::WebSocket(terms) if !terms.fits() => {
            b"HTTP/1.1 400 Bad Request\r\nSec-Websocket-Version: 13\r\nContent-Length: 0\r\n\
              Connection: close\r\n\r\n"
                .to_vec()
        }
        Way::WebSocket(terms) => {
            let mut answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                Connection: Upgrade\r\nSec-Websocket-Accept: "
                .to_vec();
            answer.extend_from_slice(&ws::accept_key(&terms.key));
            if terms.offers_derp {
                answer.extend_from_slice(b"\r\nSec-Websocket-Protocol: derp");
            }
            answer.extend_from_slice(b"\r\n\r\n");
            answer
        }
    }
}

async fn introduction(front: &Front, intake: &mut Intake) -> Result<(Key, Shared), LoginFault> {
    let header = intake.take(HEADER_LEN).await?;
    let header = Header::read(&header).ok_or(HelloFault::NotClientInfo)?;
    let payload = intake.take(hello::client_info_len(header)?).await?;
    let key = hello::client_key(&payload)?;
    let point = front.identity.agree(&key).ok_or(HelloFault::Key)?;
    let shared = Shared::new(&point);
    let ClientInfo { .. } = shared.open_client_info(&payload)?;
    if !front.fabric.admits(&key) {
        return Err(LoginFault::NotAdmitted);
    }
    Ok((key, shared))
}

fn hand_over(
    front: &Front,
    intake: Intake,
    framing: Framing,
    key: Key,
    shared: &Shared,
    not_ideal: bool,
) -> Result<(), LoginFault> {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).map_err(|_| io::Error::other("no random numbers"))?;
    let (tcp, mut tls, early) = intake.connection.into_parts();
    if let Some((rx, tx)) = &mut tls {
        // The expanded keys are worth more to this thread's next handshake than on another core.
        rx.aead_mut().cool();
        tx.cool();
    }
    let socket = Arc::new(tcp.into_std()?);
    front.tune(&socket);
    if !front.has_room() {
        socket.shutdown();
        return Err(LoginFault::Full);
    }
    let newcomer = Newcomer {
        socket,
        tls,
        framing,
        key,
        greeting: shared.server_info(nonce),
        early,
        decoder: intake.decoder,
        not_ideal,
    };
    front.fabric.post(front.fabric.least_loaded(), Command::Adopt(Box::new(newcomer)));
    Ok(())
}

fn frame(framing: Framing, frame: &[u8], out: &mut Vec<u8>) {
    if framing == Framing::WebSocket {
        let (header, len) = ws::header(ws::Opcode::Binary, frame.len());
        out.extend_from_slice(&header[..len]);
    }
    out.extend_from_slice(frame);
}

/// Writes `bytes` and waits until the socket has all of them: what is left in the connection does
/// not move while it is read, nor to a relay core.
async fn write(connection: &mut Connection, bytes: &[u8]) -> io::Result<()> {
    connection.write_all(bytes).await?;
    connection.flush().await
}

/// The client's DERP bytes, out of whatever they travel in.
struct Intake {
    connection: Connection,
    decoder: Option<Box<ws::Decoder>>,
}

impl Intake {
    async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        write(&mut self.connection, bytes).await
    }

    /// The close frame that a WebSocket client is owed for `fault`.
    async fn say_goodbye(&mut self, fault: &LoginFault) -> io::Result<()> {
        let (code, reason) = match fault {
            LoginFault::Frames(fault) => (Some(fault.code()), fault.reason()),
            LoginFault::Closed(code) => (*code, ""),
            LoginFault::Silent
            | LoginFault::Hello(_)
            | LoginFault::WebSocket(_)
            | LoginFault::Io(_)
            | LoginFault::Full
            | LoginFault::NotAdmitted
            | LoginFault::Draining => return Ok(()),
        };
        let mut out = [0; ws::CONTROL_FRAME_LEN_MAX];
        self.say(ws::close(code, reason, &mut out)).await?;
        self.connection.shutdown().await
    }

    /// The next `len` bytes.
    async fn take(&mut self, len: usize) -> Result<Vec<u8>, LoginFault> {
        let mut taken = Vec::with_capacity(len);
        while taken.len() < len {
            if self.connection.peek().is_empty() && !self.connection.fill().await? {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let mut pongs = Vec::new();
            match &mut self.decoder {
                None => {
                    let have = self.connection.peek();
                    let part = have.len().min(len - taken.len());
                    taken.extend_from_slice(&have[..part]);
                    self.connection.consume(part);
                }
                Some(decoder) => {
                    take_message(&mut self.connection, decoder, len, &mut taken, &mut pongs)?;
                }
            }
            if !pongs.is_empty() {
                self.say(&pongs).await?;
            }
        }
        Ok(taken)
    }
}

/// Moves at most `len - taken.len()` payload bytes out of WebSocket frames. The decoder is fed no
/// more than is missing, so that what follows the introduction stays with the connection.
fn take_message(
    connection: &mut Connection,
    decoder: &mut ws::Decoder,
    len: usize,
    taken: &mut Vec<u8>,
    pongs: &mut Vec<u8>,
) -> Result<(), LoginFault> {
    let have = connection.peek();
    let part = have.len().min(len - taken.len());
    let mut bytes = have[..part].to_vec();
    let mut input = &mut bytes[..];
    while let Some(event) = decoder.step(&mut input) {
        match event {
            ws::Event::Data(data) => taken.extend_from_slice(data),
            ws::Event::Ping(payload) => {
                let mut out = [0; ws::CONTROL_FRAME_LEN_MAX];
                pongs.extend_from_slice(ws::control(ws::Opcode::Pong, payload, &mut out));
            }
            ws::Event::Pong => {}
            ws::Event::Close(code) => return Err(LoginFault::Closed(code)),
            ws::Event::Fault(fault) => return Err(LoginFault::Frames(fault)),
        }
    }
    connection.consume(part);
    Ok(())
}
