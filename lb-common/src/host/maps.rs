//! Every map of the packet program, as plain atomics and hash maps.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    vec::Vec,
};

use bytemuck::{Pod, Zeroable};

use crate::{
    abi::{
        ADDRESS_FILTER_SIZE, AffinityBucket, Backend, BackendKeyV4, BackendKeyV6, Config, Counter,
        CpuCounters, CpuRefusals, Event, EventBudget, FRAGMENT_RECORDS, FlowBucket, FlowStats,
        FragmentRecord, HandshakeBucket, LAST_HOPS, LIMIT_BUCKETS, LOCK_STRIPES, LastHop, LimitBucket,
        MOST_AFFINITY_BUCKETS, MOST_SYN_COPIES, Member, MemberStats, PortBitmap, ReverseBucketV4,
        ReverseBucketV6, RingPair, ServiceDescriptor, ServiceKeyV4, ServiceKeyV6, SourceV4, SourceV6,
        SynCopy, VipKeyV4, VipKeyV6,
    },
    clock,
    datapath::{self, Cells, Maps, PacketMut, Tables, Verdict},
};

/// An array map: elements of a fixed number of 64-bit cells.
#[derive(Debug)]
pub struct Array {
    cells: Vec<AtomicU64>,
    width: usize,
}

impl Array {
    /// An array of `count` zeroed elements of the size of `T`, which must be a multiple of 8.
    #[must_use]
    pub fn of<T: Pod>(count: u32) -> Self {
        let width = size_of::<T>() / 8;
        let cells = (0..count as usize * width).map(|_| AtomicU64::new(0)).collect();
        Self { cells, width }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> u32 {
        (self.cells.len() / self.width) as u32
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// Size of an element in bytes.
    #[must_use]
    pub fn element_size(&self) -> usize {
        self.width * 8
    }

    /// An element; `None` beyond the end.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<HostCells<'_>> {
        let first = index as usize * self.width;
        self.cells.get(first..first + self.width).map(|cells| HostCells { cells })
    }

    /// An element as a value.
    ///
    /// # Panics
    /// Beyond the end, or where `T` is not of the element's size.
    #[must_use]
    pub fn read<T: Pod>(&self, index: u32) -> T {
        let mut value = T::zeroed();
        assert_eq!(size_of::<T>(), self.element_size(), "a value of the element's size");
        let cells = self.get(index).expect("an index within the array").cells;
        for (bytes, cell) in bytemuck::bytes_of_mut(&mut value).chunks_exact_mut(8).zip(cells) {
            bytes.copy_from_slice(&cell.load(Ordering::Relaxed).to_ne_bytes());
        }
        value
    }

    /// Replaces an element.
    ///
    /// # Panics
    /// Beyond the end, or where `T` is not of the element's size.
    pub fn write<T: Pod>(&self, index: u32, value: &T) {
        self.write_bytes(index, bytemuck::bytes_of(value));
    }

    /// An element's bytes, as a BPF map holds them.
    ///
    /// # Panics
    /// Beyond the end.
    #[must_use]
    pub fn bytes(&self, index: u32) -> Vec<u8> {
        let cells = self.get(index).expect("an index within the array").cells;
        cells.iter().flat_map(|cell| cell.load(Ordering::Relaxed).to_ne_bytes()).collect()
    }

    /// Replaces an element's bytes.
    ///
    /// # Panics
    /// Beyond the end, or where there are more or fewer bytes than the element has.
    pub fn write_bytes(&self, index: u32, bytes: &[u8]) {
        let cells = self.get(index).expect("an index within the array").cells;
        assert_eq!(bytes.len(), self.element_size(), "a value of the element's size");
        for (cell, bytes) in cells.iter().zip(bytes.chunks_exact(8)) {
            cell.store(bytemuck::pod_read_unaligned(bytes), Ordering::Relaxed);
        }
    }
}

/// An element of an [`Array`]. Unlike the kernel's, it doesn't mask an index beyond the element, which is a
/// defect, but panics.
#[derive(Clone, Copy, Debug)]
pub struct HostCells<'a> {
    cells: &'a [AtomicU64],
}

