//! How large each map is, and how much memory that takes.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use lb_common::abi::{
    ADDRESS_FILTER_SIZE, AddressFilter, AffinityBucket, Backend, BackendKeyV4, BackendKeyV6, Config,
    CpuCounters, CpuRefusals, EventBudget, FLOW_WAYS, FRAGMENT_RECORDS, FlowBucket, FlowStats,
    FragmentRecord, HandshakeBucket, LAST_HOPS, LIMIT_BUCKETS, LOCK_STRIPES, LastHop, LimitBucket, Lock,
    MAX_FLOW_SLOT, MAX_MEMBER_INDEX, MAX_SNAT_ADDRESSES, MOST_AFFINITY_BUCKETS, MOST_SYN_COPIES, Member,
    MemberStats, PortBitmap, REVERSE_WAYS, RING_SIZES, ReverseBucketV4, ReverseBucketV6, RingPair,
    ServiceDescriptor, ServiceKeyV4, ServiceKeyV6, SourceV4, SourceV6, SynCopy, VipKeyV4, VipKeyV6,
};

use crate::config;

/// Slots of the flow tables for each flow promised: at half load 0.001% of new flows find both of their
/// buckets full.
const SLOTS_PER_FLOW: u64 = 2;
/// Bytes of the ring buffer `EVENTS`: 16,384 events of 64 bytes each, header included.
const EVENT_BYTES: u32 = 1 << 20;
/// Interfaces that `EGRESS` has room for.
const EGRESS_INTERFACES: u32 = 256;
/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;
/// Size of a page on every architecture that the packet program is built for.
const PAGE: u64 = 4096;
/// What the kernel keeps for an element of a hash map beside key and value (`struct htab_elem`).
const HASH_ELEMENT_OVERHEAD: u64 = 48;
/// Bytes of a bucket of a hash map (`struct bucket`).
const HASH_BUCKET: u64 = 16;

/// How much the tables must hold. Every count is of what can be in use at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    /// Flows of both families together: 1 to 134,217,728.
    pub flows: u32,
    /// How many of the flows may be IPv6: 1 to `flows`.
    pub flows_v6: u32,
    /// Services (VIP + port + protocol) of both families together: 1 to 1,048,576.
    pub services: u32,
    /// Backends of both families together: 1 to 1,048,574.
    pub backends: u32,
    /// Members (backends times the services that they are in): 1 to 1,048,574.
    pub members: u32,
    /// Slots of all Maglev rings together, old and new ones of a swap both counted.
    pub ring_slots: u32,
    /// Flows whose traffic can be counted at once: 1 to 134,217,728, rounded up to a power of two.
    pub flow_counters: u32,
    /// Source ranges of a family, all services together: 1 to 16,777,216.
    pub source_ranges: u32,
    /// SNAT addresses of the family that has more of them: 1 to 8.
    pub snat_count: u32,
    /// CPUs that the machine may have: the highest possible CPU's number + 1.
    pub cpus: u32,
}

/// A table size that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table size {name} is {value}, but must be {least} to {most}")]
pub struct SizeError {
    name: &'static str,
    value: u32,
    least: u32,
    most: u32,
}

/// What kind of map it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// A hash map, written by system calls.
    Hash,
    /// A trie of prefixes, written by system calls.
    Trie,
    /// An array that the agent maps into its memory.
    Array,
    /// The ring buffer of events.
    RingBuffer,
    /// The devices that packets are redirected to, by interface index.
    DeviceHash,
}

/// One map as the agent makes it, and as it must be to be adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLayout {
    /// Name of the map and of its pin.
    pub name: &'static str,
    /// Kind.
    pub kind: MapKind,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Elements; for the ring buffer, bytes.
    pub max_entries: u32,
    /// Flags of `BPF_MAP_CREATE`.
    pub flags: u32,
}

/// What a map costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapMemory {
    /// Name of the map.
    pub name: &'static str,
    /// Elements.
    pub entries: u32,
    /// Bytes of kernel memory; for hash maps an estimate.
    pub bytes: u64,
}

/// What all maps cost, to be shown before they are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Each map, the largest first.
    pub maps: Vec<MapMemory>,
    /// Flows of both families that the tables promise.
    pub flows: u32,
}

