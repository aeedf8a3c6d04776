//! Members that leave: how long their flows live, in virtual time.

use std::time::Duration;

use lb_common::abi::member_flags;

use super::super::{Plan, Step, Target};
use super::machine::Flow;
use super::{Agent, DRAIN, LIMITS, backend, service, target};

const SECOND: Duration = Duration::from_secs(1);
/// The drain time that the service's policy asks for, shorter than the gateway's.
const POLICY: Duration = Duration::from_secs(10);

/// What the service's second backend does.
#[derive(Clone, Copy, PartialEq)]
enum Second {
    Serves,
    NotReady,
    Leaves,
    Gone,
}

/// Two backends and a drain time.
fn wanted(second: Second, drain_timeout: Option<Duration>) -> Target {
    let id = service(0);
    let mut target = target(&[(0, &[1, 2])]);
    let service = target.services.get_mut(&id).unwrap();
    service.drain_timeout = drain_timeout;
    let member = service.members.get_mut(&backend(&id, 2)).unwrap();
    member.draining = second != Second::Serves;
    member.leaving = second == Second::Leaves;
    if second == Second::Gone {
        service.members.remove(&backend(&id, 2));
    }
    target
}

/// An agent whose second backend has a flow, and that flow.
fn with_flow() -> (Agent, Flow) {
    let mut agent = Agent::new(LIMITS);
    agent.run(&wanted(Second::Serves, None));
    let flow = (0..).find_map(|key| {
        let flow = agent.machine.connect(&service(0), key * 97).unwrap();
        (flow.backend == backend(&service(0), 2)).then_some(flow)
    });
    let flow = flow.unwrap();
    agent.machine.flows = vec![flow];
    (agent, flow)
}

fn evicts(plan: &Plan) -> bool {
    plan.steps.iter().any(|step| matches!(step, Step::EvictFlows { .. }))
}

#[test]
fn flows_of_a_member_that_leaves_are_evicted_when_the_time_that_its_policy_gives_is_over() {
    let (mut agent, flow) = with_flow();
    let leaving = wanted(Second::Leaves, Some(POLICY));
    let plan = agent.run(&leaving);
    assert_eq!(plan.next, Some(agent.now + POLICY));
    agent.now += POLICY - SECOND;
    assert!(!evicts(&agent.settle(&leaving)) && agent.machine.flows == [flow]);
    let told: Vec<_> = agent.model.members().filter_map(|member| member.drained_by).collect();
    assert_eq!(told, [agent.now + SECOND]);
    agent.now += SECOND;
    let plan = agent.run(&leaving);
    assert_eq!(plan.steps, [Step::EvictFlows { member: flow.member }], "its neighbour is left alone");
    assert_eq!((plan.next, agent.machine.flows.len()), (None, 0));
    agent.now += 10 * POLICY;
    assert_eq!(agent.run(&leaving).steps, [], "once is enough");
    // It comes back as it was.
    agent.settle(&wanted(Second::Serves, Some(POLICY)));
    let back = (0..200).filter_map(|key| agent.machine.connect(&service(0), key * 97));
    assert!(back.into_iter().any(|other| other == flow));
}

#[test]
fn without_a_drain_time_a_member_that_leaves_keeps_its_flows_to_their_end() {
    let (mut agent, flow) = with_flow();
    let leaving = wanted(Second::Leaves, None);
    assert_eq!(agent.run(&leaving).next, None);
    agent.now += 1000 * DRAIN;
    assert!(!evicts(&agent.settle(&leaving)));
    assert_eq!(agent.machine.flows, [flow]);
}

#[test]
fn a_member_that_is_merely_not_ready_keeps_its_flows_however_long() {
    let (mut agent, flow) = with_flow();
    let paused = wanted(Second::NotReady, Some(POLICY));
    assert_eq!(agent.run(&paused).next, None);
    agent.now += 1000 * DRAIN;
    assert!(!evicts(&agent.settle(&paused)));
    assert_eq!(agent.machine.flows, [flow]);
    // Only from when it leaves its time runs.
    let plan = agent.run(&wanted(Second::Leaves, Some(POLICY)));
    assert_eq!(plan.next, Some(agent.now + POLICY));
}

