//! Being a guest in clusters: a steady state writes nothing, who may not write says so and serves, and whoever leaves
//! leaves nothing behind.

use std::{net::IpAddr, thread, time::Duration};

use serde_json::{Value, json};
use tests::{
    agent::Agent,
    client::TcpLoad,
    kube::{KubeCluster, condition, condition_message},
    scenario::eventually,
    scene::{MEMBERS, SMALL, SOON, wait_for_sync},
    stage::{App, KubeStage, StageOptions, declared, ingress, itself},
    topology::{HTTP_PORT, VIP},
};

/// How long nothing may be written.
const STEADY: Duration = Duration::from_secs(60);

fn member(name: &str) -> String {
    format!("/apis/kanmon.dev/v1alpha1/memberclusters/{name}")
}

fn import(name: &str) -> String {
    format!("/apis/multicluster.x-k8s.io/v1beta1/namespaces/demo/serviceimports/{name}")
}

/// Waits until a cluster has an import of so many clusters.
fn wait_for_import(cluster: &KubeCluster, name: &str, sources: usize) {
    let what = format!("{} has an import {name} of {sources}", cluster.name());
    let seen = cluster.see(&what, &import(name), SOON, |import| {
        (import["status"]["clusters"].as_array()?.len() == sources).then_some(())
    });
    seen.unwrap();
}

/// A pool of VIPs that are routed to a member's own gateway.
fn pool(third: u8) -> String {
    format!(
        "apiVersion: kanmon.dev/v1alpha1
kind: AddressPool
metadata: {{name: own}}
spec: {{cidrs: [192.168.{third}.64/26, 'fd00:{third}::40/122']}}
"
    )
}

#[test]
fn two_agents_in_two_clusters_that_are_each_others_members_come_to_rest_and_write_nothing_but_leases() {
    let options =
        StageOptions { clusters: MEMBERS.into(), register: false, mcs: true, ..StageOptions::default() };
    let stage = KubeStage::start(options).unwrap();
    let places = MEMBERS.map(|cluster| stage.gateway_of(cluster).unwrap());
    for (own, other, third) in [("hangzhou", "shanghai", 101), ("shanghai", "hangzhou", 102)] {
        let kube = stage.kube(own).unwrap();
        stage
            .type_in(&format!(
                "kanmon remote-secret create --context {other} --name {other} | kubectl --context {own} apply -f -"
            ))
            .unwrap();
        for object in [itself(own, "ServiceExport"), declared(other, "ServiceExport"), pool(third)] {
            kube.apply(&object).unwrap();
        }
    }
    let named = [0, 1].map(|n| App::new("helloworld", 1).at(places[n].vip()).exported());
    let assigned = App::new("shop", 1).assigned().port(8080).exported();
    let database = App::new("database", 1).headless().exported();
    for (n, cluster) in MEMBERS.into_iter().enumerate() {
        for app in [&named[n], &assigned, &database] {
            stage.deploy(cluster, app).unwrap();
        }
    }
    let mut agents = [0, 1].map(|n| stage.start_agent(&places[n], &SMALL).unwrap());
    for (agent, app) in agents.iter_mut().zip(&named) {
        stage.wait_until_used(agent, app, &[("hangzhou", 1), ("shanghai", 1)]).unwrap();
    }
    for cluster in MEMBERS {
        stage.external_ips(cluster, &assigned).unwrap();
        for name in ["helloworld", "shop", "database"] {
            wait_for_import(stage.kube(cluster).unwrap(), name, 2);
        }
        stage.kube(cluster).unwrap().apply(FAILOVER).unwrap();
        wait_until_in_force(stage.kube(cluster).unwrap(), "helloworld", "helloworld");
    }

    let before = stage.settled(&MEMBERS).unwrap();
    thread::sleep(STEADY);
    let after = MEMBERS.map(|cluster| stage.inventory(cluster).unwrap());
    for (cluster, (before, after)) in MEMBERS.into_iter().zip(before.iter().zip(&after)) {
        assert_eq!(before.changes(after), [] as [String; 0], "nothing is written in {cluster}");
        assert!(!before.renewed(after).is_empty(), "somebody holds a Lease in {cluster}, and renews it");
    }
    for agent in &mut agents {
        agent.wait_until("well", SOON, |agent| Ok(agent.status()?["ready"] == true)).unwrap();
    }
}

