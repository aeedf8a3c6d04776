//! The loop: one task that owns the model of the maps and reacts to whatever changes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lb_common::abi::member_flags;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;

use super::clock;
use super::drains::{self, Drains};
use super::events::{Tripped, TurnedAway};
use super::first_plan::FirstPlan;
use super::flow_log::Naming;
use super::log;
use super::policies;
use super::pressure::Pressure;
use super::problems;
use super::programmed::{blocked, programmed};
use super::published::{Gone, Published, shown_clusters};
use super::queue::{Next, StepQueue};
use super::signals::{Ending, Signals};
use super::steering::Steering;
use super::sweep::{Orders, Pass};
use super::target::target;
use crate::bpf::{self, Kernel};
use crate::cluster::{self, LastGood, Programmed};
use crate::config::{Echo, XdpMode};
use crate::desired::{self, BackendId, Desired, Endpoint, Place, ServiceId};
use crate::health::probe::Targets;
use crate::health::{Decision, Observation, ProbeTarget, Sign, Usability, Verdict, Verdicts, probe_targets};
use crate::network::{LocalAddresses, NetworkWatcher, NextHopError, NextHops};
use crate::plan::{FlowUsage, Limits, Model, Step, Target, plan};
use crate::status::health::Pulse;
use crate::status::view;

/// How long a change waits for more of its kind.
const DEBOUNCE: Duration = Duration::from_millis(3);
/// A grace period: far longer than any packet is in the program.
const GRACE: Duration = Duration::from_millis(100);
/// After a write that failed, the maps are read anew no sooner than this.
const RETRY: Duration = Duration::from_secs(1);

/// Such a member gets no new flows.
const CLOSED: u8 = member_flags::DRAINING | member_flags::REMOVED;

/// What the loop works with.
pub(super) struct Core {
    pub(super) kernel: Kernel,
    pub(super) network: NetworkWatcher,
    pub(super) inputs: Inputs,
    pub(super) outputs: Outputs,
    pub(super) interfaces: Interfaces,
    pub(super) snat_addresses: BTreeSet<IpAddr>,
    pub(super) echo: Echo,
    /// Where the gateway is, as its settings say; the labels of its Node go first.
    pub(super) place: Place,
    pub(super) limits: Limits,
    pub(super) allocations: desired::Allocations,
    /// For whoever wants to know that the loop turns.
    pub(super) pulse: Arc<Pulse>,
}

/// Where to attach, and how.
pub(super) struct Interfaces {
    pub(super) names: Vec<String>,
    pub(super) indices: BTreeSet<u32>,
    pub(super) mode: XdpMode,
}

/// What the loop listens to.
pub(super) struct Inputs {
    pub(super) clusters: watch::Receiver<Arc<cluster::Snapshot>>,
    pub(super) verdicts: watch::Receiver<Arc<Verdicts>>,
    pub(super) next_hops: watch::Receiver<Arc<NextHops>>,
    pub(super) addresses: watch::Receiver<Arc<LocalAddresses>>,
    pub(super) passes: watch::Receiver<Arc<Pass>>,
    /// What the packet program tripped.
    pub(super) trips: mpsc::Receiver<Tripped>,
    /// Whose new flows find no room.
    pub(super) turned_away: mpsc::Receiver<TurnedAway>,
    /// What is drained by hand.
    pub(super) drains: watch::Receiver<Arc<Drains>>,
}

/// What the loop tells the tasks beside it.
pub(super) struct Outputs {
    pub(super) targets: watch::Sender<Targets>,
    pub(super) orders: watch::Sender<Orders>,
    /// What packets go by of that which is drained by hand.
    pub(super) drained: watch::Sender<Arc<Drains>>,
    pub(super) published: watch::Sender<Arc<Published>>,
    pub(super) last_good: watch::Sender<Option<Arc<LastGood>>>,
    /// What became of the clusters' objects, for whoever reports it to the clusters.
    pub(super) desired: watch::Sender<Arc<Desired>>,
    /// What became of the VIPs in the packet program, for the same.
    pub(super) programmed: watch::Sender<Arc<Programmed>>,
    /// What members are called, before flows can refer to them.
    pub(super) naming: watch::Sender<Arc<Naming>>,
}

