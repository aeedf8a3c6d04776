//! The gateway cluster: what it says about members, pools, fronts and the gateway itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt, select_all};
use k8s_openapi::api::core::v1::{Node, Secret, Service};
use kube::api::Api;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher::Event;
use kube::{Client, Resource};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::access::Access;
use super::fault::{Fault, FaultKind};
use super::follow::{Selector, Told, follow};
use super::guarded::Unreadable;
use super::health::{Moment, Shown};
use super::link::{Happening, Link, Pace, Version};
use super::remote_secret::{ISTIO_LABEL, LABEL_VALUE, MEMBER_LABEL};
use super::store::Store;
use super::strip;
use crate::desired::{
    AddressAllocation, AddressPool, GatewayObjects, LoadBalancingPolicy, MemberCluster, Place, Problem,
    Reason, Severity,
};

/// Changes that come within this time are told together.
const GATHER: Duration = Duration::from_millis(10);

/// What the gateway cluster says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    /// Whether it answers.
    pub(super) health: Shown,
    /// `None` until they have been read.
    pub(super) members: Option<Vec<MemberCluster>>,
    /// Whether it does not know what a MemberCluster is.
    pub(super) lacks_crds: bool,
    /// With status; `None` until they have been read.
    pub(super) pools: Option<Vec<AddressPool>>,
    /// With status; `None` until they have been read.
    pub(super) policies: Option<Vec<LoadBalancingPolicy>>,
    /// Who has which address, with status and resourceVersion; `None` until that has been read.
    pub(super) allocations: Option<Vec<AddressAllocation>>,
    /// Whether it does not know what an AddressAllocation is, so that nobody can write one down there; or whether they
    /// may not be read, now or at any time before: who has which address cannot be told from them.
    pub(super) lacks_allocations: bool,
    /// Its fronts; `None` until they have been read.
    pub(super) services: Option<Vec<Service>>,
    /// Whether they are those that are there now: they have been read, and may still be.
    pub(super) reads_services: bool,
    /// Those that register members, in the namespaces that are watched.
    pub(super) secrets: Vec<Secret>,
    /// Namespaces whose Secrets have all been read.
    pub(super) complete: BTreeSet<String>,
    /// Where the gateway's Node is; `None` until that is known, or where there is no such Node.
    pub(super) place: Option<Place>,
    /// What cannot be read.
    pub(super) problems: Vec<Problem>,
    /// Whether each watch has said something, be it that it cannot be read.
    pub(super) answered: bool,
}

/// What is watched.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) secret_namespaces: Vec<String>,
    pub(super) node_name: Option<String>,
}

