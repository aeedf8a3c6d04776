//! The vocabulary of desired state.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service as KubeService;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::{Deserialize, Serialize};

use super::health_check::HealthCheck;
use super::mcs::{ServiceExport, ServiceImportSpec};
use super::policy::Policy;
use super::resources::{AddressAllocation, AddressPool, LoadBalancingPolicy, MemberCluster};
use super::sources::SourceRanges;

/// What one member cluster says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterObjects {
    /// Its Services, of any type.
    pub services: Vec<KubeService>,
    /// Its EndpointSlices.
    pub slices: Vec<EndpointSlice>,
    /// Where its nodes are, by name of the node; without those whose labels tell neither.
    #[serde(default)]
    pub nodes: BTreeMap<String, Place>,
    /// Its ServiceExports, without their status.
    #[serde(default)]
    pub exports: Vec<ServiceExport>,
}

/// Where a node is, as its labels `topology.kubernetes.io/region` and `/zone` say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Region; empty if unknown.
    pub region: String,
    /// Zone; empty if unknown.
    pub zone: String,
}

impl Place {
    /// Region and zone each from here, or where this does not know it, from there.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let first = |a: &String, b: &String| if a.is_empty() { b.clone() } else { a.clone() };
        Self { region: first(&self.region, &other.region), zone: first(&self.zone, &other.zone) }
    }
}

/// What belongs to the gateway itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GatewayObjects {
    /// Where VIPs come from.
    pub pools: Vec<AddressPool>,
    /// What is known about the member clusters; a cluster without such an object is active.
    pub members: Vec<MemberCluster>,
    /// How connections are spread over endpoints.
    #[serde(default)]
    pub policies: Vec<LoadBalancingPolicy>,
    /// The gateway cluster's own Services: fronts that go before every member's. Its endpoints count only
    /// where it is a member too (`source.local`). Empty in standalone mode.
    #[serde(default)]
    pub services: Vec<KubeService>,
    /// Who has which address, as it is written in the gateway cluster, without status; an address of a pool is
    /// used only once that is written. `None`: nobody writes that down (standalone mode), and what a merge gives
    /// away is handed to the next one.
    #[serde(default)]
    pub allocations: Option<Vec<AddressAllocation>>,
    /// Which of the allocations are ours.
    #[serde(default)]
    pub owner: Owner,
    /// How well the members' Services are known.
    #[serde(skip)]
    pub knowledge: Knowledge,
}

/// How well the Services of the members that are served, and of the gateway cluster, are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Knowledge {
    /// Some cluster has never been read: no Service that has an address may get another one.
    #[default]
    Partial,
    /// All have been read, be it in an earlier run; but one that is away may have more Services now: an allocation
    /// for a Service that nobody seems to have stays.
    Known,
    /// All are connected and have been read: what is not there does not exist.
    Current,
}

/// Whose the things are that Kanmon makes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The cluster set.
    pub cluster_set_id: String,
    /// Those of its gateways that look after the same members; empty: they look after all. Others don't see the
    /// Services that these see, so they must not give back these ones' addresses.
    pub group: String,
}

/// Everything that this gateway should serve.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// The services.
    pub services: BTreeMap<ServiceId, Service>,
    /// What was refused or is doubtful, and what to do about it; in a stable order.
    pub problems: Vec<Problem>,
    /// The VIPs that came from pools: hand them back to the next merge.
    pub allocations: Allocations,
    /// What became of each front, by namespace and name.
    pub fronts: BTreeMap<ObjectName, FrontState>,
    /// What should be written down of who has which address; empty where nobody does. A claim without Services: the
    /// address is to be given back.
    pub claims: BTreeMap<IpAddr, Claim>,
    /// The services that clusters export, by namespace and name.
    pub exports: BTreeMap<ObjectName, ExportState>,
    /// What became of each LoadBalancingPolicy.
    pub policies: BTreeMap<ObjectName, PolicyState>,
    /// Whether it was made of all that there is (`cluster::Snapshot::complete`), so that it may be said in the
    /// clusters. Whoever merges notes that.
    pub complete: bool,
    /// The clusters whose objects it was made of.
    pub clusters: BTreeSet<String>,
    /// How well those were known then.
    pub knowledge: Knowledge,
}

/// What became of a front.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrontState {
    /// The cluster whose Service it is; empty: the gateway cluster, where that is no member.
    pub cluster: String,
    /// The other clusters whose Service of this name would be the front too, oldest first.
    pub others: Vec<String>,
    /// The VIPs that it has, IPv4 first.
    pub vips: Vec<IpAddr>,
}

