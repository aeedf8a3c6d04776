//! Clusters that fail as a whole: a link, a power supply or a network policy takes all endpoints of a cluster away at
//! once. Waiting until each has failed its own probes often enough would send users there meanwhile, and would move
//! traffic bit by bit. A state machine without I/O and without a clock.
//!
//! A cluster *fails* when of its pods (addresses, because a pod with two ports is no cluster) at least 80 percent,
//! and two at least, have begun to fail within the window, and two of these so often that their own verdict is out.
//! The others are believed by their latest probe alone. Pods that failed before the window count on neither side:
//! attrition is no failure of the cluster. A pod that answers on one port has not failed; one that is neither probed
//! nor ejected is taken to answer, because nobody has seen it fail. So a cluster with one pod never fails as a
//! whole: its pod's own verdict says all.
//!
//! A failed cluster *returns* when half of its pods answer: those that stay away are judged one by one again. Its
//! share of new flows then grows over the slow start of each service; where the service's policy holds a region back
//! for a time first, from the end of that time on.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Ejections, ProbeTarget, Verdict, Verdicts};
use crate::desired::{BackendId, Endpoint, Locality, Policy, Service};

/// Of the pods that can still fail, so many percent must.
const FAILING_PERCENT: usize = 80;

/// So many pods must fail, and so many by their own verdict: fewer may have reasons of their own.
const FEWEST_FAILING: usize = 2;

/// Of all pods, so many percent must answer before the cluster is used again; far enough from 20 percent that a
/// pod more or less does not matter.
const ANSWERING_PERCENT: usize = 50;

/// The shortest window. Probes that are more frequent, or connections that fail where nothing is probed, do not make
/// a failure of the link any more sudden: routes take seconds to go.
const SHORTEST_WINDOW: Duration = Duration::from_secs(10);

/// The share of a cluster that returns grows in so many equal steps, the first of them at once: each step rebuilds
/// rings.
const STEPS: u32 = 10;

/// What became of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// None of its endpoints should get new flows.
    Failed {
        /// The cluster.
        cluster: String,
        /// Pods that fail.
        failing: usize,
        /// Pods that it has.
        pods: usize,
    },
    /// Its endpoints are judged one by one again.
    Returned {
        /// The cluster.
        cluster: String,
    },
}

/// The state of all clusters.
#[derive(Debug, Default)]
pub struct Clusters {
    clusters: BTreeMap<String, Cluster>,
    /// What services ask for.
    ramps: BTreeSet<Ramp>,
    /// When time was last told.
    now: Option<Instant>,
    changes: VecDeque<Change>,
}

#[derive(Debug, Default)]
struct Cluster {
    /// Since when pods fail.
    failing: BTreeMap<IpAddr, Instant>,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    #[default]
    Serving,
    Failed,
    /// Back since then.
    Returning(Instant),
}

/// How the share of a cluster that is back grows in a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ramp {
    /// From so long after the return on: before it the region gets nothing, as a rule.
    from: Duration,
    /// Not zero.
    over: Duration,
}

/// What is known of a backend, or of a pod; what is later outweighs what is before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Opinion {
    /// Nobody asks.
    Silent,
    /// No probe has ended yet.
    Unknown,
    /// The latest probe failed.
    Doubted,
    /// The verdict is out.
    Failing,
    /// It answers probes.
    Answering,
    /// Users' connections fail, whatever probes say.
    Ejected,
}

/// What is known of a cluster at a moment.
#[derive(Default)]
struct Sight {
    pods: BTreeMap<IpAddr, Opinion>,
    window: Duration,
}

