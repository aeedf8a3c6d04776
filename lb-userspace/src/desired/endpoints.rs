//! The endpoints of a front, out of every cluster's EndpointSlices.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service as KubeService;
use k8s_openapi::api::discovery::v1::{Endpoint as KubeEndpoint, EndpointSlice};

use super::fronts::{Front, FrontPort, protocol};
use super::health_check::{HealthCheck, HealthCheckKind};
use super::index::Clusters;
use super::members::{Member, Members};
use super::problems::{self, Problems};
use super::resources::MemberState;
use super::sources::{self, SourceRanges};
use super::types::{BackendId, Endpoint, ObjectName, Place, Protocol, Reason, Service, ServiceId};

/// How many refused addresses a message names.
const NAMED_ADDRESSES: usize = 3;

/// What is said about a slice of names.
const FQDN: &str = "has names (addressType FQDN) instead of addresses, so it is not used; connections are \
                    forwarded to addresses only: make a slice of type IPv4 or IPv6";

/// Judges endpoints' addresses one by one.
pub(super) struct Judge<'a> {
    /// VIPs and the gateway's own addresses.
    taken: HashSet<IpAddr>,
    /// The oldest member that has an endpoint of this address.
    claims: HashMap<IpAddr, &'a str>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(
        fronts: &BTreeMap<ObjectName, Front<'_>>,
        clusters: &Clusters<'a>,
        members: &Members,
        taken: HashSet<IpAddr>,
    ) -> Self {
        let mut claims = HashMap::new();
        for &(cluster, ref index) in clusters {
            let Some(member) = members.get(cluster).filter(|member| member.has_endpoints()) else { continue };
            let slices = fronts.keys().filter_map(|name| index.slices.get(name)).flatten();
            for endpoint in slices.flat_map(|slice| slice.endpoints.iter().flatten()) {
                let address = endpoint.addresses.first().and_then(|address| address.parse().ok());
                if let Some(address) = address.filter(|&address| member.owns(address)) {
                    claims.entry(address).or_insert(cluster);
                }
            }
        }
        Self { taken, claims }
    }

    fn refusal(&self, cluster: &str, member: &Member, address: IpAddr) -> Option<Reason> {
        if !member.owns(address) {
            Some(Reason::OutsideMemberNetwork)
        } else if self.taken.contains(&address) {
            Some(Reason::GatewayAddress)
        } else if self.claims.get(&address).is_some_and(|&owner| owner != cluster) {
            Some(Reason::ClaimedByOtherMember)
        } else {
            None
        }
    }
}

/// The services of a front: one for each port and VIP, with the endpoints of the VIP's family.
pub(super) fn attach(
    front: &Front<'_>,
    vips: &[IpAddr],
    clusters: &Clusters<'_>,
    members: &Members,
    judge: &Judge<'_>,
    problems: &mut Problems,
) -> Vec<Service> {
    let mut merged: Vec<BTreeMap<BackendId, Endpoint>> = vec![BTreeMap::new(); front.ports.len()];
    for &(cluster, ref index) in clusters {
        let serves = |member: &&Member| member.has_endpoints() && front.selects(member);
        let Some(member) = members.get(cluster).filter(serves) else { continue };
        let Some(slices) = index.slices.get(&front.name) else { continue };
        let service = index.services.get(&front.name).copied();
        let exports = index.exports(&front.name);
        let source = Source { front, cluster, member, service, exports, slices, nodes: index.nodes, judge };
        source.collect(&mut merged, problems);
    }

    let has_tcp = front.ports.iter().any(|port| port.protocol == Protocol::Tcp);
    let mut services = Vec::new();
    let ranges: Vec<Option<SourceRanges>> = vips
        .iter()
        .map(|vip| {
            let ranges = front.sources.as_ref()?;
            Some(sources::for_vip(ranges, *vip, front.cluster, &front.name, problems))
        })
        .collect();
    for (port, endpoints) in front.ports.iter().zip(merged) {
        for (&vip, sources) in vips.iter().zip(&ranges) {
            let of_family = |endpoint: &&Endpoint| endpoint.backend.address.is_ipv4() == vip.is_ipv4();
            services.push(Service {
                id: ServiceId { vip, port: port.port, protocol: port.protocol },
                namespace: front.name.namespace.clone(),
                name: front.name.name.clone(),
                front: front.cluster.to_owned(),
                not_fronts: front.others.iter().map(|&cluster| cluster.to_owned()).collect(),
                port_name: port.name.clone(),
                endpoints: endpoints.values().filter(of_family).cloned().collect(),
                health_check: health_check(front, port, has_tcp),
                policy: front.policy.clone(),
                sources: sources.clone(),
                affinity: front.affinity,
            });
        }
    }
    services
}

