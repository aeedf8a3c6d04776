//! `bench connections`: what clients see, and what it costs, on story S1's network: Kanmon, HAProxy, nftables, and a pod
//! without anybody between.
//!
//! Contenders take turns in each round. All of them share the machine's CPUs with client and servers. Processor time is
//! that of this process (the client), of all that the network runs, and of the kernel's threads that receive; on kernels
//! that charge packets to whoever runs meanwhile (without `CONFIG_IRQ_TIME_ACCOUNTING`) that is all there is. What a
//! contender takes beyond the direct way is what is spent outside client and servers.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};

use super::report::{Range, Report, Served};
use crate::{
    bench::{
        contender::{Checks, Contender},
        progress::Progress,
        samples::ratio,
    },
    client::{Client, Close, Hold, TcpLoad},
    netns::clean_on_signals,
    topology::{Bed, Options, POD_PORT},
};

/// How pods are looked at, as in `examples/`.
const CHECKS: Checks = Checks { interval: Duration::from_millis(500), timeout: Duration::from_millis(300) };
/// The direct way's name.
pub(super) const DIRECT: &str = "direct";
pub(super) const NEW: &str = "new";
/// Requests and connections under way at once.
const AT_ONCE: usize = 64;
/// Connections over which bulk goes.
const BULK: usize = 4;

/// How much is measured.
struct Plan {
    rounds: u32,
    new: usize,
    asking: Duration,
    /// Connections that are open at once.
    open: usize,
    /// Bytes over each connection.
    bulk: usize,
}

const FULL: Plan =
    Plan { rounds: 5, new: 20_000, asking: Duration::from_secs(5), open: 3000, bulk: 512 << 20 };
const QUICK: Plan =
    Plan { rounds: 2, new: 1500, asking: Duration::from_millis(500), open: 500, bulk: 32 << 20 };

/// What a contender did in one round.
struct Sample {
    what: &'static str,
    unit: &'static str,
    per_second: f64,
    /// In ms, sorted.
    latencies: Vec<f64>,
    cpu_us: f64,
    failed: usize,
}

