//! What ServiceExports are told: KEP-1645's conditions.

use serde_json::json;

use super::condition::differ;
use super::write::service_export;
use super::{Action, Cluster, Write, conditions, field_manager, owns_status};
use crate::desired::mcs::ServiceExport;
use crate::desired::{ExportJudgement, ObjectName};

/// The statuses that are not what was judged, and those that are no longer ours to write.
pub(in super::super) fn writes(cluster: &Cluster<'_>) -> Vec<Write> {
    let Some(version) = cluster.present.mcs_version else { return Vec::new() };
    let write =
        |name: &ObjectName, value| Write::new(service_export(version), name, Action::ApplyStatus(value));
    let manager = field_manager(cluster.cluster_set_id);
    let mut writes = Vec::new();
    for (name, export) in &cluster.present.exports {
        if cluster.is_ending(&name.namespace) || export.metadata.deletion_timestamp.is_some() {
            continue;
        }
        match judgement(cluster, name) {
            Some(judgement) => {
                let status = status(cluster, export, judgement);
                writes.extend(status.map(|status| write(name, json!({"status": status}))));
            }
            // One that was judged before: its cluster is no longer used. Without `status`: an empty one would still
            // be ours.
            None if cluster.is_complete() && owns_status(&export.metadata, &manager) => {
                writes.push(write(name, json!({})));
            }
            None => {}
        }
    }
    writes
}

fn judgement<'a>(cluster: &Cluster<'a>, name: &ObjectName) -> Option<&'a ExportJudgement> {
    cluster.desired.exports.get(name)?.exports.get(cluster.name)
}

/// The status to write; `None` where it is written.
fn status(
    cluster: &Cluster<'_>,
    export: &ServiceExport,
    judgement: &ExportJudgement,
) -> Option<serde_json::Value> {
    let present = export.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let wanted = conditions(&judgement.conditions, present, export.metadata.generation, cluster.now);
    differ(&wanted, present, |_| false).then(|| json!({"conditions": wanted}))
}