/// A UDP port of a Service without TCP ports is probed only if its annotation says so by name.
fn health_check(front: &Front<'_>, port: &FrontPort, has_tcp: bool) -> HealthCheck {
    let check = front.check.check.clone();
    if port.protocol == Protocol::Udp && !has_tcp && !front.check.explicit {
        HealthCheck { kind: HealthCheckKind::None, ..check }
    } else {
        check
    }
}

/// One cluster's part in a front.
struct Source<'a> {
    front: &'a Front<'a>,
    cluster: &'a str,
    member: &'a Member,
    /// The cluster's Service of that name, of any type.
    service: Option<&'a KubeService>,
    /// Whether the cluster exports it.
    exports: bool,
    slices: &'a [&'a EndpointSlice],
    nodes: &'a BTreeMap<String, Place>,
    judge: &'a Judge<'a>,
}

impl Source<'_> {
    /// Adds this cluster's endpoints to those of each front port.
    fn collect(&self, merged: &mut [BTreeMap<BackendId, Endpoint>], problems: &mut Problems) {
        let object = problems::service(&self.front.name);
        let spec = self.service.and_then(|service| service.spec.as_ref());
        if spec.is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName")) {
            let message = "is of type ExternalName, which has no endpoints; its EndpointSlices are not used";
            problems.error(self.cluster, object, Reason::UnsupportedService, message);
            return;
        }

        let names: Vec<Option<&str>> = self.front.ports.iter().map(|port| self.port_name(port)).collect();
        let mut matched = vec![false; names.len()];
        let mut refused: BTreeMap<Reason, BTreeSet<IpAddr>> = BTreeMap::new();
        let mut any_endpoint = false;
        for slice in self.slices {
            if slice.address_type == "FQDN" {
                problems.error(self.cluster, slice_title(slice), Reason::FQDNEndpoints, FQDN);
                continue;
            }
            let ports: Vec<Option<u16>> = self
                .front
                .ports
                .iter()
                .zip(&names)
                .map(|(port, name)| slice_port(slice, (*name)?, port.protocol))
                .collect();
            let probe_port = self.sibling_port(&ports);
            for (matched, port) in matched.iter_mut().zip(&ports) {
                *matched |= port.is_some();
            }
            for endpoint in slice.endpoints.iter().flatten() {
                any_endpoint = true;
                let Some(address) = self.address(slice, endpoint, problems) else { continue };
                if let Some(reason) = self.judge.refusal(self.cluster, self.member, address) {
                    refused.entry(reason).or_default().insert(address);
                    continue;
                }
                for ((port, number), endpoints) in self.front.ports.iter().zip(&ports).zip(&mut *merged) {
                    let Some(number) = *number else { continue };
                    let backend = BackendId { protocol: port.protocol, address, port: number };
                    let probe_port = self.probe_port(port.protocol, number, probe_port);
                    add(endpoints, self.endpoint(endpoint, backend, probe_port));
                }
            }
        }

        for ((port, name), matched) in self.front.ports.iter().zip(names).zip(matched) {
            if any_endpoint && !matched && self.should_have(port, name) {
                let message = self.mismatch(port, name);
                problems.error(self.cluster, &object, Reason::PortMismatch, message);
            }
        }
        for (reason, addresses) in refused {
            problems.error(self.cluster, &object, reason, refusal_message(reason, &addresses));
        }
    }

    /// The name that the cluster's slices give to a front port: that of its own Service's port of the same
    /// protocol and number; without a Service of its own, the front's.
    fn port_name<'b>(&'b self, port: &'b FrontPort) -> Option<&'b str> {
        let Some(spec) = self.service.and_then(|service| service.spec.as_ref()) else {
            return Some(&port.name);
        };
        let own = spec.ports.iter().flatten().find(|own| {
            own.port == i32::from(port.port) && protocol(own.protocol.as_deref()) == Some(port.protocol)
        })?;
        Some(own.name.as_deref().unwrap_or_default())
    }

    /// Whether it is a mistake that the cluster has no endpoint of a port. Exports share the union of their
    /// ports, and each port goes to the clusters that have it.
    fn should_have(&self, port: &FrontPort, name: Option<&str>) -> bool {
        match name {
            None => !port.exported && !self.exports,
            Some(_) => !port.exported || self.service.is_some(),
        }
    }

    fn mismatch(&self, port: &FrontPort, name: Option<&str>) -> String {
        let FrontPort { port, protocol, .. } = port;
        match name {
            None => format!(
                "has no port {port}/{protocol}, which the Service in {} has, so this cluster's endpoints do \
                 not serve it; add the port",
                self.front.place()
            ),
            Some(name) => format!(
                "no EndpointSlice has a {protocol} port named {name:?}, which port {port} of the Service in \
                 {} needs, so this cluster's endpoints do not serve it; name the ports alike",
                self.front.place()
            ),
        }
    }

    /// The pod's port for the Service's first TCP port.
    fn sibling_port(&self, ports: &[Option<u16>]) -> Option<u16> {
        let first = self.front.ports.iter().position(|port| port.protocol == Protocol::Tcp)?;
        ports.get(first).copied().flatten()
    }

    fn probe_port(&self, protocol: Protocol, port: u16, sibling: Option<u16>) -> Option<u16> {
        let has_tcp = self.front.ports.iter().any(|port| port.protocol == Protocol::Tcp);
        match (&self.front.check.check.kind, protocol) {
            (HealthCheckKind::None, _) => None,
            _ if self.front.check.port.is_some() => self.front.check.port,
            (_, Protocol::Tcp) => Some(port),
            (_, Protocol::Udp) if has_tcp => sibling,
            (_, Protocol::Udp) => self.front.check.explicit.then_some(port),
        }
    }

    /// An endpoint's address; the others of the same endpoint are the same pod's.
    fn address(
        &self,
        slice: &EndpointSlice,
        endpoint: &KubeEndpoint,
        problems: &mut Problems,
    ) -> Option<IpAddr> {
        let text = endpoint.addresses.first()?;
        let address = text.parse::<IpAddr>().ok().filter(|address| match slice.address_type.as_str() {
            "IPv4" => address.is_ipv4(),
            "IPv6" => address.is_ipv6(),
            _ => false,
        });
        if address.is_none() {
            let message = format!(
                "EndpointSlice {} has the address {text:?} of type {}, which is not used; only IPv4 and IPv6 \
                 addresses are",
                slice.metadata.name.as_deref().unwrap_or_default(),
                slice.address_type
            );
            let object = problems::service(&self.front.name);
            problems.error(self.cluster, object, Reason::InvalidObject, message);
        }
        address
    }

    fn endpoint(&self, endpoint: &KubeEndpoint, backend: BackendId, probe_port: Option<u16>) -> Endpoint {
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let pod = endpoint
            .target_ref
            .as_ref()
            .filter(|target| target.kind.as_deref() == Some("Pod"))
            .and_then(|target| target.name.clone());
        let node = endpoint.node_name.as_ref().and_then(|node| self.nodes.get(node));
        let known = |text: &&String| !text.is_empty();
        let zone = endpoint.zone.as_ref().filter(known).or(node.map(|node| &node.zone));
        let region = node.map(|node| &node.region).filter(known).unwrap_or(&self.member.region);
        Endpoint {
            backend,
            cluster: self.cluster.to_owned(),
            region: region.clone(),
            zone: zone.cloned().unwrap_or_default(),
            pod: pod.unwrap_or_default(),
            ready,
            serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(ready),
            terminating: self.member.state == MemberState::Drain
                || conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
            probe_port,
        }
    }
}

