//! The prober in virtual time: [`World`] stands for network and clock.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::*;
use crate::desired::HealthCheck;

const MILLISECOND: Duration = Duration::from_millis(1);

fn check(interval_ms: u64, timeout_ms: u64) -> HealthCheck {
    HealthCheck {
        interval: Duration::from_millis(interval_ms),
        timeout: Duration::from_millis(timeout_ms),
        ..HealthCheck::default()
    }
}

fn target(number: u32, check: &HealthCheck) -> ProbeTarget {
    let [_, a, b, c] = number.to_be_bytes();
    ProbeTarget { address: SocketAddr::from(([10, a, b, c], 80)), check: check.clone() }
}

fn targets(count: u32, check: &HealthCheck) -> HashSet<ProbeTarget> {
    (0..count).map(|number| target(number, check)).collect()
}

/// What happens to a target's probes.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Accepts,
    Refuses,
    Silent,
    NoDescriptor,
}

struct World {
    now: Instant,
    prober: Prober,
    answer: Box<dyn Fn(&ProbeTarget) -> Answer>,
    ends: BTreeMap<(Instant, ProbeId), Outcome>,
    /// Start times of every probe, by address.
    started: HashMap<SocketAddr, Vec<Instant>>,
    most_in_flight: usize,
}

impl World {
    fn new(max_in_flight: usize, answer: impl Fn(&ProbeTarget) -> Answer + 'static) -> Self {
        Self {
            now: Instant::now(),
            prober: Prober::new(max_in_flight, 7),
            answer: Box::new(answer),
            ends: BTreeMap::new(),
            started: HashMap::new(),
            most_in_flight: 0,
        }
    }

    fn set(&mut self, targets: &HashSet<ProbeTarget>) {
        self.prober.set_targets(self.now, targets);
    }

    fn answers(&mut self, answer: impl Fn(&ProbeTarget) -> Answer + 'static) {
        self.answer = Box::new(answer);
    }

    /// Lets time pass, from event to event.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            while let Some(probe) = self.prober.poll_probe(self.now) {
                self.start(probe);
            }
            self.most_in_flight = self.most_in_flight.max(self.prober.in_flight());
            let result = self.ends.first_key_value().map(|((time, _), _)| *time);
            let next = [self.prober.poll_timeout(), result].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            while let Some(entry) = self.ends.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let ((_, id), outcome) = entry.remove_entry();
                self.prober.handle_result(self.now, id, outcome);
            }
        }
        self.now = end;
    }

    fn start(&mut self, probe: Probe) {
        let reason = || Arc::<str>::from("refused");
        let (after, outcome) = match (self.answer)(&probe.target) {
            Answer::Accepts => (MILLISECOND, Outcome::Success),
            Answer::Refuses => (MILLISECOND, Outcome::Failure { reason: reason() }),
            Answer::Silent => (probe.target.check.timeout, Outcome::Failure { reason: "no answer".into() }),
            Answer::NoDescriptor => (MILLISECOND, Outcome::Inconclusive { reason: reason() }),
        };
        self.started.entry(probe.target.address).or_default().push(self.now);
        self.ends.insert((self.now + after, probe.id), outcome);
    }

    fn verdict(&self, target: &ProbeTarget) -> Verdict {
        self.prober.verdicts().of(target).clone()
    }

    fn is_unhealthy(&self, target: &ProbeTarget) -> bool {
        matches!(self.verdict(target), Verdict::Unhealthy { .. })
    }
}

#[test]
fn the_first_success_is_enough() {
    let check = check(5000, 1000);
    let mut world = World::new(256, |_| Answer::Accepts);
    world.set(&targets(1, &check));
    assert_eq!(world.verdict(&target(0, &check)), Verdict::Unknown);
    world.run(10 * MILLISECOND);
    assert_eq!(world.verdict(&target(0, &check)), Verdict::Healthy);
}

#[test]
fn the_first_failure_decides_too() {
    let check = check(5000, 1000);
    let mut world = World::new(256, |_| Answer::Refuses);
    world.set(&targets(1, &check));
    world.run(10 * MILLISECOND);
    assert_eq!(world.verdict(&target(0, &check)), Verdict::Unhealthy { reason: "refused".into() });
}

#[test]
fn thresholds_count_results_in_a_row() {
    let check = check(1000, 300);
    let only = target(0, &check);
    let mut prober = Prober::new(256, 1);
    let mut now = Instant::now();
    prober.set_targets(now, &targets(1, &check));
    let mut step = |success: bool| {
        now += check.interval;
        let probe = prober.poll_probe(now).expect("due");
        let failure = Outcome::Failure { reason: "refused".into() };
        prober.handle_result(now, probe.id, if success { Outcome::Success } else { failure });
        *prober.verdicts().of(&only) == Verdict::Healthy
    };
    assert!(step(true));
    // Three failures in a row make it unhealthy; a success between them starts the count again.
    assert_eq!(
        [false, false, true, false, false, false].map(&mut step),
        [true, true, true, true, true, false]
    );
    // Two successes in a row make it healthy again.
    assert_eq!([true, false, true, true].map(&mut step), [false, false, false, true]);
}

