//! What a person drains by hand: `kanmon drain` and `kanmon undrain`.
//!
//! What is here is pure. [`store`] keeps it over restarts, [`keeper`] changes it for whoever asks, [`answer`] says
//! what came of that.
//!
//! What is drained by hand counts as terminating: no new flows, no probes, no part in the health of its region;
//! its flows go on to their end, or until the service's drain time is over. A person has said so, so nothing opens
//! it again but `undrain`: a service that has nothing else is not served, and says that it is Degraded.

mod answer;
mod keeper;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::desired::{BackendId, Desired, Endpoint, MemberState, Protocol, Service};
use crate::status::view::DrainCause;

use answer::answer;

pub(super) use answer::rows;
pub(super) use keeper::Keeper;
pub(super) use store::load;

/// So many backends are listed to somebody who named one that does not exist.
const LISTED: usize = 12;

/// What can be drained.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Name {
    Cluster(String),
    Backend(BackendId),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(name) => write!(f, "cluster {name}"),
            Self::Backend(id) => write!(f, "backend {id}"),
        }
    }
}

/// One that is drained.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Drain {
    /// RFC 3339, UTC.
    pub(super) since: String,
    /// The backend's pod; empty: not known, and for clusters. Another pod that gets its address is not drained.
    #[serde(default)]
    pub(super) pod: String,
}

/// All that is drained by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Drains(BTreeMap<Name, Drain>);

impl Drains {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Name, &Drain)> {
        self.0.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, name: &Name) -> Option<&Drain> {
        self.0.get(name)
    }

    /// Drains these, each with the name of its pod; whether that changes anything.
    fn drain(&mut self, named: &BTreeMap<Name, String>, now: &str) -> bool {
        let mut changed = false;
        for (name, pod) in named {
            let same = |drain: &Drain| drain.pod.is_empty() || drain.pod == *pod;
            if !self.0.get(name).is_some_and(same) {
                self.0.insert(name.clone(), Drain { since: now.to_owned(), pod: pod.clone() });
                changed = true;
            }
        }
        changed
    }

    /// The reverse.
    fn undrain(&mut self, named: &BTreeMap<Name, String>) -> bool {
        let before = self.0.len();
        self.0.retain(|name, _| !named.contains_key(name));
        self.0.len() != before
    }

    /// By which name an endpoint is drained; a cluster's goes first.
    pub(super) fn of(&self, endpoint: &Endpoint) -> Option<(&Name, &Drain)> {
        let cluster = self.0.get_key_value(&Name::Cluster(endpoint.cluster.clone()));
        cluster.or_else(|| {
            let found = self.0.get_key_value(&Name::Backend(endpoint.backend))?;
            let Drain { pod, .. } = found.1;
            (pod.is_empty() || endpoint.pod.is_empty() || *pod == endpoint.pod).then_some(found)
        })
    }

    /// Takes new flows away from the endpoints that are drained.
    pub(super) fn apply(&self, desired: &mut Desired) {
        if self.is_empty() {
            return;
        }
        for endpoint in desired.services.values_mut().flat_map(|service| &mut service.endpoints) {
            endpoint.terminating |= self.of(endpoint).is_some();
        }
    }

    /// What a person means: a cluster's name, or a backend's address and port, with the protocol where there are
    /// two. Each with the name of its pod.
    ///
    /// # Errors
    /// There is no such thing. The text says what there is.
    fn find(
        &self,
        what: &str,
        desired: &Desired,
        clusters: &BTreeSet<&str>,
    ) -> Result<BTreeMap<Name, String>, String> {
        let cluster = Name::Cluster(what.to_owned());
        if clusters.contains(what) || self.0.contains_key(&cluster) {
            return Ok([(cluster, String::new())].into());
        }
        let endpoints = desired.services.values().flat_map(|service| &service.endpoints);
        // A name that is drained can be named even while nothing answers to it.
        let mut backends: BTreeMap<BackendId, &str> = BTreeMap::new();
        for (name, drain) in &self.0 {
            if let Name::Backend(id) = name {
                backends.insert(*id, &drain.pod);
            }
        }
        backends.extend(endpoints.map(|endpoint| (endpoint.backend, endpoint.pod.as_str())));
        if let Some((address, protocol)) = parse_backend(what) {
            let meant = |id: &BackendId| {
                SocketAddr::new(id.address, id.port) == address
                    && protocol.is_none_or(|protocol| protocol == id.protocol)
            };
            let found: BTreeMap<Name, String> = backends
                .iter()
                .filter(|(id, _)| meant(id))
                .map(|(id, pod)| (Name::Backend(*id), (*pod).to_owned()))
                .collect();
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Err(unknown(what, clusters, &backends.into_keys().collect::<Vec<_>>()))
    }
}

