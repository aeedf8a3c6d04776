//! Building a ring.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use lb_common::abi::RING_SIZES;

use super::permutation::{Field, Permutation};
use crate::desired::BackendId;

/// A backend in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The backend.
    pub backend: BackendId,
    /// Its share, relative to the other entries'; only ratios matter.
    pub weight: u32,
}

/// Slots of a ring that nobody has taken yet.
const EMPTY: u32 = u32::MAX;

/// Builds a ring of a size class over entries sorted by backend, each backend once. Every slot holds a
/// position in `entries`. `None` if no entry has a weight.
///
/// As in the paper, backends take turns and ask for slots in orders of their own. Two things differ. Where
/// the paper's backend goes on until it has found a free slot, here each asks for one slot a turn and gets it
/// or not, until it has its share, so that what one does changes less for the others: half as many slots move
/// without need. And turns come at a rate by weight, as in weighted rendezvous hashing: the slot goes to the
/// backend for which −ln(1 − rank / M) / weight is least.
///
/// # Panics
///
/// If `class` is not below 13.
#[must_use]
pub fn build(class: u8, entries: &[Entry]) -> Option<Vec<u32>> {
    debug_assert!(entries.is_sorted_by_key(|entry| entry.backend));
    let slots = RING_SIZES[usize::from(class)];
    let mut groups = groups(slots, entries)?;
    let mut ring = vec![EMPTY; slots as usize];
    if let [group] = &groups[..]
        && let [seeker] = &group.seekers[..]
    {
        ring.fill(seeker.entry);
        return Some(ring);
    }
    let field = Field::new(slots);
    let mut queue: BinaryHeap<_> =
        groups.iter().enumerate().map(|(group, each)| Reverse(each.turn(group))).collect();
    while let Some(Reverse(Turn { group: index, .. })) = queue.pop() {
        let group = &mut groups[index];
        loop {
            group.take_turn(&mut ring, &field);
            if group.seekers.is_empty() {
                break;
            }
            let next = group.turn(index);
            if queue.peek().is_some_and(|Reverse(other)| *other < next) {
                queue.push(Reverse(next));
                break;
            }
        }
    }
    Some(ring)
}

/// How many of `slots` slots each weight gets: its exact share, rounded down or up (largest remainder, ties to
/// the earlier). All 0 if the weights are.
#[must_use]
pub fn quotas(slots: u32, weights: &[u32]) -> Vec<u32> {
    let total: u64 = weights.iter().copied().map(u64::from).sum();
    if total == 0 {
        return vec![0; weights.len()];
    }
    let share = |weight: u32| u64::from(weight) * u64::from(slots);
    let mut quotas: Vec<u32> = weights.iter().map(|weight| (share(*weight) / total) as u32).collect();
    let missing = slots - quotas.iter().sum::<u32>();
    let mut remainders: Vec<_> =
        weights.iter().enumerate().map(|(i, weight)| (Reverse(share(*weight) % total), i)).collect();
    remainders.sort_unstable();
    for (_, i) in &remainders[..missing as usize] {
        quotas[*i] += 1;
    }
    quotas
}

/// An entry that still wants slots.
struct Seeker {
    entry: u32,
    wanted: u32,
    order: Permutation,
}

/// Entries of one weight: they take their turns together, which leaves one queue element for each weight
/// instead of one for each backend.
struct Group {
    weight: u32,
    slots: u32,
    /// Turns taken.
    turns: u32,
    /// When the next turn is due, times the weight: −ln(1 − turns / M) as a sum, in units of 2⁻⁴⁰.
    due: u64,
    seekers: Vec<Seeker>,
}

impl Group {
    fn turn(&self, group: usize) -> Turn {
        Turn { due: self.due, weight: self.weight, group }
    }

    /// Every member asks for one slot.
    fn take_turn(&mut self, ring: &mut [u32], field: &Field) {
        self.seekers.retain_mut(|seeker| {
            let slot = &mut ring[seeker.order.next(field)];
            if *slot == EMPTY {
                *slot = seeker.entry;
                seeker.wanted -= 1;
            }
            seeker.wanted > 0
        });
        self.turns += 1;
        self.due += step(self.slots, self.turns);
    }
}

/// What one more turn adds to −ln(1 − turns / M).
fn step(slots: u32, turns: u32) -> u64 {
    (1 << 40) / u64::from(slots.saturating_sub(turns).max(1))
}

/// A group's next turn, ordered by time.
#[derive(PartialEq, Eq)]
struct Turn {
    due: u64,
    weight: u32,
    group: usize,
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        let (ours, theirs) = (
            u128::from(self.due) * u128::from(other.weight),
            u128::from(other.due) * u128::from(self.weight),
        );
        ours.cmp(&theirs).then(self.group.cmp(&other.group))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The entries that get slots, by weight, heaviest first; `None` if there are none.
fn groups(slots: u32, entries: &[Entry]) -> Option<Vec<Group>> {
    let weights: Vec<u32> = entries.iter().map(|entry| entry.weight).collect();
    let quotas = quotas(slots, &weights);
    let mut order: Vec<usize> = (0..entries.len()).filter(|i| quotas[*i] > 0).collect();
    order.sort_by_key(|i| Reverse(weights[*i]));
    let mut groups: Vec<Group> = Vec::new();
    for i in order {
        let seeker = Seeker {
            entry: i as u32,
            wanted: quotas[i],
            order: Permutation::new(&entries[i].backend, slots),
        };
        match groups.last_mut() {
            Some(group) if group.weight == weights[i] => group.seekers.push(seeker),
            _ => groups.push(Group {
                weight: weights[i],
                slots,
                turns: 0,
                due: step(slots, 0),
                seekers: vec![seeker],
            }),
        }
    }
    (!groups.is_empty()).then_some(groups)
}
