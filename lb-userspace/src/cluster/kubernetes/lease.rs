//! Which of several gateways writes: the holder of a Lease in the gateway cluster. Serving never waits for it.

use std::time::Duration;

use kube_lease_manager::LeaseManagerBuilder;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::sleep;

use super::access::Access;
use super::follow::SILENCE;
use crate::config::MemberSelector;

/// Where the Lease is.
pub(super) const NAMESPACE: &str = "kanmon-system";
/// A holder that is gone is replaced after this many seconds…
const DURATION: u64 = 15;
/// …and renews this many before that.
const GRACE: u64 = 5;
const RETRY: Duration = Duration::from_secs(5);

/// The Lease of the gateways that serve the same members: those of another selector have one of their own.
pub(super) fn name(cluster_set_id: &str, selector: &MemberSelector) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let id: String = cluster_set_id.chars().map(legal).collect();
    let mut name = format!("kanmon-{}", id.trim_matches('-'));
    if *selector != MemberSelector::default() {
        let hash = Sha256::digest(selector.to_string());
        name.push('-');
        name.extend(hash.iter().take(4).map(|byte| format!("{byte:02x}")));
    }
    name
}

/// Tries to hold the Lease until nobody listens. The receiver says whether it is held.
pub(super) fn hold(access: Access, name: String, identity: String) -> watch::Receiver<bool> {
    let (led, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let mut complained = false;
        while !led.is_closed() {
            match hold_once(&access, &name, &identity, &led).await {
                Ok(()) => complained = false,
                Err(error) if !complained => {
                    complained = true;
                    tracing::warn!(
                        "cannot hold the Lease {NAMESPACE}/{name}, so nothing is written into the gateway \
                         cluster (serving goes on): {error}"
                    );
                }
                Err(_) => {}
            }
            led.send_replace(false);
            sleep(RETRY).await;
        }
    });
    receiver
}

/// Holds it as long as that goes well.
async fn hold_once(
    access: &Access,
    name: &str,
    identity: &str,
    led: &watch::Sender<bool>,
) -> Result<(), String> {
    let client = access.client(SILENCE).await.map_err(|fault| fault.message)?;
    let manager = LeaseManagerBuilder::new(client, name)
        .with_namespace(NAMESPACE)
        .with_identity(identity)
        .with_duration(DURATION)
        .with_grace(GRACE)
        .build()
        .await
        .map_err(|error| error.to_string())?;
    let (mut held, task) = manager.watch().await;
    loop {
        let now = *held.borrow_and_update();
        if led.send_replace(now) != now {
            tracing::info!(
                "{} the Lease {NAMESPACE}/{name}",
                if now { "holding" } else { "no longer holding" }
            );
        }
        tokio::select! {
            () = led.closed() => break,
            changed = held.changed() => if changed.is_err() { break },
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
    fn gateways_of_one_set_and_selector_share_a_lease_with_a_legal_name() {
        let all = MemberSelector::default();
        let some: MemberSelector = "location=a".parse().unwrap();
        assert_eq!(name("kanmon", &all), "kanmon-kanmon");
        assert_eq!(name("Prod_1", &all), "kanmon-prod-1");
        assert_ne!(name("kanmon", &some), name("kanmon", &all));
        assert_eq!(name("kanmon", &some), name("kanmon", &"location = a".parse().unwrap()));
    }
}
