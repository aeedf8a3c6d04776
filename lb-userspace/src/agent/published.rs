//! What the loop shows to the tasks that answer questions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::drains::{self, Drains};
use super::problems::NO_NEXT_HOP_YET;
use crate::cluster::{self, Connection};
use crate::desired::{BackendId, Desired, Endpoint, MemberState, Place, Service, ServiceId};
use crate::health::{Usability, Verdict, Verdicts};
use crate::network::NextHops;
use crate::plan::{MemberInfo, ServiceInfo};
use crate::status::view::{self, DrainCause};

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) since: String,
    /// Region and zone, unless the gateway's Node says another.
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) pin_dir: String,
    pub(super) adopted: bool,
    /// Flows that the tables were made for.
    pub(super) capacity: u64,
    /// Bytes by map.
    pub(super) memory: BTreeMap<String, u64>,
    pub(super) snat: view::Snat,
    /// Why redirects that fail are not counted.
    pub(super) redirects_uncounted: Option<String>,
}

/// What the loop knows after a plan.
#[derive(Clone, Debug, Default)]
pub(super) struct Published {
    pub(super) ready: bool,
    pub(super) attach: Vec<view::Attachment>,
    /// All clusters, by name.
    pub(super) clusters: BTreeMap<String, MemberCluster>,
    /// Where the gateway is, as its Node says.
    pub(super) place: Place,
    pub(super) desired: Arc<Desired>,
    /// What is drained by hand in it.
    pub(super) drains: Arc<Drains>,
    pub(super) usability: Arc<Usability>,
    pub(super) verdicts: Arc<Verdicts>,
    pub(super) next_hops: Arc<NextHops>,
    pub(super) services: Vec<ServiceInfo>,
    pub(super) members: HashMap<(ServiceId, BackendId), MemberInfo>,
    /// Services and endpoints that are gone but still have members.
    pub(super) gone: HashMap<(ServiceId, BackendId), Gone>,
    pub(super) problems: Vec<view::Problem>,
}

/// What is shown of a member cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct MemberCluster {
    /// Empty if unknown.
    pub(super) region: String,
    pub(super) state: MemberState,
    /// `None` for manifests.
    pub(super) connection: Option<Connection>,
}

/// What is shown of each cluster that is known or declared.
pub(super) fn shown_clusters(clusters: &cluster::Snapshot) -> BTreeMap<String, MemberCluster> {
    let mut members: BTreeMap<String, MemberCluster> =
        clusters.clusters.keys().map(|name| (name.clone(), MemberCluster::default())).collect();
    for member in &clusters.gateway.members {
        if let Some(name) = &member.metadata.name {
            let connection = clusters.connections.get(name).cloned();
            let (region, state) = (member.spec.region.clone(), member.spec.state);
            members.insert(name.clone(), MemberCluster { region, state, connection });
        }
    }
    members
}

/// An endpoint that is gone while its flows go on.
#[derive(Clone, Debug)]
pub(super) struct Gone {
    /// `namespace/name` of its service.
    pub(super) service: String,
    pub(super) endpoint: Endpoint,
}

impl Published {
    /// Whether the service is still wanted.
    pub(super) fn serves(&self, id: &ServiceId) -> bool {
        self.desired.services.contains_key(id)
    }

    /// Whether new flows of the service go to the endpoint, as of the last plan.
    pub(super) fn is_usable(&self, service: &Service, endpoint: &Endpoint) -> bool {
        let allowed = self
            .usability
            .services
            .get(&service.id)
            .is_some_and(|health| health.usable.contains(&endpoint.backend));
        allowed && self.members.get(&(service.id, endpoint.backend)).is_some_and(|member| member.usable)
    }

    /// Why an endpoint keeps its flows and gets no new ones; `None` where that is not so.
    pub(super) fn drain_cause(&self, endpoint: &Endpoint) -> Option<DrainCause> {
        let state = self.clusters.get(&endpoint.cluster).map(|cluster| cluster.state).unwrap_or_default();
        drains::cause(&self.drains, state, endpoint)
    }

