//! When the first plan may be made. Pure: time comes in.

use std::time::{Duration, Instant};

/// How long the first plan waits for first verdicts and next hops. Meanwhile adopted maps serve as they are,
/// and new ones are not attached.
const LONGEST: Duration = Duration::from_secs(2);

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstPlan {
    /// Maps from an earlier run go on as they are: not all is known yet that belongs into them, so that a plan
    /// would take it out.
    Held,
    /// It waits for first verdicts and next hops, until then.
    Waits(Instant),
    /// It has been made.
    Made,
}

impl FirstPlan {
    /// `serving`: whether the maps hold services already; `complete`: whether the clusters have told everything.
    pub(super) fn begin(serving: bool, complete: bool, now: Instant) -> Self {
        if serving && !complete { Self::Held } else { Self::Waits(now + LONGEST) }
    }

    /// The clusters have said something. What is known only now gets its time for verdicts and next hops.
    pub(super) fn told(&mut self, complete: bool, now: Instant) {
        if complete && *self == Self::Held {
            *self = Self::Waits(now + LONGEST);
        }
    }

    /// When it is made at the latest.
    pub(super) const fn latest(self) -> Option<Instant> {
        match self {
            Self::Waits(latest) => Some(latest),
            Self::Held | Self::Made => None,
        }
    }

    /// Whether a plan may be made now.
    pub(super) fn allows(self, now: Instant, knows_enough: impl FnOnce() -> bool) -> bool {
        match self {
            Self::Held => false,
            Self::Waits(latest) => now >= latest || knows_enough(),
            Self::Made => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_serve_are_not_planned_over_before_all_clusters_have_told_what_they_have() {
        let start = Instant::now();
        let mut first = FirstPlan::begin(true, false, start);
        let later = start + Duration::from_secs(100_000);
        first.told(false, later);
        assert!(!first.allows(later, || true));
        assert_eq!(first.latest(), None);
        first.told(true, later);
        assert!(!first.allows(later, || false), "its endpoints are looked up and probed first");
        assert!(first.allows(later, || true));
        assert_eq!(first.latest(), Some(later + LONGEST));
        assert!(first.allows(later + LONGEST, || false));
    }

    #[test]
    fn where_there_is_nothing_to_lose_or_all_is_known_it_waits_for_verdicts_alone() {
        let now = Instant::now();
        for (serving, complete) in [(false, false), (false, true), (true, true)] {
            let first = FirstPlan::begin(serving, complete, now);
            assert_eq!(first.latest(), Some(now + LONGEST));
            assert!(!first.allows(now, || false) && first.allows(now, || true));
        }
    }
}
