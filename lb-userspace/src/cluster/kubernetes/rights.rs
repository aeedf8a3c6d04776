//! What the agent does in the clusters, as rights: what `kanmon preflight` asks for, and what `deploy/` grants.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use kube::{Client, Error};

use super::lease::NAMESPACE;
use super::member::WRITES;

/// A verb on a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// `list`.
    pub verb: String,
    /// API group; empty: the core's.
    pub group: String,
    /// Resource in the plural, with its subresource: `services/status`.
    pub resource: String,
    /// The namespace; `None`: in all.
    pub namespace: Option<String>,
}

const CHANGES: [&str; 2] = ["list", "watch"];

/// In the gateway cluster, everywhere: group, resource, verbs.
const GATEWAY: [(&str, &str, &[&str]); 18] = [
    ("", "namespaces", &["get", "list", "watch"]),
    ("", "nodes", &CHANGES),
    ("", "services", &CHANGES),
    ("", "services/status", &["patch"]),
    ("discovery.k8s.io", "endpointslices", &["create", "delete", "list", "update", "watch"]),
    ("events.k8s.io", "events", &["create", "patch"]),
    ("kanmon.dev", "addressallocations", &["create", "delete", "list", "update", "watch"]),
    ("kanmon.dev", "addressallocations/status", &["patch"]),
    ("kanmon.dev", "addresspools", &CHANGES),
    ("kanmon.dev", "addresspools/status", &["patch"]),
    ("kanmon.dev", "loadbalancingpolicies", &CHANGES),
    ("kanmon.dev", "loadbalancingpolicies/status", &["patch"]),
    ("kanmon.dev", "memberclusters", &["create", "delete", "list", "patch", "watch"]),
    ("kanmon.dev", "memberclusters/status", &["patch"]),
    ("multicluster.x-k8s.io", "serviceexports", &CHANGES),
    ("multicluster.x-k8s.io", "serviceexports/status", &["patch"]),
    ("multicluster.x-k8s.io", "serviceimports", &["create", "delete", "list", "update", "watch"]),
    ("multicluster.x-k8s.io", "serviceimports/status", &["patch"]),
];

/// In the namespace of the gateways.
const LEASES: &[&str] = &["create", "delete", "get", "list", "patch"];

/// In a member, beside [`WRITES`].
const MEMBER_READS: [(&str, &str, &[&str]); 4] = [
    ("", "namespaces", &["get", "list", "watch"]),
    ("", "nodes", &CHANGES),
    ("", "services", &CHANGES),
    ("discovery.k8s.io", "endpointslices", &CHANGES),
];

fn right(verb: &str, group: &str, resource: &str, namespace: Option<&str>) -> Right {
    Right {
        verb: verb.to_owned(),
        group: group.to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.map(str::to_owned),
    }
}

/// All verbs of a table, in all namespaces.
fn everywhere(
    table: &'static [(&'static str, &'static str, &'static [&'static str])],
) -> impl Iterator<Item = Right> {
    table
        .iter()
        .flat_map(|(group, resource, verbs)| verbs.iter().map(move |verb| right(verb, group, resource, None)))
}

/// What the agent does in the gateway cluster, whose Secrets in `secret_namespaces` register members.
#[must_use]
pub fn of_gateway(secret_namespaces: &[String]) -> Vec<Right> {
    let everywhere = everywhere(&GATEWAY);
    let leases = LEASES.iter().map(|verb| right(verb, "coordination.k8s.io", "leases", Some(NAMESPACE)));
    let secrets = secret_namespaces.iter().flat_map(|namespace| {
        CHANGES.iter().map(move |verb| right(verb, "", "secrets", Some(namespace.as_str())))
    });
    everywhere.chain(leases).chain(secrets).collect()
}

/// What the agent does in a member cluster.
#[must_use]
pub fn of_member() -> Vec<Right> {
    everywhere(&MEMBER_READS).chain(of_writes()).collect()
}

/// The part of that which a member may withhold: it is served all the same.
#[must_use]
pub fn of_writes() -> Vec<Right> {
    let writes = WRITES.iter().map(|(verb, group, resource)| {
        right(verb, group, resource, (*resource == "leases").then_some(NAMESPACE))
    });
    writes.collect()
}

/// Which of these rights the account does not have, in words.
///
/// # Errors
/// The server can't be asked.
pub async fn missing(client: &Client, rights: &[Right]) -> Result<Vec<String>, Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for right in rights {
        let (name, subresource) =
            right.resource.split_once('/').map_or((right.resource.as_str(), None), |(a, b)| (a, Some(b)));
        let attributes = ResourceAttributes {
            verb: Some(right.verb.clone()),
            group: Some(right.group.clone()),
            resource: Some(name.to_owned()),
            subresource: subresource.map(str::to_owned),
            namespace: right.namespace.clone(),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let answer = reviews.create(&PostParams::default(), &review).await?;
        if !answer.status.is_some_and(|status| status.allowed) {
            let group = if right.group.is_empty() { String::new() } else { format!(".{}", right.group) };
            missing.push(format!("{} {}{group}", right.verb, right.resource));
        }
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    const OF_GATEWAY: &str = include_str!("../../../../deploy/gateway/rbac.yaml");
    const OF_MEMBER: &str = include_str!("../../../../deploy/member/account.yaml");

    /// What the roles in a manifest allow; each right is to be there once.
    fn granted(manifest: &str) -> BTreeSet<Right> {
        let objects: Vec<Value> = serde_saphyr::from_multiple(manifest).unwrap();
        let roles = objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("Role"));
        let all: Vec<Right> = roles.flat_map(of_role).collect();
        let set: BTreeSet<Right> = all.iter().cloned().collect();
        assert_eq!(set.len(), all.len(), "something is granted twice: {all:?}");
        set
    }

    fn of_role(role: &Value) -> Vec<Right> {
        let texts = |list: &Value| -> Vec<String> {
            list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        let namespace = role["metadata"]["namespace"].as_str();
        let mut rights = Vec::new();
        for rule in role["rules"].as_array().unwrap() {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    let verbs = texts(&rule["verbs"]).into_iter();
                    rights.extend(verbs.map(|verb| right(&verb, &group, &resource, namespace)));
                }
            }
        }
        rights
    }

    #[test]
    fn deploy_grants_a_gateway_just_what_the_agent_does_there() {
        let namespaces = ["kanmon-system", "istio-system"].map(str::to_owned);
        let done: BTreeSet<Right> = of_gateway(&namespaces).into_iter().collect();
        assert_eq!(granted(OF_GATEWAY), done);
    }

    #[test]
    fn deploy_grants_a_gateway_just_what_the_agent_does_in_a_member() {
        // One ClusterRole holds all of it, the Leases too.
        let done = of_member().into_iter().map(|done| Right { namespace: None, ..done }).collect();
        assert_eq!(granted(OF_MEMBER), done);
    }
}
