//! What shares do to rings, and what arrives.

use std::collections::BTreeMap;

use lb_common::abi::RING_SIZES;
use lb_common::hash::{candidate, finish};
use proptest::prelude::*;

use super::super::Shares;
use super::{Ill, World, distribute, failover, percents};
use crate::desired::{BackendId, Endpoint, Locality};
use crate::maglev::{Entry, build, quotas, ring_class};

/// A ring as a list of owners, made as a plan makes it.
fn ring(shares: &Shares) -> Vec<BackendId> {
    let entries = entries(shares);
    let ring = build(ring_class(entries.len()).unwrap(), &entries).unwrap();
    ring.into_iter().map(|slot| entries[slot as usize].backend).collect()
}

fn entries(shares: &Shares) -> Vec<Entry> {
    shares.weights.iter().map(|(backend, weight)| Entry { backend: *backend, weight: *weight }).collect()
}

/// How many slots each backend has by its weight.
fn quota(shares: &Shares) -> BTreeMap<BackendId, u32> {
    let entries = entries(shares);
    let slots = RING_SIZES[usize::from(ring_class(entries.len()).unwrap())];
    let weights: Vec<u32> = entries.iter().map(|entry| entry.weight).collect();
    entries.iter().map(|entry| entry.backend).zip(quotas(slots, &weights)).collect()
}

/// The percentage of a ring that a region owns.
fn owned(world: &World, ring: &[BackendId], region: &str) -> f64 {
    let in_region = |backend: &&BackendId| {
        world.endpoints.iter().any(|endpoint| endpoint.backend == **backend && endpoint.region == region)
    };
    let distinct: BTreeMap<BackendId, usize> = ring.iter().fold(BTreeMap::new(), |mut counts, backend| {
        *counts.entry(*backend).or_default() += 1;
        counts
    });
    let slots: usize =
        distinct.iter().filter(|(backend, _)| in_region(backend)).map(|(_, slots)| slots).sum();
    slots as f64 * 100.0 / ring.len() as f64
}

/// The percentage of new flows that reaches a region: each walks on, as in the packet program, until it finds a
/// healthy backend, and takes any if that takes too long.
fn arriving(world: &World, ring: &[BackendId], region: &str) -> f64 {
    let flows = 20_000u64;
    let healthy: BTreeMap<BackendId, &str> = world
        .endpoints
        .iter()
        .filter(|each| each.ready && !world.failing.contains(&each.backend))
        .filter(|each| !world.ejected.contains(&each.backend))
        .map(|each| (each.backend, &*each.region))
        .collect();
    let fallback: Vec<&str> = healthy.values().copied().collect();
    let arrive = |flow: &u64| {
        let hash = |attempt| u64::from(candidate(finish(flow + 1), attempt));
        let pick = |attempt, slots: usize| ((hash(attempt) * slots as u64) >> 32) as usize;
        let found = (0..8).find_map(|attempt| healthy.get(&ring[pick(attempt, ring.len())]));
        *found.unwrap_or(&fallback[pick(8, fallback.len())]) == region
    };
    (0..flows).filter(arrive).count() as f64 * 100.0 / flows as f64
}

/// How many percent of the slots changed hands, and how many had to.
fn moved(before: &Shares, after: &Shares) -> (f64, f64) {
    let (old, new) = (ring(before), ring(after));
    assert_eq!(old.len(), new.len(), "a change of health or weights never changes the size");
    let moved = old.iter().zip(&new).filter(|(old, new)| old != new).count();
    let (had, has) = (quota(before), quota(after));
    let gained: u32 = has.iter().map(|(backend, slots)| slots.saturating_sub(had[backend])).sum();
    let percent = |slots: f64| slots * 100.0 / old.len() as f64;
    (percent(moved as f64), percent(f64::from(gained)))
}

/// How many percent of the slots were taken from backends whose share did not shrink.
fn taken_without_need(before: &Shares, after: &Shares) -> f64 {
    let (old, new) = (ring(before), ring(after));
    let (had, has) = (quota(before), quota(after));
    let taken = old.iter().zip(&new).filter(|(old, new)| old != new && has[*old] >= had[*old]).count();
    taken as f64 * 100.0 / old.len() as f64
}

#[test]
fn s1_distribution_is_ten_percent_within_a_tenth_of_a_point() {
    for (hangzhou, shanghai) in [(3, 3), (3, 4), (1, 7), (40, 23)] {
        let world = World::new(distribute(&[("hangzhou", 90), ("shanghai", 10)]))
            .with("hangzhou", hangzhou)
            .with("shanghai", shanghai);
        let ring = ring(&world.shares());
        let owned = owned(&world, &ring, "shanghai");
        assert!((owned - 10.0).abs() < 0.1, "{hangzhou}, {shanghai}: {owned}");
        let arriving = arriving(&world, &ring, "shanghai");
        assert!((arriving - 10.0).abs() < 1.5, "{hangzhou}, {shanghai}: {arriving}");
    }
}

