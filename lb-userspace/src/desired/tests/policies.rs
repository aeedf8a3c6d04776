//! Which Service goes by which LoadBalancingPolicy, and what it comes to here.

use std::time::Duration;

use serde_json::json;

use super::super::{
    Area, Desired, FlowLogging, HealthCheckKind, Judgement, Knowledge, LoadBalancingPolicy, Locality,
    NewFlowLimit, OutlierDetection, Policy, Reason, Severity,
};
use super::{World, front, front_with, member, name, slice, tcp, udp};

const VIP: &str = "192.0.2.1";
const KEPT: &str = "trafficDistribution: PreferSameZone";

/// A policy `demo/<name>` for Service `demo/web`; `spec` are its other fields.
fn policy(name: &str, spec: &str) -> String {
    policy_for(name, &["web"], spec)
}

fn policy_for(name: &str, targets: &[&str], spec: &str) -> String {
    let refs: Vec<String> =
        targets.iter().map(|name| format!("{{group: \"\", kind: Service, name: {name}}}")).collect();
    let mut text = format!(
        "---\napiVersion: kanmon.dev/v1alpha1\nkind: LoadBalancingPolicy\nmetadata: {{namespace: demo, name: {name}}}\n\
         spec:\n  targetRefs: [{}]\n",
        refs.join(", ")
    );
    for line in spec.lines() {
        text += &format!("  {line}\n");
    }
    text
}

/// A policy made at a time, RFC 3339.
fn policy_of(name: &str, created: &str, spec: &str) -> String {
    policy(name, spec).replace("metadata: {", &format!("metadata: {{creationTimestamp: \"{created}\", "))
}

/// A world with a front `demo/web` whose gateway is in cn-a/1.
fn world(policies: &str) -> World {
    World::default().place("cn-a", "1").gateway(policies).cluster("a", &front("web", VIP, ""))
}

fn asked(desired: &Desired) -> &Policy {
    &desired.service(tcp(VIP, 80)).policy
}

fn area(text: &str) -> Area {
    let (region, zone) = text.split_once('/').unwrap_or((text, ""));
    Area { region: region.to_owned(), zone: zone.to_owned() }
}

/// Levels of one area each.
fn failover(levels: &[&str], strict: bool) -> Locality {
    Locality::Failover { levels: levels.iter().map(|level| vec![area(level)]).collect(), strict }
}

/// What a policy is told, `Type=Reason`.
fn told(desired: &Desired, policy: &str) -> Vec<String> {
    let state = &desired.policies[&name(policy)];
    let text = |judged: &Judgement| {
        let sign = if judged.holds == Some(true) { "" } else { "!" };
        format!("{sign}{}={}", judged.kind, judged.reason)
    };
    state.judgements.iter().map(text).collect()
}

const WELL: [&str; 2] = ["Accepted=Accepted", "Enforced=Enforced"];

#[test]
fn without_a_policy_all_is_as_it_is_by_default() {
    let desired = world("").merge();
    assert_eq!((asked(&desired), desired.problems.len()), (&Policy::default(), 0));
    assert!(desired.policies.is_empty());
}

#[test]
fn every_field_reaches_the_service() {
    let spec = "locality: {overprovisioningPercent: 120, failbackDelay: 90s}\nzonePreference: Prefer\n\
                outlierDetection: {consecutiveErrors: 1, interval: 1s, baseEjectionTime: 10m}\n\
                drainTimeout: 1h30m\nretryOnReset: false\nslowStart: 30s\n\
                flowLog: {counters: true, sampleOneIn: 10}\nnewFlowLimit: 1000\nnewFlowLimitPrefix: {ipv4: 24}";
    let desired = world(&policy("p", spec)).merge();
    let expected = Policy {
        name: Some(name("demo/p")),
        locality: failover(&["cn-a/1", "cn-a"], false),
        overprovisioning_percent: 120,
        failback_delay: Duration::from_secs(90),
        outlier_detection: Some(OutlierDetection {
            consecutive_errors: 1,
            interval: Duration::from_secs(1),
            base_ejection_time: Duration::from_secs(600),
            max_ejection_time: Duration::from_secs(600),
            max_ejection_percent: 100,
        }),
        drain_timeout: Some(Duration::from_secs(5400)),
        retry_on_reset: false,
        slow_start: Duration::from_secs(30),
        flow_log: FlowLogging { counters: true, sample_one_in: 10 },
        new_flow_limit: Some(NewFlowLimit { per_second: 1000, ipv4_prefix: 24, ipv6_prefix: 64 }),
    };
    assert_eq!(asked(&desired), &expected);
    assert_eq!(told(&desired, "demo/p"), WELL);
    assert_eq!(desired.policies[&name("demo/p")].services, [name("demo/web")].into());
    assert_eq!(desired.problems, []);
}

