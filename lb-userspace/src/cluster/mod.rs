//! Where member clusters' objects come from: Kubernetes ([`kubernetes`]), or a directory of manifests
//! ([`manifests`]). Either gives a channel of [`Snapshot`]s; nothing behind it knows which it is.

mod cache;
pub mod kubernetes;
pub mod manifests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use crate::desired::{AreaStatus, ClusterObjects, GatewayObjects, ObjectName, Place, Problem, Severity};

pub use cache::{CacheError, LastGood, load_last_good, store_last_good};
pub use manifests::{Manifest, ManifestError, Object, parse};

/// What all clusters say at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// What belongs to the gateway.
    pub gateway: GatewayObjects,
    /// The clusters, by name.
    pub clusters: BTreeMap<String, Arc<ClusterObjects>>,
    /// How the clusters' API servers answer, by name of the cluster; empty for manifests.
    pub connections: BTreeMap<String, Connection>,
    /// Where the gateway is, as its Node's labels say; empty where they don't.
    pub place: Place,
    /// What could not be read.
    pub problems: Vec<Problem>,
    /// Whether what is not in here does not exist, so that maps from an earlier run may be planned over. Once it
    /// is so, it stays so.
    ///
    /// Manifests: always. Kubernetes: as soon as what the gateway cluster has (MemberClusters, Secrets, pools,
    /// fronts) and what each member that is served has is known, be it read now or from the last good state on
    /// disk. What cannot be read holds that up for 60 s at most, from when the gateway cluster has told its
    /// MemberClusters and its Services (or says that the latter may not be read), or from the start where there
    /// is a last good state: a dead member that is new must not block. But while there is no last good state and
    /// the gateway cluster does not tell its MemberClusters, nothing is known, for as long as that takes.
    pub complete: bool,
}

/// What a gateway's packet program makes of the VIPs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Programmed {
    /// Whether anything has been programmed yet; before, nothing can be said.
    pub known: bool,
    /// Whether each VIP that this gateway should serve is forwarded, or why not.
    pub vips: BTreeMap<IpAddr, Result<(), NotProgrammed>>,
    /// Whether the packet program is about to be taken away, for good: the agent ends and leaves nothing behind.
    pub leaving: bool,
    /// How the Services of each LoadBalancingPolicy do.
    pub policies: BTreeMap<ObjectName, PolicyReport>,
    /// Member clusters none of whose endpoints this gateway reaches, by name, and why.
    pub blocked: BTreeMap<String, String>,
}

/// How the Services of a LoadBalancingPolicy do on a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyReport {
    /// By Service, region and zone: what is there and what it gets.
    pub areas: Vec<AreaStatus>,
    /// Why more is used than the policy asks for, or less served; `None`: all is well.
    pub degraded: Option<String>,
}

/// Why a VIP is not forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotProgrammed {
    /// One word.
    pub reason: &'static str,
    /// Why, and what to do, for people.
    pub message: String,
}

/// How a member cluster's API server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Whether it does; `None`: it has not been asked yet.
    pub connected: Option<bool>,
    /// Whether everything that it has was read on the present connection.
    pub synced: bool,
    /// One word: `Connected`, or why it is not.
    pub reason: &'static str,
    /// A sentence for people; empty while all is well.
    pub message: String,
    /// Since when it is or is not connected.
    pub since: Timestamp,
    /// The server's version; empty until it is known.
    pub version: String,
    /// Whether what Kanmon writes there may be written; `None`: not known.
    pub writable: Option<bool>,
}

/// Says each problem once when it appears and once when it is gone.
fn log_changes(before: &[Problem], now: &[Problem]) {
    for problem in now.iter().filter(|problem| !before.contains(problem)) {
        match problem.severity {
            Severity::Error => tracing::error!("{problem}"),
            Severity::Warning => tracing::warn!("{problem}"),
        }
    }
    for problem in before {
        let still = |other: &Problem| (&other.cluster, &other.object) == (&problem.cluster, &problem.object);
        if !now.iter().any(still) {
            tracing::info!("{} is good again", problem.object);
        }
    }
}
