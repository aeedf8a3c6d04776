//! How much of a service's traffic each region and zone gets.
//!
//! Pure: endpoints, policy and health in, percentages and weights out. A policy sorts endpoints into groups: the
//! levels of a failover list or the areas of a distribution, and what is in none of them. Each group gets a whole
//! percentage by its health (`levels`, `distribute`), and the members of a group share it evenly
//! (`weights`). Without a policy there is one group.
//!
//! [`shares`] takes health as it is. [`Localities`] follows services over time and holds a group back that has
//! just recovered (`failback`).

mod compute;
mod distribute;
mod failback;
mod groups;
mod levels;
mod localities;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::desired::{BackendId, Endpoint, Policy};

pub use compute::shares;
pub use localities::{Localities, Transition};

/// What the shares of one service depend on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The service's endpoints, each backend once.
    pub endpoints: &'a [Endpoint],
    /// What is asked for.
    pub policy: &'a Policy,
    /// Backends that probes and the path find nothing wrong with, before anything fails open: where none is
    /// healthy, that is decided here. Those that Kubernetes calls unready don't count, listed or not.
    pub healthy: &'a BTreeSet<BackendId>,
    /// Backends that are ejected: not healthy, whether or not they are listed as such.
    pub ejected: &'a BTreeSet<BackendId>,
    /// Percentage of their full size with which the endpoints of a cluster take part, by cluster: 1 to 100.
    /// Clusters that are not named have 100.
    pub ramps: &'a BTreeMap<String, u32>,
}

/// The traffic of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// In order of preference. Every area of the policy, and every place that has other endpoints.
    pub areas: Vec<AreaShare>,
    /// Relative weight in the service's ring of each backend that may get new flows; 0: it is in the fallback
    /// ring only. Equal numbers mean equal shares. Those that are missing get no new flows: they are not ready,
    /// they terminate, or the policy leaves them out.
    pub weights: BTreeMap<BackendId, u32>,
    /// Set when less is served than was asked for in a way that a person must look at: nothing is healthy and
    /// health is ignored, or the policy leaves nothing to serve. A sentence for people.
    pub degraded: Option<String>,
}

/// A region, or a zone of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Region; empty: unknown.
    pub region: String,
    /// Zone; empty: the whole region, or unknown.
    pub zone: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match (self.region.as_str(), self.zone.as_str()) {
            ("", "") => "an unknown region".to_owned(),
            ("", zone) => format!("zone {zone}"),
            (region, "") => region.to_owned(),
            (region, zone) => format!("{region}/{zone}"),
        })
    }
}

/// The share of one area. Endpoints that terminate are not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AreaShare {
    /// Where.
    pub place: Place,
    /// Place of its group in the policy's order of preference, first 0: a failover's level, or the number of an
    /// area of a distribution. What is in no listed area comes last.
    pub level: usize,
    /// Endpoints, ready or not.
    pub endpoints: u32,
    /// Those of them that are healthy: ready, not ejected, and no probe fails.
    pub healthy: u32,
    /// Those of them that are ejected.
    pub ejected: u32,
    /// Percentage of new flows that arrives here; those of a service sum to 100, or to 0 where nothing may serve.
    pub percent: u32,
    /// What it is doing.
    pub state: AreaState,
}

/// What an area is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AreaState {
    /// It gets the new flows that the policy wants it to have.
    Active,
    /// It gets new flows, with fewer healthy endpoints than its share of them calls for. As a level of a failover
    /// list it gets less for that, while others can serve.
    Impaired,
    /// It could serve; the policy wants all new flows elsewhere.
    Standby,
    /// It has recovered and waits until it has been healthy for the failback delay.
    FailingBack,
    /// It has endpoints, and none is healthy.
    Failed,
    /// It has no endpoints.
    Empty,
    /// The policy leaves it out.
    Excluded,
}

impl fmt::Display for AreaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The variants are named as they are shown.
        f.pad(&format!("{self:?}"))
    }
}