impl FromIterator<(Name, Drain)> for Drains {
    fn from_iter<I: IntoIterator<Item = (Name, Drain)>>(drains: I) -> Self {
        Self(drains.into_iter().collect())
    }
}

/// `10.0.1.2:8080`, `[fd00::2]:8080`, each perhaps with `/tcp` or `/UDP`.
fn parse_backend(text: &str) -> Option<(SocketAddr, Option<Protocol>)> {
    let (address, protocol) = match text.rsplit_once('/') {
        None => (text, None),
        Some((address, name)) if name.eq_ignore_ascii_case("tcp") => (address, Some(Protocol::Tcp)),
        Some((address, name)) if name.eq_ignore_ascii_case("udp") => (address, Some(Protocol::Udp)),
        Some(_) => return None,
    };
    Some((address.parse().ok()?, protocol))
}

fn unknown(what: &str, clusters: &BTreeSet<&str>, backends: &[BackendId]) -> String {
    let clusters: Vec<&str> = clusters.iter().copied().collect();
    let mut listed: Vec<String> = backends.iter().take(LISTED).map(BackendId::to_string).collect();
    if backends.len() > LISTED {
        listed.push(format!("{} more, which `kanmon backends` lists", backends.len() - LISTED));
    }
    let or_none = |list: &[String]| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    format!(
        "there is no cluster and no backend {what:?}. Clusters: {}. Backends: {}",
        or_none(&clusters.into_iter().map(str::to_owned).collect::<Vec<_>>()),
        or_none(&listed)
    )
}

/// Why an endpoint gets no new flows, whatever probes say of it. `state` is its MemberCluster's.
pub(super) fn cause(drains: &Drains, state: MemberState, endpoint: &Endpoint) -> Option<DrainCause> {
    if drains.of(endpoint).is_some() {
        Some(DrainCause::ByHand)
    } else if state == MemberState::Drain {
        Some(DrainCause::MemberCluster)
    } else if endpoint.terminating {
        Some(DrainCause::Terminating)
    } else {
        (!endpoint.ready).then_some(DrainCause::NotReady)
    }
}

/// What is to be said of a service that has ready endpoints, all of them drained by people. `cause` is
/// [`cause`]'s. It does not fail open: it was asked for.
pub(super) fn refusal(service: &Service, cause: impl Fn(&Endpoint) -> Option<DrainCause>) -> Option<String> {
    let endpoints = &service.endpoints;
    if endpoints.iter().any(Endpoint::takes_new_flows) {
        return None;
    }
    let count = |wanted: DrainCause| {
        endpoints.iter().filter(|endpoint| endpoint.ready && cause(endpoint) == Some(wanted)).count()
    };
    let (by_hand, by_state) = (count(DrainCause::ByHand), count(DrainCause::MemberCluster));
    let how = match (by_hand, by_state) {
        (0, 0) => return None,
        (_, 0) => "by hand; `kanmon undrain` gives them new connections again",
        (0, _) => "by their MemberClusters; `state: Active` gives them new connections again",
        _ => {
            "by hand and by their MemberClusters; `kanmon undrain` or `state: Active` gives them new ones again"
        }
    };
    let drained = by_hand + by_state;
    Some(format!("new connections are refused, because all {drained} ready endpoints are drained {how}"))
}
