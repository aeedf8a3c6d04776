//! A route, an interface and a neighbour put together into a next hop. Pure: the kernel's answers come in as
//! messages.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteType, RouteVia,
};

use super::links::{Links, egress};
use super::{NextHop, NextHopError};

/// Marks the neighbours that Kanmon asked for, so that a later run finds and releases them.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(107);

/// The neighbour that takes the frames: an interface and a gateway's or the destination's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NeighbourKey {
    pub(super) ifindex: u32,
    pub(super) address: IpAddr,
}

/// What a route says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) neighbour: NeighbourKey,
    /// MTU of the route, if it has one.
    pub(super) mtu: Option<u32>,
}

/// A neighbour's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) mac: Option<[u8; 6]>,
    pub(super) state: NeighbourState,
    /// The kernel keeps it fresh.
    pub(super) managed: bool,
    /// Kanmon, this run or an earlier one, asked for it.
    pub(super) ours: bool,
}

/// What is known of the network, apart from routes.
#[derive(Default)]
pub(super) struct Surroundings {
    pub(super) links: Links,
    pub(super) attached: BTreeSet<u32>,
    pub(super) neighbours: HashMap<NeighbourKey, Neighbour>,
    /// Neighbours that the kernel refused to resolve, and its words.
    pub(super) refused: HashMap<NeighbourKey, String>,
}

/// Reads the kernel's answer to "by which route would a packet to `destination` go?".
pub(super) fn path(destination: IpAddr, message: &RouteMessage) -> Result<Path, NextHopError> {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(NextHopError::Local),
        other => return Err(NextHopError::RouteType(format!("{other:?}").to_lowercase())),
    }
    let mut ifindex = None;
    let mut address = destination;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway))
            | RouteAttribute::Via(RouteVia::Inet(gateway)) => address = IpAddr::V4(*gateway),
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway))
            | RouteAttribute::Via(RouteVia::Inet6(gateway)) => address = IpAddr::V6(*gateway),
            RouteAttribute::EncapType(kind) => {
                return Err(NextHopError::RouteType(format!("encapsulating ({kind:?})")));
            }
            _ => {}
        }
    }
    let ifindex = ifindex.ok_or_else(|| NextHopError::NoRoute("a route without an interface".to_owned()))?;
    Ok(Path { neighbour: NeighbourKey { ifindex, address }, mtu: mtu(message) })
}

/// The MTU that an answer names.
pub(super) fn mtu(message: &RouteMessage) -> Option<u32> {
    let metrics = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    })?;
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// Whether what an answer says is true for a time only: its MTU may be one that the kernel has learned of the path.
pub(super) fn expires(message: &RouteMessage) -> bool {
    message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, RouteAttribute::CacheInfo(info) if info.expires != 0))
}

/// Reads what the kernel says of a neighbour; `None` for what is no IP neighbour of an interface.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    let header = &message.header;
    if !matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6)
        || header.flags.contains(NeighbourFlags::Proxy)
    {
        return None;
    }
    let mut address = None;
    let mut neighbour = Neighbour { mac: None, state: header.state, managed: false, ours: false };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(mac) => neighbour.mac = mac.as_slice().try_into().ok(),
            NeighbourAttribute::ExtFlags(flags) => {
                neighbour.managed = flags.contains(NeighbourExtFlags::Managed);
            }
            NeighbourAttribute::Protocol(protocol) => neighbour.ours = *protocol == PROTOCOL,
            _ => {}
        }
    }
    address.map(|address| (NeighbourKey { ifindex: header.ifindex, address }, neighbour))
}

impl Neighbour {
    /// The MAC address, while the kernel itself would use it.
    pub(super) fn usable_mac(&self) -> Option<[u8; 6]> {
        let usable = matches!(
            self.state,
            NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Permanent
                | NeighbourState::Noarp
        );
        self.mac.filter(|_| usable)
    }

    /// An administrator fixed it; asking for it would undo that.
    pub(super) fn is_fixed(&self) -> bool {
        matches!(self.state, NeighbourState::Permanent | NeighbourState::Noarp)
    }
}

/// Puts a path, its interface and its neighbour together.
pub(super) fn assemble(path: &Path, surroundings: &Surroundings) -> Result<NextHop, NextHopError> {
    let NeighbourKey { ifindex, address } = path.neighbour;
    let egress = egress(&surroundings.links, &surroundings.attached, ifindex)?;
    let interface = || surroundings.links.get(&ifindex).map(|link| link.name.clone()).unwrap_or_default();
    let entry = surroundings.neighbours.get(&path.neighbour);
    let Some(destination_mac) = entry.and_then(Neighbour::usable_mac) else {
        if let Some(reason) = surroundings.refused.get(&path.neighbour) {
            let reason = reason.clone();
            return Err(NextHopError::NeighbourRefused {
                neighbour: address,
                interface: interface(),
                reason,
            });
        }
        // The kernel tells of failures and successes, but not of an entry that it is still resolving.
        let state = entry.map_or(NeighbourState::Incomplete, |entry| entry.state).to_string();
        return Err(NextHopError::Unresolved { neighbour: address, interface: interface(), state });
    };
    let mtu = path.mtu.filter(|mtu| *mtu > 0).unwrap_or(u32::MAX).min(egress.mtu);
    Ok(NextHop {
        destination_mac,
        source_mac: egress.source_mac,
        ifindex: egress.ifindex,
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        vlan: egress.vlan,
        service_tag: egress.service_tag,
    })
}

/// The addresses that a changed route is about.
pub(super) fn covered(message: &RouteMessage) -> Option<RangeInclusive<IpAddr>> {
    let length = u32::from(message.header.destination_prefix_length);
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => Some(address),
        _ => None,
    });
    let v4 = |address: Ipv4Addr| {
        let host = u32::MAX.checked_shr(length).unwrap_or(0);
        let first = address.to_bits() & !host;
        Ipv4Addr::from(first).into()..=Ipv4Addr::from(first | host).into()
    };
    let v6 = |address: Ipv6Addr| {
        let host = u128::MAX.checked_shr(length).unwrap_or(0);
        let first = address.to_bits() & !host;
        Ipv6Addr::from(first).into()..=Ipv6Addr::from(first | host).into()
    };
    match (message.header.address_family, destination) {
        (AddressFamily::Inet, Some(RouteAddress::Inet(address))) => Some(v4(*address)),
        (AddressFamily::Inet6, Some(RouteAddress::Inet6(address))) => Some(v6(*address)),
        (AddressFamily::Inet, None) => Some(v4(Ipv4Addr::UNSPECIFIED)),
        (AddressFamily::Inet6, None) => Some(v6(Ipv6Addr::UNSPECIFIED)),
        _ => None,
    }
}

#[cfg(test)]
#[path = "next_hop_tests.rs"]
mod tests;
