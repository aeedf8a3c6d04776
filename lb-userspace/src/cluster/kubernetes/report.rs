//! What people are told about members and the gateway cluster. Pure, but for the log.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::gateway;
use super::member::View;
use super::registry::{Outcome, Standing};
use crate::cluster::Connection;
use crate::desired::{MemberState, Problem, Reason, Severity};

/// How a member's API server answers; `before` is what was said of it last.
pub(super) fn connection(
    standing: &Standing,
    view: Option<&View>,
    before: Option<&Connection>,
    now: Timestamp,
) -> Connection {
    let (connected, reason, message) = state(standing, view);
    let since = match (view, before) {
        (_, Some(before)) if before.connected == connected => before.since,
        (Some(view), _) if view.health.connected == connected => view.health.since,
        _ => now,
    };
    Connection {
        connected,
        synced: view.is_some_and(|view| view.synced),
        reason,
        message,
        since,
        version: view.map(|view| view.version.clone()).unwrap_or_default(),
        writable: view.and_then(|view| view.missing.as_ref()).map(Vec::is_empty),
    }
}

/// Whether a member is connected, one word, and a sentence where something is wrong.
fn state(standing: &Standing, view: Option<&View>) -> (Option<bool>, &'static str, String) {
    if standing.object.spec.state == MemberState::Disabled {
        return (Some(false), "Disabled", "its state is Disabled; nothing of it is used".to_owned());
    }
    let health = view.map(|view| &view.health);
    match (health.and_then(|health| health.connected), &standing.obstacle) {
        (Some(true), _) => (Some(true), "Connected", String::new()),
        (_, Some((reason, message))) => (Some(false), reason, message.clone()),
        (Some(false), None) => {
            let fault = health.and_then(|health| health.fault.as_ref());
            fault.map_or((Some(false), "RequestFailed", String::new()), |fault| {
                (Some(false), fault.kind.name(), fault.message.clone())
            })
        }
        (None, None) => (None, "Connecting", String::new()),
    }
}

/// What is wrong with the gateway cluster.
pub(super) fn gateway_problems(gateway: &gateway::View) -> Vec<Problem> {
    let mut problems = gateway.problems.clone();
    if gateway.health.connected == Some(false)
        && let Some(fault) = &gateway.health.fault
    {
        problems.push(Problem {
            cluster: String::new(),
            object: "gateway cluster".to_owned(),
            reason: Reason::Unreadable,
            severity: Severity::Warning,
            message: format!(
                "its API server cannot be asked ({}: {}); what was known stays, and it is tried again",
                fault.kind.name(),
                fault.message
            ),
        });
    }
    problems
}

/// What is wrong with the gateway cluster, with Secrets and with members.
pub(super) fn problems(
    gateway: &gateway::View,
    outcome: &Outcome,
    views: &BTreeMap<String, View>,
) -> Vec<Problem> {
    let mut problems = gateway_problems(gateway);
    for refusal in &outcome.refusals {
        problems.push(Problem {
            cluster: String::new(),
            object: format!("Secret {}/{}", refusal.namespace, refusal.name),
            reason: Reason::NoSource,
            severity: Severity::Error,
            message: refusal.message.clone(),
        });
    }
    for (name, standing) in &outcome.members {
        if standing.object.spec.state != MemberState::Disabled {
            problems.extend(problem(name, standing, views.get(name)));
        }
    }
    problems
}

fn problem(name: &str, standing: &Standing, view: Option<&View>) -> Option<Problem> {
    let (reason, severity, message) = if let Some(other) = &standing.duplicate_of {
        let message = format!(
            "it is the same cluster as member {other}, {}, so nothing is read by this name; remove one of the two",
            standing.advantage_of_the_other()
        );
        (Reason::DuplicateObject, Severity::Error, message)
    } else if let Some((_, message)) = &standing.obstacle {
        (Reason::NoSource, Severity::Error, message.clone())
    } else {
        let health = &view?.health;
        let fault = health.fault.as_ref().filter(|_| health.connected == Some(false))?;
        let message = format!(
            "its API server cannot be asked since {} ({}); its endpoints stay and are probed",
            format_time(health.since),
            fault.kind.name(),
        );
        (Reason::Unreadable, Severity::Warning, message)
    };
    Some(Problem {
        cluster: name.to_owned(),
        object: format!("MemberCluster {name}"),
        reason,
        severity,
        message,
    })
}

/// RFC 3339 in whole seconds.
pub(super) fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Says each connection that came or broke.
pub(super) fn log_connections(before: &BTreeMap<String, Connection>, now: &BTreeMap<String, Connection>) {
    for (name, connection) in now {
        let was = before.get(name).and_then(|connection| connection.connected);
        match connection.connected {
            Some(true) if was != Some(true) => {
                tracing::info!("cluster {name}: connected ({})", connection.version);
            }
            Some(false) if was != Some(false) => {
                tracing::warn!(
                    "cluster {name}: not connected: {} ({})",
                    connection.message,
                    connection.reason
                );
            }
            _ => {}
        }
    }
    for name in before.keys().filter(|name| !now.contains_key(*name)) {
        tracing::info!("cluster {name}: no longer a member");
    }
}
