//! Stories S1 and S2: regions and zones, as policies in the gateway's cluster spread new flows over them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    policy::{Wanted, expect_traffic},
    stage::{Clusters, MEMBERS, PODS, app},
};
use crate::{
    client::{Outcome, Tally, TcpLoad},
    demo::report::{StepReport, millis},
    stage::{AppPod, SOON, wait_until_exactly},
    topology::{HTTP_PORT, VIP},
};

/// Connections by which shares are judged.
const MANY: usize = 10_000;
/// One whose first pod says nothing takes a second longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of the policies that lead back where something heals.
const FAILBACK: Duration = Duration::from_secs(4);
/// The zone of the gateway's Node: that of the pods on `hangzhou-a`.
const OWN_ZONE: &str = "hangzhou-a";

const DISTRIBUTE: &str = "locality:
  distribute:
  - from: cn-hangzhou
    to: [{region: cn-hangzhou, weight: 90}, {region: cn-shanghai, weight: 10}]";

const FAILOVER: &str = "locality:
  failover: [{from: cn-hangzhou, to: [cn-shanghai]}, {from: cn-shanghai, to: [cn-hangzhou]}]
  failbackDelay: 4s";

const OWN_ZONE_FIRST: &str = "zonePreference: Prefer
locality: {failbackDelay: 4s}";

/// 90% stay, 10% go to shanghai: in the ring within 0.1 points, among 10,000 connections within 1.5 points; none
/// fails.
pub(super) fn distribute(clusters: &mut Clusters) -> Result<StepReport> {
    let pods = clusters.all_well()?;
    let mut report = StepReport::begun();
    clusters.policy("httpbin", DISTRIBUTE)?;
    let wanted = [("hangzhou", 90.0), ("shanghai", 10.0)];
    clusters.expect_ring(&mut report, vip(), &pods, &wanted)?;
    let tally = connect(clusters, MANY)?;
    expect_traffic(&mut report, &tally, &wanted, 1.5);
    let status = Wanted {
        mode: "Distribute",
        weights: &[("cn-hangzhou", 90), ("cn-shanghai", 10)],
        healthy: "6/6",
        ejected: 0,
    };
    clusters.expect_status(&mut report, "httpbin", &status)?;
    Ok(report.with(&tally))
}

/// All stay in hangzhou; it is scaled to 0 under load: 10 of 10 requests, then 1,000 of 1,000, reach shanghai, and
/// none fails. It is scaled back: after the failback delay all are in hangzhou again.
pub(super) fn failover(clusters: &mut Clusters) -> Result<StepReport> {
    let pods = clusters.all_well()?;
    let mut report = StepReport::begun();
    clusters.policy("httpbin", FAILOVER)?;
    clusters.expect_ring(&mut report, vip(), &pods, &[("hangzhou", 100.0), ("shanghai", 0.0)])?;
    let load = clusters.load()?;
    let scaled = Instant::now();
    clusters.type_in("kubectl --context hangzhou -n demo scale deployment/httpbin --replicas=0")?;
    let moved = load.only("shanghai", scaled, 100);
    report.expect(moved.is_some(), || "no 100 in a row were answered by shanghai within 30 s".into());
    report.ms = moved.map(|moved| millis(moved.duration_since(scaled)));
    let printed = clusters.type_in(&format!(
        "for n in 1 2 3 4 5 6 7 8 9 10; do curl --silent --max-time 3 http://{}/; done",
        VIP.v4
    ))?;
    let ten = printed.lines().filter(|line| line.contains("cluster=shanghai")).count();
    report.expect(ten == 10, || format!("{ten} of 10 requests reached shanghai"));
    report.detail("of_ten", ten);
    let tally = connect(clusters, 1000)?;
    expect_traffic(&mut report, &tally, &[("shanghai", 100.0)], 0.0);
    let status = Wanted {
        mode: "Failover",
        weights: &[("cn-hangzhou", 0), ("cn-shanghai", 100)],
        healthy: "3/3",
        ejected: 0,
    };
    clusters.expect_status(&mut report, "httpbin", &status)?;

    clusters.say("And back:");
    let restored = Instant::now();
    clusters.type_in("kubectl --context hangzhou -n demo scale deployment/httpbin --replicas=3")?;
    let back = load.only("hangzhou", restored, 100);
    report.expect(back.is_some(), || "no 100 in a row were answered by hangzhou again within 30 s".into());
    let (meanwhile, _) = load.end(scaled);
    report.expect(meanwhile.ok, || format!("{} failed while they moved", meanwhile.failed));
    report.detail("back_ms", back.map(|back| millis(back.duration_since(restored))));
    report.detail("requests_meanwhile", meanwhile.requests);
    Ok(report.with(&tally))
}

