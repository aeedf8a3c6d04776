//! Everything that is wrong, from all stages, as one list; and its log.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::desired::{self, ServiceId, Severity};
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

/// Maps from an earlier run are not planned over yet.
pub(super) fn held(services: usize) -> Problem {
    Problem {
        cluster: None,
        object: "maps".to_owned(),
        reason: "NotAllRead".to_owned(),
        message: format!(
            "the {services} services of an earlier run go on as they were, without changes and probes: not all \
             clusters have told yet what they have, and it is not known from before; the clusters and the other \
             problems say what does not answer"
        ),
    }
}

/// A service that is served otherwise than was asked for, or not at all.
pub(super) fn degraded(id: ServiceId, message: String) -> Problem {
    Problem { cluster: None, object: format!("service {id}"), reason: "Degraded".to_owned(), message }
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
        PlanProblem::SourceRangesFull { service, .. } => (format!("service {service}"), "SourceRangesFull"),
        PlanProblem::Mismatch { service, .. } => (format!("service {service}"), "Mismatch"),
    };
    // As a sentence of its own the text names the object once more.
    let text = problem.to_string();
    let message = text.strip_prefix(&format!("{object} ")).unwrap_or(&text).to_owned();
    Some(Problem { cluster: None, object, reason: reason.to_owned(), message })
}

/// Services of a family without a SNAT address: their packets can't be forwarded.
pub(super) fn without_snat<'a>(
    vips: impl Iterator<Item = &'a IpAddr> + Clone,
    snat_addresses: &BTreeSet<IpAddr>,
) -> Vec<Problem> {
    let missing = [("IPv4", true), ("IPv6", false)].into_iter().filter(|(_, v4)| {
        vips.clone().any(|vip| vip.is_ipv4() == *v4)
            && !snat_addresses.iter().any(|address| address.is_ipv4() == *v4)
    });
    missing
        .map(|(family, _)| Problem {
            cluster: None,
            object: format!("SNAT over {family}"),
            reason: "NoSnatAddress".to_owned(),
            message: no_snat_address(family),
        })
        .collect()
}

/// What is wrong where no SNAT address is of a family.
pub(super) fn no_snat_address(family: &str) -> String {
    format!(
        "services with {family} VIPs are dropped, because the gateway has no {family} address to forward from: \
         give an attached interface one, or name it with --snat-addresses, and restart"
    )
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
        assert_eq!(shown.object, "backend 10.0.0.1:80/TCP");
        assert!(shown.message.starts_with("gets no new flows"), "{}", shown.message);
    }

    #[test]
    fn a_family_that_has_vips_but_no_snat_address_is_reported() {
        let v4: IpAddr = [192, 0, 2, 1].into();
        let v6: IpAddr = "fd00::1".parse().unwrap();
        let snat = BTreeSet::from([v4]);
        assert_eq!(without_snat([v4].iter(), &snat), []);
        let problems = without_snat([v4, v6].iter(), &snat);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].message.contains("IPv6 VIPs"), "{}", problems[0].message);
    }
}
