//! The framed relay on glommio: one executor, its own rings, two handles on each socket.

use super::local::{Peer, Peers, relay};
use super::{Ingress, Newcomers, READ_LEN};
use anyhow::{Context as _, Result};
use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _};
use glommio::LocalExecutorBuilder;
use glommio::net::TcpStream;
use std::rc::Rc;

pub(super) fn run(mut newcomers: Newcomers) -> Result<()> {
    // The calling thread is pinned already if it is to be.
    let executor = LocalExecutorBuilder::default()
        .make()
        .ok()
        .context("glommio needs io_uring and memlock")?;
    executor.run(async move {
        let peers = Peers::default();
        while let Some(newcomer) = newcomers.recv().await {
            let reader = TcpStream::from(socket2_old::Socket::from(newcomer.stream.try_clone()?));
            let writer = TcpStream::from(socket2_old::Socket::from(newcomer.stream));
            let (opener, sealer) = newcomer.keys.unzip();
            let peer = Peer::new(sealer);
            peers.borrow_mut().insert(newcomer.key, Rc::clone(&peer));
            glommio::spawn_local(write(writer, peer)).detach();
            let ingress = Ingress::new(newcomer.key, opener);
            glommio::spawn_local(read(reader, ingress, Rc::clone(&peers))).detach();
        }
        Ok(())
    })
}

async fn read(mut stream: TcpStream, mut ingress: Ingress, peers: Peers) {
    let mut buffer = vec![0; READ_LEN];
    while let Ok(len) = stream.read(&mut buffer).await {
        if len == 0 || relay(&mut ingress, &buffer[..len], &peers).is_err() {
            break;
        }
    }
    peers.borrow_mut().remove(&ingress.key);
}

async fn write(mut stream: TcpStream, peer: Rc<Peer>) {
    let mut batch = Vec::new();
    loop {
        peer.next_batch(&mut batch).await;
        if stream.write_all(&batch).await.is_err() {
            return;
        }
    }
}
