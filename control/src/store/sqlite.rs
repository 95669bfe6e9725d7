//! The store in one SQLite file: the back end that needs nothing.
//!
//! Owns the file's lock and two threads, one that alone writes and one that reads, each with a
//! connection and a bounded queue of jobs. It must never block a thread of the server. A call is a
//! job and a channel for its answer; what the jobs do is in `apply` and `read`.

mod apply;
mod read;
mod schema;

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::thread::JoinHandle;

use rusqlite::{Connection, ErrorCode};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::mpsc::error::{SendTimeoutError, TrySendError};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Answer, Applied, AuditEntry, Change, Changes, Kind, Page, Place, Query, Record, Revision,
    Store, StoreFault, TURN, Told, UnixS,
};
use crate::fault::{ExitCode, OperatorFault, is_full, words};

/// Jobs that are queued for one of the threads; whoever comes later waits for a place, and is told that
/// the store is busy if there is none for long.
const JOBS_MAX: usize = 256;
/// Rows of each table that a compaction removes at once.
const COMPACTED_AT_ONCE: usize = 2_000;
/// The database's name in the state folder.
const FILE: &str = "control.db";
/// The file whose lock says that a process has the database.
const LOCK: &str = "control.lock";

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// See the module.
pub struct SqliteStore {
    writer: Worker,
    reader: Worker,
    secret: [u8; 32],
    revisions: watch::Sender<Revision>,
    /// Let go last.
    _lock: Lock,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteStore(revision {})", *self.revisions.borrow())
    }
}

impl SqliteStore {
    /// Opens the store in `folder`, which is made if missing, and brings its schema up to date.
    ///
    /// # Errors
    /// In one line each: when another process has it, when it is corrupt or of a newer version,
    /// and when the folder cannot be written.
    pub fn open(folder: &Path) -> Result<Self, OperatorFault> {
        make_folder(folder)?;
        let lock = take_lock(&folder.join(LOCK))?;
        let path = folder.join(FILE);
        let is_new = make_file(&path)?;
        let opened = schema::open(&path, schema::MIGRATIONS).inspect_err(|_| {
            // Nothing was ever in it, and left empty it would be taken for a state that was lost.
            if is_new {
                remove_files(&path);
            }
        });
        let (writer, secret, revision) = opened?;
        let reader = schema::open_reader(&path)?;
        Ok(Self {
            writer: Worker::start("store-writer", writer)?,
            reader: Worker::start("store-reader", reader)?,
            secret,
            revisions: watch::Sender::new(revision),
            _lock: lock,
        })
    }

    /// Makes the database full at `pages` pages more than it has.
    #[cfg(test)]
    pub(super) async fn allow_pages(&self, pages: i64) {
        let job = move |connection: &mut Connection| {
            let now: i64 =
                connection.query_row("PRAGMA page_count", [], |row| row.get(0)).map_err(fault)?;
            connection.pragma_update(None, "max_page_count", now + pages).map_err(fault)
        };
        self.writer.ask(job).await.expect("the pragma is taken");
    }
}

/// Copies the database in `folder` to `to`, which must not exist, whether a server runs or not.
///
/// # Errors
/// When there is no database, or the copy cannot be written whole; then nothing is left at `to`.
pub fn backup(folder: &Path, to: &Path) -> Result<(), OperatorFault> {
    let path = folder.join(FILE);
    if let Err(error) = std::fs::metadata(&path) {
        let fix = "--state-dir must name control's folder; a PostgreSQL database is copied with \
                   pg_dump --schema=perigee";
        return Err(OperatorFault::file(&path, &error, fix));
    }
    if to.symlink_metadata().is_ok() {
        let exists = std::io::Error::new(ErrorKind::AlreadyExists, "file exists");
        return Err(OperatorFault::file(to, &exists, "choose a new file"));
    }
    let connection = schema::open_reader(&path)?;
    copy(&connection, to).map_err(|fault| {
        let text = format!("{}: {fault}; choose a new file in a folder with room", to.display());
        OperatorFault::new(code(&fault).unwrap_or(ExitCode::Failed), text)
    })
}

fn copy(connection: &Connection, to: &Path) -> Result<(), StoreFault> {
    // SQLite takes an empty file, so that the mode is right from the beginning.
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    made.map_err(|error| match is_full(&error) {
        true => StoreFault::Full,
        false => StoreFault::Broken(words(&error)),
    })?;
    let copied = vacuum_into(connection, to);
    if copied.is_err() {
        // It is ours and worth nothing.
        let _ = std::fs::remove_file(to);
    }
    copied.map_err(fault)
}

