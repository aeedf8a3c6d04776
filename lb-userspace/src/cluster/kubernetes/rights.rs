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
const MEMBER_READS: [(&str, &str); 4] =
    [("", "services"), ("", "nodes"), ("", "namespaces"), ("discovery.k8s.io", "endpointslices")];

fn right(verb: &str, group: &str, resource: &str, namespace: Option<&str>) -> Right {
    Right {
        verb: verb.to_owned(),
        group: group.to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.map(str::to_owned),
    }
}

/// What the agent does in the gateway cluster, whose Secrets in `secret_namespaces` register members.
#[must_use]
pub fn of_gateway(secret_namespaces: &[String]) -> Vec<Right> {
    let everywhere = GATEWAY.iter().flat_map(|(group, resource, verbs)| {
        verbs.iter().map(move |verb| right(verb, group, resource, None))
    });
    let leases = LEASES.iter().map(|verb| right(verb, "coordination.k8s.io", "leases", Some(NAMESPACE)));
    let secrets = secret_namespaces.iter().flat_map(|namespace| {
        CHANGES.iter().map(move |verb| right(verb, "", "secrets", Some(namespace.as_str())))
    });
    everywhere.chain(leases).chain(secrets).collect()
}

/// What the agent does in a member cluster.
#[must_use]
pub fn of_member() -> Vec<Right> {
    let reads = MEMBER_READS
        .iter()
        .flat_map(|(group, resource)| CHANGES.iter().map(move |verb| right(verb, group, resource, None)));
    reads.chain(of_writes()).collect()
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
