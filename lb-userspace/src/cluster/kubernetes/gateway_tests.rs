//! What the gateway cluster's watches tell, put together.

use serde_json::json;

use super::*;

fn scope() -> Scope {
    Scope { secret_namespaces: vec!["kanmon-system".to_owned()], node_name: Some("gw-1".to_owned()) }
}

fn parse<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> T {
    serde_json::from_value(json).unwrap()
}

fn health() -> Shown {
    Shown { connected: Some(true), fault: None, since: jiff::Timestamp::UNIX_EPOCH }
}

/// A whole list.
fn list<K>(state: &mut State, wrap: impl Fn(Told<K>) -> GatewayEvent, objects: Vec<K>) {
    state.apply(wrap(Ok(Event::Init)));
    for object in objects {
        state.apply(wrap(Ok(Event::InitApply(object))));
    }
    state.apply(wrap(Ok(Event::InitDone)));
}

fn secret(label: &'static str) -> impl Fn(Told<Secret>) -> GatewayEvent {
    move |told| GatewayEvent::Secret(("kanmon-system".to_owned(), label), told)
}

fn fault(kind: FaultKind) -> Fault {
    Fault { kind, message: "no".to_owned() }
}

fn all(state: &mut State) {
    list(state, GatewayEvent::Member, vec![]);
    list(state, GatewayEvent::Pool, vec![]);
    list(state, GatewayEvent::Policy, vec![]);
    list(state, GatewayEvent::Allocation, vec![]);
    list(state, GatewayEvent::Service, vec![]);
    let labels = json!({"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z"});
    list(state, GatewayEvent::Node, vec![parse(json!({"metadata": {"name": "gw-1", "labels": labels}}))]);
    let both = json!({"metadata": {"namespace": "kanmon-system", "name": "s"}});
    list(state, secret(ISTIO_LABEL), vec![parse(both.clone())]);
    assert!(state.view(health()).complete.is_empty(), "the other label's have not been read");
    list(state, secret(MEMBER_LABEL), vec![parse(both)]);
}

#[test]
fn everything_is_told_once_it_has_been_read() {
    let mut state = State::new(&scope(), &GatewayObjects::default());
    let before = state.view(health());
    assert_eq!((before.members, before.pools, before.answered), (None, None, false));
    assert_eq!(before.policies, None);
    all(&mut state);
    let view = state.view(health());
    assert_eq!((view.members, view.answered), (Some(vec![]), true));
    assert_eq!(view.place, Some(Place { region: "r".to_owned(), zone: "z".to_owned() }));
    assert_eq!(view.complete, BTreeSet::from(["kanmon-system".to_owned()]));
    assert_eq!(view.secrets.len(), 1, "one with both labels is one");
    assert_eq!(view.problems, []);
}

#[test]
fn a_cluster_without_our_kinds_is_told_with_the_command_that_installs_them() {
    let mut state = State::new(&scope(), &GatewayObjects::default());
    all(&mut state);
    state.members = Store::default();
    state.apply(GatewayEvent::Member(Err(fault(FaultKind::NotFound))));
    let view = state.view(health());
    assert!(view.lacks_crds && view.answered && view.members.is_none());
    assert!(view.problems[0].message.contains("kanmon crds | kubectl apply -f -"), "{:?}", view.problems);
    list(&mut state, GatewayEvent::Member, vec![]);
    assert_eq!(state.view(health()).problems, [], "it keeps trying");
}

#[test]
fn secrets_that_may_not_be_read_are_not_missing() {
    let mut state = State::new(&scope(), &GatewayObjects::default());
    all(&mut state);
    state.secrets.clear();
    state.secrets.insert(("kanmon-system".to_owned(), ISTIO_LABEL), Store::default());
    state.apply(secret(ISTIO_LABEL)(Err(fault(FaultKind::Forbidden))));
    let view = state.view(health());
    assert!(view.answered && view.complete.is_empty());
    assert_eq!(view.problems[0].object, "Secret in namespace kanmon-system");
}

