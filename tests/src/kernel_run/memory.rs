//! The program's arrays, mapped: what a packet sees, without a system call.

use std::{
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicU16, AtomicU64, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use lb_common::{
    abi::{Config, Counter},
    datapath::{Cells, Tables},
};
use memmap2::{MmapOptions, MmapRaw};

/// One array that was made with `BPF_F_MMAPABLE`.
#[derive(Debug)]
pub struct MappedArray {
    memory: MmapRaw,
    stride: usize,
    len: u32,
}

impl MappedArray {
    /// Takes an array out of a loaded object and maps it.
    pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<Self> {
        let Some(Map::Array(data)) = ebpf.take_map(name) else {
            bail!("the packet program has no array {name}");
        };
        Self::map(&data).with_context(|| format!("cannot map {name}"))
    }

    fn map(data: &MapData) -> Result<Self> {
        let info = data.info()?;
        ensure!(info.value_size() % 8 == 0, "its elements are no whole cells");
        let bytes = info.max_entries() as usize * info.value_size() as usize;
        let memory = MmapOptions::new()
            .len(bytes.next_multiple_of(page_size()))
            .map_raw(data.fd().as_fd().as_raw_fd())?;
        Ok(Self { memory, stride: info.value_size() as usize / 8, len: info.max_entries() })
    }

    /// Elements.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// An element; `None` beyond the end.
    pub fn get(&self, index: u32) -> Option<MappedCells<'_>> {
        let first = (index < self.len).then_some(index as usize * self.stride)?;
        // SAFETY: the mapping holds `len × stride` cells, is writable, page-aligned and lives as long as
        // `self`; the kernel's CPUs use it by whole aligned cells (ticks: by halfwords) too.
        let cells = unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().cast::<AtomicU64>().add(first), self.stride)
        };
        Some(MappedCells { cells })
    }

    /// Writes a whole element, cell by cell.
    ///
    /// # Panics
    /// When there is no such element, or `T` is not of its size: a defect of the test.
    pub fn write<T: bytemuck::Pod>(&self, index: u32, value: &T) {
        let cells = self.get(index).unwrap_or_else(|| panic!("element {index} of {}", self.len));
        assert_eq!(size_of::<T>(), self.stride * 8, "the size of an element");
        for (cell, bytes) in bytemuck::bytes_of(value).chunks_exact(8).enumerate() {
            cells.store(cell, bytemuck::pod_read_unaligned(bytes));
        }
    }

    /// Clears every element.
    pub fn clear(&self) {
        for index in 0..self.len {
            if let Some(element) = self.get(index) {
                element.cells.iter().for_each(|cell| cell.store(0, Ordering::Relaxed));
            }
        }
    }
}

/// An element of a [`MappedArray`].
#[derive(Clone, Copy, Debug)]
pub struct MappedCells<'a> {
    cells: &'a [AtomicU64],
}

impl MappedCells<'_> {
    fn cell(&self, index: usize) -> &AtomicU64 {
        &self.cells[index % self.cells.len()]
    }
}

impl Cells for MappedCells<'_> {
    fn load(self, index: usize) -> u64 {
        self.cell(index).load(Ordering::Relaxed)
    }

    fn store(self, index: usize, value: u64) {
        self.cell(index).store(value, Ordering::Relaxed);
    }

    fn store_tick(self, index: usize, tick: u16) {
        let top = if cfg!(target_endian = "little") { 3 } else { 0 };
        // SAFETY: the halfword lies within a mapped, writable cell and is aligned as part of it; nobody holds
        // a reference to its bytes.
        let halfword = unsafe { AtomicU16::from_ptr(self.cell(index).as_ptr().cast::<u16>().add(top)) };
        halfword.store(tick, Ordering::Relaxed);
    }

    fn compare_exchange(self, index: usize, current: u64, new: u64) -> u64 {
        match self.cell(index).compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(before) | Err(before) => before,
        }
    }

    fn fetch_or(self, index: usize, bits: u64) -> u64 {
        self.cell(index).fetch_or(bits, Ordering::SeqCst)
    }

    fn fetch_and(self, index: usize, bits: u64) -> u64 {
        self.cell(index).fetch_and(bits, Ordering::SeqCst)
    }

    fn fetch_add(self, index: usize, value: u64) -> u64 {
        self.cell(index).fetch_add(value, Ordering::SeqCst)
    }
}

