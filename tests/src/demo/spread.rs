//! Steps on a network where everything is well: who answers?

use anyhow::Result;

use super::{report::StepReport, stage::Stage};
use crate::{
    client::{Tally, TcpLoad, UdpLoad},
    topology::Pod,
};

/// 1,000 TCP connections: none fails, each cluster gets 44–56%, every pod is served.
pub(super) fn distribution(stage: &mut Stage) -> Result<StepReport> {
    let pods = stage.all_well()?;
    let load = TcpLoad::new(stage.bed.vip_http(), 1000);
    let _watch = stage.screen.watch(&load.live);
    let tally = stage.bed.client().tcp(load)?.tally();
    let mut report = StepReport::of(&tally);
    report.expect_none_failed();
    for cluster in stage.bed.cluster_names() {
        let share = tally.cluster_share(&cluster);
        report.expect((0.44..=0.56).contains(&share), || format!("{cluster} answered {:.1}%", share * 100.0));
    }
    expect_every_pod(&mut report, &tally, &pods);
    Ok(report)
}

/// 1,000 UDP requests: none fails, both clusters answer.
pub(super) fn udp(stage: &mut Stage) -> Result<StepReport> {
    stage.all_well()?;
    let load = UdpLoad::new(stage.bed.vip_udp(), 1000);
    let _watch = stage.screen.watch(&load.live);
    let tally = stage.bed.client().udp(load)?.tally();
    expect_all_clusters(stage, &tally)
}

/// 500 TCP connections over IPv6: none fails, both clusters answer.
pub(super) fn ipv6(stage: &mut Stage) -> Result<StepReport> {
    stage.all_well()?;
    let load = TcpLoad::new(stage.bed.vip_http6(), 500);
    let _watch = stage.screen.watch(&load.live);
    let tally = stage.bed.client().tcp(load)?.tally();
    expect_all_clusters(stage, &tally)
}

fn expect_all_clusters(stage: &Stage, tally: &Tally) -> Result<StepReport> {
    let mut report = StepReport::of(tally);
    report.expect_none_failed();
    for cluster in stage.bed.cluster_names() {
        report.expect(tally.by_cluster.contains_key(&cluster), || format!("{cluster} answered none"));
    }
    Ok(report)
}

fn expect_every_pod(report: &mut StepReport, tally: &Tally, pods: &[Pod]) {
    for pod in pods {
        report.expect(tally.by_pod.contains_key(&pod.name), || format!("{} was not served", pod.name));
    }
}
