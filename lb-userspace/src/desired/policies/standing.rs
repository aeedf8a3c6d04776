//! Which of several policies counts, and what each is told of itself.

use std::collections::{BTreeMap, BTreeSet};

use super::super::LOAD_BALANCER_CLASS;
use super::super::index::object_name;
use super::super::resources::{LoadBalancingPolicy, LoadBalancingPolicySpec};
use super::super::types::{Judgement, ObjectName, Reason};

/// A policy among all there are.
#[derive(Debug)]
pub(super) struct Standing<'a> {
    pub(super) name: ObjectName,
    pub(super) spec: &'a LoadBalancingPolicySpec,
    /// What it says that cannot be: then it counts for nothing.
    pub(super) errors: Vec<String>,
    /// Its targets, with the policy that counts there where that is another.
    targets: BTreeMap<ObjectName, Option<ObjectName>>,
}

/// Something that a policy is told.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) reason: Reason,
    pub(super) message: String,
}

/// All policies, those first that go before others; of two of one name the first.
pub(super) fn standings(policies: &[LoadBalancingPolicy]) -> Vec<Standing<'_>> {
    let is_there = |policy: &&LoadBalancingPolicy| policy.metadata.deletion_timestamp.is_none();
    let mut sorted: Vec<(ObjectName, &LoadBalancingPolicy)> =
        policies.iter().filter(is_there).map(|policy| (object_name(&policy.metadata), policy)).collect();
    sorted.sort_by(|(a_name, a), (b_name, b)| {
        let age = |policy: &LoadBalancingPolicy| {
            let created = policy.metadata.creation_timestamp.clone();
            (created.is_none(), created)
        };
        (age(a), a_name).cmp(&(age(b), b_name))
    });
    sorted.dedup_by(|(second, _), (first, _)| second == first);

    let mut winners: BTreeMap<ObjectName, ObjectName> = BTreeMap::new();
    let mut standings = Vec::new();
    for (name, policy) in sorted {
        let spec = &policy.spec;
        let errors = spec.errors();
        let mut targets = BTreeMap::new();
        for target in spec.targets(&name.namespace).into_iter().filter(|_| errors.is_empty()) {
            let winner = winners.entry(target.clone()).or_insert_with(|| name.clone());
            targets.insert(target, Some(winner.clone()).filter(|winner| *winner != name));
        }
        standings.push(Standing { name, spec, errors, targets });
    }
    standings
}

impl Standing<'_> {
    pub(super) fn title(&self) -> String {
        title(&self.name)
    }

    /// The targets where no other policy counts.
    pub(super) fn won(&self) -> impl Iterator<Item = &ObjectName> {
        self.targets.iter().filter(|(_, other)| other.is_none()).map(|(target, _)| target)
    }

    /// What is to be told. `attached` are the Services that go by it; `known`: there are no others.
    pub(super) fn findings(&self, attached: &BTreeSet<ObjectName>, known: bool) -> Vec<Finding> {
        let finding = |reason, message| Finding { reason, message };
        if !self.errors.is_empty() {
            let invalid =
                |error: &String| finding(Reason::InvalidObject, format!("{error}; the policy is not used"));
            return self.errors.iter().map(invalid).collect();
        }
        let conflicts = self.targets.iter().filter_map(|(target, other)| {
            let other = other.as_ref()?;
            let message = format!(
                "Service {target} goes by {}, which is older (or, where that cannot be told, first by name); take the \
                 Service out of the targetRefs of one of them",
                title(other)
            );
            Some(finding(Reason::PolicyConflict, message))
        });
        let missing = self.won().filter(|target| known && !attached.contains(target)).map(|target| {
            let message = format!(
                "neither the gateway cluster nor a member has a Service {target} of type LoadBalancer and \
                 loadBalancerClass {LOAD_BALANCER_CLASS} that is served; make one, or correct targetRefs"
            );
            finding(Reason::TargetNotFound, message)
        });
        conflicts.chain(missing).collect()
    }
}

/// How a policy is named in problems.
pub(super) fn title(name: &ObjectName) -> String {
    format!("LoadBalancingPolicy {name}")
}

/// Conditions of all policies, by what the objects say alone and by which Services go by each, on whichever gateway:
/// so all gateways judge alike. `known`: no other Services do.
#[must_use]
pub fn judge_policies(
    policies: &[LoadBalancingPolicy],
    attached: &BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    known: bool,
) -> BTreeMap<ObjectName, Vec<Judgement>> {
    let nothing = BTreeSet::new();
    let judge = |standing: Standing<'_>| {
        let findings = standing.findings(attached.get(&standing.name).unwrap_or(&nothing), known);
        let judged = judgements(&standing, &findings);
        (standing.name, judged)
    };
    standings(policies).into_iter().map(judge).collect()
}

/// Accepted and Enforced: there is no field without an effect.
pub(super) fn judgements(standing: &Standing<'_>, findings: &[Finding]) -> Vec<Judgement> {
    let about: Vec<&Finding> = findings.iter().collect();
    vec![accepted(standing, &about), judgement("Enforced", true, "Enforced", &[])]
}

/// As Gateway API's policies have it: a policy that some target goes by is accepted.
fn accepted(standing: &Standing<'_>, about: &[&Finding]) -> Judgement {
    let holds = standing.errors.is_empty() && about.len() < standing.targets.len();
    let mut judged = judgement("Accepted", holds, "Accepted", about);
    if holds && !about.is_empty() {
        judged.reason = judged.reason.replace("Conflicted", "SomeConflicted");
        judged.reason = judged.reason.replace("TargetNotFound", "SomeTargetsNotFound");
    }
    judged
}

/// `good` is the reason where nothing was found.
fn judgement(kind: &'static str, holds: bool, good: &str, findings: &[&Finding]) -> Judgement {
    let word = |finding: &&Finding| match finding.reason {
        Reason::InvalidObject => "Invalid".to_owned(),
        Reason::PolicyConflict => "Conflicted".to_owned(),
        other => other.to_string(),
    };
    let reasons: BTreeSet<String> = findings.iter().map(word).collect();
    let reason =
        if reasons.is_empty() { good.to_owned() } else { reasons.into_iter().collect::<Vec<_>>().join(",") };
    let messages: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
    Judgement { kind, holds: Some(holds), reason, message: messages.join("; ") }
}
