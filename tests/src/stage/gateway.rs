//! Agents of the stage: each reads its own cluster, at the bed's gateway or at a member cluster's.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::Result;

use super::{GATEWAY, KubeStage};
use crate::{
    agent::Agent,
    netns::Netns,
    topology::{Dual, VIP, program},
};

/// The Node that the bed's gateway is, in its own cluster.
const NODE: &str = "gateway-1";

/// The Node of a second gateway of the same cluster.
const SECOND_NODE: &str = "gateway-2";

/// How long an agent may take to load its program and to read its clusters: generous, for a busy machine.
const START: Duration = Duration::from_secs(60);

/// Where an agent runs, and what it keeps where.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Its own cluster.
    cluster: String,
    ns: Netns,
    /// The Node it is in that cluster.
    node: String,
    vip: Dual,
    log: String,
    pins: PathBuf,
    socket: PathBuf,
    state: PathBuf,
}

impl Gateway {
    /// The Node that it is.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its namespace.
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// VIPs that are routed to it.
    pub fn vip(&self) -> Dual {
        self.vip
    }

    /// Where its agent pins its maps.
    pub fn pins(&self) -> &PathBuf {
        &self.pins
    }

    /// The socket of its agent.
    pub fn socket(&self) -> &PathBuf {
        &self.socket
    }

    /// Where its agent keeps the last good endpoints.
    pub fn state(&self) -> &PathBuf {
        &self.state
    }
}

/// The Node of a gateway. Nothing runs on it: its labels tell where the gateway is.
fn node(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Node
metadata:
  name: {name}
  labels:
    topology.kubernetes.io/region: cn-hangzhou
    topology.kubernetes.io/zone: cn-hangzhou-a
"
    )
}

impl KubeStage {
    /// Registers the Node of the bed's gateway.
    pub(super) fn register_node(&self) -> Result<()> {
        self.kube(GATEWAY)?.apply(&node(NODE)).map(drop)
    }

    /// The bed's gateway, whose cluster is `gateway`.
    pub fn gateway(&self) -> Gateway {
        let bed = self.bed();
        Gateway {
            cluster: GATEWAY.to_owned(),
            ns: bed.gateway().clone(),
            node: NODE.to_owned(),
            vip: VIP,
            log: "kanmon".to_owned(),
            pins: bed.bpffs(),
            socket: bed.socket(),
            state: bed.run().path().join("state"),
        }
    }

    /// Makes a second gateway of the cluster `gateway`, in a member's own place of the network.
    ///
    /// # Errors
    /// When there is no such member or its place is taken.
    pub fn second_gateway(&self, at: &str) -> Result<Gateway> {
        self.kube(GATEWAY)?.apply(&node(SECOND_NODE))?;
        let mut gateway = self.place_at(at)?;
        GATEWAY.clone_into(&mut gateway.cluster);
        SECOND_NODE.clone_into(&mut gateway.node);
        Ok(gateway)
    }

    /// Makes a member cluster's own gateway, on that cluster's first Node, and installs Kanmon's definitions
    /// in the cluster.
    ///
    /// # Errors
    /// When there is no such cluster or it has a gateway already.
    pub fn gateway_of(&self, cluster: &str) -> Result<Gateway> {
        self.install(cluster)?;
        self.place_at(cluster)
    }

    /// A gateway at a member's own place, which takes that member for its own cluster.
    fn place_at(&self, cluster: &str) -> Result<Gateway> {
        let place = self.bed().attach_gateway(cluster)?;
        let run = self.run().path();
        Ok(Gateway {
            cluster: cluster.to_owned(),
            ns: place.ns().clone(),
            node: format!("{cluster}-a"),
            vip: place.vip(10),
            log: format!("kanmon-{cluster}"),
            pins: self.bed().bpffs().join(cluster),
            socket: run.join(format!("kanmon-{cluster}.sock")),
            state: run.join(format!("state-{cluster}")),
        })
    }

    /// Starts an agent and waits until it is ready. `more` are further arguments of `kanmon run`.
    ///
    /// # Errors
    /// When it is not built, ends at once, or is not ready in time; its last words are in the error.
    pub fn start_agent(&self, gateway: &Gateway, more: &[&str]) -> Result<Agent> {
        let command = self.agent_command(gateway, more)?;
        let mut agent = Agent::start(self.run(), &gateway.log, command, gateway.socket.clone())?;
        agent.wait_ready(START)?;
        Ok(agent)
    }

    /// The command that [`KubeStage::start_agent`] starts.
    ///
    /// # Errors
    /// When the agent is not built.
    pub fn agent_command(&self, gateway: &Gateway, more: &[&str]) -> Result<Command> {
        let mut command = gateway.ns.command(program("kanmon")?);
        command.args(["run", "--interface", "eth0"]);
        command.arg("--kubeconfig").arg(self.kube(&gateway.cluster)?.kubeconfig());
        command.args(["--node-name", &gateway.node]);
        command.arg("--pin-dir").arg(&gateway.pins);
        command.arg("--socket").arg(&gateway.socket);
        command.arg("--state-dir").arg(&gateway.state);
        command.args(more);
        Ok(command)
    }
}
