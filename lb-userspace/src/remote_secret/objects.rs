//! The objects, without I/O.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use crate::cluster::kubernetes::remote_secret::{CLUSTER_ANNOTATION, ISTIO_LABEL, LABEL_VALUE, MEMBER_LABEL};

/// Marks what we made: nothing without it is changed or removed.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "kanmon");

const SERVICE_ACCOUNT_ANNOTATION: &str = "kubernetes.io/service-account.name";
const TOKEN_TYPE: &str = "kubernetes.io/service-account-token";

/// Who reads the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Kanmon's gateways.
    Kanmon,
    /// istiod, and Kanmon's gateways too: the names, label and rights are those of
    /// `istioctl create-remote-secret`.
    Istio,
}

impl Form {
    /// The namespace that is meant where none is named.
    #[must_use]
    pub const fn namespace(self) -> &'static str {
        match self {
            Self::Kanmon => "kanmon-system",
            Self::Istio => "istio-system",
        }
    }

    /// The ServiceAccount that is meant where none is named.
    #[must_use]
    pub const fn service_account(self) -> &'static str {
        match self {
            Self::Kanmon => "kanmon-member",
            Self::Istio => "istio-reader-service-account",
        }
    }

    /// Name of the Secret that registers a cluster.
    #[must_use]
    pub fn secret_name(self, cluster: &str) -> String {
        match self {
            Self::Kanmon => format!("kanmon-remote-secret-{cluster}"),
            Self::Istio => format!("istio-remote-secret-{cluster}"),
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Kanmon => MEMBER_LABEL,
            Self::Istio => ISTIO_LABEL,
        }
    }
}

/// The account that a gateway uses in a member cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Who uses it.
    pub form: Form,
    /// Namespace of the ServiceAccount in the member cluster, and of the Secret in the gateway's.
    pub namespace: String,
    /// Name of the ServiceAccount.
    pub service_account: String,
}

impl Account {
    /// Name of the ClusterRole and its binding.
    pub(super) fn role_name(&self) -> String {
        match self.form {
            Form::Kanmon => format!("{}-{}", self.service_account, self.namespace),
            Form::Istio => format!("istio-reader-clusterrole-{}", self.namespace),
        }
    }

    /// Name of the Secret that the control plane puts the token into.
    pub(super) fn token_name(&self) -> String {
        match self.form {
            Form::Kanmon => format!("{}-token", self.service_account),
            Form::Istio => format!("{}-istio-remote-secret-token", self.service_account),
        }
    }

    pub(super) fn namespace_object(&self) -> Namespace {
        Namespace { metadata: metadata(None, &self.namespace), ..Namespace::default() }
    }

    pub(super) fn service_account_object(&self) -> ServiceAccount {
        ServiceAccount {
            metadata: metadata(Some(&self.namespace), &self.service_account),
            ..ServiceAccount::default()
        }
    }

    pub(super) fn role(&self) -> ClusterRole {
        let rules = match self.form {
            Form::Kanmon => kanmon_rules(),
            Form::Istio => istio_rules(),
        };
        ClusterRole {
            metadata: metadata(None, &self.role_name()),
            rules: Some(rules),
            ..ClusterRole::default()
        }
    }

    pub(super) fn binding(&self) -> ClusterRoleBinding {
        ClusterRoleBinding {
            metadata: metadata(None, &self.role_name()),
            role_ref: RoleRef {
                api_group: Some("rbac.authorization.k8s.io".to_owned()),
                kind: "ClusterRole".to_owned(),
                name: self.role_name(),
            },
            subjects: Some(vec![Subject {
                api_group: None,
                kind: "ServiceAccount".to_owned(),
                name: self.service_account.clone(),
                namespace: Some(self.namespace.clone()),
            }]),
        }
    }

    pub(super) fn token_object(&self) -> Secret {
        let mut metadata = metadata(Some(&self.namespace), &self.token_name());
        metadata.annotations =
            Some([(SERVICE_ACCOUNT_ANNOTATION.to_owned(), self.service_account.clone())].into());
        Secret { metadata, type_: Some(TOKEN_TYPE.to_owned()), ..Secret::default() }
    }
}

/// What a gateway needs to get in.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Credentials {
    /// The API server's URL.
    pub(super) server: String,
    /// The name that its certificate has, where that is not the server's.
    pub(super) tls_server_name: Option<String>,
    /// Its certificate authorities, PEM.
    pub(super) ca: Vec<u8>,
    /// The ServiceAccount's token.
    pub(super) token: String,
}

/// Without the token.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("server", &self.server).finish_non_exhaustive()
    }
}

