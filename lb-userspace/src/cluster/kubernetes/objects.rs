//! Everything that one member cluster has told. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;

use super::fault::Fault;
use super::follow::Told;
use super::store::Store;
use super::strip;
use crate::desired::{ClusterObjects, Place};

/// What a member's watches tell.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "each is moved once, from its watch into its store")]
pub(super) enum MemberEvent {
    /// Of Services.
    Service(Told<Service>),
    /// Of EndpointSlices.
    Slice(Told<EndpointSlice>),
    /// Of Nodes.
    Node(Told<PartialObjectMeta<Node>>),
    /// Of Namespaces.
    Namespace(Told<PartialObjectMeta<Namespace>>),
    /// The UID of the namespace kube-system, which is who a cluster is; `None`: it may not be read.
    Identity(Option<String>),
    /// What may not be written there; empty: all that is needed may be.
    Missing(Vec<String>),
}

/// What an event means for whoever watches the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// That watch works; whether anything that can be seen has changed.
    Answered {
        /// Which watch.
        watch: &'static str,
        /// Whether there is something to tell.
        changed: bool,
    },
    /// That watch failed, and nothing of the cluster is known without it.
    Failed {
        /// Which watch.
        watch: &'static str,
        /// Why.
        fault: Fault,
    },
    /// Something beside the watches is known now.
    Learnt,
    /// Nothing is known that was not.
    Nothing,
}

/// What a member cluster says.
#[derive(Debug, Default)]
pub(super) struct Objects {
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    nodes: Store<Place>,
    /// Whether each is terminating.
    namespaces: Store<bool>,
    /// Who the cluster is, as far as it ever told.
    uid: Option<String>,
    /// Whether that has been asked on the present connection.
    identified: bool,
    missing: Option<Vec<String>>,
}

impl Objects {
    /// Takes an event in.
    pub(super) fn apply(&mut self, event: MemberEvent) -> Effect {
        match event {
            MemberEvent::Service(told) => needed("services", told, |event| {
                self.services.apply(event, |object| Some(strip::service(object)))
            }),
            MemberEvent::Slice(told) => needed("endpointslices", told, |event| {
                self.slices.apply(event, |object| Some(strip::slice(object)))
            }),
            MemberEvent::Node(Err(fault)) => gave_up(&mut self.nodes, "nodes", &fault),
            MemberEvent::Node(Ok(event)) => {
                let keep = |object: PartialObjectMeta<Node>| {
                    Some(strip::place(&object.metadata)).filter(|place| *place != Place::default())
                };
                Effect::Answered { watch: "nodes", changed: self.nodes.apply(event, keep) }
            }
            MemberEvent::Namespace(Err(fault)) => gave_up(&mut self.namespaces, "namespaces", &fault),
            MemberEvent::Namespace(Ok(event)) => {
                let keep =
                    |object: PartialObjectMeta<Namespace>| Some(object.metadata.deletion_timestamp.is_some());
                Effect::Answered { watch: "namespaces", changed: self.namespaces.apply(event, keep) }
            }
            MemberEvent::Identity(uid) => {
                self.uid = uid;
                self.identified = true;
                Effect::Learnt
            }
            MemberEvent::Missing(missing) => {
                self.missing = Some(missing);
                Effect::Learnt
            }
        }
    }

    /// New watches have been begun: what is known stays until their lists are complete.
    pub(super) fn expect_lists(&mut self) {
        self.services.expect_list();
        self.slices.expect_list();
        self.identified = false;
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether all Services and EndpointSlices have been read on the present connection, and it is known who the
    /// cluster is. Its Nodes must have been asked for once, so that endpoints begin with their zones where those
    /// can be had; nothing ever waits for Nodes again, or for Namespaces.
    pub(super) fn is_synced(&self) -> bool {
        self.identified && self.services.is_synced() && self.slices.is_synced() && self.nodes.is_synced()
    }

    /// The UID of kube-system, as it was last told; `None` until then.
    pub(super) fn identity(&self) -> Option<&str> {
        self.uid.as_deref()
    }

    /// What may not be written there; `None` until it is known.
    pub(super) const fn missing(&self) -> Option<&Vec<String>> {
        self.missing.as_ref()
    }

    /// What the merge works with.
    pub(super) fn snapshot(&self) -> ClusterObjects {
        ClusterObjects {
            services: self.services.values(),
            slices: self.slices.values(),
            nodes: self.nodes.iter().map(|((_, name), place)| (name.clone(), place.clone())).collect(),
        }
    }

    /// Namespaces that are on their way out: nothing can be made in them.
    pub(super) fn terminating(&self) -> BTreeSet<String> {
        let ending = self.namespaces.iter().filter(|(_, terminating)| **terminating);
        ending.map(|((_, name), _)| name.clone()).collect()
    }
}

/// A watch without which nothing is known of the cluster.
fn needed<K>(watch: &'static str, told: Told<K>, apply: impl FnOnce(Event<K>) -> bool) -> Effect {
    match told {
        // That it begins to ask says nothing about the answer.
        Ok(Event::Init) => {
            apply(Event::Init);
            Effect::Nothing
        }
        Ok(event) => Effect::Answered { watch, changed: apply(event) },
        Err(fault) => Effect::Failed { watch, fault },
    }
}

/// A watch that can be done without, whyever it fails: zones are then those of the slices, for example, until it
/// tells something after all.
fn gave_up<V: PartialEq>(store: &mut Store<V>, watch: &'static str, fault: &Fault) -> Effect {
    if store.give_up() {
        tracing::debug!("{watch} cannot be read: {}", fault.message);
        return Effect::Answered { watch, changed: true };
    }
    Effect::Nothing
}

#[cfg(test)]
mod tests {
    use super::super::fault::FaultKind;
    use super::*;

