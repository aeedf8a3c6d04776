//! When to probe what, and what the results mean: a state machine without I/O and without a clock.
//!
//! Its driver asks [`Prober::poll_probe`] for probes to start until there are none, waits until
//! [`Prober::poll_timeout`] or until a probe ends, and hands every end to [`Prober::handle_result`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ProbeTarget, Probed, Verdict, Verdicts};

/// New targets' first probes are started at this distance, so that ten thousand do not begin at once and six
/// do not wait.
const FIRST_PROBE_SPACING: Duration = Duration::from_micros(500);

/// A probe that is to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Names the probe in [`Prober::handle_result`].
    pub id: ProbeId,
    /// What to probe, and how.
    pub target: ProbeTarget,
}

/// Names one probe; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProbeId(u64);

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The target answered as expected.
    Success,
    /// It did not, within the timeout.
    Failure {
        /// What happened, for people.
        reason: Arc<str>,
    },
    /// The gateway itself could not probe (no file descriptor, no memory, no free port): says nothing about
    /// the target.
    Inconclusive {
        /// What happened, for people.
        reason: Arc<str>,
    },
}

/// How much has changed; what is greater is more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// Whether latest probes failed, and no verdict.
    LatestProbes,
    /// Verdicts, or what has one.
    Verdicts,
}

type Key = u64;

/// All probe targets, their schedule and their verdicts.
pub struct Prober {
    max_in_flight: usize,
    random: SplitMix,
    next_key: Key,
    next_probe: u64,
    keys: HashMap<ProbeTarget, Key>,
    states: HashMap<Key, State>,
    /// Targets that are waiting for their time, by that time. A target is in one of them or in flight.
    waiting: BTreeSet<(Instant, Key)>,
    /// As `waiting`, for those whose latest probe failed: each may hold its place in flight for its whole
    /// timeout, so a quarter of the places is kept from them.
    waiting_failed: BTreeSet<(Instant, Key)>,
    in_flight: HashMap<ProbeId, InFlight>,
    failed_in_flight: usize,
    news: Option<News>,
}

struct State {
    target: ProbeTarget,
    verdict: Verdict,
    /// Results in a row that contradict the verdict.
    contradictions: u32,
    last_failed: bool,
    due: Instant,
}

struct InFlight {
    key: Key,
    started: Instant,
    counted_as_failed: bool,
}

impl Prober {
    /// A machine without targets. At most `max_in_flight` (≥ 2 is enforced) probes run at once; `seed`
    /// decides the jitter.
    #[must_use]
    pub fn new(max_in_flight: usize, seed: u64) -> Self {
        Self {
            max_in_flight: max_in_flight.max(2),
            random: SplitMix(seed),
            next_key: 0,
            next_probe: 0,
            keys: HashMap::new(),
            states: HashMap::new(),
            waiting: BTreeSet::new(),
            waiting_failed: BTreeSet::new(),
            in_flight: HashMap::new(),
            failed_in_flight: 0,
            news: None,
        }
    }

    /// Replaces the set of targets. Those that stay keep their verdict and their schedule.
    pub fn set_targets(&mut self, now: Instant, targets: &HashSet<ProbeTarget>) {
        let removed: Vec<_> = self.keys.keys().filter(|target| !targets.contains(*target)).cloned().collect();
        for target in removed {
            self.remove(&target);
        }
        let mut added: Vec<_> = targets.iter().filter(|target| !self.keys.contains_key(*target)).collect();
        // A set's order is random; with the same seed the schedule should be the same.
        added.sort_by_key(|target| (target.address, target.check.interval, target.check.timeout));
        let window = FIRST_PROBE_SPACING.saturating_mul(u32::try_from(added.len()).unwrap_or(u32::MAX));
        for target in added {
            let delay = self.random.up_to(window.min(target.check.interval));
            self.add(target.clone(), now + delay);
        }
    }

    /// The next probe to start now, if there is one. Call it until there is none.
    pub fn poll_probe(&mut self, now: Instant) -> Option<Probe> {
        if self.in_flight.len() >= self.max_in_flight {
            return None;
        }
        let (key, counted_as_failed) = self.next_due(now)?;
        let state = self.states.get(&key)?;
        let target = state.target.clone();
        let queue = if counted_as_failed { &mut self.waiting_failed } else { &mut self.waiting };
        queue.remove(&(state.due, key));
        let id = ProbeId(self.next_probe);
        self.next_probe += 1;
        self.failed_in_flight += usize::from(counted_as_failed);
        self.in_flight.insert(id, InFlight { key, started: now, counted_as_failed });
        Some(Probe { id, target })
    }

