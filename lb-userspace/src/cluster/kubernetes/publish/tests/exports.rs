//! ServiceExports' conditions.

use serde_json::json;

use super::{Bed, at, export, judgement, object, parse, shown};

fn conditions(bed: &Bed) -> Vec<String> {
    let status = bed.present.exports[&object("web")].status.as_ref();
    shown(status.map_or(&[][..], |status| &status.conditions))
}

/// A judged export, in a cluster that imports nothing.
fn exported() -> Bed {
    let mut bed = Bed::new().exported(&["a"], &[]);
    bed.export_state().import = None;
    bed
}

#[test]
fn an_export_is_told_what_was_judged_and_then_nothing_is_written() {
    let mut bed = exported();
    assert_eq!(bed.settle(), ["apply status of ServiceExport web"]);
    assert_eq!(conditions(&bed), ["Valid=True/Valid", "Ready=True/Exported", "Conflict=False/NoConflicts"]);
    bed.second += 60;
    assert_eq!(bed.settle(), [""; 0]);
}

#[test]
fn a_condition_that_changes_has_its_own_time_and_others_conditions_stay() {
    let mut bed = exported();
    let other = json!({"type": "other", "status": "True", "reason": "R", "message": "",
        "lastTransitionTime": "2024-01-01T00:00:00Z"});
    let status = json!({"conditions": [other]});
    bed.present.exports.get_mut(&object("web")).unwrap().status = Some(parse(status));
    bed.settle();
    bed.second = 100;
    let judged = bed.export_state().exports.get_mut("a").unwrap();
    judged.conditions[2] = judgement("Conflict", true, "PortConflict,TypeConflict");
    bed.settle();
    let status = bed.present.exports[&object("web")].status.clone().unwrap();
    let times: Vec<_> =
        status.conditions[..3].iter().map(|condition| condition.last_transition_time.0).collect();
    assert_eq!(times, [at(0), at(0), at(100)]);
    assert_eq!(conditions(&bed)[2..], ["Conflict=True/PortConflict,TypeConflict", "other=True/R"]);
}

#[test]
fn the_version_that_the_cluster_serves_is_written() {
    let mut bed = exported();
    bed.present.mcs_version = Some("v1alpha1");
    assert_eq!(bed.writes()[0].kind.version, "v1alpha1");
    bed.present.mcs_version = None;
    assert_eq!(bed.writes(), []);
}

#[test]
fn a_definition_that_knows_no_generations_is_not_written_to_again() {
    let mut bed = exported();
    bed.settle();
    let export = bed.present.exports.get_mut(&object("web")).unwrap();
    for condition in &mut export.status.as_mut().unwrap().conditions {
        condition.observed_generation = None;
    }
    assert_eq!(bed.writes(), []);
}

#[test]
fn an_export_of_a_cluster_that_is_no_longer_used_loses_our_word_once_all_clusters_are_known() {
    let mut bed = exported();
    bed.settle();
    bed.desired.exports.clear();
    bed.complete = false;
    assert_eq!(bed.settle(), [""; 0]);
    bed.complete = true;
    assert_eq!(bed.settle(), ["apply status of ServiceExport web"], "and that once");
    assert_eq!(conditions(&bed), [""; 0]);

    let mut unjudged = Bed::new();
    unjudged.present.exports.insert(object("web"), export("web"));
    assert_eq!(unjudged.writes(), []);
}

#[test]
fn nothing_is_written_in_a_namespace_that_goes_away() {
    let mut bed = exported();
    bed.present.namespaces.insert("demo".to_owned(), true);
    assert_eq!(bed.writes(), []);
}