#[test]
fn a_policy_that_asks_for_little_leaves_the_defaults() {
    let desired = world(&policy("p", "outlierDetection: {}")).merge();
    let expected = Policy {
        name: Some(name("demo/p")),
        outlier_detection: Some(OutlierDetection::default()),
        ..Policy::default()
    };
    assert_eq!(asked(&desired), &expected);
}

#[test]
fn all_ports_and_families_of_a_service_go_by_its_policy_and_no_other_service() {
    let ports = "ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]";
    let desired = world(&policy("p", "slowStart: 5s"))
        .cluster("a", &front("api", "192.0.2.2", ""))
        .cluster("b", &front("web", "192.0.2.9", ports))
        .cluster("a", &front_with("dns", &[("kanmon.dev/addresses", "192.0.2.3, 2001:db8::3")], ports))
        .gateway(&policy_for("q", &["dns"], "slowStart: 6s"))
        .merge();
    let slow = |id| desired.service(id).policy.slow_start.as_secs();
    assert_eq!((slow(tcp(VIP, 80)), slow(tcp("192.0.2.2", 80))), (5, 0));
    assert_eq!([tcp("192.0.2.3", 80), udp("2001:db8::3", 53)].map(slow), [6, 6]);
}

#[test]
fn a_policy_of_another_namespace_is_for_another_service() {
    let other = policy("p", "slowStart: 5s").replace("namespace: demo", "namespace: other");
    let desired = world(&other).merge();
    assert_eq!(asked(&desired).name, None);
    assert_eq!(told(&desired, "other/p"), ["!Accepted=TargetNotFound", "Enforced=Enforced"]);
}

#[test]
fn of_two_policies_the_oldest_counts_and_without_timestamps_the_first_by_name() {
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    for (policies, winner, loser) in [
        (policy("a", "slowStart: 1s") + &policy("b", "slowStart: 2s"), "demo/a", "demo/b"),
        (policy("b", "slowStart: 1s") + &policy("a", "slowStart: 2s"), "demo/a", "demo/b"),
        (policy_of("a", new, "") + &policy_of("b", old, ""), "demo/b", "demo/a"),
        (policy("a", "") + &policy_of("b", new, ""), "demo/b", "demo/a"),
        (policy_of("b", old, "") + &policy_of("a", old, ""), "demo/a", "demo/b"),
    ] {
        let desired = world(&policies).merge();
        assert_eq!(asked(&desired).name, Some(name(winner)), "{policies}");
        assert_eq!(told(&desired, winner), WELL);
        assert_eq!(told(&desired, loser), ["!Accepted=Conflicted", "Enforced=Enforced"]);
        assert!(desired.policies[&name(loser)].services.is_empty());
        let title = format!("LoadBalancingPolicy {loser}");
        let message = desired.only_problem("", &title, Reason::PolicyConflict);
        assert!(
            message.contains(&format!("Service demo/web goes by LoadBalancingPolicy {winner}")),
            "{message}"
        );
    }
}

#[test]
fn the_next_policy_takes_over_when_the_older_one_goes() {
    let old = "2026-01-01T00:00:00Z";
    let going = policy_of("a", old, "")
        .replace("metadata: {", "metadata: {deletionTimestamp: \"2026-03-01T00:00:00Z\", ");
    let desired = world(&(going + &policy("b", ""))).merge();
    assert_eq!(asked(&desired).name, Some(name("demo/b")));
    assert_eq!(desired.problems, []);
}

#[test]
fn a_policy_that_some_target_goes_by_is_accepted() {
    let both = policy_for("b", &["web", "api"], "");
    let desired = world(&(policy("a", "") + &both)).cluster("a", &front("api", "192.0.2.2", "")).merge();
    assert_eq!(told(&desired, "demo/b"), ["Accepted=SomeConflicted", "Enforced=Enforced"]);
    assert_eq!(desired.policies[&name("demo/b")].services, [name("demo/api")].into());
    assert_eq!(desired.service(tcp("192.0.2.2", 80)).policy.name, Some(name("demo/b")));

    let desired = world(&both).merge();
    assert_eq!(told(&desired, "demo/b"), ["Accepted=SomeTargetsNotFound", "Enforced=Enforced"]);
    let message = desired.only_problem("", "LoadBalancingPolicy demo/b", Reason::TargetNotFound);
    assert!(message.contains("Service demo/api of type LoadBalancer"), "{message}");
    assert_eq!(desired.problems[0].severity, Severity::Warning);
}

