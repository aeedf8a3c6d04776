//! How long the agent takes to build rings, and to bring a changed endpoint into the maps. `cargo xtask bench ring`
//! runs this and makes tables of the JSON that it prints.

mod build;
mod change;

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;

/// The arguments.
#[derive(Debug, Parser)]
struct Args {
    /// Fewer services and rounds.
    #[arg(long)]
    quick: bool,
}

/// Something that was measured.
#[derive(Debug, Serialize)]
struct Timing {
    what: &'static str,
    /// Of a ring.
    slots: u32,
    services: u32,
    /// Of all services together.
    backends: u32,
    /// Each round's.
    ms: Vec<f64>,
    /// Of the slots that change hands when one backend goes, those of the others, as a share of all.
    disruption: Option<f64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut timings = build::measure(if args.quick { 5 } else { 21 });
    timings.extend(change::measure(if args.quick { 100 } else { 1000 }, if args.quick { 10 } else { 50 })?);
    println!("{}", serde_json::to_string(&timings)?);
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
