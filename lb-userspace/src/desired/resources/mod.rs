//! The custom resources of group `kanmon.dev/v1alpha1` that belong to the gateway. The doc comments of fields
//! are their descriptions in the schema, for `kubectl explain`.

#![expect(clippy::duplicated_attributes, reason = "clippy takes the keys of two printcolumns for one's")]

mod allocation;
mod member;
mod policy;
mod pool;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

pub use allocation::{
    AddressAllocation, AddressAllocationSpec, AddressAllocationStatus, CLUSTER_SET_LABEL, GROUP_LABEL,
    GatewayState, ServiceReference, allocation_name,
};
pub use member::{
    Discovery, KubeconfigSecretRef, LocalSource, MemberCluster, MemberClusterSpec, MemberClusterStatus,
    MemberSource, MemberState,
};
pub(super) use policy::parse_statuses;
pub use policy::{
    AreaStatus, ClientPrefix, Distribute, Failover, FlowLog, HealthCheckSpec, HealthCheckType,
    LoadBalancingPolicy, LoadBalancingPolicySpec, LoadBalancingPolicyStatus, LocalitySpec,
    OutlierDetectionSpec, PolicyGatewayState, TargetRef, WeightedPlace, ZonePreference,
};
pub use pool::{
    AddressPool, AddressPoolSpec, AddressPoolStatus, LabelExpression, LabelOperator, LabelSelector, PoolScope,
};

/// A CEL rule.
fn rule(rule: &str, message: &str) -> Value {
    json!({"rule": rule, "message": message})
}

/// Every item is a network. `isCIDR` is there from Kubernetes 1.31 on, which is the oldest one that these
/// resources work on. Bits beyond the prefix are told by the merge, with the network that was meant.
fn networks() -> Value {
    json!([rule("self.all(cidr, isCIDR(cidr))", "each must be a network like 10.0.0.0/16 or fd00:10::/48")])
}

/// API servers know no unsigned formats, and warn of them. Limits say the same.
fn plain_integers(schema: &mut Schema) {
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    for property in properties.into_iter().flat_map(|properties| properties.values_mut()) {
        let is_unsigned = property["format"].as_str().is_some_and(|format| format.starts_with("uint"));
        if let Some(property) = property.as_object_mut().filter(|_| is_unsigned) {
            property.remove("format");
        }
    }
}

/// A moment, as Kubernetes writes it.
fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}

/// Kubernetes' own conditions, by type.
fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": condition()
    })
}

/// One of Kubernetes' own conditions.
pub(super) fn condition() -> Value {
    json!({
        "type": "object",
        "required": ["lastTransitionTime", "message", "reason", "status", "type"],
        "properties": {
            "type": {"type": "string", "maxLength": 316, "description": "What it is about."},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": {
                "type": "string", "minLength": 1, "maxLength": 1024,
                "description": "Why, for programs."
            },
            "message": {
                "type": "string", "maxLength": 32768,
                "description": "Why, and what to do, for people."
            },
            "lastTransitionTime": {
                "type": "string", "format": "date-time",
                "description": "Since when the status is what it is."
            },
            "observedGeneration": {
                "type": "integer", "format": "int64", "minimum": 0,
                "description": "The generation of the spec that it is about."
            }
        }
    })
}
