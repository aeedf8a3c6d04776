//! What `cargo xtask bench NAME` measures: Kanmon beside what does the same work, on story S1's network.
//!
//! A benchmark is a subcommand with a file of its own; `failover.rs` is one. Contenders (`contender/`) take turns
//! in the same gateway namespace.

mod contender;
mod failover;
mod plot;
mod progress;
mod report;
mod samples;
mod series;

use anyhow::Result;

/// Measures Kanmon beside what does the same work, in network namespaces.
#[derive(Debug, clap::Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
pub struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, clap::Subcommand)]
enum Bench {
    /// Requests that fail or are slow when a pod or a cluster is lost: Kanmon, HAProxy and nftables.
    Failover(failover::Args),
}

/// Runs a benchmark, prints its table, and writes the files that were asked for.
///
/// # Errors
/// When the network or a contender cannot be started, the client itself fails, or a file cannot be written.
pub fn run(args: &Args) -> Result<()> {
    match &args.bench {
        Bench::Failover(args) => failover::run(args),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_benchmark_is_named_and_takes_its_files() {
        let Bench::Failover(_) =
            Args::parse_from(["bench", "failover", "--json", "f.json", "--plot", "f.svg"]).bench;
        assert!(Args::try_parse_from(["bench"]).is_err());
        assert!(Args::try_parse_from(["bench", "failovre"]).is_err());
        assert!(Args::try_parse_from(["bench", "failover", "--rounds", "0"]).is_err());
    }
}
