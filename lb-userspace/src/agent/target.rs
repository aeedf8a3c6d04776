//! From desired state, health and the node's network to what the maps should say. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::Echo;
use crate::desired::{Desired, Service, ServiceId};
use crate::health::Usability;
use crate::locality::Shares;
use crate::network::{LocalAddresses, NextHops, is_local};
use crate::plan::{Reaction, Target, TargetMember, TargetService, cluster_number};

/// What the maps should say.
#[allow(clippy::too_many_arguments)]
pub(super) fn target(
    desired: &Desired,
    usability: &Usability,
    shares: &BTreeMap<ServiceId, Arc<Shares>>,
    next_hops: &NextHops,
    addresses: &LocalAddresses,
    snat_addresses: &BTreeSet<IpAddr>,
    interfaces: &BTreeSet<u32>,
    echo: Echo,
) -> Target {
    let vips: BTreeMap<IpAddr, bool> =
        desired.services.keys().map(|id| (id.vip, is_local(addresses, id.vip))).collect();
    let endpoints = desired.services.values().flat_map(|service| &service.endpoints);
    Target {
        clusters: endpoints.map(|endpoint| (endpoint.backend, cluster_number(&endpoint.cluster))).collect(),
        services: desired
            .services
            .values()
            .map(|service| (service.id, target_service(service, shares.get(&service.id))))
            .collect(),
        usable: usability.backends.clone(),
        next_hops: next_hops.clone(),
        vips,
        snat_addresses: snat_addresses.clone(),
        interfaces: interfaces.clone(),
        echo,
    }
}

/// Members that have no weight, not even 0, are kept for their flows only.
fn target_service(service: &Service, shares: Option<&Arc<Shares>>) -> TargetService {
    let members = service.endpoints.iter().map(|endpoint| {
        let weight = shares.and_then(|shares| shares.weights.get(&endpoint.backend));
        let draining = weight.is_none();
        let weight = weight.copied().unwrap_or_default();
        (endpoint.backend, TargetMember { weight, draining, leaving: endpoint.terminating })
    });
    TargetService {
        members: members.collect(),
        drain_timeout: service.policy.drain_timeout,
        reaction: Reaction::from(&*service.policy),
        flow_log: service.policy.flow_log,
        sources: service.sources.clone(),
        affinity: service.affinity,
        new_flow_limit: service.policy.new_flow_limit,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::steering::Steering;
    use super::*;
    use crate::desired::{Endpoint, Policy, Protocol, ServiceId, fixtures};
    use crate::network::LocalAddress;

    fn endpoint(last: u8, ready: bool, terminating: bool) -> Endpoint {
        Endpoint { region: String::new(), ready, terminating, ..fixtures::endpoint_in("a", last) }
    }

    fn desired(vip: [u8; 4], endpoints: Vec<Endpoint>) -> Desired {
        let id = ServiceId { vip: vip.into(), port: 80, protocol: Protocol::Tcp };
        let service = Service { id, namespace: "demo".into(), ..fixtures::service(1, endpoints) };
        Desired { services: BTreeMap::from([(id, service)]), ..Desired::default() }
    }

    fn of(desired: &Desired, addresses: &LocalAddresses) -> Target {
        let none = BTreeSet::new();
        let usability = Usability::default();
        let mut steering = Steering::default();
        steering.share(Instant::now(), desired, &usability);
        let (next_hops, shares) = (NextHops::new(), steering.shares());
        target(desired, &usability, &shares, &next_hops, addresses, &none, &BTreeSet::new(), Echo::default())
    }

    #[test]
    fn endpoints_that_take_no_new_flows_drain() {
        let desired = desired(
            [192, 0, 2, 1],
            vec![endpoint(1, true, false), endpoint(2, true, true), endpoint(3, false, false)],
        );
        let target = of(&desired, &Vec::new());
        let members = &target.services.values().next().unwrap().members;
        let draining: Vec<bool> = members.values().map(|member| member.draining).collect();
        assert_eq!(draining, [false, true, true]);
        let leaving: Vec<bool> = members.values().map(|member| member.leaving).collect();
        assert_eq!(leaving, [false, true, false], "one that is not ready may be so again");
        let weights: Vec<u32> = members.values().map(|member| member.weight).collect();
        assert_eq!(weights, [1, 0, 0]);
    }

    #[test]
    fn a_policys_drain_time_is_its_services() {
        let mut desired = desired([192, 0, 2, 1], Vec::new());
        let service = desired.services.values_mut().next().unwrap();
        let policy = Policy { drain_timeout: Some(Duration::from_secs(30)), ..Policy::default() };
        service.policy = Arc::new(policy.clone());
        assert_eq!(target_service(service, None).drain_timeout, policy.drain_timeout);
    }

    #[test]
    fn a_vip_on_an_interface_of_the_node_is_marked() {
        let local = |address: [u8; 4]| LocalAddress {
            ifindex: 2,
            address: address.into(),
            prefix: 24,
            primary: true,
        };
        let desired = desired([192, 0, 2, 1], Vec::new());
        assert!(of(&desired, &vec![local([192, 0, 2, 1])]).vips.values().all(|node| *node));
        assert!(of(&desired, &vec![local([192, 0, 2, 2])]).vips.values().all(|node| !*node));
    }
}
