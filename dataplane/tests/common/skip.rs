//! What a kernel may refuse, and what a test does then.
//!
//! A skip is printed. `PERIGEE_REQUIRE`, a list with commas, turns the skips it names into failures.

/// Whether this kernel grants rings; says why not.
pub(crate) fn uring_works() -> bool {
    let Err(refusal) = dataplane::io::uring::probe() else { return true };
    let required = std::env::var("PERIGEE_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name.trim() == "uring"),
        "uring is required and missing: {refusal}"
    );
    eprintln!("skipped: no io_uring here: {refusal}");
    false
}
