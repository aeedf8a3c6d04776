//! Kanmon's test bed.
