//! A member's API server goes, and comes back.

use std::time::Instant;

use anyhow::{Context, Result};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::stage::{Clusters, MEMBERS, PODS, app, expect_none_failed};
use crate::{
    agent::{Agent, Connection},
    client::TcpLoad,
    demo::report::{StepReport, millis},
    stage::SOON,
    topology::{HTTP_PORT, VIP},
};

/// Whose API server it is.
const LOST: &str = "shanghai";

/// Connections while it is away: of 500, one run in 140 has a share that is 6 points off.
const MEANWHILE: usize = 2000;

/// In which time it is to be caught up with.
const GOAL_MS: u64 = 5000;

/// shanghai's API server is killed under load: no connection fails and its pods keep their share; the agent
/// says that it is not connected, and since when. It comes back: the agent is connected again, and a pod that
/// is new there is served.
pub(super) fn api_loss(clusters: &mut Clusters) -> Result<StepReport> {
    clusters.all_well()?;
    let load = clusters.load()?;
    let (killed, killed_at) = (Instant::now(), Timestamp::now());
    clusters.stage.kube(LOST)?.kill_api()?;
    clusters.agent.wait_until("saying that it lost shanghai's API server", SOON, |agent| {
        Ok(lost(agent)?.connected == Some(false))
    })?;
    let noticed = killed.elapsed();
    let said = lost(&clusters.agent)?;
    show_members(clusters)?;
    let tally =
        clusters.stage.bed().client().tcp(TcpLoad::new((VIP.v4, HTTP_PORT).into(), MEANWHILE))?.tally();
    clusters.say("It is started again, and gets another pod:");
    clusters.stage.kube(LOST)?.start_api()?;
    let back = Instant::now();
    clusters.agent.wait_until("connected to shanghai again", SOON, |agent| {
        let now = lost(agent)?;
        Ok(now.connected == Some(true) && now.synced)
    })?;
    let caught_up = back.elapsed();
    clusters.type_in("kubectl --context shanghai -n demo scale deployment/httpbin --replicas=4")?;
    let more = MEMBERS.map(|member| (member, usize::from(PODS) + usize::from(member == LOST)));
    clusters.stage.wait_until_used(&mut clusters.agent, &app(), &more)?;
    show_members(clusters)?;

    let (mut report, _) = load.end(killed);
    report.ms = Some(millis(caught_up));
    report.goal_ms = Some(GOAL_MS);
    report.detail("noticed_ms", millis(noticed));
    report.detail("reason", said.reason.as_str());
    let since: Timestamp = said.since.parse().context("`since` is no time")?;
    // It is written in whole seconds.
    report.expect(since >= killed_at - SignedDuration::from_secs(1), || {
        format!("it was killed at {killed_at}, and `kanmon status` says since {since}")
    });
    let mut meanwhile = StepReport::of(&tally);
    expect_none_failed(&mut meanwhile);
    report.expect(meanwhile.ok, || format!("{} failed while it was away", meanwhile.failed));
    let share = tally.cluster_share(LOST);
    report.expect((0.44..=0.56).contains(&share), || {
        format!("{LOST} answered {:.1}% while its API server was away", share * 100.0)
    });
    Ok(report)
}

/// What the agent says of the API server in question.
fn lost(agent: &Agent) -> Result<Connection> {
    let member = agent.members()?.into_iter().find(|member| member.name == LOST);
    member.and_then(|member| member.connection).with_context(|| format!("the agent has no member {LOST}"))
}

fn show_members(clusters: &Clusters) -> Result<()> {
    clusters.type_in("kanmon status --socket gateway.sock | sed -n '/^CLUSTERS/,/^$/p'").map(drop)
}
