//! What `kanmon status|services|backends|flows -o json` print. Field names are an interface: programs read
//! them, so they change only with a major version.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The whole agent at a glance: `kanmon status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether the maps hold what the sources said and the program is attached.
    pub ready: bool,
    /// When the agent started, RFC 3339, UTC.
    pub since: String,
    /// The agent's version.
    pub version: String,
    /// Version of the map layout.
    pub abi: u32,
    /// The kernel's release.
    pub kernel: String,
    /// The agent's process.
    pub pid: u32,
    /// The gateway's region, if it was told.
    pub region: Option<String>,
    /// The gateway's zone, if it was told.
    pub zone: Option<String>,
    /// Where the maps and links are pinned.
    pub pin_dir: String,
    /// Whether the agent found the maps of a former one and went on with them.
    pub adopted: bool,
    /// Interfaces with the XDP program.
    pub attach: Vec<Attachment>,
    /// Member clusters, by name.
    pub clusters: Vec<Cluster>,
    /// Number of services that are programmed.
    pub services: usize,
    /// Backends, each counted once however many services it is in.
    pub backends: BackendTotals,
    /// The flow table.
    pub flows: FlowTotals,
    /// Memory that the maps take, in bytes: by map, and `total`.
    pub memory: BTreeMap<String, u64>,
    /// Counters of the packet program, summed over CPUs, by name.
    pub counters: BTreeMap<String, u64>,
    /// Why the counter `redirect_failed` does not count; `null`: it does.
    #[serde(default)]
    pub redirects_uncounted: Option<String>,
    /// What backends see instead of clients.
    pub snat: Snat,
    /// What is drained by hand.
    #[serde(default)]
    pub drained: Vec<ByHand>,
    /// VIPs that programs on the gateway's own node can't connect to; everybody else can.
    #[serde(default)]
    pub node_is_no_client: Vec<NodeIsNoClient>,
    /// What is wrong now.
    pub problems: Vec<Problem>,
}

/// A VIP that programs on the gateway's own node can't connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIsNoClient {
    /// The VIP.
    pub vip: IpAddr,
    /// Why, and what would help: a sentence.
    pub reason: String,
}

/// Something that `kanmon drain` drains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByHand {
    /// `cluster` or `backend`.
    pub kind: String,
    /// The cluster's name, or the backend's address, port and protocol.
    pub name: String,
    /// Since when, RFC 3339, UTC.
    pub since: String,
    /// How many backends that is now.
    pub backends: usize,
    /// Flows that they have left, as of the sweep's last pass.
    pub flows: u64,
}

/// What `kanmon drain` or `kanmon undrain` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// What was meant, in full: `cluster hangzhou`, `backend 10.0.1.10:8080/TCP`.
    pub names: Vec<String>,
    /// Whether it is drained now.
    pub drained: bool,
    /// Whether it was otherwise before.
    pub changed: bool,
    /// Whether packets go by it already.
    pub in_force: bool,
    /// How many backends that is now.
    pub backends: usize,
    /// Flows that they have, as of the sweep's last pass.
    pub flows: u64,
    /// What a person should know: services that nothing serves now, other drains that go on. Sentences.
    pub notes: Vec<String>,
}

/// Why an endpoint gets no new flows and keeps those that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainCause {
    /// `kanmon drain` named it or its cluster.
    ByHand,
    /// Its MemberCluster says `state: Drain`.
    MemberCluster,
    /// Its pod is being deleted.
    Terminating,
    /// Its cluster says that it is not ready.
    NotReady,
    /// Its cluster no longer lists it.
    Removed,
}

/// An interface with the XDP program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the interface.
    pub interface: String,
    /// `native` (in the driver) or `generic` (after the kernel made a socket buffer: slow).
    pub mode: String,
}

/// A member cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its region, if it was told: by its MemberCluster, else by its Nodes, several separated by commas.
    pub region: Option<String>,
    /// `Active`, `Drain` or `Disabled`.
    pub state: String,
    /// How its API server answers; `null` for a directory of manifests.
    #[serde(default)]
    pub connection: Option<Connection>,
    /// How many programmed services have endpoints in it.
    pub services: usize,
    /// How many backends are in it.
    pub endpoints: usize,
    /// The first of its problems, if it has any.
    pub problem: Option<String>,
}