#[test]
fn a_member_that_may_only_be_read_is_served_and_says_what_may_not_be_written() {
    let options = StageOptions { register: false, mcs: true, ..StageOptions::default() };
    let stage = KubeStage::start(options).unwrap();
    let [hangzhou, gateway] = ["hangzhou", "gateway"].map(|cluster| stage.kube(cluster).unwrap());
    let secret = stage.istioctl("hangzhou", "first").unwrap();
    gateway.kubectl(&["create", "namespace", "istio-system"], "").unwrap();
    gateway.apply(&secret).unwrap();
    stage.register("shanghai").unwrap();
    let httpbin = App::new("httpbin", 2).at(VIP).exported();
    for member in MEMBERS {
        stage.deploy(member, &httpbin).unwrap();
    }
    for member in MEMBERS {
        stage.wait_for_pods(member, &httpbin, 2).unwrap();
    }
    let before = stage.settled(&["hangzhou"]).unwrap();

    let mut agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    stage.wait_until_used(&mut agent, &httpbin, &[("hangzhou", 2), ("shanghai", 2)]).unwrap();
    let said = gateway
        .see("hangzhou says that it is not written to", &member("hangzhou"), SOON, |member| {
            let refused = condition(member, "Writable").starts_with("False");
            refused.then(|| condition_message(member, "Writable"))
        })
        .unwrap();
    assert!(
        said.contains("services/status") || said.contains("services"),
        "it names what is missing: {said}"
    );
    gateway
        .see("shanghai is written to", &member("shanghai"), SOON, |member| {
            condition(member, "Writable").starts_with("True").then_some(())
        })
        .unwrap();
    let shanghai = stage.kube("shanghai").unwrap();
    shanghai
        .see(
            "shanghai's Service shows the VIPs",
            "/api/v1/namespaces/demo/services/httpbin",
            SOON,
            |service| (ingress(service) == VIP.both()).then_some(()),
        )
        .unwrap();
    let after = stage.inventory("hangzhou").unwrap();
    // The API server itself notes that a token was used.
    let changes = before[0].changes(&after).into_iter().filter(|name| !name.contains("Secret istio-system/"));
    assert_eq!(changes.collect::<Vec<_>>(), [] as [String; 0], "nothing is written in hangzhou");
    assert_eq!(after.traces(), [] as [String; 0]);
    let ready = condition(&gateway.look(&member("hangzhou")).unwrap(), "Ready");
    assert!(ready.starts_with("True"), "a member that is only read is a good one: {ready}");
    assert!(hangzhou.look(&import("httpbin")).unwrap().is_null());
    let target = (VIP.v4, HTTP_PORT).into();
    let tally = stage.bed().client().tcp(TcpLoad::new(target, 100)).unwrap().tally();
    assert_eq!((tally.failed, tally.by_cluster.len()), (0, 2), "{tally:?}");
}

/// A stage whose members export `shop`, with all that Kanmon writes about it written.
fn exported() -> (KubeStage, Agent, App) {
    let stage = KubeStage::start(StageOptions { mcs: true, ..StageOptions::default() }).unwrap();
    stage.declare(&MEMBERS, "ServiceExport").unwrap();
    let shop = App::new("shop", 1).assigned().port(8080).exported();
    for member in MEMBERS {
        stage.deploy(member, &shop).unwrap();
    }
    let mut agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    stage.wait_until_used(&mut agent, &shop, &[("hangzhou", 1), ("shanghai", 1)]).unwrap();
    for cluster in ["gateway", "hangzhou", "shanghai"] {
        wait_for_import(stage.kube(cluster).unwrap(), "shop", 2);
    }
    (stage, agent, shop)
}

