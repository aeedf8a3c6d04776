//! Kanmon's developer commands.

mod bench;
mod build;
mod ci;
mod fuzz;
mod privilege;
mod progress;
mod run;
mod setup;
mod test;
mod workspace;

use std::ffi::OsString;
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
    /// Build what runs in the kernel: target/ebpf/kanmon.o, and what the benchmarks compare it to
    BuildEbpf,
    /// Build everything: the eBPF object, then the agent and the demo
    Build,
    /// Build, and run the agent on this machine: `cargo xtask run -- --interface eth0 --manifests DIR`
    Run {
        /// The arguments of `kanmon run`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Build, and show what Kanmon does, with real connections in network namespaces
    #[command(disable_help_flag = true)]
    Demo {
        /// The arguments of the demo; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Build, and measure something: `cargo xtask bench failover --json FILE --plot FILE.svg`
    #[command(disable_help_flag = true)]
    Bench {
        /// The benchmark's name and its arguments; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Build and run the tests
    Test(test::Options),
    /// Run the packet program on what a fuzzer makes up: `cargo xtask fuzz tables --minutes 10`
    Fuzz(fuzz::Options),
    /// Run what continuous integration runs
    Ci,
}

fn main() -> ExitCode {
    match perform(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup { check: true } => {
            return Ok(if setup::check()? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Task::Setup { check: false } => {
            setup::ensure(Need::Bench)?;
            let route = setup::ensure(Need::Kubernetes)?;
            println!("Route: {route}");
        }
        Task::BuildEbpf => {
            let route = setup::ensure(Need::Build)?;
            build::ebpf(route)?;
            build::ebpf_baseline(route)?;
        }
        Task::Build => {
            build::ebpf(setup::ensure(Need::Build)?)?;
            build::host()?;
        }
        Task::Run { args } => run::agent(&args)?,
        Task::Demo { args } => run::demo(&args)?,
        Task::Bench { args } => bench::run(&args)?,
        Task::Test(options) => {
            let report = test::run(&options)?;
            let verdict = report.verdict();
            if let Err(error) = &verdict {
                eprintln!("error: {error:#}");
            }
            println!("{}", report.closing_line());
            return Ok(if verdict.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Task::Fuzz(options) => fuzz::fuzz(&options)?,
        Task::Ci => {
            return Ok(if ci::everything()? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}
