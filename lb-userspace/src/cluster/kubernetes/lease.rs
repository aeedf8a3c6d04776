//! Which of several gateways writes into a cluster: the holder of a Lease there. Serving never waits for it.
//!
//! The gateways of one cluster and selector have a Lease in that cluster, for what is about them: MemberClusters, pools,
//! allocations. Beside it each cluster that is published to has a Lease of the cluster set, for gateways of several
//! clusters may publish there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease as KubeLease;
use kube::Client;
use kube::api::{Api, DeleteParams, Preconditions};
use kube_lease_manager::LeaseManagerBuilder;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::access::Access;
use super::follow::SILENCE;
use super::publish::allocations::group;
use super::publish::short_hash;
use crate::cluster::Programmed;
use crate::config::MemberSelector;

/// Where the Lease is.
pub(super) const NAMESPACE: &str = "kanmon-system";
/// A holder that is gone is replaced after this many seconds…
const DURATION: u64 = 15;
/// …and renews this many before that.
const GRACE: u64 = 5;
const RETRY: Duration = Duration::from_secs(5);
/// The longest name of a gateway that is part of a Lease's, of which 253 letters are legal.
const LONGEST_GATEWAY: usize = 160;

/// The Lease of whoever publishes into a cluster in the name of a cluster set.
pub(super) fn publishing_name(cluster_set_id: &str) -> String {
    // No legal id has a dot there, so that it is no other set's name.
    format!("{}.publish", plain_name(cluster_set_id))
}

/// The Lease by which a gateway shows that it is there.
pub(super) fn heartbeat_name(cluster_set_id: &str, gateway: &str) -> String {
    format!("{}.gateway.{}", plain_name(cluster_set_id), legal(gateway))
}

/// A Node's name is legal as it is; that of a host perhaps not, and gets a hash, so that no two are the same.
fn legal(gateway: &str) -> String {
    let is_ours = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = |label: &str| {
        !label.is_empty() && label.chars().all(is_ours) && !label.starts_with('-') && !label.ends_with('-')
    };
    if gateway.len() <= LONGEST_GATEWAY && gateway.split('.').all(is_label) {
        return gateway.to_owned();
    }
    let lower = gateway.chars().map(|c| c.to_ascii_lowercase()).take(LONGEST_GATEWAY / 2);
    let plain: String = lower.map(|c| if is_ours(c) { c } else { '-' }).collect();
    format!("{}-{}", plain.trim_matches('-'), short_hash(gateway)).trim_start_matches('-').to_owned()
}

/// Whether a name is that of a Lease of this set's gateways, whatever their selector, or of one of them alone.
pub(super) fn is_of_gateways(name: &str, cluster_set_id: &str) -> bool {
    let Some(rest) = name.strip_prefix(&plain_name(cluster_set_id)) else { return false };
    let is_hash = |hash: &str| hash.len() == 8 && hash.chars().all(|digit| digit.is_ascii_hexdigit());
    rest.is_empty() || rest.strip_prefix('-').is_some_and(is_hash) || rest.starts_with(".gateway.")
}

fn plain_name(cluster_set_id: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let id: String = cluster_set_id.chars().map(legal).collect();
    format!("kanmon-{}", id.trim_matches('-'))
}

/// The Lease of the gateways that serve the same members: those of another selector have one of their own.
pub(super) fn name(cluster_set_id: &str, selector: &MemberSelector) -> String {
    let name = plain_name(cluster_set_id);
    match group(selector).as_str() {
        "" => name,
        group => format!("{name}-{group}"),
    }
}

/// Shows the loop that somebody still listens: it waits a moment for the end of all, so that no Lease is left to
/// run out, and another gateway writes at once.
pub(super) type Presence = watch::Receiver<Arc<Programmed>>;

/// A Lease that is held, or tried for; no longer than this.
pub(super) struct Lease {
    held: watch::Receiver<bool>,
    remove: Arc<AtomicBool>,
}

impl Lease {
    /// Begins to try for it. `changed` is notified when it is held, or is held no longer. `place` is its cluster, for
    /// people. `presence` is dropped once it was let go of.
    pub(super) fn hold(
        access: Access,
        name: String,
        identity: String,
        place: String,
        changed: Arc<Notify>,
        presence: Presence,
    ) -> Self {
        let (led, held) = watch::channel(false);
        let remove = Arc::new(AtomicBool::new(false));
        let who = Who { name, identity, place };
        let kept = keep(access, who, led, changed, remove.clone());
        tokio::spawn(async move {
            kept.await;
            drop(presence);
        });
        Self { held, remove }
    }

    /// Whether it is held.
    pub(super) fn is_held(&self) -> bool {
        *self.held.borrow()
    }

    /// Lets go of it, and removes it from its cluster, if nobody else holds it.
    pub(super) fn remove(self) {
        self.remove.store(true, Ordering::Relaxed);
    }
}

struct Who {
    name: String,
    identity: String,
    place: String,
}

