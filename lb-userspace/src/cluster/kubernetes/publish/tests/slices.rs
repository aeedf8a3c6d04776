//! The EndpointSlices of imports.

use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::{Bed, CLUSTER_SET_LABEL, SET, object, parse};
use crate::desired::mcs::ImportType;

fn addresses(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("10.1.{}.{}", n / 200, n % 200 + 1)).collect()
}

/// Cluster `b` exports `web`, and has these endpoints.
fn exported(addresses: &[String]) -> Bed {
    Bed::new().exported(&["b"], &["192.0.2.1"]).endpoints("b", addresses)
}

fn sizes(bed: &Bed) -> Vec<usize> {
    bed.present.slices.values().map(|slice| slice.endpoints.iter().flatten().count()).collect()
}

fn only(bed: &Bed) -> &EndpointSlice {
    assert_eq!(bed.present.slices.len(), 1);
    bed.present.slices.values().next().unwrap()
}

#[test]
fn an_import_has_the_endpoints_of_each_source_under_its_labels() {
    let mut bed = exported(&["10.1.0.1".to_owned()]);
    assert_eq!(
        bed.settle()
            .iter()
            .map(|write| write.split(' ').take(2).collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>(),
        ["create ServiceImport", "apply status", "create EndpointSlice"]
    );
    let slice = only(&bed);
    let labels = slice.metadata.labels.as_ref().unwrap();
    for (key, value) in [
        ("multicluster.kubernetes.io/service-name", "web"),
        ("multicluster.kubernetes.io/source-cluster", "b"),
        ("endpointslice.kubernetes.io/managed-by", "kanmon.dev"),
        (CLUSTER_SET_LABEL, SET),
    ] {
        assert_eq!(labels[key], value);
    }
    assert!(!labels.contains_key("kubernetes.io/service-name"), "it would attach to a Service of that name");
    let owner = &slice.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("ServiceImport", "web"));
    assert_eq!(Some(&owner.uid), bed.import().metadata.uid.as_ref());
    let port = &slice.ports.as_ref().unwrap()[0];
    assert_eq!((port.name.as_deref(), port.port), (Some("http"), Some(8080)));
    let endpoint = &slice.endpoints.as_ref().unwrap()[0];
    assert_eq!((endpoint.zone.as_deref(), endpoint.node_name.as_deref()), (Some("z1"), None));
    let conditions = endpoint.conditions.as_ref().unwrap();
    assert_eq!(
        (conditions.ready, conditions.serving, conditions.terminating),
        (Some(true), Some(true), Some(false))
    );
    bed.second += 60;
    assert_eq!(bed.settle(), [""; 0]);
}

#[test]
fn a_cluster_s_own_endpoints_belong_to_its_export_and_keep_their_nodes() {
    let mut bed = Bed::new().exported(&["a"], &["192.0.2.1"]).endpoints("a", &addresses(1));
    bed.settle();
    let slice = only(&bed);
    let owner = &slice.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("ServiceExport", "export-web"));
    assert_eq!(slice.endpoints.as_ref().unwrap()[0].node_name.as_deref(), Some("n1"));
}

#[test]
fn a_headless_service_is_imported_by_its_pods_with_their_names() {
    let mut bed = exported(&addresses(1));
    bed.export_state().import.as_mut().unwrap().type_ = ImportType::Headless;
    let objects = Arc::make_mut(bed.clusters.get_mut("b").unwrap());
    objects.slices[0].endpoints.as_mut().unwrap()[0].hostname = Some("web-0".to_owned());
    bed.settle();
    assert_eq!(only(&bed).endpoints.as_ref().unwrap()[0].hostname.as_deref(), Some("web-0"));
}

#[test]
fn a_headless_service_without_ports_is_imported_too() {
    let mut bed = exported(&addresses(1));
    let import = bed.export_state().import.as_mut().unwrap();
    import.type_ = ImportType::Headless;
    import.ports.clear();
    let objects = Arc::make_mut(bed.clusters.get_mut("b").unwrap());
    objects.services[0].spec.as_mut().unwrap().ports = None;
    objects.slices[0].ports = None;
    bed.settle();
    assert_eq!(sizes(&bed), [1]);
}

#[test]
fn a_slice_has_100_endpoints_at_most_and_one_that_changes_rewrites_one_slice() {
    let mut bed = exported(&addresses(250));
    bed.settle();
    let mut found = sizes(&bed);
    found.sort_unstable();
    assert_eq!(found, [50, 100, 100]);

    let objects = Arc::make_mut(bed.clusters.get_mut("b").unwrap());
    let endpoint = &mut objects.slices[0].endpoints.as_mut().unwrap()[120];
    endpoint.conditions = Some(parse(json!({"ready": false, "serving": false, "terminating": true})));
    assert_eq!(bed.settle().len(), 1, "one is not ready");

    let mut fewer = addresses(250);
    fewer.remove(10);
    let mut bed = bed.endpoints("b", &fewer);
    // The rollout's other endpoint is ready again, in a slice of its own.
    assert_eq!(bed.settle().len(), 2, "one is gone, one has changed");

    fewer.push("10.9.0.1".to_owned());
    let mut bed = bed.endpoints("b", &fewer);
    assert_eq!(bed.settle().len(), 1, "one is new, in the slice with room");
    assert_eq!(sizes(&bed).iter().sum::<usize>(), 250);
}

