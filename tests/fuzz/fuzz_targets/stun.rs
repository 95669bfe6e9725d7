//! See `tests::fuzz_targets::stun`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::fuzz_targets::stun(data));
