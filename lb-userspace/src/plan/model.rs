//! What the maps say, once every planned step has been applied.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_common::abi::{
    ClientWord, FlowLogWord, Member, RING_SIZES, ReactionWord, RingWord, backend_flags, member_flags,
};

use super::encode::{address_bytes, family};
use super::free::{IndexPool, Region, Regions};
use super::{l3_delta, l4_delta};
use crate::desired::{BackendId, ServiceId, SourceRanges};
use crate::maglev::quotas;
use crate::network::NextHop;

/// Sizes of the maps, and how long a removed backend's flows may go on where its service says nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Elements of `DESCRIPTORS`, the unused element 0 included.
    pub services: u32,
    /// Elements of `BACKENDS`, the unused element 0 included.
    pub backends: u32,
    /// Elements of `MEMBERS`, the unused element 0 included.
    pub members: u32,
    /// Elements of `RINGS`, two slots each.
    pub ring_pairs: u32,
    /// Elements of `SOURCES_V4`, and of `SOURCES_V6`.
    pub source_ranges: u32,
    /// Flows of a removed member are evicted after this time, unless its service has a drain time of its own.
    pub drain_timeout: Duration,
}

/// What the maps say, once every planned step has been applied, and which index stands for what.
#[derive(Clone, Debug)]
pub struct Model {
    pub(super) limits: Limits,
    /// Number of the last plan.
    pub(super) number: u64,
    pub(super) services: BTreeMap<ServiceId, ServiceState>,
    pub(super) backends: BTreeMap<BackendId, BackendState>,
    pub(super) members: BTreeMap<MemberKey, MemberState>,
    pub(super) vips: BTreeMap<IpAddr, u32>,
    pub(super) filter: BTreeMap<u32, u64>,
    pub(super) egress: BTreeSet<u32>,
    /// How many source ranges there are, of IPv4 and of IPv6.
    pub(super) ranges: [u32; 2],
    pub(super) service_pool: IndexPool,
    pub(super) backend_pool: IndexPool,
    pub(super) member_pool: IndexPool,
    /// The last generation of each member index that was ever used.
    pub(super) generations: BTreeMap<u32, u8>,
    pub(super) regions: Regions,
}

/// What a member is known by.
pub(super) type MemberKey = (ServiceId, BackendId);

#[derive(Clone, Debug)]
pub(super) struct ServiceState {
    pub(super) index: u32,
    /// Its descriptor has been written.
    pub(super) described: bool,
    /// Its key is in the map.
    pub(super) keyed: bool,
    pub(super) reaction: ReactionWord,
    pub(super) flow_log: FlowLogWord,
    pub(super) clients: ClientWord,
    /// The source ranges that are in the map, asked for or not.
    pub(super) ranges: SourceRanges,
    pub(super) ring: RingState,
    pub(super) fallback: RingState,
    /// As the target said last.
    pub(super) drain_timeout: Option<Duration>,
}

impl ServiceState {
    pub(super) fn new(index: u32) -> Self {
        Self {
            index,
            described: false,
            keyed: false,
            reaction: ReactionWord::default(),
            flow_log: FlowLogWord::default(),
            clients: ClientWord::default(),
            ranges: SourceRanges::default(),
            ring: RingState::default(),
            fallback: RingState::default(),
            drain_timeout: None,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct RingState {
    pub(super) word: RingWord,
    /// Version of the last ring; counts on through times without one.
    pub(super) version: u32,
    /// What is given back when the ring goes; `None` if there is no ring or its place is doubtful.
    pub(super) region: Option<Region>,
    pub(super) content: RingContent,
}

impl Default for RingState {
    fn default() -> Self {
        Self { word: RingWord::NONE, version: 0, region: None, content: RingContent::Built(Vec::new()) }
    }
}

/// What is known about a ring's slots.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RingContent {
    /// They were built from these; empty: no ring.
    Built(Vec<RingMember>),
    /// They were found in the map.
    Adopted(Arc<[u32]>),
    /// Nothing.
    Unknown,
}

impl RingContent {
    /// Collects the members that the ring names; `false` if that is not known.
    pub(super) fn collect_names(&self, names: &mut HashSet<u32>) -> bool {
        match self {
            Self::Built(members) => names.extend(members.iter().map(|member| member.index)),
            Self::Adopted(slots) => names.extend(slots.iter().copied()),
            Self::Unknown => return false,
        }
        true
    }
}

/// A ring is a pure function of these and its size, which is a function of their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingMember {
    pub(super) backend: BackendId,
    pub(super) weight: u32,
    pub(super) index: u32,
}

#[derive(Clone, Debug)]
pub(super) struct BackendState {
    pub(super) index: u32,
    pub(super) flags: u32,
    /// The number of its cluster; 0: unknown.
    pub(super) cluster: u32,
    /// How it is reached; kept while it is not resolved anew.
    pub(super) next_hop: Option<NextHop>,
    /// Members that refer to it.
    pub(super) members: u32,
    /// The plan that cleared its last member.
    pub(super) idle_since: u64,
}

#[derive(Clone, Debug)]
pub(super) struct MemberState {
    pub(super) index: u32,
    pub(super) value: Member,
    pub(super) removed: Option<Removed>,
    /// `None`: its flows may go on.
    pub(super) leaving: Option<Leaving>,
}

impl MemberState {
    pub(super) fn new(index: u32, value: Member) -> Self {
        Self { index, value, removed: None, leaving: None }
    }
}

/// When a member was taken out for good.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removed {
    pub(super) plan: u64,
    pub(super) at: Instant,
}

/// A member that gets no flows any more, and whose flows are to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    pub(super) since: Instant,
    /// Its time was over, and its flows were evicted.
    pub(super) evicted: bool,
}

