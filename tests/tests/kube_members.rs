//! How a cluster becomes a member, against real API servers: the resources that describe it, and the Secret
//! that registers it.

use std::{fs, path::PathBuf, process::Output, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams},
};
use tests::{
    kube::{KubeBed, KubeCluster, KubeOptions, in_namespace},
    scenario::eventually,
    topology::program,
};

/// How long the control plane may take: generous, for a machine that is busy compiling.
const SOON: Duration = Duration::from_secs(60);

fn bed(clusters: &[&'static str]) -> KubeBed {
    KubeBed::start(KubeOptions { clusters: clusters.to_vec(), ..KubeOptions::default() }).unwrap()
}

/// Runs `kanmon` on the gateway.
fn kanmon(bed: &KubeBed, arguments: &[&str]) -> Result<Output> {
    let mut command = bed.bed().gateway().command(program("kanmon")?);
    command.args(arguments);
    let output = bed.bed().run().output(command, "")?;
    ensure!(
        output.status.success(),
        "`kanmon {}` failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

fn printed(bed: &KubeBed, arguments: &[&str]) -> Result<String> {
    String::from_utf8(kanmon(bed, arguments)?.stdout).context("kanmon printed no text")
}

fn object(kind: &str, spec: &str) -> String {
    format!("{{apiVersion: kanmon.dev/v1alpha1, kind: {kind}, metadata: {{name: tried}}, spec: {spec}}}")
}

#[test]
fn an_api_server_takes_the_resources_that_kanmon_prints_and_refuses_what_makes_no_sense() {
    let bed = bed(&["gateway"]);
    let gateway = bed.cluster("gateway").unwrap();
    gateway.apply(&printed(&bed, &["crds"]).unwrap()).unwrap();
    let wait = ["wait", "--for", "condition=established", "--timeout", "60s"];
    let names = ["addresspools", "loadbalancingpolicies", "memberclusters"]
        .map(|kind| format!("crd/{kind}.kanmon.dev"));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    gateway.kubectl(&[&wait[..], &names[..]].concat(), "").unwrap();
    // Established a moment before it is served.
    eventually("the new resources are served", SOON, || {
        gateway.kubectl(&["get", "memberclusters,addresspools,loadbalancingpolicies"], "").is_ok()
    });

    let secret = "kubeconfigSecretRef: {namespace: kanmon-system, name: s, key: gke_x}";
    let too_many = (0..65).map(|n| format!("10.{n}.0.0/16")).collect::<Vec<_>>().join(", ");
    for (kind, spec, expected) in [
        ("MemberCluster", "{region: r}".to_owned(), "source is required"),
        ("MemberCluster", "{source: {}}".to_owned(), "exactly one of kubeconfigSecretRef and local"),
        ("MemberCluster", format!("{{source: {{local: {{}}, {secret}}}}}"), "exactly one of"),
        ("MemberCluster", "{source: {local: {}}, state: Gone}".to_owned(), "Unsupported value"),
        ("MemberCluster", "{source: {local: {}}, podCIDRs: [10.0.0.0/33]}".to_owned(), "must be a network"),
        ("MemberCluster", format!("{{source: {{local: {{}}}}, podCIDRs: [{too_many}]}}"), "at most 64 items"),
        ("AddressPool", "{cidrs: [192.168.100.0]}".to_owned(), "must be a network"),
        ("AddressPool", "{cidrs: []}".to_owned(), "at least 1 items"),
    ] {
        let error = format!("{:#}", gateway.apply(&object(kind, &spec)).expect_err(&spec));
        assert!(error.contains(expected), "{spec}: {error}");
    }
    gateway.apply(&object("AddressPool", "{cidrs: [192.168.100.0/24, \"fd00:100::/112\"]}")).unwrap();
    gateway.apply(&object("MemberCluster", "{source: {local: {}}, podCIDRs: [10.0.0.0/16]}")).unwrap();
    gateway.kubectl(&["delete", "mc", "tried"], "").unwrap();
    gateway.apply(&object("MemberCluster", &format!("{{source: {{{secret}}}, region: cn-x}}"))).unwrap();

    let table = gateway.kubectl(&["get", "mc"], "").unwrap();
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let header = ["NAME", "REGION", "STATE", "CONNECTED", "NETWORK", "SERVICES", "ENDPOINTS", "AGE"];
    assert_eq!(lines.next().unwrap(), header);
    assert_eq!(lines.next().unwrap()[..3], ["tried", "cn-x", "Active"]);
}

#[test]
fn an_api_server_refuses_policies_that_make_no_sense_and_shows_the_others() {
    let bed = bed(&["gateway"]);
    let gateway = bed.cluster("gateway").unwrap();
    gateway.apply(&printed(&bed, &["crds"]).unwrap()).unwrap();
    eventually("policies are served", SOON, || gateway.kubectl(&["get", "lbp"], "").is_ok());

    let policy = |fields: &str| {
        object(
            "LoadBalancingPolicy",
            &format!("{{targetRefs: [{{group: '', kind: Service, name: web}}], {fields}}}"),
        )
    };
    let locality = |fields: &str| policy(&format!("locality: {{{fields}}}"));
    let shares = |to: &str| locality(&format!("distribute: [{{from: r1, to: [{to}]}}]"));
    let check = |fields: &str| policy(&format!("healthCheck: {{{fields}}}"));
    let too_many = (0..17).map(|n| format!("r{n}")).collect::<Vec<_>>().join(", ");
    for (object, expected) in [
        (object("LoadBalancingPolicy", "{targetRefs: []}"), "at least 1 items"),
        (object("LoadBalancingPolicy", "{}"), "Required value"),
        (
            object("LoadBalancingPolicy", "{targetRefs: [{kind: Pod, name: web}]}"),
            "only Services can be targets",
        ),
        (
            object(
                "LoadBalancingPolicy",
                "{targetRefs: [{kind: Service, name: a}, {kind: Service, name: a}]}",
            ),
            "Duplicate value",
        ),
        (
            locality(
                "failover: [{from: r1, to: [r2]}], distribute: [{from: r1, to: [{region: r1, weight: 100}]}]",
            ),
            "failover and distribute exclude each other",
        ),
        (locality("failover: [{from: r1, to: [r2, r1]}]"), "must not be in `to`"),
        (locality("failover: [{from: r1, to: [r1/a]}]"), "must not be in `to`"),
        (locality("failover: [{from: r1, to: [r2, r2]}]"), "Duplicate value"),
        (locality("failover: [{from: r1, to: [r2]}, {from: r1, to: [r3]}]"), "each `from` can be there once"),
        (locality("failover: []"), "at least 1 items"),
        (locality(&format!("failover: [{{from: x, to: [{too_many}]}}]")), "at most 16 items"),
        (locality("failover: [{from: r1/a/b, to: [r2]}]"), "should match"),
        (locality("failbackDelay: 1d"), "should match"),
        (locality("failbackDelay: 25h"), "must be 24h at most"),
        (locality("overprovisioningPercent: 99"), "greater than or equal to 100"),
        (shares("{region: r1, weight: 90}, {region: r2, weight: 9}"), "the weights must sum to 100"),
        (shares("{region: r1, weight: 100}, {region: r2, weight: 0}"), "greater than or equal to 1"),
        (shares("{region: r1, weight: 50}, {region: r1, zone: a, weight: 50}"), "must not overlap"),
        (
            policy(
                "zonePreference: Prefer, locality: {distribute: [{from: r1, to: [{region: r1, weight: 100}]}]}",
            ),
            "exclude each other",
        ),
        (policy("zonePreference: Sometimes"), "Unsupported value"),
        (check("timeout: 6s"), "timeout must not be longer than interval"),
        (check("interval: 10ms"), "must be 100ms to 1h"),
        (check("type: TCP, path: /healthz"), "path and expectedStatuses need type HTTP or HTTPS"),
        (check("type: HTTP, expectedStatuses: '399-200'"), "the range must begin with its lowest status"),
        (check("type: HTTPS, caCertificate: MIIB"), "must be a certificate in PEM"),
        (check("type: HTTP, service: x"), "service needs type GRPC"),
        (
            policy("outlierDetection: {baseEjectionTime: 2m, maxEjectionTime: 1m}"),
            "must not be longer than maxEjectionTime",
        ),
        (policy("outlierDetection: {maxEjectionPercent: 101}"), "less than or equal to 100"),
        (policy("flowLog: {sampleOneIn: 0}"), "greater than or equal to 1"),
    ] {
        let error = format!("{:#}", gateway.apply(&object).expect_err(&object));
        assert!(error.contains(expected), "{object}: {error}");
    }

    // Story S1, and the rest of what there is.
    let s1 = "locality: {failover: [{from: cn-hangzhou, to: [cn-shanghai]}, {from: cn-shanghai, to: [cn-hangzhou]}]}, \
              outlierDetection: {consecutiveErrors: 1, interval: 1s, baseEjectionTime: 1m}";
    gateway.apply(&policy(s1)).unwrap();
    gateway
        .apply(&shares("{region: cn-hangzhou, weight: 90}, {region: cn-shanghai, zone: a, weight: 10}"))
        .unwrap();
    gateway
        .apply(&policy(
            "clusterSelector: {matchLabels: {location: r1}}, zonePreference: Strict, drainTimeout: 1h30m, \
             retryOnReset: false, slowStart: 30s, flowLog: {counters: true, sampleOneIn: 100}, newFlowLimit: 1000, \
             healthCheck: {type: HTTPS, path: '/healthz?full=1', host: web.example, port: 8443, \
             expectedStatuses: '200-204', interval: 250ms, timeout: 250ms, caCertificate: \
             '-----BEGIN CERTIFICATE-----x-----END CERTIFICATE-----'}",
        ))
        .unwrap();
    let table = gateway.kubectl(&["get", "lbp"], "").unwrap();
    let header: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["NAME", "MODE", "HEALTHY", "EJECTED", "ACCEPTED", "PROGRAMMED", "AGE"]);
}

#[test]
fn a_remote_secret_lets_the_gateway_read_what_it_needs_until_it_is_deleted() {
    let bed = bed(&["gateway", "hangzhou"]);
    for (more, secret) in [
        (&[][..], ("kanmon-system", "kanmon-remote-secret-hangzhou")),
        (&["--istio"][..], ("istio-system", "istio-remote-secret-hangzhou")),
    ] {
        let credentials = register(&bed, more, secret).unwrap();
        in_namespace(bed.bed().gateway(), &credentials, reads_what_it_needs).unwrap();

        delete(&bed, more).unwrap();
        eventually("the credentials are of no use any more", SOON, || {
            in_namespace(bed.bed().gateway(), &credentials, async |client| {
                Ok(Api::<Service>::all(client).list(&ListParams::default()).await.map(drop)?)
            })
            .is_err()
        });
        delete(&bed, more).expect("what is gone can be deleted again");
    }
}

/// Registers hangzhou with the gateway's cluster and returns the kubeconfig that the Secret there holds.
fn register(bed: &KubeBed, more: &[&str], (namespace, name): (&str, &str)) -> Result<PathBuf> {
    let hangzhou = admin(bed.cluster("hangzhou")?)?;
    let create = ["remote-secret", "create", "--name", "hangzhou", "--kubeconfig", &hangzhou];
    let yaml = printed(bed, &[&create[..], more].concat())?;
    ensure!(yaml == printed(bed, &[&create[..], more].concat())?, "another time, another Secret");

    let gateway = bed.cluster("gateway")?;
    gateway.kubectl(&["create", "namespace", namespace], "")?;
    gateway.apply(&yaml)?;
    let secret = gateway
        .in_namespace(async |client| Ok(Api::<Secret>::namespaced(client, namespace).get(name).await?))?;
    let data = secret.data.unwrap_or_default();
    let kubeconfig = data.get("hangzhou").context("the Secret has no key hangzhou")?;
    let path = bed.bed().run().path().join(format!("{name}.kubeconfig"));
    fs::write(&path, &kubeconfig.0)?;
    Ok(path)
}

async fn reads_what_it_needs(client: Client) -> Result<()> {
    let all = ListParams::default();
    Api::<Service>::all(client.clone()).list(&all).await?;
    Api::<EndpointSlice>::all(client.clone()).list(&all).await?;
    Api::<Node>::all(client.clone()).list(&all).await?;
    let system = Api::<Namespace>::all(client.clone()).get("kube-system").await?;
    ensure!(system.metadata.uid.is_some(), "the cluster tells who it is");
    let services: Api<Service> = Api::namespaced(client, "default");
    let deletion = services.delete("kubernetes", &DeleteParams::default()).await;
    ensure!(deletion.is_err(), "a gateway must not delete a member's Services");
    Ok(())
}

fn delete(bed: &KubeBed, more: &[&str]) -> Result<()> {
    let hangzhou = admin(bed.cluster("hangzhou")?)?;
    kanmon(bed, &[&["remote-secret", "delete", "--kubeconfig", &hangzhou][..], more].concat()).map(drop)
}

fn admin(cluster: &KubeCluster) -> Result<String> {
    Ok(cluster.kubeconfig().to_str().context("a path that is text")?.to_owned())
}
