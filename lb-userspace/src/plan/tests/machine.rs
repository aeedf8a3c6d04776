//! A simulated machine: the maps, packets that read them after every step, flows, and packets in flight that
//! may still see what the last steps took away.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use bytemuck::Zeroable;
use lb_common::abi::{
    Backend, ClientWord, Member, RING_SIZES, RingWord, ServiceDescriptor, address_filter, backend_flags,
    member_flags,
};

use super::super::encode::{backend_id, descriptor_id, filter_index};
use super::super::model::with_next_hop;
use super::super::{BackendKey, FlowUsage, Limits, MapSnapshot, SourceKey, Step, l3_delta, l4_delta};
use crate::desired::{BackendId, ServiceId};

#[derive(Clone)]
pub(super) struct Machine {
    limits: Limits,
    maps: MapSnapshot,
    /// Written rings by their first element.
    rings: BTreeMap<u32, Ring>,
    pub(super) flows: Vec<Flow>,
    /// Backends with ports that closed flows still hold.
    pub(super) lingering: BTreeSet<BackendId>,
    /// What packets in flight may still use: since the last grace period.
    seen: Seen,
    /// The target has room for everything: rings never name what drains.
    pub(super) roomy: bool,
}

#[derive(Clone)]
struct Ring {
    pairs: u32,
    slots: Arc<[u32]>,
    names: BTreeSet<u32>,
}

/// A connection: it must reach the same pod for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) member: u32,
    pub(super) generation: u8,
    pub(super) service: ServiceId,
    pub(super) backend: BackendId,
}

#[derive(Clone, Default)]
struct Seen {
    members: BTreeSet<u32>,
    backends: BTreeSet<u32>,
    services: BTreeSet<u32>,
    rings: BTreeSet<(u32, u32)>,
    /// Maps (by kind and family) in which an element has become free that a packet may still read.
    recycled: BTreeSet<(&'static str, bool)>,
    /// Services whose source ranges have become more.
    new_sources: BTreeSet<u32>,
}

/// The backends' shares of a ring and a digest of their order.
type RingView = (BTreeMap<BackendId, u32>, u64);

/// What packets can tell, whatever the indices are.
#[derive(Debug, PartialEq)]
pub(super) struct View {
    services: BTreeMap<ServiceId, [Option<RingView>; 2]>,
    members: BTreeMap<(ServiceId, BackendId), Member>,
    backends: BTreeMap<BackendId, u32>,
    vips: BTreeMap<IpAddr, u32>,
    filter: BTreeMap<u32, u64>,
    egress: BTreeSet<u32>,
}

impl Machine {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            maps: MapSnapshot::default(),
            rings: BTreeMap::new(),
            flows: Vec::new(),
            lingering: BTreeSet::new(),
            seen: Seen::default(),
            roomy: true,
        }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// What an agent that starts finds.
    pub(super) fn snapshot(&self) -> MapSnapshot {
        let mut snapshot = self.maps.clone();
        for descriptor in snapshot.descriptors.values() {
            for word in [descriptor.ring, descriptor.fallback] {
                if let Some(ring) = self.rings.get(&RingWord(word).offset()).filter(|_| word != 0) {
                    snapshot.rings.insert(word, Arc::clone(&ring.slots));
                }
            }
        }
        snapshot
    }

    /// Damages the maps.
    pub(super) fn maps_mut(&mut self) -> &mut MapSnapshot {
        &mut self.maps
    }

    pub(super) fn usage(&self, applied: u64) -> FlowUsage {
        let mut usage = FlowUsage { applied, ..FlowUsage::default() };
        for flow in &self.flows {
            *usage.flows.entry(flow.member).or_default() += 1;
            usage.busy_backends.insert(self.maps.members[&flow.member].backend);
        }
        let keys = self.lingering.iter().map(BackendKey::from);
        usage.busy_backends.extend(keys.filter_map(|key| self.maps.backend_keys.get(&key)));
        usage
    }

    /// Applies a step, and lets packets look.
    pub(super) fn apply(&mut self, step: &Step) {
        self.write(step);
        self.check(step);
        self.remember();
    }

    /// Applies a repair of maps that are damaged anyway.
    pub(super) fn apply_unchecked(&mut self, step: &Step) {
        match step {
            Step::WriteMember { index, value } => {
                self.maps.members.insert(*index, *value);
            }
            Step::InitBackend { index, value } => {
                self.maps.backends.insert(*index, *value);
            }
            _ => self.write(step),
        }
    }

