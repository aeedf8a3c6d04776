//! Steps about regions and zones: where a policy sends new connections, and where failures send them.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    flaps::RingWatch,
    report::{Move, StepReport, hundredths, millis},
    stage::Stage,
    world::{FAST_PROBES, World, wait_for_verdict},
};
use crate::{
    client::{Outcome, SteadyLoad, Tally, TcpLoad},
    scene::Ring,
    topology::{Bed, Condition, Pod},
};

/// Connections that show a share.
const MANY: usize = 10_000;
/// For each connection, from its SYN to its answer: longer than SYNs that are sent again twice.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How near a share of a ring is to what it will be, in points.
const NEAR: f64 = 0.05;
/// How long connections are watched where nothing changes.
const PHASE: Duration = Duration::from_secs(1);

pub(super) const HOME: &str = "hangzhou";
const AWAY: &str = "shanghai";
/// The zone of the gateway.
pub(super) const ZONE: &str = "cn-hangzhou-a";

pub(super) const FAILOVER: &str = "  locality: {failover: [{from: cn-hangzhou, to: [cn-shanghai]}]}\n";

/// 90 percent to hangzhou, 10 to shanghai: the ring has them exactly, 10,000 connections nearly.
pub(super) fn s1_distribute(stage: &mut Stage) -> Result<StepReport> {
    let shares = "[{region: cn-hangzhou, weight: 90}, {region: cn-shanghai, weight: 10}]";
    let policy = format!("  locality: {{distribute: [{{from: cn-hangzhou, to: {shares}}}]}}\n");
    stage.scene(&World { hangzhou: 3, probed: true, policy: Some(&policy) }, |stage| {
        show_share(stage, AWAY, 10.0, 1.5)
    })
}

/// Two of hangzhou's four pods die: it keeps 70 percent, as Envoy computes it, and shanghai gets 30.
pub(super) fn s1_spillover(stage: &mut Stage) -> Result<StepReport> {
    let policy = format!("{FAILOVER}{FAST_PROBES}");
    stage.scene(&World { hangzhou: 4, probed: true, policy: Some(&policy) }, |stage| {
        wait_until_home_alone(stage)?;
        let dead = pods_of(&stage.bed, HOME).split_off(2);
        for pod in &dead {
            stage.bed.kill_pod_server(&pod.name)?;
        }
        wait_for_verdict(&mut stage.agent, &dead, false)?;
        let mut report = show_share(stage, HOME, 70.0, 2.0)?;
        for pod in &dead {
            report.expect(!report.by_pod.contains_key(&pod.name), || format!("{} is dead", pod.name));
        }
        Ok(report)
    })
}

/// Waits for a cluster's share in the ring, then makes connections: both as `wanted`, in percent, and none fails.
fn show_share(stage: &Stage, cluster: &str, wanted: f64, tolerance: f64) -> Result<StepReport> {
    let directory = stage.directory();
    let near = |share: f64| (share - wanted).abs() < NEAR;
    let ring = stage.ring_when(|ring| near(directory.of_cluster(ring, cluster)))?;
    let load = TcpLoad { timeout: PATIENCE, ..TcpLoad::new(stage.bed.vip_http(), MANY) };
    let watch = stage.screen.watch(&load.live);
    let tally = stage.bed.client().tcp(load)?.tally();
    drop(watch);
    let mut report = StepReport::of(&tally);
    report.expect_none_failed();
    let share = directory.of_cluster(&ring, cluster);
    report.expect_share(cluster, share, tally.cluster_share(cluster) * 100.0, wanted, tolerance);
    Ok(report)
}

/// hangzhou is scaled to nothing: ten of ten connections, then 1,000 of 1,000, reach shanghai.
pub(super) fn s1_failover(stage: &mut Stage) -> Result<StepReport> {
    stage.scene(&World { hangzhou: 3, probed: true, policy: Some(FAILOVER) }, |stage| {
        wait_until_home_alone(stage)?;
        let before = connect(stage, 10)?;
        let began = Instant::now();
        let pods = pods_of(&stage.bed, HOME);
        for pod in &pods {
            stage.bed.end_pod_server(&pod.name)?;
            stage.bed.set_condition(&pod.name, Condition::Terminating)?;
        }
        let directory = stage.directory();
        let ring = stage.ring_when(|ring| directory.of_cluster(ring, HOME) == 0.0)?;
        let moved = began.elapsed();
        let ten = connect(stage, 10)?;
        for pod in &pods {
            stage.bed.set_condition(&pod.name, Condition::Gone)?;
        }
        let thousand = connect(stage, 1000)?;

        let mut report = StepReport::of(&thousand);
        report.ms = Some(millis(moved));
        report.ring_share.insert(AWAY.to_owned(), hundredths(directory.of_cluster(&ring, AWAY)));
        for (tally, wanted, whom) in [(&before, 10, HOME), (&ten, 10, AWAY), (&thousand, 1000, AWAY)] {
            let reached = tally.by_cluster.get(whom).copied().unwrap_or(0);
            report.expect(reached == wanted, || format!("{reached} of {wanted} reached {whom}: {tally:?}"));
        }
        report.detail("first_ten", ten.by_cluster.get(AWAY).copied().unwrap_or(0));
        Ok(report)
    })
}

