//! What is to be written into the clusters, and by whom. In each cluster only the holder of a Lease writes: one of the
//! gateways' for what is about them, one of the cluster set's for what is published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;
use tokio::time::Instant;

use super::access::Access;
use super::attendance::Absences;
use super::cleanup::{self, Ending, Endings, Progress};
use super::conditions;
use super::events::{Lookup, of_secret};
use super::gateway;
use super::heartbeat::Heartbeat;
use super::lease::Lease;
use super::link::Pace;
use super::member::View;
use super::notices::{Notice, Notifier};
use super::publish::{self, Action, Cluster, GATEWAY_MANAGER, LEASE, Sources, Write, gateway_manager};
use super::registry::{Outcome, Standing};
use super::statuses::Statuses;
use super::target::{Publisher, Target};
use super::writer::Writer;
use crate::cluster::{Programmed, Snapshot};
use crate::desired::{CLUSTER_SET_LABEL, Desired, cluster_place};

/// How long it is told that a MemberCluster went before its cluster was clean.
const FAREWELL: Duration = Duration::from_secs(60);
/// The gateway cluster among the clusters that are published to, where it is no member.
const GATEWAY: &str = "";

/// All that is known when it is decided what to write.
#[derive(Clone, Copy)]
pub(super) struct Situation<'a> {
    pub(super) outcome: &'a Outcome,
    /// The members, those that are on their way out too.
    pub(super) views: &'a BTreeMap<String, View>,
    /// The gateway cluster as one that is published to, where it is no member.
    pub(super) own: Option<&'a View>,
    pub(super) gateway: &'a gateway::View,
    pub(super) snapshot: &'a Snapshot,
    pub(super) desired: &'a Desired,
    /// What this gateway's packet program makes of the VIPs.
    pub(super) programmed: &'a Programmed,
}

impl<'a> Situation<'a> {
    fn view(&self, cluster: &str) -> Option<&'a View> {
        if cluster == GATEWAY { self.own } else { self.views.get(cluster) }
    }

    /// The gateways of a cluster set that said something of themselves.
    fn gateways(&self, cluster_set_id: &str) -> BTreeSet<String> {
        let allocations = self.gateway.allocations.as_deref().unwrap_or_default();
        let policies = self.gateway.policies.as_deref().unwrap_or_default();
        let mut gateways = publish::programmed::gateways(allocations, cluster_set_id);
        gateways.extend(publish::policies::gateways(policies, cluster_set_id));
        gateways
    }

    /// The endpoints that exported Services give.
    fn sources(&self) -> Sources {
        Sources::new(&self.snapshot.clusters, &self.snapshot.gateway.members, self.desired)
    }

    /// Another member that is the same cluster as this one, and stays.
    fn stays_a_member(&self, name: &str) -> bool {
        let Some(uid) = self.view(name).and_then(|view| view.uid.as_ref()) else { return false };
        let others = self.outcome.members.iter().filter(|(other, _)| *other != name);
        let mut served = others.filter(|(_, standing)| standing.is_served());
        served.any(|(other, _)| self.view(other).is_some_and(|view| view.uid.as_ref() == Some(uid)))
    }
}

/// The ways out.
pub(super) struct Outbox {
    access: Access,
    publisher: Publisher,
    cleanup_timeout: Duration,
    lease: Lease,
    /// Writes what the gateways say of themselves, if this one holds the Lease.
    gateway: Writer,
    /// Writes what this gateway says of itself alone.
    own: Writer,
    /// Shows that this gateway is there, and knows which others are not.
    heartbeat: Heartbeat,
    /// Take back what gateways said that are gone for good, each in the name of one of them.
    estates: BTreeMap<String, Writer>,
    notifier: Notifier,
    statuses: Statuses,
    targets: BTreeMap<String, Target>,
    endings: Endings,
    /// What is told of MemberClusters that are gone.
    farewells: Vec<(Notice, Instant)>,
}

