//! Ends, expected and not: of containers, of pods, and of the kubelet.

use std::fs;

use tests::{
    client::{Hold, TcpLoad},
    kubelet::pod_namespace,
    scenario::eventually,
    topology::POD_PORT,
};

use crate::cluster::{Cluster, SOON, addresses, echo, is_ready, restarts};

/// A pod with one container that runs a shell script.
fn script(name: &str, restart: &str, grace: u32, script: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  restartPolicy: {restart}
  terminationGracePeriodSeconds: {grace}
  containers:
  - name: main
    image: kanmon.dev/sh
    args: ['-c', '{script}']
"
    )
}

#[test]
fn what_crashes_is_started_again_and_what_is_done_stays_done() {
    let cluster = Cluster::start();
    cluster.apply(&script("crashes", "Always", 1, "exit 3"));
    cluster.apply(&script("works", "OnFailure", 1, "exit 0"));
    cluster.apply(&script("fails", "Never", 1, "exit 4"));
    let crashed = cluster.wait_for_pod("crashes", "restarted twice", |pod| restarts(pod) >= 2);
    let status = crashed.status.unwrap().container_statuses.unwrap().remove(0);
    assert_eq!(status.last_state.unwrap().terminated.unwrap().exit_code, 3);
    for (name, phase, code) in [("works", "Succeeded", 0), ("fails", "Failed", 4)] {
        let pod = cluster.wait_for_pod(name, phase, |pod| {
            pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some(phase))
        });
        assert_eq!(restarts(&pod), 0);
        let state = pod.status.unwrap().container_statuses.unwrap().remove(0).state.unwrap();
        assert_eq!(state.terminated.unwrap().exit_code, code);
    }
    cluster.kubectl(&["delete", "pod", "crashes", "works", "fails", "--timeout=60s"]);
}

#[test]
fn a_deleted_pod_serves_what_it_has_until_it_is_done_and_only_then_disappears() {
    let cluster = Cluster::start();
    cluster.apply(&echo("web", 1, "").replace("PeriodSeconds: 5", "PeriodSeconds: 600"));
    let pod = cluster.wait_for_ready("web", 1).remove(0);
    cluster.wait_for_endpoints("web", 2, 2);
    let [v4, _] = addresses(&pod);
    let held = cluster.bed().client().hold(Hold::new((v4, POD_PORT).into(), 5)).unwrap();
    cluster.kubectl(&["scale", "deployment/web", "--replicas=0"]);
    let slices = cluster.wait_for_endpoints("web", 2, 0);
    let conditions = slices[0].endpoints.as_ref().unwrap()[0].conditions.clone().unwrap();
    assert_eq!((conditions.terminating, conditions.serving), (Some(true), Some(true)), "it drains");
    eventually("it takes no new connections any more", SOON, || {
        cluster.bed().client().tcp(TcpLoad::new((v4, POD_PORT).into(), 1)).unwrap().tally().failed == 1
    });
    assert_eq!(held.now().by_pod.values().sum::<u64>(), 5);
    assert_eq!(held.stop().broken, Vec::<String>::new(), "what it had was served");
    cluster.wait_for_ready("web", 0);
    cluster.wait_for_endpoints("web", 0, 0);
}

#[test]
fn a_pod_that_does_not_listen_to_sigterm_is_killed_when_its_grace_is_over() {
    let cluster = Cluster::start();
    let left = cluster.bed().run().path().join("asked");
    let ignores = format!("trap \"echo asked > {}\" TERM; while true; do sleep 0.1; done", left.display());
    cluster.apply(&script("deaf", "Always", 2, &ignores));
    let pod = cluster.wait_for_ready("deaf", 1).remove(0);
    let uid = pod.metadata.uid.unwrap();
    cluster.kubectl(&["delete", "pod", "deaf", "--timeout=60s"]);
    assert_eq!(fs::read_to_string(left).unwrap(), "asked\n", "it was asked before it was killed");
    assert!(pod_namespace(cluster.bed().run(), "hangzhou", &uid).is_err());
}

#[test]
fn pods_go_on_without_their_kubelet_and_the_next_one_starts_them_again_at_their_addresses() {
    let cluster = Cluster::start();
    cluster.apply(&echo("web", 2, ""));
    let before = cluster.wait_for_ready("web", 2);
    cluster.kill_kubelet();
    for pod in &before {
        let [v4, v6] = addresses(pod);
        for ip in [v4, v6] {
            let tally = cluster.bed().client().tcp(TcpLoad::new((ip, POD_PORT).into(), 5)).unwrap().tally();
            assert_eq!(tally.failed, 0, "{tally:?}");
        }
    }
    cluster.start_kubelet();
    for pod in &before {
        let name = pod.metadata.name.clone();
        let after = cluster.wait_for_pod("web", "restarted and ready", |pod| {
            pod.metadata.name == name && restarts(pod) == 1 && is_ready(pod)
        });
        assert_eq!(addresses(&after), addresses(pod));
        assert_eq!(after.metadata.uid, pod.metadata.uid);
    }
}

#[test]
fn pods_are_probed_and_restarted_while_the_api_server_says_nothing() {
    let cluster = Cluster::start();
    let (file, runs) = (cluster.bed().run().path().join("run"), cluster.bed().run().path().join("runs"));
    fs::write(&file, "").unwrap();
    let counts =
        format!("echo x >> {}; while test -e {}; do sleep 0.1; done", runs.display(), file.display());
    cluster.apply(&script("counts", "Always", 1, &counts));
    cluster.wait_for_ready("counts", 1);
    cluster.kube().pause_api().unwrap();
    fs::remove_file(&file).unwrap();
    eventually("the container is started again and again", SOON, || {
        fs::read_to_string(&runs).unwrap().lines().count() >= 3
    });
    cluster.kube().resume_api().unwrap();
    fs::write(&file, "").unwrap();
    cluster.wait_for_pod("counts", "its restarts are known", |pod| restarts(pod) >= 2);
}
