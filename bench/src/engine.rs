//! Engines: the same framed relay on the runtimes that were not chosen, so that the choice stays checkable.
//!
//! Owns what all engines share: accepting and handshaking on a thread of their own, and taking frames apart.
//! An engine only moves bytes: read, `Ingress::feed`, deliver, write. Must never be on the relay's own data
//! path. The load generator drives them with `--hello key`, over TLS or `--plain`.

mod glommio;
mod local;
mod tokio_mt;
mod tokio_uring;

use crate::link::{Link, Scratch, split_frame};
use crate::record::{self, Opener, Sealer};
use crate::{host, tls};
use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use wire::derp::{FrameType, HEADER_LEN, Header, RECV_HEAD_LEN, recv_head};
use wire::key::{KEY_LEN, Key};

/// Bytes an engine reads at once: an owned buffer that is busy even while its connection is idle.
const READ_LEN: usize = 16 << 10;

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// Multi-thread tokio: two tasks and a channel for each client, as is ordinarily written.
    TokioMt,
    /// tokio-uring: one thread, owned buffers.
    TokioUring,
    /// glommio: one thread, its own rings.
    Glommio,
}

/// How to run it.
#[derive(Args, Clone, Debug)]
pub(crate) struct EngineArgs {
    /// Which one.
    #[arg(value_enum)]
    engine: Engine,
    /// Port on the loopback address; 0 takes any free one and prints it.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Plain TCP instead of TLS.
    #[arg(long)]
    plain: bool,
    /// Core to stay on.
    #[arg(long)]
    core: Option<usize>,
}

/// A client that has said its key.
struct Newcomer {
    key: Key,
    stream: TcpStream,
    keys: Option<(Opener, Sealer)>,
}

type Newcomers = mpsc::UnboundedReceiver<Newcomer>;

/// Runs an engine until it is ended.
pub(crate) fn main(args: &EngineArgs) -> Result<()> {
    host::lift_descriptor_limit()?;
    if let Some(core) = args.core {
        host::pin(&[core])?;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port))?;
    let port = listener.local_addr()?.port();
    let (sender, newcomers) = mpsc::unbounded_channel();
    let config = if args.plain { None } else { Some(tls::server_config()?) };
    std::thread::spawn(move || accept_all(&listener, config.as_ref(), &sender));
    crate::event(&serde_json::json!({ "event": "listening", "port": port }));
    match args.engine {
        Engine::TokioMt => tokio_mt::run(newcomers),
        Engine::TokioUring => tokio_uring::run(newcomers),
        Engine::Glommio => glommio::run(newcomers),
    }
}

/// Accepts one client after the other, blocking; what fails is closed.
fn accept_all(
    listener: &TcpListener,
    config: Option<&Arc<rustls::ServerConfig>>,
    to: &mpsc::UnboundedSender<Newcomer>,
) {
    let mut scratch = Scratch::default();
    while let Ok((stream, _)) = listener.accept() {
        match welcome(stream, config, &mut scratch) {
            Ok(newcomer) => {
                if to.send(newcomer).is_err() {
                    return;
                }
            }
            Err(error) => eprintln!("bench: a client was refused: {error:#}"),
        }
    }
}

fn welcome(
    mut stream: TcpStream,
    config: Option<&Arc<rustls::ServerConfig>>,
    scratch: &mut Scratch,
) -> Result<Newcomer> {
    host::tune(&stream)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let keys = match config {
        Some(config) => {
            let secured = tls::accept(config, &mut stream)?;
            Some((secured.opener, secured.sealer))
        }
        None => None,
    };
    let mut link = Link::new(stream, keys);
    let hello = link.receive(scratch)?.context("client said nothing")?;
    let (frame, _) = split_frame(hello).context("client's key is cut short")?;
    let key = Key::read(&frame[HEADER_LEN..]).context("client's key is too short")?;
    link.push(&Header::bytes(FrameType::ServerInfo, 0));
    link.stream.write_all(link.out.unsent())?;
    let (stream, keys) = link.into_parts();
    stream.set_read_timeout(None)?;
    Ok(Newcomer { key, stream, keys })
}

/// One client's bytes on their way in: opened, cut into frames, given to their receivers.
struct Ingress {
    key: Key,
    opener: Option<Opener>,
    /// The start of a record whose rest has not come.
    cipher: Vec<u8>,
    /// Plaintext; all of it initialised, the first `plain_len` bytes in use.
    plain: Vec<u8>,
    plain_len: usize,
}

impl Ingress {
    fn new(key: Key, opener: Option<Opener>) -> Self {
        Self { key, opener, cipher: Vec::new(), plain: Vec::new(), plain_len: 0 }
    }

    /// Takes `bytes` as read; calls `deliver` with receiver, head and packet of every whole frame.
    fn feed(
        &mut self,
        bytes: &[u8],
        mut deliver: impl FnMut(&Key, &[u8; RECV_HEAD_LEN], &[u8]),
    ) -> Result<()> {
        match &mut self.opener {
            Some(opener) => {
                self.cipher.extend_from_slice(bytes);
                self.plain.resize(self.plain.len().max(self.plain_len + self.cipher.len()), 0);
                let mut rest = &self.cipher[..];
                while let Some(len) = record::record_len(rest)
                    && len <= rest.len()
                {
                    self.plain_len +=
                        opener.open(&rest[..len], &mut self.plain[self.plain_len..])?;
                    rest = &rest[len..];
                }
                let used = self.cipher.len() - rest.len();
                self.cipher.drain(..used);
            }
            None => {
                self.plain.truncate(self.plain_len);
                self.plain.extend_from_slice(bytes);
                self.plain_len = self.plain.len();
            }
        }
        let mut rest = &self.plain[..self.plain_len];
        while let Some((frame, tail)) = split_frame(rest) {
            rest = tail;
            if frame[0] == FrameType::SendPacket as u8 {
                ensure!(frame.len() >= RECV_HEAD_LEN, "packet without a receiver");
                let (head, packet) = frame.split_at(RECV_HEAD_LEN);
                let to = Key::read(&head[HEADER_LEN..]).context("32 bytes remain of the head")?;
                deliver(&to, &recv_head(&self.key, packet.len()), packet);
            }
        }
        let used = self.plain_len - rest.len();
        self.plain.copy_within(used..self.plain_len, 0);
        self.plain_len -= used;
        Ok(())
    }
}

const _: () = assert!(RECV_HEAD_LEN == HEADER_LEN + KEY_LEN);