/// Two of hangzhou's four pods are unhealthy: with 140% overprovisioning 70% stay and 30% go to shanghai, in the ring
/// within 0.1 points, among 10,000 connections within 2 points; none fails.
pub(super) fn spillover(clusters: &mut Clusters) -> Result<StepReport> {
    clusters.all_well()?;
    clusters.type_in("kubectl --context hangzhou -n demo scale deployment/httpbin --replicas=4")?;
    let more = [("hangzhou", 4), ("shanghai", usize::from(PODS))];
    let pods = clusters.stage.wait_until_used(&mut clusters.agent, &app(), &more)?;
    let mut report = StepReport::begun();
    clusters.policy("httpbin", FAILOVER)?;
    clusters.expect_ring(&mut report, vip(), &pods, &[("hangzhou", 100.0), ("shanghai", 0.0)])?;
    let (ill, left) = pods.split_at(2);
    ensure!(ill.iter().all(|pod| pod.cluster == "hangzhou"), "hangzhou's pods are the first: {pods:?}");
    clusters.say("Two of hangzhou's pods stop listening; their cluster calls them not ready:");
    for pod in ill {
        clusters.refuse(pod)?;
    }
    let deployment = "/apis/apps/v1/namespaces/demo/deployments/httpbin";
    clusters.stage.kube("hangzhou")?.see("two pods are ready", deployment, SOON, |deployment| {
        (deployment["status"]["readyReplicas"] == 2).then_some(())
    })?;
    wait_until_exactly(&mut clusters.agent, &app(), left)?;
    let wanted = [("hangzhou", 70.0), ("shanghai", 30.0)];
    clusters.expect_ring(&mut report, vip(), &pods, &wanted)?;
    clusters.type_in("kubectl --context hangzhou -n demo get pods")?;
    let tally = connect(clusters, MANY)?;
    expect_traffic(&mut report, &tally, &wanted, 2.0);
    let status = Wanted {
        mode: "Failover",
        weights: &[("cn-hangzhou", 70), ("cn-shanghai", 30)],
        healthy: "5/7",
        ejected: 0,
    };
    clusters.expect_status(&mut report, "httpbin", &status)?;
    Ok(report.with(&tally))
}

