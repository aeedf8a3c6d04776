//! Where everything comes together: the gateway cluster and the members in, snapshots out.
//!
//! A member's objects stay for as long as it is a member, whatever its API server does. They begin with the
//! last good ones from disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::completeness::{Completeness, Known};
use super::gateway::{self, Gateway};
use super::link::Pace;
use super::member::{Member, Order, View};
use super::outbox::Outbox;
use super::registry::{Facts, Outcome, Registry, Standing};
use super::report;
use crate::cluster::{Connection, LastGood, Snapshot, log_changes};
use crate::desired::{ClusterObjects, Desired, GatewayObjects, MemberCluster, MemberState, Problem};

/// How long the first snapshot waits for members that are new to this gateway. What is known from before is
/// not waited for.
const FIRST: Duration = Duration::from_secs(5);

/// The state of the task.
pub(super) struct Hub {
    pub(super) registry: Registry,
    pub(super) gateway: Gateway,
    pub(super) pace: Pace,
    /// Notified by the gateway's task and by the members'.
    pub(super) changed: Arc<Notify>,
    pub(super) desired: watch::Receiver<Arc<Desired>>,
    pub(super) outbox: Outbox,
    members: BTreeMap<String, Member>,
    /// What each member had when it was last read.
    objects: BTreeMap<String, Arc<ClusterObjects>>,
    /// What the gateway cluster said when it was last read.
    known: GatewayObjects,
    /// Whether MemberClusters existed before this agent started: not such that Secrets alone made.
    had_members: bool,
    /// Who each member is, also while it does not answer.
    identities: BTreeMap<String, String>,
    completeness: Completeness,
    snapshot: Arc<Snapshot>,
}

impl Hub {
    pub(super) fn new(
        registry: Registry,
        gateway: Gateway,
        pace: Pace,
        changed: Arc<Notify>,
        desired: watch::Receiver<Arc<Desired>>,
        outbox: Outbox,
        last_good: LastGood,
    ) -> Self {
        Self {
            registry,
            gateway,
            pace,
            changed,
            desired,
            outbox,
            completeness: Completeness::new(!last_good.gateway.members.is_empty()),
            members: BTreeMap::new(),
            objects: last_good.clusters,
            had_members: last_good.gateway.members.iter().any(|member| member.metadata.uid.is_some()),
            known: last_good.gateway,
            identities: BTreeMap::new(),
            snapshot: Arc::default(),
        }
    }

    /// The first snapshot: at once where something is known from before, else as soon as everybody has
    /// answered, or when that takes too long.
    pub(super) async fn first(&mut self) -> Arc<Snapshot> {
        let knows = !self.objects.is_empty() || !self.known.members.is_empty();
        let latest = Instant::now() + FIRST;
        loop {
            let (mut next, everybody) = self.step();
            if knows || everybody || Instant::now() >= latest {
                return self.snapshot.clone();
            }
            next = Some(next.map_or(latest, |next| next.min(latest)));
            self.wait(next).await;
        }
    }

    /// Follows everything until nobody listens.
    pub(super) async fn run(mut self, sender: watch::Sender<Arc<Snapshot>>) {
        loop {
            let (next, _) = self.step();
            sender.send_if_modified(|present| {
                let differs = !same(present, &self.snapshot);
                if differs {
                    *present = self.snapshot.clone();
                }
                differs
            });
            tokio::select! {
                () = sender.closed() => return,
                () = self.wait(next) => {}
            }
        }
    }

    async fn wait(&mut self, next: Option<Instant>) {
        let (changed, desired, outbox) = (&self.changed, &mut self.desired, &mut self.outbox);
        tokio::select! {
            () = changed.notified() => {}
            () = feedback(desired) => {}
            () = outbox.led_changed() => {}
            () = until(next) => {}
        }
    }

