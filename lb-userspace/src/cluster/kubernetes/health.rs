//! Whether an API server answers, as its heartbeat and its watches say. Pure: time comes in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::fault::Fault;

/// So many heartbeats in a row must fail before a server that answered counts as away.
const BEATS: u32 = 2;
/// So many tries of one watch in a row.
const TRIES: u32 = 2;
/// A watch that has not failed for this long has been accepted: tries are at most 2 s apart.
const FORGOTTEN: Duration = Duration::from_secs(6);

/// A moment on both clocks: one to count with, one to show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) at: Instant,
    pub(super) wall: Timestamp,
}

impl Moment {
    /// Now.
    pub(super) fn now() -> Self {
        Self { at: tokio::time::Instant::now().into_std(), wall: Timestamp::now() }
    }
}

/// What is known of one API server.
#[derive(Debug)]
pub(super) struct Health {
    beats: Beats,
    watches: HashMap<&'static str, Tries>,
    shown: Shown,
}

/// What people are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    /// `None` until the first answer or failure.
    pub(super) connected: Option<bool>,
    /// Why not.
    pub(super) fault: Option<Fault>,
    /// Since when it is so.
    pub(super) since: Timestamp,
}

#[derive(Debug)]
struct Beats {
    answered: bool,
    /// Failures in a row, and the last.
    failed: u32,
    fault: Option<Fault>,
    /// When the first of them was.
    since: Timestamp,
}

/// Failures in a row of one watch.
#[derive(Debug)]
struct Tries {
    failed: u32,
    fault: Fault,
    since: Timestamp,
    last: Instant,
}

impl Health {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            beats: Beats { answered: false, failed: 0, fault: None, since: now.wall },
            watches: HashMap::new(),
            shown: Shown { connected: None, fault: None, since: now.wall },
        }
    }

    /// What is so now.
    pub(super) const fn shown(&self) -> &Shown {
        &self.shown
    }

    /// A heartbeat was answered. Whether the server had been away: connections to it from before may be dead
    /// without knowing it.
    pub(super) fn answered(&mut self, now: Moment) -> bool {
        let was_away = self.beats_fail();
        self.beats = Beats { answered: true, failed: 0, fault: None, since: now.wall };
        if was_away {
            self.watches.clear();
        }
        self.settle(now);
        was_away
    }

    /// A heartbeat failed.
    pub(super) fn failed(&mut self, fault: Fault, now: Moment) {
        if self.beats.failed == 0 {
            self.beats.since = now.wall;
        }
        self.beats.failed += 1;
        self.beats.fault = Some(fault);
        self.settle(now);
    }

    /// A watch failed, and is tried again.
    pub(super) fn watch_failed(&mut self, watch: &'static str, fault: Fault, now: Moment) {
        let tries = self.watches.entry(watch).or_insert_with(|| Tries {
            failed: 0,
            fault: fault.clone(),
            since: now.wall,
            last: now.at,
        });
        tries.failed += 1;
        tries.fault = fault;
        tries.last = now.at;
        self.settle(now);
    }

    /// A watch told something. Whether it had failed before.
    pub(super) fn watch_answered(&mut self, watch: &'static str, now: Moment) -> bool {
        let had_failed = self.watches.remove(watch).is_some();
        if had_failed {
            self.settle(now);
        }
        had_failed
    }

    fn beats_fail(&self) -> bool {
        self.beats.failed >= BEATS || (!self.beats.answered && self.beats.failed > 0)
    }

    fn settle(&mut self, now: Moment) {
        self.watches.retain(|_, tries| now.at.duration_since(tries.last) < FORGOTTEN);
        let of_watch =
            self.watches.values().filter(|tries| tries.failed >= TRIES).min_by_key(|tries| tries.since);
        let (connected, fault, since) = if self.beats_fail() {
            (Some(false), self.beats.fault.clone(), self.beats.since)
        } else if let Some(tries) = of_watch {
            (Some(false), Some(tries.fault.clone()), tries.since)
        } else {
            (self.beats.answered.then_some(true), None, now.wall)
        };
        // What goes on in another way goes on since it began.
        let since = if self.shown.connected == connected { self.shown.since } else { since };
        self.shown = Shown { connected, fault, since };
    }
}

#[cfg(test)]
mod tests {
    use super::super::fault::FaultKind;
    use super::*;

    fn fault(kind: FaultKind) -> Fault {
        Fault { kind, message: String::new() }
    }

