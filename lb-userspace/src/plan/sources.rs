//! Source ranges: the entries of the tries, and when they come and go.
//!
//! New ranges come first, then the word that asks for ranges, and what is gone goes after a grace period: a lookup that
//! began before the new ones were in may still find the old ones. So whoever may connect before and after a change
//! may do so throughout, and nobody else ever may.

use std::sync::Arc;

use super::encode::SourceKey;
use super::model::ServiceState;
use super::planner::Planner;
use super::problem::PlanProblem;
use super::step::Step;
use crate::desired::{ServiceId, SourceRanges};

impl Planner<'_> {
    /// Puts in the ranges that a service lacks, all of them or none; returns whether it is to ask for ranges.
    pub(super) fn add_ranges(&mut self, id: &ServiceId) -> bool {
        let Some(service) = self.model.services.get_mut(id) else { return false };
        let wanted = self.target.services.get(id).and_then(|service| service.sources.as_ref());
        if !service.keyed && !service.ranges.is_empty() {
            // It was about to go when the last agent was killed. Nobody finds it yet.
            let named = |wanted: &SourceRanges| wanted.intersection(&service.ranges).copied().collect();
            let keep: SourceRanges = Arc::new(wanted.map(named).unwrap_or_default());
            self.model.ranges[family(id)] -= remove(service, &keep, &mut self.steps);
            service.ranges = keep;
        }
        let Some(wanted) = wanted else {
            // Nobody asks for them once the word says so.
            self.in_flight |= !service.ranges.is_empty();
            return false;
        };
        if Arc::ptr_eq(wanted, &service.ranges) {
            return true;
        }
        let missing: Vec<_> = wanted.difference(&service.ranges).copied().collect();
        let used = &mut self.model.ranges[family(id)];
        let limit = self.model.limits.source_ranges;
        if missing.len() as u64 > u64::from(limit.saturating_sub(*used)) {
            self.full = true;
            let instead = if service.clients.has_ranges() && !service.ranges.is_empty() {
                "it keeps those that it has"
            } else {
                "nobody can connect to it"
            };
            self.problems.push(PlanProblem::SourceRangesFull {
                service: *id,
                wanted: wanted.len(),
                limit,
                family: if id.vip.is_ipv4() { "IPv4" } else { "IPv6" },
                instead,
            });
            // There may be room at the end of the plan.
            return !service.described || service.clients.has_ranges();
        }
        *used += missing.len() as u32;
        if !missing.is_empty() {
            let mut ranges = (*service.ranges).clone();
            for range in missing {
                self.steps.push(Step::PutSource { key: SourceKey::new(service.index, &range) });
                ranges.insert(range);
            }
            service.ranges = Arc::new(ranges);
        }
        self.in_flight |= service.ranges.len() > wanted.len();
        true
    }

    /// Closes services whose ranges found no room and that everybody could connect to so far.
    pub(super) fn close_without_ranges(&mut self) {
        for problem in &self.problems {
            let PlanProblem::SourceRangesFull { service, .. } = problem else { continue };
            let Some(state) = self.model.services.get_mut(service) else { continue };
            if !state.clients.has_ranges() {
                state.clients = state.clients.with_ranges();
                self.steps.push(Step::SetClients { index: state.index, clients: state.clients });
            }
        }
    }

    /// Takes away the ranges that services don't name, once all are in that they do; those of a service that nobody
    /// finds any more are all of them.
    pub(super) fn drop_ranges(&mut self) {
        for (id, service) in &mut self.model.services {
            let wanted = match self.target.services.get(id).and_then(|target| target.sources.as_ref()) {
                Some(wanted) if Arc::ptr_eq(wanted, &service.ranges) => continue,
                // Some found no room: it keeps what it has.
                Some(wanted) if !wanted.is_subset(&service.ranges) => continue,
                Some(wanted) => Arc::clone(wanted),
                None => SourceRanges::default(),
            };
            let gone = remove(service, &wanted, &mut self.steps);
            service.ranges = wanted;
            self.model.ranges[family(id)] -= gone;
            self.released |= gone > 0;
        }
    }
}

/// Deletes all ranges but these; returns how many.
fn remove(service: &ServiceState, keep: &SourceRanges, steps: &mut Vec<Step>) -> u32 {
    let before = steps.len();
    let gone = service.ranges.difference(keep);
    steps.extend(gone.map(|range| Step::DeleteSource { key: SourceKey::new(service.index, range) }));
    (steps.len() - before) as u32
}

/// Where the number of ranges of a service's family is.
pub(super) const fn family(id: &ServiceId) -> usize {
    if id.vip.is_ipv4() { 0 } else { 1 }
}
