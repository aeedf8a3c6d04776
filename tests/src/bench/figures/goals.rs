//! What is to be reached, and whether it was. Pure.

use super::{
    contender::{BASELINE, KANMON, PEER},
    report::{Goal, Report},
};
use crate::bench::samples::ratio;

/// With so many flows, ratios to the baseline and to a peer are to be at most these.
const NAT: [(u32, f64, f64); 7] = [
    (1, 0.9, 0.5),
    (1 << 10, 0.9, 0.5),
    (1 << 12, 0.6, 0.5),
    (1 << 14, 0.6, 0.5),
    (1 << 16, 0.6, 0.5),
    (1 << 18, 0.6, 0.5),
    (1 << 20, 0.6, 0.55),
];
const NEW_FLOW: f64 = 0.7;
const PASS: f64 = 0.6;
/// ms for a ring of 65,537 slots over 1,000 backends, and for a changed endpoint to reach the maps.
const RING: f64 = 5.0;
const CHANGE: f64 = 10.0;

/// All goals, with what this run has to say of them.
pub(super) fn judge(report: &Report) -> Vec<Goal> {
    let against = |case: &str, flows: u32, other: &str| {
        let median = |program| report.cost(case, flows, program).map(|cost| cost.ns.median);
        ratio(median(KANMON)?, median(other)?)
    };
    let mut goals = Vec::new();
    for case in ["nat-request", "nat-reply"] {
        for (flows, baseline, peer) in NAT {
            goals.push(at_most(format!("packet/{case}/{flows}"), baseline, against(case, flows, BASELINE)));
            // A peer has one way of its own, whatever ours is compared to it.
            let theirs = report.cost("nat-request", flows, PEER).map(|cost| cost.ns.median);
            let ours = report.cost(case, flows, KANMON).map(|cost| cost.ns.median);
            let value = ours.zip(theirs).and_then(|(ours, theirs)| ratio(ours, theirs));
            goals.push(at_most(format!("packet/{case}/{flows}/peer"), peer, value));
        }
    }
    for (flows, ..) in NAT {
        let value = against("new-tcp", flows, PEER);
        goals.push(at_most(format!("packet/new-tcp/{flows}/peer"), NEW_FLOW, value));
    }
    let one = |case| report.cost(case, 1, KANMON).map(|cost| cost.ns.median);
    let passed = one("pass").zip(one("nat-request")).and_then(|(pass, nat)| ratio(pass, nat));
    goals.push(at_most("packet/pass/1".into(), PASS, passed));
    let timing = |what: &str, backends: u32| {
        let found = report.ring.iter().find(|timing| timing.what == what && timing.backends == backends);
        Some(found?.ms.median)
    };
    goals.push(at_most("ring/build-ms/65537x1000".into(), RING, timing("build", 1000)));
    goals.push(at_most("ring/change-ms/1000x100".into(), CHANGE, timing("change", 100_000)));
    goals
}

fn at_most(name: String, goal: f64, value: Option<f64>) -> Goal {
    Goal { name, op: "<=", goal, value, met: value.map(|value| value <= goal) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_without_a_figure_is_neither_met_nor_missed() {
        let goal = |value| at_most("packet/pass/1".into(), 0.6, value);
        assert_eq!(
            (goal(None).met, goal(Some(0.6)).met, goal(Some(0.61)).met),
            (None, Some(true), Some(false))
        );
    }
}