    fn parse<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> T {
        serde_json::from_value(json).unwrap()
    }

    fn list<K>(wrap: impl Fn(Told<K>) -> MemberEvent, objects: Vec<K>, to: &mut Objects) {
        to.apply(wrap(Ok(Event::Init)));
        for object in objects {
            to.apply(wrap(Ok(Event::InitApply(object))));
        }
        to.apply(wrap(Ok(Event::InitDone)));
    }

    fn service(name: &str) -> Service {
        parse(serde_json::json!({"metadata": {"namespace": "demo", "name": name}}))
    }

    fn synced() -> Objects {
        let mut objects = Objects::default();
        list(MemberEvent::Service, vec![service("web")], &mut objects);
        list(MemberEvent::Slice, vec![], &mut objects);
        let node = serde_json::json!({"metadata": {"name": "n",
            "labels": {"topology.kubernetes.io/zone": "z"}}});
        list(MemberEvent::Node, vec![parse(node), PartialObjectMeta::default()], &mut objects);
        let ending =
            serde_json::json!({"metadata": {"name": "old", "deletionTimestamp": "2024-01-01T00:00:00Z"}});
        list(MemberEvent::Namespace, vec![parse(ending)], &mut objects);
        assert!(!objects.is_synced(), "it is not known yet who the cluster is");
        objects.apply(MemberEvent::Identity(Some("uid".to_owned())));
        assert!(objects.is_synced());
        objects
    }

    fn refused() -> Fault {
        Fault { kind: FaultKind::Forbidden, message: String::new() }
    }

    #[test]
    fn a_synced_cluster_shows_what_every_watch_told() {
        let objects = synced();
        let snapshot = objects.snapshot();
        assert_eq!(snapshot.services.len(), 1);
        assert_eq!(snapshot.nodes.len(), 1, "a node whose place is unknown is not kept");
        assert_eq!(snapshot.nodes["n"].zone, "z");
        assert_eq!(objects.terminating(), BTreeSet::from(["old".to_owned()]));
        assert_eq!(objects.identity(), Some("uid"));
    }

    #[test]
    fn new_watches_keep_what_is_known_until_their_lists_are_complete() {
        let mut objects = synced();
        objects.expect_lists();
        assert!(!objects.is_synced());
        assert_eq!((objects.snapshot().services.len(), objects.identity()), (1, Some("uid")));
    }

    #[test]
    fn a_cluster_whose_nodes_may_not_be_read_serves_its_endpoints_all_the_same() {
        let mut objects = Objects::default();
        list(MemberEvent::Service, vec![service("web")], &mut objects);
        list(MemberEvent::Slice, vec![], &mut objects);
        objects.apply(MemberEvent::Identity(None));
        let done_without = |watch| Effect::Answered { watch, changed: true };
        assert_eq!(objects.apply(MemberEvent::Node(Err(refused()))), done_without("nodes"));
        assert_eq!(objects.apply(MemberEvent::Namespace(Err(refused()))), done_without("namespaces"));
        assert!(objects.is_synced());
        assert_eq!(objects.apply(MemberEvent::Node(Err(refused()))), Effect::Nothing, "told once");
    }

    #[test]
    fn nodes_that_fail_for_a_while_hold_nothing_back_and_are_taken_in_when_they_come() {
        let busy = || Fault { kind: FaultKind::TooManyRequests, message: String::new() };
        let mut objects = Objects::default();
        list(MemberEvent::Service, vec![service("web")], &mut objects);
        list(MemberEvent::Slice, vec![], &mut objects);
        objects.apply(MemberEvent::Identity(None));
        assert!(!objects.is_synced(), "zones are there from the beginning where they can be");
        assert_eq!(
            objects.apply(MemberEvent::Node(Err(busy()))),
            Effect::Answered { watch: "nodes", changed: true }
        );
        objects.apply(MemberEvent::Namespace(Err(busy())));
        assert!(objects.is_synced() && objects.snapshot().nodes.is_empty());
        let node = serde_json::json!({"metadata": {"name": "n",
            "labels": {"topology.kubernetes.io/zone": "z"}}});
        objects.apply(MemberEvent::Node(Ok(Event::Init)));
        objects.apply(MemberEvent::Node(Ok(Event::InitApply(parse(node)))));
        let come = objects.apply(MemberEvent::Node(Ok(Event::InitDone)));
        assert_eq!(come, Effect::Answered { watch: "nodes", changed: true });
        assert_eq!(objects.snapshot().nodes["n"].zone, "z");
    }

    #[test]
    fn on_a_new_connection_services_do_not_wait_for_nodes_and_zones_stay_known() {
        let mut objects = synced();
        objects.expect_lists();
        objects.apply(MemberEvent::Identity(Some("uid".to_owned())));
        list(MemberEvent::Service, vec![service("web"), service("api")], &mut objects);
        list(MemberEvent::Slice, vec![], &mut objects);
        assert!(objects.is_synced());
        assert_eq!((objects.snapshot().services.len(), objects.snapshot().nodes.len()), (2, 1));
    }

    #[test]
    fn a_cluster_whose_services_may_not_be_read_is_not_synced_and_keeps_what_it_had() {
        let mut objects = synced();
        let effect = objects.apply(MemberEvent::Service(Err(refused())));
        assert_eq!(effect, Effect::Failed { watch: "services", fault: refused() });
        assert_eq!(objects.snapshot().services.len(), 1);
    }
}
