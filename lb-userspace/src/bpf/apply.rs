//! Map writes: one [`Step`] of a plan at a time.

use std::sync::atomic::{Ordering, fence};

use aya::maps::hash_map::HashMap;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::xdp::XdpMapError;
use aya::maps::{MapData, MapError};
use lb_common::abi::{Backend, Member, ServiceDescriptor};
use lb_common::datapath::Cells;

use super::load::Kernel;
use crate::plan::{BackendKey, ServiceKey, SourceKey, Step, VipKey};

/// Cell of [`Member`] with the flags, and their position in it.
const MEMBER_FLAGS_CELL: usize = std::mem::offset_of!(Member, backend) / 8;
const MEMBER_FLAGS_SHIFT: u32 = (std::mem::offset_of!(Member, flags) % 8 * 8) as u32;
/// Cells of [`Member`] with the next hop.
const NEXT_HOP_CELLS: std::ops::RangeInclusive<usize> = 3..=6;
/// Cells of [`ServiceDescriptor`].
const RING_CELL: usize = std::mem::offset_of!(ServiceDescriptor, ring) / 8;
const FALLBACK_CELL: usize = std::mem::offset_of!(ServiceDescriptor, fallback) / 8;
const FLOW_LOG_CELL: usize = std::mem::offset_of!(ServiceDescriptor, flow_log) / 8;
const CLIENTS_CELL: usize = std::mem::offset_of!(ServiceDescriptor, clients) / 8;
const REACTION_CELL: usize = std::mem::offset_of!(ServiceDescriptor, reaction) / 8;
/// Cell of [`Backend`] with the cluster, in its upper half.
const CLUSTER_CELL: usize = std::mem::offset_of!(Backend, cluster) / 8;

/// What is left to do after a step.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing.
    Done,
    /// The caller must wait until every packet in flight has left the program.
    GracePeriod,
    /// The caller must evict the flows of this member (the sweep over [`super::Memory::tables`] does).
    EvictFlows {
        /// Member.
        member: u32,
    },
}

/// A write that failed: the model no longer matches the maps, so take a snapshot and adopt it.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A hash map or the device map refused.
    #[error("can't change {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// Why.
        source: MapError,
    },
    /// The device map refused an interface.
    #[error("packets can't leave through interface {ifindex}: {source}")]
    Egress {
        /// Interface index.
        ifindex: u32,
        /// Why.
        source: XdpMapError,
    },
    /// An index beyond the table: the plan was made for other table sizes.
    #[error("{map} has no element {index}")]
    Index {
        /// The map.
        map: &'static str,
        /// The index.
        index: u32,
    },
}

impl Kernel {
    /// Writes one step to the maps.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or the step names an element that the tables don't have.
    pub fn apply(&mut self, step: &Step) -> Result<Applied, ApplyError> {
        match step {
            Step::GracePeriod => return Ok(Applied::GracePeriod),
            Step::EvictFlows { member } => return Ok(Applied::EvictFlows { member: *member }),
            Step::PutService { .. }
            | Step::DeleteService { .. }
            | Step::PutVip { .. }
            | Step::UpdateEcho { .. }
            | Step::DeleteVip { .. }
            | Step::PutBackendKey { .. }
            | Step::DeleteBackendKey { .. } => self.apply_to_hash(step)?,
            Step::PutSource { .. } | Step::DeleteSource { .. } => self.apply_to_trie(step)?,
            Step::AddEgress { ifindex } => self
                .egress
                .insert(*ifindex, *ifindex, None, 0)
                .map_err(|source| ApplyError::Egress { ifindex: *ifindex, source })?,
            Step::RemoveEgress { ifindex } => match self.egress.remove(*ifindex) {
                Err(error) if !is_absent(&error) => {
                    return Err(ApplyError::Map { map: "EGRESS", source: error });
                }
                _ => {}
            },
            _ => self.apply_to_array(step)?,
        }
        Ok(Applied::Done)
    }

