//! Story S1's addresses: who has which, and nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::netns::Mac;

/// The port every pod's server listens on, TCP and UDP.
pub const POD_PORT: u16 = 8080;
/// The front port of the TCP service.
pub const HTTP_PORT: u16 = 80;
/// The front port of the UDP service.
pub const ECHO_PORT: u16 = 53;
/// How many addresses the client has in each family.
pub(super) const CLIENT_ADDRESSES: u8 = 16;

/// An address in each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dual {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Dual {
    /// Both, IPv4 first.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// The VIPs of `demo/httpbin`.
pub const VIP: Dual =
    Dual { v4: Ipv4Addr::new(192, 168, 100, 10), v6: Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 0x10) };

/// A stretch of network that two hosts share: a /24 or /16, and a /64.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    v4: Ipv4Addr,
    v4_len: u8,
    v6: Ipv6Addr,
}

impl Segment {
    /// Where the clients are.
    pub(super) const CLIENT: Segment = Segment {
        v4: Ipv4Addr::new(198, 51, 100, 0),
        v4_len: 24,
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0),
    };

    /// The gateway's vSwitch.
    pub(super) const GATEWAY: Segment = Segment {
        v4: Ipv4Addr::new(192, 168, 0, 0),
        v4_len: 24,
        v6: Ipv6Addr::new(0xfd00, 0xc0a8, 0, 0, 0, 0, 0, 0),
    };

    /// The second leg of a gateway with two.
    pub(super) const GATEWAY_INSIDE: Segment = Segment {
        v4: Ipv4Addr::new(192, 168, 1, 0),
        v4_len: 24,
        v6: Ipv6Addr::new(0xfd00, 0xc0a8, 1, 0, 0, 0, 0, 0),
    };

    /// The nodes' vSwitch of a cluster.
    pub(super) const fn nodes(cluster: u8) -> Segment {
        Segment {
            v4: Ipv4Addr::new(20 + cluster, 0, 0, 0),
            v4_len: 16,
            v6: Ipv6Addr::new(0xfd00, 0x20 + cluster as u16, 0, 0, 0, 0, 0, 0),
        }
    }

    /// A member cluster's control plane: 20.0.1.0/24, beside its nodes.
    const fn control_plane(cluster: u8) -> Segment {
        Segment {
            v4: Ipv4Addr::new(20 + cluster, 0, 1, 0),
            v4_len: 24,
            v6: Ipv6Addr::new(0xfd00, 0x20 + cluster as u16, 0, 1, 0, 0, 0, 0),
        }
    }

    /// The control plane of the cluster that the gateway is in.
    const GATEWAY_CONTROL_PLANE: Segment = Segment {
        v4: Ipv4Addr::new(192, 168, 2, 0),
        v4_len: 24,
        v6: Ipv6Addr::new(0xfd00, 0xc0a8, 2, 0, 0, 0, 0, 0),
    };

    /// The vSwitch of a member cluster's own gateway: 192.168.11.0/24 for cluster 0.
    pub(super) const fn gateway_of(cluster: u8) -> Segment {
        Segment {
            v4: Ipv4Addr::new(192, 168, 11 + cluster, 0),
            v4_len: 24,
            v6: Ipv6Addr::new(0xfd00, 0xc0a8, 0x11 + cluster as u16, 0, 0, 0, 0, 0),
        }
    }

    /// The VIPs that are routed to it: 192.168.101.0/24 for cluster 0.
    pub(super) const fn vips_of(cluster: u8) -> Segment {
        Segment {
            v4: Ipv4Addr::new(192, 168, 101 + cluster, 0),
            v4_len: 24,
            v6: Ipv6Addr::new(0xfd00, 0x101 + cluster as u16, 0, 0, 0, 0, 0, 0),
        }
    }

    /// A pod and its node.
    pub(super) const fn pod(cluster: u8, pod: u8) -> Segment {
        Segment {
            v4: Ipv4Addr::new(10, cluster, pod, 0),
            v4_len: 24,
            v6: Ipv6Addr::new(0xfd00, 0x10, cluster as u16, pod as u16, 0, 0, 0, 0),
        }
    }

    /// The `host`th address, below 100. The digits read alike in both families: .10 and ::10.
    pub(crate) const fn host(self, host: u8) -> Dual {
        let [a, b, c, _] = self.v4.octets();
        let s = self.v6.segments();
        Dual {
            v4: Ipv4Addr::new(a, b, c, host),
            v6: Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, (host / 10 * 16 + host % 10) as u16),
        }
    }

    /// Its prefixes.
    pub(super) fn nets(self) -> [IpNet; 2] {
        [net4(self.v4, self.v4_len).into(), net6(self.v6, 64).into()]
    }

    /// The `host`th address with the segment's prefix, in both families.
    pub(crate) fn interface(self, host: u8) -> [IpNet; 2] {
        let Dual { v4, v6 } = self.host(host);
        [net4(v4, self.v4_len).into(), net6(v6, 64).into()]
    }
}

