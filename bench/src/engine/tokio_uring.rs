//! The framed relay on tokio-uring: one thread, owned read buffers, one write in flight for each client.

use super::local::{Peer, Peers, relay};
use super::{Ingress, Newcomers, READ_LEN};
use anyhow::Result;
use std::rc::Rc;
use tokio_uring::net::TcpStream;

pub(super) fn run(mut newcomers: Newcomers) -> Result<()> {
    tokio_uring::start(async move {
        let peers = Peers::default();
        while let Some(newcomer) = newcomers.recv().await {
            let stream = Rc::new(TcpStream::from_std(newcomer.stream));
            let (opener, sealer) = newcomer.keys.unzip();
            let peer = Peer::new(sealer);
            peers.borrow_mut().insert(newcomer.key, Rc::clone(&peer));
            tokio_uring::spawn(write(Rc::clone(&stream), peer));
            tokio_uring::spawn(read(stream, Ingress::new(newcomer.key, opener), Rc::clone(&peers)));
        }
        Ok(())
    })
}

async fn read(stream: Rc<TcpStream>, mut ingress: Ingress, peers: Peers) {
    let mut buffer = vec![0; READ_LEN];
    loop {
        let (got, read) = stream.read(buffer).await;
        buffer = read;
        match got {
            Ok(len) if len > 0 && relay(&mut ingress, &buffer[..len], &peers).is_ok() => {}
            Ok(_) | Err(_) => break,
        }
    }
    peers.borrow_mut().remove(&ingress.key);
}

async fn write(stream: Rc<TcpStream>, peer: Rc<Peer>) {
    let mut batch = Vec::new();
    loop {
        peer.next_batch(&mut batch).await;
        let (done, written) = stream.write_all(batch).await;
        batch = written;
        if done.is_err() {
            return;
        }
    }
}
