//! Endpoints that come, go and fail: who gets new flows, and what becomes of the old ones.

use std::{collections::BTreeMap, time::Duration};

use tests::{
    client::{Hold, UdpLoad},
    scenario::Scenario,
    topology::{Bed, Condition},
};

use super::{ANSWER, SOON, connect, gateway, request};

#[test]
fn a_pod_that_is_not_ready_or_terminating_gets_no_new_flows_and_keeps_those_it_has() {
    let (bed, mut agent) = gateway(2);
    let held = bed.client().hold(Hold { timeout: ANSWER, ..Hold::new(bed.vip_http(), 80) }).unwrap();
    let held6 = bed.client().hold(Hold { timeout: ANSWER, ..Hold::new(bed.vip_http6(), 80) }).unwrap();
    assert_eq!((held.now().by_pod.len(), held6.now().by_pod.len()), (4, 4));
    let pods = bed.pods();
    for (pod, condition) in [(&pods[0], Condition::NotReady), (&pods[3], Condition::Terminating)] {
        bed.set_condition(&pod.name, condition).unwrap();
        agent.wait_until_unused(pod, SOON).unwrap();
    }
    let others = [&pods[1].name, &pods[2].name];
    for (target, first_port) in [(bed.vip_http(), 12_000), (bed.vip_http6(), 12_000)] {
        let served: Vec<String> = connect(&bed, target, 300, first_port).by_pod.into_keys().collect();
        assert!(served.iter().eq(others), "{served:?}");
    }
    let rows = agent.backends().unwrap();
    assert!(rows.iter().any(|row| row.is(&pods[0]) && !row.usable), "it is still listed: it has flows");

    // Ready again, it gets its share again.
    bed.set_condition(&pods[0].name, Condition::Ready).unwrap();
    agent.wait_for_pods(&pods[..3], SOON).unwrap();
    assert_eq!(connect(&bed, bed.vip_http(), 300, 12_000).by_pod.len(), 3);
    for held in [held, held6] {
        let report = held.stop();
        assert_eq!(report.broken, Vec::<String>::new());
        assert_eq!(report.by_pod.values().sum::<u64>(), 80);
    }
}

/// Which pod answers each of the same 200 UDP flows.
pub(super) fn who_answers(bed: &Bed) -> Vec<String> {
    let target = bed.vip_udp();
    let sources = Some(bed.client().exact_sources(target, 200, 13_000));
    let report = bed.client().udp(UdpLoad { sources, timeout: ANSWER, ..UdpLoad::new(target, 200) }).unwrap();
    assert_eq!(report.tally().failed, 0, "{:?}", report.tally());
    report.pods().into_iter().map(|pod| pod.unwrap().to_owned()).collect()
}

#[test]
fn the_udp_flows_of_a_pod_that_is_removed_move_at_once_and_all_others_stay_where_they_are() {
    let (bed, mut agent) = gateway(2);
    let before = who_answers(&bed);
    let pod = bed.pods()[2].clone();
    let concerned = before.iter().filter(|name| **name == pod.name).count();
    assert!(concerned > 20, "{concerned} of 200");
    bed.set_condition(&pod.name, Condition::Gone).unwrap();
    agent.wait_until_unused(&pod, SOON).unwrap();
    for (before, after) in before.iter().zip(who_answers(&bed)) {
        assert_ne!(after, pod.name);
        assert!(*before == pod.name || *before == after, "a flow of {before} moved to {after}");
    }
    request(&bed, bed.vip_udp6(), 100, 13_000);
}

/// Writes both clusters' services with other annotations about probes.
fn probe_by(bed: &Bed, annotations: &str) {
    for cluster in bed.cluster_names() {
        let path = format!("{cluster}/service.yaml");
        let text = bed.manifests().read(&path).unwrap();
        let kept = text.lines().filter(|line| {
            !["health-check:", "health-check-path", "health-check-expected"]
                .iter()
                .any(|key| line.contains(key))
        });
        let changed: Vec<&str> = kept
            .flat_map(|line| {
                let here = line.starts_with("  annotations:").then_some(annotations);
                [Some(line), here].into_iter().flatten()
            })
            .collect();
        bed.manifests().write(&path, &(changed.join("\n") + "\n")).unwrap();
    }
}

#[test]
fn http_probes_judge_by_path_and_status_and_when_all_fail_every_pod_is_used() {
    let (bed, mut agent) = gateway(2);
    let healths = |agent: &tests::agent::Agent| -> anyhow::Result<BTreeMap<Option<bool>, usize>> {
        let mut count = BTreeMap::new();
        for row in agent.backends()?.iter().filter(|row| row.protocol == "TCP") {
            *count.entry(row.healthy).or_default() += 1;
        }
        Ok(count)
    };
    // What a server does not have is no sign of health, unless it is what is asked for.
    probe_by(&bed, "    kanmon.dev/health-check: http\n    kanmon.dev/health-check-path: /nothing");
    let degraded = |agent: &tests::agent::Agent| {
        let rows = agent.services()?;
        Ok(healths(agent)? == [(Some(false), 8)].into() && rows.iter().any(|row| row["degraded"] == true))
    };
    agent.wait_until("degraded", SOON, degraded).unwrap();
    let problems = agent.problems().unwrap();
    let told = problems.iter().find(|problem| problem.reason == "Degraded").unwrap();
    assert!(told.message.contains("404"), "{told:?}");
    let tally = connect(&bed, bed.vip_http(), 300, 10_000);
    assert_eq!(tally.by_pod.len(), 4, "fail open: {tally:?}");
    Scenario::of("http_probes_judge_by_path_and_status_and_when_all_fail_every_pod_is_used", &tally).report();

    let healthy = |agent: &tests::agent::Agent| {
        let told = agent.problems()?.iter().any(|problem| problem.reason == "Degraded");
        Ok(!told && healths(agent)? == [(Some(true), 8)].into())
    };
    for annotations in [
        "    kanmon.dev/health-check: http\n    kanmon.dev/health-check-path: /nothing\n    kanmon.dev/health-check-expected-status: \"404\"",
        "    kanmon.dev/health-check: http\n    kanmon.dev/health-check-path: /healthz\n    kanmon.dev/health-check-expected-status: 200-299",
    ] {
        probe_by(&bed, annotations);
        agent.wait_until("finding every pod healthy", SOON, healthy).unwrap();
    }
    // With one pod really dead the probes are believed again.
    let dead = bed.pods()[1].clone();
    bed.kill_pod_server(&dead.name).unwrap();
    agent.wait_until_unused(&dead, SOON).unwrap();
    assert_eq!(connect(&bed, bed.vip_http(), 300, 12_000).by_pod.len(), 3);
}

#[test]
fn a_service_whose_servers_are_all_dead_is_served_again_when_they_are_back() {
    let (bed, mut agent) = gateway(1);
    for pod in bed.pods() {
        bed.kill_pod_server(&pod.name).unwrap();
    }
    agent
        .wait_until("degraded", SOON, |agent| {
            Ok(agent.problems()?.iter().any(|problem| problem.reason == "Degraded"))
        })
        .unwrap();
    for pod in bed.pods() {
        bed.start_pod_server(&pod.name).unwrap();
    }
    // They are used already, whatever the probes still believe.
    connect(&bed, bed.vip_http(), 100, 10_000);
    agent.wait_for_pods(&bed.pods(), SOON).unwrap();
    let held = Hold { every: Duration::from_millis(50), timeout: ANSWER, ..Hold::new(bed.vip_http(), 20) };
    assert_eq!(bed.client().hold(held).unwrap().stop().broken, Vec::<String>::new());
}
