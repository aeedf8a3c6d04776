//! Plans on their way into the maps: one step after another, with a pause at each grace period.
//!
//! Which VIPs answer echo requests is written beside all that, one VIP a grace period: a lost cluster may change that
//! of a thousand, and nothing else may wait for them.

use std::collections::{BTreeMap, VecDeque};

use crate::plan::{Step, VipKey};

/// The steps that are still to be applied.
#[derive(Debug, Default)]
pub(super) struct StepQueue {
    /// Each with the number of its plan.
    steps: VecDeque<(u64, Step)>,
    /// Flags of VIPs for [`Step::UpdateEcho`], as they were planned last.
    echoes: BTreeMap<VipKey, u32>,
    /// Packets may still read the element that the last [`Step::UpdateEcho`] gave up.
    echo_in_flight: bool,
    /// Number of the last plan that came.
    planned: u64,
    /// Number of the last plan that has been applied whole, with its grace periods.
    applied: u64,
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Apply this step.
    Apply(Step),
    /// Wait for a grace period.
    Wait,
    /// Wait until a grace period has passed since the last write to the VIPs, or until a new plan comes.
    Settle,
    /// Nothing is left.
    Idle,
}

impl StepQueue {
    /// Appends a plan; they are numbered from 1. Returns the steps to apply at once, before everything that waits:
    /// a backend that becomes usable or unusable must not wait for a grace period of something else.
    ///
    /// Storing a backend's flags commutes with every step but those that write the same element.
    pub(super) fn push(&mut self, number: u64, steps: Vec<Step>) -> Vec<Step> {
        self.planned = number;
        let mut at_once = Vec::new();
        for step in steps {
            match step {
                Step::SetBackendFlags { index, .. } if !self.writes_backend(index) => at_once.push(step),
                Step::GracePeriod if matches!(self.steps.back(), Some((_, Step::GracePeriod))) => {}
                Step::UpdateEcho { key, flags } => _ = self.echoes.insert(key, flags),
                step => {
                    if let Step::PutVip { key, .. } | Step::DeleteVip { key } = &step {
                        self.echoes.remove(key);
                    }
                    self.steps.push_back((number, step));
                }
            }
        }
        at_once
    }

    /// Takes the next step. Whoever asks has applied the one before, or waited for its end; `settled`: and a grace
    /// period has passed since the last step that [writes a VIP](Step::writes_vip).
    pub(super) fn next(&mut self, settled: bool) -> Next {
        // Not only when nothing is left: where changes never stop, something always is.
        self.applied = self.steps.front().map_or(self.planned, |(number, _)| number - 1);
        self.echo_in_flight &= !settled;
        if settled && let Some(step) = self.next_echo() {
            self.echo_in_flight = true;
            return Next::Apply(step);
        }
        if self.echo_in_flight && self.steps.front().is_some_and(|(_, step)| step.writes_vip()) {
            return Next::Settle;
        }
        match self.steps.pop_front() {
            Some((_, Step::GracePeriod)) => Next::Wait,
            Some((_, step)) => Next::Apply(step),
            None if self.echoes.is_empty() => Next::Idle,
            None => Next::Settle,
        }
    }

    /// What is planned for VIPs goes first: it waits for one of these at most.
    fn next_echo(&mut self) -> Option<Step> {
        if self.steps.iter().any(|(_, step)| step.writes_vip()) {
            return None;
        }
        let (key, flags) = self.echoes.pop_first()?;
        Some(Step::UpdateEcho { key, flags })
    }

    /// Number of the last plan all of whose steps have been applied.
    pub(super) const fn applied(&self) -> u64 {
        self.applied
    }

    /// Whether nothing waits, but for what VIPs answer to echo requests.
    pub(super) fn is_idle(&self) -> bool {
        self.steps.is_empty()
    }

    /// Forgets what waits: the maps are about to be read anew.
    pub(super) fn clear(&mut self) {
        self.steps.clear();
        self.echoes.clear();
    }