/// The loop's own state.
struct State {
    core: Core,
    model: Model,
    queue: StepQueue,
    /// End of the grace period that the queue waits for.
    grace: Option<Instant>,
    /// End of the grace period after the last write to a VIP.
    settling: Option<Instant>,
    unwanted: HashSet<u32>,
    clusters: Arc<cluster::Snapshot>,
    desired: Arc<Desired>,
    /// What is drained by hand in it.
    drains: Arc<Drains>,
    /// The first plan that was made with them, until it has been applied.
    drains_planned: Option<u64>,
    steering: Steering,
    usability: Arc<Usability>,
    verdicts: Arc<Verdicts>,
    next_hops: Arc<NextHops>,
    probed: Targets,
    /// Endpoints that are gone while their members live, and all that are there: those may go next.
    remembered: HashMap<(ServiceId, BackendId), Gone>,
    attach: Vec<view::Attachment>,
    problems: Vec<view::Problem>,
    /// What new flows lack.
    pressure: Pressure,
    first_plan: FirstPlan,
    /// Whether the first plan's steps have all been applied.
    programmed: bool,
    /// When to plan next.
    plan_at: Option<Instant>,
    /// When to plan again at the latest: a drain time ends.
    deadline: Option<Instant>,
}

/// Runs until a signal comes, or until adopted maps can't be read or the program can't be attached. Gives the
/// kernel side and the network back.
pub(super) async fn run(core: Core, signals: &mut Signals) -> (Core, Result<Ending>) {
    let mut state = State::new(core);
    let result = state.live(signals).await;
    (state.core, result)
}

impl State {
    fn new(core: Core) -> Self {
        let clusters = core.inputs.clusters.borrow().clone();
        Self {
            model: Model::new(core.limits),
            clusters,
            core,
            queue: StepQueue::default(),
            grace: None,
            settling: None,
            unwanted: HashSet::new(),
            desired: Arc::default(),
            drains: Arc::default(),
            drains_planned: None,
            steering: Steering::default(),
            usability: Arc::default(),
            verdicts: Arc::default(),
            next_hops: Arc::default(),
            probed: Arc::default(),
            remembered: HashMap::new(),
            attach: Vec::new(),
            problems: Vec::new(),
            pressure: Pressure::default(),
            first_plan: FirstPlan::begin(false, false, Instant::now()),
            programmed: false,
            plan_at: Some(Instant::now()),
            deadline: None,
        }
    }

    /// Rebuilds the model from the maps.
    fn adopt(&mut self) -> Result<()> {
        let snapshot = self.core.kernel.snapshot()?;
        let repairs = self.model.adopt_anew(&snapshot);
        if !repairs.steps.is_empty() {
            tracing::info!("repairing {} entries that an agent left half done", repairs.steps.len());
        }
        self.queue.clear();
        self.drains_planned = None;
        self.grace = None;
        let at_once = self.queue.push(repairs.number, repairs.steps);
        self.apply_all(&at_once)
    }

    fn attach(&mut self) -> Result<()> {
        let mode = match self.core.interfaces.mode {
            XdpMode::Native => bpf::XdpMode::Native,
            XdpMode::Generic => bpf::XdpMode::Generic,
        };
        for attachment in self.core.kernel.attach(&self.core.interfaces.names, mode)? {
            log::attached(&attachment);
            let mode = match attachment.mode {
                bpf::AttachedMode::Native => "native",
                bpf::AttachedMode::Generic => "generic",
            };
            self.attach.push(view::Attachment { interface: attachment.interface, mode: mode.to_owned() });
        }
        Ok(())
    }

