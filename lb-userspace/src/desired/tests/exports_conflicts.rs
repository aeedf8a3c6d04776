//! Exports of one name that differ: each kind of conflict, who decides, and who is told.

use super::super::Reason;
use super::exports::{VIP, backend, export, port};
use super::{World, front, slice, tcp};

/// Two clusters, of which `a` is the older export.
fn two(a: &str, b: &str) -> World {
    World::default().exporting("a", 1, a).exporting("b", 2, b)
}

/// The reasons of the condition Conflict, which both must have.
fn reasons(world: &World) -> String {
    let desired = world.merge();
    let (a, b) = (desired.condition("a", "Conflict"), desired.condition("b", "Conflict"));
    assert_eq!(a, b, "all exports are told the same");
    assert_eq!(a.holds, Some(a.reason != "NoConflicts"));
    a.reason.clone()
}

fn message(world: &World) -> String {
    world.merge().condition("b", "Conflict").message.clone()
}

#[test]
fn each_kind_of_conflict_has_its_reason_and_says_who_decides() {
    let sticky = |seconds: u32| {
        format!(
            "sessionAffinity: ClientIP\nsessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}"
        )
    };
    for (a, b, reason, said) in [
        ("", "clusterIP: None", "TypeConflict", "the type: headless in b, but not headless in a"),
        ("clusterIP: None", "", "TypeConflict", "the type: not headless in b, but headless in a"),
        (
            "sessionAffinity: None",
            "sessionAffinity: ClientIP",
            "SessionAffinityConflict",
            "sessionAffinity: ClientIP in b, but None in a",
        ),
        (
            sticky(60).as_str(),
            sticky(90).as_str(),
            "SessionAffinityConfigConflict",
            "sessionAffinityConfig: 90 s in b, but 60 s in a",
        ),
        (
            "",
            "internalTrafficPolicy: Local",
            "InternalTrafficPolicyConflict",
            "internalTrafficPolicy: Local in b, but Cluster in a",
        ),
        (
            "trafficDistribution: PreferSameNode",
            "trafficDistribution: PreferClose",
            "TrafficDistributionConflict",
            "trafficDistribution: PreferSameZone in b, but PreferSameNode in a",
        ),
        (
            "ipFamilies: [IPv4]",
            "ipFamilies: [IPv6, IPv4]",
            "IPFamilyConflict",
            "ipFamilies: IPv4+IPv6 in b, but IPv4 in a",
        ),
        (
            "",
            "ports: [{name: http, port: 8080}]",
            "PortConflict",
            "ports: http 8080/TCP in b, but http 80/TCP in a",
        ),
    ] {
        let world = two(a, b);
        assert_eq!(reasons(&world), reason, "{a} | {b}");
        let message = message(&world);
        assert!(message.starts_with(said), "{message}");
        assert!(message.contains("Cluster a has the oldest export, so it decides"), "{message}");
    }
}

#[test]
fn labels_and_annotations_conflict_as_a_whole_and_the_oldest_exports_count() {
    for (field, reason) in
        [("exportedLabels", "LabelsConflict"), ("exportedAnnotations", "AnnotationsConflict")]
    {
        let spec = |map: &str| format!("spec: {{{field}: {map}}}");
        let world = World::default()
            .cluster("a", &(backend("") + &export("2026-01-01T00:00:00Z", &spec("{x: \"1\"}"))))
            .cluster("b", &(backend("") + &export("2026-01-02T00:00:00Z", &spec("{x: \"1\", y: \"2\"}"))));
        assert_eq!(reasons(&world), reason);
        let message = message(&world);
        assert!(message.contains(&format!("{field}: {{\"x\":\"1\",\"y\":\"2\"}} in b")), "{message}");
        let desired = world.merge();
        let (labels, annotations) = (&desired.export().labels, &desired.export().annotations);
        let map = if field == "exportedLabels" { labels } else { annotations };
        assert_eq!(map.iter().collect::<Vec<_>>(), [(&"x".to_owned(), &"1".to_owned())]);
        assert_eq!(labels.len() + annotations.len(), 1);
    }
}

