//! ServiceExports and ServiceImports on real API servers: what agrees and what does not, who hears of it, what
//! others get, and what becomes of it when it is exported no more.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::{Value, json};
use tests::{
    agent::Agent,
    kube::{KubeCluster, condition, condition_message},
    scenario::eventually,
    scene::{MEMBERS, SMALL, SOON, used, wait_for_sync},
    stage::{App, AppPod, KubeStage, Reach, StageOptions, declared, export, ingress},
};

const GROUP: &str = "/apis/multicluster.x-k8s.io/v1beta1";

fn of(kind: &str, namespace: &str, name: &str) -> String {
    format!("{GROUP}/namespaces/{namespace}/{kind}/{name}")
}

/// A pair of exports of one name: what hangzhou has, in what shanghai's differs, and the reasons that both hear.
struct Pair {
    name: &'static str,
    hangzhou: Value,
    shanghai: Value,
    reasons: &'static str,
}

/// Every way in which exports can contradict each other. `spec` is the Service's, `export` the ServiceExport's.
fn pairs() -> Vec<Pair> {
    let pair = |name, hangzhou, shanghai, reasons| Pair { name, hangzhou, shanghai, reasons };
    let spec = |spec: Value| json!({"spec": spec});
    let export = |export: Value| json!({"export": export});
    let port = |number: u16| json!([{"name": "http", "port": number}]);
    let sticky = |seconds: u32| {
        spec(json!({"sessionAffinity": "ClientIP",
                    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}))
    };
    let families = |family: &str| spec(json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": [family]}));
    vec![
        pair("agreed", json!({}), json!({}), "NoConflicts"),
        pair("ports", json!({}), spec(json!({"ports": port(81)})), "PortConflict"),
        pair("type", json!({}), spec(json!({"clusterIP": "None"})), "TypeConflict"),
        pair("affinity", json!({}), spec(json!({"sessionAffinity": "ClientIP"})), "SessionAffinityConflict"),
        pair("affinity-config", sticky(100), sticky(200), "SessionAffinityConfigConflict"),
        pair(
            "internal-policy",
            json!({}),
            spec(json!({"internalTrafficPolicy": "Local"})),
            "InternalTrafficPolicyConflict",
        ),
        pair(
            "distribution",
            json!({}),
            spec(json!({"trafficDistribution": "PreferClose"})),
            "TrafficDistributionConflict",
        ),
        pair("families", families("IPv4"), families("IPv6"), "IPFamilyConflict"),
        pair(
            "labels",
            export(json!({"exportedLabels": {"tier": "gold"}})),
            export(json!({"exportedLabels": {"tier": "tin"}})),
            "LabelsConflict",
        ),
        pair(
            "annotations",
            export(json!({"exportedAnnotations": {"team": "a"}})),
            export(json!({"exportedAnnotations": {"team": "b"}})),
            "AnnotationsConflict",
        ),
        pair(
            "several",
            export(json!({"exportedLabels": {"tier": "gold"}})),
            json!({"export": {"exportedLabels": {"tier": "tin"}},
                   "spec": {"ports": port(81), "internalTrafficPolicy": "Local"}}),
            "PortConflict,InternalTrafficPolicyConflict,LabelsConflict",
        ),
    ]
}

/// A Service and its export, as a pair says.
fn objects(name: &str, differences: &Value) -> [Value; 2] {
    let metadata = json!({"namespace": "demo", "name": name});
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80}]},
    });
    for (field, value) in differences["spec"].as_object().into_iter().flatten() {
        service["spec"][field] = value.clone();
    }
    let mut export = json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": metadata,
    });
    if !differences["export"].is_null() {
        export["spec"] = differences["export"].clone();
    }
    [service, export]
}

fn apply(cluster: &KubeCluster, objects: impl IntoIterator<Item = Value>) {
    let objects: Vec<Value> = objects.into_iter().collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    cluster.kubectl(&["apply", "-f", "-"], &list).unwrap();
}

fn reasons(export: &Value) -> BTreeSet<String> {
    let conflict = condition(export, "Conflict");
    let reasons = conflict.split_once('/').map_or("", |(_, reasons)| reasons);
    reasons.split(',').map(|reason| reason.trim().to_owned()).collect()
}