/// How a member cluster's API server answers. Endpoints that are known are used whatever it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Whether it does; `null`: it has not been asked yet.
    pub connected: Option<bool>,
    /// Whether everything that it has was read on the present connection.
    pub synced: bool,
    /// One word for programs: `Connected`, or why it is not.
    pub reason: String,
    /// A sentence for people where something is wrong.
    pub message: Option<String>,
    /// Since when it is or is not connected, RFC 3339, UTC.
    pub since: String,
    /// The server's version, once it is known.
    pub version: Option<String>,
    /// Whether Kanmon may write there what it writes; `null`: not known.
    pub writable: Option<bool>,
}

/// Numbers of backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendTotals {
    /// All.
    pub total: usize,
    /// Those whose probe succeeds, or that are not probed.
    pub healthy: usize,
    /// Those that take new flows.
    pub usable: usize,
}

/// The flow table's use, as of the sweep's last pass.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowTotals {
    /// Flows by state: `half_open`, `established`, `closing`, `closed`, `reset`, `udp_new`, `udp_replied`.
    pub states: BTreeMap<String, u64>,
    /// Their sum.
    pub total: u64,
    /// How many flows the table was made for.
    pub capacity: u64,
    /// `total / capacity`, 0–1.
    pub fill: f64,
}

/// What backends see instead of clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snat {
    /// Addresses of the gateway.
    pub addresses: Vec<IpAddr>,
    /// Range of ports on each of them and for each backend, both ends included: `12288-28671`.
    pub ports: String,
}

/// Something that a person should know about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Cluster it is in; `null` when it is the gateway's own.
    pub cluster: Option<String>,
    /// The object, as `Kind namespace/name`, a file, a backend or a map.
    pub object: String,
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// One row of `kanmon services`: one VIP, port and protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes name.
    pub name: String,
    /// Virtual address.
    pub vip: IpAddr,
    /// Port.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Cluster whose Service of this name is the front: it decides about addresses, ports and health checks.
    /// `null`: the gateway cluster, where that is no member.
    pub front: Option<String>,
    /// Other clusters whose Service of this name would be a front too, oldest first.
    pub not_fronts: Vec<String>,
    /// Endpoints over all clusters.
    pub endpoints: usize,
    /// Those of them that take new flows.
    pub usable: usize,
    /// Clusters that have endpoints.
    pub clusters: Vec<String>,
    /// The Maglev ring; `null` while the service has none.
    pub ring: Option<Ring>,
    /// From where clients may connect, of the VIP's family; `null`: from everywhere. Empty: from nowhere.
    #[serde(default)]
    pub source_ranges: Option<Vec<IpNet>>,
    /// For how long after its last new connection a client stays with its pod; `null`: it doesn't.
    #[serde(default)]
    pub affinity_seconds: Option<u64>,
    /// What was forwarded for its members.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Whether it is served against the probes' advice, because all fail and all are tried; or not at all, because
    /// people drained all that it has.
    pub degraded: bool,
    /// Why it is not served as it should be.
    pub problem: Option<String>,
}

/// A service's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Slots, a prime.
    pub slots: u32,
    /// Counts the service's rings from 1.
    pub version: u32,
}

/// What was forwarded, summed over CPUs. Bytes are those of whole frames as received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// New flows.
    pub connections: u64,
    /// Packets towards the backend.
    pub packets_in: u64,
    /// Bytes towards the backend.
    pub bytes_in: u64,
    /// Packets towards clients.
    pub packets_out: u64,
    /// Bytes towards clients.
    pub bytes_out: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.packets_in += other.packets_in;
        self.bytes_in += other.bytes_in;
        self.packets_out += other.packets_out;
        self.bytes_out += other.bytes_out;
    }
}

