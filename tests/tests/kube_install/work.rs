//! The agent as the DaemonSet of `deploy/` runs it: what users get, what it writes down, and how it ends. What it asks of
//! API servers on the way has to be all that it may ask for.

use std::{fs, net::Ipv4Addr};

use serde_json::{Value, json};
use tests::{
    agent::Agent,
    kube::{KubeCluster, condition},
    scenario::eventually,
    scene::{SOON, service},
    stage::{App, Gateway, KubeStage, StageOptions, export, ingress, itself},
    topology::Dual,
};

use crate::{
    manifests::{DEPLOY, files},
    rights::faults,
};

const CLUSTERS: [&str; 2] = ["gateway", "hangzhou"];
const PODS: &str = "/api/v1/namespaces/kanmon-system/pods";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kanmon-system/leases";
const ALLOCATIONS: &str = "/apis/kanmon.dev/v1alpha1/addressallocations";
const MEMBER: &str = "/apis/kanmon.dev/v1alpha1/memberclusters/hangzhou";

/// A policy that changes nothing that the others look at.
const POLICY: &str = "apiVersion: kanmon.dev/v1alpha1
kind: LoadBalancingPolicy
metadata: {namespace: demo, name: shop}
spec: {targetRefs: [{group: '', kind: Service, name: shop}], zonePreference: None}
";

/// A VIP that is routed to the gateway, and in no pool.
fn vip(last: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(192, 168, 100, last),
        v6: format!("fd00:100::{last}").parse().expect("it is an address"),
    }
}

/// Two clusters as `deploy/README.md` installs Kanmon in them, and a pool of addresses.
fn installed() -> KubeStage {
    let options = StageOptions {
        clusters: CLUSTERS.into(),
        register: false,
        bare: true,
        audited: true,
        ..StageOptions::default()
    };
    let stage = KubeStage::start(options).unwrap();
    for line in [
        format!("kubectl --context gateway apply --server-side -k {DEPLOY}").as_str(),
        "kubectl --context gateway wait --for=condition=Established crd --all --timeout=60s",
        "kubectl --context gateway label node gateway-1 kanmon.dev/gateway=true",
        // Which a kubelet would say of its node.
        "kubectl --context gateway label node gateway-1 kubernetes.io/os=linux kubernetes.io/arch=amd64",
        &format!("kubectl --context hangzhou apply -f {DEPLOY}/crds/mcs-api.yaml"),
        "kubectl --context hangzhou wait --for=condition=Established crd --all --timeout=60s",
        &format!("kubectl --context hangzhou apply -k {DEPLOY}/member"),
        &format!("kubectl --context gateway apply -f {DEPLOY}/examples/s3/gateway/pool.yaml"),
    ] {
        stage.type_in(line).unwrap();
    }
    stage
}

/// The pod that the DaemonSet has for the gateway's node, as the API server completed and the scheduler placed it.
fn pod(stage: &KubeStage) -> Value {
    // A node without a kubelet has to be said to be well, and then is for 40 s.
    let now = "$(date -u +%Y-%m-%dT%H:%M:%SZ)";
    let ready = format!(
        r#"{{\"type\":\"Ready\",\"status\":\"True\",\"reason\":\"Test\",\"message\":\"\",\"lastHeartbeatTime\":\"{now}\"}}"#
    );
    let room = r#"{\"cpu\":\"2\",\"memory\":\"4Gi\",\"pods\":\"10\"}"#;
    let status =
        format!(r#"{{\"status\":{{\"capacity\":{room},\"allocatable\":{room},\"conditions\":[{ready}]}}}}"#);
    let patch = "kubectl --context gateway patch node gateway-1 --subresource=status --type=merge -p";
    stage.type_in(&format!("{patch} \"{status}\"")).unwrap();
    let placed = |list: &Value| {
        let mut pods = list["items"].as_array()?.iter();
        pods.find(|pod| {
            pod["spec"]["nodeName"] == "gateway-1" && pod["metadata"]["deletionTimestamp"].is_null()
        })
        .cloned()
    };
    stage.kube("gateway").unwrap().see("the DaemonSet has a pod", PODS, SOON, placed).unwrap()
}

/// Starts the agent as a pod says, and waits until its probes are content.
fn start(stage: &KubeStage, gateway: &Gateway, pod: &Value) -> Agent {
    let mut agent = stage.run_pod(gateway, pod).unwrap();
    agent.wait_ready(SOON).unwrap();
    for kind in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &pod["spec"]["containers"][0][kind]["httpGet"];
        let text = |field: &str| get[field].as_str().unwrap_or_else(|| panic!("{kind} has no {field}"));
        let url = format!("http://{}:{}{}", text("host"), get["port"], text("path"));
        eventually(&format!("{kind} is content"), SOON, || {
            let mut curl = gateway.ns().command("curl");
            curl.args(["--fail", "--silent", "--max-time", "5", &url]);
            stage.run().output(curl, "").unwrap().status.success()
        });
    }
    agent
}