impl Cells for HostCells<'_> {
    fn load(self, index: usize) -> u64 {
        self.cells[index].load(Ordering::Relaxed)
    }

    fn store(self, index: usize, value: u64) {
        self.cells[index].store(value, Ordering::Relaxed);
    }

    fn store_tick(self, index: usize, tick: u16) {
        // A cell has no halfwords here; an exchange that keeps the rest has the same effect.
        let _ = self.cells[index].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| {
            Some(value & 0xffff_ffff_ffff | (tick as u64) << 48)
        });
    }

    fn compare_exchange(self, index: usize, current: u64, new: u64) -> u64 {
        match self.cells[index].compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(found) | Err(found) => found,
        }
    }

    fn fetch_or(self, index: usize, bits: u64) -> u64 {
        self.cells[index].fetch_or(bits, Ordering::SeqCst)
    }

    fn fetch_and(self, index: usize, bits: u64) -> u64 {
        self.cells[index].fetch_and(bits, Ordering::SeqCst)
    }

    fn fetch_add(self, index: usize, value: u64) -> u64 {
        self.cells[index].fetch_add(value, Ordering::SeqCst)
    }
}

/// Numbers of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Buckets of `FLOWS` and `HANDSHAKES`, a power of two.
    pub flow_buckets: u32,
    /// Buckets of `REVERSE_V4`, a power of two.
    pub reverse_v4_buckets: u32,
    /// Buckets of `REVERSE_V6`, a power of two.
    pub reverse_v6_buckets: u32,
    /// Elements of `DESCRIPTORS`.
    pub services: u32,
    /// Elements of `RINGS`, two slots each.
    pub ring_pairs: u32,
    /// Elements of `MEMBERS`; index 0 is none.
    pub members: u32,
    /// Elements of `BACKENDS`; index 0 is none.
    pub backends: u32,
    /// Elements of `PORTS` for each backend.
    pub snat_stride: u32,
    /// Elements of `FLOW_STATS`, a power of two.
    pub flow_stats: u32,
    /// Processors.
    pub cpus: u32,
}

/// Every map. Shared between threads like the kernel's between processors.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are the maps, which lb-ebpf's maps.rs and the ABI document")]
pub struct HostMaps {
    pub config: Option<Config>,
    pub services_v4: HashMap<ServiceKeyV4, u32>,
    pub services_v6: HashMap<ServiceKeyV6, u32>,
    /// With the number of bits that count.
    pub sources_v4: HashSet<(u32, SourceV4)>,
    /// With the number of bits that count.
    pub sources_v6: HashSet<(u32, SourceV6)>,
    pub vips_v4: HashMap<VipKeyV4, u32>,
    pub vips_v6: HashMap<VipKeyV6, u32>,
    pub backends_v4: HashMap<BackendKeyV4, u32>,
    pub backends_v6: HashMap<BackendKeyV6, u32>,
    pub address_filter: Array,
    pub descriptors: Array,
    pub rings: Array,
    pub members: Array,
    pub backends: Array,
    pub ports: Array,
    pub flows: Array,
    pub handshakes: Array,
    pub affinity: Array,
    pub new_flows: Array,
    pub syns: Array,
    pub fragments: Array,
    pub flow_stats: Array,
    pub locks: Array,
    pub reverse_v4: Array,
    pub reverse_v6: Array,
    pub last_hops: Array,
    pub counters: Array,
    pub member_stats: Array,
    pub event_budget: Array,
    pub refusals: Array,
    /// How many events [`HostMaps::take_events`] may find at most: the size of the ring buffer.
    pub event_room: usize,
    events: Mutex<Vec<Event>>,
    clock: AtomicU64,
}

