//! The pods that the scheduler bound to a node, as the API server shows them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::watcher::{self, Event, watcher},
};
use tokio::sync::watch;

use super::worker::{Kubelet, Seen, run};

/// How soon to look again after an error.
const RETRY: Duration = Duration::from_millis(500);
/// How long a watch may be silent before it is made anew, in seconds.
const IDLE: u32 = 30;

/// Runs the pods of one node, for ever.
pub(super) async fn serve(kubelet: Arc<Kubelet>, client: Client, node: String) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}")).timeout(IDLE);
    let events = watcher(Api::<Pod>::all(client.clone()), config);
    let mut events = std::pin::pin!(events);
    let mut pods = Pods { kubelet, client, workers: HashMap::new(), listed: Vec::new() };
    loop {
        match events.try_next().await {
            Ok(Some(event)) => pods.handle(event),
            Ok(None) => return,
            Err(e) => {
                eprintln!("kanmon-kubelet: cannot watch the pods of node {node}: {e}; it is tried again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

struct Pods {
    kubelet: Arc<Kubelet>,
    client: Client,
    /// By uid.
    workers: HashMap<String, watch::Sender<Seen>>,
    /// The uids of a list that is being read.
    listed: Vec<String>,
}

impl Pods {
    fn handle(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                self.listed.extend(pod.metadata.uid.clone());
                self.apply(pod);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                self.workers
                    .iter()
                    .filter(|(uid, _)| !listed.contains(uid))
                    .for_each(|(_, worker)| remove(worker));
            }
            Event::Apply(pod) => self.apply(pod),
            Event::Delete(pod) => {
                if let Some(worker) = pod.metadata.uid.and_then(|uid| self.workers.remove(&uid)) {
                    remove(&worker);
                }
            }
        }
    }

    fn apply(&mut self, pod: Pod) {
        self.workers.retain(|_, worker| !worker.is_closed());
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let seen = Seen { pod: Arc::new(pod), removed: false };
        if let Some(worker) = self.workers.get(&uid) {
            worker.send_replace(seen);
            return;
        }
        let (worker, seen) = watch::channel(seen);
        tokio::spawn(run(self.kubelet.clone(), self.client.clone(), seen));
        self.workers.insert(uid, worker);
    }
}

fn remove(worker: &watch::Sender<Seen>) {
    worker.send_modify(|seen| seen.removed = true);
}
