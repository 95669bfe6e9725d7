//! See `tests::fuzz_targets::ingress`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::fuzz_targets::ingress(data));
