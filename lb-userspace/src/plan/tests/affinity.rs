//! What descriptors say of clients: session affinity, and how many flows each may begin.

use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::ClientWord;

use super::super::Step;
use super::{Agent, LIMITS, service, target};
use crate::desired::NewFlowLimit;

fn clients(agent: &Agent) -> ClientWord {
    ClientWord(agent.machine.snapshot().descriptors.values().next().expect("a service").clients)
}

#[test]
fn a_service_opens_with_its_affinity_and_a_change_is_one_write() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1, 2])]);
    target.services.get_mut(&service(0)).unwrap().affinity = Some(Duration::from_secs(10_800));
    agent.settle(&target);
    assert_eq!(clients(&agent), ClientWord::new(false, 40_234), "ticks of 268 ms, rounded up");
    target.services.get_mut(&service(0)).unwrap().affinity = Some(Duration::from_secs(1));
    let plan = agent.run(&target);
    let word = ClientWord::new(false, 4);
    assert!(
        matches!(plan.steps[..], [Step::SetClients { clients, .. }] if clients == word),
        "{:?}",
        plan.steps
    );
    agent.restart();
    assert_eq!(agent.run(&target).steps, [], "the next agent finds it");
    target.services.get_mut(&service(0)).unwrap().affinity = None;
    agent.run(&target);
    assert_eq!(clients(&agent), ClientWord::default());
}

#[test]
fn source_ranges_and_affinity_leave_each_other_alone() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1, 2])]);
    let ranges = Arc::new(["198.51.100.0/24".parse().unwrap()].into());
    target.services.get_mut(&service(0)).unwrap().sources = Some(ranges);
    target.services.get_mut(&service(0)).unwrap().affinity = Some(Duration::from_secs(60));
    agent.settle(&target);
    assert_eq!(clients(&agent), ClientWord::new(true, 224));
    target.services.get_mut(&service(0)).unwrap().affinity = None;
    agent.settle(&target);
    assert_eq!(clients(&agent), ClientWord::new(true, 0));
    target.services.get_mut(&service(0)).unwrap().affinity = Some(Duration::MAX);
    target.services.get_mut(&service(0)).unwrap().sources = None;
    agent.settle(&target);
    assert_eq!(clients(&agent), ClientWord::new(false, ClientWord::MAX_STAY));
}

#[test]
fn a_limit_of_new_flows_is_an_interval_and_leaves_the_rest_alone() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1, 2])]);
    target.services.get_mut(&service(0)).unwrap().affinity = Some(Duration::from_secs(60));
    agent.settle(&target);
    for (limit, interval) in [(1, 1_000_000_000), (1000, 1_000_000), (100_000_000, 10)] {
        target.services.get_mut(&service(0)).unwrap().new_flow_limit = Some(NewFlowLimit::per_second(limit));
        assert_eq!(agent.run(&target).steps.len(), 1, "{limit} a second");
        assert_eq!(clients(&agent), ClientWord::new(false, 224).with_interval(interval));
    }
    let limit = NewFlowLimit { ipv4_prefix: 24, ..NewFlowLimit::per_second(100_000_000) };
    target.services.get_mut(&service(0)).unwrap().new_flow_limit = Some(limit);
    assert_eq!(agent.run(&target).steps.len(), 1, "networks of another size");
    assert_eq!(clients(&agent), ClientWord::new(false, 224).with_interval(10).with_beyond(8));
    agent.restart();
    assert_eq!(agent.run(&target).steps, [], "the next agent finds it");
    target.services.get_mut(&service(0)).unwrap().new_flow_limit = None;
    agent.run(&target);
    assert_eq!(clients(&agent), ClientWord::new(false, 224));
}