    /// Takes in what is so now. When to do it again at the latest, and whether everybody has answered.
    fn step(&mut self) -> (Option<Instant>, bool) {
        let gateway = self.gateway.view();
        let members_known = self.remember(&gateway);
        let views = self.views();
        if !members_known {
            let complete_at = self.judge(&gateway, None);
            let problems = report::gateway_problems(&gateway);
            self.show(None, &gateway, &BTreeMap::new(), problems);
            return (complete_at, false);
        }
        let outcome = self.registry.decide(&Facts {
            members: gateway.members.as_deref().unwrap_or_default(),
            secrets: &gateway.secrets,
            complete: &gateway.complete,
            identities: &self.identities,
            now: Instant::now().into_std(),
        });
        self.connect(&outcome);
        let views: BTreeMap<String, View> =
            views.into_iter().filter(|(name, _)| self.members.contains_key(name)).collect();
        self.take_objects(&outcome, &views);
        let complete_at = self.judge(&gateway, Some(&outcome));
        let problems = report::problems(&gateway, &outcome, &views);
        self.show(Some(&outcome), &gateway, &views, problems);
        let write_at = self.outbox.send(&outcome, &views, &self.snapshot, &self.desired.borrow().clone());
        let own = outcome.next.into_iter().chain(write_at).min().map(Instant::from_std);
        let next = own.into_iter().chain(complete_at).min();
        (
            next,
            gateway.answered
                && outcome.members.iter().all(|(name, standing)| settled(standing, views.get(name))),
        )
    }

    /// Keeps what the gateway cluster said. Whether it has told the members.
    fn remember(&mut self, gateway: &gateway::View) -> bool {
        if let Some(pools) = &gateway.pools {
            self.known.pools.clone_from(pools);
        }
        if let Some(services) = &gateway.services {
            self.known.services.clone_from(services);
        }
        // Where the kind is unknown there are no members but those of Secrets; unless there were some before.
        gateway.members.is_some() || (gateway.lacks_crds && !self.had_members)
    }

    /// Judges whether all is known that there is; when it counts as known at the latest, if that is set.
    fn judge(&mut self, gateway: &gateway::View, outcome: Option<&Outcome>) -> Option<Instant> {
        let has_been_read = |name: &str| self.objects.contains_key(name);
        let members = match outcome {
            Some(outcome) => {
                outcome.members.iter().all(|(name, standing)| !standing.is_served() || has_been_read(name))
            }
            None => self.known.members.iter().all(|member| {
                member.spec.state == MemberState::Disabled
                    || member.metadata.name.as_deref().is_some_and(has_been_read)
            }),
        };
        let known = Known {
            told: outcome.is_some() && (gateway.services.is_some() || gateway.answered),
            gateway: gateway.answered
                && gateway.members.is_some()
                && gateway.pools.is_some()
                && gateway.services.is_some(),
            members,
        };
        self.completeness.judge(known, Instant::now().into_std()).map(Instant::from_std)
    }

    fn views(&mut self) -> BTreeMap<String, View> {
        let views: BTreeMap<String, View> =
            self.members.iter().map(|(name, member)| (name.clone(), member.view())).collect();
        for (name, view) in &views {
            if let Some(uid) = &view.uid {
                self.identities.insert(name.clone(), uid.clone());
            }
        }
        views
    }

    /// Connects to the members that there are now, and to no others.
    fn connect(&mut self, outcome: &Outcome) {
        let wanted = |standing: &Standing| match &standing.access {
            Some(access) if standing.object.spec.state != MemberState::Disabled => {
                Some(Order { access: access.clone(), follow: standing.duplicate_of.is_none() })
            }
            _ => None,
        };
        self.members
            .retain(|name, _| outcome.members.get(name).is_some_and(|standing| wanted(standing).is_some()));
        for (name, standing) in &outcome.members {
            if let Some(uid) = standing.object.status.as_ref().and_then(|status| status.uid.clone()) {
                self.identities.entry(name.clone()).or_insert(uid);
            }
            let Some(order) = wanted(standing) else { continue };
            match self.members.get(name) {
                Some(member) => member.order(order),
                None => {
                    let member = Member::start(order, self.pace, self.changed.clone());
                    self.members.insert(name.clone(), member);
                }
            }
        }
    }

