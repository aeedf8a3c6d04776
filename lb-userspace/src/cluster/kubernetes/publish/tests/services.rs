//! Services' addresses and conditions.

use serde_json::json;

use super::super::Action;
use super::{Bed, at, object, parse};
use crate::desired::{Reason, Severity};

fn served() -> Bed {
    served_by(&[("gw-1", true), ("gw-2", true)])
}

/// One whose gateways say so of its address.
fn served_by(gateways: &[(&str, bool)]) -> Bed {
    Bed::new().service("web", json!({})).front("web", "a", &[], &["192.0.2.1"]).told("192.0.2.1", gateways)
}

#[test]
fn a_front_gets_its_address_for_proxies_to_leave_alone_and_then_nothing_is_written() {
    let mut bed = served();
    assert_eq!(bed.settle(), ["apply status of Service web"]);
    assert_eq!(bed.ingress("web"), ["192.0.2.1/Proxy"]);
    assert_eq!(
        bed.service_conditions("web"),
        [
            "kanmon.dev/Accepted=True/Accepted",
            "kanmon.dev/AddressAssigned=True/Assigned",
            "kanmon.dev/Programmed=True/Programmed",
            "kanmon.dev/Enforced=True/Enforced",
        ]
    );
    assert_eq!(bed.message("web", "kanmon.dev/Programmed"), "2 of 2 gateways");
    bed.second += 60;
    assert_eq!(bed.settle(), [""; 0]);
}

#[test]
fn both_families_are_told_in_one_status() {
    let mut bed = Bed::new().service("web", json!({})).front("web", "a", &[], &["192.0.2.1", "fd00::1"]);
    bed.settle();
    assert_eq!(bed.ingress("web"), ["192.0.2.1/Proxy", "fd00::1/Proxy"]);
}

#[test]
fn another_cluster_s_front_shares_its_address_and_says_whose_word_counts() {
    let mut bed = Bed::new().service("web", json!({})).front("web", "b", &["a"], &["192.0.2.1"]).problem(
        "a",
        "Service demo/web",
        Reason::NotFront,
        Severity::Warning,
    );
    bed.settle();
    assert_eq!(bed.ingress("web"), ["192.0.2.1/Proxy"]);
    assert!(bed.service_conditions("web").contains(&"kanmon.dev/NotFront=True/NotFront".to_owned()));
    let message = bed.message("web", "kanmon.dev/NotFront");
    assert!(
        message.contains("in cluster b is the front") && message.contains("message of NotFront"),
        "{message}"
    );

    let mut alone = bed.front("web", "a", &[], &["192.0.2.1"]);
    alone.desired.problems.clear();
    alone.settle();
    assert!(!alone.service_conditions("web").iter().any(|condition| condition.contains("NotFront")));
}

#[test]
fn a_refused_service_has_no_address_and_every_reason() {
    let mut bed = served();
    bed.settle();
    bed.desired.fronts.clear();
    let mut bed = bed
        .problem("a", "Service demo/web", Reason::UnsupportedProtocol, Severity::Error)
        .problem("a", "Service demo/web", Reason::UnsupportedService, Severity::Error)
        .problem("b", "Service demo/web", Reason::PortMismatch, Severity::Error);
    bed.settle();
    assert_eq!(bed.ingress("web"), [""; 0]);
    assert_eq!(
        bed.service_conditions("web"),
        [
            "kanmon.dev/Accepted=False/UnsupportedService,UnsupportedProtocol",
            "kanmon.dev/AddressAssigned=False/NotAccepted",
            "kanmon.dev/Programmed=False/NotAccepted",
            "kanmon.dev/Enforced=True/Enforced",
        ]
    );
    let message = bed.message("web", "kanmon.dev/Accepted");
    assert_eq!(message, "message of UnsupportedProtocol; message of UnsupportedService");
}

#[test]
fn what_is_not_enforced_is_said_and_the_service_is_served_all_the_same() {
    let mut bed = served()
        .problem("a", "Service demo/web", Reason::TrafficDistributionIgnored, Severity::Warning)
        .problem("a", "Service demo/web", Reason::ExternalTrafficPolicyIgnored, Severity::Warning)
        .problem("a", "Service demo/web", Reason::InvalidSourceRange, Severity::Error);
    bed.settle();
    assert_eq!(bed.ingress("web"), ["192.0.2.1/Proxy"]);
    let conditions = bed.service_conditions("web");
    assert_eq!(conditions[0], "kanmon.dev/Accepted=True/Accepted");
    assert_eq!(
        conditions[3],
        "kanmon.dev/Enforced=False/ExternalTrafficPolicyIgnored,TrafficDistributionIgnored,InvalidSourceRange"
    );
}