/// Waits until an export says which conflicts it has, and returns what it says about them.
fn wait_for_reasons(cluster: &KubeCluster, name: &str, wanted: &str) -> String {
    let status = if wanted == "NoConflicts" { "False" } else { "True" };
    let wanted: BTreeSet<String> = wanted.split(',').map(str::to_owned).collect();
    let what = format!("{}'s export {name} has {wanted:?}", cluster.name());
    let seen = cluster.see(&what, &of("serviceexports", "demo", name), SOON, |export| {
        let judged = condition(export, "Valid").starts_with("True")
            && condition(export, "Conflict").starts_with(status)
            && reasons(export) == wanted;
        judged.then(|| condition_message(export, "Conflict"))
    });
    seen.unwrap()
}

#[test]
fn every_kind_of_conflict_is_told_to_both_the_oldest_wins_and_a_fourth_cluster_is_judged_alike() {
    let clusters = vec!["gateway", "hangzhou", "shanghai", "beijing"];
    let options = StageOptions { clusters, register: false, mcs: true, ..StageOptions::default() };
    let stage = KubeStage::start(options).unwrap();
    for member in MEMBERS {
        stage.register(member).unwrap();
    }
    stage.declare(&MEMBERS, "ServiceExport").unwrap();
    let [hangzhou, shanghai] = MEMBERS.map(|member| stage.kube(member).unwrap());
    apply(hangzhou, pairs().iter().flat_map(|pair| objects(pair.name, &pair.hangzhou)));
    apply(shanghai, pairs().iter().flat_map(|pair| objects(pair.name, &pair.shanghai)));
    let mut agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    for member in MEMBERS {
        wait_for_sync(&mut agent, member).unwrap();
    }
    for pair in pairs() {
        for cluster in [hangzhou, shanghai] {
            let said = wait_for_reasons(cluster, pair.name, pair.reasons);
            let names_both = MEMBERS.iter().all(|member| said.contains(member));
            assert!(pair.reasons == "NoConflicts" || names_both, "{}: {said:?}", pair.name);
        }
    }

    // The oldest export wins: it is hangzhou's, in time or by its name. Ports are the union of what agrees.
    let import = |name: &str| wait_for_import(hangzhou, "demo", name, &MEMBERS);
    let ports = |name: &str| import(name)["spec"]["ports"].clone();
    let http = json!([{"name": "http", "protocol": "TCP", "port": 80}]);
    assert_eq!(ports("ports"), http);
    assert_eq!(import("type")["spec"]["type"], "ClusterSetIP");
    assert_eq!(import("affinity")["spec"]["sessionAffinity"], "None");
    assert_eq!(import("labels")["metadata"]["labels"]["tier"], "gold");
    assert_eq!(import("annotations")["metadata"]["annotations"]["team"], "a");
    let shown = hangzhou.kubectl(&["-n", "demo", "get", "serviceexport"], "").unwrap();
    let row = |name: &str| {
        let row = shown.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
        row.split_whitespace().map(str::to_owned).take(3).collect::<Vec<_>>()
    };
    assert_eq!(row("NAME"), ["NAME", "IS-VALID", "IS-CONFLICTED"]);
    assert_eq!(
        (row("agreed"), row("ports")),
        (
            ["agreed", "True", "False"].map(str::to_owned).to_vec(),
            ["ports", "True", "True"].map(str::to_owned).to_vec(),
        )
    );

    // What is put right is right.
    let [service, _] = objects("ports", &json!({}));
    apply(shanghai, [service]);
    for cluster in [hangzhou, shanghai] {
        wait_for_reasons(cluster, "ports", "NoConflicts");
    }

    // A fourth cluster: its port contradicts, and everybody hears of it. What it adds is added.
    let beijing = stage.kube("beijing").unwrap();
    let more = json!([{"name": "http", "port": 8000}, {"name": "metrics", "port": 9090}]);
    apply(beijing, objects("agreed", &json!({"spec": {"ports": more}})));
    apply(beijing, objects("type", &json!({"spec": {"clusterIP": "None"}})));
    stage.register("beijing").unwrap();
    stage.kube("gateway").unwrap().apply(&declared("beijing", "ServiceExport")).unwrap();
    wait_for_sync(&mut agent, "beijing").unwrap();
    for cluster in [hangzhou, shanghai, beijing] {
        let said = wait_for_reasons(cluster, "agreed", "PortConflict");
        assert!(said.contains("beijing"), "{said}");
        wait_for_reasons(cluster, "type", "TypeConflict");
    }
    let union = json!([http[0], {"name": "metrics", "protocol": "TCP", "port": 9090}]);
    hangzhou
        .see("the import has the ports of all", &of("serviceimports", "demo", "agreed"), SOON, |import| {
            (import["spec"]["ports"] == union).then_some(())
        })
        .unwrap();
    wait_for_import(hangzhou, "demo", "agreed", &["beijing", "hangzhou", "shanghai"]);
    hangzhou.kubectl(&["-n", "demo", "delete", "serviceexport", "type"], "").unwrap();
    shanghai.kubectl(&["-n", "demo", "delete", "serviceexport", "type"], "").unwrap();
    wait_for_reasons(beijing, "type", "NoConflicts");
    hangzhou
        .see(
            "the import is as the only export wants it",
            &of("serviceimports", "demo", "type"),
            SOON,
            |import| (import["spec"]["type"] == "Headless").then_some(()),
        )
        .unwrap();
}

