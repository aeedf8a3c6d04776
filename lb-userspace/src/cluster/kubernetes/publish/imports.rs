//! ServiceImports: in every cluster that has the namespace, and their EndpointSlices.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::condition::differ;
use super::write::service_import;
use super::{Action, Cluster, MANAGED_BY, Write, conditions, slices};
use crate::desired::mcs::{ImportPort, ImportSource, ServiceImport, ServiceImportSpec};
use crate::desired::{CLUSTER_SET_LABEL, ExportState, ObjectName, Problem, Reason, Severity};

/// On imports: what we wrote last. So a cluster whose definition of the resource is older, and which drops fields that
/// it does not know, is not written to again and again; and exported labels that are gone are known from foreign ones.
const RECORD: &str = "kanmon.dev/last-written";

/// What we wrote last on an import.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    spec: ServiceImportSpec,
    /// Keys of exported labels.
    labels: Vec<String>,
    /// Keys of exported annotations.
    annotations: Vec<String>,
}

/// What is to be written so that all that is exported can be imported there, and what cannot be.
pub(in super::super) fn writes(cluster: &Cluster<'_>) -> (Vec<Write>, Vec<Problem>) {
    let (mut writes, mut problems) = (Vec::new(), Vec::new());
    let Some(version) = cluster.present.mcs_version else { return (writes, problems) };
    for (name, state) in &cluster.desired.exports {
        let Some(spec) = &state.import else { continue };
        if !cluster.has_namespace(&name.namespace) {
            continue;
        }
        match cluster.present.imports.get(name) {
            None => writes.push(Write::new(service_import(version), name, create(cluster, state, spec))),
            Some(present) if !cluster.is_ours(&present.metadata) => problems.push(foreign(cluster, name)),
            Some(present)
                if present.metadata.deletion_timestamp.is_some() || is_uncertain(cluster, present) => {}
            Some(present) => {
                let actions = [replace(cluster, state, spec, present), status(cluster, state, present)];
                let write = |action| Write::new(service_import(version), name, action);
                writes.extend(actions.into_iter().flatten().map(write));
            }
        }
    }
    writes.extend(slices::writes(cluster, version));
    for (name, present) in &cluster.present.imports {
        let exported = cluster.desired.exports.get(name).is_some_and(|state| state.import.is_some());
        if !exported
            && cluster.is_ours(&present.metadata)
            && present.metadata.deletion_timestamp.is_none()
            && !cluster.is_ending(&name.namespace)
            && !is_uncertain(cluster, present)
        {
            let action = Action::delete(&present.metadata);
            writes.push(Write::new(service_import(version), name, action));
        }
    }
    (writes, problems)
}

/// Whether an import may come from a cluster that has told nothing yet: then it stays as it is.
fn is_uncertain(cluster: &Cluster<'_>, present: &ServiceImport) -> bool {
    let sources = present.status.iter().flat_map(|status| &status.clusters);
    sources.into_iter().any(|source| cluster.is_unknown(&source.cluster))
}

fn foreign(cluster: &Cluster<'_>, name: &ObjectName) -> Problem {
    Problem {
        cluster: cluster.name.to_owned(),
        object: format!("ServiceImport {name}"),
        reason: Reason::ForeignObject,
        severity: Severity::Error,
        message: format!(
            "it is left as it is, because it was not made by Kanmon for cluster set {}; so the exported service \
             cannot be imported here: delete this object, or let one controller only care for imports",
            cluster.cluster_set_id
        ),
    }
}

fn create(cluster: &Cluster<'_>, state: &ExportState, spec: &ServiceImportSpec) -> Action {
    Action::Create(json!({
        "metadata": {
            "labels": with(&BTreeMap::new(), &[], &state.labels, &our_labels(cluster)),
            "annotations": with(&BTreeMap::new(), &[], &state.annotations, &[record(state, spec)]),
        },
        "spec": spec,
    }))
}