/// The gateway's zone first: it fails, and others serve; it heals, and gets its connections back after the failback
/// delay, without any that fails.
pub(super) fn s2_zone(stage: &mut Stage) -> Result<StepReport> {
    const DELAY: Duration = Duration::from_secs(3);
    let policy = format!("  zonePreference: Prefer\n  locality: {{failbackDelay: 3s}}\n{FAST_PROBES}");
    // hangzhou's fourth pod is the second one of the zone.
    stage.scene(&World { hangzhou: 4, probed: true, policy: Some(&policy) }, |stage| {
        let directory = stage.directory();
        let share = |ring: &Ring| directory.percent(ring, is_local);
        let zone: Vec<Pod> = stage.bed.ready_pods().into_iter().filter(is_local).collect();
        stage.ring_when(|ring| share(ring) == 100.0)?;
        let ring = RingWatch::begin(stage, is_local)?;
        let load = SteadyLoad { timeout: PATIENCE, ..SteadyLoad::new(stage.bed.vip_http(), 200) };
        let _watch = stage.screen.watch(&load.live);
        let load = stage.bed.client().load(load)?;
        let began = Instant::now();
        thread::sleep(PHASE);
        let fault = Instant::now();
        zone.iter().try_for_each(|pod| stage.bed.silence_pod(&pod.name))?;
        stage.ring_when(|ring| share(ring) == 0.0)?;
        let away = Instant::now();
        thread::sleep(PHASE);
        let healed = Instant::now();
        zone.iter().try_for_each(|pod| stage.bed.heal_pod(&pod.name))?;
        stage.ring_when(|ring| share(ring) == 100.0)?;
        let back = Instant::now();
        thread::sleep(PHASE);
        let end = Instant::now();
        let outcomes = load.stop().outcomes;
        let moves = ring.end(fault)?;

        let later = outcomes.iter().filter(|outcome| outcome.started >= fault);
        let mut report = StepReport::of(&later.collect::<Tally>());
        report.ms = Some(millis(away - fault));
        report.detail("back_ms", millis(back - healed));
        let names: BTreeSet<&str> = zone.iter().map(|pod| pod.name.as_str()).collect();
        for (what, from, to, wanted) in
            [("at first", began, fault, 100), ("silent", away, healed, 0), ("well again", back, end, 100)]
        {
            let phase: Tally = started(&outcomes, from, to).collect();
            let local = phase.by_pod.iter().filter(|(pod, _)| names.contains(pod.as_str()));
            let percent = local.map(|(_, count)| count).sum::<u64>() * 100 / phase.requests.max(1);
            report.expect(phase.requests > 0 && phase.failed == 0 && percent == wanted, || {
                format!("{what}, the zone answered {percent}% of {phase:?} instead of {wanted}%")
            });
        }
        let failed = started(&outcomes, healed, end).filter(|outcome| outcome.result.is_err()).count();
        report.expect(failed == 0, || format!("{failed} failed on the way back"));
        report.expect(back - healed >= DELAY, || format!("it was back {:?} after it healed", back - healed));
        expect_there_and_back(&mut report, moves);
        Ok(report)
    })
}

/// Expects that a share of the ring went from 100 percent to 0 and back, once.
pub(super) fn expect_there_and_back(report: &mut StepReport, moves: Vec<Move>) {
    let ends: Vec<(f64, f64)> = moves.iter().map(|found| (found.from, found.to)).collect();
    report.expect(ends == [(100.0, 0.0), (0.0, 100.0)], || {
        format!("the ring did not move away and back once, but as {ends:?}")
    });
    report.transitions = moves;
}

/// What started in a time.
fn started(outcomes: &[Outcome], from: Instant, to: Instant) -> impl Iterator<Item = &Outcome> {
    outcomes.iter().filter(move |outcome| (from..to).contains(&outcome.started))
}

fn is_local(pod: &Pod) -> bool {
    pod.zone == ZONE
}

/// Waits until the ring has hangzhou alone.
pub(super) fn wait_until_home_alone(stage: &Stage) -> Result<()> {
    let directory = stage.directory();
    let share =
        directory.of_cluster(&stage.ring_when(|ring| directory.of_cluster(ring, HOME) == 100.0)?, HOME);
    ensure!(share == 100.0, "{HOME} has {share:.1}% of the ring while all is well, instead of 100%");
    Ok(())
}

pub(super) fn pods_of(bed: &Bed, cluster: &str) -> Vec<Pod> {
    bed.ready_pods().into_iter().filter(|pod| pod.cluster == cluster).collect()
}

fn connect(stage: &Stage, connections: usize) -> Result<Tally> {
    let load = TcpLoad { timeout: PATIENCE, ..TcpLoad::new(stage.bed.vip_http(), connections) };
    Ok(stage.bed.client().tcp(load)?.tally())
}
