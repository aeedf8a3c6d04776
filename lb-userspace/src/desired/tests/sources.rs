//! Source ranges: from where clients may connect.

use super::*;

const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

fn ranges(desired: &Desired, vip: &str) -> Option<Vec<String>> {
    let sources = desired.service(tcp(vip, 80)).sources.as_ref()?;
    Some(sources.iter().map(ToString::to_string).collect())
}

fn named(text: &str) -> Desired {
    World::default().cluster("a", &front("web", "192.0.2.1", text)).merge()
}

#[test]
fn without_ranges_everybody_may_connect() {
    for text in ["", "loadBalancerSourceRanges: []", "loadBalancerSourceRanges: null"] {
        let desired = named(text);
        assert_eq!(ranges(&desired, "192.0.2.1"), None, "{text}");
        assert_eq!(desired.problems, []);
    }
    let blank = [("kanmon.dev/addresses", "192.0.2.1"), (ANNOTATION, " ")];
    let desired = World::default().cluster("a", &front_with("web", &blank, "")).merge();
    assert_eq!(ranges(&desired, "192.0.2.1"), None);
}

#[test]
fn the_field_names_networks_and_its_host_bits_and_blanks_do_not_count() {
    let desired = named("loadBalancerSourceRanges: [' 198.51.100.7/24', 203.0.113.1/32, 198.51.100.0/24]");
    assert_eq!(ranges(&desired, "192.0.2.1"), Some(vec!["198.51.100.0/24".into(), "203.0.113.1/32".into()]));
    assert_eq!(desired.problems, []);
}

#[test]
fn the_annotation_counts_where_the_field_is_empty() {
    let annotations = [("kanmon.dev/addresses", "192.0.2.1"), (ANNOTATION, "198.51.100.0/24, 10.0.0.0/8")];
    let of = |text: &str| World::default().cluster("a", &front_with("web", &annotations, text)).merge();
    let desired = of("");
    let both = Some(vec!["10.0.0.0/8".into(), "198.51.100.0/24".into()]);
    assert_eq!((ranges(&desired, "192.0.2.1"), desired.problems.len()), (both, 0));
    let field = of("loadBalancerSourceRanges: [203.0.113.0/24]");
    assert_eq!(ranges(&field, "192.0.2.1"), Some(vec!["203.0.113.0/24".into()]));
}

#[test]
fn what_cannot_be_read_lets_nobody_in_and_is_named() {
    let desired = named("loadBalancerSourceRanges: [198.51.100.0/24, 10.0.0.1, everybody]");
    assert_eq!(ranges(&desired, "192.0.2.1"), Some(vec!["198.51.100.0/24".into()]));
    let problem = desired.only_problem("a", "Service demo/web", Reason::InvalidSourceRange);
    for part in ["\"10.0.0.1\"", "\"everybody\"", "198.51.100.0/24"] {
        assert!(problem.contains(part), "{problem}");
    }
    assert!(!problem.contains("nobody can connect"), "{problem}");

    let nobody = named("loadBalancerSourceRanges: [10.0.0.0/33]");
    assert_eq!(ranges(&nobody, "192.0.2.1"), Some(vec![]));
    let problem = nobody.only_problem("a", "Service demo/web", Reason::InvalidSourceRange);
    assert!(problem.contains("nobody can connect"), "{problem}");
}

#[test]
fn a_vip_has_the_ranges_of_its_family_and_without_one_nobody_connects() {
    let vips = "192.0.2.1,2001:db8::1";
    let both = "loadBalancerSourceRanges: [198.51.100.0/24, '2001:db8:1::/48']";
    let desired = World::default().cluster("a", &front("web", vips, both)).merge();
    assert_eq!(ranges(&desired, "192.0.2.1"), Some(vec!["198.51.100.0/24".into()]));
    assert_eq!(ranges(&desired, "2001:db8::1"), Some(vec!["2001:db8:1::/48".into()]));
    assert_eq!(desired.problems, []);

    let one = "loadBalancerSourceRanges: [198.51.100.0/24]";
    let desired = World::default().cluster("a", &front("web", vips, one)).merge();
    assert_eq!(ranges(&desired, "2001:db8::1"), Some(vec![]));
    let problem = desired.only_problem("a", "Service demo/web", Reason::NoSourceRange);
    assert!(problem.contains("2001:db8::1") && problem.contains("::/0"), "{problem}");
}

#[test]
fn a_client_gets_in_where_the_services_of_all_clusters_let_it_in() {
    let of = |text: &str| front("web", "192.0.2.1", text);
    let open = of("");
    let wide = of("loadBalancerSourceRanges: [198.51.100.0/24, 203.0.113.64/26, 192.0.2.0/24]");
    let narrow = of("loadBalancerSourceRanges: [198.51.100.128/25, 203.0.113.0/24]");
    let elsewhere = of("loadBalancerSourceRanges: [10.0.0.0/8]");
    let both = ["198.51.100.128/25", "203.0.113.64/26"];
    let merge = |one: &str, other: &str| World::default().cluster("a", one).cluster("b", other).merge();
    for (one, other, expected) in [
        (&narrow, &open, &["198.51.100.128/25", "203.0.113.0/24"][..]),
        (&open, &narrow, &["198.51.100.128/25", "203.0.113.0/24"]),
        (&wide, &narrow, &both),
        (&narrow, &wide, &both),
        (&wide, &elsewhere, &[]),
    ] {
        let desired = merge(one, other);
        let expected: Vec<String> = expected.iter().map(|&range| range.to_owned()).collect();
        assert_eq!(ranges(&desired, "192.0.2.1"), Some(expected.clone()));
        let problem = desired.only_problem("b", "Service demo/web", Reason::NotFront);
        assert!(problem.contains("source ranges"), "{problem}");
        assert_eq!(problem.contains("nobody"), expected.is_empty(), "{problem}");
    }
    assert_eq!(merge(&wide, &wide).problems, []);
}

#[test]
fn what_another_cluster_s_service_says_and_cannot_be_read_lets_nobody_in() {
    let open = front("web", "192.0.2.1", "");
    let wrong = front("web", "192.0.2.1", "loadBalancerSourceRanges: [everybody]");
    let desired = World::default().cluster("a", &open).cluster("b", &wrong).merge();
    assert_eq!(ranges(&desired, "192.0.2.1"), Some(vec![]));
    assert!(desired.problems.iter().any(|problem| problem.reason == Reason::InvalidSourceRange));
}