/// The process has the capabilities that its pod names, and can't get others.
fn has_named_capabilities(agent: &mut Agent, pod: &Value) {
    let named = pod["spec"]["containers"][0]["securityContext"]["capabilities"]["add"].as_array().unwrap();
    let number = |name: &Value| match name.as_str().unwrap() {
        "NET_ADMIN" => 12,
        "PERFMON" => 38,
        "BPF" => 39,
        other => panic!("{other} is one too many"),
    };
    let named = named.iter().map(number).fold(0u64, |all, one| all | (1 << one));
    let status = fs::read_to_string(format!("/proc/{}/status", agent.process().pid())).unwrap();
    let value = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert_eq!(value(set), named, "{set} {status}");
    }
    assert_eq!((value("CapInh:"), value("CapAmb:"), value("NoNewPrivs:")), (0, 0, 1), "{status}");
}

/// A person's request through the gateway.
fn request(stage: &KubeStage, shop: &App) -> String {
    let vip = stage.external_ips("hangzhou", shop).unwrap()[0];
    stage.type_in(&format!("curl --fail --silent --show-error --max-time 20 http://{vip}:8080/")).unwrap()
}

fn of_demo(group: &str, kind: &str, name: &str) -> String {
    format!("/apis/{group}/namespaces/demo/{kind}/{name}")
}

fn import(name: &str) -> String {
    of_demo("multicluster.x-k8s.io/v1beta1", "serviceimports", name)
}

/// What the agent tells of itself and of what it does, wherever somebody looks.
fn status_is_written(stage: &KubeStage) {
    let [gateway, hangzhou] = CLUSTERS.map(|cluster| stage.kube(cluster).unwrap());
    let holds = |cluster: &KubeCluster, path: &str, kind: &str| {
        let what = format!("{path} is {kind}");
        let seen = cluster
            .see(&what, path, SOON, |object| condition(object, kind).starts_with("True").then_some(()));
        seen.unwrap();
    };
    for kind in ["Ready", "Writable"] {
        holds(gateway, MEMBER, kind);
    }
    holds(gateway, &of_demo("kanmon.dev/v1alpha1", "loadbalancingpolicies", "shop"), "Programmed");
    holds(hangzhou, "/api/v1/namespaces/demo/services/shop", "kanmon.dev/Programmed");
    for (cluster, name) in [(hangzhou, "shop"), (gateway, "till")] {
        holds(cluster, &of_demo("multicluster.x-k8s.io/v1beta1", "serviceexports", name), "Valid");
    }
    let till = "/api/v1/namespaces/demo/services/till";
    gateway
        .see("a Service of the gateway's own cluster shows its VIPs", till, SOON, |service| {
            (ingress(service) == vip(30).both()).then_some(())
        })
        .unwrap();
    let pool = "/apis/kanmon.dev/v1alpha1/addresspools/internal";
    gateway.see("the pool has a status", pool, SOON, |pool| pool["status"].as_object().map(drop)).unwrap();
    gateway
        .see("the allocations say who forwards them", ALLOCATIONS, SOON, |list| {
            let mut items = list["items"].as_array()?.iter();
            let forwarded = |item: &Value| item["status"]["gateways"][0]["name"] == "gateway-1";
            (items.len() >= 2 && items.all(forwarded)).then_some(())
        })
        .unwrap();
    for cluster in CLUSTERS {
        let held = |list: &Value| {
            let mut leases = list["items"].as_array()?.iter();
            let held =
                |lease: &Value| lease["spec"]["holderIdentity"].as_str().is_some_and(|who| !who.is_empty());
            leases.any(held).then_some(())
        };
        stage.kube(cluster).unwrap().see("somebody holds a Lease", LEASES, SOON, held).unwrap();
    }
}

