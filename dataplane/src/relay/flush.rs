//! The end of a round: one seal and one send for each peer that something was queued for.
//!
//! Takes the baton of a peer, seals its flight and gives it to the driver; when the flight lands,
//! counts it and looks whether more has been queued meanwhile: egress is shared, and at most one
//! flight of a peer is out.

use std::io;
use std::sync::Arc;

use proto::derp::{Dropped, Flight};
use wire::drop::DropReason;

use super::Peer;
use super::forward::count_dropped;
use super::worker::Core;
use crate::io::{Driver, Landed, Socket, Submitted, Token};

/// Looks at the list of peers to flush per round. Other cores may refill an outbox as fast as it is
/// sent; without a bound they would keep this core from everything else. Measured: 4 cost a sixth of
/// the goodput in overload, 64 nothing.
const PASSES_MAX: usize = 64;

/// A flight between its send and its landing.
#[derive(Debug)]
pub(crate) struct InFlight<S> {
    pub(crate) peer: Arc<Peer<S>>,
    packets: Dropped,
}

impl<S> InFlight<S> {
    /// Packets on board.
    pub(crate) fn packets(&self) -> u64 {
        self.packets.packets()
    }
}

impl<S: Socket> Core<S> {
    /// Flushes every peer on the list, and those that need it again because of that. What is left
    /// after some passes stays on the list, and the next round does not wait.
    pub(crate) fn flush(&mut self, driver: &mut impl Driver<Socket = S>) {
        for _ in 0..PASSES_MAX {
            if self.cx.dirty.is_empty() {
                return;
            }
            let mut dirty = std::mem::take(&mut self.cx.dirty);
            for peer in dirty.drain(..) {
                self.launch(peer, driver);
            }
            if self.cx.dirty.is_empty() {
                self.cx.dirty = dirty;
            }
        }
    }

    fn launch(&mut self, peer: Arc<Peer<S>>, driver: &mut impl Driver<Socket = S>) {
        let Some(Flight { records, packets }) = peer.outbox().take_off() else { return };
        self.cx.counters.flushes.increment();
        let mut egress = peer.egress();
        let Some(socket) = egress.socket.clone() else {
            drop(egress);
            self.cx.pool.take_back(records.into_plain());
            return self.arrive(&peer, &packets, Err(io::ErrorKind::NotConnected.into()));
        };
        let sealed = match &mut egress.tls {
            None => Some((records.into_plain(), 0)),
            Some(tls) => {
                if peer.warm_up() {
                    self.warm_peers.push_back(Arc::clone(&peer));
                }
                tls.seal(records)
            }
        };
        drop(egress);
        let Some((bytes, count)) = sealed else {
            socket.shutdown();
            return self.arrive(&peer, &packets, Err(io::ErrorKind::NotConnected.into()));
        };
        self.cx.counters.records_sealed.add(count);
        let flight = Token(self.flights.insert(InFlight { peer, packets }));
        match driver.send(&socket, flight, bytes) {
            Submitted::Now(landed) => self.land(landed),
            Submitted::Pending => self.cx.counters.send_pending.increment(),
        }
    }

    /// A flight has left, or failed.
    pub(crate) fn land(&mut self, landed: Landed) {
        let Landed { flight, bytes, result } = landed;
        self.cx.pool.take_back(bytes);
        if let Some(InFlight { peer, packets }) = self.flights.remove(flight.0) {
            self.arrive(&peer, &packets, result);
        }
    }

    fn arrive(&mut self, peer: &Arc<Peer<S>>, packets: &Dropped, result: io::Result<()>) {
        let cx = &mut self.cx;
        match result {
            Ok(()) => {
                cx.counters.packets_forwarded.add(packets.packets());
                cx.counters.bytes_forwarded.add(packets.disco_bytes + packets.other_bytes);
            }
            Err(_) => {
                count_dropped(&cx.counters, DropReason::WriteError, packets);
                peer.shutdown();
            }
        }
        let again = peer.outbox().landed(&mut cx.pool, &cx.fabric.budget);
        if again {
            return cx.dirty.push(Arc::clone(peer));
        }
        let last = peer.egress().end_when_empty;
        // Its owner may have queued the last words since, and flushes them.
        if last && peer.outbox().is_idle() {
            peer.shutdown();
        }
    }
}
