//! Rebuilding the model from the maps, so that a new agent goes on where the last one stopped.
//!
//! The last agent may have been killed between any two steps, or within one: what it was about to show is
//! finished or taken back by the next plan like any other difference. Beyond that, what contradicts itself is
//! repaired entry by entry; nothing is emptied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytemuck::Zeroable;
use ipnet::IpNet;
use lb_common::abi::{
    Backend, ClientWord, FlowLogWord, Member, RING_SIZES, ReactionWord, RingWord, ServiceDescriptor,
    member_flags,
};

use super::encode::{BackendKey, backend_id, descriptor_id};
use super::free::{IndexPool, Region, Regions};
use super::model::{
    BackendState, Limits, MemberState, Model, RingContent, RingState, ServiceState, member_value,
    next_hop_of, with_next_hop,
};
use super::planner::Plan;
use super::snapshot::MapSnapshot;
use super::sources;
use super::step::Step;
use crate::desired::{BackendId, ServiceId};

impl Model {
    /// Rebuilds the model of what `snapshot` shows, and the steps that repair what contradicts itself (none,
    /// unless the maps were damaged or the last agent was killed within a plan). Apply the steps before those
    /// of the first plan. A plan for what the maps say already is empty.
    ///
    /// The last agent's writes must be older than a grace period. They are: a process takes longer to start.
    #[must_use]
    pub fn adopt(snapshot: &MapSnapshot, limits: Limits) -> (Self, Vec<Step>) {
        let mut adoption = Adoption {
            snapshot,
            model: Self::new(limits),
            first: Vec::new(),
            evictions: Vec::new(),
            last: Vec::new(),
            doubtful: BTreeSet::new(),
        };
        adoption.services();
        adoption.sources();
        adoption.backends();
        adoption.members();
        adoption.backends_without_keys();
        adoption.rings();
        adoption.model.vips = snapshot.vips.iter().map(|(key, flags)| (key.address(), *flags)).collect();
        adoption.model.filter = snapshot.address_filter.clone();
        adoption.model.egress = snapshot.egress.clone();
        adoption.finish()
    }

    /// Puts what `snapshot` shows in this model's place, as [`Model::adopt`] does. The repairs are its next plan:
    /// the numbers go on, for what had been applied, and seen by the sweep, up to an older one says nothing about
    /// the members and backends of the new model.
    #[must_use]
    pub fn adopt_anew(&mut self, snapshot: &MapSnapshot) -> Plan {
        let number = self.number + 1;
        let (model, steps) = Self::adopt(snapshot, self.limits);
        *self = model;
        self.number = number;
        for backend in self.backends.values_mut() {
            backend.idle_since = number;
        }
        Plan { number, steps, problems: Vec::new(), next: None }
    }
}

struct Adoption<'a> {
    snapshot: &'a MapSnapshot,
    model: Model,
    /// Repairs that hide something from packets.
    first: Vec<Step>,
    evictions: Vec<Step>,
    /// Repairs that need a grace period after those.
    last: Vec<Step>,
    /// Member indices that are free but that a ring names: not given out while this agent runs.
    doubtful: BTreeSet<u32>,
}

