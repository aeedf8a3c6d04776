//! The endpoints that exported Services give to their imports.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceSpec;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};

use crate::desired::mcs::{ImportPort, ServiceImportSpec};
use crate::desired::{
    ClusterObjects, Desired, MemberCluster, MemberState, ObjectName, Place, slices_by_service,
};

/// What all clusters give, by import.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in super::super) struct Sources(pub(super) BTreeMap<ObjectName, Vec<Group>>);

/// The endpoints of one cluster that may be in one slice.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    /// Where they run.
    pub(super) cluster: String,
    /// `IPv4` or `IPv6`.
    pub(super) family: String,
    /// By the names that the import gives them.
    pub(super) ports: Vec<EndpointPort>,
    pub(super) endpoints: BTreeMap<IpAddr, Endpoint>,
}

impl Sources {
    /// Reads the EndpointSlices of all Services whose export counts.
    pub(in super::super) fn new(
        clusters: &BTreeMap<String, Arc<ClusterObjects>>,
        members: &[MemberCluster],
        desired: &Desired,
    ) -> Self {
        let mut sources: BTreeMap<ObjectName, Vec<Group>> = BTreeMap::new();
        for (cluster, objects) in clusters {
            let exported: Vec<(&ObjectName, &ServiceImportSpec)> = desired
                .exports
                .iter()
                .filter(|(_, state)| state.clusters.contains(cluster))
                .filter_map(|(name, state)| Some((name, state.import.as_ref()?)))
                .collect();
            if exported.is_empty() {
                continue;
            }
            let slices = slices_by_service(objects);
            let services = services(objects);
            let drains = is_draining(members, cluster);
            for (name, import) in exported {
                let service = services.get(&(name.namespace.as_str(), name.name.as_str())).copied();
                let source = Source { cluster, service, import, nodes: &objects.nodes, drains };
                let groups = source.groups(slices.get(name).map_or(&[][..], Vec::as_slice));
                sources.entry(name.clone()).or_default().extend(groups);
            }
        }
        Self(sources)
    }
}

fn is_draining(members: &[MemberCluster], cluster: &str) -> bool {
    let is_it = |member: &&MemberCluster| member.metadata.name.as_deref() == Some(cluster);
    members.iter().find(is_it).is_some_and(|member| member.spec.state == MemberState::Drain)
}

fn services(objects: &ClusterObjects) -> BTreeMap<(&str, &str), &ServiceSpec> {
    let mut services = BTreeMap::new();
    for service in &objects.services {
        let key = (
            service.metadata.namespace.as_deref().unwrap_or("default"),
            service.metadata.name.as_deref().unwrap_or_default(),
        );
        if let Some(spec) = &service.spec {
            services.entry(key).or_insert(spec);
        }
    }
    services
}

/// One cluster's export.
struct Source<'a> {
    cluster: &'a str,
    service: Option<&'a ServiceSpec>,
    import: &'a ServiceImportSpec,
    nodes: &'a BTreeMap<String, Place>,
    /// Nothing new should go there.
    drains: bool,
}

impl Source<'_> {
    fn groups(&self, slices: &[&EndpointSlice]) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for slice in slices {
            let family = slice.address_type.as_str();
            if family != "IPv4" && family != "IPv6" {
                continue;
            }
            let Some(ports) = self.ports(slice) else { continue };
            let place = groups.iter().position(|group| group.family == family && group.ports == ports);
            let place = place.unwrap_or_else(|| {
                groups.push(Group {
                    cluster: self.cluster.to_owned(),
                    family: family.to_owned(),
                    ports,
                    endpoints: BTreeMap::new(),
                });
                groups.len() - 1
            });
            for endpoint in slice.endpoints.iter().flatten() {
                let address = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok());
                if let Some(address) = address.filter(|address| address.is_ipv4() == (family == "IPv4")) {
                    add(&mut groups[place].endpoints, address, self.endpoint(endpoint, address));
                }
            }
        }
        groups.retain(|group| !group.endpoints.is_empty());
        groups
    }

    /// A slice's ports by the names of the import's, without those that the import does not have. `None`: none is
    /// left, so that there is nothing to connect to.
    fn ports(&self, slice: &EndpointSlice) -> Option<Vec<EndpointPort>> {
        let own = slice.ports.as_deref().unwrap_or_default();
        let mut ports: Vec<EndpointPort> = own
            .iter()
            .filter_map(|port| {
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                let name = self.name(port.name.as_deref().unwrap_or_default(), &protocol)?.to_owned();
                Some(EndpointPort { name: Some(name), protocol: Some(protocol), ..port.clone() })
            })
            .collect();
        ports.sort_by(|a, b| (&a.name, &a.protocol).cmp(&(&b.name, &b.protocol)));
        // A headless Service need not have ports.
        (!ports.is_empty() || (own.is_empty() && self.import.ports.is_empty())).then_some(ports)
    }

    /// The import's name for a port of the Service's slices: that of the import's port of the same number. Slices that
    /// no Service explains are matched by name.
    fn name(&self, own: &str, protocol: &str) -> Option<&str> {
        let ports = self.service.and_then(|service| service.ports.as_deref()).unwrap_or_default();
        let number = ports
            .iter()
            .find(|port| {
                port.name.as_deref().unwrap_or_default() == own
                    && port.protocol.as_deref().unwrap_or("TCP") == protocol
            })
            .map(|port| port.port);
        let is_it = |port: &&ImportPort| {
            port.protocol == protocol && number.map_or(port.name == own, |number| port.port == number)
        };
        self.import.ports.iter().find(is_it).map(|port| port.name.as_str())
    }

    fn endpoint(&self, endpoint: &Endpoint, address: IpAddr) -> Endpoint {
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
        let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
        let node = endpoint.node_name.as_ref().and_then(|node| self.nodes.get(node));
        let zone = endpoint.zone.as_ref().or(node.map(|node| &node.zone)).filter(|zone| !zone.is_empty());
        Endpoint {
            addresses: vec![address.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(ready && !self.drains),
                serving: Some(serving),
                terminating: Some(terminating || self.drains),
            }),
            hostname: endpoint.hostname.clone(),
            node_name: endpoint.node_name.clone(),
            zone: zone.cloned(),
            ..Endpoint::default()
        }
    }
}

/// Adds an endpoint; of one that is in two slices, because it is being moved, the more usable counts.
fn add(endpoints: &mut BTreeMap<IpAddr, Endpoint>, address: IpAddr, endpoint: Endpoint) {
    let rank = |endpoint: &Endpoint| {
        endpoint.conditions.as_ref().map(|conditions| {
            (conditions.ready, conditions.serving, conditions.terminating.map(|terminating| !terminating))
        })
    };
    if endpoints.get(&address).is_none_or(|known| rank(known) < rank(&endpoint)) {
        endpoints.insert(address, endpoint);
    }
}
