//! One pod: what its machine asks for, done with namespaces, processes and checks.

use std::{
    net::IpAddr,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use k8s_openapi::{
    api::core::v1::{Container as ContainerSpec, Pod, PodSpec, Probe},
    jiff::Timestamp,
};
use kube::Client;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::{sleep, sleep_until},
};

use super::{
    addresses::Pool,
    check::Check,
    launch::{Launch, Surroundings},
    machine::{
        Container, Facts, Life, PodMachine, ProbeKind, Refusal, Reporter, RestartPolicy, Schedule, Step,
    },
    report::{Said, report},
    sandbox::Sandbox,
};
use crate::{
    netns::{Netns, Process, RunDir},
    topology::Dual,
};

/// How soon to try again to make a pod's network.
const RETRY: Duration = Duration::from_secs(1);

/// What all pods of a kubelet share.
#[derive(Debug)]
pub(super) struct Kubelet {
    pub(super) cluster: String,
    pub(super) run: RunDir,
    pub(super) node: Netns,
    pub(super) node_ips: Vec<IpAddr>,
    /// What every container has in its environment.
    pub(super) env: Vec<(String, String)>,
    pub(super) addresses: Mutex<Pool>,
    pub(super) started: Instant,
    pub(super) epoch: Timestamp,
}

impl Kubelet {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn addresses(&self) -> std::sync::MutexGuard<'_, Pool> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pod as the API server last showed it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) pod: Arc<Pod>,
    /// It is not there any more: nobody waits for it to end.
    pub(super) removed: bool,
}

impl Seen {
    /// The grace that a deletion gives; none: it is not being deleted.
    fn deletion(&self) -> Option<Duration> {
        if self.removed {
            return Some(Duration::ZERO);
        }
        let meta = &self.pod.metadata;
        meta.deletion_timestamp.as_ref()?;
        let seconds = meta.deletion_grace_period_seconds.unwrap_or(30);
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }
}

/// Runs a pod until it is deleted.
pub(super) async fn run(kubelet: Arc<Kubelet>, client: Client, mut seen: watch::Receiver<Seen>) {
    let pod = seen.borrow().pod.clone();
    let (said, heard) = watch::channel(Said::default());
    let reporting = tokio::spawn(report(client, pod.clone(), heard));
    let ended = match phase(&pod) {
        // It ended before this kubelet started: it only waits to be deleted.
        "Succeeded" | "Failed" => wait_for_deletion(&mut seen).await,
        _ => live(&kubelet, &mut seen, &said).await,
    };
    if let Err(e) = ended {
        eprintln!("kanmon-kubelet: pod {}: {e:#}", name(&pod));
    }
    said.send_modify(|said| said.finished = true);
    // An error of the task is a panic, which has been printed.
    let _ = reporting.await;
}

async fn wait_for_deletion(seen: &mut watch::Receiver<Seen>) -> Result<()> {
    seen.wait_for(|seen| seen.deletion().is_some()).await.context("the kubelet ends")?;
    Ok(())
}

async fn live(
    kubelet: &Arc<Kubelet>,
    seen: &mut watch::Receiver<Seen>,
    said: &watch::Sender<Said>,
) -> Result<()> {
    let first = seen.borrow_and_update().clone();
    if first.deletion().is_some() {
        return Ok(());
    }
    let wanted = first.pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()?.parse().ok());
    let addresses = kubelet.addresses().take(wanted)?;
    let sandbox = make_sandbox(kubelet, seen, addresses).await;
    let result = match &sandbox {
        Some(sandbox) => Living::new(kubelet, sandbox.ns(), first.pod, addresses).run(seen, said).await,
        None => Ok(()),
    };
    if let Some(sandbox) = sandbox {
        spawn_blocking(|| sandbox.remove()).await?;
    }
    kubelet.addresses().give_back(addresses);
    result
}

