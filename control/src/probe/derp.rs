//! DERP as a client: the login, and pings on the open session.
//!
//! A login says that it is a prober's, so that relays do not count it as a user. Frames that a client
//! need not know are skipped, up to a limit.

use std::fmt;
use std::io;
use std::time::Duration;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac;
use proto::derp::hello::{NONCE_LEN, Shared};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use wire::derp::{CLIENT_FRAME_LEN_MAX, FrameType, HEADER_LEN, Header, MAGIC, PONG_LEN, ping};
use wire::key::{KEY_LEN, Key};
use zeroize::Zeroizing;

use super::Fault;
use super::link::{ANSWER, Link, Stream};
use crate::token::random;

/// What the prober says of itself.
const CLIENT_INFO: &str = r#"{"version":2,"CanAckPings":true,"IsProber":true}"#;
/// Frames of other kinds before the one that is waited for, at most.
const FRAMES_SKIPPED_MAX: usize = 64;

/// The key by which a prober logs in.
pub struct Identity {
    private: PrivateKey,
    public: Key,
}

/// Without the private key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.public).finish()
    }
}

impl Identity {
    /// A new one, which no relay knows.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn fresh() -> Result<Self, Fault> {
        PrivateKey::generate(&X25519).and_then(Self::with).map_err(no_entropy)
    }

    /// The one of the store with this secret, the same for all of its controls.
    ///
    /// # Errors
    /// When the secret makes no key.
    pub fn of_store(secret: &[u8; 32]) -> Result<Self, Fault> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let tag = hmac::sign(&key, b"prober");
        // RFC 7748, section 5: any 32 bytes are a private key.
        let private = PrivateKey::from_private_key(&X25519, tag.as_ref());
        let unusable = |_| Fault::failed("the store's secret makes no key");
        private.map_err(unusable).and_then(|private| Self::with(private).map_err(no_entropy))
    }

    fn with(private: PrivateKey) -> Result<Self, Unspecified> {
        let public = Key::read(private.compute_public_key()?.as_ref()).ok_or(Unspecified)?;
        Ok(Self { private, public })
    }

    /// What relays know it by.
    #[must_use]
    pub fn public(&self) -> Key {
        self.public
    }
}

/// A session after its login.
#[derive(Debug)]
pub struct Session {
    stream: Stream,
}

impl Session {
    /// Upgrades `link` and logs in, up to the server's `ServerInfo`.
    pub(super) async fn start(link: Link, identity: &Identity) -> Result<Self, Fault> {
        let mut stream = link.upgrade().await?;
        match timeout(ANSWER, login(&mut stream, identity)).await {
            Ok(result) => result.map(|()| Self { stream }),
            Err(_) => Err(Fault::failed(format_args!("no login in {ANSWER:?}"))),
        }
    }

    /// How long a ping takes to come back.
    ///
    /// # Errors
    /// When it does not, in time.
    pub async fn ping(&mut self) -> Result<Duration, Fault> {
        let data = random::<PONG_LEN>();
        let sent = Instant::now();
        let exchange = async {
            self.stream.write_all(&ping(data)).await?;
            self.stream.flush().await?;
            for _ in 0..FRAMES_SKIPPED_MAX {
                let (kind, payload) = read_frame(&mut self.stream).await?;
                if kind == Some(FrameType::Pong) && payload == data {
                    return Ok(sent.elapsed());
                }
            }
            Err(io::Error::other("other frames came instead of the pong"))
        };
        match timeout(ANSWER, exchange).await {
            Ok(result) => result.map_err(|error| Fault::io(&error)),
            Err(_) => Err(Fault::failed(format_args!("no pong in {ANSWER:?}"))),
        }
    }
}

async fn login(stream: &mut Stream, identity: &Identity) -> Result<(), Fault> {
    let (kind, payload) = read_frame(stream).await.map_err(|error| Fault::io(&error))?;
    let server = payload.strip_prefix(&MAGIC).and_then(Key::read);
    let server = server
        .filter(|key| kind == Some(FrameType::ServerKey) && !key.is_zero())
        .ok_or_else(|| Fault::failed("its first frame is no server key"))?;
    let (client_info, shared) = introduction(identity, &server)?;
    let sent = async {
        stream.write_all(&client_info).await?;
        stream.flush().await
    };
    sent.await.map_err(turned_away)?;
    let (kind, payload) = read_frame(stream).await.map_err(turned_away)?;
    match kind == Some(FrameType::ServerInfo) && shared.open(&payload).is_some() {
        true => Ok(()),
        false => Err(Fault::failed("its frame after the keys is no server info for us")),
    }
}

/// A relay that does not admit a client closes after its `ClientInfo`, without a word.
fn turned_away(error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => Fault::NotAdmitted,
        _ => Fault::io(&error),
    }
}

/// The `ClientInfo` frame of `identity`, and the secret it shares with `server`.
fn introduction(identity: &Identity, server: &Key) -> Result<(Vec<u8>, Shared), Fault> {
    let unusable = |_: Unspecified| Fault::failed("its server key is of no use");
    let mut point = Zeroizing::new([0; KEY_LEN]);
    agree(&identity.private, UnparsedPublicKey::new(&X25519, &server.0), Unspecified, |secret| {
        point.copy_from_slice(secret);
        Ok(())
    })
    .map_err(unusable)?;
    let nonce = random::<NONCE_LEN>();
    let shared = Shared::new(&point);
    Ok((shared.client_info(&identity.public, CLIENT_INFO, nonce), shared))
}

fn no_entropy(_: Unspecified) -> Fault {
    Fault::failed("the system has no random bytes")
}

/// The next frame; its type is `None` if it is of no type we know.
async fn read_frame(stream: &mut Stream) -> io::Result<(Option<FrameType>, Vec<u8>)> {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head).await?;
    let header = Header::read(&head).ok_or(io::ErrorKind::UnexpectedEof)?;
    let len = header.len as usize;
    if len > CLIENT_FRAME_LEN_MAX {
        return Err(io::Error::other("a frame that is longer than any client takes"));
    }
    let mut payload = vec![0; len];
    stream.read_exact(&mut payload).await?;
    Ok((FrameType::from_byte(header.kind), payload))
}
