//! Leaving at once, coming back late.
//!
//! What weights are computed from is not a group's health but its *held* health: the lowest that it had within
//! the failback delay. So it falls at once, rises when the better health has lasted, and doesn't move for a group
//! that flaps. While endpoints recover one after another the rise waits for the last of them, but not for longer
//! than one more delay: new flows go back in one move.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::desired::Area;

/// Health with which the others carry everything while a group is held back, if need be with twice their usual load.
/// Were it 100, a single sick endpoint there would let every flapping region in at once.
const ENOUGH: u32 = 50;

/// The health of one service's groups over time. No I/O, no clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Failback {
    delay: Duration,
    /// By the areas that the groups are made of.
    histories: Vec<(Vec<Area>, History)>,
}

impl Failback {
    /// Takes the groups' present health (0 to 100), in order of preference, and gives their held health. A group
    /// that is new is taken as it is.
    ///
    /// A group is held back only while the others can carry the load: where their held health sums to less than
    /// [`ENOUGH`], it is let in and counts as back; the preferred ones first.
    pub(super) fn update(&mut self, now: Instant, delay: Duration, groups: &[(&[Area], u32)]) -> Vec<u32> {
        self.delay = delay;
        let mut known = std::mem::take(&mut self.histories);
        // What is in no listed area depends on all that are listed.
        let same_list = known.len() == groups.len()
            && groups.iter().all(|(areas, _)| known.iter().any(|(known, _)| known == areas));
        for (areas, health) in groups {
            let is_known = |known: &[Area]| known == *areas && (same_list || !areas.is_empty());
            let mut history = match known.iter().position(|(known, _)| is_known(known)) {
                Some(position) => known.swap_remove(position),
                None => (areas.to_vec(), History::new(*health)),
            };
            history.1.learn(now, *health);
            history.1.settle(now, delay);
            self.histories.push(history);
        }
        for i in 0..self.histories.len() {
            let held: u32 = self.histories.iter().map(|(_, history)| history.held()).sum();
            if held - self.histories[i].1.held() < ENOUGH {
                self.histories[i].1.release();
            }
        }
        self.histories.iter().map(|(_, history)| history.held()).collect()
    }

    /// When held health changes next if health doesn't; `None`: not at all.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.histories.iter().filter_map(|(_, history)| history.due(self.delay)).min()
    }
}

/// The health of one group.
#[derive(Clone, Debug)]
struct History {
    health: u32,
    /// What it was before, as far as it was lower than all that came later, and when that ended. Oldest and
    /// lowest first.
    lows: VecDeque<(u32, Instant)>,
}

impl History {
    fn new(health: u32) -> Self {
        Self { health, lows: VecDeque::new() }
    }

    fn held(&self) -> u32 {
        self.lows.front().map_or(self.health, |(low, _)| *low)
    }

    fn learn(&mut self, now: Instant, health: u32) {
        if self.health < health {
            self.lows.push_back((self.health, now));
        }
        while self.lows.back().is_some_and(|(low, _)| *low >= health) {
            self.lows.pop_back();
        }
        self.health = health;
    }

    /// Forgets lows that are over for `delay`, once the last is or the first is over for twice as long.
    fn settle(&mut self, now: Instant, delay: Duration) {
        if self.due(delay).is_some_and(|due| due <= now) {
            while self.lows.front().is_some_and(|(_, end)| *end + delay <= now) {
                self.lows.pop_front();
            }
        }
    }

    fn release(&mut self) {
        self.lows.clear();
    }

    fn due(&self, delay: Duration) -> Option<Instant> {
        let ((_, first), (_, last)) = (self.lows.front()?, self.lows.back()?);
        Some((*last + delay).min(*first + 2 * delay))
    }
}