/// Adds an endpoint. While the control plane moves one from slice to slice it is in two of them for a moment;
/// the more usable of the two counts.
fn add(endpoints: &mut BTreeMap<BackendId, Endpoint>, endpoint: Endpoint) {
    let rank = |endpoint: &Endpoint| (endpoint.takes_new_flows(), endpoint.serving, !endpoint.terminating);
    match endpoints.get_mut(&endpoint.backend) {
        Some(known) if rank(known) >= rank(&endpoint) => {}
        Some(known) => *known = endpoint,
        None => {
            endpoints.insert(endpoint.backend, endpoint);
        }
    }
}

fn slice_title(slice: &EndpointSlice) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("EndpointSlice {}/{}", text(&slice.metadata.namespace), text(&slice.metadata.name))
}

/// The port of a slice by name and protocol.
fn slice_port(slice: &EndpointSlice, name: &str, wanted: Protocol) -> Option<u16> {
    let port = slice.ports.iter().flatten().find(|port| {
        port.name.as_deref().unwrap_or_default() == name && protocol(port.protocol.as_deref()) == Some(wanted)
    })?;
    u16::try_from(port.port?).ok().filter(|&port| port > 0)
}

fn refusal_message(reason: Reason, addresses: &BTreeSet<IpAddr>) -> String {
    let mut list: Vec<String> = addresses.iter().take(NAMED_ADDRESSES).map(IpAddr::to_string).collect();
    if addresses.len() > NAMED_ADDRESSES {
        list.push(format!("{} more", addresses.len() - NAMED_ADDRESSES));
    }
    let list = list.join(", ");
    match reason {
        Reason::OutsideMemberNetwork => format!(
            "endpoints {list} are not used: outside the podCIDRs and nodeCIDRs of the MemberCluster; add \
             their network there, if they are the cluster's"
        ),
        Reason::GatewayAddress => format!(
            "endpoints {list} are not used: VIPs or addresses of the gateway itself cannot be backends; run \
             such pods elsewhere"
        ),
        _ => format!(
            "endpoints {list} are not used: an older member cluster (without timestamps: one that is first by \
             name) has these addresses; give the clusters networks of their own"
        ),
    }
}
