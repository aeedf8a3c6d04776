//! Kanmon's developer commands.

mod build;
mod privilege;
mod progress;
mod setup;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use setup::Need;

/// Kanmon's developer commands. Each gets what it needs and lacks by itself.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Get the tools that are missing
    Setup {
        /// Only report what is here and what is missing; the exit code tells
        #[arg(long)]
        check: bool,
    },
    /// Build the eBPF object: target/ebpf/kanmon.o
    BuildEbpf,
    /// Build everything: the eBPF object, then the agent and the demo
    Build,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup { check: true } => {
            return Ok(if setup::check()? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Task::Setup { check: false } => {
            let route = setup::ensure(Need::Ci)?;
            println!("Route: {route}");
        }
        Task::BuildEbpf => build::ebpf(setup::ensure(Need::Build)?)?,
        Task::Build => {
            build::ebpf(setup::ensure(Need::Build)?)?;
            build::host()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
