//! Endpoints: conditions, ports, families, duplicates.

use super::super::{Endpoint, Reason};
use super::{World, front, ip, slice, slice_with, tcp, udp};

const HTTP: &str = "[{name: http, port: 8080, protocol: TCP}]";

fn endpoints(yaml: &str) -> Vec<Endpoint> {
    let desired = World::default().cluster("a", &(front("web", "192.0.2.1", "") + yaml)).merge();
    assert_eq!(desired.problems, []);
    desired.service(tcp("192.0.2.1", 80)).endpoints.clone()
}

#[test]
fn conditions_mean_what_kubernetes_says() {
    // Conditions, then ready, serving, terminating, takes new flows.
    for (conditions, expected) in [
        ("{}", (true, true, false, true)),
        ("{ready: true}", (true, true, false, true)),
        ("{ready: false}", (false, false, false, false)),
        ("{ready: false, serving: true, terminating: true}", (false, true, true, false)),
        ("{ready: false, serving: false, terminating: true}", (false, false, true, false)),
        ("{ready: true, serving: true, terminating: true}", (true, true, true, false)),
        ("{serving: true}", (true, true, false, true)),
    ] {
        let found = endpoints(&slice_with(
            "web",
            "x",
            HTTP,
            &format!("- {{addresses: [10.0.0.1], conditions: {conditions}}}\n"),
        ));
        let endpoint = &found[0];
        let takes = endpoint.takes_new_flows();
        assert_eq!((endpoint.ready, endpoint.serving, endpoint.terminating, takes), expected, "{conditions}");
    }
    assert!(endpoints(&slice_with("web", "x", HTTP, "- {addresses: [10.0.0.1]}\n"))[0].takes_new_flows());
}

#[test]
fn an_endpoint_knows_its_pod_and_zone() {
    let found = endpoints(&slice("web", "x", &["10.0.0.1"]));
    assert_eq!((found[0].pod.as_str(), found[0].zone.as_str()), ("pod-10.0.0.1", "z1"));
    let node = "- {addresses: [10.0.0.1], targetRef: {kind: Node, name: n1}}\n";
    assert_eq!(endpoints(&slice_with("web", "x", HTTP, node))[0].pod, "");
}

#[test]
fn an_endpoint_in_two_slices_is_one_and_the_usable_one_counts() {
    let ready = slice("web", "a", &["10.0.0.1"]);
    let not = slice_with("web", "b", HTTP, "- {addresses: [10.0.0.1], conditions: {ready: false}}\n");
    for yaml in [ready.clone() + &not, not.replace("web-b", "web-0") + &ready] {
        let found = endpoints(&yaml);
        assert_eq!(found.len(), 1);
        assert!(found[0].ready);
    }
}

#[test]
fn endpoints_are_sorted_whatever_the_order_of_slices() {
    let found =
        endpoints(&(slice("web", "a", &["10.0.0.9", "10.0.0.10"]) + &slice("web", "b", &["10.0.0.1"])));
    let addresses: Vec<_> = found.iter().map(|endpoint| endpoint.backend.address).collect();
    assert_eq!(addresses, ["10.0.0.1", "10.0.0.9", "10.0.0.10"].map(ip));
}

#[test]
fn only_the_first_address_of_an_endpoint_is_used() {
    let found = endpoints(&slice_with("web", "x", HTTP, "- {addresses: [10.0.0.1, 10.0.0.2]}\n"));
    assert_eq!(found.len(), 1);
}

#[test]
fn slices_of_others_are_left_alone() {
    for label in [
        "multicluster.kubernetes.io/service-name: web",
        "multicluster.kubernetes.io/source-cluster: b",
        "endpointslice.kubernetes.io/managed-by: endpointslice-mesh-controller.cilium.io",
        "endpointslice.kubernetes.io/managed-by: endpointslice-dispatch-controller.karmada.io",
        "endpointslice.kubernetes.io/managed-by: lighthouse-agent.submariner.io",
        "endpointslice.kubernetes.io/managed-by: agent.kanmon.dev",
    ] {
        let foreign = slice("web", "x", &["10.0.0.1"]).replace("labels: {", &format!("labels: {{{label}, "));
        assert_eq!(endpoints(&foreign), []);
    }
    let unlabelled = slice("web", "x", &["10.0.0.1"]).replace("kubernetes.io/service-name", "other");
    assert_eq!(endpoints(&unlabelled), []);
}

