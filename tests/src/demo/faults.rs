//! Steps in which something breaks, or comes back, under a steady load.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    report::{StepReport, millis, until_last_failure},
    stage::Stage,
};
use crate::{
    client::{Outcome, Row, Running, SteadyLoad, Tally, row},
    topology::Pod,
};

/// Connections started each second.
const RATE: u32 = 400;
/// How many must go as expected in a row.
const IN_A_ROW: usize = 500;
/// For the expectation to hold after something broke.
const AFTER_FAULT: Duration = Duration::from_secs(10);
/// For the expectation to hold after a cluster came back.
const AFTER_RECOVERY: Duration = Duration::from_secs(15);

const CLUSTER: &str = "hangzhou";

/// A pod's server dies: within 10 s 500 connections in a row succeed and none reaches it.
pub(super) fn pod_killed(stage: &mut Stage) -> Result<StepReport> {
    let victim = stage.all_well()?.remove(1);
    let report = lose_pod(stage, &victim, 1500, |stage| stage.bed.kill_pod_server(&victim.name))?;
    stage.bed.start_pod_server(&victim.name)?;
    Ok(report)
}

/// A pod's link goes down: within 10 s 500 connections in a row succeed and none reaches it.
pub(super) fn pod_silent(stage: &mut Stage) -> Result<StepReport> {
    let victim = stage.all_well()?.pop().context("there are no pods")?;
    let report = lose_pod(stage, &victim, 3000, |stage| stage.bed.silence_pod(&victim.name))?;
    stage.bed.heal_pod(&victim.name)?;
    Ok(report)
}

/// All of hangzhou goes silent: within 10 s 500 in a row, all in shanghai. It stays so for the next step.
pub(super) fn cluster_down(stage: &mut Stage) -> Result<StepReport> {
    stage.all_well()?;
    let scene = Scene::begin(stage)?;
    let fault = Instant::now();
    stage.cut(CLUSTER)?;
    let held = scene.load.wait_for(patience(fault, AFTER_FAULT), |all| {
        row(all, fault, IN_A_ROW, |answer| answer.cluster != CLUSTER)
    });
    let mut report = scene.end(fault);
    report.ms = expect_in_time(&mut report, held, fault, AFTER_FAULT, |row| row.began);
    Ok(report)
}

/// Hangzhou comes back: within 15 s 500 in a row with every pod served.
pub(super) fn recovery(stage: &mut Stage) -> Result<StepReport> {
    stage.silence(CLUSTER)?;
    let pods = stage.bed.ready_pods();
    let scene = Scene::begin(stage)?;
    let healed = Instant::now();
    stage.mend(CLUSTER)?;
    let held = scene
        .load
        .wait_for(patience(healed, AFTER_RECOVERY), |all| row_with_every_pod(all, healed, IN_A_ROW, &pods));
    let mut report = scene.end(healed);
    report.ms = expect_in_time(&mut report, held.map(|(row, _)| row), healed, AFTER_RECOVERY, |row| {
        held.map_or(row.began, |(_, every_pod_served)| every_pod_served)
    });
    Ok(report)
}

/// Loses a pod under load, by `fault`.
fn lose_pod(
    stage: &mut Stage,
    victim: &Pod,
    goal_ms: u64,
    fault: impl FnOnce(&Stage) -> Result<()>,
) -> Result<StepReport> {
    stage.screen.say(&format!("  It is {}.", victim.name));
    let scene = Scene::begin(stage)?;
    let begun = Instant::now();
    fault(stage)?;
    let held = scene.load.wait_for(patience(begun, AFTER_FAULT), |all| {
        row(all, begun, IN_A_ROW, |answer| answer.pod != victim.name)
    });
    let mut report = scene.end(begun);
    report.goal_ms = Some(goal_ms);
    expect_in_time(&mut report, held, begun, AFTER_FAULT, |row| row.began);
    Ok(report)
}

/// A steady load that went well before anything breaks.
struct Scene {
    load: Running,
    _watch: super::screen::Watch,
}

