//! Who changes endpoints, and sees the events of that as an agent does: over a watch of its own.

use std::{
    path::PathBuf,
    sync::mpsc::{Receiver, Sender, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams},
};
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::load::{NAMESPACE, Slice};
use crate::{kube::in_namespace, netns::Netns};

/// How long an event may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A slice whose first endpoint becomes ready, or not.
struct Order {
    slice: Slice,
    ready: bool,
}

/// Writes slices of one member, from the gateway's namespace.
pub(super) struct Writer {
    orders: Option<UnboundedSender<Order>>,
    events: Receiver<(String, Instant)>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Writer {
    /// Begins to watch.
    pub(super) fn start(ns: &Netns, kubeconfig: PathBuf) -> Result<Writer> {
        let (orders, taken) = unbounded_channel();
        let (tell, events) = channel();
        let (ready, started) = channel();
        let ns = ns.clone();
        let thread = thread::spawn(move || {
            in_namespace(&ns, &kubeconfig, async |client| work(client, taken, tell, ready).await)
        });
        let writer = Writer { orders: Some(orders), events, thread: Some(thread) };
        match started.recv_timeout(PATIENCE) {
            Ok(()) => Ok(writer),
            Err(_) => Err(writer.end()).context("the watch did not begin"),
        }
    }

    /// Makes the first endpoint of a slice ready or not; does not wait.
    pub(super) fn set(&self, slice: &Slice, ready: bool) -> Result<()> {
        let orders = self.orders.as_ref().context("it has ended")?;
        orders.send(Order { slice: slice.clone(), ready }).map_err(|_| anyhow!("whoever writes has ended"))
    }

    /// When the next event of a slice came.
    pub(super) fn event(&self, slice: &str) -> Result<Instant> {
        loop {
            let (name, at) =
                self.events.recv_timeout(PATIENCE).with_context(|| format!("no event of {slice}"))?;
            if name == slice {
                return Ok(at);
            }
        }
    }

    /// All events that came since.
    pub(super) fn events(&self) -> Vec<(String, Instant)> {
        self.events.try_iter().collect()
    }

    /// Why it ended.
    fn end(mut self) -> anyhow::Error {
        self.orders = None;
        let end = self.thread.take().map(JoinHandle::join);
        match end {
            Some(Ok(Err(error))) => error,
            _ => anyhow!("no reason was given"),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It ends with its orders.
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn work(
    client: Client,
    mut orders: UnboundedReceiver<Order>,
    tell: Sender<(String, Instant)>,
    ready: Sender<()>,
) -> Result<()> {
    let slices = Api::<EndpointSlice>::namespaced(client, NAMESPACE);
    let version = slices.list(&ListParams::default().limit(1)).await?.metadata.resource_version;
    let mut version = version.context("lists have versions")?;
    let mut seen = slices.watch(&WatchParams::default(), &version).await?.boxed();
    let _ = ready.send(());
    let mut writes = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            event = seen.try_next() => match event? {
                Some(WatchEvent::Modified(slice)) => {
                    let _ = tell.send((slice.metadata.name.unwrap_or_default(), Instant::now()));
                    version = slice.metadata.resource_version.unwrap_or(version);
                }
                Some(WatchEvent::Error(status)) => bail!("the watch failed: {status:?}"),
                Some(_) => {}
                // API servers end watches now and then.
                None => seen = slices.watch(&WatchParams::default(), &version).await?.boxed(),
            },
            order = orders.recv() => match order {
                Some(order) => {
                    let slices = slices.clone();
                    writes.spawn(async move { write(&slices, &order).await });
                }
                None => break,
            },
            Some(written) = writes.join_next() => written??,
        }
    }
    Ok(())
}

async fn write(slices: &Api<EndpointSlice>, order: &Order) -> Result<()> {
    let endpoints = json!({"endpoints": order.slice.endpoints(order.ready)});
    slices.patch(&order.slice.name, &PatchParams::default(), &Patch::Merge(endpoints)).await?;
    Ok(())
}
