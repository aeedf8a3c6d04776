//! `bench syn-copy`: what a new connection costs the packet program, with the copy of its SYN that `retryOnReset`
//! wants, and without.
//!
//! With and without take turns every few hundred frames, on the same tables: whatever else goes on with the machine,
//! and however full the tables are by then, concerns both alike.

use std::{net::SocketAddr, path::PathBuf, thread, time::Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use lb_common::{
    abi::{Counter, ReactionWord, TCP},
    datapath::Cells as _,
    host::{Frame, Gateway, GatewayConfig, SYN, Sizes, Transport},
};
use serde::Serialize;

use super::{
    progress::Progress,
    samples::{Spread, ratio},
};
use crate::{
    kernel_run::{Clock, KernelProgram, Stream, pin_to_cpu},
    output::{kernel_release, write_for_caller},
};

/// New connections of one system call: few, so that with and without meet the same machine.
const IN_ONE_RUN: u32 = 500;
/// New connections of a round, with the copy, and as many without.
const IN_ROUND: u32 = 100_000;
/// Backends of the service: a round takes a tenth of their ports.
const BACKENDS: u16 = 64;
/// Cell of a service's descriptor that has its `ReactionWord`.
const REACTION: usize = 5;
/// What Linux sends with a SYN: MSS, SACK permitted, timestamps, no-op, window scale.
const OPTIONS: [u8; 20] = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7];
const VIPS: [(&str, &str, &str); 2] =
    [("IPv4", "203.0.113.10:80", "198.18.0.0:0"), ("IPv6", "[2001:db8::10]:80", "[2001:db8:c::]:0")];

/// The arguments of `bench syn-copy`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Write what was measured as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often 100,000 new connections are made with the copy, and 100,000 without, of each address family.
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

/// The whole benchmark.
#[derive(Debug, Serialize)]
struct Report {
    /// The kernel's release.
    kernel: String,
    rounds: u32,
    /// New connections of a round, with the copy, and as many without.
    connections: u32,
    /// How many of them are timed at once: a sample.
    connections_in_sample: u32,
    /// How long all of it took.
    seconds: f64,
    families: Vec<FamilyReport>,
}

/// Of one address family. Times are ns for each new connection, what writing its frame takes subtracted.
#[derive(Debug, Serialize)]
struct FamilyReport {
    family: &'static str,
    with_copy_ns: Spread,
    without_copy_ns: Spread,
    /// With less without, pair by pair.
    copy_ns: Spread,
    /// With to without: of the medians.
    ratio: f64,
    /// The same, round by round.
    ratio_by_round: Vec<f64>,
    /// What was subtracted.
    writing_ns: Spread,
}

/// Nanoseconds by sample, in the order of their making.
#[derive(Debug, Default)]
struct Samples {
    with: Vec<f64>,
    without: Vec<f64>,
    writing: Vec<f64>,
}