/// Removes a member as a person does: the object and the Secret at once.
fn remove(stage: &KubeStage, member: &str) {
    let line = format!(
        "kubectl --context gateway -n kanmon-system delete membercluster/{member} \
         secret/kanmon-remote-secret-{member} --timeout=80s"
    );
    stage.type_in(&line).unwrap();
}

#[test]
fn kubectl_tells_the_story_and_neither_a_removed_member_nor_uninstall_leaves_anything() {
    let (stage, mut agent, shop) = exported();
    let gateway = stage.kube("gateway").unwrap();
    for member_name in MEMBERS {
        gateway
            .see("the member is ready", &member(member_name), SOON, |member| {
                let counted = member["status"]["endpoints"] == 2;
                (condition(member, "Ready").starts_with("True") && counted).then_some(())
            })
            .unwrap();
    }
    gateway.apply(POLICY).unwrap();
    wait_until_in_force(gateway, "shop", "shop");
    tables(&stage, &shop);

    remove(&stage, "hangzhou");
    let left = stage.inventory("hangzhou").unwrap();
    assert_eq!(left.traces(), [] as [String; 0], "hangzhou is as it was before it was a member");
    wait_for_import(stage.kube("shanghai").unwrap(), "shop", 1);
    stage.wait_until_used(&mut agent, &shop, &[("shanghai", 1)]).unwrap();

    // An agent that still runs would write it all again.
    let uninstall = "kanmon uninstall --kubeconfig kubeconfig --context gateway";
    let refused = stage.type_in(uninstall).unwrap_err().to_string();
    assert!(refused.contains("still runs"), "{refused}");
    agent.terminate().unwrap();
    // One that ends lets go of its Leases: nobody waits for them to run out.
    let said = stage.type_in(uninstall).unwrap();
    assert!(said.contains("shanghai"), "it says what it does: {said}");
    for cluster in ["gateway", "shanghai"] {
        let left = stage.inventory(cluster).unwrap();
        assert_eq!(left.traces(), [] as [String; 0], "{cluster}: {said}");
        assert_eq!(left.names("AddressAllocation"), [] as [&str; 0], "{cluster}: {said}");
    }
}

/// A policy that changes nothing that the others look at.
const POLICY: &str = "apiVersion: kanmon.dev/v1alpha1
kind: LoadBalancingPolicy
metadata: {namespace: demo, name: shop}
spec: {targetRefs: [{group: '', kind: Service, name: shop}], zonePreference: None}
";

/// A policy with everything that goes on by itself: probes, ejections, and shares that follow health.
const FAILOVER: &str = "apiVersion: kanmon.dev/v1alpha1
kind: LoadBalancingPolicy
metadata: {namespace: demo, name: helloworld}
spec:
  targetRefs: [{group: '', kind: Service, name: helloworld}]
  locality:
    failover: [{from: cn-hangzhou, to: [cn-shanghai]}, {from: cn-shanghai, to: [cn-hangzhou]}]
  healthCheck: {type: HTTP, path: /healthz, interval: 500ms, timeout: 500ms}
  outlierDetection: {consecutiveErrors: 1, interval: 1s, baseEjectionTime: 5s}
";

/// Waits until a policy is in force at the one gateway of its cluster, for a Service.
fn wait_until_in_force(cluster: &KubeCluster, policy: &str, service: &str) {
    let path = format!("/apis/kanmon.dev/v1alpha1/namespaces/demo/loadbalancingpolicies/{policy}");
    let seen = cluster.see("the policy is in force", &path, SOON, |policy| {
        let holds = |kind| condition(policy, kind).starts_with("True");
        let entry = &policy["status"]["gateways"][0];
        let is_told = entry["programmed"] == true && entry["services"] == json!([service]);
        (holds("Accepted") && holds("Programmed") && holds("Enforced") && is_told).then_some(())
    });
    seen.unwrap();
}

