//! One client's receiving side, owned by one core.
//!
//! Takes what the driver received through TLS records, WebSocket messages and DERP frames to
//! verdicts. An idle session holds no buffer: partial records and frames are kept only while cut
//! short. The sending side is the session's [`Peer`].

use std::sync::Arc;

use proto::derp::{Ingress, PeerFault, Verdict};
use proto::tick::Tick;
use proto::tls::{Fault, Opened};
use proto::ws;

use super::context::Context;
use super::forward::Actor;
use super::{Peer, Stream};
use crate::io::Socket;
use crate::observe::CloseReason;
use crate::tls::Rx;

#[derive(Debug)]
pub(crate) struct Session<S> {
    records: Option<Box<Records>>,
    reader: Reader<S>,
    /// Set once the session is to end; what arrives later is ignored.
    pub(crate) ending: Option<CloseReason>,
    /// The expanded receiving key is held, and the session is on its worker's list to cool.
    warm: bool,
}

/// TLS records of the receiving direction.
#[derive(Debug)]
struct Records {
    rx: Rx,
    /// A record cut short. Invariant: shorter than the record.
    partial: Vec<u8>,
}

/// What lies above the records.
#[derive(Debug)]
struct Reader<S> {
    messages: Option<Box<ws::Decoder>>,
    frames: Ingress,
    actor: Actor<S>,
}

impl<S: Socket> Session<S> {
    pub(crate) fn new(
        peer: Arc<Peer<S>>,
        rx: Option<Rx>,
        messages: Option<Box<ws::Decoder>>,
        now: Tick,
    ) -> Self {
        Self {
            records: rx.map(|rx| Box::new(Records { rx, partial: Vec::new() })),
            reader: Reader { messages, frames: Ingress::default(), actor: Actor::new(peer, now) },
            ending: None,
            warm: false,
        }
    }

    pub(crate) fn peer(&self) -> &Arc<Peer<S>> {
        &self.reader.actor.peer
    }

    pub(crate) fn into_actor(self) -> Actor<S> {
        self.reader.actor
    }

    pub(crate) fn actor(&mut self) -> &mut Actor<S> {
        &mut self.reader.actor
    }

    /// Takes bytes that were read before the session came to this core.
    pub(crate) fn receive_early(&mut self, early: &mut Stream, cx: &mut Context<S>) {
        if let Err(reason) = self.reader.read(&mut early.plain, cx) {
            self.end(reason);
        }
        self.receive(&mut early.sealed, cx);
    }

    /// Takes the next bytes from the socket. On a fault the connection is shut down.
    #[inline]
    pub(crate) fn receive(&mut self, bytes: &mut [u8], cx: &mut Context<S>) {
        if self.ending.is_some() {
            return;
        }
        let result = match &mut self.records {
            None => self.reader.read(bytes, cx),
            Some(records) => records.open_all(bytes, &mut self.reader, cx),
        };
        if let Err(reason) = result {
            self.end(reason);
        }
    }

    /// Whether the session has just begun to hold an expanded key.
    #[inline]
    pub(crate) fn warm_up(&mut self) -> bool {
        self.records.is_some() && !std::mem::replace(&mut self.warm, true)
    }

    /// Lets the expanded receiving key go until the next record.
    pub(crate) fn cool_down(&mut self) {
        self.warm = false;
        if let Some(records) = &mut self.records {
            records.rx.aead_mut().cool();
        }
    }

    /// Bytes of buffer held; zero while the client is idle.
    pub(crate) fn held_bytes(&self) -> usize {
        let partial = self.records.as_ref().map_or(0, |records| records.partial.capacity());
        partial + self.reader.frames.held_bytes()
    }

    fn end(&mut self, reason: CloseReason) {
        self.ending.get_or_insert(reason);
        // A farewell that is still to be sent ends the connection when it has left.
        if !self.peer().egress().end_when_empty {
            self.peer().shutdown();
        }
    }
}

