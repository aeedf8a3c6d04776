//! In what exports of one name differ. All of them are told, those that decide as well.

use std::collections::BTreeMap;

use super::super::types::Judgement;
use super::{Source, condition, ports};

/// How many clusters, or ports, a message names.
const NAMED: usize = 3;
/// How many characters of labels and annotations a message shows.
const SHOWN: usize = 60;
/// What an API server fills in for `ClientIP`, in seconds.
const DEFAULT_STICKINESS: i32 = 10_800;

/// The condition Conflict of exports, the oldest first.
pub(super) fn judge(sources: &[Source<'_>]) -> Judgement {
    let found = find(sources);
    let [oldest, next, ..] = sources else { return condition("Conflict", false, "NoConflicts", "") };
    if found.is_empty() {
        return condition("Conflict", false, "NoConflicts", "");
    }
    let (reasons, texts): (Vec<&str>, Vec<String>) = found.into_iter().unzip();
    let why = if oldest.created.is_some() && oldest.created != next.created {
        "has the oldest export"
    } else {
        "is the first by name of those with the oldest export"
    };
    let message = format!(
        "{}. Cluster {} {why}, so it decides; make the Services and exports of all clusters alike",
        texts.join("; "),
        oldest.cluster
    );
    condition("Conflict", true, reasons.join(","), message)
}

/// Reasons in their order, each with what differs.
fn find(sources: &[Source<'_>]) -> Vec<(&'static str, String)> {
    let field = |reason, what, value: &dyn Fn(&Source<'_>) -> Option<String>| {
        Some((reason, difference(sources, what, value)?))
    };
    let json = |map: Option<&BTreeMap<String, String>>| {
        Some(serde_json::to_string(&map.cloned().unwrap_or_default()).unwrap_or_default())
    };
    let found = [
        port_differences(sources).map(|text| ("PortConflict", text)),
        field("TypeConflict", "the type", &|source| {
            Some(if source.is_headless() { "headless" } else { "not headless" }.to_owned())
        }),
        field("SessionAffinityConflict", "sessionAffinity", &|source| Some(source.affinity().to_owned())),
        field("SessionAffinityConfigConflict", "sessionAffinityConfig", &stickiness),
        field("AnnotationsConflict", "exportedAnnotations", &|source| {
            json(source.export.exported_annotations.as_ref())
        }),
        field("LabelsConflict", "exportedLabels", &|source| json(source.export.exported_labels.as_ref())),
        field("InternalTrafficPolicyConflict", "internalTrafficPolicy", &|source| {
            Some(source.spec.internal_traffic_policy.clone().unwrap_or_else(|| "Cluster".to_owned()))
        }),
        field("TrafficDistributionConflict", "trafficDistribution", &traffic_distribution),
        field("IPFamilyConflict", "ipFamilies", &|source| {
            let mut families = source.families()?;
            families.sort_unstable();
            Some(families.join("+"))
        }),
    ];
    found.into_iter().flatten().collect()
}

/// How long a client stays with its pod, where it does.
fn stickiness(source: &Source<'_>) -> Option<String> {
    let config = source.spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|client| client.timeout_seconds).unwrap_or(DEFAULT_STICKINESS);
    (source.affinity() == "ClientIP").then(|| format!("{seconds} s"))
}

/// `PreferClose` is the old name of `PreferSameZone`.
fn traffic_distribution(source: &Source<'_>) -> Option<String> {
    Some(match source.spec.traffic_distribution.as_deref() {
        None | Some("") => "unset".to_owned(),
        Some("PreferClose") => "PreferSameZone".to_owned(),
        Some(other) => other.to_owned(),
    })
}

/// Says which clusters have another value than the first that has one.
fn difference(
    sources: &[Source<'_>],
    what: &str,
    value: &dyn Fn(&Source<'_>) -> Option<String>,
) -> Option<String> {
    let mut values = sources.iter().filter_map(|source| Some((source.cluster, value(source)?)));
    let (decides, wanted) = values.next()?;
    let mut others: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (cluster, value) in values.filter(|(_, value)| *value != wanted) {
        others.entry(value).or_default().push(cluster);
    }
    if others.is_empty() {
        return None;
    }
    let differing: Vec<String> =
        others.iter().map(|(value, clusters)| format!("{} in {}", shorten(value), list(clusters))).collect();
    Some(format!("{what}: {}, but {} in {decides}", some(&differing), shorten(&wanted)))
}

fn port_differences(sources: &[Source<'_>]) -> Option<String> {
    let ports::Union { clashes, partial, .. } = ports::union(sources);
    let mut texts = Vec::new();
    if !clashes.is_empty() {
        texts.push(format!("ports: {}", some(&clashes)));
    }
    if !partial.is_empty() {
        texts.push(format!("ports that not all have: {}", some(&partial)));
    }
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// For example `a, b, c and 2 more`.
pub(super) fn list(clusters: &[&str]) -> String {
    let names: Vec<String> = clusters.iter().map(|&name| name.to_owned()).collect();
    some(&names)
}

fn some(texts: &[String]) -> String {
    let named = texts.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match texts.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
