//! A pod's status, as the API server keeps it.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

use super::{Container, Ended, PodMachine, State};

/// What a status says beside its containers.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// When the kubelet started: what the machines' times count from.
    pub(crate) epoch: Timestamp,
    pub(crate) host_ips: Vec<IpAddr>,
    /// Empty until the pod has a network.
    pub(crate) pod_ips: Vec<IpAddr>,
    /// When the kubelet first saw the pod.
    pub(crate) seen: Duration,
}

/// Makes statuses of one pod, and remembers since when its conditions are as they are.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    conditions: BTreeMap<&'static str, (bool, Duration)>,
}

impl Reporter {
    /// The status now. `pod` is the object as last seen: it names the containers and its readiness gates.
    pub(crate) fn status(
        &mut self,
        now: Duration,
        facts: &Facts,
        pod: &Pod,
        machine: &PodMachine,
    ) -> PodStatus {
        let containers_ready =
            !machine.containers.is_empty() && machine.containers.iter().all(Container::is_ready);
        let conditions = [
            ("PodReadyToStartContainers", !facts.pod_ips.is_empty(), "PodHasNoNetwork"),
            ("Initialized", true, ""),
            ("ContainersReady", containers_ready, "ContainersNotReady"),
            ("Ready", containers_ready && gates_pass(pod), not_ready_reason(containers_ready)),
        ];
        let conditions = conditions.map(|(kind, holds, why)| self.condition(now, facts, kind, holds, why));
        let ip = |ip: &IpAddr| ip.to_string();
        PodStatus {
            phase: Some(machine.phase().to_owned()),
            observed_generation: pod.metadata.generation,
            host_ip: facts.host_ips.first().map(ip),
            host_ips: Some(facts.host_ips.iter().map(|host| HostIP { ip: ip(host) }).collect()),
            pod_ip: facts.pod_ips.first().map(ip),
            pod_ips: Some(facts.pod_ips.iter().map(|pod| PodIP { ip: ip(pod) }).collect()),
            start_time: Some(time(facts, facts.seen)),
            conditions: Some(conditions.into()),
            container_statuses: Some(container_statuses(facts, pod, machine)),
            ..PodStatus::default()
        }
    }

    fn condition(
        &mut self,
        now: Duration,
        facts: &Facts,
        kind: &'static str,
        holds: bool,
        why_not: &str,
    ) -> PodCondition {
        let entry = self.conditions.entry(kind).or_insert((holds, now));
        if entry.0 != holds {
            *entry = (holds, now);
        }
        PodCondition {
            type_: kind.to_owned(),
            status: if holds { "True" } else { "False" }.to_owned(),
            reason: (!holds).then(|| why_not.to_owned()),
            last_transition_time: Some(time(facts, entry.1)),
            ..PodCondition::default()
        }
    }
}

/// Whether every condition that the pod's readiness gates name is true.
fn gates_pass(pod: &Pod) -> bool {
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let conditions = || pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    gates.into_iter().all(|gate| {
        conditions().any(|condition| condition.type_ == gate.condition_type && condition.status == "True")
    })
}

fn not_ready_reason(containers_ready: bool) -> &'static str {
    if containers_ready { "ReadinessGatesNotReady" } else { "ContainersNotReady" }
}

fn container_statuses(facts: &Facts, pod: &Pod, machine: &PodMachine) -> Vec<ContainerStatus> {
    let specs = pod.spec.iter().flat_map(|spec| &spec.containers);
    let status = |(spec, container): (&k8s_openapi::api::core::v1::Container, &Container)| {
        let image = spec.image.clone().unwrap_or_default();
        ContainerStatus {
            name: spec.name.clone(),
            image_id: image.clone(),
            image,
            ready: container.is_ready(),
            started: Some(container.is_started()),
            restart_count: container.restarts(),
            state: Some(state(facts, container)),
            last_state: container.last().map(|ended| ContainerState {
                terminated: Some(terminated(facts, ended)),
                ..ContainerState::default()
            }),
            ..ContainerStatus::default()
        }
    };
    specs.zip(&machine.containers).map(status).collect()
}

fn state(facts: &Facts, container: &Container) -> ContainerState {
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    };
    match container.state() {
        State::Waiting { .. } | State::Starting if container.last().is_some() => {
            waiting("CrashLoopBackOff", Some("it is started again after a short wait".to_owned()))
        }
        State::Waiting { .. } | State::Starting => waiting("ContainerCreating", None),
        State::NeverRan => waiting("PodDeleted", None),
        State::Refused(refusal) => waiting(refusal.reason, Some(refusal.message.clone())),
        State::Running(running) => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(time(facts, running.since)) }),
            ..ContainerState::default()
        },
        State::Over(ended) => {
            ContainerState { terminated: Some(terminated(facts, ended)), ..ContainerState::default() }
        }
    }
}