/// The gateway's own zone serves alone; its pods go silent: the region's other zones serve alone; it heals: after the
/// failback delay it serves alone again, and on that way none fails.
pub(super) fn zone(clusters: &mut Clusters) -> Result<StepReport> {
    clusters.all_well()?;
    clusters.type_in("kubectl --context hangzhou -n demo scale deployment/httpbin --replicas=6")?;
    let more = [("hangzhou", 6), ("shanghai", usize::from(PODS))];
    let pods = clusters.stage.wait_until_used(&mut clusters.agent, &app(), &more)?;
    let (own, others) = zones(&pods)?;
    let mut report = StepReport::begun();
    clusters.policy("httpbin", OWN_ZONE_FIRST)?;
    expect_zones(clusters, &mut report, &pods, [100, 0])?;
    let load = clusters.load_with((VIP.v4, HTTP_PORT).into(), PATIENCE)?;
    let local = load.row(Instant::now(), 500, |answer| own.contains(&answer.pod));
    report.expect(local.is_some(), || "no 500 in a row were answered in the gateway's zone".into());
    clusters.say("Both pods in the gateway's zone go silent:");
    let fault = Instant::now();
    for pod in pods.iter().filter(|pod| own.contains(&pod.name)) {
        clusters.silence(pod)?;
    }
    let moved = load.row(fault, 500, |answer| others.contains(&answer.pod));
    report.expect(moved.is_some(), || "no 500 in a row were answered in the other zones".into());
    expect_zones(clusters, &mut report, &pods, [0, 100])?;
    clusters.say("They are back:");
    let healed = Instant::now();
    clusters.mend();
    let back = load.row(healed, 500, |answer| own.contains(&answer.pod));
    report.expect(back.is_some(), || "no 500 in a row were answered in the gateway's zone again".into());
    expect_zones(clusters, &mut report, &pods, [100, 0])?;

    let outcomes = load.stop();
    let since = |from: Instant| -> Vec<&Outcome> {
        outcomes.iter().filter(|outcome| outcome.started >= from).collect()
    };
    let tally: Tally = since(healed).into_iter().collect();
    let in_zone = |outcome: &Outcome, zone: &[String]| {
        outcome.result.as_ref().is_ok_and(|answer| zone.contains(&answer.pod))
    };
    if let (Some(moved), Some(back)) = (moved, back) {
        let astray = outcomes.iter().filter(|outcome| {
            (outcome.finished < fault && !in_zone(outcome, &own))
                || (outcome.started >= moved && outcome.finished < healed && !in_zone(outcome, &others))
                || (outcome.started >= back && !in_zone(outcome, &own))
        });
        let astray = astray.count();
        report.expect(astray == 0, || format!("{astray} were not answered in the zone that serves alone"));
        report.expect(back.duration_since(healed) >= FAILBACK, || {
            format!(
                "it serves again {:?} after it healed, before the failback delay",
                back.duration_since(healed)
            )
        });
        report.ms = Some(millis(moved.duration_since(fault)));
        report.detail("back_ms", millis(back.duration_since(healed)));
    }
    let failing: Tally =
        outcomes.iter().filter(|outcome| outcome.finished >= fault && outcome.started < healed).collect();
    report.detail("failed_when_the_zone_failed", failing.failed);
    Ok(report.with(&tally))
}

/// The names of the pods in the gateway's zone, and of those in the other zones of its region.
fn zones(pods: &[AppPod]) -> Result<(Vec<String>, Vec<String>)> {
    let region = pods.iter().filter(|pod| pod.cluster == MEMBERS[0]);
    let (own, others): (Vec<_>, Vec<_>) = region.partition(|pod| pod.node == OWN_ZONE);
    let names = |pods: Vec<&AppPod>| pods.into_iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
    let (own, others) = (names(own), names(others));
    ensure!(own.len() == 2 && others.len() == 4, "the pods are not spread over the zones: {pods:?}");
    Ok((own, others))
}

/// Expects the gateway's zone and the rest of its region to serve so many percent.
fn expect_zones(
    clusters: &Clusters,
    report: &mut StepReport,
    pods: &[AppPod],
    [own, region]: [u32; 2],
) -> Result<()> {
    let name = |pod: &AppPod| match pod.cluster.as_str() {
        _ if pod.node == OWN_ZONE => "own zone".to_owned(),
        "hangzhou" => "other zones".to_owned(),
        elsewhere => elsewhere.to_owned(),
    };
    let wanted = [("own zone", own.into()), ("other zones", region.into()), ("shanghai", 0.0)];
    clusters.expect_ring_by(report, vip(), pods, name, &wanted)?;
    let healthy = if own == 0 { "7/9" } else { "9/9" };
    let weights = [("cn-hangzhou/cn-hangzhou-a", own.into()), ("cn-hangzhou", region.into())];
    clusters.expect_status(
        report,
        "httpbin",
        &Wanted { mode: "Zone", weights: &weights, healthy, ejected: 0 },
    )
}

fn vip() -> SocketAddr {
    (VIP.v4, HTTP_PORT).into()
}

fn connect(clusters: &Clusters, connections: usize) -> Result<Tally> {
    let load = TcpLoad { timeout: PATIENCE, ..TcpLoad::new(vip(), connections) };
    let _watch = clusters.watch(&load.live);
    Ok(clusters.stage.bed().client().tcp(load)?.tally())
}