impl Outbox {
    /// Begins to try for the gateways' Lease.
    pub(super) fn start(
        access: &Access,
        lease: String,
        publisher: Publisher,
        cleanup_timeout: Duration,
        pace: Pace,
    ) -> Self {
        let Publisher { instance, gateway, changed, presence, .. } = publisher.clone();
        let place = cluster_place(GATEWAY);
        Self {
            lease: Lease::hold(access.clone(), lease, instance.clone(), place, changed.clone(), presence),
            gateway: Writer::start(access.clone(), GATEWAY_MANAGER.to_owned(), changed.clone()),
            own: Writer::start(access.clone(), gateway_manager(&gateway), changed),
            heartbeat: Heartbeat::start(access.clone(), &publisher, pace.renewal),
            estates: BTreeMap::new(),
            notifier: Notifier::start(access.clone(), instance),
            access: access.clone(),
            publisher,
            cleanup_timeout,
            statuses: Statuses::default(),
            targets: BTreeMap::new(),
            endings: Endings::default(),
            farewells: Vec::new(),
        }
    }

    /// Orders what follows from the present state. When to decide anew at the latest.
    pub(super) fn send(&mut self, situation: &Situation<'_>) -> Option<Instant> {
        let now = whole_seconds();
        self.keep_targets(situation);
        self.heartbeat.expect(situation.gateways(&self.publisher.cluster_set_id));
        let absences = self.heartbeat.absences();
        let (writes, notices, next) = if self.lease.is_held() {
            let (mut writes, notices, next) = self.of_gateway(situation, now);
            writes.extend(self.forget_gone(situation, &absences));
            (writes, notices, next)
        } else {
            self.statuses = Statuses::default();
            self.estates.clear();
            (Vec::new(), Vec::new(), None)
        };
        self.gateway.order(writes);
        self.notifier.tell(notices);
        let (own, own_next) = self.of_this_gateway(situation, now);
        self.own.order(own);
        let mut sources = None;
        for (name, target) in &self.targets {
            let (writes, notices) = if target.leads() {
                let sources = sources.get_or_insert_with(|| situation.sources());
                self.of_cluster(name, target, situation, (sources, &absences), now)
            } else {
                (Vec::new(), Vec::new())
            };
            target.order(writes, notices);
        }
        next.into_iter().chain(own_next).min()
    }

