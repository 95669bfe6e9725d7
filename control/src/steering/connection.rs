//! One dataplane's connection: who it is, what it has, what it is told next.
//!
//! Owns the order of things: a hello is judged; then at most one order is under way, and the next is
//! made when it is answered, from what the dataplane has to what the store has by then. All that is
//! kept of a dataplane is a revision, and the order that is under way.

use std::pin::pin;
use std::time::Duration;

use steer::{CURRENT_EVERY, Lines, Order, PROTOCOL, SAID_BYTES_MAX, SILENCE, Said, WHY_BYTES_MAX};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::book::{BookFault, EditionPlace, Told};
use super::orders::number;
use super::roster::{Dataplane, DataplaneState, Place};
use super::{ANSWER, Ended, FAREWELL, HELLO, RETRY, Steering, WRITE};
use crate::clock::{Stamp, now};
use crate::store::{Kind, Revision};

/// Until a refused snapshot is offered again: what made a dataplane refuse it may pass.
const REFUSED_RETRY: Duration = Duration::from_secs(10);
/// Bytes read at once; what dataplanes say is short.
const PIECE_BYTES: usize = 4096;
/// Characters of a version that are kept.
const VERSION_LEN_MAX: usize = 64;

/// Whom a connection is from, before it has said anything.
#[derive(Debug)]
pub(super) struct Guest {
    /// An address, or `unix`.
    pub(super) from: String,
    /// The names its certificate is for; `None` over the unix socket, whose mode says who may.
    pub(super) names: Option<Vec<String>>,
}

/// Serves one connection to its end.
pub(super) async fn serve(
    steering: &Steering,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    guest: Guest,
) {
    let mut wire = Wire::new(stream);
    let ended = match greet(steering, &mut wire, &guest).await {
        Ok(session) => session.run(&mut wire).await,
        Err(ended) => ended,
    };
    steering.count_end(ended);
}

/// Lines in and out.
struct Wire<S> {
    stream: S,
    lines: Lines,
    piece: [u8; PIECE_BYTES],
    /// When the other side last said anything.
    heard: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    fn new(stream: S) -> Self {
        let lines = Lines::new(SAID_BYTES_MAX);
        Self { stream, lines, piece: [0; PIECE_BYTES], heard: Instant::now() }
    }

    /// The next message; `None` for one of a kind that is not known. Nothing is lost when this is
    /// dropped before it is ready.
    async fn said(&mut self) -> Result<Option<Said>, Ended> {
        loop {
            if let Some(line) = self.lines.pop() {
                self.heard = Instant::now();
                return Said::read(&line).map_err(|_| Ended::Line);
            }
            let read = self.stream.read(&mut self.piece).await.map_err(|_| Ended::Gone)?;
            if read == 0 {
                return Err(Ended::Gone);
            }
            self.lines.push(&self.piece[..read]).map_err(|_| Ended::Line)?;
        }
    }

    async fn tell(&mut self, line: &str, within: Duration) -> Result<(), Ended> {
        let write = async {
            self.stream.write_all(line.as_bytes()).await?;
            self.stream.flush().await
        };
        match timeout(within, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::Gone),
            Err(_) => Err(Ended::Slow),
        }
    }

    async fn goodbye(&mut self, why: &str) {
        // It may have hung up already.
        let _ = self.tell(&Order::goodbye(&why).to_line(), FAREWELL).await;
    }
}