/// Waits until both clusters have so many endpoints of `shop` from the export, of each family.
fn wait_for_imported(stage: &KubeStage, count: usize) {
    let slices = "/apis/discovery.k8s.io/v1/namespaces/demo/endpointslices\
                  ?labelSelector=multicluster.kubernetes.io%2Fservice-name%3Dshop";
    for cluster in CLUSTERS {
        let what = format!("{cluster} has {count} endpoints of shop");
        let seen = stage.kube(cluster).unwrap().see(&what, slices, SOON, |list| {
            let slices = list["items"].as_array()?.iter();
            let endpoints: usize =
                slices.filter_map(|slice| Some(slice["endpoints"].as_array()?.len())).sum();
            (endpoints == 2 * count).then_some(())
        });
        seen.unwrap();
    }
}

/// What is written once is kept as it should be.
fn changes_are_followed(stage: &KubeStage, agent: &mut Agent, shop: &App) {
    stage.type_in("kubectl --context hangzhou -n demo scale deployment/shop --replicas=3").unwrap();
    stage.wait_until_used(agent, shop, &[("hangzhou", 3)]).unwrap();
    wait_for_imported(stage, 3);

    let labels = r#"'{"spec":{"exportedLabels":{"tier":"gold"}}}'"#;
    stage
        .type_in(&format!(
            "kubectl --context hangzhou -n demo patch serviceexport shop --type=merge -p {labels}"
        ))
        .unwrap();
    for cluster in CLUSTERS {
        let gold = |import: &Value| (import["metadata"]["labels"]["tier"] == "gold").then_some(());
        stage.kube(cluster).unwrap().see("the import has the label", &import("shop"), SOON, gold).unwrap();
    }

    stage
        .type_in("kubectl --context hangzhou -n demo annotate service shop kanmon.dev/shared-address=counter")
        .unwrap();
    let shared = |list: &Value| {
        let mut items = list["items"].as_array()?.iter();
        items.any(|item| item["spec"]["sharedAddress"] == "counter").then_some(())
    };
    let gateway = stage.kube("gateway").unwrap();
    gateway.see("the allocation says that it may be shared", ALLOCATIONS, SOON, shared).unwrap();
}

/// What is wrong is told as an Event, and told again where it is wrong again.
fn faults_are_told(stage: &KubeStage, agent: &mut Agent) {
    for (cluster, last) in [("hangzhou", 41), ("gateway", 42)] {
        let kube = stage.kube(cluster).unwrap();
        let name = format!("odd-{cluster}");
        kube.apply(&service(&name, vip(last))).unwrap();
        let set = |addresses: &str| {
            let annotation = format!("kanmon.dev/addresses={addresses}");
            let annotate = ["-n", "demo", "annotate", "--overwrite", "service", &name, &annotation];
            kube.kubectl(&annotate, "").unwrap();
        };
        let told = |what: &str, shows: fn(&Value) -> bool| {
            let events = "/apis/events.k8s.io/v1/namespaces/demo/events";
            kube.see(what, events, SOON, |list| {
                let mut items = list["items"].as_array()?.iter();
                let is_it = |event: &Value| {
                    event["regarding"]["name"] == name.as_str()
                        && event["reportingController"] == "kanmon.dev/gateway"
                        && shows(event)
                };
                items.any(is_it).then_some(())
            })
            .unwrap();
        };
        let object = format!("Service demo/{name}");
        set("nonsense");
        told("an Event tells of the address", |_| true);
        set(&vip(last).v4.to_string());
        agent
            .wait_until("content with the address", SOON, |agent| {
                Ok(agent.problems()?.iter().all(|problem| problem.object != object))
            })
            .unwrap();
        set("nonsense");
        told("the Event is counted", |event| event["series"]["count"].as_u64() >= Some(2));
        set(&vip(last).v4.to_string());
    }
}