#[test]
fn ports_are_followed_by_number_then_name_in_each_cluster() {
    let service = |port: u16, name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: demo, name: web}}\n\
             spec: {{ports: [{{name: other, port: 1}}, {{name: {name}, port: {port}}}]}}\n"
        )
    };
    let named = |name: &str, port: u16| {
        slice_with("web", "x", &format!("[{{name: {name}, port: {port}}}]"), "- {addresses: [10.1.0.1]}\n")
    };
    let front = front("web", "192.0.2.1", "");
    // The other cluster's objects; its endpoint or what is said about it.
    for (other, expected) in [
        (service(80, "web") + &named("web", 9090), Ok("b=10.1.0.1:9090")),
        (service(80, "web") + &named("http", 9090), Err("no EndpointSlice has a TCP port named \"web\"")),
        (service(81, "http") + &named("http", 9090), Err("has no port 80/TCP")),
        (named("http", 9090), Ok("b=10.1.0.1:9090")),
        (named("web", 9090), Err("named \"http\"")),
    ] {
        let desired = World::default().cluster("a", &front).cluster("b", &other).merge();
        match expected {
            Ok(endpoint) => {
                assert_eq!(desired.problems, []);
                assert_eq!(desired.endpoints(tcp("192.0.2.1", 80)), [endpoint]);
            }
            Err(expected) => {
                assert_eq!(desired.endpoints(tcp("192.0.2.1", 80)), Vec::<String>::new());
                let message = desired.only_problem("b", "Service demo/web", Reason::PortMismatch);
                assert!(message.contains(expected), "{message}");
            }
        }
    }
}

#[test]
fn a_single_port_needs_no_name() {
    let yaml = front("web", "192.0.2.1", "ports: [{port: 80}]")
        + &slice_with("web", "a", "[{port: 8080}]", "- {addresses: [10.0.0.1]}\n")
        + &slice_with("web", "b", "[{name: \"\", port: 8081}]", "- {addresses: [10.0.0.2]}\n");
    let desired = World::default().cluster("a", &yaml).merge();
    assert_eq!(desired.endpoints(tcp("192.0.2.1", 80)), ["a=10.0.0.1:8080", "a=10.0.0.2:8081"]);
}

#[test]
fn one_name_and_two_protocols_are_two_ports() {
    let yaml =
        front("dns", "192.0.2.1", "ports: [{name: dns, port: 53}, {name: dns, port: 53, protocol: UDP}]")
            + &slice_with(
                "dns",
                "x",
                "[{name: dns, port: 5301, protocol: UDP}, {name: dns, port: 5300, protocol: TCP}]",
                "- {addresses: [10.0.0.1]}\n",
            );
    let desired = World::default().cluster("a", &yaml).merge();
    assert_eq!(desired.endpoints(tcp("192.0.2.1", 53)), ["a=10.0.0.1:5300"]);
    assert_eq!(desired.endpoints(udp("192.0.2.1", 53)), ["a=10.0.0.1:5301"]);
}

#[test]
fn a_slice_may_lack_a_port_that_another_has() {
    let yaml = front("web", "192.0.2.1", "ports: [{name: http, port: 80}, {name: admin, port: 81}]")
        + &slice("web", "a", &["10.0.0.1"])
        + &slice_with(
            "web",
            "b",
            "[{name: http, port: 8081}, {name: admin, port: 9}]",
            "- {addresses: [10.0.0.2]}\n",
        );
    let desired = World::default().cluster("a", &yaml).merge();
    assert_eq!(desired.problems, []);
    assert_eq!(desired.endpoints(tcp("192.0.2.1", 80)), ["a=10.0.0.1:8080", "a=10.0.0.2:8081"]);
    assert_eq!(desired.endpoints(tcp("192.0.2.1", 81)), ["a=10.0.0.2:9"]);
}

#[test]
fn addresses_must_be_of_the_slices_type() {
    let other = slice("web", "x", &["10.0.0.1"]).replace("addressType: IPv4", "addressType: IPv6");
    let desired = World::default().cluster("a", &(front("web", "192.0.2.1", "") + &other)).merge();
    assert_eq!(desired.endpoints(tcp("192.0.2.1", 80)), Vec::<String>::new());
    desired.only_problem("a", "Service demo/web", Reason::InvalidObject);
}

#[test]
fn a_pod_in_two_services_is_the_same_backend_in_both() {
    let yaml = front("web", "192.0.2.1", "")
        + &slice("web", "x", &["10.0.0.1"])
        + &front("api", "192.0.2.2", "")
        + &slice("api", "x", &["10.0.0.1"]);
    let desired = World::default().cluster("a", &yaml).merge();
    let backend = |vip| desired.service(tcp(vip, 80)).endpoints[0].backend;
    assert_eq!(backend("192.0.2.1"), backend("192.0.2.2"));
    assert_eq!(desired.problems, []);
}
