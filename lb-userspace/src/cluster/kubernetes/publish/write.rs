//! One write into a cluster.

use kube::core::ObjectMeta;
use serde_json::Value;

use crate::desired::{ObjectName, mcs};

/// The resource that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in super::super) struct Kind {
    /// Empty for the core group.
    pub(in super::super) group: &'static str,
    pub(in super::super) version: &'static str,
    pub(in super::super) kind: &'static str,
    /// As in URLs.
    pub(in super::super) plural: &'static str,
}

/// Services.
pub(in super::super) const SERVICE: Kind =
    Kind { group: "", version: "v1", kind: "Service", plural: "services" };
/// EndpointSlices.
pub(in super::super) const SLICE: Kind =
    Kind { group: "discovery.k8s.io", version: "v1", kind: "EndpointSlice", plural: "endpointslices" };

/// Leases.
pub(in super::super) const LEASE: Kind =
    Kind { group: "coordination.k8s.io", version: "v1", kind: "Lease", plural: "leases" };

/// ServiceExports, in the version that a cluster serves.
pub(in super::super) const fn service_export(version: &'static str) -> Kind {
    Kind { group: mcs::GROUP, version, kind: "ServiceExport", plural: "serviceexports" }
}

/// ServiceImports, in the version that a cluster serves.
pub(in super::super) const fn service_import(version: &'static str) -> Kind {
    Kind { group: mcs::GROUP, version, kind: "ServiceImport", plural: "serviceimports" }
}

/// One write into a cluster.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Write {
    pub(in super::super) kind: Kind,
    /// Empty for what is cluster-scoped.
    pub(in super::super) namespace: String,
    pub(in super::super) name: String,
    pub(in super::super) action: Action,
}

impl Write {
    /// A write of a namespaced object.
    pub(super) fn new(kind: Kind, object: &ObjectName, action: Action) -> Self {
        Self { kind, namespace: object.namespace.clone(), name: object.name.clone(), action }
    }
}

/// How it is written. The values need neither `apiVersion` and `kind` nor `metadata.name` and `metadata.namespace`:
/// the writer adds them.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) enum Action {
    /// Made, if it does not exist; where it does, the watch will show whose it is.
    Create(Value),
    /// Replaced as a whole: `metadata.resourceVersion` in it says which one was seen, so that whoever was faster wins
    /// and the watch shows it.
    Replace(Value),
    /// Server-side apply of the subresource `status`, never forced: what another manager owns stays, and is told.
    ApplyStatus(Value),
    /// A JSON merge patch; `metadata.resourceVersion` in it says which one was seen.
    Merge(Value),
    /// Deleted, if it is still the one that was seen.
    Delete {
        /// `metadata.uid`.
        uid: String,
        /// `metadata.resourceVersion`, where it matters that nobody changed it.
        resource_version: Option<String>,
    },
}

impl Action {
    /// Deletes the very object that was seen, if nobody has changed it since.
    pub(in super::super) fn delete(seen: &ObjectMeta) -> Self {
        let uid = seen.uid.clone().unwrap_or_default();
        Self::Delete { uid, resource_version: seen.resource_version.clone() }
    }

    /// One word, for logs and to tell writes of one object apart.
    pub(in super::super) const fn verb(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Replace(_) => "replace",
            Self::ApplyStatus(_) => "apply status of",
            Self::Merge(_) => "patch",
            Self::Delete { .. } => "delete",
        }
    }
}
