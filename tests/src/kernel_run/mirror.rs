//! Giving the kernel's maps what the host's maps hold.

use std::hash::Hash;

use anyhow::{Context, Result};
use aya::maps::{
    HashMap, MapData,
    lpm_trie::{Key, LpmTrie},
};
use bytemuck::{NoUninit, Pod};
use lb_common::{
    datapath::Cells,
    host::{Array, HostMaps},
};

use super::{KernelProgram, MappedArray};

impl KernelProgram {
    /// Makes everything that an agent writes what it is in `maps`: settings, services, VIPs, backends, members,
    /// rings. The arrays must have the same sizes.
    ///
    /// # Errors
    /// When there are no settings, or a hash map is too small.
    pub fn mirror(&mut self, maps: &HostMaps) -> Result<()> {
        self.tables.set_config(maps.config.context("the host has no settings")?);
        replace(&mut self.services_v4, &maps.services_v4)?;
        replace(&mut self.services_v6, &maps.services_v6)?;
        self.mirror_sources(maps)?;
        replace(&mut self.vips_v4, &maps.vips_v4)?;
        replace(&mut self.vips_v6, &maps.vips_v6)?;
        replace(&mut self.backends_v4, &maps.backends_v4)?;
        replace(&mut self.backends_v6, &maps.backends_v6)?;
        for (kernel, host) in [
            (&self.tables.address_filter, &maps.address_filter),
            (&self.tables.descriptors, &maps.descriptors),
            (&self.tables.rings, &maps.rings),
            (&self.tables.members, &maps.members),
            (&self.tables.backends, &maps.backends),
        ] {
            (0..host.len()).for_each(|index| mirror_element(kernel, host, index));
        }
        Ok(())
    }

    /// Makes the source ranges those of `maps`.
    ///
    /// # Errors
    /// When a trie is too small.
    pub fn mirror_sources(&mut self, maps: &HostMaps) -> Result<()> {
        replace_prefixes(&mut self.sources_v4, &maps.sources_v4)?;
        replace_prefixes(&mut self.sources_v6, &maps.sources_v6)
    }
}

/// Copies one element of an array from the host to the kernel.
///
/// # Panics
/// When one of them has no such element.
pub fn mirror_element(kernel: &MappedArray, host: &Array, index: u32) {
    let (Some(to), Some(from)) = (kernel.get(index), host.get(index)) else {
        panic!("element {index} of {} and {}", kernel.len(), host.len());
    };
    (0..host.element_size() / 8).for_each(|cell| to.store(cell, from.load(cell)));
}

fn replace<K: NoUninit + Eq + Hash, const N: usize>(
    kernel: &mut HashMap<MapData, [u8; N], u32>,
    host: &std::collections::HashMap<K, u32>,
) -> Result<()>
where
    [u8; N]: Pod,
{
    let old = kernel.keys().collect::<Result<Vec<_>, _>>()?;
    for key in old {
        kernel.remove(&key)?;
    }
    for (key, value) in host {
        kernel.insert(bytemuck::cast::<K, [u8; N]>(*key), value, 0)?;
    }
    Ok(())
}

fn replace_prefixes<K: NoUninit + Eq + Hash, const N: usize>(
    kernel: &mut LpmTrie<MapData, [u8; N], u32>,
    host: &std::collections::HashSet<(u32, K)>,
) -> Result<()>
where
    [u8; N]: Pod,
{
    let wanted = host.iter().map(|(bits, key)| (*bits, bytemuck::cast::<K, [u8; N]>(*key)));
    let mut wanted: std::collections::HashSet<(u32, [u8; N])> = wanted.collect();
    let old = kernel.keys().collect::<Result<Vec<_>, _>>()?;
    for key in old {
        if !wanted.remove(&(key.prefix_len(), key.data())) {
            kernel.remove(&key)?;
        }
    }
    for (bits, key) in wanted {
        kernel.insert(&Key::new(bits, key), 1, 0)?;
    }
    Ok(())
}
