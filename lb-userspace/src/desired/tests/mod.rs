//! Objects in as YAML, desired state out.

mod addresses;
mod allocations;
mod endpoints;
mod exports;
mod exports_conflicts;
mod fronts;
mod health_checks;
mod members;
mod policies;
mod pools;
mod seniority;
mod slices;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use super::{
    Allocations, ClusterObjects, Desired, Endpoint, GatewayObjects, ObjectName, Place, Problem, Protocol,
    Reason, Service, ServiceId, merge,
};
use crate::cluster::{Object, parse};

/// Everything that a merge takes.
#[derive(Default)]
struct World {
    clusters: BTreeMap<String, Arc<ClusterObjects>>,
    gateway: GatewayObjects,
    gateway_addresses: BTreeSet<IpAddr>,
    place: Place,
    previous: Allocations,
}

impl World {
    /// Adds objects of a cluster.
    fn cluster(mut self, name: &str, yaml: &str) -> Self {
        let objects = Arc::make_mut(self.clusters.entry(name.to_owned()).or_default());
        for object in parse(yaml).expect(yaml).objects {
            match object {
                Object::Service(service) => objects.services.push(*service),
                Object::Slice(slice) => objects.slices.push(*slice),
                Object::Export(export) => objects.exports.push(*export),
                Object::Pool(_) | Object::Member(_) | Object::Policy(_) => panic!("not a cluster's object"),
            }
        }
        self
    }

    /// Says where a node of a cluster is.
    fn node(mut self, cluster: &str, name: &str, region: &str, zone: &str) -> Self {
        let objects = Arc::make_mut(self.clusters.entry(cluster.to_owned()).or_default());
        let place = Place { region: region.to_owned(), zone: zone.to_owned() };
        objects.nodes.insert(name.to_owned(), place);
        self
    }

    /// Adds objects of the gateway.
    fn gateway(mut self, yaml: &str) -> Self {
        for object in parse(yaml).expect(yaml).objects {
            match object {
                Object::Pool(pool) => self.gateway.pools.push(*pool),
                Object::Member(member) => self.gateway.members.push(*member),
                Object::Policy(policy) => self.gateway.policies.push(*policy),
                Object::Service(service) => self.gateway.services.push(*service),
                Object::Slice(_) | Object::Export(_) => panic!("not the gateway's object"),
            }
        }
        self
    }

    /// Says where the gateway is.
    fn place(mut self, region: &str, zone: &str) -> Self {
        self.place = Place { region: region.to_owned(), zone: zone.to_owned() };
        self
    }

    fn gateway_address(mut self, address: &str) -> Self {
        self.gateway_addresses.insert(ip(address));
        self
    }

    fn merge(&self) -> Desired {
        merge(&self.clusters, &self.gateway, &self.gateway_addresses, &self.place, &self.previous)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn tcp(vip: &str, port: u16) -> ServiceId {
    ServiceId { vip: ip(vip), port, protocol: Protocol::Tcp }
}

fn udp(vip: &str, port: u16) -> ServiceId {
    ServiceId { protocol: Protocol::Udp, ..tcp(vip, port) }
}

fn name(text: &str) -> ObjectName {
    text.to_owned().try_into().expect(text)
}

/// A Service `demo/<name>` of our class with port 80/TCP named `http`; `more` is added to its spec.
fn front(name: &str, addresses: &str, more: &str) -> String {
    front_with(name, &[("kanmon.dev/addresses", addresses)], more)
}

fn front_with(name: &str, annotations: &[(&str, &str)], more: &str) -> String {
    let mut text =
        format!("---\napiVersion: v1\nkind: Service\nmetadata:\n  namespace: demo\n  name: {name}\n");
    text += "  annotations:\n    unrelated.example/x: \"1\"\n";
    for (key, value) in annotations.iter().filter(|(_, value)| !value.is_empty()) {
        writeln!(text, "    {key}: {value:?}").unwrap();
    }
    text += "spec:\n  type: LoadBalancer\n  loadBalancerClass: kanmon.dev/xdp\n";
    if !more.contains("ports:") {
        text += "  ports: [{name: http, port: 80}]\n";
    }
    for line in more.lines() {
        writeln!(text, "  {line}").unwrap();
    }
    text
}

/// An EndpointSlice `demo/<name>-<suffix>` with port `http` 8080/TCP and these addresses, all ready.
fn slice(name: &str, suffix: &str, addresses: &[&str]) -> String {
    let endpoints = addresses.iter().fold(String::new(), |mut text, address| {
        writeln!(
            text,
            "- {{addresses: [\"{address}\"], zone: z1, targetRef: {{kind: Pod, name: pod-{address}}}}}"
        )
        .unwrap();
        text
    });
    slice_with(name, suffix, "[{name: http, port: 8080, protocol: TCP}]", &endpoints)
}

fn slice_with(name: &str, suffix: &str, ports: &str, endpoints: &str) -> String {
    let family = if endpoints.contains("::") { "IPv6" } else { "IPv4" };
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: demo\n  \
         name: {name}-{suffix}\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\n\
         ports: {ports}\nendpoints:\n{endpoints}"
    )
}

fn member(name: &str, spec: &str) -> String {
    let mut text = format!(
        "---\napiVersion: kanmon.dev/v1alpha1\nkind: MemberCluster\nmetadata: {{name: {name}}}\nspec:\n  \
         region: cn-{name}\n"
    );
    for line in spec.lines() {
        writeln!(text, "  {line}").unwrap();
    }
    text
}

/// A member made at a time, RFC 3339.
fn member_of(name: &str, created: &str, spec: &str) -> String {
    let metadata = format!("metadata: {{name: {name}, creationTimestamp: \"{created}\"}}");
    member(name, spec).replace(&format!("metadata: {{name: {name}}}"), &metadata)
}

fn pool(name: &str, cidrs: &str) -> String {
    format!(
        "---\napiVersion: kanmon.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: {name}}}\n\
         spec: {{cidrs: {cidrs}}}\n"
    )
}

impl Desired {
    fn service(&self, id: ServiceId) -> &Service {
        self.services.get(&id).unwrap_or_else(|| panic!("no {id}: {:#?}", self.problems))
    }

    /// `cluster=address:port` of every endpoint.
    fn endpoints(&self, id: ServiceId) -> Vec<String> {
        let text = |endpoint: &Endpoint| {
            format!("{}={}:{}", endpoint.cluster, endpoint.backend.address, endpoint.backend.port)
        };
        self.service(id).endpoints.iter().map(text).collect()
    }

    fn ids(&self) -> Vec<ServiceId> {
        self.services.keys().copied().collect()
    }

    /// The only problem, which must have this reason and be about this.
    fn only_problem(&self, cluster: &str, object: &str, reason: Reason) -> &str {
        match self.problems.as_slice() {
            [problem] => {
                let found = (problem.cluster.as_str(), problem.object.as_str(), problem.reason);
                assert_eq!(found, (cluster, object, reason), "{problem}");
                &problem.message
            }
            problems => panic!("expected one {reason}, got {problems:#?}"),
        }
    }

    fn reasons(&self) -> Vec<Reason> {
        self.problems.iter().map(|Problem { reason, .. }| *reason).collect()
    }
}