/// Measures all, and adds it to the report.
pub(super) fn measure(quick: bool, report: &mut Report) -> Result<()> {
    clean_on_signals()?;
    let plan = if quick { QUICK } else { FULL };
    let progress = Progress::new(u64::from(plan.rounds) * 4);
    progress.say(
        "Building the network: a client, a gateway, and two clusters of three pods each, in namespaces.",
    );
    let bed = Bed::s1(Options::default()).context("cannot build the network")?;
    let mut all: Vec<(&'static str, Vec<Sample>)> = Vec::new();
    for round in 0..plan.rounds {
        for contender in in_turn(round) {
            let name = contender.map_or(DIRECT, Contender::name);
            let told = || format!("round {} of {}, {name}", round + 1, plan.rounds);
            progress.begin(&told());
            let samples = through(&bed, contender, &plan).with_context(told)?;
            let line: Vec<String> = samples.iter().map(Sample::line).collect();
            progress.done(&format!("{}: {}", told(), line.join(", ")));
            match all.iter_mut().find(|(other, _)| *other == name) {
                Some((_, known)) => known.extend(samples),
                None => all.push((name, samples)),
            }
        }
    }
    for what in [NEW, "keep-alive", "bulk", "open"] {
        for (name, samples) in &all {
            report.connections.extend(served(name, what, samples));
        }
    }
    beyond_direct(&mut report.connections);
    Ok(())
}

/// The contenders, and the direct way, in the order of a round.
fn in_turn(round: u32) -> impl Iterator<Item = Option<Contender>> {
    let all = [None, Some(Contender::Kanmon), Some(Contender::HaProxy), Some(Contender::Nftables)];
    (0..all.len()).map(move |n| all[(n + round as usize) % all.len()])
}

fn through(bed: &Bed, contender: Option<Contender>, plan: &Plan) -> Result<Vec<Sample>> {
    let serving = contender.map(|contender| contender.start(bed, CHECKS)).transpose()?;
    let target = match &serving {
        Some(_) => bed.vip_http(),
        None => {
            let pods = bed.ready_pods();
            (pods.first().context("the network has pods")?.address.v4, POD_PORT).into()
        }
    };
    let client = bed.client();
    // What happens once is not what is measured.
    new_connections(bed, client, target, AT_ONCE)?;
    let samples = vec![
        new_connections(bed, client, target, plan.new)?,
        keep_alive(bed, client, target, plan.asking)?,
        bulk(bed, client, target, plan.bulk)?,
        open(bed, client, target, plan.open)?,
    ];
    if let Some(serving) = serving {
        serving.stop()?;
    }
    Ok(samples)
}

/// Connections with one request each, which the server closes.
fn new_connections(bed: &Bed, client: &Client, target: SocketAddr, count: usize) -> Result<Sample> {
    let load = TcpLoad {
        concurrency: AT_ONCE,
        close: Close::Server,
        timeout: Duration::from_secs(5),
        ..TcpLoad::new(target, count)
    };
    let (report, took, cpu) = timed(bed, || client.tcp(load))?;
    let outcomes = report.outcomes.iter();
    let took_each = outcomes.clone().filter(|it| it.result.is_ok()).map(|it| it.finished - it.started);
    let latencies = sorted(took_each);
    let failed = count - latencies.len();
    ensure!(failed * 100 <= count, "{failed} of {count} connections failed");
    Ok(Sample::new((NEW, "connections"), count as f64, took, latencies, cpu, failed))
}

fn keep_alive(bed: &Bed, client: &Client, target: SocketAddr, time: Duration) -> Result<Sample> {
    let (answers, took, cpu) = timed(bed, || client.keep_asking(target, AT_ONCE, time))?;
    let count = answers.len() as f64;
    Ok(Sample::new(("keep-alive", "requests"), count, took, sorted(answers.into_iter()), cpu, 0))
}

/// For each MB.
fn bulk(bed: &Bed, client: &Client, target: SocketAddr, bytes: usize) -> Result<Sample> {
    let (took, _, cpu) = timed(bed, || client.fetch(target, BULK, bytes))?;
    Ok(Sample::new(("bulk", "MB"), (BULK * bytes) as f64 / 1e6, took, Vec::new(), cpu, 0))
}

/// Connections that are made, and then open all at once, each with its answers.
fn open(bed: &Bed, client: &Client, target: SocketAddr, count: usize) -> Result<Sample> {
    let (held, took, cpu) = timed(bed, || client.hold(Hold::new(target, count)))?;
    let broken = held.stop().broken.len();
    Ok(Sample::new(("open", "connections"), (count - broken) as f64, took, Vec::new(), cpu, broken))
}

impl Sample {
    fn new(
        (what, unit): (&'static str, &'static str),
        count: f64,
        took: Duration,
        latencies: Vec<f64>,
        cpu: Duration,
        failed: usize,
    ) -> Sample {
        let cpu_us = cpu.as_secs_f64() * 1e6 / count.max(1.0);
        Sample { what, unit, per_second: count / took.as_secs_f64(), latencies, cpu_us, failed }
    }

    fn line(&self) -> String {
        format!("{} {:.0} {}/s", self.what, self.per_second, self.unit)
    }
}

/// How long something took, and how much processor time everybody together.
fn timed<T>(bed: &Bed, work: impl FnOnce() -> Result<T>) -> Result<(T, Duration, Duration)> {
    let (ran, begun) = (processor_time(bed)?, Instant::now());
    let done = work()?;
    Ok((done, begun.elapsed(), processor_time(bed)?.saturating_sub(ran)))
}

/// Of the client, of the network's processes, and of the kernel's that receive.
fn processor_time(bed: &Bed) -> Result<Duration> {
    let own = getrusage(UsageWho::RUSAGE_SELF)?;
    let own = [own.user_time(), own.system_time()].map(|time| {
        Duration::from_secs(time.tv_sec().unsigned_abs())
            + Duration::from_micros(time.tv_usec().unsigned_abs())
    });
    let mut all = own[0] + own[1] + bed.run().processor_time()?;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.starts_with("ksoftirqd/")) {
            let times = fs::read_to_string(path.join("schedstat"))?;
            let ran = times.split_whitespace().next().and_then(|ns| ns.parse().ok());
            all += Duration::from_nanos(ran.unwrap_or_default());
        }
    }
    Ok(all)
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut ms: Vec<f64> = times.map(|time| time.as_secs_f64() * 1000.0).collect();
    ms.sort_by(f64::total_cmp);
    ms
}

