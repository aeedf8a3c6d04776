//! Readiness, probes, ejections, failed clusters and reachability combined into what each service may use.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use super::{Ejections, ProbeTarget, Verdict, Verdicts};
use crate::desired::{BackendId, Endpoint, Service, ServiceId};

/// Who says what is healthy, besides Kubernetes.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// What probes say.
    pub verdicts: &'a Verdicts,
    /// What users' connections have shown.
    pub ejections: &'a Ejections,
    /// Clusters that have failed as a whole.
    pub failed_clusters: &'a BTreeSet<String>,
}

/// What new flows of one service may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceHealth {
    /// Backends that new flows may go to: the healthy ones, or where there are none what is left to try.
    pub usable: BTreeSet<BackendId>,
    /// Backends that are ready and reachable, and that no source calls unhealthy. Shares of regions follow these.
    pub healthy: BTreeSet<BackendId>,
    /// Those of the ready ones that are ejected.
    pub ejected: BTreeSet<BackendId>,
    /// Clusters with ready endpoints that have failed as a whole.
    pub failed_clusters: BTreeSet<String>,
    /// Endpoints that Kubernetes calls ready and that are not terminating.
    pub ready: usize,
    /// Those of the ready ones whose probes fail.
    pub failing: usize,
    /// Those of the ready ones that no next hop leads to.
    pub unreachable: usize,
    /// Set when less is served than was asked for in a way that a person must look at: nothing is healthy and
    /// all is used nevertheless, or no next hop leads to any ready endpoint. A sentence for people.
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
/// An endpoint that Kubernetes calls ready is healthy until a probe, users' connections or the state of its cluster
/// say otherwise; a probe that passes does not outweigh an ejection. Where *no* ready, reachable endpoint is healthy,
/// those that say so are as likely to be wrong as the endpoints: the service fails open. It uses the endpoints
/// that only their cluster's failure speaks against, else all. Endpoints that a service's policy never lets serve
/// count for nothing.
///
/// A cluster fails by most of its pods, whatever services they are of. A service all of whose endpoints there are
/// probed and answer has not lost it: one bad rollout takes no other service out of a cluster.
#[must_use]
pub fn evaluate<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    sources: &Sources<'_>,
    has_next_hop: impl Fn(IpAddr) -> bool,
) -> Usability {
    let mut usability = Usability::default();
    for service in services {
        let health = evaluate_service(service, sources, &has_next_hop);
        usability.backends.extend(&health.usable);
        usability.services.insert(service.id, health);
    }
    usability
}

fn evaluate_service(
    service: &Service,
    sources: &Sources<'_>,
    has_next_hop: &impl Fn(IpAddr) -> bool,
) -> ServiceHealth {
    let mut health = ServiceHealth::default();
    let mut left = Left::default();
    let locality = &service.policy.locality;
    let serves = |endpoint: &&Endpoint| {
        endpoint.takes_new_flows() && locality.admits(&endpoint.region, &endpoint.zone)
    };
    let failed_clusters = lost_clusters(service, sources);
    for endpoint in service.endpoints.iter().filter(serves) {
        let backend = endpoint.backend;
        health.ready += 1;
        let failure = match sources.verdicts.of_endpoint(endpoint, &service.health_check) {
            Verdict::Unhealthy { reason } => Some(reason),
            Verdict::Healthy | Verdict::Unknown => None,
        };
        health.failing += usize::from(failure.is_some());
        let ejected = sources.ejections.of(&service.id, &backend).is_some();
        if ejected {
            health.ejected.insert(backend);
        }
        let in_failed_cluster = failed_clusters.contains(endpoint.cluster.as_str());
        if in_failed_cluster {
            health.failed_clusters.insert(endpoint.cluster.clone());
        }
        if !has_next_hop(backend.address) {
            health.unreachable += 1;
            continue;
        }
        left.reachable.insert(backend);
        if let Some(reason) = failure {
            left.failing += 1;
            left.example.get_or_insert_with(|| format!(" (for example {backend}: {reason})"));
        } else if !ejected {
            left.answering.insert(backend);
            if !in_failed_cluster {
                health.healthy.insert(backend);
            }
        }
    }
    if health.healthy.is_empty() {
        health.degraded = left.degraded(&health);
        health.usable = if left.answering.is_empty() { left.reachable } else { left.answering };
    } else {
        health.usable.clone_from(&health.healthy);
    }
    health
}

