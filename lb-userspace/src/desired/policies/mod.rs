//! LoadBalancingPolicies: which Service goes by which, and what it asks of that Service. Pure.
//!
//! A policy is for the fronts of its namespace that it names. Of several for one front the oldest counts; without
//! timestamps the first by name does. One that says what cannot be counts for nothing.

mod health_check;
mod locality;
mod standing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::fronts::Front;
use super::index::object_name;
use super::members::Members;
use super::policy::{FlowLogging, NewFlowLimit, OutlierDetection, Policy};
use super::problems::Problems;
use super::resources::{ClientPrefix, LoadBalancingPolicySpec, OutlierDetectionSpec, ZonePreference};
use super::types::{GatewayObjects, Judgement, Knowledge, ObjectName, Place, PolicyState, Reason};
use crate::config::parse_duration;

pub(super) use locality::asks_for_own_zone;
pub use standing::judge_policies;
use standing::{Finding, Standing, judgements, standings};

/// Gives each front what is asked of it, and says what became of each policy. `place` is where this gateway is.
pub(super) fn attach<'a>(
    gateway: &'a GatewayObjects,
    place: &Place,
    members: &Members,
    fronts: &mut BTreeMap<ObjectName, Front<'a>>,
    problems: &mut Problems,
) -> BTreeMap<ObjectName, PolicyState> {
    report_duplicates(gateway, problems);
    let standings = standings(&gateway.policies);
    let winners: BTreeMap<&ObjectName, &Standing<'a>> =
        standings.iter().flat_map(|standing| standing.won().map(move |target| (target, standing))).collect();
    for (name, front) in fronts.iter_mut() {
        match winners.get(name) {
            Some(standing) => apply(standing, place, front, problems),
            None => front.policy = Arc::new(by_default(front, place)),
        }
    }
    // A Service of a cluster that has never been read may well be there.
    let are_fronts_known = gateway.allocations.is_none() || gateway.knowledge > Knowledge::Partial;
    let state = |standing: &Standing<'a>| {
        let services: BTreeSet<ObjectName> =
            standing.won().filter(|target| fronts.contains_key(target)).cloned().collect();
        let findings = standing.findings(&services, are_fronts_known);
        report(standing, &findings, problems);
        if are_fronts_known {
            report_selector(standing, members, problems);
        }
        let judgements: Vec<Judgement> = judgements(standing, &findings);
        let targets = standing.spec.targets(&standing.name.namespace);
        (standing.name.clone(), PolicyState { judgements, targets, services })
    };
    standings.iter().map(state).collect()
}

/// What is asked of a front that no policy is for.
fn by_default(front: &Front<'_>, place: &Place) -> Policy {
    let wish = if asks_for_own_zone(front.service) { ZonePreference::Prefer } else { ZonePreference::None };
    // What cannot be done is told about the Service.
    let (locality, _) = locality::resolve(None, wish, place);
    Policy { locality, ..Policy::default() }
}

fn apply<'a>(standing: &Standing<'a>, place: &Place, front: &mut Front<'a>, problems: &mut Problems) {
    let spec = standing.spec;
    let asked = if asks_for_own_zone(front.service) { ZonePreference::Prefer } else { ZonePreference::None };
    let wish = spec.zone_preference.unwrap_or(asked);
    let (locality, doubts) = locality::resolve(spec.locality.as_ref(), wish, place);
    for (reason, message) in doubts {
        problems.warning("", standing.title(), reason, message);
    }
    front.policy = Arc::new(Policy { locality, ..policy(standing) });
    front.selector = spec.cluster_selector.as_ref();
    if let Some(check) = &spec.health_check {
        front.check = health_check::resolve(check);
    }
}

