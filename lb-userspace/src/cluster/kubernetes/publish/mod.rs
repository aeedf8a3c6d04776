//! What Kanmon says in the clusters: from desired state, and from what is there now, to the writes that are missing.
//! Pure: no I/O, and time comes in.
//!
//! Each cluster that may be written to has a list of [`Write`]s, computed anew from every state. Where all is as it
//! should be the list is empty: a steady state writes nothing.

#[cfg(test)]
mod allocation_races;
pub(super) mod allocations;
mod condition;
mod exports;
mod imports;
mod members;
pub(super) mod policies;
pub(super) mod pools;
pub(super) mod present;
pub(super) mod programmed;
mod services;
mod slices;
mod sources;
#[cfg(test)]
mod tests;
mod write;

use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;
use sha2::{Digest, Sha256};

use super::attendance::Absences;
use crate::desired::{AddressAllocation, Desired, Knowledge, Problem};

pub(super) use condition::conditions;
pub(super) use members::{MEMBER_CLUSTERS, writes as member_writes};
pub(super) use present::Present;
pub(super) use sources::Sources;
pub(super) use write::{Action, Kind, LEASE, SERVICE, SLICE, Write, service_export, service_import};

/// A cluster that is written to, and all that is known while that is decided.
///
/// It is handed out only where [`Present`] is what the cluster has now: connected, every list read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cluster<'a> {
    /// Its name as a member; empty: the gateway cluster, where that is no member. The same as in
    /// `FrontState::cluster` and in the keys of `ExportState::exports`.
    pub(super) name: &'a str,
    /// What it holds now.
    pub(super) present: &'a Present,
    /// What the last merge made of everything.
    pub(super) desired: &'a Desired,
    /// The endpoints that exported Services give; the same for all clusters.
    pub(super) sources: &'a Sources,
    /// Who has which address, as it is written in the gateway cluster, with status.
    pub(super) allocations: &'a [AddressAllocation],
    /// The gateways that are not there, whatever they said in the allocations' status.
    pub(super) absences: &'a Absences,
    /// The label [`CLUSTER_SET_LABEL`](crate::desired::CLUSTER_SET_LABEL)'s value on all that we make.
    pub(super) cluster_set_id: &'a str,
    /// Now, in whole seconds, as API servers keep it.
    pub(super) now: Timestamp,
}

impl Cluster<'_> {
    /// Whether objects can be made in a namespace: it exists, and is not on its way out.
    fn has_namespace(&self, namespace: &str) -> bool {
        self.present.namespaces.get(namespace) == Some(&false)
    }

    /// Whether a namespace is on its way out, and takes everything in it along.
    fn is_ending(&self, namespace: &str) -> bool {
        self.present.namespaces.get(namespace) == Some(&true)
    }

    /// Whether the merge knew all members' objects. While it did not, what comes from the others stays.
    fn is_complete(&self) -> bool {
        self.desired.knowledge > Knowledge::Partial
    }

    /// Whether what a cluster gave may still be wanted there: it has told nothing yet.
    fn is_unknown(&self, source: &str) -> bool {
        !self.is_complete() && !self.desired.clusters.contains(source)
    }

    /// Whether an object is one that this cluster set made.
    fn is_ours(&self, metadata: &ObjectMeta) -> bool {
        present::is_of(metadata, self.cluster_set_id)
    }
}

/// The value of `endpointslice.kubernetes.io/managed-by` on EndpointSlices that we make.
pub(super) const SLICE_MANAGER: &str = "kanmon.dev";

/// On every object that Kanmon makes: what made it; beside it the value.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "kanmon");

/// Eight hexadecimal digits that stand for a text in names: the first four bytes of its SHA-256.
pub(super) fn short_hash(text: &str) -> String {
    Sha256::digest(text).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The field manager of what is published in the name of a cluster set: another set's is another, so that neither
/// takes the other's fields.
pub(super) fn field_manager(cluster_set_id: &str) -> String {
    format!("kanmon.dev/{cluster_set_id}")
}

/// Whether the metadata say that this manager owns something in the status. Of `managedFields` only this is kept in
/// [`Present`].
pub(super) fn owns_status(metadata: &ObjectMeta, manager: &str) -> bool {
    metadata.managed_fields.iter().flatten().any(|entry| {
        entry.manager.as_deref() == Some(manager) && entry.subresource.as_deref() == Some("status")
    })
}

/// The field manager of what gateways write about themselves: MemberClusters, pools, allocations.
pub(super) const GATEWAY_MANAGER: &str = "kanmon.dev/gateway";

/// The longest name of a field manager.
const MANAGER_LENGTH: usize = 128;

/// The field manager of what one gateway says of itself alone. What is left of a long name is still the same after each
/// start.
pub(super) fn gateway_manager(gateway: &str) -> String {
    format!("{GATEWAY_MANAGER}/{gateway}").chars().take(MANAGER_LENGTH).collect()
}

/// What is missing in a cluster, and what is wrong there.
pub(super) fn cluster_writes(cluster: &Cluster<'_>) -> (Vec<Write>, Vec<Problem>) {
    let mut writes = services::writes(cluster);
    writes.extend(exports::writes(cluster));
    let (imports, problems) = imports::writes(cluster);
    writes.extend(imports);
    (writes, problems)
}
