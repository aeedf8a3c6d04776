//! Conditions: what is judged now, with the times of what was written before.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::desired::Judgement;

/// The longest message of a condition that we write, in characters.
const LONGEST: usize = 1024;

/// The conditions to write: one whose status is as it was keeps its time.
pub(in super::super) fn conditions(
    judged: &[Judgement],
    present: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    judged.iter().map(|judgement| condition(judgement, present, generation, now)).collect()
}

fn condition(
    judgement: &Judgement,
    present: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let status = match judgement.holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let before =
        present.iter().find(|condition| condition.type_ == judgement.kind && condition.status == status);
    Condition {
        type_: judgement.kind.to_owned(),
        status: status.to_owned(),
        reason: judgement.reason.clone(),
        message: judgement.message.chars().take(LONGEST).collect(),
        last_transition_time: before.map_or(Time(now), |before| before.last_transition_time.clone()),
        observed_generation: generation,
    }
}

/// Whether the conditions of our types are not what is judged. One that a cluster keeps without its generation, because
/// its definition of the resource is older than that field, is as it should be.
pub(super) fn differ(wanted: &[Condition], present: &[Condition], is_ours: impl Fn(&str) -> bool) -> bool {
    let same = |wanted: &Condition, present: &Condition| {
        present.status == wanted.status
            && present.reason == wanted.reason
            && present.message == wanted.message
            && present.last_transition_time == wanted.last_transition_time
            && (present.observed_generation.is_none()
                || present.observed_generation == wanted.observed_generation)
    };
    let written = |wanted: &Condition| {
        present
            .iter()
            .find(|present| present.type_ == wanted.type_)
            .is_some_and(|present| same(wanted, present))
    };
    let is_wanted = |kind: &str| wanted.iter().any(|wanted| wanted.type_ == kind);
    !wanted.iter().all(written)
        || present.iter().any(|present| is_ours(&present.type_) && !is_wanted(&present.type_))
}