/// What does not depend on the front.
fn policy(standing: &Standing<'_>) -> Policy {
    let LoadBalancingPolicySpec {
        locality,
        outlier_detection,
        drain_timeout,
        retry_on_reset,
        slow_start,
        flow_log,
        new_flow_limit,
        new_flow_limit_prefix,
        ..
    } = standing.spec;
    let default = Policy::default();
    let failback_delay = locality.as_ref().and_then(|locality| locality.failback_delay.as_ref());
    let overprovisioning_percent = locality.as_ref().and_then(|locality| locality.overprovisioning_percent);
    Policy {
        name: Some(standing.name.clone()),
        overprovisioning_percent: overprovisioning_percent.unwrap_or(default.overprovisioning_percent),
        failback_delay: duration(failback_delay).unwrap_or(default.failback_delay),
        outlier_detection: outlier_detection.as_ref().map(detection),
        drain_timeout: duration(drain_timeout.as_ref()),
        retry_on_reset: retry_on_reset.unwrap_or(default.retry_on_reset),
        slow_start: duration(slow_start.as_ref()).unwrap_or(default.slow_start),
        flow_log: flow_log.as_ref().map_or(default.flow_log, |log| FlowLogging {
            counters: log.counters,
            sample_one_in: log.sample_one_in.unwrap_or(default.flow_log.sample_one_in),
        }),
        new_flow_limit: new_flow_limit.map(|limit| flow_limit(limit, new_flow_limit_prefix.as_ref())),
        ..default
    }
}

fn flow_limit(per_second: u32, prefix: Option<&ClientPrefix>) -> NewFlowLimit {
    let default = NewFlowLimit::per_second(per_second);
    let length =
        |said: Option<u32>, default: u8| said.and_then(|length| u8::try_from(length).ok()).unwrap_or(default);
    NewFlowLimit {
        ipv4_prefix: length(prefix.and_then(|prefix| prefix.ipv4), default.ipv4_prefix),
        ipv6_prefix: length(prefix.and_then(|prefix| prefix.ipv6), default.ipv6_prefix),
        ..default
    }
}

fn detection(spec: &OutlierDetectionSpec) -> OutlierDetection {
    let default = OutlierDetection::default();
    let base_ejection_time = duration(spec.base_ejection_time.as_ref()).unwrap_or(default.base_ejection_time);
    let longest = default.max_ejection_time.max(base_ejection_time);
    OutlierDetection {
        consecutive_errors: spec.consecutive_errors.unwrap_or(default.consecutive_errors),
        interval: duration(spec.interval.as_ref()).unwrap_or(default.interval),
        base_ejection_time,
        max_ejection_time: duration(spec.max_ejection_time.as_ref()).unwrap_or(longest),
        max_ejection_percent: spec.max_ejection_percent.unwrap_or(default.max_ejection_percent),
    }
}

/// A duration of a spec that has been checked.
fn duration(text: Option<&String>) -> Option<Duration> {
    parse_duration(text?).ok()
}

fn report_duplicates(gateway: &GatewayObjects, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for policy in &gateway.policies {
        let name = object_name(&policy.metadata);
        if !seen.insert(name.clone()) {
            let message = "is there twice; the first one counts; remove the other";
            problems.error("", standing::title(&name), Reason::DuplicateObject, message);
        }
    }
}

fn report(standing: &Standing<'_>, findings: &[Finding], problems: &mut Problems) {
    for finding in findings {
        match finding.reason {
            Reason::InvalidObject => problems.error("", standing.title(), finding.reason, &finding.message),
            reason => problems.warning("", standing.title(), reason, &finding.message),
        }
    }
}

/// Says so where a selector leaves nothing.
fn report_selector(standing: &Standing<'_>, members: &Members, problems: &mut Problems) {
    if standing.errors.is_empty()
        && let Some(selector) = &standing.spec.cluster_selector
        && !members.iter().any(|member| selector.matches(&member.labels))
    {
        let message = "clusterSelector chooses no member cluster, so the Services of the policy have no endpoints; \
                       correct it, or label the MemberClusters";
        problems.warning("", standing.title(), Reason::NothingSelected, message);
    }
}
