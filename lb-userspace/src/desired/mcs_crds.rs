//! The definitions of ServiceExport and ServiceImport (mcs-api), as an API server takes them. They belong to the
//! cluster, not to Kanmon: others may have installed them, so they are separate and never go back.

use std::fmt;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use super::mcs;
use super::resources::condition;

/// The release of mcs-api that the definitions are of.
const RELEASE: &str = "v0.5.2";
/// How often that release changed them.
const SCHEMA_REVISION: &str = "0";
const RELEASE_LABEL: &str = "multicluster.x-k8s.io/release-version";
const REVISION_LABEL: &str = "multicluster.x-k8s.io/crd-schema-revision";

/// How new definitions of mcs-api are: the later is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision {
    /// Major, minor and patch version of the release.
    release: [u64; 3],
    /// Changes within that release.
    schema: u64,
}

impl Revision {
    /// The revision that a definition's labels tell; `None` if they don't. An early version (`v0.6.0-rc1`) counts as
    /// the release.
    #[must_use]
    pub fn of(crd: &CustomResourceDefinition) -> Option<Self> {
        let labels = crd.metadata.labels.as_ref()?;
        let release = labels.get(RELEASE_LABEL)?;
        let numbers = release.trim_start_matches('v').split(['-', '+']).next()?;
        let numbers: Option<Vec<u64>> = numbers.split('.').map(|number| number.parse().ok()).collect();
        let schema = labels.get(REVISION_LABEL).map_or(Some(0), |text| text.parse().ok())?;
        Some(Self { release: numbers?.try_into().ok()?, schema })
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.release;
        write!(f, "v{major}.{minor}.{patch} revision {}", self.schema)
    }
}

/// The definitions of ServiceExport and ServiceImport, by name. They work on Kubernetes 1.31 and later.
///
/// # Errors
///
/// The definitions are not of the form of a CustomResourceDefinition, which is a fault of this program.
pub fn mcs_crds() -> Result<Vec<CustomResourceDefinition>, serde_json::Error> {
    let conflicts =
        json!([status_column("IS-VALID", "Valid"), status_column("IS-CONFLICTED", "Conflict"), age_column()]);
    let addresses = json!([
        {"name": "TYPE", "type": "string", "jsonPath": ".spec.type"},
        {"name": "IP", "type": "string", "jsonPath": ".spec.ips"},
        age_column()
    ]);
    let export = definition("ServiceExport", &["svcex", "svcexport"], &conflicts, &export_schema());
    let import = definition("ServiceImport", &["svcim", "svcimport"], &addresses, &import_schema());
    Ok(vec![serde_json::from_value(export)?, serde_json::from_value(import)?])
}

/// The definitions as YAML documents, for `kubectl apply -f -`.
///
/// # Errors
///
/// A definition cannot be written as YAML.
pub fn mcs_crds_yaml() -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let mut text = format!(
        "# Printed by `kanmon crds --mcs`: ServiceExport and ServiceImport of mcs-api {RELEASE}; needs Kubernetes \
         1.31 or\n# later. Where others have installed these, `kanmon crds --apply --mcs` leaves equal or newer \
         ones alone.\n"
    );
    for crd in mcs_crds()? {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&crd)?);
    }
    Ok(text)
}

fn definition(kind: &str, short_names: &[&str], columns: &Value, schema: &Value) -> Value {
    let singular = kind.to_lowercase();
    // Both versions have the same form, so an API server converts between them by itself.
    let version = |name: &str| {
        json!({
            "name": name,
            "served": true,
            "storage": name == mcs::VERSIONS[0],
            "subresources": {"status": {}},
            "additionalPrinterColumns": columns,
            "schema": {"openAPIV3Schema": schema}
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{singular}s.{}", mcs::GROUP),
            "labels": {RELEASE_LABEL: RELEASE, REVISION_LABEL: SCHEMA_REVISION}
        },
        "spec": {
            "group": mcs::GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": format!("{singular}s"),
                "singular": singular,
                "shortNames": short_names
            },
            "versions": mcs::VERSIONS.map(version)
        }
    })
}

fn status_column(name: &str, condition: &str) -> Value {
    json!({
        "name": name,
        "type": "string",
        "jsonPath": format!(".status.conditions[?(@.type==\"{condition}\")].status")
    })
}

fn age_column() -> Value {
    json!({"name": "AGE", "type": "date", "jsonPath": ".metadata.creationTimestamp"})
}

