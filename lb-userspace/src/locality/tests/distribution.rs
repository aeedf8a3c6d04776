//! Percentages for areas.

use proptest::prelude::*;

use super::super::AreaState::{Active, Failed, Impaired, Standby};
use super::super::distribute::{Part, percents as part_percents};
use super::{Ill, World, distribute, percents, states};

fn three() -> World {
    let locality = distribute(&[("hangzhou", 60), ("shanghai", 30), ("beijing", 10)]);
    World::new(locality).with("hangzhou", 3).with("shanghai", 4).with("beijing", 2).with("tokyo", 5)
}

#[test]
fn ninety_to_ten_is_exact_over_three_and_four_endpoints() {
    let world =
        World::new(distribute(&[("hangzhou", 90), ("shanghai", 10)])).with("hangzhou", 3).with("shanghai", 4);
    let shares = world.shares();
    assert_eq!((percents(&shares), states(&shares)), (vec![90, 10], vec![Active, Active]));
    assert_eq!(shares.weights.values().copied().collect::<Vec<_>>(), [12, 12, 12, 1, 1, 1, 1]);
}

#[test]
fn an_area_that_can_not_serve_leaves_its_share_to_the_listed_others_in_proportion() {
    for ill in [Ill::Unready, Ill::FailingProbes, Ill::Ejected] {
        let mut world = three();
        world.ill("hangzhou", 3, ill);
        let shares = world.shares();
        assert_eq!(percents(&shares), [0, 75, 25, 0], "{ill:?}");
        assert_eq!(states(&shares), [Failed, Active, Active, Standby]);
        world.ill("shanghai", 4, ill);
        assert_eq!(percents(&world.shares()), [0, 0, 100, 0]);
    }
}

#[test]
fn what_is_not_listed_serves_only_when_nothing_listed_can() {
    let mut world = three();
    for (region, count) in [("hangzhou", 3), ("shanghai", 4), ("beijing", 2)] {
        assert_eq!(percents(&world.shares())[3], 0);
        world.fail(region, count);
    }
    let shares = world.shares();
    assert_eq!((percents(&shares), &shares.degraded), (vec![0, 0, 0, 100], &None));
    assert_eq!(states(&shares), [Failed, Failed, Failed, Active]);
}

#[test]
fn an_area_keeps_its_share_while_some_of_it_is_healthy() {
    for ill in [Ill::FailingProbes, Ill::Ejected, Ill::Unready] {
        let mut world = three();
        world.ill("shanghai", 2, ill);
        let shares = world.shares();
        assert_eq!((percents(&shares), states(&shares)[1]), (vec![60, 30, 10, 0], Impaired));
        let weighed = world.weighed(&shares);
        assert!((weighed["shanghai"] - 30.0).abs() < 1e-9, "{weighed:?}");
    }
}

#[test]
fn an_area_with_nothing_to_give_is_used_like_one_that_is_not_listed() {
    let mut world = World::new(distribute(&[("hangzhou", 100), ("shanghai", 0)]))
        .with("hangzhou", 1)
        .with("shanghai", 3)
        .with("tokyo", 1);
    assert_eq!(percents(&world.shares()), [100, 0, 0]);
    world.fail("hangzhou", 1);
    assert_eq!(percents(&world.shares()), [0, 75, 25]);
}

#[test]
fn a_cluster_that_comes_back_slowly_leaves_most_of_its_share_to_the_others() {
    let mut world = three();
    world.ramps.insert("hangzhou".to_owned(), 50);
    assert_eq!(percents(&world.shares()), [43, 43, 14, 0]);
}

proptest! {
    #[test]
    fn percentages_sum_to_a_hundred_and_follow_what_is_wanted(
        parts in prop::collection::vec((0u32..=100, any::<bool>(), 1u32..50), 1..8),
    ) {
        let parts: Vec<Part> = parts
            .into_iter()
            .map(|(wanted, serves, healthy)| Part {
                wanted,
                capacity: if serves { 100 } else { 0 },
                healthy: if serves { healthy } else { 0 },
            })
            .collect();
        let Some(percents) = part_percents(&parts) else {
            prop_assert!(parts.iter().all(|part| part.healthy == 0));
            return Ok(());
        };
        prop_assert_eq!(percents.iter().sum::<u32>(), 100);
        let wanted: u32 = parts.iter().filter(|part| part.capacity > 0).map(|part| part.wanted).sum();
        for (part, percent) in parts.iter().zip(&percents) {
            prop_assert!(part.capacity > 0 || *percent == 0);
            if wanted > 0 && part.capacity > 0 {
                let exact = f64::from(part.wanted) * 100.0 / f64::from(wanted);
                prop_assert!((f64::from(*percent) - exact).abs() < 1.0, "{percent} instead of {exact}");
            }
        }
    }
}
