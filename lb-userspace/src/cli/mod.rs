//! The `kanmon` command line.
