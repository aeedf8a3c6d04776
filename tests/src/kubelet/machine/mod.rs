//! What a pod's containers do and when, without doing it: no clock, no process, no network. Times are since
//! the kubelet's start.

mod container;
mod probe;
mod status;

use std::time::Duration;

pub(super) use self::{
    container::{Container, Ended, Life, ProbeKind, Refusal, RestartPolicy, State, Step},
    probe::Schedule,
    status::{Facts, Reporter},
};

/// The containers of a pod, in the order of its manifest.
#[derive(Clone, Debug, Default)]
pub(super) struct PodMachine {
    pub(super) containers: Vec<Container>,
    deleted: bool,
}

impl PodMachine {
    pub(super) fn new(containers: Vec<Container>) -> PodMachine {
        PodMachine { containers, deleted: false }
    }

    /// What is due now, of which container; none: nothing until [`PodMachine::timeout`].
    pub(super) fn poll(&mut self, now: Duration) -> Option<(usize, Step)> {
        self.containers.iter_mut().enumerate().find_map(|(n, container)| Some((n, container.poll(now)?)))
    }

    /// When to poll next.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.containers.iter().filter_map(Container::timeout).min()
    }

    /// The pod is deleted: every container gets `grace` to end.
    pub(super) fn delete(&mut self, now: Duration, grace: Duration) {
        self.deleted = true;
        self.containers.iter_mut().for_each(|container| container.stop(now, grace));
    }

    /// Whether the pod is deleted and nothing of it runs any more.
    pub(super) fn is_gone(&self) -> bool {
        self.deleted && self.containers.iter().all(Container::is_over)
    }

    /// `status.phase`.
    pub(super) fn phase(&self) -> &'static str {
        let states = || self.containers.iter().map(Container::state);
        let over = states().all(|state| matches!(state, State::Over(_) | State::NeverRan));
        let failed = states().any(|state| !matches!(state, State::Over(Ended { code: 0, .. })));
        let ran = |container: &Container| match container.state() {
            State::Running(_) | State::Over(_) => true,
            State::Waiting { .. } | State::Starting => container.last().is_some(),
            State::Refused(_) | State::NeverRan => false,
        };
        match (over, failed) {
            (true, false) => "Succeeded",
            (true, true) => "Failed",
            (false, _) if self.containers.iter().all(ran) => "Running",
            (false, _) => "Pending",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn pod(policy: RestartPolicy) -> PodMachine {
        let life = Life { policy, grace: at(30), startup: None, liveness: None, readiness: None };
        PodMachine::new(vec![Container::new(life.clone(), at(0), 0), Container::new(life, at(0), 0)])
    }

    #[test]
    fn the_phase_is_that_of_all_containers_together() {
        let mut pod = pod(RestartPolicy::OnFailure);
        assert_eq!(pod.poll(at(0)), Some((0, Step::Start)));
        assert_eq!(pod.poll(at(0)), Some((1, Step::Start)));
        pod.containers[0].started(at(0));
        assert_eq!(pod.phase(), "Pending", "the other one has not run yet");
        pod.containers[1].started(at(0));
        assert_eq!(pod.phase(), "Running");
        pod.containers[0].exited(at(1), 1);
        assert_eq!(pod.phase(), "Running", "it is started again");
        pod.poll(at(2));
        pod.containers[0].started(at(2));
        pod.containers[0].exited(at(3), 0);
        assert_eq!(pod.phase(), "Running");
        pod.containers[1].exited(at(3), 0);
        assert_eq!(pod.phase(), "Succeeded");
        assert!(!pod.is_gone(), "nobody has deleted it");
    }

    #[test]
    fn a_deleted_pod_is_gone_when_its_last_container_has_ended() {
        let mut pod = pod(RestartPolicy::Always);
        while let Some((n, _)) = pod.poll(at(0)) {
            pod.containers[n].started(at(0));
        }
        pod.delete(at(1), at(30));
        assert_eq!(pod.poll(at(1)), Some((0, Step::Terminate)));
        assert_eq!(pod.poll(at(1)), Some((1, Step::Terminate)));
        pod.containers[0].exited(at(2), 0);
        assert!(!pod.is_gone());
        pod.containers[1].exited(at(2), 137);
        assert!(pod.is_gone());
        assert_eq!(pod.phase(), "Failed");
    }

    #[test]
    fn a_refused_container_keeps_its_pod_pending_until_it_is_deleted() {
        let mut pod = pod(RestartPolicy::Always);
        pod.containers[0].refuse(Refusal { reason: "ErrImagePull", message: String::new() });
        assert_eq!(pod.poll(at(0)), Some((1, Step::Start)));
        pod.containers[1].started(at(0));
        assert_eq!(pod.phase(), "Pending");
        pod.delete(at(1), at(1));
        pod.containers[1].exited(at(1), 0);
        assert!(pod.is_gone());
    }
}
