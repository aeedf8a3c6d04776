//! The pods of an app as their clusters know them, and waiting for agents that use exactly these.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams};
use serde_json::Value;

use super::{App, KubeStage, Reach};
use crate::{
    agent::Agent,
    client::{Client as Clients, TcpLoad},
    kubelet::pod_namespace,
};

/// How long controllers, kubelets and agents may take: generous, for a machine that is busy compiling.
pub const SOON: Duration = Duration::from_secs(90);

/// So many, and each of a dozen pods gets one of them but for bad luck, which the next try makes good.
const CONNECTIONS_A_POD: usize = 20;

/// A ready pod that is not being deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppPod {
    /// Its name.
    pub name: String,
    /// Its cluster.
    pub cluster: String,
    /// Its uid: [`crate::kubelet::pod_namespace`] takes it.
    pub uid: String,
    /// The Node that it is on: `hangzhou-a` is in the zone `cn-hangzhou-a`.
    pub node: String,
    /// IPv4, then IPv6.
    pub addresses: Vec<IpAddr>,
}

impl KubeStage {
    /// Waits until a cluster has exactly `count` pods of an app, all of them ready; those that are being
    /// deleted don't count.
    ///
    /// # Errors
    /// When it has not in time.
    pub fn wait_for_pods(&self, cluster: &str, app: &App, count: usize) -> Result<Vec<AppPod>> {
        let what = format!("{count} ready pods of {}", app.name);
        self.kube(cluster)?
            .wait_for(&what, SOON, async |client| {
                let mut pods = pods(client, &app.name).await?;
                pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
                let all = pods.len() == count && pods.iter().all(is_ready);
                Ok(all.then(|| pods.iter().map(|pod| described(cluster, pod)).collect()))
            })
            .with_context(|| format!("the kubelets say: {}", self.kubelets_say()))
    }

    /// Waits until each of these clusters has so many ready pods of an app, the agent means to send new flows
    /// to exactly these, and exactly these answer at the app's VIPs: those that it names, or those that the
    /// first of these clusters shows. Returns the pods, in the order of the clusters.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_until_used(
        &self,
        agent: &mut Agent,
        app: &App,
        clusters: &[(&str, usize)],
    ) -> Result<Vec<AppPod>> {
        let mut pods = Vec::new();
        for (cluster, count) in clusters {
            pods.extend(self.wait_for_pods(cluster, app, *count)?);
        }
        wait_until_exactly(agent, app, &pods)?;
        let vips = match (app.reach, clusters.first()) {
            (Reach::At(vip), _) => vip.both().to_vec(),
            (Reach::Assigned, Some((cluster, _))) => self.external_ips(cluster, app)?,
            _ => Vec::new(),
        };
        for vip in vips {
            self.wait_until_answering((vip, app.port).into(), &pods)?;
        }
        Ok(pods)
    }

    /// Waits until a cluster shows the VIPs of an app, as `kubectl get service` does under EXTERNAL-IP: one of
    /// each family.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn external_ips(&self, cluster: &str, app: &App) -> Result<Vec<IpAddr>> {
        let path = format!("/api/v1/namespaces/demo/services/{}", app.name);
        self.kube(cluster)?.see(&format!("{} has external addresses", app.name), &path, SOON, |service| {
            let shown = ingress(service);
            (shown.len() == 2).then_some(shown)
        })
    }

    /// A client in a pod.
    ///
    /// # Errors
    /// When the pod is gone.
    pub fn inside(&self, pod: &AppPod) -> Result<Clients> {
        let ns = pod_namespace(self.run(), &pod.cluster, &pod.uid)?;
        Ok(Clients::at(ns, &pod.addresses))
    }

    /// Connects until exactly these pods answer: what the agent means to do is in the kernel a moment later.
    ///
    /// # Errors
    /// When others do still, or one does not, after a while.
    pub fn wait_until_answering(&self, target: SocketAddr, pods: &[AppPod]) -> Result<()> {
        let wanted: BTreeSet<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
        let deadline = Instant::now() + SOON;
        while !wanted.is_empty() {
            let load = TcpLoad::new(target, CONNECTIONS_A_POD * pods.len());
            let tally = self.bed().client().tcp(load)?.tally();
            if tally.by_pod.keys().map(String::as_str).eq(wanted.iter().copied()) {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "after {SOON:?} {wanted:?} should answer at {target}, and these do: {tally:?}"
            );
        }
        Ok(())
    }

    /// Waits until no pod of an app is on its way out in a cluster: all that was deleted has drained and ended.
    ///
    /// # Errors
    /// When one is then still there.
    pub fn wait_until_ended(&self, cluster: &str, app: &App) -> Result<()> {
        let what = format!("the deleted pods of {} have ended", app.name);
        self.kube(cluster)?.wait_for(&what, SOON, async |client| {
            let mut pods = pods(client, &app.name).await?;
            pods.retain(|pod| pod.metadata.deletion_timestamp.is_some());
            Ok(pods.is_empty().then_some(()))
        })
    }
}

/// Waits until the agent means to send new flows of an app to exactly these pods: the kernel knows a moment
/// later.
///
/// # Errors
/// When it does not in time.
pub fn wait_until_exactly(agent: &mut Agent, app: &App, pods: &[AppPod]) -> Result<()> {
    let wanted: BTreeSet<(String, IpAddr)> = pods
        .iter()
        .flat_map(|pod| pod.addresses.iter().map(|address| (pod.cluster.clone(), *address)))
        .collect();
    let names: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    agent.wait_until(&format!("using exactly {names:?} for {}", app.service()), SOON, |agent| {
        let used: BTreeSet<(String, IpAddr)> = agent
            .backends()?
            .into_iter()
            .filter(|row| row.service == app.service() && row.usable && row.healthy == Some(true))
            .map(|row| (row.cluster, row.address))
            .collect();
        Ok(used == wanted)
    })
}

/// The addresses in the status of a Service, in their order.
pub fn ingress(service: &Value) -> Vec<IpAddr> {
    let entries = service["status"]["loadBalancer"]["ingress"].as_array();
    entries.into_iter().flatten().filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect()
}

async fn pods(client: Client, app: &str) -> Result<Vec<Pod>> {
    let of_app = ListParams::default().labels(&format!("app={app}"));
    Ok(Api::<Pod>::namespaced(client, "demo").list(&of_app).await?.items)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn described(cluster: &str, pod: &Pod) -> AppPod {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    AppPod {
        name: pod.metadata.name.clone().unwrap_or_default(),
        cluster: cluster.to_owned(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        addresses: ips.filter_map(|ip| ip.ip.parse().ok()).collect(),
    }
}