/// Tries to hold the Lease until nobody listens.
async fn keep(
    access: Access,
    who: Who,
    led: watch::Sender<bool>,
    changed: Arc<Notify>,
    remove: Arc<AtomicBool>,
) {
    let mut complained = false;
    while !led.is_closed() {
        match hold_once(&access, &who, &led, &changed).await {
            Ok(()) => complained = false,
            Err(error) if !complained => {
                complained = true;
                tracing::warn!(
                    "cannot hold the Lease {NAMESPACE}/{} in {}, so nothing is written there (serving goes on): \
                     {error}",
                    who.name,
                    who.place
                );
            }
            Err(_) => {}
        }
        if led.send_replace(false) {
            changed.notify_one();
        }
        tokio::select! {
            () = led.closed() => {}
            () = sleep(RETRY) => {}
        }
    }
    if remove.load(Ordering::Relaxed)
        && let Ok(client) = access.client(SILENCE).await
        && let Err(error) = delete(&client, &who.name, Some(&who.identity)).await
    {
        tracing::debug!("cannot remove the Lease {NAMESPACE}/{} from {}: {error}", who.name, who.place);
    }
}

/// Deletes a Lease that nobody holds, or only `holder`. Whether it is gone.
pub(super) async fn delete(client: &Client, name: &str, holder: Option<&str>) -> kube::Result<bool> {
    let leases: Api<KubeLease> = Api::namespaced(client.clone(), NAMESPACE);
    let Some(lease) = leases.get_opt(name).await? else { return Ok(true) };
    let present = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
    if present.is_some_and(|present| !present.is_empty() && Some(present) != holder) {
        return Ok(false);
    }
    let preconditions =
        Preconditions { uid: lease.metadata.uid, resource_version: lease.metadata.resource_version };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    leases.delete(name, &params).await?;
    Ok(true)
}

/// Holds it as long as that goes well.
async fn hold_once(
    access: &Access,
    who: &Who,
    led: &watch::Sender<bool>,
    changed: &Notify,
) -> Result<(), String> {
    let client = access.client(SILENCE).await.map_err(|fault| fault.message)?;
    let manager = LeaseManagerBuilder::new(client, &who.name)
        .with_namespace(NAMESPACE)
        .with_identity(&who.identity)
        .with_duration(DURATION)
        .with_grace(GRACE)
        .build()
        .await
        .map_err(|error| error.to_string())?;
    let (mut held, task) = manager.watch().await;
    loop {
        let now = *held.borrow_and_update();
        if led.send_replace(now) != now {
            let what = if now { "holding" } else { "no longer holding" };
            tracing::info!("{what} the Lease {NAMESPACE}/{} in {}", who.name, who.place);
            changed.notify_one();
        }
        tokio::select! {
            () = led.closed() => break,
            alive = held.changed() => if alive.is_err() { break },
        }
    }
    // Whoever waits for it need not wait for its end.
    drop(held);
    match task.await {
        Ok(Err(error)) => Err(error.to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_of_one_set_and_selector_share_leases_with_legal_names() {
        let all = MemberSelector::default();
        let some: MemberSelector = "location=a".parse().unwrap();
        assert_eq!(name("kanmon", &all), "kanmon-kanmon");
        assert_eq!(name("Prod_1", &all), "kanmon-prod-1");
        assert_ne!(name("kanmon", &some), name("kanmon", &all));
        assert_eq!(publishing_name("Prod_1"), "kanmon-prod-1.publish");
        assert!(
            is_of_gateways(&name("kanmon", &some), "kanmon") && is_of_gateways("kanmon-kanmon", "kanmon")
        );
        assert!(is_of_gateways(&heartbeat_name("kanmon", "gw-1"), "kanmon"));
        assert!(!is_of_gateways(&heartbeat_name("kanmon", "gw-1"), "other"));
        assert!(
            !is_of_gateways(&publishing_name("kanmon"), "kanmon"),
            "it is looked after cluster by cluster"
        );
        assert!(!is_of_gateways("kanmon-kanmon-east", "kanmon") && !is_of_gateways("kanmon-other", "kanmon"));
        assert_eq!(name("kanmon", &some), name("kanmon", &"location = a".parse().unwrap()));
    }

    #[test]
    fn each_gateway_has_a_lease_whose_name_is_legal() {
        assert_eq!(heartbeat_name("kanmon", "gw-1.example.org"), "kanmon-kanmon.gateway.gw-1.example.org");
        let of_hosts = [
            heartbeat_name("kanmon", "GW_1"),
            heartbeat_name("kanmon", "gw-1_"),
            heartbeat_name("kanmon", "é"),
        ];
        for (at, name) in of_hosts.iter().enumerate() {
            let last = name.strip_prefix("kanmon-kanmon.gateway.").unwrap();
            assert_eq!(legal(last), last, "{name}");
            assert!(!of_hosts[..at].contains(name));
        }
        let long = heartbeat_name(&"i".repeat(63), &"x".repeat(253));
        assert!(long.len() <= 253, "{long}");
    }
}