/// Measures, prints the table, and writes the file.
pub(super) fn run(args: &Args) -> Result<()> {
    let begun = Instant::now();
    let progress = Progress::new(u64::from(args.rounds) * VIPS.len() as u64);
    progress.say("Loading the packet program, with tables for 1,000,000 connections.");
    let mut families = Vec::new();
    for (family, vip, client) in VIPS {
        // A thread of its own, for its CPU.
        let measured = thread::scope(|scope| {
            let measuring =
                scope.spawn(|| measure(family, vip.parse()?, client.parse()?, args.rounds, &progress));
            measuring.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        families.push(measured.with_context(|| format!("over {family}"))?);
    }
    drop(progress);
    let report = Report {
        kernel: kernel_release()?,
        rounds: args.rounds,
        connections: IN_ROUND,
        connections_in_sample: IN_ONE_RUN,
        seconds: begun.elapsed().as_secs_f64().round(),
        families,
    };
    println!("{}", report.table());
    match &args.json {
        Some(path) => write_for_caller(path, &(serde_json::to_string_pretty(&report)? + "\n")),
        None => Ok(()),
    }
}

fn measure(
    family: &'static str,
    vip: SocketAddr,
    client: SocketAddr,
    rounds: u32,
    progress: &Progress,
) -> Result<FamilyReport> {
    pin_to_cpu(0)?;
    let mut gateway = Gateway::new(&settings(), 1);
    let backends: Vec<SocketAddr> = (1..=BACKENDS).map(|n| backend(vip, n)).collect();
    let service = gateway.add_service(vip, TCP, &backends);
    let mut kernel = KernelProgram::load(&settings().sizes, Clock::Kernel)?;
    kernel.mirror(&gateway.maps)?;
    drop(gateway);
    let mut frame = Frame::tcp(client, vip, SYN);
    if let Transport::Tcp { options, .. } = &mut frame.transport {
        *options = OPTIONS.to_vec();
    }
    let mut stream = kernel.stream(&frame)?;
    let mut by_round = Vec::new();
    for round in 1..=rounds {
        let what = format!("round {round} of {rounds}, {family}");
        progress.begin(&what);
        kernel.tables.forget_packets();
        let samples = measure_round(&mut kernel, &mut stream, service).with_context(|| what.clone())?;
        let (with, without) =
            (Spread::of(&samples.net(&samples.with)), Spread::of(&samples.net(&samples.without)));
        progress
            .done(&format!("{what}: {:.0} ns with the copy, {:.0} ns without", with.median, without.median));
        by_round.push(samples);
    }
    Ok(FamilyReport::new(family, &by_round))
}

/// As many as the agent makes for a million connections; of each family, where it would give IPv6 less.
fn settings() -> GatewayConfig {
    let sizes = Sizes {
        flow_buckets: 1 << 19,
        reverse_v4_buckets: 1 << 19,
        reverse_v6_buckets: 1 << 19,
        backends: 1 << 12,
        members: 1 << 13,
        cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
        ..GatewayConfig::default().sizes
    };
    GatewayConfig { sizes, events_per_tick: 1024, ..GatewayConfig::default() }
}

fn backend(vip: SocketAddr, n: u16) -> SocketAddr {
    match vip {
        SocketAddr::V4(_) => ([10, 0, 0, n as u8], 8080).into(),
        SocketAddr::V6(_) => ([0xfd00, 0x10, 0, 0, 0, 0, 0, n], 8080).into(),
    }
}

/// Fills the tables, in turn with and without.
fn measure_round(kernel: &mut KernelProgram, stream: &mut Stream, service: u32) -> Result<Samples> {
    let mut samples = Samples::default();
    for n in 0..IN_ROUND / IN_ONE_RUN {
        samples.writing.push(stream.time_writing(IN_ONE_RUN)?);
        // Who goes first has the colder caches.
        for with in if n % 2 == 0 { [true, false] } else { [false, true] } {
            let nanoseconds = open(kernel, stream, service, with)?;
            if with { &mut samples.with } else { &mut samples.without }.push(nanoseconds);
        }
    }
    ensure!(has_copies(kernel), "the packet program kept no copy of any SYN");
    Ok(samples)
}

fn has_copies(kernel: &KernelProgram) -> bool {
    let syns = &kernel.tables.syns;
    (0..syns.len()).filter_map(|index| syns.get(index)).any(|copy| copy.load(0) != 0)
}

/// Makes connections; nanoseconds for each.
fn open(kernel: &mut KernelProgram, stream: &mut Stream, service: u32, with_copy: bool) -> Result<f64> {
    let descriptor = kernel.tables.descriptors.get(service).context("the service has a descriptor")?;
    descriptor.store(REACTION, ReactionWord::new(0, 0, with_copy).0);
    let before = kernel.tables.counter(Counter::FlowOpened);
    let nanoseconds = stream.time(IN_ONE_RUN)?;
    let opened = kernel.tables.counter(Counter::FlowOpened) - before;
    ensure!(opened == u64::from(IN_ONE_RUN), "{opened} of {IN_ONE_RUN} SYNs opened a connection");
    // As the agent does, or the ring buffer would be full from the second round on.
    while kernel.next_event().is_some() {}
    Ok(nanoseconds)
}

impl Samples {
    /// Without what writing a frame takes.
    fn net(&self, whole: &[f64]) -> Vec<f64> {
        let writing = Spread::of(&self.writing).median;
        whole.iter().map(|whole| whole - writing).collect()
    }

    /// Pair by pair.
    fn difference(&self) -> impl Iterator<Item = f64> + '_ {
        self.with.iter().zip(&self.without).map(|(with, without)| with - without)
    }

    fn ratio(&self) -> f64 {
        ratio_of_medians(&self.net(&self.with), &self.net(&self.without))
    }
}

fn ratio_of_medians(with: &[f64], without: &[f64]) -> f64 {
    ratio(Spread::of(with).median, Spread::of(without).median).unwrap_or_default()
}

impl FamilyReport {
    fn new(family: &'static str, rounds: &[Samples]) -> FamilyReport {
        let with: Vec<f64> = rounds.iter().flat_map(|round| round.net(&round.with)).collect();
        let without: Vec<f64> = rounds.iter().flat_map(|round| round.net(&round.without)).collect();
        let writing: Vec<f64> = rounds.iter().flat_map(|round| &round.writing).copied().collect();
        FamilyReport {
            family,
            with_copy_ns: Spread::of(&with),
            without_copy_ns: Spread::of(&without),
            copy_ns: Spread::of(&rounds.iter().flat_map(Samples::difference).collect::<Vec<_>>()),
            ratio: ratio_of_medians(&with, &without),
            ratio_by_round: rounds.iter().map(Samples::ratio).collect(),
            writing_ns: Spread::of(&writing),
        }
    }
}

impl Report {
    /// The table for people.
    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["", "with the copy", "without", "the copy", "ratio", "ratio by round"]);
        for family in &self.families {
            let (least, most) = bounds(&family.ratio_by_round);
            table.add_row([
                family.family.to_owned(),
                family.with_copy_ns.to_string(),
                family.without_copy_ns.to_string(),
                family.copy_ns.to_string(),
                format!("{:.3}", family.ratio),
                format!("{least:.3} to {most:.3}"),
            ]);
        }
        for column in 1..6 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!(
            "\n{}\n\nNanoseconds of the packet program for a new connection: the median, and in brackets between what \
             nine\nof ten samples of {} connections lie. {} rounds of {} connections each way. Kernel {}.",
            table.trim_fmt(),
            self.connections_in_sample,
            self.rounds,
            self.connections,
            self.kernel
        )
    }
}

fn bounds(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, 0.0), |(least, most): (f64, f64), &value| (least.min(value), most.max(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_costs_what_with_has_more_than_without() {
        let round = |with: f64| Samples {
            with: vec![with + 20.0, with + 22.0, with + 400.0],
            without: vec![220.0, 222.0, 224.0],
            writing: vec![20.0, 20.0, 90.0],
        };
        let report = FamilyReport::new("IPv4", &[round(210.0), round(230.0)]);
        assert_eq!(report.without_copy_ns.median, 202.0);
        assert_eq!(report.copy_ns.median, 30.0);
        assert_eq!(report.ratio_by_round, [1.05, 1.149]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["writing_ns"]["median"], 20.0);
    }

    #[test]
    fn a_frame_is_a_syn_as_linux_sends_it() {
        let (_, vip, client) = VIPS[0];
        let mut frame = Frame::tcp(client.parse().unwrap(), vip.parse().unwrap(), SYN);
        if let Transport::Tcp { options, .. } = &mut frame.transport {
            *options = OPTIONS.to_vec();
        }
        assert_eq!(frame.build().len(), 14 + 20 + 40);
    }
}
