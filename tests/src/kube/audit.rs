//! The API server's audit log: what Kanmon's accounts asked for, and what they were answered.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::KubeCluster;

/// Who asked for what and what came of it, for the accounts in `kanmon-system`; a watch is noted at its beginning, for its
/// end may never come.
const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Metadata, userGroups: ['system:serviceaccounts:kanmon-system']}
  - {level: None}
";

/// The files of a cluster's audit log.
#[derive(Debug)]
pub(super) struct Audit {
    policy: PathBuf,
    log: PathBuf,
}

/// A request for an object or several, and what it was answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// As RBAC has it: `list`.
    pub verb: String,
    /// API group; empty: the core's.
    pub group: String,
    /// Resource in the plural, with its subresource: `services/status`.
    pub resource: String,
    /// Empty: of none, or of all.
    pub namespace: String,
    /// The object's name, where it is of one.
    pub name: String,
    /// The HTTP status.
    pub code: u64,
}

impl Audit {
    /// Writes the policy into `dir`, where the log will be.
    pub(super) fn prepare(dir: &Path) -> Result<Audit> {
        let audit = Audit { policy: dir.join("audit-policy.yaml"), log: dir.join("audit.log") };
        fs::write(&audit.policy, POLICY)
            .with_context(|| format!("cannot write {}", audit.policy.display()))?;
        Ok(audit)
    }

    /// What makes an API server write it. Rotation would take the beginning away.
    pub(super) fn flags(&self) -> [String; 3] {
        [
            format!("--audit-policy-file={}", self.policy.display()),
            format!("--audit-log-path={}", self.log.display()),
            "--audit-log-maxsize=0".to_owned(),
        ]
    }
}

impl KubeCluster {
    /// What a user has asked for since the cluster started, each kind of request once; what is of no resource, like
    /// `/version`, is left out.
    ///
    /// # Errors
    /// When the cluster is not audited, or its log is not what an API server writes.
    pub fn asked_by(&self, user: &str) -> Result<BTreeSet<Asked>> {
        let audit = self.audit.as_ref().with_context(|| format!("cluster {} is not audited", self.name()))?;
        let text =
            fs::read_to_string(&audit.log).with_context(|| format!("cannot read {}", audit.log.display()))?;
        // The last line may be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let requests = whole.lines().map(|line| {
            let event: Value =
                serde_json::from_str(line).with_context(|| format!("no audit event: {line}"))?;
            Ok((event["user"]["username"] == user).then(|| asked(&event)).flatten())
        });
        requests.filter_map(Result::transpose).collect()
    }
}

fn asked(event: &Value) -> Option<Asked> {
    let object = event["objectRef"].as_object()?;
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let resource = match text("subresource") {
        none if none.is_empty() => text("resource"),
        subresource => format!("{}/{subresource}", text("resource")),
    };
    Some(Asked {
        verb: event["verb"].as_str()?.to_owned(),
        group: text("apiGroup"),
        resource,
        namespace: text("namespace"),
        name: text("name"),
        code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_read_from_what_an_api_server_writes_and_one_for_no_resource_is_none() {
        let event = json!({
            "verb": "patch", "requestURI": "/apis/kanmon.dev/v1alpha1/memberclusters/hangzhou/status",
            "objectRef": {"resource": "memberclusters", "name": "hangzhou", "apiGroup": "kanmon.dev",
                          "apiVersion": "v1alpha1", "subresource": "status"},
            "responseStatus": {"metadata": {}, "code": 200},
        });
        let expected = Asked {
            verb: "patch".to_owned(),
            group: "kanmon.dev".to_owned(),
            resource: "memberclusters/status".to_owned(),
            namespace: String::new(),
            name: "hangzhou".to_owned(),
            code: 200,
        };
        assert_eq!(asked(&event), Some(expected));
        assert_eq!(asked(&json!({"verb": "get", "requestURI": "/version"})), None);
    }
}
