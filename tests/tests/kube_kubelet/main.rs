//! The bed's kubelet under a real control plane: real controllers make and place the pods, the kubelet runs
//! them, and real connections reach them.

mod cluster;
mod lifecycle;
mod probes;

use std::collections::BTreeSet;

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
    discovery::v1::EndpointSlice,
};
use kube::{Api, api::ListParams};
use tests::{client::TcpLoad, kubelet::pod_namespace, netns::Link, topology::POD_PORT};

use cluster::{Cluster, SOON, addresses, is_ready, ready_endpoints};

#[test]
fn nodes_are_registered_with_their_places_and_called_ready_by_the_controllers() {
    let cluster = Cluster::start();
    let untainted = cluster.wait("three nodes that pods can be placed on", async |client| {
        let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?.items;
        let usable = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).is_none();
        let leases = Api::<Lease>::namespaced(client, "kube-node-lease").list(&ListParams::default()).await?;
        Ok((nodes.len() == 3 && leases.items.len() == 3 && nodes.iter().all(usable)).then_some(nodes))
    });
    let node = &untainted[0];
    let labels = node.metadata.labels.as_ref().unwrap();
    assert_eq!(labels["topology.kubernetes.io/region"], "cn-hangzhou");
    assert_eq!(labels["topology.kubernetes.io/zone"], "cn-hangzhou-a");
    let addresses = node.status.as_ref().unwrap().addresses.as_ref().unwrap();
    assert_eq!([&addresses[0].address, &addresses[1].address], ["20.0.0.10", "fd00:20::10"]);
}

#[test]
fn a_deployment_gets_ready_dual_stack_pods_whose_endpoints_have_zones_and_it_scales() {
    let cluster = Cluster::start();
    cluster.apply(&cluster::echo("web", 3, ""));
    let pods = cluster.wait_for_ready("web", 3);
    for pod in &pods {
        let name = pod.metadata.name.as_deref().unwrap();
        let [v4, v6] = addresses(pod);
        assert!(v4.is_ipv4() && v6.is_ipv6());
        for ip in [v4, v6] {
            let report = cluster.bed().client().tcp(TcpLoad::new((ip, POD_PORT).into(), 20)).unwrap();
            let tally = report.tally();
            assert_eq!((tally.failed, tally.by_pod.get(name)), (0, Some(&20)), "{tally:?}");
            assert_eq!(
                tally.by_cluster.get("hangzhou"),
                Some(&20),
                "the node's environment names the cluster"
            );
        }
    }
    let zones =
        cluster.wait("a slice of each family with three ready endpoints in three zones", async |client| {
            let slices = Api::<EndpointSlice>::namespaced(client, "default");
            let of_web = ListParams::default().labels("kubernetes.io/service-name=web");
            let slices = slices.list(&of_web).await?.items;
            let ready = ready_endpoints(&slices);
            let zones: BTreeSet<String> = slices
                .iter()
                .flat_map(|slice| slice.endpoints.iter().flatten())
                .filter_map(|endpoint| endpoint.zone.clone())
                .collect();
            Ok((slices.len() == 2 && ready.len() == 6).then_some(zones))
        });
    assert_eq!(zones, ["a", "b", "c"].map(|zone| format!("cn-hangzhou-{zone}")).into());

    cluster.kubectl(&["scale", "deployment/web", "--replicas=5"]);
    cluster.wait_for_ready("web", 5);
    let uids: Vec<String> = pods.iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
    cluster.kubectl(&["scale", "deployment/web", "--replicas=0"]);
    cluster.wait_for_ready("web", 0);
    for uid in uids {
        assert!(pod_namespace(cluster.bed().run(), "hangzhou", &uid).is_err(), "its namespace is removed");
    }
    let node = cluster.bed().node("hangzhou").unwrap();
    let [v4, _] = addresses(&pods[0]);
    let octets =
        v4.to_string().split('.').map(|o| format!("{:02x}", o.parse::<u8>().unwrap())).collect::<String>();
    assert!(Link::find(&node, &format!("pod-{octets}")).is_err(), "its link is removed");
}

#[test]
fn a_rolling_update_replaces_every_pod() {
    let cluster = Cluster::start();
    cluster.apply(&cluster::echo("web", 2, ""));
    let before: BTreeSet<String> = uids(&cluster.wait_for_ready("web", 2));
    cluster.kubectl(&["set", "env", "deployment/web", "VERSION=2"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", &format!("--timeout={}s", SOON.as_secs())]);
    let after = uids(&cluster.wait_for_ready("web", 2));
    assert!(before.is_disjoint(&after), "{before:?} {after:?}");
}

#[test]
fn several_containers_of_a_pod_share_its_addresses_and_see_it_by_the_downward_api() {
    let cluster = Cluster::start();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: pair, labels: {app: pair}}
spec:
  containers:
  - {name: one, image: 'kanmon.dev/echo:v1'}
  - name: two
    image: kanmon.dev/echo
    env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    args: ['--pod=$(NS).$(POD)', '--cluster=$(IP).$(NODE)', '--port=9090']
",
    );
    let pod = cluster.wait_for_ready("pair", 1).remove(0);
    let [v4, v6] = addresses(&pod);
    let ask = |target| cluster.bed().client().tcp(TcpLoad::new(target, 1)).unwrap().tally();
    assert_eq!(ask((v6, POD_PORT).into()).by_pod.get("pair"), Some(&1));
    let two = ask((v4, 9090).into());
    let node = pod.spec.unwrap().node_name.unwrap();
    assert_eq!(two.by_pod.get("default.pair"), Some(&1), "{two:?}");
    assert_eq!(two.by_cluster.get(&format!("{v4}.{node}")), Some(&1), "{two:?}");
    assert_eq!(pod.status.unwrap().container_statuses.unwrap().len(), 2);
}

#[test]
fn an_unknown_image_and_what_the_kubelet_does_not_do_are_shown_as_waiting() {
    let cluster = Cluster::start();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: foreign}
spec:
  containers: [{name: nginx, image: 'nginx:1.27'}]
---
apiVersion: v1
kind: Pod
metadata: {name: mounted}
spec:
  volumes: [{name: data, emptyDir: {}}]
  containers: [{name: echo, image: kanmon.dev/echo, volumeMounts: [{name: data, mountPath: /data}]}]
",
    );
    for (name, reason, named) in
        [("foreign", "ErrImagePull", "nginx:1.27"), ("mounted", "CreateContainerConfigError", "/data")]
    {
        let waiting = cluster.wait(name, async |client| {
            let pod = Api::<Pod>::namespaced(client, "default").get(name).await?;
            let statuses = pod.status.and_then(|status| status.container_statuses);
            Ok(statuses.and_then(|statuses| statuses.into_iter().next()?.state?.waiting))
        });
        assert_eq!(waiting.reason.as_deref(), Some(reason));
        assert!(waiting.message.as_ref().unwrap().contains(named), "{waiting:?}");
    }
    cluster.kubectl(&["delete", "pod", "foreign", "mounted"]);
}

fn uids(pods: &[Pod]) -> BTreeSet<String> {
    assert!(pods.iter().all(is_ready));
    pods.iter().filter_map(|pod| pod.metadata.uid.clone()).collect()
}