    fn write(&mut self, step: &Step) {
        let maps = &mut self.maps;
        let seen = &mut self.seen;
        match step {
            Step::InitBackend { index, value } => {
                assert!(!seen.backends.contains(index), "packets in flight use backend {index}");
                assert!(!maps.members.values().any(|member| member.backend == *index), "a member uses it");
                assert!(*index != 0 && *index < self.limits.backends);
                maps.backends.insert(*index, *value);
            }
            Step::SetBackendFlags { index, flags } => maps.backends.get_mut(index).unwrap().flags = *flags,
            Step::SetBackendCluster { index, cluster } => {
                maps.backends.get_mut(index).unwrap().cluster = *cluster;
            }
            Step::PutBackendKey { key, index } => {
                assert!(!seen.recycled.contains(&("backends", matches!(key, BackendKey::V4(_)))));
                assert_eq!(maps.backend_keys.insert(*key, *index), None, "immutable while it exists");
            }
            Step::DeleteBackendKey { key } => {
                assert!(!self.lingering.contains(&key.id().unwrap()), "its ports are taken");
                seen.recycled.insert(("backends", matches!(key, BackendKey::V4(_))));
                assert!(maps.backend_keys.remove(key).is_some());
            }
            Step::ResetMemberStats { index } => assert!(!seen.members.contains(index)),
            Step::WriteMember { index, value } => {
                assert!(*index != 0 && *index < self.limits.members);
                let before = maps.members.insert(*index, *value).unwrap_or_default();
                if value.flags & member_flags::VALID != 0 {
                    assert!(!seen.members.contains(index), "packets in flight use member {index}");
                    assert_eq!(before.flags, 0, "the index was taken");
                    assert_eq!(
                        value.generation,
                        if before.generation == 255 { 1 } else { before.generation + 1 }
                    );
                } else {
                    assert_eq!(value.generation, before.generation);
                    assert!(!seen.rings_name(*index, &self.rings), "packets in flight may choose it");
                }
            }
            Step::UpdateNextHop { index, value } => {
                let old = maps.members.insert(*index, *value).unwrap();
                let fixed = |m: Member| (m.address, m.backend, m.generation, m.port, m.l4_delta, m.service);
                assert_eq!(fixed(old), fixed(*value), "what flows rely on");
            }
            Step::SetMemberFlags { index, flags } => maps.members.get_mut(index).unwrap().flags = *flags,
            Step::WriteRing { offset, slots } => self.write_ring(*offset, slots),
            Step::WriteDescriptor { index, value } => {
                assert!(*index != 0 && *index < self.limits.services);
                assert!(!seen.services.contains(index), "packets in flight use service {index}");
                maps.descriptors.insert(*index, *value);
            }
            Step::SwapRing { index, ring } => {
                let keyed = maps.services.values().any(|service| service == index);
                let expected = keyed || ring.is_some() || !seen.services.contains(index);
                assert!(expected, "packets in flight are about to look for a ring");
                maps.descriptors.get_mut(index).unwrap().ring = ring.0;
            }
            Step::SetFlowLog { index, flow_log } => {
                maps.descriptors.get_mut(index).unwrap().flow_log = flow_log.0;
            }
            Step::SetClients { index, clients } => {
                maps.descriptors.get_mut(index).unwrap().clients = clients.0;
            }
            Step::PutSource { key } => {
                let family = |key: &SourceKey| matches!(key, SourceKey::V4(..));
                assert!(maps.sources.insert(*key), "it is not there yet");
                let count = maps.sources.iter().filter(|other| family(other) == family(key)).count();
                assert!(count <= self.limits.source_ranges as usize);
                seen.new_sources.extend(key.parts().map(|(service, _)| service));
            }
            Step::DeleteSource { key } => {
                let in_flight = key.parts().is_some_and(|(service, _)| seen.new_sources.contains(&service));
                assert!(!in_flight, "a lookup that began before the new ones were in misses both");
                assert!(maps.sources.remove(key));
            }
            Step::SetReaction { index, reaction } => {
                maps.descriptors.get_mut(index).unwrap().reaction = reaction.0;
            }
            Step::SwapFallback { index, ring } => maps.descriptors.get_mut(index).unwrap().fallback = ring.0,
            Step::PutService { key, index } => {
                let family = key.id().unwrap().vip.is_ipv4();
                assert!(!seen.recycled.contains(&("services", family)));
                assert_eq!(maps.services.insert(*key, *index), None, "immutable while it exists");
            }
            Step::DeleteService { key } => {
                seen.recycled.insert(("services", key.id().unwrap().vip.is_ipv4()));
                assert!(maps.services.remove(key).is_some());
            }
            Step::PutVip { key, flags } => {
                let family = key.address().is_ipv4();
                assert!(!seen.recycled.contains(&("vips", family)));
                if maps.vips.insert(*key, *flags).is_some() {
                    seen.recycled.insert(("vips", family));
                }
            }
            // Whoever applies it has waited, and waits before the next write to VIPs.
            Step::UpdateEcho { key, flags } => assert!(maps.vips.insert(*key, *flags).is_some()),
            Step::DeleteVip { key } => {
                seen.recycled.insert(("vips", key.address().is_ipv4()));
                assert!(maps.vips.remove(key).is_some());
            }
            Step::SetAddressFilter { index, flags } => {
                maps.address_filter.insert(*index, *flags);
                maps.address_filter.retain(|_, flags| *flags != 0);
            }
            Step::AddEgress { ifindex } => assert!(maps.egress.insert(*ifindex)),
            Step::RemoveEgress { ifindex } => assert!(maps.egress.remove(ifindex)),
            Step::EvictFlows { member } => self.flows.retain(|flow| flow.member != *member),
            Step::GracePeriod => *seen = Seen::default(),
        }
    }

