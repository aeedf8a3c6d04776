//! One member cluster: a task that keeps a connection to its API server and says what it knows.
//!
//! Each member has a task, clients and pauses of its own, so that one that hangs slows nobody.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt, select_all, unfold};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;
use kube::runtime::watcher::Event;
use kube::{Client, Error};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::access::Access;
use super::follow::{Selector, follow, once};
use super::health::{Moment, Shown};
use super::lease;
use super::link::{Happening, Link, Open, Pace, Version};
use super::mcs::follow_mcs;
use super::objects::{Effect, MemberEvent, Objects};
use super::publish::{Present, SLICE_MANAGER};
use super::rights;
use crate::desired::ClusterObjects;

/// A change is told at once; those that come within this time after it are told together.
const GATHER: Duration = Duration::from_millis(10);
/// How often it is asked what may be written: somebody may grant it.
const RIGHTS: Duration = Duration::from_secs(60);
/// What Kanmon does in the clusters that it writes to, beside reading: verb, group, resource with its subresource.
/// `kanmon remote-secret create` grants the same: `remote_secret/objects.rs`.
pub(crate) const WRITES: [(&str, &str, &str); 19] = [
    ("create", "events.k8s.io", "events"),
    ("patch", "events.k8s.io", "events"),
    ("patch", "", "services/status"),
    ("list", "multicluster.x-k8s.io", "serviceexports"),
    ("watch", "multicluster.x-k8s.io", "serviceexports"),
    ("patch", "multicluster.x-k8s.io", "serviceexports/status"),
    ("list", "multicluster.x-k8s.io", "serviceimports"),
    ("watch", "multicluster.x-k8s.io", "serviceimports"),
    ("create", "multicluster.x-k8s.io", "serviceimports"),
    ("update", "multicluster.x-k8s.io", "serviceimports"),
    ("delete", "multicluster.x-k8s.io", "serviceimports"),
    ("patch", "multicluster.x-k8s.io", "serviceimports/status"),
    ("create", "discovery.k8s.io", "endpointslices"),
    ("update", "discovery.k8s.io", "endpointslices"),
    ("delete", "discovery.k8s.io", "endpointslices"),
    ("get", "coordination.k8s.io", "leases"),
    ("create", "coordination.k8s.io", "leases"),
    ("patch", "coordination.k8s.io", "leases"),
    ("delete", "coordination.k8s.io", "leases"),
];

/// What the task is asked to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Order {
    /// How to reach the cluster.
    pub(super) access: Access,
    pub(super) follow: Follow,
}

/// What is wanted of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follow {
    /// Who it is and whether it answers.
    Identity,
    /// Beside that what is written there, and where: of a gateway cluster that is no member.
    Written,
    /// Everything.
    Everything,
}

/// What is known of a member.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    /// Whether it answers.
    pub(super) health: Shown,
    /// The server's version; empty until it is known.
    pub(super) version: String,
    /// The UID of its namespace kube-system.
    pub(super) uid: Option<String>,
    /// Whether all that it has was read on the present connection.
    pub(super) synced: bool,
    /// What it has; `None` until it has all been read once.
    pub(super) objects: Option<Arc<ClusterObjects>>,
    /// What it has of the things that we write; `None` while that is not known on the present connection.
    pub(super) present: Option<Arc<Present>>,
    /// What may not be written there; `None` until it is known.
    pub(super) missing: Option<Vec<String>>,
    /// Namespaces that are on their way out.
    pub(super) terminating: Arc<BTreeSet<String>>,
}

