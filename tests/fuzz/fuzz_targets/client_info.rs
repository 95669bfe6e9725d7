//! See `tests::fuzz_targets::client_info`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::fuzz_targets::client_info(data));
