//! A member cluster: a node that routes to its pods, and the pods, each in a namespace of its own.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use nix::sys::signal::Signal;

use super::{
    Dual, configure, make_router,
    manifests::{Condition, Listed},
    plan::{ClusterPlan, HOST, POD_PORT, Pod, ROUTER, Segment, everywhere, mac},
    program, set_routes,
};
use crate::netns::{Link, Netns, Process, RunDir, veth};

/// How long a server may take to listen: generous, for a machine that is busy compiling.
const SERVER_START: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Cluster {
    plan: ClusterPlan,
    node: Netns,
    /// The node's end of its uplink.
    uplink: Link,
    /// The router's end of it.
    downlink: Link,
    pods: Vec<PodState>,
}

#[derive(Debug)]
struct PodState {
    pod: Pod,
    link: Link,
    gateway: Dual,
    condition: Condition,
    server: Option<Process>,
    /// The server that was asked to end, until it is known to have ended.
    ending: Option<Process>,
}

impl Cluster {
    /// Makes a cluster without pods, and joins it to `cen`.
    pub(super) fn join(run: &RunDir, cen: &Netns, plan: ClusterPlan) -> Result<Cluster> {
        let node = Netns::create(run, plan.name)?;
        make_router(&node)?;
        let (near, far) = (mac(3, plan.number, 0, 0), mac(3, plan.number, 0, 1));
        let (uplink, downlink) = veth((&node, "eth0", far), (cen, plan.name, near))?;
        let segment = Segment::nodes(plan.number);
        configure(&downlink, segment.interface(ROUTER))?;
        configure(&uplink, segment.interface(HOST))?;
        for address in segment.host(HOST).both() {
            downlink.set_neighbour(address, far)?;
        }
        set_routes(cen, plan.pods(), segment.host(HOST))?;
        let cluster = Cluster { plan, node, uplink, downlink, pods: Vec::new() };
        cluster.set_node_routes()?;
        Ok(cluster)
    }

    /// Everything is behind the router; so is the control plane, although its addresses read like a node's.
    fn set_node_routes(&self) -> Result<()> {
        let router = Segment::nodes(self.plan.number).host(ROUTER);
        set_routes(&self.node, everywhere(), router)?;
        set_routes(&self.node, self.plan.control_plane().nets(), router)
    }

    pub(super) fn name(&self) -> &str {
        self.plan.name
    }

    pub(super) fn plan(&self) -> ClusterPlan {
        self.plan
    }

    pub(super) fn node(&self) -> &Netns {
        &self.node
    }

    /// The node's addresses.
    pub(super) fn address(&self) -> Dual {
        Segment::nodes(self.plan.number).host(HOST)
    }

    /// The prefixes of its pods.
    pub(super) fn pod_prefixes(&self) -> [IpNet; 2] {
        self.plan.pods()
    }

    pub(super) fn pods(&self) -> Vec<Pod> {
        self.pods.iter().map(|state| state.pod.clone()).collect()
    }

    pub(super) fn pod_ns(&self, pod: &str) -> Result<&Netns> {
        Ok(self.pod(pod)?.link.ns())
    }

    /// Every pod as its EndpointSlices should show it.
    pub(super) fn listed(&self) -> Vec<Listed> {
        let listed = |state: &PodState| Listed { pod: state.pod.clone(), condition: state.condition };
        self.pods.iter().map(listed).collect()
    }

    /// Makes the next pod and starts its server.
    pub(super) fn add_pod(&mut self, run: &RunDir) -> Result<Pod> {
        let number = u8::try_from(self.pods.len() + 1)?;
        let pod = Pod::planned(self.plan, number);
        let gateway = Segment::pod(self.plan.number, number).host(ROUTER);
        let link = self.plug_in(run, &pod, number)?;
        let name = pod.name.clone();
        self.pods.push(PodState {
            pod: pod.clone(),
            link,
            gateway,
            condition: Condition::Ready,
            server: None,
            ending: None,
        });
        self.start_server(run, &name)?;
        Ok(pod)
    }

    /// Makes a pod's namespace and joins it to the node.
    fn plug_in(&self, run: &RunDir, pod: &Pod, number: u8) -> Result<Link> {
        let ns = Netns::create(run, &pod.name)?;
        let (near, far) = (mac(4, self.plan.number, number, 0), mac(4, self.plan.number, number, 1));
        let (link, node_link) = veth((&ns, "eth0", far), (&self.node, &format!("pod{number}"), near))?;
        let segment = Segment::pod(self.plan.number, number);
        configure(&node_link, segment.interface(ROUTER))?;
        configure(&link, segment.interface(HOST))?;
        for address in pod.address.both() {
            node_link.set_neighbour(address, far)?;
        }
        set_routes(&ns, everywhere(), segment.host(ROUTER))?;
        Ok(link)
    }