fn export_schema() -> Value {
    let texts = |description: &str| json!({"type": "object", "additionalProperties": {"type": "string"}, "description": description});
    object_schema(
        "Offers the Service of its namespace and name to the other clusters of the cluster set.",
        &json!({
            "type": "object",
            "description": "What is exported beside the Service's own fields.",
            "properties": {
                "exportedLabels": texts("Labels for the ServiceImport; those of the oldest export count."),
                "exportedAnnotations": texts("Annotations for the ServiceImport; those of the oldest export count.")
            }
        }),
        &json!({
            "type": "object",
            "description": "What became of the export.",
            "properties": {"conditions": conditions("Valid, Ready and Conflict.")}
        }),
    )
}

fn import_schema() -> Value {
    object_schema(
        "A service that clusters of the cluster set export, for clients in this cluster.",
        &import_spec_schema(),
        &json!({
            "type": "object",
            "description": "Where the service comes from.",
            "properties": {
                "endpointSliceObjects": {
                    "type": "string", "enum": ["Present", "Absent"],
                    "description": "Whether EndpointSlices for it are in this cluster."
                },
                "clusters": {
                    "type": "array",
                    "description": "The clusters that export it.",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["cluster"],
                    "items": {
                        "type": "object",
                        "required": ["cluster"],
                        "properties": {"cluster": {"type": "string", "description": "Name of the cluster."}}
                    }
                },
                "conditions": conditions("Ready.")
            }
        }),
    )
}

fn import_spec_schema() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "How the service is used.",
        "required": ["ports", "type"],
        "properties": {
            "type": {
                "type": "string", "enum": ["ClusterSetIP", "Headless"],
                "description": "Whether clients use its VIPs, or the addresses of its pods."
            },
            "ips": {
                "type": "array", "maxItems": 2, "items": {"type": "string"},
                "description": "Its VIPs; none for a headless one."
            },
            "ipFamilies": {
                "type": "array", "maxItems": 2, "items": {"type": "string"},
                "description": "IPv4 and IPv6, in the order of the VIPs."
            },
            "ports": {
                "type": "array",
                "description": "The ports of all exports.",
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["port"],
                    "properties": {
                        "name": text("A DNS label; empty only where there is one port."),
                        "protocol": text("TCP (if unset), UDP or SCTP."),
                        "appProtocol": text("What is spoken above it, for example kubernetes.io/h2c."),
                        "port": {
                            "type": "integer", "format": "int32",
                            "description": "The port that clients connect to."
                        }
                    }
                }
            },
            "sessionAffinity": text("None (if unset) or ClientIP: whether a client stays with its pod."),
            "sessionAffinityConfig": {
                "type": "object",
                "description": "More about session affinity.",
                "properties": {
                    "clientIP": {
                        "type": "object",
                        "description": "For ClientIP.",
                        "properties": {
                            "timeoutSeconds": {
                                "type": "integer", "format": "int32",
                                "description": "How long a client stays with its pod, in seconds, 1 to 86400; \
                                                10800 if unset."
                            }
                        }
                    }
                }
            },
            "internalTrafficPolicy": text("Cluster (if unset) or Local: whether clients use their own node's pods."),
            "trafficDistribution": text("Which pods are preferred, for example PreferSameZone.")
        }
    })
}

fn object_schema(description: &str, spec: &Value, status: &Value) -> Value {
    json!({
        "type": "object",
        "description": description,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status
        }
    })
}

/// Kubernetes' own conditions, by type. Reasons may be joined by commas.
fn conditions(description: &str) -> Value {
    let mut item = condition();
    item["properties"]["reason"]["pattern"] = json!("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$");
    json!({
        "type": "array",
        "description": description,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": item
    })
}

#[cfg(test)]
mod tests {
    use super::super::mcs::{ServiceExport, ServiceImport};
    use super::*;

    const FILE: &str = "deploy/crds/mcs-api.yaml";

