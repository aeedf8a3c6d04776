//! Clusters as directories of manifests.
//!
//! `DIR/*.yaml` holds what belongs to the gateway (`AddressPool`, `MemberCluster`), `DIR/<cluster>/*.yaml` what
//! kubectl would apply to that cluster (`Service`, `EndpointSlice`). [`watch`] follows it. Each directory (the
//! top and every cluster's) stands for itself: while one of its files cannot be read, its last good state
//! stays, and the reason is among the [`Snapshot`]'s problems.

mod directory;
mod manifest;
#[cfg(test)]
mod tests;
mod tree;
mod watch;

use super::{LastGood, Snapshot, log_changes};

pub use manifest::{Manifest, ManifestError, Object, parse};
pub use watch::{SourceError, watch};
