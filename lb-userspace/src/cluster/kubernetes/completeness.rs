//! Whether all that the clusters have is known, after a start: [`Snapshot::complete`]. Pure: time comes in.
//!
//! [`Snapshot::complete`]: crate::cluster::Snapshot::complete

use std::time::{Duration, Instant};

/// How long what cannot be read holds completeness up, once it is known what there should be.
const LONGEST: Duration = Duration::from_secs(60);

/// What is known now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Whether the gateway cluster has told its members and its fronts.
    pub(super) told: bool,
    /// Whether everything in the gateway cluster has been read.
    pub(super) gateway: bool,
    /// Whether of each member that is served it is known what it has.
    pub(super) members: bool,
}

/// What has to be remembered.
#[derive(Debug)]
pub(super) struct Completeness {
    /// Whether the agent began with what an earlier run knew.
    recalled: bool,
    /// Since when it is known what there should be.
    since: Option<Instant>,
    reached: bool,
}

impl Completeness {
    pub(super) const fn new(recalled: bool) -> Self {
        Self { recalled, since: None, reached: false }
    }

    /// Takes in what is known. When it is complete at the latest, if it is not yet and that is known.
    pub(super) fn judge(&mut self, known: Known, now: Instant) -> Option<Instant> {
        if self.reached || !(self.recalled || known.told) {
            return None;
        }
        let latest = *self.since.get_or_insert(now) + LONGEST;
        // What an earlier run knew of the gateway cluster is as good as read.
        let all = (self.recalled || known.gateway) && known.members;
        self.reached = all || now >= latest;
        (!self.reached).then_some(latest)
    }

    pub(super) const fn is_reached(&self) -> bool {
        self.reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Known = Known { told: false, gateway: false, members: true };
    const TOLD: Known = Known { told: true, gateway: false, members: false };
    const READ: Known = Known { told: true, gateway: true, members: false };
    const ALL: Known = Known { told: true, gateway: true, members: true };

    struct Start {
        completeness: Completeness,
        at: Instant,
    }

    impl Start {
        fn new(recalled: bool) -> Self {
            Self { completeness: Completeness::new(recalled), at: Instant::now() }
        }

        /// Whether it is complete at a second at which this is known.
        fn knows(&mut self, second: u64, known: Known) -> bool {
            let now = self.at + Duration::from_secs(second);
            let latest = self.completeness.judge(known, now);
            let reached = self.completeness.is_reached();
            assert!(latest.is_none_or(|latest| latest > now && !reached));
            reached
        }
    }

    #[test]
    fn a_gateway_cluster_that_never_answers_is_waited_for_as_long_as_it_takes() {
        let mut start = Start::new(false);
        assert!(!start.knows(0, NOTHING));
        assert!(!start.knows(100_000, NOTHING));
        assert!(!start.knows(100_001, TOLD));
        assert!(start.knows(100_002, ALL));
        assert!(start.knows(100_003, READ), "what comes later is new");
    }

    #[test]
    fn a_member_that_never_answers_is_waited_for_a_minute_since_the_gateway_cluster_told() {
        let mut start = Start::new(false);
        assert!(!start.knows(0, NOTHING));
        assert!(!start.knows(100, TOLD));
        assert!(!start.knows(159, READ));
        assert!(start.knows(160, READ));
    }

    #[test]
    fn what_an_earlier_run_knew_is_complete_at_once_and_a_member_it_never_read_is_waited_for_a_minute() {
        assert!(Start::new(true).knows(0, NOTHING));
        let mut start = Start::new(true);
        assert!(!start.knows(0, Known { members: false, ..NOTHING }));
        assert!(!start.knows(59, TOLD));
        assert!(start.knows(60, TOLD));
    }
}
