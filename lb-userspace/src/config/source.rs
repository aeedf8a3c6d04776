//! Where member clusters are found: a directory, or Kubernetes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::options::Options;
use super::selector::MemberSelector;
use super::settings::{SettingsError, invalid};

/// Where the Secrets that register members are, unless somebody says otherwise.
const DEFAULT_SECRET_NAMESPACES: [&str; 2] = ["kanmon-system", "istio-system"];

/// Where member clusters and their objects are found.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// In a directory of manifests.
    Manifests(PathBuf),
    /// In Kubernetes clusters.
    Kubernetes(KubernetesSettings),
}

/// How the gateway cluster is read, and through it the members.
#[derive(Clone, Debug, PartialEq)]
pub struct KubernetesSettings {
    /// How to reach the gateway cluster.
    pub access: GatewayAccess,
    /// The MemberClusters that this gateway serves.
    pub member_selector: MemberSelector,
    /// The Node that this gateway is.
    pub node_name: Option<String>,
    /// Namespaces whose Secrets register members, at least one, each once.
    pub secret_namespaces: Vec<String>,
    /// How long a member's Secret may be gone.
    pub secret_grace_period: Duration,
    /// How long a deleted MemberCluster waits for its cluster to be cleaned.
    pub cleanup_timeout: Duration,
    /// Whether members may be reached without checking their certificates.
    pub allow_insecure_members: bool,
}

/// How to reach the gateway cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayAccess {
    /// By a kubeconfig.
    Kubeconfig {
        /// The file; read again for each new client.
        path: PathBuf,
        /// The context; `None`: the current one.
        context: Option<String>,
    },
    /// By the service account of the pod that this is.
    InCluster,
}

/// Which of the sources is meant.
pub(super) fn choose(options: &Options) -> Result<Source, SettingsError> {
    let access = match (&options.manifests, &options.kubeconfig) {
        (Some(_), Some(_)) => {
            let what = "manifests is set too; the clusters are read either from a directory (manifests) or \
                        from Kubernetes (kubeconfig): remove one";
            return Err(invalid("kubeconfig", what.to_owned()));
        }
        (Some(directory), None) => return manifests(options, directory),
        (None, Some(path)) => {
            GatewayAccess::Kubeconfig { path: path.clone(), context: options.context.clone() }
        }
        (None, None) if options.in_cluster => GatewayAccess::InCluster,
        (None, None) => {
            return Err(SettingsError::Missing {
                name: "manifests",
                hint: "say where the clusters' objects are: --manifests DIR for a directory, --kubeconfig \
                       FILE for Kubernetes",
            });
        }
    };
    if options.context.is_some() && access == GatewayAccess::InCluster {
        let what = "is of no use without kubeconfig: in a pod its service account is used; remove it";
        return Err(invalid("context", what.to_owned()));
    }
    let namespaces = || DEFAULT_SECRET_NAMESPACES.map(str::to_owned).to_vec();
    let settings = KubernetesSettings {
        access,
        member_selector: options.member_selector.clone().unwrap_or_default(),
        node_name: options.node_name.clone(),
        secret_namespaces: Some(options.secret_namespaces.clone())
            .filter(|list| !list.is_empty())
            .unwrap_or_else(namespaces),
        secret_grace_period: options.secret_grace_period.unwrap_or(Duration::from_secs(60)),
        cleanup_timeout: options.cleanup_timeout.unwrap_or(Duration::from_secs(60)),
        allow_insecure_members: options.allow_insecure_members.unwrap_or_default(),
    };
    settings.check()?;
    Ok(Source::Kubernetes(settings))
}

/// A directory, and nothing set that only Kubernetes knows. (NODE_NAME may be in the environment anyway.)
fn manifests(options: &Options, directory: &Path) -> Result<Source, SettingsError> {
    let foreign = [
        ("context", options.context.is_some()),
        ("memberSelector", options.member_selector.is_some()),
        ("secretNamespaces", !options.secret_namespaces.is_empty()),
        ("secretGracePeriod", options.secret_grace_period.is_some()),
        ("cleanupTimeout", options.cleanup_timeout.is_some()),
        ("allowInsecureMembers", options.allow_insecure_members.is_some()),
    ];
    match foreign.into_iter().find(|(_, is_set)| *is_set) {
        Some((name, _)) => {
            Err(invalid(name, "is for Kubernetes only, and manifests is set; remove one".to_owned()))
        }
        None => Ok(Source::Manifests(directory.to_owned())),
    }
}

impl KubernetesSettings {
    fn check(&self) -> Result<(), SettingsError> {
        let name = "secretNamespaces";
        for (position, namespace) in self.secret_namespaces.iter().enumerate() {
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if namespace.is_empty() || namespace.len() > 63 || !namespace.chars().all(allowed) {
                return Err(invalid(name, format!("{namespace:?} cannot be a namespace's name")));
            }
            if self.secret_namespaces[..position].contains(namespace) {
                return Err(invalid(name, format!("{namespace} is named twice")));
            }
        }
        Ok(())
    }
}
