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