/// Makes the pod's network, as often as it takes; none: the pod was deleted before it worked.
async fn make_sandbox(
    kubelet: &Arc<Kubelet>,
    seen: &mut watch::Receiver<Seen>,
    addresses: Dual,
) -> Option<Sandbox> {
    let name =
        namespace_name(&kubelet.cluster, seen.borrow().pod.metadata.uid.as_deref().unwrap_or_default());
    loop {
        let (own, name) = (kubelet.clone(), name.clone());
        let made = spawn_blocking(move || Sandbox::create(&own.run, &own.node, &name, addresses)).await;
        match made {
            Ok(Ok(sandbox)) => return Some(sandbox),
            Ok(Err(e)) => eprintln!("kanmon-kubelet: {e:#}; it is tried again"),
            Err(e) => eprintln!("kanmon-kubelet: {e}; it is tried again"),
        }
        tokio::select! {
            _ = seen.wait_for(|seen| seen.deletion().is_some()) => return None,
            () = sleep(RETRY) => {}
        }
    }
}

/// A pod that has a network.
struct Living<'a> {
    kubelet: &'a Kubelet,
    ns: &'a Netns,
    pod: Arc<Pod>,
    facts: Facts,
    machine: PodMachine,
    /// In the order of the manifest.
    bodies: Vec<Body>,
    checks: JoinSet<(usize, u32, ProbeKind, bool)>,
    reporter: Reporter,
}

/// What a container is made of.
struct Body {
    name: String,
    /// None: the machine has refused it.
    plan: Option<Arc<Plan>>,
    process: Option<Process>,
}

struct Plan {
    launch: Launch,
    startup: Option<(Check, Duration)>,
    liveness: Option<(Check, Duration)>,
    readiness: Option<(Check, Duration)>,
}

impl<'a> Living<'a> {
    fn new(kubelet: &'a Kubelet, ns: &'a Netns, pod: Arc<Pod>, addresses: Dual) -> Living<'a> {
        let now = kubelet.now();
        let around =
            Surroundings { pod: &pod, pod_ips: addresses, host_ips: &kubelet.node_ips, env: &kubelet.env };
        let (mut containers, mut bodies) = (Vec::new(), Vec::new());
        for (spec, life) in lives(&pod) {
            let mut container = Container::new(life, now, restarts_before(&pod, &spec.name));
            let plan = Plan::of(around, spec).map_err(|refusal| container.refuse(refusal)).ok();
            containers.push(container);
            bodies.push(Body { name: spec.name.clone(), plan: plan.map(Arc::new), process: None });
        }
        let facts = Facts {
            epoch: kubelet.epoch,
            host_ips: kubelet.node_ips.clone(),
            pod_ips: addresses.both().into(),
            seen: now,
        };
        let machine = PodMachine::new(containers);
        Living {
            kubelet,
            ns,
            pod,
            facts,
            machine,
            bodies,
            checks: JoinSet::new(),
            reporter: Reporter::default(),
        }
    }

    async fn run(mut self, seen: &mut watch::Receiver<Seen>, said: &watch::Sender<Said>) -> Result<()> {
        let mut children = signal(SignalKind::child()).context("cannot notice children that end")?;
        while !self.machine.is_gone() {
            while let Some((n, step)) = self.machine.poll(self.kubelet.now()) {
                self.step(n, step);
            }
            self.say(said);
            let timeout = self.machine.timeout().map(|at| self.kubelet.started + at);
            tokio::select! {
                changed = seen.changed() => {
                    changed.context("the kubelet ends")?;
                    self.see(&seen.borrow_and_update());
                }
                _ = children.recv() => self.reap(),
                Some(Ok((n, run, kind, ok))) = self.checks.join_next() => {
                    self.machine.containers[n].checked(self.kubelet.now(), run, kind, ok);
                }
                () = sleep_until(timeout.unwrap_or(self.kubelet.started).into()), if timeout.is_some() => {}
            }
        }
        self.say(said);
        Ok(())
    }

    fn see(&mut self, seen: &Seen) {
        self.pod = seen.pod.clone();
        if let Some(grace) = seen.deletion() {
            self.machine.delete(self.kubelet.now(), grace);
        }
    }

    fn say(&mut self, said: &watch::Sender<Said>) {
        let status = self.reporter.status(self.kubelet.now(), &self.facts, &self.pod, &self.machine);
        said.send_if_modified(|said| {
            let new = said.status.as_ref() != Some(&status);
            said.status = Some(status);
            new
        });
    }

    fn step(&mut self, n: usize, step: Step) {
        match step {
            Step::Start => self.start(n),
            Step::Terminate => self.signal(n, Signal::SIGTERM),
            Step::Kill => self.signal(n, Signal::SIGKILL),
            Step::Check(kind) => self.check(n, kind),
        }
    }

    fn start(&mut self, n: usize) {
        let body = &mut self.bodies[n];
        let Some(plan) = &body.plan else { return };
        let log = format!("pod-{}-{}-{}", self.kubelet.cluster, name(&self.pod).replace('/', "-"), body.name);
        let container = &mut self.machine.containers[n];
        match self.kubelet.run.spawn(&log, plan.launch.command(self.ns)) {
            Ok(process) => {
                body.process = Some(process);
                container.started(self.kubelet.now());
            }
            Err(e) => {
                eprintln!("kanmon-kubelet: container {} of {}: {e:#}", body.name, name(&self.pod));
                // What container runtimes answer where there is no such program.
                container.exited(self.kubelet.now(), 128);
            }
        }
    }

    /// Only the container's own process is asked to end; what it started is its business, until the end.
    fn signal(&self, n: usize, signal: Signal) {
        if let Some(process) = &self.bodies[n].process {
            // It may have ended in this moment, which reaping tells.
            let _ = process.signal(signal);
        }
    }

    fn check(&mut self, n: usize, kind: ProbeKind) {
        let Some(plan) = self.bodies[n].plan.clone() else { return };
        let (run, ns) = (self.machine.containers[n].run(), self.ns.clone());
        self.checks.spawn(async move {
            let ok = match plan.probe(kind) {
                Some((check, limit)) => check.passes(*limit, &plan.launch, &ns).await,
                None => false,
            };
            (n, run, kind, ok)
        });
    }

    fn reap(&mut self) {
        for (body, container) in self.bodies.iter_mut().zip(&mut self.machine.containers) {
            let Some(process) = &mut body.process else { continue };
            if let Ok(Some(status)) = process.try_wait() {
                end_group(process.pid());
                body.process = None;
                container.exited(self.kubelet.now(), exit_code(status));
            }
        }
    }
}

