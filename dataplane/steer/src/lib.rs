//! The contract between control and dataplane.