/// A member's task; it ends with this.
pub(super) struct Member {
    order: watch::Sender<Order>,
    view: watch::Receiver<View>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Member {
    /// Begins to connect. `changed` is notified whenever the view is another.
    pub(super) fn start(order: Order, cluster_set_id: &str, pace: Pace, changed: Arc<Notify>) -> Self {
        let (orders, ordered) = watch::channel(order.clone());
        let mut state = State {
            link: Link::new(order.access.clone(), pace, open(order.follow, pace.discovery)),
            objects: Objects::new(cluster_set_id),
            pace,
            shown: None,
            present: None,
            follow: order.follow,
            dirty: false,
            unseen: false,
            stale: false,
            tell_at: None,
            told_at: None,
        };
        let (views, view) = watch::channel(state.view());
        let task = tokio::spawn(async move { state.run(ordered, views, changed).await });
        Self { order: orders, view, task }
    }

    /// Asks for something else, if it is something else.
    pub(super) fn order(&self, order: Order) {
        self.order.send_if_modified(|present| {
            let differs = *present != order;
            if differs {
                *present = order;
            }
            differs
        });
    }

    /// What is known now.
    pub(super) fn view(&self) -> View {
        self.view.borrow().clone()
    }
}

struct State {
    link: Link<MemberEvent>,
    objects: Objects,
    /// What was told last of the objects.
    shown: Option<Arc<ClusterObjects>>,
    /// What was told last of what we write.
    present: Option<Arc<Present>>,
    pace: Pace,
    follow: Follow,
    /// Whether the objects are others than those told.
    dirty: bool,
    /// The same of what we write.
    unseen: bool,
    /// Whether the view may be another than the one told.
    stale: bool,
    /// When to tell.
    tell_at: Option<Instant>,
    /// When something was last told.
    told_at: Option<Instant>,
}

impl State {
    async fn run(
        &mut self,
        mut ordered: watch::Receiver<Order>,
        views: watch::Sender<View>,
        changed: Arc<Notify>,
    ) {
        loop {
            tokio::select! {
                order = ordered.changed() => {
                    if order.is_err() {
                        return;
                    }
                    let order = ordered.borrow_and_update().clone();
                    self.take_order(order);
                }
                happening = self.link.next() => self.take(happening),
                () = until(self.tell_at) => {
                    self.tell_at = None;
                    self.told_at = Some(Instant::now());
                    self.stale = true;
                }
            }
            if self.tell_at.is_none() && std::mem::take(&mut self.stale) {
                let view = self.view();
                let told = views.send_if_modified(|present| {
                    let differs = !same(present, &view);
                    if differs {
                        *present = view;
                    }
                    differs
                });
                if told {
                    changed.notify_one();
                }
            }
        }
    }

    fn take_order(&mut self, order: Order) {
        self.follow = order.follow;
        if self.follow == Follow::Identity {
            self.objects.clear();
            self.shown = None;
            self.present = None;
        } else {
            self.objects.expect_lists();
        }
        self.link.change(order.access, open(self.follow, self.pace.discovery));
        self.stale = true;
    }

    fn take(&mut self, happening: Happening<MemberEvent>) {
        match happening {
            Happening::Beat => self.stale = true,
            Happening::Opened => {
                self.objects.expect_lists();
                self.stale = true;
            }
            Happening::Event(event) => match self.objects.apply(event) {
                Effect::Answered { watch, changed } => {
                    self.stale |= self.link.health.watch_answered(watch, Moment::now());
                    if changed {
                        self.dirty = true;
                        self.unseen = true;
                        let now = Instant::now();
                        let next = self.told_at.map_or(now, |told| now.max(told + GATHER));
                        self.tell_at.get_or_insert(next);
                    }
                }
                Effect::Failed { watch, fault } => {
                    self.link.health.watch_failed(watch, fault, Moment::now());
                    self.stale = true;
                }
                Effect::Learnt => self.stale = true,
                Effect::Nothing => {}
            },
        }
    }

