//! `LoadBalancingPolicy`: how the connections of Services are spread over their endpoints.

mod check;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::types::ObjectName;
use super::{LabelSelector, plain_integers};

pub(in crate::desired) use check::parse_statuses;
use check::rules;
pub use status::{AreaStatus, LoadBalancingPolicyStatus, PolicyGatewayState};

/// Hours, minutes, seconds and milliseconds, as in the Gateway API. Days are no duration to an API server.
const DURATION: &str = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$";
/// A region, or a zone of it: values of node labels.
const PLACE: &str = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?(/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";
/// The value of a node's label.
const NAME: &str = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";
/// What may stand in a request target as it is (RFC 3986, sections 3.3 and 3.4).
const PATH: &str = r"^/[-A-Za-z0-9._~!$&'()*+,;=:@/?%]*$";
/// A DNS name.
const HOST: &str = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";
/// The name of a gRPC service.
const GRPC_SERVICE: &str = r"^[-A-Za-z0-9_./]+$";
/// A status code, or a range of them.
const STATUSES: &str = r"^[1-5][0-9]{2}(-[1-5][0-9]{2})?$";

/// How the connections of Services are spread over their endpoints. It is read from the gateway cluster, and applies to
/// the Services of its namespace and of the name that it gives, whichever cluster's is the front.
#[derive(Clone, Debug, Default, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "kanmon.dev",
    version = "v1alpha1",
    kind = "LoadBalancingPolicy",
    plural = "loadbalancingpolicies",
    doc = "How the connections of Services are spread over their endpoints.",
    shortname = "lbp",
    category = "kanmon",
    namespaced,
    derive = "PartialEq",
    status = "LoadBalancingPolicyStatus",
    printcolumn(name = "MODE", type_ = "string", json_path = ".status.mode"),
    printcolumn(name = "HEALTHY", type_ = "string", json_path = ".status.healthy"),
    printcolumn(name = "EJECTED", type_ = "integer", json_path = ".status.ejected"),
    printcolumn(
        name = "ACCEPTED",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "PROGRAMMED",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = plain_integers)]
#[schemars(extend("x-kubernetes-validations" = [rules::ZONES_OR_SHARES.cel(), rules::PREFIX_OF_LIMIT.cel()]))]
pub struct LoadBalancingPolicySpec {
    /// The Services that it is for, of its own namespace. Of several policies for one Service the oldest counts.
    #[schemars(
        length(min = 1, max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["group", "kind", "name"])
    )]
    pub target_refs: Vec<TargetRef>,
    /// The member clusters whose endpoints serve, by the labels of the MemberCluster; unset: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_selector: Option<LabelSelector>,
    /// Which regions and zones serve; unset: all alike, but for what `zonePreference` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<LocalitySpec>,
    /// Whether endpoints in the gateway's own zone go first; unset: where the Service asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_preference: Option<ZonePreference>,
    /// How endpoints are probed; unset: as the annotations of the Service say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheckSpec>,
    /// When an endpoint gets no new connections for a time, because connections to it failed; unset: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetectionSpec>,
    /// How long connections to an endpoint that is going may live on, for example 10m; unset: to their own end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = DURATION),
        extend("x-kubernetes-validations" = [rules::DRAIN_TIMEOUT.cel()]))]
    pub drain_timeout: Option<String>,
    /// Whether a connection that an endpoint refuses is tried at another one at once, unseen by the client; unset: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_on_reset: Option<bool>,
    /// Over how long the share of a cluster that comes back grows to its full size, for example 30s; it begins when
    /// failbackDelay is over. Unset: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = DURATION),
        extend("x-kubernetes-validations" = [rules::SLOW_START.cel()]))]
    pub slow_start: Option<String>,
    /// What is noted of each connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_log: Option<FlowLog>,
    /// How many new connections a second each gateway takes from one client (an IPv4 address, or an IPv6 /64, unless
    /// `newFlowLimitPrefix` says otherwise) for each port of a Service; so many may come at once. Unset: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub new_flow_limit: Option<u32>,
    /// Which clients share a `newFlowLimit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_flow_limit_prefix: Option<ClientPrefix>,
}