/// What `kubectl get` shows: the whole story, in columns.
fn tables(stage: &KubeStage, shop: &App) {
    let vip =
        stage.external_ips("hangzhou", shop).unwrap().into_iter().find(IpAddr::is_ipv4).unwrap().to_string();
    let rows = |cluster: &str, what: &str, words: &[&str]| {
        let table = stage.type_in(&format!("kubectl --context {cluster} -n demo get {what}")).unwrap();
        for word in words {
            assert!(table.contains(word), "{word} is in {cluster}'s\n{table}");
        }
    };
    let columns = ["REGION", "STATE", "CONNECTED", "NETWORK", "SERVICES", "ENDPOINTS", "AGE"];
    rows("gateway", "memberclusters", &columns);
    rows("gateway", "memberclusters", &["hangzhou", "cn-shanghai", "Active", "True", "Valid"]);
    rows("gateway", "addresspools", &["internal", "Internal", "USED", "FREE"]);
    rows(
        "gateway",
        "loadbalancingpolicies",
        &["MODE", "HEALTHY", "EJECTED", "ACCEPTED", "PROGRAMMED", "AGE"],
    );
    rows("gateway", "loadbalancingpolicies", &["shop", "Even", "True"]);
    rows("gateway", "addressallocations", &[&vip, "shop", "internal", "NOT-PROGRAMMED-ON"]);
    rows("gateway", "serviceimports", &["shop", "ClusterSetIP", &vip]);
    for member in MEMBERS {
        rows(member, "services", &["shop", &vip, "8080"]);
        rows(member, "serviceexports", &["IS-VALID", "IS-CONFLICTED", "shop", "True", "False"]);
        rows(member, "serviceimports", &["shop", "ClusterSetIP", &vip]);
    }
}

#[test]
fn a_member_can_be_removed_in_time_although_its_cluster_is_dead() {
    let clusters = vec!["gateway", "hangzhou"];
    let stage = KubeStage::start(StageOptions { clusters, mcs: true, ..StageOptions::default() }).unwrap();
    stage.declare(&["hangzhou"], "SameName").unwrap();
    let [hangzhou, gateway] = ["hangzhou", "gateway"].map(|cluster| stage.kube(cluster).unwrap());
    let shop = App::new("shop", 1).assigned();
    stage.deploy("hangzhou", &shop).unwrap();
    let patience = [&SMALL[..], &["--cleanup-timeout=5s"]].concat();
    let mut agent = stage.start_agent(&stage.gateway(), &patience).unwrap();
    wait_for_sync(&mut agent, "hangzhou").unwrap();
    stage.wait_until_used(&mut agent, &shop, &[("hangzhou", 1)]).unwrap();
    gateway
        .see("the member has our finalizer", &member("hangzhou"), SOON, |member| {
            let finalizers = member["metadata"]["finalizers"].as_array()?;
            finalizers.iter().any(|one| one == "kanmon.dev/cleanup").then_some(())
        })
        .unwrap();

    hangzhou.partition().unwrap();
    remove(&stage, "hangzhou");
    assert!(gateway.look(&member("hangzhou")).unwrap().is_null());
    let events = "/api/v1/events?fieldSelector=involvedObject.kind%3DMemberCluster,type%3DWarning";
    gateway
        .see("an Event says that hangzhou was not cleaned up", events, SOON, |list: &Value| {
            let mut items = list["items"].as_array().into_iter().flatten();
            let says = |event: &Value| {
                let text = event["message"].as_str().unwrap_or_default();
                event["involvedObject"]["name"] == "hangzhou" && text.contains("clean")
            };
            items.any(says).then_some(())
        })
        .unwrap();
    eventually("the agent has forgotten it", SOON, || agent.members().unwrap().is_empty());
}
