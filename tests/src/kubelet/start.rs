//! The test bed's side: starting a kubelet in a node's namespace, and finding its pods' namespaces.

use std::path::PathBuf;

use anyhow::Result;
use ipnet::IpNet;

use super::{NodePlace, sandbox, worker::namespace_name};
use crate::{
    kube::KubeBed,
    netns::{Netns, Process, RunDir},
    topology::{Dual, program},
};

/// How to start a kubelet.
#[derive(Clone, Debug)]
pub struct KubeletOptions {
    /// The cluster's name: one kubelet of each cluster a run.
    pub cluster: String,
    /// Whom it is to the API server. [`super`] lists the rights it needs.
    pub kubeconfig: PathBuf,
    /// The nodes it serves: one at least.
    pub nodes: Vec<NodePlace>,
    /// The addresses of the namespace it runs in: those of every node it serves.
    pub node_ips: Dual,
    /// Where the pods' addresses come from, one prefix a family; the network routes them to the namespace.
    pub pods: [IpNet; 2],
}

/// Starts a kubelet in its nodes' namespace. Its log is `kubelet-<cluster>`. Killing the process leaves its
/// pods running; the next one of the same cluster ends them and starts them again.
///
/// # Errors
/// When the program is not built.
pub fn start(run: &RunDir, ns: &Netns, options: &KubeletOptions) -> Result<Process> {
    let mut command = ns.command(program("kanmon-kubelet")?);
    command.arg("--kubeconfig").arg(&options.kubeconfig).arg("--run-dir").arg(run.path());
    command.args(["--cluster", &options.cluster]);
    for node in &options.nodes {
        command.args(["--node", &node.to_string()]);
    }
    for ip in options.node_ips.both() {
        command.args(["--node-ip", &ip.to_string()]);
    }
    for prefix in options.pods {
        command.args(["--pod-cidr", &prefix.to_string()]);
    }
    command.args(["--env", &format!("KANMON_CLUSTER={}", options.cluster)]);
    run.spawn(&format!("kubelet-{}", options.cluster), command)
}

/// The namespace of a running pod, by the uid that the API server gave it.
///
/// # Errors
/// When the pod has none, or none any more.
pub fn pod_namespace(run: &RunDir, cluster: &str, uid: &str) -> Result<Netns> {
    Netns::open(run, &namespace_name(cluster, uid))
}

/// Takes a running pod's link down: it answers nobody, and its kubelet will call it not ready where it is
/// probed.
///
/// # Errors
/// When there is no such pod, or none any more.
pub fn silence_pod(run: &RunDir, cluster: &str, uid: &str) -> Result<()> {
    sandbox::silence(&pod_namespace(run, cluster, uid)?)
}

/// Undoes [`silence_pod`], for the pod with these addresses.
///
/// # Errors
/// When there is no such pod, or none any more.
pub fn heal_pod(run: &RunDir, cluster: &str, uid: &str, addresses: Dual) -> Result<()> {
    sandbox::heal(&pod_namespace(run, cluster, uid)?, addresses)
}

impl KubeBed {
    /// Starts the kubelet of a member cluster, with a Node in each of three zones: `hangzhou-a` in
    /// `cn-hangzhou/cn-hangzhou-a`, and -b, and -c. Its pods have the addresses that the bed has for them.
    ///
    /// # Errors
    /// When there is no such cluster, or the program is not built.
    pub fn start_kubelet(&self, cluster: &str) -> Result<Process> {
        let nodes = ["a", "b", "c"].map(|zone| NodePlace {
            name: format!("{cluster}-{zone}"),
            region: format!("cn-{cluster}"),
            zone: format!("cn-{cluster}-{zone}"),
        });
        let options = KubeletOptions {
            cluster: cluster.to_owned(),
            kubeconfig: self.cluster(cluster)?.kubelet_credentials()?,
            nodes: nodes.into(),
            node_ips: self.bed().node_address(cluster)?,
            pods: self.bed().pod_prefixes(cluster)?,
        };
        start(self.bed().run(), &self.bed().node(cluster)?, &options)
    }
}