    async fn live(&mut self, signals: &mut Signals) -> Result<Ending> {
        if self.core.kernel.adopted() {
            // The maps hold the last state: the new program may take over at once.
            self.adopt()?;
            self.attach()?;
        }
        let serving = self.model.services().next().is_some();
        self.first_plan = FirstPlan::begin(serving, self.clusters.complete, Instant::now());
        self.merge();
        loop {
            self.core.pulse.beat();
            self.advance()?;
            let inputs = &mut self.core.inputs;
            tokio::select! {
                ending = signals.ending() => return Ok(ending),
                snapshot = changed(&mut inputs.clusters) => {
                    self.clusters = snapshot;
                    self.merge();
                }
                _ = changed(&mut inputs.addresses) => self.merge(),
                _ = changed(&mut inputs.drains) => self.merge(),
                verdicts = changed(&mut inputs.verdicts) => {
                    log::verdicts(&self.verdicts, &verdicts, &self.desired);
                    let agree = self.verdicts.agree_with(&verdicts);
                    self.verdicts = verdicts;
                    if self.steer() || !agree {
                        self.wake();
                    }
                }
                next_hops = changed(&mut inputs.next_hops) => {
                    self.next_hops = next_hops;
                    self.wake();
                }
                _ = changed(&mut inputs.passes) => self.wake(),
                Some(tripped) = inputs.trips.recv() => self.learn(tripped),
                // Told with the sweep's next pass.
                Some(TurnedAway { service, reason }) = inputs.turned_away.recv() => {
                    if let Some(id) = self.model.service_at(service) {
                        self.pressure.turned_away(reason, id, Instant::now());
                    }
                }
                () = until(self.steering.poll_timeout()) => {
                    self.steer();
                    self.wake();
                }
                () = until(self.grace) => self.grace = None,
                () = until(self.settling) => self.settling = None,
                () = until(self.plan_at) => self.plan()?,
                () = until(self.deadline) => self.plan()?,
                () = until(self.first_plan.latest()) => self.plan()?,
            }
        }
    }

    fn wake(&mut self) {
        self.plan_at.get_or_insert_with(|| Instant::now() + DEBOUNCE);
    }

    /// Takes in that the packet program tripped backends: this one, and whatever else it has told meanwhile.
    fn learn(&mut self, first: Tripped) {
        // What was tripped under an agent before is judged anew by the next failure.
        if self.first_plan != FirstPlan::Made {
            return;
        }
        let now = Instant::now();
        let mut next = Some(first);
        while let Some(tripped) = next {
            if let Some(observation) = self.observation(&tripped) {
                self.steering.observe(now, &observation);
            }
            next = self.core.inputs.trips.try_recv().ok();
        }
        if self.steer() {
            self.wake();
        }
    }

    /// What a trip says; `None` where it is over. The ring buffer keeps what nobody read while no agent ran.
    fn observation(&self, tripped: &Tripped) -> Option<Observation> {
        let member = self.model.members().find(|member| member.index == tripped.member)?;
        let trip = self.core.kernel.memory().trip(member.backend_index)?;
        let sign = Sign::Tripped { errors: tripped.errors };
        let observation = Observation { backend: member.backend, service: member.service, sign };
        (trip.until > clock::nanoseconds()).then_some(observation)
    }

    /// Decides what to eject and which clusters have failed; whether new flows may have to go elsewhere now.
    fn steer(&mut self) -> bool {
        let news = self.steering.advance(Instant::now(), &self.desired, &self.verdicts);
        for decision in &news.decisions {
            if let Decision::Reset { backend } = decision {
                self.forgive(*backend);
            }
        }
        log::steering(&news);
        news.concerns_flows()
    }

    /// Ends what the packet program holds against a backend.
    fn forgive(&self, backend: BackendId) {
        if let Some(member) = self.model.members().find(|member| member.backend == backend) {
            self.core.kernel.memory().clear_trip(member.backend_index);
        }
    }

