//! What failed connections lead to, and the clusters that rescued ones may go to.

use std::time::Duration;

use lb_common::abi::ReactionWord;

use super::super::{Reaction, Step, cluster_number};
use super::{Agent, LIMITS, backend, service, target};
use crate::desired::{OutlierDetection, Policy};

fn reaction(agent: &Agent) -> ReactionWord {
    let maps = agent.machine.snapshot();
    ReactionWord(maps.descriptors.values().next().expect("a service").reaction)
}

#[test]
fn a_service_opens_with_its_reaction_and_a_change_is_one_write() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1, 2])]);
    agent.settle(&target);
    assert_eq!(reaction(&agent), ReactionWord::new(0, 0, true), "by default a refused SYN is rescued");
    let wanted = Reaction { trip_errors: 3, trip_time: Duration::from_secs(5), retry_on_reset: false };
    target.services.get_mut(&service(0)).unwrap().reaction = wanted;
    let plan = agent.run(&target);
    let word = ReactionWord::new(3, 5_000, false);
    assert!(
        matches!(plan.steps[..], [Step::SetReaction { reaction, .. }] if reaction == word),
        "{:?}",
        plan.steps
    );
    assert_eq!(reaction(&agent), word);
    agent.restart();
    assert_eq!(agent.run(&target).steps, [], "the next agent finds it");
}

#[test]
fn what_is_too_large_for_the_map_is_the_largest_there() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1])]);
    let wanted = Reaction { trip_errors: 70_000, trip_time: Duration::MAX, retry_on_reset: true };
    target.services.get_mut(&service(0)).unwrap().reaction = wanted;
    agent.settle(&target);
    assert_eq!(reaction(&agent), ReactionWord::new(u16::MAX, u32::MAX, true));
}

#[test]
fn a_policy_says_when_backends_trip() {
    let none = Reaction::from(&Policy::default());
    assert_eq!(none, Reaction { trip_errors: 0, trip_time: Duration::ZERO, retry_on_reset: true });
    let outliers = OutlierDetection {
        consecutive_errors: 1,
        base_ejection_time: Duration::from_secs(60),
        ..OutlierDetection::default()
    };
    let policy = Policy { outlier_detection: Some(outliers), retry_on_reset: false, ..Policy::default() };
    let trips = Reaction { trip_errors: 1, trip_time: Duration::from_secs(60), retry_on_reset: false };
    assert_eq!(Reaction::from(&policy), trips);
}

#[test]
fn a_backend_carries_the_number_of_its_cluster() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1, 2])]);
    let id = backend(&service(0), 1);
    target.clusters.insert(id, cluster_number("hangzhou"));
    agent.settle(&target);
    let clusters = |agent: &Agent| {
        let mut numbers: Vec<_> =
            agent.machine.snapshot().backends.values().map(|backend| backend.cluster).collect();
        numbers.sort_unstable();
        numbers
    };
    assert_eq!(clusters(&agent), [0, cluster_number("hangzhou")]);
    target.clusters.insert(id, cluster_number("shanghai"));
    let plan = agent.run(&target);
    assert!(matches!(plan.steps[..], [Step::SetBackendCluster { .. }]), "{:?}", plan.steps);
    assert_eq!(clusters(&agent), [0, cluster_number("shanghai")]);
    agent.restart();
    assert_eq!(agent.run(&target).steps, []);
}

#[test]
fn cluster_numbers_differ_and_are_never_0() {
    let numbers: std::collections::BTreeSet<_> =
        (0..1000).map(|n| cluster_number(&format!("cluster-{n}"))).collect();
    assert_eq!(numbers.len(), 1000);
    assert!(!numbers.contains(&0));
    assert_ne!(cluster_number(""), 0);
}
