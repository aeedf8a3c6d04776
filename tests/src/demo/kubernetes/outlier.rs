//! Story S1: a pod that refuses while its cluster calls it ready, and nobody probes it.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{
    policy::Wanted,
    stage::{Clusters, MEMBERS},
};
use crate::{
    agent::{Agent, Backend},
    client::TcpLoad,
    demo::report::{StepReport, millis},
    stage::{App, AppPod, SOON},
    topology::HTTP_PORT,
};

/// Pods in each cluster.
const PODS: u8 = 2;
/// Connections, one after the other, while the pod refuses.
const CONNECTIONS: usize = 300;
/// Of the policy.
const EJECTION: Duration = Duration::from_secs(5);
/// What a status tells of numbers it tells every ten seconds at most.
const NUMBERS: SignedDuration = SignedDuration::from_secs(11);

/// Story S1's figures, but for the time that an ejection takes: 1m there.
const POLICY: &str = "healthCheck: {type: None}
outlierDetection: {consecutiveErrors: 1, interval: 1s, baseEjectionTime: 5s}";

/// Whose kubelet asks nobody: a pod is ready as long as it runs.
fn ratings() -> App {
    App::new("ratings", PODS).assigned().unchecked()
}

/// One pod of four refuses: the first connection to it is its last, it is ejected, and no client notices anything. It
/// gets new flows again when its ejection is over.
pub(super) fn outlier(clusters: &mut Clusters) -> Result<StepReport> {
    let (vip, pods) = deploy(clusters)?;
    clusters.policy("ratings", POLICY)?;
    clusters.agent.wait_until("leaving the pods unprobed", SOON, |agent| {
        let rows = rows(agent)?;
        Ok(rows.iter().all(|row| row.healthy.is_none() && row.usable))
    })?;
    let mut report = StepReport::begun();
    clusters.expect_status(&mut report, "ratings", &status("4/4", 0))?;
    wait_until_numbers_may_be_told(clusters)?;

    let victim = pods.first().context("there are no pods")?;
    clusters.say(&format!("{} stops listening. Its cluster has no reason to doubt it:", victim.name));
    let before = clusters.agent.counters()?;
    clusters.refuse(victim)?;
    let refusing = Instant::now();
    let load = TcpLoad { concurrency: 1, ..TcpLoad::new((vip, HTTP_PORT).into(), CONNECTIONS) };
    let watch = clusters.watch(&load.live);
    let outcomes = clusters.stage.bed().client().tcp(load)?;
    drop(watch);
    let took = refusing.elapsed();
    let tally = outcomes.tally();
    let after = clusters.agent.counters()?;
    clusters.agent.wait_until("saying that the pod is ejected", SOON, |agent| {
        Ok(rows(agent)?.iter().any(|row| is(row, victim) && !row.usable))
    })?;
    let ejected = Instant::now();
    clusters.type_in("kanmon backends --socket gateway.sock | grep -e SERVICE -e demo/ratings")?;
    let ready = clusters.type_in(&format!(
        "kubectl --context {} -n demo get pod {} --no-headers",
        victim.cluster, victim.name
    ))?;
    report.expect(ready.contains("1/1"), || format!("its cluster does not call it ready: {ready}"));
    clusters.expect_status(&mut report, "ratings", &status("3/4", 1))?;
    let refused = after["connect_refused"] - before["connect_refused"];
    let rescued = after["flow_rescued"] - before["flow_rescued"];
    // More than one error takes more than one ejection.
    let ejections = 1 + took.as_secs() / EJECTION.as_secs();
    report.expect((1..=ejections).contains(&refused), || {
        format!("it refused {refused} connections, and was to be ejected after the first")
    });
    report.expect(rescued == refused, || format!("{rescued} of {refused} that it refused were rescued"));
    report.expect(!tally.by_pod.contains_key(&victim.name), || format!("{} answered", victim.name));

    clusters.say("It listens again. Nothing ends its ejection but time:");
    clusters.mend();
    let load = clusters.load_at((vip, HTTP_PORT).into())?;
    let back = load.first(ejected, |answer| answer.pod == victim.name);
    report.expect(back.is_some(), || "it gets no new flows again".into());
    let (again, _) = load.end(ejected);
    report.expect(again.ok, || format!("{} failed when it came back", again.failed));
    // It was ejected a moment before the agent was seen to say so.
    let out = back.map(|back| back.duration_since(refusing));
    report.expect(out.is_none_or(|out| out >= EJECTION), || format!("it was out for {out:?} only"));
    report.ms = out.map(millis);
    report.detail("refused", refused);
    report.detail("rescued", rescued);
    clusters.type_in("kubectl --context gateway -n demo delete loadbalancingpolicy ratings")?;
    Ok(report.with(&tally))
}

/// Deploys the app, and waits until all its pods are used. Returns its IPv4 VIP.
fn deploy(clusters: &mut Clusters) -> Result<(IpAddr, Vec<AppPod>)> {
    clusters.all_well()?;
    clusters.stage.workstation().write("ratings.yaml", &ratings().yaml())?;
    for member in MEMBERS {
        clusters.type_in(&format!("kubectl --context {member} apply -f ratings.yaml"))?;
    }
    let wanted = MEMBERS.map(|member| (member, usize::from(PODS)));
    let pods = clusters.stage.wait_until_used(&mut clusters.agent, &ratings(), &wanted)?;
    let vips = clusters.stage.external_ips(MEMBERS[0], &ratings())?;
    let vip = vips.into_iter().find(IpAddr::is_ipv4).context("the Service has no IPv4 address")?;
    Ok((vip, pods))
}

/// Waits until a change of numbers alone, which an ejection is, is told at once.
fn wait_until_numbers_may_be_told(clusters: &Clusters) -> Result<()> {
    let path = "/apis/kanmon.dev/v1alpha1/namespaces/demo/loadbalancingpolicies/ratings";
    clusters.stage.kube("gateway")?.see("nothing was told of late", path, SOON, |policy| {
        let updated: Timestamp = policy["status"]["gateways"][0]["updated"].as_str()?.parse().ok()?;
        (Timestamp::now() >= updated + NUMBERS).then_some(())
    })
}

fn status(healthy: &str, ejected: u64) -> Wanted<'_> {
    Wanted { mode: "Even", weights: &[], healthy, ejected }
}

fn rows(agent: &Agent) -> Result<Vec<Backend>> {
    let mut rows = agent.backends()?;
    rows.retain(|row| row.service == ratings().service());
    Ok(rows)
}

fn is(row: &Backend, pod: &AppPod) -> bool {
    pod.addresses.contains(&row.address)
}
