//! What the two thread-per-core engines share: the table of peers and their egress, without locks.
//!
//! Frames are sealed once a batch, when the writing task comes round: coalescing without a timer. Must
//! never be shared between threads.

use super::Ingress;
use crate::record::{Outbox, PLAINTEXT_LEN_MAX, Sealer};
use anyhow::Result;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use tokio::sync::Notify;
use wire::key::Key;

/// A client's egress.
pub(super) struct Peer {
    out: RefCell<Egress>,
    ready: Notify,
}

struct Egress {
    outbox: Outbox,
    sealer: Option<Sealer>,
    /// Its writer has been told.
    dirty: bool,
}

/// All clients by key.
pub(super) type Peers = Rc<RefCell<HashMap<Key, Rc<Peer>>>>;

impl Peer {
    pub(super) fn new(sealer: Option<Sealer>) -> Rc<Self> {
        let out = Egress { outbox: Outbox::default(), sealer, dirty: false };
        Rc::new(Self { out: RefCell::new(out), ready: Notify::new() })
    }

    /// Waits for frames and puts all of them, sealed, into `batch`.
    pub(super) async fn next_batch(&self, batch: &mut Vec<u8>) {
        self.ready.notified().await;
        let out = &mut *self.out.borrow_mut();
        out.dirty = false;
        match &mut out.sealer {
            Some(sealer) => out.outbox.seal_record(sealer),
            None => out.outbox.close_plain(),
        }
        batch.clear();
        batch.extend_from_slice(out.outbox.unsent());
        out.outbox.consume(batch.len());
    }

    fn push(&self, head: &[u8], packet: &[u8]) {
        let Egress { outbox, sealer, dirty } = &mut *self.out.borrow_mut();
        if let Some(sealer) = sealer {
            if outbox.record_len() + head.len() + packet.len() > PLAINTEXT_LEN_MAX {
                outbox.seal_record(sealer);
            }
            outbox.open_record();
        }
        outbox.append(head);
        outbox.append(packet);
        if !std::mem::replace(dirty, true) {
            self.ready.notify_one();
        }
    }
}

/// Takes `bytes` as read from `ingress` and queues every frame at its receiver.
pub(super) fn relay(ingress: &mut Ingress, bytes: &[u8], peers: &Peers) -> Result<()> {
    let peers = peers.borrow();
    ingress.feed(bytes, |to, head, packet| {
        if let Some(peer) = peers.get(to) {
            peer.push(head, packet);
        }
    })
}
