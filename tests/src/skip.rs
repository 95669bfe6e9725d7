//! What a machine may lack, and what a test does then.
//!
//! A skip is always printed. `PERIGEE_REQUIRE`, a list with commas, turns the skips it names into
//! failures, so that CI cannot lose a test in silence.

use std::io::Write;

/// The variable that names what must not be skipped.
const REQUIRE: &str = "PERIGEE_REQUIRE";
/// The variable that asks for the tests that take minutes.
const SLOW: &str = "PERIGEE_SLOW";

/// Says that the running test is skipped, because `what` is missing as `why` tells.
///
/// # Panics
/// When `PERIGEE_REQUIRE` names `what`.
pub fn skip(what: &str, why: &str) {
    let required = std::env::var(REQUIRE).unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name.trim() == what),
        "{what} is required and missing: {why}"
    );
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // The test runner hides what passing tests print through the macros.
    let _ = writeln!(std::io::stderr(), "skipped {test}: no {what}: {why}");
}

/// Whether tests that wait for minutes were asked for.
#[must_use]
pub fn slow() -> bool {
    std::env::var(SLOW).is_ok_and(|value| value == "1")
}
