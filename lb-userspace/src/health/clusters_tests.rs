//! Failures of whole clusters in virtual time.

use std::collections::HashSet;
use std::sync::Arc;

use super::super::{Ejection, Outcome, Probed, Prober};
use super::*;
use crate::desired::fixtures::{backend, endpoint_in, service, service_id};
use crate::desired::{HealthCheck, HealthCheckKind};

const SECOND: Duration = Duration::from_secs(1);

/// What probes say of a pod.
#[derive(Clone, Copy, PartialEq)]
enum Is {
    Unknown,
    Healthy,
    Doubted,
    Unhealthy,
}

use Is::{Doubted, Healthy, Unhealthy, Unknown};

struct World {
    now: Instant,
    clusters: Clusters,
    services: Vec<(Service, Policy)>,
    verdicts: Verdicts,
    ejections: Ejections,
}

impl World {
    /// One service with a slow start of 90 s, and pods 1, 2, … of the cluster `hangzhou`.
    fn with(pods: &[Is]) -> Self {
        let endpoints = (1..).zip(pods).map(|(last, _)| endpoint_in("hangzhou", last)).collect();
        let mut world = Self {
            now: Instant::now(),
            clusters: Clusters::default(),
            services: vec![(service(1, endpoints), slow_start(90))],
            verdicts: Verdicts::default(),
            ejections: Ejections::default(),
        };
        world.are(pods);
        world
    }

    /// Probes say so of the first service's endpoints, in order; whether that changed something.
    fn are(&mut self, pods: &[Is]) -> bool {
        let (service, _) = &self.services[0];
        let targets = service
            .endpoints
            .iter()
            .map(|endpoint| ProbeTarget::of(endpoint, &service.health_check).expect("it is probed"));
        self.verdicts = targets.zip(pods).map(|(target, pod)| (target, probed(*pod))).collect();
        self.look()
    }

    /// Looks at the endpoints; whether that changed something.
    fn look(&mut self) -> bool {
        let services = self.services.iter().map(|(service, policy)| (service, policy));
        self.clusters.update(self.now, services, &self.verdicts, &self.ejections)
    }

    /// Lets time pass, from timeout to timeout; says when they were.
    fn run(&mut self, duration: Duration) -> Vec<Instant> {
        let end = self.now + duration;
        let mut timeouts = Vec::new();
        while let Some(next) = self.clusters.poll_timeout().filter(|next| *next <= end) {
            assert!(next > self.now, "a timeout that has passed is still waited for");
            self.now = next;
            self.clusters.handle_timeout(next);
            timeouts.push(next);
        }
        self.now = end;
        timeouts
    }

    fn eject(&mut self, lasts: &[u8]) {
        let ejection = Ejection { until: self.now, number: 1 };
        self.ejections = lasts.iter().map(|last| (service_id(1), backend(*last), ejection)).collect();
        self.look();
    }

    fn has_failed(&self) -> bool {
        self.clusters.failed().contains("hangzhou")
    }

    fn share(&self, seconds: u64) -> Option<u32> {
        self.clusters.shares(self.now, &slow_start(seconds)).get("hangzhou").copied()
    }
}

fn slow_start(seconds: u64) -> Policy {
    Policy { slow_start: Duration::from_secs(seconds), ..Policy::default() }
}

fn probed(pod: Is) -> Probed {
    let verdict = match pod {
        Unknown => Verdict::Unknown,
        Healthy | Doubted => Verdict::Healthy,
        Unhealthy => Verdict::Unhealthy { reason: "refused".into() },
    };
    Probed { verdict, latest_failed: matches!(pod, Doubted | Unhealthy) }
}

#[test]
fn a_cluster_fails_when_four_of_five_pods_do_and_two_verdicts_are_out() {
    for (pods, fails) in [
        (vec![Unhealthy, Unhealthy, Doubted, Doubted, Healthy], true),
        (vec![Unhealthy, Unhealthy, Doubted, Doubted, Unknown], true),
        (vec![Unhealthy, Unhealthy, Unhealthy, Healthy, Healthy], false),
        (vec![Unhealthy, Doubted, Doubted, Doubted, Doubted], false),
        (vec![Doubted; 5], false),
        (vec![Unhealthy, Unhealthy], true),
        (vec![Unhealthy, Doubted], false),
        (vec![Unhealthy, Unhealthy, Healthy], false),
        (vec![Unhealthy], false),
        (vec![Unknown; 5], false),
        (vec![], false),
    ] {
        let mut world = World::with(&vec![Healthy; pods.len()]);
        assert!(!world.has_failed());
        world.are(&pods);
        let count = |is: &[Is]| pods.iter().filter(|pod| is.contains(pod)).count();
        assert_eq!(
            world.has_failed(),
            fails,
            "{} fail, {} of them surely",
            count(&[Unhealthy, Doubted]),
            count(&[Unhealthy])
        );
    }
}

