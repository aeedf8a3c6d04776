//! The arrays, mapped into the agent's memory: what the packet program sees, without a system call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

use lb_common::abi::{Backend, Config, Counter, CpuCounters, MemberStats, RingPair};
use lb_common::datapath::{Cells, Tables};
use memmap2::{MmapOptions, MmapRaw};

use super::layout::MapLayout;

/// Size of a page on every architecture that the packet program is built for.
const PAGE: usize = 4096;

/// One array, mapped: elements of whole 64-bit cells that the kernel's CPUs use at the same time.
#[derive(Debug)]
pub struct MappedArray {
    memory: MmapRaw,
    /// Cells of an element.
    stride: usize,
    /// Elements.
    len: u32,
}

impl MappedArray {
    /// Maps the whole of an array made with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the mapping.
    pub(super) fn map(fd: BorrowedFd<'_>, layout: &MapLayout) -> io::Result<Self> {
        let value = (layout.value_size as usize).next_multiple_of(8);
        let length = (layout.max_entries as usize * value).next_multiple_of(PAGE);
        let memory = MmapOptions::new().len(length).map_raw(fd.as_raw_fd())?;
        Ok(Self { memory, stride: value / 8, len: layout.max_entries })
    }

    /// Elements.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are no elements.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// An element, or `None` beyond the array's end.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<MappedCells<'_>> {
        let first = (index < self.len).then_some(index as usize * self.stride)?;
        // SAFETY: `map` made the mapping at least `len × stride` cells long, page-aligned and writable; it
        // lives as long as `self`, and everybody reads and writes it by whole atomic cells.
        let cells = unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().cast::<AtomicU64>().add(first), self.stride)
        };
        Some(MappedCells { cells })
    }

    /// A copy of an element, each cell read whole; `None` beyond the array's end or when `T` has another
    /// size.
    #[must_use]
    pub fn read<T: bytemuck::Pod>(&self, index: u32) -> Option<T> {
        let cells = self.get(index)?;
        let mut value = T::zeroed();
        let bytes = bytemuck::bytes_of_mut(&mut value);
        if bytes.len() != self.stride * 8 {
            return None;
        }
        for (target, cell) in bytes.chunks_exact_mut(8).zip(cells.cells) {
            target.copy_from_slice(&cell.load(Ordering::Relaxed).to_ne_bytes());
        }
        Some(value)
    }

    /// Writes the cells of an element in the order given, with a barrier before the last one, so that
    /// whoever sees it sees the others. `false`: no such element, or `T` has another size.
    pub(super) fn write<T: bytemuck::Pod>(&self, index: u32, value: &T, last: usize) -> bool {
        let bytes = bytemuck::bytes_of(value);
        let Some(cells) = self.get(index).filter(|_| bytes.len() == self.stride * 8 && last < self.stride)
        else {
            return false;
        };
        let word = |cell: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[cell * 8..cell * 8 + 8]);
            u64::from_ne_bytes(word)
        };
        for cell in (0..self.stride).filter(|cell| *cell != last) {
            cells.store(cell, word(cell));
        }
        fence(Ordering::Release);
        cells.cells[last].store(word(last), Ordering::Release);
        true
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
        let top = usize::from(cfg!(target_endian = "little")) * 3;
        // SAFETY: the halfword lies within a mapped, writable cell, is aligned as part of it, and is only
        // ever stored by a plain store of a halfword or of its whole cell, here as in the kernel.
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

/// All arrays, mapped. Shared between the agent's tasks.
#[derive(Debug)]
pub struct Memory {
    /// `ADDRESS_FILTER`.
    pub address_filter: MappedArray,
    /// `DESCRIPTORS`.
    pub descriptors: MappedArray,
    /// `RINGS`.
    pub rings: MappedArray,
    /// `MEMBERS`.
    pub members: MappedArray,
    /// `BACKENDS`.
    pub backends: MappedArray,
    /// `PORTS`.
    pub ports: MappedArray,
    /// `FLOWS`.
    pub flows: MappedArray,
    /// `HANDSHAKES`.
    pub handshakes: MappedArray,
    /// `LOCKS`.
    pub locks: MappedArray,
    /// `REVERSE_V4`.
    pub reverse_v4: MappedArray,
    /// `REVERSE_V6`.
    pub reverse_v6: MappedArray,
    /// `LAST_HOPS`.
    pub last_hops: MappedArray,
    /// `CONFIG`.
    pub config: MappedArray,
    /// `COUNTERS`.
    pub counters: MappedArray,
    /// `MEMBER_STATS`.
    pub member_stats: MappedArray,
    /// `FLOW_STATS`.
    pub flow_stats: MappedArray,
}

impl Memory {
    /// The flow tables under given settings, as the agent's sweep uses them.
    #[must_use]
    pub const fn tables<'a>(&'a self, config: &'a Config) -> MappedTables<'a> {
        MappedTables { memory: self, config }
    }

    /// The settings as they are in the map.
    #[must_use]
    pub fn read_config(&self) -> Config {
        self.config.read(0).unwrap_or_else(bytemuck::Zeroable::zeroed)
    }

    /// Writes the settings, the numbers of SNAT addresses last, so that no address is used before it is there.
    pub(super) fn write_config(&self, config: &Config) {
        const COUNTS: usize = std::mem::offset_of!(Config, snat_v4_count) / 8;
        self.config.write(0, config, COUNTS);
    }

