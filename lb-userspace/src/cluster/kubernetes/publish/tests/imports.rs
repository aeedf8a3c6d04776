//! ServiceImports.

use serde_json::json;

use super::super::Action;
use super::{Bed, CLUSTER_SET_LABEL, SET, object, parse, shown};
use crate::desired::Reason;

fn imported() -> Bed {
    Bed::new().exported(&["b", "c"], &["192.0.2.1"])
}

fn ready(bed: &Bed) -> Vec<String> {
    shown(&bed.import().status.as_ref().unwrap().conditions)
}

#[test]
fn an_exported_service_can_be_imported_where_the_namespace_is() {
    let mut bed = imported();
    assert_eq!(bed.settle(), ["create ServiceImport web", "apply status of ServiceImport web"]);
    let import = bed.import();
    assert_eq!(import.spec.ips, ["192.0.2.1"]);
    let labels = import.metadata.labels.as_ref().unwrap();
    assert_eq!(labels[CLUSTER_SET_LABEL], SET);
    assert_eq!(labels["app.kubernetes.io/managed-by"], "kanmon");
    let clusters: Vec<_> =
        import.status.as_ref().unwrap().clusters.iter().map(|source| source.cluster.as_str()).collect();
    assert_eq!(clusters, ["b", "c"]);
    assert_eq!(ready(&bed), ["Ready=True/Ready"]);
    bed.second += 60;
    assert_eq!(bed.settle(), [""; 0]);
}

#[test]
fn nothing_is_made_where_the_namespace_or_the_kind_is_missing_or_goes_away() {
    let mut bed = imported().endpoints("b", &["10.1.0.1".to_owned()]);
    bed.present.namespaces.insert("demo".to_owned(), true);
    assert_eq!(bed.writes(), []);
    bed.present.namespaces.clear();
    assert_eq!(bed.writes(), []);
    bed.present.namespaces.insert("demo".to_owned(), false);
    bed.present.mcs_version = None;
    assert_eq!(bed.writes(), []);
}

#[test]
fn an_import_waits_for_its_address_and_then_has_it() {
    let mut bed = Bed::new().exported(&["b"], &[]);
    bed.export_state().import_conditions = vec![super::judgement("Ready", false, "Pending")];
    bed.settle();
    assert_eq!((bed.import().spec.ips.len(), ready(&bed)), (0, vec!["Ready=False/Pending".to_owned()]));

    let mut bed = bed.exported(&["b"], &["192.0.2.1"]);
    bed.settle();
    assert_eq!(bed.import().spec.ips, ["192.0.2.1"]);
    assert_eq!(ready(&bed), ["Ready=True/Ready"]);
}

#[test]
fn only_exports_that_count_are_named_as_sources() {
    let mut bed = imported();
    bed.export_state().clusters.retain(|cluster| cluster != "b");
    bed.settle();
    let clusters = &bed.import().status.as_ref().unwrap().clusters;
    assert_eq!(clusters.iter().map(|source| source.cluster.as_str()).collect::<Vec<_>>(), ["c"]);
}

#[test]
fn exported_labels_come_and_go_and_foreign_ones_stay() {
    let mut bed = imported();
    bed.export_state().labels.insert("team".to_owned(), "x".to_owned());
    bed.export_state().annotations.insert("note".to_owned(), "y".to_owned());
    bed.export_state().labels.insert(CLUSTER_SET_LABEL.to_owned(), "stolen".to_owned());
    bed.settle();
    let metadata = &bed.import().metadata;
    assert_eq!(metadata.labels.as_ref().unwrap()["team"], "x");
    assert_eq!(metadata.labels.as_ref().unwrap()[CLUSTER_SET_LABEL], SET, "it cannot be given away");
    assert_eq!(metadata.annotations.as_ref().unwrap()["note"], "y");

    let import = bed.present.imports.get_mut(&object("web")).unwrap();
    let derived = ("multicluster.kubernetes.io/derived-service".to_owned(), "d".to_owned());
    import.metadata.annotations.as_mut().unwrap().extend([derived]);
    bed.export_state().labels.clear();
    bed.export_state().annotations.clear();
    bed.settle();
    let metadata = &bed.import().metadata;
    assert!(!metadata.labels.as_ref().unwrap().contains_key("team"));
    let annotations = metadata.annotations.as_ref().unwrap();
    assert!(!annotations.contains_key("note"));
    assert_eq!(annotations["multicluster.kubernetes.io/derived-service"], "d");
}

#[test]
fn what_somebody_changed_in_our_import_is_put_right() {
    let mut bed = imported();
    bed.settle();
    bed.present.imports.get_mut(&object("web")).unwrap().spec.ips = vec!["198.51.100.1".to_owned()];
    assert_eq!(bed.settle()[0], "replace ServiceImport web");
    assert_eq!(bed.import().spec.ips, ["192.0.2.1"]);
}

#[test]
fn a_definition_that_drops_newer_fields_is_not_written_to_again_and_again() {
    let mut bed = imported();
    bed.settle();
    let import = bed.present.imports.get_mut(&object("web")).unwrap();
    import.spec.ip_families.clear();
    import.status.as_mut().unwrap().conditions.clear();
    assert_eq!(bed.writes(), []);

    bed.export_state().import.as_mut().unwrap().ip_families = vec!["IPv6".to_owned()];
    assert_eq!(bed.writes().len(), 1, "what is wanted now is another");
}

#[test]
fn another_s_import_is_left_alone_and_told() {
    let mut bed = imported().endpoints("b", &["10.1.0.1".to_owned()]);
    let foreign = json!({"metadata": {"namespace": "demo", "name": "web", "uid": "x",
            "labels": {CLUSTER_SET_LABEL: "other"}},
        "spec": {"ports": [], "type": "ClusterSetIP"}});
    bed.present.imports.insert(object("web"), parse(foreign));
    assert_eq!(bed.writes(), []);
    let problems = bed.problems();
    assert_eq!(
        (problems[0].reason, problems[0].object.as_str()),
        (Reason::ForeignObject, "ServiceImport demo/web")
    );

    bed.desired.exports.clear();
    assert_eq!(bed.writes(), [], "it stays when nothing is exported");
}

#[test]
fn an_import_goes_with_the_last_export_and_its_slices_too() {
    let mut bed = imported().endpoints("b", &["10.1.0.1".to_owned()]);
    bed.settle();
    assert_eq!(bed.present.slices.len(), 1);
    bed.export_state().import = None;
    bed.export_state().clusters.clear();
    bed.settle();
    assert!(bed.present.imports.is_empty() && bed.present.slices.is_empty());
}

#[test]
fn an_import_stays_as_it_is_while_a_cluster_that_exports_it_has_told_nothing() {
    let mut bed = imported();
    bed.settle();
    let unknown = |mut bed: Bed| {
        bed.complete = false;
        bed.clusters.remove("c");
        bed
    };
    let mut bed = unknown(bed);
    bed.export_state().clusters.retain(|cluster| cluster != "c");
    assert_eq!(bed.writes(), []);
    bed.desired.exports.clear();
    assert_eq!(bed.writes(), []);
    bed.complete = true;
    assert!(matches!(bed.writes()[0].action, Action::Delete { .. }));
}

#[test]
fn an_import_that_is_being_deleted_is_waited_for() {
    let mut bed = imported();
    bed.settle();
    let import = bed.present.imports.get_mut(&object("web")).unwrap();
    import.metadata.deletion_timestamp = Some(parse(json!("2024-01-01T00:00:00Z")));
    assert_eq!(bed.writes(), []);
}
