//! What is to be written into the clusters. Only the holder of the Lease writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::watch;

use super::access::Access;
use super::conditions;
use super::lease;
use super::member::View;
use super::notices::{Notice, Notifier};
use super::registry::{Outcome, Refusal};
use super::statuses::Statuses;
use super::writer::{self, Orders};
use crate::cluster::Snapshot;
use crate::desired::{ClusterObjects, Desired, Problem};

/// The ways out.
pub(super) struct Outbox {
    led: watch::Receiver<bool>,
    orders: watch::Sender<Arc<Orders>>,
    instance: String,
    statuses: Statuses,
    gateway: Notifier,
    members: BTreeMap<String, Notifier>,
}

impl Outbox {
    /// Begins to try for the Lease.
    pub(super) fn start(access: &Access, lease: String, instance: String) -> Self {
        let (orders, ordered) = watch::channel(Arc::default());
        tokio::spawn(writer::run(access.clone(), ordered));
        Self {
            led: lease::hold(access.clone(), lease, instance.clone()),
            orders,
            statuses: Statuses::default(),
            gateway: Notifier::start(access.clone(), instance.clone()),
            instance,
            members: BTreeMap::new(),
        }
    }

    /// Waits until this gateway holds the Lease, or holds it no longer.
    pub(super) async fn led_changed(&mut self) {
        if self.led.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Orders what follows from the present state. When to do so again at the latest.
    pub(super) fn send(
        &mut self,
        outcome: &Outcome,
        views: &BTreeMap<String, View>,
        snapshot: &Snapshot,
        desired: &Desired,
    ) -> Option<Instant> {
        let leads = *self.led.borrow();
        let (orders, next) = if leads {
            orders(&mut self.statuses, outcome, views, snapshot, desired)
        } else {
            self.statuses = Statuses::default();
            (Orders::default(), None)
        };
        self.orders.send_if_modified(|present| {
            let differs = **present != orders;
            if differs {
                *present = Arc::new(orders);
            }
            differs
        });
        self.gateway.tell(if leads { outcome.refusals.iter().map(of_secret).collect() } else { Vec::new() });

        let writable = |name: &String| {
            views.get(name).is_some_and(|view| view.missing.as_ref().is_some_and(Vec::is_empty))
        };
        self.members.retain(|name, notifier| {
            let access = outcome.members.get(name).and_then(|standing| standing.access.as_ref());
            leads && writable(name) && access.is_some_and(|access| notifier.uses(access))
        });
        if !leads {
            return None;
        }
        for (name, standing) in outcome.members.iter().filter(|(name, _)| writable(name)) {
            let (Some(access), Some(objects)) = (&standing.access, snapshot.clusters.get(name)) else {
                continue;
            };
            let terminating = views.get(name).map(|view| view.terminating.clone()).unwrap_or_default();
            let notices: Vec<Notice> = desired
                .problems
                .iter()
                .filter(|problem| problem.cluster == *name)
                .filter_map(|problem| of_problem(problem, objects))
                .filter(|notice| !terminating.contains(&notice.namespace))
                .collect();
            if !self.members.contains_key(name) && !notices.is_empty() {
                self.members.insert(name.clone(), Notifier::start(access.clone(), self.instance.clone()));
            }
            if let Some(notifier) = self.members.get(name) {
                notifier.tell(notices);
            }
        }
        next
    }
}

/// What is not in the gateway cluster as it should be, and when to look again.
fn orders(
    written: &mut Statuses,
    outcome: &Outcome,
    views: &BTreeMap<String, View>,
    snapshot: &Snapshot,
    desired: &Desired,
) -> (Orders, Option<Instant>) {
    let now = tokio::time::Instant::now().into_std();
    let mut statuses = BTreeMap::new();
    written.forget_others(|name| outcome.members.get(name).is_some_and(|standing| standing.exists));
    for (name, standing) in outcome.members.iter().filter(|(_, standing)| standing.exists) {
        let Some(connection) = snapshot.connections.get(name) else { continue };
        let status = conditions::status(standing, views.get(name), connection, desired, whole_seconds());
        if let Some(status) = written.judge(&standing.object, status, now) {
            statuses.insert(name.clone(), status);
        }
    }
    let orders = Orders { create: outcome.create.clone(), delete: outcome.delete.clone(), statuses };
    (orders, written.next())
}

/// Now, as an API server keeps it.
fn whole_seconds() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn of_secret(refusal: &Refusal) -> Notice {
    Notice {
        api_version: "v1",
        kind: "Secret",
        namespace: refusal.namespace.clone(),
        name: refusal.name.clone(),
        uid: refusal.uid.clone(),
        reason: refusal.reason.to_owned(),
        message: refusal.message.clone(),
    }
}

/// A problem of a Service or an EndpointSlice, for an Event on it.
fn of_problem(problem: &Problem, objects: &ClusterObjects) -> Option<Notice> {
    let (kind, name) = problem.object.split_once(' ')?;
    let (namespace, name) = name.split_once('/')?;
    let is_it = |metadata: &kube::core::ObjectMeta| {
        metadata.namespace.as_deref() == Some(namespace) && metadata.name.as_deref() == Some(name)
    };
    let (api_version, kind, metadata) = match kind {
        "Service" => {
            let service = objects.services.iter().find(|service| is_it(&service.metadata))?;
            ("v1", "Service", &service.metadata)
        }
        "EndpointSlice" => {
            let slice = objects.slices.iter().find(|slice| is_it(&slice.metadata))?;
            ("discovery.k8s.io/v1", "EndpointSlice", &slice.metadata)
        }
        _ => return None,
    };
    Some(Notice {
        api_version,
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: metadata.uid.clone().unwrap_or_default(),
        reason: problem.reason.to_string(),
        message: problem.message.clone(),
    })
}
