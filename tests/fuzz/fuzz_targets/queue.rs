//! See `tests::fuzz_targets::queue`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::fuzz_targets::queue(data));
