//! What a Service asks for and does not get.

use k8s_openapi::api::core::v1::Service;

use super::policies::asks_for_own_zone;
use super::problems::{self, Problems};
use super::types::{ObjectName, Place, Reason};

/// Says so for each such field of a Service of our class. `place` is where this gateway is.
pub(super) fn report(
    cluster: &str,
    name: &ObjectName,
    service: &Service,
    place: &Place,
    problems: &mut Problems,
) {
    let Some(spec) = &service.spec else { return };
    let mut warn = |reason, message: String| {
        problems.warning(cluster, problems::service(name), reason, message);
    };
    if spec.external_traffic_policy.as_deref() == Some("Local") {
        let message = "externalTrafficPolicy Local is not done: connections go to endpoints on any node and in any \
                       cluster, endpoints see a SNAT address of the gateway instead of the client's, and nobody \
                       need ask healthCheckNodePort; say `externalTrafficPolicy: Cluster`";
        warn(Reason::ExternalTrafficPolicyIgnored, message.to_owned());
    }
    let distribution = spec.traffic_distribution.as_deref().unwrap_or_default();
    if asks_for_own_zone(service) {
        if place.region.is_empty() || place.zone.is_empty() {
            let message = "trafficDistribution or topology-mode asks that endpoints in the gateway's zone go first, but \
                           this gateway does not know its region and zone; give its Node the labels \
                           topology.kubernetes.io/region and /zone, or say --region and --zone";
            warn(Reason::TrafficDistributionIgnored, message.to_owned());
        }
    } else if !distribution.is_empty() {
        let message = format!(
            "trafficDistribution {distribution} is not done: connections are spread over the endpoints of all zones \
             and clusters; say PreferSameZone, or remove it"
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
