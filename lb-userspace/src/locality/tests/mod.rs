//! Scenarios and properties of shares, with a small world to make them in.

mod coming_back;
mod distribution;
mod failover;
mod rings;

use std::collections::{BTreeMap, BTreeSet};

use super::{AreaState, Input, Shares, shares};
use crate::desired::{Area, BackendId, Endpoint, Locality, Policy, Protocol};

/// The endpoints of one service, and what is known about them.
#[derive(Clone, Debug, Default)]
struct World {
    endpoints: Vec<Endpoint>,
    policy: Policy,
    failing: BTreeSet<BackendId>,
    ejected: BTreeSet<BackendId>,
    ramps: BTreeMap<String, u32>,
}

/// In which way endpoints are not healthy.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ill {
    Unready,
    FailingProbes,
    Ejected,
}

impl World {
    fn new(locality: Locality) -> Self {
        Self { policy: Policy { locality, ..Policy::default() }, ..Self::default() }
    }

    /// With so many more endpoints in a place, `region` or `region/zone`; the cluster has the region's name.
    fn with(mut self, place: &str, count: usize) -> Self {
        let (region, zone) = place.split_once('/').unwrap_or((place, ""));
        for _ in 0..count {
            let number = self.endpoints.len() as u32;
            let address = std::net::Ipv4Addr::from(0x0a00_0001 + number * 7).into();
            self.endpoints.push(Endpoint {
                backend: BackendId { protocol: Protocol::Tcp, address, port: 8080 },
                cluster: region.to_owned(),
                region: region.to_owned(),
                zone: zone.to_owned(),
                pod: String::new(),
                ready: true,
                serving: true,
                terminating: false,
                probe_port: Some(8080),
            });
        }
        self
    }

    /// Of the endpoints of a region exactly the first so many are ill in a way.
    fn ill(&mut self, region: &str, count: usize, ill: Ill) {
        let there = self.endpoints.iter_mut().filter(|endpoint| endpoint.region == region);
        for (i, endpoint) in there.enumerate() {
            let mark = |set: &mut BTreeSet<_>, wanted: bool| match i < count && wanted {
                true => set.insert(endpoint.backend),
                false => set.remove(&endpoint.backend),
            };
            mark(&mut self.failing, ill == Ill::FailingProbes);
            mark(&mut self.ejected, ill == Ill::Ejected);
            endpoint.ready = i >= count || ill != Ill::Unready;
        }
    }

    /// As [`Self::ill`], with failing probes.
    fn fail(&mut self, region: &str, count: usize) {
        self.ill(region, count, Ill::FailingProbes);
    }

    fn healthy(&self) -> BTreeSet<BackendId> {
        let all = self.endpoints.iter().map(|endpoint| endpoint.backend);
        all.filter(|backend| !self.failing.contains(backend)).collect()
    }

    fn input<'a>(&'a self, healthy: &'a BTreeSet<BackendId>) -> Input<'a> {
        Input {
            endpoints: &self.endpoints,
            policy: &self.policy,
            healthy,
            ejected: &self.ejected,
            ramps: &self.ramps,
        }
    }

    fn shares(&self) -> Shares {
        shares(&self.input(&self.healthy()))
    }

    /// The percentages that the ring's weights come to, by region.
    fn weighed(&self, shares: &Shares) -> BTreeMap<&str, f64> {
        let total: u64 = shares.weights.values().copied().map(u64::from).sum();
        let mut regions = BTreeMap::new();
        for endpoint in &self.endpoints {
            let weight = shares.weights.get(&endpoint.backend).copied().unwrap_or_default();
            *regions.entry(&*endpoint.region).or_default() += f64::from(weight) * 100.0 / total as f64;
        }
        regions
    }
}

fn area(place: &str) -> Area {
    let (region, zone) = place.split_once('/').unwrap_or((place, ""));
    Area { region: region.to_owned(), zone: zone.to_owned() }
}

/// A failover list with one area a level.
fn failover(places: &[&str]) -> Locality {
    Locality::Failover { levels: places.iter().map(|place| vec![area(place)]).collect(), strict: false }
}

fn distribute(shares: &[(&str, u32)]) -> Locality {
    Locality::Distribute { shares: shares.iter().map(|(place, percent)| (area(place), *percent)).collect() }
}