/// A member, for people and for what counts by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its service.
    pub service: ServiceId,
    /// Its backend.
    pub backend: BackendId,
    /// Index in `MEMBERS`.
    pub index: u32,
    /// Index in `BACKENDS`.
    pub backend_index: u32,
    /// Generation of the index.
    pub generation: u8,
    /// Bits of [`member_flags`].
    pub flags: u8,
    /// The backend may get new flows.
    pub usable: bool,
    /// When the flows that it still has are evicted; `None`: they end by themselves.
    pub drained_by: Option<Instant>,
}

/// A service, for people and for what counts by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceInfo {
    /// The service.
    pub id: ServiceId,
    /// Index in `DESCRIPTORS`.
    pub index: u32,
    /// Where its ring lies.
    pub ring: RingWord,
    /// Where its fallback ring lies.
    pub fallback: RingWord,
    /// The backends of the ring, each with its slots. Empty before the first plan.
    pub shares: Vec<(BackendId, u32)>,
}

impl Model {
    /// The model of empty maps.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let none = BTreeSet::new();
        Self {
            limits,
            number: 0,
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            members: BTreeMap::new(),
            vips: BTreeMap::new(),
            filter: BTreeMap::new(),
            egress: BTreeSet::new(),
            ranges: [0; 2],
            service_pool: IndexPool::new(limits.services, &none),
            backend_pool: IndexPool::new(limits.backends, &none),
            member_pool: IndexPool::new(limits.members, &none),
            generations: BTreeMap::new(),
            regions: Regions::new(limits.ring_pairs),
        }
    }

    /// All members, those that only wait for the end of their flows included.
    pub fn members(&self) -> impl Iterator<Item = MemberInfo> {
        self.members.iter().map(|(key, member)| MemberInfo {
            service: key.0,
            backend: key.1,
            index: member.index,
            backend_index: member.value.backend,
            generation: member.value.generation,
            flags: member.value.flags,
            usable: self.is_usable(&key.1),
            drained_by: self.drained_by(key, member),
        })
    }

    /// All services, those that only wait for the end of their flows included.
    pub fn services(&self) -> impl Iterator<Item = ServiceInfo> {
        self.services.iter().map(|(id, service)| ServiceInfo {
            id: *id,
            index: service.index,
            ring: service.ring.word,
            fallback: service.fallback.word,
            shares: shares(&service.ring),
        })
    }

    /// The service with this index in `DESCRIPTORS`.
    #[must_use]
    pub fn service_at(&self, index: u32) -> Option<ServiceId> {
        self.services.iter().find(|(_, state)| state.index == index).map(|(id, _)| *id)
    }

    /// Addresses of all backends that packets may be sent to: their next hops must be known.
    #[must_use]
    pub fn backend_addresses(&self) -> BTreeSet<IpAddr> {
        self.backends.keys().map(|backend| backend.address).collect()
    }

    pub(super) fn is_usable(&self, backend: &BackendId) -> bool {
        self.backends.get(backend).is_some_and(|state| state.flags & backend_flags::USABLE != 0)
    }
}

fn shares(ring: &RingState) -> Vec<(BackendId, u32)> {
    let RingContent::Built(members) = &ring.content else { return Vec::new() };
    let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
    let slots = if ring.word.is_some() { RING_SIZES[usize::from(ring.word.class())] } else { 0 };
    members.iter().map(|member| member.backend).zip(quotas(slots, &weights)).collect()
}

/// A member's entry, without flags, generation and next hop.
pub(super) fn member_value(
    service: (&ServiceId, u32),
    backend: (&BackendId, u32),
    generation: u8,
    flags: u8,
) -> Member {
    let (id, index) = service;
    let mut vip_v4 = [0; 4];
    if family(id.vip) == 4 {
        vip_v4.copy_from_slice(&address_bytes(id.vip)[..4]);
    }
    Member {
        address: address_bytes(backend.0.address),
        backend: backend.1,
        generation,
        flags,
        port: backend.0.port.to_be_bytes(),
        l4_delta: l4_delta(id, backend.0),
        l3_delta: l3_delta(id, backend.0),
        service: index,
        vip_v4,
        vip_port: id.port.to_be_bytes(),
        family: family(id.vip),
        ..Member::default()
    }
}

/// The entry with another next hop; without one it keeps the old words and loses the flag.
pub(super) fn with_next_hop(value: Member, next_hop: Option<&NextHop>) -> Member {
    let Some(hop) = next_hop else {
        return Member { flags: value.flags & !member_flags::NEXT_HOP, ..value };
    };
    let tag = |depth: usize| hop.vlan.get(depth).copied().unwrap_or_default();
    Member {
        flags: value.flags | member_flags::NEXT_HOP,
        destination_mac: hop.destination_mac,
        source_mac: hop.source_mac,
        ifindex: hop.ifindex,
        mtu: hop.mtu,
        vlan_outer: tag(0),
        vlan_inner: tag(1),
        vlan_count: hop.vlan.len().min(2) as u8,
        vlan_service_tag: u8::from(hop.service_tag),
        ..value
    }
}

/// Reads the next hop back from an entry.
pub(super) fn next_hop_of(value: &Member) -> Option<NextHop> {
    (value.flags & member_flags::NEXT_HOP != 0).then(|| NextHop {
        destination_mac: value.destination_mac,
        source_mac: value.source_mac,
        ifindex: value.ifindex,
        mtu: value.mtu,
        vlan: [value.vlan_outer, value.vlan_inner][..usize::from(value.vlan_count.min(2))].to_vec(),
        service_tag: value.vlan_service_tag != 0,
    })
}
