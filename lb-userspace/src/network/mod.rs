//! The node's network: next hops, SNAT addresses and ports.
//!
//! [`NetworkWatcher`] asks the kernel for the next hop of every backend and follows what changes. [`snat`]
//! chooses the ports that the gateway may take for itself.

mod links;
mod netlink;
mod next_hop;
mod routes;
pub mod snat;
mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use links::{Link, LinkKind};
pub use netlink::NetlinkError;
pub use routes::{Route, addresses, routes};
pub use watcher::{NetworkWatcher, list_links, release_neighbours};

/// How a frame to a backend leaves the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHop {
    /// MAC address of the neighbour that takes the frame.
    pub destination_mac: [u8; 6],
    /// MAC address of the egress interface.
    pub source_mac: [u8; 6],
    /// The attached interface that the frame leaves by.
    pub ifindex: u32,
    /// Largest IP packet in bytes that the path takes; 0: unknown.
    pub mtu: u16,
    /// Tag control information of the VLAN tags, outermost first, network order; 0–2 of them.
    pub vlan: Vec<[u8; 2]>,
    /// The outermost tag is 802.1ad (0x88a8), not 802.1Q (0x8100).
    pub service_tag: bool,
}

/// Why there is no next hop. The text says what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NextHopError {
    /// The kernel has no route.
    #[error("no route: the kernel answers \"{0}\"; add a route to this address on the gateway")]
    NoRoute(String),
    /// The address is the gateway's own.
    #[error("the address is one of this gateway's own; a backend must be another host or network namespace")]
    Local,
    /// A route that no unicast frame follows.
    #[error("the route is of type {0}, which delivers to nobody; correct the route on the gateway")]
    RouteType(String),
    /// The route leads out of an interface that the program is not attached to.
    #[error(
        "the route leads out of {interface}, which Kanmon is not attached to; name it with --interface, \
         or route this address by an interface that is"
    )]
    NotAttached {
        /// Name of the interface.
        interface: String,
    },
    /// The route leads out of an interface that frames cannot be built for.
    #[error("the route leads out of {interface}: {reason}")]
    Interface {
        /// Name of the interface.
        interface: String,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// The neighbour does not answer.
    #[error(
        "{neighbour} on {interface} does not answer ARP or neighbour solicitation ({state}); check that it is \
         up and in the same layer 2 network"
    )]
    Unresolved {
        /// The gateway's or the backend's own address.
        neighbour: IpAddr,
        /// Name of the interface.
        interface: String,
        /// State of the neighbour's entry.
        state: String,
    },
    /// The kernel refused to resolve the neighbour.
    #[error("the kernel refuses an entry for the neighbour {neighbour} on {interface}: {reason}")]
    NeighbourRefused {
        /// The gateway's or the backend's own address.
        neighbour: IpAddr,
        /// Name of the interface.
        interface: String,
        /// What it said.
        reason: String,
    },
}

/// Why the node itself can't connect to an address that the packet program serves: the program sees frames that come in, so
/// a connection of the node's own has to leave it and be sent back by a router.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoClient {
    /// The address is the node's own.
    #[error("the address is this node's own: connections that begin here never leave it")]
    Local,
    /// No router is on the way.
    #[error(
        "the route from here leads straight out of {interface}, where somebody would have to answer for the address; \
         route it by a router that sends it back to this gateway"
    )]
    NoRouter {
        /// Name of the interface.
        interface: String,
    },
    /// It leads nowhere.
    #[error("from here there is {0}")]
    NoRoute(NextHopError),
}

/// For every VIP that was asked for, why the node itself is no client of it; `None` where a router is on the way.
pub type NodeClients = BTreeMap<IpAddr, Option<NoClient>>;

/// The next hop of every address that was asked for, or why there is none.
pub type NextHops = BTreeMap<IpAddr, Result<NextHop, NextHopError>>;

/// An address of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalAddress {
    /// Its interface.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its network's prefix.
    pub prefix: u8,
    /// It is a source for packets to everywhere: of global scope, not secondary, deprecated, tentative or
    /// temporary.
    pub primary: bool,
}

/// The addresses of a node, in the kernel's order.
pub type LocalAddresses = Vec<LocalAddress>;

/// The SNAT addresses where none are configured: of each family, the primary address of the first attached
/// interface that has one.
#[must_use]
pub fn default_snat_addresses(addresses: &[LocalAddress], attached: &[u32]) -> Vec<IpAddr> {
    let first = |is_family: fn(&IpAddr) -> bool| {
        attached.iter().find_map(|ifindex| {
            addresses
                .iter()
                .find(|local| local.ifindex == *ifindex && local.primary && is_family(&local.address))
                .map(|local| local.address)
        })
    };
    [first(IpAddr::is_ipv4), first(IpAddr::is_ipv6)].into_iter().flatten().collect()
}

/// Whether an address is one of the node's own: what a VIP's node-address flag says.
#[must_use]
pub fn is_local(addresses: &[LocalAddress], address: IpAddr) -> bool {
    addresses.iter().any(|local| local.address == address)
}

/// Addresses to look up.
pub type Destinations = BTreeSet<IpAddr>;

#[cfg(test)]
mod tests {
    use super::*;

    fn local(ifindex: u32, address: &str, primary: bool) -> LocalAddress {
        LocalAddress { ifindex, address: address.parse().expect("an address"), prefix: 24, primary }
    }

    #[test]
    fn snat_addresses_are_the_primary_ones_of_the_first_attached_interface_that_has_one() {
        let addresses = [
            local(1, "127.0.0.1", false),
            local(2, "192.0.2.7", true),
            local(2, "192.0.2.8", true),
            local(2, "fe80::2", false),
            local(3, "192.0.3.7", true),
            local(3, "2001:db8::7", true),
            local(4, "203.0.113.1", true),
        ];
        let chosen = |attached: &[u32]| {
            let addresses = default_snat_addresses(&addresses, attached);
            addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(chosen(&[2, 3]), ["192.0.2.7", "2001:db8::7"]);
        assert_eq!(chosen(&[3, 2]), ["192.0.3.7", "2001:db8::7"]);
        assert_eq!(chosen(&[2]), ["192.0.2.7"]);
        assert!(chosen(&[9]).is_empty());
    }

    #[test]
    fn any_address_of_the_node_is_local() {
        let addresses = [local(2, "fe80::2", false)];
        assert!(is_local(&addresses, "fe80::2".parse().expect("an address")));
        assert!(!is_local(&addresses, "fe80::3".parse().expect("an address")));
    }
}