/// Waits until a cluster has an import of these clusters, and returns it.
fn wait_for_import(cluster: &KubeCluster, namespace: &str, name: &str, sources: &[&str]) -> Value {
    let what = format!("{} has an import {name} of {sources:?}", cluster.name());
    let seen = cluster.see(&what, &of("serviceimports", namespace, name), SOON, |import| {
        let listed = import["status"]["clusters"].as_array()?.iter();
        let mut named: Vec<&str> = listed.filter_map(|source| source["cluster"].as_str()).collect();
        named.sort_unstable();
        (named == sources).then(|| import.clone())
    });
    seen.unwrap()
}

/// Waits until the slices that a cluster has for a multi-cluster service are of exactly these pods, and checks
/// their labels and owners.
fn wait_for_slices(cluster: &KubeCluster, service: &str, pods: &[&AppPod]) {
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/demo/endpointslices?labelSelector=multicluster.kubernetes.io/service-name%3D{service}"
    );
    let wanted: BTreeSet<(String, IpAddr)> = pods
        .iter()
        .flat_map(|pod| pod.addresses.iter().map(|address| (pod.cluster.clone(), *address)))
        .collect();
    let what = format!("{}'s slices of {service} hold {wanted:?}", cluster.name());
    let slices = cluster
        .see(&what, &path, SOON, |list| {
            let slices = list["items"].as_array()?;
            let held: BTreeSet<(String, IpAddr)> = slices.iter().flat_map(addresses).collect();
            (held == wanted).then(|| slices.clone())
        })
        .unwrap();
    for slice in slices {
        let metadata = &slice["metadata"];
        let labels = &metadata["labels"];
        assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], "kanmon.dev", "{metadata}");
        assert_eq!(labels["kubernetes.io/service-name"], Value::Null, "{metadata}");
        let own = source(&slice) == cluster.name();
        let owner = if own { "ServiceExport" } else { "ServiceImport" };
        assert_eq!(metadata["ownerReferences"][0]["kind"], owner, "{metadata}");
        assert_eq!(metadata["ownerReferences"][0]["name"], service, "{metadata}");
    }
}

fn source(slice: &Value) -> String {
    let label = &slice["metadata"]["labels"]["multicluster.kubernetes.io/source-cluster"];
    label.as_str().unwrap_or_default().to_owned()
}

fn addresses(slice: &Value) -> Vec<(String, IpAddr)> {
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    let all = endpoints.flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten());
    all.filter_map(|address| Some((source(slice), address.as_str()?.parse().ok()?))).collect()
}

fn pods_of<'a>(pods: &'a [AppPod], cluster: &str) -> Vec<&'a AppPod> {
    pods.iter().filter(|pod| pod.cluster == cluster).collect()
}

