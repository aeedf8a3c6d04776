//! How annotations become health checks, and which port a probe goes to.

use std::time::Duration;

use super::super::{Desired, HealthCheck, HealthCheckKind, Reason, Severity};
use super::{World, front_with, slice_with, tcp, udp};

const TCP_AND_UDP: &str =
    "ports: [{name: dns, port: 53, protocol: UDP}, {name: http, port: 80}, {name: admin, port: 81}]";
const UDP_ONLY: &str = "ports: [{name: dns, port: 53, protocol: UDP}]";

fn desired(annotations: &[(&str, &str)], more: &str) -> Desired {
    let annotations: Vec<(String, &str)> = annotations
        .iter()
        .map(|(key, value)| (format!("kanmon.dev/health-check{key}"), *value))
        .chain([("kanmon.dev/addresses".to_owned(), "192.0.2.1")])
        .collect();
    let annotations: Vec<(&str, &str)> =
        annotations.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    let ports =
        "[{name: http, port: 8080}, {name: admin, port: 8081}, {name: dns, port: 5353, protocol: UDP}]";
    let yaml =
        front_with("web", &annotations, more) + &slice_with("web", "x", ports, "- {addresses: [10.0.0.1]}\n");
    World::default().cluster("a", &yaml).merge()
}

fn check(annotations: &[(&str, &str)]) -> HealthCheck {
    let desired = desired(annotations, "");
    assert_eq!(desired.problems, []);
    desired.service(tcp("192.0.2.1", 80)).health_check.clone()
}

fn http(path: &str, first: u16, last: u16) -> HealthCheckKind {
    HealthCheckKind::Http { path: path.to_owned(), expected_status: first..=last }
}

#[test]
fn without_annotations_it_is_tcp_every_five_seconds() {
    let HealthCheck { kind, interval, timeout, unhealthy_threshold, healthy_threshold, .. } = check(&[]);
    assert_eq!(kind, HealthCheckKind::Tcp);
    assert_eq!((interval, timeout), (Duration::from_secs(5), Duration::from_secs(1)));
    assert_eq!((unhealthy_threshold, healthy_threshold), (3, 2));
}

#[test]
fn every_annotation_has_its_effect() {
    let HealthCheck { kind, interval, timeout, unhealthy_threshold, healthy_threshold, .. } = check(&[
        ("", "http"),
        ("-path", "/healthz?full=1"),
        ("-expected-status", "200-204"),
        ("-interval", "1m30s"),
        ("-timeout", "500ms"),
        ("-unhealthy-threshold", "5"),
        ("-healthy-threshold", "1"),
    ]);
    assert_eq!(kind, http("/healthz?full=1", 200, 204));
    assert_eq!((interval, timeout), (Duration::from_secs(90), Duration::from_millis(500)));
    assert_eq!((unhealthy_threshold, healthy_threshold), (5, 1));
}

#[test]
fn kinds_and_their_defaults() {
    assert_eq!(check(&[("", "none")]).kind, HealthCheckKind::None);
    assert_eq!(check(&[("", "tcp")]).kind, HealthCheckKind::Tcp);
    assert_eq!(check(&[("", "http")]).kind, http("/", 200, 399));
    assert_eq!(check(&[("", "http"), ("-expected-status", "204")]).kind, http("/", 204, 204));
    let https = HealthCheckKind::Https { path: "/up".to_owned(), expected_status: 200..=399 };
    assert_eq!(check(&[("", "https"), ("-path", "/up")]).kind, https);
    assert_eq!(check(&[("", "grpc")]).kind, HealthCheckKind::Grpc { service: String::new() });
}

#[test]
fn a_short_interval_shortens_the_default_timeout() {
    let check = check(&[("-interval", "500ms")]);
    assert_eq!((check.interval, check.timeout), (Duration::from_millis(500), Duration::from_millis(500)));
}

