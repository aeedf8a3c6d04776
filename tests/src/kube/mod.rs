//! Real Kubernetes control planes in the bed: etcd, API server, controllers and scheduler of each cluster, as
//! released, in namespaces on story S1's network.
//!
//! The clusters are `hangzhou` and `shanghai`, the members, and `gateway`, the one that Kanmon's node belongs
//! to. Each has dual-stack service prefixes (172.16.0.0/16 and fd00:172:16::/112, and 17, 18 for the others),
//! an authority of its own, client certificates, and RBAC. Nodes and pods are the kubelet's work, which the
//! bed has one of its own for.
//!
//! ```no_run
//! use k8s_openapi::api::core::v1::Namespace;
//! use kube::Api;
//! use tests::kube::{KubeBed, KubeOptions};
//!
//! # fn main() -> anyhow::Result<()> {
//! let bed = KubeBed::start(KubeOptions::default())?;
//! let hangzhou = bed.cluster("hangzhou")?;
//! hangzhou.kubectl(&["create", "namespace", "demo"], "")?;
//! let found = hangzhou.in_namespace(async |client| Ok(Api::<Namespace>::all(client).get("demo").await?))?;
//! assert_eq!(found.metadata.name.as_deref(), Some("demo"));
//! hangzhou.partition()?;
//! # Ok(())
//! # }
//! ```

mod answers;
mod audit;
mod cluster;
mod etcd;
mod faults;
mod kubeconfig;
mod look;
mod pki;
mod programs;
mod wait;

use std::thread;

use anyhow::{Context, Result};

use crate::topology::{Bed, Options};

pub use audit::Asked;
pub use cluster::KubeCluster;
pub use look::{condition, condition_message};
pub(crate) use programs::assets;
pub use wait::{in_namespace, poll};

/// What a bed with Kubernetes should look like.
#[derive(Clone, Debug)]
pub struct KubeOptions {
    /// The clusters that get a control plane: of `gateway`, `hangzhou` and `shanghai`, and `beijing`, which
    /// joins the network for it.
    pub clusters: Vec<&'static str>,
    /// The gateway reaches the clusters through `eth1` instead of `eth0`.
    pub two_armed: bool,
    /// The API servers write down what Kanmon's accounts ask for: [`KubeCluster::asked_by`].
    pub audited: bool,
}

impl Default for KubeOptions {
    fn default() -> Self {
        KubeOptions { clusters: vec!["gateway", "hangzhou", "shanghai"], two_armed: false, audited: false }
    }
}

/// A network of story S1 whose clusters have control planes, and no pods yet. Dropping it removes it.
#[derive(Debug)]
pub struct KubeBed {
    clusters: Vec<KubeCluster>,
    /// Last: the clusters stop before their network goes.
    bed: Bed,
}

impl KubeBed {
    /// Builds the network and starts all control planes at once. They are ready when this returns: their API
    /// servers say so, and their controllers have made the first service account.
    ///
    /// # Errors
    /// Without root, without Kubernetes' programs (`KUBEBUILDER_ASSETS`), or when one of them does not get
    /// ready; the error holds the end of its log.
    pub fn start(options: KubeOptions) -> Result<KubeBed> {
        let bed = Bed::s1(Options { two_armed: options.two_armed, pods: 0 })?;
        if options.clusters.contains(&"beijing") {
            bed.join_third_cluster()?;
        }
        let places = options
            .clusters
            .iter()
            .map(|&name| Ok((name, bed.attach_control_plane(name)?)))
            .collect::<Result<Vec<_>>>()?;
        let clusters = thread::scope(|scope| {
            let starting: Vec<_> = places
                .into_iter()
                .map(|(name, place)| {
                    let run = bed.run().clone();
                    scope.spawn(move || {
                        KubeCluster::start(run, name, place, options.audited)
                            .with_context(|| format!("the control plane of cluster {name} did not start"))
                    })
                })
                .collect();
            starting
                .into_iter()
                .map(|start| start.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(KubeBed { clusters, bed })
    }

    /// The network: namespaces of the gateway, the client and the nodes.
    pub fn bed(&self) -> &Bed {
        &self.bed
    }

    /// All clusters, in the order of the options.
    pub fn clusters(&self) -> &[KubeCluster] {
        &self.clusters
    }

    /// A cluster by its name.
    ///
    /// # Errors
    /// When it has no control plane here.
    pub fn cluster(&self, name: &str) -> Result<&KubeCluster> {
        let found = self.clusters.iter().find(|cluster| cluster.name() == name);
        found.with_context(|| format!("the bed has no control plane for cluster {name}"))
    }

    /// Starts kube-proxy, in nftables mode, in the namespace of a member cluster's node. `node` is the Node
    /// it works for; it waits for that to be registered.
    ///
    /// # Errors
    /// When there is no such cluster, or no kube-proxy.
    pub fn start_proxy(&self, cluster: &str, node: &str) -> Result<()> {
        let pods = self.bed.pod_prefixes(cluster)?;
        self.cluster(cluster)?.start_proxy(&self.bed.node(cluster)?, node, pods)
    }
}
