//! The first half of a plan: what is new or changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use lb_common::abi::{Member, address_filter, backend_flags, member_flags, vip_flags};

use super::encode::{self, BackendKey, ServiceKey, VipKey, filter_index};
use super::model::{BackendState, MemberState, Model, ServiceState, member_value, with_next_hop};
use super::problem::PlanProblem;
use super::step::Step;
use super::target::{FlowUsage, Target};
use crate::config::Echo;
use crate::desired::{BackendId, ServiceId};
use crate::network::NextHop;

/// The way from what the maps say to what they should say.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Counts plans from 1; see [`FlowUsage::applied`].
    pub number: u64,
    /// What to do, in this order. Empty when the maps are right.
    pub steps: Vec<Step>,
    /// What could not be done.
    pub problems: Vec<PlanProblem>,
    /// When to plan again even if the target stays the same: a drain time ends.
    pub next: Option<Instant>,
}

/// Plans the way from `model` to `target`; afterwards the model says what the maps will say once all steps
/// have been applied. Indices that no flow needs any more, by `usage`, are given up.
#[must_use]
pub fn plan(model: &mut Model, target: &Target, usage: &FlowUsage, now: Instant) -> Plan {
    model.number += 1;
    let mut steps = Vec::new();
    loop {
        let mut planner = Planner::new(model, target, usage, now);
        planner.additions();
        planner.removals();
        // Where a table was full and something has become free, there may be room now.
        let again = planner.full && planner.released;
        if !again {
            planner.close_without_ranges();
        }
        let Planner { steps: new, problems, .. } = planner;
        steps.extend(new);
        if !again {
            return Plan { number: model.number, steps, problems, next: model.next_deadline(now) };
        }
    }
}

/// The work on one plan.
pub(super) struct Planner<'a> {
    pub(super) model: &'a mut Model,
    pub(super) target: &'a Target,
    pub(super) usage: &'a FlowUsage,
    pub(super) now: Instant,
    pub(super) steps: Vec<Step>,
    pub(super) problems: Vec<PlanProblem>,
    /// Something did not fit.
    pub(super) full: bool,
    /// A grace period has made something free.
    pub(super) released: bool,
    /// Packets in flight may still see what steps have taken away.
    pub(super) in_flight: bool,
}

impl<'a> Planner<'a> {
    fn new(model: &'a mut Model, target: &'a Target, usage: &'a FlowUsage, now: Instant) -> Self {
        Self {
            model,
            target,
            usage,
            now,
            steps: Vec::new(),
            problems: Vec::new(),
            full: false,
            released: false,
            in_flight: false,
        }
    }

    /// Waits until no packet sees what has been taken away, where something has.
    pub(super) fn grace(&mut self) {
        if !std::mem::take(&mut self.in_flight) {
            return;
        }
        self.steps.push(Step::GracePeriod);
        let model = &mut *self.model;
        self.released |= model.service_pool.has_pending()
            || model.backend_pool.has_pending()
            || model.member_pool.has_pending()
            || model.regions.has_pending();
        model.service_pool.release();
        model.backend_pool.release();
        model.member_pool.release();
        model.regions.release();
    }

    fn additions(&mut self) {
        self.learn_next_hops();
        self.add_egress();
        self.add_services();
        self.add_members();
        self.update_existing();
        self.update_rings();
        self.open_services();
    }

    /// Takes over what has been resolved; what has not been keeps its last next hop.
    fn learn_next_hops(&mut self) {
        for (backend, state) in &mut self.model.backends {
            if let Some(result) = self.target.next_hops.get(&backend.address) {
                state.next_hop = result.as_ref().ok().cloned();
            }
        }
    }

    fn add_egress(&mut self) {
        let resolved = self.target.next_hops.values().flatten().map(|hop| hop.ifindex);
        let wanted: BTreeSet<u32> = self.target.interfaces.iter().copied().chain(resolved).collect();
        for ifindex in wanted {
            if self.model.egress.insert(ifindex) {
                self.steps.push(Step::AddEgress { ifindex });
            }
        }
    }

    fn add_services(&mut self) {
        for (id, service) in &self.target.services {
            if let Some(state) = self.model.services.get_mut(id) {
                state.drain_timeout = service.drain_timeout;
                continue;
            }
            let Some(index) = self.model.service_pool.take() else {
                self.full = true;
                let limit = self.model.service_pool.capacity();
                self.problems.push(PlanProblem::ServicesFull { service: *id, limit });
                continue;
            };
            let state = ServiceState { drain_timeout: service.drain_timeout, ..ServiceState::new(index) };
            self.model.services.insert(*id, state);
        }
    }

