//! Balance, disruption and determinism of rings.

use std::net::Ipv4Addr;

use lb_common::abi::RING_SIZES;
use lb_common::hash::finish;
use proptest::prelude::*;

use super::{Entry, build, fallback_class, quotas, ring_class};
use crate::desired::{BackendId, Protocol};

/// The `number`-th backend of a random world.
fn backend(seed: u64, number: usize) -> BackendId {
    let bits = finish(seed ^ (number as u64) << 40 | 1);
    BackendId {
        protocol: Protocol::Tcp,
        address: Ipv4Addr::from((10 << 24) | (bits as u32 & 0xff_ffff)).into(),
        port: 8080,
    }
}

/// Sorted entries, weights given by the number of the backend.
fn entries(seed: u64, count: usize, weight: impl Fn(usize) -> u32) -> Vec<Entry> {
    let mut entries: Vec<Entry> = (0..)
        .map(|number| backend(seed, number))
        .scan(std::collections::HashSet::new(), |seen, id| Some((seen.insert(id), id)))
        .filter_map(|(new, id)| new.then_some(id))
        .take(count)
        .enumerate()
        .map(|(number, backend)| Entry { backend, weight: weight(number) })
        .collect();
    entries.sort_by_key(|entry| entry.backend);
    entries
}

fn counts(ring: &[u32], entries: usize) -> Vec<u32> {
    let mut counts = vec![0; entries];
    for slot in ring {
        counts[*slot as usize] += 1;
    }
    counts
}

/// Slots whose backend differs, in percent of the ring.
fn moved_percent(a: (&[Entry], &[u32]), b: (&[Entry], &[u32])) -> f64 {
    let owner = |(entries, ring): (&[Entry], &[u32]), slot: usize| entries[ring[slot] as usize].backend;
    let moved = (0..a.1.len()).filter(|slot| owner(a, *slot) != owner(b, *slot)).count();
    moved as f64 * 100.0 / a.1.len() as f64
}

/// By how many percent of the ring the shares themselves differ: what must move.
fn ideal_percent(a: &[Entry], b: &[Entry], slots: u32) -> f64 {
    let share = |entries: &[Entry]| {
        let weights: Vec<u32> = entries.iter().map(|entry| entry.weight).collect();
        entries.iter().map(|entry| entry.backend).zip(quotas(slots, &weights)).collect::<Vec<_>>()
    };
    let (a, b) = (share(a), share(b));
    let gained: u32 = b
        .iter()
        .map(|(backend, quota)| {
            let before = a.iter().find(|(other, _)| other == backend).map_or(0, |(_, quota)| *quota);
            quota.saturating_sub(before)
        })
        .sum();
    f64::from(gained) * 100.0 / f64::from(slots)
}

