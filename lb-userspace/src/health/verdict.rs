//! Readiness, probes and reachability combined into what each service may use.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use super::{ProbeTarget, Verdict, Verdicts};
use crate::desired::{BackendId, Service, ServiceId};

/// What new flows of one service may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceHealth {
    /// Backends that new flows may go to.
    pub usable: BTreeSet<BackendId>,
    /// Endpoints that Kubernetes calls ready and that are not terminating.
    pub ready: usize,
    /// Those of the ready ones whose probes fail.
    pub failing: usize,
    /// Those of the ready ones that no next hop leads to.
    pub unreachable: usize,
    /// Set when less is served than was asked for in a way that a person must look at: all probes fail and
    /// are ignored, or no next hop leads to any ready endpoint. A sentence for people.
    pub degraded: Option<String>,
}

/// What all services may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usability {
    /// By service.
    pub services: BTreeMap<ServiceId, ServiceHealth>,
    /// Backends that at least one service may use. A backend that two services check differently, or that one
    /// of them uses only because it fails open, is in here; [`ServiceHealth::usable`] tells them apart.
    pub backends: BTreeSet<BackendId>,
}

/// Every distinct probe that the services need. Endpoints that get no new flows need none.
#[must_use]
pub fn probe_targets<'a>(services: impl IntoIterator<Item = &'a Service>) -> HashSet<ProbeTarget> {
    let mut targets = HashSet::new();
    for service in services {
        let ready = service.endpoints.iter().filter(|endpoint| endpoint.takes_new_flows());
        targets.extend(ready.filter_map(|endpoint| ProbeTarget::of(endpoint, &service.health_check)));
    }
    targets
}

/// Decides what each service may use. `has_next_hop` tells whether packets can be sent to an address.
///
/// An endpoint that Kubernetes calls ready is usable until a probe says otherwise. Where the probes of *all*
/// ready, reachable endpoints fail, the probes are as likely to be wrong as the endpoints: the service fails
/// open and uses all of them.
#[must_use]
pub fn evaluate<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    verdicts: &Verdicts,
    has_next_hop: impl Fn(IpAddr) -> bool,
) -> Usability {
    let mut usability = Usability::default();
    for service in services {
        let health = evaluate_service(service, verdicts, &has_next_hop);
        usability.backends.extend(&health.usable);
        usability.services.insert(service.id, health);
    }
    usability
}