    /// When [`Self::poll_probe`] may next have a probe, as long as no result arrives before; `None`: not
    /// before the next result or the next change of targets.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.in_flight.len() >= self.max_in_flight {
            return None;
        }
        let failed = self.waiting_failed.first().filter(|_| self.failed_may_start());
        [self.waiting.first(), failed].into_iter().flatten().map(|(due, _)| *due).min()
    }

    /// Takes the result of a probe. Results of targets that are gone are ignored.
    pub fn handle_result(&mut self, now: Instant, id: ProbeId, outcome: Outcome) {
        let Some(InFlight { key, started, counted_as_failed }) = self.in_flight.remove(&id) else { return };
        self.failed_in_flight -= usize::from(counted_as_failed);
        let Some(state) = self.states.get_mut(&key) else { return };
        self.news = state.learn(outcome).max(self.news);
        // From start to start, and a tenth of it at random, so that targets do not fall into step. A gateway
        // that cannot keep up skips what it missed: it never catches up in a burst.
        let interval = state.target.check.interval;
        let jitter = self.random.up_to(interval / 10);
        state.due = (started + interval - jitter).max(now);
        let queue = if state.last_failed { &mut self.waiting_failed } else { &mut self.waiting };
        queue.insert((state.due, key));
    }

    /// What has changed in [`Self::verdicts`] since the last call, targets that came or went included.
    pub fn take_news(&mut self) -> Option<News> {
        self.news.take()
    }

    /// The verdicts on all targets.
    #[must_use]
    pub fn verdicts(&self) -> Verdicts {
        let probed =
            |state: &State| Probed { verdict: state.verdict.clone(), latest_failed: state.last_failed };
        self.states.values().map(|state| (state.target.clone(), probed(state))).collect()
    }

    /// How many probes are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn next_due(&self, now: Instant) -> Option<(Key, bool)> {
        let due = |queue: &BTreeSet<(Instant, Key)>| queue.first().copied().filter(|(due, _)| *due <= now);
        let failed = due(&self.waiting_failed).filter(|_| self.failed_may_start());
        match (due(&self.waiting), failed) {
            (Some(answering), Some(failed)) if failed < answering => Some((failed.1, true)),
            (Some((_, key)), _) => Some((key, false)),
            (None, Some((_, key))) => Some((key, true)),
            (None, None) => None,
        }
    }

    fn failed_may_start(&self) -> bool {
        self.failed_in_flight < self.max_in_flight - self.max_in_flight.div_ceil(4)
    }

    fn add(&mut self, target: ProbeTarget, due: Instant) {
        let key = self.next_key;
        self.next_key += 1;
        self.keys.insert(target.clone(), key);
        let state = State { target, verdict: Verdict::Unknown, contradictions: 0, last_failed: false, due };
        self.states.insert(key, state);
        self.waiting.insert((due, key));
        self.news = Some(News::Verdicts);
    }

    fn remove(&mut self, target: &ProbeTarget) {
        let Some(key) = self.keys.remove(target) else { return };
        let Some(state) = self.states.remove(&key) else { return };
        self.waiting.remove(&(state.due, key));
        self.waiting_failed.remove(&(state.due, key));
        self.news = Some(News::Verdicts);
    }
}

impl State {
    /// Counts a result; returns what changed. The first result decides at once: a target that has just appeared
    /// has no history that would outweigh it.
    fn learn(&mut self, outcome: Outcome) -> Option<News> {
        let check = &self.target.check;
        let (verdict, threshold) = match outcome {
            Outcome::Success => (Verdict::Healthy, check.healthy_threshold),
            Outcome::Failure { reason } => (Verdict::Unhealthy { reason }, check.unhealthy_threshold),
            Outcome::Inconclusive { .. } => return None,
        };
        let failed = verdict != Verdict::Healthy;
        let turned = failed != std::mem::replace(&mut self.last_failed, failed);
        let agrees = std::mem::discriminant(&verdict) == std::mem::discriminant(&self.verdict);
        self.contradictions = if agrees { 0 } else { self.contradictions + 1 };
        let decides = agrees || self.verdict == Verdict::Unknown || self.contradictions >= threshold;
        if !decides || verdict == self.verdict {
            return turned.then_some(News::LatestProbes);
        }
        self.verdict = verdict;
        self.contradictions = 0;
        Some(News::Verdicts)
    }
}

/// SplitMix64: small, seedable, the same everywhere; for jitter only.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A duration in `0..=limit`, evenly.
    fn up_to(&mut self, limit: Duration) -> Duration {
        let nanoseconds = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let scaled = (u128::from(self.next()) * (u128::from(nanoseconds) + 1)) >> 64;
        Duration::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
