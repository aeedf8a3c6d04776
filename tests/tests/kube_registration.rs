//! How clusters become members, or don't: Secrets of every kind, against real API servers.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tests::{
    agent::Agent,
    kube::KubeCluster,
    scene::{SMALL, SOON, connection, wait_for_sync},
    stage::{KubeStage, StageOptions},
};

fn unregistered() -> KubeStage {
    KubeStage::start(StageOptions { register: false, ..StageOptions::default() }).unwrap()
}

/// The kubeconfig in the Secret that registers a cluster, as JSON.
fn kubeconfig(stage: &KubeStage, cluster: &str) -> Result<Value> {
    let print = format!("kanmon remote-secret create --context {cluster} --name {cluster}");
    let line = format!("{print} | kubectl --context gateway create --dry-run=client -o json -f -");
    let secret: Value = serde_json::from_str(&stage.type_in(&line)?)?;
    let text = match secret["stringData"][cluster].as_str() {
        Some(text) => text.to_owned(),
        None => {
            let bytes: ByteString = serde_json::from_value(secret["data"][cluster].clone())?;
            String::from_utf8(bytes.0)?
        }
    };
    // kubectl reads every kubeconfig, and writes JSON.
    stage.workstation().write("one.kubeconfig", &text)?;
    let view = "kubectl --kubeconfig one.kubeconfig config view --raw -o json";
    serde_json::from_str(&stage.type_in(view)?).context("kubectl printed no JSON")
}

/// A Secret with kubeconfigs by data key, and a label that makes it a remote secret.
fn secret(namespace: &str, name: &str, label: &str, keys: &[(&str, &Value)]) -> String {
    let data: serde_json::Map<String, Value> =
        keys.iter().map(|(key, kubeconfig)| ((*key).to_owned(), json!(kubeconfig.to_string()))).collect();
    json!({
        "apiVersion": "v1", "kind": "Secret", "stringData": data,
        "metadata": {"namespace": namespace, "name": name, "labels": {label: "true"}},
    })
    .to_string()
}

fn members(agent: &Agent) -> Result<BTreeSet<String>> {
    Ok(agent.members()?.into_iter().map(|member| member.name).collect())
}

/// A condition of a MemberCluster: `status/reason`.
fn condition(gateway: &KubeCluster, member: &str, kind: &str) -> Result<String> {
    let path =
        format!("jsonpath={{range .status.conditions[?(@.type==\"{kind}\")]}}{{.status}}/{{.reason}}{{end}}");
    gateway.kubectl(&["get", "membercluster", member, "-o", &path], "")
}

#[test]
fn one_secret_with_two_keys_registers_two_members_by_legal_names() {
    let stage = unregistered();
    let gateway = stage.kube("gateway").unwrap();
    let mut agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    assert_eq!(members(&agent).unwrap(), BTreeSet::new());

    let (a, b) = (kubeconfig(&stage, "hangzhou").unwrap(), kubeconfig(&stage, "shanghai").unwrap());
    let keys = [("hangzhou", &a), ("gke_proj_x", &b)];
    gateway.apply(&secret("kanmon-system", "both", "kanmon.dev/member-cluster", &keys)).unwrap();
    wait_for_sync(&mut agent, "hangzhou").unwrap();
    agent.wait_until("serving two members", SOON, |agent| Ok(members(agent)?.len() == 2)).unwrap();
    let named = members(&agent).unwrap();
    let other = named.iter().find(|name| *name != "hangzhou").unwrap();
    assert!(other.starts_with("gke-proj-x-"), "{named:?}");
    wait_for_sync(&mut agent, other).unwrap();

    // They are there for everybody to see, and name their key.
    let path = "jsonpath={.spec.source.kubeconfigSecretRef.key}";
    gateway
        .kubectl(&["wait", "--for=condition=Ready", "membercluster", "--all", "--timeout=90s"], "")
        .unwrap();
    assert_eq!(gateway.kubectl(&["get", "membercluster", other, "-o", path], "").unwrap(), "gke_proj_x");
    let table = gateway.kubectl(&["get", "memberclusters"], "").unwrap();
    let row = table.lines().find(|line| line.starts_with("hangzhou")).unwrap();
    assert!(row.contains("Active") && row.contains("True") && row.contains("Valid"), "{table}");
}

#[test]
fn the_second_registration_of_a_cluster_is_a_duplicate_and_not_read() {
    let stage = unregistered();
    let gateway = stage.kube("gateway").unwrap();
    let mut agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    stage.register("hangzhou").unwrap();
    wait_for_sync(&mut agent, "hangzhou").unwrap();
    gateway
        .kubectl(&["wait", "--for=condition=Ready", "membercluster/hangzhou", "--timeout=90s"], "")
        .unwrap();

    // Another label, another namespace, another account: the same cluster all the same.
    let again = stage.istioctl("hangzhou", "another-token").unwrap().replace("hangzhou:", "again:");
    gateway.kubectl(&["create", "namespace", "istio-system"], "").unwrap();
    gateway.apply(&again).unwrap();
    let duplicate = "--for=condition=DuplicateCluster";
    gateway.kubectl(&["wait", "--for=create", "membercluster/again", "--timeout=90s"], "").unwrap();
    gateway.kubectl(&["wait", duplicate, "membercluster/again", "--timeout=90s"], "").unwrap();
    assert_eq!(condition(gateway, "again", "Ready").unwrap(), "False/DuplicateCluster");
    assert_eq!(condition(gateway, "hangzhou", "DuplicateCluster").unwrap(), "False/Unique");
    let told = agent.problems().unwrap();
    let told = told.iter().find(|problem| problem.object == "MemberCluster again").unwrap();
    assert!(told.message.contains("hangzhou"), "{told:?}");

    // The first one goes: the second one takes its place.
    let delete = ["-n", "kanmon-system", "delete", "secret", "kanmon-remote-secret-hangzhou"];
    let state = r#"{"spec":{"state":"Disabled"}}"#;
    gateway.kubectl(&["patch", "membercluster", "hangzhou", "--type=merge", "-p", state], "").unwrap();
    gateway.kubectl(&delete, "").unwrap();
    wait_for_sync(&mut agent, "again").unwrap();
    gateway.kubectl(&["wait", "--for=condition=Ready", "membercluster/again", "--timeout=90s"], "").unwrap();
}

