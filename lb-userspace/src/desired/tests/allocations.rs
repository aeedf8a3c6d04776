//! Addresses that are written down: who is served, what should be written, and what stays.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::resources::{
    AddressAllocation, AddressAllocationSpec, CLUSTER_SET_LABEL, GROUP_LABEL, ServiceReference,
    allocation_name,
};
use super::super::{Claim, Desired, Knowledge, ObjectName, Owner, Reason};
use super::{World, front, front_with, ip, name, pool, tcp};

const ALL: [Knowledge; 3] = [Knowledge::Partial, Knowledge::Known, Knowledge::Current];

impl World {
    /// Writes down who has an address, after all that is written.
    pub(super) fn write(
        &mut self,
        address: &str,
        pool: Option<&str>,
        services: &[&str],
    ) -> &mut AddressAllocation {
        let owner = self.gateway.owner.clone();
        let written = self.gateway.allocations.get_or_insert_with(Vec::new);
        let reference = |service: &&str| ServiceReference::from(&name(service));
        let mut object = AddressAllocation::new(
            &allocation_name(ip(address)),
            AddressAllocationSpec {
                address: address.to_owned(),
                pool: pool.map(str::to_owned),
                shared_address: None,
                services: services.iter().map(reference).collect(),
            },
        );
        object.metadata.labels = Some([(CLUSTER_SET_LABEL.to_owned(), owner.cluster_set_id)].into());
        let created = format!("2026-01-01T00:00:{:02}Z", written.len());
        object.metadata.creation_timestamp = Some(serde_json::from_value(created.into()).unwrap());
        written.push(object);
        written.last_mut().unwrap()
    }
}

/// Fronts in a gateway cluster that holds allocations, with a pool.
fn world(fronts: &str) -> World {
    let mut world = World::default().gateway(&pool("p", "[203.0.113.0/28]")).cluster("a", fronts);
    world.gateway.allocations = Some(Vec::new());
    world.gateway.owner = Owner { cluster_set_id: "prod".to_owned(), group: String::new() };
    world.gateway.knowledge = Knowledge::Current;
    world
}

fn vips(desired: &Desired, service: &str) -> Vec<IpAddr> {
    desired.fronts[&name(service)].vips.clone()
}

fn claim(pool: Option<&str>, services: &[&str]) -> Claim {
    let services = services.iter().map(|service| name(service)).collect();
    Claim { pool: pool.map(str::to_owned), shared_address: None, services }
}

/// The address that is claimed for a Service.
fn claimed(desired: &Desired, service: &str) -> IpAddr {
    let service = name(service);
    *desired.claims.iter().find(|(_, claim)| claim.services.contains(&service)).unwrap().0
}

#[test]
fn a_pools_address_is_served_once_it_is_written_and_not_before() {
    let mut world = world(&front("web", "", ""));
    let before = world.merge();
    assert_eq!((vips(&before, "demo/web"), before.services.len(), before.problems.len()), (vec![], 0, 0));
    let address = claimed(&before, "demo/web");
    assert_eq!(before.claims[&address], claim(Some("p"), &["demo/web"]));
    assert_eq!(before.allocations.len(), 0, "what is not served is no VIP of the last merge");
    world.write(&address.to_string(), Some("p"), &["demo/web"]);
    let after = world.merge();
    assert_eq!(vips(&after, "demo/web"), [address]);
    assert_eq!(after.claims, before.claims, "nothing more is to be written");
    assert_eq!(after.allocations[&name("demo/web")], [address]);
}

#[test]
fn an_address_that_another_was_faster_with_is_left_to_it() {
    let mut world = world(&(front("api", "", "") + &front("web", "", "")));
    let address = claimed(&world.merge(), "demo/web");
    world.write(&address.to_string(), Some("p"), &["demo/api"]);
    let desired = world.merge();
    assert_eq!(vips(&desired, "demo/api"), [address]);
    assert_ne!(claimed(&desired, "demo/web"), address);
    assert_eq!(desired.problems, []);
}

#[test]
fn a_named_address_is_served_at_once_and_written_too() {
    for knowledge in ALL {
        let mut world = world(&front("web", "192.0.2.1,2001:db8::1", ""));
        world.gateway.knowledge = knowledge;
        let desired = world.merge();
        assert_eq!(vips(&desired, "demo/web"), [ip("192.0.2.1"), ip("2001:db8::1")]);
        assert_eq!(desired.claims[&ip("192.0.2.1")], claim(None, &["demo/web"]));
    }
    let desired = world(&front("web", "203.0.113.5", "")).merge();
    assert_eq!(desired.claims[&ip("203.0.113.5")].pool.as_deref(), Some("p"));
}