impl HostMaps {
    /// Empty maps.
    #[must_use]
    pub fn new(sizes: &Sizes) -> Self {
        Self {
            config: None,
            services_v4: HashMap::new(),
            services_v6: HashMap::new(),
            sources_v4: HashSet::new(),
            sources_v6: HashSet::new(),
            vips_v4: HashMap::new(),
            vips_v6: HashMap::new(),
            backends_v4: HashMap::new(),
            backends_v6: HashMap::new(),
            address_filter: Array::of::<u64>(ADDRESS_FILTER_SIZE),
            descriptors: Array::of::<ServiceDescriptor>(sizes.services),
            rings: Array::of::<RingPair>(sizes.ring_pairs),
            members: Array::of::<Member>(sizes.members),
            backends: Array::of::<Backend>(sizes.backends),
            ports: Array::of::<PortBitmap>(sizes.backends * sizes.snat_stride),
            flows: Array::of::<FlowBucket>(sizes.flow_buckets),
            handshakes: Array::of::<HandshakeBucket>(sizes.flow_buckets),
            affinity: Array::of::<AffinityBucket>(sizes.flow_buckets.min(MOST_AFFINITY_BUCKETS)),
            new_flows: Array::of::<LimitBucket>(LIMIT_BUCKETS),
            syns: Array::of::<SynCopy>(sizes.flow_buckets.min(MOST_SYN_COPIES)),
            fragments: Array::of::<FragmentRecord>(FRAGMENT_RECORDS),
            flow_stats: Array::of::<FlowStats>(sizes.flow_stats),
            locks: Array::of::<u64>(LOCK_STRIPES),
            reverse_v4: Array::of::<ReverseBucketV4>(sizes.reverse_v4_buckets),
            reverse_v6: Array::of::<ReverseBucketV6>(sizes.reverse_v6_buckets),
            last_hops: Array::of::<LastHop>(LAST_HOPS),
            counters: Array::of::<CpuCounters>(sizes.cpus),
            member_stats: Array::of::<MemberStats>(sizes.cpus * sizes.members),
            event_budget: Array::of::<EventBudget>(sizes.cpus),
            refusals: Array::of::<CpuRefusals>(sizes.cpus),
            event_room: usize::MAX,
            events: Mutex::default(),
            clock: AtomicU64::new(0),
        }
    }

    /// One processor's view.
    #[must_use]
    pub fn cpu(&self, cpu: u32) -> HostCpu<'_> {
        HostCpu { maps: self, cpu }
    }

    /// Sets the coarse clock, in nanoseconds.
    pub fn set_clock(&self, nanoseconds: u64) {
        self.clock.store(nanoseconds, Ordering::Relaxed);
    }

    /// Moves the coarse clock on.
    pub fn advance_clock(&self, nanoseconds: u64) {
        self.clock.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// The coarse clock, in nanoseconds.
    #[must_use]
    pub fn clock(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// A counter, summed over the processors.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        (0..self.counters.len())
            .map(|cpu| self.counters.read::<CpuCounters>(cpu).counts[counter as usize])
            .sum()
    }

    /// All counters, each summed over the processors, in the order of their numbers.
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        Counter::ALL.iter().map(|counter| self.counter(*counter)).collect()
    }

    /// A member's traffic, summed over the processors.
    #[must_use]
    pub fn stats(&self, member: u32) -> MemberStats {
        let stride = self.config.map_or(0, |config| config.member_count);
        (0..self.counters.len()).fold(MemberStats::zeroed(), |sum, cpu| {
            let one: MemberStats = self.member_stats.read(cpu * stride + member);
            MemberStats {
                connections: sum.connections + one.connections,
                packets_in: sum.packets_in + one.packets_in,
                bytes_in: sum.bytes_in + one.bytes_in,
                packets_out: sum.packets_out + one.packets_out,
                bytes_out: sum.bytes_out + one.bytes_out,
                reserved: [0; 3],
            }
        })
    }

    /// The events that were sent since the last call.
    #[must_use]
    pub fn take_events(&self) -> Vec<Event> {
        core::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One processor that works on [`HostMaps`].
#[derive(Clone, Copy, Debug)]
pub struct HostCpu<'a> {
    /// The maps.
    pub maps: &'a HostMaps,
    /// The processor's number.
    pub cpu: u32,
}

impl HostCpu<'_> {
    /// Runs the whole packet program.
    pub fn process<P: PacketMut>(&self, packet: &mut P) -> Verdict {
        datapath::process(packet, self)
    }
}

impl<'a> Tables for HostCpu<'a> {
    type Cells = HostCells<'a>;

    fn config(&self) -> Option<&Config> {
        self.maps.config.as_ref()
    }

    fn flow_bucket(&self, index: u32) -> Option<HostCells<'a>> {
        self.maps.flows.get(index)
    }

    fn handshakes(&self, index: u32) -> Option<HostCells<'a>> {
        self.maps.handshakes.get(index)
    }

    fn lock(&self, index: u32) -> Option<HostCells<'a>> {
        self.maps.locks.get(index)
    }

    fn reverse_v4_bucket(&self, index: u32) -> Option<HostCells<'a>> {
        self.maps.reverse_v4.get(index)
    }

    fn reverse_v6_bucket(&self, index: u32) -> Option<HostCells<'a>> {
        self.maps.reverse_v6.get(index)
    }

    fn ports(&self, index: u32) -> Option<HostCells<'a>> {
        self.maps.ports.get(index)
    }

    fn last_hop(&self, index: u32) -> Option<HostCells<'a>> {
        self.maps.last_hops.get(index)
    }

    fn member(&self, index: u32) -> Option<HostCells<'a>> {
        self.maps.members.get(index)
    }

    fn backend(&self, index: u32) -> Option<HostCells<'a>> {
        self.maps.backends.get(index)
    }
}

