//! Where new flows should go, over time: probes, ejections and failed clusters, then regions and zones.
//!
//! The machines of `health` and `locality` side by side, in the order in which one needs the other. No I/O, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::desired::{Desired, Policy, Service, ServiceId};
use crate::health::{
    Change, Clusters, Decision, Ejections, Observation, Outliers, ServiceHealth, Sources, Usability,
    Verdicts, evaluate,
};
use crate::locality::{Input, Localities, Shares, Transition};
use crate::network::NextHops;

/// The machines.
#[derive(Debug, Default)]
pub(super) struct Steering {
    outliers: Outliers,
    clusters: Clusters,
    localities: Localities,
    ejections: Ejections,
}

/// What a step of [`Steering`] brought about, for the log.
#[derive(Debug)]
pub(super) struct News {
    /// When.
    pub(super) at: Instant,
    pub(super) decisions: Vec<Decision>,
    pub(super) changes: Vec<Change>,
}

impl News {
    /// Whether new flows may have to go elsewhere now.
    pub(super) fn concerns_flows(&self) -> bool {
        let moves =
            |decision: &Decision| matches!(decision, Decision::Ejected { .. } | Decision::Returned { .. });
        self.decisions.iter().any(moves) || !self.changes.is_empty()
    }
}

impl Steering {
    /// Takes in what is wanted now.
    pub(super) fn set_services(&mut self, now: Instant, desired: &Desired) {
        self.outliers.set_services(now, each(desired));
    }

    /// Learns what the packet program saw of a backend.
    pub(super) fn observe(&mut self, now: Instant, observation: &Observation) {
        self.outliers.handle_observation(now, observation);
    }

    /// When [`Self::advance`] has something to do next; `None`: not before something changes.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.outliers.poll_timeout(), self.clusters.poll_timeout()].into_iter().flatten().min()
    }

    /// When [`Self::share`] gives other shares if nothing else changes; `None`: never.
    pub(super) fn next_share(&self) -> Option<Instant> {
        self.localities.poll_timeout()
    }

    /// Decides about ejections and clusters: what their time or what was learned since brings about.
    pub(super) fn advance(&mut self, now: Instant, desired: &Desired, verdicts: &Verdicts) -> News {
        self.outliers.handle_timeout(now);
        self.clusters.handle_timeout(now);
        let decisions: Vec<Decision> = std::iter::from_fn(|| self.outliers.poll_decision()).collect();
        self.ejections = self.outliers.ejections();
        self.clusters.update(now, each(desired), verdicts, &self.ejections);
        let changes = std::iter::from_fn(|| self.clusters.poll_change()).collect();
        News { at: now, decisions, changes }
    }

    /// Which backends each service may use.
    pub(super) fn usability(
        &self,
        desired: &Desired,
        verdicts: &Verdicts,
        next_hops: &NextHops,
    ) -> Usability {
        let sources =
            Sources { verdicts, ejections: &self.ejections, failed_clusters: &self.clusters.failed() };
        let reachable = |address| !matches!(next_hops.get(&address), Some(Err(_)));
        evaluate(desired.services.values(), &sources, reachable)
    }

    /// Gives regions and zones their shares. What moved, for the log.
    pub(super) fn share(
        &mut self,
        now: Instant,
        desired: &Desired,
        usability: &Usability,
    ) -> Vec<(ServiceId, Transition)> {
        let ramps: Vec<BTreeMap<String, u32>> =
            each(desired).map(|(_, policy)| self.clusters.shares(now, policy)).collect();
        let nothing = ServiceHealth::default();
        let inputs = each(desired).zip(&ramps).map(|((service, policy), ramps)| {
            let health = usability.services.get(&service.id).unwrap_or(&nothing);
            let input = Input {
                endpoints: &service.endpoints,
                policy,
                healthy: &health.healthy,
                ejected: &health.ejected,
                ramps,
            };
            (service.id, input)
        });
        self.localities.update(now, inputs)
    }

    /// The shares as they are now.
    pub(super) fn shares(&self) -> BTreeMap<ServiceId, Arc<Shares>> {
        self.localities.all()
    }
}

fn each(desired: &Desired) -> impl Iterator<Item = (&Service, &Policy)> {
    desired.services.values().map(|service| (service, &*service.policy))
}