#[test]
fn a_target_is_not_missed_before_all_members_have_been_read() {
    let mut world = World::default().gateway(&policy("p", ""));
    assert_eq!(world.merge().reasons(), [Reason::TargetNotFound], "a directory of manifests is all there is");
    world.gateway.allocations = Some(Vec::new());
    world.gateway.knowledge = Knowledge::Partial;
    assert_eq!(world.merge().problems, []);
    world.gateway.knowledge = Knowledge::Known;
    assert_eq!(world.merge().reasons(), [Reason::TargetNotFound]);
}

#[test]
fn a_policy_that_makes_no_sense_counts_for_nothing() {
    let mut world = world(&policy("b", "slowStart: 1s"));
    let spec =
        json!({"targetRefs": [{"kind": "Service", "name": "web"}], "slowStart": "1d", "drainTimeout": "25h"});
    let object = json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "LoadBalancingPolicy",
        "metadata": {"namespace": "demo", "name": "a"}, "spec": spec});
    let object: LoadBalancingPolicy = serde_json::from_value(object).unwrap();
    world.gateway.policies.insert(0, object);
    let desired = world.merge();
    assert_eq!(asked(&desired).name, Some(name("demo/b")));
    assert_eq!(told(&desired, "demo/a"), ["!Accepted=Invalid", "Enforced=Enforced"]);
    assert_eq!(desired.reasons(), [Reason::InvalidObject; 2]);
    assert!(
        desired.problems[1].message.contains("spec.slowStart: \"1d\" is not a duration"),
        "{:?}",
        desired.problems
    );
}

#[test]
fn a_policy_that_is_there_twice_is_reported() {
    let desired = world(&(policy("p", "slowStart: 1s") + &policy("p", "slowStart: 2s"))).merge();
    assert_eq!(asked(&desired).slow_start, Duration::from_secs(1));
    desired.only_problem("", "LoadBalancingPolicy demo/p", Reason::DuplicateObject);
}

const FAILOVER: &str = "locality: {failover: [{from: cn-a, to: [cn-b, cn-c/9]}, {from: cn-a/2, to: [cn-a/1, cn-a]}, {from: cn-b, to: [cn-a]}]}";

#[test]
fn a_failover_begins_with_the_gateways_own_place() {
    for (region, zone, preference, levels, strict) in [
        ("cn-a", "1", "", &["cn-a", "cn-b", "cn-c/9"][..], false),
        ("cn-a", "", "", &["cn-a", "cn-b", "cn-c/9"], false),
        ("cn-b", "1", "None", &["cn-b", "cn-a"], false),
        ("cn-a", "1", "Prefer", &["cn-a/1", "cn-a", "cn-b", "cn-c/9"], false),
        ("cn-a", "1", "Strict", &["cn-a/1", "cn-b", "cn-c/9"], true),
        // The entry of the zone goes before that of the region, and is not split any more.
        ("cn-a", "2", "", &["cn-a/2", "cn-a/1", "cn-a"], false),
        ("cn-a", "2", "Prefer", &["cn-a/2", "cn-a/1", "cn-a"], false),
        ("cn-a", "2", "Strict", &["cn-a/2", "cn-a/1", "cn-a"], true),
    ] {
        let preference =
            if preference.is_empty() { String::new() } else { format!("\nzonePreference: {preference}") };
        let desired = world(&policy("p", &(FAILOVER.to_owned() + &preference))).place(region, zone).merge();
        assert_eq!(asked(&desired).locality, failover(levels, strict), "{region}/{zone} {preference}");
        assert_eq!(desired.problems, []);
    }
}

