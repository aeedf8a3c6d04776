//! LoadBalancingPolicies from an API server, and what is written on them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::SERVICES;
use super::fake::FakeApi;
use super::guest::{front_service, until_quiet};
use super::source::{Source, gateway};
use super::writing::until;
use crate::desired::{Allocations, Desired, LoadBalancingPolicy, Place, ServiceId, merge};

const POLICIES: &str = "/apis/kanmon.dev/v1alpha1/loadbalancingpolicies";

fn put(api: &FakeApi, name: &str, generation: i64, spec: &serde_json::Value) {
    let mut object = json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "LoadBalancingPolicy",
        "metadata": {"namespace": "demo", "name": name, "uid": name, "generation": generation,
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "web"}]}});
    object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    api.put(POLICIES, object);
}

/// `status/reason` of the condition Accepted.
fn accepted(api: &FakeApi, name: &str) -> String {
    let object = api.get(POLICIES, name).unwrap();
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition["type"] == "Accepted").unwrap_or_default();
    format!("{}/{}", found["status"], found["reason"]).replace('"', "")
}

/// Merges what the source says whenever it has policies of these generations, and tells it back.
async fn merge_with(source: &mut Source, slow_start: Option<&str>, count: usize) -> Desired {
    let wanted = slow_start.map(str::to_owned);
    let snapshot = source
        .until("the policies", |snapshot| {
            let policies = &snapshot.gateway.policies;
            policies.len() == count && policies.iter().any(|policy| policy.spec.slow_start == wanted)
        })
        .await;
    let bare = |policy: &LoadBalancingPolicy| policy.status.is_none() && policy.metadata.generation.is_none();
    assert!(snapshot.gateway.policies.iter().all(bare), "what is written on it is no change of it");
    let mut desired = merge(
        &snapshot.clusters,
        &snapshot.gateway,
        &BTreeSet::new(),
        &Place::default(),
        &Allocations::new(),
    );
    desired.complete = true;
    source.desired.send_replace(Arc::new(desired.clone()));
    desired
}

#[tokio::test]
async fn a_policy_is_read_followed_and_told_what_became_of_it() {
    let api = gateway().await;
    let mut front = front_service();
    front["metadata"]["annotations"] = json!({"kanmon.dev/addresses": "192.0.2.1"});
    api.put(SERVICES, front);
    put(&api, "first", 1, &json!({"slowStart": "5s"}));
    let mut source = Source::with(&api, None, Duration::from_secs(60)).await;
    let slow_start = |desired: &Desired| {
        let service = desired.services.values().next().map(|service| service.policy.clone());
        service.map(|policy| policy.slow_start.as_secs())
    };
    let desired = merge_with(&mut source, Some("5s"), 1).await;
    assert_eq!(slow_start(&desired), Some(5), "{:?}", desired.services.keys().collect::<Vec<&ServiceId>>());
    until("a status", || accepted(&api, "first") == "True/Accepted").await;

    put(&api, "first", 2, &json!({"slowStart": "6s"}));
    put(&api, "second", 1, &json!({}));
    let desired = merge_with(&mut source, Some("6s"), 2).await;
    assert_eq!(slow_start(&desired), Some(6));
    until("word of the conflict", || accepted(&api, "second") == "False/Conflicted").await;
    until("the generation", || api.get(POLICIES, "first").unwrap()["status"]["observedGeneration"] == 2)
        .await;
    until_quiet(&api).await;
    let before = api.writes();
    until_quiet(&api).await;
    assert_eq!(api.writes(), before, "then nothing is written any more");

    api.remove(POLICIES, "first");
    merge_with(&mut source, None, 1).await;
    until("the other's turn", || accepted(&api, "second") == "True/Accepted").await;
}
