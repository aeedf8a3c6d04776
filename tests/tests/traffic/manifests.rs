//! Edits of the manifests, good and bad, while everything runs.

use tests::{
    agent::{Agent, Problem},
    topology::VIP,
};

use super::{SOON, connect, gateway};

fn with_reason(agent: &Agent, reason: &str) -> Vec<Problem> {
    let problems = agent.problems().unwrap();
    problems.into_iter().filter(|problem| problem.reason == reason).collect()
}

#[test]
fn a_broken_file_changes_nothing_and_is_reported_and_the_fixed_one_takes_effect() {
    let (bed, mut agent) = gateway(1);
    let good = bed.manifests().read("hangzhou/service.yaml").unwrap();
    let before = agent.services().unwrap().len();
    bed.manifests().write("hangzhou/service.yaml", &good.replace("  ports:", "  ports: [{")).unwrap();
    agent
        .wait_until("reporting the broken file", SOON, |agent| {
            Ok(agent.problems()?.iter().any(|problem| problem.reason == "Unreadable"))
        })
        .unwrap();
    let [problem] = with_reason(&agent, "Unreadable").try_into().unwrap();
    assert_eq!(problem.cluster.as_deref(), Some("hangzhou"));
    let text = format!("{} {}", problem.object, problem.message);
    assert!(text.contains("service.yaml"), "{problem:?}");
    let line = good.lines().position(|line| line == "  ports:").unwrap() + 1;
    assert!(
        (line..=line + 4).any(|line| text.contains(&format!("line {line}, column "))),
        "line {line}: {problem:?}"
    );
    assert_eq!(agent.services().unwrap().len(), before);
    assert_eq!(connect(&bed, bed.vip_http(), 100, 10_000).by_cluster.len(), 2);

    for cluster in bed.cluster_names() {
        let path = format!("{cluster}/service.yaml");
        bed.manifests().write(&path, &good.replace("port: 80,", "port: 8081,")).unwrap();
    }
    agent
        .wait_until("serving the new port", SOON, |agent| {
            let services = agent.services()?;
            let new = services.iter().filter(|row| row["port"] == 8081 && row["usable"] == 2).count();
            Ok(new == 2 && agent.problems()?.is_empty())
        })
        .unwrap();
    for ip in VIP.both() {
        assert_eq!(connect(&bed, (ip, 8081).into(), 100, 10_000).by_cluster.len(), 2);
    }
}

/// A service of its own in hangzhou, with the pods of `demo/httpbin` behind it.
fn another(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  namespace: demo
  name: {name}
  annotations: {{kanmon.dev/addresses: \"{address}\"}}
spec:
  type: LoadBalancer
  loadBalancerClass: kanmon.dev/xdp
  ports:
    - {{name: http, protocol: TCP, port: 81, targetPort: 8080}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: demo
  name: {name}-ipv4
  labels: {{kubernetes.io/service-name: {name}}}
addressType: IPv4
ports: [{{name: http, protocol: TCP, port: 8080}}]
endpoints:
  - addresses: [\"10.0.1.10\"]
    conditions: {{ready: true}}
"
    )
}

#[test]
fn a_second_service_on_the_same_vip_is_refused_and_one_on_another_vip_is_served() {
    let (bed, mut agent) = gateway(1);
    bed.manifests().write("hangzhou/other.yaml", &another("other", "192.168.100.10")).unwrap();
    agent
        .wait_until("refusing the VIP of another service", SOON, |agent| {
            Ok(agent.problems()?.iter().any(|problem| problem.reason == "AddressConflict"))
        })
        .unwrap();
    let [problem] = with_reason(&agent, "AddressConflict").try_into().unwrap();
    assert_eq!(problem.object, "Service demo/other");
    assert!(
        problem.message.contains("192.168.100.10") && problem.message.contains("demo/httpbin"),
        "{problem:?}"
    );
    assert!(agent.services().unwrap().iter().all(|row| row["name"] == "httpbin"));
    connect(&bed, bed.vip_http(), 100, 10_000);

    bed.manifests().write("hangzhou/other.yaml", &another("other", "192.168.100.11")).unwrap();
    agent
        .wait_until("serving the other VIP", SOON, |agent| {
            let usable = |row: &serde_json::Value| row["name"] == "other" && row["usable"] == 1;
            Ok(agent.services()?.iter().any(usable) && agent.problems()?.is_empty())
        })
        .unwrap();
    let tally = connect(&bed, "192.168.100.11:81".parse().unwrap(), 50, 10_000);
    assert_eq!(tally.by_pod.keys().collect::<Vec<_>>(), ["hangzhou-1"]);
}