/// Takes in a dataplane that may be who it says it is.
async fn greet<'a, S: AsyncRead + AsyncWrite + Unpin>(
    steering: &'a Steering,
    wire: &mut Wire<S>,
    guest: &Guest,
) -> Result<Session<'a>, Ended> {
    let said = timeout(HELLO, wire.said()).await.map_err(|_| Ended::Hello)??;
    let Some(Said::Hello { protocol, node, version, store, revision, past }) = said else {
        wire.goodbye("the first message must be a hello").await;
        return Err(Ended::Hello);
    };
    let node = plain(&node, steer::NAME_BYTES_MAX);
    if let Err(why) = judge(steering, guest, protocol, &node).await {
        match steering.refused.is_new(&node, &why) {
            true => tracing::warn!(node, from = guest.from, why, "a dataplane was refused"),
            false => tracing::debug!(node, from = guest.from, why, "a dataplane was refused again"),
        }
        wire.goodbye(&why).await;
        return Err(Ended::Hello);
    }
    steering.refused.forget(&node);
    let has = i64::try_from(revision.0).map(Revision).unwrap_or_default();
    let ours = store.as_deref() == Some(steering.book.id()) && has > Revision(0);
    // What it has of another store leads nowhere from here, nor does what was undone since.
    let undone = ours && !is_past(steering, has, &past).await;
    if undone {
        tracing::warn!(node, revision = %has, "a dataplane goes by what this store has undone");
    }
    let adopted = (ours && !undone).then_some(has);
    let version = plain(&version, VERSION_LEN_MAX);
    let revision = adopted.unwrap_or_default();
    if steering.roster.has(&node) {
        // It may be the same one, of whose first connection the end was not seen yet.
        let fix = "if this stays so, give each its own --steer-node";
        tracing::warn!(
            node,
            from = guest.from,
            "two dataplanes say that they are this node; {fix}"
        );
    }
    tracing::info!(node, from = guest.from, version, %revision, "a dataplane is connected");
    let place = steering.roster.enter(Dataplane {
        node: node.clone(),
        from: guest.from.clone(),
        version,
        since: Stamp(now()),
        revision,
        state: DataplaneState::Behind,
        refusal: None,
        sessions: 0,
        draining: false,
        stalled_cores: 0,
    });
    Ok(Session {
        steering,
        node,
        place,
        adopted,
        undone,
        asked: None,
        refused: None,
        whole_next: false,
    })
}

/// Whether the store came to `revision` by what a dataplane calls `past`. Where that cannot be told,
/// it did not, and the dataplane is told everything.
async fn is_past(steering: &Steering, revision: Revision, past: &str) -> bool {
    let moment = steering.book.moment(revision).await;
    !past.is_empty() && moment.is_ok_and(|moment| moment.past == past)
}

/// Whether a guest may be `node`, or why not.
async fn judge(
    steering: &Steering,
    guest: &Guest,
    protocol: u32,
    node: &str,
) -> Result<(), String> {
    if protocol != PROTOCOL {
        return Err(format!(
            "it speaks protocol {protocol}, control {PROTOCOL}; run the same version of both"
        ));
    }
    if let Some(names) = &guest.names
        && !names.iter().any(|name| name == node)
    {
        return Err(format!("its certificate is for {names:?} and not for {node:?}"));
    }
    match steering.store.find(Kind::Node, node.to_owned()).await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(format!("there is no node {node:?}; make it by control nodes create")),
        Err(fault) => Err(fault.to_string()),
    }
}

/// An order that is not answered yet.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Where it leads.
    revision: Revision,
    is_whole: bool,
    at: Instant,
}

/// Why an order is not sent.
enum Untellable {
    /// The connection is at its end.
    Ended(Ended),
    /// There is none for now.
    Book(BookFault),
}

impl From<Ended> for Untellable {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

impl From<BookFault> for Untellable {
    fn from(fault: BookFault) -> Self {
        Self::Book(fault)
    }
}

/// A dataplane that was taken in.
struct Session<'a> {
    steering: &'a Steering,
    node: String,
    place: Place<'a>,
    /// What it goes by; `None` if by nothing of ours.
    adopted: Option<Revision>,
    /// What it goes by was ours, and the store was put back to a backup: numbers may be lower now.
    undone: bool,
    /// At most one order is under way.
    asked: Option<Asked>,
    /// The snapshot it has refused, and when: nothing is tried before the next change, or a while.
    refused: Option<(Revision, Instant)>,
    /// It has refused a delta.
    whole_next: bool,
}

