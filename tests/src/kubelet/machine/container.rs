//! One container: started, probed, restarted and stopped.

use std::time::Duration;

use super::probe::{ProbeMachine, Schedule};

/// The wait before the first restart; each further one doubles it.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// The longest wait before a restart.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A container that ran this long is not in a crash loop.
const STABLE: Duration = Duration::from_secs(30);

/// `restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];
}

/// What a container's manifest says that its life depends on.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) policy: RestartPolicy,
    /// From SIGTERM to SIGKILL.
    pub(crate) grace: Duration,
    pub(crate) startup: Option<Schedule>,
    pub(crate) liveness: Option<Schedule>,
    pub(crate) readiness: Option<Schedule>,
}

/// What to do with a container now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Start it, and report [`Container::started`] or [`Container::exited`].
    Start,
    /// Send it SIGTERM.
    Terminate,
    /// Send it SIGKILL.
    Kill,
    /// Run a check, and report [`Container::checked`].
    Check(ProbeKind),
}

/// Why a container is not run at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// As `kubectl get pods` shows it: "ErrImagePull".
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// How a run of a container ended. Times are since the kubelet's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) since: Duration,
    pub(crate) at: Duration,
    /// The exit code, or 128 + the signal.
    pub(crate) code: i32,
}

/// Where a container is in its life.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// To be started at that time.
    Waiting {
        until: Duration,
    },
    /// Being started.
    Starting,
    Running(Box<Running>),
    /// Not to be started again.
    Over(Ended),
    Refused(Refusal),
    /// Its pod was deleted before it ran.
    NeverRan,
}

/// A container that runs.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) since: Duration,
    startup: Option<ProbeMachine>,
    liveness: Option<ProbeMachine>,
    readiness: Option<ProbeMachine>,
    stop: Option<Stop>,
}

#[derive(Clone, Debug)]
struct Stop {
    kill_at: Duration,
    terminated: bool,
    killed: bool,
}

/// The state machine of a container. Times are since the kubelet's start.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    life: Life,
    state: State,
    /// Runs so far: names the one a check belongs to.
    runs: u32,
    restarts: i32,
    last: Option<Ended>,
    backoff: Duration,
    /// The pod is being deleted: it is not started any more.
    ending: bool,
}

impl Container {
    /// A container that has been restarted `restarts` times before and is to be started now.
    pub(crate) fn new(life: Life, now: Duration, restarts: i32) -> Container {
        Container {
            life,
            state: State::Waiting { until: now },
            runs: 0,
            restarts,
            last: None,
            backoff: FIRST_BACKOFF,
            ending: false,
        }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn restarts(&self) -> i32 {
        self.restarts
    }

    /// The number of the present run: a check's result is of use only for the run it was made in.
    pub(crate) fn run(&self) -> u32 {
        self.runs
    }

    /// How the run before the present one ended.
    pub(crate) fn last(&self) -> Option<&Ended> {
        self.last.as_ref()
    }

    /// Whether it has passed its startup probe, or has none, and runs.
    pub(crate) fn is_started(&self) -> bool {
        matches!(&self.state, State::Running(running) if running.has_started())
    }

    /// Whether its readiness probe passes, or it has none, and it runs. Holds also while it is being stopped.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(&self.state, State::Running(running)
            if running.has_started() && running.readiness.as_ref().is_none_or(ProbeMachine::is_passing))
    }

    /// Whether nothing of it runs and nothing will.
    pub(crate) fn is_over(&self) -> bool {
        match self.state {
            State::Over(_) | State::NeverRan => true,
            State::Refused(_) => self.ending,
            State::Waiting { .. } | State::Starting | State::Running(_) => false,
        }
    }

    /// Never runs it.
    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        self.state = State::Refused(refusal);
    }

    /// What is due now, one step at a time; none: nothing until [`Container::timeout`].
    pub(crate) fn poll(&mut self, now: Duration) -> Option<Step> {
        match &mut self.state {
            State::Waiting { until } if *until <= now => {
                self.state = State::Starting;
                Some(Step::Start)
            }
            State::Running(running) => running.poll(now),
            _ => None,
        }
    }

    /// When to poll next.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        match &self.state {
            State::Waiting { until } => Some(*until),
            State::Running(running) => running.timeout(),
            _ => None,
        }
    }

    /// It runs now.
    pub(crate) fn started(&mut self, now: Duration) {
        let probe = |schedule: Option<Schedule>, passing| {
            schedule.map(|schedule| ProbeMachine::new(schedule, now, passing))
        };
        self.runs += 1;
        self.state = State::Running(Box::new(Running {
            since: now,
            startup: probe(self.life.startup, false),
            liveness: probe(self.life.liveness, true),
            readiness: probe(self.life.readiness, false),
            stop: None,
        }));
        if self.ending {
            self.stop(now, self.life.grace);
        }
    }

    /// It ended, or could not be started.
    pub(crate) fn exited(&mut self, now: Duration, code: i32) {
        let since = match &self.state {
            State::Running(running) => running.since,
            _ => now,
        };
        let ended = Ended { since, at: now, code };
        if self.ending || !self.is_restarted_after(code) {
            self.state = State::Over(ended);
            return;
        }
        if now - since >= STABLE {
            self.backoff = FIRST_BACKOFF;
        }
        self.state = State::Waiting { until: now + self.backoff };
        self.backoff = LONGEST_BACKOFF.min(self.backoff * 2);
        self.last = Some(ended);
        self.restarts += 1;
    }

    /// A check made in run `run` had this result.
    pub(crate) fn checked(&mut self, now: Duration, run: u32, kind: ProbeKind, ok: bool) {
        let State::Running(running) = &mut self.state else { return };
        if run != self.runs {
            return;
        }
        let failed = running.probe_mut(kind).is_some_and(|probe| probe.handle(now, ok)) && !ok;
        if failed && kind != ProbeKind::Readiness {
            running.stop(now, self.life.grace);
        }
    }

    /// Stops it because its pod is deleted; again with a shorter grace shortens what is left.
    pub(crate) fn stop(&mut self, now: Duration, grace: Duration) {
        self.ending = true;
        match &mut self.state {
            State::Waiting { .. } => {
                self.state = self.last.take().map_or(State::NeverRan, State::Over);
            }
            State::Running(running) => running.stop(now, grace),
            State::Starting | State::Over(_) | State::NeverRan | State::Refused(_) => {}
        }
    }

    /// Whether an end with this code is followed by another run.
    fn is_restarted_after(&self, code: i32) -> bool {
        match self.life.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Never => false,
        }
    }
}

