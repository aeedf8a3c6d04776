//! What the network is like when a step with a policy begins, and the way there and back: each such step brings its own
//! world and puts back what was before.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context, Result};

use super::{report::StepReport, stage::Stage};
use crate::{
    agent::Agent,
    scene::{Ring, Rings},
    topology::Pod,
};

/// How long a change of manifests, health or shares may take: generous, for a busy machine.
pub(super) const SOON: Duration = Duration::from_secs(20);
/// Pods in each cluster between the steps.
const PODS: u8 = 3;

/// The policy's file in the manifest directory.
const POLICY: &str = "policy.yaml";
/// Part of a policy: nothing is probed.
pub(super) const NO_PROBES: &str = "  healthCheck: {type: None}\n";
/// Part of a policy: probes that notice a failure within three quarters of a second.
pub(super) const FAST_PROBES: &str = "  healthCheck: {type: TCP, interval: 250ms, timeout: 200ms, \
                                      unhealthyThreshold: 2, healthyThreshold: 2}\n";

/// How a step wants the network.
pub(super) struct World<'a> {
    /// Ready pods in hangzhou, where the gateway is too. shanghai has three.
    pub(super) hangzhou: u8,
    /// Whether the policy has pods probed.
    pub(super) probed: bool,
    /// The policy of `demo/httpbin`, without its `targetRefs`: fields of `spec`, two spaces before each.
    pub(super) policy: Option<&'a str>,
}

impl Stage {
    /// Plays a step in its world, and puts back what was before, however it went.
    pub(super) fn scene(
        &mut self,
        world: &World<'_>,
        play: impl FnOnce(&mut Stage) -> Result<StepReport>,
    ) -> Result<StepReport> {
        self.restore().context("the network is not as it was at first")?;
        let played = self.enter(world).and_then(|()| play(self));
        let restored = self.restore();
        let report = played?;
        restored.context("the network cannot be put back")?;
        Ok(report)
    }

    fn enter(&mut self, world: &World<'_>) -> Result<()> {
        self.bed.scale("hangzhou", world.hangzhou)?;
        let pods = self.all_well()?;
        let Some(policy) = world.policy else { return Ok(()) };
        self.screen.say(&format!("  LoadBalancingPolicy demo/httpbin:\n{}", policy.trim_end()));
        // Probed by other rules than before or not at all: either is seen only after the other.
        if world.probed {
            self.rest()?;
            self.apply(policy)?;
            self.agent.wait_for_pods(&pods, SOON)
        } else {
            self.apply(policy)?;
            self.wait_until_unprobed()
        }
    }

    /// Brings everything back to where a demo begins.
    fn restore(&mut self) -> Result<()> {
        self.heal()?;
        self.undrain_all()?;
        for cluster in self.bed.cluster_names() {
            self.bed.scale(&cluster, PODS)?;
        }
        if self.bed.manifests().read(POLICY).is_ok() {
            self.rest()?;
            self.bed.manifests().remove(POLICY)?;
        }
        self.all_well()?;
        let ready = self.bed.ready_pods();
        for pod in self.bed.pods().iter().filter(|pod| !ready.contains(pod)) {
            self.agent.wait_until_unused(pod, SOON)?;
        }
        Ok(())
    }

    /// Puts another pod of the same name and address in the place of each, in a world with probes. Where a server was the
    /// first to close, its pod keeps TIME_WAIT for a minute and answers a SYN from that address and port, be it another
    /// client's, with an ACK (RFC 9293, §3.10.7.4): the client has to send its SYN again, and no backend refused it.
    pub(super) fn renew_pods(&mut self) -> Result<()> {
        let old = self.bed.ready_pods();
        for cluster in self.bed.cluster_names() {
            let old: Vec<&Pod> = old.iter().filter(|pod| pod.cluster == cluster).collect();
            self.bed.scale(&cluster, 0)?;
            old.iter().try_for_each(|pod| self.agent.wait_until_unused(pod, SOON))?;
            self.bed.scale(&cluster, u8::try_from(old.len())?)?;
            self.all_well()?;
        }
        Ok(())
    }

    fn undrain_all(&mut self) -> Result<()> {
        let drained = self.agent.status()?["drained"].take();
        for name in drained.as_array().into_iter().flatten().filter_map(|drain| drain["name"].as_str()) {
            self.agent.undrain(name)?;
        }
        Ok(())
    }

    /// Waits in a world without probes.
    fn rest(&mut self) -> Result<()> {
        self.apply(NO_PROBES)?;
        self.wait_until_unprobed()
    }

    fn apply(&self, policy: &str) -> Result<()> {
        self.bed.manifests().write(POLICY, &document("httpbin", policy))
    }

    fn wait_until_unprobed(&mut self) -> Result<()> {
        let pods = self.bed.ready_pods();
        self.agent.wait_until("using all ready pods without probes", SOON, |agent| {
            let rows = agent.backends()?;
            let rest = |pod: &Pod| {
                let mut rows = rows.iter().filter(|row| row.is(pod)).peekable();
                rows.peek().is_some() && rows.all(|row| row.usable && row.healthy.is_none())
            };
            Ok(pods.iter().all(rest))
        })
    }

    /// The ring of the TCP service, in the packet program's maps, once it is as `wanted`, or as it is when it did not
    /// get so soon.
    pub(super) fn ring_when(&self, wanted: impl Fn(&Ring) -> bool) -> Result<Ring> {
        Rings::open(&self.bed.bpffs())?.when(self.bed.vip_http(), SOON, wanted)
    }

    /// Who has which address.
    pub(super) fn directory(&self) -> Directory {
        let of = |pod: Pod| pod.address.both().map(|address| (address, pod.clone()));
        Directory(self.bed.pods().into_iter().flat_map(of).collect())
    }
}

/// The pods by address.
pub(super) struct Directory(BTreeMap<IpAddr, Pod>);

impl Directory {
    /// The share of some pods in a ring, in percent.
    pub(super) fn percent(&self, ring: &Ring, is: impl Fn(&Pod) -> bool) -> f64 {
        ring.percent(|address| self.0.get(&address).is_some_and(&is))
    }

    /// The share of a cluster in a ring, in percent.
    pub(super) fn of_cluster(&self, ring: &Ring, cluster: &str) -> f64 {
        self.percent(ring, |pod| pod.cluster == cluster)
    }
}

/// Waits until the probes say so of all pods in `pods`.
pub(super) fn wait_for_verdict(agent: &mut Agent, pods: &[Pod], healthy: bool) -> Result<()> {
    let what = if healthy { "finding them healthy" } else { "finding them unhealthy" };
    agent.wait_until(what, SOON, |agent| {
        let rows = agent.backends()?;
        let mut rows = rows.iter().filter(|row| row.protocol == "TCP" && pods.iter().any(|pod| row.is(pod)));
        Ok(rows.all(|row| row.healthy == Some(healthy)))
    })
}

/// A policy of the Service `demo/NAME`, with these fields of `spec`, two spaces before each.
pub(super) fn document(service: &str, fields: &str) -> String {
    format!(
        "apiVersion: kanmon.dev/v1alpha1
kind: LoadBalancingPolicy
metadata: {{namespace: demo, name: {service}}}
spec:
  targetRefs: [{{group: \"\", kind: Service, name: {service}}}]
{fields}"
    )
}
