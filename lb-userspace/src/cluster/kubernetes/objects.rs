//! Everything that one member cluster has told. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::Event;

use super::fault::{Fault, FaultKind};
use super::follow::Told;
use super::publish::{self, Present, present};
use super::store::{Key, Store};
use super::strip;
use crate::desired::mcs::{ServiceExport, ServiceImport};
use crate::desired::{ClusterObjects, ObjectName, Place};

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
    /// Which version of `multicluster.x-k8s.io` is served; `None`: none.
    Mcs(Option<&'static str>),
    /// Which one that is cannot be asked.
    McsUnknown(Fault),
    /// Of ServiceExports.
    Export(Told<DynamicObject>),
    /// Of ServiceImports.
    Import(Told<DynamicObject>),
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
#[derive(Debug)]
pub(super) struct Objects {
    /// Whose name is on what we write.
    cluster_set_id: String,
    manager: String,
    services: Store<KeptService>,
    slices: Store<KeptSlice>,
    nodes: Store<Place>,
    /// Whether each is terminating.
    namespaces: Store<bool>,
    exports: Store<ServiceExport>,
    imports: Store<ServiceImport>,
    /// Which version of the last two is served; the outer `None`: it is not known on the present connection.
    mcs: Option<Option<&'static str>>,
    /// Whether ServiceExports could not be asked for on the present connection: nothing waits for them any longer.
    exports_failed: bool,
    /// Who the cluster is, as far as it ever told.
    uid: Option<String>,
    /// Whether that has been asked on the present connection.
    identified: bool,
    missing: Option<Vec<String>>,
}

/// A Service as the merge reads it, and as we write on it.
#[derive(Debug, PartialEq)]
struct KeptService {
    read: Service,
    present: Option<Service>,
}

/// An EndpointSlice of somebody's endpoints, or one that we made.
#[derive(Debug, PartialEq)]
enum KeptSlice {
    Read(EndpointSlice),
    Ours(EndpointSlice),
}

impl Objects {
    pub(super) fn new(cluster_set_id: &str) -> Self {
        Self {
            cluster_set_id: cluster_set_id.to_owned(),
            manager: publish::field_manager(cluster_set_id),
            services: Store::default(),
            slices: Store::default(),
            nodes: Store::default(),
            namespaces: Store::default(),
            exports: Store::default(),
            imports: Store::default(),
            mcs: None,
            exports_failed: false,
            uid: None,
            identified: false,
            missing: None,
        }
    }

    /// Takes an event in.
    pub(super) fn apply(&mut self, event: MemberEvent) -> Effect {
        let manager = &self.manager;
        match event {
            MemberEvent::Service(told) => needed("services", told, |event| {
                self.services.apply(event, |object| {
                    Some(KeptService {
                        present: present::service(&object, manager),
                        read: strip::service(object),
                    })
                })
            }),
            MemberEvent::Slice(told) => needed("endpointslices", told, |event| {
                self.slices.apply(event, |object| {
                    let ours = present::slice(&object, &self.cluster_set_id).map(KeptSlice::Ours);
                    Some(ours.unwrap_or_else(|| KeptSlice::Read(strip::slice(object))))
                })
            }),
            MemberEvent::Mcs(version) => self.take_mcs(version),
            MemberEvent::McsUnknown(fault) => self.lack_exports(&fault),
            MemberEvent::Export(Err(fault)) if !is_refusal(&fault) => self.lack_exports(&fault),
            MemberEvent::Export(Err(fault)) => refused(&mut self.exports, "serviceexports", &fault),
            MemberEvent::Export(Ok(event)) => {
                let changed = self.exports.apply(event, |object| Some(present::export(object, manager)));
                Effect::Answered { watch: "serviceexports", changed }
            }
            MemberEvent::Import(Err(fault)) => refused(&mut self.imports, "serviceimports", &fault),
            MemberEvent::Import(Ok(event)) => {
                let changed = self.imports.apply(event, |object| Some(present::import(object, manager)));
                Effect::Answered { watch: "serviceimports", changed }
            }
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

    /// Where the kinds are not served there are none of them.
    fn take_mcs(&mut self, version: Option<&'static str>) -> Effect {
        match version {
            None => {
                self.exports.clear();
                self.imports.clear();
            }
            Some(_) => {
                self.exports.expect_list();
                self.imports.expect_list();
            }
        }
        self.exports_failed = false;
        let changed = self.mcs.replace(version) != Some(version);
        Effect::Answered { watch: "multicluster.x-k8s.io", changed }
    }

    /// Those that are known stay; what else the cluster has must not wait until its exports can be had.
    fn lack_exports(&mut self, fault: &Fault) -> Effect {
        let is_new = !std::mem::replace(&mut self.exports_failed, true);
        if !is_new || self.are_exports_read() {
            return Effect::Nothing;
        }
        tracing::warn!("ServiceExports cannot be read, those that are known stay: {}", fault.message);
        Effect::Learnt
    }

    /// Whether the exports are known, on the present connection.
    const fn are_exports_read(&self) -> bool {
        self.mcs.is_some() && self.exports.is_synced()
    }

    /// New watches have been begun: what is known stays until their lists are complete.
    pub(super) fn expect_lists(&mut self) {
        self.services.expect_list();
        self.slices.expect_list();
        self.exports.expect_list();
        self.imports.expect_list();
        self.mcs = None;
        self.exports_failed = false;
        self.identified = false;
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::new(&self.cluster_set_id);
    }

    /// Whether all Services and EndpointSlices have been read on the present connection, and it is known who the
    /// cluster is. Its Nodes must have been asked for once, so that endpoints begin with their zones where those
    /// can be had; nothing ever waits for Nodes again, or for Namespaces, or for ServiceExports that cannot be read.
    pub(super) fn is_synced(&self) -> bool {
        self.identified
            && self.services.is_synced()
            && self.slices.is_synced()
            && self.nodes.is_synced()
            && (self.are_exports_read() || self.exports_failed)
    }

    /// Whether it is known too what is exported and written there, and which namespaces it has.
    pub(super) fn is_present_known(&self) -> bool {
        self.is_synced() && self.are_exports_read() && self.imports.is_synced() && self.namespaces.is_synced()
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
            services: self.services.iter().map(|(_, kept)| kept.read.clone()).collect(),
            slices: self
                .slices
                .iter()
                .filter_map(|(_, kept)| match kept {
                    KeptSlice::Read(slice) => Some(slice.clone()),
                    KeptSlice::Ours(_) => None,
                })
                .collect(),
            nodes: self.nodes.iter().map(|((_, name), place)| (name.clone(), place.clone())).collect(),
            exports: self.exports.iter().map(|(_, export)| declared(export)).collect(),
        }
    }

    /// What is there of the things that we write.
    pub(super) fn present(&self) -> Present {
        Present {
            services: self
                .services
                .iter()
                .filter_map(|(key, kept)| Some((name(key), kept.present.clone()?)))
                .collect(),
            exports: self.exports.iter().map(|(key, export)| (name(key), export.clone())).collect(),
            imports: self.imports.iter().map(|(key, import)| (name(key), import.clone())).collect(),
            slices: self
                .slices
                .iter()
                .filter_map(|(key, kept)| match kept {
                    KeptSlice::Ours(slice) => Some((name(key), slice.clone())),
                    KeptSlice::Read(_) => None,
                })
                .collect(),
            namespaces: self.namespaces.iter().map(|((_, name), ending)| (name.clone(), *ending)).collect(),
            mcs_version: self.mcs.flatten(),
        }
    }

    /// Namespaces that are on their way out: nothing can be made in them.
    pub(super) fn terminating(&self) -> BTreeSet<String> {
        let ending = self.namespaces.iter().filter(|(_, terminating)| **terminating);
        ending.map(|((_, name), _)| name.clone()).collect()
    }
}

fn name((namespace, name): &Key) -> ObjectName {
    ObjectName { namespace: namespace.clone(), name: name.clone() }
}

/// A ServiceExport as the merge reads it: what we write on it is nothing new.
fn declared(export: &ServiceExport) -> ServiceExport {
    let mut export = ServiceExport { status: None, ..export.clone() };
    strip::strip(&mut export.metadata);
    export
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

/// A watch that can be done without only where such objects may not be read or do not exist.
fn refused<V: PartialEq>(store: &mut Store<V>, watch: &'static str, fault: &Fault) -> Effect {
    if is_refusal(fault) { gave_up(store, watch, fault) } else { Effect::Nothing }
}

/// Whether such objects may not be read or do not exist.
const fn is_refusal(fault: &Fault) -> bool {
    matches!(fault.kind, FaultKind::Forbidden | FaultKind::NotFound)
}

#[cfg(test)]
mod tests {
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
        let mut objects = Objects::new("set");
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
        assert!(!objects.is_synced(), "it is not known yet whether it has ServiceExports");
        objects.apply(MemberEvent::Mcs(None));
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
        let mut objects = Objects::new("set");
        list(MemberEvent::Service, vec![service("web")], &mut objects);
        list(MemberEvent::Slice, vec![], &mut objects);
        objects.apply(MemberEvent::Identity(None));
        objects.apply(MemberEvent::Mcs(None));
        let done_without = |watch| Effect::Answered { watch, changed: true };
        assert_eq!(objects.apply(MemberEvent::Node(Err(refused()))), done_without("nodes"));
        assert_eq!(objects.apply(MemberEvent::Namespace(Err(refused()))), done_without("namespaces"));
        assert!(objects.is_synced());
        assert_eq!(objects.apply(MemberEvent::Node(Err(refused()))), Effect::Nothing, "told once");
    }

    #[test]
    fn nodes_that_fail_for_a_while_hold_nothing_back_and_are_taken_in_when_they_come() {
        let busy = || Fault { kind: FaultKind::TooManyRequests, message: String::new() };
        let mut objects = Objects::new("set");
        list(MemberEvent::Service, vec![service("web")], &mut objects);
        list(MemberEvent::Slice, vec![], &mut objects);
        objects.apply(MemberEvent::Identity(None));
        objects.apply(MemberEvent::Mcs(None));
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
        objects.apply(MemberEvent::Mcs(None));
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

    fn dynamic(json: serde_json::Value) -> DynamicObject {
        parse(json)
    }

    #[test]
    fn exports_come_and_go_with_their_definitions() {
        let mut objects = synced();
        let export = || {
            dynamic(serde_json::json!({"metadata": {"namespace": "demo", "name": "web",
            "resourceVersion": "7"}, "status": {"conditions": []}}))
        };
        objects.apply(MemberEvent::Mcs(Some("v1beta1")));
        assert!(!objects.is_synced(), "its lists are to come");
        list(MemberEvent::Export, vec![export()], &mut objects);
        let refused = Fault { kind: FaultKind::NotFound, message: String::new() };
        objects.apply(MemberEvent::Import(Err(refused)));
        assert!(objects.is_synced());
        let read = objects.snapshot().exports;
        assert!(read.len() == 1 && read[0].status.is_none(), "what we write is nothing new to the merge");
        assert_eq!(objects.present().mcs_version, Some("v1beta1"));
        assert!(objects.present().exports.values().all(|export| export.status.is_some()));
        objects.apply(MemberEvent::Mcs(None));
        assert!(objects.is_synced() && objects.snapshot().exports.is_empty());
    }

    #[test]
    fn exports_that_cannot_be_read_hold_nothing_back_and_those_that_are_known_stay() {
        let busy = || Fault { kind: FaultKind::ServerError, message: String::new() };
        let export = dynamic(serde_json::json!({"metadata": {"namespace": "demo", "name": "web"}}));
        let mut objects = synced();
        objects.apply(MemberEvent::Mcs(Some("v1beta1")));
        list(MemberEvent::Export, vec![export], &mut objects);
        list(MemberEvent::Import, vec![], &mut objects);
        for failing in [MemberEvent::McsUnknown(refused()), MemberEvent::Export(Err(busy()))] {
            objects.expect_lists();
            objects.apply(MemberEvent::Identity(None));
            list(MemberEvent::Service, vec![service("web"), service("new")], &mut objects);
            list(MemberEvent::Slice, vec![], &mut objects);
            if matches!(failing, MemberEvent::Export(_)) {
                objects.apply(MemberEvent::Mcs(Some("v1beta1")));
            }
            assert!(!objects.is_synced(), "exports are there from the beginning where they can be");
            assert_eq!(objects.apply(failing), Effect::Learnt);
            list(MemberEvent::Import, vec![], &mut objects);
            let known = objects.snapshot();
            assert_eq!((objects.is_synced(), known.services.len(), known.exports.len()), (true, 2, 1));
            assert!(!objects.is_present_known(), "nothing is written by what may be old");
            assert_eq!(objects.apply(MemberEvent::McsUnknown(busy())), Effect::Nothing, "told once");
        }
        objects.apply(MemberEvent::Mcs(Some("v1beta1")));
        list(MemberEvent::Export, vec![], &mut objects);
        list(MemberEvent::Import, vec![], &mut objects);
        assert!(objects.is_present_known() && objects.snapshot().exports.is_empty());
    }

    #[test]
    fn what_we_write_is_kept_apart_from_what_we_read() {
        let mut objects = synced();
        let ours: Service = parse(serde_json::json!({"metadata": {"namespace": "demo", "name": "ours",
            "managedFields": [{"manager": "kanmon.dev/set", "subresource": "status", "time": null},
                {"manager": "kubectl"}]}}));
        objects.apply(MemberEvent::Service(Ok(Event::Apply(ours))));
        let slice = |set: &str| {
            parse::<EndpointSlice>(serde_json::json!({"metadata": {"namespace": "demo",
            "name": set, "labels": {"kanmon.dev/cluster-set-id": set}}, "addressType": "IPv4", "endpoints": []}))
        };
        objects.apply(MemberEvent::Slice(Ok(Event::Apply(slice("set")))));
        objects.apply(MemberEvent::Slice(Ok(Event::Apply(slice("other")))));
        let present = objects.present();
        let services: Vec<String> = present.services.keys().map(ToString::to_string).collect();
        assert_eq!(services, ["demo/ours"], "a Service that we never wrote on is no business of ours");
        let slices: Vec<String> = present.slices.keys().map(ToString::to_string).collect();
        assert_eq!((slices, objects.snapshot().slices.len()), (vec!["demo/set".to_owned()], 1));
    }
}