impl Scene {
    fn begin(stage: &Stage) -> Result<Scene> {
        let load = SteadyLoad::new(stage.bed.vip_http(), RATE);
        let watch = stage.screen.watch(&load.live);
        let load = stage.bed.client().load(load)?;
        let begun = Instant::now();
        load.wait_for(begun + AFTER_FAULT, |all| row(all, begun, RATE as usize / 4, |_| true))
            .context("connections fail already before anything is broken")?;
        Ok(Scene { load, _watch: watch })
    }

    /// Ends the load and reports on what was under way at `from` or came later.
    fn end(self, from: Instant) -> StepReport {
        let outcomes = self.load.stop().outcomes;
        let concerned: Vec<Outcome> =
            outcomes.into_iter().filter(|outcome| outcome.finished >= from).collect();
        let tally: Tally = concerned.iter().collect();
        StepReport { ms: Some(until_last_failure(&concerned, from)), ..StepReport::of(&tally) }
    }
}

/// How long to look for an expectation to hold: what began in time may take a second to have its outcome.
fn patience(from: Instant, limit: Duration) -> Instant {
    from + limit + Duration::from_secs(1)
}

/// Expects a row, and that it was complete in time; says when `moment` of it was, in ms.
fn expect_in_time(
    report: &mut StepReport,
    row: Option<Row>,
    from: Instant,
    limit: Duration,
    moment: impl FnOnce(&Row) -> Instant,
) -> Option<u64> {
    let in_time = row.filter(|row| row.complete.duration_since(from) <= limit);
    report.expect(in_time.is_some(), || format!("no {IN_A_ROW} in a row as expected within {limit:?}"));
    in_time.map(|row| millis(moment(&row).saturating_duration_since(from)))
}

/// The first row of `len` successes that has every pod in it, and when the last of them was first served.
fn row_with_every_pod(
    outcomes: &[Outcome],
    from: Instant,
    len: usize,
    pods: &[Pod],
) -> Option<(Row, Instant)> {
    let begin = outcomes.partition_point(|outcome| outcome.started < from);
    let outcomes = &outcomes[begin..];
    let wanted: BTreeSet<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    outcomes.windows(len).enumerate().find_map(|(first, window)| {
        let mut missing = wanted.clone();
        let mut last_served = window.first()?.started;
        for outcome in window {
            let answer = outcome.result.as_ref().ok()?;
            if missing.remove(answer.pod.as_str()) {
                last_served = outcome.started;
            }
        }
        let complete = window.iter().map(|outcome| outcome.finished).max()?;
        let row = Row { first: begin + first, began: window[0].started, complete };
        missing.is_empty().then_some((row, last_served))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::{Answer, Failure},
        topology::Dual,
    };

    #[test]
    fn recovery_is_when_the_last_pod_is_served_again() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let pod = |name: &str| Pod {
            name: name.into(),
            cluster: "c".into(),
            zone: "z".into(),
            address: Dual { v4: [0; 4].into(), v6: [0u16; 8].into() },
        };
        let outcomes: Vec<Outcome> = (0u64..)
            .zip("a.aaaabaab".chars())
            .map(|(ms, letter)| Outcome {
                started: at(ms),
                finished: at(ms + 1),
                result: match letter {
                    '.' => Err(Failure::Timeout),
                    pod => Ok(Answer {
                        pod: pod.into(),
                        cluster: "c".into(),
                        client: String::new(),
                        syn_retransmissions: 0,
                    }),
                },
            })
            .collect();
        let pods = [pod("a"), pod("b")];
        let (row, served) = row_with_every_pod(&outcomes, zero, 4, &pods).unwrap();
        assert_eq!((row.first, row.began, served, row.complete), (3, at(3), at(6), at(7)));
        assert_eq!(row_with_every_pod(&outcomes, zero, 4, &[pod("a"), pod("d")]), None);
        assert_eq!(row_with_every_pod(&outcomes, zero, 11, &pods), None);
    }
}
