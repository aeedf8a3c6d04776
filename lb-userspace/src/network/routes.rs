//! Questions about the node's network that are asked once, and leave nothing behind: no neighbour is resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::links::{Links, egress};
use super::netlink::{Netlink, NetlinkError};
use super::{LocalAddresses, NextHopError};

/// A route through an interface that the packet program is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface that it names: an attached one, or a VLAN device above one.
    pub interface: String,
    /// The route's own MTU, or the interface's; bytes of an IP packet.
    pub mtu: u32,
}

/// By which route a packet to each address would leave, in the network namespace of the calling thread; only routes
/// through `attached` interfaces are good ones.
///
/// # Errors
///
/// The kernel cannot be asked.
pub async fn routes(
    destinations: impl IntoIterator<Item = IpAddr>,
    attached: &[u32],
) -> Result<BTreeMap<IpAddr, Result<Route, NextHopError>>, NetlinkError> {
    let netlink = Netlink::open()?;
    let links: Links = netlink.links().await?.into_iter().map(|link| (link.ifindex, link)).collect();
    let attached: BTreeSet<u32> = attached.iter().copied().collect();
    let mut found = BTreeMap::new();
    for destination in destinations {
        let route = netlink.path(destination).await.and_then(|path| {
            let egress = egress(&links, &attached, path.neighbour.ifindex)?;
            let name = links.get(&path.neighbour.ifindex).map(|link| link.name.clone());
            Ok(Route { interface: name.unwrap_or_default(), mtu: path.mtu.unwrap_or(egress.mtu) })
        });
        found.insert(destination, route);
    }
    Ok(found)
}

/// All addresses of the node, in the network namespace of the calling thread.
///
/// # Errors
///
/// The kernel cannot be asked.
pub async fn addresses() -> Result<LocalAddresses, NetlinkError> {
    Netlink::open()?.addresses().await
}
