//! Arithmetic of networks and their addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::super::types::ObjectName;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// First address to give away, and how many there are: without an IPv4 network's own and broadcast address,
/// and without an IPv6 network's subnet-router anycast address (RFC 4291, section 2.6.1).
pub(super) fn hosts(network: &IpNet) -> (IpAddr, u128) {
    match network {
        IpNet::V4(v4) => {
            let size = 1_u128 << (32 - v4.prefix_len());
            if size > 2 { (nth(v4.network().into(), 1), size - 2) } else { (v4.network().into(), size) }
        }
        IpNet::V6(v6) => {
            // One less than the size of ::/0 is all that fits.
            let size = 1_u128.checked_shl(128 - u32::from(v6.prefix_len())).unwrap_or(u128::MAX);
            if size > 2 { (nth(v6.network().into(), 1), size - 1) } else { (v6.network().into(), size) }
        }
    }
}

/// Whether an address is one that the network has to give away.
pub(super) fn is_host(network: &IpNet, address: IpAddr) -> bool {
    let (first, count) = hosts(network);
    network.contains(&address) && address >= first && address <= nth(first, count - 1)
}

/// The first free address of a network from a place that depends on the Service's name alone. So gateways with
/// different histories nearly always agree, and a new Service seldom wants an old one's address.
pub(super) fn first_free(
    network: &IpNet,
    name: &ObjectName,
    is_free: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let (first, count) = hosts(network);
    let start = u128::from(fnv1a(name.to_string().as_bytes())) % count;
    // Ends after as many steps as addresses are taken, at most.
    (0..count).map(|step| nth(first, (start + step) % count)).find(|vip| is_free(*vip))
}

fn nth(first: IpAddr, n: u128) -> IpAddr {
    match first {
        // Within a network n is below 2^32, so nothing is cut off.
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits().wrapping_add(n as u32)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits().wrapping_add(n)).into(),
    }
}

/// FNV-1a: the same on every machine and in every release, unlike the standard library's hashers.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
