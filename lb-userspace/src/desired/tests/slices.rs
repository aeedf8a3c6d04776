//! EndpointSlices as API servers have them: who owns them, where their endpoints run.

use super::super::{Desired, Reason, Severity};
use super::{World, front, slice, slice_with, tcp};

const VIP: &str = "192.0.2.1";
const HTTP: &str = "[{name: http, port: 8080, protocol: TCP}]";

/// The object with another line of metadata.
fn with_metadata(yaml: &str, line: &str) -> String {
    yaml.replacen("  namespace: demo\n", &format!("  namespace: demo\n  {line}\n"), 1)
}

fn owned(yaml: &str, kind: &str, uid: &str) -> String {
    let owner = format!("{{apiVersion: v1, kind: {kind}, name: web, uid: {uid}}}");
    with_metadata(yaml, &format!("ownerReferences: [{owner}]"))
}

fn in_one_cluster(yaml: &str) -> Desired {
    World::default().gateway(&front("web", VIP, "")).cluster("a", yaml).merge()
}

fn endpoints(yaml: &str) -> Vec<String> {
    let desired = in_one_cluster(yaml);
    assert_eq!(desired.problems, []);
    desired.endpoints(tcp(VIP, 80))
}

fn service(uid: &str) -> String {
    with_metadata(&front("web", VIP, ""), &format!("uid: {uid}"))
}

const ONE: [&str; 1] = ["a=10.0.0.1:8080"];
const NONE: [&str; 0] = [];

#[test]
fn slices_of_the_service_that_was_there_before_are_not_used() {
    let old = slice("web", "old", &["10.0.0.9"]);
    let new = slice("web", "new", &["10.0.0.1"]);
    let yaml = service("u2") + &owned(&old, "Service", "u1") + &owned(&new, "Service", "u2");
    assert_eq!(endpoints(&yaml), ONE);
}

#[test]
fn slices_that_outlive_their_service_are_not_used() {
    assert_eq!(endpoints(&owned(&slice("web", "x", &["10.0.0.1"]), "Service", "u1")), NONE);
}

#[test]
fn slices_that_nobody_owns_are_used_with_or_without_a_service() {
    let slice = slice("web", "x", &["10.0.0.1"]);
    assert_eq!(endpoints(&slice), ONE);
    assert_eq!(endpoints(&(service("u1") + &slice)), ONE);
}

#[test]
fn a_service_without_a_selector_is_served_by_hand_made_slices() {
    let yaml = "---\napiVersion: v1\nkind: Service\nmetadata: {namespace: demo, name: web, uid: u1}\n\
                spec: {type: ClusterIP, ports: [{name: http, port: 80}]}\n";
    let by_hand = slice("web", "hand", &["10.0.0.1"])
        .replace("labels: {", "labels: {endpointslice.kubernetes.io/managed-by: staff, ");
    assert_eq!(endpoints(&(yaml.to_owned() + &by_hand)), ONE);
}

#[test]
fn slices_mirrored_from_an_endpoints_object_are_used() {
    let mirrored = owned(&slice("web", "m", &["10.0.0.1"]), "Endpoints", "e1").replace(
        "labels: {",
        "labels: {endpointslice.kubernetes.io/managed-by: endpointslicemirroring-controller.k8s.io, ",
    );
    assert_eq!(endpoints(&(service("u1") + &mirrored)), ONE);
}

#[test]
fn an_owner_is_compared_only_with_a_service_that_has_a_uid() {
    let yaml = front("web", VIP, "") + &owned(&slice("web", "x", &["10.0.0.1"]), "Service", "u1");
    assert_eq!(endpoints(&yaml), ONE);
}

#[test]
fn a_slice_of_names_is_refused_and_the_others_serve() {
    let names = slice_with("web", "names", HTTP, "- {addresses: [web.example]}\n")
        .replace("addressType: IPv4", "addressType: FQDN");
    let desired = in_one_cluster(&(names + &slice("web", "x", &["10.0.0.1"])));
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ONE);
    let message = desired.only_problem("a", "EndpointSlice demo/web-names", Reason::FQDNEndpoints);
    assert!(message.contains("make a slice of type IPv4 or IPv6"), "{message}");
    assert_eq!(desired.problems[0].severity, Severity::Error);
}

#[test]
fn a_dual_stack_service_has_the_slices_of_each_family_behind_the_vip_of_that_family() {
    let desired = World::default()
        .gateway(&front("web", "192.0.2.1,2001:db8::1", ""))
        .cluster("a", &(slice("web", "v4", &["10.0.0.1"]) + &slice("web", "v6", &["fd00::1"])))
        .cluster("b", &(slice("web", "v4", &["10.1.0.1"]) + &slice("web", "v6", &["fd00:1::1"])))
        .merge();
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080", "b=10.1.0.1:8080"]);
    assert_eq!(desired.endpoints(tcp("2001:db8::1", 80)), ["a=fd00::1:8080", "b=fd00:1::1:8080"]);
    assert_eq!(desired.problems, []);
}

#[test]
fn an_endpoint_is_where_its_slice_says_else_its_node_else_its_member() {
    let at = |zone: &str, node: &str| {
        let fields = [("zone", zone), ("nodeName", node)];
        let fields: String = fields
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| format!(", {key}: {value}"))
            .collect();
        slice_with("web", "x", HTTP, &format!("- {{addresses: [10.0.0.1]{fields}}}\n"))
    };
    // Zone of the slice, node; region and zone that follow. `bare` has no labels, `unknown` is not known.
    for (zone, node, expected) in [
        ("", "", ("cn-a", "")),
        ("z1", "", ("cn-a", "z1")),
        ("", "full", ("cn-node", "z-node")),
        ("z1", "full", ("cn-node", "z1")),
        ("", "zonal", ("cn-a", "z-only")),
        ("", "bare", ("cn-a", "")),
        ("z1", "unknown", ("cn-a", "z1")),
    ] {
        let desired = World::default()
            .gateway(&(front("web", VIP, "") + &super::member("a", "")))
            .cluster("a", &at(zone, node))
            .node("a", "full", "cn-node", "z-node")
            .node("a", "zonal", "", "z-only")
            .node("a", "bare", "", "")
            .merge();
        let endpoint = &desired.service(tcp(VIP, 80)).endpoints[0];
        assert_eq!((endpoint.region.as_str(), endpoint.zone.as_str()), expected, "{zone} {node}");
    }
}