    /// A counter, summed over all CPUs.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters().get(counter)
    }

    /// All counters, each summed over all CPUs.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sums = [0u64; Counter::ALL.len()];
        for cpu in (0..self.counters.len()).filter_map(|cpu| self.counters.read::<CpuCounters>(cpu)) {
            for (sum, count) in sums.iter_mut().zip(cpu.counts) {
                *sum = sum.wrapping_add(count);
            }
        }
        Counters { sums }
    }

    /// What the packet program has noted of failed connections to a backend; `None` beyond the table.
    #[must_use]
    pub fn trip(&self, backend: u32) -> Option<Trip> {
        let value: Backend = self.backends.read(backend)?;
        Some(Trip { until: value.tripped_until, errors: value.errors })
    }

    /// Ends a backend's trip, and counts its errors from 0 again. Nothing happens beyond the table.
    pub fn clear_trip(&self, backend: u32) {
        const TRIPPED_UNTIL: usize = std::mem::offset_of!(Backend, tripped_until) / 8;
        const ERRORS: usize = std::mem::offset_of!(Backend, errors) / 8;
        if let Some(cells) = self.backends.get(backend) {
            cells.store(ERRORS, 0);
            cells.store(TRIPPED_UNTIL, 0);
        }
    }

    /// What was forwarded for a member, summed over all CPUs; all 0 for an index beyond the table.
    #[must_use]
    pub fn member_stats(&self, member: u32) -> MemberStats {
        let mut sum = MemberStats::default();
        let count = self.members.len();
        if member >= count {
            return sum;
        }
        let cpus = self.member_stats.len() / count;
        for stats in (0..cpus).filter_map(|cpu| self.member_stats.read::<MemberStats>(cpu * count + member)) {
            sum.connections = sum.connections.wrapping_add(stats.connections);
            sum.packets_in = sum.packets_in.wrapping_add(stats.packets_in);
            sum.bytes_in = sum.bytes_in.wrapping_add(stats.bytes_in);
            sum.packets_out = sum.packets_out.wrapping_add(stats.packets_out);
            sum.bytes_out = sum.bytes_out.wrapping_add(stats.bytes_out);
        }
        sum
    }

    /// Clears what was counted for a member, before its index is given to another one.
    pub(super) fn clear_member_stats(&self, member: u32) {
        let count = self.members.len();
        for cpu in 0..self.member_stats.len() / count.max(1) {
            if let Some(cells) = self.member_stats.get(cpu * count + member) {
                (0..size_of::<MemberStats>() / 8).for_each(|cell| cells.store(cell, 0));
            }
        }
    }

    /// Writes ring slots from a position on; `false` when they don't fit. A position is in elements of two
    /// slots, and an odd last slot is followed by an empty one.
    pub(super) fn write_ring(&self, offset: u32, slots: &[u32]) -> bool {
        let pairs = slots
            .chunks(2)
            .map(|pair| RingPair { slots: [pair[0], pair.get(1).copied().unwrap_or_default()] });
        let fits = u64::from(offset) + slots.len().div_ceil(2) as u64 <= u64::from(self.rings.len());
        fits && (offset..).zip(pairs).all(|(index, pair)| self.rings.write(index, &pair, 0))
    }

    /// Ring slots from a position (in elements of two slots) on; `None` when they lie beyond the table.
    #[must_use]
    pub fn read_ring(&self, offset: u32, slots: u32) -> Option<Vec<u32>> {
        let end = offset.checked_add(slots.div_ceil(2))?;
        let pairs: Option<Vec<[u32; 2]>> =
            (offset..end).map(|index| self.rings.read::<RingPair>(index).map(|pair| pair.slots)).collect();
        let mut ring = pairs?.into_iter().flatten().collect::<Vec<_>>();
        ring.truncate(slots as usize);
        Some(ring)
    }
}

/// What the packet program has noted of failed connections to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trip {
    /// Until when it gets no new flows, in nanoseconds of the monotonic clock; 0 or past: it is not tripped.
    pub until: u64,
    /// Connect errors in a row since the last trip.
    pub errors: u64,
}

/// All counters, each summed over the CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    sums: [u64; Counter::ALL.len()],
}

impl Counters {
    /// These, and 0 of all others.
    #[cfg(test)]
    pub(crate) fn of(counts: &[(Counter, u64)]) -> Self {
        let mut sums = [0; Counter::ALL.len()];
        counts.iter().for_each(|(counter, count)| sums[*counter as usize] = *count);
        Self { sums }
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.sums.get(counter as usize).copied().unwrap_or_default()
    }

    /// Each with its sum, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.iter().map(|counter| (*counter, self.get(*counter)))
    }
}

/// [`Tables`] over mapped memory.
#[derive(Clone, Copy, Debug)]
pub struct MappedTables<'a> {
    memory: &'a Memory,
    config: &'a Config,
}

impl<'a> Tables for MappedTables<'a> {
    type Cells = MappedCells<'a>;

    fn config(&self) -> Option<&Config> {
        Some(self.config)
    }

    fn flow_bucket(&self, index: u32) -> Option<Self::Cells> {
        self.memory.flows.get(index)
    }

    fn handshakes(&self, index: u32) -> Option<Self::Cells> {
        self.memory.handshakes.get(index)
    }

    fn lock(&self, index: u32) -> Option<Self::Cells> {
        self.memory.locks.get(index)
    }

    fn reverse_v4_bucket(&self, index: u32) -> Option<Self::Cells> {
        self.memory.reverse_v4.get(index)
    }

    fn reverse_v6_bucket(&self, index: u32) -> Option<Self::Cells> {
        self.memory.reverse_v6.get(index)
    }

    fn ports(&self, index: u32) -> Option<Self::Cells> {
        self.memory.ports.get(index)
    }

    fn last_hop(&self, index: u32) -> Option<Self::Cells> {
        self.memory.last_hops.get(index)
    }

    fn member(&self, index: u32) -> Option<Self::Cells> {
        self.memory.members.get(index)
    }

    fn backend(&self, index: u32) -> Option<Self::Cells> {
        self.memory.backends.get(index)
    }
}
