//! The numbered steps that bring the schema forward, and a look at what is there.
//!
//! Owns [`MIGRATIONS`]. A step that was ever on main never changes; what is to change gets a step of
//! its own. All missing steps are one transaction under a lock, so that of several controls that
//! start at once one makes the schema and the others find it. A newer schema is refused untouched.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, IsolationLevel, Transaction};

use super::connections::Server;
use super::target::Target;
use super::{LOCKS, Param, refused};
use crate::fault::{ExitCode, OperatorFault};

/// The steps, in order: the first makes version 1 out of nothing.
pub(super) const MIGRATIONS: &[&str] =
    &[include_str!("migrations/0001.sql"), include_str!("migrations/0002.sql")];
/// Time for connecting and for all steps, and for another control's before.
const MIGRATION: Duration = Duration::from_secs(60);
/// The lock of whoever changes the schema.
const MIGRATE: i32 = 1;

/// Brings the schema up to the last of `steps`, on a connection of its own.
pub(super) async fn bring_forward(server: &Server, steps: &[&str]) -> Result<(), OperatorFault> {
    let work = async {
        let (mut client, driver) = server.connect().await?;
        let driver = tokio::spawn(driver);
        let done = migrate(&mut client, &server.target, steps).await;
        drop(client);
        // It ends with a farewell; whatever else it says does not matter any more.
        let _ = driver.await;
        done
    };
    match timeout(MIGRATION, work).await {
        Ok(done) => done,
        Err(_) => Err(OperatorFault::new(
            ExitCode::Unavailable,
            format_args!("{}: no schema in {} s", server.target, MIGRATION.as_secs()),
        )),
    }
}

async fn migrate(
    client: &mut Client,
    target: &Target,
    steps: &[&str],
) -> Result<(), OperatorFault> {
    let refused = |error: Error| refused(target, &error);
    // Sees what another control has made while this one waited for the lock.
    let begun = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted);
    let transaction = begun.start().await.map_err(refused)?;
    let lock = "SELECT current_setting('server_encoding'), pg_advisory_xact_lock($1, $2)";
    let with: [Param<'_>; 2] = [(&LOCKS, Type::INT4), (&MIGRATE, Type::INT4)];
    let row = transaction.query_typed_one(lock, &with).await.map_err(refused)?;
    let encoding: String = row.try_get(0).map_err(refused)?;
    if encoding != "UTF8" {
        let why = format!("{target}: has encoding {encoding}; make a database with UTF8");
        return Err(OperatorFault::config(why));
    }
    let done = version(&transaction, target).await?.unwrap_or(0);
    let known = steps.len();
    if done > known {
        return Err(newer(target, done, known));
    }
    if done == known {
        return Ok(());
    }
    transaction.batch_execute("SET LOCAL search_path TO perigee").await.map_err(refused)?;
    for step in &steps[done..] {
        transaction.batch_execute(step).await.map_err(refused)?;
    }
    let version = known as i32;
    let secret = crate::token::random::<32>();
    let secret = &secret[..];
    let (sql, with): (_, &[Param<'_>]) = match done {
        0 => (
            "INSERT INTO store (version, secret) VALUES ($1, $2)",
            &[(&version, Type::INT4), (&secret, Type::BYTEA)],
        ),
        _ => ("UPDATE store SET version = $1", &[(&version, Type::INT4)]),
    };
    transaction.execute_typed(sql, with).await.map_err(refused)?;
    transaction.commit().await.map_err(refused)
}

/// The version of what is there; makes the schema's name if that is missing.
async fn version(
    transaction: &Transaction<'_>,
    target: &Target,
) -> Result<Option<usize>, OperatorFault> {
    let refused = |error: Error| refused(target, &error);
    let sql = "SELECT to_regnamespace('perigee') IS NOT NULL,
                      to_regclass('perigee.store') IS NOT NULL,
                      EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace('perigee'))";
    let row = transaction.query_typed_one(sql, &[]).await.map_err(refused)?;
    let look = |at: usize| row.try_get::<_, bool>(at).map_err(refused);
    match (look(0)?, look(1)?, look(2)?) {
        (false, ..) => {
            transaction.batch_execute("CREATE SCHEMA perigee").await.map_err(refused)?;
            Ok(None)
        }
        // Somebody with the right to has made it for us.
        (true, false, false) => Ok(None),
        (true, false, true) => Err(OperatorFault::config(format_args!(
            "{target}: its schema perigee is another program's; choose another database"
        ))),
        (true, true, _) => {
            let sql = "SELECT version FROM perigee.store";
            let row = transaction.query_typed_one(sql, &[]).await.map_err(refused)?;
            let version: i32 = row.try_get(0).map_err(refused)?;
            Ok(Some(usize::try_from(version).unwrap_or(usize::MAX)))
        }
    }
}

/// The secret of a store whose schema is the one this program knows.
pub(super) async fn look(client: &Client, target: &Target) -> Result<[u8; 32], OperatorFault> {
    let sql = "SELECT version, secret FROM store";
    let row = client.query_typed_one(sql, &[]).await.map_err(|error| refused(target, &error))?;
    let version: i32 = row.try_get(0).map_err(|error| refused(target, &error))?;
    let (version, known) = (usize::try_from(version).unwrap_or(usize::MAX), MIGRATIONS.len());
    if version > known {
        return Err(newer(target, version, known));
    }
    let secret: Vec<u8> = row.try_get(1).map_err(|error| refused(target, &error))?;
    secret.try_into().map_err(|_| {
        OperatorFault::config(format_args!("{target}: its secret is damaged; restore a dump"))
    })
}

fn newer(target: &Target, version: usize, known: usize) -> OperatorFault {
    OperatorFault::config(format_args!(
        "{target}: has schema {version}, this program knows up to {known}; start a newer control"
    ))
}
