//! One member cluster: a task that keeps a connection to its API server and says what it knows.
//!
//! Each member has a task, clients and pauses of its own, so that one that hangs slows nobody.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt, select_all, unfold};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::access::Access;
use super::follow::{Selector, follow, once};
use super::health::{Moment, Shown};
use super::link::{Happening, Link, Open, Pace, Version};
use super::objects::{Effect, MemberEvent, Objects};
use crate::desired::ClusterObjects;

/// Changes that come within this time are told together.
const GATHER: Duration = Duration::from_millis(10);
/// How often it is asked what may be written: somebody may grant it.
const RIGHTS: Duration = Duration::from_secs(60);
/// What Kanmon writes into members: verb, group, resource.
const WRITES: [(&str, &str, &str); 2] =
    [("create", "events.k8s.io", "events"), ("patch", "events.k8s.io", "events")];

/// What the task is asked to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Order {
    /// How to reach the cluster.
    pub(super) access: Access,
    /// Whether its objects are wanted; if not, only who it is and whether it answers.
    pub(super) follow: bool,
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
    pub(super) fn start(order: Order, pace: Pace, changed: Arc<Notify>) -> Self {
        let (orders, ordered) = watch::channel(order.clone());
        let mut state = State {
            link: Link::new(order.access.clone(), pace, open(order.follow)),
            objects: Objects::default(),
            shown: None,
            follow: order.follow,
            dirty: false,
            stale: false,
            tell_at: None,
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
    follow: bool,
    /// Whether the objects are others than those told.
    dirty: bool,
    /// Whether the view may be another than the one told.
    stale: bool,
    /// When to tell.
    tell_at: Option<Instant>,
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
        if self.follow {
            self.objects.expect_lists();
        } else {
            self.objects.clear();
            self.shown = None;
        }
        self.link.change(order.access, open(self.follow));
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
                        self.tell_at.get_or_insert_with(|| Instant::now() + GATHER);
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
        View {
            health: self.link.health.shown().clone(),
            version: self.link.version.text.clone(),
            uid: self.objects.identity().map(str::to_owned),
            synced,
            objects: self.shown.clone(),
            missing: self.objects.missing().cloned(),
            terminating: Arc::new(self.objects.terminating()),
        }
    }
}

/// Whether two views are the same; objects are not looked into.
fn same(a: &View, b: &View) -> bool {
    let objects = match (&a.objects, &b.objects) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    };
    objects
        && (&a.health, &a.version, &a.uid, a.synced, &a.missing, &a.terminating)
            == (&b.health, &b.version, &b.uid, b.synced, &b.missing, &b.terminating)
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What is opened on a connection: everything, or only who the cluster is.
fn open(follow: bool) -> Open<MemberEvent> {
    if follow { Box::new(watches) } else { Box::new(|client, _| identity(client)) }
}

/// All that is watched in a member.
fn watches(client: Client, version: &Version) -> BoxStream<'static, MemberEvent> {
    let streaming = version.streams_lists();
    let all = Selector::default;
    select_all([
        identity(client.clone()),
        follow(Api::all(client.clone()), all(), streaming).map(MemberEvent::Service).boxed(),
        follow(Api::all(client.clone()), all(), streaming).map(MemberEvent::Slice).boxed(),
        follow(Api::all(client.clone()), all(), streaming).map(MemberEvent::Node).boxed(),
        follow(Api::all(client.clone()), all(), streaming).map(MemberEvent::Namespace).boxed(),
        rights(client),
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
fn rights(client: Client) -> BoxStream<'static, MemberEvent> {
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

async fn missing_rights(client: &Client) -> kube::Result<Vec<String>> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for (verb, group, resource) in WRITES {
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let answer = reviews.create(&PostParams::default(), &review).await?;
        if !answer.status.is_some_and(|status| status.allowed) {
            missing.push(format!("{verb} {resource}.{group}"));
        }
    }
    Ok(missing)
}
