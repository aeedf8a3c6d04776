//! What is to be reached, and whether it was. Pure.

use super::{
    connections::NEW,
    contender::{BASELINE, KANMON, PEER},
    report::{GENERATOR, Goal, NFTABLES, Report, XDP_TX},
};
use crate::bench::{contender::Contender, samples::ratio};

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
/// With so many flows, a frame through nftables is to take so many times as long.
const RULES: [(u32, f64); 2] = [(1, 3.0), (1 << 16, 4.0)];
/// And with what generator, link and counting take off both.
const RULES_ALONE: f64 = 5.0;
/// What a program that only sends takes, of what Kanmon does.
const SENDING: f64 = 0.85;
/// New connections a second are to be so many times those through others.
const CONNECTIONS: [(Contender, f64); 2] = [(Contender::Nftables, 1.0), (Contender::HaProxy, 3.0)];
/// And the time spent between client and server such a share of theirs.
const BETWEEN: f64 = 0.3;
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
    wire(report, &mut goals);
    connections(report, &mut goals);
    let timing = |what: &str, backends: u32| {
        let found = report.ring.iter().find(|timing| timing.what == what && timing.backends == backends);
        Some(found?.ms.median)
    };
    goals.push(at_most("ring/build-ms/65537x1000".into(), RING, timing("build", 1000)));
    goals.push(at_most("ring/change-ms/1000x100".into(), CHANGE, timing("change", 100_000)));
    goals
}

fn wire(report: &Report, goals: &mut Vec<Goal>) {
    for (flows, goal) in RULES {
        let own = report.passage(KANMON, flows);
        let rules = report.passage(NFTABLES, flows);
        let value = rules.zip(own).and_then(|(rules, own)| ratio(rules, own));
        goals.push(at_least(format!("wire/{NFTABLES}/{flows}"), goal, value));
        let alone = |whole: Option<f64>| Some(whole? - report.passage(GENERATOR, flows)?);
        let value = alone(rules).zip(alone(own)).and_then(|(rules, own)| ratio(rules, own));
        goals.push(at_least(format!("wire/{NFTABLES}-less-{GENERATOR}/{flows}"), RULES_ALONE, value));
    }
    for flows in [1, 1 << 10, 1 << 16] {
        let both = report.passage(XDP_TX, flows).zip(report.passage(KANMON, flows));
        let value = both.and_then(|(sending, own)| ratio(sending, own));
        goals.push(at_least(format!("wire/{XDP_TX}/{flows}"), SENDING, value));
    }
}

fn connections(report: &Report, goals: &mut Vec<Goal>) {
    let of = |contender: Contender| report.served(contender.name(), NEW);
    for (other, goal) in CONNECTIONS {
        let name = other.name().to_lowercase();
        let both = of(Contender::Kanmon).zip(of(other));
        let value = both.and_then(|(own, other)| ratio(own.per_second.median, other.per_second.median));
        goals.push(at_least(format!("connections/new/{name}"), goal, value));
        let value = both.and_then(|(own, other)| ratio(own.p99_ms?.median, other.p99_ms?.median));
        goals.push(at_most(format!("connections/p99/{name}"), 1.0, value));
        let value = both.and_then(|(own, other)| ratio(own.cpu_us_between?, other.cpu_us_between?));
        goals.push(at_most(format!("connections/cpu-between/{name}"), BETWEEN, value));
    }
}

fn at_least(name: String, goal: f64, value: Option<f64>) -> Goal {
    Goal { name, op: ">=", goal, value, met: value.map(|value| value >= goal) }
}

/// A goal that is met by this value or a smaller one.
pub(in crate::bench) fn at_most(name: String, goal: f64, value: Option<f64>) -> Goal {
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