#[test]
fn what_means_the_same_is_no_conflict() {
    for (a, b) in [
        ("", ""),
        ("", "sessionAffinity: None\ninternalTrafficPolicy: Cluster\ntype: ClusterIP"),
        ("type: NodePort", "clusterIP: 172.16.0.9"),
        ("trafficDistribution: PreferClose", "trafficDistribution: PreferSameZone"),
        ("ipFamilies: [IPv4, IPv6]", "ipFamilies: [IPv6, IPv4]"),
        ("clusterIPs: [172.16.0.9]", "ipFamilies: [IPv4]"),
        // A file that doesn't tell its families.
        ("", "ipFamilies: [IPv6]"),
        (
            "sessionAffinity: ClientIP",
            "sessionAffinity: ClientIP\nsessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}",
        ),
        (
            "ports: [{name: http, port: 80, nodePort: 30080}, {name: tls, port: 443}]",
            "ports: [{name: tls, port: 443, targetPort: 8443, protocol: TCP}, {name: http, port: 80}]",
        ),
    ] {
        assert_eq!(reasons(&two(a, b)), "NoConflicts", "{a} | {b}");
    }
}

#[test]
fn several_conflicts_are_joined_in_a_fixed_order() {
    let everything = "clusterIP: None\nsessionAffinity: ClientIP\ninternalTrafficPolicy: Local\n\
                      trafficDistribution: PreferSameNode\nipFamilies: [IPv6]\nports: [{name: x, port: 80}]";
    let labels = "spec: {exportedLabels: {a: b}, exportedAnnotations: {a: b}}";
    let world = World::default()
        .exporting("a", 1, "ipFamilies: [IPv4]")
        .cluster("b", &(backend(everything) + &export("2026-01-02T00:00:00Z", labels)));
    assert_eq!(
        reasons(&world),
        "PortConflict,TypeConflict,SessionAffinityConflict,AnnotationsConflict,LabelsConflict,\
         InternalTrafficPolicyConflict,TrafficDistributionConflict,IPFamilyConflict"
    );
    assert!(message(&world).chars().count() <= 1024, "a condition shows all of it");
}

#[test]
fn the_older_export_keeps_a_port_that_two_want() {
    for (b, kept, said) in [
        // The same name.
        (
            "{name: http, port: 8080}",
            vec![port("http", 80, "TCP")],
            "http 8080/TCP in b, but http 80/TCP in a",
        ),
        (
            "{name: http, port: 80, protocol: UDP}",
            vec![port("http", 80, "TCP")],
            "http 80/UDP in b, but http 80/TCP in a",
        ),
        (
            "{name: http, port: 80, appProtocol: kubernetes.io/h2c}",
            vec![port("http", 80, "TCP")],
            "http 80/TCP (kubernetes.io/h2c) in b, but http 80/TCP in a",
        ),
        // The same number.
        ("{name: web, port: 80}", vec![port("http", 80, "TCP")], "web 80/TCP in b, but http 80/TCP in a"),
        ("{port: 80}", vec![port("http", 80, "TCP")], "80/TCP in b, but http 80/TCP in a"),
        // Neither: both are there.
        (
            "{name: http, port: 80}, {name: sig, port: 80, protocol: SCTP}",
            vec![port("http", 80, "TCP"), port("sig", 80, "SCTP")],
            "ports that not all have: sig 80/SCTP in b only",
        ),
    ] {
        let world = two("", &format!("ports: [{b}]"));
        assert_eq!(reasons(&world), "PortConflict", "{b}");
        assert_eq!(world.merge().export().import.as_ref().unwrap().ports, kept, "{b}");
        assert!(message(&world).contains(said), "{}", message(&world));
    }
}

#[test]
fn a_cluster_gets_no_connection_for_a_port_that_it_lost() {
    let world = two("type: ClusterIP", "ports: [{name: http, port: 8080}]")
        .cluster("a", &slice("web", "x", &["10.0.0.1"]))
        .cluster("b", &slice("web", "x", &["10.1.0.1"]))
        .gateway(&front("web", VIP, ""));
    let desired = world.merge();
    assert_eq!(desired.ids(), [tcp(VIP, 80)]);
    assert_eq!(desired.endpoints(tcp(VIP, 80)), ["a=10.0.0.1:8080"]);
    assert_eq!(desired.only_problem("b", "ServiceExport demo/web", Reason::ExportConflict), message(&world));
}

fn affinity(world: &World) -> String {
    world.merge().export().import.clone().unwrap().session_affinity.unwrap()
}

