//! Whether the networks of all clusters and of the gateway can live side by side: story S1's CIDR planning. Pure.

use std::fmt;

use ipnet::IpNet;

/// Whose a network is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// The gateway's, and that of the cluster it belongs to.
    Gateway,
    /// A member cluster's, by its name.
    Member(String),
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => f.write_str("the gateway"),
            Self::Member(name) => write!(f, "member {name}"),
        }
    }
}

/// What has its addresses in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetworkKind {
    /// A whole VPC.
    Vpc,
    /// A subnet of it.
    VSwitch,
    /// Nodes.
    Node,
    /// Pods.
    Pod,
    /// ClusterIPs.
    Service,
    /// VIPs: an AddressPool.
    Vip,
}

impl NetworkKind {
    /// All of them, by the name that people give them.
    pub const NAMED: [(&'static str, Self); 6] = [
        ("vpc", Self::Vpc),
        ("vswitch", Self::VSwitch),
        ("node", Self::Node),
        ("pod", Self::Pod),
        ("service", Self::Service),
        ("vip", Self::Vip),
    ];
}

impl fmt::Display for NetworkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMED.iter().find(|(_, kind)| kind == self);
        f.write_str(named.map_or("?", |(name, _)| name))
    }
}

/// A network, what it is for, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    /// Whose.
    pub site: Site,
    /// What for.
    pub kind: NetworkKind,
    /// Which.
    pub cidr: IpNet,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} network {} of {}", self.kind, self.cidr, self.site)
    }
}

/// The pairs of networks that cannot live side by side, each once, in the order of `networks`.
///
/// Between sites nothing may overlap: the network that joins them could route an address to one of them only. Within a
/// site, pods and nodes may share what their VPC gives out; addresses of Services and VIPs may not be those of hosts.
/// VIPs may be part of the gateway's own VPC or vSwitch.
///
/// Service networks count although Kanmon sends nothing to a ClusterIP: story S1's plan gives each cluster its own, and
/// every kind of overlap is to fail. ClusterIPs are routed where pods are (kube-proxy answers on each node), so whoever
/// joins the clusters' networks would find one of two. Such an overlap refuses no endpoint. Where several clusters have
/// the same service network on purpose, as with Kubernetes' default of 10.96.0.0/12, it is not declared: then nothing
/// is compared, and `kanmon preflight` says as a warning that it is not.
#[must_use]
pub fn conflicts(networks: &[Network]) -> Vec<(&Network, &Network)> {
    let mut found = Vec::new();
    for (index, a) in networks.iter().enumerate() {
        let later = networks.iter().skip(index + 1);
        found.extend(later.filter(|b| overlaps(&a.cidr, &b.cidr) && exclude(a, b)).map(|b| (a, b)));
    }
    found
}

/// Whether two networks share an address.
#[must_use]
pub fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Whether two networks must not share an address.
fn exclude(a: &Network, b: &Network) -> bool {
    use NetworkKind::{Node, Pod, Service, VSwitch, Vip, Vpc};
    if a.site != b.site {
        return true;
    }
    let (first, second) = if a.kind <= b.kind { (a.kind, b.kind) } else { (b.kind, a.kind) };
    match (first, second) {
        (Vpc | VSwitch | Node | Pod, Service) | (Node | Pod | Service, Vip) => true,
        (Vpc | VSwitch | Node | Pod, Vpc | VSwitch | Node | Pod) => false,
        (Vpc | VSwitch | Vip, Vip) | (Service, Service) => false,
        // Not in order: there are no such pairs.
        (Service | Vip, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(site: &str, kind: NetworkKind, cidr: &str) -> Network {
        let site = if site == "gateway" { Site::Gateway } else { Site::Member(site.to_owned()) };
        Network { site, kind, cidr: cidr.parse().unwrap() }
    }

    /// The plan of story S1.
    fn plan() -> Vec<Network> {
        use NetworkKind::{Node, Pod, Service, VSwitch, Vip, Vpc};
        [
            ("hangzhou", Vpc, "20.0.0.0/8"),
            ("hangzhou", VSwitch, "20.0.0.0/16"),
            ("hangzhou", Node, "20.0.0.0/16"),
            ("hangzhou", Pod, "10.0.0.0/16"),
            ("hangzhou", Service, "172.16.0.0/16"),
            ("shanghai", Vpc, "21.0.0.0/8"),
            ("shanghai", VSwitch, "21.0.0.0/16"),
            ("shanghai", Node, "21.0.0.0/16"),
            ("shanghai", Pod, "10.1.0.0/16"),
            ("shanghai", Service, "172.17.0.0/16"),
            ("gateway", Vpc, "192.168.0.0/16"),
            ("gateway", VSwitch, "192.168.0.0/24"),
            ("gateway", Vip, "192.168.100.0/24"),
        ]
        .map(|(site, kind, cidr)| network(site, kind, cidr))
        .to_vec()
    }

    fn with(more: Network) -> Vec<String> {
        let mut networks = plan();
        networks.push(more);
        conflicts(&networks).into_iter().map(|(a, b)| format!("{a} / {b}")).collect()
    }

    #[test]
    fn the_plan_of_story_s1_passes() {
        assert_eq!(conflicts(&plan()), []);
    }

    #[test]
    fn each_kind_of_overlap_between_two_members_is_named() {
        for (kind, cidr) in [
            (NetworkKind::Vpc, "20.0.0.0/8"),
            (NetworkKind::VSwitch, "20.0.0.0/24"),
            (NetworkKind::Node, "20.0.128.0/17"),
            (NetworkKind::Pod, "10.0.0.0/14"),
            (NetworkKind::Service, "172.16.1.0/24"),
        ] {
            let found = with(network("beijing", kind, cidr));
            let named = format!("{kind} network {cidr} of member beijing");
            assert!(!found.is_empty() && found.iter().all(|pair| pair.ends_with(&named)), "{found:?}");
        }
        let pods = with(network("beijing", NetworkKind::Pod, "10.0.9.0/24"));
        assert_eq!(
            pods,
            ["pod network 10.0.0.0/16 of member hangzhou / pod network 10.0.9.0/24 of member beijing"]
        );
    }

    #[test]
    fn a_member_may_not_have_the_gateways_networks_nor_its_vips() {
        assert_eq!(with(network("beijing", NetworkKind::Node, "192.168.0.0/24")).len(), 2);
        assert_eq!(with(network("beijing", NetworkKind::Pod, "192.168.100.128/25")).len(), 2);
        assert_eq!(with(network("gateway", NetworkKind::Vip, "10.1.3.0/24")).len(), 1);
    }

    #[test]
    fn within_a_cluster_service_addresses_are_nobody_elses_and_pods_may_be_of_the_vswitch() {
        assert_eq!(with(network("hangzhou", NetworkKind::Service, "10.0.128.0/20")).len(), 1);
        assert_eq!(with(network("hangzhou", NetworkKind::Pod, "20.0.64.0/20")), Vec::<String>::new());
        assert_eq!(with(network("gateway", NetworkKind::Service, "192.168.100.0/25")).len(), 2);
        assert_eq!(with(network("gateway", NetworkKind::Vip, "192.168.0.128/25")), Vec::<String>::new());
    }

    #[test]
    fn families_do_not_meet() {
        assert_eq!(with(network("beijing", NetworkKind::Pod, "fd00:10::/48")), Vec::<String>::new());
        let two = [
            network("a", NetworkKind::Pod, "fd00:10::/48"),
            network("b", NetworkKind::Node, "fd00:10:0:1::/64"),
        ];
        assert_eq!(conflicts(&two).len(), 1);
    }
}
