//! One measurement: what became of the requests around a fault, counted. Pure.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::client::Outcome;

/// How long before the fault the series begins: it shows that all was well.
pub(super) const BEFORE: Duration = Duration::from_secs(1);
/// Requests that start up to here after the fault count.
pub(super) const WINDOW: Duration = Duration::from_secs(5);
/// The width of a bin of the series.
pub(super) const BIN: Duration = Duration::from_millis(50);
/// A request that takes longer, from its SYN to the end of its answer, is slow: on this network, whose answers take
/// about a millisecond, something had to be tried twice.
pub(super) const SLOW: Duration = Duration::from_millis(200);
/// Where requests still fail or are slow so shortly before the window ends, there is no end in sight.
const END_OF_WINDOW: Duration = Duration::from_millis(500);

/// The requests that started within one bin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Bin {
    /// Where it begins, in ms from the fault; negative before it.
    pub(super) ms: i64,
    /// Answered in time.
    pub(super) ok: u64,
    /// Answered, but later than [`SLOW`].
    pub(super) slow: u64,
    /// Not answered.
    pub(super) failed: u64,
}

/// What became of the requests around one fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    /// Requests that started after the fault and within [`WINDOW`].
    pub(super) requests: u64,
    /// Those of them that failed.
    pub(super) failed: u64,
    /// Those of them that were slow.
    pub(super) slow: u64,
    /// How long the slowest answer took, in ms.
    pub(super) slowest_ms: u64,
    /// How long those that failed or were slow took together, in ms.
    pub(super) waited_ms: u64,
    /// From the fault to the start of the last request that failed or was slow, in ms; 0 where none was.
    pub(super) ms_until_last_bad: u64,
    /// Whether requests failed or were slow to the window's end.
    pub(super) without_end: bool,
    /// The longest time in which the client began no request: how far the machine kept it from its work, in ms.
    pub(super) longest_pause_ms: u64,
    /// The requests by the time of their start, from [`BEFORE`] the fault on.
    pub(super) series: Vec<Bin>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ok,
    Slow,
    Failed,
}

impl Run {
    /// Counts. Requests of another time than the series' are left out.
    pub(super) fn of(outcomes: &[Outcome], fault: Instant) -> Run {
        let longest_pause_ms = millis(longest_pause(outcomes, fault));
        let mut run = Run { series: empty_series(), longest_pause_ms, ..Run::default() };
        for outcome in outcomes {
            let since = millis_since(fault, outcome.started);
            let kind = kind(outcome);
            let Some(bin) = bin_of(since).and_then(|n| run.series.get_mut(n)) else { continue };
            *match kind {
                Kind::Ok => &mut bin.ok,
                Kind::Slow => &mut bin.slow,
                Kind::Failed => &mut bin.failed,
            } += 1;
            if let Ok(after) = u64::try_from(since) {
                run.count(kind, after, outcome);
            }
        }
        run
    }

    fn count(&mut self, kind: Kind, after: u64, outcome: &Outcome) {
        self.requests += 1;
        self.failed += u64::from(kind == Kind::Failed);
        self.slow += u64::from(kind == Kind::Slow);
        let took = millis(outcome.finished.duration_since(outcome.started));
        if kind != Kind::Failed {
            self.slowest_ms = self.slowest_ms.max(took);
        }
        if kind != Kind::Ok {
            self.waited_ms += took;
            self.ms_until_last_bad = self.ms_until_last_bad.max(after);
            self.without_end = self.ms_until_last_bad >= millis(WINDOW - END_OF_WINDOW);
        }
    }
}

/// The longest time in which no request began, from [`BEFORE`] the fault to the end of [`WINDOW`]. Outcomes are in the
/// order of their starts.
fn longest_pause(outcomes: &[Outcome], fault: Instant) -> Duration {
    let starts = outcomes.iter().map(|outcome| outcome.started);
    let starts: Vec<Instant> =
        starts.filter(|start| *start + BEFORE >= fault && *start <= fault + WINDOW).collect();
    starts.windows(2).map(|pair| pair[1].duration_since(pair[0])).max().unwrap_or(BEFORE + WINDOW)
}

fn kind(outcome: &Outcome) -> Kind {
    match &outcome.result {
        Err(_) => Kind::Failed,
        Ok(_) if outcome.finished.duration_since(outcome.started) > SLOW => Kind::Slow,
        Ok(_) => Kind::Ok,
    }
}

fn empty_series() -> Vec<Bin> {
    let width = millis(BIN).cast_signed();
    let first = -millis(BEFORE).cast_signed();
    let count = i64::try_from((BEFORE + WINDOW).as_millis()).unwrap_or(i64::MAX) / width;
    (0..count).map(|n| Bin { ms: first + n * width, ..Bin::default() }).collect()
}

