//! What the gateways make of a policy.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::{conditions, plain_integers, time};

/// What the gateways make of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancingPolicyStatus {
    /// The generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How new connections are spread: Even, Zone, Failover or Distribute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub mode: Option<String>,
    /// How many of the endpoints are healthy, like 5/6: as the gateway sees it that finds the fewest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub healthy: Option<String>,
    /// How many endpoints are ejected, where it is the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ejected: Option<i64>,
    /// Each gateway that has a Service of the policy writes its own entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["clusterSetID", "name"]))]
    pub gateways: Vec<PolicyGatewayState>,
    /// Accepted; Programmed; Degraded; Enforced: whether all fields of the policy have an effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// What one gateway makes of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyGatewayState {
    /// The cluster set whose gateway it is.
    #[serde(rename = "clusterSetID")]
    #[schemars(length(max = 63))]
    pub cluster_set_id: String,
    /// The gateway: its Node, or host.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Whether its packet program forwards what is sent to the VIPs of the policy's Services.
    pub programmed: bool,
    /// One word: `Programmed`, or why not.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// Why not and what to do, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// Since when `programmed` is what it is.
    #[schemars(schema_with = "time")]
    pub since: Time,
    /// When the numbers here were written: where nothing else changes, they are told every ten seconds at most.
    #[schemars(schema_with = "time")]
    pub updated: Time,
    /// Names of the Services that go by the policy here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    pub services: Vec<String>,
    /// Why more is used than the policy asks for, or less served, for people; empty: all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub degraded: String,
    /// What each region and zone has and gets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub regions: Vec<AreaStatus>,
}

/// What a region, or a zone of it, has and gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = plain_integers)]
pub struct AreaStatus {
    /// Name of the Service.
    #[schemars(length(max = 63))]
    pub service: String,
    /// The region; empty: unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub region: String,
    /// The zone; empty: unknown, or the whole region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub zone: String,
    /// Endpoints there, without those on their way out.
    pub endpoints: u32,
    /// Those of them that are healthy.
    pub healthy: u32,
    /// Those of them that are ejected.
    pub ejected: u32,
    /// How many percent of new connections go there.
    pub effective_weight: u32,
    /// One word: what its endpoints do now, for example Active or Standby.
    #[schemars(length(max = 32))]
    pub state: String,
}
