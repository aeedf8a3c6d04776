//! The bed's control planes: that they are real, that they do their work, and that they can be broken.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{ConfigMap, Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::json;
use tests::{
    kube::{KubeBed, KubeCluster, KubeOptions, in_namespace},
    netns::sweep,
    scenario::eventually,
};
use tokio::time::{error::Elapsed, timeout};

/// How long the controllers may take: generous, for a machine that is busy compiling.
const SOON: Duration = Duration::from_secs(60);
/// How long a client waits for an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a client waits that expects no answer at all.
const SILENCE: Duration = Duration::from_secs(2);

/// A bed in which only hangzhou has a control plane.
fn hangzhou() -> KubeBed {
    KubeBed::start(KubeOptions { clusters: vec!["hangzhou"], ..KubeOptions::default() }).unwrap()
}

/// Asks the cluster's API server for the namespace `name`, from the gateway, as the agent would.
fn ask(bed: &KubeBed, cluster: &KubeCluster, kubeconfig: &Path, name: &str) -> Result<Namespace> {
    ask_for(ANSWER, bed, kubeconfig, name).with_context(|| format!("{} is silent", cluster.name()))?
}

/// Whether the cluster's API server gives the gateway no answer at all, not even an error.
fn is_silent(bed: &KubeBed, cluster: &KubeCluster) -> bool {
    ask_for(SILENCE, bed, cluster.kubeconfig(), "default").is_err()
}

/// The answer, or an error when there is none within `patience`.
fn ask_for(
    patience: Duration,
    bed: &KubeBed,
    kubeconfig: &Path,
    name: &str,
) -> Result<Result<Namespace>, Elapsed> {
    let answer = in_namespace(bed.bed().gateway(), kubeconfig, async |client| {
        Ok(timeout(patience, Api::<Namespace>::all(client).get(name)).await)
    });
    Ok(answer.unwrap()?.map_err(Into::into))
}

/// The HTTP status of a refusal.
fn refusal(answer: Result<Namespace>) -> u16 {
    let error = answer.expect_err("a refusal");
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.code,
        _ => panic!("not an API server's refusal: {error:?}"),
    }
}

fn within(address: &str, nets: [IpNet; 2]) -> bool {
    let address: IpAddr = address.parse().unwrap();
    nets.iter().any(|net| net.contains(&address))
}

#[test]
fn three_control_planes_start_at_once_answer_the_gateway_and_leave_nothing() {
    let bed = KubeBed::start(KubeOptions::default()).unwrap();
    let mut identities = Vec::new();
    for cluster in bed.clusters() {
        let system = ask(&bed, cluster, cluster.kubeconfig(), "kube-system").unwrap();
        identities.push(system.metadata.uid.unwrap());
        let own = cluster
            .in_namespace(async |client| {
                Ok(Api::<Service>::namespaced(client, "default").get("kubernetes").await?)
            })
            .unwrap();
        let address = own.spec.unwrap().cluster_ip.unwrap();
        assert!(within(&address, cluster.services()), "{address}");
    }
    identities.sort();
    identities.dedup();
    assert_eq!(identities.len(), 3, "each is a cluster of its own");
    assert!(bed.cluster("beijing").is_err());

    let dir = bed.bed().run().path().to_owned();
    let records = fs::read_to_string(dir.join("processes")).unwrap();
    let running = |line: &str| Path::new("/proc").join(line.split(' ').next().unwrap()).exists();
    assert_eq!(
        records.lines().filter(|line| running(line)).count(),
        12,
        "four programs a cluster: {records}"
    );
    drop(bed);
    assert!(!dir.exists());
    eventually("all programs are dead", SOON, || !records.lines().any(running));
}

