//! The traits of the packet program, implemented over BPF maps.

use core::intrinsics::{AtomicOrdering, atomic_and, atomic_cxchg, atomic_or, atomic_xadd};

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, lpm_trie::Key},
    helpers::{bpf_get_smp_processor_id, generated::bpf_ktime_get_coarse_ns},
};
use lb_common::{
    abi::{
        BackendKeyV4, BackendKeyV6, Config, Counter, Event, ServiceKeyV4, ServiceKeyV6, SourceV4, SourceV6,
        VipKeyV4, VipKeyV6,
    },
    clock,
    datapath::{Cells, Maps, Tables},
};

use crate::maps;

/// A map element as cells: its address, and its number of cells − 1, which masks every index.
#[derive(Clone, Copy)]
pub(crate) struct KernelCells {
    first: *mut u64,
    mask: usize,
}

impl KernelCells {
    #[inline(always)]
    fn cell(self, index: usize) -> *mut u64 {
        // SAFETY: the mask keeps the index within the element, whose size is a power of two of cells.
        unsafe { self.first.add(index & self.mask) }
    }
}

/// An element of an array of cells. Raw pointers all the way: others write these while we read.
#[inline(always)]
fn element<T, const N: usize, const FLAGS: usize>(
    map: &Array<T, N, FLAGS>,
    index: u32,
) -> Option<KernelCells> {
    const { assert!((size_of::<T>() / 8).is_power_of_two() && size_of::<T>().is_multiple_of(8)) };
    let first = map.get_ptr_mut(index)?.cast::<u64>();
    Some(KernelCells { first, mask: size_of::<T>() / 8 - 1 })
}

impl Cells for KernelCells {
    #[inline(always)]
    fn load(self, index: usize) -> u64 {
        // SAFETY: `cell` lies within the element, which lives as long as the map.
        unsafe { self.cell(index).read_volatile() }
    }

    #[inline(always)]
    fn store(self, index: usize, value: u64) {
        // SAFETY: as in `load`.
        unsafe { self.cell(index).write_volatile(value) }
    }

    #[inline(always)]
    fn store_tick(self, index: usize, tick: u16) {
        // SAFETY: as in `load`; the top halfword is the last one on a little-endian machine, which the target
        // bpfel is.
        unsafe { self.cell(index).cast::<u16>().add(3).write_volatile(tick) }
    }

    #[inline(always)]
    fn compare_exchange(self, index: usize, current: u64, new: u64) -> u64 {
        // SAFETY: as in `load`; cells are aligned.
        unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                self.cell(index),
                current,
                new,
            )
            .0
        }
    }

    #[inline(always)]
    fn fetch_or(self, index: usize, bits: u64) -> u64 {
        // SAFETY: as in `compare_exchange`.
        unsafe { atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(self.cell(index), bits) }
    }

    #[inline(always)]
    fn fetch_and(self, index: usize, bits: u64) -> u64 {
        // SAFETY: as in `compare_exchange`.
        unsafe { atomic_and::<u64, u64, { AtomicOrdering::SeqCst }>(self.cell(index), bits) }
    }

    #[inline(always)]
    fn fetch_add(self, index: usize, value: u64) -> u64 {
        // SAFETY: as in `compare_exchange`.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(self.cell(index), value) }
    }
}

/// The kernel's side of the packet program.
pub(crate) struct Kernel;

impl Kernel {
    /// Drops what needs a program that the agent has not installed yet.
    #[inline(always)]
    pub(crate) fn not_ready() -> u32 {
        Self.count(Counter::DropNotReady);
        xdp_action::XDP_DROP
    }
}

#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_smp_processor_id() as u32 }
}

impl Tables for Kernel {
    type Cells = KernelCells;

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        // SAFETY: the agent writes the settings before it attaches the program; later it stores single
        // aligned fields (timeouts), each of which reads as the old or the new one.
        maps::CONFIG.get_ptr(0).map(|config| unsafe { &*config })
    }

    #[inline(always)]
    fn flow_bucket(&self, index: u32) -> Option<KernelCells> {
        element(&maps::FLOWS, index)
    }

    #[inline(always)]
    fn handshakes(&self, index: u32) -> Option<KernelCells> {
        element(&maps::HANDSHAKES, index)
    }

    #[inline(always)]
    fn lock(&self, index: u32) -> Option<KernelCells> {
        element(&maps::LOCKS, index)
    }

    #[inline(always)]
    fn reverse_v4_bucket(&self, index: u32) -> Option<KernelCells> {
        element(&maps::REVERSE_V4, index)
    }

    #[inline(always)]
    fn reverse_v6_bucket(&self, index: u32) -> Option<KernelCells> {
        element(&maps::REVERSE_V6, index)
    }

    #[inline(always)]
    fn ports(&self, index: u32) -> Option<KernelCells> {
        element(&maps::PORTS, index)
    }

    #[inline(always)]
    fn last_hop(&self, index: u32) -> Option<KernelCells> {
        element(&maps::LAST_HOPS, index)
    }

    #[inline(always)]
    fn member(&self, index: u32) -> Option<KernelCells> {
        element(&maps::MEMBERS, index)
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<KernelCells> {
        element(&maps::BACKENDS, index)
    }
}

