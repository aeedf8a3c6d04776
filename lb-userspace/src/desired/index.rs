//! Each cluster's objects by namespace and name.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service as KubeService;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::mcs::ServiceExport;
use super::members::Members;
use super::problems::{self, Problems};
use super::resources::Discovery;
use super::types::{ClusterObjects, ObjectName, Place, Reason};

/// Names the Service that a slice belongs to.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Names who writes a slice.
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// On slices that a multi-cluster controller copied from another cluster.
const IMPORTED_LABELS: [&str; 2] =
    ["multicluster.kubernetes.io/service-name", "multicluster.kubernetes.io/source-cluster"];
/// Ends of the names of those who copy slices from cluster to cluster: ours, and those of other meshes that
/// label their copies as slices of the Service itself. What they copied is counted where it comes from.
const COPIERS: [&str; 4] = ["kanmon.dev", "cilium.io", "karmada.io", "submariner.io"];

/// The Services of one cluster.
pub(super) type Services<'a> = BTreeMap<ObjectName, &'a KubeService>;

/// The clusters whose objects count, the oldest first.
pub(super) type Clusters<'a> = Vec<(&'a str, Index<'a>)>;

/// The objects of one cluster.
#[derive(Debug)]
pub(super) struct Index<'a> {
    pub(super) services: Services<'a>,
    /// By the Service that they belong to, in the order of their names.
    pub(super) slices: BTreeMap<ObjectName, Vec<&'a EndpointSlice>>,
    pub(super) nodes: &'a BTreeMap<String, Place>,
    /// ServiceExports, without those on their way out.
    pub(super) exports: BTreeMap<ObjectName, &'a ServiceExport>,
    /// Services that take no part, because only exported ones do.
    pub(super) withheld: Services<'a>,
}

impl<'a> Index<'a> {
    /// The Service of that name, whether or not it takes part.
    pub(super) fn service(&self, name: &ObjectName) -> Option<&'a KubeService> {
        self.services.get(name).or_else(|| self.withheld.get(name)).copied()
    }

    /// Whether a ServiceExport names this Service, and it is one that can be exported.
    pub(super) fn exports(&self, name: &ObjectName) -> bool {
        self.exports.contains_key(name) && self.service(name).is_some_and(is_exportable)
    }

    /// Leaves the exported Services and their slices only.
    fn withhold(&mut self) {
        let names: Vec<ObjectName> = self.services.keys().cloned().collect();
        for name in names {
            if !self.exports(&name)
                && let Some(service) = self.services.remove(&name)
            {
                self.withheld.insert(name, service);
            }
        }
        self.slices.retain(|name, _| self.services.contains_key(name));
    }
}

/// Whether a Service has endpoints that others could use.
pub(super) fn is_exportable(service: &KubeService) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() != Some("ExternalName"))
}

/// Indexes the clusters that are not refused.
pub(super) fn build<'a>(
    clusters: &'a BTreeMap<String, Arc<ClusterObjects>>,
    members: &Members,
    problems: &mut Problems,
) -> Clusters<'a> {
    index_those(false, clusters, members, problems)
}

/// Indexes the clusters that are refused: nothing of them is used, but people there are told why.
pub(super) fn build_refused<'a>(
    clusters: &'a BTreeMap<String, Arc<ClusterObjects>>,
    members: &Members,
) -> Clusters<'a> {
    index_those(true, clusters, members, &mut Problems::default())
}

fn index_those<'a>(
    refused: bool,
    clusters: &'a BTreeMap<String, Arc<ClusterObjects>>,
    members: &Members,
    problems: &mut Problems,
) -> Clusters<'a> {
    let mut indexed = Clusters::new();
    for name in members.oldest_first() {
        let (Some(member), Some((name, objects))) = (members.get(name), clusters.get_key_value(name)) else {
            continue;
        };
        if member.refused == refused {
            let mut index = index(name, objects, problems);
            if member.discovery == Discovery::ServiceExport {
                index.withhold();
            }
            indexed.push((name, index));
        }
    }
    indexed
}

