//! The `kanmon` binary.
fn main() {}
