//! The status of MemberClusters. Pure.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;

use super::member::View;
use super::publish::conditions;
use super::registry::Standing;
use crate::cluster::{Connection, Programmed};
use crate::desired::{Desired, Judgement, MemberClusterStatus, MemberState, Reason, Severity};

/// What the status should be; equal to the present one where nothing has changed.
pub(super) fn status(
    standing: &Standing,
    view: Option<&View>,
    connection: &Connection,
    desired: &Desired,
    programmed: &Programmed,
    now: Timestamp,
) -> MemberClusterStatus {
    let object = &standing.object;
    let present = object.status.clone().unwrap_or_default();
    let judged = judge(standing, view, connection, desired, programmed);
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let endpoints = desired.services.values().flat_map(|service| {
        service.endpoints.iter().map(move |endpoint| (&service.namespace, &service.name, endpoint))
    });
    let own: Vec<_> = endpoints.filter(|(_, _, endpoint)| endpoint.cluster == name).collect();
    let services: BTreeSet<_> = own.iter().map(|(namespace, name, _)| (*namespace, *name)).collect();
    let backends: BTreeSet<_> =
        own.iter().map(|(namespace, name, endpoint)| (*namespace, *name, endpoint.backend)).collect();
    let known = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    MemberClusterStatus {
        observed_generation: object.metadata.generation,
        uid: view.and_then(|view| view.uid.clone()).or(present.uid),
        version: known(&connection.version).or(present.version),
        services: i64::try_from(services.len()).ok(),
        endpoints: i64::try_from(backends.len()).ok(),
        conditions: conditions(&judged, &present.conditions, object.metadata.generation, now),
    }
}

fn verdict(kind: &'static str, holds: Option<bool>, reason: &str, message: impl Into<String>) -> Judgement {
    Judgement { kind, holds, reason: reason.to_owned(), message: message.into() }
}

fn judge(
    standing: &Standing,
    view: Option<&View>,
    connection: &Connection,
    desired: &Desired,
    programmed: &Programmed,
) -> Vec<Judgement> {
    let connected =
        verdict("Connected", connection.connected, connection.reason, connection.message.as_str());
    let synced = if connection.synced {
        verdict("Synced", Some(true), "Synced", "")
    } else {
        verdict("Synced", Some(false), "NotSynced", "not everything was read on the present connection")
    };
    let refused = overlap(standing, desired, Some(Severity::Error));
    let network = network(standing, desired, programmed);
    let duplicate = standing.duplicate_of.as_ref().map_or_else(
        || verdict("DuplicateCluster", Some(false), "Unique", ""),
        |other| {
            let why = standing.advantage_of_the_other();
            let message =
                format!("it is the same cluster as MemberCluster {other}, {why}; remove one of them");
            verdict("DuplicateCluster", Some(true), "SameCluster", message)
        },
    );
    let writable = match view.and_then(|view| view.missing.as_ref()) {
        None => verdict("Writable", None, "NotAsked", ""),
        Some(missing) if missing.is_empty() => verdict("Writable", Some(true), "Allowed", ""),
        Some(missing) => {
            let message = format!(
                "its endpoints are served, but nothing is written there: the account may not {}; \
                 `kanmon remote-secret create` grants what is needed",
                missing.join(", ")
            );
            verdict("Writable", Some(false), "Forbidden", message)
        }
    };
    let ready = ready(standing, &connected, &synced, refused, &duplicate);
    vec![connected, synced, writable, network, duplicate, ready]
}

/// Whether its networks can be reached from here, and are its own. What merely is doubtful takes no endpoint away.
fn network(standing: &Standing, desired: &Desired, programmed: &Programmed) -> Judgement {
    let name = standing.object.metadata.name.as_deref().unwrap_or_default();
    let overlap =
        overlap(standing, desired, Some(Severity::Error)).or_else(|| overlap(standing, desired, None));
    let blocked = || {
        let message = programmed.blocked.get(name)?;
        Some(verdict("NetworkValid", Some(false), "ProbeBlocked", message.as_str()))
    };
    overlap.or_else(blocked).unwrap_or_else(|| verdict("NetworkValid", Some(true), "Valid", ""))
}

/// An overlap of its networks with others', of this severity or of any.
fn overlap(standing: &Standing, desired: &Desired, severity: Option<Severity>) -> Option<Judgement> {
    let title = format!("MemberCluster {}", standing.object.metadata.name.as_deref().unwrap_or_default());
    let found = desired.problems.iter().find(|problem| {
        problem.reason == Reason::CIDROverlap
            && problem.object == title
            && severity.is_none_or(|severity| problem.severity == severity)
    });
    found.map(|problem| verdict("NetworkValid", Some(false), "CIDROverlap", problem.message.as_str()))
}