    fn add_members(&mut self) {
        for (id, service) in &self.target.services {
            let Some(index) = self.model.services.get(id).map(|state| state.index) else { continue };
            let mut left_out = 0;
            let mut table = ("members", self.model.member_pool.capacity());
            for (backend, member) in &service.members {
                if id.vip.is_ipv4() != backend.address.is_ipv4() || id.protocol != backend.protocol {
                    self.problems.push(PlanProblem::Mismatch { service: *id, backend: *backend });
                    continue;
                }
                // A member that never had a flow and gets none needs no entry.
                if member.draining || self.model.members.contains_key(&(*id, *backend)) {
                    continue;
                }
                if let Err(full) = self.add_member((id, index), backend) {
                    table = full;
                    left_out += 1;
                }
            }
            if left_out > 0 {
                self.full = true;
                let wanted = service.members.len() as u32;
                let (table, limit) = table;
                self.problems.push(PlanProblem::MembersLeftOut {
                    service: *id,
                    left_out,
                    wanted,
                    table,
                    limit,
                });
            }
        }
    }

    /// Makes a member's entry, and its backend's where that is new. An error names the full table and its
    /// capacity.
    fn add_member(&mut self, service: (&ServiceId, u32), id: &BackendId) -> Result<(), (&'static str, u32)> {
        let member_index =
            self.model.member_pool.take().ok_or(("members", self.model.member_pool.capacity()))?;
        if !self.model.backends.contains_key(id) {
            let Some(index) = self.model.backend_pool.take() else {
                self.model.member_pool.put_back(member_index);
                return Err(("backends", self.model.backend_pool.capacity()));
            };
            let next_hop = self.target.next_hops.get(&id.address).and_then(|result| result.clone().ok());
            let flags = self.backend_flags(id, next_hop.as_ref());
            let cluster = self.target.clusters.get(id).copied().unwrap_or_default();
            self.steps.push(Step::InitBackend { index, value: encode::backend(id, flags, cluster) });
            self.steps.push(Step::PutBackendKey { key: BackendKey::from(id), index });
            let state = BackendState { index, flags, cluster, next_hop, members: 0, idle_since: 0 };
            self.model.backends.insert(*id, state);
        }
        let model = &mut *self.model;
        let backend = model.backends.get_mut(id).expect("it was there or has just been made");
        backend.members += 1;
        let generation = model.generations.entry(member_index).or_insert(0);
        *generation = if *generation == u8::MAX { 1 } else { *generation + 1 };
        let counts = self.target.services.get(service.0).is_some_and(|service| service.flow_log.counters);
        let flags = member_flags::VALID | if counts { member_flags::COUNTED } else { 0 };
        let value = member_value(service, (id, backend.index), *generation, flags);
        let value = with_next_hop(value, backend.next_hop.as_ref());
        self.steps.push(Step::ResetMemberStats { index: member_index });
        self.steps.push(Step::WriteMember { index: member_index, value });
        model.members.insert((*service.0, *id), MemberState::new(member_index, value));
        Ok(())
    }

    fn backend_flags(&self, id: &BackendId, next_hop: Option<&NextHop>) -> u32 {
        if next_hop.is_some() && self.target.usable.contains(id) { backend_flags::USABLE } else { 0 }
    }

    /// Usability, next hops, and the flags of members that come back or are counted anew. First what closes, then next hops, then
    /// what opens.
    fn update_existing(&mut self) {
        let flags: BTreeMap<BackendId, u32> = self
            .targeted_backends()
            .into_iter()
            .filter_map(|id| {
                let state = self.model.backends.get(&id)?;
                Some((id, self.backend_flags(&id, state.next_hop.as_ref())))
            })
            .collect();
        self.set_backend_flags(&flags, |flags| flags & backend_flags::USABLE == 0);
        self.update_clusters();
        self.update_next_hops();
        self.revive_members();
        self.set_backend_flags(&flags, |flags| flags & backend_flags::USABLE != 0);
        self.report_unreachable(flags.keys());
    }

    /// Backends of serving members. Others keep their flags: nothing reads them.
    fn targeted_backends(&self) -> BTreeSet<BackendId> {
        let members = self.target.services.values().flat_map(|service| &service.members);
        members.filter(|(_, member)| !member.draining).map(|(id, _)| *id).collect()
    }

    fn set_backend_flags(&mut self, wanted: &BTreeMap<BackendId, u32>, which: impl Fn(u32) -> bool) {
        for (id, flags) in wanted {
            let Some(state) = self.model.backends.get_mut(id) else { continue };
            if state.flags != *flags && which(*flags) {
                state.flags = *flags;
                self.steps.push(Step::SetBackendFlags { index: state.index, flags: *flags });
            }
        }
    }

    fn update_clusters(&mut self) {
        for (id, cluster) in &self.target.clusters {
            let Some(state) = self.model.backends.get_mut(id) else { continue };
            if std::mem::replace(&mut state.cluster, *cluster) != *cluster {
                self.steps.push(Step::SetBackendCluster { index: state.index, cluster: *cluster });
            }
        }
    }

