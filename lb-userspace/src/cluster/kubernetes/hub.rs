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
use super::member::{Follow, Member, Order, View};
use super::outbox::{Outbox, Situation};
use super::registry::{Facts, Outcome, Registry, Standing, is_ending};
use super::report;
use crate::cluster::{Connection, LastGood, Programmed, Snapshot, log_changes};
use crate::desired::mcs::ServiceExport;
use crate::desired::{
    AddressAllocation, AddressPool, ClusterObjects, Desired, GatewayObjects, Knowledge, LoadBalancingPolicy,
    MemberCluster, MemberState, Problem,
};

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
    /// What this gateway's packet program makes of the VIPs.
    pub(super) programmed: watch::Receiver<Arc<Programmed>>,
    pub(super) outbox: Outbox,
    members: BTreeMap<String, Member>,
    /// The gateway cluster as one that is written to, where it is no member.
    own: Option<Member>,
    /// What each member had when it was last read.
    objects: BTreeMap<String, Arc<ClusterObjects>>,
    /// The exports that an earlier run read of each member, until they have been read again.
    recalled_exports: BTreeMap<String, Vec<ServiceExport>>,
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
    #[expect(clippy::too_many_arguments, reason = "all of it is made once, in `watch_from`")]
    pub(super) fn new(
        registry: Registry,
        gateway: Gateway,
        pace: Pace,
        changed: Arc<Notify>,
        desired: watch::Receiver<Arc<Desired>>,
        programmed: watch::Receiver<Arc<Programmed>>,
        outbox: Outbox,
        last_good: LastGood,
    ) -> Self {
        Self {
            registry,
            gateway,
            pace,
            changed,
            desired,
            programmed,
            outbox,
            completeness: Completeness::new(!last_good.gateway.members.is_empty()),
            members: BTreeMap::new(),
            own: None,
            recalled_exports: last_good
                .clusters
                .iter()
                .map(|(name, objects)| (name.clone(), objects.exports.clone()))
                .collect(),
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
        let (changed, desired, programmed) = (&self.changed, &mut self.desired, &mut self.programmed);
        tokio::select! {
            () = changed.notified() => {}
            () = feedback(desired) => {}
            () = feedback(programmed) => {}
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
        let written = self.outbox.send(&Situation {
            outcome: &outcome,
            views: &views,
            own: self.own.as_ref().map(Member::view).as_ref(),
            gateway: &gateway,
            snapshot: &self.snapshot,
            desired: &self.desired.borrow().clone(),
            programmed: &self.programmed.borrow().clone(),
        });
        let times = [outcome.next.map(Instant::from_std), complete_at, written];
        let next = times.into_iter().flatten().min();
        (
            next,
            gateway.answered
                && outcome.members.iter().all(|(name, standing)| settled(standing, views.get(name))),
        )
    }

    /// Keeps what the gateway cluster said. Whether it has told the members.
    fn remember(&mut self, gateway: &gateway::View) -> bool {
        if let Some(pools) = &gateway.pools {
            self.known.pools = pools.iter().map(offered).collect();
        }
        if let Some(policies) = &gateway.policies {
            self.known.policies = policies.iter().map(asked).collect();
        }
        if let Some(allocations) = &gateway.allocations {
            self.known.allocations = Some(allocations.iter().map(written).collect());
        } else if gateway.lacks_allocations {
            self.known.allocations = None;
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
        // Those that are on their way out are cleaned.
        let standing = |name: &String| outcome.members.get(name).or_else(|| outcome.ending.get(name));
        self.members.retain(|name, _| standing(name).and_then(wanted).is_some());
        let (gateway, set) = (self.registry.gateway(), self.registry.cluster_set_id());
        let is_local = |standing: &Standing| standing.access.as_ref() == Some(gateway);
        if outcome.members.values().any(|member| is_local(member) && member.is_served()) {
            self.own = None;
        } else if self.own.is_none() {
            let order = Order { access: gateway.clone(), follow: Follow::Written };
            self.own = Some(Member::start(order, set, self.pace, self.changed.clone()));
        }
        for (name, standing) in outcome.members.iter().chain(&outcome.ending) {
            if let Some(uid) = standing.object.status.as_ref().and_then(|status| status.uid.clone()) {
                self.identities.entry(name.clone()).or_insert(uid);
            }
            let Some(order) = wanted(standing) else { continue };
            match self.members.get(name) {
                Some(member) => member.order(order),
                None => {
                    let member = Member::start(order, set, self.pace, self.changed.clone());
                    self.members.insert(name.clone(), member);
                }
            }
        }
    }

    /// Takes over what the members have, and forgets what belongs to none.
    fn take_objects(&mut self, outcome: &Outcome, views: &BTreeMap<String, View>) {
        for (name, standing) in outcome.members.iter().filter(|(_, standing)| standing.is_served()) {
            if let Some(view) = views.get(name)
                && let Some(objects) = view.objects.clone()
            {
                let objects = self.with_exports(name, view, objects);
                self.objects.insert(name.clone(), objects);
            } else if !self.objects.contains_key(name)
                && let Some(objects) = self.inherited(name, standing, outcome)
            {
                self.objects.insert(name.clone(), objects);
            }
        }
        self.objects.retain(|name, _| outcome.members.get(name).is_some_and(Standing::is_served));
        self.recalled_exports.retain(|name, _| self.objects.contains_key(name));
        self.identities.retain(|name, _| outcome.members.contains_key(name));
        self.known.members = outcome.members.values().map(|standing| declared(&standing.object)).collect();
    }

    /// What a member has, with the exports of an earlier run while they cannot be read.
    fn with_exports(&mut self, name: &str, view: &View, objects: Arc<ClusterObjects>) -> Arc<ClusterObjects> {
        if !objects.exports.is_empty() || are_exports_known(view) {
            self.recalled_exports.remove(name);
        }
        let Some(exports) = self.recalled_exports.get(name).filter(|exports| !exports.is_empty()) else {
            return objects;
        };
        let all = ClusterObjects { exports: exports.clone(), ..ClusterObjects::clone(&objects) };
        // The same again is shared, so that it is seen to be the same.
        let shown = self.objects.get(name).filter(|shown| ***shown == all).cloned();
        shown.unwrap_or_else(|| Arc::new(all))
    }

    /// How well the Services of the members and of the gateway cluster are known.
    fn knowledge(
        &self,
        outcome: Option<&Outcome>,
        gateway: &gateway::View,
        connections: &BTreeMap<String, Connection>,
        views: &BTreeMap<String, View>,
    ) -> Knowledge {
        let Some(outcome) = outcome else { return Knowledge::Partial };
        let mut served = outcome.members.keys().filter(|name| outcome.members[*name].is_served());
        let is_current = |name: &String| {
            connections.get(name).is_some_and(|member| member.connected == Some(true) && member.synced)
                && views.get(name).is_some_and(are_exports_known)
        };
        if !served.clone().all(|name| self.objects.contains_key(name)) {
            return Knowledge::Partial;
        }
        rate(gateway, served.all(is_current))
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
            gateway: GatewayObjects {
                knowledge: self.knowledge(outcome, gateway, &connections, views),
                ..self.known.clone()
            },
            clusters: self.objects.clone(),
            connections,
            place: gateway.place.clone().unwrap_or_else(|| self.snapshot.place.clone()),
            problems,
            complete: self.completeness.is_reached(),
        });
    }
}