/// A contender's rounds of one kind; none where there were none.
fn served(contender: &'static str, what: &'static str, samples: &[Sample]) -> Option<Served> {
    let rounds: Vec<&Sample> = samples.iter().filter(|sample| sample.what == what).collect();
    let range =
        |of: fn(&Sample) -> f64| Range::of(&rounds.iter().map(|sample| of(sample)).collect::<Vec<_>>());
    let latency = |share: f64| {
        let each: Vec<f64> = rounds.iter().filter_map(|sample| at(&sample.latencies, share)).collect();
        (!each.is_empty()).then(|| Range::of(&each))
    };
    Some(Served {
        contender,
        what,
        unit: rounds.first()?.unit,
        per_second: range(|sample| sample.per_second),
        p50_ms: latency(0.5),
        p99_ms: latency(0.99),
        p999_ms: latency(0.999),
        cpu_us: range(|sample| sample.cpu_us),
        cpu_us_between: None,
        to_direct: None,
        failed: rounds.iter().map(|sample| sample.failed).sum(),
    })
}

/// The value below which such a share of sorted ones are; none of none.
fn at(sorted: &[f64], share: f64) -> Option<f64> {
    let index = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied()
}

/// Puts each figure beside the direct way's.
fn beyond_direct(all: &mut [Served]) {
    let direct: Vec<Served> = all.iter().filter(|it| it.contender == DIRECT).cloned().collect();
    for served in all.iter_mut().filter(|it| it.contender != DIRECT) {
        let Some(direct) = direct.iter().find(|other| other.what == served.what) else { continue };
        served.to_direct = ratio(served.per_second.median, direct.per_second.median);
        let between = served.cpu_us.median - direct.cpu_us.median;
        served.cpu_us_between = Some((between * 100.0).round() / 100.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(per_second: f64, cpu_us: f64) -> Sample {
        let latencies = (1..=100).map(f64::from).collect();
        Sample { what: NEW, unit: "connections", per_second, latencies, cpu_us, failed: 1 }
    }

    #[test]
    fn what_is_between_is_what_the_direct_way_does_not_take() {
        let rounds = |per_second, cpu| [sample(per_second, cpu), sample(per_second, cpu)];
        let mut all: Vec<Served> = [(DIRECT, rounds(1000.0, 100.0)), ("Kanmon", rounds(900.0, 110.5))]
            .iter()
            .filter_map(|(name, samples)| served(name, NEW, samples))
            .collect();
        beyond_direct(&mut all);
        assert_eq!((all[1].to_direct, all[1].cpu_us_between), (Some(0.9), Some(10.5)));
        assert_eq!((all[0].to_direct, all[0].cpu_us_between, all[0].failed), (None, None, 2));
        assert_eq!(all[1].p99_ms.map(|range| range.median), Some(99.0));
        assert!(served(DIRECT, "bulk", &[sample(1.0, 1.0)]).is_none());
    }

    #[test]
    fn each_round_another_one_begins() {
        let first = |round| in_turn(round).next().flatten().map_or(DIRECT, Contender::name);
        assert_eq!([0, 1, 2, 3, 4].map(first), [DIRECT, "Kanmon", "HAProxy", "nftables", DIRECT]);
        assert_eq!(in_turn(3).count(), 4);
    }
}