#[test]
fn shares_are_those_of_the_gateways_own_place() {
    let spec = "locality:\n  distribute:\n  - {from: cn-a, to: [{region: cn-a, weight: 90}, {region: cn-b, weight: 10}]}\n  \
                - {from: cn-a/2, to: [{region: cn-a, zone: \"2\", weight: 60}, {region: cn-b, weight: 40}]}";
    for (zone, expected) in [("1", [("cn-a", 90), ("cn-b", 10)]), ("2", [("cn-a/2", 60), ("cn-b", 40)])] {
        let desired = world(&policy("p", spec)).place("cn-a", zone).merge();
        let shares = expected.map(|(place, percent)| (area(place), percent)).to_vec();
        assert_eq!(asked(&desired).locality, Locality::Distribute { shares });
        assert_eq!(desired.problems, []);
    }
}

#[test]
fn a_gateway_that_no_from_names_says_so_and_spreads_evenly() {
    let desired = world(&policy("p", FAILOVER)).place("cn-z", "1").merge();
    assert_eq!(asked(&desired).locality, Locality::Even);
    let message = desired.only_problem("", "LoadBalancingPolicy demo/p", Reason::PlaceNotListed);
    assert!(message.contains("cn-z/1") && message.contains("cn-a, cn-a/2, cn-b"), "{message}");
    let preferring = policy("p", &format!("{FAILOVER}\nzonePreference: Prefer"));
    let desired = world(&preferring).place("cn-z", "1").merge();
    assert_eq!(asked(&desired).locality, failover(&["cn-z/1", "cn-z"], false), "the preference still holds");
}

#[test]
fn a_gateway_that_does_not_know_where_it_is_says_so_and_spreads_evenly() {
    for spec in [FAILOVER, "zonePreference: Strict", "zonePreference: Prefer"] {
        let desired = world(&policy("p", spec)).place("", "").merge();
        assert_eq!(asked(&desired).locality, Locality::Even, "{spec}");
        let message = desired.only_problem("", "LoadBalancingPolicy demo/p", Reason::PlaceUnknown);
        assert!(message.contains("does not know its region") && message.contains("--region"), "{message}");
    }
    let strict = policy("p", &format!("{FAILOVER}\nzonePreference: Strict"));
    let desired = world(&strict).place("cn-b", "").merge();
    assert_eq!(asked(&desired).locality, failover(&["cn-b", "cn-a"], false));
    let message = desired.only_problem("", "LoadBalancingPolicy demo/p", Reason::PlaceUnknown);
    assert!(message.contains("does not know its zone"), "{message}");
}

#[test]
fn the_own_zone_goes_first_where_the_service_asks_for_it_and_the_policy_does_not_say_otherwise() {
    let annotated = |mode| {
        front_with("web", &[("kanmon.dev/addresses", VIP), ("service.kubernetes.io/topology-mode", mode)], "")
    };
    let zone_first = failover(&["cn-a/1", "cn-a"], false);
    for (policies, service, expected) in [
        (String::new(), front("web", VIP, KEPT), zone_first.clone()),
        (String::new(), front("web", VIP, "trafficDistribution: PreferClose"), zone_first.clone()),
        (String::new(), annotated("Auto"), zone_first.clone()),
        (String::new(), annotated("disabled"), Locality::Even),
        (policy("p", "slowStart: 1s"), front("web", VIP, KEPT), zone_first),
        (policy("p", "zonePreference: None"), front("web", VIP, KEPT), Locality::Even),
        (policy("p", "zonePreference: Strict"), front("web", VIP, ""), failover(&["cn-a/1"], true)),
        (
            policy("p", FAILOVER),
            front("web", VIP, KEPT),
            failover(&["cn-a/1", "cn-a", "cn-b", "cn-c/9"], false),
        ),
    ] {
        let desired = World::default().place("cn-a", "1").gateway(&policies).cluster("a", &service).merge();
        assert_eq!(asked(&desired).locality, expected, "{policies}{service}");
        assert_eq!(desired.problems, []);
    }
}

