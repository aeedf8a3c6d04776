//! What is decided where everything comes together.

use serde_json::json;

use super::super::access::Access;
use super::super::health::Shown;
use super::*;

fn parse<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> T {
    serde_json::from_value(json).unwrap()
}

fn gateway_cluster() -> gateway::View {
    gateway::View {
        health: Shown { connected: Some(true), fault: None, since: Timestamp::UNIX_EPOCH },
        members: Some(vec![]),
        lacks_crds: false,
        pools: Some(vec![]),
        policies: Some(vec![]),
        allocations: Some(vec![]),
        lacks_allocations: false,
        services: Some(vec![]),
        reads_services: true,
        secrets: vec![],
        complete: BTreeSet::new(),
        place: None,
        problems: vec![],
        answered: true,
    }
}

#[test]
fn while_fronts_of_the_gateway_cluster_may_not_be_read_no_address_is_given_back() {
    let read = gateway_cluster();
    assert_eq!(rate(&read, true), Knowledge::Current);
    assert_eq!(rate(&read, false), Knowledge::Known, "a member is away");
    let never_read = gateway::View { services: None, reads_services: false, ..gateway_cluster() };
    assert_eq!(rate(&never_read, true), Knowledge::Known);
    let no_longer = gateway::View { reads_services: false, ..gateway_cluster() };
    assert_eq!(rate(&no_longer, true), Knowledge::Known);
    let not_yet = gateway::View { answered: false, ..never_read };
    assert_eq!(rate(&not_yet, true), Knowledge::Partial);
}

fn standing(state: &str, deleted: Option<&str>) -> Standing {
    Standing {
        object: parse(json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "MemberCluster",
            "metadata": {"name": "m", "deletionTimestamp": deleted},
            "spec": {"source": {"local": {}}, "state": state}})),
        exists: true,
        access: Some(Access::Plain("http://m".to_owned())),
        obstacle: None,
        duplicate_of: None,
        successor_of: None,
    }
}

#[test]
fn a_disabled_member_is_connected_to_once_more_when_it_is_deleted_so_that_it_can_be_cleaned() {
    assert!(wanted(&standing("Active", None)).is_some());
    assert_eq!(wanted(&standing("Disabled", None)), None);
    let order = wanted(&standing("Disabled", Some("2026-01-01T00:00:00Z")));
    assert_eq!(order.map(|order| order.follow), Some(Follow::Everything));
}