#[test]
fn a_drain_that_is_undone_and_begun_again_has_its_whole_time_again() {
    let (mut agent, flow) = with_flow();
    agent.settle(&wanted(Second::Leaves, Some(POLICY)));
    agent.now += POLICY - SECOND;
    agent.settle(&wanted(Second::Serves, Some(POLICY)));
    agent.now += POLICY;
    let plan = agent.run(&wanted(Second::Leaves, Some(POLICY)));
    assert!(!evicts(&plan));
    assert_eq!((plan.next, agent.machine.flows.clone()), (Some(agent.now + POLICY), vec![flow]));
}

#[test]
fn the_time_of_a_member_runs_from_when_it_began_to_leave_though_it_is_gone_since() {
    let (mut agent, flow) = with_flow();
    agent.settle(&wanted(Second::Leaves, Some(POLICY)));
    agent.now += POLICY - SECOND;
    let gone = wanted(Second::Gone, Some(POLICY));
    assert_eq!(agent.run(&gone).next, Some(agent.now + SECOND));
    assert_eq!(agent.machine.flows, [flow]);
    agent.now += SECOND;
    let plan = agent.settle(&gone);
    assert_eq!((plan.next, agent.machine.flows.len(), agent.model.members().count()), (None, 0, 1));
}

#[test]
fn a_member_that_is_gone_has_the_gateways_time_where_its_policy_gives_none() {
    let (mut agent, flow) = with_flow();
    agent.settle(&wanted(Second::Leaves, None));
    agent.now += 5 * DRAIN;
    let gone = wanted(Second::Gone, None);
    assert_eq!(agent.run(&gone).next, Some(agent.now + DRAIN));
    assert_eq!(agent.machine.flows, [flow]);
    agent.now += DRAIN;
    agent.settle(&gone);
    assert_eq!(agent.machine.flows, []);
}

#[test]
fn the_members_of_a_service_that_is_gone_have_the_time_that_its_policy_gave() {
    let (mut agent, flow) = with_flow();
    agent.settle(&wanted(Second::Serves, Some(POLICY)));
    let nothing = Target { interfaces: [2].into(), ..Target::default() };
    assert_eq!(agent.run(&nothing).next, Some(agent.now + POLICY));
    assert_eq!(agent.machine.flows, [flow]);
    agent.now += POLICY;
    agent.settle(&nothing);
    assert_eq!((agent.machine.flows.len(), agent.model.members().count()), (0, 0));
}

#[test]
fn a_shorter_drain_time_counts_for_members_that_leave_already() {
    let (mut agent, _) = with_flow();
    agent.settle(&wanted(Second::Leaves, None));
    agent.now += POLICY;
    assert!(evicts(&agent.run(&wanted(Second::Leaves, Some(POLICY)))));
    assert_eq!(agent.machine.flows, []);
}

#[test]
fn a_restart_gives_members_that_leave_their_time_anew_and_forgets_none() {
    let (mut agent, flow) = with_flow();
    let leaving = wanted(Second::Leaves, Some(POLICY));
    agent.settle(&leaving);
    agent.now += POLICY - SECOND;
    agent.restart();
    assert_eq!(agent.run(&leaving).next, Some(agent.now + POLICY));
    assert_eq!(agent.machine.flows, [flow]);
    agent.now += POLICY;
    assert!(evicts(&agent.run(&leaving)));
}

#[test]
fn a_service_whose_members_all_leave_has_no_ring_and_takes_nothing_new() {
    let (mut agent, flow) = with_flow();
    let mut all = wanted(Second::Leaves, Some(POLICY));
    for member in all.services.get_mut(&service(0)).unwrap().members.values_mut() {
        (member.draining, member.leaving) = (true, true);
    }
    agent.settle(&all);
    assert_eq!(agent.machine.connect(&service(0), 7), None);
    assert_eq!(agent.machine.flows, [flow]);
    assert!(agent.model.members().all(|member| member.flags & member_flags::REMOVED == 0));
}
