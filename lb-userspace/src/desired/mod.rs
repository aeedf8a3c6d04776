//! Desired state: the merge of all clusters' objects.
//!
//! [`merge`] is pure. It takes what each member cluster says about its Services and endpoints, and what the
//! gateway says about pools and members, and gives the services that this gateway should serve, each with the
//! endpoints of every cluster, plus a list of everything that was refused and what to do about it.

mod addresses;
mod affinity;
mod cidr_plan;
mod crds;
mod endpoints;
mod enforcement;
mod exports;
#[cfg(test)]
pub(crate) mod fixtures;
mod fronts;
mod health_check;
mod index;
pub mod mcs;
mod mcs_crds;
mod members;
mod policies;
mod policy;
mod problems;
mod resources;
mod sources;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use addresses::pool_use;
pub use cidr_plan::{Network, NetworkKind, Site, conflicts, overlaps};
pub use crds::{crds, crds_yaml};
pub use health_check::{HealthCheck, HealthCheckKind};
pub use index::slices_by_service;
pub use mcs_crds::{Revision, mcs_crds, mcs_crds_yaml};
pub use members::{declared_networks, parse_cidr};
pub use policies::judge_policies;
pub use policy::{Area, FlowLogging, Locality, NewFlowLimit, OutlierDetection, Policy};
pub use problems::cluster_place;
pub use resources::{
    AddressAllocation, AddressAllocationSpec, AddressAllocationStatus, AddressPool, AddressPoolSpec,
    AddressPoolStatus, AreaStatus, CLUSTER_SET_LABEL, ClientPrefix, Discovery, Distribute, Failover, FlowLog,
    GROUP_LABEL, GatewayState, HealthCheckSpec, HealthCheckType, KubeconfigSecretRef, LabelExpression,
    LabelOperator, LabelSelector, LoadBalancingPolicy, LoadBalancingPolicySpec, LoadBalancingPolicyStatus,
    LocalSource, LocalitySpec, MemberCluster, MemberClusterSpec, MemberClusterStatus, MemberSource,
    MemberState, OutlierDetectionSpec, PolicyGatewayState, PoolScope, ServiceReference, TargetRef,
    WeightedPlace, ZonePreference, allocation_name,
};
pub use sources::SourceRanges;
pub use types::{
    Allocations, BackendId, Claim, ClusterObjects, Desired, Endpoint, ExportJudgement, ExportState,
    FrontState, GatewayObjects, Judgement, Knowledge, ObjectName, Owner, Place, PolicyState, PoolUse,
    Problem, Protocol, Reason, Service, ServiceId, Severity,
};

/// The value of `spec.loadBalancerClass` that makes a Service one of ours.
pub const LOAD_BALANCER_CLASS: &str = "kanmon.dev/xdp";

/// Merges the objects of all clusters, by name of cluster.
///
/// - *Front*: a Service of type LoadBalancer and class [`LOAD_BALANCER_CLASS`]. Where several clusters have
///   one of the same namespace and name, the gateway cluster's counts, else the oldest member's; the VIP
///   survives while any remains. Endpoints come from every member that has EndpointSlices of that namespace
///   and name.
/// - *Exports*: a member whose discovery is ServiceExport contributes only what its ServiceExports name. Where
///   clusters export a service, its VIPs serve the union of the exported ports too, each port with the endpoints
///   of the clusters that have it, because that is what the ServiceImport promises.
/// - *Older* is whose MemberCluster was made first; without timestamps, and for a tie, the first by name. An
///   address, or a declared network, that two members claim is the older one's.
/// - `gateway_addresses` are the node's own addresses: no endpoint may have one, and no pool gives one away.
///   (A Service that asks for one as its VIP gets it.)
/// - *VIPs*: a Service names them (`kanmon.dev/addresses`, `spec.loadBalancerIP`), or a pool with `autoAssign`
///   gives one a family: one of the scope in `kanmon.dev/scope`, else an internal one before a public one. Services
///   that say the same in `kanmon.dev/shared-address` and have different ports share one.
/// - [`GatewayObjects::allocations`], where they are, say who has which VIP; what is missing there is in
///   [`Desired::claims`]. What a Service names is served at once unless it is written for another; what a pool gives,
///   once it is written.
/// - *Source ranges*: those of the front. What can't be read of them lets nobody in.
/// - *Policies*: each front goes by the oldest LoadBalancingPolicy of its namespace that names it, whose health check
///   goes before the annotations'. `place` is where this gateway is: what a policy says of regions and zones is
///   resolved from there.
/// - `previous` are the [`Desired::allocations`] of the last merge: an address that is still in a pool stays
///   with its Service. Without them the result is the same on every gateway.
#[must_use]
pub fn merge(
    clusters: &BTreeMap<String, Arc<ClusterObjects>>,
    gateway: &GatewayObjects,
    gateway_addresses: &BTreeSet<IpAddr>,
    place: &Place,
    previous: &Allocations,
) -> Desired {
    let mut problems = problems::Problems::default();
    let members = members::declare(&gateway.members, clusters.keys(), &mut problems);
    members::warn_of_overlaps(&gateway.members, &gateway.pools, &members, &mut problems);
    let index = index::build(clusters, &members, &mut problems);
    let own = index::services("", &gateway.services, &mut problems);
    let mut fronts = fronts::collect(&own, &index, members.local(), place, &mut problems);
    let addresses::Assigned { vips, allocations, claims } =
        addresses::assign(&fronts, gateway, gateway_addresses, previous, &mut problems);

    let policies = policies::attach(gateway, place, &members, &mut fronts, &mut problems);

    let refused = index::build_refused(clusters, &members);
    let exported = exports::gather(&index, &refused, &members);
    exports::open_ports(&exported, &mut fronts, &vips, &mut problems);

    let taken = vips.values().flatten().chain(gateway_addresses).copied().collect();
    let judge = endpoints::Judge::new(&fronts, &index, &members, taken);
    let mut services = BTreeMap::new();
    for (name, front) in &fronts {
        let vips = vips.get(name).map_or(&[][..], Vec::as_slice);
        for service in endpoints::attach(front, vips, &index, &members, &judge, &mut problems) {
            services.insert(service.id, service);
        }
    }
    let fronts = fronts.iter().map(|(name, front)| (name.clone(), state(front, vips.get(name)))).collect();
    let exports = exports::judge(&exported, &fronts, &mut problems);
    let problems = problems.sorted();
    Desired {
        services,
        problems,
        allocations,
        fronts,
        claims,
        exports,
        policies,
        complete: false,
        clusters: clusters.keys().cloned().collect(),
        knowledge: gateway.knowledge,
    }
}

fn state(front: &fronts::Front<'_>, vips: Option<&Vec<IpAddr>>) -> FrontState {
    let mut vips = vips.cloned().unwrap_or_default();
    vips.sort_unstable();
    FrontState {
        cluster: front.cluster.to_owned(),
        others: front.others.iter().map(|&cluster| cluster.to_owned()).collect(),
        vips,
    }
}