/// Copies what is in use of the database. A connection that only reads counts the copy as writing.
fn vacuum_into(connection: &Connection, to: &Path) -> rusqlite::Result<()> {
    let only_reads: bool = connection.query_row("PRAGMA query_only", [], |row| row.get(0))?;
    connection.pragma_update(None, "query_only", false)?;
    let copied = connection.execute("VACUUM INTO ?1", [to.display().to_string()]);
    connection.pragma_update(None, "query_only", only_reads)?;
    copied.map(drop)
}

impl Store for SqliteStore {
    fn apply(&self, change: Change) -> Answer<'_, Applied> {
        let revisions = self.revisions.clone();
        Box::pin(self.writer.ask(move |connection| {
            let applied = apply::apply(connection, &change)?;
            if let (false, Some(last)) = (applied.replayed, applied.records.last()) {
                revisions.send_replace(last.revision);
            }
            Ok(applied)
        }))
    }

    fn read(&self, kind: Kind, id: String) -> Answer<'_, Option<Record>> {
        Box::pin(self.reader.ask(move |connection| read::by_id(connection, kind, &id)))
    }

    fn find(&self, kind: Kind, name: String) -> Answer<'_, Option<Record>> {
        Box::pin(self.reader.ask(move |connection| read::by_name(connection, kind, &name)))
    }

    fn holder(&self, kind: Kind, key: String) -> Answer<'_, Option<Record>> {
        Box::pin(self.reader.ask(move |connection| read::by_key(connection, kind, &key)))
    }

    fn list(&self, query: Query) -> Answer<'_, Page> {
        Box::pin(self.reader.ask(move |connection| read::list(connection, &query)))
    }

    fn changes(&self, from: Revision, limit: usize) -> Answer<'_, Changes> {
        let from = Place::after(from);
        Box::pin(self.reader.ask(move |connection| {
            read::tell(connection, from, limit, usize::MAX).map(Changes::from)
        }))
    }

    fn tell(&self, from: Place, limit: usize) -> Answer<'_, Told> {
        Box::pin(self.reader.ask(move |connection| read::tell(connection, from, limit, limit)))
    }

    fn token(&self, prefix: String) -> Answer<'_, Option<(Record, Vec<u8>)>> {
        Box::pin(self.reader.ask(move |connection| read::token(connection, &prefix)))
    }

    fn touch_tokens(&self, uses: Vec<(String, UnixS)>) -> Answer<'_, ()> {
        Box::pin(self.writer.ask(move |connection| apply::touch_tokens(connection, &uses)))
    }

    fn token_uses(&self) -> Answer<'_, Vec<(String, UnixS)>> {
        Box::pin(self.reader.ask(|connection| read::token_uses(connection)))
    }

    fn audit(&self, before: Option<Revision>, limit: usize) -> Answer<'_, Vec<AuditEntry>> {
        Box::pin(self.reader.ask(move |connection| read::audit(connection, before, limit)))
    }

    fn entries(&self, of: Vec<Revision>) -> Answer<'_, Vec<AuditEntry>> {
        Box::pin(self.reader.ask(move |connection| read::entries(connection, &of)))
    }

    fn look(&self) -> Answer<'_, Revision> {
        Box::pin(self.reader.ask(|connection| read::revision(connection)))
    }

    fn counts(&self) -> Answer<'_, Vec<(Kind, u64)>> {
        Box::pin(self.reader.ask(read::counts))
    }

    fn secret(&self) -> [u8; 32] {
        self.secret
    }

    fn compact(&self, now: UnixS) -> Answer<'_, ()> {
        Box::pin(async move {
            let step = move |connection: &mut Connection| {
                apply::compact(connection, now, COMPACTED_AT_ONCE)
            };
            // Changes that wait have their turns in between.
            while self.writer.ask(step).await? {}
            Ok(())
        })
    }

    fn revisions(&self) -> watch::Receiver<Revision> {
        self.revisions.subscribe()
    }

    fn leads(&self) -> bool {
        // Its lock keeps every other process out.
        true
    }
}

