//! Who gives out indices and ring regions. What is given back can be taken again only after
//! [`IndexPool::release`] or [`Regions::release`], which belong to a grace period.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Indices of an array. Index 0 is never given out: it means "none".
#[derive(Clone, Debug)]
pub(super) struct IndexPool {
    /// Elements of the array.
    limit: u32,
    /// All indices from here on have never been used.
    fresh: u32,
    /// Used before, oldest first, so that an index rests as long as possible.
    free: VecDeque<u32>,
    /// Given back, not yet free.
    pending: Vec<u32>,
}

impl IndexPool {
    /// A pool for an array of `limit` elements in which `used` are taken.
    pub(super) fn new(limit: u32, used: &BTreeSet<u32>) -> Self {
        let fresh = used.last().map_or(1, |last| last + 1);
        let free = (1..fresh).filter(|index| !used.contains(index)).collect();
        Self { limit, fresh, free, pending: Vec::new() }
    }

    /// Indices that can be in use at once.
    pub(super) fn capacity(&self) -> u32 {
        self.limit.saturating_sub(1)
    }

    /// Takes an index.
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.fresh < self.limit {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        self.free.pop_front()
    }

    /// Undoes the last [`Self::take`].
    pub(super) fn put_back(&mut self, index: u32) {
        self.free.push_front(index);
    }

    /// Gives an index back that packets may have seen.
    pub(super) fn give_back(&mut self, index: u32) {
        self.pending.push(index);
    }

    /// Whether something waits for a grace period.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// A grace period has passed: what was given back is free.
    pub(super) fn release(&mut self) {
        self.free.extend(self.pending.drain(..));
    }
}

/// A piece of the ring table, in elements of two slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Region {
    /// First element.
    pub(super) offset: u32,
    /// Number of elements, at least 1.
    pub(super) length: u32,
}

impl Region {
    /// The region at `offset` that holds so many slots.
    pub(super) fn of(offset: u32, slots: u32) -> Self {
        Self { offset, length: slots.div_ceil(2) }
    }

    fn end(self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }
}

/// The ring table: first fit, free neighbours merged.
#[derive(Clone, Debug)]
pub(super) struct Regions {
    /// Elements of the table.
    limit: u32,
    /// Free regions by offset: disjoint, never adjacent.
    free: BTreeMap<u32, u32>,
    /// Given back, not yet free.
    pending: Vec<Region>,
}

impl Regions {
    /// An empty table of `limit` elements.
    pub(super) fn new(limit: u32) -> Self {
        let mut free = BTreeMap::new();
        if limit > 0 {
            free.insert(0, limit);
        }
        Self { limit, free, pending: Vec::new() }
    }

    /// Slots that the table holds.
    pub(super) fn slots(&self) -> u64 {
        u64::from(self.limit) * 2
    }

    /// Takes the first region with room for so many slots.
    pub(super) fn take(&mut self, slots: u32) -> Option<Region> {
        let length = slots.div_ceil(2);
        let offset = *self.free.iter().find(|(_, free)| **free >= length)?.0;
        let region = Region { offset, length };
        self.claim(region).then_some(region)
    }

    /// Takes exactly this region; `false` and no change unless all of it is free.
    pub(super) fn claim(&mut self, region: Region) -> bool {
        let Some((&offset, &length)) = self.free.range(..=region.offset).next_back() else { return false };
        let free = Region { offset, length };
        if region.length == 0 || region.end() > free.end() {
            return false;
        }
        self.free.remove(&offset);
        if region.offset > offset {
            self.free.insert(offset, region.offset - offset);
        }
        if region.end() < free.end() {
            self.free.insert(region.offset + region.length, (free.end() - region.end()) as u32);
        }
        true
    }

    /// Gives a region back.
    pub(super) fn give_back(&mut self, region: Region) {
        self.pending.push(region);
    }

    /// Whether something waits for a grace period.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// A grace period has passed: what was given back is free.
    pub(super) fn release(&mut self) {
        for region in std::mem::take(&mut self.pending) {
            self.insert_free(region);
        }
    }

    fn insert_free(&mut self, mut region: Region) {
        if let Some((&offset, &length)) = self.free.range(..region.offset).next_back()
            && offset + length == region.offset
        {
            self.free.remove(&offset);
            region = Region { offset, length: length + region.length };
        }
        if let Some(length) = self.free.remove(&(region.offset + region.length)) {
            region.length += length;
        }
        self.free.insert(region.offset, region.length);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_index_is_free_again_only_after_the_grace_period() {
        let mut pool = IndexPool::new(3, &BTreeSet::new());
        assert_eq!((pool.take(), pool.take(), pool.take()), (Some(1), Some(2), None));
        pool.give_back(1);
        assert_eq!(pool.take(), None);
        pool.release();
        assert_eq!((pool.take(), pool.take()), (Some(1), None));
    }

    #[test]
    fn a_pool_leaves_adopted_indices_alone() {
        let mut pool = IndexPool::new(6, &BTreeSet::from([2, 4]));
        assert_eq!((pool.take(), pool.take(), pool.take(), pool.take()), (Some(5), Some(1), Some(3), None));
    }

    #[test]
    fn free_neighbours_merge() {
        let mut regions = Regions::new(30);
        let taken: Vec<_> = (0..3).map(|_| regions.take(20).unwrap()).collect();
        assert_eq!(regions.take(1), None);
        for region in [taken[0], taken[2], taken[1]] {
            regions.give_back(region);
        }
        assert_eq!(regions.take(1), None, "the grace period has not passed");
        regions.release();
        assert_eq!(regions.take(60), Some(Region { offset: 0, length: 30 }));
    }

    #[test]
    fn a_claim_needs_all_of_its_region() {
        let mut regions = Regions::new(30);
        assert!(regions.claim(Region { offset: 10, length: 10 }));
        assert!(!regions.claim(Region { offset: 5, length: 6 }));
        assert!(!regions.claim(Region { offset: 15, length: 1 }));
        assert!(!regions.claim(Region { offset: 25, length: 6 }), "beyond the table");
        assert!(regions.claim(Region { offset: 20, length: 10 }));
        assert!(regions.claim(Region { offset: 0, length: 10 }));
    }

    proptest! {
        #[test]
        fn taken_regions_never_overlap_and_nothing_is_lost(
            actions in prop::collection::vec((any::<bool>(), 1..40u32), 1..60),
        ) {
            let mut regions = Regions::new(200);
            let mut taken: Vec<Region> = Vec::new();
            for (take, number) in actions {
                if take {
                    taken.extend(regions.take(number));
                } else if !taken.is_empty() {
                    let region = taken.swap_remove(number as usize % taken.len());
                    regions.give_back(region);
                    regions.release();
                }
                let mut sorted = taken.clone();
                sorted.sort();
                for pair in sorted.windows(2) {
                    prop_assert!(pair[0].end() <= u64::from(pair[1].offset));
                }
                let free: u32 = regions.free.values().sum();
                prop_assert_eq!(free + taken.iter().map(|region| region.length).sum::<u32>(), 200);
            }
        }
    }
}
