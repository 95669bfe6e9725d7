//! The store in a PostgreSQL database: the back end for several controls at once.
//!
//! Owns what a call does while the database is there and what it says while it is not; changes are
//! in `apply`, reads in `read`, the connections and their return in `connections`. Controls on one
//! database know nothing of each other but through it. Needs PostgreSQL 14 or newer and sessions of
//! its own: no pooler that shares them between transactions.

mod apply;
mod compact;
mod connections;
mod read;
mod schema;
mod target;
mod tls;

use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::JoinHandle;
use tokio::time::{timeout, timeout_at};
use tokio_postgres::Error;
use tokio_postgres::error::Severity;
use tokio_postgres::types::{ToSql, Type};

use self::connections::{Connections, Keeper, Made, Server, State, raise};
use super::{
    Answer, Applied, AuditEntry, Change, Changes, Kind, Page, Place, Query, Record, Revision,
    Store, StoreFault, TURN, Told, UnixS,
};
use crate::fault::{ExitCode, OperatorFault};

pub use self::target::Target;

/// Changes that may wait at a time; a store that is behind by more says that it is busy.
const CHANGES_MAX: usize = 256;
/// Reads that are on their way to the server at a time. It answers one after the other: more would not
/// be answered sooner. Whoever comes later waits for a turn.
const READS_AT_ONCE: usize = 16;
/// How long a call waits for a database that was lost just now: a session that somebody ended is
/// back before that. After it, calls fail at once until the database is back.
const GRACE: Duration = Duration::from_secs(1);
/// What our advisory locks have in front, which other programs' have not: "PRGC".
const LOCKS: i32 = 0x5052_4743;

/// A parameter of a statement, with its type, which spares asking the server for it.
type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// See the module.
pub struct PostgresStore {
    state: watch::Receiver<State>,
    revisions: watch::Sender<Revision>,
    secret: [u8; 32],
    reads: Arc<Semaphore>,
    changes: Semaphore,
    keeper: JoinHandle<()>,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresStore(revision {})", *self.revisions.borrow())
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        // The connections go with it.
        self.keeper.abort();
    }
}

impl PostgresStore {
    /// Opens the store in the database `target` and brings its schema up to date.
    ///
    /// # Errors
    /// In one line each: when the server cannot be reached or refuses us, when the database is of a
    /// newer version or another program's.
    pub async fn open(target: Target) -> Result<Self, OperatorFault> {
        let connector = target.trust.connector()?;
        let server = Server { target, connector };
        schema::bring_forward(&server, schema::MIGRATIONS).await?;
        let revisions = watch::Sender::new(Revision(0));
        let made = Made::new(&server).await?;
        let secret = made.secret;
        let keeper = Keeper::new(server, &made, revisions.clone());
        Ok(Self {
            state: keeper.state.subscribe(),
            revisions,
            secret,
            reads: Arc::new(Semaphore::new(READS_AT_ONCE)),
            changes: Semaphore::new(CHANGES_MAX),
            keeper: tokio::spawn(keeper.keep(made)),
        })
    }

    /// The connections, if there are any or soon will be.
    async fn connections(&self) -> Result<Arc<Connections>, StoreFault> {
        let mut state = self.state.clone();
        let since = match &*state.borrow() {
            State::Up { connections, .. } => return Ok(Arc::clone(connections)),
            State::Down { since, .. } => *since,
        };
        let back = state.wait_for(|state| matches!(state, State::Up { .. }));
        // Whether it is back or not is read off the state.
        let _ = timeout_at(since + GRACE, back).await;
        match &*state.borrow() {
            State::Up { connections, .. } => Ok(Arc::clone(connections)),
            State::Down { why, .. } => Err(StoreFault::Away(why.clone())),
        }
    }

    /// What `work` reads once it has its turn: first come, first served, so that a crowd of strangers
    /// keeps nobody out. Whoever asked may go; the server reads it all the same, and until then the turn
    /// is taken.
    async fn read_with<T, W>(
        &self,
        work: impl FnOnce(Arc<Connections>) -> W,
    ) -> Result<T, StoreFault>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, StoreFault>> + Send + 'static,
    {
        let turn = timeout(TURN, Arc::clone(&self.reads).acquire_owned()).await;
        let turn = turn.map_err(|_| StoreFault::Busy)?.map_err(|_| StoreFault::Busy)?;
        let work = work(self.connections().await?);
        let reading = tokio::spawn(async move {
            let read = work.await;
            drop(turn);
            read
        });
        reading.await.map_err(|error| StoreFault::Broken(error.to_string()))?
    }
}

fn place(places: &Semaphore) -> Result<SemaphorePermit<'_>, StoreFault> {
    places.try_acquire().map_err(|_| StoreFault::Busy)
}