impl Adoption<'_> {
    /// Descriptors, found by the keys that name them, else by what they say of themselves.
    fn services(&mut self) {
        let mut states: BTreeMap<ServiceId, ServiceState> = BTreeMap::new();
        for (key, index) in &self.snapshot.services {
            let described = self.snapshot.descriptors.get(index).and_then(descriptor_id);
            match key.id() {
                Some(id) if *index != 0 && described == Some(id) => {
                    let state = ServiceState { described: true, keyed: true, ..ServiceState::new(*index) };
                    states.insert(id, state);
                }
                _ => self.first.push(Step::DeleteService { key: *key }),
            }
        }
        for (index, value) in &self.snapshot.descriptors {
            if *value == ServiceDescriptor::zeroed() {
                continue;
            }
            let id = descriptor_id(value).filter(|_| *index != 0);
            let owner = id.map(|id| {
                states
                    .entry(id)
                    .or_insert_with(|| ServiceState { described: true, ..ServiceState::new(*index) })
                    .index
            });
            if owner != Some(*index) {
                self.last.push(Step::WriteDescriptor { index: *index, value: ServiceDescriptor::zeroed() });
            }
        }
        self.model.services = states;
    }

    /// Source ranges. Which of them are asked for is the next plan's business.
    fn sources(&mut self) {
        let services: BTreeMap<u32, ServiceId> =
            self.model.services.iter().map(|(id, state)| (state.index, *id)).collect();
        let mut ranges: BTreeMap<ServiceId, BTreeSet<IpNet>> = BTreeMap::new();
        for key in &self.snapshot.sources {
            let owner = key.parts().and_then(|(service, range)| Some((*services.get(&service)?, range)));
            match owner {
                Some((id, range)) if id.vip.is_ipv4() == range.addr().is_ipv4() => {
                    ranges.entry(id).or_default().insert(range);
                    self.model.ranges[sources::family(&id)] += 1;
                }
                _ => self.last.push(Step::DeleteSource { key: *key }),
            }
        }
        for (id, ranges) in ranges {
            if let Some(state) = self.model.services.get_mut(&id) {
                state.ranges = Arc::new(ranges);
            }
        }
    }

    /// Backends, as [`Self::services`].
    fn backends(&mut self) {
        let state = |index, value: &Backend| BackendState {
            index,
            flags: value.flags,
            cluster: value.cluster,
            next_hop: None,
            members: 0,
            idle_since: 0,
        };
        let mut states: BTreeMap<BackendId, BackendState> = BTreeMap::new();
        for (key, index) in &self.snapshot.backend_keys {
            let value = self.snapshot.backends.get(index).copied().unwrap_or_default();
            match key.id() {
                Some(id) if *index != 0 && backend_id(&value) == Some(id) => {
                    states.insert(id, state(*index, &value));
                }
                _ => self.first.push(Step::DeleteBackendKey { key: *key }),
            }
        }
        for (index, value) in &self.snapshot.backends {
            if *value == Backend::default() {
                continue;
            }
            let id = backend_id(value).filter(|_| *index != 0);
            let owner = id.map(|id| states.entry(id).or_insert_with(|| state(*index, value)).index);
            if owner != Some(*index) {
                self.last.push(Step::InitBackend { index: *index, value: Backend::default() });
            }
        }
        self.model.backends = states;
    }

    fn members(&mut self) {
        let services: BTreeMap<u32, ServiceId> =
            self.model.services.iter().map(|(id, state)| (state.index, *id)).collect();
        let backends: BTreeMap<u32, BackendId> =
            self.model.backends.iter().map(|(id, state)| (state.index, *id)).collect();
        for (&index, value) in &self.snapshot.members {
            self.model.generations.insert(index, value.generation);
            if value.flags & member_flags::VALID == 0 {
                continue;
            }
            let key = services.get(&value.service).copied().zip(backends.get(&value.backend).copied());
            let fits = |(service, backend): &(ServiceId, BackendId)| {
                let right = self.right_value(value, service, backend);
                index != 0
                    && value.generation != 0
                    && (right.address, right.port) == (value.address, value.port)
                    && !self.model.members.contains_key(&(*service, *backend))
            };
            match key.filter(fits) {
                Some((service, backend)) => self.adopt_member(index, value, service, backend),
                None => {
                    self.evictions.push(Step::EvictFlows { member: index });
                    let value = Member { generation: value.generation, ..Member::default() };
                    self.last.push(Step::WriteMember { index, value });
                }
            }
        }
    }

    /// What an entry should say, given the flags and the next hop that it has.
    fn right_value(&self, value: &Member, service: &ServiceId, backend: &BackendId) -> Member {
        let service_index = self.model.services.get(service).map_or(0, |state| state.index);
        let backend_index = self.model.backends.get(backend).map_or(0, |state| state.index);
        let blank =
            member_value((service, service_index), (backend, backend_index), value.generation, value.flags);
        // The words of a next hop that is gone stay as they are.
        let hop = next_hop_of(&Member { flags: value.flags | member_flags::NEXT_HOP, ..*value });
        Member { flags: value.flags, ..with_next_hop(blank, hop.as_ref()) }
    }

    fn adopt_member(&mut self, index: u32, found: &Member, service: ServiceId, backend: BackendId) {
        let value = self.right_value(found, &service, &backend);
        if value != *found {
            self.first.push(Step::WriteMember { index, value });
        }
        if let Some(state) = self.model.backends.get_mut(&backend) {
            state.members += 1;
            state.next_hop = state.next_hop.take().or_else(|| next_hop_of(&value));
        }
        self.model.members.insert((service, backend), MemberState::new(index, value));
    }

    /// A backend whose key is missing gets it back if a member needs it; else it was about to go.
    fn backends_without_keys(&mut self) {
        let keys = &self.snapshot.backend_keys;
        let (last, mut gone) = (&mut self.last, Vec::new());
        for (id, state) in &self.model.backends {
            let key = BackendKey::from(id);
            if keys.get(&key) == Some(&state.index) {
                continue;
            }
            if state.members > 0 {
                last.push(Step::PutBackendKey { key, index: state.index });
            } else {
                last.push(Step::InitBackend { index: state.index, value: Backend::default() });
                gone.push(*id);
            }
        }
        for id in gone {
            self.model.backends.remove(&id);
        }
    }

    fn rings(&mut self) {
        let valid: BTreeSet<u32> = self.model.members.values().map(|member| member.index).collect();
        for state in self.model.services.values_mut() {
            let Some(found) = self.snapshot.descriptors.get(&state.index) else { continue };
            state.reaction = ReactionWord(found.reaction);
            state.flow_log = FlowLogWord(found.flow_log);
            state.clients = ClientWord(found.clients);
            for (ring, word) in [(&mut state.ring, found.ring), (&mut state.fallback, found.fallback)] {
                *ring = adopt_ring(RingWord(word), self.snapshot, &mut self.model.regions);
                if let RingContent::Adopted(slots) = &ring.content {
                    self.doubtful.extend(slots.iter().filter(|member| !valid.contains(member)));
                }
            }
        }
        self.doubtful.remove(&0);
    }

    fn finish(mut self) -> (Model, Vec<Step>) {
        let model = &mut self.model;
        let limits = model.limits;
        let used = |indices: &mut dyn Iterator<Item = u32>| indices.collect::<BTreeSet<u32>>();
        let services = used(&mut model.services.values().map(|state| state.index));
        let backends = used(&mut model.backends.values().map(|state| state.index));
        let members =
            used(&mut model.members.values().map(|state| state.index).chain(self.doubtful.iter().copied()));
        model.service_pool = IndexPool::new(limits.services, &services);
        model.backend_pool = IndexPool::new(limits.backends, &backends);
        model.member_pool = IndexPool::new(limits.members, &members);

        let mut steps = self.first;
        steps.append(&mut self.evictions);
        if !self.last.is_empty() {
            steps.push(Step::GracePeriod);
            steps.append(&mut self.last);
        }
        if !steps.is_empty() {
            steps.push(Step::GracePeriod);
        }
        (self.model, steps)
    }
}

/// The state of a ring that a descriptor names. A word that makes no sense, or a region that another ring has,
/// leaves the content unknown, and the next plan builds the ring anew.
fn adopt_ring(word: RingWord, snapshot: &MapSnapshot, regions: &mut Regions) -> RingState {
    if !word.is_some() {
        return RingState::default();
    }
    let broken = RingState { word, version: word.version(), region: None, content: RingContent::Unknown };
    let Some(&size) = RING_SIZES.get(usize::from(word.class())) else { return broken };
    let Some(slots) = snapshot.rings.get(&word.0).filter(|slots| slots.len() == size as usize) else {
        return broken;
    };
    let region = Region::of(word.offset(), size);
    if !regions.claim(region) {
        return broken;
    }
    RingState { region: Some(region), content: RingContent::Adopted(Arc::clone(slots)), ..broken }
}