impl Session<'_> {
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(mut self, wire: &mut Wire<S>) -> Ended {
        let ended = match self.steer(wire).await {
            Ok(()) => Ended::Stop,
            Err(ended) => ended,
        };
        match ended {
            Ended::Stop => wire.goodbye("control stops").await,
            Ended::Removed => wire.goodbye("the node was removed").await,
            Ended::Line => wire.goodbye("that was no message, or no answer to an order").await,
            Ended::Silence => wire.goodbye("nothing was heard").await,
            Ended::Slow => wire.goodbye("an order was not answered").await,
            Ended::Gone | Ended::Busy | Ended::Tls | Ended::Hello => {}
        }
        tracing::info!(node = self.node, why = ended.word(), "a dataplane is gone");
        ended
    }

    /// Tells and hears until control stops.
    async fn steer<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        wire: &mut Wire<S>,
    ) -> Result<(), Ended> {
        let mut revisions = self.steering.store.revisions();
        let mut stop = self.steering.stop.clone();
        let mut sign = interval(CURRENT_EVERY);
        sign.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Before the store is read: a change in between is looked for once more.
            revisions.mark_unchanged();
            let failed = self.tell(wire).await?;
            let retry = Instant::now() + RETRY;
            let again = self.refused.map(|(_, at)| at + REFUSED_RETRY);
            let (patience, ended) = self.patience(wire.heard);
            tokio::select! {
                // What was said while an order was being written comes before any verdict on silence.
                biased;
                said = wire.said() => self.hear(said?)?,
                () = stopped(&mut stop) => return Ok(()),
                changed = revisions.changed() => if changed.is_err() { return Ok(()) },
                _ = sign.tick() => self.give_sign(wire).await?,
                () = sleep_until(retry), if failed => {}
                () = sleep_until(again.unwrap_or(retry)), if again.is_some() && self.asked.is_none() => {}
                () = sleep_until(patience) => return Err(ended),
            }
        }
    }

    /// Says that control is there.
    async fn give_sign<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        wire: &mut Wire<S>,
    ) -> Result<(), Ended> {
        let revision = number(*self.steering.store.revisions().borrow());
        wire.tell(&Order::Current { revision }.to_line(), WRITE).await
    }

    /// Until when to wait for a word, and what it is if none comes.
    fn patience(&self, heard: Instant) -> (Instant, Ended) {
        let silent = heard + SILENCE;
        match self.asked.map(|asked| asked.at + ANSWER) {
            Some(slow) if slow < silent => (slow, Ended::Slow),
            Some(_) | None => (silent, Ended::Silence),
        }
    }

    /// Sends the next order, if there is one. Tells whether the store failed, and is to be asked again.
    async fn tell<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        wire: &mut Wire<S>,
    ) -> Result<bool, Ended> {
        let now = *self.steering.store.revisions().borrow();
        let is_due = self.asked.is_none()
            && self
                .refused
                .is_none_or(|(refused, at)| refused < now || Instant::now() >= at + REFUSED_RETRY)
            && (self.whole_next || self.adopted != Some(now));
        if !is_due {
            return Ok(false);
        }
        let told = match self.adopted.filter(|_| !self.whole_next) {
            Some(from) => self.tell_news(wire, from).await,
            None => self.tell_whole(wire).await,
        };
        match told {
            Ok(()) => Ok(false),
            Err(Untellable::Ended(ended)) => Err(ended),
            Err(Untellable::Book(fault)) => {
                self.complain(&fault.to_string(), "a dataplane cannot be told of changes");
                Ok(true)
            }
        }
    }

    /// Sends what has changed since `from`.
    async fn tell_news<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        wire: &mut Wire<S>,
        from: Revision,
    ) -> Result<(), Untellable> {
        let news = self.steering.book.since(from).await?;
        let Some(said) = &news.said else { return self.tell_whole(wire).await };
        if said.drains.get(&self.node) == Some(&None) {
            return Err(Ended::Removed.into());
        }
        if news.upto.revision <= from {
            return Ok(());
        }
        self.steering.counters.deltas.add(1);
        Ok(self.ask(wire, news.line(said, &self.node), news.upto.revision, false).await?)
    }

    /// Sends everything.
    async fn tell_whole<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        wire: &mut Wire<S>,
    ) -> Result<(), Untellable> {
        let (steering, node) = (self.steering, self.node.clone());
        let mut place = None;
        let whole = loop {
            let mut told = pin!(steering.book.whole(&node, self.undone, place.take()));
            // It may take a while, in which the dataplane goes on to say that it is there.
            let told = loop {
                tokio::select! {
                    told = &mut told => break told?,
                    said = wire.said() => self.hear(said?)?,
                }
            };
            match told {
                Told::Whole(whole) => break whole,
                Told::NoNode => return Err(Ended::Removed.into()),
                Told::Full => place = Some(self.wait_for_place(wire).await?),
            }
        };
        steering.counters.wholes.add(1);
        Ok(self.ask(wire, whole.line(), whole.upto(), true).await?)
    }

    /// Waits for a place for another snapshot; both sides go on to say that they are there.
    async fn wait_for_place<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        wire: &mut Wire<S>,
    ) -> Result<EditionPlace, Untellable> {
        let steering = self.steering;
        let mut place = pin!(steering.book.place());
        let mut sign = interval(CURRENT_EVERY);
        loop {
            tokio::select! {
                place = &mut place => return Ok(place?),
                said = wire.said() => self.hear(said?)?,
                _ = sign.tick() => self.give_sign(wire).await?,
            }
        }
    }

    async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        wire: &mut Wire<S>,
        line: &str,
        revision: Revision,
        is_whole: bool,
    ) -> Result<(), Ended> {
        wire.tell(line, WRITE).await?;
        self.asked = Some(Asked { revision, is_whole, at: Instant::now() });
        self.whole_next = false;
        Ok(())
    }

    /// Takes what the dataplane says.
    fn hear(&mut self, said: Option<Said>) -> Result<(), Ended> {
        match said {
            Some(Said::Adopted { revision }) => {
                let asked = self.asked.take_if(|asked| number(asked.revision) == revision);
                self.adopted(asked.ok_or(Ended::Line)?);
            }
            Some(Said::Refused { why, .. }) => {
                let asked = self.asked.take().ok_or(Ended::Line)?;
                self.refused(asked, &plain(&why, WHY_BYTES_MAX));
            }
            Some(Said::Report { sessions, draining, stalled_cores }) => {
                self.place.note(|dataplane| {
                    dataplane.sessions = sessions;
                    dataplane.draining = draining;
                    dataplane.stalled_cores = stalled_cores;
                });
            }
            Some(Said::Hello { .. }) => return Err(Ended::Line),
            None => self.steering.counters.unknown_lines.add(1),
        }
        Ok(())
    }

    fn adopted(&mut self, asked: Asked) {
        self.steering.counters.adopted.add(1);
        self.adopted = Some(asked.revision);
        (self.undone, self.refused) = (false, None);
        self.place.note(|dataplane| {
            dataplane.revision = asked.revision;
            dataplane.refusal = None;
        });
    }

    /// A refused delta may be the fault of what lies before it, so everything is sent. If that is
    /// refused, too, the next change may mend it, or time: a core that stalls, a clock not set yet.
    fn refused(&mut self, asked: Asked, why: &str) {
        self.steering.counters.refused.add(1);
        let Asked { revision, is_whole, .. } = asked;
        if is_whole {
            self.refused = Some((revision, Instant::now()));
        } else {
            self.whole_next = true;
        }
        self.complain(why, "an order was refused");
    }

    /// Shows why it does not keep up, and tells the log once.
    fn complain(&self, why: &str, what: &str) {
        let mut is_new = false;
        self.place.note(|dataplane| {
            is_new = dataplane.refusal.as_deref() != Some(why);
            dataplane.refusal = Some(why.to_owned());
        });
        if is_new {
            tracing::warn!(node = self.node, why, "{what}");
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender outlives this; an error would mean that it has stopped all the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A text from outside as logs and terminals may have it.
fn plain(text: &str, len_max: usize) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(len_max).collect()
}

#[cfg(test)]
mod tests;