fn percents(shares: &Shares) -> Vec<u32> {
    shares.areas.iter().map(|area| area.percent).collect()
}

fn states(shares: &Shares) -> Vec<AreaState> {
    shares.areas.iter().map(|area| area.state).collect()
}

fn places(shares: &Shares) -> Vec<String> {
    shares.areas.iter().map(|area| area.place.to_string()).collect()
}

#[test]
fn without_a_policy_every_endpoint_weighs_the_same() {
    let world = World::new(Locality::Even).with("hangzhou/a", 1).with("hangzhou/b", 2).with("shanghai", 1);
    let shares = world.shares();
    assert!(shares.weights.values().all(|weight| *weight == 1));
    assert_eq!(shares.weights.len(), 4);
    assert_eq!(places(&shares), ["hangzhou/a", "hangzhou/b", "shanghai"]);
    assert_eq!(percents(&shares), [25, 50, 25]);
    assert_eq!(states(&shares), [AreaState::Active; 3]);
    assert_eq!(shares.degraded, None);
}

#[test]
fn percentages_of_three_equal_places_sum_to_a_hundred() {
    let world = World::new(Locality::Even).with("a", 1).with("b", 1).with("c", 1);
    assert_eq!(percents(&world.shares()).iter().sum::<u32>(), 100);
}

#[test]
fn without_a_policy_a_failed_probe_changes_no_weight() {
    let mut world = World::new(Locality::Even).with("hangzhou", 4).with("shanghai", 4);
    let before = world.shares();
    world.fail("hangzhou", 3);
    let after = world.shares();
    assert_eq!(after.weights, before.weights);
    // Whoever is picked in vain is replaced by any other, so what arrives follows the healthy ones.
    assert_eq!(percents(&after), [20, 80]);
}

#[test]
fn unready_and_terminating_endpoints_have_no_weight_at_all() {
    let mut world = World::new(Locality::Even).with("hangzhou", 2).with("shanghai", 2);
    world.endpoints[2].ready = false;
    world.endpoints[3].terminating = true;
    let shares = world.shares();
    let weighing: Vec<_> = shares.weights.keys().copied().collect();
    assert_eq!(weighing, [world.endpoints[0].backend, world.endpoints[1].backend]);
    assert_eq!(percents(&shares), [100, 0]);
    let counts: Vec<_> = shares.areas.iter().map(|area| (area.endpoints, area.healthy)).collect();
    assert_eq!(counts, [(2, 2), (1, 0)], "the terminating one is not counted");
}

#[test]
fn a_service_without_endpoints_has_no_shares() {
    assert_eq!(World::new(Locality::Even).shares(), Shares::default());
}

#[test]
fn where_nothing_is_healthy_everything_serves_and_it_is_said() {
    for locality in [Locality::Even, failover(&["hangzhou", "shanghai"]), distribute(&[("hangzhou", 100)])] {
        let mut world = World::new(locality).with("hangzhou", 1).with("shanghai", 2).with("beijing", 2);
        world.ill("hangzhou", 1, Ill::Ejected);
        world.fail("shanghai", 2);
        world.ill("beijing", 2, Ill::Unready);
        let shares = world.shares();
        let weights: Vec<_> = shares.weights.iter().map(|(backend, weight)| (*backend, *weight)).collect();
        let expected: Vec<_> = world.endpoints[..3].iter().map(|endpoint| (endpoint.backend, 1)).collect();
        assert_eq!(weights, expected, "all that are ready, alike: {:?}", world.policy.locality);
        let of = |region: &str| shares.areas.iter().find(|area| area.place.region == region).unwrap();
        assert_eq!((of("hangzhou").percent, of("shanghai").percent, of("beijing").percent), (33, 67, 0));
        assert_eq!((of("hangzhou").state, of("hangzhou").ejected), (AreaState::Failed, 1));
        let text = shares.degraded.expect("degraded");
        assert!(text.contains("none of the 3 ready endpoints is healthy (1 are ejected)"), "{text}");
    }
}

#[test]
fn a_service_without_ready_endpoints_does_not_fail_open() {
    let mut world = World::new(failover(&["hangzhou"])).with("hangzhou", 2);
    world.ill("hangzhou", 2, Ill::Unready);
    let shares = world.shares();
    assert!(shares.weights.is_empty());
    assert_eq!((percents(&shares), shares.degraded), (vec![0], None));
}
