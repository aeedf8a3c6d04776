//! A cluster with the bed's kubelet, and what tests ask of it.

use std::{cell::RefCell, net::IpAddr, time::Duration};

use anyhow::Result;
use k8s_openapi::api::{core::v1::Pod, discovery::v1::EndpointSlice};
use kube::{Api, Client, api::ListParams};
use tests::{
    kube::{KubeBed, KubeCluster, KubeOptions},
    netns::Process,
    topology::Bed,
};

/// How long the controllers may take: generous, for a machine that is busy compiling.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Hangzhou, with a control plane and a kubelet.
pub(crate) struct Cluster {
    kubelet: RefCell<Process>,
    bed: KubeBed,
}

impl Cluster {
    pub(crate) fn start() -> Cluster {
        let options = KubeOptions { clusters: vec!["hangzhou"], ..KubeOptions::default() };
        let bed = KubeBed::start(options).unwrap();
        let kubelet = RefCell::new(bed.start_kubelet("hangzhou").unwrap());
        Cluster { kubelet, bed }
    }

    pub(crate) fn bed(&self) -> &Bed {
        self.bed.bed()
    }

    pub(crate) fn kube(&self) -> &KubeCluster {
        self.bed.cluster("hangzhou").unwrap()
    }

    /// Kills the kubelet with SIGKILL.
    pub(crate) fn kill_kubelet(&self) {
        self.kubelet.borrow_mut().kill().unwrap();
    }

    pub(crate) fn start_kubelet(&self) {
        *self.kubelet.borrow_mut() = self.bed.start_kubelet("hangzhou").unwrap();
    }

    pub(crate) fn apply(&self, yaml: &str) {
        self.kube().apply(yaml).unwrap();
    }

    pub(crate) fn kubectl(&self, args: &[&str]) {
        self.kube().kubectl(args, "").unwrap();
    }

    /// Waits for an answer; when there is none, the kubelet's log is part of the failure.
    pub(crate) fn wait<T: Send>(
        &self,
        what: &str,
        ask: impl AsyncFnMut(Client) -> Result<Option<T>> + Send,
    ) -> T {
        self.kube()
            .wait_for(what, SOON, ask)
            .unwrap_or_else(|e| panic!("{e:#}; the kubelet says: {}", self.kubelet.borrow().log_tail(20)))
    }

    /// Waits until exactly `count` pods have the label `app`, all of them ready.
    pub(crate) fn wait_for_ready(&self, app: &str, count: usize) -> Vec<Pod> {
        self.wait(&format!("{count} ready pods of {app}"), async |client| {
            let pods = pods(client, app).await?;
            let none_ends = pods.iter().all(|pod| pod.metadata.deletion_timestamp.is_none());
            Ok((pods.len() == count && none_ends && pods.iter().all(is_ready)).then_some(pods))
        })
    }

    /// Waits until the one pod with the label `app` is as it should be.
    pub(crate) fn wait_for_pod(&self, app: &str, what: &str, is: impl Fn(&Pod) -> bool + Send + Sync) -> Pod {
        self.wait(&format!("pod of {app}: {what}"), async |client| {
            Ok(pods(client, app).await?.into_iter().find(|pod| is(pod)))
        })
    }

    /// Waits until the slices of a service have these numbers of endpoints: all, and ready ones.
    pub(crate) fn wait_for_endpoints(&self, service: &str, all: usize, ready: usize) -> Vec<EndpointSlice> {
        self.wait(&format!("{ready} of {all} endpoints of {service} ready"), async |client| {
            let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
            let slices = Api::<EndpointSlice>::namespaced(client, "default").list(&of_service).await?.items;
            let listed = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()).count();
            Ok((listed == all && ready_endpoints(&slices).len() == ready).then_some(slices))
        })
    }
}

async fn pods(client: Client, app: &str) -> Result<Vec<Pod>> {
    let of_app = ListParams::default().labels(&format!("app={app}"));
    Ok(Api::<Pod>::namespaced(client, "default").list(&of_app).await?.items)
}

/// A Deployment of echo servers, one a zone as far as possible, and its dual-stack Service. `more` is added to
/// the pods' `spec`, indented by six.
pub(crate) fn echo(name: &str, replicas: u8, more: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 5
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: topology.kubernetes.io/zone
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {{matchLabels: {{app: {name}}}}}
      containers:
      - name: echo
        image: kanmon.dev/echo
        args: ['--drain-delay=0.2']
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: http}}, periodSeconds: 1}}
{more}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: http}}]
"
    )
}

/// IPv4, then IPv6.
pub(crate) fn addresses(pod: &Pod) -> [IpAddr; 2] {
    let ips = pod.status.as_ref().unwrap().pod_ips.as_ref().unwrap();
    [0, 1].map(|n| ips[n].ip.parse().unwrap())
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// How often the pod's first container was started again.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.and_then(|all| all.first()).map_or(0, |status| status.restart_count)
}

/// The addresses of all ready endpoints.
pub(crate) fn ready_endpoints(slices: &[EndpointSlice]) -> Vec<String> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready =
        endpoints.filter(|endpoint| endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true)));
    ready.flat_map(|endpoint| endpoint.addresses.clone()).collect()
}
