//! The framed relay as it is ordinarily written: multi-thread tokio, two tasks and a channel for each client.
//!
//! The baseline that the other engines are compared with. As many workers as the process has cores.

use super::{Ingress, Newcomers, READ_LEN};
use crate::record::{Outbox, PLAINTEXT_LEN_MAX, Sealer};
use anyhow::Result;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use wire::derp::RECV_HEAD_LEN;
use wire::key::Key;

/// Frames that wait for one client at most; the newest is then dropped.
const QUEUE_FRAMES_MAX: usize = 512;

type Frame = Vec<u8>;
type Peers = Arc<RwLock<HashMap<Key, mpsc::Sender<Frame>>>>;

pub(super) fn run(mut newcomers: Newcomers) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async move {
        let peers = Peers::default();
        while let Some(newcomer) = newcomers.recv().await {
            newcomer.stream.set_nonblocking(true)?;
            let (reader, writer) = TcpStream::from_std(newcomer.stream)?.into_split();
            let (opener, sealer) = newcomer.keys.unzip();
            let (sender, frames) = mpsc::channel(QUEUE_FRAMES_MAX);
            peers.write().unwrap_or_else(PoisonError::into_inner).insert(newcomer.key, sender);
            tokio::spawn(write(writer, sealer, frames));
            tokio::spawn(read(reader, Ingress::new(newcomer.key, opener), Arc::clone(&peers)));
        }
        Ok(())
    })
}

async fn read(mut stream: OwnedReadHalf, mut ingress: Ingress, peers: Peers) {
    let mut buffer = vec![0; READ_LEN];
    while let Ok(len) = stream.read(&mut buffer).await {
        let fed =
            ingress.feed(&buffer[..len], |to, head, packet| deliver(&peers, to, head, packet));
        if len == 0 || fed.is_err() {
            break;
        }
    }
    peers.write().unwrap_or_else(PoisonError::into_inner).remove(&ingress.key);
}

fn deliver(peers: &Peers, to: &Key, head: &[u8; RECV_HEAD_LEN], packet: &[u8]) {
    if let Some(peer) = peers.read().unwrap_or_else(PoisonError::into_inner).get(to) {
        // A full queue drops the frame: a relay never waits for a receiver.
        let _ = peer.try_send([&head[..], packet].concat());
    }
}

async fn write(
    mut stream: OwnedWriteHalf,
    mut sealer: Option<Sealer>,
    mut frames: mpsc::Receiver<Frame>,
) {
    let mut outbox = Outbox::default();
    while let Some(first) = frames.recv().await {
        append(&mut outbox, sealer.as_mut(), &first);
        while let Ok(frame) = frames.try_recv() {
            append(&mut outbox, sealer.as_mut(), &frame);
        }
        match &mut sealer {
            Some(sealer) => outbox.seal_record(sealer),
            None => outbox.close_plain(),
        }
        if stream.write_all(outbox.unsent()).await.is_err() {
            return;
        }
        outbox.consume(outbox.unsent().len());
    }
}

fn append(outbox: &mut Outbox, sealer: Option<&mut Sealer>, frame: &[u8]) {
    if let Some(sealer) = sealer {
        if outbox.record_len() + frame.len() > PLAINTEXT_LEN_MAX {
            outbox.seal_record(sealer);
        }
        outbox.open_record();
    }
    outbox.append(frame);
}
