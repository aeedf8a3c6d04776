//! `sessionAffinity: ClientIP`: a client stays with its pod, whatever becomes of the ring.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use tests::{
    client::{Sources, TcpLoad, UdpLoad},
    scenario::eventually,
    topology::{Bed, Condition, ECHO_PORT},
};

use super::{ANSWER, SOON, fronts, gateway};

/// Connections of each client at a time.
const EACH: usize = 6;

/// Writes the service anew in all clusters, with these lines in its spec.
fn say(bed: &Bed, good: &str, lines: &str) {
    for cluster in bed.cluster_names() {
        let text = good.replace("  ports:", &format!("{lines}  ports:"));
        bed.manifests().write(&format!("{cluster}/service.yaml"), &text).unwrap();
    }
}

/// The pods that answer each of the client's addresses, over several connections.
fn who_answers(bed: &Bed, target: SocketAddr) -> BTreeMap<IpAddr, BTreeSet<String>> {
    let Sources::Addresses(addresses) = bed.client().sources(target) else { panic!("addresses") };
    let count = addresses.len() * EACH;
    let sources = Some(Sources::Addresses(addresses.clone()));
    let report = if target.port() == ECHO_PORT {
        bed.client().udp(UdpLoad { sources, timeout: ANSWER, ..UdpLoad::new(target, count) })
    } else {
        bed.client().tcp(TcpLoad { sources, timeout: ANSWER, ..TcpLoad::new(target, count) })
    };
    let report = report.unwrap();
    assert_eq!(report.tally().failed, 0, "{:?}", report.tally());
    let mut pods: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
    for (n, pod) in report.pods().into_iter().enumerate() {
        pods.entry(addresses[n % addresses.len()]).or_default().insert(pod.unwrap().to_owned());
    }
    pods
}

fn each_has_one(pods: &BTreeMap<IpAddr, BTreeSet<String>>) -> bool {
    pods.values().all(|pods| pods.len() == 1)
}

#[test]
fn a_client_stays_with_its_pod_over_both_families_and_protocols_and_over_changes_of_the_ring() {
    let (bed, mut agent) = gateway(3);
    let good = bed.manifests().read("hangzhou/service.yaml").unwrap();
    assert!(!each_has_one(&who_answers(&bed, bed.vip_http())), "without affinity they are spread");
    say(&bed, &good, "  sessionAffinity: ClientIP\n");
    let rows = |agent: &tests::agent::Agent| agent.services().unwrap();
    eventually("showing the affinity", SOON, || {
        rows(&agent).iter().all(|row| row["affinity_seconds"] == 10_800)
    });
    for target in fronts(&bed) {
        eventually("each client staying with its pod", SOON, || each_has_one(&who_answers(&bed, target)));
    }
    assert_eq!(agent.problems().unwrap().len(), 0);

    // Half of the pods go: their clients move, and all others stay.
    let before = fronts(&bed).map(|target| who_answers(&bed, target));
    let pods = bed.pods();
    let gone: Vec<_> = pods.iter().step_by(2).cloned().collect();
    for pod in &gone {
        bed.set_condition(&pod.name, Condition::NotReady).unwrap();
    }
    for pod in &gone {
        agent.wait_until_unused(pod, SOON).unwrap();
    }
    let names: BTreeSet<&String> = gone.iter().map(|pod| &pod.name).collect();
    let during = fronts(&bed).map(|target| who_answers(&bed, target));
    let mut moved = 0;
    for (before, during) in before.iter().zip(&during) {
        assert!(each_has_one(during), "{during:?}");
        for (client, pod) in before {
            let had_to = pod.iter().any(|pod| names.contains(pod));
            assert_eq!(had_to, during[client] != *pod, "{client}: {pod:?}, {:?}", during[client]);
            moved += usize::from(had_to);
        }
    }
    assert!(moved > 0, "some were with those pods: {before:?}");

    // They come back, and by the ring alone so would their clients.
    for pod in &gone {
        bed.set_condition(&pod.name, Condition::Ready).unwrap();
    }
    agent.wait_for_pods(&pods, SOON).unwrap();
    let kept = agent.counters().unwrap()["flow_affine"];
    let after = fronts(&bed).map(|target| who_answers(&bed, target));
    assert_eq!(after, during);
    assert!(agent.counters().unwrap()["flow_affine"] > kept);
}

#[test]
fn a_stay_ends_after_its_timeout() {
    let (bed, agent) = gateway(2);
    let good = bed.manifests().read("hangzhou/service.yaml").unwrap();
    let lines = "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}\n";
    say(&bed, &good, lines);
    let kept = || agent.counters().unwrap()["flow_affine"];
    let target = bed.vip_http();
    eventually("each client staying with its pod", SOON, || each_has_one(&who_answers(&bed, target)));
    eventually("a client that was away too long being forgotten", SOON, || {
        std::thread::sleep(std::time::Duration::from_secs(2));
        let before = kept();
        let Sources::Addresses(addresses) = bed.client().sources(target) else { panic!("addresses") };
        let sources = Some(Sources::Addresses(addresses.clone()));
        let load = TcpLoad { sources, timeout: ANSWER, ..TcpLoad::new(target, addresses.len()) };
        assert_eq!(bed.client().tcp(load).unwrap().tally().failed, 0);
        kept() == before
    });
}
