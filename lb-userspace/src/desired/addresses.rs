//! Which VIPs a front gets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::fronts::{Front, annotation};
use super::members::parse_cidr;
use super::problems::{self, Problems};
use super::resources::AddressPool;
use super::types::{Allocations, ObjectName, Reason};

/// VIPs that a Service asks for: a comma-separated list, one a family.
pub(super) const ADDRESSES_ANNOTATION: &str = "kanmon.dev/addresses";

/// The VIPs of each front, and which of them came from pools.
pub(super) fn assign(
    fronts: &BTreeMap<ObjectName, Front<'_>>,
    pools: &[AddressPool],
    gateway_addresses: &BTreeSet<IpAddr>,
    previous: &Allocations,
    problems: &mut Problems,
) -> (BTreeMap<ObjectName, Vec<IpAddr>>, Allocations) {
    let mut owners: BTreeMap<IpAddr, ObjectName> = BTreeMap::new();
    let mut vips: BTreeMap<ObjectName, Vec<IpAddr>> = BTreeMap::new();
    let mut waiting = Vec::new();
    for (name, front) in fronts {
        let Some(asked) = requested(front, problems) else {
            waiting.push((name, front));
            continue;
        };
        let mut granted = Vec::new();
        for vip in asked {
            if let Some(owner) = owners.get(&vip) {
                let message = format!(
                    "{vip} is the VIP of Service {owner}, which comes first by name and keeps it; ask for \
                     another one in {ADDRESSES_ANNOTATION}"
                );
                problems.error(front.cluster, problems::service(name), Reason::AddressConflict, message);
            } else {
                owners.insert(vip, name.clone());
                granted.push(vip);
            }
        }
        vips.insert(name.clone(), granted);
    }

    let mut pools = Pools::new(pools, gateway_addresses, owners, problems);
    let mut allocations = Allocations::new();
    for (name, front) in &waiting {
        let kept = pools.keep(name, front, previous.get(name), problems);
        allocations.insert((*name).clone(), kept);
    }
    for (name, front) in waiting {
        let allocated = allocations.entry(name.clone()).or_default();
        pools.complete(name, front, allocated, problems);
        vips.insert(name.clone(), allocated.clone());
    }
    allocations.retain(|_, vips| !vips.is_empty());
    (vips, allocations)
}

/// The addresses that a front names; `None` where it leaves the choice to the pools.
fn requested(front: &Front<'_>, problems: &mut Problems) -> Option<Vec<IpAddr>> {
    let (source, text) = match annotation(front.service, ADDRESSES_ANNOTATION) {
        Some(text) => (ADDRESSES_ANNOTATION, text),
        None => {
            let field = front.service.spec.as_ref()?.load_balancer_ip.as_deref();
            ("spec.loadBalancerIP", field.filter(|text| !text.is_empty())?)
        }
    };
    let mut vips: Vec<IpAddr> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let vip = part
            .parse::<IpAddr>()
            .map_err(|_| format!("{part:?} is not an IP address"))
            .and_then(|vip| usable(vip).map(|()| vip))
            .and_then(|vip| match vips.iter().find(|other| other.is_ipv4() == vip.is_ipv4()) {
                Some(other) => Err(format!("{vip} is not used, because {other} is of its family")),
                None => Ok(vip),
            });
        match vip {
            Ok(vip) => vips.push(vip),
            Err(what) => problems.error(
                front.cluster,
                problems::service(&front.name),
                Reason::InvalidAddress,
                format!("{source}: {what}; name at most one address a family"),
            ),
        }
    }
    if text.split(',').all(|part| part.trim().is_empty()) {
        let message =
            format!("{source} names no address, so there is no VIP; name one, or remove it to get one");
        problems.error(front.cluster, problems::service(&front.name), Reason::InvalidAddress, message);
    }
    Some(vips)
}

fn usable(vip: IpAddr) -> Result<(), String> {
    let wrong = vip.is_unspecified()
        || vip.is_loopback()
        || vip.is_multicast()
        || match vip {
            IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local() || v4.octets()[0] == 0,
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
        };
    if wrong { Err(format!("{vip} cannot be a VIP: it is not a routable unicast address")) } else { Ok(()) }
}

/// A family that a front wants an address of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

struct Pools {
    /// Networks in order of preference.
    networks: Vec<IpNet>,
    gateway_addresses: BTreeSet<IpAddr>,
    owners: BTreeMap<IpAddr, ObjectName>,
}

