//! The whole source: a gateway cluster with members in, snapshots out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

use super::super::watch_from;
use super::fake::{FakeApi, Mode};
use super::{MEMBERS, PATIENCE, SERVICES, pace, service};
use crate::cluster::{LastGood, Programmed, Snapshot};
use crate::config::{GatewayAccess, KubernetesSettings};
use crate::desired::{ClusterObjects, Desired, Knowledge};

const SECRETS: &str = "/api/v1/namespaces/kanmon-system/secrets";
const NODES: &str = "/api/v1/nodes";

pub(super) struct Source {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What the loop would tell back.
    pub(super) desired: watch::Sender<Arc<Desired>>,
    _programmed: watch::Sender<Arc<Programmed>>,
}

impl Source {
    async fn on(api: &FakeApi, last_good: Option<LastGood>) -> Self {
        Self::with(api, last_good, Duration::from_secs(60)).await
    }

    pub(super) async fn with(api: &FakeApi, last_good: Option<LastGood>, cleanup_timeout: Duration) -> Self {
        let settings = KubernetesSettings {
            access: GatewayAccess::InCluster,
            member_selector: "".parse().unwrap(),
            node_name: Some("gw-1".to_owned()),
            secret_namespaces: vec!["kanmon-system".to_owned()],
            secret_grace_period: Duration::from_secs(3600),
            cleanup_timeout,
            allow_insecure_members: false,
        };
        let (desired, merged) = watch::channel(Arc::default());
        let (programmed, forwarded) = watch::channel(Arc::default());
        let back = (merged, forwarded);
        let first = watch_from(api.access(), settings, "set".to_owned(), last_good, back, pace());
        let snapshots = timeout(PATIENCE, first).await.expect("a first snapshot");
        Self { snapshots, desired, _programmed: programmed }
    }

    fn now(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    pub(super) async fn until(&mut self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let found = timeout(PATIENCE, self.snapshots.wait_for(|snapshot| wanted(snapshot)))
            .await
            .map(|snapshot| Arc::clone(&snapshot.expect("the source goes on")));
        found.unwrap_or_else(|_| panic!("no {what}: {:?}", self.now()))
    }
}

/// `cluster/service` of everything there is.
fn contents(snapshot: &Snapshot) -> Vec<String> {
    let clusters = snapshot.clusters.iter();
    let named = clusters.flat_map(|(name, objects)| {
        objects
            .services
            .iter()
            .map(move |service| format!("{name}/{}", service.metadata.name.as_deref().unwrap()))
    });
    named.collect()
}

/// A MemberCluster that is the gateway cluster itself.
pub(super) fn local(name: &str, year: u16) -> Value {
    json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "MemberCluster",
        "metadata": {"name": name, "uid": name, "generation": 1,
            "creationTimestamp": format!("{year}-01-01T00:00:00Z")},
        "spec": {"source": {"local": {}}, "region": "r"}})
}

/// A remote secret for a server.
fn secret(name: &str, server: &str) -> Value {
    use k8s_openapi::ByteString;
    let text = format!(
        "contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"https://{server}\"}}}}]\nusers: [{{name: u, user: {{token: t}}}}]\n"
    );
    json!({"metadata": {"namespace": "kanmon-system", "name": format!("s-{name}"), "uid": "u",
            "labels": {"kanmon.dev/member-cluster": "true"}},
        "data": {name: ByteString(text.into_bytes())}})
}

/// A gateway cluster that is a member of its own, with a Service.
pub(super) async fn gateway() -> FakeApi {
    let api = FakeApi::start().await;
    api.put(MEMBERS, local("here", 2024));
    api.put(SERVICES, service("web"));
    api.put(NODES, json!({"metadata": {"name": "gw-1"}}));
    api
}

fn known() -> LastGood {
    let object = serde_json::from_value(service("old")).unwrap();
    let objects = ClusterObjects { services: vec![object], ..ClusterObjects::default() };
    let mut last_good = LastGood::default();
    last_good.clusters.insert("here".to_owned(), Arc::new(objects));
    last_good.gateway.members.push(serde_json::from_value(local("here", 2024)).unwrap());
    last_good
}

#[tokio::test]
async fn the_first_snapshot_has_everything_that_every_member_has() {
    let api = gateway().await;
    let labels = json!({"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z"});
    api.put(NODES, json!({"metadata": {"name": "gw-1", "labels": labels}}));
    let source = Source::on(&api, None).await;
    let snapshot = source.now();
    assert_eq!(contents(&snapshot), ["here/web"]);
    assert_eq!((snapshot.place.region.as_str(), snapshot.place.zone.as_str()), ("r", "z"));
    let connection = &snapshot.connections["here"];
    assert_eq!((connection.connected, connection.synced, connection.reason), (Some(true), true, "Connected"));
    assert_eq!(snapshot.problems, []);
    assert!(snapshot.complete);
}