/// The host number of a router on each of its segments.
pub(super) const ROUTER: u8 = 1;
/// The host number of whoever is not the router.
pub(super) const HOST: u8 = 10;

/// The clusters, in the order of their numbers.
pub(super) const CLUSTERS: [ClusterPlan; 2] = [
    ClusterPlan { name: "hangzhou", number: 0, region: "cn-hangzhou" },
    ClusterPlan { name: "shanghai", number: 1, region: "cn-shanghai" },
];

/// A cluster that joins a bed later, where somebody wants a third one.
pub(super) const THIRD: ClusterPlan = ClusterPlan { name: "beijing", number: 2, region: "cn-beijing" };

/// A member cluster: its name, its number in the addresses, its region.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClusterPlan {
    pub(super) name: &'static str,
    pub(super) number: u8,
    pub(super) region: &'static str,
}

impl ClusterPlan {
    /// The prefixes of its pods.
    pub(super) fn pods(self) -> [IpNet; 2] {
        let first = Segment::pod(self.number, 0);
        [net4(first.v4, 16).into(), net6(first.v6, 48).into()]
    }

    /// The prefixes of its nodes.
    pub(super) fn nodes(self) -> [IpNet; 2] {
        Segment::nodes(self.number).nets()
    }

    /// Where its control plane is.
    pub(super) fn control_plane(self) -> Segment {
        Segment::control_plane(self.number)
    }
}

/// A cluster's control plane: whose it is, its number in the addresses, and where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct ControlPlanePlan {
    pub(super) cluster: &'static str,
    pub(super) number: u8,
    pub(super) segment: Segment,
}

/// The control planes: the members', and that of the cluster the gateway is in.
pub(super) const CONTROL_PLANES: [ControlPlanePlan; 4] = [
    ControlPlanePlan { cluster: "hangzhou", number: 0, segment: Segment::control_plane(0) },
    ControlPlanePlan { cluster: "shanghai", number: 1, segment: Segment::control_plane(1) },
    ControlPlanePlan { cluster: "gateway", number: 2, segment: Segment::GATEWAY_CONTROL_PLANE },
    ControlPlanePlan { cluster: THIRD.name, number: 3, segment: Segment::control_plane(THIRD.number) },
];

impl ControlPlanePlan {
    /// The prefixes its cluster's Services get their addresses from: 172.16.0.0/16 and fd00:172:16::/112.
    pub(super) fn services(self) -> [IpNet; 2] {
        let second = 16 + self.number;
        let second6 = 0x16 + u16::from(self.number);
        [
            net4(Ipv4Addr::new(172, second, 0, 0), 16).into(),
            net6(Ipv6Addr::new(0xfd00, 0x172, second6, 0, 0, 0, 0, 0), 112).into(),
        ]
    }
}