impl Pools {
    fn new(
        pools: &[AddressPool],
        gateway_addresses: &BTreeSet<IpAddr>,
        owners: BTreeMap<IpAddr, ObjectName>,
        problems: &mut Problems,
    ) -> Self {
        let mut by_name: Vec<&AddressPool> = pools.iter().collect();
        by_name.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let mut networks = Vec::new();
        for pool in by_name {
            for cidr in &pool.spec.cidrs {
                match parse_cidr(cidr) {
                    Ok(network) if pool.spec.auto_assign => networks.push(network),
                    Ok(_) => {}
                    Err(what) => {
                        let title =
                            format!("AddressPool {}", pool.metadata.name.as_deref().unwrap_or_default());
                        problems.error("", title, Reason::InvalidObject, format!("cidrs: {what}"));
                    }
                }
            }
        }
        Self { networks, gateway_addresses: gateway_addresses.clone(), owners }
    }

    /// Those of a front's previous addresses that it still wants and that are still to be had.
    fn keep(
        &mut self,
        name: &ObjectName,
        front: &Front<'_>,
        previous: Option<&Vec<IpAddr>>,
        problems: &mut Problems,
    ) -> Vec<IpAddr> {
        let wanted = self.wanted(front);
        let mut kept: Vec<IpAddr> = Vec::new();
        for &vip in previous.into_iter().flatten() {
            let again = kept.iter().any(|other| Family::of(*other) == Family::of(vip));
            if again
                || !wanted.iter().any(|(family, _)| *family == Family::of(vip))
                || !self.networks.iter().any(|network| is_host(network, vip))
                || self.gateway_addresses.contains(&vip)
            {
                continue;
            }
            if let Some(owner) = self.owners.get(&vip) {
                let message = format!(
                    "its VIP {vip} from a pool went to Service {owner}, which names it; it gets another one"
                );
                problems.warning(front.cluster, problems::service(name), Reason::AddressConflict, message);
                continue;
            }
            self.owners.insert(vip, name.clone());
            kept.push(vip);
        }
        kept
    }

    /// Adds an address for each wanted family that has none.
    fn complete(
        &mut self,
        name: &ObjectName,
        front: &Front<'_>,
        allocated: &mut Vec<IpAddr>,
        problems: &mut Problems,
    ) {
        for (family, required) in self.wanted(front) {
            if allocated.iter().any(|vip| Family::of(*vip) == family) {
                continue;
            }
            if let Some(vip) = self.first_free(name, family) {
                self.owners.insert(vip, name.clone());
                allocated.push(vip);
            } else if required {
                let message = format!(
                    "no {} address is free in any AddressPool with autoAssign; add one, or name an address \
                     in {ADDRESSES_ANNOTATION}",
                    family.name()
                );
                problems.error(front.cluster, problems::service(name), Reason::NoAddress, message);
            }
        }
        allocated.sort_unstable();
    }

    /// Which families a front wants, and whether it cannot do without.
    fn wanted(&self, front: &Front<'_>) -> Vec<(Family, bool)> {
        let Some(spec) = &front.service.spec else { return Vec::new() };
        let listed: Vec<Family> = spec
            .ip_families
            .iter()
            .flatten()
            .filter_map(|family| match family.as_str() {
                "IPv4" => Some(Family::V4),
                "IPv6" => Some(Family::V6),
                _ => None,
            })
            .collect();
        match spec.ip_family_policy.as_deref() {
            Some("RequireDualStack") => vec![(Family::V4, true), (Family::V6, true)],
            Some("PreferDualStack") => {
                let first = listed.first().copied().unwrap_or_else(|| self.default_family());
                let second = if first == Family::V4 { Family::V6 } else { Family::V4 };
                vec![(first, true), (second, false)]
            }
            _ if listed.is_empty() => vec![(self.default_family(), true)],
            _ => listed.into_iter().map(|family| (family, true)).collect(),
        }
    }

    fn default_family(&self) -> Family {
        match self.networks.iter().any(|network| network.addr().is_ipv4()) || self.networks.is_empty() {
            true => Family::V4,
            false => Family::V6,
        }
    }

    /// The first free address from a place that depends on the Service's name alone. So gateways with
    /// different histories nearly always agree, and a new Service seldom moves an old one even where the
    /// previous allocations were lost.
    fn first_free(&self, name: &ObjectName, family: Family) -> Option<IpAddr> {
        let hash = fnv1a(name.to_string().as_bytes());
        self.networks.iter().filter(|network| Family::of(network.addr()) == family).find_map(|network| {
            let (first, count) = hosts(network);
            let start = u128::from(hash) % count;
            // Ends after as many steps as addresses are taken, at most.
            (0..count)
                .map(|step| nth(first, (start + step) % count))
                .find(|vip| !self.owners.contains_key(vip) && !self.gateway_addresses.contains(vip))
        })
    }
}

/// First address to give away, and how many there are: without an IPv4 network's own and broadcast address,
/// and without an IPv6 network's subnet-router anycast address (RFC 4291, section 2.6.1).
fn hosts(network: &IpNet) -> (IpAddr, u128) {
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

fn is_host(network: &IpNet, address: IpAddr) -> bool {
    let (first, count) = hosts(network);
    network.contains(&address) && address >= first && address <= nth(first, count - 1)
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
