//! What the gateway declares about its member clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::cidr_plan::{Network, NetworkKind, Site, conflicts, overlaps};
use super::problems::Problems;
use super::resources::{AddressPool, Discovery, MemberCluster, MemberState};
use super::types::Reason;

/// A member cluster, checked.
#[derive(Clone, Debug, Default)]
pub(super) struct Member {
    pub(super) region: String,
    /// Labels of its MemberCluster.
    pub(super) labels: BTreeMap<String, String>,
    pub(super) state: MemberState,
    /// Which of its Services take part.
    pub(super) discovery: Discovery,
    /// Nothing of it is used: its networks overlap an older member's.
    pub(super) refused: bool,
    /// When its MemberCluster was made; unknown without an API server.
    created: Option<Time>,
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

/// All member clusters.
#[derive(Debug, Default)]
pub(super) struct Members {
    by_name: BTreeMap<String, Member>,
    /// The one that is the gateway's own cluster.
    local: Option<String>,
}

impl Members {
    pub(super) fn get(&self, name: &str) -> Option<&Member> {
        self.by_name.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_name.values()
    }

    /// The name of the member that is the gateway's own cluster, if it is one.
    pub(super) fn local(&self) -> Option<&str> {
        self.local.as_deref()
    }

    /// Whose word counts first: the oldest, and those without a timestamp last; ties by name.
    pub(super) fn oldest_first(&self) -> Vec<&str> {
        let mut names: Vec<(&str, &Member)> =
            self.by_name.iter().map(|(name, member)| (name.as_str(), member)).collect();
        names.sort_by_key(|&(name, member)| (member.created.is_none(), member.created.as_ref(), name));
        names.into_iter().map(|(name, _)| name).collect()
    }
}

/// Checks the declarations. The result has every cluster of `known`, declared or not.
pub(super) fn declare<'a>(
    declared: &[MemberCluster],
    known: impl Iterator<Item = &'a String>,
    problems: &mut Problems,
) -> Members {
    let known: BTreeSet<&String> = known.collect();
    let mut members = Members::default();
    for object in declared {
        let name = object.metadata.name.clone().unwrap_or_default();
        let title = format!("MemberCluster {name}");
        if members.by_name.contains_key(&name) {
            problems.error("", title, Reason::DuplicateObject, "is declared twice; the first one counts");
            continue;
        }
        let spec = &object.spec;
        let mut member = Member {
            region: spec.region.clone(),
            labels: object.metadata.labels.clone().unwrap_or_default(),
            state: spec.state,
            discovery: spec.discovery,
            created: object.metadata.creation_timestamp.clone(),
            ..Member::default()
        };
        // Whether a source that is named can be reached is told where connections are.
        if !known.contains(&name) && spec.source.is_none() && spec.state != MemberState::Disabled {
            let message = "nothing is known from this cluster; make the directory of its name, or say \
                           `state: Disabled`";
            problems.warning("", &title, Reason::NoSource, message);
        }
        member.networks = networks(object, &title, problems);
        members.by_name.insert(name, member);
    }
    for name in known {
        members.by_name.entry(name.clone()).or_default();
    }
    refuse_overlaps(&mut members, problems);
    members.local = local(declared, &members);
    members
}

/// The oldest member that is the gateway's own cluster.
fn local(declared: &[MemberCluster], members: &Members) -> Option<String> {
    let is_local = |name: &str| {
        declared.iter().any(|object| {
            object.metadata.name.as_deref() == Some(name)
                && object.spec.source.as_ref().is_some_and(|source| source.local.is_some())
        })
    };
    members.oldest_first().into_iter().find(|name| is_local(name)).map(str::to_owned)
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

/// Of two members whose networks overlap, the newer is refused.
fn refuse_overlaps(members: &mut Members, problems: &mut Problems) {
    let mut accepted: Vec<(IpNet, String)> = Vec::new();
    let names: Vec<String> = members.oldest_first().into_iter().map(str::to_owned).collect();
    for name in names {
        let Some(member) = members.by_name.get_mut(&name).filter(|member| member.has_endpoints()) else {
            continue;
        };
        let overlap = member.networks.iter().find_map(|network| {
            let (other, owner) = accepted.iter().find(|(other, _)| overlaps(network, other))?;
            Some(format!(
                "its network {network} overlaps {other} of member {owner}, which is older (or, without \
                 timestamps, first by name), so nothing of this cluster is used; give the clusters networks \
                 of their own"
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

/// Says which declared networks cannot live side by side, where that refuses nobody: what does has been told.
pub(super) fn warn_of_overlaps(
    declared: &[MemberCluster],
    pools: &[AddressPool],
    members: &Members,
    problems: &mut Problems,
) {
    // The newer of two members is told: it comes later. What is a pool's is nobody's.
    let mut networks: Vec<Network> = Vec::new();
    let mut owners: BTreeMap<Network, String> = BTreeMap::new();
    for cidr in pools.iter().flat_map(|pool| &pool.spec.cidrs).filter_map(|cidr| parse_cidr(cidr).ok()) {
        networks.push(Network { site: Site::Gateway, kind: NetworkKind::Vip, cidr });
    }
    let named = |name: &str| declared.iter().find(|object| object.metadata.name.as_deref() == Some(name));
    for object in members.oldest_first().into_iter().filter_map(named) {
        if object.spec.state == MemberState::Disabled {
            continue;
        }
        for network in declared_networks(object) {
            owners.entry(network.clone()).or_insert_with(|| object.metadata.name.clone().unwrap_or_default());
            networks.push(network);
        }
    }
    let is_host = |network: &Network| matches!(network.kind, NetworkKind::Node | NetworkKind::Pod);
    for (a, b) in conflicts(&networks) {
        // Two members that share hosts' addresses: the newer is refused for that.
        if is_host(a) && is_host(b) && a.site != b.site {
            continue;
        }
        let Some(owner) = owners.get(b).or_else(|| owners.get(a)) else { continue };
        let message = format!(
            "the {b} overlaps the {a}: the network between them can route an address to one of them only; give it \
             networks of its own"
        );
        problems.warning("", format!("MemberCluster {owner}"), Reason::CIDROverlap, message);
    }
}

/// The networks that a MemberCluster declares, as far as they can be read.
#[must_use]
pub fn declared_networks(object: &MemberCluster) -> Vec<Network> {
    let is_local = object.spec.source.as_ref().is_some_and(|source| source.local.is_some());
    let name = object.metadata.name.clone().unwrap_or_default();
    let site = if is_local { Site::Gateway } else { Site::Member(name) };
    [
        (NetworkKind::Pod, &object.spec.pod_cidrs),
        (NetworkKind::Node, &object.spec.node_cidrs),
        (NetworkKind::Service, &object.spec.service_cidrs),
    ]
    .into_iter()
    .flat_map(|(kind, cidrs)| cidrs.iter().map(move |cidr| (kind, cidr)))
    .filter_map(|(kind, cidr)| Some(Network { site: site.clone(), kind, cidr: parse_cidr(cidr).ok()? }))
    .collect()
}

/// Parses a network, which must have no host bits.
///
/// # Errors
/// A sentence: what is wrong, and what was perhaps meant.
pub fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let network: IpNet = text
        .parse()
        .map_err(|_| format!("{text:?} is not a network; write it like 10.0.0.0/16 or fd00:10::/48"))?;
    if network.trunc() != network {
        return Err(format!("{text} has bits beyond its prefix; did you mean {}?", network.trunc()));
    }
    Ok(network)
}
