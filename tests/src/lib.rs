//! Tests that span crates: what the fuzz targets do, and their seeds on every run.
#![forbid(unsafe_code)]

pub mod fuzz_targets;