impl Maps for HostCpu<'_> {
    fn service_v4(&self, key: &ServiceKeyV4) -> Option<u32> {
        self.maps.services_v4.get(key).copied()
    }

    fn service_v6(&self, key: &ServiceKeyV6) -> Option<u32> {
        self.maps.services_v6.get(key).copied()
    }

    fn source_v4(&self, key: &SourceV4) -> bool {
        self.maps.sources_v4.iter().any(|(bits, range)| is_prefix(*bits, range, key))
    }

    fn source_v6(&self, key: &SourceV6) -> bool {
        self.maps.sources_v6.iter().any(|(bits, range)| is_prefix(*bits, range, key))
    }

    fn vip_v4(&self, key: &VipKeyV4) -> Option<u32> {
        self.maps.vips_v4.get(key).copied()
    }

    fn vip_v6(&self, key: &VipKeyV6) -> Option<u32> {
        self.maps.vips_v6.get(key).copied()
    }

    fn backend_v4(&self, key: &BackendKeyV4) -> Option<u32> {
        self.maps.backends_v4.get(key).copied()
    }

    fn backend_v6(&self, key: &BackendKeyV6) -> Option<u32> {
        self.maps.backends_v6.get(key).copied()
    }

    fn address_filter(&self, index: u32) -> u64 {
        self.maps.address_filter.get(index).map_or(0, |cells| cells.load(0))
    }

    fn descriptor(&self, index: u32) -> Option<Self::Cells> {
        self.maps.descriptors.get(index)
    }

    fn affinity(&self, index: u32) -> Option<Self::Cells> {
        self.maps.affinity.get(index)
    }

    fn new_flows(&self, index: u32) -> Option<Self::Cells> {
        self.maps.new_flows.get(index)
    }

    fn syn(&self, index: u32) -> Option<Self::Cells> {
        self.maps.syns.get(index)
    }

    fn fragment(&self, index: u32) -> Option<Self::Cells> {
        self.maps.fragments.get(index)
    }

    fn flow_stats(&self, index: u32) -> Option<Self::Cells> {
        self.maps.flow_stats.get(index)
    }

    fn ring_pair(&self, index: u32) -> Option<Self::Cells> {
        self.maps.rings.get(index)
    }

    fn member_stats(&self, member: u32, member_count: u32) -> Option<Self::Cells> {
        self.maps.member_stats.get(self.cpu.wrapping_mul(member_count).wrapping_add(member))
    }

    fn count(&self, counter: Counter) {
        if let Some(cells) = self.maps.counters.get(self.cpu) {
            cells.add(counter as usize, 1);
        }
    }

    fn event(&self, time: u64, limit: u32, lost: Counter, words: impl FnOnce() -> [u64; 7]) {
        let Some(budget) = self.maps.event_budget.get(self.cpu) else { return };
        let now = clock::tick(time) as u64;
        let spent = budget.load(0);
        let sent = if spent & 0xffff_ffff == now { spent >> 32 } else { 0 };
        if sent >= limit as u64 {
            return self.count(lost);
        }
        budget.store(0, now | (sent + 1) << 32);
        let mut events = self.maps.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() >= self.maps.event_room {
            return self.count(lost);
        }
        events.push(bytemuck::cast(words()));
    }

    fn refusals(&self) -> Option<Self::Cells> {
        self.maps.refusals.get(self.cpu)
    }

    fn now(&self) -> u64 {
        self.maps.clock()
    }
}

/// Whether two keys of a trie agree in their first bits.
fn is_prefix<K: Pod>(bits: u32, range: &K, key: &K) -> bool {
    let bit = |key: &K, n: u32| bytemuck::bytes_of(key)[n as usize / 8] >> (7 - n % 8) & 1;
    (0..bits).all(|n| bit(range, n) == bit(key, n))
}
