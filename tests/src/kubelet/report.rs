//! Writes a pod's status to the API server, and in the end deletes the pod.
//!
//! Apart from the pod's own task: an API server that never answers holds no probe and no restart up. Only
//! the latest status counts; what was not sent before a newer one came is never sent.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

/// How soon to try again.
const RETRY: Duration = Duration::from_millis(500);
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to tell the API server of a pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    /// None: nothing yet.
    pub(super) status: Option<PodStatus>,
    /// Nothing of it runs any more: delete it behind the status.
    pub(super) finished: bool,
}

/// Tells the API server of a pod until it is deleted there, or `said` has no sender any more.
pub(super) async fn report(client: Client, pod: Arc<Pod>, mut said: watch::Receiver<Said>) {
    let pods: Api<Pod> = Api::namespaced(client, pod.metadata.namespace.as_deref().unwrap_or("default"));
    while said.changed().await.is_ok() {
        loop {
            let latest = said.borrow_and_update().clone();
            match timeout(PATIENCE, send(&pods, &pod, &latest)).await {
                Ok(Ok(())) if latest.finished => return,
                Ok(Ok(())) => break,
                // Somebody else deleted it, or another pod has its name by now.
                Ok(Err(kube::Error::Api(answer))) if matches!(answer.code, 404 | 409) => return,
                Ok(Err(e)) => complain(&pod, &e.to_string()),
                Err(_) => complain(&pod, &format!("no answer within {PATIENCE:?}")),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn send(pods: &Api<Pod>, pod: &Pod, said: &Said) -> Result<(), kube::Error> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if let Some(status) = &said.status {
        let patch = patch(pod, status).map_err(kube::Error::SerdeError)?;
        pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    }
    if said.finished {
        let only_this = Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() };
        pods.delete(name, &DeleteParams::default().grace_period(0).preconditions(only_this)).await?;
    }
    Ok(())
}

/// Conditions merge with those of others; addresses, which would merge too, are replaced. The uid makes the
/// API server refuse it for another pod of the same name.
fn patch(pod: &Pod, status: &PodStatus) -> serde_json::Result<Value> {
    let mut status = serde_json::to_value(status)?;
    for list in ["podIPs", "hostIPs"] {
        if let Some(list) = status.get_mut(list).and_then(Value::as_array_mut) {
            list.insert(0, json!({"$patch": "replace"}));
        }
    }
    Ok(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}))
}

fn complain(pod: &Pod, why: &str) {
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    eprintln!(
        "kanmon-kubelet: cannot report on pod {}/{}: {why}; it is tried again",
        namespace.unwrap_or_default(),
        name.unwrap_or_default()
    );
}
