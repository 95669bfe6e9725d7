//! The contract between control and dataplane.
#![forbid(unsafe_code)]
