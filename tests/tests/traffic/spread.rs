//! Who is served by whom.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use tests::{
    client::{SteadyLoad, Tally, TcpLoad, row},
    netns::Netns,
    scenario::{Scenario, eventually},
    topology::{Bed, Options},
};

use super::{SOON, connect, fronts, gateway, request, with_options};

/// Every pod was served, and each cluster got its half within 6 points.
#[track_caller]
fn assert_even(bed: &Bed, tally: &Tally) {
    let pods: BTreeSet<&String> = tally.by_pod.keys().collect();
    assert_eq!(pods.len(), bed.pods().len(), "{tally:?}");
    for cluster in bed.cluster_names() {
        let share = tally.cluster_share(&cluster);
        assert!((0.44..=0.56).contains(&share), "{cluster} answered {share:.3} of all: {tally:?}");
    }
}

#[test]
fn tcp_and_udp_over_ipv4_and_ipv6_spread_evenly_over_the_pods_of_both_clusters() {
    let (bed, _agent) = gateway(3);
    let [http, http6, udp, udp6] = fronts(&bed);
    assert_even(&bed, &connect(&bed, http, 1000, 10_000));
    assert_even(&bed, &connect(&bed, http6, 1000, 10_000));
    assert_even(&bed, &request(&bed, udp, 1000, 10_000));
    assert_even(&bed, &request(&bed, udp6, 1000, 10_000));
}

#[test]
fn a_service_deleted_from_one_cluster_is_answered_by_the_other_and_every_request_is_answered() {
    let (bed, agent) = gateway(2);
    let load = SteadyLoad { timeout: super::ANSWER, ..SteadyLoad::new(bed.vip_http(), 300) };
    let load = bed.client().load(load).unwrap();
    let begun = Instant::now();
    let both = load.wait_for(begun + SOON, |all| {
        let tally: Tally = all.iter().collect();
        (row(all, begun, 100, |_| true).is_some() && tally.by_cluster.len() == 2).then_some(())
    });
    assert!(both.is_some(), "both clusters answer while the service is in both");

    bed.manifests().remove("hangzhou/service.yaml").unwrap();
    bed.manifests().remove("hangzhou/endpoints.yaml").unwrap();
    let deleted = Instant::now();
    let moved = load.wait_for(deleted + SOON, |all| row(all, deleted, 300, |a| a.cluster == "shanghai"));
    assert!(moved.is_some(), "300 in a row from shanghai alone");
    let tally = load.stop().tally();
    assert_eq!(tally.failed, 0, "{tally:?}");
    Scenario::of(
        "a_service_deleted_from_one_cluster_is_answered_by_the_other_and_every_request_is_answered",
        &tally,
    )
    .report();
    let only_shanghai =
        || agent.services().unwrap().iter().all(|row| row["clusters"] == serde_json::json!(["shanghai"]));
    eventually("every service lists shanghai alone", SOON, only_shanghai);
    for target in [bed.vip_http6(), bed.vip_udp(), bed.vip_udp6()] {
        let tally = if target.port() == 80 {
            connect(&bed, target, 100, 12_000)
        } else {
            request(&bed, target, 100, 12_000)
        };
        assert_eq!(tally.by_cluster.keys().collect::<Vec<_>>(), ["shanghai"]);
    }
}

fn received(ns: &Netns, link: &str) -> u64 {
    let counts = ns.run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let line = counts.lines().find_map(|line| line.trim_start().strip_prefix(&format!("{link}:")));
    line.unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_gateway_with_two_interfaces_redirects_requests_into_the_one_and_replies_out_of_the_other() {
    let (bed, _agent) = with_options(Options { two_armed: true, pods: 2 });
    let inside = |bed: &Bed| received(bed.cen(), "gateway1");
    for target in fronts(&bed) {
        let before = inside(&bed);
        let tally = if target.port() == 80 {
            connect(&bed, target, 300, 10_000)
        } else {
            request(&bed, target, 300, 10_000)
        };
        assert_eq!(tally.by_pod.len(), 4, "{target}: {tally:?}");
        let through = inside(&bed) - before;
        assert!(through >= 300, "{target}: {through} packets left by the second interface");
    }
    // What leaves by the second interface has an address of the gateway's as its source.
    let seen = bed.client().tcp(TcpLoad::new(bed.vip_http(), 1)).unwrap().outcomes[0].result.clone().unwrap();
    let source: SocketAddr = seen.client.parse().unwrap();
    let own: [IpAddr; 2] = [[192, 168, 0, 10].into(), [192, 168, 1, 10].into()];
    assert!(own.contains(&source.ip()), "the pod saw {source}");
}
