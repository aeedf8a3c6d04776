//! Story S4: remote secrets, both ways.

use anyhow::Result;

use super::stage::{Clusters, MEMBERS, expect_none_failed};
use crate::{
    agent::Agent,
    client::{Tally, TcpLoad},
    demo::report::StepReport,
    stage::{App, Gateway, itself},
    topology::HTTP_PORT,
};

/// Connections to each gateway.
const CONNECTIONS: usize = 200;

/// Each cluster has a gateway of its own, and helloworld in another version. The Secret of each is applied to
/// the other: both versions answer at both gateways. One Secret is removed: there only the own one answers.
pub(super) fn remote_secret(clusters: &mut Clusters) -> Result<StepReport> {
    let mut halves = Vec::new();
    for (cluster, version) in MEMBERS.into_iter().zip(["v1", "v2"]) {
        halves.push(half(clusters, cluster, version)?);
    }
    clusters.say("Each is the other's remote cluster, by the Secret that istiod reads too:");
    for member in MEMBERS {
        clusters.type_in(&format!(
            "kanmon remote-secret create --istio --context {member} --name {member} 2>/dev/null >{member}.yaml"
        ))?;
    }
    for (member, reader) in [("shanghai", "hangzhou"), ("hangzhou", "shanghai")] {
        clusters.type_in(&format!("kubectl --context {reader} apply -f {member}.yaml"))?;
    }
    let both = MEMBERS.map(|member| (member, 2));
    let mut all = Tally::default();
    let mut report = StepReport::of(&all);
    for half in &mut halves {
        clusters.stage.wait_until_used(&mut half.agent, &half.app, &both)?;
        clusters.type_in(&format!("curl --silent --max-time 3 http://{}/", half.gateway.vip().v4))?;
        let tally = half.connect(clusters)?;
        for version in ["v1", "v2"] {
            let of_version = format!("helloworld-{version}-");
            let answered = tally.by_pod.keys().any(|pod| pod.starts_with(&of_version));
            report.expect(answered, || format!("{version} did not answer at {}'s gateway", half.cluster));
        }
        add(&mut all, &tally);
    }
    clusters.say("hangzhou forgets shanghai; a Secret may be gone for 3 s here before its member is:");
    clusters
        .type_in("kubectl --context hangzhou -n istio-system delete secret istio-remote-secret-shanghai")?;
    let own = &mut halves[0];
    clusters.stage.wait_until_used(&mut own.agent, &own.app, &[("hangzhou", 2)])?;
    let after = own.connect(clusters)?;
    report.expect(after.by_cluster.keys().eq(["hangzhou"]), || {
        format!("without the Secret these answered at hangzhou's gateway: {:?}", after.by_cluster)
    });
    add(&mut all, &after);
    report = StepReport { ok: report.ok, why: report.why, ..StepReport::of(&all) };
    expect_none_failed(&mut report);
    clusters.others.extend(halves.into_iter().map(|half| half.agent));
    Ok(report)
}

/// A cluster with its own gateway.
struct Half {
    cluster: &'static str,
    app: App,
    gateway: Gateway,
    agent: Agent,
}

impl Half {
    fn connect(&self, clusters: &Clusters) -> Result<Tally> {
        let load = TcpLoad::new((self.gateway.vip().v4, HTTP_PORT).into(), CONNECTIONS);
        let _watch = clusters.watch(&load.live);
        Ok(clusters.stage.bed().client().tcp(load)?.tally())
    }
}

/// Gives a cluster a gateway whose agent takes it for its own, and an app that has its VIP there.
fn half(clusters: &mut Clusters, cluster: &'static str, version: &'static str) -> Result<Half> {
    let gateway = clusters.stage.gateway_of(cluster)?;
    let app = App::new("helloworld", 2).version(version).at(gateway.vip());
    let workstation = clusters.stage.workstation();
    workstation.write(&format!("helloworld-{version}.yaml"), &app.yaml())?;
    workstation.write(&format!("local-{cluster}.yaml"), &itself(cluster, "SameName"))?;
    clusters.type_in(&format!(
        "kubectl --context {cluster} apply -f helloworld-{version}.yaml -f local-{cluster}.yaml"
    ))?;
    let mut agent = clusters.stage.start_agent(&gateway, &["--secret-grace-period=3s"])?;
    clusters.stage.wait_until_used(&mut agent, &app, &[(cluster, 2)])?;
    Ok(Half { cluster, app, gateway, agent })
}

fn add(sum: &mut Tally, one: &Tally) {
    sum.requests += one.requests;
    sum.failed += one.failed;
    for (counts, more) in [
        (&mut sum.by_cluster, &one.by_cluster),
        (&mut sum.by_pod, &one.by_pod),
        (&mut sum.failures, &one.failures),
    ] {
        for (name, count) in more {
            *counts.entry(name.clone()).or_default() += count;
        }
    }
}
