//! Several gateways of one cluster: one that dies is named, and one that leaves is forgotten.

use std::{collections::BTreeSet, thread, time::Duration};

use serde_json::Value;
use tests::{
    kube::{KubeCluster, condition, condition_message},
    scenario::eventually,
    scene::{SMALL, SOON},
    stage::{App, Gateway, KubeStage, POOL, StageOptions},
};

/// How long a gateway's silence may take to be noticed: its Lease is good for 40 s, and the machine may be busy.
const NOTICED: Duration = Duration::from_secs(150);
/// Longer than a gateway's Lease is good for.
const AWAY: Duration = Duration::from_secs(70);

const SERVICE: &str = "/api/v1/namespaces/demo/services/shop";
const ALLOCATIONS: &str = "/apis/kanmon.dev/v1alpha1/addressallocations";
const PROGRAMMED: &str = "kanmon.dev/Programmed";

/// Waits until the Service says so of the gateways that forward its addresses; gives what else it says.
fn wait_for_programmed(cluster: &KubeCluster, holds: &str, begins: &str) -> String {
    let what = format!("shop is programmed: {holds}, {begins:?}");
    let seen = cluster.see(&what, SERVICE, NOTICED, |service| {
        let said = condition_message(service, PROGRAMMED);
        (condition(service, PROGRAMMED).starts_with(holds) && said.starts_with(begins)).then_some(said)
    });
    seen.unwrap()
}

/// Since when that condition has been as it is.
fn since(cluster: &KubeCluster) -> String {
    let service = cluster.look(SERVICE).unwrap();
    let mut conditions = service["status"]["conditions"].as_array().unwrap().iter();
    let programmed = conditions.find(|condition| condition["type"] == PROGRAMMED).unwrap();
    programmed["lastTransitionTime"].as_str().unwrap().to_owned()
}

/// The Lease by which a gateway shows that it is there.
fn heartbeat(cluster: &KubeCluster, gateway: &str) -> Value {
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kanmon-system/leases";
    let list = cluster.look(leases).unwrap();
    let mut all = list["items"].as_array().unwrap().iter();
    let of_gateway = |lease: &&Value| lease["metadata"]["annotations"]["kanmon.dev/gateway"] == gateway;
    all.find(of_gateway).cloned().unwrap_or_default()
}

/// Waits until a gateway has renewed its Lease so often.
fn wait_for_renewals(cluster: &KubeCluster, gateway: &str, count: usize) {
    let mut times = BTreeSet::new();
    eventually(&format!("{gateway} renews its Lease"), NOTICED, || {
        times.insert(heartbeat(cluster, gateway)["spec"]["renewTime"].to_string());
        times.len() > count
    });
}

/// A stage of one member with two gateways, and a Service there that has an address.
fn two_gateways() -> (KubeStage, [Gateway; 2]) {
    let clusters = vec!["gateway", "hangzhou"];
    let stage = KubeStage::start(StageOptions { clusters, ..StageOptions::default() }).unwrap();
    let places = [stage.gateway(), stage.second_gateway("hangzhou").unwrap()];
    stage.kube("gateway").unwrap().apply(POOL).unwrap();
    stage.deploy("hangzhou", &App::new("shop", 1).assigned()).unwrap();
    (stage, places)
}

#[test]
fn a_gateway_that_dies_is_named_until_it_is_back_and_one_that_leaves_takes_its_word_along() {
    let (stage, [first, second]) = two_gateways();
    let (gateway, hangzhou) = (stage.kube("gateway").unwrap(), stage.kube("hangzhou").unwrap());
    let _first = stage.start_agent(&first, &SMALL).unwrap();
    let agent = stage.start_agent(&second, &SMALL).unwrap();
    wait_for_programmed(hangzhou, "True", "2 of 2 gateways");

    agent.kill().unwrap();
    let said = wait_for_programmed(hangzhou, "False", "1 of 2 gateways");
    assert!(said.contains("gateway-2 is gone") && !said.contains("gateway-1"), "{said}");
    let service = hangzhou.look(SERVICE).unwrap();
    assert!(condition(&service, PROGRAMMED).contains("GatewayGone"), "{service}");

    let agent = stage.start_agent(&second, &SMALL).unwrap();
    wait_for_programmed(hangzhou, "True", "2 of 2 gateways");

    // A restart is no news.
    let before = (since(hangzhou), heartbeat(gateway, "gateway-2")["spec"]["holderIdentity"].clone());
    agent.terminate().unwrap();
    assert_eq!(heartbeat(gateway, "gateway-2")["spec"]["holderIdentity"], "", "nobody holds it any more");
    let agent = stage.start_agent(&second, &SMALL).unwrap();
    wait_for_renewals(gateway, "gateway-2", 5);
    let holder = heartbeat(gateway, "gateway-2")["spec"]["holderIdentity"].clone();
    assert!(holder != "" && holder != before.1, "the new agent holds it: {holder}");
    wait_for_programmed(hangzhou, "True", "2 of 2 gateways");
    assert_eq!(since(hangzhou), before.0, "nobody was called gone in between");

    agent.interrupt().unwrap();
    wait_for_programmed(hangzhou, "True", "1 of 1 gateways");
    gateway
        .see("only the gateway that is left has an entry", ALLOCATIONS, SOON, |list| {
            let items = list["items"].as_array()?;
            let names = |item: &Value| -> Option<Vec<String>> {
                let gateways = item["status"]["gateways"].as_array()?;
                gateways.iter().map(|state| state["name"].as_str().map(str::to_owned)).collect()
            };
            let left = items.iter().all(|item| names(item).is_some_and(|names| names == ["gateway-1"]));
            (left && !items.is_empty()).then_some(())
        })
        .unwrap();
    assert!(heartbeat(gateway, "gateway-2").is_null(), "its Lease is gone too");
}

#[test]
fn while_the_gateway_cluster_is_away_no_gateway_is_called_gone() {
    let (stage, places) = two_gateways();
    let (gateway, hangzhou) = (stage.kube("gateway").unwrap(), stage.kube("hangzhou").unwrap());
    let _agents = [0, 1].map(|n| stage.start_agent(&places[n], &SMALL).unwrap());
    wait_for_programmed(hangzhou, "True", "2 of 2 gateways");
    let before = since(hangzhou);

    gateway.partition().unwrap();
    thread::sleep(AWAY);
    wait_for_programmed(hangzhou, "True", "2 of 2 gateways");
    gateway.heal().unwrap();
    for name in ["gateway-1", "gateway-2"] {
        wait_for_renewals(gateway, name, 3);
    }
    wait_for_programmed(hangzhou, "True", "2 of 2 gateways");
    assert_eq!(since(hangzhou), before, "nobody was called gone in between");
}
