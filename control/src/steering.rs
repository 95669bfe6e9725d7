//! Steering: dataplanes dial in, and each is told what it goes by and every change of it.
//!
//! Owns the listeners, the connections and what is known of who is connected. The messages and their
//! meaning are the crate `steer`. Nothing waits for a dataplane: what one is told next is read from the
//! store when it has answered the last, so a slow one holds no queue and misses nothing. `serve` starts
//! it and asks it who is there.

mod book;
mod connection;
mod listen;
mod orders;
mod roster;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use steer::NodeKey;
use tokio::sync::watch;

use crate::serve::counters::Counter;
use crate::store::Store;
use book::Book;
use roster::{Refused, Roster};

pub(crate) use listen::bind;
pub use roster::{Dataplane, DataplaneState};
pub(crate) use tls::Door;

/// Dataplanes over TLS at a time.
const CONNECTIONS_MAX: u32 = 1024;
/// Dataplanes over the unix socket at a time, so that strangers on the network take none of theirs.
const LOCAL_CONNECTIONS_MAX: u32 = 512;
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for the first message.
const HELLO: Duration = Duration::from_secs(10);
/// Time for an order to be taken off our hands: a whole line over a slow network.
const WRITE: Duration = Duration::from_secs(60);
/// Time for an order's answer: for its relay cores to take it over.
const ANSWER: Duration = Duration::from_secs(60);
/// Time for a farewell.
const FAREWELL: Duration = Duration::from_secs(1);
/// Until the store is asked again after it failed, unless something changes before.
const RETRY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Steering {
    store: Arc<dyn Store>,
    /// For those who do not come over the unix socket.
    pub(crate) tls: Option<Door>,
    book: Book,
    roster: Roster,
    /// Whom we have refused, and why, as far as the log has been told.
    refused: Refused,
    pub(crate) counters: Counters,
    stop: watch::Receiver<bool>,
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Connections accepted.
    pub(crate) connections: Counter,
    /// Connections that have ended, by reason, as in [`Ended::ALL`].
    pub(crate) ended: [Counter; Ended::ALL.len()],
    /// Snapshots sent whole.
    pub(crate) wholes: Counter,
    /// Deltas sent.
    pub(crate) deltas: Counter,
    /// Orders that were adopted.
    pub(crate) adopted: Counter,
    /// Orders that were refused.
    pub(crate) refused: Counter,
    /// Lines of a kind that is not known.
    pub(crate) unknown_lines: Counter,
}

/// Why a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The dataplane hung up.
    Gone,
    /// As many are connected as may be.
    Busy,
    /// The TLS handshake failed.
    Tls,
    /// It did not say who it is, or may not be it.
    Hello,
    /// A line was too long or no message, or answered nothing that was asked.
    Line,
    /// It has said nothing for too long.
    Silence,
    /// It has taken or answered nothing for too long.
    Slow,
    /// Its node was removed.
    Removed,
    /// Control stops.
    Stop,
}

impl Ended {
    /// All of them.
    pub(crate) const ALL: [Self; 9] = [
        Self::Gone,
        Self::Busy,
        Self::Tls,
        Self::Hello,
        Self::Line,
        Self::Silence,
        Self::Slow,
        Self::Removed,
        Self::Stop,
    ];

    /// Its label.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Busy => "busy",
            Self::Tls => "tls",
            Self::Hello => "hello",
            Self::Line => "line",
            Self::Silence => "silence",
            Self::Slow => "slow",
            Self::Removed => "removed",
            Self::Stop => "stop",
        }
    }
}

impl Steering {
    /// Steering by what `store` says, until `stop`, also of those who come through `tls`. `prober` may
    /// log in everywhere.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        tls: Option<Door>,
        prober: NodeKey,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let book = Book::new(Arc::clone(&store), id_of(&*store), prober);
        let (roster, refused, counters) = Default::default();
        Self { store, tls, book, roster, refused, counters, stop }
    }

    /// Who is connected, by node.
    pub(crate) fn dataplanes(&self) -> Vec<Dataplane> {
        self.roster.list(*self.store.revisions().borrow())
    }

    fn count_end(&self, ended: Ended) {
        self.counters.ended[ended as usize].add(1);
    }
}

/// What this store's revisions go by: dataplanes tell it from another's. It says nothing of the
/// store's secret.
fn id_of(store: &dyn Store) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &store.secret());
    let tag = hmac::sign(&key, b"steering");
    crate::token::hex(&tag.as_ref()[..16])
}
