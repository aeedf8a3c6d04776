//! The assembled stage: real clusters with pods, registered as a user registers them, and agents that read them.
//!
//! ```no_run
//! use tests::{
//!     client::TcpLoad,
//!     stage::{App, KubeStage, StageOptions},
//!     topology::{HTTP_PORT, VIP},
//! };
//!
//! # fn main() -> anyhow::Result<()> {
//! let stage = KubeStage::start(StageOptions::default())?;
//! let mut agent = stage.start_agent(&stage.gateway(), &[])?;
//! let httpbin = App::new("httpbin", 3).at(VIP);
//! stage.deploy("hangzhou", &httpbin)?;
//! stage.deploy("shanghai", &httpbin)?;
//! stage.wait_until_used(&mut agent, &httpbin, &[("hangzhou", 3), ("shanghai", 3)])?;
//! let target = (VIP.v4, HTTP_PORT).into();
//! let report = stage.bed().client().tcp(TcpLoad::new(target, 100))?;
//! assert_eq!(report.tally().failed, 0);
//! stage.type_in("kubectl --context hangzhou -n demo scale deployment/httpbin --replicas=0")?;
//! stage.kube("shanghai")?.kill_api()?;
//! # Ok(())
//! # }
//! ```

mod app;
mod container;
mod faults;
mod gateway;
mod inventory;
mod place;
mod pods;
mod remote;
mod workstation;

use std::{sync::Arc, thread};

use anyhow::{Context, Result};

use crate::{
    kube::{KubeBed, KubeCluster, KubeOptions},
    netns::{Process, RunDir},
    topology::Bed,
};

pub use app::{App, Reach, export};
pub use gateway::Gateway;
pub use inventory::Inventory;
pub use place::{POOL, declared, itself};
pub use pods::{AppPod, SOON, ingress, wait_until_exactly};
pub use remote::istioctl_secret;
pub use workstation::Workstation;

/// The cluster of the bed's own gateway; it has a control plane and no pods.
const GATEWAY: &str = "gateway";

/// Where Kanmon's objects are.
const NAMESPACE: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: kanmon-system}}";

/// What a stage should look like.
#[derive(Clone, Debug)]
pub struct StageOptions {
    /// The clusters that run: of `gateway`, `hangzhou`, `shanghai` and `beijing`. All but `gateway` have a
    /// kubelet with nodes in three zones.
    pub clusters: Vec<&'static str>,
    /// Register all clusters with nodes as members of `gateway`'s.
    pub register: bool,
    /// Run kube-proxy, in nftables mode, on the nodes of all clusters that have some.
    pub kube_proxy: bool,
    /// Give all clusters the definitions of ServiceExport and ServiceImport.
    pub mcs: bool,
    /// Leave the cluster `gateway` without Kanmon's definitions and namespace, for somebody to install them.
    pub bare: bool,
    /// As in [`KubeOptions`].
    pub audited: bool,
}

impl Default for StageOptions {
    fn default() -> Self {
        StageOptions {
            clusters: vec![GATEWAY, "hangzhou", "shanghai"],
            register: true,
            kube_proxy: false,
            mcs: false,
            bare: false,
            audited: false,
        }
    }
}

/// Clusters that run pods, and a person's workstation. Dropping it ends and removes all of it; drop agents
/// first.
#[derive(Debug)]
pub struct KubeStage {
    kubelets: Vec<Process>,
    workstation: Workstation,
    /// Last: the rest stops before its network goes.
    bed: KubeBed,
}

