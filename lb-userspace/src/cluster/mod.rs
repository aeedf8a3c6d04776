//! Where member clusters' objects come from.
//!
//! In standalone mode that is a directory: `DIR/*.yaml` holds what belongs to the gateway (`AddressPool`,
//! `MemberCluster`), `DIR/<cluster>/*.yaml` what kubectl would apply to that cluster (`Service`,
//! `EndpointSlice`). [`watch`] follows it. Each directory (the top and every cluster's) stands for itself:
//! while one of its files cannot be read, its last good state stays, and the reason is among the
//! [`Snapshot`]'s problems.

mod cache;
mod directory;
pub mod kubernetes;
mod manifest;
#[cfg(test)]
mod tests;
mod tree;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::desired::{ClusterObjects, GatewayObjects, Problem};

pub use cache::{CacheError, LastGood, load_last_good, store_last_good};
pub use manifest::{Manifest, ManifestError, Object, parse};
pub use watch::{SourceError, watch};

/// What all clusters say at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// What belongs to the gateway.
    pub gateway: GatewayObjects,
    /// The clusters, by name.
    pub clusters: BTreeMap<String, Arc<ClusterObjects>>,
    /// What could not be read, file by file.
    pub problems: Vec<Problem>,
}
