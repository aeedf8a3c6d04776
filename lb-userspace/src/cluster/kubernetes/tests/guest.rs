//! What an agent writes into clusters, and what it does not.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::super::uninstall::{Uninstall, uninstall};
use super::fake::FakeApi;
use super::source::{Source, gateway, local};
use super::writing::until;
use super::{MEMBERS, SERVICES};
use crate::desired::{Desired, FrontState, ObjectName};

const EXPORTS: &str = "/apis/multicluster.x-k8s.io/v1beta1/serviceexports";
const IMPORTS: &str = "/apis/multicluster.x-k8s.io/v1beta1/serviceimports";
const LIMIT: Duration = Duration::from_secs(60);

/// A front of our class with a VIP, as the merge would say it.
fn front(name: &str) -> Desired {
    let name = ObjectName { namespace: "demo".to_owned(), name: name.to_owned() };
    let state =
        FrontState { cluster: "here".to_owned(), others: vec![], vips: vec!["192.0.2.1".parse().unwrap()] };
    Desired { fronts: [(name, state)].into(), complete: true, ..Desired::default() }
}

/// Waits until several heartbeats went by without a write.
pub(super) async fn until_quiet(api: &FakeApi) {
    loop {
        let (before, beats) = (api.writes().len(), api.requests("GET /version"));
        until("heartbeats", || api.requests("GET /version") > beats + 20).await;
        if api.writes().len() == before {
            return;
        }
    }
}

pub(super) fn front_service() -> serde_json::Value {
    json!({"metadata": {"namespace": "demo", "name": "web", "uid": "u", "generation": 1},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "kanmon.dev/xdp", "ports": [{"port": 80}]}})
}

#[tokio::test]
async fn a_front_gets_its_address_and_then_nothing_is_written_any_more() {
    let api = gateway().await;
    api.put("/api/v1/namespaces", json!({"metadata": {"name": "demo"}}));
    api.put(SERVICES, front_service());
    let source = Source::with(&api, None, LIMIT).await;
    source.desired.send_replace(Arc::new(front("web")));
    let ingress = || api.get(SERVICES, "web").unwrap()["status"]["loadBalancer"]["ingress"].clone();
    until("an address", || ingress() == json!([{"ip": "192.0.2.1", "ipMode": "Proxy"}])).await;
    until("a status", || api.get(MEMBERS, "here").unwrap()["status"]["uid"] == "a-cluster").await;
    until_quiet(&api).await;
    let before = api.writes();
    until_quiet(&api).await;
    assert_eq!(api.writes(), before);
    assert!(before.len() < 12, "{before:?}");
}

#[tokio::test]
async fn definitions_that_are_installed_later_and_removed_again_are_noticed() {
    let api = gateway().await;
    let mut source = Source::with(&api, None, LIMIT).await;
    let exports = |snapshot: &crate::cluster::Snapshot| snapshot.clusters["here"].exports.len();
    let snapshot = source.until("a start", |snapshot| snapshot.complete).await;
    assert_eq!(exports(&snapshot), 0);
    api.put(EXPORTS, json!({"metadata": {"namespace": "demo", "name": "web", "uid": "e"}}));
    api.serve_mcs(Some("v1beta1"));
    source.until("an export", |snapshot| exports(snapshot) == 1).await;
    api.serve_mcs(None);
    let snapshot = source.until("its end", |snapshot| exports(snapshot) == 0).await;
    assert!(snapshot.connections["here"].synced, "that is no outage");
}

#[tokio::test]
async fn a_cluster_that_may_not_be_written_to_is_read_and_left_alone() {
    let api = gateway().await;
    api.forbid_writes();
    api.put(SERVICES, front_service());
    let mut source = Source::with(&api, None, LIMIT).await;
    source.desired.send_replace(Arc::new(front("web")));
    let snapshot =
        source.until("the rights", |snapshot| snapshot.connections["here"].writable == Some(false)).await;
    assert_eq!(snapshot.clusters["here"].services.len(), 1);
    let writable = || {
        let conditions = api.get(MEMBERS, "here").unwrap()["status"]["conditions"].clone();
        let condition =
            conditions.as_array().into_iter().flatten().find(|c| c["type"] == "Writable").cloned();
        condition.unwrap_or_default()
    };
    until("word of it", || writable()["status"] == "False").await;
    assert!(writable()["message"].as_str().unwrap().contains("patch services/status"), "{}", writable());
    until_quiet(&api).await;
    assert!(api.writes().iter().all(|write| write.contains("memberclusters")), "{:?}", api.writes());
}

