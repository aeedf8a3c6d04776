//! Member clusters that are Kubernetes clusters.
//!
//! ```text
//! gateway cluster ─► gateway.rs ─► registry.rs ─► a task a member: member.rs ─► objects.rs ─┐
//!   MemberClusters, Secrets,        which members   link.rs (heartbeat, new watches)         ├─► hub.rs ─► Snapshot
//!   pools, fronts, own Node         there are       follow.rs (one watch) ─► store.rs        │
//!                                                   health.rs (connected? since when?) ──────┘
//!                                                                              outbox.rs ─► writer.rs, notices.rs
//! ```
//!
//! An API server that does not answer takes no endpoint away: what it said last stays, probes decide, and its
//! connection's state is shown. `registry`, `completeness`, `objects`, `store`, `guarded`, `strip`, `health`, `fault`,
//! `conditions`, `statuses` and `report` decide without I/O and without a clock.

mod access;
mod completeness;
mod conditions;
mod fault;
mod follow;
mod gateway;
mod guarded;
mod health;
mod hub;
pub mod kubeconfig;
mod lease;
mod link;
mod member;
mod notices;
mod objects;
mod outbox;
mod registry;
pub mod remote_secret;
mod report;
mod statuses;
mod store;
mod strip;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

use thiserror::Error;
use tokio::sync::{Notify, watch};

use super::{LastGood, Snapshot};
use crate::config::KubernetesSettings;
use crate::desired::Desired;
use access::Access;
use follow::SILENCE;
use gateway::{Gateway, Scope};
use hub::Hub;
use kubeconfig::Policy;
use link::Pace;
use outbox::Outbox;
use registry::{Registry, Rules};

/// Why Kubernetes cannot be a source at all. (A server that does not answer is no reason: it is waited for.)
#[derive(Debug, Error)]
#[error("cannot reach the gateway cluster with these credentials: {0}")]
pub struct SourceError(String);

/// Follows the gateway cluster and its members. The receiver holds what they say now, and each later state; it
/// all ends when the receiver is dropped. What `last_good` knows is served at once; otherwise the first state is
/// waited for, 5 s at most. `desired` is what the merge made of the last state, for status and Events.
///
/// # Errors
///
/// The credentials of the gateway cluster cannot be read.
pub async fn watch(
    settings: KubernetesSettings,
    cluster_set_id: String,
    last_good: Option<LastGood>,
    desired: watch::Receiver<Arc<Desired>>,
) -> Result<watch::Receiver<Arc<Snapshot>>, SourceError> {
    let access = Access::Gateway(settings.access.clone());
    access.client(SILENCE).await.map_err(|fault| SourceError(fault.message))?;
    Ok(watch_from(access, settings, cluster_set_id, last_good, desired, Pace::default()).await)
}

async fn watch_from(
    access: Access,
    settings: KubernetesSettings,
    cluster_set_id: String,
    last_good: Option<LastGood>,
    desired: watch::Receiver<Arc<Desired>>,
    pace: Pace,
) -> watch::Receiver<Arc<Snapshot>> {
    let changed = Arc::new(Notify::new());
    let instance = instance(settings.node_name.as_deref());
    let lease = lease::name(&cluster_set_id, &settings.member_selector);
    let outbox = Outbox::start(&access, lease, instance);
    let scope = Scope {
        secret_namespaces: settings.secret_namespaces.clone(),
        node_name: settings.node_name.clone(),
    };
    let last_good = last_good.unwrap_or_default();
    let gateway = Gateway::start(access.clone(), scope, &last_good.gateway, pace, changed.clone());
    let mut registry = Registry::new(Rules {
        cluster_set_id,
        gateway: access,
        selector: settings.member_selector,
        namespaces: settings.secret_namespaces,
        grace: settings.secret_grace_period,
        policy: Policy { allow_insecure: settings.allow_insecure_members },
    });
    registry.recall(&last_good.gateway.members);
    let mut hub = Hub::new(registry, gateway, pace, changed, desired, outbox, last_good);
    let (sender, receiver) = watch::channel(hub.first().await);
    tokio::spawn(hub.run(sender));
    receiver
}

/// Who this gateway is among those that share a Lease: its Node or host, and a number, for two agents of one
/// node are two.
fn instance(node: Option<&str>) -> String {
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let name = node.map_or_else(host, str::to_owned);
    format!("{name}_{:08x}", rand::random::<u32>())
}
