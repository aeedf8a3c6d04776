//! Each cluster's objects by namespace and name.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service as KubeService;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::members::Members;
use super::problems::{self, Problems};
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
}

/// Indexes the clusters that are not refused.
pub(super) fn build<'a>(
    clusters: &'a BTreeMap<String, Arc<ClusterObjects>>,
    members: &Members,
    problems: &mut Problems,
) -> Clusters<'a> {
    let used = |name: &&str| members.get(name).is_none_or(|member| !member.refused);
    let names = members.oldest_first().into_iter().filter(used);
    names
        .filter_map(|name| clusters.get_key_value(name))
        .map(|(name, objects)| (name.as_str(), index(name, objects, problems)))
        .collect()
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
    Index { services, slices: by_service, nodes: &objects.nodes }
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

fn object_name(metadata: &ObjectMeta) -> ObjectName {
    ObjectName {
        namespace: metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        name: metadata.name.clone().unwrap_or_default(),
    }
}