    fn apply_to_hash(&mut self, step: &Step) -> Result<(), ApplyError> {
        let maps = &mut self.hashes;
        match step {
            Step::PutService { key: ServiceKey::V4(key), index } => {
                put("SERVICES_V4", &mut maps.services_v4, bytemuck::cast(*key), *index)
            }
            Step::PutService { key: ServiceKey::V6(key), index } => {
                put("SERVICES_V6", &mut maps.services_v6, bytemuck::cast(*key), *index)
            }
            Step::DeleteService { key: ServiceKey::V4(key) } => {
                delete("SERVICES_V4", &mut maps.services_v4, bytemuck::cast(*key))
            }
            Step::DeleteService { key: ServiceKey::V6(key) } => {
                delete("SERVICES_V6", &mut maps.services_v6, bytemuck::cast(*key))
            }
            Step::PutVip { key: VipKey::V4(key), flags }
            | Step::UpdateEcho { key: VipKey::V4(key), flags } => {
                put("VIPS_V4", &mut maps.vips_v4, key.vip, *flags)
            }
            Step::PutVip { key: VipKey::V6(key), flags }
            | Step::UpdateEcho { key: VipKey::V6(key), flags } => {
                put("VIPS_V6", &mut maps.vips_v6, key.vip, *flags)
            }
            Step::DeleteVip { key: VipKey::V4(key) } => delete("VIPS_V4", &mut maps.vips_v4, key.vip),
            Step::DeleteVip { key: VipKey::V6(key) } => delete("VIPS_V6", &mut maps.vips_v6, key.vip),
            Step::PutBackendKey { key: BackendKey::V4(key), index } => {
                put("BACKENDS_V4", &mut maps.backends_v4, bytemuck::cast(*key), *index)
            }
            Step::PutBackendKey { key: BackendKey::V6(key), index } => {
                put("BACKENDS_V6", &mut maps.backends_v6, bytemuck::cast(*key), *index)
            }
            Step::DeleteBackendKey { key: BackendKey::V4(key) } => {
                delete("BACKENDS_V4", &mut maps.backends_v4, bytemuck::cast(*key))
            }
            Step::DeleteBackendKey { key: BackendKey::V6(key) } => {
                delete("BACKENDS_V6", &mut maps.backends_v6, bytemuck::cast(*key))
            }
            _ => Ok(()),
        }
    }

    fn apply_to_trie(&mut self, step: &Step) -> Result<(), ApplyError> {
        let maps = &mut self.hashes;
        match step {
            Step::PutSource { key: SourceKey::V4(bits, key) } => {
                add("SOURCES_V4", &mut maps.sources_v4, Key::new(*bits, bytemuck::cast(*key)))
            }
            Step::PutSource { key: SourceKey::V6(bits, key) } => {
                add("SOURCES_V6", &mut maps.sources_v6, Key::new(*bits, bytemuck::cast(*key)))
            }
            Step::DeleteSource { key: SourceKey::V4(bits, key) } => {
                take_away("SOURCES_V4", &mut maps.sources_v4, Key::new(*bits, bytemuck::cast(*key)))
            }
            Step::DeleteSource { key: SourceKey::V6(bits, key) } => {
                take_away("SOURCES_V6", &mut maps.sources_v6, Key::new(*bits, bytemuck::cast(*key)))
            }
            _ => Ok(()),
        }
    }

