//! Where a cluster's control plane is: a namespace and its uplink, apart from nodes and pods, so that it can be
//! cut off while they go on.

use anyhow::Result;
use ipnet::IpNet;

use super::{
    Dual, configure,
    plan::{ControlPlanePlan, HOST, ROUTER, Segment, everywhere, mac},
    set_routes,
};
use crate::netns::{Link, Netns, RunDir, veth};

/// The place of a control plane in the network.
#[derive(Debug)]
pub struct ControlPlane {
    ns: Netns,
    /// Its own end of the link to `cen`.
    uplink: Link,
    segment: Segment,
    services: [IpNet; 2],
}

impl ControlPlane {
    pub(super) fn attach(run: &RunDir, cen: &Netns, plan: ControlPlanePlan) -> Result<ControlPlane> {
        let name = format!("{}-cp", plan.cluster);
        let ns = Netns::create(run, &name)?;
        let (near, far) = (mac(5, plan.number, 0, 0), mac(5, plan.number, 0, 1));
        let (uplink, downlink) = veth((&ns, "eth0", far), (cen, &name, near))?;
        let segment = plan.segment;
        configure(&downlink, segment.interface(ROUTER))?;
        configure(&uplink, segment.interface(HOST))?;
        for address in segment.host(HOST).both() {
            downlink.set_neighbour(address, far)?;
        }
        let control_plane = ControlPlane { ns, uplink, segment, services: plan.services() };
        control_plane.set_routes()?;
        Ok(control_plane)
    }

    /// Its namespace: what runs on loopback in here stays reachable in here while it is cut off.
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// Its addresses, as the rest of the bed sees it.
    pub fn address(&self) -> Dual {
        self.segment.host(HOST)
    }

    /// The prefixes its cluster's Services get their addresses from, IPv4 first.
    pub fn services(&self) -> [IpNet; 2] {
        self.services
    }

    /// Cuts it off: nothing outside gets an answer from it any more, not even an error.
    ///
    /// # Errors
    /// When its link is gone.
    pub fn silence(&self) -> Result<()> {
        self.uplink.down()
    }

    /// Undoes [`ControlPlane::silence`].
    ///
    /// # Errors
    /// When its link is gone.
    pub fn heal(&self) -> Result<()> {
        self.uplink.up()?;
        // The kernel dropped them with the link.
        self.set_routes()
    }

    fn set_routes(&self) -> Result<()> {
        set_routes(&self.ns, everywhere(), self.segment.host(ROUTER))
    }
}
