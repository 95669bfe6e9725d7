//! Opening the file, and the numbered steps that bring its schema forward.
//!
//! Owns [`MIGRATIONS`]. A step that was ever on main never changes; what is to change gets a step
//! of its own. A file of a newer version is refused untouched, an older one is copied before the
//! first step. `sqlite` calls it once at start.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::{code, fault};
use crate::fault::{ExitCode, OperatorFault};
use crate::store::{Revision, StoreFault};

/// The steps, in order: the first makes version 1 out of nothing.
pub(super) const MIGRATIONS: &[&str] =
    &[include_str!("migrations/0001.sql"), include_str!("migrations/0002.sql")];
/// KiB of the file that a connection keeps in memory; the kernel keeps all of it.
const CACHE_KIB: i64 = 256;
/// Marks the file as ours, in `PRAGMA application_id`: "PRGC".
const APPLICATION_ID: i64 = 0x5052_4743;
/// Patience with another connection's lock, which a backup holds for moments.
const BUSY: Duration = Duration::from_secs(5);

/// A connection that writes, with the store's secret and revision.
pub(super) fn open(
    path: &Path,
    migrations: &[&str],
) -> Result<(Connection, [u8; 32], Revision), OperatorFault> {
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let opened = prepare(&mut connection, path, migrations);
    let (secret, revision) = opened.map_err(|refused| in_words(path, refused))?;
    Ok((connection, secret, revision))
}

/// A connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection, OperatorFault> {
    // Reading a write-ahead log takes writing its index, so the file is not opened read-only.
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let told = connection.pragma_update(None, "query_only", true);
    told.map_err(|error| in_words(path, Refused::Store(fault(error))))?;
    Ok(connection)
}

/// Why a file is not opened.
enum Refused {
    Newer(i64, usize),
    Foreign,
    Damaged(String),
    Store(StoreFault),
}

impl From<rusqlite::Error> for Refused {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(fault(error))
    }
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, OperatorFault> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags).and_then(|connection| {
        connection.busy_timeout(BUSY)?;
        Ok(connection)
    });
    opened.map_err(|error| in_words(path, Refused::Store(fault(error))))
}

fn prepare(
    connection: &mut Connection,
    path: &Path,
    migrations: &[&str],
) -> Result<([u8; 32], Revision), Refused> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let application: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    match (application, tables) {
        (APPLICATION_ID, _) => {}
        (0, 0) if version == 0 => {}
        _ => return Err(Refused::Foreign),
    }
    if done > migrations.len() {
        return Err(Refused::Newer(version, migrations.len()));
    }
    let state: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if state != "ok" {
        return Err(Refused::Damaged(state));
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    if done > 0 && done < migrations.len() {
        keep_copy(connection, path, version)?;
    }
    migrate(connection, &migrations[done..], done)?;
    let secret =
        connection
            .query_row("SELECT value FROM meta WHERE name = 'secret'", [], |row| row.get(0))?;
    let revision = connection.query_row("SELECT revision FROM counter", [], |row| row.get(0))?;
    Ok((secret, Revision(revision)))
}

/// All missing steps in one transaction: a schema is never left half way.
fn migrate(
    connection: &mut Connection,
    missing: &[&str],
    done: usize,
) -> Result<(), rusqlite::Error> {
    if missing.is_empty() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in missing {
        transaction.execute_batch(step)?;
    }
    if done == 0 {
        let secret = crate::token::random::<32>();
        transaction
            .execute("INSERT INTO meta (name, value) VALUES ('secret', ?1)", [&secret[..]])?;
    }
    transaction.pragma_update(None, "user_version", (done + missing.len()) as i64)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.commit()
}

/// Copies the file beside itself before its schema changes, unless an earlier try did.
fn keep_copy(connection: &Connection, path: &Path, version: i64) -> Result<(), Refused> {
    let copy = path.with_extension(format!("db.version-{version}"));
    if copy.exists() {
        return Ok(());
    }
    super::copy(connection, &copy).map_err(Refused::Store)
}

fn in_words(path: &Path, refused: Refused) -> OperatorFault {
    let path = path.display();
    if let Refused::Store(StoreFault::Broken(how)) = &refused
        && how.contains("readonly")
    {
        let why = "permission denied; this user must be able to write it and its folder";
        return OperatorFault::new(ExitCode::Privilege, format_args!("{path}: {why}"));
    }
    let code = match &refused {
        Refused::Store(fault) => code(fault),
        Refused::Newer(..) | Refused::Foreign | Refused::Damaged(_) => None,
    };
    let text = match refused {
        Refused::Newer(version, known) => format!(
            "{path}: has schema {version}, this program knows up to {known}; start a newer control"
        ),
        Refused::Foreign => {
            format!("{path}: is another program's database; choose another --state-dir")
        }
        Refused::Damaged(how) => {
            format!("{path}: is corrupt ({how}); put a copy by `control backup` in its place")
        }
        Refused::Store(StoreFault::Broken(how))
            if how.contains("malformed") || how.contains("not a database") =>
        {
            format!("{path}: is corrupt ({how}); put a copy by `control backup` in its place")
        }
        Refused::Store(fault) => format!("{path}: {fault}"),
    };
    OperatorFault::new(code.unwrap_or(ExitCode::Config), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_can_only_be_read_is_a_matter_of_privilege() {
        let how = StoreFault::Broken("attempt to write a readonly database".into());
        let fault = in_words(Path::new("control.db"), Refused::Store(how));
        assert_eq!(fault.code(), ExitCode::Privilege);
        assert!(fault.to_string().ends_with("this user must be able to write it and its folder"));
    }
}