impl LoadBalancingPolicySpec {
    /// The Services that it is for, where it is in this namespace.
    #[must_use]
    pub fn targets(&self, namespace: &str) -> BTreeSet<ObjectName> {
        let target =
            |target: &TargetRef| ObjectName { namespace: namespace.to_owned(), name: target.name.clone() };
        self.target_refs.iter().map(target).collect()
    }
}

/// Which clients count as one: those whose addresses begin with the same bits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = plain_integers)]
pub struct ClientPrefix {
    /// Of IPv4 addresses, for example 24. Unset: 32, each address by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32))]
    pub ipv4: Option<u32>,
    /// Of IPv6 addresses, for example 56. Unset: 64, which one client has to itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 128))]
    pub ipv6: Option<u32>,
}

/// What a policy is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [rules::ONLY_SERVICES.cel()]))]
pub struct TargetRef {
    /// API group: empty, the core group's.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub group: String,
    /// Service.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
}

/// Which regions and zones serve: in an order (failover), by shares (distribute), or all alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = plain_integers)]
#[schemars(extend("x-kubernetes-validations" = [rules::ONE_WAY.cel()]))]
pub struct LocalitySpec {
    /// Where new connections go when the gateway's own region or zone fails. The entry counts whose `from` is the
    /// gateway's own zone, else the one whose `from` is its region.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-validations" = [rules::FAILOVER_ONCE.cel()]))]
    pub failover: Vec<Failover>,
    /// How many percent of new connections each region or zone gets. The entry counts whose `from` is the gateway's own
    /// zone, else the one whose `from` is its region.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-validations" = [rules::DISTRIBUTE_ONCE.cel()]))]
    pub distribute: Vec<Distribute>,
    /// How far the health of a level may fall short before the next one gets connections: 140 percent means that all is
    /// well while 72 percent of the endpoints are healthy. Unset: 140.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 1000))]
    pub overprovisioning_percent: Option<u32>,
    /// How long a region or zone that failed must be well again without a break before new connections go back to it;
    /// unset: 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = DURATION),
        extend("x-kubernetes-validations" = [rules::FAILBACK_DELAY.cel()]))]
    pub failback_delay: Option<String>,
}

/// Where new connections go when a region or zone fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [rules::FROM_NOT_IN_TO.cel()]))]
pub struct Failover {
    /// A region, or a zone written region/zone: gateways there go by this entry, and by themselves use the endpoints
    /// there.
    #[schemars(length(min = 1, max = 127), regex(pattern = PLACE))]
    pub from: String,
    /// Regions, or zones written region/zone, the preferred one first.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 127), regex(pattern = PLACE)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub to: Vec<String>,
}

/// How new connections are spread by gateways in a region or zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Distribute {
    /// A region, or a zone written region/zone: gateways there go by this entry.
    #[schemars(length(min = 1, max = 127), regex(pattern = PLACE))]
    pub from: String,
    /// Regions and zones, and what each gets.
    #[schemars(
        length(min = 1, max = 32),
        extend("x-kubernetes-validations" = [rules::WEIGHTS_SUM.cel(), rules::NO_OVERLAP.cel()])
    )]
    pub to: Vec<WeightedPlace>,
}

/// A region or zone, and what it gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = plain_integers)]
pub struct WeightedPlace {
    /// The region.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub region: String,
    /// A zone of it; unset: the whole region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub zone: Option<String>,
    /// How many percent of new connections go there.
    #[schemars(range(min = 1, max = 100))]
    pub weight: u32,
}

/// Whether endpoints in the gateway's own zone go first (Prefer), or alone with those of places that `locality.failover`
/// names (Strict), or not (None). Unset: Prefer where the Service asks for it, by `trafficDistribution` PreferSameZone or
/// PreferClose or by the annotation `service.kubernetes.io/topology-mode` with the value Auto.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ZonePreference {
    /// They do, then those of the gateway's region.
    Prefer,
    /// They alone serve, and those of places that `locality.failover` names.
    Strict,
    /// They do not.
    None,
}