    fn write_ring(&mut self, offset: u32, slots: &Arc<[u32]>) {
        let pairs = (slots.len() as u32).div_ceil(2);
        assert!(offset + pairs <= self.limits.ring_pairs);
        let overlaps = |first: u32, length: u32| first < offset + pairs && offset < first + length;
        for (first, length) in &self.seen.rings {
            assert!(!overlaps(*first, *length), "packets in flight read the ring at {first}");
        }
        self.rings.retain(|first, ring| !overlaps(*first, ring.pairs));
        let ring = Ring { pairs, slots: Arc::clone(slots), names: slots.iter().copied().collect() };
        self.rings.insert(offset, ring);
    }

    /// What any packet that arrives now may rely on.
    fn check(&self, step: &Step) {
        let maps = &self.maps;
        for (key, index) in &maps.services {
            let descriptor = maps.descriptors.get(index);
            assert_eq!(descriptor.and_then(descriptor_id), key.id(), "{step:?}: key of another service");
        }
        for (index, descriptor) in &maps.descriptors {
            for word in [descriptor.ring, descriptor.fallback] {
                self.check_ring(*index, RingWord(word), step);
            }
        }
        for (key, index) in &maps.backend_keys {
            assert_eq!(backend_id(&maps.backends[index]), key.id(), "{step:?}: key of another backend");
        }
        for (index, member) in &maps.members {
            if member.flags & member_flags::VALID != 0 {
                let backend = &maps.backends[&member.backend];
                assert_eq!(
                    (backend.address, backend.port),
                    (member.address, member.port),
                    "{step:?}: {index}"
                );
                let id = backend_id(backend).unwrap();
                assert_eq!(maps.backend_keys.get(&BackendKey::from(&id)), Some(&member.backend));
                // A new member waits for its service's descriptor; nothing names it until then.
                let Some(service) = maps.descriptors.get(&member.service).and_then(descriptor_id) else {
                    continue;
                };
                assert_eq!(
                    (member.l4_delta, member.l3_delta),
                    (l4_delta(&service, &id), l3_delta(&service, &id))
                );
                if member.flags & member_flags::NEXT_HOP != 0 {
                    assert!(maps.egress.contains(&member.ifindex), "{step:?}: no way out for {index}");
                }
            }
        }
        for flow in &self.flows {
            let member = &maps.members[&flow.member];
            assert_eq!(member.generation, flow.generation, "{step:?}: the flow's member is another one");
            assert_eq!(backend_id(&maps.backends[&member.backend]), Some(flow.backend), "{step:?}");
            assert_eq!(descriptor_id(&maps.descriptors[&member.service]), Some(flow.service), "{step:?}");
            assert!(self.is_open(flow.service.vip), "{step:?}: the VIP of a live flow is gone");
        }
    }

    fn check_ring(&self, service: u32, word: RingWord, step: &Step) {
        if !word.is_some() {
            return;
        }
        let ring = &self.rings[&word.offset()];
        assert_eq!(ring.slots.len(), RING_SIZES[usize::from(word.class())] as usize, "{step:?}");
        for index in &ring.names {
            let member = &self.maps.members[index];
            assert!(
                member.flags & member_flags::VALID != 0,
                "{step:?}: the ring names a free member {index}"
            );
            assert_eq!(member.service, service, "{step:?}: the ring names another service's member");
            let keyed = self.maps.services.values().any(|index| *index == service);
            if keyed && self.roomy {
                let after_swap = self.seen.rings.iter().any(|(offset, _)| *offset != word.offset());
                let drains = member.flags & member_flags::REMOVED != 0;
                assert!(!drains || after_swap, "{step:?}: the ring names a removed member {index}");
            }
        }
    }

    /// What a packet that arrives now keeps using until the next grace period.
    fn remember(&mut self) {
        for index in self.maps.services.values() {
            self.seen.services.insert(*index);
            let descriptor = &self.maps.descriptors[index];
            for word in [descriptor.ring, descriptor.fallback].map(RingWord) {
                if let Some(ring) = self.rings.get(&word.offset()).filter(|_| word.is_some()) {
                    self.seen.rings.insert((word.offset(), ring.pairs));
                    self.seen.members.extend(&ring.names);
                }
            }
        }
        for flow in &self.flows {
            self.seen.members.insert(flow.member);
        }
        self.seen.backends.extend(self.maps.backend_keys.values());
    }