#[test]
fn the_oldest_export_decides_whatever_its_clusters_name() {
    let world = World::default()
        .exporting("a", 9, "sessionAffinity: None")
        .exporting("b", 2, "sessionAffinity: ClientIP")
        .exporting("c", 5, "sessionAffinity: None");
    assert_eq!(affinity(&world), "ClientIP");
    assert!(
        message(&world).contains("None in c, a, but ClientIP in b. Cluster b has the oldest"),
        "{}",
        message(&world)
    );
}

#[test]
fn exports_of_the_same_age_are_decided_by_the_clusters_names() {
    let world = World::default().exporting("b", 1, "sessionAffinity: ClientIP").exporting(
        "a",
        1,
        "sessionAffinity: None",
    );
    assert_eq!(affinity(&world), "None");
    assert!(message(&world).contains("Cluster a is the first by name"), "{}", message(&world));

    // From files, that don't tell ages.
    let world = World::default()
        .cluster("b", &(backend("sessionAffinity: ClientIP") + &export("", "")))
        .cluster("a", &(backend("sessionAffinity: None") + &export("", "")));
    assert_eq!(affinity(&world), "None");
    assert!(message(&world).contains("Cluster a is the first by name"), "{}", message(&world));

    // One that tells goes first.
    let world = world.exporting("z", 1, "sessionAffinity: ClientIP");
    assert_eq!(affinity(&world), "ClientIP");
}

/// A cluster whose clock is wrong makes its exports look old or new; that is unfair, but every gateway sees the
/// same, at any time.
#[test]
fn wrong_clocks_of_clusters_change_who_decides_and_nothing_else() {
    let at = |created: &str, affinity: &str| {
        backend(&format!("sessionAffinity: {affinity}")) + &export(created, "")
    };
    let past = World::default()
        .cluster("a", &at("2026-01-01T00:00:00Z", "None"))
        .cluster("b", &at("1970-01-01T00:00:00Z", "ClientIP"));
    assert_eq!((affinity(&past).as_str(), reasons(&past).as_str()), ("ClientIP", "SessionAffinityConflict"));
    let future = World::default()
        .cluster("a", &at("9999-01-01T00:00:00Z", "None"))
        .cluster("b", &at("9998-12-31T23:59:59Z", "ClientIP"));
    assert_eq!(
        (affinity(&future).as_str(), reasons(&future).as_str()),
        ("ClientIP", "SessionAffinityConflict")
    );
    assert_eq!(future.merge(), future.merge());
}

#[test]
fn a_fourth_cluster_that_joins_in_conflict_changes_nothing_for_the_others() {
    let three = World::default()
        .gateway(&front("web", VIP, ""))
        .exporting("b", 1, "sessionAffinity: None")
        .exporting("c", 2, "")
        .exporting("d", 3, "");
    let three = ["b", "c", "d"].iter().zip(1..).fold(three, |world, (cluster, net)| {
        world.cluster(cluster, &slice("web", "x", &[&format!("10.{net}.0.1")]))
    });
    let before = three.merge();
    assert_eq!(before.condition("b", "Conflict").reason, "NoConflicts");

    let joined = "sessionAffinity: ClientIP\nports: [{name: http, port: 81}, {name: extra, port: 9090}]";
    // Its name comes first, and doesn't help it.
    let after = three
        .exporting("a", 4, joined)
        .cluster("a", &slice("web", "x", &["10.9.0.1"]).replace("name: http", "name: extra"))
        .merge();
    for cluster in ["a", "b", "c", "d"] {
        let conflict = after.condition(cluster, "Conflict");
        assert_eq!(conflict.reason, "PortConflict,SessionAffinityConflict", "{cluster}");
        assert!(conflict.message.contains("Cluster b has the oldest export"), "{}", conflict.message);
        assert!(conflict.message.contains("http 81/TCP in a, but http 80/TCP in b"), "{}", conflict.message);
    }
    let (old, new) = (before.export().import.clone().unwrap(), after.export().import.clone().unwrap());
    assert_eq!(new.ports, [port("http", 80, "TCP"), port("extra", 9090, "TCP")]);
    assert_eq!(super::super::mcs::ServiceImportSpec { ports: old.ports.clone(), ..new }, old);
    assert_eq!(after.endpoints(tcp(VIP, 80)), before.endpoints(tcp(VIP, 80)));
    assert_eq!(after.endpoints(tcp(VIP, 9090)), ["a=10.9.0.1:8080"]);
    assert_eq!(after.export().clusters, ["a", "b", "c", "d"]);
}
