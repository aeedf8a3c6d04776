//! One situation each.

use std::collections::BTreeSet;

use lb_common::abi::{RingWord, member_flags, vip_flags};

use super::super::{Limits, PlanProblem, Step};
use super::{Agent, DRAIN, LIMITS, backend, next_hop, service, target};
use crate::config::Echo;
use crate::network::NextHopError;

fn position(steps: &[Step], which: impl Fn(&Step) -> bool) -> usize {
    steps.iter().position(which).expect("the plan has such a step")
}

fn count(steps: &[Step], which: impl Fn(&Step) -> bool) -> usize {
    steps.iter().filter(|step| which(step)).count()
}

fn is_ring(step: &Step) -> bool {
    matches!(step, Step::WriteRing { .. } | Step::SwapRing { .. } | Step::SwapFallback { .. })
}

#[test]
fn a_new_service_is_opened_when_everything_is_behind_it() {
    let mut agent = Agent::new(LIMITS);
    let plan = agent.run(&target(&[(0, &[1, 2]), (1, &[1])]));
    let order = [
        position(&plan.steps, |step| matches!(step, Step::InitBackend { .. })),
        position(&plan.steps, |step| matches!(step, Step::PutBackendKey { .. })),
        position(&plan.steps, |step| matches!(step, Step::WriteMember { .. })),
        position(&plan.steps, |step| matches!(step, Step::WriteRing { .. })),
        position(&plan.steps, |step| matches!(step, Step::WriteDescriptor { .. })),
        position(&plan.steps, |step| matches!(step, Step::PutService { .. })),
        position(&plan.steps, |step| matches!(step, Step::PutVip { .. })),
        position(&plan.steps, |step| matches!(step, Step::SetAddressFilter { .. })),
    ];
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(count(&plan.steps, |step| matches!(step, Step::InitBackend { .. })), 2, "backends are shared");
    assert_eq!(count(&plan.steps, |step| matches!(step, Step::WriteMember { .. })), 3, "members are not");
    assert_eq!(plan.problems, []);
    assert!(agent.machine.connect(&service(0), 7).is_some());
}

#[test]
fn the_same_target_twice_is_an_empty_plan() {
    let mut agent = Agent::new(LIMITS);
    let target = target(&[(0, &[1, 2]), (3, &[4])]);
    agent.run(&target);
    assert_eq!(agent.run(&target).steps, []);
}

#[test]
fn a_failed_probe_changes_the_overlay_and_the_fallback_ring_only() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1, 2, 3])]);
    agent.run(&target);
    target.usable.remove(&backend(&service(0), 2));
    let plan = agent.run(&target);
    assert_eq!(count(&plan.steps, |step| matches!(step, Step::SetBackendFlags { flags: 0, .. })), 1);
    assert_eq!(count(&plan.steps, |step| matches!(step, Step::SwapRing { .. })), 0);
    assert_eq!(count(&plan.steps, |step| matches!(step, Step::SwapFallback { .. })), 1);
    for key in 0..500 {
        assert_ne!(agent.machine.connect(&service(0), key).unwrap().backend, backend(&service(0), 2));
    }
}

#[test]
fn a_member_without_weight_is_in_the_fallback_ring_alone() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1, 2])]);
    let id = service(0);
    target.services.get_mut(&id).unwrap().members.get_mut(&backend(&id, 2)).unwrap().weight = 0;
    agent.run(&target);
    let info = agent.model.services().next().unwrap();
    assert_eq!(info.shares, [(backend(&id, 1), 16_381), (backend(&id, 2), 0)]);
    assert!(info.fallback.is_some());
    target.usable.remove(&backend(&id, 1));
    agent.run(&target);
    assert_eq!(agent.machine.connect(&id, 7).unwrap().backend, backend(&id, 2));
}

#[test]
fn a_draining_member_keeps_its_flows_and_comes_back_with_its_generation() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1])]);
    let id = service(0);
    agent.run(&target);
    let flow = agent.machine.connect(&id, 7).unwrap();
    target.services.get_mut(&id).unwrap().members.get_mut(&backend(&id, 1)).unwrap().draining = true;
    agent.settle(&target);
    assert_eq!(agent.machine.connect(&id, 7), None);
    assert_eq!(agent.machine.flows, [flow]);
    target.services.get_mut(&id).unwrap().members.clear();
    agent.settle(&target);
    let member = agent.model.members().next().unwrap();
    assert_eq!(member.flags & member_flags::REMOVED, member_flags::REMOVED);
    agent.settle(&super::target(&[(0, &[1])]));
    assert_eq!(agent.machine.connect(&id, 8), Some(flow), "same index, same generation");
}

