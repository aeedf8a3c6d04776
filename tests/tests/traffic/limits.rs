//! `newFlowLimit`: clients that begin more flows than theirs, and clients beside them.

use std::net::{IpAddr, SocketAddr};

use tests::{agent::Agent, scenario::eventually, topology::Bed};

use super::{
    ANSWER, SOON, connect, drops_since, fronts, gateway, grown,
    sources::{NO_ANSWER, addresses, ask},
};

/// One flow a second for each network, which is so large.
fn limit(bed: &Bed, prefix: &str) {
    let text = format!(
        "apiVersion: kanmon.dev/v1alpha1\nkind: LoadBalancingPolicy\nmetadata: {{namespace: demo, name: limited}}\n\
         spec:\n  targetRefs: [{{group: \"\", kind: Service, name: httpbin}}]\n  newFlowLimit: 1\n{prefix}"
    );
    bed.manifests().write("policy.yaml", &text).unwrap();
}

/// The networks that share a limit in these tests: one that asks too often, and its neighbour.
const NETWORKS: [[&str; 2]; 2] =
    [["198.51.100.0/28", "198.51.100.16/28"], ["2001:db8:c::10/124", "2001:db8:c::20/124"]];

/// The client's addresses of the target's family in a network.
fn within(bed: &Bed, target: SocketAddr, network: usize) -> Vec<IpAddr> {
    addresses(bed, target, &[NETWORKS[usize::from(target.is_ipv6())][network]], true)
}

/// Waits until requests that these addresses make at once are not all answered. Who is not answered was counted.
#[track_caller]
fn await_limit(bed: &Bed, agent: &Agent, target: SocketAddr, addresses: &[IpAddr]) {
    eventually("a flow too many", SOON, || {
        let before = agent.counters().unwrap();
        let failed = ask(bed, target, addresses, NO_ANSWER).failed;
        let drops = drops_since(agent, &before);
        if failed > 0 {
            assert_eq!(drops.keys().collect::<Vec<_>>(), ["drop_new_flow_limit"], "{target}");
            assert!(drops["drop_new_flow_limit"] >= failed, "{target}: {failed} failed, {drops:?}");
        }
        failed > 0
    });
    // Nobody is told: it would be whoever was forged.
    assert_eq!(agent.counters().unwrap()["refusal_sent"], 0);
}

#[test]
fn a_client_beyond_its_limit_hears_nothing_and_others_are_served() {
    let (bed, agent) = gateway(1);
    limit(&bed, "");
    for target in fronts(&bed) {
        let all = addresses(&bed, target, &["0.0.0.0/0", "::/0"], true);
        await_limit(&bed, &agent, target, &[all[0]; 4]);
        if target.is_ipv4() {
            // Each address by itself.
            let tally = ask(&bed, target, &all[1..], ANSWER);
            assert_eq!(tally.failed, 0, "{target}: {tally:?}");
        } else {
            // They are in one /64.
            await_limit(&bed, &agent, target, &all);
        }
    }
}

#[test]
fn clients_share_a_limit_where_the_policy_says_that_they_are_one_network() {
    let (bed, agent) = gateway(1);
    limit(&bed, "  newFlowLimitPrefix: {ipv4: 28, ipv6: 124}\n");
    for target in fronts(&bed) {
        // Each asks once.
        await_limit(&bed, &agent, target, &within(&bed, target, 0));
        // The network beside it has its own.
        let before = agent.counters().unwrap();
        let tally = ask(&bed, target, &within(&bed, target, 1)[..1], ANSWER);
        assert_eq!(tally.failed, 0, "{target}: {tally:?}");
        assert_eq!(grown(&agent, &before, "drop_new_flow_limit"), 0, "{target}");
    }
    // Without the policy nobody is limited.
    bed.manifests().remove("policy.yaml").unwrap();
    for target in fronts(&bed) {
        let all = addresses(&bed, target, &["0.0.0.0/0", "::/0"], true);
        eventually("no limit", SOON, || ask(&bed, target, &[all[0]; 4], NO_ANSWER).failed == 0);
    }
    connect(&bed, bed.vip_http(), 20, 10_000);
}
