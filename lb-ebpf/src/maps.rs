//! Every map of the packet program. The sizes here are placeholders: the agent sets them at load.
//!
//! All maps carry BTF, so that `bpftool map dump` prints field names. Names stay below 16 characters, the
//! kernel's limit.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, DevMapHash, HashMap, LpmTrie, ProgramArray, RingBuf},
    macros::btf_map,
};
use lb_common::abi::{
    ADDRESS_FILTER_SIZE, AddressFilter, AffinityBucket, Backend, BackendKeyV4, BackendKeyV6, Config,
    CpuCounters, CpuRefusals, EventBudget, FRAGMENT_RECORDS, FlowBucket, FlowStats, FragmentRecord,
    HandshakeBucket, LAST_HOPS as LAST_HOP_COUNT, LIMIT_BUCKETS, LOCK_STRIPES, LastHop, LimitBucket, Lock,
    Member, MemberStats, PortBitmap, ReverseBucketV4, ReverseBucketV6, RingPair, ServiceDescriptor,
    ServiceKeyV4, ServiceKeyV6, SourceV4, SourceV6, SynCopy, VipKeyV4, VipKeyV6,
};

/// The agent reads and writes these arrays through `mmap`.
const SHARED: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
pub(crate) static SERVICES_V4: HashMap<ServiceKeyV4, u32, 1024> = HashMap::new();
#[btf_map]
pub(crate) static SERVICES_V6: HashMap<ServiceKeyV6, u32, 1024> = HashMap::new();
#[btf_map]
pub(crate) static SOURCES_V4: LpmTrie<SourceV4, u32, 1024> = LpmTrie::new();
#[btf_map]
pub(crate) static SOURCES_V6: LpmTrie<SourceV6, u32, 1024> = LpmTrie::new();
#[btf_map]
pub(crate) static VIPS_V4: HashMap<VipKeyV4, u32, 1024> = HashMap::new();
#[btf_map]
pub(crate) static VIPS_V6: HashMap<VipKeyV6, u32, 1024> = HashMap::new();
#[btf_map]
pub(crate) static BACKENDS_V4: HashMap<BackendKeyV4, u32, 1024> = HashMap::new();
#[btf_map]
pub(crate) static BACKENDS_V6: HashMap<BackendKeyV6, u32, 1024> = HashMap::new();

#[btf_map]
pub(crate) static ADDRESS_FILTER: Array<AddressFilter, { ADDRESS_FILTER_SIZE as usize }, SHARED> =
    Array::new();
#[btf_map]
pub(crate) static DESCRIPTORS: Array<ServiceDescriptor, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static RINGS: Array<RingPair, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static MEMBERS: Array<Member, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static BACKENDS: Array<Backend, 1, SHARED> = Array::new();

#[btf_map]
pub(crate) static FLOWS: Array<FlowBucket, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static HANDSHAKES: Array<HandshakeBucket, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static AFFINITY: Array<AffinityBucket, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static NEW_FLOWS: Array<LimitBucket, { LIMIT_BUCKETS as usize }, SHARED> = Array::new();
#[btf_map]
pub(crate) static SYNS: Array<SynCopy, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static FRAGMENTS: Array<FragmentRecord, { FRAGMENT_RECORDS as usize }, SHARED> = Array::new();
#[btf_map]
pub(crate) static FLOW_STATS: Array<FlowStats, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static LOCKS: Array<Lock, { LOCK_STRIPES as usize }, SHARED> = Array::new();
#[btf_map]
pub(crate) static REVERSE_V4: Array<ReverseBucketV4, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static REVERSE_V6: Array<ReverseBucketV6, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static PORTS: Array<PortBitmap, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static LAST_HOPS: Array<LastHop, { LAST_HOP_COUNT as usize }, SHARED> = Array::new();

#[btf_map]
pub(crate) static CONFIG: Array<Config, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static COUNTERS: Array<CpuCounters, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static MEMBER_STATS: Array<MemberStats, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static EVENT_BUDGET: Array<EventBudget, 1, SHARED> = Array::new();
#[btf_map]
pub(crate) static REFUSALS: Array<CpuRefusals, 1, SHARED> = Array::new();
/// Holds [`lb_common::abi::Event`]s. It is declared without a type because libbpf, and so bpftool, refuses ring
/// buffers with a value size.
#[btf_map]
pub(crate) static EVENTS: RingBuf<(), { 256 * 1024 }> = RingBuf::new();

#[btf_map]
pub(crate) static EGRESS: DevMapHash<64> = DevMapHash::new();
/// The kernel's id of [`EGRESS`], by which [`crate::redirects`] tells our redirects from others'.
#[btf_map]
pub(crate) static EGRESS_ID: Array<u32, 1> = Array::new();
#[btf_map]
pub(crate) static PROGRAMS: ProgramArray<32> = ProgramArray::new();

/// The clock of a program that was loaded with [`INJECT_CLOCK`], in nanoseconds.
#[btf_map]
pub(crate) static CLOCK: Array<u64, 1, SHARED> = Array::new();

/// Non-zero: time is what [`CLOCK`] says. Only tests set it, at load; otherwise the verifier sees a constant 0
/// and removes the branch.
#[unsafe(no_mangle)]
pub(crate) static INJECT_CLOCK: u32 = 0;

/// Non-zero: the flow log is told of flows that make room for new ones. The agent sets it at load, and leaves it 0
/// where the kernel's verifier finds that too much.
#[unsafe(no_mangle)]
pub(crate) static TELL_DISPLACED: u32 = 0;
