//! Which Services are fronts, and how they merge.

use super::super::{Reason, Severity};
use super::{World, front, slice, tcp, udp};

#[test]
fn services_of_one_name_in_two_clusters_are_one_with_all_endpoints() {
    let desired = World::default()
        .cluster("a", &(front("web", "192.0.2.1", "") + &slice("web", "x", &["10.0.0.1", "10.0.0.2"])))
        .cluster("b", &(front("web", "192.0.2.1", "") + &slice("web", "x", &["10.1.0.1"])))
        .merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.1", 80)]);
    assert_eq!(
        desired.endpoints(tcp("192.0.2.1", 80)),
        ["a=10.0.0.1:8080", "a=10.0.0.2:8080", "b=10.1.0.1:8080"]
    );
    let service = desired.service(tcp("192.0.2.1", 80));
    assert_eq!((service.namespace.as_str(), service.name.as_str()), ("demo", "web"));
    assert_eq!(service.port_name, "http");
    assert_eq!((service.front.as_str(), service.not_fronts.as_slice()), ("a", &["b".to_owned()][..]));
    assert_eq!(desired.problems, []);
}

#[test]
fn the_service_survives_when_it_is_deleted_from_one_cluster() {
    let desired = World::default()
        .cluster("a", "")
        .cluster("b", &(front("web", "192.0.2.1", "") + &slice("web", "x", &["10.1.0.1"])))
        .merge();
    assert_eq!(desired.endpoints(tcp("192.0.2.1", 80)), ["b=10.1.0.1:8080"]);
    assert_eq!(desired.problems, []);
}

#[test]
fn a_cluster_without_a_front_contributes_its_slices() {
    let cluster_ip = "---\napiVersion: v1\nkind: Service\nmetadata: {namespace: demo, name: web}\n\
                      spec: {type: ClusterIP, ports: [{name: http, port: 80}]}\n";
    let desired = World::default()
        .cluster("a", &slice("web", "x", &["10.0.0.1"]))
        .cluster("b", &(cluster_ip.to_owned() + &slice("web", "x", &["10.1.0.1"])))
        .cluster("c", &front("web", "192.0.2.1", ""))
        .merge();
    assert_eq!(desired.endpoints(tcp("192.0.2.1", 80)), ["a=10.0.0.1:8080", "b=10.1.0.1:8080"]);
    assert_eq!(desired.problems, []);
}

#[test]
fn another_namespace_is_another_service() {
    let elsewhere = slice("web", "x", &["10.1.0.1"]).replace("namespace: demo", "namespace: other");
    let desired = World::default()
        .cluster("a", &(front("web", "192.0.2.1", "") + &slice("web", "x", &["10.0.0.1"])))
        .cluster("b", &elsewhere)
        .merge();
    assert_eq!(desired.endpoints(tcp("192.0.2.1", 80)), ["a=10.0.0.1:8080"]);
}

#[test]
fn the_first_cluster_by_name_decides_and_the_other_is_told() {
    let desired = World::default()
        .cluster("b", &front("web", "192.0.2.2", "ports: [{name: http, port: 80}, {name: x, port: 81}]"))
        .cluster("a", &front("web", "192.0.2.1", ""))
        .merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.1", 80)]);
    let message = desired.only_problem("b", "Service demo/web", Reason::NotFront);
    assert!(message.contains("its addresses and ports are not those of cluster a"), "{message}");
    assert_eq!(desired.problems[0].severity, Severity::Warning);
}

#[test]
fn only_load_balancers_of_our_class_are_fronts() {
    for (from, to) in [
        ("loadBalancerClass: kanmon.dev/xdp", "loadBalancerClass: other.example/lb"),
        ("  loadBalancerClass: kanmon.dev/xdp\n", ""),
    ] {
        let yaml = front("web", "192.0.2.1", "").replace(from, to);
        let desired = World::default().cluster("a", &yaml).merge();
        assert_eq!((desired.ids(), desired.problems), (vec![], vec![]));
    }
}

