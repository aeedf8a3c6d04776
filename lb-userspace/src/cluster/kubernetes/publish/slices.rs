//! The EndpointSlices of imports: which endpoint is in which slice, and what of them is to be written.
//!
//! An endpoint stays in its slice for as long as there is one, so that one that changes rewrites one slice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ObjectMeta;
use serde_json::json;

use super::sources::Group;
use super::write::SLICE;
use super::{Action, Cluster, MANAGED_BY, Write, short_hash};
use crate::desired::mcs::{GROUP, SERVICE_NAME_LABEL, SOURCE_CLUSTER_LABEL};
use crate::desired::{CLUSTER_SET_LABEL, ObjectName};

/// As many as Kubernetes itself puts into one slice.
const LARGEST: usize = 100;
/// Says to other controllers that the slice is not theirs.
const SLICE_MANAGED_BY: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "kanmon.dev");

/// The slices of one import and source cluster that are there: by name.
type Written<'a> = Vec<(&'a ObjectName, &'a EndpointSlice)>;

/// What is to be written so that each import has its endpoints; `version` is that of the owners.
pub(super) fn writes(cluster: &Cluster<'_>, version: &'static str) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut written = written(cluster);
    for (import, groups) in &cluster.sources.0 {
        if !cluster.has_namespace(&import.namespace) {
            continue;
        }
        let sources: BTreeSet<&str> = groups.iter().map(|group| group.cluster.as_str()).collect();
        for source in sources {
            let present = written.remove(&(import.clone(), source.to_owned())).unwrap_or_default();
            // What should own them may not be there yet, or be another's.
            let Some(owner) = owner(cluster, import, source, version) else { continue };
            let groups = groups.iter().filter(|group| group.cluster == source);
            writes.extend(of_source(cluster, import, groups, &present, &owner));
        }
    }
    let gone = written.into_iter().filter(|((_, source), _)| !cluster.is_unknown(source));
    for (name, slice) in gone.flat_map(|(_, slices)| slices) {
        if !cluster.is_ending(&name.namespace) {
            writes.push(delete(name, slice));
        }
    }
    writes
}

/// Our slices, by import and source cluster.
fn written<'a>(cluster: &Cluster<'a>) -> BTreeMap<(ObjectName, String), Written<'a>> {
    let mut written: BTreeMap<(ObjectName, String), Written<'_>> = BTreeMap::new();
    for (name, slice) in &cluster.present.slices {
        let label = |key: &str| slice.metadata.labels.as_ref()?.get(key).cloned();
        if let (true, Some(service), Some(source)) =
            (cluster.is_ours(&slice.metadata), label(SERVICE_NAME_LABEL), label(SOURCE_CLUSTER_LABEL))
        {
            let import = ObjectName { namespace: name.namespace.clone(), name: service };
            written.entry((import, source)).or_default().push((name, slice));
        }
    }
    written
}

/// What takes the slices along when it goes: the export, where the endpoints are this cluster's own; else the import.
fn owner(
    cluster: &Cluster<'_>,
    import: &ObjectName,
    source: &str,
    version: &'static str,
) -> Option<OwnerReference> {
    let (kind, metadata) = if source == cluster.name {
        ("ServiceExport", &cluster.present.exports.get(import)?.metadata)
    } else {
        let present = cluster.present.imports.get(import)?;
        ("ServiceImport", Some(&present.metadata).filter(|metadata| cluster.is_ours(metadata))?)
    };
    if metadata.deletion_timestamp.is_some() {
        return None;
    }
    Some(OwnerReference {
        api_version: format!("{GROUP}/{version}"),
        kind: kind.to_owned(),
        name: import.name.clone(),
        uid: metadata.uid.clone()?,
        ..OwnerReference::default()
    })
}

/// The writes for one source cluster.
fn of_source<'a>(
    cluster: &Cluster<'_>,
    import: &ObjectName,
    groups: impl Iterator<Item = &'a Group>,
    present: &Written<'_>,
    owner: &OwnerReference,
) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut used: BTreeSet<&ObjectName> = BTreeSet::new();
    for group in groups {
        let alike: Written<'_> = present.iter().copied().filter(|(_, slice)| fits(slice, group)).collect();
        let base = base_name(cluster, import, group);
        for (name, endpoints) in distribute(&group.endpoints, &alike, &base) {
            let endpoints = endpoints.into_values().map(|endpoint| local(cluster, group, endpoint)).collect();
            match alike.iter().find(|(present, _)| present.name == name) {
                Some((name, slice)) => {
                    used.insert(name);
                    writes.extend(replace(group, name, slice, endpoints, owner));
                }
                None => {
                    let name = ObjectName { namespace: import.namespace.clone(), name };
                    let slice = made(cluster, import, group, endpoints, owner);
                    writes.push(Write::new(SLICE, &name, Action::Create(json!(slice))));
                }
            }
        }
    }
    let unused = present.iter().filter(|(name, _)| !used.contains(name));
    writes.extend(unused.map(|(name, slice)| delete(name, slice)));
    writes
}

