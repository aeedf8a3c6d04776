//! A member cluster's own gateway: where an agent runs that takes that cluster for its own.

use anyhow::Result;

use super::{
    Dual, configure,
    plan::{ClusterPlan, HOST, ROUTER, Segment, everywhere, mac},
    set_routes,
};
use crate::netns::{Netns, RunDir, veth};

/// The place of a gateway in the network: a namespace with the link `eth0`, and VIPs that are routed to it.
#[derive(Debug)]
pub struct Gateway {
    ns: Netns,
    vips: Segment,
}

impl Gateway {
    pub(super) fn attach(run: &RunDir, cen: &Netns, cluster: ClusterPlan) -> Result<Gateway> {
        let ns = Netns::create(run, &format!("gateway-{}", cluster.name))?;
        // A link's name has 15 letters at most.
        let name = format!("gw-{}", cluster.name);
        let (near, far) = (mac(6, cluster.number, 0, 0), mac(6, cluster.number, 0, 1));
        let (host, router) = veth((&ns, "eth0", far), (cen, &name, near))?;
        let segment = Segment::gateway_of(cluster.number);
        configure(&host, segment.interface(HOST))?;
        configure(&router, segment.interface(ROUTER))?;
        router.attach_xdp_pass()?;
        set_routes(&ns, everywhere(), segment.host(ROUTER))?;
        let vips = Segment::vips_of(cluster.number);
        set_routes(cen, vips.nets(), segment.host(HOST))?;
        Ok(Gateway { ns, vips })
    }

    /// Its namespace.
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// The `host`th of its VIPs, below 100.
    pub fn vip(&self, host: u8) -> Dual {
        self.vips.host(host)
    }
}
