//! A pod's network: a namespace of its own, joined to the node by a link, routed by single addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::{
    netns::{Link, Mac, Netns, RunDir, veth},
    topology::Dual,
};
/// The pods' next hop, which is the node's end of the pod's own link; nobody has this address, the pod knows
/// the hardware address behind it. No prefix is shared, so pods of any addresses can be on one node.
const NEXT_HOP: Dual =
    Dual { v4: Ipv4Addr::new(169, 254, 1, 1), v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1) };

/// A pod's network.
#[derive(Debug)]
pub(super) struct Sandbox {
    ns: Netns,
}

impl Sandbox {
    /// Makes a namespace `name` with `addresses`, which the node reaches and which reaches everything
    /// through the node.
    ///
    /// # Errors
    /// When the run is over or the name is taken.
    pub(super) fn create(run: &RunDir, node: &Netns, name: &str, addresses: Dual) -> Result<Sandbox> {
        // Only a node that has pods needs to forward.
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            node.sysctl(key, "1")?;
        }
        let ns = Netns::create(run, name)?;
        let sandbox = Sandbox { ns };
        match sandbox.join(node, addresses) {
            Ok(()) => Ok(sandbox),
            Err(e) => {
                sandbox.remove();
                Err(e).with_context(|| format!("cannot join {name} to its node"))
            }
        }
    }

    /// The namespace.
    pub(super) fn ns(&self) -> &Netns {
        &self.ns
    }

    /// Removes it, as far as it is there.
    pub(super) fn remove(self) {
        remove(self.ns);
    }

    fn join(&self, node: &Netns, addresses: Dual) -> Result<()> {
        let (near, far) = (mac(0x4c, addresses.v4), mac(0x4d, addresses.v4));
        let (pod, node) = veth((&self.ns, "eth0", far), (node, &link_name(addresses.v4), near))?;
        for address in addresses.both() {
            pod.add_address(IpNet::from(address))?;
        }
        pod.up()?;
        node.up()?;
        set_way_out(&pod, addresses)?;
        for address in addresses.both() {
            node.set_route(IpNet::from(address), None)?;
            node.set_neighbour(address, far)?;
        }
        Ok(())
    }
}

/// Takes a pod's link down: it answers nobody, not even with an error.
///
/// # Errors
/// When the pod has no link any more.
pub(super) fn silence(ns: &Netns) -> Result<()> {
    Link::find(ns, "eth0")?.down()
}

/// Undoes [`silence`]: what the kernel dropped with the link is set again.
///
/// # Errors
/// When the pod has no link any more.
pub(super) fn heal(ns: &Netns, addresses: Dual) -> Result<()> {
    let link = Link::find(ns, "eth0")?;
    link.up()?;
    set_way_out(&link, addresses)
}

/// Everything is behind the pod's node.
fn set_way_out(pod: &Link, addresses: Dual) -> Result<()> {
    for next_hop in NEXT_HOP.both() {
        pod.set_neighbour(next_hop, mac(0x4c, addresses.v4))?;
        pod.set_route(everywhere(next_hop)?, Some(next_hop))?;
    }
    Ok(())
}

/// Removes a pod's namespace and its link, whoever made them. The link goes first: a namespace ends some time
/// after its removal, and the next pod may have the same address at once.
pub(super) fn remove(ns: Netns) {
    // A namespace that was half made has no link yet.
    let _ = Link::find(&ns, "eth0").and_then(Link::remove);
    if let Err(e) = ns.remove() {
        eprintln!("kanmon-kubelet: {e:#}");
    }
}

/// The node's end of a pod's link: one a pod address, within the 15 characters of a link's name.
fn link_name(address: Ipv4Addr) -> String {
    format!("pod-{:08x}", address.to_bits())
}

fn mac(side: u8, address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([0x02, side, a, b, c, d])
}

fn everywhere(family: IpAddr) -> Result<IpNet> {
    let nothing: IpAddr = match family {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    Ok(IpNet::new(nothing, 0)?)
}
