//! Maglev rings (Eisenbud et al., NSDI 2016, §3.4), with exact weights.
//!
//! A ring is a pure function of its size and of the sorted backends with their weights, so every gateway
//! builds the same one. It is keyed by the bytes of the backends' identities, never by their position.

mod build;
mod permutation;
mod size;
#[cfg(test)]
mod tests;

pub use build::{Entry, build, quotas};
pub use size::{MAX_ENTRIES, fallback_class, ring_class};