#[test]
fn a_dead_pod_is_noticed_within_the_promised_time() {
    let check = HealthCheck { unhealthy_threshold: 2, ..check(500, 300) };
    let only = target(0, &check);
    let mut world = World::new(256, |_| Answer::Accepts);
    world.set(&targets(1, &check));
    world.run(Duration::from_millis(10_321));
    world.answers(|_| Answer::Refuses);
    world.run(Duration::from_millis(1_002));
    assert!(world.is_unhealthy(&only));
}

#[test]
fn probes_keep_their_interval_with_a_little_jitter() {
    let check = check(1000, 300);
    let mut world = World::new(256, |_| Answer::Accepts);
    world.set(&targets(1, &check));
    world.run(Duration::from_secs(60));
    let starts = &world.started[&target(0, &check).address];
    let gaps: Vec<_> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (900 * MILLISECOND..=1000 * MILLISECOND).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().collect::<HashSet<_>>().len() > 50, "no jitter: {gaps:?}");
}

#[test]
fn the_same_seed_gives_the_same_schedule() {
    let schedule = || {
        let check = check(1000, 300);
        let mut world = World::new(256, |_| Answer::Accepts);
        let begin = world.now;
        world.set(&targets(20, &check));
        world.run(Duration::from_secs(5));
        let started: BTreeMap<_, Vec<_>> = world
            .started
            .iter()
            .map(|(address, starts)| (*address, starts.iter().map(|start| *start - begin).collect()))
            .collect();
        started
    };
    assert_eq!(schedule(), schedule());
}

#[test]
fn ten_thousand_backends_need_few_places_and_are_all_probed_in_every_interval() {
    let check = check(5000, 1000);
    let mut world = World::new(256, |_| Answer::Accepts);
    world.set(&targets(10_000, &check));
    world.run(Duration::from_secs(30));
    assert!(world.most_in_flight <= 64, "{} places used", world.most_in_flight);
    assert_eq!(world.started.len(), 10_000);
    assert!(world.started.values().all(|starts| (5..=7).contains(&starts.len())));
}

#[test]
fn the_limit_of_probes_in_flight_is_kept() {
    let check = check(5000, 1000);
    let mut world = World::new(256, |_| Answer::Silent);
    world.set(&targets(10_000, &check));
    world.run(Duration::from_secs(20));
    assert_eq!(world.most_in_flight, 256);
}

#[test]
fn silent_targets_do_not_starve_those_that_answer() {
    let check = check(5000, 1000);
    let is_silent = |target: &ProbeTarget| target.address.to_string().ends_with("1:80");
    let answer = move |target: &ProbeTarget| if is_silent(target) { Answer::Silent } else { Answer::Accepts };
    let mut world = World::new(64, |_| Answer::Accepts);
    world.set(&targets(4_000, &check));
    world.run(Duration::from_secs(10));
    world.answers(answer);
    // Long enough for every silent one to have failed once.
    world.run(Duration::from_secs(20));
    let begin = world.now;
    world.run(Duration::from_secs(30));
    for (address, starts) in &world.started {
        if address.to_string().ends_with("1:80") {
            continue;
        }
        let recent: Vec<_> = starts.iter().filter(|start| **start >= begin).collect();
        let longest = recent.windows(2).map(|pair| *pair[1] - *pair[0]).max().expect("probed");
        assert!(longest <= check.interval + check.timeout, "{address} waited {longest:?}");
    }
}

#[test]
fn a_thousand_backends_that_die_at_once_are_no_probe_storm() {
    let check = HealthCheck { unhealthy_threshold: 2, ..check(1000, 500) };
    for death in [Answer::Refuses, Answer::Silent] {
        let mut world = World::new(2048, |_| Answer::Accepts);
        world.set(&targets(1000, &check));
        world.run(Duration::from_secs(10));
        let die = world.now;
        world.answers(move |_| death);
        world.run(Duration::from_secs(10));
        world.answers(|_| Answer::Accepts);
        world.run(Duration::from_secs(10));
        // Each is probed once in 0.9 to 1 s, dead or alive: in any tenth of a second some hundred and no heap, and
        // none more often than that.
        let mut starts: Vec<_> = world.started.values().flatten().filter(|start| **start >= die).collect();
        starts.sort();
        let most = starts.windows(301).map(|window| *window[300] - *window[0]).min().expect("many");
        assert!(most > 100 * MILLISECOND, "300 probes within {most:?}");
        assert!(starts.len() <= 1000 * 23, "{} probes in 20 s", starts.len());
        for starts in world.started.values() {
            assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= 900 * MILLISECOND));
        }
    }
}