impl Clusters {
    /// Looks at all endpoints anew; whether a cluster has failed or returned. To be called whenever one of the
    /// arguments has changed.
    pub fn update<'a>(
        &mut self,
        now: Instant,
        services: impl IntoIterator<Item = (&'a Service, &'a Policy)>,
        verdicts: &Verdicts,
        ejections: &Ejections,
    ) -> bool {
        self.ramps.clear();
        let mut opinions: BTreeMap<&str, HashMap<BackendId, Opinion>> = BTreeMap::new();
        let mut windows: BTreeMap<&str, Duration> = BTreeMap::new();
        for (service, policy) in services {
            self.ramps.extend(Ramp::of(policy));
            for endpoint in &service.endpoints {
                // A cluster is remembered as long as it has endpoints, ready or not.
                let of_cluster = opinions.entry(&endpoint.cluster).or_default();
                let window = windows.entry(&endpoint.cluster).or_insert(SHORTEST_WINDOW);
                if !endpoint.takes_new_flows() {
                    continue;
                }
                let opinion = opinion(service, endpoint, verdicts, ejections);
                let known = of_cluster.entry(endpoint.backend).or_insert(opinion);
                *known = opinion.max(*known);
                // Whoever fails at once is noticed within an interval and a timeout; jitter and a busy prober may
                // take another interval.
                let check = &service.health_check;
                *window = (*window).max(2 * check.interval + check.timeout);
            }
        }
        let mut changed = false;
        self.clusters.retain(|name, cluster| {
            let stays = opinions.contains_key(name.as_str());
            changed |= !stays && cluster.standing != Standing::Serving;
            stays
        });
        for (cluster, opinions) in opinions {
            let sight = Sight { pods: by_pod(opinions), window: windows[cluster] };
            let state = self.clusters.entry(cluster.to_owned()).or_default();
            let change = state.see(now, cluster, &sight);
            changed |= change.is_some();
            self.changes.extend(change);
        }
        self.handle_timeout(now);
        changed
    }

    /// When a share grows next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let now = self.now?;
        let returning = self.clusters.values().filter_map(|cluster| cluster.returned());
        let steps = returning.flat_map(|since| {
            let elapsed = now.saturating_duration_since(since);
            let next = self.ramps.iter().filter_map(move |ramp| ramp.next_step(elapsed));
            next.map(move |step| since + step)
        });
        steps.min()
    }

    /// Lets time pass: shares may have grown.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = Some(now);
        let longest = self.ramps.iter().map(Ramp::end).max().unwrap_or_default();
        for cluster in self.clusters.values_mut() {
            if cluster.returned().is_some_and(|since| now.saturating_duration_since(since) >= longest) {
                cluster.standing = Standing::Serving;
            }
        }
    }

    /// The next change to tell, if there is one. Call it until there is none.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// The clusters that have failed as a whole.
    #[must_use]
    pub fn failed(&self) -> BTreeSet<String> {
        let failed = self.clusters.iter().filter(|(_, cluster)| cluster.standing == Standing::Failed);
        failed.map(|(name, _)| name.clone()).collect()
    }

    /// What part of its full share a cluster that returns gets in a service with this policy, in percent: 10 to 90
    /// in tens. Clusters that are not in it get 100.
    #[must_use]
    pub fn shares(&self, now: Instant, policy: &Policy) -> BTreeMap<String, u32> {
        let Some(ramp) = Ramp::of(policy) else { return BTreeMap::new() };
        let share = |(name, cluster): (&String, &Cluster)| {
            let step = ramp.step(now.saturating_duration_since(cluster.returned()?))?;
            Some((name.clone(), (step + 1) * 100 / STEPS))
        };
        self.clusters.iter().filter_map(share).collect()
    }
}

impl Ramp {
    fn of(policy: &Policy) -> Option<Self> {
        let from = match policy.locality {
            Locality::Even => Duration::ZERO,
            Locality::Failover { .. } | Locality::Distribute { .. } => policy.failback_delay,
        };
        (!policy.slow_start.is_zero()).then_some(Self { from, over: policy.slow_start })
    }

    fn end(&self) -> Duration {
        self.from + self.over
    }

