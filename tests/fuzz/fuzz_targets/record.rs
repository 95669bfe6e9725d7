//! See `tests::fuzz_targets::record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::fuzz_targets::record(data));