    /// Publishes to the clusters where that is allowed, and to no others.
    fn keep_targets(&mut self, situation: &Situation<'_>) {
        let wanted = self.wanted_targets(situation);
        let kept =
            |name: &String, target: &Target| wanted.get(name).is_some_and(|(access, _)| target.uses(access));
        let (kept, ended): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.targets).into_iter().partition(|(name, target)| kept(name, target));
        self.targets = kept;
        ended.into_values().for_each(Target::end);
        for (name, (access, ending)) in wanted {
            let start = || Target::start(&access, &cluster_place(&name), &self.publisher);
            self.targets.entry(name.clone()).or_insert_with(start).ending = ending;
        }
    }

    /// How each cluster that is written to is reached, and whether it is being cleaned.
    fn wanted_targets(&self, situation: &Situation<'_>) -> BTreeMap<String, (Access, bool)> {
        let allowed = |name: &str| {
            let missing = situation.view(name).and_then(|view| view.missing.as_ref());
            missing.is_some_and(Vec::is_empty)
        };
        let members = situation.outcome.members.iter().filter(|(_, standing)| standing.is_served());
        let ending = situation.outcome.ending.iter().filter(|(name, _)| !situation.stays_a_member(name));
        let members = members.map(|member| (member, false)).chain(ending.map(|member| (member, true)));
        let mut wanted: BTreeMap<String, (Access, bool)> = members
            .filter(|((name, _), _)| allowed(name))
            .filter_map(|((name, standing), ending)| Some((name.clone(), (standing.access.clone()?, ending))))
            .collect();
        if allowed(GATEWAY) && !situation.stays_a_member(GATEWAY) {
            wanted.insert(GATEWAY.to_owned(), (self.access.clone(), false));
        }
        wanted
    }

    /// What is about the gateways themselves.
    fn of_gateway(
        &mut self,
        situation: &Situation<'_>,
        now: Timestamp,
    ) -> (Vec<Write>, Vec<Notice>, Option<Instant>) {
        let Situation { outcome, views, gateway, snapshot, desired, programmed, .. } = *situation;
        let mut writes = publish::member_writes(
            &mut self.statuses,
            outcome,
            snapshot,
            |name, standing, connection| {
                conditions::status(standing, views.get(name), connection, desired, programmed, now)
            },
            Instant::now().into_std(),
        );
        let to_guard = outcome.members.iter().filter(|(name, standing)| self.needs_cleanup(name, standing));
        writes.extend(to_guard.map(|(_, standing)| cleanup::finalizer(&standing.object.metadata, true)));
        let (released, ends) = self.release(situation);
        let next = ends.into_iter().chain(self.statuses.next().map(Instant::from_std)).min();
        writes.extend(released);
        if let Some(allocations) = &gateway.allocations {
            let owner = &snapshot.gateway.owner;
            writes.extend(publish::allocations::writes(&desired.claims, allocations, owner));
            let pools = gateway.pools.as_deref().unwrap_or_default();
            writes.extend(publish::pools::writes(pools, allocations, now));
        }
        if let Some(policies) = gateway.policies.as_ref().filter(|_| desired.complete) {
            writes.extend(publish::policies::writes(policies, desired, now));
        }
        let lookup = Lookup { gateway: Some(gateway), ..Lookup::default() };
        let problems = desired.problems.iter().filter(|problem| problem.cluster.is_empty());
        let conflicts = self.gateway.conflicts();
        let notices = outcome
            .refusals
            .iter()
            .map(of_secret)
            .chain(problems.filter_map(|problem| lookup.notice(problem)))
            .chain(conflicts.iter().map(|notice| lookup.identified(notice)))
            .chain(self.farewells.iter().map(|(notice, _)| notice.clone()))
            .collect();
        (writes, notices, next)
    }

    /// What this gateway alone says: whether its packet program forwards each address, and how the Services of each
    /// policy do. When there is more to say at the latest.
    fn of_this_gateway(&self, situation: &Situation<'_>, now: Timestamp) -> (Vec<Write>, Option<Instant>) {
        let Situation { gateway, snapshot, desired, programmed, .. } = *situation;
        let (name, owner) = (&self.publisher.gateway, &snapshot.gateway.owner);
        let allocations = gateway.allocations.as_deref().unwrap_or_default();
        let mut writes = publish::programmed::writes(name, programmed, allocations, owner, now);
        let policies = gateway.policies.as_deref().unwrap_or_default();
        let this = (owner.cluster_set_id.as_str(), name.as_str());
        let (of_policies, next) = publish::policies::own_writes(this, programmed, desired, policies, now);
        writes.extend(of_policies);
        let next = next.map(|next| Instant::now() + next.duration_since(now).unsigned_abs());
        (writes, next)
    }

    /// Takes back what gateways said that are gone for good. What is still to be deleted after that: their Leases.
    fn forget_gone(&mut self, situation: &Situation<'_>, absences: &Absences) -> Vec<Write> {
        let mut estates = std::mem::take(&mut self.estates);
        let Some(allocations) = &situation.gateway.allocations else { return Vec::new() };
        let policies = situation.gateway.policies.as_deref().unwrap_or_default();
        let Publisher { cluster_set_id, changed, .. } = &self.publisher;
        let mut deletions = Vec::new();
        for (gateway, absence) in absences.gone.iter().filter(|(_, absence)| absence.for_good) {
            let mut removals = publish::programmed::removals(gateway, allocations, cluster_set_id);
            removals.extend(publish::policies::removals(gateway, policies, cluster_set_id));
            if removals.is_empty() {
                deletions.extend(absence.lease.as_ref().map(deletion));
                continue;
            }
            let start = || Writer::start(self.access.clone(), gateway_manager(gateway), changed.clone());
            let writer = estates.remove(gateway).unwrap_or_else(start);
            writer.order(removals);
            self.estates.insert(gateway.clone(), writer);
        }
        deletions
    }

    /// Whether a MemberCluster has to wait for a cleanup when somebody deletes it, and does not yet.
    fn needs_cleanup(&self, name: &str, standing: &Standing) -> bool {
        let is_local = standing.object.spec.source.as_ref().is_some_and(|source| source.local.is_some());
        standing.exists
            && !is_local
            && self.targets.contains_key(name)
            && !cleanup::has_finalizer(&standing.object.metadata)
    }

    /// Lets MemberClusters go whose clusters are clean, or whose time is up.
    fn release(&mut self, situation: &Situation<'_>) -> (Vec<Write>, Option<Instant>) {
        let (mut writes, mut next) = (Vec::new(), None);
        let now = Instant::now();
        let ending = &situation.outcome.ending;
        self.endings.retain(ending.values().map(|standing| &standing.object));
        self.farewells.retain(|(_, until)| *until > now);
        for (name, standing) in ending.iter().filter(|(_, s)| cleanup::has_finalizer(&s.object.metadata)) {
            let progress = self.progress(situation, name);
            let judged = self.endings.judge(&standing.object, progress, self.cleanup_timeout, now.into_std());
            match judged {
                Ending::Waits(until) => {
                    next = next.into_iter().chain([Instant::from_std(until)]).min();
                    continue;
                }
                Ending::Done => {}
                Ending::GivenUp => self.tell_given_up(name, standing, now),
            }
            writes.push(cleanup::finalizer(&standing.object.metadata, false));
        }
        (writes, next)
    }

    fn progress(&self, situation: &Situation<'_>, name: &str) -> Progress {
        let present = situation.view(name).and_then(|view| view.present.as_ref());
        let clean = present
            .is_some_and(|present| cleanup::writes(present, &self.publisher.cluster_set_id).is_empty());
        if clean || situation.stays_a_member(name) { Progress::Clean } else { Progress::Unknown }
    }

    fn tell_given_up(&mut self, name: &str, standing: &Standing, now: Instant) {
        if self.farewells.iter().any(|(notice, _)| notice.name == name) {
            return;
        }
        let id = &self.publisher.cluster_set_id;
        let message = format!(
            "this MemberCluster goes, but its cluster could not be cleaned within {} s; what is left there has the \
             label {}={id}: remove it with `kubectl delete serviceimports,endpointslices -A -l {}={id}`",
            self.cleanup_timeout.as_secs(),
            CLUSTER_SET_LABEL,
            CLUSTER_SET_LABEL,
        );
        tracing::warn!("MemberCluster {name}: {message}");
        let notice = Notice {
            api_version: "kanmon.dev/v1alpha1".to_owned(),
            kind: "MemberCluster".to_owned(),
            namespace: String::new(),
            name: name.to_owned(),
            uid: standing.object.metadata.uid.clone().unwrap_or_default(),
            reason: "CleanupIncomplete".to_owned(),
            message,
        };
        self.farewells.push((notice, now + FAREWELL));
    }

    /// What is published to a cluster, or removed from it.
    fn of_cluster(
        &self,
        name: &str,
        target: &Target,
        situation: &Situation<'_>,
        (sources, absences): (&Sources, &Absences),
        now: Timestamp,
    ) -> (Vec<Write>, Vec<Notice>) {
        let Situation { gateway, snapshot, desired, .. } = *situation;
        let set = &self.publisher.cluster_set_id;
        let nothing = (Vec::new(), Vec::new());
        let Some(view) = situation.view(name) else { return nothing };
        let Some(present) = view.present.as_deref() else { return nothing };
        if target.ending {
            return (cleanup::writes(present, set), Vec::new());
        }
        // Before all is known nothing is said: it would be taken back soon.
        if !desired.complete {
            return nothing;
        }
        let cluster = Cluster {
            name,
            present,
            desired,
            sources,
            allocations: gateway.allocations.as_deref().unwrap_or_default(),
            absences,
            cluster_set_id: set,
            now,
        };
        let (writes, problems) = publish::cluster_writes(&cluster);
        let lookup = Lookup {
            objects: snapshot.clusters.get(name).map(Arc::as_ref),
            present: Some(present),
            gateway: (name == GATEWAY).then_some(gateway),
        };
        let conflicts = target.conflicts();
        let merged = desired.problems.iter().filter(|problem| problem.cluster == *name && name != GATEWAY);
        let notices = merged
            .chain(&problems)
            .filter_map(|problem| lookup.notice(problem))
            .chain(conflicts.iter().map(|notice| lookup.identified(notice)))
            .filter(|notice| !view.terminating.contains(&notice.namespace))
            .collect();
        (writes, notices)
    }
}

/// Deletes a Lease, if nobody has renewed it since.
fn deletion(lease: &ObjectMeta) -> Write {
    Write {
        kind: LEASE,
        namespace: lease.namespace.clone().unwrap_or_default(),
        name: lease.name.clone().unwrap_or_default(),
        action: Action::delete(lease),
    }
}

/// Now, as an API server keeps it.
fn whole_seconds() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH)
}