impl Records {
    /// Opens every record that `bytes` complete; keeps a cut one for the next call.
    #[inline]
    fn open_all<S: Socket>(
        &mut self,
        mut bytes: &mut [u8],
        reader: &mut Reader<S>,
        cx: &mut Context<S>,
    ) -> Result<(), CloseReason> {
        while !self.partial.is_empty() {
            let mut partial = std::mem::take(&mut self.partial);
            match self.open_one(&mut partial, reader, cx)? {
                Step::Next(_) => cx.pool.take_back(partial),
                Step::Need(len) => {
                    let missing = (len - partial.len()).min(bytes.len());
                    let (now, later) = bytes.split_at_mut(missing);
                    cx.pool.extend(&mut partial, now);
                    bytes = later;
                    self.partial = partial;
                    if self.partial.len() < len {
                        return Ok(());
                    }
                }
            }
        }
        while let Step::Next(end) = self.open_one(bytes, reader, cx)? {
            bytes = &mut bytes[end..];
        }
        cx.pool.extend(&mut self.partial, bytes);
        Ok(())
    }

    #[inline]
    fn open_one<S: Socket>(
        &mut self,
        bytes: &mut [u8],
        reader: &mut Reader<S>,
        cx: &mut Context<S>,
    ) -> Result<Step, CloseReason> {
        match self.rx.open(bytes) {
            Ok(Opened::Need(len)) => Ok(Step::Need(len)),
            Ok(Opened::Data { plain, end }) => {
                reader.read(&mut bytes[plain], cx)?;
                Ok(Step::Next(end))
            }
            Ok(Opened::KeyUpdate { reply, end }) => {
                let mut egress = reader.actor.peer.egress();
                let tls = egress.tls.as_mut().ok_or(CloseReason::PeerFault)?;
                tls.update_rx(&mut self.rx, reply).map_err(|_| CloseReason::PeerFault)?;
                Ok(Step::Next(end))
            }
            Ok(Opened::Closed) | Err(Fault::Alert) => Err(CloseReason::Eof),
            Err(_) => Err(CloseReason::PeerFault),
        }
    }
}

enum Step {
    /// The next record begins here.
    Next(usize),
    /// The record is whole only at this length.
    Need(usize),
}

impl<S: Socket> Reader<S> {
    #[inline]
    fn read(&mut self, bytes: &mut [u8], cx: &mut Context<S>) -> Result<(), CloseReason> {
        if self.messages.is_some() {
            return self.read_messages(bytes, cx);
        }
        let Self { frames, actor, .. } = self;
        frames.feed_with(bytes, cx, &mut |verdict, cx| actor.act(verdict, cx)).map_err(blame)
    }

    fn read_messages(
        &mut self,
        mut bytes: &mut [u8],
        cx: &mut Context<S>,
    ) -> Result<(), CloseReason> {
        let Self { messages, frames, actor } = self;
        let Some(messages) = messages else { return Ok(()) };
        let mut out = [0; ws::CONTROL_FRAME_LEN_MAX];
        while let Some(event) = messages.step(&mut bytes) {
            match event {
                ws::Event::Data(data) => {
                    let on = &mut |verdict: Verdict<'_>, cx: &mut _| actor.act(verdict, cx);
                    frames.feed_with(data, cx, on).map_err(blame)?;
                }
                ws::Event::Ping(payload) => {
                    actor.say(ws::control(ws::Opcode::Pong, payload, &mut out), cx);
                }
                ws::Event::Pong => {}
                ws::Event::Close(code) => {
                    actor.say_last(ws::close(code, "", &mut out), cx);
                    return Err(CloseReason::Eof);
                }
                ws::Event::Fault(fault) => {
                    actor.say_last(ws::close(Some(fault.code()), fault.reason(), &mut out), cx);
                    return Err(CloseReason::PeerFault);
                }
            }
        }
        Ok(())
    }
}

fn blame(_: PeerFault) -> CloseReason {
    CloseReason::PeerFault
}
