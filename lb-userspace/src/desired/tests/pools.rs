//! Which pool gives a Service its address: scope, selector, sharing, and what is written on a pool.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::{Desired, Knowledge, Reason, Severity};
use super::{World, front, front_with, ip, name, pool, tcp};

/// A pool with more in its spec.
fn pool_with(name: &str, cidrs: &str, more: &str) -> String {
    pool(name, &format!("{cidrs}, {more}"))
}

/// Adds labels to a front.
fn labelled(front: &str, labels: &str) -> String {
    front.replace("  annotations:\n", &format!("  labels: {labels}\n  annotations:\n"))
}

fn vips(desired: &Desired, service: &str) -> Vec<IpAddr> {
    desired.fronts[&name(service)].vips.clone()
}

#[test]
fn the_scope_is_what_is_asked_for_and_internal_before_public() {
    // By name the public one would be first.
    let both = pool_with("a", "[198.51.100.0/24]", "scope: Public") + &pool("b", "[10.9.0.0/24]");
    let public = pool_with("a", "[198.51.100.0/24]", "scope: Public");
    for (pools, scope, expected) in [
        (&both, "", Some("10.9.0.")),
        (&both, "Internal", Some("10.9.0.")),
        (&both, "Public", Some("198.51.100.")),
        (&public, "", Some("198.51.100.")),
        (&public, "Internal", None),
    ] {
        let yaml = front_with("web", &[("kanmon.dev/scope", scope)], "");
        let desired = World::default().gateway(pools).cluster("a", &yaml).merge();
        match expected {
            Some(network) => {
                assert!(vips(&desired, "demo/web")[0].to_string().starts_with(network), "{scope}");
                assert_eq!(desired.problems, []);
            }
            None => {
                let message = desired.only_problem("a", "Service demo/web", Reason::NoAddress);
                assert!(message.contains("scope Internal"), "{message}");
            }
        }
    }
}

#[test]
fn a_scope_that_cannot_be_read_gets_no_address_for_it_might_have_meant_an_internal_one() {
    let yaml = front_with("web", &[("kanmon.dev/scope", "internal")], "");
    let desired = World::default()
        .gateway(&pool_with("a", "[198.51.100.0/24]", "scope: Public"))
        .cluster("a", &yaml)
        .merge();
    assert!(vips(&desired, "demo/web").is_empty());
    let message = desired.only_problem("a", "Service demo/web", Reason::InvalidAnnotation);
    assert!(message.contains("neither Internal nor Public"), "{message}");
}

#[test]
fn a_pool_gives_only_to_the_services_that_it_chooses() {
    let selectors = [
        ("{matchLabels: {team: shop}}", true),
        ("{matchLabels: {team: shop, tier: gold}}", false),
        ("{matchExpressions: [{key: team, operator: In, values: [shop, bank]}]}", true),
        ("{matchExpressions: [{key: team, operator: NotIn, values: [shop]}]}", false),
        ("{matchExpressions: [{key: tier, operator: NotIn, values: [gold]}]}", true),
        ("{matchExpressions: [{key: team, operator: Exists}]}", true),
        ("{matchExpressions: [{key: tier, operator: Exists}]}", false),
        ("{matchExpressions: [{key: tier, operator: DoesNotExist}]}", true),
        ("{matchLabels: {team: shop}, matchExpressions: [{key: team, operator: DoesNotExist}]}", false),
        ("{}", true),
    ];
    let yaml = labelled(&front("web", "", ""), "{team: shop}");
    for (selector, expected) in selectors {
        let gateway = pool_with("p", "[203.0.113.0/24]", &format!("serviceSelector: {selector}"));
        let desired = World::default().gateway(&gateway).cluster("a", &yaml).merge();
        assert_eq!(vips(&desired, "demo/web").len(), usize::from(expected), "{selector}");
        assert_eq!(desired.reasons().is_empty(), expected, "{selector}");
    }
}

#[test]
fn a_named_address_may_be_of_a_manual_pool_but_not_of_one_that_does_not_choose_the_service() {
    let manual = pool_with("p", "[203.0.113.0/24]", "autoAssign: false");
    let desired = World::default().gateway(&manual).cluster("a", &front("web", "203.0.113.7", "")).merge();
    assert_eq!(vips(&desired, "demo/web"), [ip("203.0.113.7")]);

    let theirs = pool_with("p", "[203.0.113.0/24]", "serviceSelector: {matchLabels: {team: bank}}");
    let named = front("web", "203.0.113.7", "");
    let desired = World::default().gateway(&theirs).cluster("a", &named).merge();
    assert_eq!(desired.ids(), []);
    let message = desired.only_problem("a", "Service demo/web", Reason::AddressNotAllowed);
    assert!(message.contains("AddressPool p"), "{message}");
    let chosen = labelled(&named, "{team: bank}");
    let desired = World::default().gateway(&theirs).cluster("a", &chosen).merge();
    assert_eq!((desired.ids(), desired.problems), (vec![tcp("203.0.113.7", 80)], vec![]));
}