/// The clusters that have failed, as far as nothing of the service's own speaks for them.
fn lost_clusters<'a>(service: &'a Service, sources: &Sources<'_>) -> BTreeSet<&'a str> {
    let answers = |endpoint: &Endpoint| {
        ProbeTarget::of(endpoint, &service.health_check).is_some_and(|target| {
            *sources.verdicts.of(&target) == Verdict::Healthy && !sources.verdicts.latest_failed(&target)
        })
    };
    let concerned = service
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.takes_new_flows() && sources.failed_clusters.contains(&endpoint.cluster));
    concerned.filter(|endpoint| !answers(endpoint)).map(|endpoint| endpoint.cluster.as_str()).collect()
}

/// What there is to use where nothing is healthy.
#[derive(Default)]
struct Left {
    reachable: BTreeSet<BackendId>,
    /// Those of them that their cluster's failure alone speaks against.
    answering: BTreeSet<BackendId>,
    /// How many of them fail their probes.
    failing: usize,
    example: Option<String>,
}

impl Left {
    /// Why nothing is healthy; `None`: nothing is ready.
    fn degraded(&self, health: &ServiceHealth) -> Option<String> {
        let reachable = self.reachable.len();
        let example = self.example.as_deref().unwrap_or_default();
        if health.ready == 0 {
            return None;
        }
        Some(if reachable == 0 {
            format!(
                "none of the {} ready endpoints is used, because no next hop leads to any of them; \
                 `kanmon backends` shows why",
                health.ready
            )
        } else if !self.answering.is_empty() {
            let clusters: Vec<_> = health.failed_clusters.iter().map(String::as_str).collect();
            format!(
                "all clusters with ready endpoints that answer have failed ({}): most of their other endpoints \
                 fail; the {} that do not fail themselves are used until a cluster is back. Check the network \
                 between this gateway and these clusters",
                clusters.join(", "),
                self.answering.len()
            )
        } else if self.failing == reachable {
            format!(
                "the probes of all {reachable} ready endpoints with a next hop fail{example}; all of them are used \
                 until one answers. Check that this gateway can reach the probed port and that the health check \
                 fits the application"
            )
        } else {
            format!(
                "of the {reachable} ready endpoints with a next hop {} fail their probes{example} and {} are \
                 ejected, because users' connections to them failed; all of them are used until one is healthy",
                self.failing,
                reachable - self.failing
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Instant;

    use super::super::Ejection;
    use super::*;
    use crate::desired::fixtures::{backend, endpoint_in, service, service_id};
    use crate::desired::{Area, HealthCheck, HealthCheckKind, Locality, Policy};

    fn endpoint(last: u8, ready: bool) -> Endpoint {
        Endpoint { ready, ..endpoint_in("a", last) }
    }

    /// What is said of the services besides verdicts.
    #[derive(Default)]
    struct Others {
        ejections: Ejections,
        failed_clusters: BTreeSet<String>,
    }

    impl Others {
        fn eject(lasts: &[u8]) -> Self {
            let ejection = Ejection { until: Instant::now(), number: 1 };
            let ejections = lasts.iter().map(|last| (service_id(1), backend(*last), ejection)).collect();
            Self { ejections, ..Self::default() }
        }

        fn fail(mut self, clusters: &[&str]) -> Self {
            self.failed_clusters = clusters.iter().map(|cluster| (*cluster).to_owned()).collect();
            self
        }

        /// The health of the service, all of whose endpoints can be reached.
        fn health(&self, service: &Service, verdicts: &Verdicts) -> ServiceHealth {
            let Self { ejections, failed_clusters } = self;
            let sources = Sources { verdicts, ejections, failed_clusters };
            let usability = super::evaluate([service], &sources, |_| true);
            usability.services.into_values().next().expect("one service")
        }
    }

    /// With probes as the only source.
    fn evaluate<'a>(
        services: impl IntoIterator<Item = &'a Service>,
        verdicts: &Verdicts,
        has_next_hop: impl Fn(IpAddr) -> bool,
    ) -> Usability {
        let Others { ejections, failed_clusters } = &Others::default();
        super::evaluate(services, &Sources { verdicts, ejections, failed_clusters }, has_next_hop)
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

    /// Endpoints 1 and 2 in cluster a, 3 and 4 in cluster b.
    fn two_clusters() -> Service {
        service(
            1,
            [("a", 1), ("a", 2), ("b", 3), ("b", 4)].map(|(cluster, last)| endpoint_in(cluster, last)).into(),
        )
    }

    fn passing(lasts: &[u8]) -> Verdicts {
        let target = |last: &u8| ProbeTarget {
            address: SocketAddr::from(([10, 0, 0, *last], 8080)),
            check: HealthCheck::default(),
        };
        lasts.iter().map(|last| (target(last), Verdict::Healthy)).collect()
    }

    #[test]
    fn a_probe_that_passes_does_not_end_an_ejection() {
        let health = Others::eject(&[1]).health(&two_clusters(), &passing(&[1, 2, 3, 4]));
        assert_eq!(lasts(&health.usable), [2, 3, 4]);
        assert_eq!(lasts(&health.healthy), [2, 3, 4]);
        assert_eq!(lasts(&health.ejected), [1]);
        assert_eq!((health.failing, health.degraded), (0, None));
    }

    #[test]
    fn an_ejection_is_one_services_own() {
        let services =
            [service(1, vec![endpoint(1, true), endpoint(2, true)]), service(2, vec![endpoint(1, true)])];
        let Others { ejections, failed_clusters } = &Others::eject(&[1]);
        let sources = Sources { verdicts: &Verdicts::default(), ejections, failed_clusters };
        let usability = super::evaluate(&services, &sources, |_| true);
        let sets: Vec<_> = usability.services.values().map(|health| lasts(&health.usable)).collect();
        assert_eq!(sets, [vec![2], vec![1]]);
    }

    #[test]
    fn a_service_that_may_use_one_zone_only_fails_open_there() {
        let mut strict = two_clusters();
        let area = Area { region: "region of a".into(), zone: String::new() };
        let locality = Locality::Failover { levels: vec![vec![area]], strict: true };
        strict.policy = Arc::new(Policy { locality, ..Policy::default() });
        let health = Others::default().health(&strict, &failing(&[1, 2]));
        assert_eq!((lasts(&health.usable), health.ready), (vec![1, 2], 2));
        assert!(health.degraded.is_some());
        let health = Others::default().health(&strict, &failing(&[1]));
        assert_eq!(lasts(&health.usable), [2]);
    }

    #[test]
    fn a_service_all_of_whose_endpoints_answer_has_not_lost_their_cluster() {
        let failed = Others::default().fail(&["a"]);
        let health = failed.health(&two_clusters(), &passing(&[1, 2, 3, 4]));
        assert_eq!(lasts(&health.healthy), [1, 2, 3, 4]);
        assert!(health.failed_clusters.is_empty());
        // Nobody can say so of endpoints that are not probed.
        let mut unprobed = two_clusters();
        unprobed.health_check.kind = HealthCheckKind::None;
        assert_eq!(lasts(&failed.health(&unprobed, &Verdicts::default()).healthy), [3, 4]);
    }

    #[test]
    fn endpoints_of_a_failed_cluster_are_not_used_although_some_answer() {
        let health = Others::default().fail(&["a", "elsewhere"]).health(&two_clusters(), &passing(&[1]));
        assert_eq!(lasts(&health.usable), [3, 4]);
        assert_eq!(lasts(&health.healthy), [3, 4]);
        assert_eq!(health.failed_clusters, BTreeSet::from(["a".to_owned()]));
        assert_eq!((health.failing, health.degraded), (0, None));
    }

    #[test]
    fn where_all_clusters_have_failed_the_endpoints_that_answer_are_used() {
        let others = Others::eject(&[4]).fail(&["a", "b"]);
        let health = others.health(&two_clusters(), &failing(&[1]));
        assert_eq!(lasts(&health.usable), [2, 3]);
        assert!(health.healthy.is_empty());
        let text = health.degraded.expect("degraded");
        assert!(text.contains("(a, b)") && text.contains("the 2 that do not fail"), "{text}");
    }

    #[test]
    fn where_some_fail_and_the_rest_is_ejected_all_are_used() {
        let health = Others::eject(&[1, 2]).health(&two_clusters(), &failing(&[3, 4]));
        assert_eq!(lasts(&health.usable), [1, 2, 3, 4]);
        assert!(health.healthy.is_empty());
        let text = health.degraded.expect("degraded");
        assert!(text.contains("2 fail their probes (for example 10.0.0.3:8080/TCP"), "{text}");
        assert!(text.contains("2 are ejected"), "{text}");
    }

    #[test]
    fn where_a_cluster_has_failed_and_the_other_fails_by_itself_the_answering_ones_are_used() {
        let health = Others::default().fail(&["a"]).health(&two_clusters(), &failing(&[1, 3, 4]));
        assert_eq!(lasts(&health.usable), [2]);
        assert!(health.degraded.is_some());
    }
}
