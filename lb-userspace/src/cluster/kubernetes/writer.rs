//! Writes MemberClusters and their status into the gateway cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Error, ResourceExt};
use tokio::sync::watch;
use tokio::time::sleep;

use super::access::Access;
use super::fault::Fault;
use super::follow::SILENCE;
use crate::desired::{MemberCluster, MemberClusterStatus};

/// What is written is ours by this name.
const FIELD_MANAGER: &str = "kanmon.dev/gateway";
/// After a failure it is tried again no sooner than this.
const RETRY: Duration = Duration::from_secs(2);

/// What should be written; nothing where all is as it should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Orders {
    /// To be made.
    pub(super) create: Vec<MemberCluster>,
    /// To be deleted.
    pub(super) delete: Vec<MemberCluster>,
    /// To be written, by name.
    pub(super) statuses: BTreeMap<String, MemberClusterStatus>,
}

/// Writes until nobody orders any more. What has been ordered is written once; the watch shows when it is done,
/// and then it is no longer ordered.
pub(super) async fn run(access: Access, mut orders: watch::Receiver<Arc<Orders>>) {
    let mut client = None;
    let mut complained = false;
    loop {
        let present = orders.borrow_and_update().clone();
        match write(&access, &mut client, &present).await {
            Ok(()) => {
                complained = false;
                if orders.changed().await.is_err() {
                    return;
                }
            }
            Err(fault) => {
                if !complained {
                    complained = true;
                    tracing::warn!("cannot write MemberClusters, trying again: {}", fault.message);
                }
                client = None;
                sleep(RETRY).await;
                if orders.has_changed().is_err() {
                    return;
                }
            }
        }
    }
}

async fn write(access: &Access, client: &mut Option<Client>, orders: &Orders) -> Result<(), Fault> {
    if *orders == Orders::default() {
        return Ok(());
    }
    let client = match client {
        Some(client) => client,
        None => client.insert(access.client(SILENCE).await?),
    };
    let api: Api<MemberCluster> = Api::all(client.clone());
    // One that is refused does not hold the others up.
    let mut failed = Ok(());
    for object in &orders.create {
        failed = failed.and(create(&api, object).await);
    }
    for object in &orders.delete {
        failed = failed.and(delete(&api, object).await);
    }
    for (name, status) in &orders.statuses {
        failed = failed.and(apply_status(&api, name, status).await);
    }
    failed.map_err(|error| Fault::of(&error))
}

async fn create(api: &Api<MemberCluster>, object: &MemberCluster) -> kube::Result<()> {
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match api.create(&params, object).await {
        Ok(_) => {
            tracing::info!("made MemberCluster {} from its Secret", object.name_any());
            Ok(())
        }
        Err(Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes the very object that was seen, not one that was made anew by the same name.
async fn delete(api: &Api<MemberCluster>, object: &MemberCluster) -> kube::Result<()> {
    let preconditions = Preconditions { uid: object.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(&object.name_any(), &params).await {
        Ok(_) => {
            tracing::info!(
                "deleted MemberCluster {}: the Secret that it was made from is gone",
                object.name_any()
            );
            Ok(())
        }
        Err(Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn apply_status(
    api: &Api<MemberCluster>,
    name: &str,
    status: &MemberClusterStatus,
) -> kube::Result<()> {
    let patch = serde_json::json!({
        "apiVersion": "kanmon.dev/v1alpha1",
        "kind": "MemberCluster",
        "metadata": { "name": name },
        "status": status,
    });
    match api.patch_status(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(patch)).await {
        Ok(_) => Ok(()),
        Err(Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}
