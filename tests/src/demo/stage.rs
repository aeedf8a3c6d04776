//! What the steps play on: the network, the agent, and the way back to where everything is well.

use std::{fmt::Write, time::Duration};

use anyhow::Result;

use super::screen::Screen;
use crate::{
    agent::Agent,
    topology::{Bed, HTTP_PORT, Pod, VIP},
};

/// How long everything may take to be well again after a step.
const HEALING: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) screen: Screen,
    /// The cluster that the last step left silent.
    silent: Option<&'static str>,
    pub(super) agent: Agent,
    pub(super) bed: Bed,
}

impl Stage {
    pub(super) fn new(bed: Bed, agent: Agent, screen: Screen) -> Stage {
        Stage { screen, silent: None, agent, bed }
    }

    /// Makes sure that every ready pod takes new flows, healing what the step before left broken.
    pub(super) fn all_well(&mut self) -> Result<Vec<Pod>> {
        self.heal()?;
        let pods = self.bed.ready_pods();
        self.agent.wait_for_pods(&pods, HEALING)?;
        Ok(pods)
    }

    /// Brings back the cluster that the step before left silent.
    pub(super) fn heal(&mut self) -> Result<()> {
        match self.silent {
            Some(cluster) => self.mend(cluster),
            None => Ok(()),
        }
    }

    /// Makes sure that a cluster is silent and the agent knows it.
    pub(super) fn silence(&mut self, cluster: &'static str) -> Result<()> {
        if self.silent != Some(cluster) {
            self.all_well()?;
            self.bed.silence_cluster(cluster)?;
            self.silent = Some(cluster);
        }
        for pod in self.bed.ready_pods().iter().filter(|pod| pod.cluster == cluster) {
            self.agent.wait_until_unused(pod, HEALING)?;
        }
        Ok(())
    }

    /// Takes a cluster's uplink down at once; the next step finds it so, or heals it.
    pub(super) fn cut(&mut self, cluster: &'static str) -> Result<()> {
        self.silent = Some(cluster);
        self.bed.silence_cluster(cluster)
    }

    /// Brings a cluster's uplink back.
    pub(super) fn mend(&mut self, cluster: &'static str) -> Result<()> {
        self.silent = None;
        self.bed.heal_cluster(cluster)
    }

    /// What a person can type to look around while everything runs.
    pub(super) fn commands(&self) -> String {
        let kanmon = self.agent.program().display();
        let socket = self.bed.socket();
        let client = format!("nsenter --net={}", self.bed.client_ns().path().display());
        let gateway = format!("nsenter --net={}", self.bed.gateway().path().display());
        let mut text = String::from("\nEverything is left running. To look around, as root:\n\n");
        let mut command = |what: &str| {
            writeln!(text, "  {what}").expect("a String takes what is written to it");
        };
        for view in ["status", "services", "backends", "flows"] {
            command(&format!("{kanmon} {view} --socket {}", socket.display()));
        }
        command(&format!("{client} curl http://{}:{HTTP_PORT}/", VIP.v4));
        command(&format!("{client} curl 'http://[{}]:{HTTP_PORT}/'", VIP.v6));
        command(&format!("{gateway} bpftool net"));
        for map in super::inspect::service_maps(&self.bed.bpffs()) {
            command(&format!("bpftool map dump pinned {}", map.display()));
        }
        command(&format!("ls {}", self.bed.manifests().dir().display()));
        command(&format!("less {}", self.bed.log("kanmon").display()));
        text.push_str("\nCtrl-C ends it and cleans up.\n");
        text
    }
}
