//! What the packet program and the agent's sweep need of the world: two traits that the kernel implements
//! over BPF maps, the agent over mmapped memory, and tests over plain or model-checked atomics.

use crate::abi::{
    BackendKeyV4, BackendKeyV6, Config, Counter, ServiceKeyV4, ServiceKeyV6, SourceV4, SourceV6, VipKeyV4,
    VipKeyV6,
};

/// One map element as an array of 64-bit cells that several CPUs use at once.
///
/// Loads and stores are volatile and relaxed: they are single and untorn, nothing more. Everything that needs
/// order goes through the read-modify-writes, which are full barriers. An index beyond the element is a
/// defect; implementations mask it so that the verifier sees a bound.
pub trait Cells: Copy {
    /// Reads a cell.
    fn load(self, index: usize) -> u64;
    /// Writes a whole cell. Only its current owner may do that (see docs/adr/0001-flow-tables.md).
    fn store(self, index: usize, value: u64);
    /// Writes the top halfword of a cell, where ticks live, and leaves the rest alone.
    fn store_tick(self, index: usize, tick: u16);
    /// Replaces `current` by `new` and returns what was there: success if that is `current`.
    fn compare_exchange(self, index: usize, current: u64, new: u64) -> u64;
    /// Sets bits; returns what was there.
    fn fetch_or(self, index: usize, bits: u64) -> u64;
    /// Keeps only `bits`; returns what was there.
    fn fetch_and(self, index: usize, bits: u64) -> u64;

    /// Adds; returns what was there.
    fn fetch_add(self, index: usize, value: u64) -> u64;

    /// Whether [`Cells::compare_exchange`] took place.
    #[inline(always)]
    fn replace(self, index: usize, current: u64, new: u64) -> bool {
        self.compare_exchange(index, current, new) == current
    }

    /// Adds to a cell that only one CPU writes.
    #[inline(always)]
    fn add(self, index: usize, value: u64) {
        self.store(index, self.load(index).wrapping_add(value));
    }
}

/// The tables that flows live in. `None` always means: no such element.
pub trait Tables {
    /// An element.
    type Cells: Cells;

    /// The gateway's settings; `None` before the agent wrote them.
    fn config(&self) -> Option<&Config>;
    /// Bucket of `FLOWS`: cells 2w and 2w + 1 are way w.
    fn flow_bucket(&self, index: u32) -> Option<Self::Cells>;
    /// Element of `HANDSHAKES`: cell w is way w of the bucket.
    fn handshakes(&self, index: u32) -> Option<Self::Cells>;
    /// Element of `LOCKS`, one cell.
    fn lock(&self, index: u32) -> Option<Self::Cells>;
    /// Bucket of `REVERSE_V4`: four cells a way.
    fn reverse_v4_bucket(&self, index: u32) -> Option<Self::Cells>;
    /// Bucket of `REVERSE_V6`: eight cells a way.
    fn reverse_v6_bucket(&self, index: u32) -> Option<Self::Cells>;
    /// Element of `PORTS`, 256 cells.
    fn ports(&self, index: u32) -> Option<Self::Cells>;
    /// Element of `LAST_HOPS`, four cells.
    fn last_hop(&self, index: u32) -> Option<Self::Cells>;
    /// Element of `MEMBERS`, eight cells.
    fn member(&self, index: u32) -> Option<Self::Cells>;
    /// Element of `BACKENDS`, eight cells.
    fn backend(&self, index: u32) -> Option<Self::Cells>;
}

/// Everything else that the packet program asks for.
pub trait Maps: Tables {
    /// Whether the flow log is told of flows that make room for new ones. A constant of the loaded program: the
    /// verifiers of old kernels give up where it is so.
    fn tells_displaced(&self) -> bool {
        true
    }
    /// Index of a service.
    fn service_v4(&self, key: &ServiceKeyV4) -> Option<u32>;
    /// Index of a service.
    fn service_v6(&self, key: &ServiceKeyV6) -> Option<u32>;
    /// Whether a client is in one of a service's ranges.
    fn source_v4(&self, key: &SourceV4) -> bool;
    /// Whether a client is in one of a service's ranges.
    fn source_v6(&self, key: &SourceV6) -> bool;
    /// Flags of a VIP ([`crate::abi::vip_flags`]).
    fn vip_v4(&self, key: &VipKeyV4) -> Option<u32>;
    /// Flags of a VIP.
    fn vip_v6(&self, key: &VipKeyV6) -> Option<u32>;
    /// Index of a backend.
    fn backend_v4(&self, key: &BackendKeyV4) -> Option<u32>;
    /// Index of a backend.
    fn backend_v6(&self, key: &BackendKeyV6) -> Option<u32>;
    /// Flags of `ADDRESS_FILTER`; 0 where there is no such element.
    fn address_filter(&self, index: u32) -> u64;
    /// Element of `DESCRIPTORS`, eight cells.
    fn descriptor(&self, index: u32) -> Option<Self::Cells>;
    /// Bucket of `AFFINITY`: cells 2w and 2w + 1 are way w.
    fn affinity(&self, index: u32) -> Option<Self::Cells>;
    /// Bucket of `NEW_FLOWS`, eight cells.
    fn new_flows(&self, index: u32) -> Option<Self::Cells>;
    /// Element of `SYNS`, eight cells.
    fn syn(&self, index: u32) -> Option<Self::Cells>;
    /// Element of `FRAGMENTS`, eight cells.
    fn fragment(&self, index: u32) -> Option<Self::Cells>;
    /// Element of `FLOW_STATS`, eight cells.
    fn flow_stats(&self, index: u32) -> Option<Self::Cells>;
    /// Element of `RINGS`, one cell: two slots.
    fn ring_pair(&self, index: u32) -> Option<Self::Cells>;
    /// This CPU's element of `MEMBER_STATS` for a member, eight cells.
    fn member_stats(&self, member: u32, member_count: u32) -> Option<Self::Cells>;
    /// Adds one to this CPU's counter.
    fn count(&self, counter: Counter);
    /// Sends an event, as the words of an [`Event`](crate::abi::Event), unless this CPU has sent `limit` in the tick
    /// of `time` (nanoseconds); else counts it as `lost`. The words are asked for once there is room for them.
    fn event(&self, time: u64, limit: u32, lost: Counter, words: impl FnOnce() -> [u64; 7]);
    /// This CPU's element of `REFUSALS`, four cells.
    fn refusals(&self) -> Option<Self::Cells>;
    /// Nanoseconds of the coarse monotonic clock.
    fn now(&self) -> u64;
}
