//! See `tests::fuzz_targets::signature`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::fuzz_targets::signature(data));
