//! One map write.

use std::sync::Arc;

use lb_common::abi::{Backend, ClientWord, FlowLogWord, Member, ReactionWord, RingWord, ServiceDescriptor};

use super::encode::{BackendKey, ServiceKey, SourceKey, VipKey};

/// One map write, or a wait.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Write a whole element of `BACKENDS` that no packet uses.
    InitBackend {
        /// Index.
        index: u32,
        /// The element; all zero when the index is given up.
        value: Backend,
    },
    /// Store cell 0 of an element of `BACKENDS`; what the packet path wrote (`tripped_until`, `errors`) stays.
    SetBackendFlags {
        /// Index.
        index: u32,
        /// Bits of [`lb_common::abi::backend_flags`].
        flags: u32,
    },
    /// Store the number of the cluster of a backend, in its cell 5.
    SetBackendCluster {
        /// Index.
        index: u32,
        /// The number; 0: unknown.
        cluster: u32,
    },
    /// Insert a key into `BACKENDS_V4` or `BACKENDS_V6`.
    PutBackendKey {
        /// Key.
        key: BackendKey,
        /// Index in `BACKENDS`.
        index: u32,
    },
    /// Delete a key from `BACKENDS_V4` or `BACKENDS_V6`.
    DeleteBackendKey {
        /// Key.
        key: BackendKey,
    },
    /// Zero every CPU's element of `MEMBER_STATS` for a member that no packet uses yet.
    ResetMemberStats {
        /// Member.
        index: u32,
    },
    /// Write a whole element of `MEMBERS` that no packet uses. A member that is given up leaves its generation.
    WriteMember {
        /// Index.
        index: u32,
        /// The element.
        value: Member,
    },
    /// Store a live member's cells 3 to 6 (next hop), then its cell 2 (flags). Everything but the next hop
    /// and [`lb_common::abi::member_flags::NEXT_HOP`] is as it was.
    UpdateNextHop {
        /// Index.
        index: u32,
        /// The whole element.
        value: Member,
    },
    /// Store the flags (in cell 2) of a live member.
    SetMemberFlags {
        /// Index.
        index: u32,
        /// Bits of [`lb_common::abi::member_flags`].
        flags: u8,
    },
    /// Write ring slots into a region of `RINGS` that no descriptor names. Where their number is odd, the
    /// last element's second slot is 0.
    WriteRing {
        /// First element, in elements of two slots.
        offset: u32,
        /// Member indices.
        slots: Arc<[u32]>,
    },
    /// Write a whole element of `DESCRIPTORS` that no key names.
    WriteDescriptor {
        /// Index.
        index: u32,
        /// The element; all zero when the index is given up.
        value: ServiceDescriptor,
    },
    /// Store the `ring` word of a live descriptor.
    SwapRing {
        /// Service.
        index: u32,
        /// Where the ring lies.
        ring: RingWord,
    },
    /// Store the `fallback` word of a live descriptor.
    SwapFallback {
        /// Service.
        index: u32,
        /// Where the fallback ring lies.
        ring: RingWord,
    },
    /// Store the `reaction` word of a live descriptor.
    SetReaction {
        /// Service.
        index: u32,
        /// What failed connections lead to.
        reaction: ReactionWord,
    },
    /// Store the `flow_log` word of a live descriptor.
    SetFlowLog {
        /// Service.
        index: u32,
        /// Which of its flows are noted.
        flow_log: FlowLogWord,
    },
    /// Store the `clients` word of a live descriptor.
    SetClients {
        /// Service.
        index: u32,
        /// What it asks of its clients.
        clients: ClientWord,
    },
    /// Insert a network into `SOURCES_V4` or `SOURCES_V6`.
    PutSource {
        /// Key.
        key: SourceKey,
    },
    /// Delete a network from `SOURCES_V4` or `SOURCES_V6`.
    DeleteSource {
        /// Key.
        key: SourceKey,
    },
    /// Insert a key into `SERVICES_V4` or `SERVICES_V6`.
    PutService {
        /// Key.
        key: ServiceKey,
        /// Index in `DESCRIPTORS`.
        index: u32,
    },
    /// Delete a key from `SERVICES_V4` or `SERVICES_V6`.
    DeleteService {
        /// Key.
        key: ServiceKey,
    },
    /// Insert or update a key of `VIPS_V4` or `VIPS_V6`.
    PutVip {
        /// Key.
        key: VipKey,
        /// Bits of [`lb_common::abi::vip_flags`].
        flags: u32,
    },
    /// Update a key of `VIPS_V4` or `VIPS_V6` whose echo requests are answered from now on, or no longer. Nothing
    /// depends on it: it may be applied after all other steps, and steps of later plans, that don't concern its key.
    /// A grace period must lie between it and the next [`Step::PutVip`], `UpdateEcho` or [`Step::DeleteVip`].
    UpdateEcho {
        /// Key.
        key: VipKey,
        /// Bits of [`lb_common::abi::vip_flags`].
        flags: u32,
    },
    /// Delete a key from `VIPS_V4` or `VIPS_V6`.
    DeleteVip {
        /// Key.
        key: VipKey,
    },
    /// Store an element of `ADDRESS_FILTER`.
    SetAddressFilter {
        /// Index.
        index: u32,
        /// Bits of [`lb_common::abi::address_filter`].
        flags: u64,
    },
    /// Let packets leave through an interface: put it into the device map.
    AddEgress {
        /// Interface index.
        ifindex: u32,
    },
    /// Take an interface out of the device map.
    RemoveEgress {
        /// Interface index.
        ifindex: u32,
    },
    /// Evict all flows of a member, with their reverse entries and ports, until it is written anew or takes new
    /// flows again.
    EvictFlows {
        /// Member.
        member: u32,
    },
    /// Wait until every packet that was in flight has left the program. 100 ms are far more than enough.
    GracePeriod,
}

impl Step {
    /// Whether it writes to `VIPS_V4` or `VIPS_V6`.
    #[must_use]
    pub const fn writes_vip(&self) -> bool {
        matches!(self, Self::PutVip { .. } | Self::UpdateEcho { .. } | Self::DeleteVip { .. })
    }
}