impl TableSizes {
    /// The sizes that the settings have by default, for one SNAT address.
    #[must_use]
    pub fn default_for(cpus: u32) -> Self {
        let tables = config::TableSizes::default();
        Self {
            flows: tables.flows,
            flows_v6: tables.flows_v6,
            services: tables.services,
            backends: tables.backends,
            members: tables.members,
            ring_slots: tables.ring_slots,
            flow_counters: tables.flow_counters,
            source_ranges: tables.source_ranges,
            snat_count: 1,
            cpus,
        }
    }

    /// Checks every size.
    ///
    /// # Errors
    ///
    /// Names the first size that is out of its range.
    pub fn validate(&self) -> Result<(), SizeError> {
        let most_flows = (u64::from(MAX_FLOW_SLOT) + 1) / SLOTS_PER_FLOW;
        let ranges = [
            ("flows", self.flows, 1, most_flows as u32),
            ("flowsV6", self.flows_v6, 1, self.flows),
            ("services", self.services, 1, 1 << 20),
            ("backends", self.backends, 1, MAX_MEMBER_INDEX - 1),
            ("members", self.members, 1, MAX_MEMBER_INDEX - 1),
            ("ringSlots", self.ring_slots, 2 * RING_SIZES[0], 1 << 30),
            ("flowCounters", self.flow_counters, 1, most_flows as u32),
            ("sourceRanges", self.source_ranges, 1, 1 << 24),
            ("snatCount", self.snat_count, 1, MAX_SNAT_ADDRESSES as u32),
            ("cpus", self.cpus, 1, 1 << 12),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(SizeError { name, value, least, most });
            }
        }
        Ok(())
    }

    /// Buckets of `FLOWS` and `HANDSHAKES`: a power of two.
    #[must_use]
    pub const fn flow_buckets(&self) -> u32 {
        buckets(self.flows, FLOW_WAYS)
    }

    /// Elements of `AFFINITY`: a power of two.
    #[must_use]
    pub const fn affinity_buckets(&self) -> u32 {
        let buckets = self.flow_buckets();
        if buckets < MOST_AFFINITY_BUCKETS { buckets } else { MOST_AFFINITY_BUCKETS }
    }

    /// Elements of `SYNS`: a power of two.
    #[must_use]
    pub const fn syn_copies(&self) -> u32 {
        let buckets = self.flow_buckets();
        if buckets < MOST_SYN_COPIES { buckets } else { MOST_SYN_COPIES }
    }

    /// Elements of `FLOW_STATS`: a power of two.
    #[must_use]
    pub const fn flow_stats(&self) -> u32 {
        self.flow_counters.next_power_of_two()
    }

    /// Buckets of `REVERSE_V4`: a power of two.
    #[must_use]
    pub const fn reverse_v4_buckets(&self) -> u32 {
        buckets(self.flows, REVERSE_WAYS)
    }

    /// Buckets of `REVERSE_V6`: a power of two.
    #[must_use]
    pub const fn reverse_v6_buckets(&self) -> u32 {
        buckets(self.flows_v6, REVERSE_WAYS)
    }

    /// Elements of `MEMBERS`. Index 0 is never a member.
    #[must_use]
    pub const fn member_count(&self) -> u32 {
        self.members + 1
    }

    /// Elements of `BACKENDS`. Index 0 is never a backend.
    #[must_use]
    pub const fn backend_count(&self) -> u32 {
        self.backends + 1
    }

    /// Elements of `DESCRIPTORS`, one to spare: index 0 need not be a service.
    #[must_use]
    pub const fn descriptor_count(&self) -> u32 {
        self.services + 1
    }

    /// Elements of `RINGS`, two slots each.
    #[must_use]
    pub const fn ring_pairs(&self) -> u32 {
        self.ring_slots.div_ceil(2)
    }

    /// Every map that is pinned, in the order in which they are made.
    #[must_use]
    pub fn maps(&self) -> Vec<MapLayout> {
        vec![
            hash::<ServiceKeyV4>("SERVICES_V4", self.services),
            hash::<ServiceKeyV6>("SERVICES_V6", self.services),
            trie::<SourceV4>("SOURCES_V4", self.source_ranges),
            trie::<SourceV6>("SOURCES_V6", self.source_ranges),
            hash::<VipKeyV4>("VIPS_V4", self.services),
            hash::<VipKeyV6>("VIPS_V6", self.services),
            hash::<BackendKeyV4>("BACKENDS_V4", self.backends),
            hash::<BackendKeyV6>("BACKENDS_V6", self.backends),
            array::<AddressFilter>("ADDRESS_FILTER", ADDRESS_FILTER_SIZE),
            array::<ServiceDescriptor>("DESCRIPTORS", self.descriptor_count()),
            array::<RingPair>("RINGS", self.ring_pairs()),
            array::<Member>("MEMBERS", self.member_count()),
            array::<Backend>("BACKENDS", self.backend_count()),
            array::<PortBitmap>("PORTS", self.backend_count() * self.snat_count),
            array::<FlowBucket>("FLOWS", self.flow_buckets()),
            array::<HandshakeBucket>("HANDSHAKES", self.flow_buckets()),
            array::<AffinityBucket>("AFFINITY", self.affinity_buckets()),
            array::<LimitBucket>("NEW_FLOWS", LIMIT_BUCKETS),
            array::<SynCopy>("SYNS", self.syn_copies()),
            array::<FragmentRecord>("FRAGMENTS", FRAGMENT_RECORDS),
            array::<FlowStats>("FLOW_STATS", self.flow_stats()),
            array::<Lock>("LOCKS", LOCK_STRIPES),
            array::<ReverseBucketV4>("REVERSE_V4", self.reverse_v4_buckets()),
            array::<ReverseBucketV6>("REVERSE_V6", self.reverse_v6_buckets()),
            array::<LastHop>("LAST_HOPS", LAST_HOPS),
            array::<Config>("CONFIG", 1),
            array::<CpuCounters>("COUNTERS", self.cpus),
            array::<MemberStats>("MEMBER_STATS", self.cpus * self.member_count()),
            array::<EventBudget>("EVENT_BUDGET", self.cpus),
            array::<CpuRefusals>("REFUSALS", self.cpus),
            MapLayout {
                name: "EVENTS",
                kind: MapKind::RingBuffer,
                key_size: 0,
                value_size: 0,
                max_entries: EVENT_BYTES,
                flags: 0,
            },
            MapLayout {
                name: "EGRESS",
                kind: MapKind::DeviceHash,
                key_size: 4,
                value_size: 8,
                max_entries: EGRESS_INTERFACES,
                flags: 0,
            },
        ]
    }

    /// What these tables cost.
    #[must_use]
    pub fn memory(&self) -> MemoryPlan {
        let mut maps: Vec<MapMemory> = self
            .maps()
            .iter()
            .map(|map| MapMemory { name: map.name, entries: map.max_entries, bytes: map.bytes() })
            .collect();
        maps.sort_by_key(|map| std::cmp::Reverse(map.bytes));
        MemoryPlan { maps, flows: self.flows }
    }
}