/// The prefixes VIPs come from.
pub(super) fn vips() -> [IpNet; 2] {
    [
        net4(Ipv4Addr::new(192, 168, 100, 0), 24).into(),
        net6(Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 0), 64).into(),
    ]
}

/// Everywhere, in both families.
pub(crate) fn everywhere() -> [IpNet; 2] {
    [net4(Ipv4Addr::UNSPECIFIED, 0).into(), net6(Ipv6Addr::UNSPECIFIED, 0).into()]
}

/// The hardware address of an end of a link: `side` 0 is the router's, 1 the host's.
pub(crate) const fn mac(kind: u8, cluster: u8, pod: u8, side: u8) -> Mac {
    Mac([0x02, 0x4b, kind, cluster, pod, side])
}

/// A pod: its name, its cluster and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Unique over all clusters: "hangzhou-1".
    pub name: String,
    /// The member cluster it runs in.
    pub cluster: String,
    /// Its zone: "cn-hangzhou-a".
    pub zone: String,
    /// Its addresses.
    pub address: Dual,
}

impl Pod {
    pub(super) fn planned(cluster: ClusterPlan, number: u8) -> Pod {
        let zone = char::from(b'a' + (number - 1) % 3);
        Pod {
            name: format!("{}-{number}", cluster.name),
            cluster: cluster.name.to_owned(),
            zone: format!("{}-{zone}", cluster.region),
            address: Segment::pod(cluster.number, number).host(HOST),
        }
    }

    /// Where its server listens, IPv4 first.
    pub fn sockets(&self) -> [SocketAddr; 2] {
        self.address.both().map(|ip| SocketAddr::new(ip, POD_PORT))
    }
}

fn net4(ip: Ipv4Addr, len: u8) -> Ipv4Net {
    Ipv4Net::new(ip, len).expect("a prefix length of the plan is at most 32")
}

fn net6(ip: Ipv6Addr, len: u8) -> Ipv6Net {
    Ipv6Net::new(ip, len).expect("a prefix length of the plan is at most 128")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_is_story_s1s() {
        let pod = Pod::planned(CLUSTERS[1], 2);
        assert_eq!(pod.name, "shanghai-2");
        assert_eq!(pod.zone, "cn-shanghai-b");
        assert_eq!(pod.address.v4.to_string(), "10.1.2.10");
        assert_eq!(pod.address.v6.to_string(), "fd00:10:1:2::10");
        let nets = |nets: [IpNet; 2]| nets.map(|net| net.to_string());
        assert_eq!(nets(CLUSTERS[0].pods()), ["10.0.0.0/16", "fd00:10::/48"]);
        assert_eq!(nets(CLUSTERS[1].nodes()), ["21.0.0.0/16", "fd00:21::/64"]);
        assert_eq!(nets(CLUSTERS[0].control_plane().nets()), ["20.0.1.0/24", "fd00:20:0:1::/64"]);
        assert_eq!(nets(CONTROL_PLANES[1].services()), ["172.17.0.0/16", "fd00:172:17::/112"]);
        assert_eq!(nets(CONTROL_PLANES[2].segment.interface(10)), ["192.168.2.10/24", "fd00:c0a8:2::10/64"]);
        assert_eq!(nets(THIRD.control_plane().nets()), ["22.0.1.0/24", "fd00:22:0:1::/64"]);
        assert_eq!(nets(Segment::gateway_of(0).interface(10)), ["192.168.11.10/24", "fd00:c0a8:11::10/64"]);
        assert_eq!(nets(Segment::vips_of(1).nets()), ["192.168.102.0/24", "fd00:102::/64"]);
        assert_eq!(nets(vips()), ["192.168.100.0/24", "fd00:100::/64"]);
        assert_eq!(nets(Segment::CLIENT.interface(1)), ["198.51.100.1/24", "2001:db8:c::1/64"]);
    }
}
