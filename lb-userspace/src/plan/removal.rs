//! The second half of a plan: what is gone, in the reverse order of its making.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use bytemuck::Zeroable;
use lb_common::abi::{Backend, Member, RingWord, ServiceDescriptor, member_flags};

use super::encode::{BackendKey, ServiceKey, VipKey};
use super::model::{Leaving, MemberKey, MemberState, Model, Removed};
use super::planner::Planner;
use super::step::Step;
use super::target::TargetMember;
use crate::desired::{BackendId, ServiceId};

impl Model {
    /// When the next drain time ends.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let ends = self.members.iter().filter_map(|(key, member)| self.drained_by(key, member));
        ends.filter(|end| *end > now).min()
    }

    /// When the flows of a member that leaves, or is gone, have had their time; `None`: never.
    pub(super) fn drained_by(&self, key: &MemberKey, member: &MemberState) -> Option<Instant> {
        match self.services.get(&key.0).and_then(|service| service.drain_timeout) {
            Some(timeout) => member.leaving?.since.checked_add(timeout),
            None => member.removed?.at.checked_add(self.limits.drain_timeout),
        }
    }
}

/// The members that rings name, by service; `None` where that is not known. Where a new ring found no room, the
/// old one still names members that have left.
#[derive(Default)]
struct RingNames(BTreeMap<ServiceId, Option<HashSet<u32>>>);

impl RingNames {
    /// Whether new flows of the service may still go to a member.
    fn may_hold(&mut self, model: &Model, service: &ServiceId, member: u32) -> bool {
        let names = self.0.entry(*service).or_insert_with(|| {
            let mut names = HashSet::new();
            let service = model.services.get(service)?;
            let known = service.ring.content.collect_names(&mut names)
                && service.fallback.content.collect_names(&mut names);
            known.then_some(names)
        });
        names.as_ref().is_none_or(|names| names.contains(&member))
    }
}