/// Whether its endpoints are used and up to date; else the first reason why not.
fn ready(
    standing: &Standing,
    connected: &Judgement,
    synced: &Judgement,
    refused: Option<Judgement>,
    duplicate: &Judgement,
) -> Judgement {
    if standing.object.spec.state == MemberState::Disabled {
        return verdict("Ready", Some(false), "Disabled", "its state is Disabled");
    }
    if duplicate.holds == Some(true) {
        return verdict("Ready", Some(false), "DuplicateCluster", duplicate.message.as_str());
    }
    if let Some((reason, message)) = &standing.obstacle {
        return verdict("Ready", Some(false), reason, message.as_str());
    }
    let not_so = [connected, synced].into_iter().find(|judged| judged.holds != Some(true));
    match refused.as_ref().or(not_so) {
        Some(other) => verdict("Ready", Some(false), &other.reason, other.message.as_str()),
        None => verdict("Ready", Some(true), "Ready", ""),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

    use super::super::fault::{Fault, FaultKind};
    use super::super::health::Shown;
    use super::super::report;
    use super::*;
    use crate::desired::Problem;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn standing() -> Standing {
        let json = serde_json::json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "MemberCluster",
            "metadata": {"name": "a", "generation": 3}, "spec": {"source": {"local": {}}}});
        Standing {
            object: serde_json::from_value(json).unwrap(),
            exists: true,
            access: None,
            obstacle: None,
            duplicate_of: None,
            successor_of: None,
        }
    }

    fn view(connected: bool) -> View {
        let fault = (!connected).then(|| Fault { kind: FaultKind::Timeout, message: "slow".to_owned() });
        View {
            health: Shown { connected: Some(connected), fault, since: at(0) },
            version: "v1.36.3".to_owned(),
            uid: Some("uid".to_owned()),
            synced: connected,
            objects: None,
            present: None,
            missing: Some(Vec::new()),
            terminating: Default::default(),
        }
    }

    /// `Type=Status/Reason` of all conditions that are not as they should be.
    fn bad(status: &MemberClusterStatus) -> Vec<String> {
        let is_good = |condition: &&Condition| {
            let good = if condition.type_ == "DuplicateCluster" { "False" } else { "True" };
            condition.status != good
        };
        let bad = status.conditions.iter().filter(is_good);
        bad.map(|condition| format!("{}={}/{}", condition.type_, condition.status, condition.reason))
            .collect()
    }

    fn status_at(standing: &Standing, view: &View, desired: &Desired, second: i64) -> MemberClusterStatus {
        let connection = report::connection(standing, Some(view), None, at(second));
        status(standing, Some(view), &connection, desired, &Programmed::default(), at(second))
    }

    #[test]
    fn a_member_that_is_well_has_every_condition_and_is_ready() {
        let status = status_at(&standing(), &view(true), &Desired::default(), 0);
        assert_eq!(bad(&status), Vec::<String>::new());
        assert_eq!(status.conditions.len(), 6);
        assert_eq!((status.uid.as_deref(), status.version.as_deref()), (Some("uid"), Some("v1.36.3")));
        assert_eq!(status.observed_generation, Some(3));
    }

    #[test]
    fn nothing_is_written_while_nothing_changes_and_a_change_has_its_own_time() {
        let mut standing = standing();
        let first = status_at(&standing, &view(true), &Desired::default(), 0);
        standing.object.status = Some(first.clone());
        assert_eq!(status_at(&standing, &view(true), &Desired::default(), 60), first);
        let later = status_at(&standing, &view(false), &Desired::default(), 90);
        let times: Vec<(String, i64)> = later
            .conditions
            .iter()
            .map(|condition| {
                (condition.type_.clone(), condition.last_transition_time.0.as_second() - 1_000_000)
            })
            .collect();
        for (kind, second) in times {
            let changed = ["Connected", "Synced", "Ready"].contains(&kind.as_str());
            assert_eq!(second, if changed { 90 } else { 0 }, "{kind}");
        }
        assert_eq!(bad(&later), ["Connected=False/Timeout", "Synced=False/NotSynced", "Ready=False/Timeout"]);
        assert_eq!(later.uid.as_deref(), Some("uid"), "who it is stays known");
    }

    #[test]
    fn each_thing_that_is_wrong_has_a_condition_and_a_reason_not_to_be_ready() {
        let mut duplicate = standing();
        duplicate.duplicate_of = Some("b".to_owned());
        let none = Desired::default();
        assert_eq!(
            bad(&status_at(&duplicate, &view(true), &none, 0)),
            ["DuplicateCluster=True/SameCluster", "Ready=False/DuplicateCluster"]
        );

        let overlap = Problem {
            cluster: String::new(),
            object: "MemberCluster a".to_owned(),
            reason: Reason::CIDROverlap,
            severity: Severity::Error,
            message: "overlaps".to_owned(),
        };
        let desired = Desired { problems: vec![overlap], ..Desired::default() };
        assert_eq!(
            bad(&status_at(&standing(), &view(true), &desired, 0)),
            ["NetworkValid=False/CIDROverlap", "Ready=False/CIDROverlap"]
        );

        let doubtful = Problem { severity: Severity::Warning, ..desired.problems[0].clone() };
        let doubtful = Desired { problems: vec![doubtful], ..Desired::default() };
        assert_eq!(
            bad(&status_at(&standing(), &view(true), &doubtful, 0)),
            ["NetworkValid=False/CIDROverlap"],
            "what refuses nobody is told, and its endpoints are used"
        );

        let mut refused = standing();
        refused.obstacle = Some(("ExecRefused", "runs a program".to_owned()));
        assert_eq!(bad(&status_at(&refused, &view(true), &none, 0)), ["Ready=False/ExecRefused"]);

        let mut read_only = view(true);
        read_only.missing = Some(vec!["create events.events.k8s.io".to_owned()]);
        let status = status_at(&standing(), &read_only, &none, 0);
        assert_eq!(bad(&status), ["Writable=False/Forbidden"], "endpoints are served all the same");
    }

    #[test]
    fn a_member_none_of_whose_endpoints_answers_is_blocked_and_its_endpoints_are_used_all_the_same() {
        let blocked = [("a".to_owned(), "none of its 3 ready endpoints answers".to_owned())].into();
        let programmed = Programmed { blocked, ..Programmed::default() };
        let (standing, view) = (standing(), view(true));
        let connection = report::connection(&standing, Some(&view), None, at(0));
        let status = status(&standing, Some(&view), &connection, &Desired::default(), &programmed, at(0));
        assert_eq!(bad(&status), ["NetworkValid=False/ProbeBlocked"]);
    }
}
