//! Random histories: targets, flows and crashes, with every reader satisfied after every step.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::super::{Target, TargetMember};
use super::{Agent, DRAIN, LIMITS, backend, next_hop, service, target};
use crate::network::NextHopError;

const SERVICES: u8 = 6;

/// One member of a target: `None` where there is none.
#[derive(Clone, Copy, Debug)]
struct Pod {
    weight: u32,
    draining: bool,
    leaving: bool,
    usable: bool,
}

/// What changes between two plans.
#[derive(Clone, Debug)]
struct Change {
    services: BTreeMap<u8, BTreeMap<u8, Pod>>,
    interface: u32,
    mac: u8,
    unreachable: Option<u8>,
    node_address: bool,
    drain_timeout: Option<u64>,
    /// Flows that start after each step, and the share of flows that end after the plan.
    connects: u8,
    ends: u8,
    /// Seconds that pass.
    seconds: u64,
    /// The step before which the agent is killed.
    crash: Option<prop::sample::Index>,
}

fn pod() -> impl Strategy<Value = Pod> {
    (
        prop_oneof![3 => Just(1u32), 1 => Just(3), 1 => Just(0)],
        prop::bool::weighted(0.15),
        any::<bool>(),
        prop::bool::weighted(0.8),
    )
        .prop_map(|(weight, draining, leaving, usable)| Pod { weight, draining, leaving, usable })
}

fn change() -> impl Strategy<Value = Change> {
    let services =
        prop::collection::btree_map(0..SERVICES, prop::collection::btree_map(1..5u8, pod(), 0..4), 0..4);
    let network = (2..4u32, 1..3u8, prop::option::weighted(0.2, 1..5u8), any::<bool>());
    let drain_timeout = prop::option::of(0..3u64);
    let flows = (0..3u8, 0..4u8, prop_oneof![4 => Just(1u64), 1 => Just(DRAIN.as_secs())]);
    let crash = prop::option::weighted(0.3, any::<prop::sample::Index>());
    (services, network, drain_timeout, flows, crash).prop_map(
        |(services, network, drain_timeout, flows, crash)| Change {
            services,
            interface: network.0,
            mac: network.1,
            unreachable: network.2,
            node_address: network.3,
            drain_timeout,
            connects: flows.0,
            ends: flows.1,
            seconds: flows.2,
            crash,
        },
    )
}

impl Change {
    fn target(&self) -> Target {
        let mut result = target(&[]);
        for (number, pods) in &self.services {
            let id = service(*number);
            result.vips.insert(id.vip, self.node_address);
            let service = result.services.entry(id).or_default();
            service.drain_timeout = self.drain_timeout.map(Duration::from_secs);
            for (number, pod) in pods {
                let backend = backend(&id, *number);
                let Pod { weight, draining, leaving, .. } = *pod;
                service.members.insert(backend, TargetMember { weight, draining, leaving });
                if pod.usable {
                    result.usable.insert(backend);
                }
                let hop = if self.unreachable == Some(*number) {
                    Err(NextHopError::NoRoute("unreachable".into()))
                } else {
                    Ok(next_hop(self.interface, self.mac))
                };
                result.next_hops.insert(backend.address, hop);
            }
        }
        result
    }
}

/// Runs one plan, with clients that connect after every step, killed in the middle where the change says so.
fn live(agent: &mut Agent, change: &Change) {
    agent.now += Duration::from_secs(change.seconds);
    let target = change.target();
    let plan = agent.plan(&target);
    let end = change.crash.as_ref().map_or(plan.steps.len(), |index| index.index(plan.steps.len() + 1));
    for (number, step) in plan.steps[..end].iter().enumerate() {
        agent.machine.apply(step);
        for client in 0..change.connects {
            let key = number as u32 * 7919 + u32::from(client) * 104_729;
            agent.machine.connect(&service(client * 2 + number as u8 % 2), key);
        }
    }
    if change.crash.is_some() {
        agent.restart();
    } else {
        agent.applied = plan.number;
    }
    let flows = std::mem::take(&mut agent.machine.flows);
    let (ended, live): (Vec<_>, Vec<_>) =
        flows.into_iter().enumerate().partition(|(number, _)| *number % 4 < usize::from(change.ends));
    agent.machine.flows = live.into_iter().map(|(_, flow)| flow).collect();
    agent.machine.lingering = ended.into_iter().map(|(_, flow)| flow.backend).collect();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn readers_are_right_after_every_step_and_the_end_is_that_of_a_fresh_start(
        changes in prop::collection::vec(change(), 1..12),
    ) {
        let mut agent = Agent::new(LIMITS);
        for change in &changes {
            live(&mut agent, change);
        }
        let last = changes.last().unwrap().target();
        agent.machine.flows.clear();
        agent.machine.lingering.clear();
        agent.settle(&last);
        let mut fresh = Agent::new(LIMITS);
        // A member that drains keeps its entry where it had one, and needs none where it had not.
        let serving = without_draining(&last);
        fresh.settle(&serving);
        agent.settle(&serving);
        prop_assert_eq!(agent.machine.view(), fresh.machine.view());
        agent.restart();
        prop_assert_eq!(agent.run(&serving).steps, vec![], "adopted maps are right already");
    }
}

fn without_draining(target: &Target) -> Target {
    let mut target = target.clone();
    for service in target.services.values_mut() {
        service.members.retain(|_, member| !member.draining);
    }
    target
}