#[test]
fn a_named_address_that_is_anothers_is_refused_however_the_services_are_called() {
    let mut world = world(&(front("api", "203.0.113.5", "") + &front("web", "", "")));
    world.write("203.0.113.5", Some("p"), &["demo/web"]);
    let desired = world.merge();
    assert_eq!((vips(&desired, "demo/api"), vips(&desired, "demo/web")), (vec![], vec![ip("203.0.113.5")]));
    let message = desired.only_problem("a", "Service demo/api", Reason::AddressConflict);
    assert!(message.contains("203.0.113.5 is the VIP of Service demo/web"), "{message}");
}

#[test]
fn addresses_of_other_cluster_sets_are_taken() {
    let mut world = world(&(front("api", "203.0.113.5", "") + &front("web", "", "")));
    for last in 1..=14 {
        let object = world.write(&format!("203.0.113.{last}"), Some("p"), &["demo/web"]);
        object.metadata.labels = Some([(CLUSTER_SET_LABEL.to_owned(), "test".to_owned())].into());
    }
    let desired = world.merge();
    assert_eq!(desired.reasons(), [Reason::AddressConflict, Reason::NoAddress]);
    assert_eq!((desired.services.len(), desired.claims.len()), (0, 0), "nothing of theirs is touched");
}

#[test]
fn another_group_of_gateways_is_served_by_but_its_allocations_are_not_changed() {
    let mut world = world(&(front("api", "", "") + &front("web", "", "")));
    for (address, service) in [("203.0.113.5", "demo/web"), ("203.0.113.6", "demo/elsewhere")] {
        let object = world.write(address, Some("p"), &[service]);
        let labels = object.metadata.labels.as_mut().unwrap();
        labels.insert(GROUP_LABEL.to_owned(), "0a1b2c3d".to_owned());
    }
    let desired = world.merge();
    assert_eq!(vips(&desired, "demo/web"), [ip("203.0.113.5")]);
    let claimed: Vec<&IpAddr> = desired.claims.keys().collect();
    assert_eq!(claimed.len(), 1, "{claimed:?}");
    assert_eq!(desired.claims[claimed[0]], claim(Some("p"), &["demo/api"]));
}

#[test]
fn an_address_is_given_back_only_when_every_cluster_is_known_not_to_have_the_service() {
    for knowledge in ALL {
        let mut world = world(&front("web", "", ""));
        world.gateway.knowledge = knowledge;
        world.write("203.0.113.5", Some("p"), &["demo/gone"]);
        let expected = match knowledge {
            Knowledge::Current => Claim::default(),
            Knowledge::Partial | Knowledge::Known => claim(Some("p"), &["demo/gone"]),
        };
        let desired = world.merge();
        assert_eq!(desired.claims[&ip("203.0.113.5")], expected, "{knowledge:?}");
        assert_ne!(claimed(&desired, "demo/web"), ip("203.0.113.5"), "{knowledge:?}");
    }
}

#[test]
fn a_service_that_names_another_address_moves_unless_a_member_was_never_read() {
    for (knowledge, vip) in [
        (Knowledge::Partial, "203.0.113.5"),
        (Knowledge::Known, "192.0.2.1"),
        (Knowledge::Current, "192.0.2.1"),
    ] {
        let mut world = world(&front("web", "192.0.2.1", ""));
        world.gateway.knowledge = knowledge;
        world.write("203.0.113.5", Some("p"), &["demo/web"]);
        let desired = world.merge();
        assert_eq!(vips(&desired, "demo/web"), [ip(vip)], "{knowledge:?}");
        let is_kept = !desired.claims[&ip("203.0.113.5")].services.is_empty();
        assert_eq!(is_kept, knowledge == Knowledge::Partial);
        let told = desired.reasons() == [Reason::MembersUnknown];
        assert_eq!(told, knowledge == Knowledge::Partial, "{:?}", desired.problems);
    }
}

