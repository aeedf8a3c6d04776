//! `bench control-plane`: what the agent takes with many services loaded, and how soon a change is in the kernel.
//!
//! The clusters are real API servers, in namespaces of story S1's network; a fourth one is the gateway's own. Services
//! and EndpointSlices are written to them directly: no pods are behind, so nobody probes. A change counts as done when
//! another ring is in the kernel's maps, which a thread of ours looks at; it begins with the event that a watch of our
//! own gets, beside the agent's.

mod agent;
mod kernel;
mod load;
mod measure;
mod report;
mod writer;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use self::{
    load::{MEMBERS, Size},
    measure::{Bench, Plan, idle_memory},
    report::Report,
};
use super::{
    figures::{Machine, documentation},
    page,
    progress::Progress,
};
use crate::{
    netns::clean_on_signals,
    output::write_for_caller,
    stage::{KubeStage, StageOptions},
};

const FULL: Plan = Plan {
    sizes: &[Size { services: 100, endpoints: 100 }, Size { services: 1000, endpoints: 100 }],
    changes: 1000,
    losses: 3,
    storm: Duration::from_secs(60),
    big: 10_000,
    big_changes: 50,
};
const QUICK: Plan = Plan {
    sizes: &[Size { services: 10, endpoints: 100 }, Size { services: 100, endpoints: 100 }],
    changes: 50,
    losses: 1,
    storm: Duration::from_secs(5),
    big: 1000,
    big_changes: 6,
};
/// Measurements of a size, as [`Bench::measure`] tells of them.
const STEPS: u64 = 6;

/// The arguments of `bench control-plane`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Write what was measured as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A tenth of everything: not what the goals are about.
    #[arg(long)]
    quick: bool,
    /// Write the part of benchmarks.md that is about this to this directory; a run that is not quick writes it to the
    /// workspace's documentation without being told.
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
}

/// Measures, prints the table, and writes the files.
pub(super) fn run(args: &Args) -> Result<()> {
    clean_on_signals()?;
    let (begun, plan) = (Instant::now(), if args.quick { QUICK } else { FULL });
    let machine = Machine::here()?;
    let sizes = measure_all(plan)?;
    let seconds = begun.elapsed().as_secs_f64().round();
    let mut report =
        Report { machine, quick: args.quick, seconds, sizes, growth: Vec::new(), goals: Vec::new() };
    report.close();
    println!("{}", report.tables());
    if let Some(path) = &args.json {
        write_for_caller(path, &(serde_json::to_string_pretty(&report)? + "\n"))?;
    }
    match args.docs.clone().or_else(|| (!args.quick).then(documentation)) {
        Some(directory) => page::put(&directory, page::CONTROL_PLANE, &report.markdown()),
        None => Ok(()),
    }
}

fn measure_all(plan: Plan) -> Result<Vec<report::Figures>> {
    let progress = Progress::new(plan.sizes.len() as u64 * STEPS);
    progress.say("Starting four clusters, in namespaces.");
    let clusters = ["gateway"].into_iter().chain(MEMBERS).collect();
    let stage = KubeStage::start(StageOptions { clusters, ..StageOptions::default() })
        .context("cannot start the clusters")?;
    let (gateway, largest) = (stage.gateway(), *plan.sizes.last().context("there are sizes")?);
    let idle = idle_memory(&stage, &gateway, largest)?;
    progress.say(&format!("An idle agent has {:.1} MB of its own.", idle as f64 / 1e6));
    let (mut loaded, mut all) = (0, Vec::new());
    for size in plan.sizes {
        progress.say(&format!("Writing {} services of {} endpoints.", size.services, size.endpoints));
        load::create(&stage, *size, loaded..size.services)?;
        loaded = size.services;
        let bench =
            Bench { stage: &stage, gateway: &gateway, plan, size: *size, largest, progress: &progress };
        let figures = bench.measure(idle);
        all.push(figures.with_context(|| format!("with {} services", size.services))?);
    }
    Ok(all)
}