/// How a member is connected to, if it is. One that is on its way out is cleaned, though nothing of it was used.
fn wanted(standing: &Standing) -> Option<Order> {
    if standing.object.spec.state == MemberState::Disabled && !is_ending(&standing.object) {
        return None;
    }
    let access = standing.access.clone()?;
    let follow = if standing.duplicate_of.is_none() { Follow::Everything } else { Follow::Identity };
    Some(Order { access, follow })
}

/// Whether a member's exports have been read on the present connection: not where that fails or is refused.
fn are_exports_known(view: &View) -> bool {
    let may_list = || {
        let is_listing = |right: &String| right == "list serviceexports.multicluster.x-k8s.io";
        view.missing.as_ref().is_some_and(|missing| !missing.iter().any(is_listing))
    };
    view.present.as_ref().is_some_and(|present| present.mcs_version.is_none() || may_list())
}

/// How well Services are known where those of all members have been read at some time; `current`: on their present
/// connections.
fn rate(gateway: &gateway::View, current: bool) -> Knowledge {
    if !(gateway.services.is_some() || gateway.answered) {
        return Knowledge::Partial;
    }
    // Fronts that may not be read may well be there.
    match current && gateway.health.connected == Some(true) && gateway.reads_services {
        true => Knowledge::Current,
        false => Knowledge::Known,
    }
}

/// Whether a member has been read, or cannot be.
fn settled(standing: &Standing, view: Option<&View>) -> bool {
    standing.access.is_none() || !standing.is_served() || view.is_some_and(|view| view.synced)
}

/// A MemberCluster as the merge reads it: without what changes for reasons of its own.
fn declared(object: &MemberCluster) -> MemberCluster {
    let mut object = MemberCluster { status: None, ..object.clone() };
    object.metadata.resource_version = None;
    object.metadata.finalizers = None;
    object
}

/// An AddressPool as the merge reads it: without its status and what else changes for reasons of its own.
fn offered(object: &AddressPool) -> AddressPool {
    let mut object = AddressPool { status: None, ..object.clone() };
    object.metadata.generation = None;
    object
}

/// A LoadBalancingPolicy as the merge reads it: without its status and what else changes for reasons of its own.
fn asked(object: &LoadBalancingPolicy) -> LoadBalancingPolicy {
    let mut object = LoadBalancingPolicy { status: None, ..object.clone() };
    object.metadata.generation = None;
    object
}

/// An AddressAllocation as the merge reads it.
fn written(object: &AddressAllocation) -> AddressAllocation {
    let mut object = AddressAllocation { status: None, ..object.clone() };
    object.metadata.resource_version = None;
    object
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

async fn feedback<T>(told: &mut watch::Receiver<T>) {
    if told.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
