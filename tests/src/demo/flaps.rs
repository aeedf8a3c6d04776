//! A region that comes and goes, and the eye on the ring meanwhile.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    locality::{FAILOVER, HOME, PATIENCE, expect_there_and_back, pods_of, wait_until_home_alone},
    report::{Move, StepReport, hundredths, millis},
    stage::Stage,
    world::{Directory, FAST_PROBES, World, wait_for_verdict},
};
use crate::{
    client::{SteadyLoad, Tally},
    scene::Rings,
    topology::Pod,
};

/// How often the region fails.
const FLAPS: usize = 10;
/// How long it is down each time, and up: story's five seconds, in short.
const PHASE: Duration = Duration::from_secs(1);
/// Longer than it is ever up.
const FAILBACK_DELAY: Duration = Duration::from_secs(4);
/// Between two looks at the ring's version.
const LOOK: Duration = Duration::from_millis(5);

/// hangzhou comes and goes ten times: new connections leave it once and come back once, when it has stayed.
pub(super) fn flapping(stage: &mut Stage) -> Result<StepReport> {
    let delay = FAILBACK_DELAY.as_secs();
    let policy = format!(
        "{}{FAST_PROBES}",
        FAILOVER.replace("{failover", &format!("{{failbackDelay: {delay}s, failover"))
    );
    stage.scene(&World { hangzhou: 3, probed: true, policy: Some(&policy) }, |stage| {
        wait_until_home_alone(stage)?;
        let directory = stage.directory();
        let pods = pods_of(&stage.bed, HOME);
        let ring = RingWatch::begin(stage, |pod| pod.cluster == HOME)?;
        let load = SteadyLoad { timeout: PATIENCE, ..SteadyLoad::new(stage.bed.vip_http(), 100) };
        let _watch = stage.screen.watch(&load.live);
        let load = stage.bed.client().load(load)?;
        thread::sleep(PHASE);
        let fault = Instant::now();
        let (mut healed, mut longest_up) = (fault, Duration::ZERO);
        for flap in 0..FLAPS {
            if flap > 0 {
                longest_up = longest_up.max(healed.elapsed());
            }
            let down = Instant::now();
            stage.cut(HOME)?;
            wait_for_verdict(&mut stage.agent, &pods, false)?;
            thread::sleep(PHASE.saturating_sub(down.elapsed()));
            healed = Instant::now();
            stage.mend(HOME)?;
            wait_for_verdict(&mut stage.agent, &pods, true)?;
            thread::sleep(PHASE.saturating_sub(healed.elapsed()));
        }
        stage.ring_when(|ring| directory.of_cluster(ring, HOME) == 100.0)?;
        let back = healed.elapsed();
        thread::sleep(PHASE);
        let outcomes = load.stop().outcomes;
        let moves = ring.end(fault)?;

        let mut report = StepReport::of(&outcomes.iter().filter(|o| o.started >= fault).collect::<Tally>());
        report.ms = moves.first().map(|first| first.ms);
        report.detail("flaps", FLAPS);
        report.detail("back_ms", millis(back));
        report.expect_none_failed();
        report.expect(longest_up < FAILBACK_DELAY, || {
            format!("it was up for {longest_up:?}: this machine is too slow to see it flap")
        });
        report.expect(back >= FAILBACK_DELAY, || format!("it was back {back:?} after it had healed"));
        let left = fault + Duration::from_millis(moves.first().map_or(0, |first| first.ms));
        let meanwhile = outcomes.iter().filter(|outcome| {
            (left..healed).contains(&outcome.started)
                && outcome.result.as_ref().is_ok_and(|answer| answer.cluster == HOME)
        });
        let strays = meanwhile.count();
        report.expect(strays == 0, || format!("{strays} new connections reached {HOME} while it flapped"));
        expect_there_and_back(&mut report, moves);
        Ok(report)
    })
}

/// Follows the share of some pods in the ring of the TCP service, in a thread of its own.
pub(super) struct RingWatch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Seen>>>>,
}

/// A share of the ring, in percent, and when it was first seen.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    at: Instant,
    percent: f64,
}

impl RingWatch {
    pub(super) fn begin(stage: &Stage, is: fn(&Pod) -> bool) -> Result<RingWatch> {
        let rings = Rings::open(&stage.bed.bpffs())?;
        let (service, directory) = (stage.bed.vip_http(), stage.directory());
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let thread = thread::spawn(move || follow(&rings, service, &directory, is, &ended));
        Ok(RingWatch { stop, thread: Some(thread) })
    }

    /// Ends it; the moves since the beginning, with their times from `zero`.
    pub(super) fn end(mut self, zero: Instant) -> Result<Vec<Move>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it ends once");
        let seen = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(moves(&seen, zero))
    }
}

impl Drop for RingWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whoever drops it has given up already.
            let _ = thread.join();
        }
    }
}

fn follow(
    rings: &Rings,
    service: SocketAddr,
    directory: &Directory,
    is: fn(&Pod) -> bool,
    stop: &AtomicBool,
) -> Result<Vec<Seen>> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut version = None;
    while !stop.load(Ordering::Relaxed) {
        let now = rings.version(service)?;
        // A ring that was there for a few milliseconds may be missed; connections tell of it.
        if version != Some(now) {
            let ring = rings.of(service)?;
            version = Some(ring.version);
            seen.push(Seen { at: Instant::now(), percent: directory.percent(&ring, is) });
        }
        thread::sleep(LOOK);
    }
    Ok(seen)
}

/// The moves of a share: each is a time in which it only rises or only falls.
fn moves(seen: &[Seen], zero: Instant) -> Vec<Move> {
    let mut moves: Vec<Move> = Vec::new();
    for pair in seen.windows(2) {
        let (from, to) = (hundredths(pair[0].percent), hundredths(pair[1].percent));
        let ms = millis(pair[1].at.saturating_duration_since(zero));
        match moves.last_mut() {
            _ if from == to => {}
            Some(last) if (last.to > last.from) == (to > from) => (last.to, last.ms) = (to, ms),
            _ => moves.push(Move { ms, from, to }),
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moves_of(percents: &[f64]) -> Vec<(u64, f64, f64)> {
        let zero = Instant::now();
        let seen: Vec<Seen> = (0..)
            .zip(percents)
            .map(|(n, percent)| Seen { at: zero + Duration::from_millis(n * 100), percent: *percent })
            .collect();
        moves(&seen, zero).into_iter().map(|found| (found.ms, found.from, found.to)).collect()
    }

    #[test]
    fn a_share_that_falls_in_steps_and_comes_back_has_moved_twice() {
        assert_eq!(moves_of(&[100.0, 93.0, 93.0, 0.0, 0.0, 100.0]), [(300, 100.0, 0.0), (500, 0.0, 100.0)]);
        assert_eq!(moves_of(&[100.0, 100.0]), []);
        assert_eq!(moves_of(&[]), []);
    }

    #[test]
    fn a_share_that_turns_round_on_the_way_has_moved_more_often() {
        let flaps = moves_of(&[100.0, 0.0, 46.0, 0.0, 100.0]);
        assert_eq!(flaps.len(), 4, "{flaps:?}");
        assert_eq!(moves_of(&[100.0, 93.0, 100.0, 0.0]).len(), 3);
    }
}
