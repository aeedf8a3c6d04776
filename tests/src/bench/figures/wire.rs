//! `bench wire`: what one CPU forwards, live.
//!
//! ```text
//!  generator                      a namespace each
//!  ──────────── veth ──────────── eth0: a contender
//! ```
//!
//! A generator sends the frames of established connections into a veth. The contender behind it sends them back out
//! of the same link, where a program counts what arrives and ends it. All of that runs on one CPU, one after the other,
//! so that the time a frame takes is the sum of what generator, link, contender and counting take; the lane `generator`
//! has nothing but a program that counts where the others have their contender. Contenders take turns in each round.
//!
//! Time is the processor's, of this thread and of the kernel's own on that CPU: others that run there count only by what
//! they leave in the caches. A kernel that accounts interrupts apart from threads (`CONFIG_IRQ_TIME_ACCOUNTING`) would
//! leave most of a frame's work out; there the wall's time, which is reported too, is the one to read. The kernel
//! waits around each run, until nobody uses what it had patched in before: what a run of two frames takes at least is subtracted.

mod lane;

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use self::lane::{Lane, Way};
use super::{
    flows::{Net, Serving},
    machine::CPU,
    report::{Passage, Range, Report},
    visits::Order,
};
use crate::{
    bench::progress::Progress,
    kernel_run::{Tape, pin_to_cpu, processor_time},
    netns::{Netns, RunDir, clean_on_signals},
};

/// How much is measured.
struct Plan {
    flows: &'static [u32],
    rounds: u32,
    /// Frames of a sample.
    frames: u32,
}

const FULL: Plan = Plan { flows: &[1, 1 << 10, 1 << 16, 1 << 20], rounds: 9, frames: 1 << 20 };
const QUICK: Plan = Plan { flows: &[1, 1 << 10, 1 << 16], rounds: 3, frames: 1 << 18 };
/// How long frames may be on their way after the last was sent.
const ON_THEIR_WAY: Duration = Duration::from_millis(20);

/// What one contender did in each round.
#[derive(Default)]
struct Samples {
    ns: Vec<f64>,
    /// How long a round took by the wall, and how many frames arrived in it.
    wall: Vec<(Duration, u64)>,
    lost: f64,
}

/// Measures all, and adds it to the report.
pub(super) fn measure(quick: bool, report: &mut Report) -> Result<()> {
    clean_on_signals()?;
    let plan = if quick { QUICK } else { FULL };
    let progress = Progress::new((plan.flows.len() * Way::ALL.len()) as u64);
    progress.say("What one CPU forwards from a link back to it, in ns a frame.");
    let run = Arc::new(RunDir::create()?);
    let generator = Netns::create(&run, "generator")?;
    lane::without_v6(&generator)?;
    let most = plan.flows.iter().copied().max().unwrap_or(1);
    let lanes = Way::ALL.into_iter().map(|way| Lane::build(&run, &generator, way, Serving::ONE, most));
    let mut lanes = lanes.collect::<Result<Vec<_>>>()?;
    for flows in plan.flows {
        // A thread of its own, for its CPU.
        let rows = generator.run(|| -> Result<_> {
            pin_to_cpu(CPU).context("cannot pin the measurement to a CPU")?;
            with_flows(&plan, *flows, &mut lanes)
        });
        for row in rows.with_context(|| format!("with {flows} flows"))? {
            progress.done(&told(&row));
            report.wire.push(row);
        }
    }
    Ok(())
}

/// What a frame takes through Kanmon with each of these services: the median and its like, in ns.
pub(super) fn with_services(quick: bool, flows: u32, all: &[Serving]) -> Result<Vec<Range>> {
    clean_on_signals()?;
    let plan = if quick { QUICK } else { FULL };
    let run = Arc::new(RunDir::create()?);
    let generator = Netns::create(&run, "generator")?;
    lane::without_v6(&generator)?;
    let lanes = all.iter().map(|serving| Lane::build(&run, &generator, Way::Kanmon, *serving, flows));
    let mut lanes = lanes.collect::<Result<Vec<_>>>()?;
    let rows = generator.run(|| -> Result<_> {
        pin_to_cpu(CPU).context("cannot pin the measurement to a CPU")?;
        with_flows(&plan, flows, &mut lanes)
    })?;
    rows.into_iter().map(|row| row.ns.context("a frame's time is unknown")).collect()
}

