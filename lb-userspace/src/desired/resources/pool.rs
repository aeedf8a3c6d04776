//! `AddressPool`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{conditions, networks, rule};

/// Where VIPs come from.
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "kanmon.dev",
    version = "v1alpha1",
    kind = "AddressPool",
    doc = "Where VIPs come from.",
    category = "kanmon",
    derive = "PartialEq",
    status = "AddressPoolStatus",
    printcolumn(name = "CIDRS", type_ = "string", json_path = ".spec.cidrs"),
    printcolumn(name = "SCOPE", type_ = "string", json_path = ".spec.scope"),
    printcolumn(name = "AUTOASSIGN", type_ = "boolean", json_path = ".spec.autoAssign"),
    printcolumn(name = "USED", type_ = "integer", json_path = ".status.used"),
    printcolumn(name = "FREE", type_ = "string", json_path = ".status.free"),
    printcolumn(
        name = "READY",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddressPoolSpec {
    /// Networks whose addresses are given to Services, in order of preference.
    #[schemars(
        length(min = 1, max = 64),
        inner(length(max = 43)),
        extend("x-kubernetes-validations" = networks())
    )]
    pub cidrs: Vec<String>,
    /// Who can reach these addresses: the private network (Internal) or everybody (Public). A Service that does not
    /// say in `kanmon.dev/scope` which it wants gets an internal one while there are any.
    #[serde(default)]
    pub scope: PoolScope,
    /// Whether a Service that names no address may get one of these. Others can still name one in
    /// `kanmon.dev/addresses`.
    #[serde(default = "yes")]
    pub auto_assign: bool,
    /// The Services that may have one of these; unset: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_selector: Option<LabelSelector>,
}

/// Chooses Services or MemberClusters by their labels: all that is said here must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels that it must have, all of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels")]
    pub match_labels: BTreeMap<String, String>,
    /// What must be true of its labels, all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<LabelExpression>,
}

/// Something that is true of labels or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
    LabelExpression::VALUES_MESSAGE
)]))]
pub struct LabelExpression {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// What is asked about it.
    pub operator: LabelOperator,
    /// For In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// What is asked about a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LabelOperator {
    /// It has one of the values.
    In,
    /// It has none of the values, or is not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether something with these labels is chosen.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|expression| expression.holds(labels))
    }
}

impl LabelExpression {
    pub(super) const VALUES_MESSAGE: &str = "In and NotIn need values, Exists and DoesNotExist have none";

    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            LabelOperator::In => value.is_some_and(|value| self.values.contains(value)),
            LabelOperator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}

/// How much of a pool is in use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolStatus {
    /// The generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many of its addresses are given away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub used: Option<i64>,
    /// How many are left; a text, because IPv6 pools are large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 39))]
    pub free: Option<String>,
    /// Ready; InUseOutside: Services hold addresses that the pool no longer has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
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

const fn yes() -> bool {
    true
}

/// At most 16 labels.
fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": 63}
    })
}