#[test]
fn s1_spillover_is_seventy_to_thirty_in_the_ring_and_at_the_pods() {
    for ill in [Ill::Unready, Ill::FailingProbes, Ill::Ejected] {
        let mut world =
            World::new(failover(&["hangzhou", "shanghai"])).with("hangzhou", 4).with("shanghai", 3);
        world.ill("hangzhou", 2, ill);
        let ring = ring(&world.shares());
        let owned = owned(&world, &ring, "hangzhou");
        assert!((owned - 70.0).abs() < 0.1, "{ill:?}: {owned}");
        let arriving = arriving(&world, &ring, "hangzhou");
        assert!((arriving - 70.0).abs() < 2.0, "{ill:?}: {arriving}");
    }
}

#[test]
fn what_is_said_to_arrive_is_what_arrives() {
    for locality in [distribute(&[("hangzhou", 90), ("shanghai", 10)]), failover(&["hangzhou", "shanghai"])] {
        for failing in [(0, 2), (1, 1), (2, 1), (2, 3)] {
            let mut world = World::new(locality.clone()).with("hangzhou", 4).with("shanghai", 5);
            world.fail("hangzhou", failing.0);
            world.fail("shanghai", failing.1);
            let shares = world.shares();
            let arriving = arriving(&world, &ring(&shares), "hangzhou");
            let said = f64::from(percents(&shares)[0]);
            assert!((arriving - said).abs() < 2.0, "{failing:?} of {locality:?}: {arriving}, said {said}");
        }
    }
}

#[test]
fn weights_that_would_not_fit_are_rounded() {
    const AREAS: [(&str, u32, usize); 6] =
        [("a", 23, 997), ("b", 19, 991), ("c", 17, 983), ("d", 13, 977), ("e", 11, 971), ("f", 10, 967)];
    // The common multiple of four is beyond 32 bits, that of six beyond 64.
    for last in [4, 6] {
        let wanted: u32 = AREAS[..last].iter().map(|(_, percent, _)| percent).sum();
        let areas: Vec<_> = AREAS[..last].iter().copied().chain([("g", 100 - wanted, 3)]).collect();
        let shares: Vec<_> = areas.iter().map(|(name, percent, _)| (*name, *percent)).collect();
        let world = areas
            .iter()
            .fold(World::new(distribute(&shares)), |world, (name, _, count)| world.with(name, *count));
        let shares = world.shares();
        let weighed = world.weighed(&shares);
        for (name, percent, _) in areas {
            assert!((weighed[name] - f64::from(percent)).abs() < 0.001, "{weighed:?}");
        }
        assert!(shares.weights.values().all(|weight| *weight > 0));
    }
}

