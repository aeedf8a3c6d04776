//! What the maps should say, and what is known about flows: the two inputs of a plan.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::config::Echo;
use crate::desired::{BackendId, FlowLogging, NewFlowLimit, Policy, ServiceId, SourceRanges};
use crate::network::NextHops;

/// What the maps should say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    /// The services with their members.
    pub services: BTreeMap<ServiceId, TargetService>,
    /// The backends that may get new flows: probe results, with fail-open already applied. It changes the
    /// overlay and the fallback rings, never the rings.
    pub usable: BTreeSet<BackendId>,
    /// A number of the cluster that a backend is in ([`cluster_number`]); what is missing here keeps the one that
    /// it has.
    pub clusters: BTreeMap<BackendId, u32>,
    /// How backends are reached, by address. [`super::Model::backend_addresses`] says which addresses matter,
    /// draining backends included. An address that is missing here is "not resolved yet".
    pub next_hops: NextHops,
    /// The VIPs; `true` where the VIP is also an address of the node. A service's VIP that is missing here
    /// counts as `false`.
    pub vips: BTreeMap<IpAddr, bool>,
    /// The gateway's own addresses that backends see.
    pub snat_addresses: BTreeSet<IpAddr>,
    /// Which VIPs answer echo requests.
    pub echo: Echo,
    /// Interfaces that the program is attached to: replies leave through them, so they always are egress
    /// interfaces.
    pub interfaces: BTreeSet<u32>,
}

/// A service in a [`Target`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetService {
    /// Its endpoints that exist, whatever their condition. A member that is absent is *removed*: its TCP
    /// flows may finish, its UDP flows are selected anew.
    pub members: BTreeMap<BackendId, TargetMember>,
    /// How long the flows of a member that leaves, or is absent, may go on from then. `None`: those of one that
    /// leaves to their own end, those of an absent one for [`super::Limits::drain_timeout`].
    pub drain_timeout: Option<Duration>,
    /// What its failed connections lead to.
    pub reaction: Reaction,
    /// What the flow log notes of its connections.
    pub flow_log: FlowLogging,
    /// From where clients may begin flows, of the VIP's family; `None`: from everywhere. Without a network: from
    /// nowhere.
    pub sources: Option<SourceRanges>,
    /// For how long after its last new flow a client stays with its backend; `None`: it doesn't.
    pub affinity: Option<Duration>,
    /// How many flows each client's network may begin; `None`: any number.
    pub new_flow_limit: Option<NewFlowLimit>,
}

/// What the packet program does when connections of a service fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaction {
    /// Connect errors in a row at which a backend gets no new flows for a time; 0: never.
    pub trip_errors: u32,
    /// For how long; in the map in milliseconds, at most 49 days.
    pub trip_time: Duration,
    /// Whether a refused SYN goes to another backend at once.
    pub retry_on_reset: bool,
}

impl Default for Reaction {
    fn default() -> Self {
        Self { trip_errors: 0, trip_time: Duration::ZERO, retry_on_reset: true }
    }
}

impl From<&Policy> for Reaction {
    fn from(policy: &Policy) -> Self {
        let outliers = policy.outlier_detection.as_ref();
        Self {
            trip_errors: outliers.map_or(0, |outliers| outliers.consecutive_errors),
            trip_time: outliers.map_or(Duration::ZERO, |outliers| outliers.base_ejection_time),
            retry_on_reset: policy.retry_on_reset,
        }
    }
}

/// The number that stands for a cluster in the maps: a function of its name, so that every start and every gateway
/// gives the same; never 0.
#[must_use]
pub fn cluster_number(name: &str) -> u32 {
    // FNV-1a: two clusters of a set have one number once in two thousand million sets, and then a SYN that fails
    // for the second time may stay in its cluster.
    let hash =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.max(1)
}

/// An endpoint in a [`TargetService`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetMember {
    /// Its share of the service's new flows, relative to the other members'. 0: none, but it is in the
    /// fallback ring.
    pub weight: u32,
    /// No new flows, not in any ring; existing flows go on.
    pub draining: bool,
    /// Of a draining member: it does so for good, or because a person said so, and the drain time runs. One that
    /// is merely not ready keeps its flows, however long that takes.
    pub leaving: bool,
}

impl TargetMember {
    pub(super) const fn leaves(&self) -> bool {
        self.draining && self.leaving
    }
}

/// Which indices flows still refer to, as the sweep counted them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowUsage {
    /// Number of the last plan ([`super::Plan::number`]) all of whose steps had been applied when the count
    /// began. A count that began earlier says nothing about what later plans took out of service.
    pub applied: u64,
    /// Flows of each member index that has any.
    pub flows: HashMap<u32, u64>,
    /// Backend indices that have a SNAT port taken.
    pub busy_backends: HashSet<u32>,
}
