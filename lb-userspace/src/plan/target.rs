//! What the maps should say, and what is known about flows: the two inputs of a plan.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use crate::desired::{BackendId, ServiceId};
use crate::network::NextHops;

/// What the maps should say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    /// The services with their members.
    pub services: BTreeMap<ServiceId, TargetService>,
    /// The backends that may get new flows: probe results, with fail-open already applied. It changes the
    /// overlay and the fallback rings, never the rings.
    pub usable: BTreeSet<BackendId>,
    /// How backends are reached, by address. [`super::Model::backend_addresses`] says which addresses matter,
    /// draining backends included. An address that is missing here is "not resolved yet".
    pub next_hops: NextHops,
    /// The VIPs; `true` where the VIP is also an address of the node. A service's VIP that is missing here
    /// counts as `false`.
    pub vips: BTreeMap<IpAddr, bool>,
    /// The gateway's own addresses that backends see.
    pub snat_addresses: BTreeSet<IpAddr>,
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
}

/// An endpoint in a [`TargetService`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetMember {
    /// Its share of the service's new flows, relative to the other members'. 0: none, but it is in the
    /// fallback ring.
    pub weight: u32,
    /// Terminating or not ready: no new flows, not in any ring; existing flows go on.
    pub draining: bool,
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
