//! `MemberCluster`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

use super::{conditions, networks, rule};

/// A Kubernetes cluster that endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "kanmon.dev",
    version = "v1alpha1",
    kind = "MemberCluster",
    doc = "A Kubernetes cluster that endpoints come from.",
    shortname = "mc",
    category = "kanmon",
    derive = "PartialEq",
    status = "MemberClusterStatus",
    printcolumn(name = "REGION", type_ = "string", json_path = ".spec.region"),
    printcolumn(name = "STATE", type_ = "string", json_path = ".spec.state"),
    printcolumn(
        name = "CONNECTED",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Connected\")].status"
    ),
    printcolumn(
        name = "NETWORK",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"NetworkValid\")].reason"
    ),
    printcolumn(name = "SERVICES", type_ = "integer", json_path = ".status.services"),
    printcolumn(name = "ENDPOINTS", type_ = "integer", json_path = ".status.endpoints"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "has(self.source)",
    "source is required: name a Secret in kubeconfigSecretRef, or say `local: {}` for the gateway's own cluster"
)]))]
pub struct MemberClusterSpec {
    /// Where its objects are read from; unset in standalone mode only: the directory of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<MemberSource>,
    /// Region of the cluster, for endpoints whose nodes don't tell. Zones come from its EndpointSlices and
    /// nodes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub region: String,
    /// Which of its Services take part: those of the same namespace and name as a front (SameName), or those
    /// that a ServiceExport names (ServiceExport).
    #[serde(default)]
    pub discovery: Discovery,
    /// Whether its endpoints are used. Active: they are. Drain: they get no new flows, existing ones go on.
    /// Disabled: they are not.
    #[serde(default)]
    pub state: MemberState,
    /// Networks of its pods. Where pod or node networks are declared, an endpoint outside them is refused.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(max = 43)),
        extend("x-kubernetes-validations" = networks())
    )]
    pub pod_cidrs: Vec<String>,
    /// Networks of its nodes.
    #[serde(default, rename = "nodeCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(max = 43)),
        extend("x-kubernetes-validations" = networks())
    )]
    pub node_cidrs: Vec<String>,
    /// Networks of its ClusterIPs.
    #[serde(default, rename = "serviceCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(max = 43)),
        extend("x-kubernetes-validations" = networks())
    )]
    pub service_cidrs: Vec<String>,
}

/// Where a member's objects are read from: exactly one of these is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "has(self.kubeconfigSecretRef) != has(self.local)",
    "exactly one of kubeconfigSecretRef and local must be set"
)]))]
pub struct MemberSource {
    /// A kubeconfig in a Secret, as `kanmon remote-secret create` and `istioctl create-remote-secret` make it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig_secret_ref: Option<KubeconfigSecretRef>,
    /// The cluster that the gateway itself runs in; written `local: {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalSource>,
}

/// A kubeconfig in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubeconfigSecretRef {
    /// Namespace of the Secret.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: String,
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Data key that holds the kubeconfig.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// The cluster that the gateway itself runs in; has no fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = without_additional_properties)]
pub struct LocalSource {}

/// Which of a member's Services take part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Discovery {
    /// Those of the same namespace and name as a front.
    #[default]
    SameName,
    /// Those that a ServiceExport names.
    ServiceExport,
}

/// Whether a member's endpoints are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MemberState {
    /// They are.
    #[default]
    Active,
    /// They get no new flows; existing ones go on.
    Drain,
    /// They are not.
    Disabled,
}

/// What the gateways know about a member cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberClusterStatus {
    /// The generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// UID of the cluster's namespace kube-system, by which the cluster is known whatever its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
    /// Version of its API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub version: Option<String>,
    /// How many of its Services have a front.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub services: Option<i64>,
    /// How many endpoints it gives to them; one that is in two services counts twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub endpoints: Option<i64>,
    /// Connected, Synced, Writable, NetworkValid, DuplicateCluster and Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// An API server drops unknown fields by itself, and accepts no schema that forbids them.
fn without_additional_properties(schema: &mut Schema) {
    schema.remove("additionalProperties");
}