    /// From what the clusters say to desired state.
    fn merge(&mut self) {
        self.first_plan.told(self.clusters.complete, Instant::now());
        let held = self.first_plan == FirstPlan::Held;
        let addresses = self.core.inputs.addresses.borrow().iter().map(|local| local.address).collect();
        let clusters = self.clusters.clone();
        let place = clusters.place.or(&self.core.place);
        let mut desired =
            desired::merge(&clusters.clusters, &clusters.gateway, &addresses, &place, &self.core.allocations);
        desired.complete = clusters.complete;
        let drains = self.core.inputs.drains.borrow().clone();
        if !Arc::ptr_eq(&drains, &self.drains) {
            self.drains = drains;
            self.drains_planned = None;
        }
        self.drains.apply(&mut desired);
        // What is half known must not give VIPs away, nor be what the next start begins with.
        if !held {
            self.core.allocations.clone_from(&desired.allocations);
        }
        log::services(&self.desired, &desired);
        self.desired = Arc::new(desired);
        self.steering.set_services(Instant::now(), &self.desired);
        self.steer();
        self.core.outputs.desired.send_replace(self.desired.clone());
        for service in self.desired.services.values() {
            for endpoint in &service.endpoints {
                let gone = Gone {
                    service: format!("{}/{}", service.namespace, service.name),
                    endpoint: endpoint.clone(),
                };
                self.remembered.insert((service.id, endpoint.backend), gone);
            }
        }
        self.probed = Arc::new(probe_targets(self.desired.services.values()));
        self.core.outputs.targets.send_replace(self.probed.clone());
        self.resolve();
        if held {
            self.publish_held();
            return;
        }
        self.core.outputs.last_good.send_replace(Some(Arc::new(LastGood {
            gateway: clusters.gateway.clone(),
            clusters: clusters.clusters.clone(),
            allocations: self.core.allocations.clone(),
        })));
        self.wake();
    }

    /// Says why nothing is planned yet.
    fn publish_held(&mut self) {
        let problems = vec![problems::held(self.model.services().count())];
        problems::log_changes(&self.problems, &problems);
        self.problems = problems;
        self.publish();
    }

    /// Asks for the next hops of all that has or gets flows, and for the node's own way to the VIPs.
    fn resolve(&self) {
        self.core.network.set_vips(self.desired.services.keys().map(|id| id.vip).collect());
        let wanted = self.desired.services.values().flat_map(|service| &service.endpoints);
        let mut addresses: BTreeSet<IpAddr> = wanted.map(|endpoint| endpoint.backend.address).collect();
        addresses.extend(self.model.backend_addresses());
        self.core.network.set_addresses(addresses);
    }

    /// Plans anew and applies what may not wait.
    fn plan(&mut self) -> Result<()> {
        self.plan_at = None;
        self.deadline = self.deadline.filter(|deadline| *deadline > Instant::now());
        let now = Instant::now();
        if !self.first_plan.allows(now, || self.knows_enough()) {
            return Ok(());
        }
        self.first_plan = FirstPlan::Made;
        let next_hops = self.next_hops.clone();
        self.usability = Arc::new(self.steering.usability(&self.desired, &self.verdicts, &next_hops));
        log::moves(&self.steering.share(now, &self.desired, &self.usability));
        let target = self.target();
        let usage = self.usage();
        let plan = plan(&mut self.model, &target, &usage, now);
        self.deadline = [plan.next, self.steering.next_share()].into_iter().flatten().min();
        if !Arc::ptr_eq(&self.core.outputs.drained.borrow(), &self.drains) {
            self.drains_planned.get_or_insert(plan.number);
        }
        if !plan.steps.is_empty() {
            tracing::debug!("plan {}: {} steps", plan.number, plan.steps.len());
        }
        self.name_members();
        let at_once = self.queue.push(plan.number, plan.steps);
        let found = plan.problems.iter().filter_map(|problem| problems::from_plan(problem, &self.next_hops));
        let mut problems: Vec<view::Problem> =
            self.desired.problems.iter().map(problems::from_desired).chain(found).collect();
        problems.extend(self.degraded());
        problems.extend(self.short(now));
        let vips = self.desired.services.keys().map(|id| &id.vip);
        problems.extend(problems::without_snat(vips, &self.core.snat_addresses));
        problems::log_changes(&self.problems, &problems);
        self.problems = problems;
        self.resolve();
        self.apply_all(&at_once)?;
        self.publish();
        Ok(())
    }

