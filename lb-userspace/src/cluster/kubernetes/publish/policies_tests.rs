//! Policies and what became of them in, writes out, done as an API server would.

use serde_json::Value;

use super::*;
use crate::cluster::{NotProgrammed, PolicyReport};
use crate::desired::FrontState;

const VIP: &str = "192.0.2.1";
const SET: &str = "set";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn object(text: &str) -> ObjectName {
    text.to_owned().try_into().unwrap()
}

fn policy(name: &str, spec: Value) -> LoadBalancingPolicy {
    let mut all = json!({"targetRefs": [{"group": "", "kind": "Service", "name": "web"}]});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    serde_json::from_value(json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "LoadBalancingPolicy",
        "metadata": {"namespace": "demo", "name": name, "generation": 7}, "spec": all}))
    .unwrap()
}

fn area(region: &str, endpoints: u32, healthy: u32, ejected: u32) -> AreaStatus {
    AreaStatus {
        service: "web".to_owned(),
        region: region.to_owned(),
        zone: String::new(),
        endpoints,
        healthy,
        ejected,
        effective_weight: 50,
        state: "Active".to_owned(),
    }
}

/// A gateway cluster with one policy, and a gateway.
struct Bed {
    policy: LoadBalancingPolicy,
    desired: Desired,
    programmed: Programmed,
    second: i64,
}

impl Bed {
    /// Service demo/web goes by the policy and is forwarded.
    fn new(spec: Value) -> Self {
        let policy = policy("p", spec);
        let web = object("demo/web");
        let mut desired = Desired { complete: true, knowledge: Knowledge::Current, ..Desired::default() };
        let front = FrontState { vips: vec![VIP.parse().unwrap()], ..FrontState::default() };
        desired.fronts.insert(web.clone(), front);
        let targets = policy.spec.targets("demo");
        let state = PolicyState { targets, services: [web].into(), ..PolicyState::default() };
        desired.policies.insert(object("demo/p"), state);
        let vips = [(VIP.parse().unwrap(), Ok(()))].into();
        let programmed = Programmed { known: true, vips, ..Programmed::default() };
        Self { policy, desired, programmed, second: 0 }
    }

    fn report(&mut self, areas: Vec<AreaStatus>, degraded: Option<&str>) {
        let report = PolicyReport { areas, degraded: degraded.map(str::to_owned) };
        self.programmed.policies.insert(object("demo/p"), report);
    }

    /// A gateway looks at the policy. How often it wrote, and when it wants to look again.
    fn look(&mut self, gateway: &str) -> (usize, Option<i64>) {
        let present = std::slice::from_ref(&self.policy);
        let (writes, next) =
            own_writes((SET, gateway), &self.programmed, &self.desired, present, at(self.second));
        for write in &writes {
            let Action::ApplyStatus(value) = &write.action else { panic!("{write:?}") };
            let status = self.policy.status.get_or_insert_default();
            status.gateways.retain(|entry| entry.name != gateway);
            let entries = value["status"]["gateways"].as_array().into_iter().flatten();
            status.gateways.extend(
                entries.map(|entry| serde_json::from_value::<PolicyGatewayState>(entry.clone()).unwrap()),
            );
        }
        (writes.len(), next.map(|next| next.as_second() - 1_000_000))
    }

    /// The lead looks at the policy, until it has nothing to write. How often it wrote.
    fn lead(&mut self) -> usize {
        let mut count = 0;
        while let Some(write) =
            writes(std::slice::from_ref(&self.policy), &self.desired, at(self.second)).pop()
        {
            let Action::ApplyStatus(value) = write.action else { panic!("{write:?}") };
            assert_eq!(value["status"].get("gateways"), None, "those are the gateways' own");
            let gateways = self.policy.status.take().unwrap_or_default().gateways;
            let status: LoadBalancingPolicyStatus = serde_json::from_value(value["status"].clone()).unwrap();
            self.policy.status = Some(LoadBalancingPolicyStatus { gateways, ..status });
            count += 1;
            assert!(count < 3, "it never settles");
        }
        count
    }

    fn status(&self) -> &LoadBalancingPolicyStatus {
        self.policy.status.as_ref().unwrap()
    }

