//! What a cluster holds of the things that Kanmon writes, and what is kept of each.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::core::{DynamicObject, ObjectMeta};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::super::strip::OUR_ANNOTATIONS;
use super::owns_status;
use crate::desired::mcs::{ServiceExport, ServiceImport};
use crate::desired::{CLUSTER_SET_LABEL, LOAD_BALANCER_CLASS, ObjectName};

/// What a cluster holds now of the things that Kanmon writes, or may not write because they are another's.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in super::super) struct Present {
    /// Services of our class, and such that still carry what we wrote on them ([`super::owns_status`]): whole but
    /// for foreign annotations and managedFields; with spec, status, generation and finalizers.
    pub(in super::super) services: BTreeMap<ObjectName, Service>,
    /// All ServiceExports, with status.
    pub(in super::super) exports: BTreeMap<ObjectName, ServiceExport>,
    /// All ServiceImports, with status: ours by their label, and others'.
    pub(in super::super) imports: BTreeMap<ObjectName, ServiceImport>,
    /// The EndpointSlices that we made.
    pub(in super::super) slices: BTreeMap<ObjectName, EndpointSlice>,
    /// All namespaces, and whether each is on its way out.
    pub(in super::super) namespaces: BTreeMap<String, bool>,
    /// The version of `multicluster.x-k8s.io` that is served there; `None`: none, or it is not known yet.
    pub(in super::super) mcs_version: Option<&'static str>,
}

/// What is kept of a Service, if its status is ours to write or was.
pub(in super::super) fn service(service: &Service, manager: &str) -> Option<Service> {
    let class = service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref());
    if class != Some(LOAD_BALANCER_CLASS) && !owns_status(&service.metadata, manager) {
        return None;
    }
    let mut service = service.clone();
    reduce(&mut service.metadata, manager);
    service.metadata.resource_version = None;
    if let Some(annotations) = &mut service.metadata.annotations {
        annotations.retain(|key, _| key.starts_with(OUR_ANNOTATIONS));
    }
    Some(service)
}

/// An EndpointSlice, if this cluster set made it.
pub(in super::super) fn slice(slice: &EndpointSlice, cluster_set_id: &str) -> Option<EndpointSlice> {
    if !is_of(&slice.metadata, cluster_set_id) {
        return None;
    }
    let mut slice = slice.clone();
    slice.metadata.managed_fields = None;
    Some(slice)
}

/// What is kept of a ServiceExport.
pub(in super::super) fn export(object: DynamicObject, manager: &str) -> ServiceExport {
    let metadata = object.metadata.clone();
    let mut export = parse(object).unwrap_or_else(|| ServiceExport { metadata, ..ServiceExport::default() });
    reduce(&mut export.metadata, manager);
    export.metadata.resource_version = None;
    export
}

/// What is kept of a ServiceImport.
pub(in super::super) fn import(object: DynamicObject, manager: &str) -> ServiceImport {
    let metadata = object.metadata.clone();
    let mut import = parse(object).unwrap_or_else(|| ServiceImport { metadata, ..ServiceImport::default() });
    reduce(&mut import.metadata, manager);
    import
}

/// Whether an object carries the label of this cluster set.
pub(in super::super) fn is_of(metadata: &ObjectMeta, cluster_set_id: &str) -> bool {
    metadata.labels.iter().flatten().any(|(key, value)| key == CLUSTER_SET_LABEL && value == cluster_set_id)
}

/// `None`: somebody wrote what its schema should have refused.
fn parse<T: DeserializeOwned>(object: DynamicObject) -> Option<T> {
    let mut value = object.data;
    value["metadata"] = json!(object.metadata);
    serde_json::from_value(value).ok()
}

/// Of the managers only whether ours owns something.
fn reduce(metadata: &mut ObjectMeta, manager: &str) {
    metadata.managed_fields = metadata.managed_fields.take().and_then(|entries| {
        let ours = entries.into_iter().filter(|entry| entry.manager.as_deref() == Some(manager));
        let mut kept: Vec<ManagedFieldsEntry> = ours
            .map(|entry| ManagedFieldsEntry {
                manager: entry.manager,
                subresource: entry.subresource,
                ..ManagedFieldsEntry::default()
            })
            .collect();
        kept.dedup();
        (!kept.is_empty()).then_some(kept)
    });
}
