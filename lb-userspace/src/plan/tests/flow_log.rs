//! What the flow log notes and counts.

use lb_common::abi::{FlowLogWord, member_flags};

use super::super::Step;
use super::{Agent, LIMITS, service, target};
use crate::desired::FlowLogging;

/// The word of the only service, and how many of its members are counted and are not.
fn written(agent: &Agent) -> (FlowLogWord, usize, usize) {
    let maps = agent.machine.snapshot();
    let with = |flags: u8| maps.members.values().filter(|member| member.flags & flags == flags).count();
    let counted = with(member_flags::VALID | member_flags::COUNTED);
    let word = maps.descriptors.values().next().expect("a service").flow_log;
    (FlowLogWord(word), counted, with(member_flags::VALID) - counted)
}

#[test]
fn what_a_policy_says_of_the_flow_log_reaches_the_service_and_all_its_members() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1, 2])]);
    agent.settle(&target);
    assert_eq!(written(&agent), (FlowLogWord::one_in(1), 0, 2));
    target.services.get_mut(&service(0)).unwrap().flow_log =
        FlowLogging { counters: true, sample_one_in: 10 };
    let plan = agent.run(&target);
    assert!(
        plan.steps.iter().all(|step| matches!(step, Step::SetFlowLog { .. } | Step::SetMemberFlags { .. })),
        "{:?}",
        plan.steps
    );
    assert_eq!(written(&agent), (FlowLogWord::one_in(10), 2, 0));
    agent.restart();
    assert_eq!(agent.run(&target).steps, [], "the next agent finds it");

    // A member that drains is counted on; one that comes is counted from the start.
    let members = &mut target.services.get_mut(&service(0)).unwrap().members;
    members.values_mut().next().unwrap().draining = true;
    agent.settle(&target);
    assert_eq!(written(&agent).1, 2);
    target.services.get_mut(&service(0)).unwrap().flow_log = FlowLogging::default();
    agent.settle(&target);
    assert_eq!(written(&agent), (FlowLogWord::one_in(1), 0, 2));
}