#[test]
fn a_service_waits_for_its_address_and_is_told_why_there_is_none() {
    let mut bed = Bed::new().service("web", json!({})).front("web", "a", &[], &[]);
    bed.settle();
    assert_eq!(bed.service_conditions("web")[1], "kanmon.dev/AddressAssigned=False/Pending");
    assert_eq!(bed.service_conditions("web")[2], "kanmon.dev/Programmed=False/NoAddress");

    let mut bed = bed.problem("a", "Service demo/web", Reason::MembersUnknown, Severity::Warning);
    bed.settle();
    assert_eq!(bed.service_conditions("web")[1], "kanmon.dev/AddressAssigned=False/MembersUnknown");

    bed.desired.problems.clear();
    let mut bed = bed.problem("a", "Service demo/web", Reason::NoAddress, Severity::Error);
    bed.settle();
    assert_eq!(bed.service_conditions("web")[0], "kanmon.dev/Accepted=True/Accepted");
    assert_eq!(bed.service_conditions("web")[1], "kanmon.dev/AddressAssigned=False/NoAddress");
}

#[test]
fn an_address_that_goes_is_taken_out_of_the_status() {
    let mut bed = served();
    bed.settle();
    let mut bed = bed.front("web", "a", &[], &[]);
    bed.settle();
    assert_eq!(bed.ingress("web"), [""; 0]);
}

#[test]
fn a_gateway_that_is_broken_is_named_with_its_reason() {
    let mut bed = served();
    bed.allocations.clear();
    bed.settle();
    assert_eq!(bed.service_conditions("web")[2], "kanmon.dev/Programmed=Unknown/Pending");

    let mut bed = bed.told("192.0.2.1", &[("gw-1", true), ("gw-2", false)]);
    bed.settle();
    assert_eq!(bed.service_conditions("web")[2], "kanmon.dev/Programmed=False/NoSnatAddress");
    assert_eq!(
        bed.message("web", "kanmon.dev/Programmed"),
        "1 of 2 gateways; gw-2 does not serve 192.0.2.1: it has no SNAT address"
    );
}

#[test]
fn a_gateway_that_has_told_of_one_of_two_addresses_is_waited_for() {
    let mut bed = Bed::new()
        .service("web", json!({}))
        .front("web", "a", &[], &["192.0.2.1", "fd00::1"])
        .told("192.0.2.1", &[("gw-1", true), ("gw-2", true)])
        .told("fd00::1", &[("gw-1", true)]);
    bed.settle();
    assert_eq!(bed.service_conditions("web")[2], "kanmon.dev/Programmed=Unknown/Pending");
}

#[test]
fn what_another_cluster_set_s_gateways_say_does_not_count() {
    let mut bed = served();
    let labels = bed.allocations[0].metadata.labels.as_mut().unwrap();
    labels.insert(super::CLUSTER_SET_LABEL.to_owned(), "other".to_owned());
    bed.settle();
    assert_eq!(bed.service_conditions("web")[2], "kanmon.dev/Programmed=Unknown/Pending");
}

#[test]
fn a_condition_keeps_its_time_until_its_status_changes() {
    let mut bed = served();
    bed.settle();
    bed.second = 100;
    let mut bed = bed.problem("a", "Service demo/web", Reason::TrafficDistributionIgnored, Severity::Warning);
    bed.settle();
    let status = bed.present.services[&object("web")].status.clone().unwrap();
    for condition in status.conditions.unwrap() {
        let second = if condition.type_ == "kanmon.dev/Enforced" { 100 } else { 0 };
        assert_eq!(condition.last_transition_time.0, at(second), "{}", condition.type_);
    }
}

