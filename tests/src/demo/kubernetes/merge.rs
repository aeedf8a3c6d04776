//! Story S0: the same name in two clusters.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use anyhow::Result;

use super::stage::{Clusters, MEMBERS, app, expect_none_failed};
use crate::{
    client::TcpLoad,
    demo::report::{StepReport, millis},
    stage::wait_until_exactly,
    topology::{HTTP_PORT, VIP},
};

/// 1,000 connections: none fails, each cluster gets 44–56%, every pod is served, and the list of flows shows
/// pods of both clusters.
pub(super) fn merge(clusters: &mut Clusters) -> Result<StepReport> {
    let pods = clusters.all_well()?;
    for member in MEMBERS {
        clusters.type_in(&format!("kubectl --context {member} -n demo get deployment,service httpbin"))?;
    }
    clusters.type_in("kubectl --context gateway get memberclusters")?;
    clusters.type_in(&format!("curl --silent --max-time 3 http://{}/", VIP.v4))?;
    let load = TcpLoad::new((VIP.v4, HTTP_PORT).into(), 1000);
    let watch = clusters.watch(&load.live);
    let tally = clusters.stage.bed().client().tcp(load)?.tally();
    drop(watch);
    clusters.type_in("kanmon flows --socket gateway.sock --limit 5")?;

    let mut report = StepReport::of(&tally);
    expect_none_failed(&mut report);
    for member in MEMBERS {
        let share = tally.cluster_share(member);
        report.expect((0.44..=0.56).contains(&share), || format!("{member} answered {:.1}%", share * 100.0));
    }
    let hosts: BTreeSet<IpAddr> = clusters
        .agent
        .flows()?
        .iter()
        .filter_map(|flow| flow.upstream_host.parse::<SocketAddr>().ok())
        .map(|host| host.ip())
        .collect();
    for pod in &pods {
        report.expect(tally.by_pod.contains_key(&pod.name), || format!("{} was not served", pod.name));
        report.expect(pod.addresses.iter().any(|address| hosts.contains(address)), || {
            format!("`kanmon flows` has no upstream_host of {}", pod.name)
        });
    }
    report.detail("upstream_hosts", hosts.len());
    Ok(report)
}

/// The app is deleted in hangzhou under load: within 30 s 500 connections in a row are answered by shanghai,
/// and so is every later one; none fails, because its pods drain.
pub(super) fn delete(clusters: &mut Clusters) -> Result<StepReport> {
    let mut left = clusters.all_well()?;
    left.retain(|pod| pod.cluster == "shanghai");
    let load = clusters.load()?;
    let deleted = Instant::now();
    clusters.type_in(
        "kubectl --context hangzhou -n demo delete service/httpbin deployment/httpbin --wait=false",
    )?;
    let moved = load.only("shanghai", deleted, 500);
    wait_until_exactly(&mut clusters.agent, &app(), &left)?;
    clusters.say("hangzhou's pods go on serving what they have until they are done:");
    clusters.stage.wait_until_ended("hangzhou", &app())?;
    clusters.type_in("kubectl --context hangzhou -n demo get pods 2>&1")?;
    clusters.type_in("kanmon services --socket gateway.sock")?;
    let (mut report, outcomes) = load.end(deleted);
    report.expect(moved.is_some(), || "no 500 in a row were answered by shanghai within 30 s".into());
    report.ms = moved.map(|moved| millis(moved.duration_since(deleted)));
    let back = outcomes.iter().filter(|outcome| {
        moved.is_some_and(|moved| outcome.started >= moved)
            && outcome.result.as_ref().is_ok_and(|answer| answer.cluster != "shanghai")
    });
    let back = back.count();
    report.expect(back == 0, || format!("{back} later ones reached hangzhou"));
    Ok(report)
}
