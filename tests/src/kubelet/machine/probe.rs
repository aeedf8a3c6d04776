//! One probe of one running container: when to check, and what a row of results means.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;

/// When a probe checks and how many results of a kind in a row decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// From the container's start to the first check.
    pub(crate) delay: Duration,
    /// From one check to the next.
    pub(crate) period: Duration,
    /// How long a check may take.
    pub(crate) timeout: Duration,
    /// Successes in a row that make it pass.
    pub(crate) success: u32,
    /// Failures in a row that make it fail.
    pub(crate) failure: u32,
}

impl Schedule {
    /// What a manifest says, with Kubernetes' defaults.
    pub(crate) fn of(probe: &Probe) -> Schedule {
        let number = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(number(value, default).into());
        Schedule {
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success: number(probe.success_threshold, 1),
            failure: number(probe.failure_threshold, 3),
        }
    }
}

/// The state of a probe. Times are since the kubelet's start.
#[derive(Clone, Debug)]
pub(super) struct ProbeMachine {
    schedule: Schedule,
    passing: bool,
    /// The length of the present row of equal results, and what they are.
    row: u32,
    row_ok: bool,
    /// When the next check is due; none while one is under way.
    due: Option<Duration>,
}

impl ProbeMachine {
    /// A probe of a container that started at `started` and counts as `passing` until results say otherwise.
    pub(super) fn new(schedule: Schedule, started: Duration, passing: bool) -> ProbeMachine {
        ProbeMachine { schedule, passing, row: 0, row_ok: false, due: Some(started + schedule.delay) }
    }

    pub(super) fn is_passing(&self) -> bool {
        self.passing
    }

    /// Whether a check is due: it is then under way until its result is handled.
    pub(super) fn poll(&mut self, now: Duration) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }

    /// When to poll next; none while a check is under way.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.due
    }

    /// Takes a check's result. Says whether it completed a row, which decides whether the probe passes; a
    /// longer row decides the same again.
    pub(super) fn handle(&mut self, now: Duration, ok: bool) -> bool {
        self.due = Some(now + self.schedule.period);
        if ok != self.row_ok {
            (self.row_ok, self.row) = (ok, 0);
        }
        self.row += 1;
        if self.row < if ok { self.schedule.success } else { self.schedule.failure } {
            return false;
        }
        self.row = 0;
        self.passing = ok;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule {
        delay: Duration::from_secs(3),
        period: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        success: 2,
        failure: 3,
    };

    #[test]
    fn it_checks_after_its_delay_then_every_period_after_a_result() {
        let at = Duration::from_secs;
        let mut probe = ProbeMachine::new(SCHEDULE, at(10), false);
        assert!(!probe.poll(at(12)));
        assert_eq!(probe.timeout(), Some(at(13)));
        assert!(probe.poll(at(13)));
        assert!(!probe.poll(at(14)), "one check at a time");
        assert_eq!(probe.timeout(), None);
        probe.handle(at(14), true);
        assert_eq!(probe.timeout(), Some(at(16)));
    }

    #[test]
    fn only_a_whole_row_decides_and_one_result_breaks_it() {
        let at = Duration::from_secs;
        let mut probe = ProbeMachine::new(SCHEDULE, at(0), false);
        let mut results = |all: &[bool]| -> Vec<bool> {
            all.iter()
                .map(|ok| {
                    probe.handle(at(0), *ok);
                    probe.is_passing()
                })
                .collect()
        };
        assert_eq!(results(&[true, false, true, true]), [false, false, false, true]);
        assert_eq!(results(&[false, false, true]), [true, true, true]);
        assert_eq!(results(&[false, false, false]), [true, true, false]);
    }

    #[test]
    fn a_row_of_failures_decides_also_where_the_probe_never_passed() {
        let mut probe = ProbeMachine::new(SCHEDULE, Duration::ZERO, false);
        let decided = [false; 6].map(|ok| probe.handle(Duration::ZERO, ok));
        assert_eq!(decided, [false, false, true, false, false, true]);
    }

    #[test]
    fn a_manifest_without_numbers_has_kubernetes_defaults() {
        let schedule = Schedule::of(&Probe { period_seconds: Some(2), ..Probe::default() });
        let seconds = Duration::from_secs;
        assert_eq!((schedule.delay, schedule.period, schedule.timeout), (seconds(0), seconds(2), seconds(1)));
        assert_eq!((schedule.success, schedule.failure), (1, 3));
    }
}
