//! `bench [NAME…]`: how fast Kanmon is, as ratios to what was measured in the same run, beside the goals.

mod baseline;
mod connections;
mod contender;
mod counters;
mod deck;
mod docs;
mod flows;
mod goals;
mod machine;
mod packet;
mod report;
mod ring;
mod scale;
mod visits;
mod wire;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Result;

use self::report::Report;
pub(super) use self::{
    goals::at_most,
    machine::Machine,
    report::{Goal, Range},
};
use crate::output::write_for_caller;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Figure {
    /// What a packet costs the packet program, by kind and number of flows.
    Packet,
    /// What one CPU forwards, live, beside nftables and routing.
    Wire,
    /// New and standing connections through Kanmon, HAProxy and nftables.
    Connections,
    /// How long rings take to build, and a changed endpoint to reach the maps.
    Ring,
    /// How these grow with services, backends and flows.
    Scale,
}

/// The arguments of `bench [NAME…]`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// What to measure; everything where nothing is named.
    #[arg(value_name = "NAME", value_enum)]
    names: Vec<Figure>,
    /// Write what was measured as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fewer flows and repeats: two minutes at most.
    #[arg(long)]
    quick: bool,
    /// Write benchmarks.md and its pictures to this directory; without it, a run of everything that is not quick writes
    /// them to the workspace's documentation.
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
    /// Measure this pinned XDP program too. Its maps must be filled so that it sends what it is given: without
    /// --peer-packets TCP segments and SYNs of up to 2^20 flows from 198.18.0.0/15 to 203.0.113.10:80. It makes what it
    /// keeps of flows itself: all of a case's frames go through it once before they are timed.
    #[arg(long, value_name = "PINNED_PROGRAM")]
    peer: Option<PathBuf>,
    /// What the peer is to be measured with instead, as CASE=FILE.pcap: frames of one length, each of another flow. A
    /// file without a case stands for nat-request.
    #[arg(long, value_name = "[CASE=]FILE.pcap", requires = "peer")]
    peer_packets: Vec<String>,
}

/// Where this workspace has its documentation.
pub(super) fn documentation() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs")
}

/// Measures, prints tables, and writes the files.
pub(super) fn run(args: &Args) -> Result<()> {
    let begun = Instant::now();
    let chosen = |figure| args.names.is_empty() || args.names.contains(&figure);
    let mut report = Report::new(args.quick)?;
    if chosen(Figure::Packet) {
        packet::measure(args, &mut report)?;
    }
    if chosen(Figure::Wire) {
        wire::measure(args.quick, &mut report)?;
    }
    if chosen(Figure::Connections) {
        connections::measure(args.quick, &mut report)?;
    }
    if chosen(Figure::Ring) {
        report.ring = ring::measure(args.quick)?;
    }
    if chosen(Figure::Scale) {
        scale::measure(args.quick, &mut report)?;
    }
    report.seconds = begun.elapsed().as_secs_f64().round();
    report.goals = goals::judge(&report);
    println!("{}", docs::tables(&report));
    if let Some(path) = &args.json {
        write_for_caller(path, &(serde_json::to_string_pretty(&report)? + "\n"))?;
    }
    // A page of some of the figures would take the place of one that has all.
    let whole = args.names.is_empty() && !args.quick;
    match args.docs.clone().or_else(|| whole.then(documentation)) {
        Some(directory) => docs::write(&report, &directory),
        None => Ok(()),
    }
}