#[test]
fn a_selector_chooses_the_members_that_serve() {
    let labelled = |name: &str, labels: &str| {
        member(name, "").replace(&format!("{{name: {name}}}"), &format!("{{name: {name}, labels: {labels}}}"))
    };
    let members = labelled("a", "{location: east}") + &labelled("b", "{location: west}");
    let world = |selector: &str| {
        world(&(policy("p", &format!("clusterSelector: {selector}")) + &members))
            .cluster("a", &slice("web", "x", &["10.0.0.1"]))
            .cluster("b", &slice("web", "x", &["10.1.0.1"]))
            .cluster("c", &slice("web", "x", &["10.2.0.1"]))
            .cluster("b", &front("api", "192.0.2.2", ""))
            .cluster("b", &slice("api", "x", &["10.1.0.2"]))
            .cluster("c", &slice("api", "x", &["10.2.0.2"]))
    };
    for (selector, expected) in [
        ("{matchLabels: {location: east}}", &["a=10.0.0.1:8080"][..]),
        ("{matchExpressions: [{key: location, operator: Exists}]}", &["a=10.0.0.1:8080", "b=10.1.0.1:8080"]),
        ("{matchExpressions: [{key: location, operator: DoesNotExist}]}", &["c=10.2.0.1:8080"]),
        ("{}", &["a=10.0.0.1:8080", "b=10.1.0.1:8080", "c=10.2.0.1:8080"]),
    ] {
        let desired = world(selector).merge();
        assert_eq!(desired.endpoints(tcp(VIP, 80)), expected, "{selector}");
        assert_eq!(desired.endpoints(tcp("192.0.2.2", 80)).len(), 2, "the other Service has all");
        assert_eq!(desired.problems, []);
    }
    let desired = world("{matchLabels: {location: south}}").merge();
    assert!(desired.endpoints(tcp(VIP, 80)).is_empty());
    desired.only_problem("", "LoadBalancingPolicy demo/p", Reason::NothingSelected);
}

#[test]
fn the_health_check_of_a_policy_goes_before_the_annotations() {
    let pem = "-----BEGIN CERTIFICATE-----x-----END CERTIFICATE-----";
    let annotations = [
        ("kanmon.dev/addresses", VIP),
        ("kanmon.dev/health-check", "http"),
        ("kanmon.dev/health-check-interval", "30s"),
    ];
    let world = |spec: &str| {
        World::default()
            .gateway(&policy("p", spec))
            .cluster("a", &front_with("web", &annotations, ""))
            .cluster("a", &slice("web", "x", &["10.0.0.1"]))
    };
    let check = |spec: &str| {
        let desired = world(spec).merge();
        let service = desired.service(tcp(VIP, 80));
        (service.health_check.clone(), service.endpoints[0].probe_port)
    };
    let (kept, port) = check("slowStart: 1s");
    assert_eq!((kept.interval.as_secs(), port), (30, Some(8080)), "without one they count");

    let (tcp_check, _) = check("healthCheck: {}");
    assert_eq!((tcp_check.kind, tcp_check.interval.as_secs()), (HealthCheckKind::Tcp, 5));
    let spec = format!(
        "healthCheck: {{type: HTTPS, path: /up, expectedStatuses: \"204\", host: web.example, port: 9443, \
         caCertificate: {pem:?}, interval: 500ms, unhealthyThreshold: 2, healthyThreshold: 1}}"
    );
    let (https, port) = check(&spec);
    assert_eq!(https.kind, HealthCheckKind::Https { path: "/up".into(), expected_status: 204..=204 });
    assert_eq!((https.host.as_deref(), https.ca_certificate.as_deref()), (Some("web.example"), Some(pem)));
    assert_eq!((https.interval, https.timeout), (Duration::from_millis(500), Duration::from_millis(500)));
    assert_eq!((https.unhealthy_threshold, https.healthy_threshold, port), (2, 1, Some(9443)));
    let (http, _) = check("healthCheck: {type: HTTP}");
    assert_eq!(http.kind, HealthCheckKind::Http { path: "/".into(), expected_status: 200..=399 });
    let (grpc, _) = check("healthCheck: {type: GRPC, service: shop.Cart, timeout: 2s}");
    assert_eq!(grpc.kind, HealthCheckKind::Grpc { service: "shop.Cart".into() });
    assert_eq!(grpc.timeout.as_secs(), 2);
    let (none, port) = check("healthCheck: {type: None, port: 9443}");
    assert_eq!((none.kind, port), (HealthCheckKind::None, None));
}

#[test]
fn a_service_without_tcp_ports_is_probed_where_its_policy_says_how() {
    let ports = "ports: [{name: http, port: 53, protocol: UDP}]";
    let slices = slice("web", "x", &["10.0.0.1"]).replace("TCP", "UDP");
    let desired = World::default()
        .gateway(&policy("p", "healthCheck: {type: TCP, port: 8081}"))
        .cluster("a", &front("web", VIP, ports))
        .cluster("a", &slices)
        .merge();
    let service = desired.service(udp(VIP, 53));
    assert_eq!(
        (service.health_check.kind.clone(), service.endpoints[0].probe_port),
        (HealthCheckKind::Tcp, Some(8081))
    );
}
