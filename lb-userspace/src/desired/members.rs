//! What the gateway declares about its member clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::problems::Problems;
use super::resources::{Discovery, MemberCluster, MemberState};
use super::types::Reason;

/// A member cluster, checked.
#[derive(Clone, Debug, Default)]
pub(super) struct Member {
    pub(super) region: String,
    pub(super) state: MemberState,
    /// Nothing of it is used: its networks overlap an older member's, or its discovery is not served.
    pub(super) refused: bool,
    /// Pod and node networks; empty: not declared, so any address is taken.
    networks: Vec<IpNet>,
}

impl Member {
    /// Whether an address lies in the declared networks, or none are declared.
    pub(super) fn owns(&self, address: IpAddr) -> bool {
        self.networks.is_empty() || self.networks.iter().any(|network| network.contains(&address))
    }

    /// Whether its endpoints are used at all.
    pub(super) fn has_endpoints(&self) -> bool {
        !self.refused && self.state != MemberState::Disabled
    }
}

/// Checks the declarations. The result has every cluster of `known`, declared or not.
pub(super) fn declare<'a>(
    declared: &[MemberCluster],
    known: impl Iterator<Item = &'a String>,
    problems: &mut Problems,
) -> BTreeMap<String, Member> {
    let known: BTreeSet<&String> = known.collect();
    let mut members: BTreeMap<String, Member> = BTreeMap::new();
    for object in declared {
        let name = object.metadata.name.clone().unwrap_or_default();
        let title = format!("MemberCluster {name}");
        if members.contains_key(&name) {
            problems.error("", title, Reason::DuplicateObject, "is declared twice; the first one counts");
            continue;
        }
        let spec = &object.spec;
        let mut member = Member { region: spec.region.clone(), state: spec.state, ..Member::default() };
        if !known.contains(&name) && spec.state != MemberState::Disabled {
            let message = "nothing is known from this cluster; make the directory of its name, or say \
                           `state: Disabled`";
            problems.warning("", &title, Reason::NoSource, message);
        }
        if spec.discovery == Discovery::ServiceExport {
            member.refused = true;
            let message = "discovery ServiceExport is not served, so nothing of this cluster is used; say \
                           `discovery: SameName`";
            problems.error("", &title, Reason::UnsupportedDiscovery, message);
        }
        member.networks = networks(object, &title, problems);
        members.insert(name, member);
    }
    refuse_overlaps(&mut members, problems);
    for name in known {
        members.entry(name.clone()).or_default();
    }
    members
}

/// The pod and node networks. Where one of them cannot be read, none is enforced: a slip of the pen must not
/// take a whole cluster's endpoints away.
fn networks(object: &MemberCluster, title: &str, problems: &mut Problems) -> Vec<IpNet> {
    let spec = &object.spec;
    let fields = [
        ("podCIDRs", &spec.pod_cidrs, true),
        ("nodeCIDRs", &spec.node_cidrs, true),
        ("serviceCIDRs", &spec.service_cidrs, false),
    ];
    let mut networks = Vec::new();
    let mut readable = true;
    for (field, cidrs, enforced) in fields {
        for cidr in cidrs {
            match parse_cidr(cidr) {
                Ok(network) if enforced => networks.push(network),
                Ok(_) => {}
                Err(what) => {
                    readable &= !enforced;
                    let effect = "; until it is corrected the endpoints' addresses are not checked";
                    let message = format!("{field}: {what}{}", if enforced { effect } else { "" });
                    problems.error("", title, Reason::InvalidObject, message);
                }
            }
        }
    }
    if readable { networks } else { Vec::new() }
}

/// Of two members whose networks overlap, the newer (the later by name) is refused.
fn refuse_overlaps(members: &mut BTreeMap<String, Member>, problems: &mut Problems) {
    let mut accepted: Vec<(IpNet, String)> = Vec::new();
    for (name, member) in members.iter_mut() {
        if !member.has_endpoints() {
            continue;
        }
        let overlap = member.networks.iter().find_map(|network| {
            let (other, owner) = accepted.iter().find(|(other, _)| overlaps(network, other))?;
            Some(format!(
                "its network {network} overlaps {other} of member {owner}, so nothing of this cluster is \
                 used; give the clusters networks of their own"
            ))
        });
        if let Some(message) = overlap {
            member.refused = true;
            problems.error("", format!("MemberCluster {name}"), Reason::CIDROverlap, message);
        } else {
            accepted.extend(member.networks.iter().map(|&network| (network, name.clone())));
        }
    }
}

fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Parses a network, which must have no host bits.
pub(super) fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let network: IpNet = text
        .parse()
        .map_err(|_| format!("{text:?} is not a network; write it like 10.0.0.0/16 or fd00:10::/48"))?;
    if network.trunc() != network {
        return Err(format!("{text} has bits beyond its prefix; did you mean {}?", network.trunc()));
    }
    Ok(network)
}