/// Every array of the packet program, by its map's name, and the settings as they were written last.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields have the maps' names")]
pub struct KernelTables {
    pub address_filter: MappedArray,
    pub descriptors: MappedArray,
    pub rings: MappedArray,
    pub members: MappedArray,
    pub backends: MappedArray,
    pub flows: MappedArray,
    pub handshakes: MappedArray,
    pub locks: MappedArray,
    pub reverse_v4: MappedArray,
    pub reverse_v6: MappedArray,
    pub ports: MappedArray,
    pub last_hops: MappedArray,
    pub affinity: MappedArray,
    pub new_flows: MappedArray,
    pub syns: MappedArray,
    pub fragments: MappedArray,
    pub flow_stats: MappedArray,
    pub counters: MappedArray,
    pub member_stats: MappedArray,
    pub event_budget: MappedArray,
    pub refusals: MappedArray,
    settings: MappedArray,
    clock: MappedArray,
    config: Config,
}

impl KernelTables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut array = |name| MappedArray::take(ebpf, name);
        Ok(Self {
            address_filter: array("ADDRESS_FILTER")?,
            descriptors: array("DESCRIPTORS")?,
            rings: array("RINGS")?,
            members: array("MEMBERS")?,
            backends: array("BACKENDS")?,
            flows: array("FLOWS")?,
            handshakes: array("HANDSHAKES")?,
            locks: array("LOCKS")?,
            reverse_v4: array("REVERSE_V4")?,
            reverse_v6: array("REVERSE_V6")?,
            ports: array("PORTS")?,
            last_hops: array("LAST_HOPS")?,
            affinity: array("AFFINITY")?,
            new_flows: array("NEW_FLOWS")?,
            syns: array("SYNS")?,
            fragments: array("FRAGMENTS")?,
            flow_stats: array("FLOW_STATS")?,
            counters: array("COUNTERS")?,
            member_stats: array("MEMBER_STATS")?,
            event_budget: array("EVENT_BUDGET")?,
            refusals: array("REFUSALS")?,
            settings: array("CONFIG")?,
            clock: array("CLOCK")?,
            config: bytemuck::Zeroable::zeroed(),
        })
    }

    /// Writes the settings.
    pub fn set_config(&mut self, config: Config) {
        self.settings.write(0, &config);
        self.config = config;
    }

    /// Sets the clock of a program that was loaded with an injected one, in nanoseconds.
    pub fn set_clock(&self, nanoseconds: u64) {
        self.clock.write(0, &nanoseconds);
    }

    /// Clears everything that packets have left behind, counters included.
    pub fn forget_packets(&self) {
        for array in [
            &self.flows,
            &self.handshakes,
            &self.locks,
            &self.reverse_v4,
            &self.reverse_v6,
            &self.ports,
            &self.last_hops,
            &self.affinity,
            &self.new_flows,
            &self.syns,
            &self.fragments,
            &self.flow_stats,
            &self.counters,
            &self.member_stats,
            &self.event_budget,
            &self.refusals,
        ] {
            array.clear();
        }
    }

    /// A counter, summed over the CPUs.
    pub fn counter(&self, counter: Counter) -> u64 {
        (0..self.counters.len())
            .filter_map(|cpu| self.counters.get(cpu))
            .fold(0, |sum, cells| sum.wrapping_add(cells.load(counter as usize)))
    }
}

impl<'a> Tables for &'a KernelTables {
    type Cells = MappedCells<'a>;

    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn flow_bucket(&self, index: u32) -> Option<MappedCells<'a>> {
        self.flows.get(index)
    }

    fn handshakes(&self, index: u32) -> Option<MappedCells<'a>> {
        self.handshakes.get(index)
    }

    fn lock(&self, index: u32) -> Option<MappedCells<'a>> {
        self.locks.get(index)
    }

    fn reverse_v4_bucket(&self, index: u32) -> Option<MappedCells<'a>> {
        self.reverse_v4.get(index)
    }

    fn reverse_v6_bucket(&self, index: u32) -> Option<MappedCells<'a>> {
        self.reverse_v6.get(index)
    }

    fn ports(&self, index: u32) -> Option<MappedCells<'a>> {
        self.ports.get(index)
    }

    fn last_hop(&self, index: u32) -> Option<MappedCells<'a>> {
        self.last_hops.get(index)
    }

    fn member(&self, index: u32) -> Option<MappedCells<'a>> {
        self.members.get(index)
    }

    fn backend(&self, index: u32) -> Option<MappedCells<'a>> {
        self.backends.get(index)
    }
}

fn page_size() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or(4096)
}
