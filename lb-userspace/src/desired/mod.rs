//! Desired state: the merge of all clusters' objects.
//!
//! [`merge`] is pure. It takes what each member cluster says about its Services and endpoints, and what the
//! gateway says about pools and members, and gives the services that this gateway should serve, each with the
//! endpoints of every cluster, plus a list of everything that was refused and what to do about it.

mod resources;
mod types;

pub use resources::{
    AddressPool, AddressPoolSpec, Discovery, KubeconfigSecretRef, LocalSource, MemberCluster,
    MemberClusterSpec, MemberSource, MemberState, PoolScope,
};
pub use types::{
    Allocations, BackendId, ClusterObjects, Desired, Endpoint, GatewayObjects, HealthCheck, HealthCheckKind,
    ObjectName, Problem, Protocol, Reason, Service, ServiceId, Severity,
};