/// A thread with a connection. Dropping this waits for its last job and closes the connection.
struct Worker {
    /// `None` only while this is dropped.
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(name: &str, mut connection: Connection) -> Result<Self, OperatorFault> {
        let (sender, mut jobs) = mpsc::channel::<Job>(JOBS_MAX);
        let run = move || {
            while let Some(job) = jobs.blocking_recv() {
                job(&mut connection);
            }
        };
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread =
            started.map_err(|error| OperatorFault::failed(format_args!("no thread: {error}")))?;
        Ok(Self { jobs: Some(sender), thread: Some(thread) })
    }

    /// Queues `job` at once if there is a place, so that calls happen in the order they were made; the
    /// answer follows.
    fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, StoreFault> + Send + 'static,
    ) -> impl Future<Output = Result<T, StoreFault>> + Send {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Whoever asked may have gone; the job counts all the same.
            let _ = answer.send(job(connection));
        });
        let jobs = self.jobs.as_ref();
        let waiting = jobs.and_then(|jobs| match jobs.try_send(job) {
            Ok(()) => None,
            Err(TrySendError::Full(job)) => Some((jobs, job)),
            // That it has ended is told below: the answer went with the job.
            Err(TrySendError::Closed(_)) => None,
        });
        async move {
            if let Some((jobs, job)) = waiting {
                // First come, first served: a crowd of strangers keeps nobody out.
                match jobs.send_timeout(job, TURN).await {
                    Ok(()) | Err(SendTimeoutError::Closed(_)) => {}
                    Err(SendTimeoutError::Timeout(_)) => return Err(StoreFault::Busy),
                }
            }
            let gone = |_| StoreFault::Broken("its thread has ended".to_owned());
            answered.await.map_err(gone)?
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic of a job has been told by the thread itself.
            let _ = thread.join();
        }
    }
}

/// What a fault of SQLite is in our words.
fn fault(error: rusqlite::Error) -> StoreFault {
    // The index of the write-ahead log is written by other means than the rest, which do not tell
    // want of room from a fault of the disk.
    let extended = error.sqlite_error().map(|error| error.extended_code);
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreFault::Full,
        _ if extended == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE) => StoreFault::Full,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreFault::Busy,
        _ => StoreFault::Broken(error.to_string()),
    }
}

/// The exit code of what passes by itself or with some room; `None` for all else.
fn code(fault: &StoreFault) -> Option<ExitCode> {
    matches!(fault, StoreFault::Full | StoreFault::Busy).then_some(ExitCode::TryAgain)
}

/// Makes the folder that `--state-dir` names, for this user alone.
///
/// # Errors
/// When it is not there and cannot be made.
pub(crate) fn make_folder(folder: &Path) -> Result<(), OperatorFault> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
        OperatorFault::file(folder, &error, "--state-dir must name a folder this user may make")
    })
}

/// The file whose lock says that this process has the database. The kernel lets it go however the
/// process ends.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // A child that was just forked has the file, too, and would keep the lock until it runs.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

fn take_lock(path: &Path) -> Result<Lock, OperatorFault> {
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = opened.map_err(|error| {
        OperatorFault::file(path, &error, "--state-dir must name a folder this user may write")
    })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OperatorFault::new(
            ExitCode::TryAgain,
            format_args!(
                "{}: another control has this database; stop it or choose another --state-dir",
                path.display()
            ),
        )),
        Err(errno) => {
            Err(OperatorFault::file(path, &errno.into(), "choose a folder that takes locks"))
        }
    }
}

/// Makes the database's file if there is none, readable by its owner alone. To SQLite an empty one is
/// as good as none, but somebody's state may have been in it. Tells whether it was made.
fn make_file(path: &Path) -> Result<bool, OperatorFault> {
    let fault =
        |error| OperatorFault::file(path, &error, "this user must be able to write the database");
    let open = |new| OpenOptions::new().write(true).create_new(new).mode(0o600).open(path);
    match open(true) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return made.map(|_| true).map_err(fault),
    }
    let is_empty = open(false).and_then(|file| file.metadata()).map_err(fault)?.len() == 0;
    match is_empty {
        false => Ok(false),
        true => Err(OperatorFault::config(format_args!(
            "{}: is empty; put a copy by `control backup` in its place, or remove it to begin anew",
            path.display()
        ))),
    }
}

/// Removes a database with what SQLite has beside it.
fn remove_files(path: &Path) {
    for extension in ["db", "db-wal", "db-shm"] {
        // What cannot be removed is named at the next start.
        let _ = std::fs::remove_file(path.with_extension(extension));
    }
}

#[cfg(test)]
mod tests;
