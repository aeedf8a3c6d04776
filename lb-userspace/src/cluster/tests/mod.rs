//! The last good state, and what tests of all sources use.

mod cache;

/// A Service that is a front.
pub(super) fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: demo, name: {name}}}\n\
         spec: {{type: LoadBalancer, loadBalancerClass: kanmon.dev/xdp, ports: [{{port: 80}}]}}\n"
    )
}

/// A LoadBalancingPolicy.
pub(super) fn policy(name: &str) -> String {
    format!(
        "apiVersion: kanmon.dev/v1alpha1\nkind: LoadBalancingPolicy\nmetadata: {{namespace: demo, name: {name}}}\n\
         spec: {{targetRefs: [{{group: \"\", kind: Service, name: web}}], slowStart: 10s}}\n"
    )
}

/// A MemberCluster.
pub(super) fn member(name: &str) -> String {
    format!(
        "apiVersion: kanmon.dev/v1alpha1\nkind: MemberCluster\nmetadata: {{name: {name}}}\n\
         spec: {{region: cn-{name}}}\n"
    )
}
