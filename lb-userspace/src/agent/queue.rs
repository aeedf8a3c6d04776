//! Plans on their way into the maps: one step after another, with a pause at each grace period.

use std::collections::VecDeque;

use crate::plan::Step;

/// The steps that are still to be applied.
#[derive(Debug, Default)]
pub(super) struct StepQueue {
    /// Each with the number of its plan.
    steps: VecDeque<(u64, Step)>,
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
                step => self.steps.push_back((number, step)),
            }
        }
        at_once
    }

    /// Takes the next step. Whoever asks has applied the one before, or waited for its end.
    pub(super) fn next(&mut self) -> Next {
        // Not only when nothing is left: where changes never stop, something always is.
        self.applied = self.steps.front().map_or(self.planned, |(number, _)| number - 1);
        match self.steps.pop_front() {
            Some((_, Step::GracePeriod)) => Next::Wait,
            Some((_, step)) => Next::Apply(step),
            None => Next::Idle,
        }
    }

    /// Number of the last plan all of whose steps have been applied.
    pub(super) const fn applied(&self) -> u64 {
        self.applied
    }

    /// Whether nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.steps.is_empty()
    }

    /// Forgets what waits: the maps are about to be read anew.
    pub(super) fn clear(&mut self) {
        self.steps.clear();
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
        assert_eq!(queue.next(), Next::Apply(init(1)));
        assert_eq!(queue.next(), Next::Wait);
        assert_eq!(queue.push(2, vec![flags(1)]), [flags(1)]);
        assert_eq!(queue.next(), Next::Apply(Step::DeleteVip { key: vip() }));
    }

    #[test]
    fn flags_do_not_overtake_a_write_of_the_same_backend() {
        let mut queue = StepQueue::default();
        assert_eq!(queue.push(1, vec![Step::GracePeriod, init(1)]), []);
        assert_eq!(queue.push(2, vec![flags(1), flags(2)]), [flags(2)]);
        assert_eq!(queue.next(), Next::Wait);
        assert_eq!(queue.next(), Next::Apply(init(1)));
        assert_eq!(queue.next(), Next::Apply(flags(1)));
    }

    #[test]
    fn a_plan_counts_as_applied_when_its_last_step_has_been() {
        let mut queue = StepQueue::default();
        queue.push(3, vec![init(1), Step::GracePeriod]);
        while queue.next() != Next::Idle {
            assert_eq!(queue.applied(), 2);
        }
        assert_eq!(queue.applied(), 3);
        queue.push(4, vec![flags(1)]);
        assert_eq!((queue.next(), queue.applied()), (Next::Idle, 4), "all of it went at once");
    }

    #[test]
    fn plans_are_applied_one_after_another_though_the_next_ones_wait_already() {
        let mut queue = StepQueue::default();
        queue.push(1, vec![init(1), Step::GracePeriod]);
        assert_eq!((queue.next(), queue.next()), (Next::Apply(init(1)), Next::Wait));
        queue.push(2, vec![init(2), Step::GracePeriod, init(3)]);
        assert_eq!(queue.applied(), 0, "its grace period is not over");
        assert_eq!((queue.next(), queue.applied()), (Next::Apply(init(2)), 1));
        queue.push(3, vec![init(4)]);
        assert_eq!((queue.next(), queue.applied()), (Next::Wait, 1));
        assert_eq!((queue.next(), queue.applied()), (Next::Apply(init(3)), 1));
        assert_eq!((queue.next(), queue.applied()), (Next::Apply(init(4)), 2));
        assert_eq!((queue.next(), queue.applied()), (Next::Idle, 3));
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
            while queue.next() != Next::Idle {}
        }
        assert_eq!(queue.applied(), last);
        // A backend that nothing names is to be cleared.
        let nameless = Backend { family: 4, protocol: 6, ..Backend::default() };
        let maps = MapSnapshot { backends: [(50, nameless)].into(), ..MapSnapshot::default() };
        let repairs = model.adopt_anew(&maps);
        queue.clear();
        queue.push(repairs.number, repairs.steps);
        let mut applied = 0;
        while queue.next() != Next::Idle {
            assert_eq!(queue.applied(), last);
            applied += 1;
        }
        assert!(applied > 1, "there was something to repair");
        assert_eq!((repairs.number, queue.applied()), (last + 1, last + 1));
    }

    fn vip() -> crate::plan::VipKey {
        crate::plan::VipKey::V4(lb_common::abi::VipKeyV4 { vip: [192, 0, 2, 1] })
    }
}