/// A ring's size and a number of backends that it is used for, with at least 100 slots each.
fn size_and_count() -> impl Strategy<Value = (u8, usize)> {
    (6u8..=9).prop_flat_map(|class| {
        let most = RING_SIZES[usize::from(class)] as usize / 100;
        (Just(class), 2..=most)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equal_weights_differ_by_one_slot_at_most(seed: u64, class in 0u8..7, count in 1usize..200) {
        let entries = entries(seed, count, |_| 7);
        let counts = counts(&build(class, &entries).unwrap(), count);
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        prop_assert!(most - least <= 1, "{least} to {most}");
    }

    #[test]
    fn weighted_shares_are_exact_within_one_slot(
        seed: u64, weights in prop::collection::vec(0u32..1000, 2..60),
    ) {
        prop_assume!(weights.iter().any(|weight| *weight > 0));
        let entries = entries(seed, weights.len(), |number| weights[number]);
        let class = ring_class(weights.len()).unwrap();
        let total: u64 = weights.iter().copied().map(u64::from).sum();
        let counts = counts(&build(class, &entries).unwrap(), entries.len());
        for (entry, count) in entries.iter().zip(counts) {
            let exact = f64::from(entry.weight) * f64::from(RING_SIZES[usize::from(class)]) / total as f64;
            prop_assert!((f64::from(count) - exact).abs() < 1.0, "{count} instead of {exact}");
            prop_assert!(entry.weight > 0 || count == 0);
        }
    }

    /// From 16381 slots on, at 100 slots a backend and more.
    #[test]
    fn removing_or_adding_a_backend_moves_at_most_one_percent_more_than_it_must(
        seed: u64, (class, count) in size_and_count(), leaver: prop::sample::Index,
    ) {
        let all = entries(seed, count, |_| 1);
        let mut rest = all.clone();
        rest.remove(leaver.index(count));
        let (before, after) = (build(class, &all).unwrap(), build(class, &rest).unwrap());
        let moved = moved_percent((&all, &before), (&rest, &after));
        let slots = RING_SIZES[usize::from(class)];
        let ideal = ideal_percent(&all, &rest, slots).max(ideal_percent(&rest, &all, slots));
        prop_assert!(moved <= ideal + 1.0, "{moved}% instead of {ideal}%");
    }

    #[test]
    fn moving_weight_between_regions_moves_at_most_one_percent_more_than_it_must(
        seed: u64, count in 2usize..=163, first: prop::sample::Index,
        percents in prop::sample::select(
            &[(90u32, 80u32), (80, 90), (90, 10), (50, 51), (100, 99), (70, 60)][..],
        ),
    ) {
        let first = 1 + first.index(count - 1);
        let weight = |percent: u32| move |number: usize| {
            if number < first {
                percent * 1_000_000 / first as u32
            } else {
                (100 - percent) * 1_000_000 / (count - first) as u32
            }
        };
        let (a, b) = (entries(seed, count, weight(percents.0)), entries(seed, count, weight(percents.1)));
        let class = ring_class(count).unwrap();
        let moved = moved_percent((&a, &build(class, &a).unwrap()), (&b, &build(class, &b).unwrap()));
        let ideal = ideal_percent(&a, &b, RING_SIZES[usize::from(class)]);
        prop_assert!(moved <= ideal + 1.0, "{moved}% instead of {ideal}%");
    }

    #[test]
    fn only_ratios_of_weights_matter(seed: u64, weights in prop::collection::vec(1u32..100, 2..20)) {
        let ring = |factor: u32| build(3, &entries(seed, weights.len(), |number| weights[number] * factor));
        prop_assert_eq!(ring(1), ring(30_000));
    }
}

#[test]
fn ninety_to_ten_is_ninety_to_ten() {
    // Three pods in one region, two in the other.
    let entries = entries(1, 5, |number| if number < 3 { 30 } else { 5 });
    let ring = build(ring_class(5).unwrap(), &entries).unwrap();
    let near = ring.iter().filter(|slot| entries[**slot as usize].weight == 30).count();
    let percent = near as f64 * 100.0 / ring.len() as f64;
    assert!((percent - 90.0).abs() < 0.1, "{percent}");
}

#[test]
fn every_gateway_builds_the_same_ring() {
    let ring = build(6, &entries(7, 12, |number| 1 + number as u32 % 3)).unwrap();
    let digest = ring.iter().fold(0u64, |digest, slot| finish(digest ^ u64::from(*slot)).wrapping_add(1));
    assert_eq!(
        digest, 407_171_540_414_869_607,
        "a change of this value means that gateways of two versions disagree"
    );
}

#[test]
fn a_single_backend_gets_every_slot() {
    let ring = build(0, &entries(1, 1, |_| 5)).unwrap();
    assert_eq!(ring, vec![0; 251]);
}

#[test]
fn no_ring_without_weight() {
    assert_eq!(build(0, &[]), None);
    assert_eq!(build(0, &entries(1, 3, |_| 0)), None);
}

#[test]
fn sizes_leave_a_hundred_slots_a_backend() {
    for count in [2, 32, 33, 163, 164, 655, 656, 10_485] {
        let slots = RING_SIZES[usize::from(ring_class(count).unwrap())];
        assert!(slots as usize >= 100 * count && slots >= 16_381, "{count}: {slots}");
        assert!(RING_SIZES[usize::from(fallback_class(count).unwrap())] as usize >= 2 * count);
    }
    assert_eq!(
        (ring_class(0), ring_class(1), fallback_class(0), fallback_class(125)),
        (Some(0), Some(0), Some(0), Some(0))
    );
    assert_eq!((ring_class(10_486), fallback_class(10_486)), (None, None));
}
