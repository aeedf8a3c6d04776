//! Steps about connections that fail at a pod and that no client ever sees fail.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    locality::{HOME, PATIENCE},
    report::{StepReport, millis},
    stage::Stage,
    world::{FAST_PROBES, NO_PROBES, SOON, World},
};
use crate::{
    client::{Outcome, Running, SteadyLoad, Tally, TcpLoad, row},
    topology::Pod,
};

/// For connections whose SYN may be sent again, after one second and after three.
const LONG: Duration = Duration::from_secs(10);

/// A pod refuses and nobody probes: 2,000 connections, none fails, and no client sends a SYN twice.
pub(super) fn rst_rescue(stage: &mut Stage) -> Result<StepReport> {
    stage.renew_pods()?;
    stage.scene(&World { hangzhou: 3, probed: false, policy: Some(NO_PROBES) }, |stage| {
        let victim = victim(stage);
        stage.bed.kill_pod_server(&victim.name)?;
        let (mut report, tally) = rescued(stage, &victim, 2000)?;
        report.expect(tally.repeated_syns() == 0, || {
            format!("clients sent {} SYNs again", tally.repeated_syns())
        });
        Ok(report)
    })
}

/// A pod says nothing and nobody probes: 500 connections, none fails, and none needs more than a second SYN.
pub(super) fn syn_rescue(stage: &mut Stage) -> Result<StepReport> {
    stage.scene(&World { hangzhou: 3, probed: false, policy: Some(NO_PROBES) }, |stage| {
        let victim = victim(stage);
        stage.bed.silence_pod(&victim.name)?;
        let (mut report, tally) = rescued(stage, &victim, 500)?;
        report.expect(tally.most_repeated_syns() <= 1, || {
            format!("a client sent its SYN again {} times", tally.most_repeated_syns())
        });
        Ok(report)
    })
}

/// Makes connections of which one in six begins at a pod that fails: none fails, and as many were rescued as it
/// should have got.
fn rescued(stage: &Stage, victim: &Pod, connections: usize) -> Result<(StepReport, Tally)> {
    stage.screen.say(&format!("  It is {}.", victim.name));
    let before = stage.agent.counters()?;
    let load = TcpLoad { timeout: LONG, concurrency: 64, ..TcpLoad::new(stage.bed.vip_http(), connections) };
    let _watch = stage.screen.watch(&load.live);
    let tally = stage.bed.client().tcp(load)?.tally();
    let after = stage.agent.counters()?;
    let grown = |name: &String| after[name] - before.get(name).copied().unwrap_or(0);
    let rescued = grown(&"flow_rescued".to_owned());
    let mut report = StepReport::of(&tally);
    report.count_syns(&tally);
    report.detail("rescued", rescued);
    // What the packet program dropped a client sends again: it may say why one more SYN was needed.
    for name in after.keys().filter(|name| name.starts_with("drop_") && grown(name) > 0) {
        report.detail(name, grown(name));
    }
    report.expect_none_failed();
    report.expect(!tally.by_pod.contains_key(&victim.name), || format!("{} answered", victim.name));
    report.expect(rescued >= connections as u64 / 10, || {
        format!("only {rescued} connections were rescued: hardly any began at {}", victim.name)
    });
    Ok((report, tally))
}