impl MapLayout {
    /// Bytes of kernel memory that the map takes from the start; for a hash map an estimate. A trie takes none, but up
    /// to about 200 bytes for each entry that it gets.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        let entries = self.max_entries as u64;
        let value = (self.value_size as u64).next_multiple_of(8);
        match self.kind {
            MapKind::Array => (entries * value).next_multiple_of(PAGE),
            MapKind::RingBuffer => entries,
            MapKind::Trie => 0,
            MapKind::Hash | MapKind::DeviceHash => {
                let element = HASH_ELEMENT_OVERHEAD + (self.key_size as u64).next_multiple_of(8) + value;
                entries * element + entries.next_power_of_two() * HASH_BUCKET
            }
        }
    }
}

impl MemoryPlan {
    /// Bytes of all maps together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.maps.iter().map(|map| map.bytes).sum()
    }

    /// Bytes of what a flow over IPv4 needs: forward entry, handshake and reverse entry.
    #[must_use]
    pub fn flow_tables_v4(&self) -> u64 {
        self.maps
            .iter()
            .filter(|map| ["FLOWS", "HANDSHAKES", "REVERSE_V4"].contains(&map.name))
            .map(|map| map.bytes)
            .sum()
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["MAP", "ENTRIES", "MB"]);
        for map in self.maps.iter().filter(|map| map.bytes >= 100_000) {
            table.add_row([map.name.to_owned(), map.entries.to_string(), megabytes(map.bytes)]);
        }
        let small: u64 = self.maps.iter().map(|map| map.bytes).filter(|bytes| *bytes < 100_000).sum();
        table.add_row(["(others)".to_owned(), String::new(), megabytes(small)]);
        table.add_row(["total".to_owned(), String::new(), megabytes(self.total())]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write!(
            f,
            "{}\nflow tables: {} MB for {} flows over IPv4",
            table.trim_fmt(),
            megabytes(self.flow_tables_v4()),
            self.flows
        )
    }
}