    /// The step that a share has reached so long after the return, 0 to `STEPS` − 2; `None`: it is full.
    fn step(&self, elapsed: Duration) -> Option<u32> {
        let done =
            elapsed.saturating_sub(self.from).as_nanos() * u128::from(STEPS - 1) / self.over.as_nanos();
        u32::try_from(done).ok().filter(|step| *step < STEPS - 1)
    }

    /// How long after the return the next step is.
    fn next_step(&self, elapsed: Duration) -> Option<Duration> {
        let next = u128::from(self.step(elapsed)? + 1);
        let after = (self.over.as_nanos() * next).div_ceil(u128::from(STEPS - 1));
        Some(self.from + Duration::from_nanos(u64::try_from(after).unwrap_or(u64::MAX)))
    }
}

impl Cluster {
    fn see(&mut self, now: Instant, name: &str, sight: &Sight) -> Option<Change> {
        let fails = |pod: &IpAddr| matches!(sight.pods.get(pod), Some(Opinion::Doubted | Opinion::Failing));
        self.failing.retain(|pod, _| fails(pod));
        for pod in sight.pods.keys().filter(|pod| fails(pod)) {
            self.failing.entry(*pod).or_insert(now);
        }
        if self.standing == Standing::Failed {
            if !answers_again(sight) {
                return None;
            }
            self.standing = Standing::Returning(now);
            return Some(Change::Returned { cluster: name.to_owned() });
        }
        if !self.fails_as_a_whole(now, sight) {
            return None;
        }
        self.standing = Standing::Failed;
        let (failing, pods) = (self.failing.len(), sight.pods.len());
        Some(Change::Failed { cluster: name.to_owned(), failing, pods })
    }

    fn fails_as_a_whole(&self, now: Instant, sight: &Sight) -> bool {
        let recent = |since: &Instant| now.saturating_duration_since(*since) <= sight.window;
        let fresh = self.failing.iter().filter(|(_, since)| recent(since));
        let opinions: Vec<_> = fresh.filter_map(|(pod, _)| sight.pods.get(pod)).collect();
        let confirmed = opinions.iter().filter(|opinion| ***opinion == Opinion::Failing).count();
        let before = self.failing.len() - opinions.len();
        let could_fail = sight.pods.len() - before;
        confirmed >= FEWEST_FAILING && opinions.len() * 100 >= could_fail * FAILING_PERCENT
    }

    /// Since when it is back, while shares may still grow.
    fn returned(&self) -> Option<Instant> {
        match self.standing {
            Standing::Returning(since) => Some(since),
            Standing::Serving | Standing::Failed => None,
        }
    }
}

fn answers_again(sight: &Sight) -> bool {
    let answers = |opinion: &&Opinion| matches!(opinion, Opinion::Answering | Opinion::Silent);
    let answering = sight.pods.values().filter(answers).count();
    answering > 0 && answering * 100 >= sight.pods.len() * ANSWERING_PERCENT
}

fn opinion(service: &Service, endpoint: &Endpoint, verdicts: &Verdicts, ejections: &Ejections) -> Opinion {
    if ejections.of(&service.id, &endpoint.backend).is_some() {
        return Opinion::Ejected;
    }
    let Some(target) = ProbeTarget::of(endpoint, &service.health_check) else { return Opinion::Silent };
    match verdicts.of(&target) {
        Verdict::Unknown => Opinion::Unknown,
        Verdict::Unhealthy { .. } => Opinion::Failing,
        Verdict::Healthy if verdicts.latest_failed(&target) => Opinion::Doubted,
        Verdict::Healthy => Opinion::Answering,
    }
}

/// A pod answers if one of its backends does.
fn by_pod(backends: HashMap<BackendId, Opinion>) -> BTreeMap<IpAddr, Opinion> {
    let mut pods = BTreeMap::new();
    for (backend, opinion) in backends {
        let opinion = if opinion == Opinion::Ejected { Opinion::Failing } else { opinion };
        let known = pods.entry(backend.address).or_insert(opinion);
        *known = opinion.max(*known);
    }
    pods
}

#[cfg(test)]
#[path = "clusters_tests.rs"]
mod tests;