#[test]
fn an_index_is_reused_with_another_generation_after_its_last_flow() {
    let limits = Limits { members: 2, ..LIMITS };
    let mut agent = Agent::new(limits);
    agent.run(&target(&[(0, &[1])]));
    let old = agent.machine.connect(&service(0), 7).unwrap();
    agent.machine.roomy = false;
    let plan = agent.settle(&target(&[(0, &[2])]));
    assert!(matches!(plan.problems[..], [PlanProblem::MembersLeftOut { left_out: 1, table: "members", .. }]));
    agent.machine.flows.clear();
    let plan = agent.settle(&target(&[(0, &[2])]));
    assert_eq!(plan.problems, []);
    let new = agent.machine.connect(&service(0), 7).unwrap();
    assert_eq!((new.member, new.generation), (old.member, old.generation + 1));
    assert_eq!(new.backend, backend(&service(0), 2));
}

#[test]
fn a_count_of_flows_from_before_the_removal_frees_nothing() {
    let mut agent = Agent::new(LIMITS);
    agent.run(&target(&[(0, &[1, 2])]));
    let early = agent.usage();
    agent.run(&target(&[(0, &[1])]));
    let plan = super::plan(&mut agent.model, &target(&[(0, &[1])]), &early, agent.now);
    assert_eq!(plan.steps, []);
}

#[test]
fn a_backend_stays_until_its_ports_are_free() {
    let mut agent = Agent::new(LIMITS);
    agent.run(&target(&[(0, &[1, 2])]));
    agent.machine.lingering.insert(backend(&service(0), 2));
    let target = target(&[(0, &[1])]);
    agent.settle(&target);
    assert_eq!((agent.model.members().count(), agent.model.backend_addresses().len()), (1, 2));
    agent.machine.lingering.clear();
    agent.settle(&target);
    assert_eq!(agent.model.backend_addresses().len(), 1);
}

#[test]
fn flows_are_evicted_when_the_drain_time_ends() {
    let mut agent = Agent::new(LIMITS);
    agent.run(&target(&[(0, &[1, 2])]));
    while !agent.machine.flows.iter().any(|flow| flow.backend == backend(&service(0), 2)) {
        agent.machine.connect(&service(0), agent.machine.flows.len() as u32 * 97);
    }
    let target = target(&[(0, &[1])]);
    let plan = agent.settle(&target);
    assert_eq!(plan.next, Some(agent.now + DRAIN));
    agent.now += DRAIN;
    let plan = agent.run(&target);
    let evict = position(&plan.steps, |step| matches!(step, Step::EvictFlows { .. }));
    let clear = position(&plan.steps, |step| matches!(step, Step::WriteMember { .. }));
    assert!(evict < clear && plan.steps[evict + 1] == Step::GracePeriod);
    assert!(agent.machine.flows.iter().all(|flow| flow.backend == backend(&service(0), 1)));
}

#[test]
fn a_removed_service_keeps_its_vip_for_its_flows_and_then_leaves_nothing() {
    let mut agent = Agent::new(LIMITS);
    let full = target(&[(0, &[1]), (3, &[1])]);
    let empty = super::Target { interfaces: [2].into(), ..Default::default() };
    agent.run(&empty);
    let before = agent.machine.view();
    agent.settle(&full);
    agent.machine.connect(&service(0), 1).unwrap();
    agent.settle(&empty);
    assert!(agent.machine.is_open(service(0).vip), "a flow is alive");
    assert!(!agent.machine.is_open(service(3).vip));
    assert_eq!(agent.machine.connect(&service(0), 2), None);
    agent.machine.flows.clear();
    agent.settle(&empty);
    assert!(!agent.machine.is_open(service(0).vip));
    assert_eq!(agent.machine.view(), before);
}

#[test]
fn a_changed_next_hop_is_one_update_a_member() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1]), (1, &[1])]);
    agent.run(&target);
    target.next_hops.insert(backend(&service(0), 1).address, Ok(next_hop(3, 9)));
    let plan = agent.run(&target);
    assert_eq!(count(&plan.steps, |step| matches!(step, Step::UpdateNextHop { .. })), 2);
    assert_eq!(plan.steps[0], Step::AddEgress { ifindex: 3 });
    assert_eq!(plan.steps.len(), 3, "interface 2 stays: the program is attached to it");
}

#[test]
fn a_backend_without_a_next_hop_is_not_used_and_says_why() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1, 2])]);
    let lost = backend(&service(0), 2);
    target.next_hops.insert(lost.address, Err(NextHopError::NoRoute("unreachable".into())));
    let plan = agent.run(&target);
    assert!(matches!(&plan.problems[..], [PlanProblem::NoNextHop { backend, reason }]
        if *backend == lost && reason.contains("route")));
    for key in 0..200 {
        assert_ne!(agent.machine.connect(&service(0), key).unwrap().backend, lost);
    }
}

#[test]
fn an_address_that_is_not_resolved_yet_keeps_its_next_hop() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1, 2])]);
    agent.run(&target);
    target.next_hops.clear();
    let plan = agent.run(&target);
    assert_eq!((plan.steps, plan.problems), (vec![], vec![]));
}

#[test]
fn the_node_address_flag_is_right_before_the_vip_opens_and_follows_later() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1])]);
    target.vips.insert(service(0).vip, true);
    let plan = agent.run(&target);
    let put = position(&plan.steps, |step| matches!(step, Step::PutVip { flags: 3, .. }));
    assert!(put < position(&plan.steps, |step| matches!(step, Step::SetAddressFilter { flags: 1 | 3, .. })));
    target.vips.insert(service(0).vip, false);
    let plan = agent.run(&target);
    assert!(matches!(plan.steps[..], [Step::PutVip { flags: 2, .. }, Step::GracePeriod]));
}

