//! What is measured at one size.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams},
};
use serde_json::json;

use super::{
    agent::{self, Started},
    kernel::Rings,
    load::{self, BIG, MEMBERS, Pods, Size, Slice},
    report::{Figures, Quantiles, Storm},
    writer::Writer,
};
use crate::{
    bench::{figures::Range, progress::Progress},
    stage::{Gateway, KubeStage},
};

/// How long one change may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the agent is left alone before it is called at rest.
const SETTLE: Duration = Duration::from_secs(20);
/// And for how long its processor time is measured then.
const REST: Duration = Duration::from_secs(30);
/// A ring that is the same for so long is the last one.
const QUIET: Duration = Duration::from_secs(10);
/// Single changes are so far apart that none waits for what the last one left to be done.
const APART: Duration = Duration::from_millis(250);
/// Changes a second, when there are many.
const STORM: u32 = 100;

/// How much is measured.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) sizes: &'static [Size],
    pub(super) changes: u32,
    pub(super) losses: u32,
    pub(super) storm: Duration,
    pub(super) big: u32,
    pub(super) big_changes: u32,
}

/// One size, loaded already.
pub(super) struct Bench<'a> {
    pub(super) stage: &'a KubeStage,
    pub(super) gateway: &'a Gateway,
    pub(super) plan: Plan,
    pub(super) size: Size,
    pub(super) largest: Size,
    pub(super) progress: &'a Progress,
}

/// An idle agent's own memory, in bytes: nothing to serve, and the tables of the largest size.
pub(super) fn idle_memory(stage: &KubeStage, gateway: &Gateway, largest: Size) -> Result<u64> {
    let mut started = agent::start(stage, gateway, largest, "kanmon-idle")?;
    thread::sleep(SETTLE);
    let bytes = agent::anonymous_memory(&mut started.agent)?;
    agent::end(stage, started)?;
    Ok(bytes)
}

