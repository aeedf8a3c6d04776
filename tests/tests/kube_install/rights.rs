//! What an account may do by RBAC, and whether that is what it did.

use std::collections::BTreeSet;

use serde_json::Value;
use tests::kube::{Asked, KubeCluster};

/// A verb that an account may use on a resource; in one namespace, or, where that is empty, in all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    verb: String,
    group: String,
    resource: String,
    namespace: String,
}

impl Right {
    fn covers(&self, asked: &Asked) -> bool {
        let Right { verb, group, resource, namespace } = self;
        (verb, group, resource) == (&asked.verb, &asked.group, &asked.resource)
            && (namespace.is_empty() || *namespace == asked.namespace)
    }
}

fn items(cluster: &KubeCluster, kind: &str) -> Vec<Value> {
    let list = cluster.look(&format!("/apis/rbac.authorization.k8s.io/v1/{kind}")).unwrap();
    list["items"].as_array().unwrap().clone()
}

/// All that is granted to an account of `kanmon-system` by name.
fn granted(cluster: &KubeCluster, account: &str) -> BTreeSet<Right> {
    let is_it = |subject: &Value| {
        subject["kind"] == "ServiceAccount"
            && subject["namespace"] == "kanmon-system"
            && subject["name"] == account
    };
    let mut rights = BTreeSet::new();
    for (bindings, roles) in [("clusterrolebindings", "clusterroles"), ("rolebindings", "roles")] {
        let roles = items(cluster, roles);
        for binding in items(cluster, bindings) {
            if !binding["subjects"].as_array().into_iter().flatten().any(is_it) {
                continue;
            }
            let metadata = &binding["metadata"];
            let named = |role: &&Value| {
                role["metadata"]["name"] == binding["roleRef"]["name"]
                    && role["metadata"]["namespace"] == metadata["namespace"]
            };
            let role = roles.iter().find(named).unwrap_or_else(|| panic!("a role for {binding}"));
            rights.extend(of_role(role));
        }
    }
    rights
}

fn of_role(role: &Value) -> Vec<Right> {
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().unwrap() {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                rights.extend(texts(&rule["verbs"]).into_iter().map(|verb| Right {
                    verb,
                    group: group.clone(),
                    resource: resource.clone(),
                    namespace: role["metadata"]["namespace"].as_str().unwrap_or_default().to_owned(),
                }));
            }
        }
    }
    rights
}

/// What an account was refused, and what it may do and never did: two lists that are to be empty.
pub(crate) fn faults(cluster: &KubeCluster, account: &str) -> (Vec<Asked>, Vec<String>) {
    let user = format!("system:serviceaccount:kanmon-system:{account}");
    let asked = cluster.asked_by(&user).unwrap();
    let granted = granted(cluster, account);
    assert!(!granted.is_empty(), "{account} may do nothing in {}", cluster.name());
    let unused = granted.iter().filter(|right| !asked.iter().any(|asked| right.covers(asked)));
    let unused = unused
        .map(|Right { verb, group, resource, namespace }| format!("{verb} {group}/{resource} {namespace}"))
        .collect();
    (asked.into_iter().filter(|asked| asked.code == 403).collect(), unused)
}