impl Store for PostgresStore {
    fn apply(&self, change: Change) -> Answer<'_, Applied> {
        Box::pin(async move {
            let _place = place(&self.changes)?;
            let applied = apply::apply(&*self.connections().await?, &change).await?;
            if let (false, Some(last)) = (applied.replayed, applied.records.last()) {
                raise(&self.revisions, last.revision);
            }
            Ok(applied)
        })
    }

    fn read(&self, kind: Kind, id: String) -> Answer<'_, Option<Record>> {
        Box::pin(
            self.read_with(async move |from: Arc<Connections>| read::by_id(&from, kind, &id).await),
        )
    }

    fn find(&self, kind: Kind, name: String) -> Answer<'_, Option<Record>> {
        Box::pin(
            self.read_with(async move |from: Arc<Connections>| {
                read::by_name(&from, kind, &name).await
            }),
        )
    }

    fn holder(&self, kind: Kind, key: String) -> Answer<'_, Option<Record>> {
        Box::pin(
            self.read_with(async move |from: Arc<Connections>| {
                read::by_key(&from, kind, &key).await
            }),
        )
    }

    fn list(&self, query: Query) -> Answer<'_, Page> {
        Box::pin(
            self.read_with(async move |from: Arc<Connections>| read::list(&from, &query).await),
        )
    }

    fn changes(&self, from: Revision, limit: usize) -> Answer<'_, Changes> {
        let place = Place::after(from);
        Box::pin(self.read_with(async move |from: Arc<Connections>| {
            read::tell(&from, place, limit, usize::MAX).await.map(Changes::from)
        }))
    }

    fn tell(&self, place: Place, limit: usize) -> Answer<'_, Told> {
        Box::pin(self.read_with(async move |from: Arc<Connections>| {
            read::tell(&from, place, limit, limit).await
        }))
    }

    fn token(&self, prefix: String) -> Answer<'_, Option<(Record, Vec<u8>)>> {
        Box::pin(
            self.read_with(async move |from: Arc<Connections>| read::token(&from, &prefix).await),
        )
    }

    fn touch_tokens(&self, uses: Vec<(String, UnixS)>) -> Answer<'_, ()> {
        Box::pin(async move {
            let _place = place(&self.changes)?;
            apply::touch_tokens(&*self.connections().await?, &uses).await
        })
    }

    fn token_uses(&self) -> Answer<'_, Vec<(String, UnixS)>> {
        Box::pin(self.read_with(async |from: Arc<Connections>| read::token_uses(&from).await))
    }

    fn audit(&self, before: Option<Revision>, limit: usize) -> Answer<'_, Vec<AuditEntry>> {
        Box::pin(
            self.read_with(async move |from: Arc<Connections>| {
                read::audit(&from, before, limit).await
            }),
        )
    }

    fn entries(&self, of: Vec<Revision>) -> Answer<'_, Vec<AuditEntry>> {
        Box::pin(
            self.read_with(async move |from: Arc<Connections>| read::entries(&from, &of).await),
        )
    }

    fn look(&self) -> Answer<'_, Revision> {
        Box::pin(self.read_with(async |from: Arc<Connections>| read::look(&from).await))
    }

    fn counts(&self) -> Answer<'_, Vec<(Kind, u64)>> {
        Box::pin(self.read_with(async |from: Arc<Connections>| read::counts(&from).await))
    }

    fn secret(&self) -> [u8; 32] {
        self.secret
    }

    fn compact(&self, now: UnixS) -> Answer<'_, ()> {
        Box::pin(async move {
            let _place = place(&self.changes)?;
            compact::compact(&*self.connections().await?, now, compact::ROWS_AT_ONCE).await
        })
    }

    fn revisions(&self) -> watch::Receiver<Revision> {
        self.revisions.subscribe()
    }

    fn leads(&self) -> bool {
        matches!(*self.state.borrow(), State::Up { leads: true, .. })
    }
}

/// What a fault of the server or of the way to it is in our words. SQLSTATEs: appendix A of
/// PostgreSQL's manual.
fn fault(error: &Error) -> StoreFault {
    let state = error.code().map(|state| state.code());
    match state {
        Some("53100") => StoreFault::Full,
        // Another's change took too long: a lock, a deadlock, a statement's time.
        Some("55P03" | "40001" | "40P01" | "57014") => StoreFault::Busy,
        // It has become a standby: the one to write to is elsewhere.
        Some("25006") => StoreFault::Away(causes(error)),
        Some(_) if is_final(error) => StoreFault::Broken(causes(error)),
        // It ended the session, or nothing comes from it.
        Some(_) => StoreFault::Away(causes(error)),
        None if error.is_closed() || is_io(error) => StoreFault::Away(causes(error)),
        None => StoreFault::Broken(causes(error)),
    }
}

/// Whether the server refused a statement, and the session goes on.
fn is_final(error: &Error) -> bool {
    let severity = error.as_db_error().and_then(|error| error.parsed_severity());
    severity == Some(Severity::Error)
}

fn is_io(error: &Error) -> bool {
    error.source().is_some_and(|cause| cause.is::<std::io::Error>())
}

/// A refused connection or start, for the operator.
fn refused(target: &Target, error: &Error) -> OperatorFault {
    let (code, fix) = match error.code().map(|state| state.code()) {
        // A user, a password or a database that is not taken.
        Some(state) if state.starts_with("28") || state == "3D000" => {
            (ExitCode::Config, "correct --database")
        }
        Some("42501") => (ExitCode::Privilege, "let its user make a schema"),
        Some("42704") => (ExitCode::Config, "take PostgreSQL 14 or newer"),
        _ => (ExitCode::Unavailable, "is PostgreSQL there?"),
    };
    OperatorFault::new(code, format_args!("{target}: {}; {fix}", causes(error)))
}

/// What the server said, or what is behind an error that came before.
fn causes(error: &Error) -> String {
    if let Some(said) = error.as_db_error() {
        return said.message().to_owned();
    }
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text.split(" (os error ").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests;