    /// Tells the flow log who the members are that the plan knows.
    fn name_members(&self) {
        let naming = Naming { desired: self.desired.clone(), members: self.model.members().collect() };
        self.core.outputs.naming.send_if_modified(|told| {
            let differs = !Arc::ptr_eq(&told.desired, &naming.desired) || told.members != naming.members;
            if differs || told.members.is_empty() {
                *told = Arc::new(naming);
            }
            differs
        });
    }

    /// Whether the first plan may be made: each route has been looked up, each neighbour has answered, and
    /// each probe has had its first result.
    fn knows_enough(&self) -> bool {
        let wanted = self.desired.services.values().flat_map(|service| &service.endpoints);
        let resolved = wanted.map(|endpoint| endpoint.backend.address).all(|address| {
            !matches!(self.next_hops.get(&address), None | Some(Err(NextHopError::Unresolved { .. })))
        });
        let known = |target: &ProbeTarget| *self.verdicts.of(target) != Verdict::Unknown;
        resolved && self.probed.iter().all(known)
    }

    fn target(&self) -> Target {
        target(
            &self.desired,
            &self.usability,
            &self.steering.shares(),
            &self.next_hops,
            &self.core.inputs.addresses.borrow(),
            &self.core.snat_addresses,
            &self.core.interfaces.indices,
            self.core.echo,
        )
    }

    fn usage(&self) -> FlowUsage {
        self.core.inputs.passes.borrow().usage.clone()
    }

    /// What new flows lack, by what the packet program and the sweep say now.
    fn short(&mut self, now: Instant) -> Vec<view::Problem> {
        let (counters, capacity) = (self.core.kernel.memory().counters(), self.core.kernel.sizes().flows);
        self.pressure.look(counters, &self.core.inputs.passes.borrow(), u64::from(capacity), now);
        self.pressure.problems(now)
    }

    fn degraded(&self) -> Vec<view::Problem> {
        let shares = self.steering.shares();
        let of_shares = |id: &ServiceId| shares.get(id).and_then(|shares| shares.degraded.clone());
        let of_health = self.usability.services.iter().filter_map(|(id, health)| {
            let message = health.degraded.clone().or_else(|| of_shares(id))?;
            Some(problems::degraded(*id, message))
        });
        let clusters = shown_clusters(&self.clusters);
        let cause = |endpoint: &Endpoint| {
            let state = clusters.get(&endpoint.cluster).map(|cluster| cluster.state).unwrap_or_default();
            drains::cause(&self.drains, state, endpoint)
        };
        let services = self.desired.services.values();
        let drained = services
            .filter_map(|service| Some(problems::degraded(service.id, drains::refusal(service, cause)?)));
        of_health.chain(drained).collect()
    }

    /// Applies what waits, up to the next grace period, and does what was waiting for the end of it.
    fn advance(&mut self) -> Result<()> {
        while self.grace.is_none() {
            match self.queue.next(self.settling.is_none()) {
                Next::Apply(step) => self.apply_all(&[step])?,
                Next::Wait => self.grace = Some(Instant::now() + GRACE),
                Next::Settle | Next::Idle => break,
            }
        }
        self.give_orders();
        if self.drains_planned.is_some_and(|plan| plan <= self.queue.applied()) {
            self.drains_planned = None;
            self.core.outputs.drained.send_replace(self.drains.clone());
        }
        if self.queue.is_idle()
            && self.grace.is_none()
            && self.first_plan == FirstPlan::Made
            && !self.programmed
        {
            if self.attach.is_empty() {
                self.attach()?;
            }
            self.programmed = true;
            tracing::info!("ready: {} services are programmed", self.desired.services.len());
            self.publish();
        }
        Ok(())
    }

