//! What the loop tells people, in the log.

use std::collections::BTreeMap;

use super::steering::News;
use crate::bpf::{AttachedMode, Attachment};
use crate::desired::{Desired, Endpoint, Service, ServiceId};
use crate::health::{Change, Decision, Ending, Verdict, Verdicts};
use crate::locality::Transition;

/// An interface got the program.
pub(super) fn attached(attachment: &Attachment) {
    let interface = &attachment.interface;
    for note in &attachment.notes {
        tracing::warn!("{interface}: {note}");
    }
    let how = if attachment.adopted { "took over" } else { "attached to" };
    match attachment.mode {
        AttachedMode::Native => tracing::info!("{how} {interface}, native (in the driver)"),
        AttachedMode::Generic => {
            tracing::warn!("{how} {interface}, generic: each packet costs several times as much")
        }
    }
}

/// Services that came, changed their endpoints, or went.
pub(super) fn services(before: &Desired, now: &Desired) {
    for (id, service) in &now.services {
        let Service { namespace, name, .. } = service;
        match before.services.get(id) {
            None => tracing::info!("{id} is {namespace}/{name}: {}", endpoints(service)),
            Some(old) if old.endpoints != service.endpoints => {
                tracing::info!("{id} ({namespace}/{name}) changes: {}", endpoints(service));
            }
            Some(_) => {}
        }
    }
    for (id, service) in &before.services {
        if !now.services.contains_key(id) {
            tracing::info!("{id} ({}/{}) is no longer served", service.namespace, service.name);
        }
    }
}

/// `6 endpoints (hangzhou 3, shanghai 3), 1 of them takes no new flows`
fn endpoints(service: &Service) -> String {
    let mut clusters: BTreeMap<&str, usize> = BTreeMap::new();
    for endpoint in &service.endpoints {
        *clusters.entry(&endpoint.cluster).or_default() += 1;
    }
    let clusters: Vec<String> = clusters.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let closed = service.endpoints.iter().filter(|endpoint| !endpoint.takes_new_flows()).count();
    let mut text = format!("{} endpoints", service.endpoints.len());
    if !clusters.is_empty() {
        text.push_str(&format!(" ({})", clusters.join(", ")));
    }
    if closed > 0 {
        text.push_str(&format!(", {closed} of them without new flows"));
    }
    text
}

/// Backends whose probes changed their verdict.
pub(super) fn verdicts(before: &Verdicts, now: &Verdicts, desired: &Desired) {
    let mut changes: BTreeMap<String, (&Endpoint, &Verdict)> = BTreeMap::new();
    for service in desired.services.values() {
        for endpoint in &service.endpoints {
            let old = before.of_endpoint(endpoint, &service.health_check);
            let new = now.of_endpoint(endpoint, &service.health_check);
            // The first answer of a target that is as its cluster says is no news.
            let first = matches!((old, new), (Verdict::Unknown, Verdict::Healthy));
            if !first && std::mem::discriminant(old) != std::mem::discriminant(new) {
                changes.insert(endpoint.backend.to_string(), (endpoint, new));
            }
        }
    }
    for (backend, (endpoint, verdict)) in changes {
        let Endpoint { cluster, pod, .. } = endpoint;
        match verdict {
            Verdict::Unknown => {}
            Verdict::Healthy => tracing::info!("{backend} ({cluster} {pod}) is healthy"),
            Verdict::Unhealthy { reason } => {
                tracing::warn!("{backend} ({cluster} {pod}) is unhealthy: {reason}");
            }
        }
    }
}

/// Ejections, and clusters that fail or return.
pub(super) fn steering(news: &News) {
    for decision in &news.decisions {
        match decision {
            Decision::Ejected { service, backend, ejection } => {
                let left = ejection.until.saturating_duration_since(news.at);
                tracing::warn!("service {service}: {backend} is ejected for {} s", left.as_secs());
            }
            Decision::Refused { service, backend, limit } => tracing::warn!(
                "service {service}: {backend} fails, and is not ejected: only {limit} of its endpoints may be at once"
            ),
            Decision::Returned { service, backend, why } => {
                let why = match why {
                    Ending::Time => "its time is over",
                    Ending::Policy => "there is no outlier detection any more",
                    Ending::Limit => "fewer may be ejected now",
                };
                tracing::info!("service {service}: {backend} is not ejected any more: {why}");
            }
            Decision::Reset { .. } => {}
        }
    }
    for change in &news.changes {
        match change {
            Change::Failed { cluster, failing, pods } => {
                tracing::warn!("cluster {cluster} has failed: {failing} of its {pods} pods do not answer");
            }
            Change::Returned { cluster } => tracing::info!("cluster {cluster} is back"),
        }
    }
}

/// New flows that go elsewhere because of health.
pub(super) fn moves(moves: &[(ServiceId, Transition)]) {
    for (service, transition) in moves {
        if transition.is_move() {
            tracing::info!("service {service}: {transition}");
        } else {
            tracing::debug!("service {service}: {transition}");
        }
    }
}