impl Running {
    fn has_started(&self) -> bool {
        self.startup.as_ref().is_none_or(ProbeMachine::is_passing)
    }

    fn stop(&mut self, now: Duration, grace: Duration) {
        let kill_at = now + grace;
        match &mut self.stop {
            Some(stop) => stop.kill_at = stop.kill_at.min(kill_at),
            None => self.stop = Some(Stop { kill_at, terminated: false, killed: false }),
        }
    }

    fn poll(&mut self, now: Duration) -> Option<Step> {
        if let Some(stop) = &mut self.stop {
            if !stop.terminated {
                stop.terminated = true;
                return Some(Step::Terminate);
            }
            if stop.kill_at <= now && !stop.killed {
                stop.killed = true;
                return Some(Step::Kill);
            }
        }
        let due = ProbeKind::ALL
            .into_iter()
            .find(|kind| self.is_active(*kind) && self.probe_mut(*kind).is_some_and(|probe| probe.poll(now)));
        due.map(Step::Check)
    }

    fn timeout(&self) -> Option<Duration> {
        let kill_at = self.stop.as_ref().and_then(|stop| match (stop.terminated, stop.killed) {
            (false, _) => Some(Duration::ZERO),
            (true, false) => Some(stop.kill_at),
            (true, true) => None,
        });
        let active = ProbeKind::ALL.into_iter().filter(|kind| self.is_active(*kind));
        let checks = active.filter_map(|kind| self.probe(kind)?.timeout());
        checks.chain(kill_at).min()
    }

    /// Whether a probe checks now: only the startup probe before it has passed, only readiness while the
    /// container is being stopped.
    fn is_active(&self, kind: ProbeKind) -> bool {
        let (started, stopping) = (self.has_started(), self.stop.is_some());
        match kind {
            ProbeKind::Startup => !started && !stopping,
            ProbeKind::Liveness => started && !stopping,
            ProbeKind::Readiness => started,
        }
    }