    fn view(&mut self) -> View {
        let synced = self.objects.is_synced();
        // A list that is half there is not told: what was known before it stays.
        if synced && std::mem::take(&mut self.dirty) {
            let objects = self.objects.snapshot();
            // The same again after a reconnect is nothing new.
            if self.shown.as_deref() != Some(&objects) {
                self.shown = Some(Arc::new(objects));
            }
        }
        let known = self.objects.is_present_known();
        if known && std::mem::take(&mut self.unseen) {
            let present = self.objects.present();
            if self.present.as_deref() != Some(&present) {
                self.present = Some(Arc::new(present));
            }
        }
        View {
            health: self.link.health.shown().clone(),
            version: self.link.version.text.clone(),
            uid: self.objects.identity().map(str::to_owned),
            synced,
            objects: self.shown.clone(),
            present: self.present.clone().filter(|_| known),
            missing: self.objects.missing().cloned(),
            terminating: Arc::new(self.objects.terminating()),
        }
    }
}

/// Whether two views are the same; objects are not looked into.
fn same(a: &View, b: &View) -> bool {
    same_arc(a.objects.as_ref(), b.objects.as_ref())
        && same_arc(a.present.as_ref(), b.present.as_ref())
        && (&a.health, &a.version, &a.uid, a.synced, &a.missing, &a.terminating)
            == (&b.health, &b.version, &b.uid, b.synced, &b.missing, &b.terminating)
}

fn same_arc<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What is opened on a connection.
fn open(wanted: Follow, discovery: Duration) -> Open<MemberEvent> {
    match wanted {
        Follow::Identity => Box::new(|client, _| identity(client)),
        Follow::Written => Box::new(move |client, version| written(client, version, discovery)),
        Follow::Everything => Box::new(move |client, version| {
            let streaming = version.streams_lists();
            let nodes = follow(Api::all(client.clone()), Selector::default(), streaming);
            let slices = follow(Api::all(client.clone()), Selector::default(), streaming);
            select_all([
                nodes.map(MemberEvent::Node).boxed(),
                slices.map(MemberEvent::Slice).boxed(),
                both(client, streaming, discovery),
            ])
            .boxed()
        }),
    }
}

/// What is written in a cluster, and where.
fn written(client: Client, version: &Version, discovery: Duration) -> BoxStream<'static, MemberEvent> {
    let streaming = version.streams_lists();
    let ours = Selector {
        labels: Some(format!("endpointslice.kubernetes.io/managed-by={SLICE_MANAGER}")),
        ..Selector::default()
    };
    // Nodes are of no use there: an empty list.
    let no_nodes =
        futures::stream::iter([Event::Init, Event::InitDone]).map(|event| MemberEvent::Node(Ok(event)));
    select_all([
        no_nodes.boxed(),
        follow(Api::all(client.clone()), ours, streaming).map(MemberEvent::Slice).boxed(),
        both(client, streaming, discovery),
    ])
    .boxed()
}

/// What is watched in every cluster whose objects count.
fn both(client: Client, streaming: bool, discovery: Duration) -> BoxStream<'static, MemberEvent> {
    let services = follow(Api::all(client.clone()), Selector::default(), streaming);
    let namespaces = follow(Api::all(client.clone()), Selector::default(), streaming);
    select_all([
        identity(client.clone()),
        services.map(MemberEvent::Service).boxed(),
        namespaces.map(MemberEvent::Namespace).boxed(),
        follow_mcs(client.clone(), streaming, discovery),
        asked_rights(client),
    ])
    .boxed()
}

/// Who the cluster is.
fn identity(client: Client) -> BoxStream<'static, MemberEvent> {
    let namespaces: Api<Namespace> = Api::all(client);
    once(move || {
        let namespaces = namespaces.clone();
        async move {
            match namespaces.get_metadata("kube-system").await {
                Ok(namespace) => Some(MemberEvent::Identity(namespace.metadata.uid)),
                Err(Error::Api(status)) if matches!(status.code, 403 | 404) => {
                    Some(MemberEvent::Identity(None))
                }
                Err(_) => None,
            }
        }
    })
}

/// What may not be written, at once and every now and then.
fn asked_rights(client: Client) -> BoxStream<'static, MemberEvent> {
    unfold((client, Duration::ZERO), |(client, mut pause)| async move {
        loop {
            sleep(pause).await;
            pause = RIGHTS;
            if let Ok(missing) = missing_rights(&client).await {
                return Some((MemberEvent::Missing(missing), (client, pause)));
            }
        }
    })
    .boxed()
}

/// What of [`WRITES`] the account may not do, in words.
pub(super) async fn missing_rights(client: &Client) -> kube::Result<Vec<String>> {
    let mut missing = rights::missing(client, &rights::of_writes()).await?;
    // Who may do all that may perhaps not find the place for the Lease.
    let namespaces: Api<Namespace> = Api::all(client.clone());
    if let Err(Error::Api(status)) = namespaces.get_metadata(lease::NAMESPACE).await
        && status.code == 404
    {
        missing.push(format!("hold a Lease in the namespace {}, which does not exist", lease::NAMESPACE));
    }
    Ok(missing)
}
