//! Source ranges: at no moment is somebody let in, or kept out, who should not be.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::super::{PlanProblem, SourceKey, Step, Target};
use super::{Agent, LIMITS, service, target};
use crate::desired::SourceRanges;

fn ranges(texts: &[&str]) -> SourceRanges {
    Arc::new(texts.iter().map(|text| text.parse().unwrap()).collect())
}

/// Services 0 (IPv4) and 3 (IPv6) with these ranges.
fn with(v4: Option<&[&str]>, v6: Option<&[&str]>) -> Target {
    let mut target = target(&[(0, &[1]), (3, &[1])]);
    target.services.get_mut(&service(0)).unwrap().sources = v4.map(ranges);
    target.services.get_mut(&service(3)).unwrap().sources = v6.map(ranges);
    target
}

const CLIENTS: [&str; 6] =
    ["198.51.100.1", "198.51.100.200", "203.0.113.1", "10.1.1.1", "2001:db8:1::1", "2001:db8:2::1"];

/// Whom both services let in, as far as a client is of their family.
fn admitted(agent: &Agent) -> Vec<Option<bool>> {
    let clients = CLIENTS.map(|client| client.parse::<IpAddr>().unwrap());
    clients
        .into_iter()
        .map(|client| agent.machine.admits(&service(if client.is_ipv4() { 0 } else { 3 }), client))
        .collect()
}

/// Runs one step after the other: each client is let in as before or as afterwards.
fn change(agent: &mut Agent, target: &Target) {
    let plan = agent.plan(target);
    let before = admitted(agent);
    let mut seen = Vec::new();
    for step in &plan.steps {
        agent.machine.apply(step);
        seen.push((step.clone(), admitted(agent)));
    }
    agent.applied = plan.number;
    let after = admitted(agent);
    for (step, now) in seen {
        for (((client, before), after), now) in CLIENTS.iter().zip(&before).zip(&after).zip(now) {
            assert!(
                now == *before || now == *after,
                "{client} {now:?} after {step:?}: {before:?}, {after:?}"
            );
        }
    }
    assert_eq!(agent.run(target).steps, [], "nothing is left to do");
}