#[test]
fn a_deployment_becomes_pods_on_a_node_and_endpoints_of_a_dual_stack_service() {
    let bed = hangzhou();
    let cluster = bed.cluster("hangzhou").unwrap();
    register_node(&bed, cluster);
    cluster
        .apply(
            "apiVersion: apps/v1
kind: Deployment
metadata: {name: httpbin}
spec:
  replicas: 2
  selector: {matchLabels: {app: httpbin}}
  template:
    metadata: {labels: {app: httpbin}}
    spec: {containers: [{name: echo, image: kanmon.dev/echo}]}
---
apiVersion: v1
kind: Service
metadata: {name: httpbin}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: httpbin}
  ports: [{name: http, port: 80, targetPort: 8080}]
",
        )
        .unwrap();
    let pods = cluster
        .wait_for("the scheduler binds both pods", SOON, async |client| {
            let pods = Api::<Pod>::default_namespaced(client).list(&ListParams::default()).await?.items;
            let bound = |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
            Ok((pods.len() == 2 && pods.iter().all(bound)).then_some(pods))
        })
        .unwrap();
    cluster.in_namespace(async |client| ready_pods(client, &pods).await).unwrap();

    let (replica_sets, service) = cluster
        .in_namespace(async |client| {
            let sets = Api::<ReplicaSet>::default_namespaced(client.clone());
            let services = Api::<Service>::default_namespaced(client);
            Ok((sets.list(&ListParams::default()).await?.items, services.get("httpbin").await?))
        })
        .unwrap();
    assert_eq!(replica_sets.len(), 1);
    let addresses = service.spec.unwrap().cluster_ips.unwrap();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    assert!(addresses.iter().all(|address| within(address, cluster.services())), "{addresses:?}");

    let expected = ["10.0.9.10", "10.0.9.11", "fd00:10:0:9::10", "fd00:10:0:9::11"];
    cluster
        .wait_for("the slices hold both pods in both families, with their zone", SOON, async |client| {
            let of_service = ListParams::default().labels("kubernetes.io/service-name=httpbin");
            let slices = Api::<EndpointSlice>::default_namespaced(client).list(&of_service).await?.items;
            let mut found: Vec<String> = slices
                .iter()
                .flat_map(|slice| &slice.endpoints)
                .flatten()
                .filter(|endpoint| endpoint.zone.as_deref() == Some("cn-hangzhou-a"))
                .flat_map(|endpoint| endpoint.addresses.clone())
                .collect();
            found.sort();
            Ok((found == expected).then_some(()))
        })
        .unwrap();
}

/// Registers a node on paper, and says of it what its kubelet would.
fn register_node(bed: &KubeBed, cluster: &KubeCluster) {
    cluster
        .apply(
            "{apiVersion: v1, kind: Node, metadata: {name: paper, labels: {
              topology.kubernetes.io/region: cn-hangzhou, topology.kubernetes.io/zone: cn-hangzhou-a}}}",
        )
        .unwrap();
    let addresses = bed.bed().node_address(cluster.name()).unwrap().both();
    let status = json!({"status": {
        "addresses": addresses.map(|address| json!({"type": "InternalIP", "address": address})),
        "conditions": [{"type": "Ready", "status": "True", "reason": "Paper", "message": "on paper",
                        "lastHeartbeatTime": null, "lastTransitionTime": null}],
        "capacity": {"cpu": "4", "memory": "4Gi", "pods": "100"},
        "allocatable": {"cpu": "4", "memory": "4Gi", "pods": "100"},
    }});
    cluster
        .in_namespace(async |client| {
            let nodes = Api::<Node>::all(client);
            Ok(nodes.patch_status("paper", &PatchParams::default(), &Patch::Merge(status)).await?)
        })
        .unwrap();
}