impl Maps for Kernel {
    #[inline(always)]
    fn tells_displaced(&self) -> bool {
        // SAFETY: a static of the program; volatile because the loader may have replaced its value.
        unsafe { (&raw const maps::TELL_DISPLACED).read_volatile() != 0 }
    }

    #[inline(always)]
    fn service_v4(&self, key: &ServiceKeyV4) -> Option<u32> {
        // SAFETY: a value never changes while its key exists.
        unsafe { maps::SERVICES_V4.get(key).copied() }
    }

    #[inline(always)]
    fn service_v6(&self, key: &ServiceKeyV6) -> Option<u32> {
        // SAFETY: a value never changes while its key exists.
        unsafe { maps::SERVICES_V6.get(key).copied() }
    }

    #[inline(always)]
    fn source_v4(&self, key: &SourceV4) -> bool {
        maps::SOURCES_V4.get(&Key::new(8 * size_of::<SourceV4>() as u32, *key)).is_some()
    }

    #[inline(always)]
    fn source_v6(&self, key: &SourceV6) -> bool {
        maps::SOURCES_V6.get(&Key::new(8 * size_of::<SourceV6>() as u32, *key)).is_some()
    }

    #[inline(always)]
    fn vip_v4(&self, key: &VipKeyV4) -> Option<u32> {
        // SAFETY: four aligned bytes read as the old or the new flags.
        unsafe { maps::VIPS_V4.get(key).copied() }
    }

    #[inline(always)]
    fn vip_v6(&self, key: &VipKeyV6) -> Option<u32> {
        // SAFETY: four aligned bytes read as the old or the new flags.
        unsafe { maps::VIPS_V6.get(key).copied() }
    }

    #[inline(always)]
    fn backend_v4(&self, key: &BackendKeyV4) -> Option<u32> {
        // SAFETY: a value never changes while its key exists.
        unsafe { maps::BACKENDS_V4.get(key).copied() }
    }

    #[inline(always)]
    fn backend_v6(&self, key: &BackendKeyV6) -> Option<u32> {
        // SAFETY: a value never changes while its key exists.
        unsafe { maps::BACKENDS_V6.get(key).copied() }
    }

    #[inline(always)]
    fn address_filter(&self, index: u32) -> u64 {
        element(&maps::ADDRESS_FILTER, index).map_or(0, |cells| cells.load(0))
    }

    #[inline(always)]
    fn descriptor(&self, index: u32) -> Option<KernelCells> {
        element(&maps::DESCRIPTORS, index)
    }

    #[inline(always)]
    fn affinity(&self, index: u32) -> Option<KernelCells> {
        element(&maps::AFFINITY, index)
    }

    #[inline(always)]
    fn new_flows(&self, index: u32) -> Option<KernelCells> {
        element(&maps::NEW_FLOWS, index)
    }

    #[inline(always)]
    fn syn(&self, index: u32) -> Option<KernelCells> {
        element(&maps::SYNS, index)
    }

    #[inline(always)]
    fn fragment(&self, index: u32) -> Option<KernelCells> {
        element(&maps::FRAGMENTS, index)
    }

    #[inline(always)]
    fn flow_stats(&self, index: u32) -> Option<KernelCells> {
        element(&maps::FLOW_STATS, index)
    }

    #[inline(always)]
    fn ring_pair(&self, index: u32) -> Option<KernelCells> {
        element(&maps::RINGS, index)
    }

    #[inline(always)]
    fn member_stats(&self, member: u32, member_count: u32) -> Option<KernelCells> {
        element(&maps::MEMBER_STATS, cpu().wrapping_mul(member_count).wrapping_add(member))
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        if let Some(cells) = element(&maps::COUNTERS, cpu()) {
            cells.add(counter as usize, 1);
        }
    }

    #[inline(always)]
    fn event(&self, time: u64, limit: u32, lost: Counter, words: impl FnOnce() -> [u64; 7]) {
        let Some(budget) = element(&maps::EVENT_BUDGET, cpu()) else { return };
        let now = clock::tick(time) as u64;
        let spent = budget.load(0);
        let sent = if spent & 0xffff_ffff == now { spent >> 32 } else { 0 };
        if sent >= limit as u64 {
            return self.count(lost);
        }
        budget.store(0, now | (sent + 1) << 32);
        let Some(mut entry) = maps::EVENTS.reserve_untyped::<Event>(0) else {
            return self.count(lost);
        };
        let target = entry.as_mut_ptr().cast::<u64>();
        for (index, word) in words().into_iter().enumerate() {
            // SAFETY: an event is as many words as there are. One store each, straight into the ring: there is no
            // room for all of them on the stack.
            unsafe { target.add(index).write_volatile(word) };
        }
        entry.submit(0);
    }

    #[inline(always)]
    fn refusals(&self) -> Option<KernelCells> {
        element(&maps::REFUSALS, cpu())
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a static of the program; volatile because the loader may have replaced its value.
        if unsafe { (&raw const maps::INJECT_CLOCK).read_volatile() } != 0 {
            return element(&maps::CLOCK, 0).map_or(0, |cells| cells.load(0));
        }
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
}
