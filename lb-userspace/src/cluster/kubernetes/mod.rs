//! Member clusters that are Kubernetes clusters.
//!
//! ```text
//! gateway cluster ─► gateway.rs ─► registry.rs ─► a task a member: member.rs ─► objects.rs ─┐
//!   MemberClusters, Secrets,        which members   link.rs (heartbeat, new watches)         ├─► hub.rs ─► Snapshot
//!   pools, fronts, own Node,        there are       follow.rs (one watch) ─► store.rs        │
//!   allocations                                     mcs.rs (exports and imports)             │
//!                                                   health.rs (connected? since when?) ──────┘
//!                                                       outbox.rs ─► publish/, cleanup.rs (what is missing)
//!                                                                 ─► target.rs (a cluster): lease.rs, writer.rs, notices.rs
//!                                                       heartbeat.rs (this gateway is there) ─► attendance.rs (so are these)
//! ```
//!
//! An API server that does not answer takes no endpoint away: what it said last stays, probes decide, and its
//! connection's state is shown. `attendance`, `registry`, `completeness`, `objects`, `store`, `guarded`, `strip`,
//! `health`, `fault`, `conditions`, `statuses` and `report` decide without I/O and without a clock.

mod access;
mod attendance;
mod cleanup;
mod completeness;
mod conditions;
mod events;
mod fault;
mod follow;
mod gateway;
mod guarded;
mod health;
mod heartbeat;
mod hub;
pub mod kubeconfig;
mod lease;
mod link;
mod mcs;
mod member;
mod notices;
mod objects;
mod outbox;
mod publish;
mod registry;
pub mod remote_secret;
mod report;
pub mod rights;
mod statuses;
mod store;
mod strip;
pub mod survey;
mod target;
#[cfg(test)]
mod tests;
pub mod uninstall;
mod writer;

use std::sync::Arc;

use thiserror::Error;
use tokio::sync::{Notify, watch};

use super::{LastGood, Programmed, Snapshot};
use crate::config::KubernetesSettings;
use crate::desired::{Desired, Owner};
use access::Access;
use follow::SILENCE;
use gateway::{Gateway, Scope};
use hub::Hub;
use kubeconfig::Policy;
use link::Pace;
#[cfg(test)]
pub(crate) use member::WRITES;
use outbox::Outbox;
use registry::{Registry, Rules};
use target::Publisher;

/// Why Kubernetes cannot be a source at all. (A server that does not answer is no reason: it is waited for.)
#[derive(Debug, Error)]
#[error("cannot reach the gateway cluster with these credentials: {0}")]
pub struct SourceError(String);

/// Follows the gateway cluster and its members. The receiver holds what they say now, and each later state; it
/// all ends when the receiver is dropped. What `last_good` knows is served at once; otherwise the first state is
/// waited for, 5 s at most. `desired` is what the merge made of the last state, and `programmed` what the packet
/// program made of that, for status and Events; it is listened to until the end of everything here, Leases and all.
///
/// # Errors
///
/// The credentials of the gateway cluster cannot be read.
pub async fn watch(
    settings: KubernetesSettings,
    cluster_set_id: String,
    last_good: Option<LastGood>,
    desired: watch::Receiver<Arc<Desired>>,
    programmed: watch::Receiver<Arc<Programmed>>,
) -> Result<watch::Receiver<Arc<Snapshot>>, SourceError> {
    let access = Access::Gateway(settings.access.clone());
    access.client(SILENCE).await.map_err(|fault| SourceError(fault.message))?;
    Ok(watch_from(access, settings, cluster_set_id, last_good, (desired, programmed), Pace::default()).await)
}

async fn watch_from(
    access: Access,
    settings: KubernetesSettings,
    cluster_set_id: String,
    last_good: Option<LastGood>,
    (desired, programmed): (watch::Receiver<Arc<Desired>>, watch::Receiver<Arc<Programmed>>),
    pace: Pace,
) -> watch::Receiver<Arc<Snapshot>> {
    let changed = Arc::new(Notify::new());
    let node = settings.node_name.clone().unwrap_or_else(host_name);
    let lease = lease::name(&cluster_set_id, &settings.member_selector);
    let publisher = Publisher {
        cluster_set_id: cluster_set_id.clone(),
        // Two agents of one node are two.
        instance: format!("{node}_{:08x}", rand::random::<u32>()),
        gateway: node,
        changed: changed.clone(),
        presence: programmed.clone(),
    };
    let outbox = Outbox::start(&access, lease, publisher, settings.cleanup_timeout, pace);
    let scope = Scope {
        secret_namespaces: settings.secret_namespaces.clone(),
        node_name: settings.node_name.clone(),
    };
    let group = publish::allocations::group(&settings.member_selector);
    let is_first_run = last_good.is_none();
    let mut last_good = last_good.unwrap_or_default();
    last_good.gateway.owner = Owner { cluster_set_id: cluster_set_id.clone(), group };
    let gateway = Gateway::start(access.clone(), scope, &last_good.gateway, pace, changed.clone());
    // Until the gateway cluster says that it has no such objects, an address is somebody's once that is written. But an
    // earlier run that was told so served what it gave away itself, and that stays until there is more to go by.
    if is_first_run {
        last_good.gateway.allocations = Some(Vec::new());
    }
    let mut registry = Registry::new(Rules {
        cluster_set_id,
        gateway: access,
        selector: settings.member_selector,
        namespaces: settings.secret_namespaces,
        grace: settings.secret_grace_period,
        policy: Policy { allow_insecure: settings.allow_insecure_members },
    });
    registry.recall(&last_good.gateway.members);
    let mut hub = Hub::new(registry, gateway, pace, changed, desired, programmed, outbox, last_good);
    let (sender, receiver) = watch::channel(hub.first().await);
    tokio::spawn(hub.run(sender));
    receiver
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}
