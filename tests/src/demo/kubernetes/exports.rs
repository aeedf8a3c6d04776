//! Story S3: exports, an address from a pool, and placement by label.

use std::{net::IpAddr, time::Instant};

use anyhow::{Context, Result};

use super::stage::{Clusters, MEMBERS, PODS, expect_none_failed};
use crate::{
    client::TcpLoad,
    demo::report::{StepReport, millis},
    kube::condition,
    stage::{App, SOON},
};

/// The port that the story's `curl` asks.
const PORT: u16 = 8080;
/// The member whose label changes.
const LEAVES: &str = "shanghai";

/// The app of story S3.
fn shop() -> App {
    App::new("shop", PODS).assigned().port(PORT).exported()
}

/// Both members give what they export, and nothing else: their exports are valid and don't contradict each other,
/// everybody has an import that says where the service is, and pods of both answer there.
pub(super) fn export(clusters: &mut Clusters) -> Result<StepReport> {
    let vip = exported(clusters)?;
    let mut tables = Vec::new();
    for member in MEMBERS {
        wait_until_agreed(clusters, member)?;
        let table =
            clusters.type_in(&format!("kubectl --context {member} -n demo get serviceexport shop"))?;
        tables.push((member, table));
    }
    for cluster in ["gateway", "hangzhou"] {
        wait_for_import(clusters, cluster, vip)?;
        clusters.type_in(&format!("kubectl --context {cluster} -n demo get serviceimport shop"))?;
    }
    let tally = clusters.stage.bed().client().tcp(TcpLoad::new((vip, PORT).into(), 200))?.tally();

    let mut report = StepReport::of(&tally);
    expect_none_failed(&mut report);
    for (member, table) in tables {
        for (name, wanted) in [("IS-VALID", "True"), ("IS-CONFLICTED", "False")] {
            let found = column(&table, name).unwrap_or_default().to_owned();
            report.expect(found == wanted, || format!("{member}'s export has {name} {found:?}"));
        }
        report.expect(tally.by_cluster.contains_key(member), || format!("{member} did not answer"));
    }
    Ok(report)
}

/// kubectl shows an address from the pool, and whoever connects to it gets pods of both members. shanghai's label
/// leaves what the gateway selects, under load: hangzhou alone answers; and shanghai as well when it is back. No
/// connection fails.
pub(super) fn external_ip(clusters: &mut Clusters) -> Result<StepReport> {
    let vip = exported(clusters)?;
    for member in MEMBERS {
        clusters.type_in(&format!("kubectl --context {member} -n demo get service shop"))?;
    }
    clusters.type_in("kubectl --context gateway get addresspool,addressallocation")?;
    clusters
        .type_in(&format!("for n in 1 2 3 4 5 6; do curl --silent --max-time 3 http://{vip}:{PORT}; done"))?;
    let load = TcpLoad::new((vip, PORT).into(), 1000);
    let watch = clusters.watch(&load.live);
    let tally = clusters.stage.bed().client().tcp(load)?.tally();
    drop(watch);

    let load = clusters.load_at((vip, PORT).into())?;
    clusters.say(&format!("{LEAVES} leaves the members that this gateway selects:"));
    let left = Instant::now();
    label(clusters, "elsewhere")?;
    let moved = load.only("hangzhou", left, 300);
    clusters.say("And it is one of them again:");
    label(clusters, "cn-shanghai")?;
    let both = MEMBERS.map(|member| (member, usize::from(PODS)));
    clusters.stage.wait_until_used(&mut clusters.agent, &shop(), &both)?;
    let (meanwhile, _) = load.end(left);

    let mut report = StepReport::of(&tally);
    expect_none_failed(&mut report);
    for member in MEMBERS {
        let share = tally.cluster_share(member);
        report.expect((0.44..=0.56).contains(&share), || format!("{member} answered {:.1}%", share * 100.0));
    }
    report.expect(moved.is_some(), || "no 300 in a row were answered by hangzhou alone".into());
    report.expect(meanwhile.ok, || format!("{} failed while the label changed", meanwhile.failed));
    report.ms = moved.map(|moved| millis(moved.duration_since(left)));
    report.detail("external_ip", vip.to_string());
    Ok(report)
}

/// Makes both members such that give what they export, with the app in both. Returns its IPv4 VIP.
fn exported(clusters: &mut Clusters) -> Result<IpAddr> {
    if clusters.discover("ServiceExport")? {
        deploy(clusters)?;
    }
    let both = MEMBERS.map(|member| (member, usize::from(PODS)));
    clusters.stage.wait_until_used(&mut clusters.agent, &shop(), &both)?;
    let vips = clusters.stage.external_ips("hangzhou", &shop())?;
    vips.into_iter().find(IpAddr::is_ipv4).context("the Service has no IPv4 address")
}

fn deploy(clusters: &Clusters) -> Result<()> {
    clusters.say("The definitions of exports and imports are everybody's: Kanmon brings them on request.");
    for cluster in ["gateway", "hangzhou", "shanghai"] {
        clusters.type_in(&format!("kanmon crds --mcs | kubectl --context {cluster} apply -f -"))?;
    }
    clusters.stage.workstation().write("shop.yaml", &shop().yaml())?;
    for member in MEMBERS {
        clusters.stage.type_in(&format!(
            "kubectl --context {member} wait --for=condition=Established --timeout=60s \
             crd/serviceexports.multicluster.x-k8s.io"
        ))?;
        clusters.type_in(&format!("kubectl --context {member} apply -f shop.yaml"))?;
    }
    Ok(())
}

/// Waits until a member's export was judged, and all agree.
fn wait_until_agreed(clusters: &Clusters, member: &str) -> Result<()> {
    let path = "/apis/multicluster.x-k8s.io/v1beta1/namespaces/demo/serviceexports/shop";
    clusters.stage.kube(member)?.see("the export is valid and not conflicted", path, SOON, |export| {
        let agreed = condition(export, "Valid").starts_with("True")
            && condition(export, "Conflict").starts_with("False");
        agreed.then_some(())
    })
}

/// Waits until a cluster has the import, with the VIP and both members.
fn wait_for_import(clusters: &Clusters, cluster: &str, vip: IpAddr) -> Result<()> {
    let path = "/apis/multicluster.x-k8s.io/v1beta1/namespaces/demo/serviceimports/shop";
    let vip = vip.to_string();
    clusters.stage.kube(cluster)?.see("there is an import of both members", path, SOON, |import| {
        let ips = import["spec"]["ips"].as_array()?;
        let sources = import["status"]["clusters"].as_array()?;
        (ips.iter().any(|ip| *ip == vip.as_str()) && sources.len() == MEMBERS.len()).then_some(())
    })
}

fn label(clusters: &Clusters, location: &str) -> Result<()> {
    clusters
        .type_in(&format!(
            "kubectl --context gateway label --overwrite membercluster {LEAVES} location={location}"
        ))
        .map(drop)
}

/// What the first row of kubectl's table has in a column.
fn column<'a>(table: &'a str, name: &str) -> Option<&'a str> {
    let mut rows = table.lines().map(str::split_whitespace);
    let index = rows.next()?.position(|title| title == name)?;
    rows.next()?.nth(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_found_by_its_title() {
        let table = "NAME   IS-VALID   IS-CONFLICTED   AGE\nshop   True       False           4s\n";
        assert_eq!(column(table, "IS-CONFLICTED"), Some("False"));
        assert_eq!(column(table, "TYPE"), None);
        assert_eq!(column("", "AGE"), None);
    }
}