/// Three regions, in a distribution or in a failover list.
fn three_regions(distributed: bool, counts: (usize, usize, usize)) -> World {
    let locality = match distributed {
        true => distribute(&[("hangzhou", 50), ("shanghai", 30), ("beijing", 20)]),
        false => failover(&["hangzhou", "shanghai", "beijing"]),
    };
    World::new(locality).with("hangzhou", counts.0).with("shanghai", counts.1).with("beijing", counts.2)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn from_ninety_to_eighty_moves_at_most_one_percent_more_than_it_must(
        hangzhou in 1usize..40, shanghai in 1usize..40,
        percents in prop::sample::select(&[(90, 80), (80, 90), (90, 10), (50, 51), (100, 99), (70, 60)][..]),
    ) {
        let with = |percent: u32| {
            World::new(distribute(&[("hangzhou", percent), ("shanghai", 100 - percent)]))
                .with("hangzhou", hangzhou)
                .with("shanghai", shanghai)
                .shares()
        };
        let (moved, ideal) = moved(&with(percents.0), &with(percents.1));
        // Nearer to halves the ring's chance plays a little more.
        let more = if matches!(percents, (90, 80) | (80, 90)) { 1.0 } else { 1.5 };
        prop_assert!(moved <= ideal + more, "{moved}% instead of {ideal}%");
    }

    #[test]
    fn a_region_that_dies_or_comes_back_leaves_the_slots_of_others_where_they_are(
        counts in (1usize..12, 1usize..12, 1usize..12), comes_back: bool, distributed: bool,
    ) {
        let mut world = three_regions(distributed, counts);
        let alive = world.shares();
        world.fail("hangzhou", counts.0);
        let dead = world.shares();
        let (before, after) = if comes_back { (dead, alive) } else { (alive, dead) };
        let (moved, ideal) = moved(&before, &after);
        prop_assert!(moved <= ideal + 1.0, "{moved}% instead of {ideal}%");
        let taken = taken_without_need(&before, &after);
        prop_assert!(taken <= 1.0, "{taken}%");
    }

    #[test]
    fn an_endpoint_of_a_level_that_dies_or_comes_back_moves_no_more_than_regions_exchange(
        counts in (1usize..12, 1usize..12, 1usize..12), failing in (0usize..=12, 0usize..=12),
    ) {
        let mut world = three_regions(false, counts);
        world.fail("hangzhou", failing.0.min(counts.0));
        let before = world.shares();
        world.fail("hangzhou", failing.1.min(counts.0));
        let after = world.shares();
        let exchanged = (world.weighed(&before)["hangzhou"] - world.weighed(&after)["hangzhou"]).abs();
        let taken = taken_without_need(&before, &after);
        prop_assert!(taken <= exchanged + 1.0, "{taken}% taken, {exchanged}% exchanged");
    }

    #[test]
    fn an_endpoint_of_a_distribution_that_dies_or_comes_back_moves_at_most_twice_its_share(
        counts in (2usize..12, 1usize..12, 1usize..12), comes_back: bool,
    ) {
        let mut world = three_regions(true, counts);
        let alive = world.shares();
        world.fail("hangzhou", 1);
        let dead = world.shares();
        let (before, after) = if comes_back { (dead, alive) } else { (alive, dead) };
        let (moved, ideal) = moved(&before, &after);
        prop_assert!(moved <= 2.0 * ideal + 1.0, "{moved}% instead of {ideal}%");
    }

    #[test]
    fn percentages_are_exact_in_the_weights_and_right_in_the_ring(
        counts in prop::collection::vec(1usize..30, 1..5),
        wanted in prop::collection::vec(1u32..100, 4),
        ill in prop::collection::vec((0usize..30, prop_oneof![5 => Just(0usize), 1 => 1usize..3]), 4),
        kind in 0..3,
    ) {
        const REGIONS: [&str; 4] = ["a", "b", "c", "d"];
        let regions = &REGIONS[..counts.len()];
        let locality = match kind {
            0 => Locality::Even,
            1 => failover(&regions[..regions.len().div_ceil(2)]),
            _ => distribute(
                &regions.iter().copied().zip(quotas(100, &wanted[..regions.len()])).collect::<Vec<_>>(),
            ),
        };
        let even = locality == Locality::Even;
        let mut world = World::new(locality);
        for (region, count) in regions.iter().zip(&counts) {
            world = world.with(region, *count);
        }
        for (region, (count, how)) in regions.iter().zip(ill) {
            world.ill(region, count, [Ill::Unready, Ill::FailingProbes, Ill::Ejected][how]);
        }
        let shares = world.shares();
        let ready = world.endpoints.iter().filter(|endpoint| endpoint.ready).map(|endpoint| endpoint.backend);
        prop_assert_eq!(shares.weights.keys().copied().collect::<Vec<_>>(), ready.collect::<Vec<_>>());
        let sum: u32 = shares.areas.iter().map(|area| area.percent).sum();
        if shares.weights.is_empty() {
            prop_assert_eq!(sum, 0);
            return Ok(());
        }
        prop_assert_eq!(sum, 100);
        let any_healthy = shares.areas.iter().any(|area| area.healthy > 0);
        prop_assert_eq!(shares.degraded.is_some(), !any_healthy);
        if even || !any_healthy {
            prop_assert!(shares.weights.values().all(|weight| *weight == 1));
            return Ok(());
        }
        // By level: those that share one are not told apart by weights, but by what the walk finds.
        let mut levels: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
        let (weighed, ring) = (world.weighed(&shares), ring(&shares));
        for area in &shares.areas {
            let (percent, weight) = levels.entry(area.level).or_default();
            *percent += f64::from(area.percent);
            *weight += weighed[&*area.place.region];
        }
        // What arrives is what the ring says, unless there are unhealthy ones in it.
        let unhealthy = |endpoint: &Endpoint| {
            world.failing.contains(&endpoint.backend) || world.ejected.contains(&endpoint.backend)
        };
        let exact = !world.endpoints.iter().any(unhealthy);
        for (level, (percent, weight)) in levels.into_iter().filter(|_| exact) {
            prop_assert!((percent - weight).abs() < 1e-6, "level {level}: {weight} instead of {percent}");
        }
        for region in regions {
            let owned = owned(&world, &ring, region);
            prop_assert!((owned - weighed[region]).abs() < 0.1, "{region}: {owned}");
        }
    }
}