#[test]
fn what_was_read_stays_when_it_may_no_longer_be_read() {
    let mut state = State::new(&scope(), &GatewayObjects::default());
    all(&mut state);
    for watch in [ISTIO_LABEL, MEMBER_LABEL] {
        state.apply(secret(watch)(Err(fault(FaultKind::Forbidden))));
    }
    assert_eq!(state.view(health()).secrets.len(), 1);
}

#[test]
fn a_failing_server_is_the_connections_matter_and_no_problem_of_a_kind() {
    let mut state = State::new(&scope(), &GatewayObjects::default());
    let told = state.apply(GatewayEvent::Pool(Err(fault(FaultKind::ServerError))));
    assert_eq!(told, Some(Err(fault(FaultKind::ServerError))));
    assert_eq!(state.view(health()).problems, []);
}

#[test]
fn a_node_that_is_not_there_is_told() {
    let mut state = State::new(&scope(), &GatewayObjects::default());
    all(&mut state);
    list(&mut state, GatewayEvent::Node, vec![]);
    let view = state.view(health());
    assert_eq!(view.place, None);
    assert_eq!(view.problems[0].object, "Node gw-1");
}

#[test]
fn a_cluster_that_cannot_hold_allocations_is_told_and_what_it_held_is_not_made_up() {
    let mut state = State::new(&scope(), &GatewayObjects::default());
    all(&mut state);
    assert_eq!(state.view(health()).allocations, Some(vec![]));
    state.allocations = Store::default();
    state.apply(GatewayEvent::Allocation(Err(fault(FaultKind::NotFound))));
    let view = state.view(health());
    assert!(view.lacks_allocations && view.answered && view.allocations.is_none());
    assert_eq!(view.problems[0].object, "AddressAllocation");
}

#[test]
fn pools_policies_and_allocations_keep_what_is_compared_before_it_is_written() {
    let mut state = State::new(&scope(), &GatewayObjects::default());
    let metadata = json!({"name": "p", "generation": 3, "uid": "u", "resourceVersion": "7",
        "managedFields": [{"manager": "kubectl"}], "labels": {"kanmon.dev/cluster-set-id": "s"}});
    let pool = json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "AddressPool", "metadata": metadata.clone(),
        "spec": {"cidrs": ["192.0.2.0/24"]}, "status": {"used": 1}});
    list(&mut state, GatewayEvent::Pool, vec![parse(pool)]);
    let policy = json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "LoadBalancingPolicy",
        "metadata": metadata.clone(), "spec": {"targetRefs": []}, "status": {"mode": "Even"}});
    list(&mut state, GatewayEvent::Policy, vec![parse(policy)]);
    let allocation = json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "AddressAllocation",
        "metadata": metadata, "spec": {"address": "192.0.2.1", "services": [{"namespace": "a", "name": "b"}]},
        "status": {"gateways": []}});
    list(&mut state, GatewayEvent::Allocation, vec![parse(allocation)]);
    let view = state.view(health());
    let pool = view.pools.unwrap().remove(0);
    assert_eq!((pool.metadata.generation, pool.metadata.resource_version.as_deref()), (Some(3), None));
    assert_eq!(pool.status.unwrap().used, Some(1));
    let policy = view.policies.unwrap().remove(0);
    assert_eq!((policy.metadata.generation, policy.metadata.resource_version.as_deref()), (Some(3), None));
    assert_eq!(policy.status.unwrap().mode.as_deref(), Some("Even"));
    let allocation = view.allocations.unwrap().remove(0);
    assert_eq!(allocation.metadata.resource_version.as_deref(), Some("7"));
    assert!(allocation.metadata.managed_fields.is_none() && allocation.status.is_some());
    assert_eq!(allocation.owner().unwrap().cluster_set_id, "s");
}

#[test]
fn what_was_readable_in_an_earlier_run_keeps_its_last_form_and_what_was_never_written_has_none() {
    let member = |name: &str, uid: Option<&str>| -> MemberCluster {
        parse(json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "MemberCluster",
            "metadata": {"name": name, "uid": uid}, "spec": {"source": {"local": {}}, "region": "r"}}))
    };
    let members = vec![member("written", Some("u")), member("made-up", None), member("gone", Some("v"))];
    let known = GatewayObjects { members, ..GatewayObjects::default() };
    let mut state = State::new(&scope(), &known);
    assert_eq!(state.view(health()).members, None, "they have not been read");
    let newer = |name: &str| -> DeserializeGuard<MemberCluster> {
        parse(json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "MemberCluster",
            "metadata": {"name": name, "uid": "u"}, "spec": {"flavour": "of tomorrow"}}))
    };
    list(&mut state, GatewayEvent::Member, vec![newer("written"), newer("made-up")]);
    let view = state.view(health());
    assert_eq!(view.members, Some(vec![member("written", Some("u"))]));
    assert_eq!(view.problems.len(), 2, "{:?}", view.problems);
}