#[test]
fn a_failure_and_a_return_are_told_once() {
    let mut world = World::with(&[Healthy; 5]);
    assert!(!world.are(&[Unhealthy, Doubted, Doubted, Doubted, Healthy]));
    assert!(world.are(&[Unhealthy, Unhealthy, Doubted, Doubted, Healthy]));
    let cluster = "hangzhou".to_owned();
    let failed = Change::Failed { cluster: cluster.clone(), failing: 4, pods: 5 };
    assert_eq!(world.clusters.poll_change(), Some(failed));
    assert!(!world.are(&[Unhealthy; 5]));
    assert_eq!(world.clusters.poll_change(), None);
    assert!(world.are(&[Healthy; 5]));
    assert_eq!(world.clusters.poll_change(), Some(Change::Returned { cluster }));
    assert!(!world.are(&[Healthy; 5]));
    assert_eq!(world.clusters.poll_change(), None);
}

#[test]
fn pods_that_take_no_new_flows_are_not_counted() {
    let mut world = World::with(&[Healthy; 4]);
    world.services[0].0.endpoints[3].ready = false;
    world.are(&[Unhealthy, Unhealthy, Doubted]);
    assert!(world.has_failed());
}

#[test]
fn a_pod_with_two_ports_is_no_cluster() {
    let mut world = World::with(&[Healthy; 2]);
    let endpoints = &mut world.services[0].0.endpoints;
    endpoints[1].backend.address = endpoints[0].backend.address;
    endpoints[1].backend.port = 9090;
    endpoints[1].probe_port = Some(9090);
    world.are(&[Unhealthy; 2]);
    assert!(!world.has_failed());
}

#[test]
fn a_pod_that_answers_on_one_port_has_not_failed() {
    let mut world = World::with(&[Healthy; 4]);
    let endpoints = &mut world.services[0].0.endpoints;
    for (from, to) in [(0, 2), (1, 3)] {
        endpoints[to].backend.address = endpoints[from].backend.address;
        endpoints[to].backend.port = 9090;
        endpoints[to].probe_port = Some(9090);
    }
    world.are(&[Unhealthy, Unhealthy, Healthy, Healthy]);
    assert!(!world.has_failed());
    world.are(&[Unhealthy, Unhealthy, Unhealthy, Unhealthy]);
    assert!(world.has_failed());
}

#[test]
fn pods_that_fail_one_after_another_are_no_failure_of_the_cluster() {
    let mut pods = [Healthy; 10];
    let mut world = World::with(&pods);
    for pod in 0..10 {
        pods[pod] = Unhealthy;
        world.are(&pods);
        assert!(!world.has_failed(), "after {} pods", pod + 1);
        world.run(12 * SECOND);
    }
}

#[test]
fn what_failed_before_does_not_hide_a_failure_of_the_rest() {
    let mut world = World::with(&[Healthy; 10]);
    world.are(&[[Unhealthy; 5], [Healthy; 5]].concat());
    world.run(60 * SECOND);
    world.are(&[[Unhealthy; 5], [Unhealthy, Unhealthy, Doubted, Healthy, Healthy]].concat());
    assert!(!world.has_failed());
    world.are(&[[Unhealthy; 5], [Unhealthy, Unhealthy, Doubted, Doubted, Healthy]].concat());
    assert!(world.has_failed());
}

#[test]
fn a_pod_that_recovers_and_fails_again_has_just_failed() {
    let mut world = World::with(&[Healthy; 2]);
    world.are(&[Unhealthy, Healthy]);
    world.run(60 * SECOND);
    world.are(&[Healthy, Healthy]);
    world.are(&[Unhealthy, Unhealthy]);
    assert!(world.has_failed());
}

#[test]
fn rare_probes_have_a_longer_window() {
    let mut world = World::with(&[Healthy; 2]);
    world.services[0].0.health_check.interval = 30 * SECOND;
    world.are(&[Unhealthy, Healthy]);
    world.run(61 * SECOND);
    world.are(&[Unhealthy, Unhealthy]);
    assert!(world.has_failed());
}

#[test]
fn a_failed_cluster_returns_when_half_of_its_pods_answer() {
    let mut world = World::with(&[Unhealthy; 5]);
    assert!(world.has_failed());
    world.are(&[Healthy, Healthy, Doubted, Doubted, Unhealthy]);
    assert!(world.has_failed());
    world.are(&[Healthy, Healthy, Healthy, Doubted, Unhealthy]);
    assert!(!world.has_failed());
}