    fn update_next_hops(&mut self) {
        for ((_, backend), member) in &mut self.model.members {
            let next_hop = self.model.backends.get(backend).and_then(|state| state.next_hop.as_ref());
            let value = with_next_hop(member.value, next_hop);
            if value != member.value {
                member.value = value;
                self.steps.push(Step::UpdateNextHop { index: member.index, value });
            }
        }
    }

    fn revive_members(&mut self) {
        let gone = member_flags::DRAINING | member_flags::REMOVED;
        for (key, member) in &mut self.model.members {
            let wanted = self.target.services.get(&key.0).and_then(|service| service.members.get(&key.1));
            let Some(wanted) = wanted else { continue };
            member.removed = None;
            if !wanted.leaves() {
                member.leaving = None;
            }
            let keep = if wanted.draining { !member_flags::REMOVED } else { !gone };
            let counts = self.target.services.get(&key.0).is_some_and(|service| service.flow_log.counters);
            let counted = if counts { member_flags::COUNTED } else { 0 };
            let flags = member.value.flags & keep & !member_flags::COUNTED | counted;
            if flags != member.value.flags {
                member.value = Member { flags, ..member.value };
                self.steps.push(Step::SetMemberFlags { index: member.index, flags });
            }
        }
    }

    fn report_unreachable<'b>(&mut self, backends: impl Iterator<Item = &'b BackendId>) {
        for id in backends {
            if self.model.backends.get(id).is_some_and(|state| state.next_hop.is_some()) {
                continue;
            }
            let reason = match self.target.next_hops.get(&id.address) {
                Some(Err(error)) => error.to_string(),
                _ => "its next hop has not been resolved yet; this takes a moment".to_owned(),
            };
            self.problems.push(PlanProblem::NoNextHop { backend: *id, reason });
        }
    }

    /// Service keys, then VIPs, then the filter.
    fn open_services(&mut self) {
        for id in self.target.services.keys() {
            if let Some(service) = self.model.services.get_mut(id)
                && !std::mem::replace(&mut service.keyed, true)
            {
                self.steps.push(Step::PutService { key: ServiceKey::from(id), index: service.index });
            }
        }
        for (vip, flags) in self.wanted_vips() {
            let key = VipKey::from(vip);
            match self.model.vips.insert(vip, flags) {
                Some(before) if before == flags => {}
                None => self.steps.push(Step::PutVip { key, flags }),
                // When a cluster is lost this may be a thousand VIPs: nothing else waits for these.
                Some(before) if before ^ flags == vip_flags::ECHO => {
                    self.steps.push(Step::UpdateEcho { key, flags });
                }
                Some(_) => {
                    self.steps.push(Step::PutVip { key, flags });
                    // An update leaves the old element to the next one while packets may still read it.
                    self.in_flight = true;
                    self.grace();
                }
            }
        }
        for (index, bits) in self.filter_of(self.model.vips.keys()) {
            let current = self.model.filter.entry(index).or_default();
            if *current & bits != bits {
                *current |= bits;
                self.steps.push(Step::SetAddressFilter { index, flags: *current });
            }
        }
    }

    fn wanted_vips(&self) -> BTreeMap<IpAddr, u32> {
        let flags = |node_address| if node_address { vip_flags::NODE_ADDRESS } else { 0 };
        let served = self.target.services.keys().filter(|id| self.model.services.contains_key(id));
        let mut vips: BTreeMap<IpAddr, u32> = served.map(|id| (id.vip, 0)).collect();
        vips.extend(self.target.vips.iter().map(|(vip, node_address)| (*vip, flags(*node_address))));
        for (vip, flags) in &mut vips {
            *flags |= if self.answers_echo(*vip) { vip_flags::ECHO } else { 0 };
        }
        vips
    }

    fn answers_echo(&self, vip: IpAddr) -> bool {
        match self.target.echo {
            Echo::Always => true,
            Echo::Never => false,
            Echo::WhenUsable => {
                let services = self.target.services.iter().filter(|(id, _)| id.vip == vip);
                let mut members = services.flat_map(|(_, service)| &service.members);
                members.any(|(id, member)| !member.draining && self.is_usable(id))
            }
        }
    }

    /// Whether new flows may go to a backend, as the maps will say.
    fn is_usable(&self, id: &BackendId) -> bool {
        self.model.backends.get(id).is_some_and(|state| state.flags & backend_flags::USABLE != 0)
    }

    /// What the address filter must say for these VIPs and the target's SNAT addresses.
    pub(super) fn filter_of<'b>(&self, vips: impl Iterator<Item = &'b IpAddr>) -> BTreeMap<u32, u64> {
        let vips = vips.map(|address| (*address, address_filter::VIP));
        let snat = self.target.snat_addresses.iter().map(|address| (*address, address_filter::SNAT));
        let mut filter = BTreeMap::new();
        for (address, bit) in vips.chain(snat) {
            *filter.entry(filter_index(address)).or_default() |= bit;
        }
        filter
    }
}