impl Bench<'_> {
    /// Measures all of it; `idle` is an idle agent's memory.
    pub(super) fn measure(&self, idle: u64) -> Result<Figures> {
        self.begin("an agent starts");
        let name = format!("kanmon-{}", self.size.services);
        let mut started = agent::start(self.stage, self.gateway, self.largest, &name)?;
        let start_seconds = started.took.as_secs_f64();
        self.done(&format!("from the agent's start to the last write: {start_seconds:.2} s"));
        let rings = Rings::open(self.gateway.pins())?;
        anyhow::ensure!(
            rings.len() == self.size.services as usize,
            "{} of {} Services are in the maps",
            rings.len(),
            self.size.services
        );
        let (memory, rest) = self.at_rest(&mut started, idle)?;
        let changes = self.changes(&rings)?;
        let loss = self.losses(&rings)?;
        let storm = self.storm(&rings)?;
        let (big_load, big_changes) = self.big()?;
        agent::end(self.stage, started)?;
        Ok(Figures {
            services: self.size.services,
            endpoints: self.size.endpoints,
            start_seconds,
            idle_bytes: idle,
            bytes_above_idle: memory,
            cpu_at_rest_percent: rest,
            change_ms: Quantiles::of(&changes.0),
            change_from_write_ms: Quantiles::of(&changes.1),
            loss_ms: Range::of(&loss),
            storm,
            big_endpoints: self.plan.big,
            big_load_seconds: big_load,
            big_change_ms: Quantiles::of(&big_changes),
        })
    }

    fn begin(&self, what: &str) {
        self.progress.begin(&format!("{} services of {}: {what}", self.size.services, self.size.endpoints));
    }

    fn done(&self, line: &str) {
        self.progress.done(&format!("{} services of {}: {line}", self.size.services, self.size.endpoints));
    }

    fn at_rest(&self, started: &mut Started, idle: u64) -> Result<(i64, f64)> {
        self.begin("the agent at rest");
        thread::sleep(SETTLE);
        let (begun, before) = (Instant::now(), agent::processor_time(&mut started.agent)?);
        thread::sleep(REST);
        let spent = agent::processor_time(&mut started.agent)? - before;
        let percent = 100.0 * spent.as_secs_f64() / begun.elapsed().as_secs_f64();
        let memory = agent::anonymous_memory(&mut started.agent)?.cast_signed() - idle.cast_signed();
        self.done(&format!(
            "{:.1} MB above an idle agent's, {percent:.2}% of a CPU at rest",
            memory as f64 / 1e6
        ));
        Ok((memory, percent))
    }

    fn writer(&self, member: &str) -> Result<Writer> {
        Writer::start(self.gateway.ns(), self.stage.kube(member)?.kubeconfig().to_owned())
    }

    /// Endpoints go and come back, one after the other; ms from the event, and from the request that led to it.
    fn changes(&self, rings: &Rings) -> Result<(Vec<f64>, Vec<f64>)> {
        self.begin("single changes");
        let writers = MEMBERS.iter().map(|member| self.writer(member)).collect::<Result<Vec<_>>>()?;
        let pods = (0..MEMBERS.len())
            .map(|member| Pods::of(self.stage, member, self.size))
            .collect::<Result<Vec<_>>>()?;
        let (mut from_event, mut from_write) = (Vec::new(), Vec::new());
        for change in 0..self.plan.changes {
            thread::sleep(APART);
            // Each pair of changes concerns another Service, and each member in turn.
            let pair = change / 2;
            let member = pair as usize % MEMBERS.len();
            let slice = pods[member].slice(pair * 37 % self.size.services);
            let (event, write) = one(rings, &writers[member], &slice, change % 2 == 1)?;
            from_event.push(event);
            from_write.push(write);
        }
        let told = Quantiles::of(&from_event);
        self.done(&format!("a change, from its event: {told}"));
        Ok((from_event, from_write))
    }

    /// A member is disabled and enabled: ms until the last ring is another one.
    fn losses(&self, rings: &Rings) -> Result<Vec<f64>> {
        self.begin("the loss of a cluster");
        let mut samples = Vec::new();
        for round in 0..self.plan.losses {
            let member = MEMBERS[round as usize % MEMBERS.len()];
            for state in ["Disabled", "Active"] {
                let before =
                    (0..self.size.services).map(|n| Ok((n, rings.of(n)?))).collect::<Result<Vec<_>>>()?;
                let told = thread::scope(|scope| -> Result<_> {
                    let teller = scope.spawn(|| self.set_state(member, state));
                    let last = rings.wait_for_changes(&before, PATIENCE);
                    let told = teller.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                    Ok(last?.saturating_duration_since(told))
                })
                .with_context(|| format!("{member} is {state}"))?;
                if state == "Disabled" {
                    samples.push(told.as_secs_f64() * 1e3);
                }
                thread::sleep(QUIET);
            }
        }
        self.done(&format!("the loss of a cluster: {} ms until the last ring", Range::of(&samples)));
        Ok(samples)
    }

    /// Says what a member's endpoints are used for; when the request for it was sent.
    fn set_state(&self, member: &str, state: &str) -> Result<Instant> {
        let kind = GroupVersionKind::gvk("kanmon.dev", "v1alpha1", "MemberCluster");
        let resource = ApiResource::from_gvk(&kind);
        let state = json!({"spec": {"state": state}});
        self.stage.kube("gateway")?.in_namespace(async |client| {
            let members = Api::<DynamicObject>::all_with(client, &resource);
            let begun = Instant::now();
            members.patch(member, &PatchParams::default(), &Patch::Merge(state)).await?;
            Ok(begun)
        })
    }

    /// So many changes a second, each in another Service than those before.
    fn storm(&self, rings: &Rings) -> Result<Storm> {
        self.begin(&format!("{STORM} changes a second"));
        let writer = self.writer(MEMBERS[0])?;
        let pods = Pods::of(self.stage, 0, self.size)?;
        let slices: Vec<Slice> = (0..self.size.services).map(|n| pods.slice(n)).collect();
        let (mut ready, total) = (vec![true; slices.len()], self.plan.storm.as_secs() as u32 * STORM);
        // By Service: what ring it had when its slice was written.
        let mut waiting: BTreeMap<u32, u64> = BTreeMap::new();
        let (mut written, mut events, mut lags) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let begun = Instant::now();
        let (mut sent, mut coalesced) = (0, 0);
        while sent < total || !waiting.is_empty() {
            if sent < total && begun.elapsed() >= Duration::from_secs(1) * sent / STORM {
                let n = sent % self.size.services;
                match waiting.entry(n) {
                    // Its last change is not in the maps yet: both will be at once.
                    Entry::Occupied(_) => coalesced += 1,
                    Entry::Vacant(vacant) => {
                        vacant.insert(rings.of(n)?);
                        // Where the maps were faster than our own watch: that of the change before.
                        events.remove(&slices[n as usize].name);
                    }
                }
                ready[n as usize] = !ready[n as usize];
                writer.set(&slices[n as usize], ready[n as usize])?;
                sent += 1;
            }
            for (name, at) in writer.events() {
                events.entry(name).or_insert(at);
            }
            for (n, before) in &waiting {
                if rings.of(*n)? != *before {
                    written.insert(*n, Instant::now());
                }
            }
            for (n, at) in std::mem::take(&mut written) {
                waiting.remove(&n);
                // None where the maps were faster than our own watch.
                let event = events.remove(&slices[n as usize].name).unwrap_or(at);
                lags.push(at.saturating_duration_since(event).as_secs_f64() * 1e3);
            }
            anyhow::ensure!(
                begun.elapsed() < self.plan.storm + PATIENCE,
                "{} changes got lost",
                waiting.len()
            );
            thread::sleep(Duration::from_micros(200));
        }
        let half = lags.len() / 2;
        let storm = Storm {
            changes: total,
            seconds: begun.elapsed().as_secs_f64(),
            coalesced,
            lag_ms: Quantiles::of(&lags),
            first_half_ms: Quantiles::of(&lags[..half]),
            second_half_ms: Quantiles::of(&lags[half..]),
        };
        // All as before, for whatever is measured next.
        for (slice, ready) in slices.iter().zip(ready) {
            if !ready {
                let before = rings.of(slice.service)?;
                writer.set(slice, true)?;
                rings.wait_for_change(slice.service, before, PATIENCE)?;
            }
        }
        self.done(&format!("{STORM} changes a second: {}", storm.lag_ms));
        Ok(storm)
    }

    /// One Service with many endpoints: s until all are in its ring, and ms of a change.
    fn big(&self) -> Result<(f64, Vec<f64>)> {
        self.begin(&format!("a service of {} endpoints", self.plan.big));
        load::create_big(self.stage)?;
        // A Service without endpoints is in the maps.
        let rings = self.rings_with_big()?;
        let (before, begun) = (rings.of(BIG)?, Instant::now());
        let slices = load::fill_big(self.stage, self.size, self.plan.big)?;
        let loaded = rings.wait_until_settled(BIG, before, QUIET)?.saturating_duration_since(begun);
        let writer = self.writer(load::big_member())?;
        let mut samples = Vec::new();
        for change in 0..self.plan.big_changes {
            let slice = &slices[(change / 2) as usize % slices.len()];
            samples.push(one(&rings, &writer, slice, change % 2 == 1)?.0);
        }
        self.done(&format!(
            "{} endpoints in one service: all after {:.2} s, a change {}",
            self.plan.big,
            loaded.as_secs_f64(),
            Quantiles::of(&samples)
        ));
        load::remove_big(self.stage)?;
        Ok((loaded.as_secs_f64(), samples))
    }

    fn rings_with_big(&self) -> Result<Rings> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rings = Rings::open(self.gateway.pins())?;
            if rings.of(BIG).is_ok() {
                return Ok(rings);
            }
            anyhow::ensure!(Instant::now() < deadline, "the agent does not serve {}", load::name(BIG));
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// One change; ms from its event to another ring, and from the request.
fn one(rings: &Rings, writer: &Writer, slice: &Slice, ready: bool) -> Result<(f64, f64)> {
    let (before, begun) = (rings.of(slice.service)?, Instant::now());
    writer.set(slice, ready)?;
    let changed = rings.wait_for_change(slice.service, before, PATIENCE);
    let changed = changed.with_context(|| format!("{} becomes ready: {ready}", slice.name))?;
    let event = writer.event(&slice.name)?;
    let ms = |since| changed.saturating_duration_since(since).as_secs_f64() * 1e3;
    Ok((ms(event), ms(begun)))
}