/// Services by name; the first of a name counts.
pub(super) fn services<'a>(
    cluster: &str,
    objects: &'a [KubeService],
    problems: &mut Problems,
) -> Services<'a> {
    let mut services = Services::new();
    for service in objects {
        match services.entry(object_name(&service.metadata)) {
            Entry::Vacant(vacant) => {
                vacant.insert(service);
            }
            Entry::Occupied(known) => duplicate(cluster, problems::service(known.key()), problems),
        }
    }
    services
}

/// The EndpointSlices of a cluster by the Service that they belong to: those that its own control plane or its people
/// made, without those that are left over.
#[must_use]
pub fn slices_by_service(objects: &ClusterObjects) -> BTreeMap<ObjectName, Vec<&EndpointSlice>> {
    index("", objects, &mut Problems::default()).slices
}

fn index<'a>(cluster: &str, objects: &'a ClusterObjects, problems: &mut Problems) -> Index<'a> {
    let services = services(cluster, &objects.services, problems);
    let mut by_service: BTreeMap<ObjectName, Vec<&EndpointSlice>> = BTreeMap::new();
    let mut slices: Vec<(ObjectName, &EndpointSlice)> =
        objects.slices.iter().map(|slice| (object_name(&slice.metadata), slice)).collect();
    slices.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut seen = BTreeSet::new();
    for (name, slice) in slices {
        let label = |key: &str| slice.metadata.labels.as_ref().and_then(|labels| labels.get(key));
        let copied = IMPORTED_LABELS.iter().any(|key| label(key).is_some())
            || label(MANAGED_BY_LABEL)
                .is_some_and(|manager| COPIERS.iter().any(|copier| manager.ends_with(copier)));
        let Some(service) = label(SERVICE_NAME_LABEL).filter(|_| !copied) else { continue };
        if !name.name.is_empty() && !seen.insert(name.clone()) {
            duplicate(cluster, format!("EndpointSlice {name}"), problems);
            continue;
        }
        let service = ObjectName { namespace: name.namespace, name: service.clone() };
        if !is_left_over(slice, services.get(&service).copied()) {
            by_service.entry(service).or_default().push(slice);
        }
    }
    let exports = exports(cluster, &objects.exports, problems);
    Index { services, slices: by_service, nodes: &objects.nodes, exports, withheld: Services::new() }
}

/// ServiceExports by name; the first of a name counts. One on its way out is gone.
fn exports<'a>(
    cluster: &str,
    objects: &'a [ServiceExport],
    problems: &mut Problems,
) -> BTreeMap<ObjectName, &'a ServiceExport> {
    let mut exports = BTreeMap::new();
    for export in objects.iter().filter(|export| export.metadata.deletion_timestamp.is_none()) {
        match exports.entry(object_name(&export.metadata)) {
            Entry::Vacant(vacant) => {
                vacant.insert(export);
            }
            Entry::Occupied(known) => duplicate(cluster, format!("ServiceExport {}", known.key()), problems),
        }
    }
    exports
}

/// Whether a slice is still there although the Service that owned it is gone, or was made again under another
/// UID: the garbage collector takes a while. A slice that no Service owns (hand-made, or mirrored from an
/// Endpoints object) belongs to whatever has the name.
fn is_left_over(slice: &EndpointSlice, service: Option<&KubeService>) -> bool {
    let present = service.map(|service| service.metadata.uid.as_deref());
    slice.metadata.owner_references.iter().flatten().filter(|owner| owner.kind == "Service").any(|owner| {
        match present {
            None => true,
            // A Service from a file has no UID.
            Some(uid) => uid.is_some_and(|uid| uid != owner.uid),
        }
    })
}

fn duplicate(cluster: &str, object: String, problems: &mut Problems) {
    let message = "is there twice; the first one counts; remove the other";
    problems.error(cluster, object, Reason::DuplicateObject, message);
}

/// An object's name; a manifest may leave the namespace out.
pub(super) fn object_name(metadata: &ObjectMeta) -> ObjectName {
    ObjectName {
        namespace: metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        name: metadata.name.clone().unwrap_or_default(),
    }
}