    fn apply_to_array(&self, step: &Step) -> Result<(), ApplyError> {
        let memory = &self.memory;
        let (map, index, done) = match step {
            Step::InitBackend { index, value } => {
                ("BACKENDS", *index, memory.backends.write(*index, value, 0))
            }
            Step::SetBackendFlags { index, flags } => {
                let cells = memory.backends.get(*index);
                // The other half of the cell is always 0.
                cells.inspect(|cells| cells.store(0, u64::from(*flags)));
                ("BACKENDS", *index, cells.is_some())
            }
            Step::SetBackendCluster { index, cluster } => {
                let cells = memory.backends.get(*index);
                // The lower half, port and protocol, never changes.
                cells.inspect(|cells| {
                    let lower = cells.load(CLUSTER_CELL) & u64::from(u32::MAX);
                    cells.store(CLUSTER_CELL, lower | u64::from(*cluster) << 32);
                });
                ("BACKENDS", *index, cells.is_some())
            }
            Step::ResetMemberStats { index } => {
                memory.clear_member_stats(*index);
                ("MEMBER_STATS", *index, *index < memory.members.len())
            }
            Step::WriteMember { index, value } => {
                ("MEMBERS", *index, memory.members.write(*index, value, MEMBER_FLAGS_CELL))
            }
            Step::UpdateNextHop { index, value } => ("MEMBERS", *index, self.update_next_hop(*index, value)),
            Step::SetMemberFlags { index, flags } => {
                ("MEMBERS", *index, self.set_member_flags(*index, *flags))
            }
            Step::WriteRing { offset, slots } => {
                let done = memory.write_ring(*offset, slots);
                fence(Ordering::SeqCst);
                ("RINGS", *offset, done)
            }
            Step::WriteDescriptor { index, value } => {
                ("DESCRIPTORS", *index, memory.descriptors.write(*index, value, RING_CELL))
            }
            Step::SwapRing { index, ring } => ("DESCRIPTORS", *index, self.swap(*index, RING_CELL, ring.0)),
            Step::SwapFallback { index, ring } => {
                ("DESCRIPTORS", *index, self.swap(*index, FALLBACK_CELL, ring.0))
            }
            Step::SetFlowLog { index, flow_log } => {
                ("DESCRIPTORS", *index, self.swap(*index, FLOW_LOG_CELL, flow_log.0))
            }
            Step::SetClients { index, clients } => {
                ("DESCRIPTORS", *index, self.swap(*index, CLIENTS_CELL, clients.0))
            }
            Step::SetReaction { index, reaction } => {
                ("DESCRIPTORS", *index, self.swap(*index, REACTION_CELL, reaction.0))
            }
            Step::SetAddressFilter { index, flags } => {
                let cells = memory.address_filter.get(*index);
                cells.inspect(|cells| cells.store(0, *flags));
                ("ADDRESS_FILTER", *index, cells.is_some())
            }
            _ => return Ok(()),
        };
        if done { Ok(()) } else { Err(ApplyError::Index { map, index }) }
    }

    /// Stores the next hop of a live member, each cell whole, and its flags after it. While the next hop is
    /// not known no packet reads it, so one that appears is seen complete.
    fn update_next_hop(&self, index: u32, value: &Member) -> bool {
        let Some(cells) = self.memory.members.get(index) else { return false };
        let bytes: &[u64; 8] = bytemuck::cast_ref::<Member, [u64; 8]>(value);
        for cell in NEXT_HOP_CELLS {
            cells.store(cell, bytes[cell]);
        }
        self.set_member_flags(index, value.flags)
    }

    fn set_member_flags(&self, index: u32, flags: u8) -> bool {
        let Some(cells) = self.memory.members.get(index) else { return false };
        let before = cells.load(MEMBER_FLAGS_CELL);
        let cell = before & !(0xff << MEMBER_FLAGS_SHIFT) | u64::from(flags) << MEMBER_FLAGS_SHIFT;
        // Only the agent writes this cell; the exchange is for its barrier.
        cells.replace(MEMBER_FLAGS_CELL, before, cell)
    }

    /// Stores a descriptor's word after everything that it points to.
    fn swap(&self, index: u32, cell: usize, word: u64) -> bool {
        let Some(cells) = self.memory.descriptors.get(index) else { return false };
        fence(Ordering::SeqCst);
        cells.store(cell, word);
        true
    }
}

fn put<K: aya::Pod>(
    map: &'static str,
    target: &mut HashMap<MapData, K, u32>,
    key: K,
    value: u32,
) -> Result<(), ApplyError> {
    target.insert(key, value, 0).map_err(|source| ApplyError::Map { map, source })
}

/// Deletes a key; one that is not there counts as deleted.
fn delete<K: aya::Pod>(
    map: &'static str,
    target: &mut HashMap<MapData, K, u32>,
    key: K,
) -> Result<(), ApplyError> {
    match target.remove(&key) {
        Err(source) if !is_absent(&source) => Err(ApplyError::Map { map, source }),
        _ => Ok(()),
    }
}

/// Adds a prefix to a trie. Its value means nothing.
fn add<K: aya::Pod>(
    map: &'static str,
    target: &mut LpmTrie<MapData, K, u32>,
    key: Key<K>,
) -> Result<(), ApplyError> {
    target.insert(&key, 1, 0).map_err(|source| ApplyError::Map { map, source })
}

/// Takes a prefix out of a trie; one that is not there counts as taken.
fn take_away<K: aya::Pod>(
    map: &'static str,
    target: &mut LpmTrie<MapData, K, u32>,
    key: Key<K>,
) -> Result<(), ApplyError> {
    match target.remove(&key) {
        Err(source) if !is_absent(&source) => Err(ApplyError::Map { map, source }),
        _ => Ok(()),
    }
}

fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}