    /// Whether a client may begin flows of a service; `None`: nobody finds the service.
    pub(super) fn admits(&self, service: &ServiceId, client: IpAddr) -> Option<bool> {
        let index = self.maps.services.get(&service.into())?;
        let ranges = self.maps.sources.iter().filter_map(SourceKey::parts);
        let mut own = ranges.filter(|(service, _)| service == index).map(|(_, range)| range);
        let asks = ClientWord(self.maps.descriptors[index].clients).has_ranges();
        Some(!asks || own.any(|range| range.contains(&client)))
    }

    /// A client connects: the ring's first member that takes it, else the fallback ring's.
    pub(super) fn connect(&mut self, service: &ServiceId, key: u32) -> Option<Flow> {
        if !self.is_open(service.vip) {
            return None;
        }
        let index = self.maps.services.get(&service.into())?;
        let descriptor = self.maps.descriptors[index];
        let takes = |member: &u32| {
            let value = &self.maps.members[member];
            let usable = self.maps.backends[&value.backend].flags & backend_flags::USABLE != 0;
            let open = member_flags::DRAINING | member_flags::NEXT_HOP;
            usable && value.flags & open == member_flags::NEXT_HOP
        };
        let member = [descriptor.ring, descriptor.fallback].into_iter().find_map(|word| {
            let ring = self.rings.get(&RingWord(word).offset()).filter(|_| word != 0)?;
            let start = key as usize % ring.slots.len();
            let mut walk = (0..8).map(|step| ring.slots[(start + step * 31) % ring.slots.len()]);
            walk.find(takes)
        })?;
        let value = &self.maps.members[&member];
        let backend = backend_id(&self.maps.backends[&value.backend])?;
        let flow = Flow { member, generation: value.generation, service: *service, backend };
        self.flows.push(flow);
        Some(flow)
    }

    /// Whether packets to a VIP are looked at.
    pub(super) fn is_open(&self, vip: IpAddr) -> bool {
        let bits = self.maps.address_filter.get(&filter_index(vip)).copied().unwrap_or(0);
        bits & address_filter::VIP != 0 && self.maps.vips.contains_key(&vip.into())
    }

    /// Everything that packets can tell, without indices and generations.
    pub(super) fn view(&self) -> View {
        let maps = &self.maps;
        let ring = |word: u64| {
            let ring = &self.rings.get(&RingWord(word).offset()).filter(|_| word != 0)?;
            let (mut shares, mut digest) = (BTreeMap::new(), DefaultHasher::new());
            for member in ring.slots.iter() {
                let backend = backend_id(&maps.backends[&maps.members[member].backend])?;
                *shares.entry(backend).or_default() += 1;
                backend.hash(&mut digest);
            }
            Some((shares, digest.finish()))
        };
        let valid = |member: &&Member| member.flags & member_flags::VALID != 0;
        let plain = |member: &Member| {
            let service = descriptor_id(&maps.descriptors[&member.service]).unwrap();
            let backend = backend_id(&maps.backends[&member.backend]).unwrap();
            let mut member = Member { backend: 0, generation: 0, service: 0, ..*member };
            if member.flags & member_flags::NEXT_HOP == 0 {
                // The words of a next hop that is gone mean nothing.
                member = with_next_hop(member, Some(&super::next_hop(0, 0)));
                member.flags &= !member_flags::NEXT_HOP;
            }
            ((service, backend), member)
        };
        assert!(maps.descriptors.values().all(|value| {
            *value == ServiceDescriptor::zeroed()
                || maps.services.keys().any(|key| key.id() == descriptor_id(value))
        }));
        View {
            services: maps
                .services
                .iter()
                .map(|(key, index)| {
                    let descriptor = &maps.descriptors[index];
                    (key.id().unwrap(), [ring(descriptor.ring), ring(descriptor.fallback)])
                })
                .collect(),
            members: maps.members.values().filter(valid).map(plain).collect(),
            backends: maps
                .backends
                .values()
                .filter(|value| **value != Backend::default())
                .map(|value| (backend_id(value).unwrap(), value.flags))
                .collect(),
            vips: maps.vips.iter().map(|(key, flags)| (key.address(), *flags)).collect(),
            filter: maps.address_filter.clone(),
            egress: maps.egress.clone(),
        }
    }
}

impl Seen {
    /// Whether a packet in flight may still read a ring that names a member.
    fn rings_name(&self, member: u32, rings: &BTreeMap<u32, Ring>) -> bool {
        self.rings
            .iter()
            .any(|(offset, _)| rings.get(offset).is_some_and(|ring| ring.names.contains(&member)))
    }
}
