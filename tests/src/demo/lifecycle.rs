//! Steps in which pods are replaced and a cluster is drained: on purpose, and so without any harm.

use std::{
    collections::BTreeSet,
    slice, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    locality::{HOME, PATIENCE},
    report::StepReport,
    stage::Stage,
    world::{SOON, World},
};
use crate::{
    client::{Hold, SteadyLoad, Tally, TcpLoad},
    topology::{Condition, Pod},
};

/// Connections that are held open.
const HELD: usize = 200;
/// How long a pod may take to end, before it is killed: it waits for its clients, and one of a step before may have gone
/// while nothing could reach the pod.
const GRACE: Duration = Duration::from_secs(10);
/// New connections meanwhile.
const NEW: usize = 500;

/// All pods of both clusters are replaced, one of each cluster at a time, under load: no connection fails.
pub(super) fn rolling_update(stage: &mut Stage) -> Result<StepReport> {
    stage.scene(&World { hangzhou: 3, probed: true, policy: None }, |stage| {
        let old = stage.bed.ready_pods();
        let load = SteadyLoad { timeout: PATIENCE, ..SteadyLoad::new(stage.bed.vip_http(), 300) };
        let _watch = stage.screen.watch(&load.live);
        let load = stage.bed.client().load(load)?;
        let clusters = stage.bed.cluster_names();
        let in_turn = |n: usize| -> Vec<&Pod> {
            clusters.iter().filter_map(|name| old.iter().filter(|pod| pod.cluster == *name).nth(n)).collect()
        };
        for n in 0..old.len() / clusters.len() {
            replace(stage, &in_turn(n))?;
        }
        let replaced = Instant::now();
        let later = load.wait_for(replaced + SOON, |all| {
            let later: Tally = all.iter().filter(|outcome| outcome.started >= replaced).collect();
            (later.requests >= NEW as u64).then_some(later)
        });
        let tally = load.stop().tally();

        let mut report = StepReport::of(&tally);
        report.expect_none_failed();
        let later = later.with_context(|| format!("no {NEW} connections within {SOON:?}"))?;
        let now: BTreeSet<String> = stage.bed.ready_pods().into_iter().map(|pod| pod.name).collect();
        let answered: BTreeSet<String> = later.by_pod.into_keys().collect();
        report.expect(now.len() == old.len() && answered == now, || {
            format!("in the end {answered:?} answered, instead of {now:?}")
        });
        report.expect(old.iter().all(|pod| !now.contains(&pod.name)), || "an old pod is left".to_owned());
        report.detail("replaced", old.len());
        Ok(report)
    })
}

/// As a Deployment does it with `maxSurge: 1` and `maxUnavailable: 0`: a new pod is there before an old one goes.
fn replace(stage: &mut Stage, old: &[&Pod]) -> Result<()> {
    for pod in old {
        let new = surge(stage, &pod.cluster)?;
        stage.agent.wait_for_pods(slice::from_ref(&new), SOON)?;
        stage.bed.set_condition(&pod.name, Condition::Terminating)?;
        stage.bed.end_pod_server(&pod.name)?;
    }
    for pod in old {
        let deadline = Instant::now() + GRACE;
        while stage.bed.has_server(&pod.name)? && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        if stage.bed.has_server(&pod.name)? {
            stage.bed.kill_pod_server(&pod.name)?;
        }
        stage.bed.set_condition(&pod.name, Condition::Gone)?;
    }
    Ok(())
}

/// One more pod in a cluster: the first that has not been used since the step began.
fn surge(stage: &Stage, cluster: &str) -> Result<Pod> {
    let mut pods = stage.bed.pods();
    pods.retain(|pod| pod.cluster == cluster);
    let ready = stage.bed.ready_pods();
    // Those that were replaced come before the last ready one.
    let spare = pods.iter().rposition(|pod| ready.contains(pod)).and_then(|last| pods.get(last + 1));
    match spare {
        Some(spare) => {
            if !stage.bed.has_server(&spare.name)? {
                stage.bed.start_pod_server(&spare.name)?;
            }
            stage.bed.set_condition(&spare.name, Condition::Ready)?;
            Ok(spare.clone())
        }
        None => stage.bed.add_pod(cluster),
    }
}

/// hangzhou is drained while 200 connections are open: none breaks, and 500 new ones all go elsewhere.
pub(super) fn drain(stage: &mut Stage) -> Result<StepReport> {
    stage.scene(&World { hangzhou: 3, probed: true, policy: None }, |stage| {
        let hold = Hold::new(stage.bed.vip_http(), HELD);
        let _watch = stage.screen.watch(&hold.live);
        let held = stage.bed.client().hold(hold)?;
        let pods = stage.bed.ready_pods();
        let there = held
            .now()
            .by_pod
            .into_iter()
            .filter(|(name, _)| pods.iter().any(|pod| pod.name == *name && pod.cluster == HOME));
        let there: u64 = there.map(|(_, count)| count).sum();
        stage.screen.say(&format!("  $ kanmon drain {HOME}"));
        stage.agent.drain(HOME)?;
        let load = TcpLoad { timeout: PATIENCE, ..TcpLoad::new(stage.bed.vip_http(), NEW) };
        let tally = stage.bed.client().tcp(load)?.tally();
        stage.screen.say(&format!("  $ kanmon undrain {HOME}"));
        stage.agent.undrain(HOME)?;
        let held = held.stop();

        let mut report = StepReport::of(&tally);
        report.expect_none_failed();
        report.expect(!tally.by_cluster.contains_key(HOME), || {
            format!("{} new connections reached {HOME}", tally.by_cluster[HOME])
        });
        report.detail("held", held.by_pod.values().sum::<u64>());
        report.detail("held_in_drained", there);
        report.detail("broken", held.broken.len());
        report.expect(there >= 50, || format!("only {there} connections were open in {HOME}"));
        report.expect(held.broken.is_empty(), || {
            format!("{} broke, the first: {}", held.broken.len(), held.broken[0])
        });
        Ok(report)
    })
}
