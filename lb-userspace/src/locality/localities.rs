//! The shares of all services over time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::failback::Failback;
use super::groups::Groups;
use super::{AreaShare, AreaState, Input, Place, Shares, compute};
use crate::desired::ServiceId;

/// The shares of all services, with areas held back that have just recovered. No I/O, no clock: call
/// [`Self::update`] whenever something it depends on has changed, and at [`Self::poll_timeout`].
#[derive(Clone, Debug, Default)]
pub struct Localities {
    services: BTreeMap<ServiceId, Kept>,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    failback: Failback,
    shares: Arc<Shares>,
}

impl Localities {
    /// Takes the present state of all services and says what changed for which. A service that is new is taken as
    /// it is, one that is missing is forgotten.
    pub fn update<'a>(
        &mut self,
        now: Instant,
        inputs: impl IntoIterator<Item = (ServiceId, Input<'a>)>,
    ) -> Vec<(ServiceId, Transition)> {
        let mut known = std::mem::take(&mut self.services);
        let mut changes = Vec::new();
        for (id, input) in inputs {
            let before = known.remove(&id);
            let new = before.is_none();
            let mut kept = before.unwrap_or_default();
            let shares = kept.update(now, &input);
            if *kept.shares != shares {
                if !new {
                    let transitions = transitions(&kept.shares, &shares);
                    changes.extend(transitions.into_iter().map(|transition| (id, transition)));
                }
                kept.shares = Arc::new(shares);
            }
            self.services.insert(id, kept);
        }
        changes
    }

    /// The shares of a service as of the last update.
    #[must_use]
    pub fn of(&self, service: &ServiceId) -> Option<&Arc<Shares>> {
        self.services.get(service).map(|kept| &kept.shares)
    }

    /// The shares of all services as of the last update.
    #[must_use]
    pub fn all(&self) -> BTreeMap<ServiceId, Arc<Shares>> {
        self.services.iter().map(|(id, kept)| (*id, kept.shares.clone())).collect()
    }

    /// When shares change next if nothing else does; `None`: not at all.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.services.values().filter_map(|kept| kept.failback.poll_timeout()).min()
    }
}

impl Kept {
    fn update(&mut self, now: Instant, input: &Input<'_>) -> Shares {
        let groups = Groups::of(input);
        let health = compute::health(&groups, input.policy);
        let areas = groups.serving.iter().map(|group| group.areas);
        let present: Vec<_> = areas.zip(health.iter().copied()).collect();
        let held = self.failback.update(now, input.policy.failback_delay, &present);
        compute::compute(input.policy, &groups, &health, &held)
    }
}

/// What became of an area of a service. Text form: a sentence about the area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Which area.
    pub place: Place,
    /// [`AreaShare::level`].
    pub level: usize,
    /// What it was doing.
    pub before: AreaState,
    /// What it is doing now.
    pub after: AreaState,
    /// The percentage of new flows that it had.
    pub percent_before: u32,
    /// The percentage of new flows that it has now.
    pub percent_after: u32,
}

impl Transition {
    /// Whether health took new flows elsewhere: a failover, a spill-over or a return. Neither a percentage that
    /// follows the number of endpoints is one, nor news of an area that gets nothing.
    #[must_use]
    pub fn is_move(&self) -> bool {
        self.before != self.after && self.percent_before != self.percent_after
    }
}

impl fmt::Display for Transition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.before == self.after {
            write!(f, "{} is {}", self.place, self.after)?;
        } else {
            write!(f, "{} was {} and is {}", self.place, self.before, self.after)?;
        }
        if self.percent_before == self.percent_after {
            write!(f, ", with {}% of new flows as before", self.percent_after)
        } else {
            write!(f, ", with {}% of new flows instead of {}%", self.percent_after, self.percent_before)
        }
    }
}

/// The areas whose state or percentage differs; those that come or go are compared with [`AreaState::Empty`].
fn transitions(before: &Shares, after: &Shares) -> Vec<Transition> {
    let by_key = |shares: &Shares| -> BTreeMap<_, _> {
        shares.areas.iter().map(|area| ((area.level, area.place.clone()), doing(area))).collect()
    };
    let (before, after) = (by_key(before), by_key(after));
    let nothing = (AreaState::Empty, 0);
    let gone = before.iter().filter(|(key, _)| !after.contains_key(*key)).map(|(key, _)| (key, nothing));
    after
        .iter()
        .map(|(key, doing)| (key, *doing))
        .chain(gone)
        .map(|(key, now)| (key, before.get(key).copied().unwrap_or(nothing), now))
        .filter(|(_, before, now)| before != now)
        .map(|((level, place), before, now)| Transition {
            place: place.clone(),
            level: *level,
            before: before.0,
            after: now.0,
            percent_before: before.1,
            percent_after: now.1,
        })
        .collect()
}

fn doing(area: &AreaShare) -> (AreaState, u32) {
    (area.state, area.percent)
}
