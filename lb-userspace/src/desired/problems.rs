//! Collects problems.

use std::fmt::Display;

use super::types::{ObjectName, Problem, Reason, Severity};

/// A cluster, for people; empty: the gateway cluster, where that is no member.
#[must_use]
pub fn cluster_place(cluster: &str) -> String {
    match cluster {
        "" => "the gateway cluster".to_owned(),
        cluster => format!("cluster {cluster}"),
    }
}

#[derive(Debug, Default)]
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    /// What was asked for is not done.
    pub(super) fn error(
        &mut self,
        cluster: &str,
        object: impl Display,
        reason: Reason,
        message: impl Into<String>,
    ) {
        self.add(cluster, object, reason, Severity::Error, message.into());
    }

    /// It is done, but perhaps not as its author expects.
    pub(super) fn warning(
        &mut self,
        cluster: &str,
        object: impl Display,
        reason: Reason,
        message: impl Into<String>,
    ) {
        self.add(cluster, object, reason, Severity::Warning, message.into());
    }

    /// All of them, each once, by cluster and object.
    pub(super) fn sorted(mut self) -> Vec<Problem> {
        self.0.sort_unstable();
        self.0.dedup();
        self.0
    }

    fn add(
        &mut self,
        cluster: &str,
        object: impl Display,
        reason: Reason,
        severity: Severity,
        message: String,
    ) {
        self.0.push(Problem {
            cluster: cluster.to_owned(),
            object: object.to_string(),
            reason,
            severity,
            message,
        });
    }
}

/// How a Service is named in problems.
pub(super) fn service(name: &ObjectName) -> String {
    format!("Service {name}")
}
