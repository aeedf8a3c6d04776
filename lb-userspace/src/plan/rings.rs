//! Rings: built where something changed, written into free regions, shown by one word.

use std::sync::Arc;

use lb_common::abi::{FlowLogWord, RING_SIZES, RingWord, ServiceDescriptor};

use super::encode;
use super::free::{Region, Regions};
use super::model::{RingContent, RingMember, RingState};
use super::planner::Planner;
use super::problem::PlanProblem;
use super::step::Step;
use crate::desired::ServiceId;
use crate::maglev::{self, Entry};

/// Versions of rings have 24 bits and are never 0.
const MAX_VERSION: u32 = (1 << 24) - 1;

impl Planner<'_> {
    pub(super) fn update_rings(&mut self) {
        for id in self.target.services.keys() {
            if self.model.services.contains_key(id) {
                self.update_service(id);
            }
        }
    }

    fn update_service(&mut self, id: &ServiceId) {
        let (main, fallback) = self.ring_members(id);
        let has_ranges = self.add_ranges(id);
        let service = self.model.services.get_mut(id).expect("the caller looked");
        let index = service.index;
        let Some(wanted) = self.target.services.get(id) else { return };
        let reaction = encode::reaction(&wanted.reaction);
        let flow_log = FlowLogWord::one_in(wanted.flow_log.sample_one_in);
        let reacts_anew = std::mem::replace(&mut service.reaction, reaction) != reaction;
        let clients = encode::clients(has_ranges, wanted.affinity, wanted.new_flow_limit, id.vip);
        let asks_anew = std::mem::replace(&mut service.clients, clients) != clients;
        let logs_anew = std::mem::replace(&mut service.flow_log, flow_log) != flow_log;
        let regions = &mut self.model.regions;
        let mut steps = Vec::new();
        let mut ring = service.ring.update(main, maglev::ring_class, regions, &mut steps);
        let mut spare = service.fallback.update(fallback, maglev::fallback_class, regions, &mut steps);
        self.steps.append(&mut steps);
        if !std::mem::replace(&mut service.described, true) {
            let value = ServiceDescriptor {
                ring: service.ring.word.0,
                fallback: service.fallback.word.0,
                reaction: reaction.0,
                flow_log: flow_log.0,
                clients: clients.0,
                ..encode::descriptor(id)
            };
            self.steps.push(Step::WriteDescriptor { index, value });
        } else {
            if reacts_anew {
                self.steps.push(Step::SetReaction { index, reaction });
            }
            if asks_anew {
                self.steps.push(Step::SetClients { index, clients });
            }
            if logs_anew {
                self.steps.push(Step::SetFlowLog { index, flow_log });
            }
            if let Ok(Some(_)) = spare {
                self.steps.push(Step::SwapFallback { index, ring: service.fallback.word });
            }
            if let Ok(Some(_)) = ring {
                self.steps.push(Step::SwapRing { index, ring: service.ring.word });
            }
        }
        for swapped in [&mut spare, &mut ring] {
            match swapped {
                Ok(Some(old)) => {
                    self.in_flight |= old.word.is_some();
                    if let Some(region) = old.region.take() {
                        self.model.regions.give_back(region);
                    }
                }
                Ok(None) => {}
                Err(failure) => {
                    self.full |= matches!(failure, Failure::Space { .. });
                    self.problems.push(failure.problem(id, &self.model.regions));
                }
            }
        }
    }

    /// What the service's ring and its fallback ring are made of, sorted by backend. The fallback ring is over
    /// what is usable, and over everything when nothing is.
    fn ring_members(&self, id: &ServiceId) -> (Vec<RingMember>, Vec<RingMember>) {
        let Some(service) = self.target.services.get(id) else { return Default::default() };
        let main: Vec<RingMember> = service
            .members
            .iter()
            .filter(|(_, member)| !member.draining)
            .filter_map(|(backend, member)| {
                let state = self.model.members.get(&(*id, *backend))?;
                Some(RingMember { backend: *backend, weight: member.weight, index: state.index })
            })
            .collect();
        let equal = |member: &RingMember| RingMember { weight: 1, ..*member };
        let usable = |member: &&RingMember| self.model.is_usable(&member.backend);
        let mut fallback: Vec<RingMember> = main.iter().filter(usable).map(equal).collect();
        if fallback.is_empty() {
            fallback = main.iter().map(equal).collect();
        }
        (main, fallback)
    }
}

/// Why a ring stays as it is.
enum Failure {
    Space { slots: u32, members: u32 },
    TooLarge { members: u32 },
}

impl Failure {
    fn problem(&self, id: &ServiceId, regions: &Regions) -> PlanProblem {
        match *self {
            Self::Space { slots, members } => {
                PlanProblem::RingSpace { service: *id, slots, members, limit: regions.slots() }
            }
            Self::TooLarge { members } => {
                let limit = maglev::MAX_ENTRIES as u32;
                PlanProblem::RingTooLarge { service: *id, members, limit }
            }
        }
    }
}

impl RingState {
    /// Makes the ring one over `members` and returns the old state, `None` if nothing changes. The caller
    /// shows the new word and gives the old region back.
    fn update(
        &mut self,
        members: Vec<RingMember>,
        class_for: impl Fn(usize) -> Option<u8>,
        regions: &mut Regions,
        steps: &mut Vec<Step>,
    ) -> Result<Option<Self>, Failure> {
        if self.content == RingContent::Built(members.clone()) {
            return Ok(None);
        }
        let count = members.len() as u32;
        let class = class_for(members.len()).ok_or(Failure::TooLarge { members: count })?;
        let Some(slots) = build(class, &members) else {
            let changed = self.word.is_some();
            let content = RingContent::Built(members);
            let none = Self { word: RingWord::NONE, version: self.version, region: None, content };
            let old = std::mem::replace(self, none);
            return Ok(changed.then_some(old));
        };
        if let RingContent::Adopted(found) = &self.content
            && *found == slots
        {
            self.content = RingContent::Built(members);
            return Ok(None);
        }
        let size = RING_SIZES[usize::from(class)];
        let region: Region = regions.take(size).ok_or(Failure::Space { slots: size, members: count })?;
        steps.push(Step::WriteRing { offset: region.offset, slots });
        let version = if self.version >= MAX_VERSION { 1 } else { self.version + 1 };
        let new = Self {
            word: RingWord::new(region.offset, class, version),
            version,
            region: Some(region),
            content: RingContent::Built(members),
        };
        Ok(Some(std::mem::replace(self, new)))
    }

    /// Takes the ring away and returns the old state; the caller as for [`Self::update`].
    pub(super) fn remove(&mut self) -> Option<Self> {
        let none = Self { version: self.version, ..Self::default() };
        let old = std::mem::replace(self, none);
        old.word.is_some().then_some(old)
    }
}

/// The slots of a ring, as member indices.
fn build(class: u8, members: &[RingMember]) -> Option<Arc<[u32]>> {
    let entries: Vec<Entry> =
        members.iter().map(|member| Entry { backend: member.backend, weight: member.weight }).collect();
    let ring = maglev::build(class, &entries)?;
    Some(ring.into_iter().map(|entry| members[entry as usize].index).collect())
}
