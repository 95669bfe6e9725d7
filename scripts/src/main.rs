//! Scripts.
fn main() {}