#[test]
fn services_that_cannot_be_balanced_are_refused() {
    for (yaml, expected) in [
        (front("web", "192.0.2.1", "clusterIP: None"), "headless"),
        (front("web", "192.0.2.1", "").replace("LoadBalancer\n", "ClusterIP\n"), "type is ClusterIP"),
        (
            front("web", "192.0.2.1", "externalName: x.example").replace("LoadBalancer\n", "ExternalName\n"),
            "type is ExternalName",
        ),
    ] {
        let desired = World::default().cluster("a", &yaml).merge();
        assert_eq!(desired.ids(), []);
        let message = desired.only_problem("a", "Service demo/web", Reason::UnsupportedService);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_refused_front_leaves_the_place_to_the_next_cluster() {
    let desired = World::default()
        .cluster("a", &front("web", "192.0.2.1", "clusterIP: None"))
        .cluster("b", &front("web", "192.0.2.2", ""))
        .merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.2", 80)]);
    assert_eq!(desired.reasons(), [Reason::UnsupportedService]);
}

#[test]
fn an_external_name_in_another_cluster_contributes_nothing() {
    let external = "---\napiVersion: v1\nkind: Service\nmetadata: {namespace: demo, name: web}\n\
                    spec: {type: ExternalName, externalName: web.example}\n";
    let desired = World::default()
        .cluster("a", &(front("web", "192.0.2.1", "") + &slice("web", "x", &["10.0.0.1"])))
        .cluster("b", &(external.to_owned() + &slice("web", "x", &["10.1.0.1"])))
        .merge();
    assert_eq!(desired.endpoints(tcp("192.0.2.1", 80)), ["a=10.0.0.1:8080"]);
    desired.only_problem("b", "Service demo/web", Reason::UnsupportedService);
}

#[test]
fn a_service_that_is_not_served_keeps_no_vip() {
    let desired = World::default()
        .cluster("a", &front("api", "192.0.2.1", "clusterIP: None"))
        .cluster("a", &front("web", "192.0.2.1", ""))
        .merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.1", 80)]);
    assert_eq!(desired.service(tcp("192.0.2.1", 80)).name, "web");
}

#[test]
fn session_affinity_has_its_time_or_that_of_kubernetes() {
    let of = |text: &str| {
        let desired = World::default().cluster("a", &front("web", "192.0.2.1", text)).merge();
        let affinity = desired.service(tcp("192.0.2.1", 80)).affinity.map(|time| time.as_secs());
        (affinity, desired.reasons())
    };
    let with = |seconds: &str| {
        of(&format!(
            "sessionAffinity: ClientIP\nsessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}"
        ))
    };
    assert_eq!(of(""), (None, vec![]));
    assert_eq!(of("sessionAffinity: None"), (None, vec![]));
    assert_eq!(of("sessionAffinity: ClientIP"), (Some(10_800), vec![]));
    assert_eq!(with("60"), (Some(60), vec![]));
    assert_eq!(with("86400"), (Some(86_400), vec![]));
    for wrong in ["0", "-1", "86401"] {
        assert_eq!(with(wrong), (Some(10_800), vec![Reason::InvalidObject]), "{wrong}");
    }
    assert_eq!(of("sessionAffinity: Cookie"), (None, vec![Reason::InvalidObject]));
}

#[test]
fn each_port_is_a_service_and_those_that_cannot_be_served_are_reported() {
    let ports = "ports:\n- {name: http, port: 80}\n- {name: dns, port: 53, protocol: UDP}\n\
                 - {name: dns-tcp, port: 53, protocol: TCP}\n- {name: sctp, port: 99, protocol: SCTP}\n\
                 - {name: again, port: 80}\n- {name: high, port: 65536}";
    let desired = World::default().cluster("a", &front("web", "192.0.2.1", ports)).merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.1", 53), udp("192.0.2.1", 53), tcp("192.0.2.1", 80)]);
    assert_eq!(
        desired.reasons(),
        [Reason::InvalidObject, Reason::InvalidObject, Reason::UnsupportedProtocol]
    );
    assert!(desired.problems[2].message.contains("port 99 has protocol SCTP"));
}

#[test]
fn a_service_that_is_there_twice_counts_once() {
    let yaml = front("web", "192.0.2.1", "") + &front("web", "192.0.2.2", "");
    let desired = World::default().cluster("a", &yaml).merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.1", 80)]);
    desired.only_problem("a", "Service demo/web", Reason::DuplicateObject);
}

#[test]
fn a_front_without_endpoints_is_a_service_without_endpoints() {
    let desired = World::default().cluster("a", &front("web", "192.0.2.1", "")).merge();
    assert_eq!(desired.endpoints(tcp("192.0.2.1", 80)), Vec::<String>::new());
    assert_eq!(desired.problems, []);
}

#[test]
fn what_is_asked_for_and_not_done_is_reported_of_every_cluster_s_service() {
    for (more, reason) in [
        ("externalTrafficPolicy: Local", Reason::ExternalTrafficPolicyIgnored),
        ("trafficDistribution: PreferClose", Reason::TrafficDistributionIgnored),
        ("trafficDistribution: PreferSameNode", Reason::TrafficDistributionIgnored),
        ("externalIPs: [198.51.100.1]", Reason::ExternalIPsIgnored),
    ] {
        let asks = front("web", "192.0.2.1", more);
        let desired =
            World::default().cluster("a", &front("web", "192.0.2.1", "")).cluster("b", &asks).merge();
        assert_eq!(desired.ids(), [tcp("192.0.2.1", 80)]);
        desired.only_problem("b", "Service demo/web", reason);
        assert_eq!(desired.problems[0].severity, Severity::Warning);
    }
    let stock = front("web", "192.0.2.1", "externalTrafficPolicy: Cluster\ninternalTrafficPolicy: Local");
    assert_eq!(World::default().cluster("a", &stock).merge().problems, []);
}