    fn probe(&self, kind: ProbeKind) -> Option<&ProbeMachine> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
        }
    }

    fn probe_mut(&mut self, kind: ProbeKind) -> Option<&mut ProbeMachine> {
        match kind {
            ProbeKind::Startup => self.startup.as_mut(),
            ProbeKind::Liveness => self.liveness.as_mut(),
            ProbeKind::Readiness => self.readiness.as_mut(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY_SECOND: Schedule = Schedule {
        delay: Duration::ZERO,
        period: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        success: 1,
        failure: 2,
    };

    fn life(policy: RestartPolicy) -> Life {
        Life { policy, grace: at(30), startup: None, liveness: None, readiness: None }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn running(life: Life) -> Container {
        let mut container = Container::new(life, at(0), 0);
        assert_eq!(container.poll(at(0)), Some(Step::Start));
        container.started(at(0));
        container
    }

    #[test]
    fn what_exits_is_started_again_after_a_wait_that_doubles() {
        let mut container = running(life(RestartPolicy::Always));
        container.exited(at(1), 0);
        assert_eq!(container.timeout(), Some(at(1) + FIRST_BACKOFF));
        assert_eq!(container.poll(at(1)), None);
        assert_eq!(container.poll(at(2)), Some(Step::Start));
        container.started(at(2));
        container.exited(at(3), 9);
        assert_eq!(container.timeout(), Some(at(3) + FIRST_BACKOFF * 2));
        assert_eq!((container.restarts(), container.last().unwrap().code), (2, 9));
        container.poll(at(4));
        container.started(at(4));
        container.exited(at(4) + STABLE, 9);
        assert_eq!(container.timeout(), Some(at(4) + STABLE + FIRST_BACKOFF), "it was stable");
    }

    #[test]
    fn the_restart_policy_says_what_is_started_again() {
        for (policy, code, again) in [
            (RestartPolicy::Always, 0, true),
            (RestartPolicy::OnFailure, 0, false),
            (RestartPolicy::OnFailure, 1, true),
            (RestartPolicy::Never, 1, false),
        ] {
            let mut container = running(life(policy));
            container.exited(at(1), code);
            assert_eq!(matches!(container.state(), State::Waiting { .. }), again, "{policy:?} {code}");
        }
    }

    #[test]
    fn a_deleted_container_gets_sigterm_at_once_and_sigkill_after_its_grace() {
        let mut container = running(life(RestartPolicy::Always));
        container.stop(at(10), at(5));
        assert_eq!(container.poll(at(10)), Some(Step::Terminate));
        assert_eq!((container.poll(at(10)), container.timeout()), (None, Some(at(15))));
        container.stop(at(11), at(1));
        assert_eq!(container.timeout(), Some(at(12)), "a shorter grace counts");
        container.stop(at(11), at(60));
        assert_eq!(container.poll(at(12)), Some(Step::Kill));
        assert_eq!((container.poll(at(99)), container.timeout()), (None, None));
        assert!(!container.is_over());
        container.exited(at(12), 137);
        assert!(container.is_over());
        assert_eq!(container.restarts(), 0);
    }

    #[test]
    fn a_container_deleted_before_it_ran_never_runs() {
        let mut container = Container::new(life(RestartPolicy::Always), at(0), 0);
        container.stop(at(0), at(5));
        assert_eq!((container.poll(at(9)), container.is_over()), (None, true));

        let mut between = Container::new(life(RestartPolicy::Always), at(0), 0);
        between.poll(at(0));
        between.stop(at(0), at(5));
        between.started(at(1));
        assert_eq!(between.poll(at(1)), Some(Step::Terminate), "deleted while it was being started");
    }

    #[test]
    fn readiness_follows_its_probe_and_goes_on_while_the_container_stops() {
        let life = Life { readiness: Some(EVERY_SECOND), ..life(RestartPolicy::Always) };
        let mut container = running(life);
        let check = |container: &mut Container, now, ok| {
            assert_eq!(container.poll(now), Some(Step::Check(ProbeKind::Readiness)));
            container.checked(now, 1, ProbeKind::Readiness, ok);
            container.is_ready()
        };
        assert!(!container.is_ready());
        assert!(check(&mut container, at(0), true));
        container.stop(at(1), at(30));
        assert_eq!(container.poll(at(1)), Some(Step::Terminate));
        assert!(check(&mut container, at(1), false));
        assert!(!check(&mut container, at(2), false));
        container.exited(at(3), 0);
        assert!(!container.is_ready());
    }

    #[test]
    fn failed_liveness_restarts_and_an_old_runs_result_says_nothing_of_the_new() {
        let life = Life { liveness: Some(EVERY_SECOND), ..life(RestartPolicy::Always) };
        let mut container = running(life);
        for now in [at(0), at(1)] {
            assert_eq!(container.poll(now), Some(Step::Check(ProbeKind::Liveness)));
            container.checked(now, 1, ProbeKind::Liveness, false);
        }
        assert_eq!(container.poll(at(1)), Some(Step::Terminate));
        container.exited(at(2), 143);
        assert_eq!(container.poll(at(3)), Some(Step::Start));
        container.started(at(3));
        container.checked(at(3), 1, ProbeKind::Liveness, false);
        container.checked(at(3), 1, ProbeKind::Liveness, false);
        assert_eq!(container.poll(at(3)), Some(Step::Check(ProbeKind::Liveness)));
    }

    #[test]
    fn the_startup_probe_holds_the_others_back_and_its_failure_restarts() {
        let all = Life {
            startup: Some(EVERY_SECOND),
            liveness: Some(EVERY_SECOND),
            readiness: Some(EVERY_SECOND),
            ..life(RestartPolicy::Always)
        };
        let mut container = running(all.clone());
        assert_eq!(container.poll(at(0)), Some(Step::Check(ProbeKind::Startup)));
        assert_eq!(container.poll(at(0)), None);
        container.checked(at(0), 1, ProbeKind::Startup, true);
        assert!(container.is_started());
        assert_eq!(container.poll(at(0)), Some(Step::Check(ProbeKind::Liveness)));
        assert_eq!(container.poll(at(0)), Some(Step::Check(ProbeKind::Readiness)));

        let mut slow = running(all);
        for now in [at(0), at(1)] {
            assert_eq!(slow.poll(now), Some(Step::Check(ProbeKind::Startup)));
            slow.checked(now, 1, ProbeKind::Startup, false);
        }
        assert_eq!(slow.poll(at(1)), Some(Step::Terminate));
    }
}