/// A kubeconfig that may not be used, and the word for why.
fn refused(good: &Value) -> Vec<(&'static str, &'static str, Value)> {
    let changed = |change: fn(&mut Value)| {
        let mut kubeconfig = good.clone();
        change(&mut kubeconfig);
        kubeconfig
    };
    vec![
        (
            "exec",
            "ExecRefused",
            changed(|it| {
                it["users"][0]["user"] = json!({"exec": {
                    "apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/true",
                    "interactiveMode": "Never",
                }});
            }),
        ),
        (
            "provider",
            "AuthProviderRefused",
            changed(|it| {
                it["users"][0]["user"] = json!({"auth-provider": {"name": "oidc", "config": {}}});
            }),
        ),
        (
            "file",
            "FilePathRefused",
            changed(|it| {
                it["users"][0]["user"] = json!({"tokenFile": "/etc/shadow"});
            }),
        ),
        (
            "insecure",
            "InsecureRefused",
            changed(|it| {
                let server = it["clusters"][0]["cluster"]["server"].clone();
                it["clusters"][0]["cluster"] = json!({"server": server, "insecure-skip-tls-verify": true});
            }),
        ),
        (
            "plain",
            "ServerNotHttps",
            changed(|it| {
                it["clusters"][0]["cluster"]["server"] = json!("http://20.0.1.10:6443");
            }),
        ),
        ("garbage", "KubeconfigUnreadable", json!(["no", "kubeconfig"])),
    ]
}

#[test]
fn a_secret_that_asks_too_much_is_refused_with_an_event_and_a_condition_and_harms_nobody() {
    let stage = unregistered();
    let gateway = stage.kube("gateway").unwrap();
    let mut agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    let good = kubeconfig(&stage, "hangzhou").unwrap();
    let refused = refused(&good);
    for (name, _, bad) in &refused {
        gateway.apply(&secret("kanmon-system", name, "kanmon.dev/member-cluster", &[(name, bad)])).unwrap();
    }
    stage.register("shanghai").unwrap();
    wait_for_sync(&mut agent, "shanghai").unwrap();
    for (name, reason, _) in &refused {
        agent
            .wait_until(&format!("refusing {name}"), SOON, |agent| {
                let problems = agent.problems()?;
                Ok(problems.iter().any(|problem| problem.object == format!("Secret kanmon-system/{name}")))
            })
            .unwrap();
        wait_for_event(gateway, "kanmon-system", "Secret", name, reason).unwrap();
    }
    assert_eq!(members(&agent).unwrap(), BTreeSet::from(["shanghai".to_owned()]));

    // Who refers to such a Secret is told why it is not read.
    let declared = json!({
        "apiVersion": "kanmon.dev/v1alpha1", "kind": "MemberCluster", "metadata": {"name": "declared"},
        "spec": {"source": {"kubeconfigSecretRef":
            {"namespace": "kanmon-system", "name": "exec", "key": "exec"}}},
    });
    gateway.apply(&declared.to_string()).unwrap();
    let not_ready = ["wait", "--for=condition=Ready=false", "membercluster/declared", "--timeout=90s"];
    gateway.kubectl(&not_ready, "").unwrap();
    assert_eq!(condition(gateway, "declared", "Ready").unwrap(), "False/ExecRefused");
    assert_eq!(connection(&agent, "declared").unwrap().reason, "ExecRefused");

    // What is corrected is read.
    gateway.apply(&secret("kanmon-system", "exec", "kanmon.dev/member-cluster", &[("exec", &good)])).unwrap();
    wait_for_sync(&mut agent, "declared").unwrap();
}

/// Waits for a warning about an object.
fn wait_for_event(
    cluster: &KubeCluster,
    namespace: &str,
    kind: &str,
    name: &str,
    reason: &str,
) -> Result<()> {
    let object = format!("involvedObject.kind={kind},involvedObject.name={name},type=Warning");
    let get =
        ["-n", namespace, "get", "events", "--field-selector", &object, "-o", "jsonpath={.items[*].reason}"];
    cluster.wait_for(&format!("an Event {reason} on {kind} {name}"), SOON, async |_| {
        let reasons = cluster.kubectl(&get, "")?;
        ensure!(!reasons.is_empty(), "there is no Event on {name}");
        Ok(reasons.split_whitespace().any(|found| found == reason).then_some(()))
    })
}

#[test]
fn members_whose_certificate_is_not_checked_are_read_where_the_gateway_allows_it() {
    let stage = unregistered();
    let gateway = stage.kube("gateway").unwrap();
    let allowed = [&SMALL[..], &["--allow-insecure-members"]].concat();
    let mut agent = stage.start_agent(&stage.gateway(), &allowed).unwrap();
    let good = kubeconfig(&stage, "hangzhou").unwrap();
    let (_, _, insecure) = refused(&good).into_iter().find(|(name, ..)| *name == "insecure").unwrap();
    let keys = [("hangzhou", &insecure)];
    gateway.apply(&secret("kanmon-system", "insecure", "kanmon.dev/member-cluster", &keys)).unwrap();
    wait_for_sync(&mut agent, "hangzhou").unwrap();
}
