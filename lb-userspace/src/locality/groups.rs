//! Endpoints sorted into the groups that get percentages.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::slice;

use super::Input;
use crate::desired::{Area, BackendId, Endpoint, Locality};

/// Size of a cluster that takes part as a whole, in percent.
const FULL: u32 = 100;

/// The groups of one service.
pub(super) struct Groups<'a> {
    /// In order of preference: the listed ones, then what is in none of them.
    pub serving: Vec<Group<'a>>,
    /// What the policy leaves out.
    pub excluded: Option<Group<'a>>,
}

/// A level of a failover list, an area of a distribution, or what is in none.
pub(super) struct Group<'a> {
    /// The areas that it is made of; empty for what is in none of the listed ones.
    pub areas: &'a [Area],
    /// By region and zone as the policy names them, or as the endpoints do where it names none.
    pub places: BTreeMap<(&'a str, &'a str), Tally>,
    /// Those that Kubernetes lets have new flows.
    pub candidates: Vec<Candidate>,
}

/// An endpoint that Kubernetes lets have new flows.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    pub backend: BackendId,
    pub healthy: bool,
    /// Its size relative to the others', in percent of its full size.
    pub size: u32,
}

/// Numbers of endpoints that do not terminate.
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    pub endpoints: u32,
    pub ready: u32,
    pub healthy: u32,
    pub ejected: u32,
    /// Sum of the healthy ones' sizes: 100 for each that takes part as a whole.
    pub size: u32,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.endpoints += other.endpoints;
        self.ready += other.ready;
        self.healthy += other.healthy;
        self.ejected += other.ejected;
        self.size += other.size;
    }
}

impl<'a> Groups<'a> {
    pub(super) fn of(input: &Input<'a>) -> Self {
        let (mut serving, strict) = match &input.policy.locality {
            Locality::Even => (Vec::new(), false),
            Locality::Failover { levels, strict } => {
                (levels.iter().map(|areas| Group::listed(areas)).collect(), *strict)
            }
            Locality::Distribute { shares } => {
                (shares.iter().map(|(area, _)| Group::listed(slice::from_ref(area))).collect(), false)
            }
        };
        let mut rest = Group::listed(&[]);
        for endpoint in input.endpoints.iter().filter(|endpoint| !endpoint.terminating) {
            let mut listed = serving.iter_mut().filter_map(|group| Some((group.area_of(endpoint)?, group)));
            match listed.next() {
                Some((place, group)) => group.add(place, endpoint, input),
                None => rest.add((&endpoint.region, &endpoint.zone), endpoint, input),
            }
        }
        if strict {
            return Self { serving, excluded: Some(rest) };
        }
        serving.push(rest);
        Self { serving, excluded: None }
    }

    /// The numbers of all that may serve.
    pub(super) fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        self.serving.iter().for_each(|group| sum += group.tally());
        sum
    }
}

impl<'a> Group<'a> {
    fn listed(areas: &'a [Area]) -> Self {
        let places = areas.iter().map(|area| ((&*area.region, &*area.zone), Tally::default())).collect();
        Self { areas, places, candidates: Vec::new() }
    }

    /// The first of its areas that an endpoint is in.
    fn area_of(&self, endpoint: &Endpoint) -> Option<(&'a str, &'a str)> {
        let area = self.areas.iter().find(|area| area.contains(&endpoint.region, &endpoint.zone))?;
        Some((&area.region, &area.zone))
    }

    fn add(&mut self, place: (&'a str, &'a str), endpoint: &Endpoint, input: &Input<'_>) {
        let ready = endpoint.takes_new_flows();
        let ejected = input.ejected.contains(&endpoint.backend);
        let healthy = ready && !ejected && input.healthy.contains(&endpoint.backend);
        let size = input.ramps.get(&endpoint.cluster).map_or(FULL, |ramp| (*ramp).clamp(1, FULL));
        *self.places.entry(place).or_default() += Tally {
            endpoints: 1,
            ready: ready.into(),
            healthy: healthy.into(),
            ejected: ejected.into(),
            size: if healthy { size } else { 0 },
        };
        if ready {
            self.candidates.push(Candidate { backend: endpoint.backend, healthy, size });
        }
    }

    pub(super) fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        self.places.values().for_each(|tally| sum += *tally);
        sum
    }
}
