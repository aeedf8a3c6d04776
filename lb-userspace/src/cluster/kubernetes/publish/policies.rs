//! The status of LoadBalancingPolicies: each gateway's own entry, and what all entries come to.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::{Action, Kind, Write, conditions};
use crate::cluster::Programmed;
use crate::desired::{
    AreaStatus, Desired, Judgement, Knowledge, LoadBalancingPolicy, LoadBalancingPolicySpec,
    LoadBalancingPolicyStatus, ObjectName, PolicyGatewayState, PolicyState, ZonePreference, judge_policies,
};

/// LoadBalancingPolicies.
const KIND: Kind = Kind {
    group: "kanmon.dev",
    version: "v1alpha1",
    kind: "LoadBalancingPolicy",
    plural: "loadbalancingpolicies",
};

/// The longest message, in characters.
const LONGEST: usize = 1024;
/// How many regions and zones an entry has at most.
const REGIONS: usize = 64;
/// Where nothing but numbers changes, an entry is written no sooner than this after the last time.
const NUMBERS: SignedDuration = SignedDuration::from_secs(10);

/// This gateway's entries that are missing, or say something else now, and when the next one is to be written that
/// waits. A gateway that has no Service of a policy has no entry there: an apply without one takes back what it wrote.
///
/// `cluster_set_id` and `gateway`, the name of its Node or host, say which one this is; `present` are the policies as the watch shows them now. Until
/// something is known nothing is written: what an earlier run of this agent said stays.
pub(in super::super) fn own_writes(
    (cluster_set_id, gateway): (&str, &str),
    programmed: &Programmed,
    desired: &Desired,
    present: &[LoadBalancingPolicy],
    now: Timestamp,
) -> (Vec<Write>, Option<Timestamp>) {
    let (mut writes, mut next) = (Vec::new(), None);
    for policy in present.iter().filter(|_| programmed.known) {
        let before = of_set(policy, cluster_set_id).find(|entry| entry.name == gateway);
        let name = name(policy);
        let state = desired.policies.get(&name).filter(|state| !state.services.is_empty());
        let entry = state
            .map(|state| entry((cluster_set_id, gateway), &name, state, programmed, desired, before, now));
        match waits(before, entry.as_ref(), now) {
            Some(until) => next = next.into_iter().chain([until]).min(),
            None if before == entry.as_ref() => {}
            None => writes.push(apply(&name, entry.map(|entry| json!({"gateways": [entry]})))),
        }
    }
    (writes, next)
}

/// What the lead of the gateways says of each policy: it follows from the objects and from all gateways' entries, so
/// that every lead says the same. Policies that the last merge has not seen as they are now have to wait for the next.
pub(in super::super) fn writes(
    present: &[LoadBalancingPolicy],
    desired: &Desired,
    now: Timestamp,
) -> Vec<Write> {
    let attached: BTreeMap<ObjectName, BTreeSet<ObjectName>> =
        present.iter().map(|policy| (name(policy), attached(policy, desired))).collect();
    let judged = judge_policies(present, &attached, desired.knowledge > Knowledge::Partial);
    let write = |policy: &LoadBalancingPolicy| {
        let name = name(policy);
        let known = desired.policies.get(&name)?;
        if known.targets != policy.spec.targets(&name.namespace) {
            return None;
        }
        let status = status(policy, judged.get(&name)?, now);
        let present = policy.status.clone().unwrap_or_default();
        let differs = LoadBalancingPolicyStatus { gateways: Vec::new(), ..present } != status;
        differs.then(|| apply(&name, Some(json!(status))))
    };
    present.iter().filter_map(write).collect()
}

/// The gateways of a cluster set that have an entry.
pub(in super::super) fn gateways(present: &[LoadBalancingPolicy], cluster_set_id: &str) -> BTreeSet<String> {
    let entries = present.iter().flat_map(|policy| of_set(policy, cluster_set_id));
    entries.map(|entry| entry.name.clone()).collect()
}