#[tokio::test]
async fn changes_of_members_and_of_their_objects_become_snapshots() {
    let api = gateway().await;
    let mut source = Source::on(&api, None).await;
    api.put(SERVICES, service("api"));
    source.until("an addition", |snapshot| contents(snapshot) == ["here/api", "here/web"]).await;
    let mut disabled = local("here", 2024);
    disabled["spec"]["state"] = "Disabled".into();
    api.put(MEMBERS, disabled);
    let snapshot = source.until("the end", |snapshot| contents(snapshot).is_empty()).await;
    assert_eq!(snapshot.connections["here"].reason, "Disabled");
    api.put(MEMBERS, local("here", 2024));
    source.until("the return", |snapshot| contents(snapshot).len() == 2).await;
    api.remove(MEMBERS, "here");
    source.until("the end", |snapshot| snapshot.clusters.is_empty() && snapshot.connections.is_empty()).await;
}

#[tokio::test]
async fn what_was_known_is_served_while_the_gateway_cluster_is_away_from_the_start() {
    let mut api = gateway().await;
    api.stop();
    let mut source = Source::on(&api, Some(known())).await;
    assert_eq!(contents(&source.now()), ["here/old"]);
    assert!(source.now().complete, "maps hold nothing else");
    let told =
        |snapshot: &Snapshot| snapshot.problems.iter().any(|problem| problem.object == "gateway cluster");
    let snapshot = source.until("word of it", told).await;
    assert_eq!(contents(&snapshot), ["here/old"]);
    api.restart().await;
    let snapshot = source.until("what is so now", |snapshot| contents(snapshot) == ["here/web"]).await;
    assert_eq!(snapshot.gateway.members.len(), 1);
}

#[tokio::test]
async fn nothing_is_complete_before_the_gateway_cluster_has_answered_where_nothing_was_known() {
    let mut api = gateway().await;
    api.stop();
    let mut source = Source::on(&api, None).await;
    assert!(!source.now().complete);
    api.restart().await;
    let snapshot = source.until("everything", |snapshot| snapshot.complete).await;
    assert_eq!(contents(&snapshot), ["here/web"]);
}

#[tokio::test]
async fn a_gateway_cluster_that_goes_away_takes_nothing_with_it() {
    let mut api = gateway().await;
    let mut source = Source::on(&api, None).await;
    api.stop();
    let lost = |snapshot: &Snapshot| snapshot.connections["here"].connected == Some(false);
    let snapshot = source.until("the loss", lost).await;
    assert_eq!(
        (contents(&snapshot), snapshot.connections["here"].reason),
        (vec!["here/web".to_owned()], "Unreachable")
    );
    let told: BTreeSet<&str> = snapshot.problems.iter().map(|problem| problem.object.as_str()).collect();
    assert!(told.contains("MemberCluster here"), "{told:?}");
    api.put(SERVICES, service("later"));
    api.restart().await;
    source.until("recovery", |snapshot| contents(snapshot).len() == 2 && snapshot.problems.is_empty()).await;
}

#[tokio::test]
async fn a_member_that_never_answers_delays_nobody_but_the_first_snapshot() {
    let api = gateway().await;
    let deaf = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    api.put(SECRETS, secret("deaf", &deaf.local_addr().unwrap().to_string()));
    let mut source = Source::on(&api, None).await;
    let snapshot = source.now();
    assert_eq!(contents(&snapshot), ["here/web"]);
    assert_eq!(snapshot.connections["deaf"].reason, "Timeout");
    assert!(!snapshot.complete, "what the member has is not known");
    assert_eq!(snapshot.gateway.members.len(), 2, "the Secret alone is a member");
    api.put(SERVICES, service("api"));
    source.until("an addition", |snapshot| contents(snapshot).len() == 2).await;
}

#[tokio::test]
async fn a_refused_secret_is_a_problem_that_names_it() {
    let api = gateway().await;
    let mut bad = secret("bad", "x");
    bad["data"] = json!({"bad": "YQ=="});
    api.put(SECRETS, bad);
    let source = Source::on(&api, None).await;
    let snapshot = source.now();
    assert_eq!(snapshot.problems.len(), 1, "{:?}", snapshot.problems);
    assert_eq!(snapshot.problems[0].object, "Secret kanmon-system/s-bad");
    assert_eq!(contents(&snapshot), ["here/web"]);
}

#[tokio::test]
async fn one_cluster_registered_twice_is_read_once_and_by_the_other_name_when_the_first_is_removed() {
    let api = gateway().await;
    api.put(MEMBERS, local("again", 2025));
    let mut source = Source::on(&api, None).await;
    let alone = |snapshot: &Snapshot| contents(snapshot) == ["here/web"] && !snapshot.problems.is_empty();
    let snapshot = source.until("one of them", alone).await;
    assert_eq!(snapshot.problems[0].object, "MemberCluster again");
    api.remove(MEMBERS, "here");
    source.until("the other", |snapshot| contents(snapshot) == ["again/web"]).await;
}

