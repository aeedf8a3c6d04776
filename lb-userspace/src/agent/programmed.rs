//! What the packet program makes of each VIP, for whoever reports it to the clusters. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::problems::no_snat_address;
use crate::cluster::{NotProgrammed, Programmed};
use crate::desired::{Desired, ServiceId};
use crate::health::{self, Answer, Verdict, Verdicts};
use crate::network::NextHops;
use crate::status::view::Problem;

/// `services` are those that the maps have; `problems` is all that is wrong.
pub(super) fn programmed(
    desired: &Desired,
    services: &BTreeSet<ServiceId>,
    problems: &[Problem],
    snat_addresses: &BTreeSet<IpAddr>,
) -> Programmed {
    let mut wanted: BTreeMap<IpAddr, Vec<ServiceId>> = BTreeMap::new();
    for vip in desired.fronts.values().flat_map(|front| &front.vips) {
        wanted.entry(*vip).or_default();
    }
    for id in desired.services.keys() {
        wanted.entry(id.vip).or_default().push(*id);
    }
    let judge = |(vip, wanted): (IpAddr, Vec<ServiceId>)| {
        let obstacle = if wanted.is_empty() {
            Some(NotProgrammed {
                reason: "NoPorts",
                message: "its Services have no port that can be served; see their conditions".to_owned(),
            })
        } else if snat_addresses.iter().all(|address| address.is_ipv4() != vip.is_ipv4()) {
            Some(NotProgrammed {
                reason: "NoSnatAddress",
                message: no_snat_address(if vip.is_ipv4() { "IPv4" } else { "IPv6" }),
            })
        } else {
            wanted.iter().find(|id| !services.contains(id)).map(|id| missing(*id, problems))
        };
        (vip, obstacle.map_or(Ok(()), Err))
    };
    Programmed { known: true, vips: wanted.into_iter().map(judge).collect(), ..Programmed::default() }
}

/// The member clusters none of whose endpoints this gateway reaches, and why.
pub(super) fn blocked(
    desired: &Desired,
    verdicts: &Verdicts,
    next_hops: &NextHops,
) -> BTreeMap<String, String> {
    let mut answers: BTreeMap<&str, BTreeMap<SocketAddr, Answer>> = BTreeMap::new();
    for service in desired.services.values() {
        for endpoint in service.endpoints.iter().filter(|endpoint| endpoint.takes_new_flows()) {
            let address = SocketAddr::new(endpoint.backend.address, endpoint.backend.port);
            let answer =
                match (next_hops.get(&address.ip()), verdicts.of_endpoint(endpoint, &service.health_check)) {
                    (Some(Err(error)), _) => Answer::Failed(error.to_string()),
                    (_, Verdict::Unhealthy { reason }) => Answer::Failed(reason.to_string()),
                    (_, Verdict::Healthy) => Answer::Answered,
                    (_, Verdict::Unknown) => Answer::Unknown,
                };
            let known = answers.entry(&endpoint.cluster).or_default();
            // Two services may check a pod in two ways: one that passes is enough to know that it is reached.
            match known.get(&address) {
                Some(Answer::Answered) => {}
                _ => drop(known.insert(address, answer)),
            }
        }
    }
    let judge = |(cluster, answers): (&str, BTreeMap<SocketAddr, Answer>)| {
        let message = health::blocked(answers.iter().map(|(address, answer)| (*address, answer)))?;
        Some((cluster.to_owned(), message))
    };
    answers.into_iter().filter_map(judge).collect()
}

/// Why the maps do not have a service.
fn missing(id: ServiceId, problems: &[Problem]) -> NotProgrammed {
    let object = format!("service {id}");
    match problems.iter().find(|problem| problem.object == object && problem.reason == "ServicesFull") {
        Some(full) => NotProgrammed { reason: "ServicesFull", message: format!("{object} {}", full.message) },
        None => NotProgrammed { reason: "Pending", message: format!("{object} is about to be programmed") },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::desired::{FrontState, HealthCheck, Protocol, Service};

    fn id(vip: &str, port: u16) -> ServiceId {
        ServiceId { vip: vip.parse().unwrap(), port, protocol: Protocol::Tcp }
    }

    fn desired(ids: &[ServiceId]) -> Desired {
        let service = |id: ServiceId| Service {
            id,
            namespace: "demo".into(),
            name: "web".into(),
            front: "a".into(),
            not_fronts: Vec::new(),
            port_name: String::new(),
            endpoints: Vec::new(),
            health_check: HealthCheck::default(),
            policy: Arc::default(),
            sources: None,
            affinity: None,
        };
        Desired { services: ids.iter().map(|id| (*id, service(*id))).collect(), ..Desired::default() }
    }

    /// `VIP=reason`.
    fn said(programmed: &Programmed) -> Vec<String> {
        let reason =
            |state: &Result<(), NotProgrammed>| state.as_ref().map_or_else(|why| why.reason, |()| "ok");
        programmed.vips.iter().map(|(vip, state)| format!("{vip}={}", reason(state))).collect()
    }

    #[test]
    fn a_vip_is_programmed_when_all_its_services_are() {
        let ids = [id("192.0.2.1", 80), id("192.0.2.1", 443), id("192.0.2.2", 80), id("2001:db8::1", 80)];
        let snat = BTreeSet::from(["192.0.2.254".parse().unwrap()]);
        let full = Problem {
            cluster: None,
            object: "service 192.0.2.2:80/TCP".into(),
            reason: "ServicesFull".into(),
            message: "is not programmed: the table of services is full".into(),
        };
        let most = BTreeSet::from([ids[0], ids[3]]);
        let told = programmed(&desired(&ids), &most, std::slice::from_ref(&full), &snat);
        assert_eq!(said(&told), ["192.0.2.1=Pending", "192.0.2.2=ServicesFull", "2001:db8::1=NoSnatAddress"]);
        let told = programmed(&desired(&ids[..3]), &BTreeSet::from(ids), &[], &snat);
        assert_eq!(said(&told), ["192.0.2.1=ok", "192.0.2.2=ok"]);
    }

    #[test]
    fn a_vip_without_ports_is_not_programmed() {
        let front = FrontState { vips: vec!["192.0.2.1".parse().unwrap()], ..FrontState::default() };
        let mut desired = desired(&[]);
        desired.fronts.insert("demo/web".to_owned().try_into().unwrap(), front);
        let told = programmed(&desired, &BTreeSet::new(), &[], &BTreeSet::new());
        assert_eq!(said(&told), ["192.0.2.1=NoPorts"]);
    }
}