/// One row of `kanmon backends`: a backend as a member of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Member cluster.
    pub cluster: String,
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// `namespace/name` of the service.
    pub service: String,
    /// The service's VIP.
    pub vip: IpAddr,
    /// Name of the pod.
    pub pod: String,
    /// Address of the pod.
    pub address: IpAddr,
    /// Port of the pod.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Whether its cluster says that it is ready.
    pub ready: bool,
    /// What the probes say; `null` when it is not probed, or not yet.
    pub healthy: Option<bool>,
    /// Whether it takes new flows.
    pub usable: bool,
    /// Whether it keeps its flows and takes no new ones.
    pub draining: bool,
    /// Why it drains; `null` where it does not.
    #[serde(default)]
    pub drain_cause: Option<DrainCause>,
    /// Seconds until the flows that it has left are ended; `null`: they end by themselves.
    #[serde(default)]
    pub drain_seconds: Option<u64>,
    /// Flows that it has now, as of the sweep's last pass.
    pub flows: u64,
    /// What was forwarded for it.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// `MAC dev interface` of the next hop; `null` while there is none.
    pub next_hop: Option<String>,
    /// Why it takes no new flows.
    pub reason: Option<String>,
}

/// One row of `kanmon flows`: one client connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// The client.
    pub client: SocketAddr,
    /// The address and port that the client talks to.
    pub vip: SocketAddr,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The pod's address and port.
    pub upstream_host: SocketAddr,
    /// `namespace/name` of the service, while it is known.
    pub service: Option<String>,
    /// Member cluster of the pod, while it is known.
    pub cluster: Option<String>,
    /// Name of the pod, while it is known.
    pub pod: Option<String>,
    /// `syn-sent`, `syn-acked`, `established`, `client-fin`, `backend-fin`, `closed`, `client-reset`,
    /// `backend-reset`, `refused`, `udp-new` or `udp-replied`.
    pub state: String,
    /// The source that the pod sees.
    pub snat: SocketAddr,
    /// Seconds since the last packet of either direction.
    pub idle_seconds: f64,
}

/// A line of the flow log: `kanmon flows --follow -o json`, and `--flow-log`. What is not known, or does not apply,
/// is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// When it happened, RFC 3339, UTC.
    pub time: String,
    /// What happened.
    pub state: RecordState,
    /// The client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    /// The address and port that the client talks to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vip: Option<SocketAddr>,
    /// `TCP` or `UDP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// `namespace/name` of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The pod's address and port; of a rescued flow, the new one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_host: Option<SocketAddr>,
    /// Of a rescued flow: the pod that refused it, or did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_upstream_host: Option<SocketAddr>,
    /// Member cluster of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Region of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Zone of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Name of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// `fin`, `rst`, `timeout`, `evicted` (half-open, it made room for a new flow) or `backend-removed`; of a rescued
    /// flow `rescued`, which is why its way to the previous pod ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_reason: Option<String>,
    /// Seconds from the flow's first packet to its last, of a closed one; in steps of some milliseconds, of one that
    /// timed out or was reset of 0.27.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<f64>,
    /// Bytes of whole frames towards the pod, of a closed flow; like those below where the service's policy says
    /// `flowLog: {counters: true}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_in: Option<u64>,
    /// Packets towards the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_in: Option<u64>,
    /// Bytes of whole frames towards the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_out: Option<u64>,
    /// Packets towards the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_out: Option<u64>,
    /// How many records were lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// Where: in the `kernel` (more than its rate limit), in the `agent`, by this `follower` or the `file`, which were
    /// too slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_in: Option<String>,
}

/// What a [`FlowRecord`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordState {
    /// A client's first packet went to a pod.
    Opened,
    /// A SYN that failed at one pod went to another.
    Rescued,
    /// The flow has ended.
    Closed,
    /// Records are missing here.
    Lost,
}

impl FlowRecord {
    /// A record that says nothing else yet.
    #[must_use]
    pub fn of(time: String, state: RecordState) -> Self {
        Self {
            time,
            state,
            client: None,
            vip: None,
            protocol: None,
            service: None,
            upstream_host: None,
            previous_upstream_host: None,
            cluster: None,
            region: None,
            zone: None,
            pod: None,
            close_reason: None,
            duration_seconds: None,
            bytes_in: None,
            packets_in: None,
            bytes_out: None,
            packets_out: None,
            lost: None,
            lost_in: None,
        }
    }