    /// Why an endpoint takes no new flows; `None` when it does.
    pub(super) fn reason(&self, service: &Service, endpoint: &Endpoint) -> Option<String> {
        if self.is_usable(service, endpoint) {
            return None;
        }
        match self.drain_cause(endpoint) {
            Some(DrainCause::ByHand) => {
                let (name, drain) = self.drains.of(endpoint)?;
                return Some(format!("{name} is drained by hand since {}", drain.since));
            }
            Some(DrainCause::MemberCluster) => {
                return Some("its MemberCluster says `state: Drain`".to_owned());
            }
            Some(DrainCause::Terminating | DrainCause::Removed) => {
                return Some("it is terminating".to_owned());
            }
            Some(DrainCause::NotReady) => {
                return Some("its cluster says that it is not ready".to_owned());
            }
            None => {}
        }
        match self.next_hops.get(&endpoint.backend.address) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Some(error.to_string()),
            None => return Some(NO_NEXT_HOP_YET.to_owned()),
        }
        if let Verdict::Unhealthy { reason } = self.verdicts.of_endpoint(endpoint, &service.health_check) {
            return Some(reason.to_string());
        }
        let health = self.usability.services.get(&service.id);
        if health.is_some_and(|health| health.ejected.contains(&endpoint.backend)) {
            return Some("it is ejected for a time, because users' connections to it failed".to_owned());
        }
        if health.is_some_and(|health| health.failed_clusters.contains(&endpoint.cluster)) {
            return Some(format!("its cluster {} has failed as a whole", endpoint.cluster));
        }
        Some("it is not programmed; `kanmon status` lists the problems".to_owned())
    }

    /// What is to be said of a service all of whose ready endpoints people have drained.
    pub(super) fn refusal(&self, service: &Service) -> Option<String> {
        drains::refusal(service, |endpoint| self.drain_cause(endpoint))
    }

    /// Why a service is not served as it should be.
    pub(super) fn service_problem(&self, service: &Service) -> Option<String> {
        if !self.services.iter().any(|info| info.id == service.id) {
            return Some("it is not programmed; `kanmon status` lists the problems".to_owned());
        }
        if service.endpoints.is_empty() {
            return Some("no cluster has an endpoint for it".to_owned());
        }
        if let Some(refusal) = self.refusal(service) {
            return Some(refusal);
        }
        let health = self.usability.services.get(&service.id)?;
        if health.ready == 0 {
            return Some("no endpoint is ready".to_owned());
        }
        health.degraded.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::fixtures;
    use crate::health::ServiceHealth;
    use crate::network::NextHop;

    #[test]
    fn an_endpoint_that_is_ejected_or_in_a_failed_cluster_says_so() {
        let endpoint = fixtures::endpoint_in("hangzhou", 1);
        let service = fixtures::service(1, vec![endpoint.clone()]);
        let (backend, id) = (endpoint.backend, service.id);
        let next_hop = NextHop {
            destination_mac: [2; 6],
            source_mac: [4; 6],
            ifindex: 2,
            mtu: 1500,
            vlan: Vec::new(),
            service_tag: false,
        };
        let reason = |health: ServiceHealth| {
            let usability = Usability { services: [(id, health)].into(), ..Usability::default() };
            let next_hops = NextHops::from([(backend.address, Ok(next_hop.clone()))]);
            let published = Published {
                usability: Arc::new(usability),
                next_hops: Arc::new(next_hops),
                ..Published::default()
            };
            published.reason(&service, &endpoint).unwrap()
        };
        let ejected = ServiceHealth { ejected: [backend].into(), ..ServiceHealth::default() };
        assert!(reason(ejected).contains("ejected"));
        let failed =
            ServiceHealth { failed_clusters: ["hangzhou".into()].into(), ..ServiceHealth::default() };
        assert!(reason(failed).contains("cluster hangzhou has failed"));
        assert!(reason(ServiceHealth::default()).contains("not programmed"));
    }
}