    /// Applies steps. Where the kernel refuses one, the model is rebuilt from the maps and planned from anew.
    fn apply_all(&mut self, steps: &[Step]) -> Result<()> {
        for step in steps {
            match self.core.kernel.apply(step) {
                Ok(bpf::Applied::EvictFlows { member }) => {
                    self.unwanted.insert(member);
                }
                Ok(bpf::Applied::Done | bpf::Applied::GracePeriod) => {}
                Err(error) => {
                    tracing::error!("a map write failed: {error}; reading the maps anew");
                    self.plan_at = Some(Instant::now() + RETRY);
                    return self.adopt().context("the maps can't be read either");
                }
            }
            if step.writes_vip() {
                self.settling = Some(Instant::now() + GRACE);
            }
            match step {
                Step::WriteMember { index, .. } => {
                    self.unwanted.remove(index);
                }
                Step::SetMemberFlags { index, flags } if flags & CLOSED == 0 => {
                    self.unwanted.remove(index);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn give_orders(&self) {
        let applied = self.queue.applied();
        self.core.outputs.orders.send_if_modified(|orders| {
            let differs = orders.applied != applied || *orders.unwanted != self.unwanted;
            if differs {
                *orders = Orders { applied, unwanted: Arc::new(self.unwanted.clone()) };
            }
            differs
        });
    }

    /// Tells the source which VIPs are forwarded, once the program is attached and the maps have been written.
    fn tell_programmed(&self) {
        if !self.programmed {
            return;
        }
        let services = self.model.services().map(|service| service.id).collect();
        let mut told = programmed(&self.desired, &services, &self.problems, &self.core.snat_addresses);
        let (shares, now) = (self.steering.shares(), Instant::now());
        let short = |id| self.pressure.of(id, now);
        told.policies = policies::reports(&self.desired, &self.usability, &shares, &short);
        told.blocked = blocked(&self.desired, &self.verdicts, &self.next_hops);
        self.core.outputs.programmed.send_if_modified(|present| {
            let differs = **present != told;
            if differs {
                *present = Arc::new(told);
            }
            differs
        });
    }

    /// Shows the commands what is so now.
    fn publish(&mut self) {
        self.tell_programmed();
        let members: HashMap<_, _> =
            self.model.members().map(|member| ((member.service, member.backend), member)).collect();
        let listed: HashSet<(ServiceId, BackendId)> = self
            .desired
            .services
            .values()
            .flat_map(|service| service.endpoints.iter().map(|endpoint| (service.id, endpoint.backend)))
            .collect();
        self.remembered.retain(|key, _| listed.contains(key) || members.contains_key(key));
        let gone = self.remembered.iter().filter(|(key, _)| !listed.contains(*key));
        let sources = self.clusters.problems.iter().map(problems::from_desired);
        self.core.outputs.published.send_replace(Arc::new(Published {
            ready: self.programmed,
            attach: self.attach.clone(),
            clusters: shown_clusters(&self.clusters),
            place: self.clusters.place.clone(),
            desired: self.desired.clone(),
            drains: self.drains.clone(),
            usability: self.usability.clone(),
            verdicts: self.verdicts.clone(),
            next_hops: self.next_hops.clone(),
            services: self.model.services().collect(),
            gone: gone.map(|(key, gone)| (*key, gone.clone())).collect(),
            members,
            problems: sources.chain(self.problems.iter().cloned()).collect(),
        }));
    }
}

/// The next value of a channel. One whose sender is gone says nothing any more: whoever it was has logged why,
/// and its last word stays.
async fn changed<T: Clone>(channel: &mut watch::Receiver<T>) -> T {
    if channel.changed().await.is_err() {
        return pending().await;
    }
    channel.borrow_and_update().clone()
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => pending().await,
    }
}
