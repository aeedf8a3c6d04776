//! The definitions of the custom resources, as an API server takes them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use super::resources::{AddressAllocation, AddressPool, LoadBalancingPolicy, MemberCluster};

/// All definitions, by name. They work on Kubernetes 1.31 and later.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![AddressAllocation::crd(), AddressPool::crd(), LoadBalancingPolicy::crd(), MemberCluster::crd()]
}

/// All definitions as YAML documents, for `kubectl apply -f -`.
///
/// # Errors
///
/// A definition cannot be written as YAML.
pub fn crds_yaml() -> Result<String, serde_saphyr::SerializeError> {
    let mut text = "# Printed by `kanmon crds`; needs Kubernetes 1.31 or later.\n".to_owned();
    for crd in crds() {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&crd)?);
    }
    Ok(text)
}

#[cfg(test)]
pub(super) mod tests {
    use kube_cel::Validator;
    use serde_json::{Value, json};

    use super::*;

    const FILE: &str = "deploy/crds/kanmon.dev.yaml";

    #[test]
    fn the_copy_for_deployments_is_up_to_date() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(FILE);
        let copy = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            copy == crds_yaml().unwrap(),
            "{FILE} differs from what the types say; run `cargo run -q -p lb-userspace -- crds > {FILE}`"
        );
    }

    #[test]
    fn what_is_printed_is_what_the_types_say() {
        let printed: Vec<Option<CustomResourceDefinition>> =
            serde_saphyr::from_multiple(&crds_yaml().unwrap()).unwrap();
        assert_eq!(printed.into_iter().flatten().collect::<Vec<_>>(), crds());
    }

    #[test]
    fn policies_are_in_namespaces_and_members_and_policies_have_their_columns_and_a_status() {
        for crd in crds() {
            let namespaced = crd.spec.names.kind == "LoadBalancingPolicy";
            assert_eq!(
                crd.spec.scope,
                if namespaced { "Namespaced" } else { "Cluster" },
                "{:?}",
                crd.metadata.name
            );
        }
        let members = ["REGION", "STATE", "CONNECTED", "NETWORK", "SERVICES", "ENDPOINTS", "AGE"];
        let policies = ["MODE", "HEALTHY", "EJECTED", "ACCEPTED", "PROGRAMMED", "AGE"];
        for (crd, short, columns) in
            [(MemberCluster::crd(), "mc", &members[..]), (LoadBalancingPolicy::crd(), "lbp", &policies)]
        {
            assert_eq!(crd.spec.names.short_names.as_deref(), Some(&[short.to_owned()][..]));
            let version = &crd.spec.versions[0];
            let shown = version.additional_printer_columns.iter().flatten();
            assert_eq!(shown.map(|column| column.name.as_str()).collect::<Vec<_>>(), columns);
            assert!(version.subresources.as_ref().unwrap().status.is_some());
        }
    }

    /// An API server refuses a rule over a list or text without an end for its cost, and a schema that
    /// forbids unknown fields.
    #[test]
    fn every_list_and_every_text_has_a_limit_and_nothing_forbids_unknown_fields() {
        for crd in crds() {
            let schema = schema(&crd);
            check_limits(&schema["properties"]["spec"], &mut vec!["spec".to_owned()]);
            check_limits(&schema["properties"]["status"], &mut vec!["status".to_owned()]);
        }
    }

    fn check_limits(schema: &Value, path: &mut Vec<String>) {
        // A map's values are described; what is forbidden is `additionalProperties: false`.
        let values = schema.get("additionalProperties");
        assert!(
            values.is_none_or(|values| values.is_object() && schema["maxProperties"].is_u64()),
            "{path:?} has additionalProperties, or a map without maxProperties"
        );
        let of_type = |name: &str| schema["type"] == name;
        let closed = schema.get("enum").is_some() || schema["format"] == "date-time";
        assert!(!of_type("array") || schema["maxItems"].is_u64(), "{path:?} has no maxItems");
        assert!(!of_type("string") || closed || schema["maxLength"].is_u64(), "{path:?} has no maxLength");
        let properties = schema["properties"].as_object().into_iter().flatten();
        let items = schema.get("items").map(|items| ("items", items));
        let below = items.into_iter().chain(values.map(|values| ("values", values)));
        for (name, below) in properties.map(|(name, below)| (name.as_str(), below)).chain(below) {
            path.push(name.to_owned());
            check_limits(below, path);
            path.pop();
        }
    }

    #[test]
    fn a_member_has_exactly_one_source() {
        let secret = json!({"namespace": "kanmon-system", "name": "s", "key": "k"});
        for (source, expected) in [
            (json!({"kubeconfigSecretRef": secret}), None),
            (json!({"local": {}}), None),
            (json!({}), Some("exactly one of")),
            (json!({"kubeconfigSecretRef": secret, "local": {}}), Some("exactly one of")),
        ] {
            assert_refusal(&MemberCluster::crd(), &json!({"source": source}), expected);
        }
        assert_refusal(&MemberCluster::crd(), &json!({}), Some("source is required"));
    }

    #[test]
    fn networks_must_be_networks() {
        for (cidr, expected) in [
            ("10.0.0.0/16", None),
            ("fd00:10::/48", None),
            ("10.0.0.0", Some("must be a network")),
            ("10.0.0.0/33", Some("must be a network")),
            ("hangzhou", Some("must be a network")),
        ] {
            assert_refusal(&AddressPool::crd(), &json!({"cidrs": ["10.9.0.0/16", cidr]}), expected);
            for field in ["podCIDRs", "nodeCIDRs", "serviceCIDRs"] {
                let spec = json!({"source": {"local": {}}, field: [cidr]});
                assert_refusal(&MemberCluster::crd(), &spec, expected);
            }
        }
    }

    #[test]
    fn a_selectors_expressions_have_values_where_they_need_them() {
        let refused = Some("In and NotIn need values");
        for (expression, expected) in [
            (json!({"key": "a", "operator": "In", "values": ["x"]}), None),
            (json!({"key": "a", "operator": "Exists"}), None),
            (json!({"key": "a", "operator": "NotIn"}), refused),
            (json!({"key": "a", "operator": "DoesNotExist", "values": ["x"]}), refused),
        ] {
            let selector = json!({"matchExpressions": [expression]});
            let spec = json!({"cidrs": ["10.0.0.0/24"], "serviceSelector": selector});
            assert_refusal(&AddressPool::crd(), &spec, expected);
        }
    }

    /// What the CEL rules say of a spec.
    pub(in super::super) fn refusals(crd: &CustomResourceDefinition, spec: &Value) -> Vec<String> {
        let object = json!({"metadata": {"name": "x"}, "spec": spec});
        match Validator::new().validate(&schema(crd), &object, None) {
            Ok(()) => Vec::new(),
            Err(errors) => errors.into_vec().into_iter().map(|error| error.message).collect(),
        }
    }

    fn assert_refusal(crd: &CustomResourceDefinition, spec: &Value, expected: Option<&str>) {
        let messages = refusals(crd, spec);
        match expected {
            None => assert!(messages.is_empty(), "{spec}: {messages:?}"),
            Some(text) => {
                assert!(messages.len() == 1 && messages[0].contains(text), "{spec}: {messages:?}");
            }
        }
    }

    fn schema(crd: &CustomResourceDefinition) -> Value {
        let validation = crd.spec.versions[0].schema.as_ref().unwrap();
        serde_json::to_value(validation.open_api_v3_schema.as_ref().unwrap()).unwrap()
    }
}
