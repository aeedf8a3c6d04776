//! Levels in order of preference.

use proptest::prelude::*;

use super::super::AreaState::{Active, Empty, Excluded, Failed, Impaired, Standby};
use super::super::levels;
use super::{Ill, World, area, failover, percents, places, states};
use crate::desired::Locality;

fn pair(hangzhou: usize, shanghai: usize) -> World {
    World::new(failover(&["hangzhou", "shanghai"])).with("hangzhou", hangzhou).with("shanghai", shanghai)
}

#[test]
fn load_spills_over_as_in_envoys_table() {
    for ill in [Ill::Unready, Ill::FailingProbes, Ill::Ejected] {
        for (healthy, expected) in
            [(100, [100, 0]), (72, [100, 0]), (71, [99, 1]), (50, [70, 30]), (25, [35, 65]), (0, [0, 100])]
        {
            let mut world = pair(100, 100);
            world.ill("hangzhou", 100 - healthy, ill);
            let shares = world.shares();
            assert_eq!(percents(&shares), expected, "{healthy}% healthy, others {ill:?}");
            let weighed = world.weighed(&shares);
            assert!((weighed["hangzhou"] - f64::from(expected[0])).abs() < 1e-9, "{weighed:?}");
        }
    }
}

#[test]
fn three_levels_fill_one_after_the_other() {
    for (health, expected) in [
        ([100, 100, 100], [100, 0, 0]),
        ([70, 100, 100], [70, 30, 0]),
        ([70, 14, 100], [70, 14, 16]),
        ([0, 0, 100], [0, 0, 100]),
        // Together below 100: scaled up, and what rounding leaves goes to the first that has any.
        ([35, 35, 28], [37, 35, 28]),
        ([0, 35, 35], [0, 50, 50]),
        ([70, 0, 0], [100, 0, 0]),
        ([0, 33, 33], [0, 50, 50]),
        ([1, 1, 1], [34, 33, 33]),
    ] {
        assert_eq!(levels::loads(&health), Some(expected.to_vec()), "{health:?}");
    }
    assert_eq!(levels::loads(&[0, 0]), None);
    assert_eq!(levels::loads(&[]), None);
}

#[test]
fn the_overprovisioning_factor_says_when_load_spills() {
    for (percent, expected) in [(100, [50, 50]), (140, [70, 30]), (200, [100, 0]), (1000, [100, 0])] {
        let mut world = pair(4, 4);
        world.policy.overprovisioning_percent = percent;
        world.fail("hangzhou", 2);
        assert_eq!(percents(&world.shares()), expected, "{percent}%");
    }
}

#[test]
fn a_region_scaled_to_zero_fails_over() {
    let shares = pair(0, 3).shares();
    assert_eq!((percents(&shares), states(&shares)), (vec![0, 100], vec![Empty, Active]));
    assert!(shares.weights.values().all(|weight| *weight == 1));
}

#[test]
fn a_rollout_does_not_spill_over() {
    let mut world = pair(8, 4);
    // Half of the pods are old and on their way out.
    world.endpoints[..4].iter_mut().for_each(|endpoint| endpoint.terminating = true);
    assert_eq!(percents(&world.shares()), [100, 0]);
    // Pods that are not ready yet count.
    world.endpoints[..4].iter_mut().for_each(|endpoint| {
        endpoint.terminating = false;
        endpoint.ready = false;
    });
    assert_eq!(percents(&world.shares()), [70, 30]);
}