#[test]
fn the_first_failures_of_a_return_do_not_end_it() {
    // Failed by latest probes, most of them: that these answer again must show in probes, not in verdicts.
    let mut world = World::with(&[Healthy; 5]);
    let early = [Unhealthy, Unhealthy, Doubted, Doubted, Doubted];
    world.are(&early);
    assert!(world.has_failed());
    world.run(SECOND);
    world.are(&early);
    assert!(world.has_failed());
}

#[test]
fn a_return_is_gradual_over_each_services_slow_start() {
    let mut world = World::with(&[Unhealthy; 2]);
    world.services.push((service(2, Vec::new()), slow_start(9)));
    world.run(60 * SECOND);
    world.are(&[Healthy; 2]);
    let begin = world.now;
    let mut shares = vec![(0, world.share(90), world.share(9))];
    while let Some(next) = world.clusters.poll_timeout() {
        world.run(next - world.now);
        shares.push(((next - begin).as_secs(), world.share(90), world.share(9)));
    }
    let tens = shares.iter().filter(|(at, ..)| at % 10 == 0);
    let slow: Vec<_> = tens.map(|(at, slow, _)| (*at, *slow)).collect();
    let quick: Vec<_> = shares.iter().take(10).map(|(at, _, quick)| (*at, *quick)).collect();
    let steps = [10, 20, 30, 40, 50, 60, 70, 80, 90].map(Some).into_iter().chain([None]);
    assert_eq!(quick, (0..).zip(steps.clone()).collect::<Vec<_>>());
    assert_eq!(slow, (0..).step_by(10).zip(steps).collect::<Vec<_>>());
    assert_eq!(shares.len(), 10 + 9, "one rebuild for each step");
    assert_eq!(world.share(0), None, "who wants no slow start has none");
}

#[test]
fn an_odd_slow_start_wakes_once_for_each_step() {
    let mut world = World::with(&[Unhealthy; 2]);
    world.services[0].1.slow_start = Duration::from_nanos(1_000_000_007);
    world.are(&[Healthy; 2]);
    let mut before = world.clusters.shares(world.now, &world.services[0].1);
    let mut wakes = 0;
    while let Some(next) = world.clusters.poll_timeout() {
        world.now = next;
        world.clusters.handle_timeout(next);
        let shares = world.clusters.shares(world.now, &world.services[0].1);
        assert_ne!(shares, before);
        before = shares;
        wakes += 1;
    }
    assert_eq!((wakes, before.len()), (9, 0));
}

#[test]
fn where_a_region_is_held_back_first_the_slow_start_begins_after_that() {
    let mut world = World::with(&[Unhealthy; 2]);
    let locality = Locality::Failover { levels: Vec::new(), strict: false };
    world.services[0].1 = Policy { locality, failback_delay: 60 * SECOND, ..slow_start(9) };
    world.are(&[Healthy; 2]);
    let share =
        |world: &World| world.clusters.shares(world.now, &world.services[0].1).get("hangzhou").copied();
    world.run(60 * SECOND);
    assert_eq!(share(&world), Some(10));
    assert_eq!(world.run(8 * SECOND).len(), 8);
    assert_eq!(share(&world), Some(90));
    world.run(SECOND);
    assert_eq!((share(&world), world.clusters.poll_timeout()), (None, None));
}

#[test]
fn without_a_slow_start_a_cluster_is_back_at_once() {
    let mut world = World::with(&[Unhealthy; 2]);
    world.services[0].1 = slow_start(0);
    world.are(&[Healthy; 2]);
    assert!(!world.has_failed());
    assert_eq!((world.share(0), world.clusters.poll_timeout()), (None, None));
}

#[test]
fn a_failure_during_the_slow_start_begins_it_anew() {
    let mut world = World::with(&[Unhealthy; 2]);
    world.are(&[Healthy; 2]);
    world.run(45 * SECOND);
    assert_eq!(world.share(90), Some(50));
    world.are(&[Unhealthy; 2]);
    assert!(world.has_failed());
    assert_eq!((world.share(90), world.clusters.poll_timeout()), (None, None));
    world.are(&[Healthy; 2]);
    assert_eq!(world.share(90), Some(10));
}

#[test]
fn a_failed_cluster_stays_so_until_its_endpoints_have_answered_a_probe() {
    let mut world = World::with(&[Unhealthy; 2]);
    // Kubernetes notices too; then its nodes are back.
    for endpoint in &mut world.services[0].0.endpoints {
        endpoint.ready = false;
    }
    world.are(&[]);
    assert!(world.has_failed());
    for endpoint in &mut world.services[0].0.endpoints {
        endpoint.ready = true;
    }
    world.are(&[Unknown; 2]);
    assert!(world.has_failed());
    world.are(&[Healthy, Unknown]);
    assert!(!world.has_failed());
    assert_eq!(world.share(90), Some(10));
}