/// What takes the entries of a gateway back that is gone for good, written by its field manager.
pub(in super::super) fn removals(
    gateway: &str,
    present: &[LoadBalancingPolicy],
    cluster_set_id: &str,
) -> Vec<Write> {
    let has_entry =
        |policy: &&LoadBalancingPolicy| of_set(policy, cluster_set_id).any(|entry| entry.name == gateway);
    present.iter().filter(has_entry).map(|policy| apply(&name(policy), None)).collect()
}

fn apply(name: &ObjectName, status: Option<serde_json::Value>) -> Write {
    let value = status.map_or_else(|| json!({}), |status| json!({"status": status}));
    Write::new(KIND, name, Action::ApplyStatus(value))
}

fn name(policy: &LoadBalancingPolicy) -> ObjectName {
    ObjectName {
        namespace: policy.metadata.namespace.clone().unwrap_or_default(),
        name: policy.metadata.name.clone().unwrap_or_default(),
    }
}

fn entries(policy: &LoadBalancingPolicy) -> &[PolicyGatewayState] {
    policy.status.as_ref().map_or(&[], |status| &status.gateways)
}

fn of_set<'a>(
    policy: &'a LoadBalancingPolicy,
    cluster_set_id: &str,
) -> impl Iterator<Item = &'a PolicyGatewayState> {
    entries(policy).iter().filter(move |entry| entry.cluster_set_id == cluster_set_id)
}

/// The Services that go by a policy, here or on any gateway.
fn attached(policy: &LoadBalancingPolicy, desired: &Desired) -> BTreeSet<ObjectName> {
    let name = name(policy);
    let elsewhere = entries(policy).iter().flat_map(|entry| &entry.services);
    let elsewhere =
        elsewhere.map(|service| ObjectName { namespace: name.namespace.clone(), name: service.clone() });
    let here = desired.policies.get(&name).into_iter().flat_map(|state| state.services.iter().cloned());
    elsewhere.chain(here).collect()
}

/// What this gateway has to say.
fn entry(
    (cluster_set_id, gateway): (&str, &str),
    name: &ObjectName,
    state: &PolicyState,
    programmed: &Programmed,
    desired: &Desired,
    before: Option<&PolicyGatewayState>,
    now: Timestamp,
) -> PolicyGatewayState {
    let obstacle = state.services.iter().find_map(|service| obstacle(service, programmed, desired));
    let holds = obstacle.is_none();
    let (reason, message) = obstacle.unwrap_or_else(|| ("Programmed".to_owned(), String::new()));
    let report = programmed.policies.get(name).cloned().unwrap_or_default();
    let mut entry = PolicyGatewayState {
        cluster_set_id: cluster_set_id.to_owned(),
        name: gateway.to_owned(),
        programmed: holds,
        reason,
        message: cut(&message),
        since: before
            .filter(|before| before.programmed == holds)
            .map_or(Time(now), |before| before.since.clone()),
        updated: before.map_or(Time(now), |before| before.updated.clone()),
        services: state.services.iter().map(|service| service.name.clone()).collect(),
        degraded: cut(&report.degraded.unwrap_or_default()),
        regions: report.areas.into_iter().take(REGIONS).collect(),
    };
    if before != Some(&entry) {
        entry.updated = Time(now);
    }
    entry
}

/// Why a Service's VIPs are not forwarded, if so.
fn obstacle(service: &ObjectName, programmed: &Programmed, desired: &Desired) -> Option<(String, String)> {
    let vips = desired.fronts.get(service).map_or(&[][..], |front| &front.vips);
    if vips.is_empty() {
        return Some(("NoAddress".to_owned(), format!("Service {service} has no VIP; see its conditions")));
    }
    vips.iter().find_map(|vip| match programmed.vips.get(vip) {
        Some(Ok(())) => None,
        Some(Err(why)) => {
            Some((why.reason.to_owned(), format!("{vip} of Service {service}: {}", why.message)))
        }
        None => Some(("Pending".to_owned(), format!("{vip} of Service {service} is about to be programmed"))),
    })
}

