//! What a policy can say and this version does not do: it is told, never passed over.

use super::super::resources::LoadBalancingPolicySpec;

/// A field, and whether a policy has it.
type Field = (&'static str, fn(&LoadBalancingPolicySpec) -> bool);

/// The fields without an effect. What comes to have one leaves this list.
const FIELDS: [Field; 1] = [("newFlowLimit", |spec| spec.new_flow_limit.is_some())];

/// Says which fields of a policy have no effect; `None`: all have.
pub(super) fn ignored(spec: &LoadBalancingPolicySpec) -> Option<String> {
    let fields: Vec<&str> = FIELDS.iter().filter(|(_, is_set)| is_set(spec)).map(|(name, _)| *name).collect();
    let list = fields.join(", ");
    (!fields.is_empty())
        .then(|| format!("not done by this version of Kanmon, and without effect: {list}; remove it"))
}