    /// `Type=Status/Reason`.
    fn said(&self) -> Vec<String> {
        let conditions = self.status().conditions.iter();
        conditions.map(|c| format!("{}={}/{}", c.type_, c.status, c.reason)).collect()
    }

    fn message(&self, kind: &str) -> &str {
        &self.status().conditions.iter().find(|condition| condition.type_ == kind).unwrap().message
    }
}

#[test]
fn a_policy_that_is_well_says_so_once() {
    let mut bed = Bed::new(json!({"locality": {"failover": [{"from": "r1", "to": ["r2"]}]}}));
    assert_eq!(bed.lead(), 1);
    let pending = [
        "Accepted=True/Accepted",
        "Enforced=True/Enforced",
        "Programmed=Unknown/Pending",
        "Degraded=Unknown/Pending",
    ];
    assert_eq!(bed.said(), pending);
    bed.report(vec![area("r1", 4, 4, 0), area("r2", 2, 2, 0)], None);
    assert_eq!((bed.look("gw-1").0, bed.lead()), (1, 1));
    let well = [
        "Accepted=True/Accepted",
        "Enforced=True/Enforced",
        "Programmed=True/Programmed",
        "Degraded=False/NotDegraded",
    ];
    assert_eq!(bed.said(), well);
    let status = bed.status();
    assert_eq!((status.mode.as_deref(), status.healthy.as_deref()), (Some("Failover"), Some("6/6")));
    assert_eq!((status.ejected, status.observed_generation), (Some(0), Some(7)));
    bed.second = 60;
    assert_eq!((bed.look("gw-1"), bed.lead()), ((0, None), 0));
}

#[test]
fn each_gateway_has_its_entry_and_the_worst_is_shown() {
    let mut bed = Bed::new(json!({}));
    bed.report(vec![area("r1", 4, 4, 0), area("r2", 4, 4, 1)], None);
    bed.look("gw-1");
    bed.report(vec![area("r1", 4, 3, 2), area("r2", 4, 1, 0)], Some("nothing answers"));
    bed.look("gw-2");
    bed.lead();
    assert_eq!(bed.status().healthy.as_deref(), Some("4/8"));
    assert_eq!(bed.status().ejected, Some(2));
    assert_eq!(bed.message("Degraded"), "gw-2: nothing answers");
    assert_eq!(bed.said()[2..], ["Programmed=True/Programmed", "Degraded=True/Degraded"]);

    let why = NotProgrammed { reason: "NoSnatAddress", message: "give it one".to_owned() };
    bed.programmed.vips.insert(VIP.parse().unwrap(), Err(why));
    assert_eq!((bed.look("gw-2").0, bed.lead()), (1, 1), "that is told at once");
    assert_eq!(bed.said()[2], "Programmed=False/NoSnatAddress");
    assert_eq!(bed.message("Programmed"), "gw-2: 192.0.2.1 of Service demo/web: give it one");
}

#[test]
fn numbers_that_change_all_the_time_are_written_every_ten_seconds() {
    let mut bed = Bed::new(json!({}));
    let mut written = Vec::new();
    for second in 0..=40 {
        bed.second = second;
        let now = vec![area("r1", 4, 3 + u32::try_from(second % 2).unwrap(), 0)];
        bed.report(now.clone(), None);
        let (writes, next) = bed.look("gw-1");
        written.extend(std::iter::repeat_n(second, writes));
        let waits = bed.status().gateways[0].regions != now;
        assert_eq!(next, waits.then_some(written.last().unwrap() + 10), "it is looked again then: {second}");
    }
    assert_eq!(written, [0, 11, 22, 33]);
    bed.report(vec![area("r1", 4, 0, 0)], Some("all fail"));
    assert_eq!(bed.look("gw-1").0, 1, "what is bad is told at once");
}