#[test]
fn what_is_exported_is_imported_everywhere_and_goes_when_it_is_exported_no_more() {
    let stage = KubeStage::start(StageOptions { mcs: true, ..StageOptions::default() }).unwrap();
    stage.declare(&MEMBERS, "ServiceExport").unwrap();
    let [hangzhou, shanghai] = MEMBERS.map(|member| stage.kube(member).unwrap());
    let gateway = stage.kube("gateway").unwrap();
    let mut agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    let shop = App::new("shop", 2).assigned().port(8080).exported();
    let database = App::new("database", 1).headless().exported();
    let hidden = App::new("hidden", 1).assigned();
    for member in MEMBERS {
        for app in [&shop, &database, &hidden] {
            stage.deploy(member, app).unwrap();
        }
    }
    let both = [("hangzhou", 2), ("shanghai", 2)];
    let pods = stage.wait_until_used(&mut agent, &shop, &both).unwrap();
    let mut databases = Vec::new();
    for member in MEMBERS {
        databases.extend(stage.wait_for_pods(member, &database, 1).unwrap());
    }

    // The import is where the namespace is, and says where the service is.
    let vips = stage.external_ips("hangzhou", &shop).unwrap();
    assert_eq!(stage.external_ips("shanghai", &shop).unwrap(), vips, "they share it");
    let texts: BTreeSet<String> = vips.iter().map(IpAddr::to_string).collect();
    for cluster in [hangzhou, shanghai, gateway] {
        let path = of("serviceimports", "demo", "shop");
        let says_where = |import: &Value| {
            let ips: BTreeSet<String> = serde_json::from_value(import["spec"]["ips"].clone()).ok()?;
            (ips == texts && import["spec"]["type"] == "ClusterSetIP").then_some(())
        };
        cluster.see("the import says where the service is", &path, SOON, says_where).unwrap();
        let import = wait_for_import(cluster, "demo", "shop", &MEMBERS);
        assert_eq!(import["spec"]["ports"], json!([{"name": "http", "protocol": "TCP", "port": 8080}]));
        wait_for_slices(cluster, "shop", &pods.iter().collect::<Vec<_>>());
        let import = wait_for_import(cluster, "demo", "database", &MEMBERS);
        assert_eq!((&import["spec"]["type"], &import["spec"]["ips"]), (&json!("Headless"), &Value::Null));
        wait_for_slices(cluster, "database", &databases.iter().collect::<Vec<_>>());
    }
    // What nobody exports has no part in it, not even as a front.
    assert_eq!(used(&agent, "demo/hidden").unwrap(), BTreeSet::new());
    assert_eq!(
        ingress(&hangzhou.look("/api/v1/namespaces/demo/services/hidden").unwrap()),
        [] as [IpAddr; 0]
    );
    hangzhou.apply(&export("hidden", "v1beta1")).unwrap();
    stage.wait_until_used(&mut agent, &hidden, &[("hangzhou", 1)]).unwrap();

    // Exported no more: only the other one's are left, at the same address.
    shanghai.kubectl(&["-n", "demo", "delete", "serviceexport", "shop"], "").unwrap();
    stage.wait_until_used(&mut agent, &shop, &[("hangzhou", 2)]).unwrap();
    for cluster in [hangzhou, shanghai, gateway] {
        wait_for_import(cluster, "demo", "shop", &["hangzhou"]);
        wait_for_slices(cluster, "shop", &pods_of(&pods, "hangzhou"));
    }
    assert_eq!(stage.external_ips("hangzhou", &shop).unwrap(), vips);
    hangzhou.kubectl(&["-n", "demo", "delete", "serviceexport", "shop"], "").unwrap();
    for cluster in [hangzhou, shanghai, gateway] {
        wait_until_gone(cluster, "demo", "shop");
        wait_for_slices(cluster, "shop", &[]);
    }
    assert_eq!(used(&agent, "demo/shop").unwrap(), BTreeSet::new());

    namespaces_come_and_go(&stage, &agent);
}

fn wait_until_gone(cluster: &KubeCluster, namespace: &str, name: &str) {
    let what = format!("{} has no import {name}", cluster.name());
    cluster
        .see(&what, &of("serviceimports", namespace, name), SOON, |import| import.is_null().then_some(()))
        .unwrap();
}

/// An import is where its namespace is; a namespace that is deleted takes its exports with it, and nothing of ours
/// holds it up.
fn namespaces_come_and_go(stage: &KubeStage, agent: &Agent) {
    let [hangzhou, shanghai] = MEMBERS.map(|member| stage.kube(member).unwrap());
    hangzhou.kubectl(&["create", "namespace", "team"], "").unwrap();
    let in_team = objects("api", &json!({})).map(|mut object| {
        object["metadata"]["namespace"] = json!("team");
        object
    });
    apply(hangzhou, in_team.clone());
    wait_for_import(hangzhou, "team", "api", &["hangzhou"]);
    assert!(shanghai.look(&of("serviceimports", "team", "api")).unwrap().is_null());
    shanghai.kubectl(&["create", "namespace", "team"], "").unwrap();
    wait_for_import(shanghai, "team", "api", &["hangzhou"]);
    apply(shanghai, in_team);
    wait_for_import(hangzhou, "team", "api", &MEMBERS);

    hangzhou.kubectl(&["delete", "namespace", "team", "--timeout=90s"], "").unwrap();
    wait_for_import(shanghai, "team", "api", &["shanghai"]);
    let path = of("serviceexports", "team", "api");
    let agreed = |export: &Value| condition(export, "Conflict").starts_with("False").then_some(());
    shanghai.see("the other export is on its own", &path, SOON, agreed).unwrap();
    shanghai.kubectl(&["delete", "namespace", "team", "--timeout=90s"], "").unwrap();
    eventually("the agent is still well", SOON, || agent.status().unwrap()["ready"] == true);
}

