//! Directories of manifests, parsed and followed.

mod cache;
mod manifests;
mod watching;

/// A Service that is a front.
fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: demo, name: {name}}}\n\
         spec: {{type: LoadBalancer, loadBalancerClass: kanmon.dev/xdp, ports: [{{port: 80}}]}}\n"
    )
}

/// A MemberCluster.
fn member(name: &str) -> String {
    format!(
        "apiVersion: kanmon.dev/v1alpha1\nkind: MemberCluster\nmetadata: {{name: {name}}}\n\
         spec: {{region: cn-{name}}}\n"
    )
}
