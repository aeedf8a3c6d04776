//! Each cluster's objects by namespace and name.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service as KubeService;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::members::Member;
use super::problems::{self, Problems};
use super::types::{ClusterObjects, ObjectName, Reason};

/// Names the Service that a slice belongs to.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Names who writes a slice.
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// On slices that a multi-cluster controller copied from another cluster.
const IMPORTED_LABEL: &str = "multicluster.kubernetes.io/service-name";

/// The objects of one cluster.
#[derive(Debug, Default)]
pub(super) struct Index<'a> {
    pub(super) services: BTreeMap<ObjectName, &'a KubeService>,
    /// By the Service that they belong to, in the order of their names.
    pub(super) slices: BTreeMap<ObjectName, Vec<&'a EndpointSlice>>,
}

/// Indexes the clusters that are not refused.
pub(super) fn build<'a>(
    clusters: &'a BTreeMap<String, Arc<ClusterObjects>>,
    members: &BTreeMap<String, Member>,
    problems: &mut Problems,
) -> BTreeMap<&'a str, Index<'a>> {
    let used = |name: &String| members.get(name).is_none_or(|member| !member.refused);
    clusters
        .iter()
        .filter(|(name, _)| used(name))
        .map(|(name, objects)| (name.as_str(), index(name, objects, problems)))
        .collect()
}

fn index<'a>(cluster: &str, objects: &'a ClusterObjects, problems: &mut Problems) -> Index<'a> {
    let mut index = Index::default();
    for service in &objects.services {
        let name = object_name(&service.metadata);
        match index.services.entry(name) {
            Entry::Vacant(vacant) => {
                vacant.insert(service);
            }
            Entry::Occupied(known) => duplicate(cluster, problems::service(known.key()), problems),
        }
    }

    let mut slices: Vec<(ObjectName, &EndpointSlice)> =
        objects.slices.iter().map(|slice| (object_name(&slice.metadata), slice)).collect();
    slices.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut seen = BTreeSet::new();
    for (name, slice) in slices {
        let label = |key| slice.metadata.labels.as_ref().and_then(|labels| labels.get(key));
        let foreign = label(IMPORTED_LABEL).is_some()
            || label(MANAGED_BY_LABEL).is_some_and(|owner| owner.ends_with("kanmon.dev"));
        let Some(service) = label(SERVICE_NAME_LABEL).filter(|_| !foreign) else { continue };
        if !name.name.is_empty() && !seen.insert(name.clone()) {
            duplicate(cluster, format!("EndpointSlice {name}"), problems);
            continue;
        }
        let service = ObjectName { namespace: name.namespace, name: service.clone() };
        index.slices.entry(service).or_default().push(slice);
    }
    index
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
