//! Shows the other gateways that this one is there, by a Lease of its own in the gateway cluster, and looks after theirs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease as KubeLease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::access::Access;
use super::attendance::{Absences, Attendance, GATEWAY_ANNOTATION, GOOD_FOR, Seen};
use super::fault::Fault;
use super::lease::{self, NAMESPACE, Presence};
use super::publish::{MANAGED_BY, gateway_manager};
use super::target::Publisher;
use crate::desired::CLUSTER_SET_LABEL;

/// A server that says nothing for so long does not answer.
const SILENCE: Duration = Duration::from_secs(5);

/// The task; this gateway is gone after this.
pub(super) struct Heartbeat {
    expected: watch::Sender<BTreeSet<String>>,
    absences: watch::Receiver<Arc<Absences>>,
}

impl Heartbeat {
    /// Begins to renew the Lease, every `period`. The publisher's `changed` is notified when another gateway has gone
    /// or come back. At the end the Lease goes if the program that forwards does; else it is held by nobody, and runs
    /// out if no agent comes back.
    pub(super) fn start(access: Access, publisher: &Publisher, period: Duration) -> Self {
        let (expected, wanted) = watch::channel(BTreeSet::new());
        let (told, absences) = watch::channel(Arc::default());
        let Publisher { cluster_set_id, instance, gateway, changed, presence } = publisher.clone();
        let mut pulse = Pulse {
            access,
            client: None,
            name: lease::heartbeat_name(&cluster_set_id, &gateway),
            cluster_set_id,
            instance,
            attendance: Attendance::new(gateway.clone()),
            gateway,
            complained: false,
        };
        tokio::spawn(async move {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let look = async {
                    ticks.tick().await;
                    pulse.beat(&wanted).await
                };
                let seen = tokio::select! {
                    () = told.closed() => break,
                    seen = look => seen,
                };
                let is_news = seen.is_some_and(|absences| {
                    told.send_if_modified(|present| {
                        let differs = **present != absences;
                        if differs {
                            *present = Arc::new(absences);
                        }
                        differs
                    })
                });
                if is_news {
                    changed.notify_one();
                }
            }
            pulse.end(presence).await;
        });
        Self { expected, absences }
    }

    /// Says which gateways should be there, for they said something.
    pub(super) fn expect(&self, gateways: BTreeSet<String>) {
        self.expected.send_replace(gateways);
    }

    /// Which gateways are not there.
    pub(super) fn absences(&self) -> Arc<Absences> {
        self.absences.borrow().clone()
    }
}

struct Pulse {
    access: Access,
    client: Option<Client>,
    /// Of the Lease.
    name: String,
    cluster_set_id: String,
    instance: String,
    gateway: String,
    attendance: Attendance,
    complained: bool,
}

impl Pulse {
    /// Renews our Lease and looks at the others'. `None`: that could not be done.
    async fn beat(&mut self, expected: &watch::Receiver<BTreeSet<String>>) -> Option<Absences> {
        let looked = self.look().await;
        self.tell(looked.as_ref().err());
        Some(self.attendance.look(looked.ok()?, &expected.borrow(), Instant::now().into_std()))
    }

    async fn look(&mut self) -> Result<Vec<Seen>, Fault> {
        let holder = self.instance.clone();
        self.renew(&holder).await?;
        let of_set = ListParams::default().labels(&format!("{CLUSTER_SET_LABEL}={}", self.cluster_set_id));
        let list = self.leases().await?.list(&of_set).await.map_err(|error| Fault::of(&error))?;
        Ok(list.items.into_iter().filter_map(Seen::of).collect())
    }

    /// Each trouble once.
    fn tell(&mut self, fault: Option<&Fault>) {
        let complained = std::mem::replace(&mut self.complained, fault.is_some());
        let Some(fault) = fault else { return };
        self.client = None;
        if !complained {
            tracing::warn!(
                "cannot renew this gateway's Lease {NAMESPACE}/{} in the gateway cluster, or read those of the others: \
                 they may take it for gone (serving goes on); allow the agent's account to get, list, create, patch \
                 and delete leases there: {}",
                self.name,
                fault.message
            );
        }
    }

    async fn leases(&mut self) -> Result<Api<KubeLease>, Fault> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert(self.access.client(SILENCE).await?).clone(),
        };
        Ok(Api::namespaced(client, NAMESPACE))
    }

    /// Writes the Lease as it should be now, whoever wrote it before: it is ours by its name.
    async fn renew(&mut self, holder: &str) -> Result<(), Fault> {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self.name,
                "namespace": NAMESPACE,
                "labels": {CLUSTER_SET_LABEL: self.cluster_set_id, MANAGED_BY.0: MANAGED_BY.1},
                "annotations": {GATEWAY_ANNOTATION: self.gateway},
            },
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": GOOD_FOR.as_secs(),
                "renewTime": MicroTime(Timestamp::now()),
            },
        });
        let params = PatchParams::apply(&gateway_manager(&self.gateway)).force();
        let applied = self.leases().await?.patch(&self.name, &params, &Patch::Apply(&lease)).await;
        applied.map(drop).map_err(|error| Fault::of(&error))
    }

    /// The end, whose `presence` is waited for.
    async fn end(&mut self, presence: Presence) {
        let leaving = presence.borrow().leaving;
        let ended = if leaving { self.remove().await } else { self.renew("").await };
        if let Err(fault) = ended {
            tracing::debug!("cannot let go of the Lease {NAMESPACE}/{}: {}", self.name, fault.message);
        }
    }

    async fn remove(&mut self) -> Result<(), Fault> {
        let deleted = self.leases().await?.delete(&self.name, &Default::default()).await;
        match deleted {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).map_err(|error| Fault::of(&error)),
        }
    }
}
