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

/// Whether eBPF programs like ours may be loaded here; says so if not.
#[must_use]
pub fn may_load_programs() -> bool {
    /// Without it the verifier takes simple programs only, and calls ours wrong.
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    const NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/self/status").expect("every process has one");
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("CapEff:")).expect("Linux writes it");
    let mask = u64::from_str_radix(mask.trim(), 16).expect("Linux writes a number");
    for (capability, bit) in
        [("CAP_NET_ADMIN", NET_ADMIN), ("CAP_PERFMON", PERFMON), ("CAP_BPF", BPF)]
    {
        if mask >> bit & 1 == 0 {
            skip("bpf", &format!("{capability} is missing"));
            return false;
        }
    }
    let kernel = std::path::Path::new("/proc/sys/net/core/bpf_jit_enable").exists();
    if !kernel {
        skip("bpf", "this kernel has none");
    }
    kernel
}