    #[test]
    fn the_copy_for_deployments_is_up_to_date() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(FILE);
        let copy = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            copy == mcs_crds_yaml().unwrap(),
            "{FILE} differs from what is built in; run `cargo run -q -p lb-userspace -- crds --mcs > {FILE}`"
        );
    }

    #[test]
    fn what_is_printed_is_what_is_built_in() {
        let printed: Vec<Option<CustomResourceDefinition>> =
            serde_saphyr::from_multiple(&mcs_crds_yaml().unwrap()).unwrap();
        assert_eq!(printed.into_iter().flatten().collect::<Vec<_>>(), mcs_crds().unwrap());
    }

    #[test]
    fn both_versions_are_served_and_v1beta1_is_stored() {
        for crd in mcs_crds().unwrap() {
            let versions: Vec<_> =
                crd.spec.versions.iter().map(|v| (v.name.as_str(), v.served, v.storage)).collect();
            assert_eq!(versions, [("v1beta1", true, true), ("v1alpha1", true, false)]);
            assert!(crd.spec.versions.iter().all(|v| v.subresources.as_ref().unwrap().status.is_some()));
            assert_eq!(crd.spec.scope, "Namespaced");
        }
    }

    #[test]
    fn the_columns_are_those_of_the_story() {
        let columns: Vec<Vec<String>> = mcs_crds()
            .unwrap()
            .iter()
            .map(|crd| {
                let columns = crd.spec.versions[0].additional_printer_columns.iter().flatten();
                columns.map(|column| column.name.clone()).collect()
            })
            .collect();
        assert_eq!(columns, [["IS-VALID", "IS-CONFLICTED", "AGE"], ["TYPE", "IP", "AGE"]]);
    }

    /// An API server drops what the schema doesn't know.
    #[test]
    fn nothing_that_is_written_is_dropped() {
        let condition = json!({"type": "T", "status": "True", "reason": "R", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1});
        let export = json!({"metadata": {"name": "x"},
            "spec": {"exportedLabels": {"a": "b"}, "exportedAnnotations": {"a": "b"}},
            "status": {"conditions": [condition]}});
        let import = json!({"metadata": {"name": "x"},
            "spec": {"type": "ClusterSetIP", "ips": ["192.0.2.1"], "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "protocol": "TCP", "appProtocol": "http", "port": 80}],
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}},
                "internalTrafficPolicy": "Cluster", "trafficDistribution": "PreferSameZone"},
            "status": {"endpointSliceObjects": "Present", "clusters": [{"cluster": "a"}],
                "conditions": [condition]}});
        let kept_export: ServiceExport = serde_json::from_value(export.clone()).unwrap();
        let kept_import: ServiceImport = serde_json::from_value(import.clone()).unwrap();
        // Nothing that the types have is missing above.
        assert_eq!(serde_json::to_value(kept_export).unwrap(), export);
        assert_eq!(serde_json::to_value(kept_import).unwrap(), import);
        for (crd, object) in mcs_crds().unwrap().iter().zip([&export, &import]) {
            for version in &crd.spec.versions {
                let schema = version.schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
                let schema = serde_json::to_value(schema).unwrap();
                for part in ["spec", "status"] {
                    assert_known(&schema["properties"][part], &object[part], part);
                }
            }
        }
    }

    fn assert_known(schema: &Value, value: &Value, path: &str) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let path = format!("{path}.{name}");
                    let below = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
                    assert_known(below.unwrap_or_else(|| panic!("{path} is unknown")), value, &path);
                }
            }
            Value::Array(items) => {
                items.iter().for_each(|item| assert_known(&schema["items"], item, path));
            }
            _ => assert!(schema["type"].is_string(), "{path}"),
        }
    }

    #[test]
    fn revisions_are_ordered_as_releases_are() {
        let of = |release: &str, schema: &str| {
            let mut crd = mcs_crds().unwrap().remove(0);
            let labels = crd.metadata.labels.as_mut().unwrap();
            labels.insert(RELEASE_LABEL.to_owned(), release.to_owned());
            labels.insert(REVISION_LABEL.to_owned(), schema.to_owned());
            Revision::of(&crd)
        };
        let ours = Revision::of(&mcs_crds().unwrap()[0]).unwrap();
        assert_eq!(ours.to_string(), "v0.5.2 revision 0");
        for (release, schema) in [("v0.5.2", "1"), ("v0.5.10", "0"), ("v0.10.0", "0"), ("v1.0.0", "0")] {
            assert!(of(release, schema).unwrap() > ours, "{release} {schema}");
        }
        for (release, schema) in [("v0.5.1", "7"), ("v0.4.9", "0"), ("0.3.0", "0")] {
            assert!(of(release, schema).unwrap() < ours, "{release} {schema}");
        }
        assert_eq!(of("v0.5.2", "0"), Some(ours));
        assert_eq!(of("v0.5.2-rc.1+build", "0"), Some(ours));
        for (release, schema) in [("latest", "0"), ("v0.5", "0"), ("v0.5.2", "x"), ("", "")] {
            assert_eq!(of(release, schema), None, "{release} {schema}");
        }
    }
}