/// A pod refuses that its cluster calls ready, and nobody probes: the first error ejects it, no connection fails, and
/// when its time is over it is back.
pub(super) fn s1_outlier(stage: &mut Stage) -> Result<StepReport> {
    const EJECTION: Duration = Duration::from_secs(5);
    let policy = format!(
        "  outlierDetection: {{consecutiveErrors: 1, interval: 1s, baseEjectionTime: {}s}}\n{NO_PROBES}",
        EJECTION.as_secs()
    );
    stage.scene(&World { hangzhou: 3, probed: false, policy: Some(&policy) }, |stage| {
        let victim = victim(stage);
        stage.screen.say(&format!("  It is {}.", victim.name));
        let refused = stage.agent.counters()?["connect_refused"];
        let killed = Instant::now();
        stage.bed.kill_pod_server(&victim.name)?;
        let load = SteadyLoad { timeout: PATIENCE, ..SteadyLoad::new(stage.bed.vip_http(), 100) };
        let _watch = stage.screen.watch(&load.live);
        let load = stage.bed.client().load(load)?;
        stage.ring_when(|ring| ring.usable.get(&socket(&victim)) == Some(&false))?;
        let ejected = Instant::now();
        // Long enough for other errors, were it not ejected.
        wait_for_answers(&load, ejected, 200)?;
        let errors = stage.agent.counters()?["connect_refused"] - refused;
        stage.bed.start_pod_server(&victim.name)?;
        let back = load.wait_for(ejected + EJECTION + SOON, |all| {
            all.iter().find(|outcome| is_answer_of(outcome, &victim)).map(|outcome| outcome.started)
        });
        let outcomes = load.stop().outcomes;

        let tally: Tally = outcomes.iter().collect();
        let mut report = StepReport::of(&tally);
        report.count_syns(&tally);
        report.ms = Some(millis(ejected - killed));
        report.detail("errors", errors);
        report.expect_none_failed();
        report.expect(errors == 1, || format!("it took {errors} errors to keep new connections away"));
        let away = back.map(|back| back.saturating_duration_since(ejected));
        report.detail("back_ms", away.map(millis));
        // The ejection began a little before it was seen.
        report.expect(
            away.is_some_and(|away| away >= EJECTION - Duration::from_millis(500)),
            || match away {
                Some(away) => format!("it was back {away:?} after its ejection, before its time"),
                None => "it did not come back".to_owned(),
            },
        );
        Ok(report)
    })
}

/// All of hangzhou goes silent under 500 connections a second: of those that begin after that none fails, and soon none
/// begins there.
pub(super) fn cluster_silent(stage: &mut Stage) -> Result<StepReport> {
    stage.scene(&World { hangzhou: 3, probed: true, policy: Some(FAST_PROBES) }, |stage| {
        let load = SteadyLoad { timeout: LONG, ..SteadyLoad::new(stage.bed.vip_http(), 500) };
        let _watch = stage.screen.watch(&load.live);
        let load = stage.bed.client().load(load)?;
        let began = Instant::now();
        let well = load.wait_for(began + SOON, |all| row(all, began, 250, |_| true));
        ensure!(well.is_some(), "connections fail already before anything is broken");
        stage.cut(HOME)?;
        // What began before this moment may have been under way.
        let fault = Instant::now();
        let moved = load.wait_for(fault + SOON, |all| row(all, fault, 1000, |answer| answer.cluster != HOME));
        let outcomes = load.stop().outcomes;
        let after: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.started >= fault).collect();

        let tally: Tally = after.iter().copied().collect();
        let mut report = StepReport::of(&tally);
        report.count_syns(&tally);
        report.goal_ms = Some(1000);
        // Whose first SYN has no answer began there.
        let lost = after.iter().filter(|outcome| match &outcome.result {
            Ok(answer) => answer.syn_retransmissions > 0 || answer.cluster == HOME,
            Err(_) => true,
        });
        let lost: Vec<Instant> = lost.map(|outcome| outcome.started).collect();
        report.ms = Some(lost.last().map_or(0, |last| millis(*last - fault)));
        report.detail("rescued", lost.len());
        report.expect_none_failed();
        report.expect(moved.is_some(), || format!("new connections did not leave {HOME} within {SOON:?}"));
        report.expect(!lost.is_empty(), || format!("no connection began at {HOME}"));
        Ok(report)
    })
}

/// One of the pods, of hangzhou.
fn victim(stage: &Stage) -> Pod {
    stage.bed.ready_pods().swap_remove(1)
}

fn socket(pod: &Pod) -> (std::net::IpAddr, u16) {
    let v4 = pod.sockets()[0];
    (v4.ip(), v4.port())
}

fn is_answer_of(outcome: &Outcome, pod: &Pod) -> bool {
    outcome.result.as_ref().is_ok_and(|answer| answer.pod == pod.name)
}

/// Waits until so many connections that began at `from` or later have an outcome.
fn wait_for_answers(load: &Running, from: Instant, count: usize) -> Result<()> {
    let there = |all: &[Outcome]| {
        (all.iter().filter(|outcome| outcome.started >= from).count() >= count).then_some(())
    };
    ensure!(load.wait_for(from + SOON, there).is_some(), "no {count} connections within {SOON:?}");
    Ok(())
}