/// How endpoints are probed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = plain_integers)]
#[schemars(extend("x-kubernetes-validations" = [
    rules::HTTP_FIELDS.cel(), rules::HOST.cel(), rules::CERTIFICATE.cel(), rules::GRPC_SERVICE.cel(),
    rules::TIMEOUT.cel(),
]))]
pub struct HealthCheckSpec {
    /// What a probe is: a TCP connection, an HTTP or HTTPS request, a call of gRPC's health service, or none.
    #[serde(default, rename = "type")]
    pub kind: HealthCheckType,
    /// From the start of one probe to the start of the next; unset: 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = DURATION),
        extend("x-kubernetes-validations" = [rules::PROBE_INTERVAL.cel()]))]
    pub interval: Option<String>,
    /// A probe that takes longer has failed; at most the interval. Unset: 1s, or the interval where that is shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = DURATION),
        extend("x-kubernetes-validations" = [rules::PROBE_TIMEOUT.cel()]))]
    pub timeout: Option<String>,
    /// Failures in a row that make an endpoint unhealthy; unset: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row that make it healthy again; unset: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_threshold: Option<u32>,
    /// The TCP port of the pods that is probed; unset: the one that gets the connections (of a UDP port: that of the
    /// Service's first TCP port).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// For HTTP and HTTPS: what is asked for, percent-encoded; unset: /.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATH))]
    pub path: Option<String>,
    /// For HTTP, HTTPS and GRPC: the DNS name that is asked for, in TLS too; unset: the endpoint's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = HOST))]
    pub host: Option<String>,
    /// For HTTP and HTTPS: the status codes that mean healthy, one like "204" or a range like 200-399; unset: 200-399.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 7), regex(pattern = STATUSES),
        extend("x-kubernetes-validations" = [rules::STATUSES.cel()]))]
    pub expected_statuses: Option<String>,
    /// For HTTPS: who must have signed the endpoint's certificate, certificates in PEM; unset: it is not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32_768), extend("x-kubernetes-validations" = [rules::PEM.cel()]))]
    pub ca_certificate: Option<String>,
    /// For GRPC: the name of the service that is asked for; unset: the server as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = GRPC_SERVICE))]
    pub service: Option<String>,
}

/// What a probe is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HealthCheckType {
    /// Nothing is probed: Kubernetes' readiness alone decides.
    #[serde(rename = "None")]
    None,
    /// A TCP connection is accepted.
    #[default]
    Tcp,
    /// An HTTP request is answered with an expected status.
    Http,
    /// The same over TLS.
    Https,
    /// gRPC's health service says SERVING.
    Grpc,
}

/// When an endpoint gets no new connections for a time (Envoy's outlier detection).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = plain_integers)]
#[schemars(extend("x-kubernetes-validations" = [rules::EJECTION_TIMES.cel()]))]
pub struct OutlierDetectionSpec {
    /// Connections in a row that an endpoint refused or did not answer; unset: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub consecutive_errors: Option<u32>,
    /// How often it is looked whose time is over; unset: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = DURATION),
        extend("x-kubernetes-validations" = [rules::SWEEP_INTERVAL.cel()]))]
    pub interval: Option<String>,
    /// How long an endpoint is out the first time; the second time it is twice as long, and so on. Unset: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = DURATION),
        extend("x-kubernetes-validations" = [rules::EJECTION_TIME.cel()]))]
    pub base_ejection_time: Option<String>,
    /// How long it is out at most; unset: 300s, or the base time where that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = DURATION),
        extend("x-kubernetes-validations" = [rules::EJECTION_TIME.cel()]))]
    pub max_ejection_time: Option<String>,
    /// How many percent of a Service's endpoints may be out at once, of all regions together; the only one never is.
    /// Unset: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_ejection_percent: Option<u32>,
}

/// What is noted of each connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = plain_integers)]
pub struct FlowLog {
    /// Whether its bytes and packets are counted.
    #[serde(default)]
    pub counters: bool,
    /// One of so many connections is noted; unset: each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub sample_one_in: Option<u32>,
}