#[test]
fn fronts_that_may_no_longer_be_read_count_as_old_until_they_may_again() {
    let mut state = State::new(&scope(), &GatewayObjects::default());
    assert!(!state.view(health()).reads_services);
    all(&mut state);
    assert!(state.view(health()).reads_services);
    state.apply(GatewayEvent::Service(Err(fault(FaultKind::Forbidden))));
    let view = state.view(health());
    assert!(view.services.is_some() && !view.reads_services);
    list(&mut state, GatewayEvent::Service, vec![]);
    assert!(state.view(health()).reads_services);
}

#[test]
fn allocations_that_an_account_could_never_read_are_lacking_and_those_that_it_could_stay() {
    let refused = |known: Option<Vec<AddressAllocation>>| {
        let mut state =
            State::new(&scope(), &GatewayObjects { allocations: known, ..GatewayObjects::default() });
        state.apply(GatewayEvent::Allocation(Err(fault(FaultKind::Forbidden))));
        state
    };
    let mut never = refused(None);
    let view = never.view(health());
    assert!(view.lacks_allocations && view.allocations.is_none());
    assert_eq!(view.problems[0].object, "AddressAllocation");
    assert!(view.problems[0].message.contains("allow it to the agent's account"), "{:?}", view.problems);
    assert!(!refused(Some(vec![])).view(health()).lacks_allocations, "an earlier run read them");
    list(&mut never, GatewayEvent::Allocation, vec![]);
    assert!(!never.view(health()).lacks_allocations, "it may now");
    never.apply(GatewayEvent::Allocation(Err(fault(FaultKind::Forbidden))));
    let view = never.view(health());
    assert!(!view.lacks_allocations && view.allocations.is_some(), "what was read stays");
}

#[test]
fn a_cluster_from_before_there_were_policies_is_told_and_holds_nothing_up() {
    let mut state = State::new(&scope(), &GatewayObjects::default());
    all(&mut state);
    assert_eq!(state.view(health()).policies, Some(vec![]));
    state.policies = Store::default();
    state.apply(GatewayEvent::Policy(Err(fault(FaultKind::NotFound))));
    let view = state.view(health());
    assert!(view.answered && view.policies.is_none());
    assert_eq!(view.problems[0].object, "LoadBalancingPolicy");
    assert!(view.problems[0].message.contains("kanmon crds | kubectl apply -f -"), "{:?}", view.problems);
}

#[test]
fn a_policy_that_this_agent_cannot_read_keeps_its_last_form_and_is_not_taken_for_its_namesake() {
    let policy = |namespace: &str, spec: serde_json::Value| {
        json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "LoadBalancingPolicy",
            "metadata": {"namespace": namespace, "name": "p"}, "spec": spec})
    };
    let target = |name: &str| json!({"targetRefs": [{"group": "", "kind": "Service", "name": name}]});
    let policies = vec![parse(policy("a", target("of-a"))), parse(policy("b", target("of-b")))];
    let known = GatewayObjects { policies, ..GatewayObjects::default() };
    let mut state = State::new(&scope(), &known);
    let newer = policy("b", json!({"flavour": "of tomorrow"}));
    list(&mut state, GatewayEvent::Policy, vec![parse(policy("a", target("new"))), parse(newer)]);
    let view = state.view(health());
    let targets: Vec<String> =
        view.policies.unwrap().iter().map(|policy| policy.spec.target_refs[0].name.clone()).collect();
    assert_eq!(targets, ["new", "of-b"]);
    assert_eq!(view.problems.len(), 1, "{:?}", view.problems);
    assert_eq!(view.problems[0].object, "LoadBalancingPolicy b/p");
}