#[test]
fn a_gateway_without_a_service_of_the_policy_has_no_entry() {
    let mut bed = Bed::new(json!({}));
    bed.programmed.known = false;
    assert_eq!(bed.look("gw-1").0, 0, "nothing is known yet");
    bed.programmed.known = true;
    assert_eq!(bed.look("gw-1").0, 1);
    bed.desired.policies.get_mut(&object("demo/p")).unwrap().services.clear();
    bed.programmed.known = false;
    assert_eq!(bed.look("gw-1").0, 0, "what an earlier run said stays");
    bed.programmed.known = true;
    assert_eq!(bed.look("gw-1").0, 1);
    assert_eq!(bed.status().gateways, []);
    assert_eq!(bed.look("gw-1").0, 0);
}

#[test]
fn of_a_gateway_that_is_gone_for_good_its_own_entries_go() {
    let mut bed = Bed::new(json!({}));
    bed.look("gw-1");
    bed.look("gw-2");
    let present = std::slice::from_ref(&bed.policy);
    assert_eq!(gateways(present, SET), ["gw-1".to_owned(), "gw-2".to_owned()].into());
    let removals_of = |gateway, set| removals(gateway, present, set);
    let name = object("demo/p");
    assert_eq!(removals_of("gw-2", SET), [apply(&name, None)], "an apply without an entry, by its manager");
    assert_eq!(removals_of("gw-3", SET), []);
    assert_eq!(
        (removals_of("gw-2", "other"), gateways(present, "other").len()),
        (vec![], 0),
        "another set's"
    );
}

#[test]
fn a_target_that_only_another_group_of_gateways_serves_is_no_missing_one() {
    let mut bed = Bed::new(json!({}));
    bed.look("gw-1");
    bed.desired.policies.get_mut(&object("demo/p")).unwrap().services.clear();
    bed.lead();
    assert_eq!(bed.said()[0], "Accepted=True/Accepted");
    bed.policy.status = None;
    bed.desired.knowledge = Knowledge::Partial;
    bed.lead();
    assert_eq!(bed.said()[0], "Accepted=True/Accepted", "a member that was never read may have it");
    bed.desired.knowledge = Knowledge::Known;
    bed.lead();
    assert_eq!(
        bed.said()[..3],
        ["Accepted=False/TargetNotFound", "Enforced=True/Enforced", "Programmed=False/NotAccepted"]
    );
    assert!(bed.message("Accepted").contains("Service demo/web"), "{}", bed.message("Accepted"));
}

#[test]
fn a_policy_that_the_merge_has_not_seen_as_it_is_waits() {
    let mut bed = Bed::new(json!({}));
    bed.desired.policies.get_mut(&object("demo/p")).unwrap().targets = [object("demo/api")].into();
    assert_eq!(bed.lead(), 0);
    bed.desired.policies.clear();
    assert_eq!(bed.lead(), 0);
}

#[test]
fn of_two_policies_the_newer_says_which_one_counts() {
    let mut older = policy("z", json!({}));
    older.metadata.creation_timestamp = Some(Time(at(0)));
    let mut newer = policy("a", json!({"newFlowLimit": 5}));
    newer.metadata.creation_timestamp = Some(Time(at(1)));
    let present = [newer, older];
    let mut desired = Desired { complete: true, ..Desired::default() };
    for (name, attached) in [("demo/a", false), ("demo/z", true)] {
        let targets: BTreeSet<ObjectName> = [object("demo/web")].into();
        let services = if attached { targets.clone() } else { BTreeSet::new() };
        desired.policies.insert(object(name), PolicyState { targets, services, ..PolicyState::default() });
    }
    let said: Vec<Vec<String>> = writes(&present, &desired, at(2))
        .into_iter()
        .map(|write| {
            let Action::ApplyStatus(value) = write.action else { panic!() };
            let conditions = value["status"]["conditions"].as_array().unwrap().clone();
            let shown = conditions.iter().take(2);
            shown
                .map(|c| format!("{}={} {}", c["type"], c["reason"], c["message"]).replace('"', ""))
                .collect()
        })
        .collect();
    assert!(
        said[0][0].starts_with("Accepted=Conflicted Service demo/web goes by LoadBalancingPolicy demo/z"),
        "{said:?}"
    );
    assert_eq!(said[0][1], "Enforced=Enforced ");
    assert_eq!(said[1], ["Accepted=Accepted ", "Enforced=Enforced "]);
}