fn bin_of(since: i64) -> Option<usize> {
    let from_start = u64::try_from(since + millis(BEFORE).cast_signed()).ok()?;
    usize::try_from(from_start / millis(BIN)).ok()
}

/// Whole milliseconds, rounded down before the fault too: nothing before it counts as after.
fn millis_since(fault: Instant, moment: Instant) -> i64 {
    match moment.checked_duration_since(fault) {
        Some(after) => millis(after).cast_signed(),
        None => -i64::try_from(fault.duration_since(moment).as_micros().div_ceil(1000)).unwrap_or(i64::MAX),
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Answer, Failure};

    fn answer() -> Result<Answer, Failure> {
        Ok(Answer { pod: "a-1".into(), cluster: "a".into(), client: String::new(), syn_retransmissions: 0 })
    }

    /// An outcome that started `ms` after the fault and took so long.
    fn outcome(fault: Instant, ms: i64, took: u64, result: Result<Answer, Failure>) -> Outcome {
        let distance = Duration::from_millis(ms.unsigned_abs());
        let started = if ms < 0 { fault - distance } else { fault + distance };
        Outcome { started, finished: started + Duration::from_millis(took), result }
    }

    fn at(run: &Run, ms: i64) -> (u64, u64, u64) {
        let bin = run.series.iter().find(|bin| bin.ms == ms).unwrap();
        (bin.ok, bin.slow, bin.failed)
    }

    #[test]
    fn requests_count_by_their_start_and_only_after_the_fault() {
        let fault = Instant::now() + Duration::from_secs(60);
        let run = Run::of(
            &[
                outcome(fault, -1001, 1, answer()),
                outcome(fault, -1000, 1, answer()),
                outcome(fault, -1, 1500, Err(Failure::Timeout)),
                outcome(fault, 0, 1, answer()),
                outcome(fault, 49, 200, answer()),
                outcome(fault, 50, 201, answer()),
                outcome(fault, 120, 1040, answer()),
                outcome(fault, 121, 2, Err(Failure::Refused)),
                outcome(fault, 4999, 1, answer()),
                outcome(fault, 5000, 1, Err(Failure::Refused)),
            ],
            fault,
        );
        assert_eq!((run.requests, run.failed, run.slow), (6, 1, 2));
        assert_eq!((run.slowest_ms, run.ms_until_last_bad, run.without_end), (1040, 121, false));
        assert_eq!(run.longest_pause_ms, 4878);
        assert_eq!(run.waited_ms, 201 + 1040 + 2);
        assert_eq!(run.series.len(), 120);
        assert_eq!(run.series.iter().map(|bin| bin.ok + bin.slow + bin.failed).sum::<u64>(), 8);
        assert_eq!((at(&run, -1000), at(&run, -50)), ((1, 0, 0), (0, 0, 1)));
        assert_eq!((at(&run, 0), at(&run, 50), at(&run, 100)), ((2, 0, 0), (0, 1, 0), (0, 1, 1)));
        assert_eq!(at(&run, 4950), (1, 0, 0));
    }

    #[test]
    fn what_started_less_than_a_millisecond_before_the_fault_is_not_of_the_fault() {
        let fault = Instant::now();
        let mut just_before = outcome(fault, 0, 1500, Err(Failure::Timeout));
        just_before.started = fault - Duration::from_micros(400);
        let run = Run::of(&[just_before], fault);
        assert_eq!((run.requests, at(&run, -50), at(&run, 0)), (0, (0, 0, 1), (0, 0, 0)));
    }

    #[test]
    fn a_pause_of_the_client_counts_around_the_fault_only() {
        let fault = Instant::now() + Duration::from_secs(60);
        let at = |ms| outcome(fault, ms, 1, answer());
        let steady: Vec<Outcome> = (-100..600).map(|n| at(10 * n)).collect();
        assert_eq!(longest_pause(&steady, fault), Duration::from_millis(10));
        let paused = [-5000, -1000, -990, -900, 5000, 6000].map(at);
        assert_eq!(longest_pause(&paused, fault), Duration::from_millis(5900));
        assert_eq!(longest_pause(&[at(-4000), at(-2000)], fault), BEFORE + WINDOW);
    }

    #[test]
    fn failing_up_to_the_end_of_the_window_is_without_end() {
        let fault = Instant::now();
        let run = |ms| Run::of(&[outcome(fault, ms, 5000, Err(Failure::Timeout))], fault);
        assert!(!run(4499).without_end);
        assert!(run(4500).without_end);
        assert_eq!(run(4980).ms_until_last_bad, 4980);
        let well = Run::of(&[outcome(fault, 4990, 1, answer())], fault);
        assert_eq!((well.ms_until_last_bad, well.without_end), (0, false));
    }
}