/// The whole object, where it is not what it should be.
fn replace(
    cluster: &Cluster<'_>,
    state: &ExportState,
    spec: &ServiceImportSpec,
    present: &ServiceImport,
) -> Option<Action> {
    let (labels, annotations) = (
        present.metadata.labels.clone().unwrap_or_default(),
        present.metadata.annotations.clone().unwrap_or_default(),
    );
    let last: Option<Record> = annotations.get(RECORD).and_then(|text| serde_json::from_str(text).ok());
    let (old_labels, old_annotations) = last
        .as_ref()
        .map_or((&[][..], &[][..]), |last| (last.labels.as_slice(), last.annotations.as_slice()));
    let wanted_labels = with(&labels, old_labels, &state.labels, &our_labels(cluster));
    let wanted_annotations = with(&annotations, old_annotations, &state.annotations, &[record(state, spec)]);
    if labels == wanted_labels && annotations == wanted_annotations && agrees(&present.spec, spec) {
        return None;
    }
    let metadata = kube::core::ObjectMeta {
        labels: Some(wanted_labels),
        annotations: Some(wanted_annotations),
        managed_fields: None,
        ..present.metadata.clone()
    };
    Some(Action::Replace(json!({"metadata": metadata, "spec": spec})))
}

/// What is there of labels or annotations, without the old exported ones, with the new ones and with our own.
fn with(
    present: &BTreeMap<String, String>,
    old: &[String],
    exported: &BTreeMap<String, String>,
    ours: &[(String, String)],
) -> BTreeMap<String, String> {
    let mut all = present.clone();
    all.retain(|key, _| !old.contains(key));
    all.extend(exported.clone());
    all.extend(ours.iter().cloned());
    all
}

fn our_labels(cluster: &Cluster<'_>) -> [(String, String); 2] {
    [
        (CLUSTER_SET_LABEL.to_owned(), cluster.cluster_set_id.to_owned()),
        (MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned()),
    ]
}

fn record(state: &ExportState, spec: &ServiceImportSpec) -> (String, String) {
    let record = Record {
        spec: spec.clone(),
        labels: state.labels.keys().cloned().collect(),
        annotations: state.annotations.keys().cloned().collect(),
    };
    (RECORD.to_owned(), json!(record).to_string())
}

/// Whether a spec that is there is the one that was written, but for fields that its cluster dropped.
fn agrees(present: &ServiceImportSpec, wanted: &ServiceImportSpec) -> bool {
    let same_port = |(present, wanted): (&ImportPort, &ImportPort)| {
        let dropped = present.app_protocol.is_none();
        (&present.name, &present.protocol, present.port) == (&wanted.name, &wanted.protocol, wanted.port)
            && (dropped || present.app_protocol == wanted.app_protocol)
    };
    let same = |present: &Option<String>, wanted: &Option<String>| present.is_none() || present == wanted;
    present.type_ == wanted.type_
        && present.ips == wanted.ips
        && present.ports.len() == wanted.ports.len()
        && present.ports.iter().zip(&wanted.ports).all(same_port)
        && same(&present.session_affinity, &wanted.session_affinity)
        && (present.session_affinity_config.is_none()
            || present.session_affinity_config == wanted.session_affinity_config)
        && (present.ip_families.is_empty() || present.ip_families == wanted.ip_families)
        && same(&present.internal_traffic_policy, &wanted.internal_traffic_policy)
        && same(&present.traffic_distribution, &wanted.traffic_distribution)
}

/// Who exports it, and whether it can be used.
fn status(cluster: &Cluster<'_>, state: &ExportState, present: &ServiceImport) -> Option<Action> {
    let written = present.status.clone().unwrap_or_default();
    let clusters: Vec<ImportSource> =
        state.clusters.iter().map(|cluster| ImportSource { cluster: cluster.clone() }).collect();
    let mut listed = written.clusters;
    listed.sort();
    let wanted =
        conditions(&state.import_conditions, &written.conditions, present.metadata.generation, cluster.now);
    // Older definitions of the resource have no conditions.
    let dropped = written.conditions.is_empty() && !listed.is_empty();
    if listed == clusters && (dropped || !differ(&wanted, &written.conditions, |_| false)) {
        return None;
    }
    Some(Action::ApplyStatus(json!({"status": {"clusters": clusters, "conditions": wanted}})))
}
