//! Regions and zones: which entry of a policy is this gateway's, and what it comes to.

use k8s_openapi::api::core::v1::Service as KubeService;

use super::super::fronts::annotation;
use super::super::policy::{Area, Locality};
use super::super::resources::{Failover, LocalitySpec, WeightedPlace, ZonePreference};
use super::super::types::{Place, Reason};

/// The annotation that asked for the own zone before there was a field.
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
/// What helps a gateway that does not know where it is.
const HELP: &str =
    "give its Node the labels topology.kubernetes.io/region and /zone, or say --region and --zone";

/// Whether a Service asks that endpoints in the client's zone, here the gateway's, go first.
pub(in super::super) fn asks_for_own_zone(service: &KubeService) -> bool {
    let field = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref());
    let annotated = annotation(service, TOPOLOGY_MODE).is_some_and(|mode| mode.eq_ignore_ascii_case("auto"));
    matches!(field, Some("PreferClose" | "PreferSameZone")) || annotated
}

/// What a policy's locality and a preference come to for a gateway here, and what they cannot come to.
pub(super) fn resolve(
    spec: Option<&LocalitySpec>,
    zone: ZonePreference,
    place: &Place,
) -> (Locality, Vec<(Reason, String)>) {
    let mut doubts = Vec::new();
    let (failover, distribute) =
        spec.map_or((&[][..], &[][..]), |spec| (&spec.failover[..], &spec.distribute[..]));
    let froms: Vec<&str> = failover
        .iter()
        .map(|entry| entry.from.as_str())
        .chain(distribute.iter().map(|entry| entry.from.as_str()))
        .collect();
    if place.region.is_empty() {
        if !froms.is_empty() || zone != ZonePreference::None {
            let message = format!(
                "this gateway does not know its region, so connections are spread over all endpoints alike; {HELP}"
            );
            doubts.push((Reason::PlaceUnknown, message));
        }
        return (Locality::Even, doubts);
    }
    if zone != ZonePreference::None && place.zone.is_empty() {
        let message = format!("this gateway does not know its zone, so none goes first; {HELP}");
        doubts.push((Reason::PlaceUnknown, message));
    }
    let zone = if place.zone.is_empty() { ZonePreference::None } else { zone };
    if let Some(entry) = own(distribute, |entry| &entry.from, place) {
        return (Locality::Distribute { shares: entry.to.iter().map(share).collect() }, doubts);
    }
    let entry = own(failover, |entry| &entry.from, place);
    if entry.is_none() && !froms.is_empty() {
        let message = format!(
            "no `from` of its locality is the place of this gateway, {}/{}, so it goes by none of them here; there are {}",
            place.region,
            place.zone,
            froms.join(", ")
        );
        doubts.push((Reason::PlaceNotListed, message));
    }
    (levels(entry, zone, place), doubts)
}

/// The entry of the gateway's zone, else that of its region.
fn own<'a, T>(entries: &'a [T], from: impl Fn(&T) -> &String, place: &Place) -> Option<&'a T> {
    let mut matching: Vec<(Area, &T)> = entries.iter().map(|entry| (area(from(entry)), entry)).collect();
    matching.retain(|(area, _)| area.contains(&place.region, &place.zone));
    matching.into_iter().max_by_key(|(area, _)| !area.zone.is_empty()).map(|(_, entry)| entry)
}

/// The gateway's own place first, split as the preference asks, then what the entry names.
fn levels(entry: Option<&Failover>, zone: ZonePreference, place: &Place) -> Locality {
    let own_zone = Area { region: place.region.clone(), zone: place.zone.clone() };
    let own_region = Area { zone: String::new(), ..own_zone.clone() };
    let from = entry.map(|entry| area(&entry.from));
    let own = match (zone, from) {
        (_, Some(from)) if !from.zone.is_empty() => vec![from],
        (ZonePreference::Prefer, _) => vec![own_zone, own_region],
        (ZonePreference::Strict, _) => vec![own_zone],
        (ZonePreference::None, Some(from)) => vec![from],
        (ZonePreference::None, None) => return Locality::Even,
    };
    let others = entry.into_iter().flat_map(|entry| &entry.to).map(|place| area(place));
    Locality::Failover {
        levels: own.into_iter().chain(others).map(|area| vec![area]).collect(),
        strict: zone == ZonePreference::Strict,
    }
}

fn share(place: &WeightedPlace) -> (Area, u32) {
    let area = Area { region: place.region.clone(), zone: place.zone.clone().unwrap_or_default() };
    (area, place.weight)
}

/// A region, or region/zone.
fn area(text: &str) -> Area {
    let (region, zone) = text.split_once('/').unwrap_or((text, ""));
    Area { region: region.to_owned(), zone: zone.to_owned() }
}
