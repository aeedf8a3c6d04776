//! VIPs: asked for, allocated, in conflict.

use super::super::Reason;
use super::{World, front, ip, name, pool, slice, tcp};

#[test]
fn the_annotation_gives_one_vip_a_family() {
    let yaml = front("web", "192.0.2.1, 2001:db8::1", "")
        + &slice("web", "v4", &["10.0.0.1"])
        + &slice("web", "v6", &["fd00::1"]);
    let desired = World::default().cluster("a", &yaml).merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.1", 80), tcp("2001:db8::1", 80)]);
    assert_eq!(desired.endpoints(tcp("192.0.2.1", 80)), ["a=10.0.0.1:8080"]);
    assert_eq!(desired.endpoints(tcp("2001:db8::1", 80)), ["a=fd00::1:8080"]);
    assert_eq!((desired.problems, desired.allocations.len()), (vec![], 0));
}

#[test]
fn the_annotation_goes_before_the_field_and_the_field_before_pools() {
    let world = World::default().gateway(&pool("p", "[203.0.113.0/24]"));
    let both = front("web", "192.0.2.1", "loadBalancerIP: 192.0.2.9");
    let field = front("api", "", "loadBalancerIP: 192.0.2.8");
    let desired = world.cluster("a", &(both + &field)).merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.1", 80), tcp("192.0.2.8", 80)]);
    assert_eq!(desired.allocations.len(), 0);
}

