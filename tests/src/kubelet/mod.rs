//! A small kubelet of the test bed, so that Deployments, `kubectl scale`, rolling updates and EndpointSlices
//! are the work of Kubernetes' real controllers and scheduler.
//!
//! # What it is
//! One process a cluster, in that cluster's node namespace, as root. It
//! - registers one or several Nodes with region, zone and addresses, and keeps their leases fresh. All the
//!   Nodes of one process are one network namespace with the same addresses: they differ in name and place
//!   only, which is what the scheduler and topology see;
//! - takes the pods that are bound to its Nodes and gives each a network namespace with an IPv4 and an IPv6
//!   address of the cluster's pod prefixes, behind the node's namespace, on links without offloads;
//! - runs containers as processes in that namespace: several a pod, with arguments, environment, `$(NAME)`
//!   and the downward API; restarts them by `restartPolicy` (0.5 s to 10 s apart, instead of 10 s to 5 min);
//! - checks startup, liveness and readiness by HTTP, TCP (both from the node) and exec, and writes phase,
//!   addresses, conditions and container statuses;
//! - on deletion sends SIGTERM, after the grace period SIGKILL, removes the network and deletes the pod.
//!
//! # What it is not
//! A container here is a process of the machine: no file system, user, pid or cgroup of its own. An image is a
//! name for a program (`kanmon.dev/echo`, `kanmon.dev/sleep`, `kanmon.dev/sh`, with any tag), another one is
//! `ErrImagePull`. Resources are neither measured nor limited, Node capacity is made up, security contexts
//! are ignored. There is no DNS, no service environment, no Events, no `kubectl logs` or `exec` (logs are in
//! the run's `logs/pod-<cluster>-<namespace>-<pod>-<container>.log`), and an image that is changed in a pod
//! that runs changes nothing. The service account's token volume is not there. What a pod would otherwise
//! silently miss (other volumes, init containers, `envFrom`, lifecycle hooks, hostNetwork, gRPC and HTTPS
//! probes) is refused as `CreateContainerConfigError` with a message that names it.
//!
//! # When it ends
//! Killed, it leaves its pods running, as a real one does. The next kubelet of that cluster does not adopt
//! them: it kills what it finds, starts the pods again with the addresses they had, and counts a restart.
//! All of it ends with the run it belongs to ([`crate::netns::RunDir`]).
//!
//! # Rights
//! nodes: get, create, patch; nodes/status: patch; leases: get, create, patch; pods: list, watch, delete;
//! pods/status: patch. It is not confined to pods of its own nodes, so the API server's Node authorizer does
//! not fit it.

mod addresses;
mod check;
mod image;
mod launch;
mod machine;
mod node;
mod pods;
mod report;
mod sandbox;
mod start;
mod worker;

use std::{
    fs,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Parser;
use futures::future::join_all;
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use self::{addresses::Pool, worker::Kubelet};
use crate::netns::{Netns, RunDir};

pub use node::NodePlace;
pub use start::{KubeletOptions, heal_pod, pod_namespace, silence_pod, start};

/// Runs the pods of a cluster's nodes as processes in network namespaces. Part of the test bed.
#[derive(Debug, Parser)]
pub struct Args {
    /// Whom it is to the API server.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The cluster's name: part of the names of namespaces and logs.
    #[arg(long)]
    cluster: String,
    /// The directory of the bed's run.
    #[arg(long)]
    run_dir: PathBuf,
    /// A node to serve: NAME=REGION/ZONE. Several may be given.
    #[arg(long = "node", required = true)]
    nodes: Vec<NodePlace>,
    /// An address of the namespace this runs in, as the nodes' InternalIP. Several may be given.
    #[arg(long = "node-ip", required = true)]
    node_ips: Vec<IpAddr>,
    /// Where the pods' addresses come from: one prefix of each family.
    #[arg(long = "pod-cidr", required = true)]
    pod_cidrs: Vec<IpNet>,
    /// A variable for every container: NAME=VALUE. Several may be given.
    #[arg(long = "env", value_parser = variable)]
    env: Vec<(String, String)>,
}

/// Serves the nodes until the process is ended.
///
/// # Errors
/// When the kubeconfig cannot be read or there is no such run; an API server that is away is waited for.
pub fn run(args: Args) -> Result<()> {
    let run = RunDir::join(&args.run_dir)?;
    let node = Netns::current()?;
    let addresses = Mutex::new(Pool::new(&args.pod_cidrs)?);
    end_what_a_former_kubelet_left(&run, &args.cluster)?;
    let kubelet = Arc::new(Kubelet {
        cluster: args.cluster,
        run,
        node,
        node_ips: args.node_ips,
        env: args.env,
        addresses,
        started: Instant::now(),
        epoch: Timestamp::now(),
    });
    // One thread: a process that exits is noticed by its pod's task, and checks die with the thread that
    // started them only when the kubelet does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(kubelet, args.kubeconfig, args.nodes))
}

async fn serve(kubelet: Arc<Kubelet>, kubeconfig: PathBuf, nodes: Vec<NodePlace>) -> Result<()> {
    let client = client(&kubeconfig)
        .await
        .with_context(|| format!("cannot make a client of {}", kubeconfig.display()))?;
    let tasks = nodes.into_iter().map(|place| {
        let pods = pods::serve(kubelet.clone(), client.clone(), place.name.clone());
        futures::future::join(node::keep(client.clone(), place, kubelet.node_ips.clone()), pods)
    });
    join_all(tasks).await;
    Ok(())
}

async fn client(kubeconfig: &std::path::Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Kills the processes and removes the namespaces and links of pods of this cluster.
fn end_what_a_former_kubelet_left(run: &RunDir, cluster: &str) -> Result<()> {
    let prefix = worker::namespace_name(cluster, "");
    for entry in fs::read_dir(run.path().join("ns"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) {
            let ns = Netns::open(run, &name)?;
            run.kill_in(&ns)?;
            sandbox::remove(ns);
        }
    }
    Ok(())
}

fn variable(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').with_context(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}
