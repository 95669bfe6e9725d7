//! See `tests::fuzz_targets::said`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::fuzz_targets::said(data));
