//! The networks that are declared, and those that are seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::facts::Networks;
use super::Request;
use super::clusters::Survey;
use crate::desired::{Desired, MemberCluster, MemberState, Network, NetworkKind, Reason, Site, parse_cidr};
use crate::network::LocalAddress;

/// How many addresses a message names.
const NAMED: usize = 3;

pub(super) fn networks(
    survey: &Survey,
    request: &Request,
    local: &[LocalAddress],
    attached: &[u32],
    desired: &Desired,
) -> Networks {
    let mut networks = Networks { known: request.networks.clone(), ..Networks::default() };
    for address in local.iter().filter(|address| attached.contains(&address.ifindex) && address.primary) {
        if let Ok(cidr) = IpNet::new(address.address, address.prefix) {
            networks.add(Site::Gateway, NetworkKind::VSwitch, cidr.trunc());
        }
    }
    for pool in &survey.snapshot.gateway.pools {
        let title = format!("AddressPool {}", pool.metadata.name.as_deref().unwrap_or_default());
        for cidr in &pool.spec.cidrs {
            networks.parse(&title, Site::Gateway, NetworkKind::Vip, cidr);
        }
    }
    for member in &survey.snapshot.gateway.members {
        if member.spec.state != MemberState::Disabled {
            networks.declare(member, survey);
        }
    }
    networks.outside.extend(refused(desired));
    let unread =
        survey.snapshot.problems.iter().map(|problem| (problem.object.clone(), problem.message.clone()));
    networks.unreadable.extend(unread);
    networks
}

/// Endpoints that the agent refuses because their member does not declare their network.
fn refused(desired: &Desired) -> Vec<(String, String)> {
    let problems = desired.problems.iter().filter(|problem| problem.reason == Reason::OutsideMemberNetwork);
    problems
        .map(|problem| (problem.cluster.clone(), format!("{}: {}", problem.object, problem.message)))
        .collect()
}

impl Networks {
    fn add(&mut self, site: Site, kind: NetworkKind, cidr: IpNet) {
        let network = Network { site, kind, cidr };
        if !self.known.contains(&network) {
            self.known.push(network);
        }
    }

    fn parse(&mut self, title: &str, site: Site, kind: NetworkKind, cidr: &str) {
        match parse_cidr(cidr) {
            Ok(cidr) => self.add(site, kind, cidr),
            Err(what) => self.unreadable.push((title.to_owned(), what)),
        }
    }

    fn declare(&mut self, member: &MemberCluster, survey: &Survey) {
        let name = member.metadata.name.clone().unwrap_or_default();
        let title = format!("MemberCluster {name}");
        let is_local = member.spec.source.as_ref().is_some_and(|source| source.local.is_some());
        let site = if is_local { Site::Gateway } else { Site::Member(name.clone()) };
        for (field, kind, cidrs) in [
            ("podCIDRs", NetworkKind::Pod, &member.spec.pod_cidrs),
            ("nodeCIDRs", NetworkKind::Node, &member.spec.node_cidrs),
            ("serviceCIDRs", NetworkKind::Service, &member.spec.service_cidrs),
        ] {
            if cidrs.is_empty() {
                self.undeclared.push((name.clone(), field));
            }
            for cidr in cidrs {
                self.parse(&title, site.clone(), kind, cidr);
            }
        }
        if let Some(nodes) = survey.nodes.get(&name) {
            self.outside.extend(strangers(&name, "node", &member.spec.node_cidrs, nodes));
        }
    }
}

/// Addresses that are in none of the networks, where there are any.
fn strangers(
    member: &str,
    what: &str,
    declared: &[String],
    nodes: &BTreeMap<String, BTreeSet<IpAddr>>,
) -> Option<(String, String)> {
    let declared: Vec<IpNet> = declared.iter().filter_map(|cidr| parse_cidr(cidr).ok()).collect();
    let is_in = |address: &IpAddr| {
        let mut family = declared.iter().filter(|cidr| cidr.addr().is_ipv4() == address.is_ipv4()).peekable();
        family.peek().is_none() || family.any(|cidr| cidr.contains(address))
    };
    let outside: Vec<String> = nodes
        .iter()
        .flat_map(|(node, addresses)| addresses.iter().map(move |address| (node, address)))
        .filter(|(_, address)| !is_in(address))
        .map(|(node, address)| format!("{address} ({node})"))
        .collect();
    let named = outside.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let are = if outside.len() == 1 { "address is" } else { "addresses are" };
    (!outside.is_empty()).then(|| {
        let message = format!("{} {what} {are} in none of its {what} networks: {named}", outside.len());
        (member.to_owned(), message)
    })
}