/// The task; it ends with this.
pub(super) struct Gateway {
    view: watch::Receiver<View>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gateway {
    /// Begins to connect. `changed` is notified whenever the view is another.
    /// `known` is what an earlier run was told: what cannot be read now may have been readable then.
    pub(super) fn start(
        access: Access,
        scope: Scope,
        known: &GatewayObjects,
        pace: Pace,
        changed: Arc<Notify>,
    ) -> Self {
        let state = State::new(&scope, known);
        let mut link =
            Link::new(access, pace, Box::new(move |client, version| watches(&client, version, &scope)));
        let (views, view) = watch::channel(state.view(link.health.shown().clone()));
        let task = tokio::spawn(async move { run(&mut link, state, views, changed).await });
        Self { view, task }
    }

    /// What is known now.
    pub(super) fn view(&self) -> View {
        self.view.borrow().clone()
    }
}

async fn run(
    link: &mut Link<GatewayEvent>,
    mut state: State,
    views: watch::Sender<View>,
    changed: Arc<Notify>,
) {
    let mut tell_at: Option<Instant> = None;
    loop {
        tokio::select! {
            happening = link.next() => {
                let now = Moment::now();
                match happening {
                    Happening::Beat | Happening::Opened => {}
                    Happening::Event(event) => {
                        let watch = event.watch();
                        match state.apply(event) {
                            Some(Ok(())) => { link.health.watch_answered(watch, now); }
                            Some(Err(fault)) => link.health.watch_failed(watch, fault, now),
                            None => continue,
                        }
                    }
                }
                tell_at.get_or_insert_with(|| Instant::now() + GATHER);
            }
            () = until(tell_at) => {
                tell_at = None;
                let view = state.view(link.health.shown().clone());
                let told = views.send_if_modified(|present| {
                    let differs = *present != view;
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
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

enum GatewayEvent {
    Member(Told<DeserializeGuard<MemberCluster>>),
    Pool(Told<DeserializeGuard<AddressPool>>),
    Policy(Told<DeserializeGuard<LoadBalancingPolicy>>),
    Allocation(Told<DeserializeGuard<AddressAllocation>>),
    Service(Told<Service>),
    Node(Told<PartialObjectMeta<Node>>),
    /// Of the Secrets of a namespace that have a label.
    Secret(SecretWatch, Told<Secret>),
}

/// Namespace and label.
type SecretWatch = (String, &'static str);

impl GatewayEvent {
    /// Which watch it is of, for the health of the connection.
    const fn watch(&self) -> &'static str {
        match self {
            Self::Member(_) => "memberclusters",
            Self::Pool(_) => "addresspools",
            Self::Policy(_) => "loadbalancingpolicies",
            Self::Allocation(_) => "addressallocations",
            Self::Service(_) => "services",
            Self::Node(_) => "nodes",
            Self::Secret(..) => "secrets",
        }
    }
}

fn watches(client: &Client, version: &Version, scope: &Scope) -> BoxStream<'static, GatewayEvent> {
    let streaming = version.streams_lists();
    let all = Selector::default;
    let mut streams = vec![
        follow(Api::all(client.clone()), all(), streaming).map(GatewayEvent::Member).boxed(),
        follow(Api::all(client.clone()), all(), streaming).map(GatewayEvent::Pool).boxed(),
        follow(Api::all(client.clone()), all(), streaming).map(GatewayEvent::Policy).boxed(),
        follow(Api::all(client.clone()), all(), streaming).map(GatewayEvent::Allocation).boxed(),
        follow(Api::all(client.clone()), all(), streaming).map(GatewayEvent::Service).boxed(),
    ];
    if let Some(node) = &scope.node_name {
        let own = Selector { fields: Some(format!("metadata.name={node}")), ..all() };
        streams.push(follow(Api::all(client.clone()), own, streaming).map(GatewayEvent::Node).boxed());
    }
    for watch in secret_watches(scope) {
        let (namespace, label) = watch.clone();
        let labelled = Selector { labels: Some(format!("{label}={LABEL_VALUE}")), ..all() };
        let told = follow(Api::namespaced(client.clone(), &namespace), labelled, streaming);
        streams.push(told.map(move |told| GatewayEvent::Secret(watch.clone(), told)).boxed());
    }
    select_all(streams).boxed()
}

/// A selector has no "or": one watch for each label.
fn secret_watches(scope: &Scope) -> Vec<SecretWatch> {
    let namespaces = scope.secret_namespaces.iter();
    namespaces
        .flat_map(|namespace| [ISTIO_LABEL, MEMBER_LABEL].map(|label| (namespace.clone(), label)))
        .collect()
}

/// What the watches have told. No I/O.
struct State {
    members: Store<MemberCluster>,
    unreadable_members: Unreadable,
    pools: Store<AddressPool>,
    unreadable_pools: Unreadable,
    policies: Store<LoadBalancingPolicy>,
    unreadable_policies: Unreadable,
    allocations: Store<AddressAllocation>,
    unreadable_allocations: Unreadable,
    /// Whether an earlier run went by allocations.
    had_allocations: bool,
    services: Store<Service>,
    nodes: Store<Place>,
    secrets: BTreeMap<SecretWatch, Store<Secret>>,
    node_name: Option<String>,
    /// What cannot be read, by kind and namespace.
    troubles: BTreeMap<(String, String), Fault>,
}

impl State {
    fn new(scope: &Scope, known: &GatewayObjects) -> Self {
        // Those that were never written have none.
        let exists = |object: &&MemberCluster| object.metadata.uid.is_some();
        Self {
            members: Store::recalling(known.members.iter().filter(exists).cloned()),
            unreadable_members: Unreadable::default(),
            pools: Store::recalling(known.pools.iter().cloned()),
            unreadable_pools: Unreadable::default(),
            policies: Store::recalling(known.policies.iter().cloned()),
            unreadable_policies: Unreadable::default(),
            allocations: Store::recalling(known.allocations.iter().flatten().cloned()),
            unreadable_allocations: Unreadable::default(),
            had_allocations: known.allocations.is_some(),
            services: Store::default(),
            nodes: Store::default(),
            secrets: secret_watches(scope).into_iter().map(|watch| (watch, Store::default())).collect(),
            node_name: scope.node_name.clone(),
            troubles: BTreeMap::new(),
        }
    }

    /// Takes an event in. `None`: it says nothing about the connection.
    fn apply(&mut self, event: GatewayEvent) -> Option<Result<(), Fault>> {
        let troubles = &mut self.troubles;
        match event {
            GatewayEvent::Member(told) => {
                take_guarded(&mut self.members, told, &mut self.unreadable_members, troubles, strip::member)
            }
            GatewayEvent::Pool(told) => {
                take_guarded(&mut self.pools, told, &mut self.unreadable_pools, troubles, strip::pool)
            }
            GatewayEvent::Policy(told) => {
                take_guarded(&mut self.policies, told, &mut self.unreadable_policies, troubles, strip::policy)
            }
            GatewayEvent::Allocation(told) => {
                let unreadable = &mut self.unreadable_allocations;
                take_guarded(&mut self.allocations, told, unreadable, troubles, strip::allocation)
            }
            GatewayEvent::Service(told) => take(&mut self.services, told, troubles, "", strip::front),
            GatewayEvent::Node(told) => {
                let keep = |node: PartialObjectMeta<Node>| Some(strip::place(&node.metadata));
                take(&mut self.nodes, told, troubles, "", keep)
            }
            GatewayEvent::Secret(watch, told) => {
                let namespace = watch.0.clone();
                let store = self.secrets.entry(watch).or_default();
                take(store, told, troubles, &namespace, |secret| Some(strip::secret(secret)))
            }
        }
    }

    fn view(&self, health: Shown) -> View {
        let known = |kind: &str| self.trouble(kind).is_some();
        let answered = (self.members.is_synced() || known("MemberCluster"))
            && (self.pools.is_synced() || known("AddressPool"))
            && (self.policies.is_synced() || known("LoadBalancingPolicy"))
            && (self.allocations.is_synced() || known("AddressAllocation"))
            && (self.services.is_synced() || known("Service"))
            && (self.node_name.is_none() || self.nodes.is_synced() || known("Node"))
            && self.secrets.iter().all(|((namespace, _), store)| {
                store.is_synced() || self.troubles.contains_key(&("Secret".to_owned(), namespace.clone()))
            });
        let place = self.node_name.as_ref().and_then(|name| self.nodes.get("", name)).cloned();
        View {
            health,
            members: self.members.is_synced().then(|| self.members.values()),
            lacks_crds: self.lacks("MemberCluster"),
            pools: self.pools.is_synced().then(|| self.pools.values()),
            policies: self.policies.is_synced().then(|| self.policies.values()),
            allocations: self.allocations.is_synced().then(|| self.allocations.values()),
            lacks_allocations: self.lacks_allocations(),
            services: self.services.is_synced().then(|| self.services.values()),
            reads_services: self.services.is_synced() && !known("Service"),
            secrets: self.secrets(),
            complete: self.complete(),
            place,
            problems: self.problems(),
            answered,
        }
    }

    fn lacks(&self, kind: &str) -> bool {
        self.trouble(kind).is_some_and(|fault| fault.kind == FaultKind::NotFound)
    }

    /// An account from before there were allocations may not read them.
    fn lacks_allocations(&self) -> bool {
        let was_read = self.had_allocations || self.allocations.is_synced();
        self.lacks("AddressAllocation") || (!was_read && self.trouble("AddressAllocation").is_some())
    }

    /// Why a kind that is of no namespace cannot be read.
    fn trouble(&self, kind: &str) -> Option<&Fault> {
        self.troubles.get(&(kind.to_owned(), String::new()))
    }

    /// Each Secret once, though it may have both labels.
    fn secrets(&self) -> Vec<Secret> {
        let all = self.secrets.values().flat_map(Store::iter);
        let by_name: BTreeMap<_, _> = all.map(|(key, secret)| (key.clone(), secret.clone())).collect();
        by_name.into_values().collect()
    }

    fn complete(&self) -> BTreeSet<String> {
        let synced = |namespace: &String| {
            self.secrets.iter().all(|((other, _), store)| other != namespace || store.is_synced())
        };
        self.secrets.keys().map(|(namespace, _)| namespace).filter(|name| synced(name)).cloned().collect()
    }

    fn problems(&self) -> Vec<Problem> {
        let members = self.unreadable_members.problems("MemberCluster");
        let pools = self.unreadable_pools.problems("AddressPool");
        let policies = self.unreadable_policies.problems("LoadBalancingPolicy");
        let allocations = self.unreadable_allocations.problems("AddressAllocation");
        let mut problems: Vec<Problem> = members.chain(pools).chain(policies).chain(allocations).collect();
        for ((kind, namespace), fault) in &self.troubles {
            let place =
                if namespace.is_empty() { String::new() } else { format!(" in namespace {namespace}") };
            let message = if fault.kind == FaultKind::NotFound {
                "the gateway cluster does not know this kind; install it with `kanmon crds | kubectl apply -f -`"
                    .to_owned()
            } else {
                format!(
                    "cannot be read{place} in the gateway cluster, what was known stays; allow it to the \
                     agent's account (get, list, watch): {}",
                    fault.message
                )
            };
            problems.push(Problem {
                cluster: String::new(),
                object: format!("{kind}{place}"),
                reason: Reason::Unreadable,
                severity: Severity::Error,
                message,
            });
        }
        let Some(name) = &self.node_name else { return problems };
        if self.nodes.is_synced() && self.nodes.get("", name).is_none() {
            problems.push(Problem {
                cluster: String::new(),
                object: format!("Node {name}"),
                reason: Reason::NoSource,
                severity: Severity::Warning,
                message:
                    "the gateway cluster has no such Node, so --region and --zone say where this gateway \
                          is; correct --node-name (NODE_NAME)"
                        .to_owned(),
            });
        }
        problems
    }
}

/// The same as [`take`], of a kind of our own.
fn take_guarded<K>(
    store: &mut Store<K>,
    told: Told<DeserializeGuard<K>>,
    unreadable: &mut Unreadable,
    troubles: &mut BTreeMap<(String, String), Fault>,
    keep: impl Fn(K) -> K,
) -> Option<Result<(), Fault>>
where
    K: Resource<DynamicType = ()> + Clone + PartialEq,
{
    match told.map(|event| unreadable.sort_out(event, store)) {
        Ok(None) => Some(Ok(())),
        Ok(Some(event)) => take(store, Ok(event), troubles, "", |object| Some(keep(object))),
        Err(fault) => take(store, Err(fault), troubles, "", |object: K| Some(keep(object))),
    }
}

/// Takes what a watch told into its store. What may not be read, or is not known there, is noted.
fn take<K, V>(
    store: &mut Store<V>,
    told: Told<K>,
    troubles: &mut BTreeMap<(String, String), Fault>,
    namespace: &str,
    keep: impl Fn(K) -> Option<V>,
) -> Option<Result<(), Fault>>
where
    K: Resource<DynamicType = ()> + Clone,
    V: PartialEq,
{
    let key = (K::kind(&()).into_owned(), namespace.to_owned());
    match told {
        Ok(Event::Init) => {
            store.apply(Event::<K>::Init, keep);
            None
        }
        Ok(event) => {
            troubles.remove(&key);
            store.apply(event, keep);
            Some(Ok(()))
        }
        Err(fault) => {
            let refused = matches!(fault.kind, FaultKind::Forbidden | FaultKind::NotFound);
            if refused {
                troubles.insert(key, fault);
                return Some(Ok(()));
            }
            Some(Err(fault))
        }
    }
}

#[cfg(test)]
#[path = "gateway_tests.rs"]
mod tests;