#[tokio::test]
async fn a_member_that_is_removed_goes_in_time_though_its_cluster_cannot_be_cleaned() {
    let api = gateway().await;
    let mut gone = local("gone", 2025);
    gone["spec"]["source"] =
        json!({"kubeconfigSecretRef": {"namespace": "kanmon-system", "name": "none", "key": "gone"}});
    gone["metadata"]["finalizers"] = json!(["kanmon.dev/cleanup", "others/own"]);
    gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    api.put(MEMBERS, gone);
    let _source = Source::with(&api, None, Duration::from_millis(200)).await;
    until("its release", || {
        api.get(MEMBERS, "gone").unwrap()["metadata"]["finalizers"] == json!(["others/own"])
    })
    .await;
    until("word of it", || api.requests("POST /apis/events.k8s.io/v1/namespaces/default/events") > 0).await;
    assert!(api.get(MEMBERS, "gone").unwrap()["status"].is_null(), "it is no member any more");
}

#[tokio::test]
async fn the_finalizer_is_not_set_where_the_gateways_own_cluster_is_the_member() {
    let api = gateway().await;
    api.serve_mcs(Some("v1beta1"));
    api.put(
        IMPORTS,
        json!({"metadata": {"namespace": "demo", "name": "other"},
        "spec": {"type": "ClusterSetIP", "ports": []}}),
    );
    let source = Source::with(&api, None, LIMIT).await;
    source.desired.send_replace(Arc::new(Desired { complete: true, ..Desired::default() }));
    until("a status", || api.get(MEMBERS, "here").unwrap()["status"]["uid"] == "a-cluster").await;
    until_quiet(&api).await;
    assert!(api.get(MEMBERS, "here").unwrap()["metadata"]["finalizers"].is_null());
    assert!(api.get(IMPORTS, "other").is_some(), "it is another's");
}

fn uninstall_of(id: &str) -> Uninstall {
    Uninstall {
        cluster_set_id: id.to_owned(),
        secret_namespaces: vec!["kanmon-system".to_owned()],
        allow_insecure_members: false,
    }
}

#[tokio::test]
async fn an_uninstall_removes_what_this_set_wrote_and_nothing_else() {
    let api = gateway().await;
    api.serve_mcs(Some("v1beta1"));
    let import = |name: &str, set: &str| {
        json!({"metadata": {"namespace": "demo", "name": name, "labels": {"kanmon.dev/cluster-set-id": set}},
            "spec": {"type": "ClusterSetIP", "ports": []}})
    };
    api.put(IMPORTS, import("ours", "set"));
    api.put(IMPORTS, import("theirs", "other"));
    let mut web = front_service();
    web["status"]["loadBalancer"]["ingress"] = json!([{"ip": "192.0.2.1"}]);
    web["metadata"]["managedFields"] = json!([{"manager": "kanmon.dev/set", "subresource": "status"}]);
    api.put(SERVICES, web);
    let mut guarded = local("guarded", 2025);
    guarded["metadata"]["finalizers"] = json!(["kanmon.dev/cleanup"]);
    api.put(MEMBERS, guarded);
    let client = api.access().client(LIMIT).await.unwrap();
    let mut said = Vec::new();
    uninstall(&client, &uninstall_of("set"), &mut |line| said.push(line.to_owned())).await.unwrap();
    assert!(api.get(IMPORTS, "ours").is_none() && api.get(IMPORTS, "theirs").is_some(), "{said:?}");
    assert!(api.get(SERVICES, "web").unwrap()["status"].is_null());
    assert_eq!(api.get(MEMBERS, "guarded").unwrap()["metadata"]["finalizers"], json!([]));
    assert!(said.iter().any(|line| line.contains("removed ServiceImport demo/ours")), "{said:?}");
}

#[tokio::test]
async fn an_uninstall_where_another_clusters_gateway_publishes_removes_the_own_things_and_says_what_is_left()
{
    let api = gateway().await;
    let mut guarded = local("guarded", 2025);
    guarded["metadata"]["finalizers"] = json!(["kanmon.dev/cleanup"]);
    api.put(MEMBERS, guarded);
    api.put(
        "/apis/coordination.k8s.io/v1/namespaces/kanmon-system/leases",
        json!({"metadata": {"namespace": "kanmon-system", "name": "kanmon-set.publish"},
        "spec": {"holderIdentity": "elsewhere", "leaseDurationSeconds": 15,
            "renewTime": "2999-01-01T00:00:00.000000Z"}}),
    );
    let client = api.access().client(LIMIT).await.unwrap();
    let failed = uninstall(&client, &uninstall_of("set"), &mut |_| {}).await.unwrap_err().to_string();
    assert!(failed.contains("elsewhere publishes there"), "{failed}");
    assert_eq!(api.get(MEMBERS, "guarded").unwrap()["metadata"]["finalizers"], json!([]));
}

#[tokio::test]
async fn an_uninstall_under_a_running_gateway_is_refused() {
    let api = gateway().await;
    let source = Source::with(&api, None, LIMIT).await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kanmon-system/leases";
    let holder = || api.get(leases, "kanmon-set").unwrap_or_default()["spec"]["holderIdentity"].clone();
    until("a holder", || holder().is_string()).await;
    let client = api.access().client(LIMIT).await.unwrap();
    let refused = uninstall(&client, &uninstall_of("set"), &mut |_| {}).await.unwrap_err().to_string();
    assert!(refused.contains("stop the gateways first"), "{refused}");
    drop(source);
}
