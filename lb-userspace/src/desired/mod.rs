//! Desired state: the merge of all clusters' objects.
//!
//! [`merge`] is pure. It takes what each member cluster says about its Services and endpoints, and what the
//! gateway says about pools and members, and gives the services that this gateway should serve, each with the
//! endpoints of every cluster, plus a list of everything that was refused and what to do about it.

mod addresses;
mod crds;
mod endpoints;
mod fronts;
mod health_check;
mod index;
mod members;
mod problems;
mod resources;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use crds::{crds, crds_yaml};
pub use resources::{
    AddressPool, AddressPoolSpec, Discovery, KubeconfigSecretRef, LocalSource, MemberCluster,
    MemberClusterSpec, MemberClusterStatus, MemberSource, MemberState, PoolScope,
};
pub use types::{
    Allocations, BackendId, ClusterObjects, Desired, Endpoint, GatewayObjects, HealthCheck, HealthCheckKind,
    ObjectName, Place, Problem, Protocol, Reason, Service, ServiceId, Severity,
};

/// The value of `spec.loadBalancerClass` that makes a Service one of ours.
pub const LOAD_BALANCER_CLASS: &str = "kanmon.dev/xdp";

/// Merges the objects of all clusters, by name of cluster.
///
/// - *Front*: a Service of type LoadBalancer and class [`LOAD_BALANCER_CLASS`]. Where several clusters have
///   one of the same namespace and name, the gateway cluster's counts, else the oldest member's; the VIP
///   survives while any remains. Endpoints come from every member that has EndpointSlices of that namespace
///   and name.
/// - *Older* is whose MemberCluster was made first; without timestamps, and for a tie, the first by name. An
///   address, or a declared network, that two members claim is the older one's.
/// - `gateway_addresses` are the node's own addresses: no endpoint may have one, and no pool gives one away.
///   (A Service that asks for one as its VIP gets it.)
/// - `previous` are the [`Desired::allocations`] of the last merge: an address that is still in a pool stays
///   with its Service. Without them the result is the same on every gateway.
#[must_use]
pub fn merge(
    clusters: &BTreeMap<String, Arc<ClusterObjects>>,
    gateway: &GatewayObjects,
    gateway_addresses: &BTreeSet<IpAddr>,
    previous: &Allocations,
) -> Desired {
    let mut problems = problems::Problems::default();
    let members = members::declare(&gateway.members, clusters.keys(), &mut problems);
    let index = index::build(clusters, &members, &mut problems);
    let own = index::services("", &gateway.services, &mut problems);
    let fronts = fronts::collect(&own, &index, members.local(), &mut problems);
    let (vips, allocations) =
        addresses::assign(&fronts, &gateway.pools, gateway_addresses, previous, &mut problems);

    let taken = vips.values().flatten().chain(gateway_addresses).copied().collect();
    let judge = endpoints::Judge::new(&fronts, &index, &members, taken);
    let mut services = BTreeMap::new();
    for (name, front) in &fronts {
        let vips = vips.get(name).map_or(&[][..], Vec::as_slice);
        for service in endpoints::attach(front, vips, &index, &members, &judge, &mut problems) {
            services.insert(service.id, service);
        }
    }
    Desired { services, problems: problems.sorted(), allocations }
}