#[test]
fn whoever_is_let_in_before_and_after_a_change_is_let_in_throughout() {
    let states: [[Option<&[&str]>; 2]; 7] = [
        [None, None],
        [Some(&["198.51.100.0/24"]), Some(&["2001:db8:1::/48"])],
        [Some(&["198.51.0.0/16", "203.0.113.1/32"]), Some(&["2001:db8::/32"])],
        [Some(&["198.51.100.0/25", "10.0.0.0/8"]), Some(&["2001:db8:2::/48"])],
        [Some(&[]), Some(&[])],
        [Some(&["0.0.0.0/0"]), Some(&["::/0"])],
        [Some(&["198.51.100.0/24"]), None],
    ];
    for [v4, v6] in states {
        for [next_v4, next_v6] in states {
            let mut agent = Agent::new(LIMITS);
            agent.settle(&with(v4, v6));
            change(&mut agent, &with(next_v4, next_v6));
            let wanted = |client: &&str| {
                let client: IpAddr = client.parse().unwrap();
                let ranges = if client.is_ipv4() { next_v4 } else { next_v6 };
                let in_one = |ranges: &[&str]| {
                    ranges.iter().any(|range| range.parse::<IpNet>().unwrap().contains(&client))
                };
                Some(ranges.is_none_or(in_one))
            };
            assert_eq!(admitted(&agent), CLIENTS.iter().map(wanted).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_new_service_opens_with_its_ranges_in_place_and_leaves_none_behind() {
    let mut agent = Agent::new(LIMITS);
    let restricted = with(Some(&["198.51.100.0/24"]), Some(&["2001:db8:1::/48"]));
    let plan = agent.plan(&restricted);
    for step in &plan.steps {
        agent.machine.apply(step);
        assert!(admitted(&agent)[2].is_none_or(|admitted| !admitted), "{step:?} lets a stranger in");
    }
    agent.applied = plan.number;
    agent.settle(&target(&[]));
    assert!(agent.machine.snapshot().sources.is_empty());
    assert!(agent.machine.snapshot().descriptors.values().all(|value| value.clients == 0));
    // Whoever gets the index next is not asked by what its predecessor said.
    agent.settle(&with(None, None));
    assert!(admitted(&agent).into_iter().all(|admitted| admitted == Some(true)));
}

#[test]
fn a_service_that_comes_back_while_flows_keep_its_descriptor_has_its_new_ranges_at_once() {
    let old = with(Some(&["198.51.100.0/24"]), None);
    let steps = {
        let mut agent = Agent::new(LIMITS);
        agent.settle(&old);
        agent.plan(&target(&[])).steps.len()
    };
    for killed_after in (0..=steps).map(Some).chain([None]) {
        let mut agent = Agent::new(LIMITS);
        agent.settle(&old);
        agent.machine.connect(&service(0), 7).expect("a member");
        let plan = agent.plan(&target(&[]));
        plan.steps[..killed_after.unwrap_or(steps)].iter().for_each(|step| agent.machine.apply(step));
        agent.applied = plan.number;
        if killed_after.is_some() {
            agent.restart();
        }
        let closed = admitted(&agent)[0].is_none();
        let plan = agent.plan(&with(Some(&["203.0.113.0/24"]), None));
        for step in &plan.steps {
            agent.machine.apply(step);
            let in_old_range = admitted(&agent)[0];
            assert!(!closed || in_old_range != Some(true), "{step:?} lets the old range in");
        }
        assert_eq!([0, 2].map(|client: usize| admitted(&agent)[client]), [Some(false), Some(true)]);
    }
}

#[test]
fn the_next_agent_finds_the_ranges_and_finishes_what_the_last_one_began() {
    let old = with(Some(&["198.51.100.0/24", "10.0.0.0/8"]), Some(&["2001:db8:1::/48"]));
    let new = with(Some(&["198.51.0.0/16", "203.0.113.1/32"]), None);
    for target in [&old, &new, &with(Some(&[]), None)] {
        let mut agent = Agent::new(LIMITS);
        agent.settle(target);
        agent.restart();
        assert_eq!(agent.run(target).steps, []);
    }
    let steps = {
        let mut agent = Agent::new(LIMITS);
        agent.settle(&old);
        agent.plan(&new).steps.len()
    };
    for killed_after in 0..=steps {
        let mut agent = Agent::new(LIMITS);
        agent.settle(&old);
        let plan = agent.plan(&new);
        plan.steps[..killed_after].iter().for_each(|step| agent.machine.apply(step));
        agent.restart();
        change(&mut agent, &new);
        let keys: Vec<IpNet> =
            agent.machine.snapshot().sources.iter().map(|key| key.parts().unwrap().1).collect();
        assert_eq!(keys.len(), 2, "{keys:?}");
    }
}

#[test]
fn ranges_of_nobody_and_keys_that_mean_nothing_are_deleted_at_the_start() {
    let mut agent = Agent::new(LIMITS);
    let target = with(Some(&["198.51.100.0/24"]), None);
    agent.settle(&target);
    let sources = agent.machine.snapshot().sources;
    let SourceKey::V4(bits, key) = *sources.first().unwrap() else { panic!("{sources:?}") };
    let strangers = [
        SourceKey::new(99, &"10.0.0.0/8".parse().unwrap()),
        SourceKey::new(u32::from_be_bytes(key.service), &"2001:db8::/32".parse().unwrap()),
        SourceKey::V4(7, key),
        SourceKey::V4(bits - 8, key),
    ];
    agent.machine.maps_mut().sources.extend(strangers);
    agent.restart();
    assert_eq!(agent.machine.snapshot().sources, sources);
    assert_eq!(agent.run(&target).steps, []);
}

#[test]
fn a_full_table_leaves_a_service_the_ranges_that_it_has_and_lets_nobody_into_a_new_one() {
    let mut agent = Agent::new(super::Limits { source_ranges: 2, ..LIMITS });
    agent.settle(&with(Some(&["198.51.100.0/24", "10.0.0.0/8"]), None));
    let more = with(Some(&["198.51.100.0/24", "203.0.113.0/24", "192.0.2.0/24"]), None);
    let plan = agent.run(&more);
    assert_eq!(plan.steps, []);
    let problem = PlanProblem::SourceRangesFull {
        service: service(0),
        wanted: 3,
        limit: 2,
        family: "IPv4",
        instead: "it keeps those that it has",
    };
    assert_eq!(plan.problems, [problem]);
    let full = |agent: &Agent| [0, 2, 3].map(|client: usize| admitted(agent)[client]);
    assert_eq!(full(&agent), [Some(true), Some(false), Some(true)]);

    let mut agent = Agent::new(super::Limits { source_ranges: 2, ..LIMITS });
    agent.settle(&with(None, None));
    let problems = agent.settle(&more).problems;
    assert!(
        matches!(&problems[..], [PlanProblem::SourceRangesFull { instead, .. }] if instead.contains("nobody"))
    );
    assert_eq!(full(&agent), [Some(false); 3]);
    // IPv6 has a table of its own.
    agent.settle(&with(Some(&["10.0.0.0/8"]), Some(&["2001:db8:1::/48", "2001:db8:2::/48"])));
    assert_eq!(full(&agent), [Some(false), Some(false), Some(true)]);
}

#[test]
fn what_one_service_gives_up_another_one_gets_in_the_same_plan() {
    let mut agent = Agent::new(super::Limits { source_ranges: 2, ..LIMITS });
    let mut target = target(&[(0, &[1]), (1, &[1])]);
    let two = ranges(&["198.51.100.0/24", "10.0.0.0/8"]);
    target.services.get_mut(&service(1)).unwrap().sources = Some(Arc::clone(&two));
    agent.settle(&target);
    target.services.get_mut(&service(1)).unwrap().sources = None;
    target.services.get_mut(&service(0)).unwrap().sources = Some(two);
    change(&mut agent, &target);
    assert_eq!(agent.run(&target).problems, []);
    assert_eq!(agent.machine.admits(&service(0), "203.0.113.1".parse().unwrap()), Some(false));
    assert_eq!(agent.machine.admits(&service(0), "10.1.1.1".parse().unwrap()), Some(true));
}

#[test]
fn a_thousand_ranges_change_by_those_that_differ() {
    let network = |n: u32| format!("10.{}.{}.0/24", n / 256, n % 256);
    let thousand: Vec<String> = (0..1000).map(network).collect();
    let texts: Vec<&str> = thousand.iter().map(String::as_str).collect();
    let mut agent = Agent::new(LIMITS);
    agent.settle(&with(Some(&texts), None));
    assert_eq!(agent.machine.snapshot().sources.len(), 1000);
    let next: Vec<&str> = texts[1..].iter().copied().chain(["203.0.113.0/24"]).collect();
    let plan = agent.run(&with(Some(&next), None));
    assert!(
        matches!(plan.steps[..], [Step::PutSource { .. }, Step::GracePeriod, Step::DeleteSource { .. }]),
        "{:?}",
        plan.steps
    );
    assert_eq!(agent.run(&with(Some(&next), None)).steps, [], "equal ones need nothing");
}
