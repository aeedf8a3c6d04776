//! Policies on real clusters: which of two counts, what each gateway says of them, and what is said where nothing is
//! healthy.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tests::{
    client::TcpLoad,
    kube::{KubeCluster, condition, condition_message},
    scenario::eventually,
    scene::{MEMBERS, Rings, SMALL, SOON},
    stage::{App, KubeStage, StageOptions},
    topology::{HTTP_PORT, VIP},
};

fn policy(name: &str, service: &str, spec: &str) -> String {
    format!(
        "apiVersion: kanmon.dev/v1alpha1
kind: LoadBalancingPolicy
metadata: {{namespace: demo, name: {name}}}
spec: {{targetRefs: [{{group: '', kind: Service, name: {service}}}], {spec}}}
"
    )
}

fn path(name: &str) -> String {
    format!("/apis/kanmon.dev/v1alpha1/namespaces/demo/loadbalancingpolicies/{name}")
}

/// Waits until a condition of a policy is as it should be; gives its message.
fn wait_for(gateway: &KubeCluster, name: &str, kind: &str, should: &str) -> String {
    let what = format!("{name} has {kind} {should}");
    let seen = gateway.see(&what, &path(name), SOON, |policy| {
        (condition(policy, kind) == should).then(|| condition_message(policy, kind))
    });
    seen.unwrap()
}

/// The names of the gateways that have an entry in a policy's status, and are said to go by it.
fn gateways(policy: &Value) -> Vec<&str> {
    let entries = policy["status"]["gateways"].as_array().into_iter().flatten();
    let mut names: Vec<&str> = entries
        .filter(|entry| entry["programmed"] == true)
        .filter_map(|entry| entry["name"].as_str())
        .collect();
    names.sort_unstable();
    names
}

/// How much of the ring of httpbin belongs to hangzhou, by its pods' addresses, in percent.
fn share_of_hangzhou(stage: &KubeStage) -> f64 {
    let rings = Rings::open(stage.gateway().pins()).unwrap();
    let ring = rings.of((VIP.v4, HTTP_PORT).into()).unwrap();
    let pods = stage.bed().pod_prefixes("hangzhou").unwrap();
    ring.percent(|address| pods.iter().any(|prefix| prefix.contains(&address)))
}

#[test]
fn the_older_of_two_policies_counts_on_every_gateway_and_the_other_one_when_it_is_gone() {
    let stage = KubeStage::start(StageOptions::default()).unwrap();
    let gateway = stage.kube("gateway").unwrap();
    let httpbin = App::new("httpbin", 2).at(VIP);
    for member in MEMBERS {
        stage.deploy(member, &httpbin).unwrap();
    }
    let mut agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    stage.wait_until_used(&mut agent, &httpbin, &MEMBERS.map(|member| (member, 2))).unwrap();
    let _second = stage.start_agent(&stage.second_gateway("hangzhou").unwrap(), &SMALL).unwrap();

    let shares = |own: u32| {
        let other = 100 - own;
        format!(
            "locality: {{distribute: [{{from: cn-hangzhou, to: [{{region: cn-hangzhou, weight: {own}}}, \
             {{region: cn-shanghai, weight: {other}}}]}}]}}"
        )
    };
    // By name it would be the second.
    gateway.apply(&policy("older", "httpbin", &shares(90))).unwrap();
    let made = gateway.look(&path("older")).unwrap()["metadata"]["creationTimestamp"].clone();
    let made: Timestamp = made.as_str().unwrap().parse().unwrap();
    // The age of objects is known to the second.
    eventually("another second", SOON, || Timestamp::now() > made + SignedDuration::from_secs(2));
    gateway.apply(&policy("newer", "httpbin", &shares(20))).unwrap();

    let said = wait_for(gateway, "newer", "Accepted", "False/Conflicted");
    assert!(said.contains("LoadBalancingPolicy demo/older"), "{said}");
    wait_for(gateway, "newer", "Programmed", "False/NotAccepted");
    wait_for(gateway, "older", "Accepted", "True/Accepted");
    gateway
        .see("both gateways go by the older", &path("older"), SOON, |policy| {
            let weights: Vec<Value> = policy["status"]["gateways"]
                .as_array()?
                .iter()
                .map(|entry| {
                    json!([entry["regions"][0]["effectiveWeight"], entry["regions"][1]["effectiveWeight"]])
                })
                .collect();
            (gateways(policy) == ["gateway-1", "gateway-2"] && weights == [json!([90, 10]), json!([90, 10])])
                .then_some(())
        })
        .unwrap();
    eventually("the older is in force", SOON, || (share_of_hangzhou(&stage) - 90.0).abs() <= 0.1);

    gateway.kubectl(&["-n", "demo", "delete", "lbp", "older"], "").unwrap();
    wait_for(gateway, "newer", "Accepted", "True/Accepted");
    wait_for(gateway, "newer", "Programmed", "True/Programmed");
    eventually("the newer is in force", SOON, || (share_of_hangzhou(&stage) - 20.0).abs() <= 0.1);
    gateway.kubectl(&["-n", "demo", "delete", "lbp", "newer"], "").unwrap();
    eventually("all are alike", SOON, || (share_of_hangzhou(&stage) - 50.0).abs() <= 0.1);
}

#[test]
fn where_nothing_is_healthy_the_policy_says_so_until_something_is() {
    let stage = KubeStage::start(StageOptions::default()).unwrap();
    let gateway = stage.kube("gateway").unwrap();
    let httpbin = App::new("httpbin", 1).at(VIP).unchecked();
    for member in MEMBERS {
        stage.deploy(member, &httpbin).unwrap();
    }
    let mut agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    let pods = stage.wait_until_used(&mut agent, &httpbin, &MEMBERS.map(|member| (member, 1))).unwrap();
    let spec = "locality: {failover: [{from: cn-hangzhou, to: [cn-shanghai]}], failbackDelay: 0s}, \
                healthCheck: {type: TCP, interval: 250ms, timeout: 250ms, unhealthyThreshold: 2}";
    gateway.apply(&policy("httpbin", "httpbin", spec)).unwrap();
    wait_for(gateway, "httpbin", "Programmed", "True/Programmed");
    wait_for(gateway, "httpbin", "Degraded", "False/NotDegraded");

    for pod in &pods {
        stage.refuse(pod).unwrap();
    }
    let said = wait_for(gateway, "httpbin", "Degraded", "True/Degraded");
    assert!(said.starts_with("gateway-1: "), "{said}");
    gateway
        .see("no endpoint is healthy, and it is programmed", &path("httpbin"), SOON, |policy| {
            let programmed = condition(policy, "Programmed") == "True/Programmed";
            (policy["status"]["healthy"] == "0/2" && programmed).then_some(())
        })
        .unwrap();
    // Their cluster calls them ready: what is left to try is tried.
    stage.accept(&pods[0]).unwrap();
    wait_for(gateway, "httpbin", "Degraded", "False/NotDegraded");
    eventually("hangzhou answers alone", SOON, || {
        let load = TcpLoad::new((VIP.v4, HTTP_PORT).into(), 50);
        let tally = stage.bed().client().tcp(load).unwrap().tally();
        tally.failed == 0 && tally.by_cluster.keys().eq(["hangzhou"])
    });
}