#[test]
fn one_failed_probe_is_told_before_it_changes_the_verdict() {
    let check = check(1000, 300);
    let only = target(0, &check);
    let mut world = World::new(256, |_| Answer::Accepts);
    world.set(&targets(1, &check));
    world.run(Duration::from_secs(5));
    world.prober.take_news();
    let before = world.prober.verdicts();
    world.answers(|_| Answer::Refuses);
    world.run(Duration::from_secs(1));
    assert_eq!(world.prober.take_news(), Some(News::LatestProbes));
    assert_eq!(world.verdict(&only), Verdict::Healthy);
    assert!(world.prober.verdicts() != before && world.prober.verdicts().agree_with(&before));
    assert!(world.prober.verdicts().latest_failed(&only));
    world.answers(|_| Answer::Accepts);
    world.run(Duration::from_secs(1));
    assert_eq!(world.prober.take_news(), Some(News::LatestProbes));
    assert!(!world.prober.verdicts().latest_failed(&only));
    world.answers(|_| Answer::Refuses);
    world.run(Duration::from_secs(4));
    assert_eq!(world.prober.take_news(), Some(News::Verdicts));
    assert!(!world.prober.verdicts().agree_with(&before));
}

#[test]
fn a_gateway_that_fell_behind_does_not_catch_up_in_a_burst() {
    let check = check(1000, 300);
    let mut prober = Prober::new(256, 1);
    let mut now = Instant::now();
    prober.set_targets(now, &targets(1, &check));
    now += Duration::from_secs(60);
    let probe = prober.poll_probe(now).expect("overdue");
    prober.handle_result(now, probe.id, Outcome::Success);
    assert_eq!(prober.poll_probe(now), None);
    assert!(prober.poll_timeout().expect("waits") >= now + 900 * MILLISECOND);
}

#[test]
fn targets_that_stay_keep_their_verdict_and_schedule() {
    let check = check(5000, 1000);
    let mut world = World::new(256, |_| Answer::Refuses);
    world.set(&targets(2, &check));
    world.run(Duration::from_secs(1));
    let before = world.started.clone();
    world.set(&targets(3, &check));
    assert!(world.is_unhealthy(&target(0, &check)));
    assert_eq!(world.verdict(&target(2, &check)), Verdict::Unknown);
    world.run(Duration::from_secs(1));
    assert_eq!(world.started[&target(0, &check).address], before[&target(0, &check).address]);
    assert!(world.is_unhealthy(&target(2, &check)));
}

#[test]
fn a_removed_target_is_forgotten_and_its_late_result_ignored() {
    let check = check(5000, 1000);
    let only = target(0, &check);
    let mut prober = Prober::new(256, 1);
    let now = Instant::now() + Duration::from_secs(1);
    prober.set_targets(now, &targets(1, &check));
    let probe = prober.poll_probe(now + MILLISECOND).expect("due");
    prober.set_targets(now, &HashSet::new());
    prober.set_targets(now, &targets(1, &check));
    prober.handle_result(now + 2 * MILLISECOND, probe.id, Outcome::Failure { reason: "late".into() });
    assert_eq!(*prober.verdicts().of(&only), Verdict::Unknown);
    assert_eq!(prober.in_flight(), 0);
    assert!(prober.poll_probe(now + MILLISECOND).is_some());
}

#[test]
fn a_gateway_that_cannot_probe_blames_nobody() {
    let check = check(1000, 300);
    let only = target(0, &check);
    let mut world = World::new(256, |_| Answer::Accepts);
    world.set(&targets(1, &check));
    world.run(Duration::from_secs(1));
    world.answers(|_| Answer::NoDescriptor);
    world.run(Duration::from_secs(30));
    assert_eq!(world.verdict(&only), Verdict::Healthy);
    assert!(world.started[&only.address].len() > 25, "it goes on trying");
}

#[test]
fn changes_are_reported_once() {
    let check = check(1000, 300);
    let mut world = World::new(256, |_| Answer::Accepts);
    world.set(&targets(1, &check));
    assert_eq!(world.prober.take_news(), Some(News::Verdicts));
    assert_eq!(world.prober.take_news(), None);
    world.run(10 * MILLISECOND);
    assert_eq!(world.prober.take_news(), Some(News::Verdicts));
    world.run(Duration::from_secs(5));
    assert_eq!(world.prober.take_news(), None);
    world.set(&HashSet::new());
    assert_eq!(world.prober.take_news(), Some(News::Verdicts));
}
