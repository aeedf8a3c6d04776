//! What the maps hold, as plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lb_common::abi::{Backend, Member, ServiceDescriptor};

use super::encode::{BackendKey, ServiceKey, SourceKey, VipKey};

/// The entries of all maps that plans write. Arrays are sparse: elements whose bytes are all zero may be
/// left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MapSnapshot {
    /// `SERVICES_V4` and `SERVICES_V6`.
    pub services: BTreeMap<ServiceKey, u32>,
    /// `VIPS_V4` and `VIPS_V6`.
    pub vips: BTreeMap<VipKey, u32>,
    /// `BACKENDS_V4` and `BACKENDS_V6`.
    pub backend_keys: BTreeMap<BackendKey, u32>,
    /// `SOURCES_V4` and `SOURCES_V6`.
    pub sources: BTreeSet<SourceKey>,
    /// `DESCRIPTORS`.
    pub descriptors: BTreeMap<u32, ServiceDescriptor>,
    /// `MEMBERS`.
    pub members: BTreeMap<u32, Member>,
    /// `BACKENDS`.
    pub backends: BTreeMap<u32, Backend>,
    /// `ADDRESS_FILTER`, the elements that are not 0.
    pub address_filter: BTreeMap<u32, u64>,
    /// The slots of each ring that a descriptor's `ring` or `fallback` names, by that word, exactly as many as
    /// its size class says. A word that points beyond `RINGS` is left out.
    pub rings: BTreeMap<u64, Arc<[u32]>>,
    /// Interfaces in the device map.
    pub egress: BTreeSet<u32>,
}