#[tokio::test]
async fn the_other_registration_of_a_cluster_goes_on_with_what_is_known_of_it() {
    let api = gateway().await;
    api.put(MEMBERS, local("again", 2025));
    let mut source = Source::on(&api, None).await;
    let alone = |snapshot: &Snapshot| contents(snapshot) == ["here/web"] && !snapshot.problems.is_empty();
    source.until("one of them", alone).await;
    api.answer(Mode::RefuseKind("/api/v1/services", 500));
    api.remove(MEMBERS, "here");
    let snapshot = source.until("the other", |snapshot| !snapshot.connections.contains_key("here")).await;
    assert_eq!(contents(&snapshot), ["again/web"], "before it could be read");
}

#[tokio::test]
async fn a_member_of_a_newer_form_stays_what_it_was_before_the_agent_started() {
    let api = gateway().await;
    let mut newer = local("here", 2024);
    newer["spec"]["flavour"] = "of tomorrow".into();
    api.put(MEMBERS, newer);
    let mut source = Source::on(&api, Some(known())).await;
    let is_told = |snapshot: &Snapshot| {
        snapshot
            .problems
            .iter()
            .any(|problem| problem.object == "MemberCluster here" && problem.message.contains("flavour"))
    };
    source.until("word of it", is_told).await;
    source.until("what it has now", |snapshot| contents(snapshot) == ["here/web"]).await;
    assert_eq!(source.now().gateway.members[0].spec.region, "r");
}

#[tokio::test]
async fn a_gateway_cluster_without_our_kinds_says_how_to_install_them() {
    let api = gateway().await;
    api.answer(Mode::RefuseKind("kanmon.dev", 404));
    let mut source = Source::on(&api, None).await;
    let snapshot = source.now();
    assert!(snapshot.clusters.is_empty());
    let said =
        snapshot.problems.iter().any(|problem| problem.message.contains("kanmon crds | kubectl apply"));
    assert!(said, "{:?}", snapshot.problems);
    api.answer(Mode::Serve);
    source.until("the member", |snapshot| contents(snapshot) == ["here/web"]).await;
}

#[tokio::test]
async fn a_secret_alone_stays_a_member_where_our_kinds_are_not_installed() {
    let api = gateway().await;
    api.answer(Mode::RefuseKind("kanmon.dev/v1alpha1", 404));
    let deaf = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    api.put(SECRETS, secret("deaf", &deaf.local_addr().unwrap().to_string()));
    let mut source = Source::on(&api, None).await;
    let is_member = |snapshot: &Snapshot| snapshot.connections.contains_key("deaf");
    assert!(is_member(&source.now()));
    api.put(SECRETS, secret("other", "127.0.0.1:1"));
    let both = |snapshot: &Snapshot| snapshot.connections.len() == 2;
    let snapshot = source.until("another member", both).await;
    assert!(is_member(&snapshot));
}

#[tokio::test]
async fn an_account_that_may_not_read_allocations_goes_on_giving_addresses_away_itself() {
    let api = gateway().await;
    api.answer(Mode::RefuseKind("addressallocations", 403));
    let mut source = Source::on(&api, None).await;
    let is_told =
        |snapshot: &Snapshot| snapshot.problems.iter().any(|problem| problem.object == "AddressAllocation");
    let snapshot = source.until("word of it", is_told).await;
    assert_eq!(snapshot.gateway.allocations, None);
    drop(source);
    let mut source = Source::on(&api, Some(known())).await;
    assert_eq!(
        source.now().gateway.allocations,
        None,
        "what an earlier run gave away is served from the start"
    );
    assert_eq!(source.until("word of it", is_told).await.gateway.allocations, None);
    api.answer(Mode::Serve);
    source.until("those that are written", |snapshot| snapshot.gateway.allocations == Some(vec![])).await;
}

#[tokio::test]
async fn exports_of_an_earlier_run_are_kept_while_they_cannot_be_read_again() {
    for (what, code) in [("serviceexports", 500), ("serviceexports", 403), ("multicluster.x-k8s.io", 403)] {
        let api = gateway().await;
        api.serve_mcs(Some("v1beta1"));
        api.answer(Mode::RefuseKind(what, code));
        api.forbid_writes();
        let mut last_good = known();
        let objects = Arc::make_mut(last_good.clusters.get_mut("here").unwrap());
        let export = json!({"metadata": {"namespace": "demo", "name": "web", "uid": "e"}});
        objects.exports.push(serde_json::from_value(export).unwrap());
        let mut source = Source::on(&api, Some(last_good)).await;
        let exports = |snapshot: &Snapshot| snapshot.clusters["here"].exports.len();
        let is_new = |snapshot: &Snapshot| {
            contents(snapshot) == ["here/web"] && snapshot.connections["here"].writable.is_some()
        };
        let snapshot = source.until("what is so now", is_new).await;
        assert_eq!((exports(&snapshot), snapshot.gateway.knowledge), (1, Knowledge::Known), "{what} {code}");
        api.serve_mcs(None);
        api.answer(Mode::Serve);
        source.until("their end", |snapshot| exports(snapshot) == 0).await;
    }
}
