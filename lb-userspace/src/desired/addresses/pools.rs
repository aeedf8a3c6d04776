//! The pools: which addresses they have, and for whom.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::members::parse_cidr;
use super::super::problems::Problems;
use super::super::resources::{AddressAllocation, AddressPool, LabelSelector, PoolScope};
use super::super::types::{PoolUse, Reason};
use super::networks::{Family, hosts, is_host};
use super::requested::ScopeWish;

/// A pool, checked.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    pub(super) name: &'a str,
    pub(super) scope: PoolScope,
    /// In order of preference.
    pub(super) networks: Vec<IpNet>,
    auto_assign: bool,
    selector: Option<&'a LabelSelector>,
}

impl Pool<'_> {
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| is_host(network, address))
    }

    /// Whether a Service with these labels may have one of its addresses.
    pub(super) fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.is_none_or(|selector| selector.matches(labels))
    }
}

/// All pools, by name.
#[derive(Debug)]
pub(super) struct Pools<'a>(Vec<Pool<'a>>);

impl<'a> Pools<'a> {
    /// Checks the pools. A network that cannot be read is left out, and told.
    pub(super) fn new(objects: &'a [AddressPool], problems: &mut Problems) -> Self {
        let mut pools = Vec::new();
        for object in objects {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            let (networks, bad) = networks(object);
            for what in bad {
                let title = format!("AddressPool {name}");
                problems.error("", title, Reason::InvalidObject, format!("cidrs: {what}"));
            }
            let spec = &object.spec;
            pools.push(Pool {
                name,
                networks,
                scope: spec.scope,
                auto_assign: spec.auto_assign,
                selector: spec.service_selector.as_ref(),
            });
        }
        pools.sort_by_key(|pool| pool.name);
        Self(pools)
    }

    pub(super) fn named(&self, name: &str) -> Option<&Pool<'a>> {
        self.0.iter().find(|pool| pool.name == name)
    }

    /// The pools that an address is of.
    pub(super) fn of(&self, address: IpAddr) -> impl Iterator<Item = &Pool<'a>> {
        self.0.iter().filter(move |pool| pool.has(address))
    }

    /// The pools that a Service which names no address may get one of, the preferred one first: internal ones
    /// before public ones, for what everybody can reach should be asked for; then by name.
    pub(super) fn offered(&self, labels: &BTreeMap<String, String>, scope: ScopeWish) -> Vec<&Pool<'a>> {
        let mut offered: Vec<&Pool<'a>> = self
            .0
            .iter()
            .filter(|pool| pool.auto_assign && scope.allows(pool.scope) && pool.selects(labels))
            .collect();
        offered.sort_by_key(|pool| pool.scope == PoolScope::Public);
        offered
    }
}

/// The family of a Service that says none: IPv4 unless only IPv6 is to be had.
pub(super) fn default_family(pools: &[&Pool<'_>]) -> Family {
    let mut networks = pools.iter().flat_map(|pool| &pool.networks).peekable();
    match networks.peek().is_none() || networks.any(|network| network.addr().is_ipv4()) {
        true => Family::V4,
        false => Family::V6,
    }
}

/// How much of each pool is in use, by its name: `allocations` are all that are written, whoever's they are.
#[must_use]
pub fn pool_use(pools: &[AddressPool], allocations: &[AddressAllocation]) -> BTreeMap<String, PoolUse> {
    let of = |pool: &AddressPool| {
        let name = pool.metadata.name.clone().unwrap_or_default();
        let (networks, invalid) = networks(pool);
        let is_of = |address: IpAddr| networks.iter().any(|network| is_host(network, address));
        let held = allocations.iter().filter_map(|allocation| Some((allocation.spec.address()?, allocation)));
        let used = held.clone().filter(|(address, _)| is_of(*address)).count() as u64;
        let outside = held
            .filter(|(address, allocation)| {
                allocation.spec.pool.as_deref() == Some(name.as_str()) && !is_of(*address)
            })
            .map(|(address, allocation)| (address, allocation.spec.services.iter().map(Into::into).collect()))
            .collect();
        let size = distinct(&networks)
            .map(|network| hosts(network).1)
            .fold(0_u128, |sum, count| sum.saturating_add(count));
        let has_network = !networks.is_empty();
        let free = size.saturating_sub(u128::from(used));
        (name, PoolUse { used, free, outside, invalid, has_network })
    };
    pools.iter().map(of).collect()
}

/// The networks that can be read, and what is wrong with the others.
fn networks(pool: &AddressPool) -> (Vec<IpNet>, Vec<String>) {
    let (mut networks, mut bad) = (Vec::new(), Vec::new());
    for cidr in &pool.spec.cidrs {
        match parse_cidr(cidr) {
            Ok(network) => networks.push(network),
            Err(what) => bad.push(what),
        }
    }
    (networks, bad)
}

/// Those that are within no other, each once.
fn distinct(networks: &[IpNet]) -> impl Iterator<Item = &IpNet> {
    networks.iter().enumerate().filter_map(move |(index, network)| {
        let mut others = networks.iter().enumerate().filter(|(other, _)| *other != index);
        let covered =
            others.any(|(other, wider)| wider.contains(network) && (wider != network || other < index));
        (!covered).then_some(network)
    })
}