/// Says of the pods what their kubelet would: that they run, and where.
async fn ready_pods(client: Client, pods: &[Pod]) -> Result<()> {
    let api = Api::<Pod>::default_namespaced(client);
    for (pod, number) in pods.iter().zip(10..) {
        let [v4, v6] = [format!("10.0.9.{number}"), format!("fd00:10:0:9::{number}")];
        let status = json!({"status": {
            "phase": "Running",
            "podIP": v4,
            "podIPs": [{"ip": v4}, {"ip": v6}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let name = pod.metadata.name.as_deref().unwrap();
        api.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await?;
    }
    Ok(())
}

#[test]
fn kube_proxy_takes_a_services_addresses_on_a_node_to_its_pod() {
    let bed = hangzhou();
    let cluster = bed.cluster("hangzhou").unwrap();
    let [pod_v4, pod_v6] = bed.bed().add_pod("hangzhou").unwrap().address.both();
    register_node(&bed, cluster);
    let slice = |family: &str, address: IpAddr| {
        format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: by-hand-{suffix}, labels: {{kubernetes.io/service-name: by-hand}}}}
addressType: {family}
ports: [{{name: http, protocol: TCP, port: 8080}}]
endpoints: [{{addresses: [\"{address}\"], conditions: {{ready: true}}}}]
",
            suffix = family.to_lowercase(),
        )
    };
    let service = "apiVersion: v1
kind: Service
metadata: {name: by-hand}
spec:
  ipFamilyPolicy: RequireDualStack
  ports: [{name: http, port: 80, targetPort: 8080}]
";
    cluster.apply(&[service, &slice("IPv4", pod_v4), &slice("IPv6", pod_v6)].concat()).unwrap();
    let service = cluster
        .in_namespace(async |client| Ok(Api::<Service>::default_namespaced(client).get("by-hand").await?))
        .unwrap();

    bed.start_proxy("hangzhou", "paper").unwrap();
    let node = bed.bed().node("hangzhou").unwrap();
    for address in service.spec.unwrap().cluster_ips.unwrap() {
        node.wait_for_tcp((address.parse::<IpAddr>().unwrap(), 80).into(), SOON).unwrap();
    }
}

#[test]
fn rbac_refuses_a_stranger_and_no_other_clusters_certificate_is_known() {
    let clusters = vec!["hangzhou", "shanghai"];
    let bed = KubeBed::start(KubeOptions { clusters, two_armed: true, ..KubeOptions::default() }).unwrap();
    let (hangzhou, shanghai) = (bed.cluster("hangzhou").unwrap(), bed.cluster("shanghai").unwrap());
    let stranger = hangzhou.credentials("stranger", None).unwrap();
    assert_eq!(refusal(ask(&bed, hangzhou, &stranger, "default")), 403);
    hangzhou
        .kubectl(&["create", "clusterrolebinding", "known", "--clusterrole=view", "--user=stranger"], "")
        .unwrap();
    hangzhou
        .wait_for("a right that was given counts", SOON, async |_| {
            Ok(ask(&bed, hangzhou, &stranger, "default").ok())
        })
        .unwrap();

    // Hangzhou's address and authority with the certificate of Shanghai's administrator.
    let read = |path: &Path| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let mut mixed = read(hangzhou.kubeconfig());
    mixed["users"] = read(shanghai.kubeconfig())["users"].clone();
    let path = bed.bed().run().path().join("mixed.kubeconfig");
    fs::write(&path, mixed.to_string()).unwrap();
    assert_eq!(refusal(ask(&bed, hangzhou, &path, "default")), 401);
}

#[test]
fn a_cluster_that_is_cut_off_is_silent_outside_goes_on_inside_and_comes_back() {
    let bed = hangzhou();
    let cluster = bed.cluster("hangzhou").unwrap();
    let outside = |name: &str| ask(&bed, cluster, cluster.kubeconfig(), name);
    outside("default").unwrap();
    cluster.partition().unwrap();
    assert!(is_silent(&bed, cluster));
    cluster.kubectl(&["create", "namespace", "meanwhile"], "").unwrap();
    cluster.heal().unwrap();
    outside("meanwhile").unwrap();
}

#[test]
fn an_api_server_keeps_its_objects_when_killed_and_hangs_when_paused() {
    let bed = hangzhou();
    let cluster = bed.cluster("hangzhou").unwrap();
    let outside = || ask(&bed, cluster, cluster.kubeconfig(), "demo");
    cluster.kubectl(&["create", "namespace", "demo"], "").unwrap();
    let before = outside().unwrap().metadata.uid;

    cluster.kill_api().unwrap();
    assert!(outside().is_err());
    assert!(!is_silent(&bed, cluster), "connections are refused");
    assert!(cluster.kill_api().is_err());
    cluster.start_api().unwrap();
    assert!(cluster.start_api().is_err());
    assert_eq!(outside().unwrap().metadata.uid, before);

    cluster.pause_api().unwrap();
    let address = cluster.server().trim_start_matches("https://").parse().unwrap();
    bed.bed().gateway().wait_for_tcp(address, SOON).unwrap();
    assert!(is_silent(&bed, cluster));
    cluster.resume_api().unwrap();
    eventually("it answers again", SOON, || outside().is_ok());
}

#[test]
fn a_watch_from_before_a_compaction_is_answered_410() {
    let bed = hangzhou();
    let cluster = bed.cluster("hangzhou").unwrap();
    cluster.kubectl(&["create", "configmap", "history"], "").unwrap();
    let version = cluster
        .in_namespace(async |client| {
            let maps = Api::<ConfigMap>::default_namespaced(client);
            let first = maps.get("history").await?;
            for n in 0..3 {
                let change = json!({"data": {"n": n.to_string()}});
                maps.patch("history", &PatchParams::default(), &Patch::Merge(change)).await?;
            }
            first.metadata.resource_version.context("objects have versions")
        })
        .unwrap();
    let first_event = || {
        cluster.in_namespace(async |client| {
            let maps = Api::<ConfigMap>::default_namespaced(client);
            // Kubernetes writes others there.
            let history = WatchParams::default().fields("metadata.name=history");
            let watch = maps.watch(&history, &version).await?;
            watch.boxed().try_next().await?.context("a watch begins with an event")
        })
    };
    let event = first_event().unwrap();
    assert!(matches!(event, WatchEvent::Modified(_)), "{event:?}");
    cluster.compact().unwrap();
    let code = match first_event() {
        Ok(WatchEvent::Error(status)) => status.code,
        Err(error) => match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => status.code,
            _ => panic!("{error:?}"),
        },
        Ok(event) => panic!("{event:?}"),
    };
    assert_eq!(code, 410);
}

#[test]
fn a_chosen_answer_reaches_everybody_outside_and_nobody_inside() {
    let bed = hangzhou();
    let cluster = bed.cluster("hangzhou").unwrap();
    let outside = || ask(&bed, cluster, cluster.kubeconfig(), "default");
    for status in [401, 403, 429, 500] {
        cluster.answer_with(status).unwrap();
        assert_eq!(refusal(outside()), status);
        assert!(cluster.kubectl(&["get", "namespaces"], "").unwrap().contains("default"));
    }
    cluster.answer_properly();
    eventually("it answers as it should again", SOON, || outside().is_ok());
    assert!(cluster.answer_with(7).is_err());
}

#[test]
fn the_kubelets_certificate_may_register_nodes_and_no_more_than_a_kubelet() {
    let bed = hangzhou();
    let cluster = bed.cluster("hangzhou").unwrap();
    let kubeconfig = cluster.kubelet_credentials().unwrap();
    let node = bed.bed().node("hangzhou").unwrap();
    let refused = in_namespace(&node, &kubeconfig, async |client| {
        let nodes = Api::<Node>::all(client.clone());
        let ours = serde_json::from_value(json!({"metadata": {"name": "ours"}}))?;
        nodes.create(&PostParams::default(), &ours).await?;
        let namespaces = Api::<Namespace>::all(client);
        let ours = serde_json::from_value(json!({"metadata": {"name": "ours"}}))?;
        Ok(namespaces.create(&PostParams::default(), &ours).await)
    })
    .unwrap();
    assert_eq!(refusal(refused.map_err(Into::into)), 403);
}

/// What the next test runs in a process of its own: a control plane that stands until it is killed.
fn stand_until_killed() {
    let bed = hangzhou();
    println!("\nbed {}", bed.bed().run().path().display());
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn the_control_plane_of_a_killed_run_is_removed_by_the_next() {
    if std::env::var_os("BED_TO_BE_KILLED").is_some() {
        return stand_until_killed();
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_control_plane_of_a_killed_run_is_removed_by_the_next", "--nocapture"])
        .env("BED_TO_BE_KILLED", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(victim.stdout.take().unwrap());
    let dir: PathBuf = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("bed ").map(PathBuf::from))
        .expect("the other run says where it is");
    let records = fs::read_to_string(dir.join("processes")).unwrap();
    let pids: Vec<&str> = records.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(pids.len(), 4, "{records}");
    victim.kill().unwrap();
    victim.wait().unwrap();
    sweep().unwrap();
    assert!(!dir.exists());
    let runs =
        |pid: &&str| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    eventually("its programs are dead", SOON, || !pids.iter().any(runs));
}
