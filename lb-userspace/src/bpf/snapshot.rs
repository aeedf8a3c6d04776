//! What the maps hold, read for adoption.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::hash_map::HashMap;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{MapData, MapError};
use lb_common::abi::{RING_SIZES, RingWord, ServiceDescriptor};

use super::load::Kernel;
use super::memory::MappedArray;
use crate::plan::{BackendKey, MapSnapshot, ServiceKey, SourceKey, VipKey};

/// A hash map that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("can't read the map {map}: {source}")]
pub struct SnapshotError {
    map: &'static str,
    source: MapError,
}

impl Kernel {
    /// Reads everything that plans write. Nothing else may write meanwhile; packets may flow.
    ///
    /// # Errors
    ///
    /// When a hash map can't be read.
    pub fn snapshot(&self) -> Result<MapSnapshot, SnapshotError> {
        let maps = &self.hashes;
        let mut services = BTreeMap::new();
        read("SERVICES_V4", &maps.services_v4, |key| ServiceKey::V4(bytemuck::cast(key)), &mut services)?;
        read("SERVICES_V6", &maps.services_v6, |key| ServiceKey::V6(bytemuck::cast(key)), &mut services)?;
        let mut vips = BTreeMap::new();
        read("VIPS_V4", &maps.vips_v4, |key| VipKey::V4(bytemuck::cast(key)), &mut vips)?;
        read("VIPS_V6", &maps.vips_v6, |key| VipKey::V6(bytemuck::cast(key)), &mut vips)?;
        let mut backend_keys = BTreeMap::new();
        read("BACKENDS_V4", &maps.backends_v4, |key| BackendKey::V4(bytemuck::cast(key)), &mut backend_keys)?;
        read("BACKENDS_V6", &maps.backends_v6, |key| BackendKey::V6(bytemuck::cast(key)), &mut backend_keys)?;
        let mut sources = BTreeSet::new();
        let v4 = |bits, key| SourceKey::V4(bits, bytemuck::cast(key));
        read_trie("SOURCES_V4", &maps.sources_v4, v4, &mut sources)?;
        let v6 = |bits, key| SourceKey::V6(bits, bytemuck::cast(key));
        read_trie("SOURCES_V6", &maps.sources_v6, v6, &mut sources)?;
        let egress = self
            .egress
            .keys()
            .collect::<Result<BTreeSet<u32>, _>>()
            .map_err(|source| SnapshotError { map: "EGRESS", source })?;
        let memory = &self.memory;
        let descriptors: BTreeMap<u32, ServiceDescriptor> = used(&memory.descriptors);
        let rings = descriptors
            .values()
            .flat_map(|descriptor| [RingWord(descriptor.ring), RingWord(descriptor.fallback)])
            .filter(|word| word.is_some() && usize::from(word.class()) < RING_SIZES.len())
            .filter_map(|word| Some((word.0, memory.read_ring(word.offset(), word.slots())?.into())))
            .collect();
        Ok(MapSnapshot {
            services,
            vips,
            backend_keys,
            sources,
            descriptors,
            members: used(&memory.members),
            backends: used(&memory.backends),
            address_filter: used(&memory.address_filter),
            rings,
            egress,
        })
    }
}

fn read<K: aya::Pod, T: Ord>(
    map: &'static str,
    source: &HashMap<MapData, K, u32>,
    key: impl Fn(K) -> T,
    target: &mut BTreeMap<T, u32>,
) -> Result<(), SnapshotError> {
    for entry in source.iter() {
        let (raw, value) = entry.map_err(|source| SnapshotError { map, source })?;
        target.insert(key(raw), value);
    }
    Ok(())
}

fn read_trie<K: aya::Pod>(
    map: &'static str,
    source: &LpmTrie<MapData, K, u32>,
    key: impl Fn(u32, K) -> SourceKey,
    target: &mut BTreeSet<SourceKey>,
) -> Result<(), SnapshotError> {
    for entry in source.keys() {
        let raw = entry.map_err(|source| SnapshotError { map, source })?;
        target.insert(key(raw.prefix_len(), raw.data()));
    }
    Ok(())
}

/// The elements of an array that are not all zero.
fn used<T: bytemuck::Pod + PartialEq>(array: &MappedArray) -> BTreeMap<u32, T> {
    (0..array.len())
        .filter_map(|index| Some((index, array.read::<T>(index)?)))
        .filter(|(_, value)| *value != T::zeroed())
        .collect()
}