    fn writes_backend(&self, backend: u32) -> bool {
        self.steps.iter().any(|(_, step)| match step {
            Step::InitBackend { index, .. } | Step::SetBackendFlags { index, .. } => *index == backend,
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use lb_common::abi::Backend;

    use super::*;
    use crate::plan::{FlowUsage, Limits, MapSnapshot, Model, Target, plan};

    fn flags(index: u32) -> Step {
        Step::SetBackendFlags { index, flags: 0 }
    }

    fn init(index: u32) -> Step {
        Step::InitBackend { index, value: Backend::default() }
    }

    #[test]
    fn flags_overtake_what_waits_for_a_grace_period() {
        let mut queue = StepQueue::default();
        assert_eq!(queue.push(1, vec![init(1), Step::GracePeriod, Step::DeleteVip { key: vip() }]), []);
        assert_eq!(queue.next(true), Next::Apply(init(1)));
        assert_eq!(queue.next(true), Next::Wait);
        assert_eq!(queue.push(2, vec![flags(1)]), [flags(1)]);
        assert_eq!(queue.next(true), Next::Apply(Step::DeleteVip { key: vip() }));
    }

    #[test]
    fn flags_do_not_overtake_a_write_of_the_same_backend() {
        let mut queue = StepQueue::default();
        assert_eq!(queue.push(1, vec![Step::GracePeriod, init(1)]), []);
        assert_eq!(queue.push(2, vec![flags(1), flags(2)]), [flags(2)]);
        assert_eq!(queue.next(true), Next::Wait);
        assert_eq!(queue.next(true), Next::Apply(init(1)));
        assert_eq!(queue.next(true), Next::Apply(flags(1)));
    }

    #[test]
    fn a_plan_counts_as_applied_when_its_last_step_has_been() {
        let mut queue = StepQueue::default();
        queue.push(3, vec![init(1), Step::GracePeriod]);
        while queue.next(true) != Next::Idle {
            assert_eq!(queue.applied(), 2);
        }
        assert_eq!(queue.applied(), 3);
        queue.push(4, vec![flags(1)]);
        assert_eq!((queue.next(true), queue.applied()), (Next::Idle, 4), "all of it went at once");
    }

    #[test]
    fn plans_are_applied_one_after_another_though_the_next_ones_wait_already() {
        let mut queue = StepQueue::default();
        queue.push(1, vec![init(1), Step::GracePeriod]);
        assert_eq!((queue.next(true), queue.next(true)), (Next::Apply(init(1)), Next::Wait));
        queue.push(2, vec![init(2), Step::GracePeriod, init(3)]);
        assert_eq!(queue.applied(), 0, "its grace period is not over");
        assert_eq!((queue.next(true), queue.applied()), (Next::Apply(init(2)), 1));
        queue.push(3, vec![init(4)]);
        assert_eq!((queue.next(true), queue.applied()), (Next::Wait, 1));
        assert_eq!((queue.next(true), queue.applied()), (Next::Apply(init(3)), 1));
        assert_eq!((queue.next(true), queue.applied()), (Next::Apply(init(4)), 2));
        assert_eq!((queue.next(true), queue.applied()), (Next::Idle, 3));
    }

    #[test]
    fn repairs_over_an_adoption_count_as_applied_when_they_are_and_older_plans_before() {
        let limits = Limits {
            services: 16,
            backends: 64,
            members: 64,
            ring_pairs: 1000,
            source_ranges: 16,
            drain_timeout: Duration::from_secs(1),
        };
        let mut model = Model::new(limits);
        let mut queue = StepQueue::default();
        let mut last = 0;
        for _ in 0..3 {
            last = plan(&mut model, &Target::default(), &FlowUsage::default(), Instant::now()).number;
            queue.push(last, vec![init(1), Step::GracePeriod]);
            while queue.next(true) != Next::Idle {}
        }
        assert_eq!(queue.applied(), last);
        // A backend that nothing names is to be cleared.
        let nameless = Backend { family: 4, protocol: 6, ..Backend::default() };
        let maps = MapSnapshot { backends: [(50, nameless)].into(), ..MapSnapshot::default() };
        let repairs = model.adopt_anew(&maps);
        queue.clear();
        queue.push(repairs.number, repairs.steps);
        let mut applied = 0;
        while queue.next(true) != Next::Idle {
            assert_eq!(queue.applied(), last);
            applied += 1;
        }
        assert!(applied > 1, "there was something to repair");
        assert_eq!((repairs.number, queue.applied()), (last + 1, last + 1));
    }

    /// The queue, and packets that read elements of VIPs until a grace period has passed.
    #[derive(Default)]
    struct Readers {
        queue: StepQueue,
        /// A given up element of the VIPs is still read.
        recycled: bool,
        written: Vec<Step>,
    }

    impl Readers {
        fn apply(&mut self, step: Step) {
            let echo = matches!(step, Step::UpdateEcho { .. });
            assert!(!self.recycled || !step.writes_vip(), "{step:?} into what packets still read");
            self.recycled |= echo || matches!(step, Step::DeleteVip { .. });
            self.written.push(step);
        }

        /// Applies what needs no pause; whether it is the end of a grace period that comes next.
        fn run(&mut self) -> Next {
            loop {
                match self.queue.next(!self.recycled) {
                    Next::Apply(step) => self.apply(step),
                    Next::Wait => self.recycled = false,
                    next => return next,
                }
            }
        }
    }

    fn echo(vip: u8, flags: u32) -> Step {
        Step::UpdateEcho { key: key(vip), flags }
    }

    #[test]
    fn a_thousand_vips_that_fall_silent_hold_nothing_else_back() {
        let mut readers = Readers::default();
        readers.queue.push(1, (0..200).map(|vip| echo(vip, 0)).collect());
        assert_eq!(readers.run(), Next::Settle);
        assert_eq!(readers.written, [echo(0, 0)]);
        readers.queue.push(2, vec![init(1), Step::GracePeriod, init(2)]);
        assert_eq!((readers.run(), readers.queue.applied()), (Next::Settle, 2));
        assert!(readers.written.contains(&init(2)) && readers.written.len() < 6, "{:?}", readers.written);
        while readers.run() == Next::Settle {
            readers.recycled = false;
        }
        let echoes = readers.written.iter().filter(|step| matches!(step, Step::UpdateEcho { .. }));
        assert_eq!((echoes.count(), readers.run()), (200, Next::Idle));
    }

    #[test]
    fn a_vip_waits_for_one_echo_and_goes_before_the_others() {
        let mut readers = Readers::default();
        readers.queue.push(1, vec![echo(1, 0), echo(2, 0), echo(3, 0)]);
        readers.run();
        let put = Step::PutVip { key: key(9), flags: 0 };
        readers.queue.push(2, vec![put.clone()]);
        assert_eq!((readers.run(), readers.queue.applied()), (Next::Settle, 1));
        readers.recycled = false;
        readers.run();
        assert_eq!(readers.written, [echo(1, 0), put, echo(2, 0)]);
    }

    #[test]
    fn what_came_later_for_a_vip_is_what_is_written() {
        let mut readers = Readers::default();
        readers.queue.push(1, vec![echo(1, 0), echo(2, 0), echo(3, 0), echo(4, 0)]);
        readers.run();
        let delete = Step::DeleteVip { key: key(2) };
        let put = Step::PutVip { key: key(3), flags: 1 };
        let late = vec![echo(4, 2), delete.clone(), Step::GracePeriod, put.clone(), Step::GracePeriod];
        readers.queue.push(2, late);
        while readers.run() == Next::Settle {
            readers.recycled = false;
        }
        assert_eq!(readers.written, [echo(1, 0), delete, put, echo(4, 2)]);
    }

    fn vip() -> VipKey {
        key(1)
    }

    fn key(last: u8) -> VipKey {
        VipKey::V4(lb_common::abi::VipKeyV4 { vip: [192, 0, 2, last] })
    }
}
