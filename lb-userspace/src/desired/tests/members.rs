//! Member clusters: states, networks, and whose an address is.

use std::sync::Arc;

use super::super::Reason;
use super::{World, front, member, pool, slice, tcp};

fn two_clusters() -> World {
    World::default()
        .cluster("a", &(front("web", "192.0.2.1", "") + &slice("web", "x", &["10.0.0.1"])))
        .cluster("b", &(front("web", "192.0.2.1", "") + &slice("web", "x", &["10.1.0.1"])))
}

const VIP: &str = "192.0.2.1";

#[test]
fn endpoints_carry_their_members_region() {
    let desired = two_clusters().gateway(&member("a", "")).merge();
    let regions: Vec<_> =
        desired.service(tcp(VIP, 80)).endpoints.iter().map(|endpoint| endpoint.region.clone()).collect();
    assert_eq!(regions, ["cn-a", ""]);
}

#[test]
fn a_drained_member_gets_no_new_flows_and_a_disabled_one_is_gone() {
    let drained = two_clusters().gateway(&member("b", "state: Drain")).merge();
    let takes: Vec<_> =
        drained.service(tcp(VIP, 80)).endpoints.iter().map(|endpoint| endpoint.takes_new_flows()).collect();
    assert_eq!(takes, [true, false]);
    assert!(drained.service(tcp(VIP, 80)).endpoints[1].terminating);

    let disabled = two_clusters().gateway(&member("b", "state: Disabled")).merge();
    assert_eq!(disabled.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080"]);
    assert_eq!(disabled.problems, []);
}

#[test]
fn a_disabled_members_front_keeps_the_vip_for_the_others() {
    let desired = two_clusters().gateway(&member("a", "state: Disabled")).merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["b=10.1.0.1:8080"]);
}

#[test]
fn endpoints_outside_the_declared_networks_are_refused() {
    let desired = two_clusters()
        .cluster("b", &slice("web", "y", &["10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.4", "20.0.0.1"]))
        .gateway(&member("b", "podCIDRs: [10.1.0.0/16]\nnodeCIDRs: [20.0.0.0/16]"))
        .merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080", "b=10.1.0.1:8080", "b=20.0.0.1:8080"]);
    let message = desired.only_problem("b", "Service demo/web", Reason::OutsideMemberNetwork);
    assert!(message.contains("10.9.0.1, 10.9.0.2, 10.9.0.3, 1 more are not used"), "{message}");
}

#[test]
fn vips_and_gateway_addresses_are_no_backends() {
    let desired = two_clusters()
        .gateway_address("10.1.0.7")
        .cluster("b", &slice("web", "y", &["10.1.0.7", "192.0.2.9"]))
        .cluster("b", &front("api", "192.0.2.9", ""))
        .merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080", "b=10.1.0.1:8080"]);
    let message = desired.only_problem("b", "Service demo/web", Reason::GatewayAddress);
    assert!(message.contains("10.1.0.7, 192.0.2.9"), "{message}");
}

#[test]
fn an_address_belongs_to_the_first_member_that_has_it_even_in_another_service() {
    let desired = two_clusters()
        .cluster("a", &(front("api", "192.0.2.2", "") + &slice("api", "x", &["10.5.0.1"])))
        .cluster("b", &slice("web", "y", &["10.5.0.1"]))
        .merge();
    assert_eq!(desired.endpoints(tcp("192.0.2.2", 80)), ["a=10.5.0.1:8080"]);
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080", "b=10.1.0.1:8080"]);
    desired.only_problem("b", "Service demo/web", Reason::ClaimedByOtherMember);
}

#[test]
fn an_address_that_is_not_its_own_gives_a_member_no_claim() {
    let desired = two_clusters()
        .cluster("a", &slice("web", "y", &["10.1.0.1"]))
        .gateway(&member("a", "podCIDRs: [10.0.0.0/16]"))
        .merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080", "b=10.1.0.1:8080"]);
    desired.only_problem("a", "Service demo/web", Reason::OutsideMemberNetwork);
}

#[test]
fn a_disabled_member_claims_nothing() {
    let desired = two_clusters()
        .cluster("a", &slice("web", "y", &["10.1.0.1"]))
        .gateway(&member("a", "state: Disabled"))
        .merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["b=10.1.0.1:8080"]);
    assert_eq!(desired.problems, []);
}

#[test]
fn of_two_members_with_overlapping_networks_the_newer_is_refused() {
    let overlapping = |state: &str| {
        two_clusters()
            .gateway(&member("a", &format!("podCIDRs: [10.0.0.0/8]\nserviceCIDRs: [172.16.0.0/16]{state}")))
            .gateway(&member("b", "nodeCIDRs: [10.1.0.0/16]\nserviceCIDRs: [172.17.0.0/16]"))
            .merge()
    };
    let desired = overlapping("");
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080"]);
    let message = desired.only_problem("", "MemberCluster b", Reason::CIDROverlap);
    assert!(message.contains("10.1.0.0/16 overlaps 10.0.0.0/8 of member a"), "{message}");

    let disabled = overlapping("\nstate: Disabled");
    assert_eq!(disabled.endpoints(tcp(VIP, 80)), ["b=10.1.0.1:8080"]);
    assert_eq!(disabled.problems, []);
}

#[test]
fn overlapping_service_networks_are_told_and_refuse_nobody() {
    let desired = two_clusters()
        .gateway(&member("a", "serviceCIDRs: [172.16.0.0/16]"))
        .gateway(&member("b", "serviceCIDRs: [172.16.0.0/16]"))
        .merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080", "b=10.1.0.1:8080"]);
    let message = desired.only_problem("", "MemberCluster b", Reason::CIDROverlap);
    assert!(message.contains("service network 172.16.0.0/16 of member b overlaps"), "{message}");
}

#[test]
fn an_unreadable_network_takes_no_endpoints_away() {
    for (cidr, expected) in [
        ("10.1.0.1/16", "did you mean 10.1.0.0/16?"),
        ("10.1.0.0", "is not a network"),
        ("10.1.0.0/33", "is not a network"),
    ] {
        let desired =
            two_clusters().gateway(&member("b", &format!("podCIDRs: [{cidr}, 10.200.0.0/16]"))).merge();
        assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080", "b=10.1.0.1:8080"]);
        let message = desired.only_problem("", "MemberCluster b", Reason::InvalidObject);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn members_that_cannot_be_served_are_reported() {
    let unknown = two_clusters().gateway(&member("c", "")).merge();
    unknown.only_problem("", "MemberCluster c", Reason::NoSource);

    let twice = two_clusters().gateway(&member("a", "")).gateway(&member("a", "state: Disabled")).merge();
    assert_eq!(twice.endpoints(tcp(VIP, 80)).len(), 2);
    twice.only_problem("", "MemberCluster a", Reason::DuplicateObject);
}

#[test]
fn the_merge_is_the_same_whatever_the_order_of_objects() {
    let forward =
        two_clusters().gateway(&(member("a", "") + &member("b", "") + &pool("p", "[203.0.113.0/24]")));
    let mut backward = two_clusters();
    backward = backward.gateway(&(pool("p", "[203.0.113.0/24]") + &member("b", "") + &member("a", "")));
    for objects in backward.clusters.values_mut() {
        let objects = Arc::make_mut(objects);
        objects.slices.reverse();
        objects.services.reverse();
    }
    assert_eq!(forward.merge(), backward.merge());
}
