//! What probes find is what the cluster goes by.

use std::fs;

use tests::{client::TcpLoad, topology::POD_PORT};

use crate::cluster::{Cluster, addresses, echo, is_ready, restarts};

/// An echo server with a probe that passes while `file` is there.
fn watched(name: &str, probe: &str, file: &std::path::Path) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: echo
    image: kanmon.dev/echo
    args: ['--drain-delay=0']
    {probe}: {{exec: {{command: [test, -e, {}]}}, periodSeconds: 1, failureThreshold: 2}}
",
        file.display()
    )
}

#[test]
fn a_failing_readiness_probe_takes_the_pod_out_and_a_passing_one_back_in_without_a_restart() {
    let cluster = Cluster::start();
    let file = cluster.bed().run().path().join("ready");
    fs::write(&file, "").unwrap();
    cluster.apply(&echo("web", 0, ""));
    cluster.apply(&watched("web", "readinessProbe", &file));
    let uid = cluster.wait_for_ready("web", 1).remove(0).metadata.uid;
    cluster.wait_for_endpoints("web", 2, 2);
    fs::remove_file(&file).unwrap();
    cluster.wait_for_endpoints("web", 2, 0);
    let out = cluster.wait_for_pod("web", "not ready", |pod| !is_ready(pod));
    let [v4, _] = addresses(&out);
    let tally = cluster.bed().client().tcp(TcpLoad::new((v4, POD_PORT).into(), 1)).unwrap().tally();
    assert_eq!(tally.failed, 0, "it runs, it is only not ready");
    fs::write(&file, "").unwrap();
    cluster.wait_for_endpoints("web", 2, 2);
    let back = cluster.wait_for_ready("web", 1).remove(0);
    assert_eq!((back.metadata.uid.clone(), restarts(&back)), (uid, 0));
}

#[test]
fn a_failing_liveness_probe_restarts_the_container_in_the_same_pod() {
    let cluster = Cluster::start();
    let file = cluster.bed().run().path().join("alive");
    fs::write(&file, "").unwrap();
    cluster.apply(&watched("web", "livenessProbe", &file));
    let before = cluster.wait_for_ready("web", 1).remove(0);
    fs::remove_file(&file).unwrap();
    cluster.wait_for_pod("web", "restarted", |pod| restarts(pod) >= 1);
    fs::write(&file, "").unwrap();
    let after = cluster.wait_for_pod("web", "ready again", |pod| is_ready(pod) && restarts(pod) >= 1);
    assert_eq!(after.metadata.uid, before.metadata.uid);
    assert_eq!(addresses(&after), addresses(&before), "the pod keeps its network");
}

#[test]
fn a_pod_is_not_ready_before_its_startup_probe_passes() {
    let cluster = Cluster::start();
    let file = cluster.bed().run().path().join("started");
    let started = |pod: &k8s_openapi::api::core::v1::Pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        statuses.and_then(|all| all.first()).is_some_and(|status| status.started == Some(true))
    };
    let failing =
        watched("web", "startupProbe", &file).replace("failureThreshold: 2", "failureThreshold: 60");
    cluster.apply(&failing);
    let running = cluster.wait_for_pod("web", "runs", |pod| {
        pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
    });
    assert!(!is_ready(&running) && !started(&running));
    fs::write(&file, "").unwrap();
    let ready = cluster.wait_for_ready("web", 1).remove(0);
    assert!(started(&ready) && restarts(&ready) == 0);
}

#[test]
fn tcp_and_http_probes_reach_the_pod_from_its_node() {
    let cluster = Cluster::start();
    cluster.apply(&echo("right", 1, "        livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}"));
    let wrong = echo("wrong", 1, "").replace("/healthz", "/nothing-here");
    cluster.apply(&wrong);
    let right = cluster.wait_for_ready("right", 1).remove(0);
    assert_eq!(restarts(&right), 0);
    cluster.wait_for_endpoints("wrong", 2, 0);
    let refused = echo("deaf", 1, "        livenessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1}");
    cluster.apply(&refused);
    cluster.wait_for_pod("deaf", "restarted", |pod| restarts(pod) >= 1);
}