impl KubeStage {
    /// Starts the clusters and their kubelets, makes the namespace `demo` in all of them, and prepares the
    /// cluster `gateway`, where there is one, with Kanmon's definitions and the gateway's Node. Members are
    /// registered by what `kanmon remote-secret create` prints.
    ///
    /// # Errors
    /// When a program is missing, a cluster does not start, or a command fails.
    pub fn start(options: StageOptions) -> Result<KubeStage> {
        let kube = KubeOptions {
            clusters: options.clusters.clone(),
            audited: options.audited,
            ..KubeOptions::default()
        };
        let bed = KubeBed::start(kube)?;
        let with_nodes: Vec<&str> =
            options.clusters.iter().copied().filter(|name| *name != GATEWAY).collect();
        let kubelets = with_nodes.iter().map(|name| bed.start_kubelet(name)).collect::<Result<_>>()?;
        if options.kube_proxy {
            // All Nodes of a cluster are one namespace here, so one of them speaks for all.
            with_nodes.iter().try_for_each(|name| bed.start_proxy(name, &format!("{name}-a")))?;
        }
        let workstation = Workstation::create(&bed)?;
        let stage = KubeStage { kubelets, workstation, bed };
        stage.everywhere(&options.clusters, |name| {
            stage.type_in(&format!("kubectl --context {name} create namespace demo"))?;
            if options.mcs {
                stage.install_mcs(name)?;
            }
            if name == GATEWAY { stage.prepare_gateway(options.bare) } else { Ok(()) }
        })?;
        if options.register {
            stage.everywhere(&with_nodes, |name| stage.register(name))?;
        }
        Ok(stage)
    }

    /// The network: its client, its nodes.
    pub fn bed(&self) -> &Bed {
        self.bed.bed()
    }

    /// The run's directory.
    pub fn run(&self) -> &Arc<RunDir> {
        self.bed().run()
    }

    /// A cluster's control plane, with its faults.
    ///
    /// # Errors
    /// When there is no such cluster on this stage.
    pub fn kube(&self, cluster: &str) -> Result<&KubeCluster> {
        self.bed.cluster(cluster)
    }

    /// Where a person sits.
    pub fn workstation(&self) -> &Workstation {
        &self.workstation
    }

    /// What a person types at the workstation: a line of shell with `kubectl`, `kanmon` and `curl`. A context
    /// has the name of its cluster. Returns what the line printed.
    ///
    /// # Errors
    /// When a command of the line fails, with what it said.
    pub fn type_in(&self, line: &str) -> Result<String> {
        self.workstation.run(line)
    }

    /// Applies an app to a cluster.
    ///
    /// # Errors
    /// When the cluster refuses it.
    pub fn deploy(&self, cluster: &str, app: &App) -> Result<()> {
        let file = format!("{}-{cluster}.yaml", app.deployment());
        self.workstation.write(&file, &app.yaml())?;
        self.type_in(&format!("kubectl --context {cluster} apply -f {file}")).map(drop)
    }

    /// Gives a cluster Kanmon's definitions and the namespace of its objects: what an agent's own cluster
    /// needs.
    ///
    /// # Errors
    /// When the cluster refuses them.
    pub fn install(&self, cluster: &str) -> Result<()> {
        self.type_in(&format!(
            "kanmon crds | kubectl --context {cluster} apply -f - && \
             kubectl --context {cluster} wait --for=condition=Established crd --all --timeout=60s"
        ))
        .with_context(|| format!("cannot install Kanmon's definitions in cluster {cluster}"))?;
        // A member has it already: the account that a gateway uses is in it.
        self.kube(cluster)?.apply(NAMESPACE).map(drop)
    }

    /// Registers a cluster as a member of `gateway`'s, as a user does.
    ///
    /// # Errors
    /// When a command fails.
    pub fn register(&self, member: &str) -> Result<()> {
        self.type_in(&format!(
            "kanmon remote-secret create --context {member} --name {member} | \
             kubectl --context {GATEWAY} apply -f -"
        ))
        .with_context(|| format!("cannot register cluster {member}"))
        .map(drop)
    }

    fn prepare_gateway(&self, bare: bool) -> Result<()> {
        if !bare {
            self.install(GATEWAY)?;
        }
        self.register_node()
    }

    /// Does something for each cluster, for all at once.
    fn everywhere(&self, clusters: &[&str], work: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
        thread::scope(|scope| {
            let work = &work;
            let started: Vec<_> = clusters.iter().map(|name| scope.spawn(move || work(name))).collect();
            started
                .into_iter()
                .try_for_each(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    /// The ends of the kubelets' logs: for a failure.
    fn kubelets_say(&self) -> String {
        self.kubelets.iter().map(|kubelet| kubelet.log_tail(5)).collect::<Vec<_>>().join("\n")
    }
}