fn terminated(facts: &Facts, ended: &Ended) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: ended.code,
        reason: Some(if ended.code == 0 { "Completed" } else { "Error" }.to_owned()),
        started_at: Some(time(facts, ended.since)),
        finished_at: Some(time(facts, ended.at)),
        ..ContainerStateTerminated::default()
    }
}

fn time(facts: &Facts, since_start: Duration) -> Time {
    let since_start = SignedDuration::try_from(since_start).unwrap_or(SignedDuration::MAX);
    let at = facts.epoch.saturating_add(since_start).unwrap_or(facts.epoch);
    // The API keeps whole seconds: what is sent should compare equal to what comes back.
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container as ContainerSpec, PodReadinessGate, PodSpec};

    use super::{
        super::{Life, RestartPolicy},
        *,
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn facts() -> Facts {
        Facts {
            epoch: Timestamp::UNIX_EPOCH,
            host_ips: vec![[20, 0, 0, 10].into()],
            pod_ips: vec![[10, 0, 0, 2].into()],
            seen: at(1),
        }
    }

    fn pod_of_one() -> (Pod, PodMachine) {
        let container = ContainerSpec {
            name: "echo".to_owned(),
            image: Some("kanmon.dev/echo".to_owned()),
            ..ContainerSpec::default()
        };
        let spec = PodSpec { containers: vec![container], ..PodSpec::default() };
        let life = Life {
            policy: RestartPolicy::Always,
            grace: at(1),
            startup: None,
            liveness: None,
            readiness: None,
        };
        let machine = PodMachine::new(vec![Container::new(life, at(1), 0)]);
        (Pod { spec: Some(spec), ..Pod::default() }, machine)
    }

    fn condition<'a>(status: &'a PodStatus, kind: &str) -> (&'a str, i64) {
        let all = status.conditions.as_ref().unwrap();
        let found = all.iter().find(|condition| condition.type_ == kind).unwrap();
        (&found.status, found.last_transition_time.as_ref().unwrap().0.as_second())
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let (pod, mut machine) = pod_of_one();
        let mut reporter = Reporter::default();
        let first = reporter.status(at(2), &facts(), &pod, &machine);
        assert_eq!(condition(&first, "Ready"), ("False", 2));
        machine.poll(at(3));
        machine.containers[0].started(at(3));
        let second = reporter.status(at(4), &facts(), &pod, &machine);
        assert_eq!(condition(&second, "Ready"), ("True", 4));
        let third = reporter.status(at(9), &facts(), &pod, &machine);
        assert_eq!(second, third, "nothing changed, so nothing is to be sent");
        assert_eq!(third.pod_ip.as_deref(), Some("10.0.0.2"));
    }

    #[test]
    fn a_crashed_container_waits_with_its_last_exit_code() {
        let (pod, mut machine) = pod_of_one();
        machine.poll(at(1));
        machine.containers[0].started(at(1));
        machine.containers[0].exited(at(2), 3);
        let status = Reporter::default().status(at(2), &facts(), &pod, &machine);
        let container = &status.container_statuses.unwrap()[0];
        let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
        let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!((last.exit_code, container.restart_count), (3, 1));
        assert_eq!((container.ready, container.started), (false, Some(false)));
    }

    #[test]
    fn a_readiness_gate_holds_ready_back_until_its_condition_is_true() {
        let (mut pod, mut machine) = pod_of_one();
        machine.poll(at(1));
        machine.containers[0].started(at(1));
        let gate = PodReadinessGate { condition_type: "kanmon.dev/registered".to_owned() };
        pod.spec.as_mut().unwrap().readiness_gates = Some(vec![gate]);
        let status = Reporter::default().status(at(2), &facts(), &pod, &machine);
        assert_eq!(condition(&status, "Ready").0, "False");
        assert_eq!(condition(&status, "ContainersReady").0, "True");
        let passed = PodCondition {
            type_: "kanmon.dev/registered".to_owned(),
            status: "True".to_owned(),
            ..PodCondition::default()
        };
        pod.status = Some(PodStatus { conditions: Some(vec![passed]), ..PodStatus::default() });
        let status = Reporter::default().status(at(2), &facts(), &pod, &machine);
        assert_eq!(condition(&status, "Ready").0, "True");
    }
}
