//! Gateways that come, end and are gone, on the source as a whole.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::super::heartbeat::Heartbeat;
use super::super::target::Publisher;
use super::fake::FakeApi;
use super::source::Source;
use super::writing::until;
use crate::cluster::Programmed;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kanmon-system/leases";
const ALLOCATIONS: &str = "/apis/kanmon.dev/v1alpha1/addressallocations";
const LOOK: &str = "GET /apis/coordination.k8s.io/v1/namespaces/kanmon-system/leases?";
const OWN: &str = "kanmon-set.gateway.gw-1";
const SOON: Duration = Duration::from_millis(50);

/// The heartbeat of a gateway, and the agent's end of it.
fn heartbeat(api: &FakeApi) -> (Heartbeat, watch::Sender<Arc<Programmed>>) {
    let (programmed, presence) = watch::channel(Arc::default());
    let publisher = Publisher {
        cluster_set_id: "set".to_owned(),
        instance: "gw-1_0".to_owned(),
        gateway: "gw-1".to_owned(),
        changed: Arc::new(Notify::new()),
        presence,
    };
    (Heartbeat::start(api.access(), &publisher, SOON), programmed)
}

fn holder(api: &FakeApi) -> Value {
    api.get(LEASES, OWN).unwrap_or_default()["spec"]["holderIdentity"].clone()
}

#[tokio::test]
async fn a_gateway_shows_that_it_is_there_and_one_that_leaves_its_program_behind_does_not_say_that_it_left() {
    let api = FakeApi::start().await;
    let (heartbeat, programmed) = heartbeat(&api);
    until("a Lease", || holder(&api) == "gw-1_0").await;
    assert_eq!(api.get(LEASES, OWN).unwrap()["metadata"]["labels"]["kanmon.dev/cluster-set-id"], "set");
    let renewed = api.get(LEASES, OWN).unwrap()["spec"]["renewTime"].clone();
    until("a renewal", || api.get(LEASES, OWN).unwrap()["spec"]["renewTime"] != renewed).await;
    drop(heartbeat);
    programmed.closed().await;
    assert_eq!(holder(&api), "", "an uninstall need not wait");
}

#[tokio::test]
async fn a_gateway_that_takes_everything_away_takes_its_lease_away() {
    let api = FakeApi::start().await;
    let (heartbeat, programmed) = heartbeat(&api);
    until("a Lease", || holder(&api) == "gw-1_0").await;
    programmed.send_modify(|told| Arc::make_mut(told).leaving = true);
    drop(heartbeat);
    programmed.closed().await;
    assert!(api.get(LEASES, OWN).is_none());
}

#[tokio::test]
async fn what_a_gateway_said_that_took_everything_away_is_taken_back_in_its_name() {
    let api = FakeApi::start().await;
    let entry =
        json!({"name": "gw-2", "programmed": true, "reason": "Programmed", "since": "2026-01-01T00:00:00Z"});
    api.put(
        ALLOCATIONS,
        json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "AddressAllocation",
            "metadata": {"name": "192.0.2.1", "uid": "a", "labels": {"kanmon.dev/cluster-set-id": "set"}},
            "spec": {"address": "192.0.2.1", "services": []}, "status": {"gateways": [entry]}}),
    );
    api.put(
        LEASES,
        json!({"metadata": {"name": "kanmon-set.gateway.gw-2", "namespace": "kanmon-system", "uid": "l",
                "annotations": {"kanmon.dev/gateway": "gw-2"}},
            "spec": {"leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00.000000Z"}}),
    );
    let source = Source::with(&api, None, Duration::from_secs(60)).await;
    let seen = api.requests(LOOK) + 2;
    until("looks at the Leases", || api.requests(LOOK) >= seen).await;
    assert!(!api.get(ALLOCATIONS, "192.0.2.1").unwrap()["status"].is_null(), "it may come back");
    api.remove(LEASES, "kanmon-set.gateway.gw-2");
    until("its end", || api.get(ALLOCATIONS, "192.0.2.1").unwrap()["status"].is_null()).await;
    assert!(api.requests("fieldManager=kanmon.dev%2Fgateway%2Fgw-2") > 0);
    drop(source);
}
