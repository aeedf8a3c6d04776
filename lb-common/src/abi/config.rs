//! The gateway's settings as the packet path reads them.

use bytemuck::{Pod, Zeroable};

use super::assert_layout;
use crate::hash::HashKey;

/// Most SNAT addresses of a family: three bits in a flow's word.
pub const MAX_SNAT_ADDRESSES: usize = 8;

/// The only element of the array `CONFIG`. Pinned, because it holds the key of the flow table: read-only data
/// would be made anew on an upgrade and orphan every flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// Key of the flow table's hash: random, local, kept for the life of the tables.
    pub flow_key: HashKey,
    /// Key of the ring's hash: the same on every gateway of a cluster set.
    pub ring_key: HashKey,
    /// SNAT addresses for IPv4, network order.
    pub snat_v4: [[u8; 4]; MAX_SNAT_ADDRESSES],
    /// SNAT addresses for IPv6, network order.
    pub snat_v6: [[u8; 16]; MAX_SNAT_ADDRESSES],
    /// How many of `snat_v4` are set, 0–8.
    pub snat_v4_count: u32,
    /// How many of `snat_v6` are set, 0–8.
    pub snat_v6_count: u32,
    /// How many elements of `PORTS` a backend has: one for each SNAT address of the larger family.
    pub snat_stride: u32,
    /// Number of flow buckets − 1; buckets are a power of two.
    pub flow_bucket_mask: u32,
    /// Number of reverse buckets for IPv4 − 1.
    pub reverse_v4_mask: u32,
    /// Number of reverse buckets for IPv6 − 1.
    pub reverse_v6_mask: u32,
    /// Elements of `MEMBERS`: the stride of a CPU's block in `MEMBER_STATS`.
    pub member_count: u32,
    /// First SNAT port, host order.
    pub port_base: u16,
    /// 64-port words of the range that are in use, 1–256.
    pub port_words: u16,
    /// How long an idle flow lives.
    pub timeouts: Timeouts,
    /// Events that one CPU may send within one tick in all.
    pub events_per_tick: u32,
    /// Always 0, which the verifier cannot know; see [`Config::forget`].
    pub zero: u32,
    /// Number of elements of `FLOW_STATS` − 1; they are a power of two.
    pub flow_stats_mask: u32,
    /// Events that it may send when it sends one for the flow log: what is left is for others.
    pub flow_events_per_tick: u32,
    /// Answers to dropped packets that one CPU may send within one tick; 0: none.
    pub refusals_per_tick: u32,
    /// Always 0.
    pub reserved: [u32; 8],
}

impl Config {
    /// Returns `value`. In the kernel the verifier forgets what it has learned of it, and explores what follows
    /// once, not once for each value that a search may end with.
    #[must_use]
    #[inline(always)]
    pub const fn forget(&self, value: u32) -> u32 {
        value ^ self.zero
    }
}

/// Idle times after which a flow has expired, in ticks of [`crate::clock::TICK_NS`]; each at most
/// [`crate::clock::MAX_TIMEOUT_TICKS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Timeouts {
    /// TCP before the handshake is proven.
    pub half_open: u16,
    /// TCP established, one FIN included.
    pub established: u16,
    /// TCP after both FINs: how long the port stays taken.
    pub closed: u16,
    /// TCP after a RST.
    pub reset: u16,
    /// UDP before the first reply.
    pub udp_new: u16,
    /// UDP after the first reply.
    pub udp_replied: u16,
}

assert_layout! {
    Timeouts: 12,
    Config: 384,
}