/// Opens what is missing of so many flows through each contender, and measures.
fn with_flows(plan: &Plan, flows: u32, lanes: &mut [Lane]) -> Result<Vec<Passage>> {
    for lane in lanes.iter_mut() {
        lane.open(flows).with_context(|| format!("through {}", lane.way.name()))?;
    }
    let visits = Order::Random.of(flows);
    let mut tapes: Vec<(Serving, Tape)> = Vec::new();
    for lane in lanes.iter() {
        if tapes.iter().all(|(serving, _)| *serving != lane.serving) {
            let frame = |n| Net::V4.segment_to(lane.serving.vip_for(Net::V4, n), n);
            let frames: Vec<_> = (0..flows).map(frame).collect();
            tapes.push((lane.serving, Tape::new(&frames, &visits)?));
        }
    }
    let mut players = Vec::new();
    for lane in lanes.iter() {
        let own = tapes.iter().find(|(serving, _)| *serving == lane.serving);
        let (_, tape) = own.context("each lane has a tape")?;
        players.push((tape, tape.generator(lane.interface())?));
    }
    let helper = Helper::find()?;
    let mut waiting = Duration::MAX;
    let mut samples: Vec<Samples> = lanes.iter().map(|_| Samples::default()).collect();
    for round in 0..=plan.rounds {
        for ((lane, (tape, player)), samples) in lanes.iter().zip(&players).zip(&mut samples) {
            if lane.lack(flows).is_some() {
                continue;
            }
            let begun = Instant::now();
            player.send(2)?;
            waiting = waiting.min(begun.elapsed());
            tape.rewind();
            let (before, ran, begun) = (settled(lane), helper.processor_time()?, Instant::now());
            player.send(plan.frames)?;
            let took = begun.elapsed();
            let ran = helper.processor_time()? - ran;
            let arrived = settled(lane).saturating_sub(before);
            ensure!(arrived > u64::from(plan.frames / 2), "{}: {arrived} frames arrived", lane.way.name());
            lane.check_last()?;
            if round > 0 {
                samples.ns.push(ran as f64 / arrived as f64);
                samples.wall.push((took, arrived));
                samples.lost = samples.lost.max(1.0 - arrived as f64 / f64::from(plan.frames));
            }
        }
    }
    Ok(lanes.iter().zip(samples).map(|(lane, samples)| row(lane, flows, &samples, waiting)).collect())
}

/// What has arrived, once nothing more does.
fn settled(lane: &Lane) -> u64 {
    let begun = Instant::now();
    let mut count = lane.sink.count();
    let mut since = begun;
    while since.elapsed() < ON_THEIR_WAY / 10 && begun.elapsed() < ON_THEIR_WAY {
        let now = lane.sink.count();
        if now != count {
            (count, since) = (now, Instant::now());
        }
    }
    count
}

/// What runs on the CPU that measures besides this thread when there is more to receive than this thread should do.
struct Helper {
    times: PathBuf,
}

impl Helper {
    fn find() -> Result<Helper> {
        let name = format!("ksoftirqd/{CPU}\n");
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == name) {
                return Ok(Helper { times: path.join("schedstat") });
            }
        }
        bail!("there is no process {}", name.trim())
    }

    /// ns for which it and this thread have run.
    fn processor_time(&self) -> Result<u64> {
        let text = fs::read_to_string(&self.times)?;
        let ran = text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok());
        Ok(processor_time() + ran.context("the kernel does not say how long a process ran")?)
    }
}

fn row(lane: &Lane, flows: u32, samples: &Samples, waiting: Duration) -> Passage {
    let measured = !samples.ns.is_empty();
    let wall = samples.wall.iter();
    let wall = wall.map(|(took, arrived)| took.saturating_sub(waiting).as_nanos() as f64 / *arrived as f64);
    let wall: Vec<f64> = wall.collect();
    let rates: Vec<f64> = samples.ns.iter().map(|ns| (1e9 / ns).round()).collect();
    Passage {
        contender: lane.way.name(),
        flows,
        ns: measured.then(|| Range::of(&samples.ns)),
        packets_per_second: measured.then(|| Range::of(&rates)),
        wall_ns: measured.then(|| Range::of(&wall)),
        lost: measured.then_some((samples.lost * 10_000.0).round() / 10_000.0),
        lack: lane.lack(flows),
    }
}

fn told(row: &Passage) -> String {
    let what = format!("{}, {} flows", row.contender, row.flows);
    match (&row.ns, &row.lack) {
        (Some(ns), _) => format!("{what}: {ns}"),
        (None, lack) => format!("{what}: not measured: {}", lack.as_deref().unwrap_or("no frame arrived")),
    }
}
