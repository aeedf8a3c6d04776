//! A new agent and the maps that it finds.

use std::sync::Arc;

use lb_common::abi::{Backend, Member, RingWord, member_flags};

use super::super::{BackendKey, Model, ServiceKey, Step};
use super::{Agent, LIMITS, backend, service, target};

#[test]
fn what_is_right_is_left_alone() {
    let mut agent = Agent::new(LIMITS);
    let target = target(&[(0, &[1, 2, 3]), (1, &[1]), (3, &[4, 5])]);
    agent.settle(&target);
    let (model, repairs) = Model::adopt(&agent.machine.snapshot(), LIMITS);
    assert_eq!(repairs, []);
    agent.model = model;
    let plan = agent.run(&target);
    assert_eq!((plan.steps, plan.problems), (vec![], vec![]));
}

#[test]
fn empty_maps_are_an_empty_model() {
    let mut agent = Agent::new(LIMITS);
    agent.restart();
    agent.settle(&target(&[(0, &[1])]));
    assert!(agent.machine.connect(&service(0), 1).is_some());
}

#[test]
fn generations_go_on_from_where_they_were() {
    let mut agent = Agent::new(super::Limits { members: 2, ..LIMITS });
    let empty = super::Target::default();
    for generation in (1..=255).chain([1, 2]) {
        agent.settle(&target(&[(0, &[1])]));
        assert_eq!(agent.model.members().next().unwrap().generation, generation);
        agent.settle(&empty);
        agent.restart();
    }
}

#[test]
fn a_count_of_flows_from_before_an_adoption_frees_no_member_of_the_new_model() {
    let mut agent = Agent::new(LIMITS);
    let both = target(&[(0, &[1, 2])]);
    agent.settle(&both);
    let (early, last) = (agent.usage(), agent.applied);
    let repairs = agent.model.adopt_anew(&agent.machine.snapshot());
    assert_eq!((repairs.number, repairs.steps), (last + 1, vec![]));
    // The sweep has not looked since; meanwhile the member may have got flows.
    for _ in 0..10 {
        let plan = super::plan(&mut agent.model, &target(&[(0, &[1])]), &early, agent.now);
        assert!(plan.number > repairs.number);
        assert!(!plan.steps.iter().any(|step| matches!(step, Step::WriteMember { .. })), "{:?}", plan.steps);
    }
    assert_eq!(agent.model.members().count(), 2);
}

#[test]
fn a_count_of_ports_from_before_an_adoption_frees_no_backend_of_the_new_model() {
    let mut agent = Agent::new(LIMITS);
    agent.settle(&target(&[(0, &[1, 2])]));
    let early = agent.usage();
    agent.machine.lingering.insert(backend(&service(0), 2));
    let target = target(&[(0, &[1])]);
    agent.settle(&target);
    let seen = super::FlowUsage { applied: agent.applied, ..early };
    let repairs = agent.model.adopt_anew(&agent.machine.snapshot());
    for _ in 0..10 {
        assert_eq!(
            super::plan(&mut agent.model, &target, &seen, agent.now).steps,
            [],
            "it may hold ports again"
        );
    }
    let seen = super::FlowUsage { applied: repairs.number, ..seen };
    let freed = super::plan(&mut agent.model, &target, &seen, agent.now).steps;
    assert!(freed.iter().any(|step| matches!(step, Step::DeleteBackendKey { .. })), "{freed:?}");
}

#[test]
fn a_broken_ring_is_built_anew() {
    let mut agent = Agent::new(LIMITS);
    let target = target(&[(0, &[1, 2])]);
    agent.settle(&target);
    let mut snapshot = agent.machine.snapshot();
    for slots in snapshot.rings.values_mut() {
        let mut broken = slots.to_vec();
        broken[5] = 0;
        *slots = Arc::from(broken);
    }
    let (model, repairs) = Model::adopt(&snapshot, LIMITS);
    assert_eq!(repairs, [], "an empty slot hurts nobody until the plan");
    agent.model = model;
    let steps = agent.run(&target).steps;
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::WriteRing { .. })).count(), 2);
    assert_eq!(agent.run(&target).steps, []);
}

#[test]
fn a_ring_word_that_makes_no_sense_is_replaced() {
    let mut agent = Agent::new(LIMITS);
    let target = target(&[(0, &[1, 2])]);
    agent.settle(&target);
    let mut snapshot = agent.machine.snapshot();
    snapshot.descriptors.values_mut().next().unwrap().ring = RingWord::new(u32::MAX - 3, 14, 5).0;
    let (model, repairs) = Model::adopt(&snapshot, LIMITS);
    assert_eq!(repairs, []);
    agent.model = model;
    let steps = agent.plan(&target).steps;
    assert!(steps.iter().any(|step| matches!(step, Step::SwapRing { .. })));
}

#[test]
fn contradictions_are_repaired_one_by_one() {
    let mut agent = Agent::new(LIMITS);
    let target = target(&[(0, &[1, 2]), (3, &[4])]);
    agent.settle(&target);
    let right = agent.machine.view();
    let maps = agent.machine.maps_mut();
    // A key that names nothing, a member of no backend, a backend that lost its key, and a nameless backend.
    maps.services.insert(ServiceKey::from(&service(9)), 12);
    maps.members.insert(
        40,
        Member { flags: member_flags::VALID, generation: 9, backend: 33, service: 1, ..Member::default() },
    );
    maps.backend_keys.remove(&BackendKey::from(&backend(&service(0), 1)));
    maps.backends.insert(50, Backend { family: 4, protocol: 6, ..Backend::default() });
    let (model, repairs) = Model::adopt(&agent.machine.snapshot(), LIMITS);
    let has = |which: fn(&Step) -> bool| repairs.iter().any(which);
    assert!(has(|step| matches!(step, Step::DeleteService { .. })));
    assert!(has(|step| matches!(step, Step::EvictFlows { member: 40 })));
    assert!(has(|step| matches!(step, Step::WriteMember { index: 40, value } if value.flags == 0)));
    assert!(has(|step| matches!(step, Step::PutBackendKey { .. })));
    assert!(has(|step| matches!(step, Step::InitBackend { index: 50, .. })));
    assert_eq!(repairs.len(), 7, "and two grace periods: {repairs:?}");
    for step in &repairs {
        agent.machine.apply_unchecked(step);
    }
    agent.model = model;
    assert_eq!(agent.run(&target).steps, []);
    assert_eq!(agent.machine.view(), right);
}

#[test]
fn a_wrong_checksum_delta_is_corrected_in_place() {
    let mut agent = Agent::new(LIMITS);
    let target = target(&[(0, &[1, 2])]);
    agent.settle(&target);
    let right = agent.machine.view();
    let (index, member) = agent.machine.maps_mut().members.iter_mut().next().unwrap();
    let (index, generation) = (*index, member.generation);
    member.l4_delta ^= 1;
    let (model, repairs) = Model::adopt(&agent.machine.snapshot(), LIMITS);
    assert!(matches!(repairs[..], [Step::WriteMember { index: repaired, value }, Step::GracePeriod]
        if repaired == index && value.generation == generation));
    for step in &repairs {
        agent.machine.apply_unchecked(step);
    }
    agent.model = model;
    assert_eq!(agent.run(&target).steps, []);
    assert_eq!(agent.machine.view(), right);
}