/// The credentials of a token Secret, once the control plane has filled it; the server is for others to add.
pub(super) fn credentials(token: &Secret) -> Option<Credentials> {
    let data = token.data.as_ref()?;
    let ca = data.get("ca.crt")?.0.clone();
    let token = String::from_utf8(data.get("token")?.0.clone()).ok()?;
    (!ca.is_empty() && !token.is_empty()).then(|| Credentials { ca, token, ..Credentials::default() })
}

/// The Secret that registers the member cluster `name`.
pub(super) fn remote_secret(account: &Account, name: &str, credentials: &Credentials) -> Result<Secret> {
    let pair = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(account.form.secret_name(name)),
            namespace: Some(account.namespace.clone()),
            labels: Some(pair(account.form.label(), LABEL_VALUE)),
            annotations: Some(pair(CLUSTER_ANNOTATION, name)),
            ..ObjectMeta::default()
        },
        string_data: Some(pair(name, &kubeconfig(name, credentials)?)),
        ..Secret::default()
    })
}

/// A kubeconfig whose cluster, context and user all have the cluster's name.
fn kubeconfig(name: &str, credentials: &Credentials) -> Result<String> {
    let mut cluster = json!({
        "certificate-authority-data": ByteString(credentials.ca.clone()),
        "server": credentials.server,
    });
    if let Some(tls_server_name) = &credentials.tls_server_name {
        cluster["tls-server-name"] = json!(tls_server_name);
    }
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {"token": credentials.token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    });
    // A long token stays on its line, where people look for it.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(&kubeconfig, options).context("cannot write the kubeconfig")
}

/// A document that can be followed by others.
pub(super) fn to_yaml(secret: &Secret) -> Result<String> {
    let yaml = serde_saphyr::to_string(secret).context("cannot write the Secret")?;
    Ok(format!("# Made by `kanmon remote-secret create`. It holds a credential: keep it safe.\n{yaml}---\n"))
}

fn metadata(namespace: Option<&str>, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        labels: Some([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())].into()),
        ..ObjectMeta::default()
    }
}

const READ: &[&str] = &["get", "list", "watch"];
const FOLLOW: &[&str] = &["list", "watch"];
const PUBLISH: &[&str] = &["create", "delete", "list", "update", "watch"];

/// Just what the agent does in a member cluster, as `deploy/member` has it too. It asks whether it may: `WRITES` in
/// `cluster/kubernetes/member.rs`.
fn kanmon_rules() -> Vec<PolicyRule> {
    let mcs = &["multicluster.x-k8s.io"];
    vec![
        rule(&[""], &["namespaces"], READ),
        rule(&[""], &["nodes", "services"], FOLLOW),
        rule(&[""], &["services/status"], &["patch"]),
        rule(&["discovery.k8s.io"], &["endpointslices"], PUBLISH),
        rule(&["events.k8s.io"], &["events"], &["create", "patch"]),
        rule(mcs, &["serviceexports"], FOLLOW),
        rule(mcs, &["serviceimports"], PUBLISH),
        rule(mcs, &["serviceexports/status", "serviceimports/status"], &["patch"]),
        rule(&["coordination.k8s.io"], &["leases"], &["create", "delete", "get", "patch"]),
    ]
}

/// What istiod may do in a remote cluster, as `istioctl create-remote-secret` grants it.
fn istio_rules() -> Vec<PolicyRule> {
    let istio_groups = [
        "config.istio.io",
        "security.istio.io",
        "networking.istio.io",
        "authentication.istio.io",
        "rbac.istio.io",
        "telemetry.istio.io",
        "extensions.istio.io",
    ];
    let core = [
        "endpoints",
        "pods",
        "services",
        "nodes",
        "replicationcontrollers",
        "namespaces",
        "secrets",
        "configmaps",
    ];
    vec![
        rule(&istio_groups, &["*"], READ),
        rule(&[""], &core, READ),
        rule(&["networking.istio.io"], &["workloadentries"], READ),
        rule(&["networking.x-k8s.io", "gateway.networking.k8s.io"], &["gateways"], READ),
        rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], READ),
        rule(&["discovery.k8s.io"], &["endpointslices"], READ),
        rule(&["multicluster.x-k8s.io"], &["serviceexports"], &["get", "list", "watch", "create", "delete"]),
        rule(&["multicluster.x-k8s.io"], &["serviceimports"], READ),
        rule(&["apps"], &["replicasets"], READ),
        rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
        rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
    ]
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    PolicyRule {
        api_groups: Some(owned(groups)),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        ..PolicyRule::default()
    }
}
