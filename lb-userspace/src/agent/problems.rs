//! Everything that is wrong, from all stages, as one list; and its log.

use std::collections::BTreeSet;

use crate::desired::{self, Severity};
use crate::network::NextHops;
use crate::plan::PlanProblem;
use crate::status::view::Problem;

/// What is said of a backend whose route has not been looked up yet: a matter of milliseconds.
pub(super) const NO_NEXT_HOP_YET: &str = "its next hop is being resolved";

/// A problem of a source or of the merge.
pub(super) fn from_desired(problem: &desired::Problem) -> Problem {
    Problem {
        cluster: Some(problem.cluster.clone()).filter(|cluster| !cluster.is_empty()),
        object: problem.object.clone(),
        reason: problem.reason.to_string(),
        message: match problem.severity {
            Severity::Error => problem.message.clone(),
            Severity::Warning => format!("warning: {}", problem.message),
        },
    }
}

/// A problem of a plan; `None` for what is only a matter of a moment.
pub(super) fn from_plan(problem: &PlanProblem, next_hops: &NextHops) -> Option<Problem> {
    let (object, reason) = match problem {
        PlanProblem::NoNextHop { backend, .. } if !next_hops.contains_key(&backend.address) => return None,
        PlanProblem::NoNextHop { backend, .. } => (format!("backend {backend}"), "NoNextHop"),
        PlanProblem::ServicesFull { service, .. } => (format!("service {service}"), "ServicesFull"),
        PlanProblem::MembersLeftOut { service, .. } => (format!("service {service}"), "MembersLeftOut"),
        PlanProblem::RingSpace { service, .. } => (format!("service {service}"), "RingSpace"),
        PlanProblem::RingTooLarge { service, .. } => (format!("service {service}"), "RingTooLarge"),
        PlanProblem::Mismatch { service, .. } => (format!("service {service}"), "Mismatch"),
    };
    Some(Problem { cluster: None, object, reason: reason.to_owned(), message: problem.to_string() })
}

/// Logs what has come and what has gone.
pub(super) fn log_changes(before: &[Problem], now: &[Problem]) {
    let (old, new): (BTreeSet<&Problem>, BTreeSet<&Problem>) =
        (before.iter().collect(), now.iter().collect());
    for problem in new.difference(&old) {
        let place =
            problem.cluster.as_ref().map(|cluster| format!("cluster {cluster}: ")).unwrap_or_default();
        tracing::warn!("{place}{}: {} ({})", problem.object, problem.message, problem.reason);
    }
    let still: BTreeSet<_> = now.iter().map(|problem| (&problem.cluster, &problem.object)).collect();
    for problem in old.difference(&new) {
        if !still.contains(&(&problem.cluster, &problem.object)) {
            tracing::info!("{} has no problem any more", problem.object);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{BackendId, Protocol};
    use crate::network::NextHopError;

    #[test]
    fn a_next_hop_that_is_being_resolved_is_no_problem_and_one_that_failed_is() {
        let backend = BackendId { protocol: Protocol::Tcp, address: [10, 0, 0, 1].into(), port: 80 };
        let problem = PlanProblem::NoNextHop { backend, reason: "no route".into() };
        let mut next_hops = NextHops::new();
        assert_eq!(from_plan(&problem, &next_hops), None);
        next_hops.insert(backend.address, Err(NextHopError::Local));
        let shown = from_plan(&problem, &next_hops).unwrap();
        assert_eq!(shown.reason, "NoNextHop");
        assert!(shown.object.contains("10.0.0.1:80"), "{}", shown.object);
    }
}
