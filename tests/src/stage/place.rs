//! What a person writes to say where services run and where their VIPs come from: MemberClusters, pools, and the
//! definitions of exports.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{GATEWAY, KubeStage};

/// A pool of VIPs that the bed routes to its gateway: 192.168.100.64–127 and fd00:100::64 to ::127.
pub const POOL: &str = "apiVersion: kanmon.dev/v1alpha1
kind: AddressPool
metadata: {name: internal}
spec: {cidrs: [192.168.100.64/26, 'fd00:100::40/122'], scope: Internal}
";

/// A MemberCluster as somebody writes it who manages everything in files, with the label `location`. It adopts
/// the Secret that [`KubeStage::register`] makes.
pub fn declared(member: &str, discovery: &str) -> String {
    format!(
        "apiVersion: kanmon.dev/v1alpha1
kind: MemberCluster
metadata: {{name: {member}, labels: {{location: cn-{member}}}}}
spec:
  region: cn-{member}
  discovery: {discovery}
  source:
    kubeconfigSecretRef: {{namespace: kanmon-system, name: kanmon-remote-secret-{member}, key: {member}}}
"
    )
}

/// The MemberCluster that a cluster is to a gateway of its own.
pub fn itself(cluster: &str, discovery: &str) -> String {
    format!(
        "apiVersion: kanmon.dev/v1alpha1
kind: MemberCluster
metadata: {{name: {cluster}}}
spec:
  region: cn-{cluster}
  discovery: {discovery}
  source: {{local: {{}}}}
"
    )
}

impl KubeStage {
    /// Gives a cluster the definitions of ServiceExport and ServiceImport.
    ///
    /// # Errors
    /// When the cluster refuses them.
    pub fn install_mcs(&self, cluster: &str) -> Result<()> {
        self.type_in(&format!(
            "kanmon crds --mcs | kubectl --context {cluster} apply -f - && {}",
            established(cluster)
        ))
        .with_context(|| format!("cannot install mcs-api's definitions in cluster {cluster}"))
        .map(drop)
    }

    /// Gives a cluster the same definitions as they were before v1beta1.
    ///
    /// # Errors
    /// When the cluster refuses them.
    pub fn install_old_mcs(&self, cluster: &str) -> Result<()> {
        let line = "kanmon crds --mcs | kubectl --context gateway create --dry-run=client -o json -f -";
        let printed = self.type_in(line)?;
        // Several objects: one JSON text after the other, or a List.
        let objects: Vec<Value> =
            serde_json::Deserializer::from_str(&printed).into_iter().collect::<Result<_, _>>()?;
        let definitions = objects.into_iter().flat_map(|one| match one["items"].as_array() {
            Some(items) => items.clone(),
            None => vec![one],
        });
        let old: Vec<Value> = definitions.map(only_v1alpha1).collect();
        self.workstation()
            .write("old-mcs.json", &json!({"apiVersion": "v1", "kind": "List", "items": old}).to_string())?;
        self.type_in(&format!(
            "kubectl --context {cluster} create -f old-mcs.json && {}",
            established(cluster)
        ))
        .map(drop)
    }

    /// Applies the [`POOL`] and members of `gateway`'s cluster, which name their region and how services are
    /// found in them.
    ///
    /// # Errors
    /// When the cluster refuses them.
    pub fn declare(&self, members: &[&str], discovery: &str) -> Result<()> {
        let objects: Vec<String> = members.iter().map(|member| declared(member, discovery)).collect();
        self.kube(GATEWAY)?.apply(&[&[POOL.to_owned()], &objects[..]].concat().join("---\n")).map(drop)
    }
}

fn established(cluster: &str) -> String {
    format!(
        "kubectl --context {cluster} wait --for=condition=Established --timeout=60s \
         crd/serviceexports.multicluster.x-k8s.io crd/serviceimports.multicluster.x-k8s.io"
    )
}

fn only_v1alpha1(mut definition: Value) -> Value {
    if let Some(versions) = definition["spec"]["versions"].as_array_mut() {
        versions.retain(|version| version["name"] == "v1alpha1");
        for version in versions {
            version["storage"] = json!(true);
        }
    }
    definition
}