/// What is withdrawn leaves nothing behind.
fn the_end_is_followed(stage: &KubeStage) {
    let [gateway, hangzhou] = CLUSTERS.map(|cluster| stage.kube(cluster).unwrap());
    hangzhou.kubectl(&["-n", "demo", "delete", "serviceexport", "shop"], "").unwrap();
    for cluster in [gateway, hangzhou] {
        cluster
            .see("the import is gone", &import("shop"), SOON, |import| import.is_null().then_some(()))
            .unwrap();
    }
    wait_for_imported(stage, 0);
    hangzhou.kubectl(&["-n", "demo", "delete", "service", "shop"], "").unwrap();
    gateway
        .see("its addresses are free", ALLOCATIONS, SOON, |list| {
            let mut items = list["items"].as_array()?.iter();
            items.all(|item| item["spec"]["sharedAddress"].is_null()).then_some(())
        })
        .unwrap();

    // The MemberCluster was made from the Secret, and goes with it, when it has been missing for a minute.
    let secret = ["-n", "kanmon-system", "delete", "secret", "kanmon-remote-secret-hangzhou"];
    gateway.kubectl(&secret, "").unwrap();
    gateway
        .see("the MemberCluster is gone", MEMBER, 2 * SOON, |member| member.is_null().then_some(()))
        .unwrap();
    let empty = |list: &Value| list["items"].as_array()?.is_empty().then_some(());
    hangzhou.see("the Lease in hangzhou is gone", LEASES, SOON, empty).unwrap();
    assert_eq!(stage.inventory("hangzhou").unwrap().traces(), [] as [String; 0]);
}

#[test]
fn the_installed_agent_does_its_work_with_the_rights_and_capabilities_that_it_is_given_and_uses_them_all() {
    let stage = installed();
    let [gateway, hangzhou] = CLUSTERS.map(|cluster| stage.kube(cluster).unwrap());
    let place = stage.gateway();
    let first = pod(&stage);
    let mut agent = start(&stage, &place, &first);
    has_named_capabilities(&mut agent, &first);

    stage.register("hangzhou").unwrap();
    // It is the same that `remote-secret` made.
    stage.type_in(&format!("kubectl --context hangzhou apply -k {DEPLOY}/member")).unwrap();
    let shop = App::new("shop", 2).assigned().port(8080).exported();
    stage.deploy("hangzhou", &shop).unwrap();
    for object in
        [POLICY, &itself("gateway", "SameName"), &service("till", vip(30)), &export("till", "v1beta1")]
    {
        gateway.apply(object).unwrap();
    }
    stage.wait_until_used(&mut agent, &shop, &[("hangzhou", 2)]).unwrap();
    assert!(request(&stage, &shop).contains("cluster=hangzhou"));
    status_is_written(&stage);
    wait_for_imported(&stage, 2);
    changes_are_followed(&stage, &mut agent, &shop);
    faults_are_told(&stage, &mut agent);

    // An update: the pod ends by SIGTERM, what it attached forwards, and the next one goes on.
    agent.terminate().unwrap();
    assert!(request(&stage, &shop).contains("cluster=hangzhou"));
    for cluster in [gateway, hangzhou] {
        // An older API server: then lists are asked for as lists.
        cluster.stop_streaming_lists().unwrap();
    }
    let name = first["metadata"]["name"].as_str().unwrap();
    gateway
        .kubectl(&["-n", "kanmon-system", "delete", "pod", name, "--force", "--grace-period=0"], "")
        .unwrap();
    let second = pod(&stage);
    let mut agent = start(&stage, &place, &second);
    stage.wait_until_used(&mut agent, &shop, &[("hangzhou", 3)]).unwrap();
    assert!(request(&stage, &shop).contains("cluster=hangzhou"));
    the_end_is_followed(&stage);

    // Ctrl-C takes everything away.
    agent.interrupt().unwrap();
    let leases = gateway.look(LEASES).unwrap();
    let own = |lease: &&Value| lease["metadata"]["annotations"]["kanmon.dev/gateway"] == "gateway-1";
    assert_eq!(leases["items"].as_array().unwrap().iter().filter(own).count(), 0, "{leases}");
    let pins = stage.bed().bpffs().join("kanmon");
    assert!(!pins.exists() || files(&pins).is_empty(), "nothing is pinned");

    let nothing = json!([[], []]);
    let found = [(gateway, "kanmon"), (hangzhou, "kanmon-member")].map(|(cluster, account)| {
        let (refused, unused) = faults(cluster, account);
        let refused: Vec<String> = refused.iter().map(|asked| format!("{asked:?}")).collect();
        (account, json!([refused, unused]))
    });
    assert!(found.iter().all(|(_, found)| *found == nothing), "[refused, unused]: {found:#?}");
}