    /// Makes another pod of the same name and address in the place of one: what the kernel of the old one remembers of
    /// connections, its TIME_WAIT, goes with it.
    fn renew(&mut self, run: &RunDir, index: usize) -> Result<()> {
        let state = &mut self.pods[index];
        (state.server, state.ending) = (None, None);
        state.link.clone().remove()?;
        state.link.ns().clone().remove()?;
        let pod = state.pod.clone();
        self.pods[index].link = self.plug_in(run, &pod, u8::try_from(index + 1)?)?;
        self.start_server(run, &pod.name)
    }

    pub(super) fn set_condition(&mut self, pod: &str, condition: Condition) -> Result<()> {
        self.pod_mut(pod)?.condition = condition;
        Ok(())
    }

    pub(super) fn start_server(&mut self, run: &RunDir, pod: &str) -> Result<()> {
        let state = self.pod_mut(pod)?;
        if state.server.is_some() {
            bail!("the server of pod {pod} runs already");
        }
        // One that still waits for its clients would keep the port of UDP.
        state.ending = None;
        let mut command = state.link.ns().command(program("kanmon-echo")?);
        command.args(["--pod", pod, "--cluster", &state.pod.cluster, "--port", &POD_PORT.to_string()]);
        state.server = Some(run.spawn(pod, command)?);
        Ok(())
    }

    pub(super) fn wait_for_servers(&self) -> Result<()> {
        for state in self.pods.iter().filter(|state| state.server.is_some()) {
            state
                .link
                .ns()
                .wait_for_tcp(([127, 0, 0, 1], POD_PORT).into(), SERVER_START)
                .with_context(|| format!("the server of pod {} did not start", state.pod.name))?;
        }
        Ok(())
    }

    pub(super) fn kill_server(&mut self, pod: &str) -> Result<()> {
        let state = self.pod_mut(pod)?;
        let server = state.server.take().or_else(|| state.ending.take());
        server.with_context(|| format!("the server of pod {pod} is dead already"))?.kill()
    }

    /// Asks it to end: it takes new connections for a while yet, then none, and ends with those that it has.
    pub(super) fn end_server(&mut self, pod: &str) -> Result<()> {
        let state = self.pod_mut(pod)?;
        let server =
            state.server.take().with_context(|| format!("the server of pod {pod} is dead already"))?;
        server.signal(Signal::SIGTERM)?;
        state.ending = Some(server);
        Ok(())
    }

    pub(super) fn has_server(&mut self, pod: &str) -> Result<bool> {
        let state = self.pod_mut(pod)?;
        if let Some(server) = &mut state.ending
            && server.try_wait()?.is_some()
        {
            state.ending = None;
        }
        Ok(state.server.is_some() || state.ending.is_some())
    }

    /// Makes the first `count` pods well, and the others gone. One that was gone comes back as a new one.
    pub(super) fn scale(&mut self, run: &RunDir, count: u8) -> Result<()> {
        while self.pods.len() < usize::from(count) {
            self.add_pod(run)?;
        }
        for (index, pod) in self.pods().into_iter().enumerate() {
            let (name, state) = (&pod.name, &self.pods[index]);
            if index >= usize::from(count) {
                self.pods[index].condition = Condition::Gone;
                continue;
            }
            if state.condition == Condition::Gone {
                self.renew(run, index)?;
            } else if state.server.is_none() {
                self.start_server(run, name)?;
            }
            self.heal_pod(name)?;
            self.pods[index].condition = Condition::Ready;
        }
        self.wait_for_servers()
    }

    pub(super) fn silence_pod(&self, pod: &str) -> Result<()> {
        self.pod(pod)?.link.down()
    }

    /// The kernel dropped the pod's routes with its link: set them again.
    pub(super) fn heal_pod(&self, pod: &str) -> Result<()> {
        let state = self.pod(pod)?;
        state.link.up()?;
        set_routes(state.link.ns(), everywhere(), state.gateway)
    }

    pub(super) fn silence(&self) -> Result<()> {
        self.uplink.down()
    }

    /// The kernel dropped the node's routes with its link: set them again.
    pub(super) fn heal(&self) -> Result<()> {
        self.uplink.up()?;
        self.set_node_routes()
    }

    pub(super) fn set_mtu(&self, mtu: u32) -> Result<()> {
        self.uplink.set_mtu(mtu)?;
        self.downlink.set_mtu(mtu)
    }

    fn pod(&self, name: &str) -> Result<&PodState> {
        let found = self.pods.iter().find(|state| state.pod.name == name);
        found.with_context(|| format!("cluster {} has no pod {name}", self.plan.name))
    }

    fn pod_mut(&mut self, name: &str) -> Result<&mut PodState> {
        let cluster = self.plan.name;
        let found = self.pods.iter_mut().find(|state| state.pod.name == name);
        found.with_context(|| format!("cluster {cluster} has no pod {name}"))
    }
}