#[test]
fn an_agent_that_never_read_a_member_moves_nothing() {
    // The member that is away has the older Service of this name, which names an address; here it names none.
    let mut world = world(&front("web", "", ""));
    world.gateway.knowledge = Knowledge::Partial;
    world.write("192.0.2.1", None, &["demo/web"]);
    let desired = world.merge();
    assert_eq!(vips(&desired, "demo/web"), [ip("192.0.2.1")]);
    assert_eq!(desired.claims[&ip("192.0.2.1")], claim(None, &["demo/web"]));
    world.gateway.knowledge = Knowledge::Known;
    let desired = world.merge();
    assert!(desired.claims[&ip("192.0.2.1")].services.is_empty(), "nobody names it any more");
    assert!(claimed(&desired, "demo/web").to_string().starts_with("203.0.113."));
}

#[test]
fn of_two_addresses_that_are_written_for_a_service_the_older_stays() {
    let mut world = world(&front("web", "", ""));
    world.write("203.0.113.9", Some("p"), &["demo/web"]);
    world.write("203.0.113.5", Some("p"), &["demo/web"]);
    let desired = world.merge();
    assert_eq!(vips(&desired, "demo/web"), [ip("203.0.113.9")]);
    assert!(desired.claims[&ip("203.0.113.5")].services.is_empty());
}

#[test]
fn what_was_served_before_anybody_wrote_it_down_goes_on_and_is_written() {
    let mut world = world(&(front("api", "", "") + &front("web", "", "")));
    world.previous.insert(name("demo/web"), vec![ip("203.0.113.5")]);
    world.previous.insert(name("demo/api"), vec![ip("203.0.113.6")]);
    world.write("203.0.113.6", Some("p"), &["demo/other"]);
    world.gateway.knowledge = Knowledge::Known;
    let desired = world.merge();
    assert_eq!(vips(&desired, "demo/web"), [ip("203.0.113.5")]);
    assert_eq!(desired.claims[&ip("203.0.113.5")], claim(Some("p"), &["demo/web"]));
    assert!(vips(&desired, "demo/api").is_empty(), "it is written for another");
    desired.only_problem("a", "Service demo/api", Reason::AddressConflict);
}

#[test]
fn a_gateways_own_address_stays_a_vip_that_is_written() {
    let mut world = world(&front("web", "", "")).gateway_address("203.0.113.5");
    world.write("203.0.113.5", Some("p"), &["demo/web"]);
    assert_eq!(vips(&world.merge(), "demo/web"), [ip("203.0.113.5")], "other gateways serve it too");
}

#[test]
fn a_service_joins_an_address_once_that_is_written() {
    let shared = |name: &str, port: u16| {
        let more = format!("ports: [{{name: http, port: {port}}}]");
        front_with(name, &[("kanmon.dev/addresses", "192.0.2.1"), ("kanmon.dev/shared-address", "k")], &more)
    };
    let mut world = world(&(shared("api", 80) + &shared("web", 81)));
    world.write("192.0.2.1", None, &["demo/web"]).spec.shared_address = Some("k".to_owned());
    let desired = world.merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.1", 81)]);
    let both: Vec<ObjectName> = desired.claims[&ip("192.0.2.1")].services.iter().cloned().collect();
    assert_eq!(both, [name("demo/api"), name("demo/web")]);
    world.gateway.allocations.as_mut().unwrap()[0].spec.services = both.iter().map(Into::into).collect();
    assert_eq!(world.merge().ids(), [tcp("192.0.2.1", 80), tcp("192.0.2.1", 81)]);
    // One that is away may have the same port.
    world.gateway.allocations.as_mut().unwrap()[0].spec.services =
        ["demo/away", "demo/web"].iter().map(|service| ServiceReference::from(&name(service))).collect();
    world.gateway.knowledge = Knowledge::Known;
    let desired = world.merge();
    assert_eq!(desired.ids(), [tcp("192.0.2.1", 81)]);
    desired.only_problem("a", "Service demo/api", Reason::AddressConflict);
}

#[test]
fn where_nobody_writes_it_down_there_is_nothing_to_write() {
    let mut world = world(&front("web", "", ""));
    world.gateway.allocations = None;
    let desired = world.merge();
    assert_eq!((desired.services.len(), desired.claims.len()), (1, 0));
}

#[test]
fn what_is_wanted_says_which_clusters_it_was_made_of_and_how_well_they_were_known() {
    let mut world = World::default().cluster("a", "").cluster("b", "");
    world.gateway.knowledge = Knowledge::Known;
    let desired = world.merge();
    assert_eq!(desired.clusters, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    assert_eq!(desired.knowledge, Knowledge::Known);
}