    /// Says that so many records were lost, and where.
    #[must_use]
    pub fn lost(time: String, count: u64, place: &str) -> Self {
        Self { lost: Some(count), lost_in: Some(place.to_owned()), ..Self::of(time, RecordState::Lost) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_flow_log_keeps_its_field_names() {
        let record = FlowRecord {
            client: Some("198.51.100.2:40000".parse().unwrap()),
            vip: Some("192.168.100.10:80".parse().unwrap()),
            protocol: Some("TCP".into()),
            service: Some("demo/httpbin".into()),
            upstream_host: Some("10.0.1.10:8080".parse().unwrap()),
            previous_upstream_host: Some("10.0.1.11:8080".parse().unwrap()),
            cluster: Some("hangzhou".into()),
            region: Some("cn-hangzhou".into()),
            zone: Some("b".into()),
            pod: Some("hangzhou-1".into()),
            close_reason: Some("fin".into()),
            duration_seconds: Some(0.5),
            bytes_in: Some(1),
            packets_in: Some(2),
            bytes_out: Some(3),
            packets_out: Some(4),
            ..FlowRecord::of("2026-01-01T00:00:00.000Z".into(), RecordState::Closed)
        };
        let json = serde_json::json!({
            "time": "2026-01-01T00:00:00.000Z", "state": "closed", "client": "198.51.100.2:40000",
            "vip": "192.168.100.10:80", "protocol": "TCP", "service": "demo/httpbin",
            "upstream_host": "10.0.1.10:8080", "previous_upstream_host": "10.0.1.11:8080",
            "cluster": "hangzhou", "region": "cn-hangzhou", "zone": "b", "pod": "hangzhou-1",
            "close_reason": "fin", "duration_seconds": 0.5, "bytes_in": 1, "packets_in": 2, "bytes_out": 3,
            "packets_out": 4
        });
        assert_eq!(serde_json::to_value(&record).unwrap(), json);
        assert_eq!(serde_json::from_value::<FlowRecord>(json).unwrap(), record);
        let lost = FlowRecord::lost("2026-01-01T00:00:00.000Z".into(), 7, "kernel");
        assert_eq!(
            serde_json::to_value(&lost).unwrap(),
            serde_json::json!({
                "time": "2026-01-01T00:00:00.000Z", "state": "lost", "lost": 7, "lost_in": "kernel"
            })
        );
    }

    #[test]
    fn a_service_row_keeps_its_field_names() {
        let service = Service {
            namespace: "demo".into(),
            name: "httpbin".into(),
            vip: [192, 168, 100, 10].into(),
            port: 80,
            protocol: "TCP".into(),
            front: Some("hangzhou".into()),
            not_fronts: vec!["shanghai".into()],
            endpoints: 6,
            usable: 5,
            clusters: vec!["hangzhou".into()],
            ring: Some(Ring { slots: 1021, version: 3 }),
            source_ranges: Some(vec!["198.51.100.0/24".parse().unwrap()]),
            affinity_seconds: Some(10_800),
            traffic: Traffic { connections: 1, packets_in: 2, bytes_in: 3, packets_out: 4, bytes_out: 5 },
            degraded: false,
            problem: None,
        };
        let json = serde_json::to_value(&service).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "namespace": "demo", "name": "httpbin", "vip": "192.168.100.10", "port": 80,
                "protocol": "TCP", "front": "hangzhou", "not_fronts": ["shanghai"], "endpoints": 6, "usable": 5, "clusters": ["hangzhou"],
                "ring": {"slots": 1021, "version": 3}, "source_ranges": ["198.51.100.0/24"],
                "affinity_seconds": 10800, "connections": 1, "packets_in": 2, "bytes_in": 3,
                "packets_out": 4, "bytes_out": 5, "degraded": false, "problem": null
            })
        );
        assert_eq!(serde_json::from_value::<Service>(json).unwrap(), service);
    }

    #[test]
    fn a_flow_row_names_the_pod_as_upstream_host() {
        let flow = Flow {
            client: "[fd00:c::2]:40000".parse().unwrap(),
            vip: "[fd00:100::10]:80".parse().unwrap(),
            protocol: "TCP".into(),
            upstream_host: "[fd00:10::a]:8080".parse().unwrap(),
            service: None,
            cluster: None,
            pod: None,
            state: "established".into(),
            snat: "[fd00:1::1]:12288".parse().unwrap(),
            idle_seconds: 0.5,
        };
        let json = serde_json::to_value(&flow).unwrap();
        assert_eq!(json["upstream_host"], "[fd00:10::a]:8080");
        assert_eq!(json["cluster"], serde_json::Value::Null);
        assert_eq!(serde_json::from_value::<Flow>(json).unwrap(), flow);
    }
}