/// Until when an entry waits, if it is one in which numbers only are others.
fn waits(
    before: Option<&PolicyGatewayState>,
    entry: Option<&PolicyGatewayState>,
    now: Timestamp,
) -> Option<Timestamp> {
    let (before, entry) = (before?, entry?);
    let told_at_once = |entry: &PolicyGatewayState| {
        (entry.programmed, entry.reason.clone(), entry.services.clone(), entry.degraded.is_empty())
    };
    let until = before.updated.0.checked_add(NUMBERS).ok()?;
    (before != entry && told_at_once(before) == told_at_once(entry) && now < until).then_some(until)
}

fn cut(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

fn status(policy: &LoadBalancingPolicy, judged: &[Judgement], now: Timestamp) -> LoadBalancingPolicyStatus {
    let entries = entries(policy);
    let before = policy.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let generation = policy.metadata.generation;
    let is_accepted =
        judged.iter().all(|judgement| judgement.kind != "Accepted" || judgement.holds == Some(true));
    let mut all = judged.to_vec();
    all.extend([programmed(entries, is_accepted), degraded(entries)]);
    let sum = |entry: &PolicyGatewayState, of: fn(&AreaStatus) -> u32| {
        entry.regions.iter().map(|area| i64::from(of(area))).sum::<i64>()
    };
    let told = entries.iter().filter(|entry| !entry.regions.is_empty());
    let counts = told.map(|entry| (sum(entry, |area| area.endpoints), sum(entry, |area| area.healthy)));
    let worst = counts.max_by_key(|(endpoints, healthy)| (endpoints - healthy, *endpoints));
    LoadBalancingPolicyStatus {
        observed_generation: generation,
        mode: Some(mode(&policy.spec).to_owned()),
        healthy: worst.map(|(endpoints, healthy)| format!("{healthy}/{endpoints}")),
        ejected: entries.iter().map(|entry| sum(entry, |area| area.ejected)).max(),
        gateways: Vec::new(),
        conditions: conditions(&all, before, generation, now),
    }
}

/// How connections are spread, in a word.
fn mode(spec: &LoadBalancingPolicySpec) -> &'static str {
    let locality = spec.locality.as_ref();
    if locality.is_some_and(|locality| !locality.distribute.is_empty()) {
        "Distribute"
    } else if locality.is_some_and(|locality| !locality.failover.is_empty()) {
        "Failover"
    } else if matches!(spec.zone_preference, Some(ZonePreference::Prefer | ZonePreference::Strict)) {
        "Zone"
    } else {
        "Even"
    }
}

fn programmed(entries: &[PolicyGatewayState], is_accepted: bool) -> Judgement {
    let kind = "Programmed";
    let judgement =
        |holds, reason: &str, message: String| Judgement { kind, holds, reason: reason.to_owned(), message };
    if !is_accepted {
        return judgement(Some(false), "NotAccepted", "see Accepted".to_owned());
    }
    let Some(first) = entries.iter().find(|entry| !entry.programmed) else {
        return match entries.is_empty() {
            true => judgement(None, "Pending", "no gateway has said anything yet".to_owned()),
            false => judgement(Some(true), "Programmed", String::new()),
        };
    };
    let lacking = entries.iter().filter(|entry| !entry.programmed);
    let messages: Vec<String> = lacking.map(|entry| format!("{}: {}", entry.name, entry.message)).collect();
    judgement(Some(false), &first.reason, messages.join("; "))
}

fn degraded(entries: &[PolicyGatewayState]) -> Judgement {
    let troubled = entries.iter().filter(|entry| !entry.degraded.is_empty());
    let messages: Vec<String> = troubled.map(|entry| format!("{}: {}", entry.name, entry.degraded)).collect();
    let (holds, reason) = match (entries.is_empty(), messages.is_empty()) {
        (true, _) => (None, "Pending"),
        (false, true) => (Some(false), "NotDegraded"),
        (false, false) => (Some(true), "Degraded"),
    };
    Judgement { kind: "Degraded", holds, reason: reason.to_owned(), message: messages.join("; ") }
}

#[cfg(test)]
#[path = "policies_tests.rs"]
mod tests;
