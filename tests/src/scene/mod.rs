//! What tests of the agent on real clusters share: an app in two members under load, and marks, which are changes
//! that need no kubelet and so can be made while a cluster is cut off.
//!
//! ```no_run
//! use tests::scene::{Scene, Traffic};
//!
//! # fn main() -> anyhow::Result<()> {
//! let scene = Scene::set()?;
//! let mut agent = scene.start_agent()?;
//! let traffic = Traffic::begin(&scene)?;
//! scene.kube("hangzhou")?.kill_api()?;
//! scene.mark("shanghai", 1)?;
//! scene.wait_for_mark(&mut agent, "shanghai", 1)?;
//! traffic.end_unharmed("the_scenario")?;
//! # Ok(())
//! # }
//! ```

mod by_hand;
pub(crate) mod maps;
mod ring;
mod traffic;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context, Result};

use crate::{
    agent::{Agent, Connection},
    kube::KubeCluster,
    stage::{App, AppPod, KubeStage, StageOptions, wait_until_exactly},
    topology::{Dual, VIP},
};

pub use by_hand::{Endpoint, service, slice};
pub use maps::{Maps, Socket};
pub use ring::{Ring, Rings};
pub use traffic::Traffic;

/// How long controllers and agents may take: generous, for a machine that is busy compiling.
pub const SOON: Duration = Duration::from_secs(90);
/// The members.
pub const MEMBERS: [&str; 2] = ["hangzhou", "shanghai"];
/// Arguments of an agent whose tables are as small as the tests' traffic.
pub const SMALL: [&str; 2] = ["--flows=65536", "--flows-v6=32768"];

/// Pods of the app in each member.
const PODS: u8 = 2;
/// The Service that marks are endpoints of.
const MARKER: &str = "marker";
const MARKER_VIP: Dual = Dual {
    v4: std::net::Ipv4Addr::new(192, 168, 100, 20),
    v6: std::net::Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 0x20),
};
/// The port of the mark 0.
const FIRST_MARK: u16 = 20_000;

/// A stage with `demo/httpbin` in two members, merged at the VIP.
#[derive(Debug)]
pub struct Scene {
    /// The app.
    pub httpbin: App,
    /// Its pods, hangzhou's first.
    pub pods: Vec<AppPod>,
    stage: KubeStage,
}

impl Scene {
    /// Sets the stage and waits until the app's pods are ready. No agent runs yet.
    ///
    /// # Errors
    /// When a program is missing, or a cluster does not get ready.
    pub fn set() -> Result<Scene> {
        let stage = KubeStage::start(StageOptions::default())?;
        let httpbin = App::new("httpbin", PODS).at(VIP);
        for member in MEMBERS {
            stage.deploy(member, &httpbin)?;
            stage.kube(member)?.apply(&service(MARKER, MARKER_VIP))?;
        }
        let mut pods = Vec::new();
        for member in MEMBERS {
            pods.extend(stage.wait_for_pods(member, &httpbin, PODS.into())?);
        }
        Ok(Scene { httpbin, pods, stage })
    }

    /// The stage.
    pub fn stage(&self) -> &KubeStage {
        &self.stage
    }

    /// A cluster's control plane, with its faults.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn kube(&self, cluster: &str) -> Result<&KubeCluster> {
        self.stage.kube(cluster)
    }

    /// Starts the gateway's agent and waits until it uses all pods.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn start_agent(&self) -> Result<Agent> {
        let mut agent = self.stage.start_agent(&self.stage.gateway(), &SMALL)?;
        self.wait_for_all_pods(&mut agent)?;
        Ok(agent)
    }

    /// Waits until the agent sends new flows to all pods of the app: none is missing, and all are healthy.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_for_all_pods(&self, agent: &mut Agent) -> Result<()> {
        wait_until_exactly(agent, &self.httpbin, &self.pods)
    }

    /// The pods of a member.
    pub fn pods_of(&self, member: &str) -> Vec<AppPod> {
        self.pods.iter().filter(|pod| pod.cluster == member).cloned().collect()
    }

    /// Makes the `number`th change in a member: an EndpointSlice by hand. Nothing listens there; it is enough
    /// that the agent hears of it.
    ///
    /// # Errors
    /// When the cluster refuses it.
    pub fn mark(&self, member: &str, number: u16) -> Result<()> {
        let address = self.marked(member)?;
        let name = format!("mark-{number}");
        let slice = slice(&name, MARKER, FIRST_MARK + number, &[Endpoint::ready(address)]);
        self.kube(member)?.apply(&slice).map(drop)
    }

    /// Waits until the agent knows a mark.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_for_mark(&self, agent: &mut Agent, member: &str, number: u16) -> Result<()> {
        let address = self.marked(member)?;
        agent.wait_until(&format!("aware of mark {number} in {member}"), SOON, |agent| {
            let is_mark = |row: &crate::agent::Backend| {
                row.cluster == member && (row.address, row.port) == (address, FIRST_MARK + number)
            };
            Ok(agent.backends()?.iter().any(is_mark))
        })
    }

    fn marked(&self, member: &str) -> Result<IpAddr> {
        let pod = self.pods.iter().find(|pod| pod.cluster == member);
        let pod = pod.with_context(|| format!("{member} has no pods"))?;
        pod.addresses.first().copied().context("a pod has an address")
    }
}

/// How the API server of a member answers, as `kanmon status` shows it.
///
/// # Errors
/// When the agent does not answer, or knows no such member.
pub fn connection(agent: &Agent, member: &str) -> Result<Connection> {
    let found = agent.members()?.into_iter().find(|row| row.name == member);
    let row = found.with_context(|| format!("the agent knows no member {member}"))?;
    row.connection.with_context(|| format!("{member} has no connection"))
}

/// Waits until a member is connected and all of it was read.
///
/// # Errors
/// When it is not in time.
pub fn wait_for_sync(agent: &mut Agent, member: &str) -> Result<()> {
    agent.wait_until(&format!("in step with {member}"), SOON, |agent| {
        let found = connection(agent, member)?;
        Ok(found.connected == Some(true) && found.synced)
    })
}

/// Addresses that take new flows for a service, `demo/httpbin`, at all its VIPs.
///
/// # Errors
/// When the agent does not answer.
pub fn used(agent: &Agent, service: &str) -> Result<BTreeSet<IpAddr>> {
    let rows = agent.backends()?.into_iter();
    Ok(rows.filter(|row| row.service == service && row.usable).map(|row| row.address).collect())
}
