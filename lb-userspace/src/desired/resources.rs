//! The custom resources of group `kanmon.dev/v1alpha1` that belong to the gateway.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where VIPs come from.
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "kanmon.dev",
    version = "v1alpha1",
    kind = "AddressPool",
    doc = "Where VIPs come from.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddressPoolSpec {
    /// Networks whose addresses are given to Services, in order of preference.
    #[schemars(length(min = 1, max = 64), inner(length(max = 43)))]
    pub cidrs: Vec<String>,
    /// Who can reach these addresses.
    #[serde(default)]
    pub scope: PoolScope,
    /// Whether a Service that names no address may get one of these.
    #[serde(default = "yes")]
    pub auto_assign: bool,
}

/// Who can reach a pool's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PoolScope {
    /// The private network.
    #[default]
    Internal,
    /// Everybody.
    Public,
}

/// A Kubernetes cluster that endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "kanmon.dev",
    version = "v1alpha1",
    kind = "MemberCluster",
    doc = "A Kubernetes cluster that endpoints come from.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemberClusterSpec {
    /// Where its objects are read from; unset in standalone mode: the directory of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<MemberSource>,
    /// Region of the cluster. Zones come from its EndpointSlices.
    #[serde(default)]
    #[schemars(length(max = 63))]
    pub region: String,
    /// Which of its Services take part.
    #[serde(default)]
    pub discovery: Discovery,
    /// Whether its endpoints are used.
    #[serde(default)]
    pub state: MemberState,
    /// Networks of its pods. Where pod or node networks are declared, an endpoint outside them is refused.
    #[serde(default, rename = "podCIDRs")]
    #[schemars(length(max = 64), inner(length(max = 43)))]
    pub pod_cidrs: Vec<String>,
    /// Networks of its nodes.
    #[serde(default, rename = "nodeCIDRs")]
    #[schemars(length(max = 64), inner(length(max = 43)))]
    pub node_cidrs: Vec<String>,
    /// Networks of its ClusterIPs.
    #[serde(default, rename = "serviceCIDRs")]
    #[schemars(length(max = 64), inner(length(max = 43)))]
    pub service_cidrs: Vec<String>,
}

/// Where a member's objects are read from: exactly one of these is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemberSource {
    /// A kubeconfig in a Secret, as `istioctl create-remote-secret` writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig_secret_ref: Option<KubeconfigSecretRef>,
    /// The cluster that the gateway itself runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalSource>,
}

/// A kubeconfig in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubeconfigSecretRef {
    /// Namespace of the Secret.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Data key that holds the kubeconfig.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// The cluster that the gateway itself runs in; has no fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
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

const fn yes() -> bool {
    true
}
