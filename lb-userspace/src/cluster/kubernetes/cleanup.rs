//! What is removed from a cluster that is no member any more: all that carries the cluster set's id there, and what was
//! written on objects of others. Pure: time comes in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::ObjectMeta;
use serde_json::json;

use super::publish::{
    Action, Kind, Present, SERVICE, SLICE, Write, field_manager, owns_status, present, service_export,
    service_import,
};
use crate::desired::MemberCluster;

/// On MemberClusters: they stay until what was written into their clusters is removed.
pub(super) const FINALIZER: &str = "kanmon.dev/cleanup";

/// What is still to be removed from a cluster; nothing where it is clean.
pub(super) fn writes(present: &Present, cluster_set_id: &str) -> Vec<Write> {
    let manager = field_manager(cluster_set_id);
    let mut writes = Vec::new();
    // In namespaces on their way out everything goes by itself.
    let stays = |metadata: &&ObjectMeta| {
        metadata.deletion_timestamp.is_none()
            && metadata.namespace.as_ref().and_then(|name| present.namespaces.get(name)) != Some(&true)
    };
    let take_back =
        |kind: Kind| move |metadata: &ObjectMeta| write(kind, metadata, Action::ApplyStatus(json!({})));
    let owned = |metadata: &&ObjectMeta| owns_status(metadata, &manager);
    let services = present.services.values().map(|service| &service.metadata);
    writes.extend(services.filter(stays).filter(owned).map(take_back(SERVICE)));
    let of_set = |metadata: &&ObjectMeta| present::is_of(metadata, cluster_set_id);
    let slices = present.slices.values().map(|slice: &EndpointSlice| &slice.metadata);
    writes.extend(slices.filter(stays).filter(of_set).map(|metadata| delete(SLICE, metadata)));
    let Some(version) = present.mcs_version else { return writes };
    let imports = present.imports.values().map(|import| &import.metadata);
    writes.extend(
        imports.filter(stays).filter(of_set).map(|metadata| delete(service_import(version), metadata)),
    );
    let exports = present.exports.values().map(|export| &export.metadata);
    writes.extend(exports.filter(stays).filter(owned).map(take_back(service_export(version))));
    writes
}

fn delete(kind: Kind, metadata: &ObjectMeta) -> Write {
    let uid = metadata.uid.clone().unwrap_or_default();
    write(kind, metadata, Action::Delete { uid, resource_version: None })
}

fn write(kind: Kind, metadata: &ObjectMeta, action: Action) -> Write {
    Write {
        kind,
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        action,
    }
}

/// How far the cleaning of a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing is left, or never was anything.
    Clean,
    /// Something is left, or nobody knows: its API server does not answer, for example.
    Unknown,
}

/// Since when MemberClusters are waiting for their end.
#[derive(Debug, Default)]
pub(super) struct Endings {
    /// By UID.
    since: BTreeMap<String, Instant>,
}

/// What becomes of a MemberCluster that somebody deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It waits until then at most.
    Waits(Instant),
    /// It may go.
    Done,
    /// It may go, though something may be left in its cluster.
    GivenUp,
}

impl Endings {
    /// Whether it may go. Its time runs from when this agent first saw that it is to go: clocks may differ.
    pub(super) fn judge(
        &mut self,
        object: &MemberCluster,
        progress: Progress,
        limit: Duration,
        now: Instant,
    ) -> Ending {
        let since = *self.since.entry(object.metadata.uid.clone().unwrap_or_default()).or_insert(now);
        match progress {
            Progress::Clean => Ending::Done,
            Progress::Unknown if now >= since + limit => Ending::GivenUp,
            Progress::Unknown => Ending::Waits(since + limit),
        }
    }

    /// Forgets those that are gone.
    pub(super) fn retain<'a>(&mut self, ending: impl Iterator<Item = &'a MemberCluster> + Clone) {
        self.since.retain(|uid, _| {
            ending.clone().any(|object| object.metadata.uid.as_deref() == Some(uid.as_str()))
        });
    }
}