#[test]
fn a_service_that_is_no_longer_ours_loses_what_we_wrote_and_keeps_what_others_wrote() {
    let mut bed = served();
    bed.settle();
    let service = bed.present.services.get_mut(&object("web")).unwrap();
    service.spec.as_mut().unwrap().load_balancer_class = None;
    let other = json!({"type": "other.example/Ready", "status": "True", "reason": "Ready", "message": "",
        "lastTransitionTime": "2024-01-01T00:00:00Z"});
    service.status.as_mut().unwrap().conditions.as_mut().unwrap().push(parse(other));
    let writes = bed.writes();
    assert_eq!(writes.len(), 1);
    assert_eq!(writes[0].action, Action::ApplyStatus(json!({})));
    bed.settle();
    assert_eq!(bed.ingress("web"), [""; 0]);
    assert_eq!(bed.service_conditions("web"), ["other.example/Ready=True/Ready"]);
}

#[test]
fn nothing_is_written_on_a_service_that_goes_away_or_is_not_judged_yet() {
    let bed = Bed::new().service("web", json!({}));
    assert_eq!(bed.writes(), []);

    let mut ending = served();
    ending.present.namespaces.insert("demo".to_owned(), true);
    assert_eq!(ending.writes(), []);

    let mut deleted = served();
    let service = deleted.present.services.get_mut(&object("web")).unwrap();
    service.metadata.deletion_timestamp = Some(parse(json!("2024-01-01T00:00:00Z")));
    assert_eq!(deleted.writes(), []);
}

#[test]
fn a_service_without_a_fault_of_its_own_is_told_why_it_is_not_used() {
    let mut unexported = Bed::new().service("web", json!({})).problem(
        "a",
        "Service demo/web",
        Reason::NotExported,
        Severity::Warning,
    );
    unexported.settle();
    assert_eq!(unexported.service_conditions("web")[0], "kanmon.dev/Accepted=False/NotExported");

    let mut refused = Bed::new().service("web", json!({})).problem(
        "",
        "MemberCluster a",
        Reason::CIDROverlap,
        Severity::Error,
    );
    refused.settle();
    assert_eq!(refused.service_conditions("web")[0], "kanmon.dev/Accepted=False/CIDROverlap");
}

#[test]
fn a_gateway_that_is_gone_is_named_though_its_last_word_was_good_and_forgotten_when_it_stays_away() {
    let mut bed = served();
    bed.absent("gw-2", false);
    bed.settle();
    assert_eq!(bed.service_conditions("web")[2], "kanmon.dev/Programmed=False/GatewayGone");
    let message = bed.message("web", "kanmon.dev/Programmed");
    assert!(message.starts_with("1 of 2 gateways; gw-2 is gone"), "{message}");
    assert!(message.contains("Lease kanmon-system/kanmon-set.gateway.gw-2"), "{message}");

    bed.absent("gw-2", true);
    bed.settle();
    assert_eq!(bed.service_conditions("web")[2], "kanmon.dev/Programmed=True/Programmed");
    assert_eq!(bed.message("web", "kanmon.dev/Programmed"), "1 of 1 gateways");
    assert_eq!(bed.settle(), [""; 0]);
}

#[test]
fn what_a_gateway_that_is_gone_said_last_is_not_why_an_address_is_not_served() {
    let mut bed = served_by(&[("gw-1", true), ("gw-2", false)]);
    bed.absent("gw-2", false);
    bed.settle();
    assert_eq!(bed.service_conditions("web")[2], "kanmon.dev/Programmed=False/GatewayGone");
    bed.absent("gw-2", true);
    bed.settle();
    assert_eq!(bed.service_conditions("web")[2], "kanmon.dev/Programmed=True/Programmed");

    let mut both = served_by(&[("gw-1", false), ("gw-2", true)]);
    both.absent("gw-2", false);
    both.settle();
    assert_eq!(both.service_conditions("web")[2], "kanmon.dev/Programmed=False/NoSnatAddress,GatewayGone");
}

#[test]
fn who_has_just_started_does_not_call_a_gateway_well_that_another_called_gone() {
    let mut bed = served();
    bed.absences.unsure.insert("gw-2".to_owned());
    bed.settle();
    assert_eq!(bed.service_conditions("web")[2], "kanmon.dev/Programmed=True/Programmed", "the first word");
    bed.absences.unsure.clear();
    bed.absent("gw-2", false);
    bed.settle();
    bed.absences.gone.clear();
    bed.absences.unsure.insert("gw-2".to_owned());
    assert_eq!(bed.settle(), [""; 0]);
    bed.absences.unsure.clear();
    bed.settle();
    assert_eq!(
        bed.service_conditions("web")[2],
        "kanmon.dev/Programmed=True/Programmed",
        "it is seen renewing"
    );
}