    /// Takes over what the members have, and forgets what belongs to none.
    fn take_objects(&mut self, outcome: &Outcome, views: &BTreeMap<String, View>) {
        for (name, standing) in outcome.members.iter().filter(|(_, standing)| standing.is_served()) {
            if let Some(objects) = views.get(name).and_then(|view| view.objects.clone()) {
                self.objects.insert(name.clone(), objects);
            } else if !self.objects.contains_key(name)
                && let Some(objects) = self.inherited(name, standing, outcome)
            {
                self.objects.insert(name.clone(), objects);
            }
        }
        self.objects.retain(|name, _| outcome.members.get(name).is_some_and(Standing::is_served));
        self.identities.retain(|name, _| outcome.members.contains_key(name));
        self.known.members = outcome.members.values().map(|standing| declared(&standing.object)).collect();
    }

    /// What a member that has not been read begins with: what is known of the same cluster by the name of a
    /// member whose place it takes.
    fn inherited(&self, name: &str, standing: &Standing, outcome: &Outcome) -> Option<Arc<ClusterObjects>> {
        // One that cannot be reached would never find out what becomes of it.
        let uid = self.identities.get(name).filter(|_| standing.access.is_some());
        let is_same = |other: &String| {
            standing.successor_of.as_ref() == Some(other)
                || (uid.is_some() && self.identities.get(other) == uid)
        };
        let is_served = |other: &String| outcome.members.get(other).is_some_and(Standing::is_served);
        let (_, objects) = self.objects.iter().find(|(other, _)| is_same(other) && !is_served(other))?;
        Some(objects.clone())
    }

    fn show(
        &mut self,
        outcome: Option<&Outcome>,
        gateway: &gateway::View,
        views: &BTreeMap<String, View>,
        problems: Vec<Problem>,
    ) {
        let (before, now) = (&self.snapshot.connections, Timestamp::now());
        let connections: BTreeMap<String, Connection> = outcome
            .iter()
            .flat_map(|outcome| &outcome.members)
            .map(|(name, standing)| {
                (name.clone(), report::connection(standing, views.get(name), before.get(name), now))
            })
            .collect();
        report::log_connections(before, &connections);
        log_changes(&self.snapshot.problems, &problems);
        self.snapshot = Arc::new(Snapshot {
            gateway: self.known.clone(),
            clusters: self.objects.clone(),
            connections,
            place: gateway.place.clone().unwrap_or_else(|| self.snapshot.place.clone()),
            problems,
            complete: self.completeness.is_reached(),
        });
    }
}

/// Whether a member has been read, or cannot be.
fn settled(standing: &Standing, view: Option<&View>) -> bool {
    standing.access.is_none() || !standing.is_served() || view.is_some_and(|view| view.synced)
}

/// A MemberCluster as the merge reads it: without its status, which changes for reasons of its own.
fn declared(object: &MemberCluster) -> MemberCluster {
    MemberCluster { status: None, ..object.clone() }
}

/// Whether two snapshots are the same; clusters that are not shared are taken for different.
fn same(a: &Snapshot, b: &Snapshot) -> bool {
    let names: (BTreeSet<&String>, BTreeSet<&String>) =
        (a.clusters.keys().collect(), b.clusters.keys().collect());
    names.0 == names.1
        && a.clusters
            .iter()
            .all(|(name, objects)| b.clusters.get(name).is_some_and(|other| Arc::ptr_eq(objects, other)))
        && (&a.gateway, &a.connections, &a.place, &a.problems, a.complete)
            == (&b.gateway, &b.connections, &b.place, &b.problems, b.complete)
}

async fn feedback(desired: &mut watch::Receiver<Arc<Desired>>) {
    if desired.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
