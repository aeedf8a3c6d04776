//! Interfaces, and how a frame leaves by one of them.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    VlanProtocol, VlanQosMapping,
};

use super::NextHopError;

/// An interface of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index, ≥ 1.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address; `None` where it has none.
    pub mac: Option<[u8; 6]>,
    /// Its MTU in bytes of the IP packet.
    pub mtu: u32,
    /// It is set up.
    pub up: bool,
    /// What kind of interface it is.
    pub kind: LinkKind,
    /// The kernel's name for a virtual interface's kind (`veth`, `vlan`, `bond`, …), or the driver of a
    /// device (`virtio_net`, `mlx5_core`, …); empty if unknown.
    pub driver: String,
}

/// What kind of interface it is, as far as building frames is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Its frames begin with an Ethernet header.
    Ethernet,
    /// It tags the frames of another interface.
    Vlan {
        /// The other interface's index.
        parent: u32,
        /// Tag control information of its frames, network order.
        tci: [u8; 2],
        /// The tag is 802.1ad, not 802.1Q.
        service_tag: bool,
    },
    /// Its frames have another header, or none.
    NotEthernet,
}

pub(super) type Links = BTreeMap<u32, Link>;

impl Link {
    /// Reads what the kernel says of an interface; the driver of a device is not in it. `None` for messages
    /// about something else, such as an interface's life as a bridge's port.
    pub(super) fn parse(message: &LinkMessage) -> Option<Self> {
        if message.header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let mut link = Self {
            ifindex: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            kind: LinkKind::Ethernet,
            driver: String::new(),
        };
        let mut parent = 0;
        let mut vlan = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(address) => link.mac = address.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Link(index) => parent = *index,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.driver = kind.to_string(),
                            LinkInfo::Data(InfoData::Vlan(data)) => vlan = Some(parse_vlan(data)),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if message.header.link_layer_type != LinkLayerType::Ether {
            link.kind = LinkKind::NotEthernet;
        } else if let Some((tci, service_tag)) = vlan {
            link.kind = LinkKind::Vlan { parent, tci, service_tag };
        } else if link.driver == InfoKind::Vlan.to_string() {
            link.kind = LinkKind::NotEthernet;
        }
        (!link.name.is_empty()).then_some(link)
    }
}

/// Tag control information and whether the tag is 802.1ad. The priority is what the device's egress map gives
/// to packets of priority 0, which forwarded packets have.
fn parse_vlan(data: &[InfoVlan]) -> ([u8; 2], bool) {
    let mut tci = 0_u16;
    let mut service_tag = false;
    for info in data {
        match info {
            InfoVlan::Id(id) => tci |= id & 0x0fff,
            InfoVlan::Protocol(protocol) => service_tag = *protocol == VlanProtocol::Ieee8021Ad,
            InfoVlan::EgressQos(map) => {
                for mapping in map {
                    if let VlanQosMapping::Mapping(0, to) = mapping {
                        tci |= (u16::try_from(*to & 7).unwrap_or(0)) << 13;
                    }
                }
            }
            _ => {}
        }
    }
    (tci.to_be_bytes(), service_tag)
}

/// How a frame leaves by an interface: what of a next hop does not depend on the neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Egress {
    pub(super) ifindex: u32,
    pub(super) source_mac: [u8; 6],
    pub(super) mtu: u32,
    pub(super) vlan: Vec<[u8; 2]>,
    pub(super) service_tag: bool,
}

/// Follows VLAN devices from the interface that a route names down to an attached one.
pub(super) fn egress(links: &Links, attached: &BTreeSet<u32>, ifindex: u32) -> Result<Egress, NextHopError> {
    let named =
        |index: u32| links.get(&index).map_or_else(|| format!("interface {index}"), |l| l.name.clone());
    let unusable = |reason: String| NextHopError::Interface { interface: named(ifindex), reason };
    let missing = |index: u32| unusable(format!("{} is not in this network namespace", named(index)));
    let first = links.get(&ifindex).ok_or_else(|| missing(ifindex))?;
    let source_mac = first.mac.filter(|_| first.kind != LinkKind::NotEthernet).ok_or_else(|| {
        unusable("it has no Ethernet header; route backends by an Ethernet interface".to_owned())
    })?;
    let mut tags = Vec::new();
    let mut link = first;
    loop {
        if !link.up {
            return Err(unusable(format!("{} is down; `ip link set {} up`", link.name, link.name)));
        }
        if attached.contains(&link.ifindex) {
            break;
        }
        let LinkKind::Vlan { parent, tci, service_tag } = link.kind else {
            return Err(not_attached(link, first));
        };
        if tags.len() == 2 {
            return Err(unusable("it has more than two VLAN tags; Kanmon writes at most two".to_owned()));
        }
        tags.push((tci, service_tag));
        link = links.get(&parent).ok_or_else(|| missing(parent))?;
    }
    // The walk met the innermost tag first.
    tags.reverse();
    if let [_, (_, true)] = tags.as_slice() {
        return Err(unusable("its inner VLAN tag is 802.1ad; only the outer one may be".to_owned()));
    }
    Ok(Egress {
        ifindex: link.ifindex,
        source_mac,
        mtu: first.mtu,
        service_tag: tags.first().is_some_and(|(_, service_tag)| *service_tag),
        vlan: tags.into_iter().map(|(tci, _)| tci).collect(),
    })
}

fn not_attached(link: &Link, first: &Link) -> NextHopError {
    let interface = match link.ifindex == first.ifindex {
        true => link.name.clone(),
        false => format!("{} (under {})", link.name, first.name),
    };
    match link.driver.as_str() {
        driver @ ("bond" | "team" | "bridge" | "macvlan" | "ipvlan" | "vxlan" | "geneve" | "vrf") => {
            NextHopError::Interface {
                interface,
                reason: format!(
                    "it is a {driver}, whose lower interface Kanmon does not choose; attach Kanmon to it \
                     with --interface {}, or route this address by an attached interface",
                    link.name
                ),
            }
        }
        _ => NextHopError::NotAttached { interface },
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