impl Plan {
    fn of(around: Surroundings<'_>, container: &ContainerSpec) -> Result<Plan, Refusal> {
        let check = |probe: &Option<Probe>| -> Result<Option<(Check, Duration)>, Refusal> {
            let Some(probe) = probe else { return Ok(None) };
            let check = Check::of(probe, container, around.pod_ips.v4.into())?;
            Ok(Some((check, Schedule::of(probe).timeout)))
        };
        Ok(Plan {
            launch: Launch::of(around, container)?,
            startup: check(&container.startup_probe)?,
            liveness: check(&container.liveness_probe)?,
            readiness: check(&container.readiness_probe)?,
        })
    }

    fn probe(&self, kind: ProbeKind) -> Option<&(Check, Duration)> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
        }
    }
}

/// The name, within its run, of the namespace of the pod with that uid.
pub(super) fn namespace_name(cluster: &str, uid: &str) -> String {
    format!("{cluster}.{uid}")
}

/// The containers of a pod and what their lives depend on.
fn lives(pod: &Pod) -> impl Iterator<Item = (&ContainerSpec, Life)> {
    let life = |spec: &PodSpec, container: &ContainerSpec| Life {
        policy: match spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        },
        grace: Duration::from_secs(
            spec.termination_grace_period_seconds.and_then(|seconds| seconds.try_into().ok()).unwrap_or(30),
        ),
        startup: container.startup_probe.as_ref().map(Schedule::of),
        liveness: container.liveness_probe.as_ref().map(Schedule::of),
        readiness: container.readiness_probe.as_ref().map(Schedule::of),
    };
    pod.spec
        .iter()
        .flat_map(move |spec| spec.containers.iter().map(move |container| (container, life(spec, container))))
}

/// How often a container was started again so far: once more where a former kubelet ran it.
fn restarts_before(pod: &Pod, container: &str) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let known = statuses.into_iter().find(|status| status.name == container);
    known.map_or(0, |status| {
        let ran = status.state.as_ref().is_some_and(|state| state.running.is_some());
        status.restart_count + i32::from(ran)
    })
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// "namespace/name".
fn name(pod: &Pod) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name))
}

/// Kills what a container's process left behind in its process group.
fn end_group(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        // Most often nothing is left.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255)
}