#[test]
fn a_vip_answers_pings_while_new_flows_have_somewhere_to_go() {
    let answers = |steps: &[Step]| {
        steps.iter().find_map(|step| match step {
            Step::PutVip { flags, .. } | Step::UpdateEcho { flags, .. } => Some(flags & vip_flags::ECHO != 0),
            _ => None,
        })
    };
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1, 2])]);
    let [one, two] = [1, 2].map(|n| backend(&service(0), n));
    assert_eq!(answers(&agent.run(&target).steps), Some(true));
    target.usable.remove(&one);
    assert_eq!(answers(&agent.run(&target).steps), None, "one is left");
    target.usable.remove(&two);
    assert_eq!(answers(&agent.run(&target).steps), Some(false));
    target.echo = Echo::Always;
    assert_eq!(answers(&agent.run(&target).steps), Some(true));
    target.usable = [one, two].into();
    target.echo = Echo::WhenUsable;
    assert_eq!(answers(&agent.run(&target).steps), None);
    let members = &mut target.services.get_mut(&service(0)).unwrap().members;
    members.values_mut().for_each(|member| member.draining = true);
    assert_eq!(answers(&agent.run(&target).steps), Some(false), "what drains takes no new flows");
    target.echo = Echo::Never;
    assert_eq!(answers(&agent.run(&target).steps), None);
}

#[test]
fn pings_that_are_no_longer_answered_hold_no_other_step_back() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1]), (1, &[2]), (2, &[3])]);
    agent.run(&target);
    target.usable.clear();
    let plan = agent.run(&target);
    let vips: BTreeSet<_> = target.services.keys().map(|id| id.vip).collect();
    assert!(vips.len() > 1);
    assert_eq!(count(&plan.steps, |step| matches!(step, Step::UpdateEcho { .. })), vips.len());
    assert_eq!(count(&plan.steps, |step| matches!(step, Step::GracePeriod | Step::PutVip { .. })), 0);
}

#[test]
fn another_family_is_refused_and_the_rest_programmed() {
    let mut agent = Agent::new(LIMITS);
    let mut target = target(&[(0, &[1]), (3, &[2])]);
    let stranger = backend(&service(3), 2);
    let member = target.services[&service(3)].members[&stranger];
    target.services.get_mut(&service(0)).unwrap().members.insert(stranger, member);
    let plan = agent.run(&target);
    assert_eq!(plan.problems, [PlanProblem::Mismatch { service: service(0), backend: stranger }]);
    assert!(agent.machine.connect(&service(0), 1).is_some());
}

#[test]
fn a_full_table_of_services_leaves_out_one_and_says_so() {
    let mut agent = Agent::new(Limits { services: 3, ..LIMITS });
    let all = target(&[(0, &[1]), (1, &[1]), (2, &[1])]);
    let plan = agent.settle(&all);
    assert_eq!(plan.problems, [PlanProblem::ServicesFull { service: service(2), limit: 2 }]);
    assert!(agent.machine.connect(&service(1), 1).is_some());
    // Room made by the same change is used by it, once the flow is gone.
    agent.machine.flows.clear();
    let plan = agent.settle(&target(&[(1, &[1]), (2, &[1])]));
    assert_eq!(plan.problems, []);
    assert!(agent.machine.connect(&service(2), 1).is_some());
}

#[test]
fn a_full_ring_table_keeps_the_old_ring_and_the_members_it_names() {
    let mut agent = Agent::new(Limits { ring_pairs: 9_000, ..LIMITS });
    agent.machine.roomy = false;
    agent.settle(&target(&[(0, &[1, 2])]));
    let plan = agent.settle(&target(&[(0, &[1, 3])]));
    assert!(matches!(plan.problems[..], [PlanProblem::RingSpace { slots: 16_381, members: 2, .. }]));
    let flags: Vec<u8> = agent.model.members().map(|member| member.flags & member_flags::REMOVED).collect();
    assert_eq!(flags, [0, member_flags::REMOVED, 0], "the old ring still names it");
    assert!((0..50).all(|key| agent.machine.connect(&service(0), key).is_some()));
}

#[test]
fn a_swap_and_the_reuse_of_the_old_region_have_a_grace_period_between_them() {
    let mut agent = Agent::new(LIMITS);
    agent.settle(&target(&[(0, &[1, 2])]));
    let old = agent.model.services().next().unwrap().ring;
    let plan = agent.run(&target(&[(0, &[1, 2, 3])]));
    let new = agent.model.services().next().unwrap().ring;
    assert_ne!(new.offset(), old.offset());
    assert_eq!(new, RingWord::new(new.offset(), old.class(), old.version() + 1));
    assert_eq!(plan.steps.last(), Some(&Step::GracePeriod));
    assert_eq!(count(&plan.steps, is_ring), 4);
}
