//! What a Service asks for and does not get, beside source ranges: those keep it from being served at all.

use k8s_openapi::api::core::v1::ServiceSpec;

use super::problems::{self, Problems};
use super::types::{ObjectName, Reason};

/// Says so for each such field of a Service of our class.
pub(super) fn report(cluster: &str, name: &ObjectName, spec: &ServiceSpec, problems: &mut Problems) {
    let mut warn = |reason, message: String| {
        problems.warning(cluster, problems::service(name), reason, message);
    };
    if spec.session_affinity.as_deref().is_some_and(|affinity| affinity != "None") {
        let message = "sessionAffinity is not done: each connection of a client is balanced by itself; say \
                       `sessionAffinity: None`";
        warn(Reason::SessionAffinityIgnored, message.to_owned());
    }
    if spec.external_traffic_policy.as_deref() == Some("Local") {
        let message = "externalTrafficPolicy Local is not done: connections go to endpoints on any node and in any \
                       cluster, endpoints see a SNAT address of the gateway instead of the client's, and nobody \
                       need ask healthCheckNodePort; say `externalTrafficPolicy: Cluster`";
        warn(Reason::ExternalTrafficPolicyIgnored, message.to_owned());
    }
    if let Some(distribution) = spec.traffic_distribution.as_deref().filter(|text| !text.is_empty()) {
        let message = format!(
            "trafficDistribution {distribution} is not done: connections are spread over the endpoints of all zones \
             and clusters; remove it"
        );
        warn(Reason::TrafficDistributionIgnored, message);
    }
    if let Some([first, ..]) = spec.external_ips.as_deref() {
        let message = format!(
            "externalIPs are not served by Kanmon: {first} and the like are kube-proxy's; to have it as VIP name it in \
             kanmon.dev/addresses"
        );
        warn(Reason::ExternalIPsIgnored, message);
    }
}