fn evaluate_service(
    service: &Service,
    verdicts: &Verdicts,
    has_next_hop: &impl Fn(IpAddr) -> bool,
) -> ServiceHealth {
    let mut health = ServiceHealth::default();
    let mut reachable = BTreeSet::new();
    let mut example = None;
    for endpoint in service.endpoints.iter().filter(|endpoint| endpoint.takes_new_flows()) {
        health.ready += 1;
        let verdict = verdicts.of_endpoint(endpoint, &service.health_check);
        if let Verdict::Unhealthy { reason } = verdict {
            health.failing += 1;
            example = example.or(Some((endpoint.backend, reason)));
        }
        if !has_next_hop(endpoint.backend.address) {
            health.unreachable += 1;
            continue;
        }
        reachable.insert(endpoint.backend);
        if !matches!(verdict, Verdict::Unhealthy { .. }) {
            health.usable.insert(endpoint.backend);
        }
    }
    if health.ready > 0 && reachable.is_empty() {
        health.degraded = Some(format!(
            "none of the {} ready endpoints is used, because no next hop leads to any of them; \
             `kanmon backends` shows why",
            health.ready
        ));
    } else if health.usable.is_empty() && !reachable.is_empty() {
        let example = example
            .map(|(backend, reason)| format!(" (for example {backend}: {reason})"))
            .unwrap_or_default();
        health.degraded = Some(format!(
            "the probes of all {} ready endpoints with a next hop fail{example}; all of them are used until \
             one answers. Check that this gateway can reach the probed port and that the health check fits \
             the application",
            reachable.len()
        ));
        health.usable = reachable;
    }
    health
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::desired::{Endpoint, HealthCheck, HealthCheckKind, Protocol};

    fn endpoint(last: u8, ready: bool) -> Endpoint {
        Endpoint {
            backend: BackendId {
                protocol: Protocol::Tcp,
                address: IpAddr::from([10, 0, 0, last]),
                port: 8080,
            },
            cluster: "a".into(),
            region: String::new(),
            zone: String::new(),
            pod: String::new(),
            ready,
            serving: true,
            terminating: false,
            probe_port: Some(8080),
        }
    }

    fn service(vip: u8, endpoints: Vec<Endpoint>) -> Service {
        Service {
            id: ServiceId { vip: IpAddr::from([192, 0, 2, vip]), port: 80, protocol: Protocol::Tcp },
            namespace: "shop".into(),
            name: "httpbin".into(),
            front: String::new(),
            not_fronts: Vec::new(),
            port_name: String::new(),
            endpoints,
            health_check: HealthCheck::default(),
        }
    }

    fn failing(lasts: &[u8]) -> Verdicts {
        let verdict = |last: &u8| {
            let address = SocketAddr::from(([10, 0, 0, *last], 8080));
            let target = ProbeTarget { address, check: HealthCheck::default() };
            (target, Verdict::Unhealthy { reason: "connection refused".into() })
        };
        lasts.iter().map(verdict).collect()
    }

    fn lasts(backends: &BTreeSet<BackendId>) -> Vec<u8> {
        backends
            .iter()
            .map(|backend| match backend.address {
                IpAddr::V4(address) => address.octets()[3],
                IpAddr::V6(_) => unreachable!("the tests use IPv4"),
            })
            .collect()
    }

    fn only(usability: &Usability) -> &ServiceHealth {
        usability.services.values().next().expect("one service")
    }

    #[test]
    fn ready_endpoints_are_usable_before_the_first_probe() {
        let services = [service(1, vec![endpoint(1, true), endpoint(2, false)])];
        let usability = evaluate(&services, &Verdicts::default(), |_| true);
        assert_eq!(lasts(&only(&usability).usable), [1]);
        assert_eq!(only(&usability).ready, 1);
        assert_eq!(only(&usability).degraded, None);
    }

    #[test]
    fn an_endpoint_that_fails_its_probes_is_not_usable() {
        let services = [service(1, vec![endpoint(1, true), endpoint(2, true)])];
        let usability = evaluate(&services, &failing(&[1]), |_| true);
        assert_eq!(lasts(&only(&usability).usable), [2]);
        assert_eq!(only(&usability).failing, 1);
        assert_eq!(only(&usability).degraded, None);
    }

    #[test]
    fn terminating_endpoints_are_neither_usable_nor_probed() {
        let mut leaving = endpoint(1, true);
        leaving.terminating = true;
        let services = [service(1, vec![leaving, endpoint(2, true)])];
        assert_eq!(lasts(&evaluate(&services, &Verdicts::default(), |_| true).backends), [2]);
        let targets = probe_targets(&services);
        assert_eq!(targets.len(), 1);
        assert!(targets.iter().all(|target| target.address.to_string() == "10.0.0.2:8080"));
    }

    #[test]
    fn a_service_whose_probes_all_fail_uses_all_ready_endpoints_and_says_so() {
        let services = [service(1, vec![endpoint(1, true), endpoint(2, true), endpoint(3, false)])];
        let usability = evaluate(&services, &failing(&[1, 2]), |_| true);
        assert_eq!(lasts(&only(&usability).usable), [1, 2]);
        let text = only(&usability).degraded.as_deref().expect("degraded");
        assert!(text.contains("all 2 ready endpoints"), "{text}");
        assert!(text.contains("10.0.0.1:8080/TCP: connection refused"), "{text}");
    }

    #[test]
    fn a_service_without_ready_endpoints_does_not_fail_open() {
        let services = [service(1, vec![endpoint(1, false)])];
        let usability = evaluate(&services, &failing(&[1]), |_| true);
        assert!(only(&usability).usable.is_empty());
        assert_eq!(only(&usability).degraded, None);
    }

    #[test]
    fn without_a_health_check_ready_means_usable() {
        let mut unprobed = service(1, vec![endpoint(1, true)]);
        unprobed.health_check.kind = HealthCheckKind::None;
        let services = [unprobed];
        assert_eq!(lasts(&evaluate(&services, &failing(&[1]), |_| true).backends), [1]);
        assert!(probe_targets(&services).is_empty());
    }

    #[test]
    fn failing_open_uses_only_what_can_be_reached() {
        let services = [service(1, vec![endpoint(1, true), endpoint(2, true)])];
        let reach_second = |address| address == IpAddr::from([10, 0, 0, 2]);
        let usability = evaluate(&services, &failing(&[2]), reach_second);
        assert_eq!(lasts(&only(&usability).usable), [2]);
        assert_eq!(only(&usability).unreachable, 1);
        assert!(only(&usability).degraded.is_some());
    }

    #[test]
    fn no_next_hop_at_all_is_said() {
        let services = [service(1, vec![endpoint(1, true)])];
        let usability = evaluate(&services, &Verdicts::default(), |_| false);
        assert!(only(&usability).usable.is_empty());
        let text = only(&usability).degraded.as_deref().expect("degraded");
        assert!(text.contains("no next hop"), "{text}");
    }

    #[test]
    fn one_service_failing_open_does_not_make_the_backend_usable_for_another() {
        let services =
            [service(1, vec![endpoint(1, true)]), service(2, vec![endpoint(1, true), endpoint(2, true)])];
        let usability = evaluate(&services, &failing(&[1]), |_| true);
        let sets: Vec<_> = usability.services.values().map(|health| lasts(&health.usable)).collect();
        assert_eq!(sets, [vec![1], vec![2]]);
        assert_eq!(lasts(&usability.backends), [1, 2]);
    }

    #[test]
    fn services_that_share_a_backend_and_a_check_share_a_probe() {
        let services = [service(1, vec![endpoint(1, true)]), service(2, vec![endpoint(1, true)])];
        assert_eq!(probe_targets(&services).len(), 1);
        let mut differently = service(3, vec![endpoint(1, true)]);
        differently.health_check.timeout /= 2;
        assert_eq!(probe_targets(services.iter().chain([&differently])).len(), 2);
    }
}
