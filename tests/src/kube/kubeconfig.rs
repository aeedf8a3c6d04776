//! Kubeconfig files: an address, the cluster's authority and one user's certificate, all within the file.

use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::pki::Identity;

/// The text of a kubeconfig whose only context is called `cluster`.
pub(super) fn render(
    cluster: &str,
    server: &str,
    authority: &str,
    user: &str,
    identity: &Identity,
) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": cluster,
            "cluster": {"server": server, "certificate-authority-data": base64(authority)},
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": base64(&identity.certificate),
                "client-key-data": base64(&identity.key),
            },
        }],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
    });
    format!("{config:#}\n")
}

/// Kubernetes writes bytes in base64, and so does its type for them.
fn base64(text: &str) -> Value {
    json!(ByteString(text.as_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use kube::config::Kubeconfig;

    use super::*;

    #[test]
    fn a_kubeconfig_is_read_back_whole() {
        let identity = Identity { certificate: "C".into(), key: "K".into() };
        let text = render("hangzhou", "https://20.0.1.10:6443", "CA", "admin", &identity);
        let config = Kubeconfig::from_yaml(&text).unwrap();
        assert_eq!(config.current_context.as_deref(), Some("hangzhou"));
        let cluster = config.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://20.0.1.10:6443"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("Q0E="));
        let user = config.auth_infos[0].auth_info.as_ref().unwrap();
        assert_eq!(user.client_certificate_data.as_deref(), Some("Qw=="));
    }
}