/// Who should have an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The AddressPool that it is of; `None`: of none.
    pub pool: Option<String>,
    /// What its Services say in `kanmon.dev/shared-address`.
    pub shared_address: Option<String>,
    /// Who has it.
    pub services: BTreeSet<ObjectName>,
}

/// How much of an AddressPool is in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// How many of its addresses somebody has.
    pub used: u64,
    /// How many nobody has.
    pub free: u128,
    /// Addresses that it gave and has no longer, and who has them.
    pub outside: BTreeMap<IpAddr, Vec<ObjectName>>,
    /// What is wrong with networks that cannot be read.
    pub invalid: Vec<String>,
    /// Whether it has a network that can be read.
    pub has_network: bool,
}

/// What became of the exports of one namespace and name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExportState {
    /// By cluster, for each that has a ServiceExport.
    pub exports: BTreeMap<String, ExportJudgement>,
    /// The clusters whose export counts, by name: those that the import comes from.
    pub clusters: Vec<String>,
    /// What the import looks like; `None` while no export counts.
    pub import: Option<ServiceImportSpec>,
    /// The import's own condition Ready; empty while there is no import.
    pub import_conditions: Vec<Judgement>,
    /// Labels of the import: those that the oldest export asks for.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the import.
    pub annotations: BTreeMap<String, String>,
}

/// What became of a LoadBalancingPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyState {
    /// Accepted and Enforced, as far as this gateway knows.
    pub judgements: Vec<Judgement>,
    /// The Services that it names.
    pub targets: BTreeSet<ObjectName>,
    /// Those of them that are fronts and go by it.
    pub services: BTreeSet<ObjectName>,
}

/// What a ServiceExport is told. Conditions of KEP-1645 without their times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportJudgement {
    /// Valid, Ready and Conflict.
    pub conditions: Vec<Judgement>,
}

/// A condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What it is about.
    pub kind: &'static str,
    /// `None`: unknown.
    pub holds: Option<bool>,
    /// One word, or several joined by commas.
    pub reason: String,
    /// Why, and what to do, for people; may be empty.
    pub message: String,
}

/// VIPs that were allocated from pools, at most one a family.
pub type Allocations = BTreeMap<ObjectName, Vec<IpAddr>>;

/// Namespace and name of a Kubernetes object; text form `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ObjectName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl From<ObjectName> for String {
    fn from(name: ObjectName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for ObjectName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.split_once('/') {
            Some((namespace, name)) => Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() }),
            None => Err(format!("{text:?} is not of the form namespace/name")),
        }
    }
}

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Protocol {
    /// IP protocol number.
    #[must_use]
    pub const fn ip_number(self) -> u8 {
        match self {
            Self::Tcp => lb_common::abi::TCP,
            Self::Udp => lb_common::abi::UDP,
        }
    }

    /// The protocol of an IP protocol number; `None` for any but TCP and UDP.
    #[must_use]
    pub const fn from_ip_number(number: u8) -> Option<Self> {
        match number {
            lb_common::abi::TCP => Some(Self::Tcp),
            lb_common::abi::UDP => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// One pod's protocol, address and port: the same in every service that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendId {
    /// Protocol.
    pub protocol: Protocol,
    /// The pod's address.
    pub address: IpAddr,
    /// The pod's port, host order.
    pub port: u16,
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", SocketAddr::new(self.address, self.port), self.protocol))
    }
}

/// One VIP, port and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceId {
    /// The address that clients connect to.
    pub vip: IpAddr,
    /// The port that clients connect to, host order.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", SocketAddr::new(self.vip, self.port), self.protocol))
    }
}

/// One service: a port of a Kubernetes Service on one of its VIPs, with the endpoints of all clusters.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// VIP, port and protocol.
    pub id: ServiceId,
    /// Namespace of the Kubernetes Services that were merged.
    pub namespace: String,
    /// Name of the Kubernetes Services that were merged.
    pub name: String,
    /// The cluster whose Service is the front and decides; empty: the gateway cluster, where that is no member.
    pub front: String,
    /// The other clusters whose Service of this name would be a front too, oldest first.
    pub not_fronts: Vec<String>,
    /// Name of the front's port; empty where it has none.
    pub port_name: String,
    /// Endpoints of the VIP's family, sorted by backend, each backend once.
    pub endpoints: Vec<Endpoint>,
    /// How its endpoints are probed.
    pub health_check: HealthCheck,
    /// What is asked of it.
    pub policy: Arc<Policy>,
    /// From where clients may connect, of the VIP's family; `None`: from everywhere. Without a network: from nowhere.
    pub sources: Option<SourceRanges>,
    /// For how long after its last new connection a client stays with its pod; `None`: it doesn't.
    pub affinity: Option<Duration>,
}