#[test]
fn a_bad_value_is_reported_and_the_default_used() {
    for (key, value, expected) in [
        ("", "ping", "none of tcp, http, https, grpc and none"),
        ("-path", "healthz", "is not a path"),
        ("-path", "/a b", "is not a path"),
        ("-path", "/a\r\nHost: x", "is not a path"),
        ("-expected-status", "2xx", "is not a range"),
        ("-expected-status", "399-200", "is not a range"),
        ("-expected-status", "99", "is not a range"),
        ("-interval", "5", "is not a duration"),
        ("-interval", "10ms", "is not within 100ms to 1h"),
        ("-timeout", "0", "is not within 10ms to 1h"),
        ("-unhealthy-threshold", "0", "from 1 to 100"),
        ("-healthy-threshold", "-1", "from 1 to 100"),
    ] {
        let needs_http = key == "-path" || key == "-expected-status";
        let both = [("", "http"), (key, value)];
        let desired = desired(if needs_http { &both } else { &both[1..] }, "");
        let message = desired.only_problem("a", "Service demo/web", Reason::InvalidAnnotation);
        let name = format!("kanmon.dev/health-check{key}: ");
        assert!(message.starts_with(&name) && message.contains(expected), "{message}");
        assert_eq!(desired.problems[0].severity, Severity::Warning);
        let kind = if needs_http { http("/", 200, 399) } else { HealthCheckKind::Tcp };
        let expected = HealthCheck { kind, ..HealthCheck::default() };
        assert_eq!(desired.service(tcp("192.0.2.1", 80)).health_check, expected, "{key}");
    }
}

#[test]
fn a_timeout_longer_than_the_interval_is_cut() {
    let desired = desired(&[("-interval", "1s"), ("-timeout", "2s")], "");
    let message = desired.only_problem("a", "Service demo/web", Reason::InvalidAnnotation);
    assert!(message.contains("2s is longer than the interval; 1s is used"), "{message}");
    assert_eq!(desired.service(tcp("192.0.2.1", 80)).health_check.timeout, Duration::from_secs(1));
}

#[test]
fn unknown_annotations_and_those_without_effect_are_reported() {
    let desired_unknown = desired(&[("-intervall", "1s")], "");
    let message = desired_unknown.only_problem("a", "Service demo/web", Reason::InvalidAnnotation);
    assert!(message.contains("kanmon.dev/health-check-intervall"), "{message}");
    let desired_path = desired(&[("-path", "/x")], "");
    let message = desired_path.only_problem("a", "Service demo/web", Reason::InvalidAnnotation);
    assert!(message.contains("mean nothing without"), "{message}");
}

#[test]
fn a_probe_goes_to_the_port_that_proves_something() {
    // Annotation, ports; then kind and probe port of the UDP service.
    for (kind, ports, expected) in [
        (None, TCP_AND_UDP, (HealthCheckKind::Tcp, Some(8080))),
        (Some("http"), TCP_AND_UDP, (http("/", 200, 399), Some(8080))),
        (Some("none"), TCP_AND_UDP, (HealthCheckKind::None, None)),
        (None, UDP_ONLY, (HealthCheckKind::None, None)),
        (Some("none"), UDP_ONLY, (HealthCheckKind::None, None)),
        (Some("tcp"), UDP_ONLY, (HealthCheckKind::Tcp, Some(5353))),
    ] {
        let annotations: Vec<(&str, &str)> = kind.iter().map(|kind| ("", *kind)).collect();
        let desired = desired(&annotations, ports);
        let service = desired.service(udp("192.0.2.1", 53));
        let found = (service.health_check.kind.clone(), service.endpoints[0].probe_port);
        assert_eq!(found, expected, "{kind:?} {ports}");
    }
}

#[test]
fn each_tcp_port_is_probed_itself() {
    let probed = desired(&[], TCP_AND_UDP);
    let port = |desired: &Desired, port| desired.service(tcp("192.0.2.1", port)).endpoints[0].probe_port;
    assert_eq!((port(&probed, 80), port(&probed, 81)), (Some(8080), Some(8081)));
    assert_eq!(port(&desired(&[("", "none")], TCP_AND_UDP), 80), None);
}
