//! Whose word counts: the gateway cluster's, then the oldest member's.

use super::super::Reason;
use super::{World, front, member, member_of, slice, tcp};

const VIP: &str = "192.0.2.1";
const OLD: &str = "2025-01-01T00:00:00Z";
const NEW: &str = "2026-01-01T00:00:00Z";

/// Members `a` and `b` with a front of different addresses each, and an endpoint each.
fn fronts_in_a_and_b() -> World {
    World::default()
        .cluster("a", &(front("web", "192.0.2.1", "") + &slice("web", "x", &["10.0.0.1"])))
        .cluster("b", &(front("web", "192.0.2.2", "") + &slice("web", "x", &["10.1.0.1"])))
}

const BOTH: [&str; 2] = ["a=10.0.0.1:8080", "b=10.1.0.1:8080"];

#[test]
fn the_oldest_members_service_is_the_front_whatever_its_name() {
    let desired = fronts_in_a_and_b().gateway(&(member_of("a", NEW, "") + &member_of("b", OLD, ""))).merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.2", 80)]);
    assert_eq!(desired.endpoints(tcp("192.0.2.2", 80)), BOTH);
    let service = desired.service(tcp("192.0.2.2", 80));
    assert_eq!((service.front.as_str(), service.not_fronts.as_slice()), ("b", &["a".to_owned()][..]));
    desired.only_problem("a", "Service demo/web", Reason::NotFront);
}

#[test]
fn of_members_of_the_same_second_the_first_by_name_has_the_front() {
    let desired = fronts_in_a_and_b().gateway(&(member_of("a", OLD, "") + &member_of("b", OLD, ""))).merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.1", 80)]);
    desired.only_problem("b", "Service demo/web", Reason::NotFront);
}

#[test]
fn a_member_with_a_timestamp_is_older_than_one_without() {
    let desired = fronts_in_a_and_b().gateway(&(member("a", "") + &member_of("b", NEW, ""))).merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.2", 80)]);
}

#[test]
fn the_gateway_clusters_service_is_the_front_before_every_members() {
    let desired =
        fronts_in_a_and_b().gateway(&(front("web", "192.0.2.9", "") + &member_of("a", OLD, ""))).merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.9", 80)]);
    assert_eq!(desired.endpoints(tcp("192.0.2.9", 80)), BOTH, "the gateway itself has no endpoints");
    let service = desired.service(tcp("192.0.2.9", 80));
    assert_eq!((service.front.as_str(), service.not_fronts.len()), ("", 2));
    let told: Vec<_> = desired.problems.iter().map(|problem| problem.cluster.as_str()).collect();
    assert_eq!(told, ["a", "b"]);
    assert!(desired.problems[0].message.contains("not those of the gateway cluster"));
}

#[test]
fn a_front_in_the_gateway_cluster_alone_serves_the_members_endpoints() {
    let desired = World::default()
        .cluster("a", &slice("web", "x", &["10.0.0.1"]))
        .gateway(&front("web", VIP, ""))
        .merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080"]);
    assert_eq!(desired.problems, []);
}

#[test]
fn what_is_wrong_with_the_gateways_own_service_is_told_of_no_member() {
    let desired = World::default().gateway(&front("web", VIP, "clusterIP: None")).merge();
    desired.only_problem("", "Service demo/web", Reason::UnsupportedService);
}

#[test]
fn a_gateway_cluster_that_is_a_member_too_is_one_cluster_by_that_name() {
    let own = front("web", VIP, "");
    let desired = World::default()
        .cluster("home", &(own.clone() + &slice("web", "x", &["10.2.0.1"])))
        .cluster("a", &slice("web", "x", &["10.0.0.1"]))
        .gateway(&(own + &member_of("a", OLD, "") + &member_of("home", NEW, "source: {local: {}}")))
        .merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080", "home=10.2.0.1:8080"]);
    let service = desired.service(tcp(VIP, 80));
    assert_eq!((service.front.as_str(), service.not_fronts.len()), ("home", 0));
    assert_eq!(desired.problems, []);
}

#[test]
fn the_vip_passes_to_the_next_oldest_when_the_front_is_deleted() {
    let mut world = fronts_in_a_and_b().gateway(&(member_of("a", NEW, "") + &member_of("b", OLD, "")));
    world.clusters.remove("b");
    let desired = world.gateway("").merge();
    assert_eq!(desired.service(tcp("192.0.2.1", 80)).front, "a");
}

#[test]
fn an_address_that_two_members_claim_is_the_older_ones() {
    let desired = fronts_in_a_and_b()
        .cluster("a", &slice("web", "y", &["10.5.0.1"]))
        .cluster("b", &slice("web", "y", &["10.5.0.1"]))
        .gateway(&(member_of("a", NEW, "") + &member_of("b", OLD, "")))
        .merge();
    assert_eq!(
        desired.endpoints(tcp("192.0.2.2", 80)),
        ["a=10.0.0.1:8080", "b=10.1.0.1:8080", "b=10.5.0.1:8080"]
    );
    let claimed = desired.problems.iter().find(|problem| problem.reason == Reason::ClaimedByOtherMember);
    assert_eq!(claimed.unwrap().cluster, "a");
}

#[test]
fn of_overlapping_declared_networks_the_older_members_stay() {
    let desired = fronts_in_a_and_b()
        .gateway(&member_of("a", NEW, "podCIDRs: [10.0.0.0/8]"))
        .gateway(&member_of("b", OLD, "podCIDRs: [10.1.0.0/16]"))
        .merge();
    assert_eq!(desired.endpoints(tcp("192.0.2.2", 80)), ["b=10.1.0.1:8080"]);
    let message = desired.only_problem("", "MemberCluster a", Reason::CIDROverlap);
    assert!(message.contains("10.0.0.0/8 overlaps 10.1.0.0/16 of member b"), "{message}");
}

#[test]
fn a_member_with_a_source_is_not_told_to_make_a_directory() {
    let source = "source: {kubeconfigSecretRef: {namespace: n, name: s, key: k}}";
    let desired = World::default().gateway(&member("away", source)).merge();
    assert_eq!(desired.problems, []);
}