/// A backend as one cluster describes it for one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Protocol, address and port.
    pub backend: BackendId,
    /// The member cluster that it runs in.
    pub cluster: String,
    /// Region of its node, else of the member cluster; empty if unknown.
    pub region: String,
    /// Zone that its EndpointSlice names, else its node's; empty if unknown.
    pub zone: String,
    /// Name of the pod; empty if the EndpointSlice does not tell.
    pub pod: String,
    /// Kubernetes calls it ready.
    pub ready: bool,
    /// It still answers, whether or not it is terminating.
    pub serving: bool,
    /// It is shutting down, or its cluster is drained: no new flows, existing ones go on.
    pub terminating: bool,
    /// The TCP port to probe; `None`: not probed. For a UDP backend it is the pod's port for the first TCP
    /// port of the same Kubernetes Service, because a probe by UDP proves nothing.
    pub probe_port: Option<u16>,
}

impl Endpoint {
    /// Whether Kubernetes lets new flows go here.
    #[must_use]
    pub const fn takes_new_flows(&self) -> bool {
        self.ready && !self.terminating
    }
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something that was asked for is not done.
    Error,
    /// It is done, but perhaps not as its author expects.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// Something in the objects that cannot be done as it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// The cluster whose object it is; empty: the gateway's own.
    pub cluster: String,
    /// Kind and name, for example `Service demo/httpbin`, or a file's path.
    pub object: String,
    /// What kind of problem, for programs.
    pub reason: Reason,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong and what to do, for people.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.cluster.is_empty() {
            write!(f, "cluster {}: ", self.cluster)?;
        }
        write!(f, "{}: {} ({})", self.object, self.message, self.reason)
    }
}

/// Machine-readable kinds of [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// A file or directory cannot be read or parsed; its last good state is used.
    Unreadable,
    /// An object's field has a value that means nothing.
    InvalidObject,
    /// Two objects of one kind have the same name.
    DuplicateObject,
    /// An annotation `kanmon.dev/…` is unknown or has a bad value.
    InvalidAnnotation,
    /// The Service has our class but a type that cannot be served.
    UnsupportedService,
    /// The Service asks for `externalTrafficPolicy: Local`, which is not done.
    ExternalTrafficPolicyIgnored,
    /// The Service asks for a `trafficDistribution`, or for a topology mode, which is not done.
    TrafficDistributionIgnored,
    /// The Service has `externalIPs`, which are not served.
    ExternalIPsIgnored,
    /// A network in `loadBalancerSourceRanges` cannot be read, and lets nobody in.
    InvalidSourceRange,
    /// `loadBalancerSourceRanges` has networks, but none of the family of one of the VIPs.
    NoSourceRange,
    /// A port of the Service has a protocol that is not served.
    UnsupportedProtocol,
    /// An address that is asked for as VIP cannot be one.
    InvalidAddress,
    /// The VIP belongs to another Service.
    AddressConflict,
    /// No address is left, or no pool has one of that family.
    NoAddress,
    /// The address that is asked for is of a pool that does not choose the Service.
    AddressNotAllowed,
    /// A Service keeps an address that its pool no longer has.
    InUseOutside,
    /// Something is put off until all member clusters have been read.
    MembersUnknown,
    /// Another cluster's Service of that name is the front.
    NotFront,
    /// A cluster has no port that fits the front's.
    PortMismatch,
    /// The address is outside of what the member declares.
    OutsideMemberNetwork,
    /// The address is a VIP or one of the gateway's own.
    GatewayAddress,
    /// The address belongs to an older member.
    ClaimedByOtherMember,
    /// The member's declared networks overlap those of an older member.
    CIDROverlap,
    /// A member is declared, but nothing is known from it.
    NoSource,
    /// A Service of our class is not exported, in a cluster of which only exported ones take part.
    NotExported,
    /// A ServiceExport names no Service that can be exported.
    InvalidExport,
    /// The exported service has no VIP that its clients could use.
    ExportPending,
    /// Exports of one name differ; the oldest decides.
    ExportConflict,
    /// An EndpointSlice has names instead of addresses.
    FQDNEndpoints,
    /// An object is in the way that somebody else made.
    ForeignObject,
    /// An older policy is for the same Service.
    PolicyConflict,
    /// A policy is for a Service that is not there, or not served.
    TargetNotFound,
    /// The gateway does not know its region or zone, which a policy goes by.
    PlaceUnknown,
    /// A policy says nothing for gateways of this region and zone.
    PlaceNotListed,
    /// A policy's selector chooses no member cluster.
    NothingSelected,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The variants are named as they are shown.
        f.pad(&format!("{self:?}"))
    }
}