    /// Virtual time in seconds from a fixed moment.
    struct Clock(Instant);

    impl Clock {
        fn new() -> Self {
            Self(Instant::now())
        }

        fn at(&self, second: u64) -> Moment {
            let wall = Timestamp::from_second(1_000_000 + i64::try_from(second).unwrap()).unwrap();
            Moment { at: self.0 + Duration::from_secs(second), wall }
        }
    }

    fn since(health: &Health) -> i64 {
        health.shown().since.as_second() - 1_000_000
    }

    fn kind(health: &Health) -> Option<FaultKind> {
        health.shown().fault.as_ref().map(|fault| fault.kind)
    }

    #[test]
    fn one_lost_heartbeat_is_nothing_and_two_are_an_outage_since_the_first() {
        let clock = Clock::new();
        let mut health = Health::new(clock.at(0));
        assert_eq!(health.shown().connected, None);
        assert!(!health.answered(clock.at(1)), "nothing has to be made anew at the start");
        health.failed(fault(FaultKind::Timeout), clock.at(4));
        assert_eq!(health.shown().connected, Some(true));
        health.failed(fault(FaultKind::Timeout), clock.at(6));
        assert_eq!((health.shown().connected, kind(&health)), (Some(false), Some(FaultKind::Timeout)));
        assert_eq!(since(&health), 4);
    }

    #[test]
    fn a_lost_heartbeat_between_answered_ones_needs_no_new_watches() {
        let clock = Clock::new();
        let mut health = Health::new(clock.at(0));
        health.answered(clock.at(1));
        health.failed(fault(FaultKind::Timeout), clock.at(3));
        assert!(!health.answered(clock.at(5)));
        assert_eq!(since(&health), 1, "it has been connected all the time");
    }

    #[test]
    fn a_server_that_is_back_needs_new_watches_and_says_since_when_it_is_back() {
        let clock = Clock::new();
        let mut health = Health::new(clock.at(0));
        health.answered(clock.at(0));
        health.failed(fault(FaultKind::Unreachable), clock.at(2));
        health.failed(fault(FaultKind::Unreachable), clock.at(3));
        assert!(health.answered(clock.at(9)));
        assert_eq!((health.shown().connected, since(&health)), (Some(true), 9));
    }

    #[test]
    fn a_server_that_never_answered_is_away_at_its_first_failure() {
        let clock = Clock::new();
        let mut health = Health::new(clock.at(0));
        health.failed(fault(FaultKind::Unreachable), clock.at(1));
        assert_eq!(health.shown().connected, Some(false));
        assert!(health.answered(clock.at(2)));
    }

    #[test]
    fn an_outage_that_changes_its_reason_keeps_its_beginning() {
        let clock = Clock::new();
        let mut health = Health::new(clock.at(0));
        health.failed(fault(FaultKind::Unreachable), clock.at(1));
        health.failed(fault(FaultKind::ServerError), clock.at(3));
        assert_eq!((kind(&health), since(&health)), (Some(FaultKind::ServerError), 1));
    }

    #[test]
    fn a_watch_that_is_refused_is_an_outage_though_heartbeats_are_answered() {
        let clock = Clock::new();
        let mut health = Health::new(clock.at(0));
        health.answered(clock.at(0));
        health.watch_failed("services", fault(FaultKind::Forbidden), clock.at(10));
        assert_eq!(health.shown().connected, Some(true), "once may be a relist after a compaction");
        health.watch_failed("services", fault(FaultKind::Forbidden), clock.at(11));
        assert_eq!((health.shown().connected, kind(&health)), (Some(false), Some(FaultKind::Forbidden)));
        assert_eq!(since(&health), 10);
        assert!(!health.answered(clock.at(12)), "the watch tries by itself");
        assert_eq!(health.shown().connected, Some(false));
        health.watch_answered("services", clock.at(13));
        assert_eq!((health.shown().connected, since(&health)), (Some(true), 13));
    }

    #[test]
    fn a_watch_that_fails_no_more_has_been_accepted_though_it_has_nothing_to_tell() {
        let clock = Clock::new();
        let mut health = Health::new(clock.at(0));
        health.answered(clock.at(0));
        for second in [10, 11] {
            health.watch_failed("slices", fault(FaultKind::TooManyRequests), clock.at(second));
        }
        health.answered(clock.at(14));
        assert_eq!(health.shown().connected, Some(false));
        health.answered(clock.at(18));
        assert_eq!(health.shown().connected, Some(true));
    }
}