/// Whether a slice may hold endpoints of a group. (Its family can't be changed, and its ports are all endpoints'.)
fn fits(slice: &EndpointSlice, group: &Group) -> bool {
    slice.address_type == group.family && slice.ports.as_deref().unwrap_or_default() == group.ports
}

/// The name of a group's slices but for a number: the same on every gateway, and not that of another cluster set.
fn base_name(cluster: &Cluster<'_>, import: &ObjectName, group: &Group) -> String {
    let mut text = format!("{}\n{}\n{}", cluster.cluster_set_id, group.cluster, group.family);
    for EndpointPort { name, protocol, port, app_protocol } in &group.ports {
        let _ = write!(text, "\n{name:?} {protocol:?} {port:?} {app_protocol:?}");
    }
    // A name has 253 characters at most.
    let readable: String = format!("{}-{}", import.name, group.cluster).chars().take(200).collect();
    let mut base = readable.trim_end_matches(['-', '.']).to_owned();
    base.push('-');
    base.push_str(&short_hash(&text));
    base
}

/// Which endpoint is in which slice: in the one where it is; a new one in the first with room; else in a new one.
fn distribute(
    endpoints: &BTreeMap<IpAddr, Endpoint>,
    present: &Written<'_>,
    base: &str,
) -> BTreeMap<String, BTreeMap<IpAddr, Endpoint>> {
    let mut left = endpoints.clone();
    // After a large Service became a small one there may be many slices with little in each.
    let enough = endpoints.len().div_ceil(LARGEST);
    let kept = if present.len() > 2 * enough { enough } else { present.len() };
    let mut slices: BTreeMap<String, BTreeMap<IpAddr, Endpoint>> = BTreeMap::new();
    for (name, slice) in &present[..kept] {
        let content = slices.entry(name.name.clone()).or_default();
        let addresses = slice.endpoints.iter().flatten().filter_map(|endpoint| endpoint.addresses.first());
        for address in addresses.filter_map(|text| text.parse::<IpAddr>().ok()) {
            if content.len() < LARGEST
                && let Some(endpoint) = left.remove(&address)
            {
                content.insert(address, endpoint);
            }
        }
    }
    for content in slices.values_mut() {
        fill(content, &mut left);
    }
    for number in 0.. {
        if left.is_empty() {
            break;
        }
        let name = format!("{base}-{number}");
        if !slices.contains_key(&name) {
            fill(slices.entry(name).or_default(), &mut left);
        }
    }
    slices.retain(|_, content| !content.is_empty());
    slices
}

fn fill(content: &mut BTreeMap<IpAddr, Endpoint>, left: &mut BTreeMap<IpAddr, Endpoint>) {
    while content.len() < LARGEST
        && let Some((address, endpoint)) = left.pop_first()
    {
        content.insert(address, endpoint);
    }
}

/// An endpoint as a cluster may know it: another cluster's nodes mean nothing there.
fn local(cluster: &Cluster<'_>, group: &Group, endpoint: Endpoint) -> Endpoint {
    if group.cluster == cluster.name { endpoint } else { Endpoint { node_name: None, ..endpoint } }
}

fn made(
    cluster: &Cluster<'_>,
    import: &ObjectName,
    group: &Group,
    endpoints: Vec<Endpoint>,
    owner: &OwnerReference,
) -> EndpointSlice {
    let labels = [
        (SERVICE_NAME_LABEL, import.name.as_str()),
        (SOURCE_CLUSTER_LABEL, &group.cluster),
        (CLUSTER_SET_LABEL, cluster.cluster_set_id),
        SLICE_MANAGED_BY,
        MANAGED_BY,
    ];
    let labels = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    EndpointSlice {
        metadata: ObjectMeta {
            labels: Some(labels),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: group.family.clone(),
        endpoints: Some(endpoints),
        ports: Some(group.ports.clone()),
    }
}

/// A slice with other endpoints, another owner, or labels that somebody took away; `None` where it is as it should be.
fn replace(
    group: &Group,
    name: &ObjectName,
    present: &EndpointSlice,
    endpoints: Vec<Endpoint>,
    owner: &OwnerReference,
) -> Option<Write> {
    let mut metadata = ObjectMeta { managed_fields: None, ..present.metadata.clone() };
    let labels = metadata.labels.get_or_insert_default();
    for (key, value) in [SLICE_MANAGED_BY, MANAGED_BY] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    metadata.owner_references = Some(vec![owner.clone()]);
    let same_metadata = metadata.labels == present.metadata.labels
        && metadata.owner_references == present.metadata.owner_references;
    if same_metadata && by_address(&endpoints) == by_address(present.endpoints.as_deref().unwrap_or_default())
    {
        return None;
    }
    let slice = EndpointSlice {
        metadata,
        address_type: group.family.clone(),
        endpoints: Some(endpoints),
        ports: Some(group.ports.clone()),
    };
    Some(Write::new(SLICE, name, Action::Replace(json!(slice))))
}

fn by_address(endpoints: &[Endpoint]) -> Vec<&Endpoint> {
    let mut endpoints: Vec<&Endpoint> = endpoints.iter().collect();
    endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    endpoints
}

fn delete(name: &ObjectName, slice: &EndpointSlice) -> Write {
    Write::new(SLICE, name, Action::delete(&slice.metadata))
}
