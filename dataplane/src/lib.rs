//! The dataplane process.
