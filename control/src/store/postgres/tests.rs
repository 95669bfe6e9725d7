//! The suite over PostgreSQL, and what is particular to a server that others use and that may go.

use std::sync::Arc;

use super::*;
use crate::store::suite::suite;
use crate::testing::postgres::Server as Postgres;
use crate::token::digest_hex;

async fn open(url: &str) -> PostgresStore {
    let target = Target::parse(url, None).expect("the server's own URL");
    PostgresStore::open(target).await.expect("the server is there")
}

async fn fresh() -> Option<(Arc<dyn Store>, ())> {
    let server = Postgres::shared()?;
    Some((Arc::new(open(&server.database()).await), ()))
}

suite!(fresh);

/// Every step that was ever on main, by the digest of its text. None of these lines may change;
/// a new step adds one.
const RELEASED: [&str; 1] = ["35f2519711203bc93666c6adee1f957b49589b7677466e9b5ccea3c962b36c47"];

#[test]
fn steps_that_were_on_main_are_as_they_were() {
    let now: Vec<_> = schema::MIGRATIONS.iter().map(|step| digest_hex(step.as_bytes())).collect();
    assert_eq!(now, RELEASED);
}