#[test]
fn many_slices_with_little_in_each_become_few() {
    let all = addresses(1000);
    let mut bed = exported(&all);
    bed.settle();
    assert_eq!(sizes(&bed).len(), 10);
    let few: Vec<String> = all.iter().step_by(100).cloned().collect();
    let mut bed = bed.endpoints("b", &few);
    bed.settle();
    assert_eq!(sizes(&bed), [10]);
    assert_eq!(bed.settle(), [""; 0]);
}

#[test]
fn each_family_has_slices_of_its_own() {
    let mut bed = exported(&["10.1.0.1".to_owned()]).endpoints("b", &["fd00:1::1".to_owned()]);
    bed.settle();
    let mut families: Vec<_> = bed.present.slices.values().map(|slice| slice.address_type.as_str()).collect();
    families.sort_unstable();
    assert_eq!(families, ["IPv4", "IPv6"]);
}

#[test]
fn a_port_has_the_name_that_the_import_gives_it_and_one_that_is_not_imported_is_left_out() {
    let mut bed = exported(&addresses(1));
    let objects = Arc::make_mut(bed.clusters.get_mut("b").unwrap());
    objects.services[0].spec.as_mut().unwrap().ports =
        Some(parse(json!([{"name": "web", "port": 80}, {"name": "metrics", "port": 9090}])));
    objects.slices[0].ports = Some(parse(json!([
        {"name": "metrics", "port": 9090, "protocol": "TCP"}, {"name": "web", "port": 8080, "protocol": "TCP"}])));
    bed.settle();
    let ports = only(&bed).ports.as_ref().unwrap();
    assert_eq!(ports.len(), 1);
    assert_eq!((ports[0].name.as_deref(), ports[0].port), (Some("http"), Some(8080)));

    bed.export_state().import.as_mut().unwrap().ports[0].port = 81;
    bed.settle();
    assert_eq!(sizes(&bed), [0; 0], "it exposes no port of the import's");
}

#[test]
fn endpoints_of_a_drained_member_are_shown_as_terminating() {
    let mut bed = exported(&addresses(1));
    bed.members.push(parse(json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "MemberCluster",
        "metadata": {"name": "b"}, "spec": {"state": "Drain"}})));
    bed.settle();
    let conditions = only(&bed).endpoints.as_ref().unwrap()[0].conditions.clone().unwrap();
    assert_eq!(
        (conditions.ready, conditions.serving, conditions.terminating),
        (Some(false), Some(true), Some(true))
    );
}

#[test]
fn slices_of_a_cluster_that_exports_no_longer_are_deleted() {
    let mut bed = Bed::new()
        .exported(&["b", "c"], &["192.0.2.1"])
        .endpoints("b", &["10.1.0.1".to_owned()])
        .endpoints("c", &["10.2.0.1".to_owned()]);
    bed.settle();
    assert_eq!(sizes(&bed), [1, 1]);
    bed.export_state().clusters.retain(|cluster| cluster != "c");
    bed.settle();
    assert_eq!(only(&bed).endpoints.as_ref().unwrap()[0].addresses, ["10.1.0.1"]);
}

#[test]
fn slices_of_a_cluster_that_has_told_nothing_stay() {
    let mut bed = Bed::new()
        .exported(&["b", "c"], &["192.0.2.1"])
        .endpoints("b", &["10.1.0.1".to_owned()])
        .endpoints("c", &["10.2.0.1".to_owned()]);
    bed.settle();
    bed.complete = false;
    bed.clusters.remove("c");
    bed.export_state().clusters.retain(|cluster| cluster != "c");
    assert_eq!(bed.settle(), [""; 0]);
    bed.complete = true;
    bed.settle();
    assert_eq!(sizes(&bed), [1], "it is known to be gone");
}

#[test]
fn another_cluster_set_s_slices_are_left_alone() {
    let mut bed = exported(&[]);
    bed.settle();
    let foreign = json!({"metadata": {"namespace": "demo", "name": "x", "labels": {
            "multicluster.kubernetes.io/service-name": "web",
            "multicluster.kubernetes.io/source-cluster": "b", CLUSTER_SET_LABEL: "other"}},
        "addressType": "IPv4", "endpoints": []});
    bed.present.slices.insert(object("x"), parse(foreign));
    assert_eq!(bed.writes(), []);
}

#[test]
fn an_import_that_was_made_anew_owns_the_slices_of_the_old_one() {
    let mut bed = exported(&addresses(1));
    bed.settle();
    bed.present.imports.get_mut(&object("web")).unwrap().metadata.uid = Some("new".to_owned());
    bed.settle();
    assert_eq!(only(&bed).metadata.owner_references.as_ref().unwrap()[0].uid, "new");
}