/// Whether a MemberCluster waits for a cleanup before it goes.
pub(super) fn has_finalizer(metadata: &ObjectMeta) -> bool {
    metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

/// Sets or removes the finalizer of the very MemberCluster that was seen.
pub(super) fn finalizer(metadata: &ObjectMeta, wanted: bool) -> Write {
    let mut finalizers = metadata.finalizers.clone().unwrap_or_default();
    finalizers.retain(|finalizer| finalizer != FINALIZER);
    if wanted {
        finalizers.push(FINALIZER.to_owned());
    }
    let patch = json!({"metadata": {
        "finalizers": finalizers, "uid": metadata.uid, "resourceVersion": metadata.resource_version}});
    write(super::publish::MEMBER_CLUSTERS, metadata, Action::Merge(patch))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use serde_json::Value;

    use super::*;
    use crate::desired::ObjectName;
    use crate::desired::mcs::{ServiceExport, ServiceImport};

    fn parse<T: serde::de::DeserializeOwned>(json: Value) -> T {
        serde_json::from_value(json).unwrap()
    }

    fn name(text: &str) -> ObjectName {
        text.to_owned().try_into().unwrap()
    }

    fn metadata(namespace: &str, label: &str) -> Value {
        json!({"namespace": namespace, "name": "web", "uid": "u", "labels": {"kanmon.dev/cluster-set-id": label},
            "managedFields": [{"manager": format!("kanmon.dev/{label}"), "subresource": "status"}]})
    }

    /// All that could be ours in a namespace.
    fn present(namespace: &str, label: &str) -> Present {
        let key = || name(&format!("{namespace}/web"));
        let metadata = || metadata(namespace, label);
        let import = json!({"metadata": metadata(), "spec": {"type": "Headless", "ports": []}});
        Present {
            services: [(key(), parse::<Service>(json!({"metadata": metadata()})))].into(),
            exports: [(key(), parse::<ServiceExport>(json!({"metadata": metadata()})))].into(),
            imports: [(key(), parse::<ServiceImport>(import))].into(),
            slices: [(key(), parse(json!({"metadata": metadata(), "addressType": "IPv4", "endpoints": []})))]
                .into(),
            namespaces: [("demo".to_owned(), false), ("old".to_owned(), true)].into(),
            mcs_version: Some("v1alpha1"),
        }
    }

    #[test]
    fn all_that_this_set_wrote_is_removed_and_nothing_of_another() {
        let done: Vec<String> =
            writes(&present("demo", "set"), "set").iter().map(super::super::writer::describe).collect();
        assert_eq!(
            done,
            [
                "apply status of Service demo/web",
                "delete EndpointSlice demo/web",
                "delete ServiceImport demo/web",
                "apply status of ServiceExport demo/web",
            ]
        );
        assert_eq!(writes(&present("demo", "other"), "set"), []);
        assert_eq!(writes(&present("old", "set"), "set"), [], "it goes with its namespace");
    }

    #[test]
    fn a_cluster_that_is_not_cleaned_in_time_is_given_up() {
        let object: MemberCluster = parse(json!({"metadata": {"name": "a", "uid": "a"}, "spec": {}}));
        let (mut endings, began, limit) = (Endings::default(), Instant::now(), Duration::from_secs(60));
        let waits = Ending::Waits(began + limit);
        assert_eq!(endings.judge(&object, Progress::Unknown, limit, began), waits);
        let later = began + Duration::from_secs(59);
        assert_eq!(endings.judge(&object, Progress::Unknown, limit, later), waits);
        assert_eq!(endings.judge(&object, Progress::Clean, limit, later), Ending::Done);
        assert_eq!(endings.judge(&object, Progress::Unknown, limit, began + limit), Ending::GivenUp);
        endings.retain([].iter());
        let again = began + limit;
        assert_eq!(endings.judge(&object, Progress::Unknown, limit, again), Ending::Waits(again + limit));
    }

    #[test]
    fn other_finalizers_stay() {
        let mut metadata = ObjectMeta {
            name: Some("a".to_owned()),
            finalizers: Some(vec!["other/one".to_owned()]),
            ..ObjectMeta::default()
        };
        let finalizers = |write: &Write| match &write.action {
            Action::Merge(patch) => patch["metadata"]["finalizers"].clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(finalizers(&finalizer(&metadata, true)), json!(["other/one", FINALIZER]));
        metadata.finalizers = Some(vec![FINALIZER.to_owned(), "other/one".to_owned()]);
        assert!(has_finalizer(&metadata));
        assert_eq!(finalizers(&finalizer(&metadata, false)), json!(["other/one"]));
    }
}