impl Planner<'_> {
    pub(super) fn removals(&mut self) {
        self.close_services();
        self.drain_members();
        self.grace();
        self.drop_ranges();
        self.drop_rings();
        self.evict_drained();
        self.clear_members();
        self.clear_backends();
        self.clear_services();
        self.remove_egress();
        self.grace();
    }

    fn close_services(&mut self) {
        for (id, service) in &mut self.model.services {
            if !self.target.services.contains_key(id) && std::mem::replace(&mut service.keyed, false) {
                self.steps.push(Step::DeleteService { key: ServiceKey::from(id) });
                self.in_flight = true;
            }
        }
    }

    /// Keeps new flows away from members that leave.
    fn drain_members(&mut self) {
        for (key, member) in &mut self.model.members {
            let wanted = self.target.services.get(&key.0).and_then(|service| service.members.get(&key.1));
            let add = match wanted {
                Some(wanted) if !wanted.draining => continue,
                Some(_) => member_flags::DRAINING,
                None => member_flags::DRAINING | member_flags::REMOVED,
            };
            if wanted.is_none_or(TargetMember::leaves) {
                member.leaving.get_or_insert(Leaving { since: self.now, evicted: false });
            }
            if wanted.is_none() && member.removed.is_none() {
                member.removed = Some(Removed { plan: self.model.number, at: self.now });
            }
            let flags = member.value.flags | add;
            if flags != member.value.flags {
                member.value = Member { flags, ..member.value };
                self.steps.push(Step::SetMemberFlags { index: member.index, flags });
                self.in_flight |= wanted.is_none();
            }
        }
    }

    /// Rings of services that packets can't find any more.
    fn drop_rings(&mut self) {
        for (id, service) in &mut self.model.services {
            if self.target.services.contains_key(id) {
                continue;
            }
            let index = service.index;
            let ring = RingWord::NONE;
            let old = service.ring.remove().inspect(|_| self.steps.push(Step::SwapRing { index, ring }));
            let spare =
                service.fallback.remove().inspect(|_| self.steps.push(Step::SwapFallback { index, ring }));
            for state in [old, spare].into_iter().flatten() {
                self.in_flight = true;
                if let Some(region) = state.region {
                    self.model.regions.give_back(region);
                }
            }
        }
    }

    /// Ends the flows of members that leave but are listed still, once their drain time is over. They stay, and
    /// may come back.
    fn evict_drained(&mut self) {
        let mut named = RingNames::default();
        let model = &*self.model;
        let over = model.members.iter().filter(|(key, member)| {
            member.removed.is_none()
                && member.leaving.is_some_and(|leaving| !leaving.evicted)
                && model.drained_by(key, member).is_some_and(|end| end <= self.now)
                && !named.may_hold(model, &key.0, member.index)
        });
        let over: Vec<MemberKey> = over.map(|(key, _)| *key).collect();
        for key in over {
            let Some(member) = self.model.members.get_mut(&key) else { continue };
            if let Some(leaving) = &mut member.leaving {
                leaving.evicted = true;
            }
            self.steps.push(Step::EvictFlows { member: member.index });
        }
    }

    /// Members that no flow refers to, and those whose drain time has ended.
    fn clear_members(&mut self) {
        let (finished, expired) = self.finished_members();
        if !expired.is_empty() {
            for key in &expired {
                if let Some(member) = self.model.members.get(key) {
                    self.steps.push(Step::EvictFlows { member: member.index });
                }
            }
            self.in_flight = true;
            self.grace();
        }
        for key in finished.into_iter().chain(expired) {
            let Some(member) = self.model.members.remove(&key) else { continue };
            let value = Member { generation: member.value.generation, ..Member::default() };
            self.steps.push(Step::WriteMember { index: member.index, value });
            self.model.member_pool.give_back(member.index);
            self.in_flight = true;
            if let Some(backend) = self.model.backends.get_mut(&key.1) {
                backend.members -= 1;
                backend.idle_since = self.model.number;
            }
        }
    }

    /// Removed members that can be cleared: those without flows, and those whose flows have had their time.
    fn finished_members(&self) -> (Vec<MemberKey>, Vec<MemberKey>) {
        let mut named = RingNames::default();
        let (mut finished, mut expired) = (Vec::new(), Vec::new());
        for (key, member) in &self.model.members {
            let Some(removed) = member.removed else { continue };
            if named.may_hold(self.model, &key.0, member.index) {
                continue;
            }
            if removed.plan <= self.usage.applied && !self.usage.flows.contains_key(&member.index) {
                finished.push(*key);
            } else if self.model.drained_by(key, member).is_some_and(|end| end <= self.now) {
                expired.push(*key);
            }
        }
        (finished, expired)
    }

    /// Backends that are in no service and hold no port.
    fn clear_backends(&mut self) {
        let idle: Vec<(BackendId, u32)> = self
            .model
            .backends
            .iter()
            .filter(|(_, state)| state.members == 0 && state.idle_since <= self.usage.applied)
            .filter(|(_, state)| !self.usage.busy_backends.contains(&state.index))
            .map(|(id, state)| (*id, state.index))
            .collect();
        for (id, _) in &idle {
            self.model.backends.remove(id);
            self.steps.push(Step::DeleteBackendKey { key: BackendKey::from(id) });
            self.in_flight = true;
        }
        self.grace();
        for (_, index) in idle {
            self.steps.push(Step::InitBackend { index, value: Backend::default() });
            self.model.backend_pool.give_back(index);
            self.in_flight = true;
        }
    }

    /// Services without members, and VIPs without services. A service that is gone keeps its descriptor and
    /// its VIP for the flows that it still has.
    fn clear_services(&mut self) {
        let occupied: BTreeSet<ServiceId> = self.model.members.keys().map(|(service, _)| *service).collect();
        let gone: Vec<ServiceId> = self
            .model
            .services
            .keys()
            .filter(|id| !self.target.services.contains_key(id) && !occupied.contains(id))
            .copied()
            .collect();
        let indices: Vec<u32> =
            gone.iter().filter_map(|id| self.model.services.remove(id)).map(|state| state.index).collect();
        self.close_vips();
        for index in indices {
            self.steps.push(Step::WriteDescriptor { index, value: ServiceDescriptor::zeroed() });
            self.model.service_pool.give_back(index);
            self.in_flight = true;
        }
    }

    fn close_vips(&mut self) {
        let served: BTreeSet<IpAddr> = self.model.services.keys().map(|id| id.vip).collect();
        let unused = |vip: &IpAddr| !self.target.vips.contains_key(vip) && !served.contains(vip);
        let gone: Vec<IpAddr> = self.model.vips.keys().copied().filter(unused).collect();
        for vip in &gone {
            self.model.vips.remove(vip);
        }
        let filter = self.filter_of(self.model.vips.keys());
        for (index, current) in &mut self.model.filter {
            let flags = filter.get(index).copied().unwrap_or(0);
            if *current != flags {
                *current = flags;
                self.steps.push(Step::SetAddressFilter { index: *index, flags });
                self.in_flight = true;
            }
        }
        for vip in gone {
            self.steps.push(Step::DeleteVip { key: VipKey::from(vip) });
            self.in_flight = true;
        }
    }

    fn remove_egress(&mut self) {
        let reached =
            self.model.members.values().filter(|member| member.value.flags & member_flags::NEXT_HOP != 0);
        let resolved = self.target.next_hops.values().flatten().map(|hop| hop.ifindex);
        let mut used: BTreeSet<u32> = reached.map(|member| member.value.ifindex).chain(resolved).collect();
        used.extend(&self.target.interfaces);
        let unused: Vec<u32> = self.model.egress.difference(&used).copied().collect();
        if unused.is_empty() {
            return;
        }
        // Packets that read the old next hop leave before the interface goes.
        self.in_flight = true;
        self.grace();
        for ifindex in unused {
            self.model.egress.remove(&ifindex);
            self.steps.push(Step::RemoveEgress { ifindex });
        }
    }
}
