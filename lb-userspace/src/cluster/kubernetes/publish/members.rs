//! MemberClusters: made for Secrets that nobody wrote one for, and their status. Pure.

use std::time::Instant;

use serde_json::json;

use super::super::registry::{Outcome, Standing};
use super::super::statuses::Statuses;
use super::{Action, Kind, Write};
use crate::cluster::{Connection, Snapshot};
use crate::desired::{MemberCluster, MemberClusterStatus};

/// MemberClusters, in the gateway cluster.
pub(in super::super) const MEMBER_CLUSTERS: Kind =
    Kind { group: "kanmon.dev", version: "v1alpha1", kind: "MemberCluster", plural: "memberclusters" };

/// What is not as it should be; `status` gives what the status of a member should be.
pub(in super::super) fn writes(
    statuses: &mut Statuses,
    outcome: &Outcome,
    snapshot: &Snapshot,
    status: impl Fn(&str, &Standing, &Connection) -> MemberClusterStatus,
    now: Instant,
) -> Vec<Write> {
    let mut writes: Vec<Write> = outcome.create.iter().map(create).collect();
    writes.extend(outcome.delete.iter().map(delete));
    statuses.forget_others(|name| outcome.members.get(name).is_some_and(|standing| standing.exists));
    for (name, standing) in outcome.members.iter().filter(|(_, standing)| standing.exists) {
        let Some(connection) = snapshot.connections.get(name) else { continue };
        if let Some(status) = statuses.judge(&standing.object, status(name, standing, connection), now) {
            writes.push(write(&standing.object, Action::ApplyStatus(json!({ "status": status }))));
        }
    }
    writes
}

fn create(object: &MemberCluster) -> Write {
    write(
        object,
        Action::Create(json!({
            "metadata": {"labels": object.metadata.labels},
            "spec": object.spec,
        })),
    )
}

/// Deletes the very object that was seen, not one that was made anew by the same name.
fn delete(object: &MemberCluster) -> Write {
    let uid = object.metadata.uid.clone().unwrap_or_default();
    write(object, Action::Delete { uid, resource_version: None })
}

fn write(object: &MemberCluster, action: Action) -> Write {
    Write {
        kind: MEMBER_CLUSTERS,
        namespace: String::new(),
        name: object.metadata.name.clone().unwrap_or_default(),
        action,
    }
}