/// Buckets of `ways` slots for so many flows: a power of two.
const fn buckets(flows: u32, ways: u32) -> u32 {
    let slots = (flows as u64 * SLOTS_PER_FLOW).next_power_of_two();
    let buckets = slots / ways as u64;
    if buckets == 0 { 1 } else { buckets as u32 }
}

const fn hash<K>(name: &'static str, max_entries: u32) -> MapLayout {
    MapLayout {
        name,
        kind: MapKind::Hash,
        key_size: size_of::<K>() as u32,
        value_size: 4,
        max_entries,
        flags: 0,
    }
}

/// The kernel's key begins with the number of bits that count.
const fn trie<K>(name: &'static str, max_entries: u32) -> MapLayout {
    MapLayout {
        name,
        kind: MapKind::Trie,
        key_size: (size_of::<u32>() + size_of::<K>()) as u32,
        value_size: 4,
        max_entries,
        flags: NO_PREALLOC,
    }
}

const fn array<V>(name: &'static str, max_entries: u32) -> MapLayout {
    MapLayout {
        name,
        kind: MapKind::Array,
        key_size: 4,
        value_size: size_of::<V>() as u32,
        max_entries,
        flags: MMAPABLE,
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(plan: &MemoryPlan, name: &str) -> u64 {
        plan.maps.iter().find(|map| map.name == name).expect("a map of that name").bytes
    }

    #[test]
    fn a_million_flows_over_ipv4_fit_160_megabytes_with_everything_beside_them() {
        let plan = TableSizes::default_for(2).memory();
        assert_eq!(bytes(&plan, "FLOWS"), 2 * 1024 * 1024 * 16);
        assert_eq!(bytes(&plan, "REVERSE_V4"), 2 * 1024 * 1024 * 32);
        assert!(plan.total() <= 160_000_000, "{plan}");
    }

    #[test]
    fn flow_buckets_are_a_power_of_two_with_two_slots_for_each_flow() {
        for flows in [1, 2, 3, 100, 1000, 65_537, 1 << 20] {
            let sizes = TableSizes { flows, ..TableSizes::default_for(1) };
            let buckets = sizes.flow_buckets();
            assert!(buckets.is_power_of_two());
            assert!(u64::from(buckets) * 4 >= 2 * u64::from(flows), "{flows} flows in {buckets} buckets");
            assert!(u64::from(buckets) * 4 <= (4 * u64::from(flows)).max(4));
        }
    }

    #[test]
    fn the_largest_flow_table_keeps_its_slots_within_28_bits() {
        let most = 1 << 27;
        let sizes = TableSizes { flows: most, ..TableSizes::default_for(1) };
        sizes.validate().expect("the largest size is allowed");
        assert_eq!(sizes.flow_buckets() * FLOW_WAYS - 1, MAX_FLOW_SLOT);
        let sizes = TableSizes { flows: most + 1, ..sizes };
        assert_eq!(
            sizes.validate().expect_err("one more is refused").to_string(),
            "table size flows is 134217729, but must be 1 to 134217728"
        );
    }

    #[test]
    fn sizes_out_of_range_are_named() {
        let good = TableSizes::default_for(2);
        good.validate().expect("the default is valid");
        for (sizes, name) in [
            (TableSizes { flows_v6: good.flows + 1, ..good }, "flowsV6"),
            (TableSizes { members: MAX_MEMBER_INDEX, ..good }, "members"),
            (TableSizes { snat_count: 9, ..good }, "snatCount"),
            (TableSizes { cpus: 0, ..good }, "cpus"),
        ] {
            let error = sizes.validate().expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn every_array_can_be_mapped_as_whole_64_bit_cells() {
        for map in TableSizes::default_for(2).maps() {
            if map.kind == MapKind::Array {
                assert_eq!(map.value_size % 8, 0, "{}", map.name);
                assert_eq!(map.flags, 1 << 10, "{}", map.name);
            }
        }
    }

    #[test]
    fn the_plan_shows_the_large_maps_and_the_total() {
        let shown = TableSizes::default_for(2).memory().to_string();
        assert!(shown.contains("REVERSE_V4"), "{shown}");
        assert!(shown.contains("total"), "{shown}");
        assert!(shown.ends_with("flow tables: 117.4 MB for 1048576 flows over IPv4"), "{shown}");
    }
}