#[test]
fn states_tell_what_each_level_does() {
    let mut world = pair(4, 4).with("tokyo", 1);
    assert_eq!(states(&world.shares()), [Active, Standby, Standby]);
    world.fail("hangzhou", 2);
    assert_eq!(states(&world.shares()), [Impaired, Active, Standby]);
    world.fail("hangzhou", 4);
    assert_eq!(states(&world.shares()), [Failed, Active, Standby]);
    world.fail("shanghai", 4);
    let shares = world.shares();
    assert_eq!((states(&shares), percents(&shares)), (vec![Failed, Failed, Active], vec![0, 0, 100]));
    assert_eq!(places(&shares), ["hangzhou", "shanghai", "tokyo"]);
    assert_eq!(shares.areas.iter().map(|area| area.level).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_failed_probe_does_not_change_the_ring_of_the_only_level_that_serves() {
    let mut world = pair(4, 4);
    let weights = world.shares().weights;
    for failing in 1..=4 {
        world.fail("shanghai", failing);
        assert_eq!(world.shares().weights, weights, "standby, {failing} failing");
    }
    world.fail("shanghai", 0);
    world.fail("hangzhou", 1);
    assert_eq!(world.shares().weights, weights);
    // Nowhere to spill over to.
    world.ill("shanghai", 4, Ill::Unready);
    let weights = world.shares().weights;
    world.fail("hangzhou", 3);
    assert_eq!(world.shares().weights, weights);
}

#[test]
fn a_failed_probe_does_not_change_the_ring_of_a_level_that_still_is_fully_healthy() {
    let mut world = pair(4, 4);
    world.fail("hangzhou", 2);
    let weights = world.shares().weights;
    world.fail("shanghai", 1);
    assert_eq!(world.shares().weights, weights);
}

#[test]
fn an_endpoint_is_of_the_first_level_that_has_it() {
    let levels =
        vec![vec![area("hangzhou/b")], vec![area("hangzhou"), area("shanghai/a")], vec![area("hangzhou/c")]];
    let locality = Locality::Failover { levels, strict: false };
    let mut world = World::new(locality)
        .with("hangzhou/a", 1)
        .with("hangzhou/b", 2)
        .with("hangzhou/c", 2)
        .with("shanghai/a", 1)
        .with("shanghai/b", 1);
    let shares = world.shares();
    let rows: Vec<_> = shares.areas.iter().map(|area| (area.place.to_string(), area.endpoints)).collect();
    let expected =
        [("hangzhou/b", 2), ("hangzhou", 3), ("shanghai/a", 1), ("hangzhou/c", 0), ("shanghai/b", 1)];
    assert_eq!(rows, expected.map(|(place, count)| (place.to_owned(), count)));
    // The areas of a level share it by their healthy endpoints.
    world.endpoints.retain(|endpoint| endpoint.zone != "b" || endpoint.region != "hangzhou");
    assert_eq!(percents(&world.shares()), [0, 75, 25, 0, 0]);
}

#[test]
fn a_strict_list_leaves_everything_else_out() {
    let levels = vec![vec![area("hangzhou/a")]];
    let mut world =
        World::new(Locality::Failover { levels, strict: true }).with("hangzhou/a", 2).with("hangzhou/b", 2);
    let shares = world.shares();
    assert_eq!((percents(&shares), states(&shares)), (vec![100, 0], vec![Active, Excluded]));
    let weighing: Vec<_> = shares.weights.keys().copied().collect();
    assert_eq!(weighing, [world.endpoints[0].backend, world.endpoints[1].backend]);
    // Nothing healthy: it fails open within the list.
    world.fail("hangzhou", 2);
    assert_eq!(percents(&world.shares()), [100, 0]);
    // Nothing ready: it refuses, and says so.
    world.ill("hangzhou", 2, Ill::Unready);
    let shares = world.shares();
    assert!(shares.weights.is_empty());
    let text = shares.degraded.expect("degraded");
    assert!(text.contains("2 endpoints elsewhere are ready"), "{text}");
}

#[test]
fn a_few_healthy_among_hundreds_are_better_than_none() {
    let mut world = pair(200, 200);
    world.fail("hangzhou", 199);
    world.fail("shanghai", 200);
    let shares = world.shares();
    assert_eq!((percents(&shares), shares.degraded), (vec![100, 0], None));
}

#[test]
fn a_cluster_that_comes_back_slowly_takes_part_with_its_ramp() {
    let mut world = pair(4, 4);
    for (ramp, expected) in [(10, [14, 86]), (50, [70, 30]), (72, [100, 0]), (100, [100, 0])] {
        world.ramps.insert("hangzhou".to_owned(), ramp);
        let shares = world.shares();
        assert_eq!(percents(&shares), expected, "{ramp}%");
        let weighed = world.weighed(&shares);
        assert!((weighed["hangzhou"] - f64::from(expected[0])).abs() < 1e-9, "{weighed:?}");
    }
    // Within a level its endpoints weigh so much less than the others.
    let mut world = World::new(Locality::Even).with("hangzhou", 2).with("shanghai", 2);
    world.ramps.insert("hangzhou".to_owned(), 25);
    let shares = world.shares();
    assert_eq!(percents(&shares), [20, 80]);
    assert_eq!(shares.weights.values().copied().collect::<Vec<_>>(), [1, 1, 4, 4]);
}

proptest! {
    #[test]
    fn loads_sum_to_a_hundred_and_no_level_is_passed_over(
        health in prop::collection::vec(prop_oneof![Just(0u32), 0..=100u32, Just(100)], 1..6),
    ) {
        let Some(loads) = levels::loads(&health) else {
            prop_assert!(health.iter().all(|health| *health == 0));
            return Ok(());
        };
        prop_assert_eq!(loads.iter().sum::<u32>(), 100);
        let enough = health.iter().sum::<u32>() >= 100;
        for level in 0..health.len() {
            prop_assert!(health[level] > 0 || loads[level] == 0);
            if enough {
                prop_assert!(loads[level] <= health[level]);
                let later: u32 = loads[level + 1..].iter().sum();
                prop_assert!(later == 0 || loads[level] == health[level], "{health:?} {loads:?}");
            }
        }
    }

    #[test]
    fn health_is_the_whole_part_of_overprovisioning_times_the_healthy_share(
        overprovisioning in 100u32..=1000, endpoints in 1u32..2000, healthy: prop::sample::Index,
    ) {
        let healthy = healthy.index(endpoints as usize + 1) as u32;
        let exact = f64::from(overprovisioning) * f64::from(healthy) / f64::from(endpoints);
        let health = levels::health(overprovisioning, healthy * 100, endpoints);
        prop_assert!(f64::from(health) <= exact + 1e-9);
        prop_assert!(health == 100 || f64::from(health) > exact - 1.0);
    }
}