#[test]
fn a_named_address_of_another_scope_counts_and_is_told() {
    let yaml =
        front_with("web", &[("kanmon.dev/addresses", "203.0.113.7"), ("kanmon.dev/scope", "Public")], "");
    let desired = World::default().gateway(&pool("p", "[203.0.113.0/24]")).cluster("a", &yaml).merge();
    assert_eq!(desired.ids(), [tcp("203.0.113.7", 80)]);
    desired.only_problem("a", "Service demo/web", Reason::InvalidAnnotation);
    assert_eq!(desired.problems[0].severity, Severity::Warning);
}

/// A front on a port that may share an address.
fn sharing(name: &str, address: &str, key: &str, port: u16) -> String {
    front_with(
        name,
        &[("kanmon.dev/addresses", address), ("kanmon.dev/shared-address", key)],
        &format!("ports: [{{name: http, port: {port}}}]"),
    )
}

#[test]
fn services_with_one_key_and_different_ports_share_an_address() {
    let yaml = sharing("a", "192.0.2.1", "k", 80) + &sharing("b", "192.0.2.1", "k", 81);
    let desired = World::default().cluster("a", &yaml).merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.1", 80), tcp("192.0.2.1", 81)]);
    assert_eq!(desired.problems, []);

    let yaml = sharing("a", "", "k", 80) + &sharing("b", "", "k", 81) + &sharing("c", "", "other", 82);
    let desired = World::default().gateway(&pool("p", "[203.0.113.0/24]")).cluster("a", &yaml).merge();
    assert_eq!(vips(&desired, "demo/a"), vips(&desired, "demo/b"));
    assert_ne!(vips(&desired, "demo/a"), vips(&desired, "demo/c"));
}

#[test]
fn without_the_same_key_or_with_a_common_port_nothing_is_shared() {
    for (first, second, hint) in [
        (sharing("a", "192.0.2.1", "k", 80), sharing("b", "192.0.2.1", "k", 80), "both have port 80/TCP"),
        (sharing("a", "192.0.2.1", "k", 80), sharing("b", "192.0.2.1", "l", 81), "must say the same"),
        (sharing("a", "192.0.2.1", "k", 80), sharing("b", "192.0.2.1", "", 81), "must say the same"),
        (sharing("a", "192.0.2.1", "", 80), sharing("b", "192.0.2.1", "", 81), "must say the same"),
    ] {
        let desired = World::default().cluster("a", &(first + &second)).merge();
        assert_eq!(desired.ids(), [tcp("192.0.2.1", 80)]);
        let message = desired.only_problem("a", "Service demo/b", Reason::AddressConflict);
        assert!(message.contains(hint), "{message}");
    }
    let yaml = sharing("a", "", "k", 80) + &sharing("b", "", "k", 80);
    let desired = World::default().gateway(&pool("p", "[203.0.113.0/24]")).cluster("a", &yaml).merge();
    let both: BTreeSet<IpAddr> = desired.allocations.values().flatten().copied().collect();
    assert_eq!((both.len(), desired.problems.len()), (2, 0), "they get one each");
}

#[test]
fn a_pool_that_lost_an_address_says_who_keeps_it() {
    let mut world =
        World::default().gateway(&pool("p", "[203.0.113.0/24]")).cluster("a", &front("web", "", ""));
    world.gateway.knowledge = Knowledge::Current;
    world.write("198.51.100.7", Some("p"), &["demo/web"]);
    let desired = world.merge();
    assert_eq!(vips(&desired, "demo/web"), [ip("198.51.100.7")], "a client may be using it");
    let message = desired.only_problem("", "AddressPool p", Reason::InUseOutside);
    assert!(message.contains("198.51.100.7, which Service demo/web holds"), "{message}");
    assert_eq!(desired.claims[&ip("198.51.100.7")].pool.as_deref(), Some("p"));

    world.gateway.pools.clear();
    let desired = world.merge();
    assert_eq!(vips(&desired, "demo/web"), [ip("198.51.100.7")]);
    desired.only_problem("", "AddressPool p", Reason::InUseOutside);
    let world = world.gateway(&pool("q", "[198.51.100.0/24]"));
    let desired = world.merge();
    assert_eq!(desired.problems, [], "another pool has it now");
    assert_eq!(desired.claims[&ip("198.51.100.7")].pool.as_deref(), Some("q"));
}

#[test]
fn a_service_that_asks_for_another_scope_gets_another_address() {
    let pools = pool("in", "[10.9.0.0/24]") + &pool_with("out", "[198.51.100.0/24]", "scope: Public");
    let yaml = front_with("web", &[("kanmon.dev/scope", "Public")], "");
    let mut world = World::default().gateway(&pools).cluster("a", &yaml);
    world.gateway.knowledge = Knowledge::Known;
    world.write("10.9.0.7", Some("in"), &["demo/web"]);
    let claims = world.merge().claims;
    assert!(claims[&ip("10.9.0.7")].services.is_empty(), "it is given back");
    let (address, claim) = claims.iter().find(|(_, claim)| !claim.services.is_empty()).unwrap();
    assert!(address.to_string().starts_with("198.51.100."), "{address}");
    assert_eq!(claim.pool.as_deref(), Some("out"));
}
