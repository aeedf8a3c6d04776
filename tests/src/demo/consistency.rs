//! Open connections stay where they are while pods come and go, and few new ones go elsewhere.

use std::{
    collections::BTreeMap,
    slice,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{report::StepReport, stage::Stage};
use crate::{
    client::{Close, Hold, Live, Report, Sources, Tally, TcpLoad},
    topology::{Condition, Pod},
};

/// Connections held open.
const HELD: usize = 200;
/// Flows that are made again after each change, to see which pod they get.
const FLOWS: usize = 500;
/// How long an edit of a manifest may take until new flows follow it.
const EDIT: Duration = Duration::from_secs(10);

/// 200 connections are held open while a pod is added and one drains: none breaks.
pub(super) fn consistency(stage: &mut Stage) -> Result<StepReport> {
    let pods = stage.all_well()?;
    let drained = &pods[0];
    let target = stage.bed.vip_http();
    let new =
        NewFlows { live: Live::default(), sources: stage.bed.client().exact_sources(target, FLOWS, 10_000) };
    let watch = stage.screen.watch(&new.live);

    let held = stage.bed.client().hold(Hold::new(target, HELD))?;
    let before = new.make(stage)?;
    let added = stage.bed.add_pod(&drained.cluster)?;
    stage.agent.wait_for_pods(slice::from_ref(&added), EDIT)?;
    new.wait_until(stage, "reach the added pod", |tally| tally.by_pod.contains_key(&added.name))?;
    let with_added = new.make(stage)?;
    stage.bed.set_condition(&drained.name, Condition::Terminating)?;
    stage.agent.wait_until_unused(drained, EDIT)?;
    new.wait_until(stage, "leave the draining pod", |tally| !tally.by_pod.contains_key(&drained.name))?;
    let with_drained = new.make(stage)?;
    let held = held.stop();
    drop(watch);
    put_back(stage, drained, &added)?;

    let mut report = StepReport::of(&Tally {
        requests: HELD as u64,
        failed: held.broken.len() as u64,
        by_cluster: by_cluster(&held.by_pod, &pods),
        by_pod: held.by_pod.clone(),
        ..Tally::default()
    });
    let broken = held.broken.first();
    report.expect(broken.is_none(), || {
        format!("{} broke, the first: {}", held.broken.len(), broken.map_or("", String::as_str))
    });
    let made = new.live.now();
    report
        .expect(made.failed == 0, || format!("{} new connections failed: {:?}", made.failed, made.failures));
    let one_of_all = 1.0 / (pods.len() + 1) as f64;
    report.detail("moved_by_adding", rounded(moved(&before, &with_added)));
    report.detail("moved_by_draining", rounded(moved(&with_added, &with_drained)));
    report.detail("ideal", rounded(one_of_all));
    report.detail("new_flows", made.requests);
    Ok(report)
}

/// New connections from the same addresses and ports each time.
struct NewFlows {
    live: Live,
    sources: Sources,
}

impl NewFlows {
    /// The server ends each connection first, so that its address and port can be used again at once.
    fn make(&self, stage: &Stage) -> Result<Report> {
        self.connect(stage, FLOWS, self.sources.clone())
    }

    /// Makes other connections, a hundred at a time, until a hundred are as they should be.
    fn wait_until(&self, stage: &Stage, what: &str, done: impl Fn(&Tally) -> bool) -> Result<()> {
        let deadline = Instant::now() + EDIT;
        let sources = stage.bed.client().sources(stage.bed.vip_http());
        while !done(&self.connect(stage, 100, sources.clone())?.tally()) {
            ensure!(Instant::now() < deadline, "new connections did not {what} within {EDIT:?}");
        }
        Ok(())
    }

    fn connect(&self, stage: &Stage, connections: usize, sources: Sources) -> Result<Report> {
        stage.bed.client().tcp(TcpLoad {
            close: Close::Server,
            sources: Some(sources),
            live: self.live.clone(),
            ..TcpLoad::new(stage.bed.vip_http(), connections)
        })
    }
}

/// The next step finds the pods this one found.
fn put_back(stage: &mut Stage, drained: &Pod, added: &Pod) -> Result<()> {
    stage.bed.set_condition(&drained.name, Condition::Ready)?;
    stage.bed.set_condition(&added.name, Condition::Gone)?;
    stage.agent.wait_until_unused(added, EDIT)?;
    stage.all_well()?;
    Ok(())
}

/// The share of flows that got another pod, of those that were answered both times.
fn moved(before: &Report, after: &Report) -> f64 {
    let both: Vec<(&str, &str)> =
        before.pods().into_iter().zip(after.pods()).filter_map(|(a, b)| Some((a?, b?))).collect();
    let moved = both.iter().filter(|(a, b)| a != b).count();
    moved as f64 / both.len().max(1) as f64
}

fn by_cluster(by_pod: &BTreeMap<String, u64>, pods: &[Pod]) -> BTreeMap<String, u64> {
    let mut by_cluster = BTreeMap::new();
    for pod in pods {
        *by_cluster.entry(pod.cluster.clone()).or_default() += by_pod.get(&pod.name).copied().unwrap_or(0);
    }
    by_cluster
}

fn rounded(share: f64) -> f64 {
    (share * 1000.0).round() / 1000.0
}