#[test]
fn addresses_that_cannot_be_vips_are_refused() {
    for (text, expected) in [
        ("192.0.2", "\"192.0.2\" is not an IP address"),
        ("192.0.2.0/24", "is not an IP address"),
        ("0.0.0.0", "cannot be a VIP"),
        ("127.0.0.1", "cannot be a VIP"),
        ("224.0.0.1", "cannot be a VIP"),
        ("255.255.255.255", "cannot be a VIP"),
        ("169.254.1.1", "cannot be a VIP"),
        ("fe80::1", "cannot be a VIP"),
        ("::ffff:192.0.2.1", "cannot be a VIP"),
        ("ff02::1", "cannot be a VIP"),
        (",", "kanmon.dev/addresses names no address"),
    ] {
        let desired = World::default()
            .gateway(&pool("p", "[203.0.113.0/24]"))
            .cluster("a", &front("web", text, ""))
            .merge();
        assert_eq!(desired.ids(), [], "{text}: an explicit wish is never replaced by a pool's address");
        let message = desired.only_problem("a", "Service demo/web", Reason::InvalidAddress);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_bad_address_beside_a_good_one_costs_only_itself() {
    let desired = World::default().cluster("a", &front("web", "192.0.2.1,192.0.2.2,x", "")).merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.1", 80)]);
    assert_eq!(desired.reasons(), [Reason::InvalidAddress, Reason::InvalidAddress]);
}

#[test]
fn of_two_services_that_ask_for_one_vip_the_first_by_name_gets_it() {
    let desired = World::default()
        .cluster("a", &front("web", "192.0.2.1,2001:db8::2", "ports: [{name: x, port: 81}]"))
        .cluster("b", &front("api", "192.0.2.1,2001:db8::1", ""))
        .merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.1", 80), tcp("2001:db8::1", 80), tcp("2001:db8::2", 81)]);
    let message = desired.only_problem("a", "Service demo/web", Reason::AddressConflict);
    assert!(message.contains("192.0.2.1 is the VIP of Service demo/api"), "{message}");
}

#[test]
fn pools_give_addresses_that_do_not_depend_on_other_services() {
    let gateway = pool("p", "[203.0.113.0/24]");
    let alone = World::default().gateway(&gateway).cluster("a", &front("web", "", "")).merge();
    let vip = alone.allocations[&name("demo/web")][0];
    let mut crowd = World::default().gateway(&gateway).cluster("a", &front("web", "", ""));
    for service in ["abc", "zzz", "m", "n"] {
        crowd = crowd.cluster("a", &front(service, "", ""));
    }
    let crowd = crowd.merge();
    assert_eq!(crowd.allocations[&name("demo/web")], [vip]);
    assert_eq!(crowd.services.len(), 5);
}

#[test]
fn previous_allocations_stay_while_services_come_and_go() {
    // Four addresses and four services: nearly every place collides.
    let gateway = pool("p", "[203.0.113.4/30, 203.0.113.8/30]");
    let names = ["a", "b", "c", "d"];
    let all = |world: World| names.iter().fold(world, |world, name| world.cluster("a", &front(name, "", "")));
    let before = all(World::default().gateway(&gateway)).merge();
    assert_eq!(before.allocations.len(), 4);
    for gone in names {
        let mut world = World::default().gateway(&gateway);
        world.previous = before.allocations.clone();
        for name in names.iter().filter(|name| **name != gone) {
            world = world.cluster("a", &front(name, "", ""));
        }
        let world = world.cluster("a", &front("0-first-by-name", "", ""));
        let after = world.merge();
        for kept in names.iter().filter(|name| **name != gone) {
            let kept = name(&format!("demo/{kept}"));
            assert_eq!(after.allocations[&kept], before.allocations[&kept]);
        }
        let freed = &before.allocations[&name(&format!("demo/{gone}"))];
        assert_eq!(&after.allocations[&name("demo/0-first-by-name")], freed);
        assert_eq!(after.problems, []);
    }
}

#[test]
fn pools_never_give_network_broadcast_gateway_or_named_addresses() {
    let world = World::default()
        .gateway(&pool("p", "[203.0.113.0/29]"))
        .gateway_address("203.0.113.3")
        .cluster("a", &front("named", "203.0.113.5", ""));
    let world = (0..5).fold(world, |world, n| world.cluster("a", &front(&format!("s{n}"), "", "")));
    let desired = world.merge();
    let mut given: Vec<_> = desired.allocations.values().flatten().copied().collect();
    given.sort();
    assert_eq!(given, ["203.0.113.1", "203.0.113.2", "203.0.113.4", "203.0.113.6"].map(ip));
    let message = desired.only_problem("a", "Service demo/s4", Reason::NoAddress);
    assert!(message.contains("no IPv4 address is free"), "{message}");
}

#[test]
fn a_named_address_takes_it_from_a_pools_service_and_says_so() {
    let mut world = World::default()
        .gateway(&pool("p", "[203.0.113.0/24]"))
        .cluster("a", &(front("old", "", "") + &front("new", "203.0.113.77", "")));
    world.previous.insert(name("demo/old"), vec![ip("203.0.113.77")]);
    let desired = world.merge();
    assert_eq!(desired.service(tcp("203.0.113.77", 80)).name, "new");
    assert_ne!(desired.allocations[&name("demo/old")], [ip("203.0.113.77")]);
    desired.only_problem("a", "Service demo/old", Reason::AddressConflict);
}

#[test]
fn a_previous_address_that_left_the_pool_is_given_up() {
    let mut world =
        World::default().gateway(&pool("p", "[203.0.113.0/24]")).cluster("a", &front("web", "", ""));
    world.previous.insert(name("demo/web"), vec![ip("198.51.100.7")]);
    let vip = world.merge().allocations[&name("demo/web")][0];
    assert!(vip.to_string().starts_with("203.0.113."), "{vip}");
}

#[test]
fn families_are_those_that_the_service_wants() {
    let both = pool("p", "[203.0.113.0/24, \"2001:db8:1::/64\"]");
    let v4 = pool("p", "[203.0.113.0/24]");
    let v6 = pool("p", "[\"2001:db8:1::/64\"]");
    // Pools, spec, number of IPv4 and IPv6 VIPs, whether something is missing.
    for (gateway, more, expected) in [
        (&both, "", (1, 0, false)),
        (&v6, "", (0, 1, false)),
        (&both, "ipFamilies: [IPv6]", (0, 1, false)),
        (&both, "ipFamilyPolicy: PreferDualStack", (1, 1, false)),
        (&v4, "ipFamilyPolicy: PreferDualStack", (1, 0, false)),
        (&both, "ipFamilyPolicy: RequireDualStack", (1, 1, false)),
        (&v4, "ipFamilyPolicy: RequireDualStack", (1, 0, true)),
        (&v4, "ipFamilies: [IPv6]", (0, 0, true)),
    ] {
        let desired = World::default().gateway(gateway).cluster("a", &front("web", "", more)).merge();
        let v4 = desired.services.keys().filter(|id| id.vip.is_ipv4()).count();
        let found = (v4, desired.services.len() - v4, desired.reasons().contains(&Reason::NoAddress));
        assert_eq!(found, expected, "{more} {:?}", desired.problems);
    }
}

#[test]
fn pools_without_auto_assign_and_bad_networks_give_nothing() {
    let manual = pool("p", "[203.0.113.0/24], autoAssign: false");
    let desired = World::default().gateway(&manual).cluster("a", &front("web", "", "")).merge();
    desired.only_problem("a", "Service demo/web", Reason::NoAddress);

    let bad = pool("p", "[203.0.113.1/24, 203.0.113.8]");
    let desired = World::default().gateway(&bad).cluster("a", &front("web", "192.0.2.1", "")).merge();
    assert_eq!(desired.reasons(), [Reason::InvalidObject, Reason::InvalidObject]);
    assert!(desired.problems.iter().all(|problem| problem.object == "AddressPool p"));
    assert!(desired.problems.iter().any(|problem| problem.message.contains("did you mean 203.0.113.0/24?")));
}

#[test]
fn small_and_huge_pools_work() {
    for (cidrs, count) in
        [("[203.0.113.1/32]", 1), ("[203.0.113.0/31]", 2), ("[\"2001:db8::1/128\"]", 1), ("[\"::/0\"]", 1)]
    {
        let world = World::default().gateway(&pool("p", cidrs));
        let names = ["x", "y"];
        let world = names[..count].iter().fold(world, |world, name| world.cluster("a", &front(name, "", "")));
        let desired = world.merge();
        assert_eq!((desired.services.len(), desired.problems.len()), (count, 0), "{cidrs}");
    }
}