#[test]
fn definitions_may_come_later_and_may_be_of_the_old_version() {
    let stage = KubeStage::start(StageOptions::default()).unwrap();
    stage.declare(&MEMBERS, "ServiceExport").unwrap();
    let [hangzhou, shanghai] = MEMBERS.map(|member| stage.kube(member).unwrap());
    stage.install_old_mcs("shanghai").unwrap();
    let plain = App::new("shop", 1).assigned().port(8080);
    for member in MEMBERS {
        stage.deploy(member, &plain).unwrap();
    }
    shanghai.apply(&export("shop", "v1alpha1")).unwrap();

    // In hangzhou there can be no exports yet: that is no fault, and nobody else waits for it.
    let mut agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    for member in MEMBERS {
        wait_for_sync(&mut agent, member).unwrap();
    }
    stage.wait_for_pods("hangzhou", &plain, 1).unwrap();
    stage
        .wait_until_used(&mut agent, &App { reach: Reach::ClusterIp, ..plain.clone() }, &[("shanghai", 1)])
        .unwrap();
    let old = "/apis/multicluster.x-k8s.io/v1alpha1/namespaces/demo";
    shanghai
        .see("the old export is judged", &format!("{old}/serviceexports/shop"), SOON, |export| {
            condition(export, "Valid").starts_with("True").then_some(())
        })
        .unwrap();
    let sources = |import: &Value| import["status"]["clusters"].as_array().map_or(0, Vec::len);
    let path = format!("{old}/serviceimports/shop");
    shanghai
        .see("there is an old import", &path, SOON, |import| (sources(import) == 1).then_some(()))
        .unwrap();

    stage.install_mcs("gateway").unwrap();
    install_where_older(&stage, "hangzhou");
    hangzhou.apply(&export("shop", "v1beta1")).unwrap();
    stage.wait_until_used(&mut agent, &plain, &[("hangzhou", 1), ("shanghai", 1)]).unwrap();
    wait_for_reasons(hangzhou, "shop", "NoConflicts");
    for cluster in [hangzhou, stage.kube("gateway").unwrap()] {
        wait_for_import(cluster, "demo", "shop", &MEMBERS);
    }
    shanghai
        .see("both are in the old import", &path, SOON, |import| (sources(import) == 2).then_some(()))
        .unwrap();

    // The definitions go: what was exported by them is not, and the member is read as before.
    hangzhou.kubectl(&["delete", "crd", "serviceexports.multicluster.x-k8s.io"], "").unwrap();
    stage.wait_until_used(&mut agent, &App { reach: Reach::ClusterIp, ..plain }, &[("shanghai", 1)]).unwrap();
    wait_for_sync(&mut agent, "hangzhou").unwrap();
}

/// Installs the definitions by the command that replaces no equal or newer ones, which others may have brought.
fn install_where_older(stage: &KubeStage, cluster: &str) {
    let kube = stage.kube(cluster).unwrap();
    let install = format!("kanmon crds --mcs --apply --context {cluster} 2>&1");
    let definition =
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/serviceexports.multicluster.x-k8s.io";
    stage.type_in(&install).unwrap();
    let established =
        |definition: &Value| condition(definition, "Established").starts_with("True").then_some(());
    kube.see("the definition is there", definition, SOON, established).unwrap();
    let generation = || kube.look(definition).unwrap()["metadata"]["generation"].clone();
    let label = "multicluster.x-k8s.io/release-version";
    let crd = "crd/serviceexports.multicluster.x-k8s.io";
    for release in [None, Some("v99.0.0")] {
        if let Some(newer) = release {
            let patch =
                json!([{"op": "replace", "path": "/spec/names/shortNames", "value": ["newer"]}]).to_string();
            kube.kubectl(&["label", "--overwrite", crd, &format!("{label}={newer}")], "").unwrap();
            kube.kubectl(&["patch", crd, "--type=json", "-p", &patch], "").unwrap();
        }
        let before = generation();
        let said = stage.type_in(&install).unwrap();
        assert!(said.contains("left as it is"), "{said}");
        assert_eq!(generation(), before, "{said}");
    }
}
