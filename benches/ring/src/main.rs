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
    /// How rings and changes grow with backends and services, instead.
    #[arg(long)]
    scale: bool,
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
    /// Of the ring, or of all maps in the kernel.
    bytes: Option<u64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let timings = if args.scale { scale(args.quick)? } else { goals(args.quick)? };
    println!("{}", serde_json::to_string(&timings)?);
    Ok(())
}

/// What goals speak of.
fn goals(quick: bool) -> Result<Vec<Timing>> {
    let mut timings = build::measure(if quick { 5 } else { 21 });
    let services = if quick { 100 } else { 1000 };
    timings.extend(change::measure(services, 100, if quick { 10 } else { 50 })?);
    Ok(timings)
}

/// Rings over up to 10,000 backends, and up to 10,000 services of ten backends each.
fn scale(quick: bool) -> Result<Vec<Timing>> {
    let mut timings = build::grow(if quick { &[1, 100] } else { &[1, 10, 100, 1000, 10_000] });
    for services in if quick { &[1, 100][..] } else { &[1, 10, 100, 1000, 10_000] } {
        timings.extend(change::measure(*services, 10, if quick { 3 } else { 10 })?);
    }
    Ok(timings)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
