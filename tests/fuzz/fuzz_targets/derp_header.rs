//! See `tests::fuzz_targets::derp_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::fuzz_targets::derp_header(data));
