//! What `cargo xtask bench [NAME…]` measures.
//!
//! `figures/` has how fast Kanmon is, beside its goals. Three more are subcommands with files of their own. `failover.rs`
//! is Kanmon beside what does the same work, on story S1's network: contenders (`contender/`) take turns in the same
//! gateway namespace. `control_plane/` is the agent with real API servers. `syn_copy.rs` is the packet program beside itself, by test runs in the kernel.

mod contender;
mod control_plane;
mod failover;
mod figures;
mod page;
mod plot;
mod progress;
mod report;
mod samples;
mod series;
mod syn_copy;

use anyhow::Result;

/// Measures Kanmon: beside what does the same work, in network namespaces, and beside itself.
#[derive(Debug, clap::Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    bench: Option<Bench>,
    #[command(flatten)]
    figures: figures::Args,
}

#[derive(Debug, clap::Subcommand)]
enum Bench {
    /// What the agent takes with many services, and how soon a change is in the kernel; with real API servers.
    ControlPlane(control_plane::Args),
    /// Requests that fail or are slow when a pod or a cluster is lost: Kanmon, HAProxy and nftables.
    Failover(failover::Args),
    /// What it costs a new connection that a copy of its SYN is kept for the case that its backend refuses.
    SynCopy(syn_copy::Args),
}

/// Runs a benchmark, prints its table, and writes the files that were asked for.
///
/// # Errors
/// When the network or a contender cannot be started, the client itself fails, or a file cannot be written.
pub fn run(args: &Args) -> Result<()> {
    match &args.bench {
        Some(Bench::ControlPlane(args)) => control_plane::run(args),
        Some(Bench::Failover(args)) => failover::run(args),
        Some(Bench::SynCopy(args)) => syn_copy::run(args),
        None => figures::run(&args.figures),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_benchmark_is_named_and_takes_its_files() {
        let named = |args: &[&str]| Args::parse_from(args).bench;
        let failover = named(&["bench", "failover", "--json", "f.json", "--plot", "f.svg"]);
        assert!(matches!(failover, Some(Bench::Failover(_))));
        assert!(matches!(named(&["bench", "syn-copy", "--json", "f.json"]), Some(Bench::SynCopy(_))));
        assert!(matches!(
            named(&["bench", "control-plane", "--json", "f.json"]),
            Some(Bench::ControlPlane(_))
        ));
        assert!(named(&["bench", "packet", "--quick", "--json", "f.json"]).is_none());
        assert!(named(&["bench"]).is_none());
        assert!(Args::try_parse_from(["bench", "failovre"]).is_err());
        assert!(Args::try_parse_from(["bench", "failover", "--rounds", "0"]).is_err());
        assert!(named(&["bench", "packet", "--peer", "/a/pin"]).is_none());
        assert!(Args::try_parse_from(["bench", "packet", "--peer-packets", "a.pcap"]).is_err());
    }
}