#[test]
fn a_cluster_without_endpoints_is_forgotten() {
    let mut world = World::with(&[Unhealthy; 2]);
    world.services[0].0.endpoints.clear();
    assert!(world.look());
    assert!(!world.has_failed());
    assert_eq!(world.share(90), None);
}

#[test]
fn pods_that_users_cannot_reach_fail_without_probes() {
    let mut world = World::with(&[Unknown; 5]);
    world.services[0].0.health_check.kind = HealthCheckKind::None;
    world.eject(&[1, 2, 3]);
    assert!(!world.has_failed(), "of the others nobody has seen that they fail");
    world.eject(&[1, 2, 3, 4]);
    assert!(world.has_failed());
    world.eject(&[1, 2, 3]);
    assert!(world.has_failed());
    world.eject(&[1, 2]);
    assert!(!world.has_failed());
}

#[test]
fn ejected_pods_fail_although_they_answer_probes() {
    let mut world = World::with(&[Healthy; 4]);
    // As another service sees them, which ejects nobody.
    let endpoints = world.services[0].0.endpoints.clone();
    world.services.push((service(2, endpoints), Policy::default()));
    world.eject(&[1, 2, 3, 4]);
    assert!(world.has_failed());
}

#[test]
fn other_clusters_are_judged_by_themselves() {
    let mut world = World::with(&[Healthy; 6]);
    for endpoint in &mut world.services[0].0.endpoints[3..] {
        endpoint.cluster = "shanghai".to_owned();
    }
    world.are(&[Unhealthy, Unhealthy, Unhealthy, Healthy, Healthy, Healthy]);
    assert_eq!(world.clusters.failed(), BTreeSet::from(["hangzhou".to_owned()]));
}

/// Probes every 250 ms, twice, of a cluster that goes silent: with the machine that decides on probes.
#[test]
fn a_silent_cluster_is_failed_within_a_second_and_before_the_last_of_its_pods() {
    for seed in 0..20 {
        let check = HealthCheck {
            interval: Duration::from_millis(250),
            timeout: Duration::from_millis(200),
            unhealthy_threshold: 2,
            ..HealthCheck::default()
        };
        let endpoints: Vec<_> = (1..=30).map(|last| endpoint_in("hangzhou", last)).collect();
        let mut service = service(1, endpoints);
        service.health_check = check.clone();
        let target = |endpoint| ProbeTarget::of(endpoint, &check).expect("it is probed");
        let targets: HashSet<_> = service.endpoints.iter().map(target).collect();

        let begin = Instant::now();
        // Pods answer for ten seconds and then no more.
        let fault = begin + 10 * SECOND;
        let (mut prober, mut clusters) = (Prober::new(256, seed), Clusters::default());
        let mut ends = BTreeMap::new();
        let (mut now, mut failed_at, mut last_verdict_at) = (begin, None, None);
        prober.set_targets(now, &targets);
        while last_verdict_at.is_none() {
            while let Some(probe) = prober.poll_probe(now) {
                let silent = now >= fault;
                let after = if silent { check.timeout } else { Duration::from_millis(1) };
                let failure = Outcome::Failure { reason: Arc::from("no answer") };
                ends.insert((now + after, probe.id), if silent { failure } else { Outcome::Success });
            }
            let next = ends.first_key_value().map(|((time, _), _)| *time);
            now = [next, prober.poll_timeout()].into_iter().flatten().min().expect("it goes on");
            while let Some(entry) = ends.first_entry().filter(|entry| entry.key().0 <= now) {
                let ((_, id), outcome) = entry.remove_entry();
                prober.handle_result(now, id, outcome);
            }
            if prober.take_news().is_none() {
                continue;
            }
            let verdicts = prober.verdicts();
            clusters.update(now, [(&service, &Policy::default())], &verdicts, &Ejections::default());
            if clusters.failed().contains("hangzhou") {
                failed_at.get_or_insert(now);
            }
            let is_out = |target| matches!(verdicts.of(target), Verdict::Unhealthy { .. });
            last_verdict_at = targets.iter().all(is_out).then_some(now);
        }
        let failed_at = failed_at.expect("it has failed");
        assert!(failed_at <= fault + SECOND, "after {:?}", failed_at - fault);
        assert!(failed_at < last_verdict_at.expect("all have failed"));
    }
}
